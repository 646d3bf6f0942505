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

from bqdispatch_provider.intents import Intent
from bqdispatch_provider.jobs import REFUSED, JobBoard
from bqdispatch_provider.late import Evidence
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
        traces = [trace for trace in listing.traces if trace.job in jobs]
        seen = self._seen(wanted, replace(listing, traces=tuple(traces)), firings, found, limited=limited)
        closed: set[Key] = set()
        for key, firing in wanted.items():
            known = firings.get(key[0], {}).get(key[1])
            if self._is_closed(firing, firings, key in seen, listing, found):
                closed.add(key)
            elif known is None and listing.now - firing.since > CLAIM_TIMEOUT:
                # Nobody has claimed it. Whoever wrote it down might wake up, as long as the window is there.
                if key not in present:
                    closed.add(key)
            elif known is not None and known.fired is None and listing.now - known.claimed > CLAIM_TIMEOUT:
                if key not in present:
                    found.abandoned.append(firing)
                found.open.append(firing)
            elif key not in seen:
                found.open.append(firing)
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

    def _is_closed(  # noqa: PLR0911  (one per case)
        self, firing: OpenFiring, firings: Mapping[str, Firings], seen: bool, listing: Listing, found: Opened
    ) -> bool:
        """Whether nothing more is to be waited for."""
        known = firings.get(firing.window, {}).get(firing.generation)
        if known is None:
            return False
        if seen:
            if known.fired is None and listing.now - known.claimed > CLAIM_TIMEOUT:
                found.fired.append(firing.key)
            return known.fired is not None
        if known.fired is None or listing.now - known.fired <= _SLOW:
            return False
        try:
            fate = self._evidence.fate(firing.key, known, listing)
        except (*STORAGE_ERRORS, *REFUSED) as error:
            log.warning("What became of window %r cannot be told: %s", firing.window, in_words(error))
            return False
        if fate.gone is not None:
            found.gone.append((firing.key, fate.gone))
        if fate.waits:
            return False
        if not fate.loaded and not fate.unknown and not known.gone.keys() - {0}:
            self._dropped(firing, known, listing, firings, found)
            return known.aside or firing.key not in {(each.name, each.generation) for each in found.dropped}
        return True

    def _dropped(
        self, firing: OpenFiring, known: Firing, listing: Listing, firings: Mapping[str, Firings], found: Opened
    ) -> None:
        """Name a firing of which BqTail has loaded nothing, unless another one of that window takes its place."""
        others = firings.get(firing.window, {}).keys() - {firing.generation}
        back = any(window.name.name == firing.window for window in listing.windows if window.key != firing.key)
        if known.aside or others or back or known.fired is None or not self._evidence.source_is_there(firing.key):
            return
        reason = (
            f"it was fired at {known.fired:%Y-%m-%d %H:%M} UTC, and BqTail has submitted no load (it drops a "
            "window whose rule it does not know)"
        )
        found.dropped.append(
            Quarantine(firing.window, firing.generation, known.fired, reason, undecided=True, dropped=True)
        )

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
        loads = {key: self._load(firing, firings, listing.now) for key, firing in wanted.items()}
        visible = loads_seen(listing.traces, ())
        seen = {key for key, load in loads.items() if load and _known_as(key, load) in visible}
        asked = {key: load for key, load in loads.items() if load is not None and key not in seen}
        old = any(listing.now - wanted[key].since > _SLOW for key in asked)
        if not asked or not (limited or (old and time.monotonic() - self._listed >= _LIST_EVERY_S)):
            return seen
        self._listed = time.monotonic()
        since: dict[str, datetime] = {}
        for key, load in asked.items():
            since[load.project] = min(wanted[key].since, since.get(load.project, listing.now))
        for project, at in since.items():
            try:
                visible |= loads_seen((), self._board.recent(project, at - MIN_AGE))
            except REFUSED as error:
                found.errors[project] = in_words(error)
        return {key for key, load in loads.items() if load and _known_as(key, load) in visible}

    def _load(self, firing: OpenFiring, firings: Mapping[str, Firings], now: datetime) -> Load | None:
        """Where a firing's load runs; ``None`` where that is not worth a request yet, or cannot be told."""
        if firing.event_id:
            return Load(firing.project, firing.event_id)
        claimed = firings.get(firing.window, {}).get(firing.generation)
        if claimed is None or now - firing.since <= _SLOW:
            return None
        bodies, _ = self._evidence.bodies([firing.key], claimed=True)
        body = bodies.get(firing.key)
        return body.load if body and body.load.event_id else None


def _known_as(key: Key, load: Load) -> tuple[str, str]:
    return (as_job_id(WindowName.parse(key[0]).dest), load.event_id)
