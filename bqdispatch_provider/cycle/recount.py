"""Count the limits again before acting: other dispatchers may have filled them since the plan."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from google.api_core.exceptions import GoogleAPIError

from bqdispatch_provider.core.events import Event, Share
from bqdispatch_provider.core.limits import LimitKey, Slots, hold_back, limit_key, limits
from bqdispatch_provider.core.listing import Listing, Trace
from bqdispatch_provider.core.model import JobKey, Key, Limit, Outcome
from bqdispatch_provider.core.targets import INTENTS
from bqdispatch_provider.core.traces import SUBMISSION_TIME
from bqdispatch_provider.core.windows import OpenFiring
from bqdispatch_provider.cycle.recording import Recorder
from bqdispatch_provider.cycle.services import Services
from bqdispatch_provider.cycle.underway import find_in_transit, read_intents
from bqdispatch_provider.delivery.intent_objects import KEEP_COMPLETED_S
from bqdispatch_provider.delivery.intents import IntentsFound
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.names import counted, in_words

log = logging.getLogger(__name__)


class Recount:
    """The second count of the limits, for one dispatch.

    :param services: services of the task folder.
    :param recorder: recorder of the dispatch.
    :param room: slots that the plan of the shares leaves, if it was made in this task; by default the shares were
        planned in another one, may have waited for a pool, and the limits are counted again.
    """

    def __init__(self, services: Services, recorder: Recorder, room: Mapping[LimitKey, int] | None = None) -> None:
        self._services = services
        self._config = services.config
        self._recorder = recorder
        self.planned_room = room
        """Slots that the plan leaves; ``None`` once the limits were counted again."""

        self._slots = Slots(self._config)
        self._placed: set[Key] = set()
        """Events that have a slot in the count."""

        self._handed_on: set[Key] = set()
        """Events of the shares: their jobs are done."""

        self._gone: set[Key] = set()
        """Events of the shares that somebody else has dispatched. They wait for no slot."""

        self._begun: set[Key] = set()
        """Windows that are being fired already, and so take no further slot."""

    def fitting(self, shares: Iterable[Share]) -> Iterator[Share]:
        """Yield the events of shares that fit, and record the others."""
        shares = list(shares)
        self._handed_on = {event.key for share in shares for event in share.events}
        for share in shares:
            fits = self._fitting(share.events) if self.planned_room is None else share.events
            yield replace(share, events=tuple(fits))

    def without_others(self, events: Sequence[Event]) -> list[Event]:
        """Return the events that still fit beside what others have announced since the look, and record the others.

        Call it after :meth:`fitting`, once the events are announced: of two dispatchers that have found the same room,
        the one that announces later sees the other. If the look is so long ago that what others have completed since
        may be deleted, the limits are counted again.
        """
        is_counted_again = False
        while any(self._is_limited(event) for event in events):
            try:
                new = self._services.intents.new_since_look()
            except GOOGLE_ERRORS as error:
                where = self._services.folder.url(INTENTS)
                message = f"the intents of other dispatchers under {where} cannot be read: {in_words(error)}"
                self._recorder.record_failure(f"events wait, since {message}", events)
                return []
            if new is not None:
                return self._beside(events, *new)
            if is_counted_again:
                # However long that takes, dispatching goes on.
                self._recorder.error(
                    f"it took more than {KEEP_COMPLETED_S:.0f} s to count the limits, so what others have begun "
                    "meanwhile may have passed them: see that the task folder and BigQuery answer sooner"
                )
                break
            is_counted_again = True
            self.planned_room, self._slots, self._placed = None, Slots(self._config), set()
            events = self._fitting(events)
        return list(events)

    def _is_limited(self, event: Event) -> bool:
        return bool(limits(self._config)[limit_key(event, self._config)[1]])

    def _beside(self, events: Sequence[Event], firings: Iterable[OpenFiring], moves: Iterable[str]) -> list[Event]:
        """Return the events that fit beside what others have announced, and record the others."""
        room = self.planned_room
        if room is None:
            if unplaced := [event for event in events if event.key not in self._placed]:
                placed = {event.key for event in self._fitting(unplaced)} | self._placed
                events = [event for event in events if event.key in placed]
            room = {key: max(number, 0) for key, number in self._slots.room().items()}
        others = Slots(self._config)
        others.count_moved(moves)
        others.count_firings(firings)
        fitting, waiting = hold_back(events, others, room, self._config)
        self._recorder.record_throttled(waiting)
        return fitting

    def _fitting(self, events: Sequence[Event]) -> list[Event]:
        """Return the events that fit, and record the others; count the limits of projects that were not counted."""
        keys = {limit_key(event, self._config) for event in filter(self._is_limited, events)}
        try:
            for limit in Limit:
                self._count({project for project, of in keys - self._slots.taken.keys() if of is limit}, limit)
        except GOOGLE_ERRORS as error:
            number = counted(len(events), "event")
            message = f"the limits cannot be counted again, so {number} must wait: {in_words(error)}"
            self._recorder.record_failure(message, events, Outcome.PENDING)
            return []
        fitting: list[Event] = []
        waiting: list[Event] = []
        for event in events:
            key, counted_before = limit_key(event, self._config), event.key in self._begun
            fits = event.key in self._gone or self._slots.take(key, counted=counted_before)
            (fitting if fits else waiting).append(event)
        if waiting:
            log.info("Other dispatchers have filled a limit, so %s must wait", counted(len(waiting), "event"))
        self._placed |= {event.key for event in fitting}
        self._recorder.record_throttled(waiting)
        return fitting

    def _count(self, projects: Collection[str], limit: Limit) -> None:
        """Count the slots of a limit that are taken in projects; all of them if the jobs cannot be listed.

        :raises google.api_core.exceptions.GoogleAPIError: when the task folder, its intents or the trigger bucket
            cannot be read.
        """
        if not projects:
            return
        services = self._services
        # First the jobs, which may take long; then the trigger bucket and the folder. What is submitted in between has
        # a trace that is young, by the time before.
        began = services.store.now()
        active, refused, partial = services.board.active(projects, began)
        for project, error in refused.items():
            self._recorder.error(f"the jobs of project {project!r} cannot be listed, so its events wait: {error}")
        transit = find_in_transit(services)
        try:
            listing = services.folder.listing()
        except GOOGLE_ERRORS as error:
            where = f"the task folder {self._config.async_task_url!r}"
            raise GoogleAPIError(f"{where} cannot be listed: {in_words(error)}") from error
        present = {trace.object.key for trace in listing.traces} | {window.key for window in listing.windows}
        self._gone |= self._handed_on - present
        noted, problem = read_intents(services, listing, transit)
        if problem := transit.problem or problem:
            raise GoogleAPIError(problem)
        traces = [trace for trace in listing.traces if trace.project in projects]
        running = {trace.job for trace in listing.traces if trace.name.job_id in active.get(trace.project, ())}
        jobs = running | self._may_run(traces, began, running, partial)
        slots = Slots(self._config)
        slots.count_traces(trace for trace in traces if trace.job in jobs)
        slots.count_moved(transit.names | noted.moving, listing.traces)
        if limit is Limit.JOBS:
            firings = self._open_firings(listing, noted, running)
            slots.count_firings(firings)
            self._begun |= {firing.key for firing in firings}
        for project in projects:
            if project in refused:
                slots.fill((project, limit))
            self._slots.taken[project, limit] += slots.taken[project, limit]

    def _may_run(
        self, traces: Iterable[Trace], began: datetime, running: Collection[JobKey], partial: Collection[str]
    ) -> set[JobKey]:
        """Return the jobs that are not done, and were not listed as running: those of young traces may be submitted.

        They are looked up, which takes a request for each, or a list: a list of active jobs does not tell a job that is
        done from one that is about to appear.

        :param began: the storage server's time before the active jobs were listed.
        :param partial: projects whose list leaves out a location, in which the jobs of older traces may run, too.
        """
        unlisted = [
            trace
            for trace in traces
            if (began - trace.object.created < SUBMISSION_TIME or trace.project in partial)
            and trace.job not in running
            and trace.object.key not in self._handed_on
        ]
        done = self._services.board.look(unlisted).done if unlisted else {}
        return {trace.job for trace in unlisted if trace.job not in done}

    def _open_firings(self, listing: Listing, noted: IntentsFound, jobs: Collection[JobKey]) -> list[OpenFiring]:
        services = self._services
        keys = {firing.key for intent in noted.of_windows for firing in intent.firings}
        firings, unreadable = services.ledger.look(listing.windows, listing.now, keys)
        found = services.open_firings.look(
            noted.of_windows, listing, firings, jobs, limited=True, unreadable=unreadable
        )
        return found.open
