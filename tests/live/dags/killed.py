"""The sample DAG, whose sensor waits in the triggerer while its tasks dispatch on workers."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor

with DAG(
    "killed", schedule="@continuous", start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False, max_active_runs=1
) as dag:
    detect = BqDispatchSensor(task_id="detect", deferrable=True)
    dispatch = [
        DispatchOperator(
            task_id=task_id,
            shares=detect.output,
            only={"lanes": lanes},
            hands_over=True,
            deferrable=False,
            pool=pool,
        )
        for task_id, lanes, pool in (
            ("dispatch_sql", ["sql"], "bqdispatch_sql"),
            ("dispatch_jobs", ["jobs", "windows"], "bqdispatch_jobs"),
        )
    ]
    detect >> dispatch >> DispatchReportOperator(task_id="report")
