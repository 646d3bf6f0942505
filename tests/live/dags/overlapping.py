"""The sample DAG, but two runs of it may go on at the same time."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor

with DAG(
    "overlapping",
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=2,
) as dag:
    detect = BqDispatchSensor(task_id="detect")
    dispatch = [
        DispatchOperator(task_id=task_id, shares=detect.output, only={"lanes": [lane]}, pool=pool)
        for task_id, lane, pool in (
            ("dispatch_sql", "sql", "bqdispatch_sql"),
            ("dispatch_jobs", "jobs", "bqdispatch_jobs"),
            ("fire_windows", "windows", "bqdispatch_jobs"),
        )
    ]
    detect >> dispatch >> DispatchReportOperator(task_id="report")
