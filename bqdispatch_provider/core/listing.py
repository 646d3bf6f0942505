"""A listing of the task folder: its traces, its windows, and whatever else lies there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from bqdispatch_provider.core.model import JobKey, Key, Reason
from bqdispatch_provider.core.targets import CREATED, INTENTS, REPLAYED, SINCE, UNDECIDED, check_undecided_name
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.names import TraceName, WindowName, is_bookkeeping

_EARLIEST = datetime(2010, 1, 1, tzinfo=UTC)
"""Cloud Storage and BigQuery began later. BigQuery refuses to list the jobs since a time before 1970."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One generation of an object.

    :param name: path below the task folder (or in its bucket, for objects elsewhere).
    :param created: creation of this generation, by the storage server's clock (aware, UTC). For a fenced trace in the
        task folder, creation of the generation before its first fence, which its metadata keep (``CREATED``).
    :param crc32c: checksum of the content, base64; empty if the listing did not give it.
    :param size: bytes.
    :param metadata: custom metadata.
    :param protected_by: what forbids its deletion, in words; empty by default, when nothing does.
    """

    name: str
    generation: int
    created: datetime
    crc32c: str = ""
    size: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    protected_by: str = ""

    @property
    def key(self) -> Key:
        """The name and the generation."""
        return (self.name, self.generation)

    @property
    def in_doubt(self) -> bool:
        """True if it was given a new generation because an earlier delivery could not be excluded."""
        return CREATED in self.metadata

    @property
    def since(self) -> datetime:
        """The time when it was first written: before its creation, if it came back from quarantine."""
        return self.noted(SINCE)

    def noted(self, key: str) -> datetime:
        """Return a time that the metadata tell; the creation if they tell none, or one that cannot be.

        :param key: of the metadata, which anybody may have written.
        """
        with suppress(KeyError, ValueError, OverflowError, OSError):
            noted = datetime.fromtimestamp(float(self.metadata[key]), UTC)
            if noted > _EARLIEST:
                return min(noted, self.created)
        return self.created

    def same_content(self, other: StoredObject) -> bool:
        """Tell whether both hold the same bytes, by checksum and size."""
        return bool(self.crc32c) and (self.crc32c, self.size) == (other.crc32c, other.size)


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace in the task folder.

    :param project: project of the job; the configured one for a trace at the root.
    """

    object: StoredObject
    name: TraceName
    project: str
    job: JobKey = field(init=False)
    """The job that it waits for."""

    def __post_init__(self) -> None:
        # Once, and not whenever it is asked for: a listing may have a hundred thousand traces.
        object.__setattr__(self, "job", JobKey(self.project, self.name.region, self.name.job_id))


@dataclass(frozen=True, slots=True)
class Window:
    """A batch window in the task folder.

    :param project: project of the destination; the configured one if the destination names none.
    :param sentinel: the Go dispatcher's, by which it was fired; ``None`` without one.
    :param locations: objects that name the data folders of a window with many folders.
    """

    object: StoredObject
    name: WindowName
    project: str
    sentinel: StoredObject | None = None
    locations: tuple[StoredObject, ...] = ()

    @property
    def key(self) -> Key:
        """The name and the generation."""
        return self.object.key


@dataclass(frozen=True, slots=True)
class Listing:
    """The task folder's objects by kind.

    :param now: the storage server's time of the listing.
    :param orphan_sentinels: the Go dispatcher's sentinels whose windows are gone.
    :param intents: intents of all dispatchers, and the objects that complete them.
    :param undecided: objects that name undecided windows.
    :param orphan_locations: by the name of a window that is gone, the objects that name its data folders.
    :param ignored: number of objects of BqTail's bookkeeping, and of sentinels beside their windows.
    :param unknown: all other objects, by name. They wait until somebody moves them.
    """

    now: datetime
    traces: tuple[Trace, ...] = ()
    windows: tuple[Window, ...] = ()
    orphan_sentinels: tuple[StoredObject, ...] = ()
    intents: tuple[StoredObject, ...] = ()
    undecided: tuple[StoredObject, ...] = ()
    orphan_locations: Mapping[str, tuple[StoredObject, ...]] = field(default_factory=dict)
    ignored: int = 0
    unknown: Mapping[str, Wait] = field(default_factory=dict)

    def __len__(self) -> int:
        kinds = (self.traces, self.windows, self.orphan_sentinels, self.intents, self.undecided, self.unknown)
        return sum(map(len, kinds)) + self.ignored


