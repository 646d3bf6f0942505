"""DAG ``bqdispatch``: every minute, dispatch what BqTail waits for.

``detect`` waits for finished jobs and due windows, three tasks dispatch one lane each, and ``report`` writes what
became of it. Needs the connection ``bqdispatch_default``, and the pools ``bqdispatch_sql`` and ``bqdispatch_jobs``,
which ``bqdispatch pools`` prints for ``airflow pools import``.
"""

import os
from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor

# Set these to MaxConcurrentSQL and MaxConcurrentJobs: then the slots that are taken in a pool are the events in hand.
# A task with more slots than its pool never runs.
SQL_SLOTS = int(os.environ.get("BQDISPATCH_SQL_SLOTS", "1"))
JOBS_SLOTS = int(os.environ.get("BQDISPATCH_JOBS_SLOTS", "1"))

with DAG(
    "bqdispatch",
    doc_md=__doc__,
    schedule=os.environ.get("BQDISPATCH_SCHEDULE", "* * * * *"),
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=5),
    tags=["bqtail", "bigquery"],
) as dag:
    detect = BqDispatchSensor(task_id="detect")
    dispatch = [
        DispatchOperator(task_id=task_id, shares=detect.output, lane=lane, pool=pool, pool_slots=slots)
        for task_id, lane, pool, slots in (
            ("dispatch_sql", "sql", "bqdispatch_sql", SQL_SLOTS),
            ("dispatch_jobs", "jobs", "bqdispatch_jobs", JOBS_SLOTS),
            ("fire_windows", "windows", "bqdispatch_jobs", JOBS_SLOTS),
        )
    ]
    detect >> dispatch >> DispatchReportOperator(task_id="report")
