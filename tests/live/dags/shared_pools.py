"""Three DAGs in the same two pools: two dispatch from one task folder, and one runs BigQuery jobs of its own."""

import os
import time
from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.factory import dispatch_dag
from bqdispatch_provider.operators import DispatchOperator

SETUP = SetUp("limited")
SQL, JOBS = 5, 3

by_shares = dispatch_dag(SETUP.name, sql_slots=SQL, jobs_slots=JOBS, schedule="@continuous")

with DAG(
    "on_its_own",
    schedule="@continuous",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
) as on_its_own:
    for task_id, actions, pool, slots in (
        ("queries", ["query"], SETUP.sql_pool, SQL),
        ("others", ["load", "copy"], SETUP.jobs_pool, JOBS),
    ):
        DispatchOperator(
            task_id=task_id,
            only={"actions": actions},
            time_to_live=20,
            deferrable=False,
            bqdispatch_conn_id=SETUP.conn_id,
            pool=pool,
            pool_slots=slots,
        )

with DAG(
    "jobs_of_its_own",
    schedule="@continuous",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
) as jobs_of_its_own:

    @task
    def run_job(kind: str) -> None:
        """Submit a job, and wait for its end."""
        import requests

        jobs = f"{os.environ['BIGQUERY_EMULATOR_HOST']}/bigquery/v2/projects/p/jobs"
        labels = {"jobs-of-its-own": "1", "standin-running-ms": "1000"}
        job = requests.post(jobs, json={"configuration": {kind: {}, "labels": labels}}, timeout=10).json()
        while job["status"]["state"] != "DONE":
            time.sleep(0.1)
            job = requests.get(f"{jobs}/{job['jobReference']['jobId']}", timeout=10).json()

    for task_id, kind, pool in (
        ("first_query", "query", SETUP.sql_pool),
        ("second_query", "query", SETUP.sql_pool),
        ("load", "load", SETUP.jobs_pool),
    ):
        run_job.override(task_id=task_id, pool=pool)(kind)
