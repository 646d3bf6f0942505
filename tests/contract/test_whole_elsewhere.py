"""Dispatcher and BqTail together where Cloud Storage is not ours: every event once, by the stand-in BqTail's account.

Time is the real one there, so these wait as long as docs/protocol.md wants them to: a trace's age, a window's margin.
"""

import time
from datetime import timedelta

import pytest
import requests
from backends import FAKE_GCS_SERVER, WITHOUT_BATCHES

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.testing.bqtail import BqTailSettings, StandInBqTail

pytestmark = pytest.mark.parametrize("storage", [WITHOUT_BATCHES, FAKE_GCS_SERVER], indirect=True)

BATCHED, DIRECT = ["ds.a", "q:ds.b$20260101"], ["ds.c--d", "example.com:legacy.ds.e"]


class Cloud:
    """Cloud Storage from a back end, BigQuery from the stand-in, and a BqTail of both."""

    def __init__(self, storage, bigquery_url, wait):
        self.storage, self.wait = storage, wait
        self.config = DispatchConfig.from_dict(
            {
                "ProjectID": "p",
                "AsyncTaskURL": f"gs://{storage.tasks}/{storage.folder}",
                "JournalURL": f"gs://{storage.journal}/journal",
                "ErrorURL": f"gs://{storage.journal}/errors",
                "TriggerBucket": storage.trigger,
                "MaxConcurrentSQL": 5,
                "MaxConcurrentJobs": 4,
            }
        )
        settings = BqTailSettings.for_dispatcher(
            self.config, window_s=2, unbatched=frozenset(DIRECT), chain=("load", "query"), running_ms=(0, 2000)
        )
        self.bqtail = StandInBqTail(storage.client, requests.Session(), bigquery_url, settings)

    def dispatcher(self):
        return Dispatcher(self.config, self.storage.client, requests.Session())

    def until_finished(self, cycle):
        """Give the reports of alternating cycles of both."""
        reports = []
        for _ in range(100):
            reports.append(cycle())
            self.bqtail.step()
            counters = self.bqtail.counters()
            if counters.finished == counters.events:
                return reports
            self.wait(0.5)
        raise AssertionError(str(self.bqtail.account()))


@pytest.fixture
def two(storage, standin, control, monkeypatch):
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", standin.url)
    return Cloud(storage, standin.url, control.advance if storage.url == standin.url else time.sleep)


def test_every_event_ends_in_one_finished_chain(two):
    files = [two.bqtail.put_file(dest) for dest in [*BATCHED, *DIRECT] * 3]
    with two.dispatcher() as dispatcher:
        reports = two.until_finished(dispatcher.cycle)
        dispatcher.write_performance(reports[-1])
    account = two.bqtail.account()
    assert account.ok, str(account)
    assert (account.events, account.finished) == (12, 12)
    assert [error for report in reports for error in report.errors] == []
    fired = [url.rpartition("/")[2] for report in reports for url in report.batched]
    assert sorted(fired) == sorted({file.window for file in files if file.window})
    assert two.storage.names(two.storage.journal) == ["journal/ledger.json", "journal/performance.json"]


@pytest.mark.parametrize("consumed", [False, True])
def test_what_was_copied_but_not_deleted_is_taken_up_by_the_next_dispatcher(two, consumed, monkeypatch):
    """Without versions and without preconditions nobody can tell a copy that was consumed: it may go out again."""
    # Nobody here is slow, and not every back end has a clock to move.
    for patience in ("delivery.intents.LEASE", "delivery.firer.CLAIM_TIMEOUT", "core.windows.CLAIM_TIMEOUT"):
        monkeypatch.setattr(f"bqdispatch_provider.{patience}", timedelta(seconds=1))
    for dest in [*BATCHED, *DIRECT]:
        two.bqtail.put_file(dest)
    undeleted = 0

    def cycle():
        nonlocal undeleted
        two.wait(4.0)  # by then jobs are done and traces old enough, so that the one that crashes finds some to move
        with two.dispatcher() as crashing:
            crashing.store.delete = lambda objects: [Result(0, message="crashed") for _ in objects]
            undeleted += len(crashing.cycle().errors)
        if consumed:
            two.bqtail.step()
        two.wait(2.5)
        with two.dispatcher() as dispatcher:
            return dispatcher.cycle()

    two.until_finished(cycle)
    account = two.bqtail.account()
    assert undeleted > 0
    assert (account.events, account.finished + account.doubled, account.missing) == (4, 4, 0), str(account)
    assert account.ok or consumed, str(account)
