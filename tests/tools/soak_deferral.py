"""Let a real Airflow defer sensors for minutes, and see that its triggerer stays alive. Runs in its environment.

Round after round, all sensors of tests/tools/soak/deferred.py wait in the triggerer at one time; then each gets a
trace, is woken, and its trace is dispatched. Failed tasks are tried again, and those that the scheduler has taken for
killed are counted. Prints a row for docs/versions.md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil
from live.runs import has_ended, kind_of, states, trigger
from world import TRIGGER, World

from bqdispatch_provider.testing.standin import StandIn, StandInControl
from demo.live import LiveAirflow

HERE = Path(__file__).parent
PATIENCE_S = 300


def wait_until(live, is_so, what):
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > until:
            sys.exit(f"{what}: not within {PATIENCE_S} s\n{told(live)}")
        time.sleep(0.5)


def told(live):
    """Return the ends of the logs of Airflow, its triggers and its tasks that tell of errors."""
    logs = [live.log, *(live.home / "logs").rglob("*.log*")]
    return "\n".join(f"{log}\n{text[-3000:]}" for log in logs if "error" in (text := log.read_text()).lower())


def triggerers(live):
    """Return the triggerer's processes: it, and the one in which its triggers run."""
    found = set()
    for process in live.processes():
        with suppress(psutil.NoSuchProcess):  # a zombie, too
            if process.is_running() and kind_of(process) == "triggerer":
                found.update([process, *process.children(recursive=True)])
    return found


def one_round(live, world, sensors, number):
    run = trigger(live, "deferred", f"round_{number}")

    def waiting():
        return states(live, "deferred", state=["deferred"])

    wait_until(live, lambda: len(waiting()) == sensors, "all sensors wait")
    for each in range(sensors):
        world.trace(dest=f"ds.t{each}")
    wait_until(live, lambda: has_ended(live, run), "the round ends")
    return live.get(run)["state"]


def soak(live, world, sensors, minutes):
    wait_until(live, lambda: "deferred" in {each["dag_id"] for each in live.get("dags")["dags"]}, "the DAG is parsed")
    before, until, rounds = triggerers(live), time.monotonic() + 60 * minutes, 0
    while time.monotonic() < until:
        state = one_round(live, world, sensors, rounds)
        rounds += 1
        if state != "success":
            sys.exit(f"round {rounds} ended in {state}\n{told(live)}")
        health = live.get("monitor/health")["triggerer"]["status"]
        if health != "healthy" or not before or triggerers(live) != before:
            sys.exit(f"the triggerer is {health}, its processes {triggerers(live)}, at first {before}")
    return rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sensors", type=int, default=20)
    options = parser.parse_args()
    connections = {
        "AIRFLOW_CONN_BQDISPATCH_DEFAULT": {"conn_type": "bqdispatch", "extra": {"config": World.document()}},
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}},
    }
    with tempfile.TemporaryDirectory() as home, StandIn() as cloud, StandInControl(cloud.url) as control:
        os.environ["STORAGE_EMULATOR_HOST"] = os.environ["BIGQUERY_EMULATOR_HOST"] = cloud.url
        world = World(cloud.url, control)
        environment = {
            "STORAGE_EMULATOR_HOST": cloud.url,
            "BIGQUERY_EMULATOR_HOST": cloud.url,
            "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "3",
            "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
            "BQDISPATCH_SENSORS": str(options.sensors),
            **{name: json.dumps(each) for name, each in connections.items()},
        }
        with LiveAirflow(Path(home, "airflow"), HERE / "soak", {}, environment) as live:
            rounds = soak(live, world, options.sensors, options.minutes)
            said = live.log.read_text().splitlines()
        dispatched, left = len(world.names(TRIGGER)), len(world.names())
    deferred = rounds * options.sensors
    google = version("apache-airflow-providers-google")
    errors = sum(line.startswith("triggerer") and ("[error" in line or "Traceback" in line) for line in said)
    # The scheduler hears late that a task's first process has ended well, as it was deferred, finds the task on its way
    # again, and takes it for killed (apache/airflow#66374 and #72716).
    taken_for_killed = sum("but the task instance's state attribute is" in line for line in said)
    row = [version("apache-airflow"), google, options.minutes, rounds, deferred, dispatched, errors, taken_for_killed]
    print(f"| {' | '.join(f'{each:g}' if isinstance(each, float) else str(each) for each in row)} |")
    return 0 if dispatched == deferred and not left else 1


if __name__ == "__main__":
    sys.exit(main())
