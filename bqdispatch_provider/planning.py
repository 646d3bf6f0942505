"""What a cycle decides, as pure functions of what it has seen: no client, no I/O, no clock of its own."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.model import (
    BATCH_JOBS,
    EVERYTHING,
    REPLAY,
    Event,
    Job,
    Lane,
    Listing,
    Only,
    Outcome,
    Plan,
    Quarantine,
    Sentinel,
    Snapshot,
    StoredObject,
    Tidy,
    Trace,
    Window,
    counter_of,
    lane_of,
)
from bqdispatch_provider.names import INTENTS, TraceName, WindowName, as_job_id, is_bookkeeping

MIN_AGE = timedelta(seconds=3)
"""A younger object waits for the next cycle: BqTail writes the trace before it submits (docs/protocol.md, "Timing")."""

DUE_AFTER = timedelta(seconds=7)
"""A window is due once this has passed since its end (docs/protocol.md, "Timing")."""

UNSEEN_FOR = timedelta(minutes=1)
"""How long a fired window, or a trace without its job, counts as an active job that is not to be seen yet."""

CLAIM_TIMEOUT = timedelta(minutes=3)
"""After this a window that was claimed and not fired, or a trace that was to be moved, is taken up again by whoever
sees it first: longer than a dispatcher goes on without asking. Only patience rests on it (``moves``)."""

KEEP_WINDOW = timedelta(hours=1)
"""How long a fired window is kept, so that a late storage event finds it and does nothing."""

KEEP_SENTINEL = timedelta(days=1)
"""How long a sentinel outlives its window, so that a late twin is known for one."""

JOBS_KEPT = timedelta(days=175)
"""BigQuery forgets jobs after half a year: what it does not know of an older trace proves nothing."""

_LONGEST = 1024
"""Bytes that the name of an object may have (Cloud Storage, "Object names")."""


def classify(objects: Iterable[StoredObject], project: str, now: datetime) -> Listing:
    """Sort the task folder's objects by kind (docs/protocol.md, "Objects in the task folder").

    :param objects: everything below the task folder.
    :param project: project of root traces and of windows that name none.
    :param now: the storage server's time.
    """
    traces: list[Trace] = []
    windows: list[tuple[StoredObject, WindowName]] = []
    sentinels: dict[str, Sentinel] = {}
    intents: list[StoredObject] = []
    ignored = 0
    unknown: dict[str, str] = {}
    for stored in objects:
        name = stored.name
        try:
            if name.startswith(INTENTS):
                intents.append(stored)
            elif is_bookkeeping(name):
                ignored += 1
            elif name.endswith(".win"):
                windows.append((stored, WindowName.parse(name)))
            elif name.endswith(".wis"):
                WindowName.parse(f"{name[:-4]}.win")
                sentinels[name] = Sentinel.of(stored)
            else:
                trace = TraceName.parse(name)
                traces.append(Trace(stored, trace, trace.project or project))
        except ValueError as error:
            unknown[name] = str(error)
    with_sentinels = tuple(
        Window(stored, parsed, parsed.dest_project or project, sentinels.pop(parsed.sentinel, None))
        for stored, parsed in windows
    )
    ignored += sum(window.sentinel is not None for window in with_sentinels)
    return Listing(now, tuple(traces), with_sentinels, tuple(sentinels.values()), tuple(intents), ignored, unknown)


def due(window: Window, now: datetime) -> bool:
    """Tell whether a window may be fired as far as time goes."""
    return now - DUE_AFTER > window.name.end


def overdue(trace: Trace, config: DispatchConfig, now: datetime) -> bool:
    """Tell whether a trace has waited so long that it is quarantined if BigQuery is proven not to know its job."""
    longest = timedelta(minutes=config.max_unknown_job_min)
    return bool(longest) and now - trace.object.created > longest and now - trace.object.since < JOBS_KEPT


def plan(snapshot: Snapshot, config: DispatchConfig, now: datetime, only: Only = EVERYTHING) -> Plan:
    """Decide what is dispatched, held back or set aside.

    Per project, events dispatched plus jobs active never pass the limits; the oldest go first; where each object
    ends does not depend on the order of the listing (docs/protocol.md, "Configuration document").

    :param snapshot: what lies in the task folder, and how the jobs stand.
    :param config: the limits, how long fired windows are kept, and how long a trace may wait for an unknown job.
    :param now: the storage server's time.
    :param only: which events may be dispatched; the others are pending.
    """
    planning = _Planning(now, only)
    planning.outcomes[Outcome.UNKNOWN] += len(snapshot.listing.unknown)
    planning.outcomes[Outcome.IGNORED] += snapshot.listing.ignored + len(snapshot.listing.intents)
    for trace in snapshot.listing.traces:
        lost = trace.job in snapshot.unknown and overdue(trace, config, now)
        planning.trace(trace, snapshot.jobs.get(trace.job), trace.project in snapshot.errors, lost)
    blind = snapshot.errors.keys() if config.max_concurrent_jobs else set()
    keep = max(KEEP_WINDOW, timedelta(milliseconds=config.max_trigger_delay_ms))
    for window in snapshot.listing.windows:
        planning.window(window, window.project in blind, keep)
    for sentinel in snapshot.listing.orphans:
        planning.orphan(sentinel, keep + KEEP_SENTINEL)
    for window in unseen(snapshot.listing, snapshot.recent, now):
        planning.active[window.project, False] += 1
    planning.dispatch(config.max_concurrent_sql, config.max_concurrent_jobs)
    gone = {each.key for events in planning.events.values() for each in events}
    gone |= {(each.name, each.generation) for each in planning.quarantines}
    waiting = (each.object for each in snapshot.listing.traces)
    spent = ((intent.name, intent.generation) for intent in snapshot.spent)
    return Plan(
        now=now,
        events={lane: tuple(planning.events[lane]) for lane in Lane},
        listed=len(snapshot.listing),
        tidy=Tidy(tuple(planning.quarantines), (*planning.stale_windows, *planning.stale_sentinels, *spent)),
        outcomes={outcome: number for outcome, number in planning.outcomes.items() if number},
        counts={
            project: {gauge: dict(counter) for gauge, counter in gauges.items()}
            for project, gauges in planning.counts.items()
        },
        projects=dict(Counter(trace.project for trace in snapshot.listing.traces)),
        not_found=dict(planning.not_found),
        unknown=snapshot.listing.unknown,
        errors=(
            *(
                f"the jobs of project {project!r} cannot be looked at, so its traces wait: {said}"
                for project, said in sorted(snapshot.errors.items())
            ),
            *sorted(planning.held),
        ),
        oldest=min((each.created for each in waiting if (each.name, each.generation) not in gone), default=None),
        awaited=planning.awaited,
        due_in=min(planning.due_in, default=None),
    )


def unseen(listing: Listing, recent: Mapping[str, datetime], now: datetime) -> list[Window]:
    """The windows that were fired a moment ago and whose load job is not to be seen yet: they count as active.

    :param listing: its load traces are loads that can be seen.
    :param recent: jobs that have been created since; those whose traces have been moved already are only there.
    :param now: the storage server's time.
    """
    fired: defaultdict[str, list[tuple[datetime, str, Window]]] = defaultdict(list)
    for window in listing.windows:
        at = window.sentinel.fired if window.sentinel else None
        if at is not None and now - at < UNSEEN_FOR:
            fired[as_job_id(window.name.dest)].append((at, window.object.name, window))
    if not fired:
        return []
    loads: defaultdict[str, dict[str, datetime]] = defaultdict(dict)
    for job_id, created in [*recent.items(), *((each.name.job_id, each.object.created) for each in listing.traces)]:
        with suppress(ValueError):
            job = TraceName.parse(job_id)
            if job.action in ("load", "reload"):
                loads[job.dest][job_id] = created
    left: list[Window] = []
    for dest, windows in fired.items():
        times = sorted(loads[dest].values(), reverse=True)
        for at, _, window in sorted(windows, key=lambda each: each[:2]):
            while times and times[-1] < at - MIN_AGE:
                times.pop()
            if times:
                times.pop()
            else:
                left.append(window)
    return left


def traced(job_ids: Iterable[str]) -> Iterator[bool]:
    """For each of the jobs that has a trace, whether it is a query: limits count no others."""
    for job_id in job_ids:
        with suppress(ValueError):
            name = TraceName.parse(job_id)
            if name.mode == "dispatch":
                yield lane_of(name.action) is Lane.SQL


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An event that may be dispatched if its project's limit lets it."""

    since: datetime
    event: Event
    project: str
    lane: Lane
    counter: str

    @property
    def key(self) -> tuple[datetime, str, int]:
        return (self.since, self.event.name, self.event.generation)


