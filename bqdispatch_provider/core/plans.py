"""The observations of a cycle, and its plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bqdispatch_provider.core.events import Event, Load, Share
from bqdispatch_provider.core.listing import Listing
from bqdispatch_provider.core.model import Job, JobKey, Key, Lane, Limit, Outcome
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.core.windows import Firings, OpenFiring, Verdict


@dataclass(frozen=True, slots=True)
class Quarantine:
    """An object that must not be dispatched, and why.

    :param name: path below the task folder.
    :param created: creation of the object, which gives the day of its folder under ``ErrorURL``.
    :param reason: for people.
    :param asked: what was looked at to find out, for the note that is left beside it.
    :param undecided: whether it stays in the task folder, where every look names it until somebody acts; by default it
        goes to ``ErrorURL``.
    :param claimed: whether it is a window that was claimed, and perhaps fired: it may be gone, so its claim is copied.
    """

    name: str
    generation: int
    created: datetime
    reason: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    undecided: bool = False
    claimed: bool = False

    @property
    def key(self) -> Key:
        """The name and the generation."""
        return (self.name, self.generation)


@dataclass(frozen=True, slots=True)
class Cleanup:
    """The clean-up of a cycle, beside dispatching.

    :param quarantines: objects to quarantine.
    :param stale: objects to delete: fired windows that were kept long enough, returned windows whose files are loaded,
        and location objects and intents that are no longer needed.
    :param fired: windows to record as fired: their loads prove it, or they were claimed and must not be fired.
    :param gone: fired windows of which nothing is on its way any more, with the step of the last load, for the ledger.
    :param missed: names and content of windows that are made anew for a folder that their firing has missed.
    :param late: returned windows that are dropped, since their files were loaded. They are in ``fired`` if they were
        claimed, otherwise in ``stale``.
    """

    quarantines: tuple[Quarantine, ...] = ()
    stale: tuple[Key, ...] = ()
    fired: tuple[Key, ...] = ()
    gone: tuple[tuple[Key, int], ...] = ()
    missed: tuple[tuple[str, bytes], ...] = ()
    late: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The observations of a cycle.

    :param jobs: the jobs that were found.
    :param project_errors: projects whose jobs could not be looked at, with what BigQuery said.
    :param unreadable_jobs: jobs whose state BigQuery does not tell, with what it said instead.
    :param unknown_jobs: jobs that BigQuery is proven not to know, each with the job as BigQuery was asked for it. One
        that was merely not found is not among them.
    :param firings: firings of the windows that are due, by name.
    :param unreadable_windows: names of windows whose firings could not be read, with the reason.
    :param loads: loads of the windows that may be fired.
    :param verdicts: verdicts on windows that have returned.
    :param open_firings: firings whose loads have not been seen, which count as active.
    :param abandoned: windows with many folders that were claimed, removed and not fired.
    :param moved: names of traces that were moved, or are being moved by others, and whose next jobs are not seen yet.
    :param blocks: times up to which created events are held back, each with the reason: intents that cannot be read.
    :param window_block: why no window may be fired; empty by default, if nothing forbids it.
    :param cleanup: what to put in order, as far as it does not follow from the rest.
    :param findings: sentences about what somebody has to act on.
    """

    listing: Listing
    jobs: Mapping[JobKey, Job] = field(default_factory=dict)
    project_errors: Mapping[str, str] = field(default_factory=dict)
    unreadable_jobs: Mapping[JobKey, str] = field(default_factory=dict)
    unknown_jobs: Mapping[JobKey, JobKey] = field(default_factory=dict)
    firings: Mapping[str, Firings] = field(default_factory=dict)
    unreadable_windows: Mapping[str, str] = field(default_factory=dict)
    loads: Mapping[Key, Load] = field(default_factory=dict)
    verdicts: Mapping[Key, Verdict] = field(default_factory=dict)
    open_firings: tuple[OpenFiring, ...] = ()
    abandoned: tuple[OpenFiring, ...] = ()
    moved: frozenset[str] = frozenset()
    blocks: tuple[tuple[datetime, str], ...] = ()
    window_block: str = ""
    cleanup: Cleanup = Cleanup()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a cycle: what it will do, and where every other object stands.

    :param now: time of the plan, by the storage server's clock.
    :param events: events to dispatch, per lane, oldest first.
    :param listed: number of objects that were listed: of events, quarantines and outcomes together.
    :param cleanup: what to put in order.
    :param outcomes: outcomes of the objects that need no action.
    :param counts: per project, ``Running``, ``Pending`` and ``Throttled``, each with numbers by counter.
    :param projects: number of traces per project.
    :param not_found: number of traces per project whose job was not found.
    :param unknown: names of unknown objects, with the reason.
    :param errors: what went wrong while looking, one sentence each.
    :param oldest: since when the oldest event waits that goes on waiting: a trace since its creation, a window since
        its end; ``None`` if none does.
    :param awaited: number of objects that wait for a job that runs, or is about to.
    :param due_in: time until the first object is due that waits for nothing but time; ``None`` without one.
    :param throttled: events that only a limit holds back, with their lanes, in the order in which they are to go.
    :param waits: events that wait, but for those that wait for less than :data:`MIN_REPORTED_WAIT`.
    :param not_due: names of the windows whose end has not come, the soonest first.
    :param taken: slots that are taken when all events are dispatched, by project and limit; without a limit none.
    :param room: slots that are left when all events are dispatched, by project and limit.
    """

    now: datetime
    events: Mapping[Lane, tuple[Event, ...]]
    listed: int
    cleanup: Cleanup = Cleanup()
    outcomes: Mapping[Outcome, int] = field(default_factory=Counter)
    counts: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    projects: Mapping[str, int] = field(default_factory=dict)
    not_found: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    oldest: datetime | None = None
    awaited: int = 0
    due_in: timedelta | None = None
    throttled: tuple[tuple[Lane, Event], ...] = ()
    waits: tuple[Wait, ...] = ()
    not_due: tuple[str, ...] = ()
    taken: Mapping[tuple[str, Limit], int] = field(default_factory=dict)
    room: Mapping[tuple[str, Limit], int] = field(default_factory=dict)

    def shares(self) -> list[Share]:
        """Return the plan's events: a share for each lane that has some."""
        return [Share(lane, self.now, events) for lane, events in self.events.items() if events]
