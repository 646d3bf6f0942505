"""Start when BqTail has loaded a table.

Use it where a DAG of yours follows a table, whenever that is loaded: nothing polls, and no time is guessed at. The
dispatcher emits an asset event for each job that has written the table; what comes while a run is being made starts one
run, which gets all of it. Where a load goes into a transient table first, the copy into this one starts it.
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
        """The jobs that have loaded it since the last run."""
        return [event["job_id"] for event in loaded(context, ORDERS)]

    use()
