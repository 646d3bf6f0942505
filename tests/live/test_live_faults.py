"""A real Airflow whose processes are killed (SIGKILL), or two of whose runs overlap, and BqTail's account of it.

When to kill is told by calls that the stand-in gets, never by a time: the answer to one of them comes late, and who
waits for it is killed.
"""

import itertools
import json
import re
import shutil
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests
from world import JOURNAL, TASKS, TRIGGER, World

from bqdispatch_provider.cli import pools_of
from bqdispatch_provider.testing.bqtail import BqTailSettings, StandInBqTail
from bqdispatch_provider.testing.live import LiveAirflow

DAGS = (Path(__file__).parents[2] / "dags" / "bqdispatch.py", Path(__file__).parent / "dags" / "overlapping.py")
POOLS = ("bqdispatch_sql", "bqdispatch_jobs")
BATCHED = ("ds.a", "q:ds.b$20260101", "ds.c--d", "example.com:legacy.ds.e")
UNBATCHED = ("ds.f", "ds.g")

KILLS = 15
MOMENTS = [
    ("storage.objects.insert", {"bucket": JOURNAL, "name": "*/detect.json"}),
    ("storage.objects.insert", {"bucket": TASKS, "name": "*/intents/*"}),
    ("storage.objects.copy", {"bucket": TRIGGER}),
    ("storage.objects.delete", {"bucket": TASKS, "name": "*--dispatch"}),
    ("storage.objects.compose", {"bucket": TASKS, "name": "*.wis"}),
    ("storage.objects.insert", {"bucket": JOURNAL, "name": "*/dispatch_jobs.json"}),
    ("storage.objects.insert", {"bucket": JOURNAL, "name": "*/performance.json"}),
]
"""Calls of tasks alone: what the sensor saw, what is to move, a move or a firing, its end, a claim or its mark, a part
of the report, and the end of the run."""
VICTIMS = ({"task"}, {"task"}, {"worker", "task"}, {"task"}, {"worker"})
"""A worker is the executor's process that looks after a task; without it, a task goes on while its next try begins."""

LATE_MS = 2000
PATIENCE_S = 120
AFTER_A_CRASH = 200
"""Seconds after which everybody takes up what a dispatcher has left: more than ``CLAIM_TIMEOUT``."""


