"""DAGs that tell Slack."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.factory import dispatch_dag
from bqdispatch_provider.notifications import BqDispatchNotifier
from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor


def dag_of(dag_id):
    return DAG(dag_id, schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)


def telling(**more):
    notifier = BqDispatchNotifier("#data-ops", **more)
    return {"on_success_callback": notifier, "on_failure_callback": notifier}


with dag_of("tells") as tells:
    detect = BqDispatchSensor(task_id="detect")
    dispatch = DispatchOperator(task_id="dispatch", shares=detect.output)
    dispatch >> DispatchReportOperator(task_id="report", **telling())

with dag_of("tells_alone") as tells_alone:
    DispatchOperator(task_id="dispatch", time_to_live=0, **telling())

with dag_of("tells_by_a_connection") as tells_by_a_connection:
    DispatchOperator(task_id="dispatch", time_to_live=0, **telling(slack_conn_id="{{ 'slack' }}_ops"))

with dag_of("tells_that_it_failed") as tells_that_it_failed:
    DispatchOperator(task_id="dispatch", shares="everything", **telling())

acme = dispatch_dag("acme", dag_id="tells_of_acme", schedule=None, default_args=telling())
