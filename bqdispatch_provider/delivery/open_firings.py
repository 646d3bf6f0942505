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
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from functools import cached_property

from bqdispatch_provider.core.events import Load
from bqdispatch_provider.core.listing import Listing
from bqdispatch_provider.core.model import JobKey, Key
from bqdispatch_provider.core.plans import Quarantine
from bqdispatch_provider.core.traces import MIN_AGE
from bqdispatch_provider.core.windows import (
    CLAIM_TIMEOUT,
    LOAD_IS_LATE,
    MAX_FUNCTION_RUNTIME,
    Firing,
    Firings,
    OpenFiring,
    unlisted_jobs,
    visible_loads,
)
from bqdispatch_provider.delivery.evidence import Evidence, gone_steps, loaded_files
from bqdispatch_provider.delivery.intent_objects import Intent, firings_left
from bqdispatch_provider.delivery.window_body import WindowBody
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.job_search import PARALLEL_CALLS
from bqdispatch_provider.gcp.jobs import JobBoard
from bqdispatch_provider.gcp.threads import map_in_threads
from bqdispatch_provider.names import WindowName, as_job_id, in_words

log = logging.getLogger(__name__)

_KEEP_INTENT = timedelta(minutes=1)
"""Least time that an intent of windows stays: a dispatcher that looked at the jobs before must still find it."""

_LIST_INTERVAL_S = 30.0
"""Seconds between two lists of jobs if no limit needs them."""

MAX_LOOKED_UP = 50
"""Late firings whose loads are looked up in a look; the others stay open, and wait for the next one."""


