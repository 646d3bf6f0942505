"""Patience in seconds instead of minutes, so that a cell takes no longer; and the table of all cells."""

from pathlib import Path

import pytest
from apples import table
from google.api_core.retry import Retry
from marks import write

from bqdispatch_provider import courtesy, dispatcher, jobs, moves, storage


@pytest.fixture
def hasty(world, monkeypatch):
    """A world in which everybody gives up soon."""
    for module, name, value in (
        (storage, "_TIMEOUT", (5.0, 2.0)),
        (storage, "_PATIENCE", 0.5),
        (storage, "_RETRY", storage._RETRY.with_timeout(0.5).with_delay(initial=0.02, maximum=0.1)),
        (jobs, "_TIMEOUT", (5.0, 2.0)),
        (jobs, "_PATIENCE_S", 2.5),
        (jobs, "_FAILS", Retry(jobs._FAILS._predicate, initial=0.02, maximum=0.1, timeout=0.5)),
        (jobs, "_TOO_MANY", Retry(jobs._TOO_MANY._predicate, initial=0.02, maximum=0.1, timeout=0.5)),
        (courtesy, "_FIRST", 0.01),
        (courtesy, "_LONGEST", 0.05),
        (dispatcher, "AT_MOST", 30.0),
        (moves, "AT_MOST", 30.0),
    ):
        monkeypatch.setattr(module, name, value)
    return world


def pytest_terminal_summary(terminalreporter, config):
    """Write the table, where that was asked for."""
    if document := config.getoption("--apples"):
        reports = [each for kind in ("passed", "failed") for each in terminalreporter.getreports(kind)]
        rows = [dict(each.user_properties)["cell"] for each in reports if each.when == "call" and each.user_properties]
        write(Path(document), "apples", "\n".join(table(rows)))