def classify(objects: Iterable[StoredObject], project: str, now: datetime) -> Listing:
    """Sort the task folder's objects by kind (docs/protocol.md, "Objects in the task folder").

    :param objects: everything below the task folder.
    :param project: project of root traces, and of windows that name none.
    :param now: the storage server's time.
    """
    sorter = _Sorter(project)
    for stored in objects:
        try:
            sorter.add(stored)
        except ValueError as error:
            sorter.unknown[stored.name] = Wait(stored.name, Reason.UNKNOWN_NAME, stored.created, str(error))
    return sorter.listing(now)


class _Sorter:
    """Objects of the task folder, while they are sorted."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._traces: list[Trace] = []
        self._windows: list[tuple[StoredObject, WindowName]] = []
        self._sentinels: dict[str, StoredObject] = {}
        self._intents: list[StoredObject] = []
        self._undecided: list[StoredObject] = []
        self._locations: defaultdict[str, list[StoredObject]] = defaultdict(list)
        self._ignored = 0
        self.unknown: dict[str, Wait] = {}

    def add(self, stored: StoredObject) -> None:
        """Sort one object.

        :raises ValueError: when it is of no known kind.
        """
        name = stored.name
        if name.startswith(INTENTS):
            self._intents.append(stored)
        elif name.startswith(UNDECIDED) and name != UNDECIDED:
            check_undecided_name(name)
            self._undecided.append(stored)
        elif is_bookkeeping(name):
            self._ignored += 1
            folder, _, base = name.rpartition("/")
            if base.endswith(".loc"):
                self._locations[f"{folder}.win"].append(stored)
        elif name.endswith(".wis") or _is_go_sentinel(stored):
            self._sentinels[WindowName.parse(_fired_by_go(name)).name] = stored
        elif name.endswith(".win"):
            self._windows.append((stored, WindowName.parse(name)))
        else:
            trace = TraceName.parse(name)
            self._traces.append(Trace(stored, trace, trace.project or self._project))

    def listing(self, now: datetime) -> Listing:
        """Return all that was added. Sentinels and locations go to their windows."""
        windows = tuple(
            Window(
                stored,
                name,
                name.dest_project or self._project,
                # Whoever has put it back has decided that it is fired, whatever the Go dispatcher says.
                None if REPLAYED in stored.metadata else self._sentinels.pop(stored.name, None),
                tuple(self._locations.pop(stored.name, ())),
            )
            for stored, name in self._windows
        )
        return Listing(
            now,
            tuple(self._traces),
            windows,
            tuple(self._sentinels.values()),
            tuple(self._intents),
            tuple(self._undecided),
            {window: tuple(each) for window, each in self._locations.items()},
            self._ignored + sum(window.sentinel is not None for window in windows),
            self.unknown,
        )


def _is_go_sentinel(stored: StoredObject) -> bool:
    """Tell whether an object that is named like a window is a sentinel of the Go dispatcher.

    The Go dispatcher replaces the first ``.win``: of ``ds.windows_1_2.win`` it writes ``ds.wisdows_1_2.win``. Its
    content is one dot, which no window's is.
    """
    return ".wis" in stored.name and stored.name.endswith(".win") and stored.size == 1


def _fired_by_go(sentinel: str) -> str:
    """Return the window of a sentinel of the Go dispatcher."""
    return f"{sentinel[:-4]}.win" if sentinel.endswith(".wis") else sentinel.replace(".wis", ".win", 1)
