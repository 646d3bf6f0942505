"""DAGs that map sensors, operators and groups of both over filters."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task_group

from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor

LANES = [{"lanes": "jobs"}, {"lanes": ["windows"]}]
SOON = {"timeout": 1, "poke_interval": 0.1}


def dag_of(dag_id):
    return DAG(dag_id, schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)


with dag_of("mapped_operators") as mapped_operators:
    detect = BqDispatchSensor(task_id="detect_all", **SOON)
    dispatch = DispatchOperator.partial(task_id="dispatch", shares=detect.output).expand(only=LANES)
    dispatch >> DispatchReportOperator(task_id="report")

with dag_of("mapped_sensors") as mapped_sensors:
    detect = BqDispatchSensor.partial(task_id="detect_each", **SOON).expand(only=LANES)
    dispatch = DispatchOperator(task_id="dispatch", shares=detect.output, trigger_rule="none_failed_min_one_success")
    dispatch >> DispatchReportOperator(task_id="report")

with dag_of("mapped_sensors_of_the_same") as mapped_sensors_of_the_same:
    detect = BqDispatchSensor.partial(task_id="detect_each", **SOON).expand(only=[*LANES, {"projects": ["p"]}])
    dispatch = DispatchOperator(task_id="dispatch", shares=detect.output)
    dispatch >> DispatchReportOperator(task_id="report")

with dag_of("mapped_group") as mapped_group:

    @task_group
    def each(only):
        detect = BqDispatchSensor(task_id="detect", only=only, **SOON)
        DispatchOperator(task_id="dispatch", shares=detect.output)

    each.expand(only=LANES) >> DispatchReportOperator(task_id="report")
