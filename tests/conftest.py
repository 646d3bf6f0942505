"""A stand-in Google Cloud for the whole session, emptied before each test; and the table of trials."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "benchmarks"))

from marks import write
from world import World

from bqdispatch_provider.testing.standin import StandIn, StandInControl

TRIALS = []


def pytest_addoption(parser):
    parser.addoption("--trials", metavar="FILE", help="write the table of trials between its marks in a document")
    parser.addoption("--apples", metavar="FILE", help="the same for the table of one bad apple (tests/apples)")
    parser.addoption("--deployments", metavar="FILE", help="the same for the table of tests/deploy/test_convergence.py")


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
    for patience in ("dispatcher.AT_MOST", "moves.AT_MOST", "intents.RENEW_S"):
        monkeypatch.setattr(f"bqdispatch_provider.{patience}", 3600.0)
    with StandInControl(cloud.url) as control:
        control.reset()
        yield World(cloud.url, control)


@pytest.fixture
def intents_stay_young(monkeypatch):
    """However slow the machine is, what was written down is too young to be deleted when its cycle ends."""
    monkeypatch.setattr("bqdispatch_provider.intents.SAME_NAME_S", 3600.0)
    monkeypatch.setattr("bqdispatch_provider.intents._SETTLED", timedelta(hours=1))


@pytest.fixture
def asked_once(monkeypatch):
    """BigQuery is not asked again after an answer that may pass."""
    for again in ("_FAILS", "_TOO_MANY"):
        monkeypatch.setattr(f"bqdispatch_provider.jobs.{again}", lambda call: call)


@pytest.fixture
def config(world, tmp_path):
    """Writes the world's configuration into a file."""

    def write(**more):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(world.document(**more)))
        return path

    return write
