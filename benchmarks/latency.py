"""How long it takes from a job's end until BqTail has its trace, for each way to run, and what an idle minute costs.

A real Airflow on this machine, a stand-in Google Cloud beside it, and traces whose jobs end at random moments. Takes
about twenty minutes.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import requests
from marks import write
from surroundings import airflow, stand_in
from workloads import DOCUMENT

from bqdispatch_provider.names import TraceName
from bqdispatch_provider.testing.live import LiveAirflow
from bqdispatch_provider.testing.standin import StandInControl

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "latency.md"
EVENTS = 200
JOB_S = 3, 8
"""Seconds that a job takes, at random between these."""
IDLE_S, SETTLE_S, PATIENCE_S = 60.0, 10.0, 150.0
LAST_RUN_S = 30.0
"""Seconds until the run of the last event is over, which goes on for twenty where runs come on events."""
ENDED = re.compile(r"Received executor event with state (success|failed) for task instance")
"""What the scheduler logs once for each process that the executor has started for a task; deferring ends one, too."""

FROM_TRIGGER = """
from datetime import UTC, datetime
from airflow.providers.common.compat.sdk import DAG
from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor

with DAG("from_trigger", schedule="* * * * *", start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False,
         max_active_runs=1, is_paused_upon_creation=True) as dag:
    detect = BqDispatchSensor(task_id="detect", start_from_trigger=True)
    dispatch = DispatchOperator(task_id="dispatch", shares=detect.output)
    dispatch >> DispatchReportOperator(task_id="report", trigger_rule="none_skipped")
"""


@dataclass(frozen=True)
class Way:
    """A way to run.

    :param title: for the table.
    :param dag: its DAG; ``None`` for an Airflow in which nothing runs.
    :param seconds: over which the events are spread.
    """

    title: str
    dag: str | None
    seconds: float = 80.0


WAYS = {
    "nothing": Way("Airflow alone", None),
    "minute": Way("every minute, `dags/bqdispatch.py`", "bqdispatch", 170.0),
    "from_trigger": Way("every minute, the sensor with `start_from_trigger`", "from_trigger", 170.0),
    "continuous": Way("back to back, `dags/bqdispatch_continuous.py`", "bqdispatch_continuous"),
    "events": Way("on events, `dags/bqdispatch_on_events.py`", "bqdispatch_on_events"),
    "deferred": Way("one deferred task, `dags/bqdispatch_deferred.py`", "bqdispatch_deferred"),
}


@dataclass(frozen=True)
class Measured:
    """What came of a way to run; seconds, process starts and CPU seconds."""

    latencies: list[float]
    started: int
    cpu: float


def feed(control: StandInControl, seconds: float) -> dict[str, float]:
    """Write traces at random moments, each with a job that runs for a while; gives when each job ends, by name."""
    ends: dict[str, float] = {}
    began = time.monotonic()
    for at in sorted(random.uniform(0, seconds) for _ in range(EVENTS)):
        time.sleep(max(0.0, began + at - time.monotonic()))
        name = TraceName("p", "US", "ds.t", str(random.getrandbits(50)), 1, random.choice(("load", "query", "copy")))
        runs = random.uniform(*JOB_S)
        created = control.now()
        job = {"project": "p", "location": "US", "jobId": name.job_id, "type": name.action, "creationTime": created}
        control.seed_jobs([job | {"runningMs": round(runs * 1000)}])
        control.seed_objects("ops", [{"name": f"tasks/{name.name}", "content": "{}"}])
        ends[name.name] = created + runs
    return ends


def delivered(url: str) -> dict[str, float]:
    """When each trace came into the trigger bucket, by its name in the task folder."""
    found: dict[str, float] = {}
    token = None
    while True:
        query = {"prefix": "_bqjob_/", "pageToken": token}
        page = requests.get(f"{url}/storage/v1/b/p_bqtail/o", params=query, timeout=30).json()
        for item in page.get("items", ()):
            name = item["name"].split("/", 2)[2].removesuffix(".json")
            found[name] = datetime.fromisoformat(item["timeCreated"]).timestamp()
        token = page.get("nextPageToken")
        if not token:
            return found


def cpu_seconds(live: LiveAirflow) -> float:
    """What Airflow's processes have used, and those of their children that have ended."""
    total = 0.0
    for process in live.processes():
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def starts(live: LiveAirflow) -> int:
    """How many processes the executor has started for tasks that have ended since."""
    return len(ENDED.findall(live.log.read_text(errors="replace")))


