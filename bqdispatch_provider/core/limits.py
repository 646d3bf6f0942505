"""The limits of the configuration, and the slots that are taken of them.

``MaxConcurrentSQL`` and ``MaxConcurrentJobs`` give each project a number of slots (docs/protocol.md, "Configuration
document"). One rule counts them, for the plan and for whoever counts again before acting. A slot is taken by

- a trace whose job is active: :meth:`Slots.count_traces`;
- a trace that was moved, until BqTail has taken it or its next job is seen, for at most ten minutes:
  :meth:`Slots.count_moved`;
- a fired window, until its load is seen: :meth:`Slots.count_firings`;
- an event that is about to be dispatched: :meth:`Slots.take`.

``cycle.underway`` and ``delivery.open_firings`` find what was moved and fired. Who counts:

- ``planning.plan`` counts traces and moves; then ``Draft.admit`` counts firings, and takes a slot for each event.
- ``cycle.recount`` counts all of it again for shares that were planned in another task, or too long ago; and, for any
  events, what other dispatchers have announced since.
- ``cycle.dispatching`` gives the slots of refused events (``Recorder.freed``) to events that a limit holds back, in the
  same cycle. An event that may have been delivered keeps its slot.

Count in this order, then ask for each event in the order in which they are to go::

    slots = Slots(config)
    slots.count_traces(trace for trace in listing.traces if is_active(trace))
    slots.count_moved(moved, listing.traces)
    slots.count_firings(open_firings)
    dispatched = [event for event in events if slots.take(limit_key(event, config))]
    left = slots.room()

``is_active`` is the caller's: a plan knows how each job stands, a second count has a list of active jobs. Give
``count_traces`` and ``count_firings`` only what is of the projects that were looked at; the numbers of other projects
mean nothing. An event that is among the open firings takes no further slot: ``take(key, counted=True)``.

What others have written down since a plan is counted in ``Slots`` of its own, and compared with the plan's room:
:func:`hold_back`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.model import Limit, lane_of
from bqdispatch_provider.names import TraceName, WindowName

if TYPE_CHECKING:
    from bqdispatch_provider.core.listing import Trace
    from bqdispatch_provider.core.windows import OpenFiring

LimitKey = tuple[str, Limit]
"""A project, and one of its limits."""


def limits(config: DispatchConfig) -> Mapping[Limit, int]:
    """Return how many slots each limit gives a project; 0 for no limit."""
    return {Limit.SQL: config.max_concurrent_sql, Limit.JOBS: config.max_concurrent_jobs}


def is_limited(config: DispatchConfig) -> bool:
    """Tell whether a configuration has any limit. Without one, nothing has to be counted."""
    return any(limits(config).values())


def limit_key(event: Event, config: DispatchConfig) -> LimitKey:
    """Return the project and the limit under which an event counts."""
    default = config.project_id or ""
    if event.name.endswith(".win"):
        project = event.load.project if event.load else WindowName.parse(event.name).dest_project
        return project or default, Limit.JOBS
    name = TraceName.parse(event.name)
    return name.project or default, lane_of(name.action).limit


class Slots:
    """The slots that are taken, by project and limit.

    :param config: how many slots there are, and the project of root traces.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.taken: Counter[LimitKey] = Counter()
        self._limits = limits(config)
        self._project = config.project_id or ""
        self._seen_event_ids: set[str] = set()

    def count_traces(self, active: Iterable[Trace]) -> None:
        """Count traces whose jobs are active.

        :param active: traces of the task folder; what cannot be looked at counts as active, so that rather too few
            events are dispatched than too many.
        """
        for trace in active:
            self.taken[trace.project, lane_of(trace.name.action).limit] += 1
            self._seen_event_ids.add(trace.name.event_id)

    def count_moved(self, names: Iterable[str], listed: Iterable[Trace] = ()) -> None:
        """Count traces that were moved, or are being moved, and whose next job is not seen yet.

        Call it after :meth:`count_traces`: a job that counted there is the next job of its chain. Leave out what has
        lain in the trigger bucket for ten minutes (``MAX_FUNCTION_RUNTIME``): no job comes of it.

        :param names: names of such traces, with ``.json`` or without.
        :param listed: traces in the task folder, which do not count here; none by default.
        """
        moved = {name.removesuffix(".json") for name in names}
        for name in moved - {trace.object.name.removesuffix(".json") for trace in listed if moved}:
            with suppress(ValueError):
                trace = TraceName.parse(name)
                if trace.event_id not in self._seen_event_ids:
                    self.taken[trace.project or self._project, lane_of(trace.action).limit] += 1

    def count_firings(self, firings: Iterable[OpenFiring]) -> None:
        """Count fired windows whose loads are not seen yet."""
        for firing in firings:
            self.taken[firing.project, Limit.JOBS] += 1

    def fill(self, key: LimitKey) -> None:
        """Count a limit as used up: its project's jobs could not be looked at."""
        self.taken[key] += self._limits[key[1]]

    def take(self, key: LimitKey, *, counted: bool = False) -> bool:
        """Take a slot for an event, if there is one.

        :param counted: whether the event is counted already, and takes no further slot.
        :returns: whether the event fits; without a limit, always.
        """
        limit = self._limits[key[1]]
        taken = self.taken[key] + (0 if counted else 1)
        fits = not limit or taken <= limit
        if fits:
            self.taken[key] = taken
        return fits

    def room(self) -> dict[LimitKey, int]:
        """Return how many slots are left, for what has been counted and is limited; below 0 when too many are taken."""
        return {key: self._limits[key[1]] - number for key, number in self.taken.items() if self._limits[key[1]]}


def hold_back(
    events: Sequence[Event], others: Slots, room: Mapping[LimitKey, int], config: DispatchConfig
) -> tuple[list[Event], list[Event]]:
    """Split events that fitted into those that still fit, and those that wait for what others have begun since.

    :param events: in the order in which they are to go; the last ones wait.
    :param others: slots that others have taken since these events were counted.
    :param room: slots that were left then; other keys are not limited.
    :returns: those that fit, and those that wait, each in the order of ``events``.
    """
    excess = {key: number - room[key] for key, number in others.taken.items() if key in room}
    fitting: list[Event] = []
    waiting: list[Event] = []
    for event in reversed(events):
        key = limit_key(event, config)
        waits = excess.get(key, 0) > 0
        (waiting if waits else fitting).append(event)
        if waits:
            excess[key] -= 1
    return fitting[::-1], waiting[::-1]
