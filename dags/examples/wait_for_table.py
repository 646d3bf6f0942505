"""Go on with a table once BqTail has loaded all that has come for it.

Use it where an Airflow DAG of yours runs by the clock and needs a table as a whole: no file's load waits or runs any
more, and the last post action of each was triggered. It dispatches nothing; that is what the DAG ``bqdispatch`` is for.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.done import BqDispatchDoneSensor

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