def _zero() -> defaultdict[str, Counter[str]]:
    return defaultdict(Counter)


@dataclass
class _Planning:
    """A plan while it is made: first everything is counted, then decided."""

    now: datetime
    only: Only = EVERYTHING
    active: Counter[tuple[str, bool]] = field(default_factory=Counter)
    candidates: list[_Candidate] = field(default_factory=list)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    counts: defaultdict[str, defaultdict[str, Counter[str]]] = field(default_factory=lambda: defaultdict(_zero))
    not_found: Counter[str] = field(default_factory=Counter)
    quarantines: list[Quarantine] = field(default_factory=list)
    stale_windows: list[tuple[str, int]] = field(default_factory=list)
    stale_sentinels: list[tuple[str, int]] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    awaited: int = 0
    due_in: list[timedelta] = field(default_factory=list)
    events: dict[Lane, list[Event]] = field(default_factory=lambda: {lane: [] for lane in Lane})

    def trace(self, trace: Trace, job: Job | None, project_failed: bool, lost: bool) -> None:
        age = self.now - trace.object.created
        lane, counter = lane_of(trace.name.action), counter_of(trace.name.action)
        # A trace is written before its job is submitted, so for a while the job may be about to appear.
        # What cannot be looked at may be running: better too few are dispatched than too many.
        active = job.state != "DONE" if job is not None else project_failed or age < UNSEEN_FOR
        if active:
            self.active[trace.project, lane is Lane.SQL] += 1
            self.awaited += 1
        if REPLAY in trace.object.metadata:
            self._wait(trace.project, "Pending", counter)
        elif project_failed and job is None:
            self.outcomes[Outcome.ERROR] += 1
            # BqTail's balancer takes a project without numbers for a free one, and would send more loads there.
            self.counts[trace.project]["Pending"][counter] += 1
        elif age < MIN_AGE:
            self.outcomes[Outcome.TOO_YOUNG] += 1
            self.due_in.append(MIN_AGE - age)
        elif job is None and lost:
            self.quarantines.append(_lost(trace))
        elif job is None:
            self.outcomes[Outcome.NOT_FOUND] += 1
            self.not_found[trace.project] += 1
        elif job.state == "DONE":
            stored = trace.object
            event = Event(
                stored.name, stored.generation, stored.created, job.location, job.ended, job.error, stored.doubted
            )
            candidate = _Candidate(stored.created, event, trace.project, lane, counter)
            self._candidate(candidate, trace.name, stored.held)
        else:
            self._wait(trace.project, "Running" if job.state == "RUNNING" else "Pending", counter)

    def _wait(self, project: str, gauge: str, counter: str) -> None:
        self.outcomes[Outcome.RUNNING if gauge == "Running" else Outcome.PENDING] += 1
        self.counts[project][gauge][counter] += 1

    def window(self, window: Window, blind: bool, keep: timedelta) -> None:
        stored, sentinel = window.object, window.sentinel
        until_due = window.name.end - self.now + DUE_AFTER
        if REPLAY in stored.metadata:
            self._wait(window.project, "Pending", BATCH_JOBS)
        elif sentinel is not None and sentinel.fired is not None:
            if not self._is_twin(window, sentinel):
                if sentinel.window is not None and self.now - sentinel.fired > keep and not stored.held:
                    self.stale_windows.append((stored.name, stored.generation))
                self.outcomes[Outcome.IGNORED] += 1
            else:
                fired = sentinel.fired.isoformat(timespec="seconds")
                self.quarantines.append(
                    Quarantine(
                        stored.name,
                        stored.generation,
                        stored.created,
                        f"a late twin: a window of this name was fired at {fired} as generation {sentinel.window}, "
                        "and firing it again could load its files twice",
                        {"Sentinel": sentinel.object.name, "Fired": fired, "Window": sentinel.window},
                    )
                )
        elif sentinel is not None and self.now - sentinel.claimed < CLAIM_TIMEOUT:
            # Somebody is firing it now: its load is about to appear.
            self._wait(window.project, "Pending", BATCH_JOBS)
            self.active[window.project, False] += 1
        elif self.now - stored.created < MIN_AGE:
            self.outcomes[Outcome.TOO_YOUNG] += 1
            self.due_in.append(max(MIN_AGE - (self.now - stored.created), until_due))
        elif not due(window, self.now):
            self._wait(window.project, "Pending", BATCH_JOBS)
            self.due_in.append(until_due)
        elif blind:
            self.outcomes[Outcome.ERROR] += 1
        else:
            event = Event(stored.name, stored.generation, stored.created, doubted=stored.doubted)
            candidate = _Candidate(window.name.end, event, window.project, Lane.WINDOWS, BATCH_JOBS)
            self._candidate(candidate, window.name, stored.held)

    def _candidate(self, candidate: _Candidate, name: TraceName | WindowName, held: str) -> None:
        if not self.only.takes(candidate.project, name):
            self._wait(candidate.project, "Pending", candidate.counter)
        elif held:
            # What cannot be deleted would be delivered again and again.
            self.outcomes[Outcome.ERROR] += 1
            self.held.append(f"{candidate.event.name!r} waits until it may be deleted: it is under {held}")
        else:
            self.candidates.append(candidate)

    @staticmethod
    def _is_twin(window: Window, sentinel: Sentinel) -> bool:
        if sentinel.window is None:  # the Go dispatcher's says nothing, but was written before the copy
            return window.object.created > sentinel.object.created
        return sentinel.window != window.object.generation

    def orphan(self, sentinel: Sentinel, keep: timedelta) -> None:
        if self.now - (sentinel.fired or sentinel.claimed) > keep:
            self.stale_sentinels.append((sentinel.object.name, sentinel.object.generation))
        self.outcomes[Outcome.IGNORED] += 1

    def dispatch(self, max_sql: int, max_jobs: int) -> None:
        for candidate in sorted(self.candidates, key=lambda candidate: candidate.key):
            is_sql = candidate.lane is Lane.SQL
            limit = max_sql if is_sql else max_jobs
            if limit and self.active[candidate.project, is_sql] >= limit:
                self.outcomes[Outcome.THROTTLED] += 1
                self.awaited += 1
                self.counts[candidate.project]["Throttled"][candidate.counter] += 1
            else:
                self.active[candidate.project, is_sql] += 1
                self.events[candidate.lane].append(candidate.event)


