"""One real Airflow for the tests that can share it, and BqTail beside it.

It has every DAG of dags/ and tests/live/dags, all of them paused: a test lets its own go on. Further connections are
made by REST (``live.post("connections", …)``), the pools' slots set by it. As users have it, failed tasks are tried
again, and sensors wait deferred.
"""

import json
import shutil
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests
from runs import UNBATCHED, airflow_with, states
from slack import StandInSlack
from statsd_listener import StatsdListener
from world import TRIGGER, World

from bqdispatch_provider.testing.bqtail import BqTailSettings, StandInBqTail

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600
SHORT = {"TimeToLiveInMin": 0.2}
"""Runs are not as long as in earnest, so that there are more of them."""


@pytest.fixture(scope="session")
def statsd():
    """Where the metrics of all of Airflow's processes arrive."""
    listener = StatsdListener()
    yield listener
    listener.close()


@pytest.fixture(scope="session")
def live(cloud, statsd, tmp_path_factory):
    """The Airflow; at the end of the session nothing of it is left."""
    home = tmp_path_factory.mktemp("live")
    dags = home / "dags"
    dags.mkdir()
    samples = (*ROOT.glob("dags/*.py"), ROOT / "dags" / "examples" / "on_events.py")
    for file in (*samples, *Path(__file__).parent.glob("dags/*.py")):
        shutil.copy(file, dags)
    environment = {
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "3",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
        "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
        "BQDISPATCH_SCHEDULE": "@continuous",
        **statsd.environment,
        # What was killed is to be missed soon.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "8",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    }
    with airflow_with(World.document(**SHORT), cloud.url, home / "airflow", dags, **environment) as airflow:
        yield airflow


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
def slack(live):
    """A Slack to which the connection ``slack_ops`` leads."""
    with closing(StandInSlack()) as stand_in:  # its thread would keep the tests from ending
        connection = {"connection_id": "slack_ops", "conn_type": "slack", "password": "xoxb-live"}
        live.post("connections", {**connection, "extra": json.dumps({"base_url": stand_in.url})})
        yield stand_in
        live.delete("connections/slack_ops")


@pytest.fixture
def wait_until(live):
    def wait(is_so, what):
        until = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < until, f"{what}: not within {PATIENCE_S} s; {live.log.read_text()[-6000:]}"
            time.sleep(0.4)  # each look takes Airflow some CPU

    return wait


@pytest.fixture
def unpaused(live, world, wait_until):
    """Lets a DAG go on meanwhile; afterwards none of its tasks runs, and all that was delivered is consumed."""

    @contextmanager
    def unpause(dag_id):
        wait_until(lambda: dag_id in {each["dag_id"] for each in live.get("dags", limit=100)["dags"]}, "it is parsed")
        live.patch(f"dags/{dag_id}", {"is_paused": False})
        try:
            yield
        finally:
            live.patch(f"dags/{dag_id}", {"is_paused": True})
        # One that is deferred may dispatch in the triggerer, and would take the next test's events.
        wait_until(lambda: not states(live, dag_id, state=["queued", "running", "deferred"]), "no task runs")
        wait_until(lambda: not world.names(TRIGGER, "_b"), "all is consumed")

    return unpause
