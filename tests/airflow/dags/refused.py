"""DAGs whose reports would tell less than was done, or twice."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator


def dag_of(dag_id):
    return DAG(dag_id, schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)


with dag_of("report_before") as report_before:
    DispatchReportOperator(task_id="report") >> DispatchOperator(task_id="dispatch", time_to_live=0)

with dag_of("report_beside") as report_beside:
    DispatchOperator(task_id="dispatch", time_to_live=0)
    DispatchReportOperator(task_id="report")

with dag_of("two_reports") as two_reports:
    dispatch = DispatchOperator(task_id="dispatch", time_to_live=0)
    dispatch >> DispatchReportOperator(task_id="first") >> DispatchReportOperator(task_id="second")