@pytest.fixture(scope="module")
def live(cloud, tmp_path_factory):
    """One Airflow for all tests here. As users have it: failed tasks are tried again, and sensors wait deferred."""
    home = tmp_path_factory.mktemp("live")
    dags = home / "dags"
    dags.mkdir()
    for file in DAGS:
        shutil.copy(file, dags)
    environment = {
        "STORAGE_EMULATOR_HOST": cloud.url,
        "BIGQUERY_EMULATOR_HOST": cloud.url,
        "AIRFLOW_CONN_BQDISPATCH_DEFAULT": json.dumps(
            {"conn_type": "bqdispatch", "extra": {"config": World.document()}}
        ),
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(
            {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}}
        ),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "3",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
        "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
        "BQDISPATCH_SCHEDULE": "@continuous",
        # What was killed is to be missed soon.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "8",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    }
    with LiveAirflow(home / "airflow", dags, pools_of(World.config()), environment) as airflow:
        yield airflow
        started = set(airflow.processes())
    assert started
    assert not [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def bqtail(world):
    """A BqTail that consumes in the background what is delivered."""
    settings = BqTailSettings.for_dispatcher(
        world.config(),
        window_s=20,
        unbatched=frozenset(UNBATCHED),
        chain=("load", "query"),
        pending_ms=(0, 200),
        running_ms=(0, 500),
    )
    stand_in = StandInBqTail(world.client, requests.Session(), world.url, settings)
    stopped = threading.Event()
    thread = threading.Thread(target=stand_in.run, args=(stopped,))
    thread.start()
    yield stand_in
    stopped.set()
    thread.join()


@pytest.fixture
def wait_until(live):
    def wait(is_so, what):
        until = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < until, f"{what}: not within {PATIENCE_S} s; {live.log.read_text()[-6000:]}"
            time.sleep(0.05)

    return wait


@pytest.fixture
def unpaused(live, world, wait_until):
    """Lets a DAG go on meanwhile; afterwards none of its tasks runs, and all that was delivered is consumed."""

    @contextmanager
    def unpause(dag_id):
        live.patch(f"dags/{dag_id}", {"is_paused": False})
        try:
            yield
        finally:
            live.patch(f"dags/{dag_id}", {"is_paused": True})
        wait_until(lambda: not states(live, dag_id, state=["queued", "running"]), "no task runs")
        wait_until(lambda: not world.names(TRIGGER, "_b"), "all is consumed")

    return unpause


def states(live, dag_id, **query):
    """The states of tasks in all of the DAG's runs."""
    found = live.get(f"dags/{dag_id}/dagRuns/~/taskInstances", limit=100, **query)
    return [each["state"] for each in found["task_instances"]]


def put_files(bqtail, *dests):
    for dest in dests:
        bqtail.put_file(dest)


def is_all_finished(bqtail):
    counters = bqtail.counters()
    return counters.finished == counters.events


class Killer:
    """Kills processes of an Airflow while they wait for an answer, and counts them."""

    def __init__(self, live, control, wait_until):
        self.live, self.control, self.wait_until = live, control, wait_until
        self.killed = {"task": 0, "worker": 0, "triggerer": 0}

    @contextmanager
    def waiting_for(self, call, after=False, **where):
        """Afterwards such a call has come, and its answer is late.

        :param after: whether it was carried out already.
        """
        self.control.add_fault(call, "slow", ms=LATE_MS, times=1, after=after, **where)
        yield
        self.wait_until(lambda: self.control.faults()[0]["times"] == 0, f"{call} of {where}")
        self.control.clear_faults()

    def kill(self, kinds):
        # Workers first: they would tell of their tasks' end.
        for kind in sorted(kinds, reverse=True):
            for process in self.live.processes():
                with suppress(psutil.NoSuchProcess):
                    if process.status() != psutil.STATUS_ZOMBIE and kind_of(process) == kind:
                        process.kill()
                        self.killed[kind] += 1


def kind_of(process):
    title = " ".join(process.cmdline()).strip()
    if found := re.fullmatch(r"airflow worker -- (LocalExecutor: )?[0-9a-f-]{36}", title):
        return "worker" if found[1] else "task"
    return "triggerer" if title.endswith("airflow triggerer") else None


def test_killed_tasks_workers_and_triggerers_lose_and_double_nothing(live, world, bqtail, wait_until, unpaused, trials):
    control, killer = world.control, Killer(live, world.control, wait_until)
    with unpaused("bqdispatch"):
        wait_until(lambda: "deferred" in states(live, "bqdispatch", task_id="detect"), "the sensor is deferred")
        for _ in range(3):
            with killer.waiting_for("storage.objects.list", bucket=TASKS):
                put_files(bqtail, *BATCHED)
            killer.kill({"triggerer"})
            live.start("triggerer")
        for at in itertools.count():
            call, where = MOMENTS[at % len(MOMENTS)]
            with killer.waiting_for(call, after=bool(at % 2), **where):
                put_files(bqtail, *BATCHED[:2], *UNBATCHED)
                control.advance(40)
            killer.kill(VICTIMS[at % len(VICTIMS)])
            control.advance(AFTER_A_CRASH)
            if at + 1 >= len(MOMENTS) and sum(killer.killed.values()) >= KILLS:
                break
        wait_until(lambda: control.advance(1) and is_all_finished(bqtail), "all events are through")
    account = bqtail.account()
    assert account.ok, str(account)
    assert all(killer.killed.values())
    trials(
        "tasks, workers and triggerers of an Airflow killed during a call",
        sum(killer.killed.values()),
        account.events,
        account.missing,
        account.doubled,
    )


def test_two_dag_runs_that_have_found_the_same_dispatch_it_once(live, world, bqtail, wait_until, unpaused, trials):
    put_files(bqtail, *BATCHED, *10 * UNBATCHED)
    rounds = 0
    with unpaused("overlapping"):
        while not is_all_finished(bqtail):
            rounds += 1
            world.control.advance(AFTER_A_CRASH)
            run_side_by_side(live, wait_until, rounds)
            wait_until(lambda: not world.names(TRIGGER, "_b"), "BqTail has consumed all of it")
    account = bqtail.account()
    assert account.ok, str(account)
    trials("two overlapping DAG runs that found the same", rounds, account.events, account.missing, account.doubled)


def run_side_by_side(live, wait_until, number):
    """Two runs: their tasks wait for the pools until both have looked, and then dispatch at the same time."""
    set_slots(live, 0)
    both = [trigger(live, f"{number}-{which}") for which in ("first", "second")]
    looked = ["success"] * 2 * number
    wait_until(lambda: states(live, "overlapping", task_id="detect") == looked, "both have looked")
    first, second = (found_by(live, run) for run in both)
    assert first == second
    set_slots(live, -1)
    wait_until(lambda: all(has_ended(live, run) for run in both), "both have ended")


def set_slots(live, slots):
    for pool in POOLS:
        live.patch(f"pools/{pool}", {"name": pool, "slots": slots, "include_deferred": False})


def trigger(live, run_id):
    live.post("dags/overlapping/dagRuns", {"dag_run_id": run_id, "logical_date": None})
    return f"dags/overlapping/dagRuns/{run_id}"


def found_by(live, run):
    """The events that a run's sensor handed on."""
    value = live.get(f"{run}/taskInstances/detect/xcomEntries/return_value")["value"]
    return [share["events"] for share in value]


def has_ended(live, run):
    return live.get(run)["state"] in ("success", "failed")
