"""DAGs that somebody starts by hand, and meddles with."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.notifications import BqDispatchNotifier
from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor


def dag_of(dag_id, **more):
    return DAG(dag_id, schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False, **more)


@task
def count(returned):
    return returned["Dispatched"]


notifier = BqDispatchNotifier("#data-ops", slack_conn_id="slack_ops")

with dag_of("by_hand") as by_hand:
    detect = BqDispatchSensor(task_id="detect")
    DispatchOperator(task_id="dispatch", shares=detect.output) >> DispatchReportOperator(task_id="report")

with dag_of("changing") as changing:
    DispatchOperator(task_id="dispatch", time_to_live=0, bqdispatch_conn_id="changing")

for where in ("worker", "triggerer"):
    with dag_of(f"logs_on_{where}"):
        DispatchOperator(task_id="dispatch", time_to_live=0, assets=False, deferrable=where == "triggerer")

with dag_of("used_on_triggerer") as used_on_triggerer:
    count(DispatchOperator(task_id="dispatch", time_to_live=0, assets=False, deferrable=True).output)

with dag_of("tells_of_success") as tells_of_success:
    DispatchOperator(task_id="dispatch", only={"lanes": ["sql"]}, time_to_live=0, on_success_callback=notifier)

with dag_of("tells_of_a_skip") as tells_of_a_skip:
    BqDispatchSensor(task_id="detect", only={"lanes": ["sql"]}, timeout=1, on_skipped_callback=notifier)

with dag_of("tells_of_its_run", on_failure_callback=notifier) as tells_of_its_run:
    DispatchOperator(task_id="dispatch", time_to_live=0, fail_on_error=True, retries=0)