def _lost(trace: Trace) -> Quarantine:
    """The quarantine of a trace whose job BigQuery does not know."""
    stored, key = trace.object, trace.job
    since = stored.created.isoformat(timespec="seconds")
    where = f"location {key.location!r}" if key.location else "any location, nor in the list of jobs since then"
    return Quarantine(
        stored.name,
        stored.generation,
        stored.created,
        f"it waits since {since} for job {key.job_id!r}, and BigQuery answered 404 for that ID in project "
        f"{key.project!r}, {where}",
        {"Project": key.project, "Location": key.location, "ID": key.job_id, "Answer": 404},
    )


def limits(config: DispatchConfig) -> Mapping[Lane, int]:
    """The limit of each lane, 0 for none."""
    return {
        Lane.SQL: config.max_concurrent_sql,
        Lane.JOBS: config.max_concurrent_jobs,
        Lane.WINDOWS: config.max_concurrent_jobs,
    }


def target_of(event: Event, lane: Lane, config: DispatchConfig) -> str:
    """Where an event goes in the trigger bucket: a function of the event alone, so that a second try finds the first.

    Rule: docs/protocol.md, "Where things go". The folder is the hour in which the trace was created, UTC.

    :param event: a trace, or with ``Lane.WINDOWS`` a window.
    """
    if lane is Lane.WINDOWS:
        return f"{config.batch_prefix[1:]}{event.name}"
    hour = event.created.astimezone(UTC).strftime("%Y-%m-%d_%H")
    return f"{config.post_job_prefix[1:]}{hour}/{event.name.removesuffix('.json')}.json"


