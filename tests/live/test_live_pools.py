"""Pools of five and three slots, and hundreds of events: neither a pool nor a limit is ever passed.

Three DAGs are in the pools at once, two of which dispatch from one task folder. Each has its turns; how much it
dispatches in them is not promised, since another may have dispatched what it has found. Airflow's own statistics tell
of the pools, which hold what tasks do. The stand-in's account tells of jobs with a trace, which the dispatcher's limits
hold, and which go on when the tasks that began them have ended.
"""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import pytest
import requests
from runs import is_all_finished, states

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import EventFilter
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.testing.bqtail import TRACE_LABEL, BqTailSettings, StandInBqTail

LIMITS = {"sql": 5, "jobs": 3}
POOLS = {f"bqdispatch_limited_{lane}": slots for lane, slots in LIMITS.items()}
DISPATCHING, OTHER = ("bqdispatch_limited", "on_its_own"), "jobs_of_its_own"

TIMES = 5 if os.environ.get("BQDISPATCH_TABLES") else 2
BACKLOG = {
    ("ds.q", ("load", "query", "query")): 8 * TIMES,
    ("ds.l", ("load", "copy")): 5 * TIMES,
    ("ds.q", ("load", "query")): 54 * TIMES,
    ("ds.l", ("load",)): 33 * TIMES,
}
"""How many events of a table have which jobs with a trace. Those that are dispatched first start another job."""
EVENTS = sum(BACKLOG.values())
STEP = 20


@pytest.fixture
def limited(live, world, tmp_path):
    """The set-up of two of the DAGs, and its pools, as `bqdispatch pools` makes them in an Airflow elsewhere."""
    document = world.document(MaxConcurrentSQL=LIMITS["sql"], MaxConcurrentJobs=LIMITS["jobs"], TimeToLiveInMin=0.2)
    connection = {"connection_id": "bqdispatch_limited", "conn_type": "bqdispatch"}
    live.post("connections", {**connection, "extra": json.dumps({"config": document})})
    config = tmp_path / "config.json"
    config.write_text(json.dumps(document))

    def pools(what, **environment):
        command = ["pools", what, "--setup", "limited", "--config", str(config), "--url", live.url]
        return subprocess.run(
            [sys.executable, "-m", "bqdispatch_provider.commands.cli", *command],
            env={**os.environ, "AIRFLOW_CLI_TOKEN": live.token, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return pools


@pytest.fixture
def backlog(world):
    """A BqTail whose events all wait to be dispatched, and that goes on with those that are."""
    settings = BqTailSettings.for_dispatcher(
        world.config(), window_s=0, then=("notify",), pending_ms=(0, 0), running_ms=(0, 0), workers=4
    )
    bqtail = StandInBqTail(world.client, requests.Session(), world.url, settings)
    for (dest, chain), number in BACKLOG.items():
        bqtail.settings = replace(settings, chain=chain)
        for _ in range(number):
            bqtail.put_file(dest)
    # Those of the queries have been dispatched once.
    world.control.advance(5)
    config = DispatchConfig.from_dict(world.document())
    with Dispatcher(
        config, world.client, world.session, only=EventFilter.from_dict({"destinations": "ds.q"})
    ) as dispatcher:
        dispatcher.cycle()
    bqtail.step()
    world.control.advance(5)
    bqtail.settings = replace(settings, pending_ms=(0, 200), running_ms=(200, 2000))
    stopped = threading.Event()
    thread = threading.Thread(target=bqtail.run, args=(stopped, 0.05))
    thread.start()
    yield bqtail
    stopped.set()
    thread.join()


@contextmanager
def watched(live):
    """Notes the pools as Airflow tells of them, all the time."""
    seen, stopped = {name: [] for name in POOLS}, threading.Event()
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {live.token}"

    def watch():
        while not stopped.wait(0.4):
            answer = session.get(f"{live.url}/api/v2/pools", params={"pool_name_pattern": "bqdispatch_limited"})
            if answer.status_code == 500:  # SQLite lets one write at a time, and gives up waiting for it
                continue
            answer.raise_for_status()
            for pool in answer.json()["pools"]:
                seen[pool["name"]].append(pool)

    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(watch)
        try:
            yield seen
        finally:
            stopped.set()
        watching.result()


def test_neither_pools_nor_limits_are_passed_by_three_dags_and_hundreds_of_events(
    live, world, limited, backlog, wait_until, unpaused
):
    refused = limited("--import", AIRFLOW_CLI_TOKEN="of nobody")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Check that the token in AIRFLOW_CLI_TOKEN is valid" in refused.stderr
    assert limited("--check").stdout.splitlines() == [
        f"pool {name!r} is missing, so tasks in it never run; expected {slots} slots" for name, slots in POOLS.items()
    ]
    live.post("pools", {"name": "bqdispatch_limited_jobs", "slots": 99})
    made = limited("--import")
    assert made.stdout.splitlines() == [f"pool {name!r} has {slots} slots" for name, slots in POOLS.items()], made
    assert limited("--check").stdout == "the pools agree with the configuration\n"

    with watched(live) as seen, ExitStack() as going_on:
        for dag_id in (*DISPATCHING, OTHER):
            going_on.enter_context(unpaused(dag_id))
        for number in range(STEP, EVENTS + 1, STEP):
            wait_until(lambda number=number: backlog.counters().finished >= number, f"{number} events are through")
        for dag_id in (*DISPATCHING, OTHER):
            for pool in POOLS:
                wait_until(partial(has_had_its_turn, live, backlog, dag_id, pool), f"{dag_id} has its turn in {pool}")
        wait_until(lambda: is_all_finished(backlog), "all events are through")

    account = backlog.account()
    assert account.ok, str(account)
    assert account.events >= EVENTS
    assert account.early == ()

    for name, slots in POOLS.items():
        assert {pool["slots"] for pool in seen[name]} == {slots}
        assert 1 <= max(pool["occupied_slots"] for pool in seen[name]) <= slots
        assert 1 <= max(pool["running_slots"] + pool["queued_slots"] for pool in seen[name]) <= slots

    traced, own = (world.control.peaks(label)["p"] for label in (TRACE_LABEL, "jobs-of-its-own"))
    assert all(1 <= traced[lane] <= limit for lane, limit in LIMITS.items())
    assert all(1 <= own[lane] <= limit for lane, limit in LIMITS.items())


def has_had_its_turn(live, backlog, dag_id, pool):
    """Whether a task of the DAG has done its work in a pool. Until then there is more to do than the limits allow."""
    if states(live, dag_id, pool=pool, state=["success"]):
        return True
    most = sum(LIMITS.values())
    if backlog.counters().running < 2 * most:
        for dest, chain in (("ds.q", ("load", "query")), ("ds.l", ("load",))):
            backlog.settings = replace(backlog.settings, chain=chain)
            for _ in range(most):
                backlog.put_file(dest)
    return False
