"""What a cycle decides, as pure functions of what it has seen: no client, no I/O, no clock of its own."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.model import (
    BATCH_JOBS,
    EVERYTHING,
    REASON,
    REPLAY,
    REPLAYED,
    Event,
    Firing,
    Firings,
    Job,
    JobKey,
    Key,
    Lane,
    Late,
    Listing,
    Only,
    OpenFiring,
    Outcome,
    Plan,
    Quarantine,
    Reason,
    Snapshot,
    StoredObject,
    Tidy,
    Trace,
    Verdict,
    Wait,
    Window,
    counter_of,
    lane_of,
)
from bqdispatch_provider.names import (
    INTENTS,
    LOADS,
    UNDECIDED,
    LedgerName,
    TraceName,
    WindowName,
    as_job_id,
    cut,
    is_bookkeeping,
)

MIN_AGE = timedelta(seconds=3)
"""A younger object waits for the next cycle: BqTail writes the trace before it submits (docs/protocol.md, "Timing")."""

DUE_AFTER = timedelta(seconds=7)
"""A window is due once this has passed since its end (docs/protocol.md, "Timing")."""

UNSEEN_FOR = timedelta(minutes=1)
"""How long a trace without its job counts as an active job that is not to be seen yet."""

CLAIM_TIMEOUT = timedelta(minutes=3)
"""After this a window that was claimed and not fired is taken up again by whoever sees it first: longer than a
dispatcher goes on without asking. Only patience rests on it (``moves``)."""

LEASE = timedelta(seconds=30)
"""For so long traces are left to the dispatcher that has written down that it moves them; one that lives renews that.
Only patience rests on it."""

KEEP_ENTRY = timedelta(days=8)
"""How long the ledger remembers a firing: a storage event is retried for seven days."""

GONE_FOR = timedelta(minutes=10)
"""A load that is not seen so long after BqTail took the fired window does not come: no function runs for longer."""

_SETTLED = timedelta(seconds=2)
"""An intent is deleted no sooner: a name may be changed once a second, and the server's clock is told in seconds."""

JOBS_KEPT = timedelta(days=175)
"""BigQuery forgets jobs after half a year: what it does not know of an older trace proves nothing."""

TELLS_AFTER = timedelta(minutes=1)
"""An event that waits for longer is told of by itself."""

MAX_OBJECT_NAME_BYTES = 1024
"""Bytes that the name of an object may have (Cloud Storage, "Object names")."""

_CLOCK_BEHIND = timedelta(minutes=1)
"""An object may be newer than the listing that shows it, by the time that the listing takes."""

_BESIDE = re.compile(r"_[0-9]{10,}$")
"""A generation behind a target's name (:func:`other_target`)."""

_LONGEST_ENDING = f".{2**63 - 1}.gone-99999"
"""What is the longest that stands behind a window's name in the ledger."""


def classify(objects: Iterable[StoredObject], project: str, now: datetime) -> Listing:
    """Sort the task folder's objects by kind (docs/protocol.md, "Objects in the task folder").

    :param objects: everything below the task folder.
    :param project: project of root traces and of windows that name none.
    :param now: the storage server's time.
    """
    traces: list[Trace] = []
    windows: list[tuple[StoredObject, WindowName]] = []
    sentinels: dict[str, StoredObject] = {}
    intents: list[StoredObject] = []
    undecided: list[StoredObject] = []
    locations: defaultdict[str, list[StoredObject]] = defaultdict(list)
    ignored = 0
    unknown: dict[str, str] = {}
    for stored in objects:
        name = stored.name
        try:
            if name.startswith(INTENTS):
                intents.append(stored)
            elif name.startswith(UNDECIDED):
                undecided.append(stored)
            elif is_bookkeeping(name):
                ignored += 1
                folder, _, base = name.rpartition("/")
                if base.endswith(".loc"):
                    locations[f"{folder}.win"].append(stored)
            elif name.endswith(".wis") or _is_go_sentinel(stored):
                sentinels[WindowName.parse(_fired_by_go(name)).name] = stored
            elif name.endswith(".win"):
                windows.append((stored, WindowName.parse(name)))
            else:
                trace = TraceName.parse(name)
                traces.append(Trace(stored, trace, trace.project or project))
        except ValueError as error:
            unknown[name] = str(error)
    found = tuple(
        Window(
            stored,
            parsed,
            parsed.dest_project or project,
            # Whoever has put it back has decided that it is fired, whatever the Go dispatcher says.
            None if REPLAYED in stored.metadata else sentinels.pop(stored.name, None),
            tuple(locations.pop(stored.name, ())),
        )
        for stored, parsed in windows
    )
    return Listing(
        now,
        tuple(traces),
        found,
        tuple(sentinels.values()),
        tuple(intents),
        tuple(undecided),
        {window: tuple(each) for window, each in locations.items()},
        ignored + sum(window.sentinel is not None for window in found),
        unknown,
    )


