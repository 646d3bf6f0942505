"""Observe the task folder and its jobs, and plan. Nothing is changed.

The order of the calls matters: what moves in between is found where it goes, not where it comes from.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from google.api_core.exceptions import NotFound

from bqdispatch_provider.core.events import Event, EventFilter, Load, Share
from bqdispatch_provider.core.listing import Listing, StoredObject, Trace, Window
from bqdispatch_provider.core.model import JobKey, Key
from bqdispatch_provider.core.planning import plan
from bqdispatch_provider.core.plans import Cleanup, Plan, Snapshot
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.sizes import MAX_TRACE_BYTES
from bqdispatch_provider.core.targets import split_undecided_name
from bqdispatch_provider.core.traces import is_overdue, job_in_content
from bqdispatch_provider.core.windows import (
    MAX_FUNCTION_RUNTIME,
    Firings,
    OpenFiring,
    WindowState,
    has_returned,
    state_of,
)
from bqdispatch_provider.cycle.services import Services
from bqdispatch_provider.cycle.task_folder import is_fired
from bqdispatch_provider.cycle.underway import InTransit, find_in_transit, read_intents
from bqdispatch_provider.delivery.firings_found import FiringsFound
from bqdispatch_provider.delivery.intents import IntentsFound
from bqdispatch_provider.delivery.late_windows import MAX_JUDGED, LateWindows
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.job_answers import JobStates
from bqdispatch_provider.gcp.objects import ObjectTooLarge
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.names import WindowName, in_one_line, in_words

_RECHECK_INTERVAL_S = 600.0
"""Interval between two checks of undecided windows, and of folders whose window is gone."""


@dataclass(frozen=True)
class Observation:
    """A plan, the report of what was seen while it was made, and all of what was seen."""

    plan: Plan
    report: Report
    snapshot: Snapshot


class Observer:
    """Observes one task folder, and plans.

    :param services: services of the task folder.
    :param only: events to dispatch.
    """

    def __init__(self, services: Services, only: EventFilter) -> None:
        self._services = services
        self._only = only
        self._rechecked = -math.inf
        self._oversized: dict[Key, str] = {}
        """Sentences about traces whose content was too large to be read, by their keys."""

    def look(self) -> Observation:
        """Observe and plan.

        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        began = time.monotonic()
        # First what is in transit, then the folder: what BqTail consumes in between has its next trace there.
        transit = find_in_transit(self._services)
        listing = self._services.folder.listing()
        listed = time.monotonic()
        states, snapshot = self._observe(listing, transit)
        planned = plan(snapshot, self._services.config, listing.now, self._only)
        report = Report.from_plan(planned)
        report.started = report.seen = listing.now
        report.get_count = states.got
        report.list_ms = round((listed - began) * 1000) + states.list_ms
        for key, job in states.jobs.items():
            report.regions.setdefault(key.project, job.location)
        report.time_taken_ms = round((time.monotonic() - began) * 1000)
        return Observation(planned, report, snapshot)

    def find_dispatched(self, shares: Sequence[Share]) -> list[Event]:
        """Return those events of shares that were dispatched: traces that are gone, and fired windows.

        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        listing = self._services.folder.listing()
        present = {trace.object.key for trace in listing.traces}
        fenced = {trace.object.name for trace in listing.traces if trace.object.in_doubt}
        events = list({event.key: event for share in shares for event in share.events}.values())
        windows = {event.name for event in events if event.name.endswith(".win")}
        firings, unreadable = self._services.ledger.look((), listing.now, names=windows)

        def is_dispatched(event: Event) -> bool:
            if event.name not in windows:
                return event.key not in present and event.name not in fenced
            return event.name not in unreadable and is_fired(firings.get(event.name, {}).get(event.generation))

        return list(filter(is_dispatched, events))

    def _observe(self, listing: Listing, transit: InTransit) -> tuple[JobStates, Snapshot]:
        """Observe what a listing does not show: how the jobs stand, and what became of windows."""
        services = self._services
        limited = bool(services.config.max_concurrent_jobs)
        looking = self._look_at_jobs(listing)
        noted, problem = read_intents(services, listing, transit)
        orphans, undecided = self._to_recheck(listing)
        firings, unreadable = self._read_ledger(listing, noted, [*orphans, *undecided])
        hidden = {**unreadable, **(_without_intents(listing, firings, problem, limited=limited) if problem else {})}
        states = looking.result()
        opened = services.open_firings.look(
            noted.of_windows, listing, firings, states.jobs, limited=limited, unreadable=unreadable
        )
        hidden |= opened.unproven
        ready = _ready(listing, firings, hidden)
        late = LateWindows(services.evidence, listing, firings, unreadable)
        late.judge(_returned(listing, ready, opened.abandoned, firings))
        loads, unread = self._loads(ready, opened.abandoned) if limited else ({}, {})
        hidden |= unread
        late.check_orphan_locations(orphans)
        if undecided:
            late.find_settled()
        return states, Snapshot(
            listing,
            jobs=states.jobs,
            project_errors={**opened.errors, **states.errors},
            unreadable_jobs=states.unread,
            unknown_jobs=states.unknown,
            firings=firings,
            unreadable_windows=hidden,
            loads=loads,
            verdicts=late.verdicts,
            open_firings=tuple(opened.open) if limited else (),
            abandoned=tuple(opened.abandoned),
            moved=transit.names | noted.moving,
            blocks=(*(((listing.now, transit.problem),) if transit.problem else ()), *noted.unreadable),
            window_block=services.intents.unreadable_firings if limited else "",
            cleanup=_cleanup(noted, opened, late),
            findings=(*_unread(problem, noted, listing, unreadable), *self._oversized_in(listing), *late.findings),
        )

    def _look_at_jobs(self, listing: Listing) -> Future[JobStates]:
        config, now = self._services.config, listing.now
        return self._services.threads.submit(
            self._services.board.look,
            listing.traces,
            lambda trace: is_overdue(trace, config, now),
            self._read_job_key,
        )

    def _read_job_key(self, trace: Trace) -> JobKey | None:
        """Read which job a trace waits for from its content; ``None`` if that does not say it.

        :raises LookupError: when it cannot be read now.
        """
        store = self._services.store
        try:
            content = store.read(store.task_url(trace.object.name), MAX_TRACE_BYTES, trace.object.size)
        except ObjectTooLarge as error:
            # It is moved like any other, unread: its job is looked for in the list.
            self._oversized[trace.object.key] = f"trace {trace.object.name!r} was not read: {in_one_line(str(error))}"
            return None
        except NotFound:
            return None  # another dispatcher has moved it
        except GOOGLE_ERRORS as error:
            said = f"its content, which may say where that job is, cannot be read: {in_words(error)}"
            raise LookupError(said) from error
        return job_in_content(trace, content)

    def _oversized_in(self, listing: Listing) -> list[str]:
        """Return what is said of traces that are too large to be read, and forget those that are gone."""
        present = {trace.object.key for trace in listing.traces} if self._oversized else ()
        for key in [key for key in list(self._oversized) if key not in present]:
            self._oversized.pop(key, None)
        return list(self._oversized.values())

    def _to_recheck(self, listing: Listing) -> tuple[list[str], list[str]]:
        """Return the windows that have to be checked now.

        :returns: windows that are gone while their location objects are there, and undecided windows.
        """
        if time.monotonic() - self._rechecked < _RECHECK_INTERVAL_S:
            return [], []
        self._rechecked = time.monotonic()
        orphans = [
            name
            for name, locations in listing.orphan_locations.items()
            if all(listing.now - each.created > MAX_FUNCTION_RUNTIME for each in locations) and _is_window(name)
        ]
        undecided = (split_undecided_name(each.name)[0] for each in listing.undecided)
        return _some(orphans), _some([name for name in undecided if _is_window(name)])

    def _read_ledger(
        self, listing: Listing, noted: IntentsFound, others: Sequence[str]
    ) -> tuple[dict[str, Firings], dict[str, str]]:
        """Read what the ledger says of windows, and drop the evidence of all others.

        :param others: names of windows that need not be in the task folder.
        """
        keys = {firing.key for intent in noted.of_windows for firing in intent.firings}
        kept = {name for name, _ in keys}.union(others, (each.object.name for each in listing.windows))
        self._services.evidence.keep_only(kept)
        return self._services.ledger.look(listing.windows, listing.now, keys, others)

    def _gone(self, keys: Sequence[Key]) -> set[Key]:
        """Return the windows that are not in the task folder any more.

        They are listed again: a read that is answered with 404 while the object is there is an error.
        """
        listed = self._services.store.list_folders([name for name, _ in keys]) if keys else ()
        return {
            key
            for key, found in zip(keys, listed, strict=True)
            if not isinstance(found, Result) and key not in {each.key for each in found}
        }

    def _loads(
        self, ready: Sequence[Window], abandoned: Sequence[OpenFiring]
    ) -> tuple[dict[Key, Load], dict[str, str]]:
        """Read where the loads of windows will run, and which windows cannot be read."""
        sizes = {window.key: window.object.size for window in ready}
        bodies, unread = self._services.evidence.bodies(list(sizes), sizes=sizes)
        # Another dispatcher may have taken a window since it was listed: no error, and the next look does not find it.
        gone = self._gone(list(unread))
        unread = {key: reason for key, reason in unread.items() if key not in gone}
        claimed, missing = self._services.evidence.bodies([firing.key for firing in abandoned], claimed=True)
        refused = {name: reason for (name, _), reason in {**unread, **missing}.items()}
        return {key: body.load for key, body in {**bodies, **claimed}.items()}, refused


def _ready(listing: Listing, firings: Mapping[str, Firings], hidden: Container[str]) -> list[Window]:
    """Return the windows that may be fired, but for those whose firings are hidden."""
    windows = (window for window in listing.windows if window.object.name not in hidden)
    return [
        window
        for window in windows
        if state_of(window, firings.get(window.object.name, {}), listing.now) is WindowState.READY
    ]


def _returned(
    listing: Listing, ready: Sequence[Window], abandoned: Sequence[OpenFiring], firings: Mapping[str, Firings]
) -> dict[Key, Sequence[StoredObject]]:
    """Return the location objects of windows that have returned, by the windows' keys."""
    locations: dict[str, Sequence[StoredObject]] = {
        **{window.object.name: window.locations for window in listing.windows},
        **listing.orphan_locations,
    }
    late = {
        window.key: locations[window.object.name]
        for window in ready
        if has_returned(window, firings.get(window.object.name, {}))
    }
    late |= {
        firing.key: locations.get(firing.window, ())
        for firing in abandoned
        if firings.get(firing.window, {}).keys() - {firing.generation}
    }
    return late


