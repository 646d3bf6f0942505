"""What a cycle sees, decides and hands on: frozen values, no I/O and no clock."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from bqdispatch_provider.names import ACTIONS, TraceName, WindowName, is_bookkeeping


class Lane(StrEnum):
    """What is dispatched together: events of query jobs, events of all other jobs, due windows.

    ``SQL`` is held by ``MaxConcurrentSQL``; ``JOBS`` and ``WINDOWS`` share ``MaxConcurrentJobs``
    (docs/protocol.md, "Configuration document").
    """

    SQL = "sql"
    JOBS = "jobs"
    WINDOWS = "windows"


class Outcome(StrEnum):
    """Where each object that was listed ends in a cycle; every object ends in exactly one."""

    DISPATCHED = "dispatched"
    RUNNING = "running"
    PENDING = "pending"
    THROTTLED = "throttled"
    TOO_YOUNG = "too_young"
    NOT_FOUND = "not_found"
    QUARANTINED = "quarantined"
    IGNORED = "ignored"
    UNKNOWN = "unknown"
    ERROR = "error"


class Reason(StrEnum):
    """Why an event waits: the words of the report, the log and the metrics."""

    JOB_PENDING = "job pending"
    JOB_RUNNING = "job running"
    LIMIT = "limit reached"
    TOO_YOUNG = "too young"
    NOT_DUE = "not due"
    IN_HAND = "in another dispatcher's hands"
    IN_DOUBT = "delivery in doubt"
    REFUSED = "refused"
    PROTECTED = "under a hold or a retention policy"
    NO_ANSWER = "project not answering"
    NOT_FOUND = "job not found"
    UNDECIDED = "undecided"
    COMING_BACK = "on its way back from quarantine"
    OTHERS = "for others to dispatch"
    NEXT_CYCLE = "left to the next cycle"


TROUBLE = frozenset(
    {Reason.IN_DOUBT, Reason.REFUSED, Reason.PROTECTED, Reason.NO_ANSWER, Reason.NOT_FOUND, Reason.UNDECIDED}
)
"""Reasons that somebody may have to do something about; how often an event has waited for one of these is counted."""


@dataclass(frozen=True, slots=True)
class Wait:
    """An event that waits.

    :param name: path below the task folder.
    :param since: when it could have been dispatched first: a trace at its creation, a window at its end.
    :param said: what was said last, by a service or about the event; empty where the reason is all.
    :param times: in how many cycles it has waited for this reason, as far as that is counted.
    """

    name: str
    reason: Reason
    since: datetime
    said: str = ""
    times: int = 1


BATCH_JOBS = "BatchJobs"
_COUNTERS = {"query": "QueryJobs", "load": "LoadJobs", "reload": "LoadJobs", "copy": "CopyJobs"}


def counter_of(action: str) -> str:
    """The response document's counter for jobs of an action (docs/protocol.md, "The response of a run")."""
    return _COUNTERS.get(action, "OtherJobs")


def lane_of(action: str) -> Lane:
    """The lane of a finished job's action; whatever is no query falls under ``MaxConcurrentJobs``."""
    return Lane.SQL if action == "query" else Lane.JOBS


CREATED = "bqdispatch-created"
"""Metadata of an object that was given a new generation: when its first one was created, in Unix seconds."""

REPLAYED = "bqdispatch-replayed"
"""Metadata of a window that was put back from quarantine: it is fired whatever is known of earlier firings."""

OWNER = "bqdispatch-owner"
"""Metadata of what a dispatcher wrote into the task folder: which one it was."""

REPLAY = "bqdispatch-replay"
"""Metadata of an object that is on its way back from quarantine, and must not be dispatched yet: the generation under
which it was set aside."""

CLAIMED = "bqdispatch-claimed"
"""Metadata of a claim: when its window was claimed first, in Unix seconds."""

REASON = "bqdispatch-reason"
"""Metadata of what names a returned window in quarantine: why it was set aside, for people."""

SINCE = "bqdispatch-since"
"""Metadata of an object that came back from quarantine: when it was first written, in Unix seconds."""


