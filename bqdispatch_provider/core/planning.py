"""The plan of a cycle: a pure function of what was observed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.draft import Draft
from bqdispatch_provider.core.events import ALL_EVENTS, EventFilter
from bqdispatch_provider.core.listing import Listing, StoredObject
from bqdispatch_provider.core.model import Lane, Outcome, Reason
from bqdispatch_provider.core.plan_traces import is_active, plan_trace
from bqdispatch_provider.core.plan_windows import plan_abandoned, plan_window
from bqdispatch_provider.core.plans import Plan, Snapshot
from bqdispatch_provider.core.targets import REASON, split_undecided_name
from bqdispatch_provider.core.waits import MIN_REPORTED_WAIT, Wait

_MAX_LISTING_TIME = timedelta(minutes=1)
"""An object may be newer than the listing that shows it, by the time that the listing takes."""


def plan(
    snapshot: Snapshot,
    config: DispatchConfig,
    now: datetime,
    only: EventFilter = ALL_EVENTS,
    *,
    all_waits: bool = False,
) -> Plan:
    """Decide what is dispatched, held back or quarantined.

    Per project, events dispatched plus jobs active never pass the limits. Firings that somebody has begun go first,
    then the oldest. Where each object ends does not depend on the order of the listing (docs/protocol.md,
    "Configuration document").

    :param snapshot: what lies in the task folder, and how the jobs stand.
    :param config: the limits, how long fired windows are kept, and how long a trace may wait for an unknown job.
    :param now: the storage server's time.
    :param only: which events may be dispatched; the others are pending.
    :param all_waits: name every event that waits, however short.
    """
    draft, listing = Draft(config, snapshot, now, only, all_waits), snapshot.listing
    draft.outcomes[Outcome.UNKNOWN] += len(listing.unknown)
    draft.outcomes[Outcome.IGNORED] += listing.ignored + len(listing.intents)
    draft.outcomes[Outcome.IGNORED] += len(listing.undecided) + len(listing.orphan_sentinels)
    draft.slots.count_traces(trace for trace in listing.traces if is_active(trace, snapshot, now))
    draft.slots.count_moved(snapshot.moved, listing.traces)
    draft.awaited = draft.slots.taken.total()
    for trace in listing.traces:
        plan_trace(draft, trace)
    for window in listing.windows:
        plan_window(draft, window)
    for firing in snapshot.abandoned:
        plan_abandoned(draft, firing)
    draft.admit()
    return _plan_from(draft)


def _plan_from(draft: Draft) -> Plan:
    room = draft.slots.room()
    snapshot, listing, cleanup = draft.snapshot, draft.snapshot.listing, draft.snapshot.cleanup
    undecided = (
        Wait(each.name, Reason.UNDECIDED, each.created, each.metadata.get(REASON, "")) for each in listing.undecided
    )
    unknown = listing.unknown.values()
    long_unknown = (each for each in unknown if draft.all_waits or draft.now - each.since > MIN_REPORTED_WAIT)
    return Plan(
        now=draft.now,
        events={lane: tuple(draft.events[lane]) for lane in Lane},
        listed=len(listing) + len(snapshot.abandoned) + len(cleanup.quarantines),
        cleanup=replace(
            cleanup,
            quarantines=(*cleanup.quarantines, *draft.quarantines),
            fired=(*cleanup.fired, *draft.fired),
            stale=tuple(dict.fromkeys((*draft.stale, *cleanup.stale))),
            late=tuple(draft.late),
        ),
        outcomes=+draft.outcomes,
        counts=draft.counts,
        projects=Counter(trace.project for trace in listing.traces),
        not_found=draft.not_found,
        unknown={each.name: each.said for each in unknown},
        errors=tuple(_errors(draft)),
        oldest=_oldest(draft),
        awaited=draft.awaited,
        due_in=min(draft.due_in, default=None),
        not_due=tuple(each.name for each in sorted(draft.not_due, key=lambda each: (each.end, each.name))),
        throttled=tuple(draft.throttled),
        waits=(*draft.waits, *undecided, *long_unknown),
        taken={key: draft.slots.taken[key] for key in room},
        room=room,
    )


def _errors(draft: Draft) -> Iterator[str]:
    snapshot = draft.snapshot
    for project, said in sorted(snapshot.project_errors.items()):
        yield f"the jobs of project {project!r} cannot be looked up, so its traces wait: {said}"
    yield from dict.fromkeys(sorted(draft.problems))
    yield from snapshot.findings
    yield from map(_undecided, snapshot.listing.undecided)
    yield from _odd_clock(snapshot.listing)


def _oldest(draft: Draft) -> datetime | None:
    """Return the time since which the oldest remaining event waits."""
    goes = {each.key for events in draft.events.values() for each in events}
    goes |= {each.key for each in draft.quarantines}
    traces = (each.object for each in draft.snapshot.listing.traces)
    waiting = [*draft.due_windows, *((each.key, each.created) for each in traces)]
    return min((since for key, since in waiting if key not in goes), default=None)


def _undecided(marker: StoredObject) -> str:
    window, _ = split_undecided_name(marker.name)
    reason = marker.metadata.get(REASON, "it could not be decided on")
    return (
        f"window {window!r} has waited as {marker.name!r} since {marker.created:%Y-%m-%d %H:%M} UTC: {reason}; "
        "fire it with `bqdispatch replay`, or delete that object if its files are loaded"
    )


def _odd_clock(listing: Listing) -> Iterator[str]:
    """Yield an error if the clock by which ages are told is behind, as a proxy may make it."""
    traces, windows = (each.object for each in listing.traces), (each.object for each in listing.windows)
    newest = max((*traces, *windows, *listing.intents), key=lambda each: each.created, default=None)
    if newest is not None and newest.created - listing.now > _MAX_LISTING_TIME:
        behind = (newest.created - listing.now).total_seconds()
        yield (
            f"the Date header of Cloud Storage's answers is at least {behind:.0f} s behind, so events wait too long: "
            f"{newest.name!r} was created at {newest.created:%Y-%m-%d %H:%M:%S} UTC; does a proxy change the header?"
        )