def _is_go_sentinel(stored: StoredObject) -> bool:
    """Tell whether an object that is named like a window is a sentinel of the Go dispatcher: of ``ds.windows_1_2.win``
    it writes ``ds.wisdows_1_2.win``, for it replaces the first ``.win``. A window's content is no single dot."""
    return ".wis" in stored.name and stored.name.endswith(".win") and stored.size == 1


def _fired_by_go(sentinel: str) -> str:
    """The window of a sentinel of the Go dispatcher."""
    return f"{sentinel[:-4]}.win" if sentinel.endswith(".wis") else sentinel.replace(".wis", ".win", 1)


def due(window: Window, now: datetime) -> bool:
    """Tell whether a window may be fired as far as time goes."""
    return now - DUE_AFTER > window.name.end


def unfired(window: Window, firings: Firings, now: datetime) -> bool:
    """Tell whether a window may be fired as far as is known of its own firing.

    :param firings: of its name, by generation.
    """
    firing = firings.get(window.object.generation)
    return (
        window.sentinel is None
        and REPLAY not in window.object.metadata
        and due(window, now)
        and (firing is None or (firing.fired is None and now - firing.claimed >= CLAIM_TIMEOUT))
    )


def returned(window: Window, firings: Firings) -> bool:
    """Tell whether a window was made anew after one of its name had been fired: then the evidence decides.

    :param firings: of its name, by generation.
    """
    return bool(firings.keys() - {window.object.generation}) and REPLAYED not in window.object.metadata


def overdue(trace: Trace, config: DispatchConfig, now: datetime) -> bool:
    """Tell whether a trace has waited so long that it is quarantined if BigQuery is proven not to know its job."""
    longest = timedelta(minutes=config.max_unknown_job_min)
    return bool(longest) and now - trace.object.created > longest and now - trace.object.since < JOBS_KEPT


_LONGEST_WAIT = timedelta(days=1)
"""The longest that a trace waits without an error for a job that is not found, where none is set aside."""


def _waits_too_long(trace: Trace, config: DispatchConfig, now: datetime) -> bool:
    """Tell whether a trace has waited so long for a job that is not found that somebody has to look into it."""
    longest = timedelta(minutes=config.max_unknown_job_min) or _LONGEST_WAIT
    return now - trace.object.created > longest


