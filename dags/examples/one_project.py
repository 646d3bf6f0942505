"""Dispatch the events of one project only, in a single task.

Use it if that project must not wait for others, or has an Airflow of its own. All other events wait for another
dispatcher. The limits count all running jobs, whoever dispatched them. Filters by destination, action and event ID work
the same way.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator

with DAG(
    "one_project",
    schedule="* * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=5),
    is_paused_upon_creation=True,
) as dag:
    DispatchOperator(task_id="dispatch", only={"projects": ["acme-shop"]}, time_to_live=50)
