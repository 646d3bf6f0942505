"""One cycle in one task, on a worker."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator

with DAG("on_a_worker", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False) as dag:
    DispatchOperator(task_id="dispatch", time_to_live=0, assets=False)
