"""What a cycle sees, decides and hands on: frozen values, no I/O and no clock."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from bqdispatch_provider.names import ACTIONS, TraceName, WindowName


class Lane(StrEnum):
    """What is dispatched together: events of query jobs, events of all other jobs, due windows.

    ``SQL`` is held by ``MaxConcurrentSQL``; ``JOBS`` and ``WINDOWS`` share ``MaxConcurrentJobs``
    (docs/protocol.md, "Configuration document").
    """

    SQL = "sql"
    JOBS = "jobs"
    WINDOWS = "windows"

    @classmethod
    def of(cls, given: Sequence[str] | None) -> list[Lane]:
        """Read which lanes a task was given.

        :param given: a list of lanes; ``None``: all.
        :raises ValueError: when it is something else.
        """
        if given is None:
            return list(cls)
        if isinstance(given, str) or not set(given) <= set(cls):
            raise ValueError(f"the lanes are {given!r}; expected a list of some of {', '.join(cls)}")
        return [cls(lane) for lane in given]


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

OWNER = "bqdispatch-owner"
"""Metadata of what a dispatcher wrote into the task folder: which one it was."""

REPLAY = "bqdispatch-replay"
"""Metadata of an object that is on its way back from quarantine, and must not be dispatched yet: the generation under
which it was set aside."""

SINCE = "bqdispatch-since"
"""Metadata of an object that came back from quarantine: when it was first written, in Unix seconds."""


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
    """A batch window in the task folder; ``project`` is its destination's, or the configured one."""

    object: StoredObject
    name: WindowName
    project: str
    sentinel: Sentinel | None = None