Key = tuple[str, int]
"""The name and the generation of an object."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One generation of an object.

    :param name: path below the task folder (or in its bucket, for objects elsewhere).
    :param generation: exactly this one is meant.
    :param created: by the storage server's clock (aware, UTC).
    :param crc32c: checksum of the content, base64; empty where the listing did not say.
    :param size: bytes.
    :param metadata: custom metadata.
    :param held: what forbids its deletion, in words; empty: nothing.
    """

    name: str
    generation: int
    created: datetime
    crc32c: str = ""
    size: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    held: str = ""

    @property
    def doubted(self) -> bool:
        """Whether it was given a new generation because an earlier delivery of it could not be excluded."""
        return CREATED in self.metadata

    def same_content(self, other: StoredObject) -> bool:
        """Tell whether both hold the same bytes, by checksum and size."""
        return bool(self.crc32c) and (self.crc32c, self.size) == (other.crc32c, other.size)

    @property
    def since(self) -> datetime:
        """When it was first written, which is before its creation if it came back from quarantine."""
        try:
            return min(datetime.fromtimestamp(float(self.metadata[SINCE]), UTC), self.created)
        except (KeyError, ValueError, OverflowError, OSError):
            return self.created


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace in the task folder; ``project`` is the job's, the configured one for a trace at the root.

    :param job: the job that it waits for, which follows from the rest.
    """

    object: StoredObject
    name: TraceName
    project: str
    job: JobKey = field(init=False)

    def __post_init__(self) -> None:
        # Once and not whenever it is asked for: there may be a hundred thousand of them.
        object.__setattr__(self, "job", JobKey(self.project, self.name.region, self.name.job_id))


@dataclass(frozen=True, slots=True)
class Window:
    """A batch window in the task folder.

    :param project: its destination's, or the configured one.
    :param sentinel: the Go dispatcher's, which says that it has been fired; ``None`` where there is none.
    :param locations: what names the data folders of a window that has many.
    """

    object: StoredObject
    name: WindowName
    project: str
    sentinel: StoredObject | None = None
    locations: tuple[StoredObject, ...] = ()

    @property
    def key(self) -> Key:
        """The name and the generation."""
        return (self.object.name, self.object.generation)


@dataclass(frozen=True, slots=True)
class Firing:
    """What the ledger says of one generation of a window.

    :param claimed: when somebody last claimed it.
    :param fired: when its copy into the trigger bucket was proven; ``None`` until then.
    :param gone: when it was first seen that nothing of it is on its way any more, by the step of the last load that was
        seen then; 0: none was.
    :param aside: whether it was set aside, for BqTail has dropped it.
    """

    claimed: datetime
    fired: datetime | None = None
    gone: Mapping[int, datetime] = field(default_factory=dict)
    aside: bool = False


Firings = Mapping[int, Firing]
"""The firings of one window name, by the window's generation."""


@dataclass(frozen=True, slots=True)
class OpenFiring:
    """A firing whose load has not been seen yet, as the dispatcher wrote it down that fires it.

    :param window: name of the window.
    :param generation: of the window.
    :param project: in which its load runs; empty where nobody had to know.
    :param event_id: by which its load is known; empty where nobody had to know.
    :param many: whether the window has many folders, and is removed before it is fired.
    :param since: when it was written down.
    """

    window: str
    generation: int
    project: str
    event_id: str
    many: bool
    since: datetime

    @property
    def key(self) -> Key:
        """The window's name and generation."""
        return (self.window, self.generation)


