"""Measure how long it takes from a job's end until BqTail has its trace, and until its table's asset event, for each
way to run, and what an idle minute costs.

A real Airflow on this machine, a stand-in Google Cloud beside it, and traces whose jobs end at random moments. Takes
about forty minutes, ten of them for the asset events of a task that goes on for so long.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import requests
from marks import write
from surroundings import airflow, stand_in
from workloads import DOCUMENT

from bqdispatch_provider.names import TraceName
from bqdispatch_provider.testing.standin import StandInControl
from demo.live import LiveAirflow

PAGE = Path(__file__).parents[1] / "docs" / "latency.md"
EVENTS = 200
JOB_S = 3, 8
"""Seconds that a job takes, at random between these."""
IDLE_S, SETTLE_S, PATIENCE_S = 60.0, 10.0, 150.0
LAST_EVENT_S = 900.0
"""Seconds until the run of the last event is over: those of the deferred task go on for ten minutes."""
LIMIT = 1000
"""Of queries and of other jobs, never reached: with a limit, a run's tasks wait for those of the run before it."""
TOPIC, SUBSCRIPTION = "projects/p/topics/jobs", "projects/p/subscriptions/jobs"
ENDED = re.compile(r"Received executor event with state (success|failed) for task instance")
"""The scheduler logs it once for each process that the executor has started for a task; deferring ends one, too."""

DAGS = """# Airflow reads a file that has this word alone
from bqdispatch_provider.factory import dispatch_dag

minute = dispatch_dag()
minute_deferred = dispatch_dag(way="minute_deferred", dag_id="minute_deferred")
deferred = dispatch_dag(way="deferred", dag_id="deferred")
events = dispatch_dag(way="events", dag_id="events")
pushed = dispatch_dag("pushed", way="deferred")
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
    "minute": Way("`minute`", "bqdispatch", 170.0),
    "minute_deferred": Way("`minute_deferred`", "minute_deferred", 170.0),
    "events": Way("`events`", "events"),
    "deferred": Way("`deferred`", "deferred"),
    "pushed": Way("`deferred`, with a subscription", "bqdispatch_pushed"),
}


@dataclass(frozen=True)
class Measured:
    """Figures of a way to run.

    :param latencies: seconds from the end of each job until its trace is delivered.
    :param told: seconds from the end of each job until its asset event.
    :param started: process starts in an idle minute.
    :param cpu: CPU seconds in it.
    """

    latencies: list[float]
    told: list[float]
    started: int
    cpu: float


def feed(control: StandInControl, seconds: float) -> dict[str, float]:
    """Write traces at random moments, each with a job that runs for a while.

    :returns: the end of each job, by the trace's name.
    """
    ends: dict[str, float] = {}
    began = time.monotonic()
    for at in sorted(random.uniform(0, seconds) for _ in range(EVENTS)):
        time.sleep(max(0.0, began + at - time.monotonic()))
        name = TraceName("p", "US", "ds.t", str(random.getrandbits(50)), 1, random.choice(("load", "query", "copy")))
        runs = random.uniform(*JOB_S)
        created = control.now()
        job = {"project": "p", "location": "US", "jobId": name.job_id, "type": name.action, "creationTime": created}
        table = {"projectId": "p", "datasetId": "ds", "tableId": "t"}
        control.seed_jobs([job | {"runningMs": round(runs * 1000), "destinationTable": table}])
        control.seed_objects("ops", [{"name": f"tasks/{name.name}", "content": "{}"}])
        ends[name.name] = created + runs
    return ends


def delivered(url: str) -> dict[str, float]:
    """Return when each trace came into the trigger bucket, by its name in the task folder."""
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
    """Return the CPU seconds of Airflow's processes, and of their children that have ended."""
    total = 0.0
    for process in live.processes():
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def starts(live: LiveAirflow) -> int:
    """Return how many processes the executor has started for tasks that have ended."""
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
    told = asset_events(live, way, ends)
    before = starts(live), cpu_seconds(live)
    time.sleep(IDLE_S)
    after = starts(live), cpu_seconds(live)
    if way.dag:
        live.patch(f"dags/{way.dag}", {"is_paused": True})
        end_runs(live, way.dag)
    lags = [found[name] - ends[name] for name in ends]
    return Measured(lags, told, after[0] - before[0], after[1] - before[1])


