"""A stand-in BqTail that a test or a demo drives."""

from __future__ import annotations

import logging
import posixpath
import threading
from dataclasses import replace
from datetime import datetime

import requests
from google.api_core.exceptions import PreconditionFailed, TooManyRequests
from google.cloud.storage import Client

from bqdispatch_provider.testing.bqtail.account import Account, Counters, DataFile, Problem
from bqdispatch_provider.testing.bqtail.bigquery import BigQuery
from bqdispatch_provider.testing.bqtail.bodies import WindowBody, location_name
from bqdispatch_provider.testing.bqtail.buckets import Buckets
from bqdispatch_provider.testing.bqtail.calls import CALL_ERRORS, RETRY_UNLESS_RATE_LIMITED
from bqdispatch_provider.testing.bqtail.chains import Chains
from bqdispatch_provider.testing.bqtail.deliveries import Deliveries
from bqdispatch_provider.testing.bqtail.ledger import Ledger
from bqdispatch_provider.testing.bqtail.settings import BqTailSettings
from bqdispatch_provider.testing.bqtail.whereabouts import whereabouts

log = logging.getLogger(__name__)


class StandInBqTail:
    """A stand-in BqTail (docs/protocol.md, "The flow").

    Emulators send no storage events. So :meth:`put_file`, :meth:`deliver` and :meth:`late_event` are the events of data
    files, :meth:`step` and :meth:`run` consume the windows and traces that a dispatcher delivers, and :meth:`account`
    returns the outcome of all events.

    :param storage_client: client of Cloud Storage.
    :param session: session with credentials, if the services need them.
    :param bigquery_url: scheme and host of BigQuery.
    :param settings: settings of the BqTail.
    """

    def __init__(
        self, storage_client: Client, session: requests.Session, bigquery_url: str, settings: BqTailSettings
    ) -> None:
        self._ledger = Ledger()
        self._buckets = Buckets(storage_client, session, settings)
        self._bigquery = BigQuery(session, bigquery_url)
        self._chains = Chains(settings, self._buckets, self._bigquery, self._ledger)
        self._deliveries = Deliveries(self._buckets, self._chains, self._ledger)
        self._data_prefix = settings.data_prefix.lstrip("/")
        self._stepping = threading.Lock()
        self._delayed: list[tuple[float, DataFile]] = []

    @property
    def settings(self) -> BqTailSettings:
        """Settings of the BqTail. New ones apply from the next event or step on, except those of its buckets."""
        return self._chains.settings

    @settings.setter
    def settings(self, settings: BqTailSettings) -> None:
        self._chains.settings = settings

    def put_file(
        self,
        dest: str,
        rows: int = 1,
        *,
        folder: str = "",
        event_delay: float | None = 0.0,
        corrupt: bool = False,
    ) -> DataFile:
        """Write a data file to the trigger bucket, and handle its storage event.

        The event opens the batch window of the file if it is not open. Without batching it submits a load job.

        :param dest: destination table, ``[project(:|.)]dataset.table``, also with a ``$partition``.
        :param rows: number of rows in the file.
        :param folder: folder of the file below that of its destination.
        :param event_delay: delay of the event in seconds by the storage server's clock; the next :meth:`step` after it
            handles the event. ``None``: wait for :meth:`deliver` or :meth:`late_event`.
        :param corrupt: ``True``: BigQuery cannot load the file; BqTail moves it away and loads the others again.
        :returns: the file.
        """
        event_id = self._ledger.new_event_id()
        blob = self._buckets.trigger.blob(posixpath.join(f"{self._data_prefix}{dest}", folder, f"{event_id}.json"))
        blob.upload_from_string("".join(f'{{"event": "{event_id}", "row": {i}}}\n' for i in range(rows)))
        uri = self._buckets.uri(blob.name)
        window = self._window(event_id, dest, uri, blob.updated)
        multi_path = window and self.settings.rule(dest).multi_path
        location = location_name(window.name, window.process.folder) if window and multi_path else None
        file = DataFile(event_id, dest, blob.name, blob.updated, window.name if window else None, location)
        self._ledger.file_landed(file, uri)
        if corrupt:
            self._chains.corrupt.add(uri)
        if event_delay == 0:
            self._ledger.event_arrived(uri, late=False)
            self._handle_event(file, event_id)
        else:
            due = float("inf") if event_delay is None else file.time.timestamp() + event_delay
            self._delayed.append((due, file))
        return file

    def deliver(self, file: DataFile) -> None:
        """Handle the storage event of a file now, be it delayed or sent again with the same ID.

        :param file: the file.
        """
        self._handle_late_event(file, file.event_id)

    def late_event(self, file: DataFile) -> None:
        """Handle a late storage event of a file: the delayed one, or another one with a new ID.

        It has no effect if the window is still open or the file is gone. Otherwise it opens the window again; without
        batching it loads the file again (docs/protocol.md, "Late events").

        :param file: the file.
        """
        delayed = any(file is each for _, each in self._delayed)
        self._handle_late_event(file, file.event_id if delayed else self._ledger.new_event_id(late=True))

    def forget_rule(self, dest: str) -> None:
        """Drop the next fired window of a destination, as if the rule was missing.

        :param dest: destination of the window.
        """
        self._deliveries.unknown_rules[dest] += 1

    def step(self, *, patient: bool = True) -> int:
        """Handle due events, and all objects that have arrived in the trigger bucket.

        :param patient: ``True``: wait until handled objects can be deleted, a second after they arrived; ``False``: a
            later step deletes them.
        :returns: number of handled events and consumed objects.
        """
        with self._stepping:
            return self._handle_due_events() + self._deliveries.consume(patient)

    def run(self, stop_event: threading.Event, interval: float = 0.2) -> None:
        """Call :meth:`step` repeatedly.

        :param stop_event: ends the loop after the current step when it is set.
        :param interval: time between two steps in seconds.
        """
        while not stop_event.is_set():
            try:
                self.step(patient=False)
            except CALL_ERRORS as error:
                self._ledger.errors.append(f"list of the trigger bucket: {error}")
            stop_event.wait(interval)

    def counters(self) -> Counters:
        """Return the progress of all events; it calls no service."""
        return self._ledger.counters()

    def account(self) -> Account:
        """Return the outcome of all events; it lists buckets and jobs to explain missing ones."""
        for trace in self._ledger.unresolved_loads():
            status = self._bigquery.status(trace)
            if status.get("state") == "DONE":
                self._ledger.load_ended(trace, failed="errorResult" in status)
        account, missing = self._ledger.account()
        account = replace(account, peaks=self._bigquery.peaks(self._ledger.traced_jobs()))
        if not missing:
            return account
        places = self._buckets.places()
        traces = {each.trace.name: each.trace for each in missing if each.trace}
        jobs = {name: self._bigquery.status_in_words(trace) for name, trace in traces.items()}
        found = (Problem(m.file.event_id, m.file.name, "missing", whereabouts(m, places, jobs)) for m in missing)
        return replace(account, problems=(*account.problems, *found))

    def _window(self, event_id: str, dest: str, source: str, at: datetime) -> WindowBody | None:
        length = self.settings.window_s
        if not length or dest in self.settings.unbatched:
            return None
        start = int(at.timestamp()) // length * length
        process = self._chains.process(event_id, dest, source, at)
        multi_path = self.settings.rule(dest).multi_path
        return WindowBody.of(process, self._buckets.task_url, start, start + length, multi_path)

    def _handle_late_event(self, file: DataFile, event_id: str) -> None:
        self._delayed = [(due, each) for due, each in self._delayed if each is not file]
        uri = self._buckets.uri(file.name)
        self._ledger.event_arrived(uri, late=True)
        if self._buckets.exists(uri):
            self._handle_event(file, event_id)

    def _handle_due_events(self) -> int:
        if all(due == float("inf") for due, _ in self._delayed):
            return 0
        now = self._buckets.server_time()
        files = [file for due, file in self._delayed if due <= now]
        for file in files:
            self.deliver(file)
        return len(files)

    def _handle_event(self, file: DataFile, event_id: str) -> None:
        uri = self._buckets.uri(file.name)
        window = self._window(event_id, file.dest, uri, file.time)
        if window is None:
            self._chains.start(self._chains.process(event_id, file.dest, uri, file.time), (uri,))
            return
        blob = self._buckets.task(window.name)
        try:
            RETRY_UNLESS_RATE_LIMITED(blob.upload_from_string)(
                window.to_json(), content_type="application/json", if_generation_match=0, retry=None
            )
            self._ledger.window_opened(window)
        except (PreconditionFailed, TooManyRequests):
            log.debug("Window %s exists or was changed less than a second ago, not written", window.name)
        if self.settings.rule(file.dest).multi_path:
            self._write_location(window)

    def _write_location(self, window: WindowBody) -> None:
        folder = window.process.folder
        blob = self._buckets.task(location_name(window.name, folder))
        try:
            RETRY_UNLESS_RATE_LIMITED(blob.upload_from_string)(folder, if_generation_match=0, retry=None)
        except CALL_ERRORS as error:
            log.debug("Cannot write %s, ignored as BqTail does: %s", blob.name, error)
