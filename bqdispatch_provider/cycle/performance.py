"""Documents that tell how things stand: ``performance.json`` and ``waiting.json`` in the journal.

BqTail's balancer takes from the first how busy each project is. The next process takes from the second how often events
have waited in trouble, and goes on counting.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from google.api_core.exceptions import NotFound

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core import documents
from bqdispatch_provider.core.limits import LimitKey, is_limited
from bqdispatch_provider.core.report import MAX_NAMED, Report, by_lane
from bqdispatch_provider.core.sizes import MAX_PERFORMANCE_BYTES, MAX_WAITS_BYTES
from bqdispatch_provider.core.waits import NEEDS_ATTENTION, Wait, waits_from_dict, waits_to_dict
from bqdispatch_provider.cycle.services import Services
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.names import JournalName, in_words

log = logging.getLogger(__name__)


_RECENT = timedelta(minutes=5)
"""A ``performance.json`` that is older says nothing of the present: a run writes one every minute."""


class PerformanceWriter:
    """Writes ``performance.json`` and ``waiting.json``."""

    def __init__(self) -> None:
        self._waited: dict[str, Wait] | None = None
        """Waits that an earlier process has written; ``None`` until they are read."""

        self._has_written_waits = False
        """True once this process has written waits, which it has to remove when they are over."""

    def write(self, report: Report, services: Services) -> None:
        """Write ``performance.json``, and ``waiting.json`` if events wait in trouble.

        :param report: report of the run; the earlier waits of its events are added.
        """
        journal_url = services.config.journal_url
        self._write_waits(report, services.store, journal_url)
        url = f"{journal_url}{JournalName.PERFORMANCE}"
        try:
            services.store.write_json(url, report.performance())
            report.performance_written = services.store.now()
        except GOOGLE_ERRORS as error:
            services.recorder(report).error(
                f"{url!r} cannot be written, so BqTail's balancer goes by old figures: {in_words(error)}"
            )

    def _write_waits(self, report: Report, store: TaskStore, journal_url: str) -> None:
        url = _waits_url(journal_url)
        troubled = {name: wait for name, wait in report.waits.items() if wait.reason in NEEDS_ATTENTION}
        if not troubled and not self._has_written_waits:
            return
        try:
            if self._waited is None:
                self._waited = read_waits(store, journal_url)
            report.earlier_waits = self._waited = {
                name: each for name, each in self._waited.items() if name in troubled
            }
            oldest = sorted(troubled.values(), key=lambda each: each.since)[:MAX_NAMED]
            store.write_json(url, waits_to_dict(each.continued_from(self._waited.get(each.name)) for each in oldest))
            self._has_written_waits = bool(troubled)
        except GOOGLE_ERRORS as error:
            log.warning("%r cannot be read or written, so repeated waits are not counted: %s", url, in_words(error))


def read_waits(store: TaskStore, journal_url: str) -> dict[str, Wait]:
    """Read ``waiting.json``: the waits that earlier processes have counted, by name; none if it is missing."""
    url = _waits_url(journal_url)
    try:
        return waits_from_dict(documents.parse(store.read(url, MAX_WAITS_BYTES)))
    except (NotFound, ValueError, RecursionError) as error:
        log.debug("No earlier waits in %r: %s", url, error)
        return {}


def earlier_waits(store: TaskStore, journal_url: str) -> tuple[dict[str, Wait], list[str]]:
    """Read what :func:`read_waits` reads, for people.

    :returns: the waits; and a sentence if they cannot be read: what was refused is then not known.
    """
    try:
        return read_waits(store, journal_url), []
    except GOOGLE_ERRORS as error:
        url = _waits_url(journal_url)
        return {}, [f"{url!r} cannot be read, so what earlier runs were refused is not known: {in_words(error)}"]


def limits_reached(store: TaskStore, config: DispatchConfig) -> tuple[set[LimitKey], list[str]]:
    """Read from ``performance.json`` which limits the last cycle of a dispatcher has found reached.

    :returns: the limits, none if nobody has dispatched lately; and a sentence if that cannot be read.
    """
    url = f"{config.journal_url}{JournalName.PERFORMANCE}"
    try:
        age = store.age(url) if is_limited(config) else None
        if age is None or age > _RECENT:
            return set(), []
        projects = documents.parse(store.read(url, MAX_PERFORMANCE_BYTES))
        return {
            (project, lane.limit)
            for project, gauges in projects.items()
            for lane, number in by_lane(documents.numbers(gauges.get("Throttled", {}))).items()
            if number
        }, []
    except (*GOOGLE_ERRORS, ValueError, AttributeError, RecursionError) as error:
        return set(), [f"{url!r} cannot be read, so which limits are reached is not known: {in_words(error)}"]


def _waits_url(journal_url: str) -> str:
    return f"{journal_url}{JournalName.WAITS}"
