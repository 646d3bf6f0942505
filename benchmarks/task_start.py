"""Measure how much longer a dispatching task takes in a real Airflow than an empty one."""

from __future__ import annotations

import statistics
import time

from surroundings import airflow, stand_in
from workloads import DOCUMENT

from demo.live import LiveAirflow

RUNS = 7
DAG = """
import pendulum
from airflow.providers.common.compat.sdk import DAG, BaseOperator
from bqdispatch_provider.operators import DispatchOperator


class Empty(BaseOperator):
    def execute(self, context):
        return {"Status": "ok"}


with DAG("start", schedule=None, start_date=pendulum.datetime(2024, 1, 1, tz="UTC"), catchup=False) as dag:
    Empty(task_id="empty") >> DispatchOperator(task_id="dispatch", time_to_live=0)
"""


def seconds(live: LiveAirflow) -> dict[str, float]:
    """Run the DAG, and return the duration of each task."""
    run = live.post("dags/start/dagRuns", {"logical_date": None})["dag_run_id"]
    while True:
        state = live.get(f"dags/start/dagRuns/{run}")["state"]
        if state in ("success", "failed"):
            break
        time.sleep(0.5)
    tasks = live.get(f"dags/start/dagRuns/{run}/taskInstances")["task_instances"]
    if state != "success":
        raise RuntimeError(f"the DAG run has failed: {tasks}")
    return {task["task_id"]: task["duration"] for task in tasks}


def wait_for_dag(live: LiveAirflow) -> None:
    """Wait until Airflow has read the file."""
    while not [dag for dag in live.get("dags")["dags"] if dag["dag_id"] == "start"]:
        time.sleep(0.5)


def task_start() -> str:
    """Measure, and return the figure as a sentence."""
    with stand_in() as (url, control):
        control.set_latency(30)
        with airflow(url, DOCUMENT, {"start.py": DAG}) as live:
            wait_for_dag(live)
            seconds(live)
            runs = [seconds(live) for _ in range(RUNS)]
    more = sorted(run["dispatch"] - run["empty"] for run in runs)
    empty = statistics.median(run["empty"] for run in runs)
    return (
        f"a dispatching task in Airflow, imports, one cycle with nothing to do and its document included: "
        f"{statistics.median(more):.2f} s ({more[0]:.2f} to {more[-1]:.2f}) more than an empty task, which takes "
        f"{empty:.2f} s; to be reached: 0.8 s"
    )


if __name__ == "__main__":
    print(task_start())
