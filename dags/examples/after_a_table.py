"""Start when BqTail has loaded a table.

Use it for a DAG that follows a table, whenever that is loaded, without polling. The dispatcher emits an asset event for
each job that has written the table. All events that arrive while a run is created start that one run. If a load goes
into a transient table first, the copy into this table starts the DAG.
"""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.assets import loaded, table_asset

ORDERS = "acme-shop.sales.orders"

with DAG(
    "after_a_table",
    schedule=[table_asset(ORDERS)],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=True,
) as dag:

    @task
    def use(**context: Any) -> list[str]:
        """Return the jobs that have loaded the table since the last run."""
        return [event["job_id"] for event in loaded(context, ORDERS)]

    use()
