"""Dispatch shares: announce what is about to be dispatched, then move traces and fire windows, within the limits."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import TypeVar

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core import log_lines
from bqdispatch_provider.core.events import ALL_EVENTS, Event, EventFilter, Share
from bqdispatch_provider.core.limits import LimitKey, limit_key
from bqdispatch_provider.core.model import Lane, Outcome, Reason
from bqdispatch_provider.core.named_events import project_of
from bqdispatch_provider.core.plans import Plan
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.targets import INTENTS
from bqdispatch_provider.cycle.recount import Recount
from bqdispatch_provider.cycle.services import Services
from bqdispatch_provider.cycle.work_gate import Action, WorkGate
from bqdispatch_provider.delivery.intent_objects import Intent
from bqdispatch_provider.delivery.intents import Announcement
from bqdispatch_provider.delivery.moves import MAX_COPYING_S, EventResult
from bqdispatch_provider.delivery.own_intents import RENEW_INTERVAL_S
from bqdispatch_provider.gcp import threads
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.gcs_batch import BATCH_SIZE
from bqdispatch_provider.names import in_words, parse_event

log = logging.getLogger(__name__)
T = TypeVar("T")
_Work = tuple[Action, Sequence[Event]]

MAX_TRACES_PER_ROUND = 10_000
"""Traces that are announced, and then moved, at a time."""


def dispatch_plan(
    services: Services,
    gate: WorkGate,
    plan: Plan,
    report: Report,
    before_dispatch: Callable[[Sequence[Share]], None],
) -> None:
    """Dispatch a plan's events, and give the slots of those that are refused to events that wait for a limit.

    :param gate: tells whether new work may be begun.
    :param report: report of the plan; what becomes of the events is added.
    :param before_dispatch: called before each dispatch with all shares of this cycle up to then.
    """
    recorder, begun = services.recorder(report), plan.shares()
    before_dispatch(begun)
    dispatching = Dispatching(services, gate, plan.room)
    part, freed = dispatching.run(begun)
    report.add_part(part)
    until = time.monotonic() + MAX_COPYING_S
    waiting = list(plan.throttled)
    while freed and waiting and time.monotonic() < until:
        next_events, waiting = _take_slots(waiting, freed, services.config)
        shares = [Share(lane, plan.now, tuple(events)) for lane, events in next_events.items()]
        if not shares:
            break
        begun += shares
        before_dispatch(begun)
        recorder.forget_throttled(event for share in shares for event in share.events)
        dispatching = Dispatching(services, gate, dispatching.planned_room)
        part, freed = dispatching.run(shares)
        report.add_part(part)


def _take_slots(
    waiting: Sequence[tuple[Lane, Event]], freed: Counter[LimitKey], config: DispatchConfig
) -> tuple[dict[Lane, list[Event]], list[tuple[Lane, Event]]]:
    """Split throttled events into those that get a freed slot, by lane, and those that still wait."""
    left = Counter(freed)
    taking: dict[Lane, list[Event]] = {}
    still_waiting: list[tuple[Lane, Event]] = []
    for lane, event in waiting:
        key = limit_key(event, config)
        if left[key] > 0:
            left[key] -= 1
            taking.setdefault(lane, []).append(event)
        else:
            still_waiting.append((lane, event))
    return taking, still_waiting


def select_events(shares: Iterable[Share], only: EventFilter, config: DispatchConfig) -> list[Share]:
    """Return shares with those of their events alone that match a filter.

    :param config: names the project of events that name none.
    """

    def matches(event: Event) -> bool:
        name = parse_event(event.name)
        return only.matches(project_of(name, config), name)

    if only != ALL_EVENTS:
        shares = [replace(share, events=tuple(filter(matches, share.events))) for share in shares]
    return [share for share in shares if share.events]


class Dispatching:
    """One dispatch of shares.

    :param services: services of the task folder.
    :param gate: tells whether new work may be begun.
    :param room: as in :class:`~bqdispatch_provider.cycle.recount.Recount`.
    """

    def __init__(self, services: Services, gate: WorkGate, room: Mapping[LimitKey, int] | None = None) -> None:
        self._services = services
        self._gate = gate
        self._recorder = services.recorder()
        self._recount = Recount(services, self._recorder, room)

    def run(self, shares: Iterable[Share]) -> tuple[Report, Counter[LimitKey]]:
        """Dispatch shares, as :meth:`~bqdispatch_provider.dispatcher.Dispatcher.dispatch` does.

        :returns: the report, and the slots of events that were refused.
        """
        # In a thread of its own it cannot be interrupted before it has withdrawn what it announced.
        dispatching = threads.run_in_thread(self._dispatch, shares)
        try:
            wait([dispatching])
        except BaseException:
            self._gate.interrupted = True
            log.warning("Interrupted: finishing what was begun, and beginning nothing new")
            wait([dispatching])
            dispatching.result()
            raise
        dispatching.result()
        return self._recorder.report, self._recorder.freed

    @property
    def planned_room(self) -> Mapping[LimitKey, int] | None:
        """Slots that the plan leaves; ``None`` once the limits were counted again, since it no longer tells them."""
        return self._recount.planned_room

    def _dispatch(self, shares: Iterable[Share]) -> None:
        services, recorder = self._services, self._recorder
        traces: list[Event] = []
        windows: list[Event] = []
        for share in self._recount.fitting(shares):
            (windows if share.lane is Lane.WINDOWS else traces).extend(share.events)
        checking = services.threads.submit(services.mover.movable, traces)
        if (traces or windows) and (missing := services.missing_permissions()):
            message = f"nothing is dispatched for want of a permission: {'. '.join(missing)}"
            recorder.record_failure(message, [*traces, *windows], Outcome.PENDING)
            return
        # What must not be moved is not announced either.
        traces, barred = checking.result()
        recorder.record(barred)
        intents, windows = self._announce_firings(windows)
        work: list[_Work] = [(services.firer.fire, chunk) for chunk in chunks(windows)]
        results: list[EventResult] = []
        for start in range(0, len(traces), MAX_TRACES_PER_ROUND):
            results += self._move(traces[start : start + MAX_TRACES_PER_ROUND], work)
            work = []
        results += self._act(work)
        self._settle_firings(intents, windows, results)
        if recorder.report.dispatched > log_lines.MAX_EVENT_LINES:
            log.info("and %d more were dispatched", recorder.report.dispatched - log_lines.MAX_EVENT_LINES)

    def _announce_firings(self, windows: Sequence[Event]) -> tuple[Sequence[Intent], list[Event]]:
        """Announce the windows that are about to be fired.

        :returns: the intents, and the windows that may be fired.
        """
        if not windows:
            return [], []
        intents = self._services.own_intents
        try:
            written = intents.announce_firings(windows)
        except GOOGLE_ERRORS as error:
            where = self._services.folder.url(INTENTS)
            message = f"windows wait, since their intent cannot be written under {where}: {in_words(error)}"
            self._recorder.record_failure(message, windows)
            return [], []
        if not self._services.config.max_concurrent_jobs:
            return written, list(windows)
        fitting = self._recount.without_others(windows)
        if fitting and (problem := self._services.intents.unreadable_firings):
            self._recorder.record_failure(problem, fitting)
            fitting = []
        if not fitting:
            intents.settle_firings(written, [])
        return written if fitting else [], fitting

    def _settle_firings(
        self, intents: Sequence[Intent], windows: Sequence[Event], results: Sequence[EventResult]
    ) -> None:
        """Keep the intents of claimed windows, and let the ledger remember what was fired."""
        keys = {event.key for event in windows}
        results = [result for result in results if result.event.key in keys]
        ledger = self._services.ledger
        ledger.remember(result.event.key for result in results if result.outcome is Outcome.DISPATCHED)
        ledger.forget(result.event.key for result in results if result.outcome is not Outcome.DISPATCHED)
        unresolved = [result for result in results if result.unresolved]
        fired = [result.event for result in unresolved if result.outcome is Outcome.DISPATCHED]
        left = [result.event for result in unresolved if result.outcome is not Outcome.DISPATCHED]
        self._services.own_intents.settle_firings(intents, fired, left)

    def _move(self, traces: Sequence[Event], beside: Sequence[_Work]) -> list[EventResult]:
        """Move traces, once they are announced and no other dispatcher is about to move them.

        :param beside: other work that is done at the same time.
        :returns: the results of all of it.
        """
        until = time.monotonic() + MAX_COPYING_S
        intents, mover = self._services.intents, self._services.mover
        try:
            announced = intents.announce(traces, self._gate.until)
        except GOOGLE_ERRORS as error:
            where = self._services.folder.url(INTENTS)
            message = f"traces wait, since they cannot be announced under {where}: {in_words(error)}"
            self._recorder.record_failure(message, traces)
            return self._act(beside)
        mine = self._not_held(traces, announced)
        if self._services.is_limited and mine:
            mine = self._recount.without_others(mine)

        def move(chunk: Sequence[Event]) -> list[EventResult]:
            movable, barred = mover.movable(chunk)
            return [*barred, *(mover.move(movable, until) if movable else ())]

        results = self._act([*beside, *((move, chunk) for chunk in chunks(mine))])
        moved = {event.key for event in mine}
        intents.withdraw(announced, [each.event for each in results if each.unresolved and each.event.key in moved])
        return results

    def _not_held(self, traces: Sequence[Event], announced: Announcement) -> list[Event]:
        """Return the traces that no other dispatcher may be moving, and record the others.

        :returns: traces, in doubt if another dispatcher may have delivered them.
        """
        unread = {event.key: why for event in traces for at, why in announced.unreadable if event.created <= at}
        for why in dict.fromkeys(unread.values()):
            self._recorder.error(why)
        self._recorder.record_all((event for event in traces if event.key in unread), Outcome.ERROR)
        traces = [event for event in traces if event.key not in unread]
        held = [event for event in traces if event.name in announced.held]
        self._recorder.record_all(held, Outcome.PENDING, Reason.IN_HAND)
        return [
            replace(event, in_doubt=True) if event.key in announced.in_doubt else event
            for event in traces
            if event.name not in announced.held
        ]

    def _act(self, work: Iterable[_Work]) -> list[EventResult]:
        """Act on events side by side, and record the results."""
        everything: list[EventResult] = []
        folder, intents = self._services.folder, self._services.own_intents
        for acting in [self._services.threads.submit(self._gate.act, *each, folder) for each in work]:
            intents.renew()  # all of them together may take longer than a lease
            while wait([acting], RENEW_INTERVAL_S / 4).not_done:
                intents.renew()
            results = acting.result()
            self._recorder.record(results)
            everything += results
        return everything


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split items into batches as Cloud Storage takes them."""
    return (items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE))