@dataclass
class FiringsFound:
    """One look at open firings: what it is based on, and what it has found.

    :param listing: the listing of the task folder.
    :param ledger: what the ledger says, by the name of the window.
    :param limited: True if firings count at a limit, so that their loads must be looked up each time.
    :param unreadable: names of windows of which the ledger cannot be read: whatever it may say, their firings count.
    :param not_taken: announced firings that BqTail has not taken; ``None`` if that was not listed, or cannot be.
    :param unlisted: firings whose load is visible, and whose trace may have been written after the listing.
    :param open: firings that count at a limit.
    :param abandoned: windows that were claimed and not fired, and are gone.
    :param dropped: firings without a load, to be marked as undecided.
    :param fired: windows whose loads prove that they were fired, though the ledger does not say so.
    :param gone: firings of which nothing is on its way any more, each with the step of its last load, to be recorded.
    :param completed_intents: intents, at least a minute old, whose firings are all closed or left in another intent.
    :param errors: by project, why its jobs cannot be listed.
    """

    listing: Listing
    ledger: Mapping[str, Firings]
    limited: bool
    unreadable: set[str] = field(default_factory=set)
    not_taken: set[Key] | None = None
    unlisted: set[Key] = field(default_factory=set)
    open: list[OpenFiring] = field(default_factory=list)
    abandoned: list[OpenFiring] = field(default_factory=list)
    dropped: list[Quarantine] = field(default_factory=list)
    fired: list[Key] = field(default_factory=list)
    gone: list[tuple[Key, int]] = field(default_factory=list)
    completed_intents: list[Key] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    unproven: dict[str, str] = field(default_factory=dict)
    """By the names of windows whose claims have timed out, why their loads cannot be looked for: nobody may take such a
    claim over."""

    @cached_property
    def generations(self) -> dict[str, int]:
        """The generations of the windows in the task folder, by name."""
        return {window.object.name: window.object.generation for window in self.listing.windows}

    def entry(self, key: Key) -> Firing | None:
        """Return what the ledger says of a firing; ``None`` if it was not claimed.

        :param key: name and generation of the window.
        """
        return self.ledger.get(key[0], {}).get(key[1])

    def has_timed_out(self, since: datetime) -> bool:
        """Return whether a dispatcher that has claimed or announced a firing at a time counts as gone.

        :param since: time of the claim or the announcement, by the server's clock.
        """
        return self.listing.now - since > CLAIM_TIMEOUT

    def may_be_taken_over(self, key: Key) -> bool:
        """Return whether a window was claimed and not fired by a dispatcher that counts as gone.

        :param key: name and generation of the window.
        """
        entry = self.entry(key)
        return entry is not None and entry.fired is None and self.has_timed_out(entry.claimed)


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
        self._board = board
        self._evidence = evidence
        self._listed_at = -_LIST_INTERVAL_S
        self._sought: set[Key] = set()
        """Firings that BqTail has not taken for long, and whose loads were looked for once."""

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
        found = FiringsFound(listing, firings, limited, set(unreadable))
        intents = list(intents)
        announced = {firing.key: firing for intent in intents for firing in intent.firings}
        present = {window.key for window in listing.windows}
        visible = self._visible(announced, jobs, found)
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
        found.completed_intents = list(_completed(intents, closed, listing.now))
        self._find_unannounced(present, found)
        self._closed = closed
        return found

    @staticmethod
    def _late(keys: Iterable[Key], found: FiringsFound, after: timedelta = LOAD_IS_LATE) -> list[Key]:
        """Return the firings whose load should be visible by now: those that were fired longer ago than a time."""
        entries = {key: found.entry(key) for key in keys if key[0] not in found.unreadable}
        now = found.listing.now
        return [key for key, entry in entries.items() if entry and entry.fired and now - entry.fired > after]

    def _look_up_late(
        self, announced: Mapping[Key, OpenFiring], unseen: Set[Key], found: FiringsFound
    ) -> dict[Key, _State]:
        """Read the ledger again about late firings, and return how these stand.

        Only some are looked up, side by side, others each time. Open without being asked for is what BqTail has not
        taken, what it may be about to load for ten minutes after that, and what has to wait for its turn.

        :param unseen: firings whose load is not visible.
        """
        latest, not_read = self._evidence.ledger.latest(self._late(unseen, found))
        found.ledger = {**found.ledger, **latest}
        found.unreadable |= not_read
        late = self._late(unseen, found)
        states = {key: _State.CLOSED if key in self._closed else _State.OPEN for key in late}
        left = [key for key in late if key not in self._closed and not _may_be_loaded(found.entry(key), found)]
        known = [key for key in left if self._evidence.is_over(key)]
        unknown = [key for key in left if not self._evidence.is_over(key)]
        if unknown and found.not_taken is None:
            found.not_taken = self._not_taken(announced, found.listing)
        is_taken = found.not_taken is not None
        unknown = [key for key in unknown if key not in (found.not_taken or ())]
        asked = [*known, *random.sample(unknown, min(len(unknown), MAX_LOOKED_UP))]

        def look_up(key: Key) -> _State:
            return self._late_state(announced[key], found, is_taken=is_taken)

        return states | dict(zip(asked, map_in_threads(look_up, asked, PARALLEL_CALLS), strict=True))

    def _not_taken(self, announced: Collection[Key], listing: Listing) -> set[Key] | None:
        """Return which announced firings BqTail has not taken; ``None`` if that cannot be listed."""
        try:
            return self._evidence.not_taken(announced, listing)
        except GOOGLE_ERRORS as error:
            log.warning("What BqTail has not taken cannot be listed, so it is looked up: %s", in_words(error))
            return None

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

    def _late_state(self, firing: OpenFiring, found: FiringsFound, *, is_taken: bool) -> _State:
        """Return how a late firing stands, by what became of it.

        :param is_taken: True if BqTail is known to have taken it.
        """
        entry = found.ledger[firing.window][firing.generation]
        try:
            evidence = self._evidence.of_firing(firing.key, entry, found.listing, is_taken=is_taken)
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

    def _visible(self, announced: Mapping[Key, OpenFiring], jobs: Collection[JobKey], found: FiringsFound) -> set[Key]:
        """Return the firings whose load is visible: by its trace, if BigQuery has the job, or in the list of jobs."""
        loads = self._loads(announced, found)
        event_ids = {as_job_id(load.event_id) for load in loads.values()}
        traces = [trace for trace in found.listing.traces if trace.job in jobs] if announced else []
        seen = visible_loads(traces, (), event_ids)
        unseen = {key: load for key, load in loads.items() if _load_id(key, load) not in seen}
        late = any(found.listing.now - announced[key].since > LOAD_IS_LATE for key in unseen)
        is_time = time.monotonic() - self._listed_at >= _LIST_INTERVAL_S
        # Before a claim is taken over, its load is looked for: that would prove that the window was fired.
        timed_out = {key: load for key, load in unseen.items() if found.may_be_taken_over(key)}
        if unseen and (found.limited or (late and is_time) or timed_out):
            self._listed_at = time.monotonic()
            # What BqTail never takes has no load. It may lie there for days, in which there are ever more jobs.
            old = self._late(unseen, found, MAX_FUNCTION_RUNTIME)
            found.not_taken = self._not_taken(announced, found.listing) if old else None
            stuck = (found.not_taken or set()).intersection(old)
            begun: dict[Key, datetime] = {}
            for key in unseen:
                entry = found.entry(key)
                begun[key] = min(announced[key].since, entry.claimed if entry else found.listing.now)
            recent, errors, unproven = self._board.recent(_since(begun, unseen, unseen.keys() - stuck))
            if unsought := stuck - self._sought:  # unless BqTail has taken it, and could not delete it
                fired = (entry.fired for key in unsought if (entry := found.entry(key)) and entry.fired)
                until = max(fired) + MAX_FUNCTION_RUNTIME
                of_stuck, _, not_sought = self._board.recent(_since(begun, unseen, unsought), until)
                recent |= of_stuck
                self._sought |= {key for key in unsought if unseen[key].project not in not_sought}
            seen |= visible_loads((), recent, event_ids)
            unlisted = visible_loads((), unlisted_jobs(recent, found.listing), event_ids)
            found.unlisted = {key for key, load in unseen.items() if _load_id(key, load) in unlisted}
            found.errors |= errors
            for (window, _), load in timed_out.items():
                if load.project in unproven:
                    found.unproven[window] = f"its load cannot be looked for: {unproven[load.project]}"
        return {key for key, load in loads.items() if _load_id(key, load) in seen}

    def _loads(self, announced: Mapping[Key, OpenFiring], found: FiringsFound) -> dict[Key, Load]:
        """Return where the loads of firings run, unless that is unknown, or not worth a request yet."""
        known = {key: Load(firing.project, firing.event_id) for key, firing in announced.items() if firing.event_id}
        unread = [
            key
            for key, firing in announced.items()
            if key not in known
            and (found.limited or found.listing.now - firing.since > LOAD_IS_LATE or found.may_be_taken_over(key))
            and found.entry(key)
        ]
        bodies, refused = self._evidence.bodies(unread, claimed=True)
        for key, reason in refused.items():
            if found.may_be_taken_over(key):
                found.unproven[key[0]] = f"its load cannot be looked for: {reason}"
        return {**known, **{key: body.load for key, body in bodies.items() if body.load.event_id}}


