"""Delete documents of old runs and old history from the journal: what is older than ``JournalRetentionDays``."""

from __future__ import annotations

import logging
import math
import re
import time
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.names import JournalName, counted, in_words

log = logging.getLogger(__name__)

_OURS = {
    JournalName.RUNS: re.compile(r"\d{4}-\d\d-\d\d/[^/]+/[^/]+(/[^/]+)?\.(json|underway|shares)", re.ASCII),
    JournalName.HISTORY: re.compile(r"\d{4}-\d\d-\d\d/\d\d\.json", re.ASCII),
}
"""Documents of the journal that lie in one folder for each day. ``JournalURL`` may be a bucket that has other objects
below these names, too."""

INTERVAL = timedelta(hours=1)
"""Interval of looking for old documents once there are none, by whichever dispatcher comes."""

_MAX_DAYS = 36_500
"""No document is older than a hundred years. There is no date that lies a million days ago."""

MAX_DELETED = 500
"""Documents that are deleted at one time."""


class Retention:
    """Deletes old documents of one journal.

    :param config: names the journal, and says how long documents stay.
    :param store: reaches the journal.
    :param threads: delete side by side.
    """

    def __init__(self, config: DispatchConfig, store: TaskStore, threads: Executor) -> None:
        self._days = min(config.journal_retention_days, _MAX_DAYS)
        self._journal_url = config.journal_url
        self._store, self._threads = store, threads
        self._next = -math.inf if self._days else math.inf

    def run(self) -> None:
        """Delete what is old, unless somebody did so within the last hour. A refusal is a line in the log."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL.total_seconds()
        url = f"{self._journal_url}{JournalName.JOURNAL_CLEANED}"
        try:
            note = {"Cleaned": datetime.now(UTC).isoformat(), "Days": self._days}
            if self._store.write_if_older_than(url, note, INTERVAL) is None:
                return
            before = self._store.now() - timedelta(days=self._days)
            if any([self._delete(f"{self._journal_url}{folder}", ours, before) for folder, ours in _OURS.items()]):
                self._store.remove(url)  # the next one goes on at once, here or in another process
                self._next = -math.inf
        except GOOGLE_ERRORS as error:
            log.warning("Old documents below %r are not deleted: %s", self._journal_url, in_words(error))

    def _delete(self, folder: str, ours: re.Pattern[str], before: datetime) -> bool:
        """Delete the documents of earlier days, and return whether there may be more of them.

        Days are listed in their order, the oldest first.
        A backfilled or cleared run lies in the folder of its own day, however young it is: the objects' age counts.

        :param folder: URL of the folder.
        :param ours: names in the folder; others are left.
        """
        day = f"{folder}{before:%Y-%m-%d}"
        listed = takewhile(lambda each: each[0] < day, self._store.list_created(folder))
        found = (each for each in listed if each[1] < before and ours.fullmatch(each[0], len(folder)))
        old = list(islice(found, MAX_DELETED))
        # In exactly the generation that is old: a run may write its document anew at this moment.
        list(self._threads.map(lambda each: self._store.remove(each[0], each[2]), old))
        if old:
            deleted = counted(len(old), "document")
            log.info("Deleted %s below %r, from before %s", deleted, folder, before.date())
        return len(old) == MAX_DELETED
