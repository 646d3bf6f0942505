"""DAGs that put the operators together in other ways than the sample DAG."""

from datetime import UTC, datetime, timedelta

from airflow.exceptions import AirflowTaskTimeout
from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor


class KilledAtOnce(DispatchOperator):
    def pre_execute(self, context):
        self.on_kill()


class FailsAfterwards(DispatchOperator):
    def post_execute(self, context, result=None):
        if context["ti"].try_number == 1:
            raise RuntimeError("the worker is lost")


class TimesOut(DispatchOperator):
    def execute(self, context):
        try:
            return super().execute(context)
        except AirflowTaskTimeout as error:
            raise RuntimeError("it timed out") from error  # Airflow 2's dag.test() goes on after exceptions alone


def dag_of(dag_id):
    return DAG(dag_id, schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)


@task
def count(returned):
    return returned["Dispatched"]


def reported(dispatch):
    return dispatch >> DispatchReportOperator(task_id="report")


with dag_of("mapped") as mapped:
    detect = BqDispatchSensor(task_id="detect")
    reported(DispatchOperator.partial(task_id="dispatch").expand(shares=detect.output))

with dag_of("deferred") as deferred:
    detect = BqDispatchSensor(task_id="detect", deferrable=True)
    reported(DispatchOperator.partial(task_id="dispatch").expand(shares=detect.output))

with dag_of("rescheduled") as rescheduled:
    detect = BqDispatchSensor(task_id="detect", mode="reschedule")
    reported(DispatchOperator(task_id="dispatch", shares=detect.output))

with dag_of("strict") as strict:
    detect = BqDispatchSensor(task_id="detect", soft_fail=False)
    reported(DispatchOperator(task_id="dispatch", shares=detect.output))

with dag_of("one_lane") as one_lane:
    detect = BqDispatchSensor(task_id="detect", only={"lanes": ["windows"]})
    reported(DispatchOperator(task_id="dispatch", shares=detect.output))

with dag_of("half_broken") as half_broken:
    detect = BqDispatchSensor(task_id="detect")
    reported(
        [
            DispatchOperator(task_id="dispatch_sql", shares=detect.output, only={"lanes": ["sql"]}),
            DispatchOperator(
                task_id="dispatch_jobs", shares=detect.output, only={"lanes": ["jobs"]}, bqdispatch_conn_id="missing"
            ),
            DispatchOperator(task_id="fire_windows", shares=detect.output, only={"lanes": ["windows"]}),
        ]
    )

with dag_of("numbered") as numbered:
    dispatch = DispatchOperator(task_id="dispatch", time_to_live=0)
    broken = {"time_to_live": 0, "bqdispatch_conn_id": "missing"}
    lanes = DispatchOperator.partial(task_id="lanes", **broken).expand(only=[{"lanes": "sql"}, {"lanes": "jobs"}])
    reported([dispatch, DispatchOperator(task_id="dispatch_1", **broken), lanes])

with dag_of("retried") as retried:
    detect = BqDispatchSensor(task_id="detect")
    reported(FailsAfterwards(task_id="dispatch", shares=detect.output, retries=1, retry_delay=timedelta(0)))

with dag_of("timed_out") as timed_out:
    detect = BqDispatchSensor(task_id="detect")
    reported(
        TimesOut(
            task_id="dispatch",
            shares=detect.output,
            retries=9,
            retry_delay=timedelta(0),
            execution_timeout=timedelta(seconds=3),
        )
    )

with dag_of("two_sensors") as two_sensors:
    detect = BqDispatchSensor(task_id="detect", only={"lanes": ["windows"]})
    detect_too = BqDispatchSensor(task_id="detect_too", only={"lanes": ["sql", "jobs"]}, timeout=1)
    reported(
        [
            DispatchOperator(task_id="dispatch", shares=detect.output),
            DispatchOperator(task_id="dispatch_too", shares=detect_too.output),
        ]
    )

