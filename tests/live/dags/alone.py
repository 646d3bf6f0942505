"""The whole dispatcher in one task that starts in the triggerer."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator

with DAG("alone", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False) as dag:
    DispatchOperator(task_id="dispatch", time_to_live=75, start_from_trigger=True, assets=False)
