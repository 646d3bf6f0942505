"""DAG ``bqdispatch_deferred``: the whole dispatcher in one task that runs in the triggerer, in a thread.

Choose it for the shortest way from a job's end to BqTail at the least cost: it looks every second while something is
on its way. A worker is needed only at the end of a run that dispatched something, to note its asset events (on Airflow
3.0 to 3.2 also to begin a run): a DAG that is scheduled by a table waits for that, ten minutes here. Pools have no say
in it; the dispatcher holds the limits itself.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator

with DAG(
    "bqdispatch_deferred",
    doc_md=__doc__,
    schedule="@continuous",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=1)},
    is_paused_upon_creation=True,
    tags=["bqtail", "bigquery"],
) as dag:
    DispatchOperator(task_id="dispatch", time_to_live=600, deferrable=True, start_from_trigger=True)
