"""Events that may be dispatched, and the shares in which they travel from a sensor to an operator."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from bqdispatch_provider.core.model import Key, Lane, lane_of
from bqdispatch_provider.names import ACTIONS, TraceName, WindowName, is_bookkeeping


@dataclass(frozen=True, slots=True)
class Load:
    """The load job of a window.

    :param project: project in which it will run.
    :param event_id: ID of the storage event that made the window, by which the job is known; empty if the window's
        content does not say.
    """

    project: str
    event_id: str = ""


_DEFAULTS: list[Any] = ["", "", False, None, False, False, False, [], None]
"""Of the last attributes of an event, in its compact form."""


@dataclass(frozen=True, slots=True)
class Event:
    """A trace to move, or a window to fire: exactly this generation of this object.

    :param name: path below the task folder.
    :param created: creation of the object; a trace's gives the hour of its target's folder.
    :param location: location of the trace's job.
    :param ended: end of that job, by BigQuery's clock; ``None`` for a window.
    :param error: reason of that job's failure; empty without one.
    :param table: table that the job has written, ``project.dataset.table``; empty without one.
    :param in_doubt: whether an earlier delivery has to be excluded first.
    :param load: load of a window; ``None`` if it is not known, which only a limit requires.
    :param claimed: whether this window was claimed, and not fired.
    :param many_folders: whether this window has many folders, and is removed before it is fired.
    :param replayed: whether this window was put back from quarantine, to be fired whatever is known of earlier firings.
    :param stale_locations: location objects of this window that are removed before it is fired.
    :param kept_locations: location objects that a returned window was judged with: beside others it is judged again.
        ``None`` for other windows.
    """

    name: str
    generation: int
    created: datetime
    location: str = ""
    ended: datetime | None = None
    error: str = ""
    table: str = ""
    in_doubt: bool = False
    load: Load | None = None
    claimed: bool = False
    many_folders: bool = False
    replayed: bool = False
    stale_locations: tuple[Key, ...] = ()
    kept_locations: tuple[Key, ...] | None = None

    @property
    def key(self) -> Key:
        """The name and the generation, which make two events the same."""
        return (self.name, self.generation)

    def to_json(self) -> list[Any]:
        """Return a compact form for the journal, without defaults at the end. Of shares, XCom has only summaries."""
        ended = self.ended.timestamp() if self.ended else 0
        load = [self.load.project, self.load.event_id] if self.load else None
        kept = None if self.kept_locations is None else list(map(list, self.kept_locations))
        more = [self.error, self.table, self.in_doubt, load, self.claimed, self.many_folders, self.replayed]
        more += [list(map(list, self.stale_locations)), kept]
        while more and more[-1] == _DEFAULTS[len(more) - 1]:
            more.pop()
        return [self.name, self.generation, self.created.timestamp(), self.location, ended, *more]

    @classmethod
    def from_json(cls, document: Iterable[Any]) -> Event:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: when it is something else.
        """
        try:
            name, generation, created, location, ended, *more = document
            more += _DEFAULTS[len(more) :]
            error, table, in_doubt, load, claimed, many_folders, replayed, stale, kept = more
            return cls(
                str(name),
                int(generation),
                datetime.fromtimestamp(float(created), UTC),
                str(location),
                datetime.fromtimestamp(float(ended), UTC) if ended else None,
                str(error),
                str(table),
                bool(in_doubt),
                None if load is None else Load(*map(str, load)),
                bool(claimed),
                bool(many_folders),
                bool(replayed),
                _keys(stale),
                None if kept is None else _keys(kept),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"not an event: {str(document)[:200]!r}; expected [name, generation, created, location, ended], as the "
                "sensor wrote it"
            ) from error


def _keys(given: Iterable[Iterable[Any]]) -> tuple[Key, ...]:
    return tuple((str(name), int(generation)) for name, generation in given)


_LANES = {str(lane): lane for lane in Lane}


