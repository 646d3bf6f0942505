"""The triggers: wait for events of a deferred sensor, dispatch for a deferred operator, or watch for an asset."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from airflow.triggers.base import TaskSkippedEvent, TaskSuccessEvent, TriggerEvent

from bqdispatch_provider import links
from bqdispatch_provider.compat import event_trigger
from bqdispatch_provider.core.events import EventFilter
from bqdispatch_provider.core.polling import AdaptivePolling, seconds_of
from bqdispatch_provider.journal import RunJournal
from bqdispatch_provider.metrics import Metrics
from bqdispatch_provider.names import counted, in_one_line
from bqdispatch_provider.runs import end_idle_run, run_cycles
from bqdispatch_provider.trigger_base import DispatcherTrigger, TaskTrigger, error_message, trigger_event

if TYPE_CHECKING:
    from bqdispatch_provider.cycle.task_folder import TaskFolder
    from bqdispatch_provider.dispatcher import Dispatcher

_EventTrigger: Any = event_trigger()

ResumeOnWorker = Literal["always", "on_work", "never"]
"""When a worker ends a task that the triggerer has done: ``on_work`` if events were dispatched, or something failed."""

REPEAT_AFTER_S = 60.0
"""Seconds after which an asset's watcher reports an event again that still waits: the DAG run may have failed."""

LOG_AGAIN_AFTER_S = 60.0
"""Seconds after which a failure that goes on is logged again."""


