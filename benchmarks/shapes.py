"""Measure a DAG run in each of the two shapes that use pools: ``python benchmarks/shapes.py``.

In either, the slots that are taken are the events in hand, five and three: a task for each lane that takes as many
slots as it may have events, or a task with one slot for each event.
"""

from __future__ import annotations

import statistics
import time
from datetime import datetime
from itertools import count

from surroundings import airflow, stand_in
from workloads import DOCUMENT

from bqdispatch_provider.names import TraceName
from bqdispatch_provider.testing.standin import StandInControl
from demo.live import LiveAirflow

RUNS = 10
LIMITED = {**DOCUMENT, "MaxConcurrentSQL": 5, "MaxConcurrentJobs": 3}
DAGS = """
from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.factory import dispatch_dag
from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor

lanes = dispatch_dag(sql_slots=5, jobs_slots=3, schedule=None, is_paused_upon_creation=False)

with DAG("mapped", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False) as mapped:
    detect = BqDispatchSensor(task_id="detect")

    @task
    def split(shares, lanes):
        return [{**share, "events": [event]} for share in shares if share["lane"] in lanes for event in share["events"]]

    report = DispatchReportOperator(task_id="report")
    for name, lanes in (("sql", ["sql"]), ("jobs", ["jobs", "windows"])):
        each = split.override(task_id=f"split_{name}")(detect.output, lanes)
        to_dispatch = DispatchOperator.partial(task_id=f"dispatch_{name}", pool=f"bqdispatch_{name}")
        to_dispatch.expand(shares=each) >> report
"""
NUMBERS = count(10**15)


def fill(control: StandInControl) -> None:
    """Write traces of five finished queries and three finished loads."""
    created = control.now() - 60
    names = [TraceName("p", "US", "ds.t", str(next(NUMBERS)), 1, a) for a in ("query",) * 5 + ("load",) * 3]
    control.seed_objects("ops", [{"name": f"tasks/{n.name}", "content": "{}", "timeCreated": created} for n in names])
    control.seed_jobs(
        {"project": "p", "location": "US", "jobId": n.job_id, "type": n.action, "creationTime": created} for n in names
    )


def run(live: LiveAirflow, dag_id: str) -> tuple[float, int]:
    """Run a DAG.

    :returns: seconds, and number of tasks.
    """
    path = f"dags/{dag_id}/dagRuns"
    path += f"/{live.post(path, {'logical_date': None})['dag_run_id']}"
    while (found := live.get(path))["state"] not in ("success", "failed"):
        time.sleep(0.5)
    tasks = live.get(f"{path}/taskInstances")["task_instances"]
    if found["state"] == "failed" or any(task["state"] not in ("success", "skipped") for task in tasks):
        raise RuntimeError(f"the DAG run has failed: {tasks}")
    began, ended = (datetime.fromisoformat(found[each]) for each in ("start_date", "end_date"))
    return (ended - began).total_seconds(), len([task for task in tasks if task["state"] == "success"])


def main() -> None:
    """Print the table."""
    with stand_in() as (url, control), airflow(url, LIMITED, {"shapes.py": DAGS}) as live:
        while len(live.get("dags")["dags"]) < 2:
            time.sleep(0.5)
        took: dict[str, list[float]] = {"bqdispatch": [], "mapped": []}
        tasks = {}
        for number in range(RUNS + 1):
            for dag_id, seconds in took.items():
                fill(control)
                second, tasks[dag_id] = run(live, dag_id)
                if number:  # the first one is slower
                    seconds.append(second)
    print("| shape | tasks | seconds a run: median, least, most |\n| --- | --- | --- |")
    for dag_id, title in (("bqdispatch", "a task for each lane"), ("mapped", "a task for each event")):
        each = sorted(took[dag_id])
        print(f"| {title} | {tasks[dag_id]} | {statistics.median(each):.1f}, {each[0]:.1f}, {each[-1]:.1f} |")


if __name__ == "__main__":
    main()
