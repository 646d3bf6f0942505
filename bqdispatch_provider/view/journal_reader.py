"""Read what runs have left in the journal: the history, and the last response document.

The page in Airflow is seen by many people at one time. So what was read is kept: an hour that nobody writes any more
for good, the rest for ten seconds.
"""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from google.api_core.exceptions import NotFound
from google.cloud.storage import Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core import documents
from bqdispatch_provider.core.history import Figures, Hour
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.sizes import MAX_HOUR_BYTES, MIB
from bqdispatch_provider.cycle.history import hour_url
from bqdispatch_provider.delivery.quarantine import QuarantineStore
from bqdispatch_provider.delivery.quarantine_notes import NoteCache
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.objects import created_at, read_object
from bqdispatch_provider.names import JournalName, counted, in_words
from bqdispatch_provider.view.overview import Quarantined
from bqdispatch_provider.view.suggested_commands import replay_command

KEPT_S = 10.0
"""Time for which the present is not read again."""

MAX_REPORT_BYTES = 64 * MIB
"""The largest response document that is shown."""

MAX_LISTED = 10_000
"""Objects and notes in quarantine that are listed, those of the first days first: ten requests."""

_REST = "the list ends there. `bqdispatch replay` lists all."
_THREADS = 16
_MEMORY = timedelta(days=9)
_HOUR = timedelta(hours=1)


class JournalReader:
    """Reads the journal of one set-up. It may be used from several threads.

    :param client: a ``google.cloud.storage.Client``.
    :param config: names the journal.
    :param max_notes: objects in quarantine whose reasons are read, the oldest first; by default all.
    """

    def __init__(self, client: Client, config: DispatchConfig, max_notes: int | None = None) -> None:
        self._client, self._config = client, config
        self._lock = threading.Lock()
        self._hours: dict[datetime, tuple[float, Hour]] = {}
        self._failed: dict[datetime, str] = {}
        """Hours that could not be read the last time, with the reason."""

        self._report: tuple[float, str, Report | None] = (-KEPT_S, "", None)
        self._performance: tuple[float, datetime | None] = (-KEPT_S, None)
        self._notes = NoteCache(max_notes)
        self._held: tuple[float, list[Quarantined] | None] = (-KEPT_S, None)
        self.problems: dict[str, str] = {}
        """Everything that could not be read the last time, by what it is."""

        self.history_error = ""
        """The reason why the history is not known up to now; empty if it is."""

    def hours(self, since: datetime, now: datetime) -> dict[datetime, Hour]:
        """Return the hours of the history since some time. One that is missing is left out.

        :param since: aware.
        :param now: the time (aware).
        """
        first = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        wanted = [first + number * _HOUR for number in range(int((now - first) / _HOUR) + 1)]
        with self._lock:
            asked = time.monotonic()
            missing = [at for at in wanted if asked - self._hours.get(at, (-math.inf,))[0] >= KEPT_S]
            with ThreadPoolExecutor(_THREADS) as threads:
                read = dict(zip(missing, threads.map(self._read_hour, missing), strict=True))
            for at, hour in read.items():
                if isinstance(hour, Hour):
                    # An hour may be written until a while after it has ended.
                    self._hours[at] = (math.inf if now - at >= 2 * _HOUR else asked), hour
                    self._failed.pop(at, None)
                else:
                    self._failed[at] = hour
                    self._hours |= {at: (asked, self._hours[at][1])} if at in self._hours else {}
            self._hours = {at: each for at, each in self._hours.items() if now - at < _MEMORY}
            self._failed = {at: said for at, said in self._failed.items() if now - at < _MEMORY}
            self._tell_failed(now)
            return {at: self._hours[at][1] for at in wanted if at in self._hours}

    def _read_hour(self, at: datetime) -> Hour | str:
        """Return an hour, or why it cannot be read."""
        url = hour_url(self._config.journal_url, at)
        try:
            return Hour.from_dict(documents.parse(read_object(url, self._client, MAX_HOUR_BYTES)), at)
        except NotFound:
            return Hour()
        except (*GOOGLE_ERRORS, ValueError, RecursionError) as error:
            return in_words(error)

    def _tell_failed(self, now: datetime) -> None:
        """Note which hours could not be read: among many that could, one that could not is told all the same."""
        self.problems.pop("history", None)
        is_latest_unread = any(now - at < 2 * _HOUR for at in self._failed)
        if self._failed:
            what = "The history" if is_latest_unread else f"{counted(len(self._failed), 'hour')} of the history"
            self.problems["history"] = f"{what} cannot be read: {self._failed[max(self._failed)]}"
        self.history_error = self.problems["history"] if is_latest_unread else ""

    def spans(self, since: datetime, now: datetime) -> dict[datetime, Figures]:
        """Return the figures of all spans that have begun since some time, by when they begin."""
        hours = self.hours(since, now).values()
        return {at: each for hour in hours for at, each in sorted(hour.spans.items()) if at > since}

    def report(self, now: datetime) -> Report | None:
        """Return the response document of the last run; ``None`` without one. What was read last stays on errors."""
        hours = self.hours(now - timedelta(hours=24), now)
        # The history may say anything that whoever may write the journal wants to be read.
        folder = f"{self._config.journal_url}{JournalName.RUNS}"
        named = (hour.document for _, hour in sorted(hours.items(), reverse=True))
        url = next((each for each in named if each.startswith(folder)), "")
        with self._lock:
            read, known, report = self._report
            if not url or (known == url and time.monotonic() - read < KEPT_S):
                return report
            try:
                report = Report.from_dict(documents.parse(read_object(url, self._client, MAX_REPORT_BYTES)))
                self.problems.pop("document", None)
            except NotFound:
                pass  # merged into the document of its run, or deleted: the next run leaves another one
            except (*GOOGLE_ERRORS, ValueError, RecursionError) as error:
                self.problems["document"] = f"The last response document cannot be read: {in_words(error)}"
            self._report = (time.monotonic(), url, report)
            return report

    def performance(self) -> datetime | None:
        """Return when ``performance.json`` was written, as each dispatcher does; what was read last on errors."""
        url = f"{self._config.journal_url}{JournalName.PERFORMANCE}"
        with self._lock:
            read, written = self._performance
            if time.monotonic() - read < KEPT_S:
                return written
            try:
                written = created_at(url, self._client)
                self.problems.pop("performance", None)
            except GOOGLE_ERRORS as error:
                if not self.history_error:  # which says the same of the same bucket
                    self.problems["performance"] = f"{url!r} cannot be read: {in_words(error)}"
            self._performance = (time.monotonic(), written)
            return written

    def quarantine(self) -> list[Quarantined] | None:
        """Return what is in quarantine; what was read last on errors, or ``None`` if nothing was."""
        with self._lock:
            read, held = self._held
            if time.monotonic() - read < KEPT_S:
                return held
            try:
                with QuarantineStore(self._client, self._config) as store:
                    held = [
                        Quarantined(each.url, each.reason, each.since, replay_command(self._config, each.url))
                        for each in store.listing(self._notes, MAX_LISTED)
                    ]
                self.problems.pop("quarantine", None)
                if store.is_cut:
                    self.problems["quarantine"] = f"More than {counted(len(held), 'object')} are in quarantine: {_REST}"
            except (*GOOGLE_ERRORS, ValueError) as error:
                self.problems["quarantine"] = f"The quarantine cannot be listed: {in_words(error)}"
            self._held = (time.monotonic(), held)
            return held