@dataclass(eq=False, repr=False)
class BqDispatchTrigger(TaskTrigger):
    """A trigger that waits until there is something to dispatch, for a deferred ``BqDispatchSensor``.

    Yields one event, ``{"status": "work" | "nothing" | "error", "message": …}``. The event does not contain what there
    is to dispatch: the resumed task polls again. With ``work`` it says ``until`` when the trigger would have waited: if
    somebody else has dispatched everything meanwhile, the task goes on waiting.

    :param bqdispatch_conn_id: ID of the connection.
    :param timeout: seconds to wait, from when the task was deferred. There is one poll in any case.
    :param skip_when_idle: if nothing came, end the run here and skip the task, without a worker. Ending a run cleans up
        fired windows, quarantines, and writes ``performance.json`` and the run's response document. Default: yield
        ``nothing``.
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own.
    :param only: filter of events, as the sensor takes it. Default: all events.
    :param poll_interval: longest pause between two polls, in seconds. After each change the pauses start at one second
        again.
    :param deferred_at: when the task was deferred (aware). Default: derived from ``deferral_timeout``, or now.
    :param deferral_timeout: how long the scheduler lets the task be deferred, in seconds, if it starts in the
        triggerer.
    :param journal_path: the task's path in the journal. Default: the path of the task instance, if the task starts in
        the triggerer.
    """

    timeout: float
    _: KW_ONLY
    skip_when_idle: bool = False

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until there is something to dispatch, and yield one event."""
        yield await self._event_of(self._dispatcher, self._poll)

    def _poll(self, dispatcher: Dispatcher) -> TriggerEvent:
        end = (self._began() or datetime.now(UTC)) + timedelta(seconds=self.timeout)
        polling = AdaptivePolling.up_to(self.poll_interval)
        while True:
            plan = dispatcher.look().plan
            if any(plan.events.values()):
                return trigger_event("work", until=end.isoformat())
            left = (end - datetime.now(UTC)).total_seconds()
            if left <= 0 or self._stopped.is_set():
                break
            self._wait(min(polling.next_interval(plan, time.monotonic()), left))
        if not self.skip_when_idle or self._stopped.is_set():
            return trigger_event("nothing")
        journal = RunJournal(dispatcher.store, dispatcher.config, self._journal_path())
        report = end_idle_run(dispatcher, journal, Metrics(self.bqdispatch_conn_id).send)
        url = journal.document_url
        if report is not None:
            listed = counted(report.listed, "object")
            self.log.info("Nothing to dispatch; %s: %s; %s", listed, report.in_words(), url)
        return TaskSkippedEvent(xcoms=links.xcoms_of({links.ResponseDocumentLink: links.object_page(url)}))


@dataclass(eq=False, repr=False)
class DispatchTrigger(TaskTrigger):
    """A trigger that dispatches, cycle after cycle, for a deferred ``DispatchOperator``.

    Ends the task as succeeded, without a return value, or yields one event for the resumed task,
    ``{"status": "done" | "error", "document": …, "message": …}``.

    If cancelled, it finishes what has begun and writes the task's document. If started again, it continues from there.

    :param bqdispatch_conn_id: ID of the connection.
    :param time_to_live: seconds for which new cycles start, from when the task was deferred. Default: the
        configuration's ``TimeToLiveInMin``, less 5 s.
    :param resume_on_worker: when a worker ends the task: ``always``, ``never``, or ``on_work`` if an event was
        dispatched or something failed.
    :param write_performance: write ``performance.json``.
    :param attempt: the task's try number. Default: that of the task instance, if the task starts in the triggerer.
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own.
    :param only: filter of events, as the operator takes it. Default: all events.
    :param poll_interval: longest pause between two polls, in seconds. After each change the pauses start at one second
        again.
    :param deferred_at: when the time to live began (aware). Default: derived from ``deferral_timeout``, or now.
    :param deferral_timeout: how long the scheduler lets the task be deferred, in seconds, if it starts in the
        triggerer.
    :param journal_path: the task's path in the journal. Default: the path of the task instance, if the task starts in
        the triggerer.
    """

    time_to_live: float | None = None
    _: KW_ONLY
    resume_on_worker: ResumeOnWorker = "never"
    write_performance: bool = True
    attempt: int | None = None

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Dispatch until the time to live is over, and yield one event."""
        yield await self._event_of(self._dispatcher, self._dispatch)

    async def on_kill(self) -> None:
        """Log that the trigger was killed (Airflow 3.3). Its cancellation has already finished what had begun."""
        self.log.info("The task was killed. What it had begun is finished")

    def _dispatch(self, dispatcher: Dispatcher) -> TriggerEvent:
        journal = RunJournal(dispatcher.store, dispatcher.config, self._journal_path())
        report = run_cycles(
            dispatcher,
            journal,
            None if self.time_to_live is None else seconds_of("time_to_live", self.time_to_live),
            began=self._began(),
            attempt=self.attempt or getattr(self.task_instance, "try_number", None) or 1,
            wait=self._wait,
            polling=AdaptivePolling.up_to(self.poll_interval),
            send_metrics=Metrics(self.bqdispatch_conn_id).send,
            writes_performance=self.write_performance,
        )
        url, listed, errors = journal.task_url, counted(report.listed, "object"), counted(len(report.errors), "error")
        self.log.info("%s: %s; %s; document %s", listed, report.in_words(), errors, url)
        worked = bool(report.dispatched or report.errors)
        if self.resume_on_worker == "always" or (self.resume_on_worker == "on_work" and worked):
            return trigger_event("done", document=url)
        return TaskSuccessEvent(
            xcoms=links.xcoms_of(links.links_of_dispatch(report, dispatcher.store.task_url(""), url))
        )


