"""Continue once BqTail has loaded all that has come for a table.

Use it for a DAG that runs at fixed times and needs a table as a whole: no load of the table waits or runs any more, and
the last post action of each was triggered. The DAG dispatches nothing; the DAG ``bqdispatch`` does.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.sensors import BqDispatchDoneSensor

with DAG(
    "wait_for_table",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=True,
) as dag:
    loaded = BqDispatchDoneSensor(
        task_id="loaded",
        only={"destinations": ["sales.orders"]},
        mode="reschedule",
        timeout=timedelta(hours=2),
    )

    @task
    def use() -> None:
        print("sales.orders is loaded")

    loaded >> use()
