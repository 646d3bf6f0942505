"""Read the journal of a set-up in the background, at most once in ten seconds however many people watch.

A request waits a moment for a reading that is under way, and then shows what was read last. So a Google Cloud that does
not answer holds up one thread for each set-up, and no page.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.core.history import Hour
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.gcp.clients import add_connections
from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.names import in_words
from bqdispatch_provider.page.series import Range
from bqdispatch_provider.view.journal_reader import KEPT_S, JournalReader
from bqdispatch_provider.view.overview import Quarantined

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.8
"""Time that a request waits for the first reading, from when that began. The page answers within a second; it says that
the journal is being read, and asks again soon."""

WAIT_S = 0.5
"""Time that a request waits for a later reading: what was read before can be shown."""

CONFIG_KEPT_S = 300.0
"""Time for which a configuration is not read again."""

SLOW_S = 15.0
"""A reading that takes longer is told on the page."""

MAX_HELD = 50
"""Objects in quarantine that the page shows; it reads the notes of no more."""

_CONNECTIONS = 32
"""Connections to Cloud Storage that are kept: as many as are used at one time."""

_NEVER = datetime.max.replace(tzinfo=UTC)
_READING = "The journal is being read for the first time."


@dataclass(frozen=True)
class SetUpReading:
    """Everything that was read of a set-up.

    :param at: when (aware).
    :param whole: when everything could be read the last time (aware); ``None`` if never.
    :param config: the configuration; ``None`` if it cannot be read.
    :param since: since when ``hours`` has the history (aware).
    :param hours: of the history.
    :param report: of the last run; ``None`` without one.
    :param performance: when ``performance.json`` was written (aware); ``None`` if never.
    :param quarantine: objects in quarantine; ``None`` if they are not known.
    :param problems: what could not be read, one sentence each.
    :param history_error: why the history is not known up to now; empty if it is.
    :param is_history_known: False if the history was not read.
    :param dags: IDs of the DAGs that the history of a week names.
    :param are_dags_known: False until that history has been read once.
    """

    at: datetime
    whole: datetime | None = None
    config: DispatchConfig | None = None
    since: datetime = _NEVER
    hours: Mapping[datetime, Hour] = field(default_factory=dict)
    report: Report | None = None
    performance: datetime | None = None
    quarantine: Sequence[Quarantined] | None = None
    problems: Sequence[str] = ()
    history_error: str = ""
    is_history_known: bool = False
    dags: Set[str] = frozenset()
    are_dags_known: bool = True

    def is_complete(self, span: Range) -> bool:
        """Tell whether it has the history of a range of time."""
        return self.since <= self.at - span.length


class Watcher:
    """Reads the journal of one set-up. It may be used from several threads.

    :param conn_id: ID of its connection.
    """

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self._changed = threading.Condition()
        self._reading: SetUpReading | None = None
        self._began, self._ended = -KEPT_S, -KEPT_S
        self._began_at = 0.0
        self._is_running = False
        self._held = ExitStack()
        self._reader: JournalReader | None = None
        self._config: DispatchConfig | None = None
        self._config_read = -CONFIG_KEPT_S

    def look(self, span: Range = Range.HOUR) -> SetUpReading:
        """Return what was read last, once it is as young as can be had without a long wait.

        :param span: the range of time whose history is wanted.
        """
        with self._changed:
            self._begin()
            is_first = self._reading is None or (span is Range.WEEK and not self._reading.are_dags_known)
            until = self._began + (FIRST_WAIT_S if is_first else WAIT_S)
            self._changed.wait_for(lambda: self._is_done(span), max(0.0, until - time.monotonic()))
            reading = self._reading
            late = time.monotonic() - self._began if self._is_running else 0.0
        if reading is None:
            problem = _READING if late <= SLOW_S else _slow(late, "nothing has been read yet")
            return SetUpReading(datetime.now(UTC), problems=[problem], are_dags_known=False)
        problems = list(reading.problems)
        if late > SLOW_S:
            problems.append(_slow(late))
            reading = replace(reading, history_error=_slow(late))
        elif self._is_running and not reading.is_complete(span):
            problems.append(f"The history of the {span} is still being read.")
        return replace(reading, problems=problems)

    def _is_done(self, span: Range) -> bool:
        return not self._is_running or bool(
            self._reading and self._reading.at.timestamp() >= self._began_at and self._reading.is_complete(span)
        )

    def begin(self) -> None:
        """Begin to read if what was read is too old, without waiting."""
        with self._changed:
            self._begin()

    def _begin(self) -> None:
        if self._is_running or time.monotonic() - self._ended < KEPT_S:
            return
        self._is_running, self._began, self._began_at = True, time.monotonic(), time.time()
        threading.Thread(target=self._read, name=f"bqdispatch-page-{self.conn_id}", daemon=True).start()

    def _read(self) -> None:
        try:
            self._read_journal()
        except ConfigError as error:
            self._publish(self._without_journal("; ".join(error.findings)))
        except Exception as error:
            log.debug("The set-up of the connection %r cannot be read", self.conn_id, exc_info=True)
            self._publish(self._without_journal(in_words(error)))
        finally:
            with self._changed:
                self._is_running, self._ended = False, time.monotonic()
                self._changed.notify_all()

    def _without_journal(self, said: str) -> SetUpReading:
        problem = f"The connection {self.conn_id!r} cannot be used: {said}"
        return replace(
            self._reading or SetUpReading(datetime.now(UTC)),
            problems=[problem],
            history_error=problem,
            are_dags_known=True,
        )

    def _read_journal(self) -> None:
        """Read the last day first, which most people look at, and then the week."""
        reader, config = self._open()
        for span in (Range.DAY, Range.WEEK):
            now = datetime.now(UTC)
            report, held = reader.report(now), reader.quarantine()
            since = now - span.length
            hours, performance = reader.hours(since, now), reader.performance()
            problems, before = list(reader.problems.values()), self._reading
            is_known = not reader.history_error or any(hour.dags for hour in hours.values())
            if reader.history_error and before:
                since, hours = min(since, before.since), {**before.hours, **hours}
            whole = now if not problems else before.whole if before else None
            is_week = span is Range.WEEK
            self._publish(
                SetUpReading(
                    *(now, whole, config, since, hours, report, performance, held, problems, reader.history_error),
                    is_history_known=is_known,
                    dags=self._dags(hours, is_week),
                    are_dags_known=is_week or bool(reader.history_error or (before and before.are_dags_known)),
                )
            )
            if reader.history_error:  # there is no use in reading more
                return

    def _dags(self, hours: Mapping[datetime, Hour], is_week: bool) -> Set[str]:
        """Return the IDs that hours name; unless these are the whole week, those that are known already, too."""
        named = {dag for hour in hours.values() for dag in hour.dags}
        return named if is_week or self._reading is None else named | self._reading.dags

    def _publish(self, reading: SetUpReading) -> None:
        """Let requests have a reading. The log says once what could not be read: it may be that nobody may see it."""
        known = self._reading.problems if self._reading else ()
        for problem in reading.problems:
            if problem not in known:
                log.warning("Page of the connection %r: %s", self.conn_id, problem)
        with self._changed:
            self._reading = reading
            self._changed.notify_all()

    def _open(self) -> tuple[JournalReader, DispatchConfig]:
        """Return the reader; a new one if the configuration has changed."""
        if self._reader is None or self._config is None or time.monotonic() - self._config_read >= CONFIG_KEPT_S:
            hook = BqDispatchHook.from_database(self.conn_id)
            config = hook.get_config()
            if self._reader is None or config != self._config:
                self._held.close()
                client = hook.get_conn()
                self._held.callback(client.close)
                add_connections(client._http, _CONNECTIONS)
                self._reader, self._config = JournalReader(client, config, MAX_HELD), config
            self._config_read = time.monotonic()
        assert self._reader is not None and self._config is not None  # noqa: S101  (for mypy)
        return self._reader, self._config


def _slow(seconds: float, so: str = "the page shows what was read before") -> str:
    return f"Cloud Storage has not answered for {seconds:.0f} s; {so}."