with dag_of("twice") as twice:
    detect = BqDispatchSensor(task_id="detect")
    first = DispatchOperator(task_id="dispatch", shares=detect.output)
    reported(first >> DispatchOperator(task_id="dispatch_again", shares=detect.output))

with dag_of("killed") as killed:
    detect = BqDispatchSensor(task_id="detect")
    reported(KilledAtOnce(task_id="dispatch", shares=detect.output))

with dag_of("reported_again") as reported_again:
    detect = BqDispatchSensor(task_id="detect")
    first = reported(DispatchOperator(task_id="dispatch", shares=detect.output))
    first >> DispatchReportOperator(task_id="report_again", assets=False)

with dag_of("templated") as templated:
    detect = BqDispatchSensor(task_id="detect", variables={"folder": "{{ 'BqDispatch' }}"})
    dispatch = DispatchOperator(task_id="dispatch", shares=detect.output, variables={"folder": "{{ 'BqDispatch' }}"})
    dispatch >> DispatchReportOperator(task_id="report", variables={"folder": "{{ 'BqDispatch' }}"})

with dag_of("alone") as alone:
    DispatchOperator(task_id="dispatch", time_to_live=0)

with dag_of("some_of_it") as some_of_it:
    detect = BqDispatchSensor(task_id="detect", only={"projects": "q", "destinations": ["{{ 'sales' }}.*"]})
    reported(DispatchOperator(task_id="dispatch", shares=detect.output))

with dag_of("alone_with_some") as alone_with_some:
    DispatchOperator(task_id="dispatch", only={"actions": ["copy"]}, time_to_live=0)

with dag_of("fails_on_error") as fails_on_error:
    detect = BqDispatchSensor(task_id="detect")
    dispatch = DispatchOperator(task_id="dispatch", shares=detect.output, fail_on_error=True)
    dispatch >> DispatchReportOperator(task_id="report", fail_on_error=True, retries=1, retry_delay=timedelta(0))

with dag_of("alone_fails_on_error") as alone_fails_on_error:
    DispatchOperator(task_id="dispatch", time_to_live=0, fail_on_error=True)

with dag_of("not_shares") as not_shares:
    DispatchOperator(task_id="dispatch", shares="everything")

with dag_of("alone_deferred") as alone_deferred:
    DispatchOperator(task_id="dispatch", time_to_live=0, deferrable=True)

with dag_of("alone_deferred_without_assets") as alone_deferred_without_assets:
    DispatchOperator(task_id="dispatch", time_to_live=0, deferrable=True, assets=False)

with dag_of("used") as used:
    count(DispatchOperator(task_id="dispatch", time_to_live=0, deferrable=False).output)

with dag_of("used_deferred") as used_deferred:
    count(DispatchOperator(task_id="dispatch", time_to_live=0, deferrable=True, assets=False).output)

with dag_of("alone_deferred_fails_on_error") as alone_deferred_fails_on_error:
    DispatchOperator(task_id="dispatch", time_to_live=0, deferrable=True, fail_on_error=True)

with dag_of("alone_retried") as alone_retried:
    FailsAfterwards(task_id="dispatch", time_to_live=0, retries=1, retry_delay=timedelta(0))

with dag_of("from_trigger") as from_trigger:
    detect = BqDispatchSensor(task_id="detect", start_from_trigger=True, timeout=20)
    dispatch = DispatchOperator(task_id="dispatch", shares=detect.output)
    dispatch >> DispatchReportOperator(task_id="report", trigger_rule="none_skipped")

with dag_of("of_two_set_ups") as of_two_set_ups:
    reported(DispatchOperator(task_id="dispatch", time_to_live=0))
    DispatchOperator(task_id="dispatch_acme", time_to_live=0, bqdispatch_conn_id="bqdispatch_acme")

with dag_of("no_assets") as no_assets:
    DispatchOperator(task_id="dispatch", time_to_live=0, assets=False)

with dag_of("alone_retried_for_errors") as alone_retried_for_errors:
    DispatchOperator(task_id="dispatch", time_to_live=0, fail_on_error=True, retries=1, retry_delay=timedelta(0))
