"""DAGs that start when a table was loaded, and a dispatcher."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.assets import loaded, table_asset
from bqdispatch_provider.operators import DispatchOperator


def after(table):
    with DAG(
        f"after_{table}",
        schedule=[table_asset(f"p.ds.{table}")],
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
    ) as dag:

        @task
        def use(**context):
            return loaded(context, f"p.ds.{table}")

        use()
    return dag


after_summary, after_orders = after("summary"), after("orders")

with DAG("dispatch_tables", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False) as for_tables:
    DispatchOperator(task_id="dispatch", time_to_live=0)