class BqDispatchEventTrigger(DispatcherTrigger, _EventTrigger):  # type: ignore[misc]
    """A trigger that reports again and again that there is something to dispatch, for an asset's watcher (Airflow 3).

    Yields ``{"status": "work", "events": <number>}`` if a poll shows an event that was not reported before, or was
    reported a minute ago and still waits. After a failure it logs the reason and tries again.

    :param bqdispatch_conn_id: ID of the connection.
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own.
    :param only: filter of events, as the operators take it. Default: all events.
    :param poll_interval: longest pause between two polls, in seconds. After each change the pauses start at one second
        again.
    """

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until cancelled, and yield an event whenever there are new ones."""
        failures = _FailureLog(self.log)
        reported: dict[tuple[str, int], float] = {}
        while True:
            try:
                async with aclosing(self._news(reported, failures)) as news:
                    async for number in news:
                        yield trigger_event("work", events=number)
            except Exception as error:
                failures.log(error)
                await asyncio.sleep(self.poll_interval)

    async def _news(self, reported: dict[tuple[str, int], float], failures: _FailureLog) -> AsyncGenerator[int]:
        """Poll until a poll fails, and yield the number of events whenever one of them has to be reported.

        :param reported: when each waiting event was reported, by a monotonic clock.
        """
        polling = AdaptivePolling.up_to(self.poll_interval)
        async with self._in_thread(self._dispatcher) as run:
            while True:
                number, seconds = await run(partial(self._poll, reported, polling))
                failures.clear()
                if number:
                    yield number
                await run(partial(self._pause, seconds))

    @staticmethod
    def _poll(
        reported: dict[tuple[str, int], float], polling: AdaptivePolling, dispatcher: Dispatcher
    ) -> tuple[int, float]:
        """Return the number of events, 0 if none of them has to be reported, and the seconds until the next poll."""
        plan = dispatcher.look().plan
        now = time.monotonic()
        keys = {event.key for events in plan.events.values() for event in events}
        for gone in reported.keys() - keys:
            del reported[gone]
        is_news = any(now - reported.get(key, -math.inf) >= REPEAT_AFTER_S for key in keys)
        reported.update(dict.fromkeys(keys, now) if is_news else {})
        return (len(keys) if is_news else 0), polling.next_interval(plan, now)

    def _pause(self, seconds: float, _: Dispatcher) -> None:
        self._wait(seconds)


@dataclass(eq=False, repr=False)
class BqDispatchDoneTrigger(DispatcherTrigger):
    """A trigger that waits until BqTail has finished some events, for a deferred ``BqDispatchDoneSensor``.

    Yields one event, ``{"status": "done" | "left" | "error", "message": …}``. The message of ``left`` is the URL of an
    event that is not finished.

    :param bqdispatch_conn_id: ID of the connection.
    :param end: when to stop waiting (aware). A settle time that has begun is completed.
    :param settle_time: seconds for which no event may be seen.
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own.
    :param only: filter of events, as the sensor takes it. Default: all events.
    :param poll_interval: seconds between two polls while events are seen.
    """

    end: datetime
    _: KW_ONLY
    settle_time: float = 60.0
    poll_interval: float = 30.0

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until no event is left, and yield one event."""
        yield await self._event_of(lambda hook: hook.get_task_folder(self.variables), self._poll)

    def _poll(self, folder: TaskFolder) -> TriggerEvent:
        from bqdispatch_provider.remaining import first_remaining  # noqa: PLC0415  (few DAG files need it)

        only = EventFilter.from_dict(self.only)
        while True:
            url = first_remaining(folder, only, self.settle_time, self._stopped.wait)
            left = (self.end - datetime.now(UTC)).total_seconds()
            if not url or left <= 0 or self._stopped.is_set():
                return trigger_event("left" if url else "done", message=in_one_line(url))
            self._wait(min(self.poll_interval, left))


class _FailureLog:
    """A log that shows a failure in full the first time, and in a line a minute for as long as it goes on.

    :param log: the trigger's.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._last = ""
        self._logged = -math.inf

    def clear(self) -> None:
        """Forget the last failure: a poll has succeeded."""
        self._last = ""

    def log(self, error: Exception) -> None:
        """Log a failure, from an ``except`` clause.

        :param error: the failure.
        """
        message = error_message(error)
        if message != self._last:
            self._log.exception("Polling the task folder has failed; trying again")
            self._last, self._logged = message, time.monotonic()
        elif time.monotonic() - self._logged >= LOG_AGAIN_AFTER_S:
            self._log.warning("Polling the task folder still fails; trying again: %s", message)
            self._logged = time.monotonic()