def plan(snapshot: Snapshot, config: DispatchConfig, now: datetime, only: Only = EVERYTHING) -> Plan:
    """Decide what is dispatched, held back or set aside.

    Per project, events dispatched plus jobs active never pass the limits. Firings that somebody has begun go first,
    then the oldest. Where each object ends does not depend on the order of the listing (docs/protocol.md,
    "Configuration document").

    :param snapshot: what lies in the task folder, and how the jobs stand.
    :param config: the limits, how long fired windows are kept, and how long a trace may wait for an unknown job.
    :param now: the storage server's time.
    :param only: which events may be dispatched; the others are pending.
    """
    tidy = snapshot.tidy or Tidy()
    limited, project = bool(config.max_concurrent_jobs), config.project_id or ""
    planning = _Planning(now, only, snapshot, config, limited, project, frozenset(tidy.fired))
    listing = snapshot.listing
    planning.outcomes[Outcome.UNKNOWN] += len(listing.unknown)
    planning.outcomes[Outcome.IGNORED] += listing.ignored + len(listing.intents) + len(listing.undecided)
    planning.outcomes[Outcome.IGNORED] += len(listing.orphans)
    for trace in listing.traces:
        job, failed = snapshot.jobs.get(trace.job), trace.project in snapshot.errors
        lost = snapshot.unknown.get(trace.job) if overdue(trace, config, now) else None
        planning.trace(trace, job, failed, lost)
        if trace.job in snapshot.unread or (not (job or failed or lost) and _waits_too_long(trace, config, now)):
            planning.held.append(_not_found(trace, snapshot.unread.get(trace.job, "")))
    keep = timedelta(milliseconds=config.max_trigger_delay_ms)
    for lane, number in underway(snapshot.underway, listing.traces, planning.running, project).items():
        planning.active[lane] += number
        planning.awaited += number
    for window in listing.windows:
        planning.window(window, keep)
    for firing in snapshot.abandoned:
        planning.take_over(firing)
    candidates = {candidate.event.key for candidate in planning.candidates}
    for firing in snapshot.open:
        if firing.key not in candidates:
            planning.active[firing.project, False] += 1
    planning.dispatch(config.max_concurrent_sql, config.max_concurrent_jobs)
    gone = {each.key for events in planning.events.values() for each in events}
    gone |= {(each.name, each.generation) for each in planning.quarantines}
    waiting = [
        *planning.waiting,
        *((each.object.name, each.object.generation, each.object.created) for each in listing.traces),
    ]
    return Plan(
        now=now,
        events={lane: tuple(planning.events[lane]) for lane in Lane},
        listed=len(listing) + len(snapshot.abandoned) + len(tidy.quarantines),
        tidy=replace(
            tidy,
            quarantines=(*tidy.quarantines, *planning.quarantines),
            stale=tuple(dict.fromkeys((*planning.stale, *tidy.stale))),
        ),
        outcomes={outcome: number for outcome, number in planning.outcomes.items() if number},
        counts={
            project: {gauge: dict(counter) for gauge, counter in gauges.items()}
            for project, gauges in planning.counts.items()
        },
        projects=dict(Counter(trace.project for trace in listing.traces)),
        not_found=dict(planning.not_found),
        unknown=listing.unknown,
        errors=(
            *(
                f"the jobs of project {project!r} cannot be looked at, so its traces wait: {said}"
                for project, said in sorted(snapshot.errors.items())
            ),
            *dict.fromkeys(sorted(planning.held)),
            *snapshot.findings,
            *(_undecided(each) for each in listing.undecided),
            *_odd_clock(listing),
        ),
        oldest=min((since for *key, since in waiting if tuple(key) not in gone), default=None),
        awaited=planning.awaited,
        due_in=min(planning.due_in, default=None),
        late=planning.late,
        throttled=tuple(planning.throttled),
        waits=(
            *planning.waits,
            *(
                Wait(each.name, Reason.UNDECIDED, each.created, each.metadata.get(REASON, ""))
                for each in listing.undecided
            ),
        ),
        room=planning.room(config.max_concurrent_sql, config.max_concurrent_jobs),
    )


