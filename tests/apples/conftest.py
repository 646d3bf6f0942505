"""Patience in seconds instead of minutes, so that a cell takes no longer; and the table of all cells."""

from pathlib import Path

import pytest
from apples import table
from google.api_core.retry import Retry
from marks import write

from bqdispatch_provider.cycle import dispatching
from bqdispatch_provider.delivery import firer
from bqdispatch_provider.gcp import gcs_batch, job_calls, rate_limit, storage_calls


@pytest.fixture
def hasty(world, monkeypatch):
    """A world in which everybody gives up soon."""
    for module, name, value in (
        (gcs_batch, "TIMEOUT_S", (5.0, 2.0)),
        (storage_calls, "RETRY_FOR_S", 0.5),
        (storage_calls, "RETRY", storage_calls.RETRY.with_timeout(0.5).with_delay(initial=0.02, maximum=0.1)),
        (job_calls, "TIMEOUT_S", (5.0, 2.0)),
        (rate_limit, "ANSWER_TIMEOUT_S", 2.5),
        (job_calls, "RETRY_FAILURES", _hasty(job_calls.RETRY_FAILURES)),
        (job_calls, "RETRY_RATE_LIMITS", _hasty(job_calls.RETRY_RATE_LIMITS)),
        (rate_limit, "MIN_BACKOFF_S", 0.01),
        (rate_limit, "MAX_BACKOFF_S", 0.05),
        (dispatching, "MAX_COPYING_S", 8.0),
        (firer, "MAX_COPYING_S", 8.0),
    ):
        monkeypatch.setattr(module, name, value)
    return world


def _hasty(retry):
    return Retry(retry._predicate, initial=0.02, maximum=0.1, timeout=0.5)


def pytest_terminal_summary(terminalreporter, config):
    """Write the table, where that was asked for."""
    document = config.getoption("--apples")
    if document and not hasattr(config, "workerinput"):  # a worker process knows only its own cells
        reports = [each for kind in ("passed", "failed") for each in terminalreporter.getreports(kind)]
        rows = [dict(each.user_properties)["cell"] for each in reports if each.when == "call" and each.user_properties]
        write(Path(document), "apples", "\n".join(table(rows)))
