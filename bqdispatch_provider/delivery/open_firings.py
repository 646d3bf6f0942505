"""Open firings: windows that were fired, or are about to be, and whose load is not visible yet.

They count at the limit of the project in which their load will run, since BqTail may submit it at any moment. A firing
stays in its intent until its own load is visible and the ledger says that it was fired, or until nothing more can come
of it. A load that was submitted after the task folder was listed counts by its firing: that list lacks its trace.
Without any load, and with nothing of it on its way for ten minutes, BqTail has dropped it; then it is reported
(docs/protocol.md, "The ledger of fired windows").
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum

from bqdispatch_provider.core.listing import Listing
from bqdispatch_provider.core.model import JobKey, Key
from bqdispatch_provider.core.plans import Quarantine
from bqdispatch_provider.core.windows import MAX_FUNCTION_RUNTIME, Firing, Firings, OpenFiring
from bqdispatch_provider.delivery.evidence import Evidence, gone_steps, loaded_files
from bqdispatch_provider.delivery.firings_found import FiringsFound, UnconsumedFirings
from bqdispatch_provider.delivery.intent_objects import KEEP_COMPLETED_S, Intent, firings_left
from bqdispatch_provider.delivery.visible_loads import VisibleLoads
from bqdispatch_provider.delivery.window_body import WindowBody
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.job_search import PARALLEL_CALLS
from bqdispatch_provider.gcp.jobs import JobBoard
from bqdispatch_provider.gcp.threads import map_in_threads
from bqdispatch_provider.names import in_words

log = logging.getLogger(__name__)

_KEEP_INTENT = timedelta(minutes=1)
"""Least age at which an intent of windows is deleted if they do not count at a limit."""

_KEEP_COUNTED_INTENT = timedelta(seconds=KEEP_COMPLETED_S)
"""Least age at which it is deleted if they do: whoever has looked before it was written, and goes on from that look,
must find it."""

MAX_LOOKED_UP = 50
"""Late firings whose loads are looked up in a look; the others stay open, and wait for the next one."""


class _State(Enum):
    """The state of an announced firing."""

    OPEN = 1
    """It stays in its intent, and counts at a limit unless its load counts there."""

    KEPT = 2
    """It does not count any more, but stays in its intent."""

    CLOSED = 3
    """Its intent may be deleted."""


class OpenFirings:
    """The open firings of one task folder.

    :param board: looks up jobs.
    :param evidence: what became of fired windows.
    """

    def __init__(self, board: JobBoard, evidence: Evidence) -> None:
        self._evidence = evidence
        self._loads = VisibleLoads(board, evidence)
        self._closed: set[Key] = set()
        """Firings that the last look has closed. What became of them is not asked for again."""

    def look(
        self,
        intents: Iterable[Intent],
        listing: Listing,
        firings: Mapping[str, Firings],
        jobs: Collection[JobKey],
        *,
        limited: bool,
        unreadable: Collection[str] = (),
    ) -> FiringsFound:
        """Find out how announced firings stand.

        :param intents: those that hold firings.
        :param listing: of the task folder.
        :param firings: what the ledger says, by the name of the window.
        :param jobs: jobs that BigQuery has shown to exist, of those that traces name. A trace alone proves no job,
            since BqTail writes it before it submits the job.
        :param limited: True if firings count at a limit, so that their loads must be looked up each time.
        :param unreadable: names of windows of which the ledger cannot be read; by default all could be read.
        """
        intents = list(intents)
        announced = {firing.key: firing for intent in intents for firing in intent.firings}
        unconsumed = UnconsumedFirings(self._evidence, announced, listing)
        found = FiringsFound(listing, firings, limited, unconsumed, set(unreadable))
        present = {window.key for window in listing.windows}
        visible = self._loads.find(announced, jobs, found)
        late = self._look_up_late(announced, announced.keys() - visible, found)
        counted = visible - found.unlisted
        closed: set[Key] = set()
        for key, firing in announced.items():
            state = late.get(key) or self._state(firing, key in visible, found)
            entry = found.entry(key)
            timed_out = found.has_timed_out(entry.claimed if entry else firing.since)
            if state is _State.OPEN and entry is None and timed_out and firing.window not in found.unreadable:
                # It was not claimed. Its dispatcher may still wake up, as long as the window exists.
                state = _State.KEPT if key in present else _State.CLOSED
            if state is _State.CLOSED:
                closed.add(key)
            elif state is _State.OPEN and key not in counted:
                found.open.append(firing)
                if found.may_be_taken_over(key) and key not in present and key not in visible:
                    found.abandoned.append(firing)
        if limited:
            found.open = [self._with_project(firing, found) for firing in found.open]
        min_age = _KEEP_COUNTED_INTENT if limited else _KEEP_INTENT
        found.completed_intents = list(_completed(intents, closed, listing.now, min_age))
        self._find_unannounced(present, found)
        self._closed = closed
        return found

    def _look_up_late(
        self, announced: Mapping[Key, OpenFiring], unseen: Set[Key], found: FiringsFound
    ) -> dict[Key, _State]:
        """Read the ledger again about late firings, and return how these stand.

        Only some are looked up, side by side, others each time. Open without being asked for is what BqTail has not
        consumed, what it may be about to load for ten minutes after that, and what has to wait for its turn.

        :param unseen: firings whose load is not visible.
        """
        latest, not_read = self._evidence.ledger.latest(found.late(unseen))
        found.ledger = {**found.ledger, **latest}
        found.unreadable |= not_read
        late = found.late(unseen)
        states = {key: _State.CLOSED if key in self._closed else _State.OPEN for key in late}
        left = [key for key in late if key not in self._closed and not _may_be_loaded(found.entry(key), found)]
        known = [key for key in left if self._evidence.is_over(key)]
        unknown = [key for key in left if not self._evidence.is_over(key)]
        if unknown:
            unknown = [key for key in unknown if key not in found.unconsumed.keys]
        is_consumed = bool(unknown) and found.unconsumed.is_known
        asked = [*known, *random.sample(unknown, min(len(unknown), MAX_LOOKED_UP))]

        def look_up(key: Key) -> _State:
            return self._late_state(announced[key], found, is_consumed=is_consumed)

        return states | dict(zip(asked, map_in_threads(look_up, asked, PARALLEL_CALLS), strict=True))

    @staticmethod
    def _find_unannounced(present: Collection[Key], found: FiringsFound) -> None:
        """Find abandoned claims that no intent tells of."""
        known = {*present, *found.fired, *(firing.key for firing in found.abandoned)}
        for name, entries in found.ledger.items():
            for generation, entry in entries.items():
                if entry.fired is None and found.has_timed_out(entry.claimed) and (name, generation) not in known:
                    # Only windows that may gather many folders are deleted before they are fired.
                    found.abandoned.append(OpenFiring(name, generation, "", "", many_folders=True, since=entry.claimed))

    def _with_project(self, firing: OpenFiring, found: FiringsFound) -> OpenFiring:
        """Add the project of its load to a firing that was announced while there was no limit."""
        if firing.project:
            return firing
        body = self._evidence.body(firing.key, claimed=True) if found.entry(firing.key) else None
        return replace(firing, project=body.load.project if isinstance(body, WindowBody) else self._evidence.project)

    @staticmethod
    def _state(firing: OpenFiring, visible: bool, found: FiringsFound) -> _State:
        """Return how a firing stands that is not late.

        :param visible: True if its load is visible.
        """
        entry = found.entry(firing.key)
        if not visible or entry is None or firing.window in found.unreadable:
            return _State.OPEN
        if found.may_be_taken_over(firing.key):
            found.fired.append(firing.key)
        return _State.OPEN if entry.fired is None or firing.key in found.unlisted else _State.CLOSED

    def _late_state(self, firing: OpenFiring, found: FiringsFound, *, is_consumed: bool) -> _State:
        """Return how a late firing stands, by what became of it.

        :param is_consumed: True if BqTail is known to have consumed it.
        """
        entry = found.ledger[firing.window][firing.generation]
        try:
            evidence = self._evidence.of_firing(firing.key, entry, found.listing, is_consumed=is_consumed)
            found.gone += gone_steps({firing.key: evidence})
            if evidence.waits_for:
                return _State.OPEN
            had_load = any(step > 0 for step in entry.gone_at)  # it failed, and BqTail itself reports that
            if entry.aside or evidence.loaded or evidence.unknown or had_load:
                return _State.CLOSED
            return self._without_load(firing, entry, found)
        except GOOGLE_ERRORS as error:
            log.warning("The loads of window %r cannot be looked up: %s", firing.window, in_words(error))
            return _State.OPEN

    def _without_load(self, firing: OpenFiring, entry: Firing, found: FiringsFound) -> _State:
        """Report that BqTail dropped a firing, unless another firing has loaded the file that made the window."""
        if found.generations.get(firing.window, firing.generation) != firing.generation:
            return _State.KEPT  # the window has returned; it is judged first, and may load the file
        firings = {number: each for number, each in found.ledger[firing.window].items() if number != firing.generation}
        others = self._evidence.of_window(firing.window, firings, found.listing).values()
        if any(evidence.waits_for for evidence in others):
            return _State.KEPT
        source, evidence = self._evidence.source(firing.key), self._evidence
        if source in loaded_files(others) or not evidence.source_exists(firing.key):
            return _State.CLOSED
        if evidence.is_quarantined(firing.key):
            return _State.CLOSED
        fired = entry.fired or entry.claimed
        reason = (
            f"it was fired at {fired:%Y-%m-%d %H:%M} UTC, and BqTail has submitted no load (it drops a window whose "
            "rule it does not know)"
        )
        found.dropped.append(Quarantine(firing.window, firing.generation, fired, reason, undecided=True, claimed=True))
        return _State.KEPT


def _may_be_loaded(entry: Firing | None, found: FiringsFound) -> bool:
    """Return whether BqTail has consumed a firing so recently that a function may be about to load it."""
    return entry is not None and any(found.listing.now - at <= MAX_FUNCTION_RUNTIME for at in entry.gone_at.values())


def _completed(
    intents: Collection[Intent], closed: Collection[Key], now: datetime, min_age: timedelta
) -> Iterator[Key]:
    """Yield the intents that nobody needs any more.

    :param closed: the firings that are closed.
    :param min_age: age that they must have passed.
    """
    left = firings_left(intents)
    for intent in intents:
        name, old = intent.object.name, now - intent.object.created > min_age
        needed = {firing.key for firing in intent.firings if left.get(firing.key, name) == name}
        if old and not intent.object.protected_by and needed.issubset(closed):
            yield intent.object.key
