"""Read from the name of an event in which project and lane it is: documents know events by their names alone."""

from __future__ import annotations

from typing import NamedTuple

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.model import Lane, lane_of
from bqdispatch_provider.core.targets import UNDECIDED, split_undecided_name
from bqdispatch_provider.names import TraceName, WindowName, parse_event


class NamedEvent(NamedTuple):
    """An event of which the name is known.

    :param name: of the event; of an undecided window, the window's.
    :param project: project of its job; of a window, of its destination.
    :param lane: the lane in which it is dispatched.
    """

    name: TraceName | WindowName
    project: str
    lane: Lane


def event_of(path: str, config: DispatchConfig) -> NamedEvent | None:
    """Return the event of a name; ``None`` if it is the name of something else.

    :param path: below the task folder.
    :param config: names the project of events whose name has none.
    """
    try:
        name = parse_event(split_undecided_name(path)[0] if path.startswith(UNDECIDED) else path)
    except ValueError:
        return None
    lane = Lane.WINDOWS if isinstance(name, WindowName) else lane_of(name.action)
    return NamedEvent(name, project_of(name, config), lane)


def project_at(path: str, config: DispatchConfig) -> str:
    """Return the project of the event of a name; empty if it is the name of something else.

    :param path: as :func:`event_of` takes it.
    :param config: as :func:`event_of` takes it.
    """
    event = event_of(path, config)
    return event.project if event is not None else ""


def project_of(name: TraceName | WindowName, config: DispatchConfig) -> str:
    """Return the project of an event: of a trace that of its job, of a window that of its destination.

    :param config: names the project of events whose name has none.
    """
    project = name.dest_project if isinstance(name, WindowName) else name.project
    return project or config.project_id or ""