def _cleanup(noted: IntentsFound, opened: FiringsFound, late: LateWindows) -> Cleanup:
    return Cleanup(
        tuple(opened.dropped),
        (*late.stale, *noted.completed_intents, *opened.completed_intents),
        tuple(opened.fired),
        tuple(dict.fromkeys((*opened.gone, *late.gone))),
        tuple(late.missed),
    )


def _without_intents(
    listing: Listing, firings: Mapping[str, Firings], problem: str, *, limited: bool
) -> dict[str, str]:
    """Return the windows that must wait while the intents cannot be read, by name with the problem.

    No claim may be taken over then, since intents tell which loads to look for before; under a limit none may be fired.
    """
    unfired = (name for name, entries in firings.items() if any(not each.fired for each in entries.values()))
    limited_too = (window.object.name for window in listing.windows if limited)
    return dict.fromkeys((*unfired, *limited_too), problem)


def _unread(problem: str, noted: IntentsFound, listing: Listing, unreadable: Mapping[str, str]) -> list[str]:
    """Return what is said of intents and firings that cannot be read.

    A window in the task folder says so itself. One that was announced and is gone may still wait to be fired.

    :param problem: why the intents cannot be read; empty if they can.
    :param unreadable: by the name of a window, why its firings cannot be read.
    """
    announced = {firing.window for intent in noted.of_windows for firing in intent.firings}
    gone = (announced & unreadable.keys()) - {window.object.name for window in listing.windows}
    said = [f"window {name!r} waits if it was not fired: {unreadable[name]}" for name in sorted(gone)]
    return [problem, *said] if problem else said


def _some(names: Sequence[str]) -> list[str]:
    """Return as many windows as are judged in a cycle, others each time."""
    return random.sample(list(names), min(len(names), MAX_JUDGED))


def _is_window(name: str) -> bool:
    try:
        WindowName.parse(name)
    except ValueError:
        return False
    return True
