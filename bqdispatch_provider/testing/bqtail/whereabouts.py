"""The state of events without a finished chain, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bqdispatch_provider.testing.bqtail.account import DataFile
from bqdispatch_provider.testing.bqtail.bodies import TraceBody


@dataclass(frozen=True, slots=True)
class Missing:
    """An event without a finished chain.

    :param file: its data file.
    :param trace: last trace of its chain; ``None``: no job loaded the file.
    :param window_consumed: ``True`` if its window was consumed.
    :param event_arrived: ``True`` if its storage event arrived.
    """

    file: DataFile
    trace: TraceBody | None
    window_consumed: bool
    event_arrived: bool


@dataclass(frozen=True, slots=True)
class Places:
    """The places of windows and traces.

    :param task_folder: names in the task folder.
    :param arrived: object names in the trigger bucket by name of the trace or window.
    """

    task_folder: frozenset[str]
    arrived: Mapping[str, str]


def whereabouts(missing: Missing, places: Places, job_states: Mapping[str, str]) -> str:
    """Return the state of an event without a finished chain, as a sentence.

    :param missing: the event.
    :param places: places of windows and traces.
    :param job_states: states of jobs by name of their trace, such as ``its job is RUNNING``.
    """
    if missing.trace:
        name = missing.trace.name
        if name in places.arrived:
            where = f"lies in the trigger bucket as {places.arrived[name]}, not consumed yet"
        elif name in places.task_folder:
            where = "waits in the task folder"
        else:
            where = "vanished without being consumed: it lies neither in the task folder nor in the trigger bucket"
        return f"trace {name} {where}; {job_states[name]}"
    name = missing.file.window or ""
    if not name:
        return "no load job was accepted for it"
    return f"{_window_state(missing, name, places)}{_event_state(missing, places)}"


def _window_state(missing: Missing, name: str, places: Places) -> str:
    if name in places.arrived:
        return f"window {name} was fired and lies in the trigger bucket as {places.arrived[name]}, not consumed yet"
    if missing.window_consumed:
        return f"window {name} was consumed, but no load job took this file"
    if name in places.task_folder:
        return f"window {name} waits unfired in the task folder"
    return f"window {name} vanished without a load: it lies neither in the task folder nor in the trigger bucket"


def _event_state(missing: Missing, places: Places) -> str:
    if not missing.event_arrived:
        return "; its storage event has not arrived"
    location = missing.file.location
    return f"; {location} still names its folder" if location in places.task_folder else ""
