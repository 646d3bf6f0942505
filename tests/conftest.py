"""A stand-in Google Cloud for the whole session, emptied before each test; and the table of trials."""

import json
import logging
import math
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from marks import write
from world import World

from bqdispatch_provider.delivery.copier import Copier
from bqdispatch_provider.gcp.storage_calls import StorageCalls
from bqdispatch_provider.testing.standin import StandIn, StandInControl

TRIALS = []

if "PYTEST_XDIST_WORKER" in os.environ:
    # Lines are counted in the processes of pytest, not in the hundreds that tests start: it is most of their time.
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


def pytest_addoption(parser):
    parser.addoption("--trials", metavar="FILE", help="write the table of trials between its marks in a document")
    parser.addoption("--apples", metavar="FILE", help="the same for the table of one bad apple (tests/apples)")
    parser.addoption("--deployments", metavar="FILE", help="the same for the table of tests/deploy/test_convergence.py")
    parser.addoption("--pictures", action="store_true", help="write the pictures of tests/page into docs/pictures")


def pytest_sessionfinish(session):
    document = session.config.getoption("--trials")
    if document and TRIALS:
        lines = ["| fault | trials | events | lost | doubled |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(map(str, each))} |" for each in TRIALS]
        write(Path(document), "trials", "\n".join(lines))


@pytest.fixture
def trials():
    """Notes what came of a fault: trials, events, lost, doubled."""
    return lambda *row: TRIALS.append(row)


@pytest.fixture(scope="session")
def cloud():
    with StandIn() as standin:
        yield standin


@pytest.fixture
def world(cloud, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", cloud.url)
    # However slow the machine is, what is planned is dispatched in the same cycle, and written down once.
    for patience in (
        "cycle.dispatching.MAX_COPYING_S",
        "delivery.firer.MAX_COPYING_S",
        "delivery.own_intents.RENEW_INTERVAL_S",
        "delivery.intents._MAX_LOOK_AGE_S",
    ):
        monkeypatch.setattr(f"bqdispatch_provider.{patience}", 3600.0)
    with StandInControl(cloud.url) as control:
        control.reset()
        yield World(cloud.url, control)


@pytest.fixture
def no_logs():
    """Keep logs off standard output: an Airflow that tests have imported writes them there."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def intents_stay_young(monkeypatch):
    """However slow the machine is, what was written down is too young to be deleted when its cycle ends."""
    monkeypatch.setattr("bqdispatch_provider.delivery.own_intents.SAME_NAME_S", 3600.0)
    monkeypatch.setattr("bqdispatch_provider.delivery.intents._MIN_AGE_TO_DELETE", timedelta(hours=1))


@pytest.fixture
def clock_stands_still(world, monkeypatch):
    """However slow the machine is, the stand-in's clock and what dispatchers know of it move by ``advance`` alone."""
    began = time.time()
    monkeypatch.setattr("bqdispatch_provider.testing.standin.clock.time", SimpleNamespace(time=lambda: began))
    monkeypatch.setattr(StorageCalls, "now", lambda _: datetime.fromtimestamp(int(world.control.now()), UTC))


@pytest.fixture
def few_tries(world, monkeypatch):
    """Copies are tried again for a second, however slow the machine is: only the pauses between two tries count."""
    paused, carry_out = threading.local(), Copier.carry_out

    def pause(seconds):
        paused.seconds += seconds

    def carry_out_for_a_second(copier, moves, finish, until=math.inf, **more):
        paused.seconds = until - 1.0 if until < math.inf else 0.0  # so late has it begun
        return carry_out(copier, moves, finish, until, **more)

    clock = SimpleNamespace(monotonic=lambda: paused.seconds, sleep=pause)
    monkeypatch.setattr("bqdispatch_provider.delivery.copier.time", clock)
    monkeypatch.setattr(Copier, "carry_out", carry_out_for_a_second)
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)


@pytest.fixture
def asked_once(monkeypatch):
    """BigQuery is not asked again after an answer that may pass."""
    for again in ("RETRY_FAILURES", "RETRY_RATE_LIMITS"):
        monkeypatch.setattr(f"bqdispatch_provider.gcp.job_calls.{again}", lambda call: call)


@pytest.fixture
def config(world, tmp_path):
    """Writes the world's configuration into a file."""

    def write(**more):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(world.document(**more)))
        return path

    return write
