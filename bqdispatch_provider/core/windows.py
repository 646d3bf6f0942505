"""The state of batch windows: whether one may be fired, and what is known of earlier firings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from bqdispatch_provider.core.listing import Listing, Trace, Window
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.targets import REPLAY, REPLAYED
from bqdispatch_provider.names import LOADS, TraceName, WindowName, as_job_id

DUE_AFTER = timedelta(seconds=7)
"""A window is due once more than this has passed since its end: the Unix seconds in its name, before ``.win``.

By the storage server's clock (docs/protocol.md, "Timing"). The plan also leaves a window alone until its object is
three seconds old (:data:`~bqdispatch_provider.core.traces.MIN_AGE`).
"""

CLAIM_TIMEOUT = timedelta(minutes=3)
"""A window that was claimed and not fired is fired by another dispatcher after this time, in which a living one has
fired it. No guarantee rests on it."""

ENTRY_RETENTION = timedelta(days=8)
"""Time for which the ledger remembers a firing: a storage event is retried for seven days."""

LOAD_IS_LATE = timedelta(seconds=30)
"""Time after a firing from which its load is looked up if it is not visible."""

MAX_LISTING_DELAY = timedelta(seconds=10)
"""A load that is older than this when the task folder is listed has its trace in that list, since BqTail writes the
trace first. The margin is for the clocks of two services, and for the time that a list takes."""

MAX_FUNCTION_RUNTIME = timedelta(minutes=10)
"""No function runs longer: a load that is not seen this long after BqTail took the fired window does not come."""


@dataclass(frozen=True, slots=True)
class Firing:
    """The firing of one generation of a window, by the ledger.

    :param claimed: when it was last claimed.
    :param fired: when its copy into the trigger bucket was proven, or it was given up; ``None`` before that.
    :param gone_at: when it was first seen that nothing of the firing is on its way any more, by the step of the last
        load that was seen then; step 0 for none.
    :param aside: True if the window became undecided after its claim: somebody has to decide.
    """

    claimed: datetime
    fired: datetime | None = None
    gone_at: Mapping[int, datetime] = field(default_factory=dict)
    aside: bool = False


Firings = Mapping[int, Firing]
"""The firings of one window name, by the window's generation."""


@dataclass(frozen=True, slots=True)
class OpenFiring:
    """A firing whose load has not been seen yet, as its dispatcher's intent has it.

    :param window: name of the window.
    :param generation: generation of the window.
    :param project: project in which its load runs; empty if that is not known, which only a limit requires.
    :param event_id: event by which its load is known; empty as above.
    :param many_folders: whether the window has many folders, and is removed before it is fired.
    :param since: time of the intent.
    """

    window: str
    generation: int
    project: str
    event_id: str
    many_folders: bool
    since: datetime

    @property
    def key(self) -> Key:
        """The window's name and generation."""
        return (self.window, self.generation)


class LateAction(StrEnum):
    """The action on a returned window, which BqTail has made anew after one of its name was fired."""

    WAIT = "wait"
    DROP = "drop"
    FIRE = "fire"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a returned window, by the loads of its earlier firings.

    :param reason: for people.
    :param stale_locations: location objects that are removed first, since their folders were loaded.
    :param kept_locations: location objects that stay.
    """

    action: LateAction
    reason: str
    stale_locations: tuple[Key, ...] = ()
    kept_locations: tuple[Key, ...] = ()


class WindowState(StrEnum):
    """The state of a window by its time and its own firing."""

    COMING_BACK = "on its way back from quarantine"
    FIRED_BY_GO = "fired by the Go dispatcher"
    FIRED = "fired"
    NOT_DUE = "not due"
    CLAIMED = "being fired"
    READY = "ready to be fired"
    """Due, and neither fired nor in hand. The plan also leaves it alone until its object is three seconds old
    (:data:`~bqdispatch_provider.core.traces.MIN_AGE`), and asks for a verdict if it has returned."""


def time_until_due(window: WindowName, now: datetime) -> timedelta:
    """Return how long a window must still wait; below 0 once it is due."""
    return window.end - now + DUE_AFTER  # no sum of dates: the end may be the last date that there is


def is_due(window: WindowName, now: datetime) -> bool:
    """Tell whether a window may be fired as far as its end goes: the Unix seconds in its name (:data:`DUE_AFTER`).

    The plan looks at the age of its object as well.
    """
    return time_until_due(window, now) < timedelta()


def state_of(window: Window, firings: Firings, now: datetime) -> WindowState:
    """Return the state of a window.

    :param firings: firings of windows of its name.
    :param now: the storage server's time.
    """
    firing = firings.get(window.object.generation)
    if REPLAY in window.object.metadata:
        return WindowState.COMING_BACK
    if window.sentinel is not None:
        return WindowState.FIRED_BY_GO
    if firing is not None and firing.fired is not None:
        return WindowState.FIRED
    if not is_due(window.name, now):
        return WindowState.NOT_DUE
    if firing is not None and now - firing.claimed < CLAIM_TIMEOUT:
        return WindowState.CLAIMED
    return WindowState.READY


def has_returned(window: Window, firings: Firings) -> bool:
    """Tell whether a window was made anew after one of its name had been fired: then a verdict is needed.

    :param firings: firings of windows of its name.
    """
    return bool(firings.keys() - {window.object.generation}) and REPLAYED not in window.object.metadata


def unlisted_jobs(recent: Mapping[str, datetime | None], listing: Listing) -> set[str]:
    """Return the IDs of active jobs whose traces may have been written after the task folder was listed.

    :param recent: by the IDs of jobs, when they were created, or ``None`` if they are done.
    :param listing: of the task folder, before the jobs were listed.
    """
    since = listing.now - MAX_LISTING_DELAY
    young = {job_id for job_id, created in recent.items() if created is not None and created > since}
    return young - {trace.name.job_id for trace in listing.traces} if young else young


def visible_loads(traces: Iterable[Trace], recent: Iterable[str], event_ids: Collection[str]) -> set[tuple[str, str]]:
    """Return the loads that can be seen, each by its destination and its event as they stand in job IDs.

    :param traces: traces in the task folder.
    :param recent: IDs of jobs that were listed.
    :param event_ids: events to look for, as they stand in job IDs.
    """
    names = [trace.name for trace in traces]
    for job_id in recent:
        with suppress(ValueError):
            names.append(TraceName.parse(job_id))
    loads = ((each, as_job_id(each.event_id)) for each in names if each.action in LOADS)
    return {(as_job_id(each.dest), event_id) for each, event_id in loads if event_id in event_ids}
