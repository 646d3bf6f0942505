"""A plan while it is made: first every object is counted, then the limits decide which events go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event, EventFilter
from bqdispatch_provider.core.limits import Slots
from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.model import Counts, Key, Lane, Outcome, Reason, no_counts
from bqdispatch_provider.core.plans import Quarantine, Snapshot
from bqdispatch_provider.core.targets import MAX_OBJECT_NAME_BYTES, length_problem, target_of
from bqdispatch_provider.core.waits import MIN_REPORTED_WAIT, Wait
from bqdispatch_provider.names import TraceName, WindowName

_MAX_REPLAY_TIME = timedelta(minutes=10)
"""An object is put back from quarantine within seconds, however often its calls are retried."""


class Item(NamedTuple):
    """A trace or a window that a plan decides on.

    :param path: path below the task folder.
    :param since: when it could have been dispatched first: a trace at its creation, a window at its end.
    :param project: project of the job, or of the window's destination.
    :param counter: the response document's counter.
    :param protected_by: what forbids its deletion; empty if nothing does.
    """

    name: TraceName | WindowName
    path: str
    since: datetime
    project: str
    counter: str
    protected_by: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An event that is dispatched if its limit has a slot left.

    :param project: project whose limit counts it.
    """

    item: Item
    event: Event
    lane: Lane
    project: str

    @property
    def order(self) -> tuple[datetime, str, int]:
        """A key that sorts the oldest first."""
        return (self.item.since, *self.event.key)


@dataclass
class Draft:
    """A plan while it is made.

    :param config: the limits, how long fired windows are kept, and how long a trace may wait for an unknown job.
    :param snapshot: what lies in the task folder, and how the jobs stand.
    :param now: the storage server's time.
    :param only: which events may be dispatched.
    :param all_waits: note every wait, however short.
    """

    config: DispatchConfig
    snapshot: Snapshot
    now: datetime
    only: EventFilter
    all_waits: bool = False
    slots: Slots = field(init=False)
    proven: frozenset[Key] = field(init=False)
    """Windows that are proven to be fired, which the ledger does not say yet."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    counts: Counts = field(default_factory=no_counts)
    not_found: Counter[str] = field(default_factory=Counter)
    candidates: list[Candidate] = field(default_factory=list)
    quarantines: list[Quarantine] = field(default_factory=list)
    fired: list[Key] = field(default_factory=list)
    stale: list[Key] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    awaited: int = 0
    late: list[Key] = field(default_factory=list)
    not_due: list[WindowName] = field(default_factory=list)
    due_in: list[timedelta] = field(default_factory=list)
    due_windows: list[tuple[Key, datetime]] = field(default_factory=list)
    events: dict[Lane, list[Event]] = field(default_factory=lambda: {lane: [] for lane in Lane})
    throttled: list[tuple[Lane, Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = Slots(self.config)
        self.proven = frozenset(self.snapshot.cleanup.fired)

    def wait(self, item: Item, reason: Reason, said: str = "") -> None:
        """Note why an item waits, once it has waited for a while.

        :param said: what a service said, or what is known about the item; empty by default, where the reason says all.
        """
        if self.all_waits or self.now - item.since > MIN_REPORTED_WAIT:
            self.waits.append(Wait(item.path, reason, item.since, said))

    def pend(self, item: Item, reason: Reason, said: str = "") -> None:
        """Leave an item pending."""
        self.outcomes[Outcome.PENDING] += 1
        self.counts[item.project]["Pending"][item.counter] += 1
        self.wait(item, reason, said)

    def pend_coming_back(self, item: Item, stored: StoredObject) -> None:
        """Leave an item pending that somebody puts back from quarantine; it is an error if that was not finished.

        :param stored: its object, which carries the mark.
        """
        self.pend(item, Reason.COMING_BACK)
        if self.now - stored.created > _MAX_REPLAY_TIME:
            self.problems.append(
                f"{item.path!r} has been on its way back from quarantine since {stored.created:%Y-%m-%d %H:%M} UTC, so "
                "putting it back was interrupted: do it again with `bqdispatch replay`"
            )

    def fail(self, item: Item, reason: Reason, said: str, problem: str = "") -> None:
        """Hold an item back because of an error.

        :param problem: sentence for the report's errors; empty by default, where another sentence says it.
        """
        self.outcomes[Outcome.ERROR] += 1
        if problem:
            self.problems.append(problem)
        self.wait(item, reason, said)

    def fail_protected(self, item: Item) -> None:
        """Hold an item back that cannot be deleted."""
        problem = f"{item.path!r} waits because it cannot be deleted: it is under {item.protected_by}"
        self.fail(item, Reason.PROTECTED, item.protected_by, problem)

    def quarantine(
        self,
        which: StoredObject | Event,
        reason: str,
        asked: Mapping[str, Any] | None = None,
        undecided: bool = False,
        claimed: bool = False,
    ) -> None:
        """Quarantine an object; the parameters are those of :class:`Quarantine`."""
        self.quarantines.append(Quarantine(*which.key, which.created, reason, asked or {}, undecided, claimed))

    def offer(self, candidate: Candidate) -> None:
        """Make an event a candidate, unless something other than a limit holds it back."""
        item, event = candidate.item, candidate.event
        blocked = next((why for at, why in self.snapshot.blocks if event.created <= at), "")
        if candidate.lane is Lane.WINDOWS:
            blocked = blocked or self.snapshot.window_block
        if not self.only.matches(item.project, item.name):
            # It is not counted among the pending jobs, for the balancer and for graphs: its job is done.
            self.outcomes[Outcome.PENDING] += 1
            self.wait(item, Reason.OTHERS)
        elif item.protected_by:
            # What cannot be deleted would be delivered again and again.
            self.fail_protected(item)
        elif blocked:
            self.fail(item, Reason.REFUSED, blocked, blocked)
        elif len((target := target_of(event, candidate.lane, self.config)).encode()) > MAX_OBJECT_NAME_BYTES:
            self.quarantine(event, f"its name {length_problem(target)}")
        else:
            self.candidates.append(candidate)

    def admit(self) -> None:
        """Dispatch the candidates that the limits let through; the others are throttled."""
        firings = self.snapshot.open_firings
        offered = {candidate.event.key for candidate in self.candidates} if firings else ()
        self.slots.count_firings(firing for firing in firings if firing.key not in offered)
        # A firing that was begun goes first, and takes a slot even if it has to wait: it may be delivered. One that was
        # claimed and not announced, as without a limit, waits for those that were: these hold their slots already.
        rank = {candidate.event.key: 1 for candidate in self.candidates if candidate.event.claimed}
        rank |= {firing.key: 0 for firing in firings}
        for candidate in sorted(self.candidates, key=lambda each: (rank.get(each.event.key, 2), each.order)):
            slot = (candidate.project, candidate.lane.limit)
            if self.slots.take(slot):
                self.events[candidate.lane].append(candidate.event)
            else:
                self.slots.taken[slot] += candidate.event.key in rank
                self.outcomes[Outcome.THROTTLED] += 1
                self.awaited += 1
                self.counts[candidate.project]["Throttled"][candidate.item.counter] += 1
                self.throttled.append((candidate.lane, candidate.event))
                self.wait(candidate.item, Reason.LIMIT)