@dataclass(frozen=True, slots=True)
class Sentinel:
    """The object beside a window that says that it was claimed, or has been fired.

    :param object: the sentinel itself.
    :param window: generation of the window that it is about; ``None`` in one that the Go dispatcher wrote.
    :param claimed: when somebody began to fire it.
    :param fired: when the copy into the trigger bucket was proven; ``None`` until then.
    :param owner: who claimed it.
    """

    object: StoredObject
    window: int | None
    claimed: datetime
    fired: datetime | None
    owner: str = ""

    @classmethod
    def of(cls, stored: StoredObject) -> Sentinel:
        """Read a sentinel's metadata.

        One without ours was left by the Go dispatcher, whose body is a dot, and counts as fired; any other has lost its
        metadata, so it proves no more than that somebody claimed the window.
        """
        said = stored.metadata
        try:
            window = int(said["bqdispatch-window"])
            claimed = datetime.fromtimestamp(float(said["bqdispatch-claimed"]), UTC)
            fired = said.get("bqdispatch-fired")
            return cls(
                stored,
                window,
                claimed,
                datetime.fromtimestamp(float(fired), UTC) if fired else None,
                said.get(OWNER, ""),
            )
        except (KeyError, ValueError, OverflowError, OSError):
            return cls(stored, None, stored.created, stored.created if stored.size <= 1 else None)

    @staticmethod
    def claim(window: int, owner: str, now: datetime) -> dict[str, str]:
        """The metadata of a sentinel that claims a window's generation."""
        return {
            "bqdispatch-window": str(window),
            OWNER: owner,
            "bqdispatch-claimed": f"{now.timestamp():.3f}",
        }

    def fire(self, window: int, target: int, now: datetime) -> dict[str, str]:
        """The metadata of this sentinel once its window's generation has been copied to ``target``, a generation."""
        return {
            **self.object.metadata,
            "bqdispatch-window": str(window),
            "bqdispatch-fired": f"{now.timestamp():.3f}",
            "bqdispatch-target": str(target),
        }


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
    """

    location: str
    state: str
    ended: datetime | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The task folder's objects by kind.

    :param now: the storage server's time of the listing.
    :param orphans: sentinels whose window is not there.
    :param intents: what dispatchers have written down before they moved it.
    :param ignored: how many are BqTail's bookkeeping, or sentinels that stand beside their window.
    :param unknown: names that are none of these, with the reason.
    """

    now: datetime
    traces: tuple[Trace, ...] = ()
    windows: tuple[Window, ...] = ()
    orphans: tuple[Sentinel, ...] = ()
    intents: tuple[StoredObject, ...] = ()
    ignored: int = 0
    unknown: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return (
            len(self.traces)
            + len(self.windows)
            + len(self.orphans)
            + len(self.intents)
            + self.ignored
            + len(self.unknown)
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a cycle has observed.

    :param jobs: the jobs that were found, by key.
    :param errors: projects whose jobs could not be looked at, with what BigQuery said.
    :param recent: IDs of jobs created since the windows that are not accounted for yet were fired, with their creation.
    :param unknown: jobs that BigQuery is proven not to know; one that was merely not found is not among them.
    :param spent: intents of which nothing is left to move.
    """

    listing: Listing
    jobs: Mapping[JobKey, Job] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    recent: Mapping[str, datetime] = field(default_factory=dict)
    unknown: frozenset[JobKey] = frozenset()
    spent: tuple[StoredObject, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One trace to move, or one window to fire: exactly this generation of this object.

    :param name: path below the task folder.
    :param created: the trace's creation, which gives the hour of its target's folder.
    :param location: where the trace's job ran.
    :param ended: when that job was done, by BigQuery's clock; ``None`` for a window.
    :param error: the reason why that job ended badly; empty otherwise.
    :param doubted: whether an earlier delivery of it has to be excluded first.
    """

    name: str
    generation: int
    created: datetime
    location: str = ""
    ended: datetime | None = None
    error: str = ""
    doubted: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """The name and the generation: what makes two events the same."""
        return (self.name, self.generation)

    def to_json(self) -> list[Any]:
        """A compact form for XCom."""
        ended = self.ended.timestamp() if self.ended else 0
        more = [self.error, self.doubted] if self.error or self.doubted else []
        return [self.name, self.generation, self.created.timestamp(), self.location, ended, *more]

    @classmethod
    def from_json(cls, document: Iterable[Any]) -> Event:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: when it is something else.
        """
        try:
            name, generation, created, location, ended, *more = document
            error, doubted = more or ("", False)
            return cls(
                str(name),
                int(generation),
                datetime.fromtimestamp(float(created), UTC),
                str(location),
                datetime.fromtimestamp(float(ended), UTC) if ended else None,
                str(error),
                bool(doubted),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"not an event: {document!r}; expected [name, generation, created, location, ended], as the sensor "
                "wrote it"
            ) from error


@dataclass(frozen=True, slots=True)
class Share:
    """What travels from the sensor to an operator: events of one lane, no more than the limits let through.

    :param limit: the limit that the events were planned under; 0 for none.
    :param planned: when they were planned, by the storage server's clock: a limit is counted anew after a while.
    """

    lane: Lane
    limit: int
    planned: datetime
    events: tuple[Event, ...]

    def to_dict(self) -> dict[str, Any]:
        """A form for XCom."""
        return {
            "lane": str(self.lane),
            "limit": self.limit,
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
            events = tuple(Event.from_json(event) for event in document["events"])
            share = cls(lane, int(document["limit"]), planned, events)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"not a share: {document!r}; expected what BqDispatchSensor returned: lane, limit, planned and events"
            ) from error
        for event in share.events:
            (WindowName if lane is Lane.WINDOWS else TraceName).parse(event.name)
        return share


@dataclass(frozen=True, slots=True)
class Only:
    """Which events are dispatched: those that match all that is given; what does not match waits for someone else.

    :param projects: projects of jobs, and of windows' destinations.
    :param destinations: patterns (``*``, ``?``, ``[…]``) of destination tables, as names have them or without the
        project: ``sales.*``. A partition is a part of the name: ``sales.orders$*``.
    :param actions: actions of finished jobs, of :data:`~bqdispatch_provider.names.ACTIONS`; windows have none, and do
        not match.
    :param event_ids: storage events that began the chain; windows have none, and do not match.
    """

    projects: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, what: str = "only") -> Only:
        """Read what an operator was given: lists of strings, or single ones, by the names above.

        :param what: what it was given as, for the refusal.
        :raises ValueError: when it is something else.
        """
        known = cls.__dataclass_fields__
        refusal = f"{what} is {given!r}; expected lists of strings by {', '.join(known)}, none of them empty"
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(refusal)
        fields: dict[str, tuple[str, ...]] = {}
        for name, value in (given or {}).items():
            values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
            # An empty list may come from a variable: taken for none given, it would let everything through.
            if name not in known or not values or not all(isinstance(each, str) for each in values):
                raise ValueError(refusal)
            # A misspelt one matches nothing, and who waits for it would be told at once that all of it is done.
            if name == "actions" and (unknown := [each for each in values if each not in ACTIONS]):
                raise ValueError(f"{what} names the actions {unknown!r}; expected some of {', '.join(ACTIONS)}")
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
            return not (self.actions or self.event_ids)
        return (not self.actions or name.action in self.actions) and (
            not self.event_ids or name.event_id in self.event_ids
        )


EVERYTHING = Only()


@dataclass(frozen=True, slots=True)
class Quarantine:
    """An object that must not be dispatched, and why.

    :param name: path below the task folder.
    :param created: when it was created, which gives the day of its folder under ``ErrorURL``.
    :param reason: for people.
    :param asked: what was looked at to find out, for the note that is left beside it.
    """

    name: str
    generation: int
    created: datetime
    reason: str
    asked: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tidy:
    """What is to be put in order beside dispatching.

    :param quarantines: what to set aside under ``ErrorURL``.
    :param stale: windows, then sentinels, that have been fired and kept long enough, then intents of which nothing is
        left to move, as name and generation.
    """

    quarantines: tuple[Quarantine, ...] = ()
    stale: tuple[tuple[str, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A form for the journal."""
        return {
            "quarantines": [
                [q.name, q.generation, q.created.timestamp(), q.reason, dict(q.asked)] for q in self.quarantines
            ],
            "stale": [list(each) for each in self.stale],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Tidy:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            tuple(
                Quarantine(name, generation, datetime.fromtimestamp(created, UTC), reason, asked)
                for name, generation, created, reason, asked in document["quarantines"]
            ),
            tuple((name, generation) for name, generation in document["stale"]),
        )


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
    :param oldest: when the oldest trace was created that goes on waiting; ``None`` when none does.
    :param awaited: how many of the objects wait for a job that runs, or is about to.
    :param due_in: how long until the first of those is due that wait for nothing but time; ``None``: there is none.
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

    def shares(self, limits: Mapping[Lane, int], size: int = 250) -> list[Share]:
        """The plan's events in pieces small enough for XCom.

        :param limits: the limit of each lane, 0 for none.
        :param size: events in a piece at most; with names of the usual length 250 are some 20 KB.
        """
        return [
            Share(lane, limits.get(lane, 0), self.now, events[start : start + size])
            for lane, events in self.events.items()
            for start in range(0, len(events), size)
        ]