@dataclass(frozen=True, slots=True)
class Share:
    """Events that travel from the sensor to an operator, by way of the journal (``shares``).

    All are of one lane, and no more than the limits let through.

    :param planned: when they were planned, by the storage server's clock. Whoever dispatches them later counts the
        limits again.
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

        :raises ValueError: when it is something else, or names an object that its lane does not dispatch.
        """
        try:
            if (lane := _LANES.get(document["lane"])) is None:
                raise KeyError("lane")
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

    Whoever may write the journal could name any object of the task folder: to be moved, or to be removed as a window's.

    :raises ValueError: when it is another object.
    """
    if is_bookkeeping(event.name):
        raise ValueError(f"{event.name!r} is neither a trace nor a batch window")
    if lane is Lane.WINDOWS:
        window = WindowName.parse(event.name)
        for name, _ in (*event.stale_locations, *(event.kept_locations or ())):
            if not window.is_location(name):
                raise ValueError(f"{name!r} is no location of the batch window {event.name!r}")
    elif event.name.endswith((".win", ".wis")):
        raise ValueError(f"{event.name!r} is not a trace")
    elif lane_of(TraceName.parse(event.name).action) is not lane:
        raise ValueError(f"{event.name!r} does not belong to the lane {lane}")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """The events that may be dispatched: those that match all that is given. The others wait for somebody else.

    :param projects: projects of jobs, and of windows' destinations.
    :param destinations: patterns (``*``, ``?``, ``[…]``) of destination tables, as names have them or without the
        project: ``sales.*``. After the project ``:`` and ``.`` are the same, as users write either. A partition is a
        part of the name: ``sales.orders$*``.
    :param actions: actions of finished jobs, of :data:`~bqdispatch_provider.names.ACTIONS`; windows have none, and do
        not match.
    :param event_ids: storage events that began the chain; windows have none, and do not match.
    :param lanes: lanes of events, of :class:`~bqdispatch_provider.core.model.Lane`.
    """

    projects: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, given: Mapping[str, Any] | None) -> EventFilter:
        """Read what an operator was given.

        :param given: lists of strings, or single strings, by the names above; ``None`` for all events.
        :raises ValueError: when it is something else.
        """
        known = cls.__dataclass_fields__
        refusal = (
            f"only is {given!r}; expected lists of strings by {', '.join(known)}, none empty or with blanks around it"
        )
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(refusal)
        fields: dict[str, tuple[str, ...]] = {}
        for name, value in (given or {}).items():
            values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
            # An empty list may come from a variable: taken for none given, it would let everything through. An empty
            # string, as of a template without a value, matches nothing.
            if (
                name not in known
                or not values
                or not all(isinstance(each, str) and each == each.strip() != "" for each in values)
            ):
                raise ValueError(refusal)
            # A misspelt one matches nothing, too, and who waits for it would be told at once that all of it is done.
            choice = {"actions": ACTIONS, "lanes": tuple(Lane)}.get(name, values)
            if unknown := [each for each in values if each not in choice]:
                raise ValueError(f"only names the {name} {unknown!r}; expected some of {', '.join(choice)}")
            fields[name] = values
        return cls(**fields)

    def matches(self, project: str, name: TraceName | WindowName) -> bool:
        """Tell whether an event may be dispatched.

        :param project: project of the event, which its name need not have.
        """
        if self.projects and project not in self.projects:
            return False
        parts = re.split("[:.]", name.dest)
        tables = (".".join(parts), ".".join(parts[-2:]))
        patterns = [each.replace(":", ".") for each in self.destinations]
        if patterns and not any(fnmatchcase(table, each) for table in tables for each in patterns):
            return False
        if isinstance(name, WindowName):
            return not (self.actions or self.event_ids) and Lane.WINDOWS in (self.lanes or Lane)
        return (
            (not self.actions or name.action in self.actions)
            and (not self.event_ids or name.event_id in self.event_ids)
            and lane_of(name.action) in (self.lanes or Lane)
        )


ALL_EVENTS = EventFilter()