def place_of(trace: Trace, content: bytes) -> JobKey | None:
    """Return where a trace's job is by the trace's content (docs/protocol.md); ``None`` where that does not say it.

    :param trace: whose name does not say it.
    :param content: which anybody may have written who may write there: only of this trace's own job it is believed.
    """
    try:
        reference = json.loads(content)["Job"]["jobReference"]
        project, location, job_id = (reference[key] for key in ("projectId", "location", "jobId"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    named = all(isinstance(each, str) and each for each in (project, location))
    return JobKey(project, location, job_id) if named and job_id == trace.name.job_id else None


def underway(
    names: Iterable[str], traces: Iterable[Trace], running: Collection[str], project: str
) -> Counter[tuple[str, bool]]:
    """Count traces that were moved and whose next job is not to be seen yet, by project and whether they are queries.

    Each takes a place of its limit until then, as its job will.

    :param names: of such traces, with ``.json`` or without.
    :param traces: that lie in the task folder: they count by themselves.
    :param running: IDs of storage events of which a job is seen.
    :param project: of root traces.
    """
    counted: Counter[tuple[str, bool]] = Counter()
    moved = {name.removesuffix(".json") for name in names}
    for name in moved - {trace.object.name.removesuffix(".json") for trace in traces if moved}:
        with suppress(ValueError):
            parsed = TraceName.parse(name)
            if parsed.event_id not in running:
                counted[parsed.project or project, lane_of(parsed.action) is Lane.SQL] += 1
    return counted


def _undecided(marker: StoredObject) -> str:
    window, _, _ = marker.name.removeprefix(UNDECIDED).rpartition(".")
    reason = marker.metadata.get(REASON, "it could not be decided on")
    return (
        f"window {window!r} waits as {marker.name!r} since {marker.created:%Y-%m-%d %H:%M} UTC: {reason}; "
        "`bqdispatch replay` fires it, or delete that object if its files are loaded"
    )


def _odd_clock(listing: Listing) -> Iterator[str]:
    """Say that the clock is behind which tells how old everything is, as it may be by a proxy's doing."""
    traces, windows = (each.object for each in listing.traces), (each.object for each in listing.windows)
    newest = max((*traces, *windows, *listing.intents), key=lambda each: each.created, default=None)
    if newest is not None and newest.created - listing.now > _CLOCK_BEHIND:
        behind = (newest.created - listing.now).total_seconds()
        yield (
            f"the clock of Cloud Storage's answers is {behind:.0f} s or more behind, so what is old enough waits: "
            f"{newest.name!r} was created at {newest.created:%Y-%m-%d %H:%M:%S} UTC; does a proxy change their Date?"
        )


def loads_seen(traces: Iterable[Trace], recent: Iterable[str], events: Collection[str]) -> set[tuple[str, str]]:
    """Return the loads that can be seen, each by its destination and its event as in job IDs.

    :param traces: in the task folder.
    :param recent: IDs of jobs that were listed.
    :param events: that are asked for, as in job IDs.
    """
    names = [trace.name for trace in traces]
    for job_id in recent:
        with suppress(ValueError):
            names.append(TraceName.parse(job_id))
    loads = ((each, as_job_id(each.event_id)) for each in names if each.action in LOADS)
    return {(as_job_id(each.dest), event) for each, event in loads if event in events}


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
    only: Only
    seen: Snapshot
    config: DispatchConfig
    limited: bool
    project: str
    proven: frozenset[Key]
    active: Counter[tuple[str, bool]] = field(default_factory=Counter)
    running: set[str] = field(default_factory=set)
    candidates: list[_Candidate] = field(default_factory=list)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    counts: defaultdict[str, defaultdict[str, Counter[str]]] = field(default_factory=lambda: defaultdict(_zero))
    not_found: Counter[str] = field(default_factory=Counter)
    quarantines: list[Quarantine] = field(default_factory=list)
    stale: list[Key] = field(default_factory=list)
    late: int = 0
    held: list[str] = field(default_factory=list)
    awaited: int = 0
    due_in: list[timedelta] = field(default_factory=list)
    events: dict[Lane, list[Event]] = field(default_factory=lambda: {lane: [] for lane in Lane})
    throttled: list[tuple[Lane, Event]] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    waiting: list[tuple[str, int, datetime]] = field(default_factory=list)
    """Windows that are due, with their generations, and since when."""

    def trace(self, trace: Trace, job: Job | None, project_failed: bool, lost: JobKey | None) -> None:
        age = self.now - trace.object.created
        lane, counter = lane_of(trace.name.action), counter_of(trace.name.action)
        # A trace is written before its job is submitted, so for a while the job may be about to appear.
        # What cannot be looked at may be running: better too few are dispatched than too many.
        active = job.state != "DONE" if job is not None else project_failed or age < UNSEEN_FOR
        if active:
            self.active[trace.project, lane is Lane.SQL] += 1
            self.running.add(trace.name.event_id)
            self.awaited += 1
        if REPLAY in trace.object.metadata:
            self._wait(trace.project, "Pending", counter)
            self._tell(trace.object.name, trace.object.created, Reason.COMING_BACK)
        elif project_failed and job is None:
            self.outcomes[Outcome.ERROR] += 1
            self._tell(trace.object.name, trace.object.created, Reason.NO_ANSWER, self.seen.errors[trace.project])
            # BqTail's balancer takes a project without numbers for a free one, and would send more loads there.
            self.counts[trace.project]["Pending"][counter] += 1
        elif age < MIN_AGE:
            self.outcomes[Outcome.TOO_YOUNG] += 1
            self.due_in.append(MIN_AGE - age)
        elif job is None and lost:
            self.quarantines.append(_lost(trace, lost))
        elif job is None:
            self.outcomes[Outcome.NOT_FOUND] += 1
            self.not_found[trace.project] += 1
            self._tell(trace.object.name, trace.object.created, Reason.NOT_FOUND, self.seen.unread.get(trace.job, ""))
        elif job.state == "DONE":
            stored = trace.object
            event = Event(
                stored.name,
                stored.generation,
                stored.created,
                job.location,
                job.ended,
                job.error,
                job.table,
                stored.doubted,
            )
            candidate = _Candidate(stored.created, event, trace.project, lane, counter)
            self._candidate(candidate, trace.name, stored.held)
        else:
            is_running = job.state == "RUNNING"
            self._wait(trace.project, "Running" if is_running else "Pending", counter)
            self._tell(
                trace.object.name, trace.object.created, Reason.JOB_RUNNING if is_running else Reason.JOB_PENDING
            )

    def _tell(self, name: str, since: datetime, reason: Reason, said: str = "") -> None:
        """Note why something waits, once it does so for a while."""
        if self.now - since > TELLS_AFTER:
            self.waits.append(Wait(name, reason, since, said))

    def _wait(self, project: str, gauge: str, counter: str) -> None:
        self.outcomes[Outcome.RUNNING if gauge == "Running" else Outcome.PENDING] += 1
        self.counts[project][gauge][counter] += 1

    def window(self, window: Window, keep: timedelta) -> None:
        stored = window.object
        firings = self.seen.firings.get(stored.name, {})
        firing = firings.get(stored.generation)
        until_due = window.name.end - self.now + DUE_AFTER
        if REPLAY in stored.metadata:
            self._wait(window.project, "Pending", BATCH_JOBS)
            self._tell(stored.name, window.name.end, Reason.COMING_BACK)
        elif window.sentinel is not None:
            self._fired_by_go(window, window.sentinel)
        elif firing is not None and firing.fired is not None:
            # Beside the names of its folders it would swallow late events of new ones.
            if (self.now - firing.fired > keep or window.locations) and not stored.held:
                self.stale.append(window.key)
            self.outcomes[Outcome.IGNORED] += 1
        elif window.key in self.proven:
            self.outcomes[Outcome.IGNORED] += 1
        elif self.now - stored.created < MIN_AGE:
            self.outcomes[Outcome.TOO_YOUNG] += 1
            self.due_in.append(max(MIN_AGE - (self.now - stored.created), until_due))
        elif not due(window, self.now):
            self._wait(window.project, "Pending", BATCH_JOBS)
            self.due_in.append(until_due)
        else:
            self.waiting.append((*window.key, window.name.end))
            self._due(window, firing, firings)

    def _due(self, window: Window, firing: Firing | None, firings: Firings) -> None:
        stored = window.object
        if stored.name in self.seen.hidden:
            self._refuse(f"window {stored.name!r} waits: {self.seen.hidden[stored.name]}")
            self._tell(stored.name, window.name.end, Reason.REFUSED, self.seen.hidden[stored.name])
        elif not unfired(window, firings, self.now):
            self._wait(window.project, "Pending", BATCH_JOBS)  # somebody is firing it now
            self._tell(stored.name, window.name.end, Reason.IN_HAND)
        elif returned(window, firings):
            self._returned(window, self.seen.verdicts.get(window.key), claimed=firing is not None)
        else:
            self._fire(window, claimed=firing is not None)

    def _fired_by_go(self, window: Window, sentinel: StoredObject) -> None:
        """The Go dispatcher's sentinel says nothing, but was written before the copy."""
        stored = window.object
        if stored.created <= sentinel.created:
            self.outcomes[Outcome.IGNORED] += 1
            return
        fired = sentinel.created.isoformat(timespec="seconds")
        reason = (
            f"a late twin: the Go dispatcher fired a window of this name at {fired}, and nothing else is known of it: "
            "firing it again could load its files twice"
        )
        asked = {"Sentinel": sentinel.name, "Fired": fired}
        self.quarantines.append(
            Quarantine(stored.name, stored.generation, stored.created, reason, asked, undecided=True)
        )

    def _returned(self, window: Window, verdict: Verdict | None, *, claimed: bool) -> None:
        stored = window.object
        if verdict is None or verdict.late is Late.WAIT:
            self._wait(window.project, "Pending", BATCH_JOBS)
            self._tell(stored.name, window.name.end, Reason.UNDECIDED, verdict.reason if verdict else "")
            self.awaited += 1
        elif verdict.late is Late.FIRE:
            self._fire(window, claimed=claimed, verdict=verdict)
        elif stored.held:
            self._refuse(f"{stored.name!r} waits until it may be deleted: it is under {stored.held}")
            self._tell(stored.name, window.name.end, Reason.PROTECTED, stored.held)
        elif verdict.late is Late.DROP:
            self.stale += [window.key, *verdict.stale]
            self.late += 1
            self.outcomes[Outcome.IGNORED] += 1
        else:
            self.quarantines.append(
                Quarantine(stored.name, stored.generation, stored.created, verdict.reason, undecided=True)
            )

    def _fire(self, window: Window, *, claimed: bool = False, verdict: Verdict | None = None) -> None:
        stored, load = window.object, self.seen.loads.get(window.key)
        if load is None and self.limited:
            self._wait(window.project, "Pending", BATCH_JOBS)  # its body is read by the next look
            self._tell(stored.name, window.name.end, Reason.NEXT_CYCLE)
            return
        if load is not None and load.project in self.seen.errors:
            self.outcomes[Outcome.ERROR] += 1
            self._tell(stored.name, window.name.end, Reason.NO_ANSWER, self.seen.errors[load.project])
            return
        event = Event(
            stored.name,
            stored.generation,
            stored.created,
            load=load,
            claimed=claimed,
            many=bool(window.locations),
            replayed=REPLAYED in stored.metadata,
            stale=verdict.stale if verdict else (),
            beside=verdict.beside if verdict else None,
        )
        self._candidate(
            _Candidate(window.name.end, event, load.project if load else window.project, Lane.WINDOWS, BATCH_JOBS),
            window.name,
            stored.held,
            window.project,
        )

    def take_over(self, firing: OpenFiring) -> None:
        """Fire a window that is gone, since whoever had claimed it went away."""
        name = WindowName.parse(firing.window)
        self.waiting.append((*firing.key, name.end))
        verdict, load = self.seen.verdicts.get(firing.key), self.seen.loads.get(firing.key)
        project = name.dest_project or self.project
        had_returned = bool(self.seen.firings.get(firing.window, {}).keys() - {firing.generation})
        tell = partial(self._tell, firing.window, name.end)
        if firing.window in self.seen.hidden:
            self._refuse(f"window {firing.window!r} waits: {self.seen.hidden[firing.window]}")
            tell(Reason.REFUSED, self.seen.hidden[firing.window])
        elif (had_returned and (verdict is None or verdict.late is Late.WAIT)) or (load is None and self.limited):
            self._wait(project, "Pending", BATCH_JOBS)
            tell(Reason.UNDECIDED, verdict.reason if verdict else "")
        elif verdict is not None and verdict.late is not Late.FIRE:
            self._refuse(f"window {firing.window!r} was claimed, and must not be fired: {verdict.reason}")
            tell(Reason.REFUSED, verdict.reason)
        elif load is not None and load.project in self.seen.errors:
            self.outcomes[Outcome.ERROR] += 1
            tell(Reason.NO_ANSWER, self.seen.errors[load.project])
        else:
            event = Event(
                firing.window,
                firing.generation,
                firing.since,
                load=load,
                claimed=True,
                many=True,
                stale=verdict.stale if verdict else (),
                beside=verdict.beside if verdict else None,
            )
            candidate = _Candidate(name.end, event, load.project if load else project, Lane.WINDOWS, BATCH_JOBS)
            self._candidate(candidate, name, "", project)

    def _refuse(self, why: str) -> None:
        self.outcomes[Outcome.ERROR] += 1
        self.held.append(why)

    def _candidate(
        self, candidate: _Candidate, name: TraceName | WindowName, held: str, project: str | None = None
    ) -> None:
        blocked = next((why for at, why in self.seen.held if candidate.event.created <= at), None)
        if not self.only.takes(candidate.project if project is None else project, name):
            # Its job is done: to BqTail's balancer, and in graphs, it is none that is pending.
            self.outcomes[Outcome.PENDING] += 1
            self._tell(candidate.event.name, candidate.since, Reason.OTHERS)
        elif held:
            # What cannot be deleted would be delivered again and again.
            self._refuse(f"{candidate.event.name!r} waits until it may be deleted: it is under {held}")
            self._tell(candidate.event.name, candidate.since, Reason.PROTECTED, held)
        elif blocked:
            self._refuse(blocked)
            self._tell(candidate.event.name, candidate.since, Reason.IN_DOUBT, blocked)
        elif (size := self._size_of_target(candidate)) > MAX_OBJECT_NAME_BYTES:
            event = candidate.event
            reason = (
                f"its name would be {size} bytes long in the trigger bucket, and Cloud Storage takes "
                f"{MAX_OBJECT_NAME_BYTES}: a shorter prefix there, or a shorter table name, lets it through"
            )
            self.quarantines.append(Quarantine(event.name, event.generation, event.created, reason))
        else:
            self.candidates.append(candidate)

    def _size_of_target(self, candidate: _Candidate) -> int:
        return len(target_of(candidate.event, candidate.lane, self.config).encode())

    def dispatch(self, max_sql: int, max_jobs: int) -> None:
        begun = {firing.key for firing in self.seen.open}
        begun |= {candidate.event.key for candidate in self.candidates if candidate.event.claimed}
        # What somebody has begun to fire goes first, and takes a place even if it has to wait: it may be delivered.
        for candidate in sorted(self.candidates, key=lambda each: (each.event.key not in begun, each.key)):
            is_sql = candidate.lane is Lane.SQL
            limit = max_sql if is_sql else max_jobs
            if limit and self.active[candidate.project, is_sql] >= limit:
                self.active[candidate.project, is_sql] += candidate.event.key in begun
                self.outcomes[Outcome.THROTTLED] += 1
                self.awaited += 1
                self.counts[candidate.project]["Throttled"][candidate.counter] += 1
                self.throttled.append((candidate.lane, candidate.event))
                self._tell(candidate.event.name, candidate.since, Reason.LIMIT)
            else:
                self.active[candidate.project, is_sql] += 1
                self.events[candidate.lane].append(candidate.event)

    def room(self, max_sql: int, max_jobs: int) -> dict[tuple[str, bool], int]:
        """Return what is left of the limits that are set."""
        limit = {True: max_sql, False: max_jobs}
        return {lane: limit[lane[1]] - number for lane, number in self.active.items() if limit[lane[1]]}


def _not_found(trace: Trace, said: str) -> str:
    """Say of a trace that it waits for a job of which nothing is known.

    :param said: by BigQuery when it was asked for that job; empty where that was nothing.
    """
    key, since = trace.job, trace.object.created.isoformat(timespec="seconds")
    where = f"location {key.location!r}" if key.location else "any location"
    said = said or "not found, which does not prove that BigQuery does not know it"
    return f"{trace.object.name!r} waits since {since}: job {key.job_id!r} of project {key.project!r}, {where}: {said}"


def _lost(trace: Trace, key: JobKey) -> Quarantine:
    """The quarantine of a trace whose job BigQuery does not know.

    :param key: the job, where BigQuery was asked for it.
    """
    stored = trace.object
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


def moved_from(path: str) -> str:
    """Return the name of the trace that was moved to a target.

    :param path: below the folder of the trigger bucket.
    :returns: without ``.json``, with which it may have ended.
    """
    name = path.partition("/")[2].removesuffix(".json")
    return _BESIDE.sub("", name)


def entry_name(window: str, generation: int, what: str, task_url: str) -> str:
    """Where the ledger remembers what was done with a window: a function of the window alone.

    Rule: docs/protocol.md, "The ledger of fired windows".

    :param window: its name.
    :param generation: of the window.
    :param what: ``claim``, ``fired``, or ``gone-<step of the last load>``.
    :param task_url: ``gs://bucket/folder``.
    :returns: path below the task folder.
    """
    folder = task_url.removeprefix("gs://").partition("/")[2].strip("/")
    minute = LedgerName.folder(WindowName.parse(window).end)
    # The same for all generations, and whatever was done: by its name all that is said of a window is found.
    room = MAX_OBJECT_NAME_BYTES - len(f"{folder}/{minute}{_LONGEST_ENDING}".encode())
    return f"{minute}{cut(window, room)}.{generation}.{what}"


def marker_name(window: str, generation: int, task_url: str) -> str:
    """Where a window waits that cannot be decided on.

    :param window: its name.
    :param generation: of the window.
    :param task_url: ``gs://bucket/folder``.
    :returns: path below the task folder.
    """
    folder = task_url.removeprefix("gs://").partition("/")[2].strip("/")
    room = MAX_OBJECT_NAME_BYTES - len(f"{folder}/{UNDECIDED}.{generation}".encode())
    return f"{UNDECIDED}{cut(window, room)}.{generation}"


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
    return f"{day}/{cut(name, MAX_OBJECT_NAME_BYTES - len(around.encode()))}.{generation}"
