"""Open firings: windows that were fired, or were to be, until their load is seen.

They count at the limit of the project in which the load runs, for BqTail may be about to submit it. A firing is open
until its own load is seen and the ledger says that it was fired, or until nothing of it has been on its way for ten
minutes: then BqTail has dropped it, which is named (docs/protocol.md, "The ledger of fired windows").
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from bqdispatch_provider.intents import Intent
from bqdispatch_provider.jobs import REFUSED, JobBoard
from bqdispatch_provider.late import Body, Evidence
from bqdispatch_provider.model import Firing, Firings, JobKey, Key, Listing, Load, OpenFiring, Quarantine
from bqdispatch_provider.names import WindowName, as_job_id, in_words
from bqdispatch_provider.planning import CLAIM_TIMEOUT, MIN_AGE, loads_seen
from bqdispatch_provider.storage import STORAGE_ERRORS

log = logging.getLogger(__name__)

KEEP_INTENT = timedelta(minutes=1)
"""Where a limit is set, an intent of windows is kept so long: whoever looked at the jobs before still finds it."""

_SLOW = timedelta(seconds=30)
"""A load that is not seen so long after is looked for more closely."""

_LIST_EVERY_S = 30.0
"""How often jobs are listed to see whether loads have come, where no limit asks for it."""


@dataclass
class Opened:
    """What is known of open firings.

    :param open: those that count at a limit.
    :param abandoned: windows that somebody claimed and did not fire, and that are gone.
    :param dropped: firings of which no load has come: they are set aside.
    :param fired: windows whose loads prove that they were fired, although the ledger does not say so.
    :param gone: firings of which it was seen first now that nothing is on its way, and the step of the last load.
    :param spent: intents of which no firing is open.
    :param errors: of projects whose jobs could not be listed.
    """

    open: list[OpenFiring] = field(default_factory=list)
    abandoned: list[OpenFiring] = field(default_factory=list)
    dropped: list[Quarantine] = field(default_factory=list)
    fired: list[Key] = field(default_factory=list)
    gone: list[tuple[Key, int]] = field(default_factory=list)
    spent: list[Key] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)


class _State(Enum):
    """How a firing stands: it counts at a limit, or is only written down still, or nobody has to know of it."""

    OPEN = 1
    OVER = 2
    CLOSED = 3


class OpenFirings:
    """The open firings of one task folder, as one dispatcher sees them.

    :param board: how jobs stand.
    :param evidence: what can be found out of fired windows.
    """

    def __init__(self, board: JobBoard, evidence: Evidence) -> None:
        self._board = board
        self._evidence = evidence
        self._listed = -_LIST_EVERY_S

    def look(
        self,
        intents: Iterable[Intent],
        listing: Listing,
        firings: Mapping[str, Firings],
        jobs: Collection[JobKey],
        *,
        limited: bool,
    ) -> Opened:
        """Find out how open firings stand.

        :param intents: that tell of them.
        :param listing: of the task folder.
        :param firings: what the ledger says of their windows, by name.
        :param jobs: those of traces that were found: a trace alone does not prove that its job was submitted.
        :param limited: whether they count at a limit, so that their loads have to be looked for each time.
        """
        found = Opened()
        intents = list(intents)
        wanted = {firing.key: firing for intent in intents for firing in intent.firings}
        present = {window.key for window in listing.windows}
        traces = [trace for trace in listing.traces if trace.job in jobs] if wanted else []
        seen = self._seen(wanted, replace(listing, traces=tuple(traces)), firings, found, limited=limited)
        closed: set[Key] = set()
        for key, firing in wanted.items():
            state = self._state(firing, firings, key in seen, listing, found)
            known = firings.get(key[0], {}).get(key[1])
            old = listing.now - (known.claimed if known else firing.since) > CLAIM_TIMEOUT
            if state is _State.OPEN and known is None and old:
                # Nobody has claimed it. Whoever wrote it down might wake up, as long as the window is there.
                state = _State.OVER if key in present else _State.CLOSED
            if state is _State.CLOSED:
                closed.add(key)
            elif state is _State.OPEN and key not in seen:
                found.open.append(firing)
                if known is not None and known.fired is None and old and key not in present:
                    found.abandoned.append(firing)
        found.open = [self._placed(firing, firings) if limited else firing for firing in found.open]
        for intent in intents:
            old = listing.now - intent.object.created > KEEP_INTENT
            if old and not intent.object.held and {firing.key for firing in intent.firings} <= closed:
                found.spent.append((intent.object.name, intent.object.generation))
        known_keys = {firing.key for firing in found.abandoned}
        for name, each in firings.items():
            for generation, known in each.items():
                key = (name, generation)
                old = known.fired is None and listing.now - known.claimed > CLAIM_TIMEOUT
                if old and key not in present and key not in known_keys and key not in found.fired:
                    found.abandoned.append(OpenFiring(name, generation, "", "", many=True, since=known.claimed))
        return found

    def _placed(self, firing: OpenFiring, firings: Mapping[str, Firings]) -> OpenFiring:
        """A firing with the project in which its load runs, which nobody had to know when it was written down."""
        if firing.project:
            return firing
        bodies: Mapping[Key, Body] = {}
        if firing.generation in firings.get(firing.window, {}):
            bodies, _ = self._evidence.bodies([firing.key], claimed=True)
        body = bodies.get(firing.key)
        return replace(firing, project=body.load.project if body else self._evidence.project)

    def _state(  # noqa: PLR0911  (one per case)
        self, firing: OpenFiring, firings: Mapping[str, Firings], seen: bool, listing: Listing, found: Opened
    ) -> _State:
        """What is to be waited for."""
        known = firings.get(firing.window, {}).get(firing.generation)
        if known is None:
            return _State.OPEN
        if seen:
            if known.fired is None and listing.now - known.claimed > CLAIM_TIMEOUT:
                found.fired.append(firing.key)
            return _State.OPEN if known.fired is None else _State.CLOSED
        if known.fired is None or listing.now - known.fired <= _SLOW:
            return _State.OPEN
        try:
            fate = self._evidence.fate(firing.key, known, listing)
            if fate.gone is not None:
                found.gone.append((firing.key, fate.gone))
            if fate.waits:
                return _State.OPEN
            if known.aside or fate.loaded or fate.unknown or known.gone.keys() != {0}:
                return _State.CLOSED
            return self._dropped(firing, known, listing, firings, found)
        except (*STORAGE_ERRORS, *REFUSED) as error:
            log.warning("What became of window %r cannot be told: %s", firing.window, in_words(error))
            return _State.OPEN

    def _dropped(
        self, firing: OpenFiring, known: Firing, listing: Listing, firings: Mapping[str, Firings], found: Opened
    ) -> _State:
        """Name a firing of which BqTail has loaded nothing, unless another one of that window has loaded its file."""
        if any(window.object.name == firing.window and window.key != firing.key for window in listing.windows):
            return _State.OVER  # that one is judged first, and may load it
        others = [
            self._evidence.fate((firing.window, generation), other, listing)
            for generation, other in firings[firing.window].items()
            if generation != firing.generation
        ]
        if any(fate.waits for fate in others):
            return _State.OVER
        source = self._evidence.source(firing.key)
        if any(source in fate.loaded for fate in others) or not self._evidence.source_is_there(firing.key):
            return _State.CLOSED
        fired = known.fired or known.claimed
        reason = (
            f"it was fired at {fired:%Y-%m-%d %H:%M} UTC, and BqTail has submitted no load (it drops a window whose "
            "rule it does not know)"
        )
        found.dropped.append(Quarantine(firing.window, firing.generation, fired, reason, undecided=True, dropped=True))
        return _State.OVER

    def _seen(
        self,
        wanted: Mapping[Key, OpenFiring],
        listing: Listing,
        firings: Mapping[str, Firings],
        found: Opened,
        *,
        limited: bool,
    ) -> set[Key]:
        """The firings whose loads can be seen: by their traces, else in the list of jobs."""
        loads = self._loads(wanted, firings, listing.now, limited=limited)
        events = {as_job_id(load.event_id) for load in loads.values() if load}
        visible = loads_seen(listing.traces, (), events)
        seen = {key for key, load in loads.items() if load and _known_as(key, load) in visible}
        asked = {key: load for key, load in loads.items() if load is not None and key not in seen}
        old = any(listing.now - wanted[key].since > _SLOW for key in asked)
        if not asked or not (limited or (old and time.monotonic() - self._listed >= _LIST_EVERY_S)):
            return seen
        self._listed = time.monotonic()
        since: dict[str, datetime] = {}
        for key, load in asked.items():
            since[load.project] = min(wanted[key].since, since.get(load.project, listing.now))
        recent, refused = self._board.recent({project: at - MIN_AGE for project, at in since.items()})
        visible |= loads_seen((), recent, events)
        found.errors |= refused
        return {key for key, load in loads.items() if load and _known_as(key, load) in visible}

    def _loads(
        self, wanted: Mapping[Key, OpenFiring], firings: Mapping[str, Firings], now: datetime, *, limited: bool
    ) -> dict[Key, Load | None]:
        """Where the loads of firings run; ``None`` where that is not worth a request yet, or cannot be told."""
        unread = [
            key
            for key, firing in wanted.items()
            if not firing.event_id and (limited or now - firing.since > _SLOW) and key[1] in firings.get(key[0], {})
        ]
        bodies, _ = self._evidence.bodies(unread, claimed=True)
        said = {key: body.load for key, body in bodies.items() if body.load.event_id}
        return {
            key: Load(firing.project, firing.event_id) if firing.event_id else said.get(key)
            for key, firing in wanted.items()
        }


def _known_as(key: Key, load: Load) -> tuple[str, str]:
    return (as_job_id(WindowName.parse(key[0]).dest), as_job_id(load.event_id))