def measure(live: LiveAirflow, url: str, control: StandInControl, way: Way) -> Measured:
    """Let one way run alone: first with events, then without."""
    ends: dict[str, float] = {}
    if way.dag:
        live.patch(f"dags/{way.dag}", {"is_paused": False})
        time.sleep(SETTLE_S + 5)  # until its asset's trigger, or its first run, is under way
        ends = feed(control, way.seconds)
    until = time.monotonic() + PATIENCE_S
    while len(found := {name: at for name, at in delivered(url).items() if name in ends}) < len(ends):
        if time.monotonic() > until:
            raise RuntimeError(f"{way.title}: {len(ends) - len(found)} events are not delivered; {live.log}")
        time.sleep(1)
    time.sleep(LAST_RUN_S)
    before = starts(live), cpu_seconds(live)
    time.sleep(IDLE_S)
    after = starts(live), cpu_seconds(live)
    if way.dag:
        live.patch(f"dags/{way.dag}", {"is_paused": True})
        end_runs(live, way.dag)
    return Measured([found[name] - ends[name] for name in ends], after[0] - before[0], after[1] - before[1])


def end_runs(live: LiveAirflow, dag: str) -> None:
    """Nothing of a way is left when the next one begins."""
    for run in live.get(f"dags/{dag}/dagRuns", state=["running", "queued"])["dag_runs"]:
        live.patch(f"dags/{dag}/dagRuns/{run['dag_run_id']}", {"state": "failed"})
    time.sleep(SETTLE_S)


def row(way: Way, measured: Measured) -> str:
    """A line of the table."""
    if measured.latencies:
        cuts = statistics.quantiles(measured.latencies, n=100, method="inclusive")
        times = " | ".join(f"{cuts[percent - 1]:.1f}" for percent in (50, 95, 99))
    else:
        times = "– | – | –"
    number = len(measured.latencies) or "–"
    return f"| {way.title} | {number} | {times} | {measured.started} | {measured.cpu:.1f} |"


def main() -> None:
    """Measure, print, and perhaps write."""
    parser = argparse.ArgumentParser(description="Measure how soon an event is dispatched, and what idling costs.")
    parser.add_argument("ways", nargs="*", metavar="way", help=f"of {', '.join(WAYS)}; by default all")
    parser.add_argument("--write", action="store_true", help="put the table into docs/latency.md")
    options = parser.parse_args()
    if unknown := set(options.ways) - set(WAYS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    lines = [
        "| way to run | events | p50, s | p95, s | p99, s | worker processes in an idle minute | CPU s in it |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    dags = {file.name: file.read_text() for file in ROOT.glob("dags/*.py")} | {"from_trigger.py": FROM_TRIGGER}
    paused = {"AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True"}
    with stand_in() as (url, control), airflow(url, DOCUMENT, dags, **paused) as live:
        while not {way.dag for way in WAYS.values() if way.dag} <= {
            dag["dag_id"] for dag in live.get("dags", limit=100)["dags"]
        }:
            time.sleep(1)
        time.sleep(SETTLE_S)
        for name in options.ways or WAYS:
            before = starts(live)
            lines.append(row(WAYS[name], measure(live, url, control, WAYS[name])))
            print(lines[-1], flush=True)
            if name == "minute" and starts(live) == before:
                raise RuntimeError(
                    f"no process was counted where there are some, so the log says it otherwise: {live.log}"
                )
    if options.write:
        write(PAGE, "latency", "\n".join(lines))


if __name__ == "__main__":
    main()
