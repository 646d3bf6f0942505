"""A stand-in Google Cloud for the whole session, emptied before each test; and the table of trials."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "benchmarks"))

from world import World

from bqdispatch_provider.testing.standin import StandIn, StandInControl

TRIALS = []

CHANGES_A_NAME_TWICE_A_SECOND = {
    "test_cycle.py::test_a_hundred_copies_or_deletes_travel_in_one_request",
    "test_cycle.py::test_a_run_goes_on_until_its_time_is_up_and_is_ok",
    "test_dags.py::test_a_run_of_the_sample_dag_costs_what_the_model_of_growth_says",
    "test_doubt.py::test_a_doubtful_trace_that_cannot_be_settled_stays_written_down",
    "test_fire.py::test_a_window_that_this_run_has_fired_is_only_marked_later",
    "test_fire.py::test_firing_a_hundred_windows_takes_three_batches",
    "test_limits_of_the_services.py::test_no_more_jobs_are_looked_up_than_bigquery_allows",
}
"""Tests that count requests or time and meet a sentinel, or an intent, that is changed twice within a second."""


def pytest_addoption(parser):
    parser.addoption("--trials", metavar="FILE", help="write the table of trials between its marks in a document")


def pytest_collection_modifyitems(items):
    reason = "a sentinel or an intent is changed twice within a second, and again once the stand-in lets it"
    for item in items:
        if f"{item.path.name}::{item.name}" in CHANGES_A_NAME_TWICE_A_SECOND:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))


def pytest_sessionfinish(session):
    document = session.config.getoption("--trials")
    if document and TRIALS:
        lines = ["| fault | trials | events | lost | doubled |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(map(str, each))} |" for each in TRIALS]
        text = Path(document).read_text()
        table = "<!-- trials -->\n" + "\n".join(lines) + "\n<!-- /trials -->"
        Path(document).write_text(re.sub(r"<!-- trials -->.*<!-- /trials -->", lambda _: table, text, flags=re.DOTALL))


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
    with StandInControl(cloud.url) as control:
        control.reset()
        yield World(cloud.url, control)


@pytest.fixture
def config(world, tmp_path):
    """Writes the world's configuration into a file."""

    def write(**more):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(world.document(**more)))
        return path

    return write