def other_target(target: str, generation: int) -> str:
    """The name for an event whose usual target is taken by other content."""
    stem, dot, ending = target.rpartition(".")
    return f"{stem}_{generation}{dot}{ending}"


def is_target(name: str, target: str) -> bool:
    """Tell whether an object lies where an event goes: at its usual target, or at an other one of any generation."""
    stem, dot, ending = target.rpartition(".")
    beside = name.removeprefix(f"{stem}_").removesuffix(f"{dot}{ending}")
    return name == target or (
        len(beside) < len(name) and name == f"{stem}_{beside}{dot}{ending}" and beside.isdecimal()
    )


def aside_path(created: datetime, name: str, generation: int, error_url: str) -> str:
    """Where an object is set aside, below ``ErrorURL``: a function of the object alone, so that a second try finds the
    first.

    A name that would be too long there is cut, and ends in a hash of the whole; the note beside it holds the whole.

    :param created: its creation, which gives the day's folder, UTC.
    :param name: path below the task folder.
    :param generation: of the object.
    :param error_url: ``gs://bucket/folder``.
    """
    day = created.astimezone(UTC).strftime("%Y-%m-%d")
    folder = error_url.removeprefix("gs://").partition("/")[2].strip("/")
    around = f"{folder}/{day}/.{generation}.json"
    room = _LONGEST - len(around.encode())
    if len(name.encode()) > room:
        mark = f"~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        name = name.encode()[: max(room - len(mark), 0)].decode(errors="ignore") + mark
    return f"{day}/{name}.{generation}"
