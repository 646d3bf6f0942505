"""DAG ``bqdispatch_on_events`` (Airflow 3): a run when there is something to dispatch, and every minute for safety.

A trigger watches the task folder, and an asset by which the DAG is scheduled tells of what it sees. Choose it when
events come in bursts, and each burst should be a run that is seen in Airflow. The run's one task begins in the
triggerer, so an idle minute starts no worker process (on Airflow 3.0 to 3.2 it starts one). It stays there for twenty
seconds: what follows the first event soon does not wait until Airflow has begun another run.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.compat import schedule_on_events
from bqdispatch_provider.operators import DispatchOperator
from bqdispatch_provider.triggers import BqDispatchEventTrigger

schedule = schedule_on_events("bqdispatch_events", BqDispatchEventTrigger("bqdispatch_default"), "* * * * *")
if schedule is not None:
    with DAG(
        "bqdispatch_on_events",
        doc_md=__doc__,
        schedule=schedule,
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        default_args={"retries": 3, "retry_delay": timedelta(seconds=1)},
        is_paused_upon_creation=True,
        tags=["bqtail", "bigquery"],
    ) as dag:
        DispatchOperator(task_id="dispatch", time_to_live=20, start_from_trigger=True)