def asset_events(live: LiveAirflow, way: Way, ends: Mapping[str, float]) -> list[float]:
    """Wait for the asset events of a way's DAG.

    :returns: seconds from the end of each job.
    """
    jobs = {TraceName.parse(name).job_id: end for name, end in ends.items()}
    told: dict[str, float] = {}
    until = time.monotonic() + LAST_EVENT_S
    while jobs.keys() - told.keys():
        if time.monotonic() > until:
            raise RuntimeError(f"{way.title}: {len(jobs.keys() - told.keys())} jobs have no asset event; {live.log}")
        time.sleep(5)
        for offset in range(0, EVENTS, 100):  # a page has no more
            page = live.get("assets/events", source_dag_id=way.dag, limit=100, offset=offset)
            for event in page["asset_events"]:
                at = datetime.fromisoformat(event["timestamp"]).timestamp()
                told.setdefault(event["extra"]["job_id"], at)
    time.sleep(SETTLE_S)
    return [told[job_id] - end for job_id, end in jobs.items()]


def wait_for_dags(live: LiveAirflow) -> None:
    """Wait until Airflow has parsed the DAGs of all ways."""
    until = time.monotonic() + PATIENCE_S
    wanted = {way.dag for way in WAYS.values() if way.dag}
    while missing := wanted - {dag["dag_id"] for dag in live.get("dags", limit=100)["dags"]}:
        if time.monotonic() > until:
            raise RuntimeError(f"Airflow does not show the DAGs {', '.join(sorted(missing))}; {live.log}")
        time.sleep(1)
    time.sleep(SETTLE_S)


def end_runs(live: LiveAirflow, dag: str) -> None:
    """End the runs of a way, so that nothing of it is left when the next one begins."""
    for run in live.get(f"dags/{dag}/dagRuns", state=["running", "queued"])["dag_runs"]:
        live.patch(f"dags/{dag}/dagRuns/{run['dag_run_id']}", {"state": "failed"})
    time.sleep(SETTLE_S)


def row(way: Way, measured: Measured) -> str:
    """Return a row of the table."""
    if measured.latencies:
        cuts = statistics.quantiles(measured.latencies, n=100, method="inclusive")
        events = statistics.quantiles(measured.told, n=100, method="inclusive")
        times = " | ".join(f"{cuts[percent - 1]:.1f}" for percent in (50, 95, 99))
        times += f" | {events[49]:.0f} | {events[94]:.0f}"
    else:
        times = "– | – | – | – | –"
    number = len(measured.latencies) or "–"
    return f"| {way.title} | {number} | {times} | {measured.started} | {measured.cpu:.1f} |"


def known_rows() -> dict[str, str]:
    """Return the rows that the page has, by the names of their ways: those that are not measured again stay."""
    lines = PAGE.read_text().splitlines()
    return {name: line for name, way in WAYS.items() for line in lines if line.startswith(f"| {way.title} | ")}


def subscribe(url: str, control: StandInControl) -> None:
    """Publish the end of each job, as BigQuery's audit logs do."""
    for path, body in ((TOPIC, {}), (SUBSCRIPTION, {"topic": TOPIC})):
        requests.put(f"{url}/v1/{path}", json=body, timeout=10).raise_for_status()
    control.set_log_sink(TOPIC)


def main() -> None:
    """Measure, print, and with ``--write`` write the page."""
    parser = argparse.ArgumentParser(description="Measure how soon an event is dispatched, and what idling costs.")
    parser.add_argument("ways", nargs="*", metavar="way", help=f"of {', '.join(WAYS)}; by default all")
    parser.add_argument("--write", action="store_true", help="put the rows into the table of docs/latency.md")
    options = parser.parse_args()
    if unknown := set(options.ways) - set(WAYS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(WAYS)}")
    head = [
        "| way to run | events | p50, s | p95, s | p99, s | asset event p50, s | p95, s "
        "| worker processes in an idle minute | CPU s in it |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    measured: dict[str, str] = {}
    document = DOCUMENT | {"MaxConcurrentSQL": LIMIT, "MaxConcurrentJobs": LIMIT}
    pushed = {"config": document, "subscription": SUBSCRIPTION}
    environment = {
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "BQDISPATCH_SQL_SLOTS": str(LIMIT),
        "BQDISPATCH_JOBS_SLOTS": str(LIMIT),
        "AIRFLOW_CONN_BQDISPATCH_PUSHED": json.dumps({"conn_type": "bqdispatch", "extra": pushed}),
    }
    with (
        stand_in() as (url, control),
        airflow(url, document, {"ways.py": DAGS}, PUBSUB_EMULATOR_HOST=url, **environment) as live,
    ):
        subscribe(url, control)
        wait_for_dags(live)
        for name in options.ways or WAYS:
            before = starts(live)
            measured[name] = row(WAYS[name], measure(live, url, control, WAYS[name]))
            print(measured[name], flush=True)
            if name == "minute" and starts(live) == before:
                raise RuntimeError(f"no process was counted, so the log must have changed its words: {live.log}")
    if options.write:
        rows = known_rows() | measured
        write(PAGE, "latency", "\n".join([*head, *(rows[name] for name in WAYS if name in rows)]))


if __name__ == "__main__":
    main()