class Late(StrEnum):
    """What becomes of a window that has returned: BqTail made it anew after one of its name had been fired."""

    WAIT = "wait"
    DROP = "drop"
    FIRE = "fire"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a returned window, by the evidence of the loads of its earlier firings.

    :param reason: for people.
    :param stale: location objects, by name and generation, that are removed first: their folders were loaded.
    :param beside: location objects that stay.
    """

    late: Late
    reason: str
    stale: tuple[Key, ...] = ()
    beside: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class JobKey:
    """What identifies a BigQuery job: IDs meet across projects and locations, so never the ID alone."""

    project: str
    location: str | None
    job_id: str


@dataclass(frozen=True, slots=True)
class Job:
    """How a BigQuery job stands.

    :param state: PENDING, RUNNING or DONE, whether well or badly.
    :param ended: when it was done, by BigQuery's clock; ``None`` while it is not.
    :param error: the reason why it ended badly, in BigQuery's words; empty otherwise.
    :param table: that it writes, ``project.dataset.table``; empty where it writes none, or a nameless one.
    """

    location: str
    state: str
    ended: datetime | None = None
    error: str = ""
    table: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The task folder's objects by kind.

    :param now: the storage server's time of the listing.
    :param orphans: the Go dispatcher's sentinels whose window is not there.
    :param intents: what dispatchers have written down before they dispatched it, and what says that they are through.
    :param undecided: windows that wait there for somebody to act.
    :param locations: by the name of a window that is not there, what names its data folders.
    :param ignored: how many are BqTail's bookkeeping, or sentinels that stand beside their window.
    :param unknown: names that are none of these, with the reason.
    """

    now: datetime
    traces: tuple[Trace, ...] = ()
    windows: tuple[Window, ...] = ()
    orphans: tuple[StoredObject, ...] = ()
    intents: tuple[StoredObject, ...] = ()
    undecided: tuple[StoredObject, ...] = ()
    locations: Mapping[str, tuple[StoredObject, ...]] = field(default_factory=dict)
    ignored: int = 0
    unknown: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return (
            len(self.traces)
            + len(self.windows)
            + len(self.orphans)
            + len(self.intents)
            + len(self.undecided)
            + self.ignored
            + len(self.unknown)
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a cycle has observed.

    :param jobs: the jobs that were found, by key.
    :param errors: projects whose jobs could not be looked at, with what BigQuery said.
    :param unread: jobs of which BigQuery does not say how they stand, with what it said instead.
    :param unknown: jobs that BigQuery is proven not to know, with where it was asked for them; one that was merely not
        found is not among them.
    :param firings: what the ledger says of the windows that are due, by name.
    :param hidden: windows of which the ledger could not be read, with the reason.
    :param loads: of windows that may be fired, by key: the project in which the load will run, and its event.
    :param verdicts: of windows that have returned, by key.
    :param open: firings whose load has not been seen, which count as active.
    :param abandoned: windows of many folders that were claimed, removed and not fired.
    :param underway: names of traces that were moved, or are being moved by others, and whose jobs are not seen yet.
    :param held: what holds events back that are older than it, with the reason: intents that cannot be read.
    :param tidy: what is to be put in order, as far as it does not follow from the rest.
    :param findings: what was found out while looking that somebody has to act on, one sentence each.
    """

    listing: Listing
    jobs: Mapping[JobKey, Job] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[JobKey, str] = field(default_factory=dict)
    unknown: Mapping[JobKey, JobKey] = field(default_factory=dict)
    firings: Mapping[str, Firings] = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict)
    loads: Mapping[Key, Load] = field(default_factory=dict)
    verdicts: Mapping[Key, Verdict] = field(default_factory=dict)
    open: tuple[OpenFiring, ...] = ()
    abandoned: tuple[OpenFiring, ...] = ()
    underway: frozenset[str] = frozenset()
    held: tuple[tuple[datetime, str], ...] = ()
    tidy: Tidy | None = None
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """Where the load of a window will run, and how its job will be known.

    :param project: in which it runs.
    :param event_id: of the storage event that made the window; empty where its body does not say.
    """

    project: str
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One trace to move, or one window to fire: exactly this generation of this object.

    :param name: path below the task folder.
    :param created: the trace's creation, which gives the hour of its target's folder.
    :param location: where the trace's job ran.
    :param ended: when that job was done, by BigQuery's clock; ``None`` for a window.
    :param error: the reason why that job ended badly; empty otherwise.
    :param table: that this job has written, ``project.dataset.table``; empty where it has written none.
    :param doubted: whether an earlier delivery of it has to be excluded first.
    :param load: of a window where a limit is set: the project in which its load will run, and its event.
    :param claimed: whether somebody has claimed this window, and not fired it.
    :param many: whether this window has many folders, and is removed before it is fired.
    :param replayed: whether somebody has put this window back, to be fired whatever is known of earlier firings.
    :param stale: location objects of this window, by name and generation, that are removed before it is fired.
    :param beside: of a window that has returned, the location objects that stay: with others it is judged anew.
    """

    name: str
    generation: int
    created: datetime
    location: str = ""
    ended: datetime | None = None
    error: str = ""
    table: str = ""
    doubted: bool = False
    load: Load | None = None
    claimed: bool = False
    many: bool = False
    replayed: bool = False
    stale: tuple[Key, ...] = ()
    beside: tuple[Key, ...] | None = None

    @property
    def key(self) -> Key:
        """The name and the generation: what makes two events the same."""
        return (self.name, self.generation)

    def to_json(self) -> list[Any]:
        """A compact form for XCom."""
        ended = self.ended.timestamp() if self.ended else 0
        more: list[Any] = [self.error, self.table, self.doubted] if self.error or self.table or self.doubted else []
        if self.load or self.claimed or self.many or self.replayed or self.beside is not None:
            load = [self.load.project, self.load.event_id] if self.load else None
            beside = None if self.beside is None else [list(key) for key in self.beside]
            stale = [list(key) for key in self.stale]
            more = [self.error, self.table, self.doubted, load, self.claimed, self.many, self.replayed, stale, beside]
        return [self.name, self.generation, self.created.timestamp(), self.location, ended, *more]

    @classmethod
    def from_json(cls, document: Iterable[Any]) -> Event:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: when it is something else.
        """
        try:
            name, generation, created, location, ended, *more = document
            given: list[Any] = [*more, *["", "", False, None, False, False, False, (), None][len(more) :]]
            error, table, doubted, load, claimed, many, replayed, stale, beside = given
            return cls(
                str(name),
                int(generation),
                datetime.fromtimestamp(float(created), UTC),
                str(location),
                datetime.fromtimestamp(float(ended), UTC) if ended else None,
                str(error),
                str(table),
                bool(doubted),
                None if load is None else Load(*map(str, load)),
                bool(claimed),
                bool(many),
                bool(replayed),
                tuple((str(each), int(number)) for each, number in stale),
                None if beside is None else tuple((str(each), int(number)) for each, number in beside),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"not an event: {document!r}; expected [name, generation, created, location, ended], as the sensor "
                "wrote it"
            ) from error


@dataclass(frozen=True, slots=True)
class Share:
    """What travels from the sensor to an operator: events of one lane, no more than the limits let through.

    :param planned: when they were planned, by the storage server's clock: a limit is counted anew after a while.
    """

    lane: Lane
    planned: datetime
    events: tuple[Event, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a form for the journal."""
        return {
            "lane": str(self.lane),
            "planned": self.planned.timestamp(),
            "events": [event.to_json() for event in self.events],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Share:
        """Read what :meth:`to_dict` wrote.

        :raises ValueError: when it is something else, or names what is no event of its lane.
        """
        try:
            lane = Lane(document["lane"])
            planned = datetime.fromtimestamp(float(document["planned"]), UTC)
            share = cls(lane, planned, tuple(Event.from_json(event) for event in document["events"]))
        except (KeyError, TypeError, OverflowError, OSError) as error:
            raise ValueError(
                f"not a share: {str(document)[:200]!r}; expected what BqDispatchSensor wrote: lane, planned and events"
            ) from error
        for event in share.events:
            _check_kind(event, lane)
        return share


def _check_kind(event: Event, lane: Lane) -> None:
    """Make sure that an event from outside of this process is one that its lane dispatches.

    Whoever may write the journal could name any object of the task folder: to be moved, or removed as a window's.

    :raises ValueError: when it is none.
    """
    if is_bookkeeping(event.name):
        raise ValueError(f"{event.name!r} is neither a trace nor a batch window")
    if lane is Lane.WINDOWS:
        folder = WindowName.parse(event.name).locations
        for name, _ in (*event.stale, *(event.beside or ())):
            if not (name.startswith(folder) and name.endswith(".loc")):
                raise ValueError(f"{name!r} is no location of the batch window {event.name!r}")
    elif event.name.endswith((".win", ".wis")):
        raise ValueError(f"{event.name!r} is not a trace")
    elif lane_of(TraceName.parse(event.name).action) is not lane:
        raise ValueError(f"{event.name!r} does not belong to the lane {lane}")


@dataclass(frozen=True, slots=True)
class Only:
    """Which events are dispatched: those that match all that is given; what does not match waits for someone else.

    :param projects: projects of jobs, and of windows' destinations.
    :param destinations: patterns (``*``, ``?``, ``[…]``) of destination tables, as names have them or without the
        project: ``sales.*``. A partition is a part of the name: ``sales.orders$*``.
    :param actions: actions of finished jobs, of :data:`~bqdispatch_provider.names.ACTIONS`; windows have none, and do
        not match.
    :param event_ids: storage events that began the chain; windows have none, and do not match.
    :param lanes: lanes of events, of :class:`Lane`.
    """

    projects: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Only:
        """Read what an operator was given: lists of strings, or single ones, by the names above.

        :raises ValueError: when it is something else.
        """
        known = cls.__dataclass_fields__
        refusal = f"only is {given!r}; expected lists of strings by {', '.join(known)}, none of them empty"
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(refusal)
        fields: dict[str, tuple[str, ...]] = {}
        for name, value in (given or {}).items():
            values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
            # An empty list may come from a variable: taken for none given, it would let everything through.
            if name not in known or not values or not all(isinstance(each, str) for each in values):
                raise ValueError(refusal)
            # A misspelt one matches nothing, and who waits for it would be told at once that all of it is done.
            choice = {"actions": ACTIONS, "lanes": tuple(Lane)}.get(name, values)
            if unknown := [each for each in values if each not in choice]:
                raise ValueError(f"only names the {name} {unknown!r}; expected some of {', '.join(choice)}")
            fields[name] = values
        return cls(**fields)

    def takes(self, project: str, name: TraceName | WindowName) -> bool:
        """Tell whether an event is one of these.

        :param project: the event's, which its name need not have.
        """
        if self.projects and project not in self.projects:
            return False
        tables = (name.dest, ".".join(re.split("[:.]", name.dest)[-2:]))
        if self.destinations and not any(fnmatchcase(table, each) for table in tables for each in self.destinations):
            return False
        if isinstance(name, WindowName):
            return not (self.actions or self.event_ids) and Lane.WINDOWS in (self.lanes or Lane)
        return (
            (not self.actions or name.action in self.actions)
            and (not self.event_ids or name.event_id in self.event_ids)
            and lane_of(name.action) in (self.lanes or Lane)
        )


EVERYTHING = Only()


@dataclass(frozen=True, slots=True)
class Quarantine:
    """An object that must not be dispatched, and why.

    :param name: path below the task folder.
    :param created: when it was created, which gives the day of its folder under ``ErrorURL``.
    :param reason: for people.
    :param asked: what was looked at to find out, for the note that is left beside it.
    :param undecided: whether it is set aside in the task folder, where every look finds and names it until somebody
        acts.
    :param dropped: whether it is a firing of which BqTail has loaded nothing.
    """

    name: str
    generation: int
    created: datetime
    reason: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    undecided: bool = False
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Tidy:
    """What is to be put in order beside dispatching.

    :param quarantines: what to set aside under ``ErrorURL``.
    :param stale: what to delete, by name and generation: fired windows that were kept long enough, returned windows
        whose files are loaded, location objects and intents that nobody needs any more.
    :param fired: windows whose loads prove that they were fired, for the ledger.
    :param gone: fired windows of which nothing is on its way any more, and the step of the last load, for the ledger.
    :param missed: windows that are gone, to be made anew for a folder that their firing has missed, with their content.
    """

    quarantines: tuple[Quarantine, ...] = ()
    stale: tuple[Key, ...] = ()
    fired: tuple[Key, ...] = ()
    gone: tuple[tuple[Key, int], ...] = ()
    missed: tuple[tuple[str, bytes], ...] = ()


ProjectCounts = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Per project: ``Running``, ``Pending``, ``Throttled`` -> counter -> number."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cycle will do, and where every other object stands.

    :param now: when this was planned, by the storage server's clock.
    :param events: what to dispatch, per lane, oldest first.
    :param listed: how many objects were listed: the number of events, quarantines and outcomes together.
    :param tidy: what to put in order.
    :param outcomes: how many of the objects that need no action ended in which outcome.
    :param counts: the response document's gauges per project.
    :param projects: number of traces per project.
    :param not_found: number of traces per project whose job BigQuery does not know.
    :param errors: what went wrong while looking, one sentence each.
    :param oldest: since when the oldest event waits that goes on waiting: a trace since its creation, a window since
        its end; ``None`` when none does.
    :param awaited: how many of the objects wait for a job that runs, or is about to.
    :param due_in: how long until the first of those is due that wait for nothing but time; ``None``: there is none.
    :param late: how many returned windows are removed, since their files were loaded before.
    :param throttled: events that only a limit holds back, with their lanes, in the order in which they are to go.
    :param waits: events that are not dispatched, why, and since when; not those of the last minute.
    :param room: how much of a limit is left when all of it is dispatched, by project and whether it is that of queries.
    """

    now: datetime
    events: Mapping[Lane, tuple[Event, ...]]
    listed: int
    tidy: Tidy = Tidy()
    outcomes: Mapping[Outcome, int] = field(default_factory=Counter)
    counts: ProjectCounts = field(default_factory=dict)
    projects: Mapping[str, int] = field(default_factory=dict)
    not_found: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    oldest: datetime | None = None
    awaited: int = 0
    due_in: timedelta | None = None
    late: int = 0
    throttled: tuple[tuple[Lane, Event], ...] = ()
    waits: tuple[Wait, ...] = ()
    room: Mapping[tuple[str, bool], int] = field(default_factory=dict)

    def shares(self) -> list[Share]:
        """Return the plan's events, a share for each lane that has some."""
        return [Share(lane, self.now, events) for lane, events in self.events.items() if events]
