"""The history: figures of five minutes each, in one small document an hour beside the other documents of the journal.

Several dispatchers write into it. Each reads the document and writes it back only if nobody else did meanwhile.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from datetime import UTC, datetime

from google.api_core.exceptions import PreconditionFailed

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core import documents
from bqdispatch_provider.core.history import Figures, Hour, NewFigures, RunLabel
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.sizes import MAX_HOUR_BYTES
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.names import JournalName, in_words

log = logging.getLogger(__name__)

MAX_TRIES = 5
"""Tries to read and write a document while other dispatchers are quicker."""

RETRY_S = 1.0
"""Longest pause before another try; an object name may be changed once a second."""


class HistoryWriter:
    """Writes what a run has done into the history."""

    def __init__(self) -> None:
        self._new = NewFigures()
        self._unwritten = Figures()
        self._known: tuple[str, Hour, int] | None = None
        """The document that was written last, by its URL, and its generation: mostly nobody else writes it."""

    def mark_known(self, report: Report, config: DispatchConfig) -> None:
        """Mark what a report tells as known: the history has it from an earlier process.

        :param report: of the run before this process went on with it.
        :param config: as for :meth:`write`.
        """
        self._new.take(report, config)

    def write(self, report: Report, store: TaskStore, config: DispatchConfig, label: RunLabel) -> None:
        """Write what is new in a report. What cannot be written is kept for the next time.

        :param report: of the run so far.
        :param store: reaches the journal.
        :param config: says where the journal lies, and which project events belong to whose name has none.
        :param label: of the run.
        """
        now, ticket = store.now(), uuid.uuid4().hex[:12]
        url = hour_url(config.journal_url, now)
        try:
            self._unwritten.add(self._new.take(report, config))
            for _ in range(MAX_TRIES):
                hour, generation = self._read(store, url, now)
                if ticket in hour.tickets:  # the answer to an earlier try was lost
                    break
                hour.add(now, self._unwritten, label.dag_id, label.document_url, ticket)
                try:
                    self._known = url, hour, store.write_json(url, hour.to_dict(), replaces=generation)
                    break
                except PreconditionFailed:
                    self._known = None
                    time.sleep(random.uniform(0.2, 1.0) * RETRY_S)  # noqa: S311  (spreads load, hides nothing)
            else:
                log.warning("%r is written by too many at one time; the figures follow with the next ones", url)
                return
            self._unwritten = Figures()
        except (*GOOGLE_ERRORS, ValueError) as error:
            self._known = None
            log.warning("The history %r cannot be written: %s", url, in_words(error))

    def _read(self, store: TaskStore, url: str, at: datetime) -> tuple[Hour, int]:
        if self._known is not None and self._known[0] == url:
            return self._known[1:]
        return read_hour(store, url, at)


def hour_url(journal_url: str, at: datetime) -> str:
    """Return where the document of an hour lies.

    :param journal_url: ``JournalURL`` of the configuration.
    :param at: a moment in that hour (aware).
    """
    return f"{journal_url}{JournalName.HISTORY}{at.astimezone(UTC):%Y-%m-%d/%H}.json"


def read_hour(store: TaskStore, url: str, at: datetime) -> tuple[Hour, int]:
    """Read the document of an hour.

    :param at: a moment in that hour (aware).
    :returns: the hour, and its generation: 0 if there is no document yet.
    :raises ValueError: when something else lies there.
    """
    generation = store.generation(url)
    if generation is None:
        return Hour(), 0
    begin = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    try:
        return Hour.from_dict(documents.parse(store.read(url, MAX_HOUR_BYTES)), begin), generation
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it holds something else: {in_words(error)}") from error