def _may_be_loaded(entry: Firing | None, found: FiringsFound) -> bool:
    """Return whether BqTail has taken a firing so recently that a function may be about to load it."""
    return entry is not None and any(found.listing.now - at <= MAX_FUNCTION_RUNTIME for at in entry.gone_at.values())


def _completed(intents: Collection[Intent], closed: Collection[Key], now: datetime) -> Iterator[Key]:
    """Yield the intents that nobody needs any more.

    :param closed: the firings that are closed.
    """
    left = firings_left(intents)
    for intent in intents:
        name, old = intent.object.name, now - intent.object.created > _KEEP_INTENT
        needed = {firing.key for firing in intent.firings if left.get(firing.key, name) == name}
        if old and not intent.object.protected_by and needed.issubset(closed):
            yield intent.object.key


def _since(begun: Mapping[Key, datetime], loads: Mapping[Key, Load], keys: Iterable[Key]) -> dict[str, datetime]:
    """Return from when on the jobs of each project have to be listed, to find the loads of some firings."""
    since: dict[str, datetime] = {}
    for key in keys:
        project, at = loads[key].project, begun[key] - MIN_AGE
        since[project] = min(at, since.get(project, at))
    return since


def _load_id(key: Key, load: Load) -> tuple[str, str]:
    """Return destination and event of a load as its job ID has them."""
    return (as_job_id(WindowName.parse(key[0]).dest), as_job_id(load.event_id))
