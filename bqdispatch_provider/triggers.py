"""The triggers: in a thread of their own, look at the task folder for a deferred sensor, dispatch for a deferred
operator, or tell an asset's watcher that there is something to dispatch."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow.providers.common.compat.sdk import XComArg
from airflow.triggers.base import BaseTrigger, TaskSkippedEvent, TaskSuccessEvent, TriggerEvent

from bqdispatch_provider import links
from bqdispatch_provider.compat import context_of, ends_at, event_trigger, renders_triggers, starts_from_trigger
from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.journal import RunJournal, place_of
from bqdispatch_provider.metrics import Metrics
from bqdispatch_provider.names import in_one_line
from bqdispatch_provider.rhythm import MOST, Rhythm
from bqdispatch_provider.runs import end_run, run_cycles
from bqdispatch_provider.threads import Threads

if TYPE_CHECKING:
    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.push import Subscription

T = TypeVar("T")
_Act = Callable[["Dispatcher"], T]
_EventTrigger: Any = event_trigger()

TOLD_AGAIN_AFTER = 60.0
"""Seconds after which an event is told of again that still waits: whoever was told of it may have failed."""

LOGGED_AGAIN_AFTER = 60.0
"""Seconds after which it is said again that something still goes wrong."""

_LONGEST_MESSAGE = 2000


class _Call(Protocol):
    def __call__(self, act: _Act[T]) -> Awaitable[T]: ...


class _DispatcherTrigger(BaseTrigger):
    """A trigger with a dispatcher, which is used in one thread: the event loop is never blocked.

    The connection is resolved before the thread starts. Cancelled, it waits until what was begun is finished, and no
    more is begun: a thread cannot be stopped.

    :param bqdispatch_conn_id: ID of the connection.
    :param variables: values for ``${name}`` in the configuration document.
    :param only: which events, as the operators have it; all by default.
    :param poll_interval: seconds between two looks at most; while something is on its way, it looks every second.
    """

    def __init__(
        self,
        bqdispatch_conn_id: str,
        *,
        variables: Mapping[str, str] | None = None,
        only: Mapping[str, Sequence[str]] | None = None,
        poll_interval: float = MOST,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.only = only
        self.poll_interval = poll_interval
        self._subscription: Subscription | None = None

    @cached_property
    def _stopped(self) -> threading.Event:
        return threading.Event()  # not before it runs: it cannot be copied, and DAGs are

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class's path and the arguments that make this trigger again."""
        return f"{type(self).__module__}.{type(self).__qualname__}", self._arguments()

    def _arguments(self) -> dict[str, Any]:
        return {
            "bqdispatch_conn_id": self.bqdispatch_conn_id,
            "variables": self.variables,
            "only": self.only,
            "poll_interval": self.poll_interval,
        }

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[_Call]:
        """What calls a function with the dispatcher, in the thread."""
        hook = await BqDispatchHook.resolved(self.bqdispatch_conn_id)
        # The loop's own executor is shared by everything in the triggerer.
        thread = Threads(1, "bqdispatch-trigger")
        held = ExitStack()

        def open_dispatcher() -> Dispatcher:
            dispatcher = held.enter_context(hook.get_dispatcher(self._goes_on, self.variables, self.only))
            self._subscription = hook.get_subscription(dispatcher)
            return dispatcher

        try:
            dispatcher = await finished(thread, open_dispatcher, self._stopped)
            yield lambda act: finished(thread, lambda: act(dispatcher), self._stopped)
        finally:
            await finished(thread, held.close, self._stopped)
            thread.shutdown(wait=False)

    async def _told(self, act: _Act[TriggerEvent]) -> TriggerEvent:
        """The one event of a task's trigger; what it came to where that is an error."""
        try:
            async with self._opened() as call:
                return await call(act)
        except Exception as error:
            self.log.exception("The task folder cannot be looked at")
            return _event("error", message=f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE])

    def _goes_on(self) -> bool:
        return not self._stopped.is_set()

    def _wait(self, seconds: float) -> None:
        if self._subscription is None:
            self._stopped.wait(seconds)
        else:
            self._subscription.wait(seconds, self._goes_on)


class _TaskTrigger(_DispatcherTrigger):
    """A trigger of a deferred task, which may be started again, in another triggerer.

    :param since: when the task was deferred (aware), where a worker has deferred it.
    :param timeout: for how long the scheduler lets it be deferred, in seconds, where it has started from the trigger:
        from that follows when it did.
    :param place: of the task in the journal (:func:`~bqdispatch_provider.journal.place_of`); where it has started from
        the trigger, that is known here.
    """

    def __init__(
        self,
        bqdispatch_conn_id: str,
        *,
        since: datetime | None = None,
        timeout: float | None = None,
        place: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(bqdispatch_conn_id, **kwargs)
        self.since = since
        self.timeout = timeout
        self.place = place

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "since": self.since, "timeout": self.timeout, "place": self.place}

    def _began(self) -> datetime | None:
        """When the task was deferred, however often this has been started; ``None``: not known."""
        end = ends_at(self)
        if self.since is None and self.timeout is not None and end is not None:
            return end - timedelta(seconds=self.timeout)
        return self.since

    def _place(self) -> str:
        return self.place or place_of(context_of(self))


class BqDispatchTrigger(_TaskTrigger):
    """Waits until there is something to dispatch, or until its time is up.

    Yields one event, ``{"status": "work" | "nothing" | "error", "message": …}``. What there is to dispatch is not in
    it: who resumes looks again. With ``closes``, there being nothing ends the task as skipped, without a worker:
    windows and quarantine are put in order, and ``performance.json`` and the run's document are written here.

    :param bqdispatch_conn_id: ID of the connection.
    :param wait: seconds after which there is nothing to dispatch; it looks once at least.
    :param closes: whether to end the task as skipped.
    :param more: as every trigger here has it: ``variables``, ``only``, ``poll_interval``, ``since``, ``timeout`` and
        ``place``.
    """

    def __init__(
        self,
        bqdispatch_conn_id: str,
        wait: float,
        *,
        closes: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(bqdispatch_conn_id, **more)
        self.wait = wait
        self.closes = closes

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "wait": self.wait, "closes": self.closes}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look again and again, and yield one event."""
        yield await self._told(self._watch)

    def _watch(self, dispatcher: Dispatcher) -> TriggerEvent:
        end = (self._began() or datetime.now(UTC)) + timedelta(seconds=self.wait)
        rhythm = Rhythm.between(self.poll_interval)
        while True:
            plan = dispatcher.look().plan
            if any(plan.events.values()):
                return _event("work")
            left = (end - datetime.now(UTC)).total_seconds()
            if left <= 0 or self._stopped.is_set():
                break
            self._wait(min(rhythm.after(plan, time.monotonic()), left))
        if not self.closes or self._stopped.is_set():
            return _event("nothing")
        journal = RunJournal(dispatcher, self._place())
        report = end_run(dispatcher, journal, Metrics(self.bqdispatch_conn_id).send)
        url = journal.document_url
        self.log.info("Nothing to dispatch; %d objects: %s; %s", report.listed, report.in_words(), url)
        return TaskSkippedEvent(xcoms=links.kept({links.ResponseDocumentLink: links.object_of(url)}))


class DispatchTrigger(_TaskTrigger):
    """Dispatches, cycle after cycle, until the time to live is over: a :class:`DispatchOperator` without a worker.

    Ends the task as succeeded, without a return value, or yields one event for whoever resumes, ``{"status": "done" |
    "error", "document": …, "message": …}``.

    Killed, it finishes what was begun and writes its document. Started again, it goes on with that.

    :param bqdispatch_conn_id: ID of the connection.
    :param time_to_live: seconds for which new cycles are begun, from when the task was deferred; by default the
        configuration's ``TimeToLiveInMin`` less 5 s.
    :param resumes: whether a worker is needed at the end: ``always``, ``never``, or where there is ``news``, since
        something was dispatched, or went wrong.
    :param measures: whether to write ``performance.json``.
    :param attempt: which try of the task this is; where it has started from the trigger, that is known here.
    :param more: as every trigger here has it: ``variables``, ``only``, ``poll_interval``, ``since``, ``timeout`` and
        ``place``.
    """

    def __init__(
        self,
        bqdispatch_conn_id: str,
        time_to_live: float | None = None,
        *,
        resumes: str = "never",
        measures: bool = True,
        attempt: int | None = None,
        **more: Any,
    ) -> None:
        super().__init__(bqdispatch_conn_id, **more)
        self.time_to_live = time_to_live
        self.resumes = resumes
        self.measures = measures
        self.attempt = attempt

    def _arguments(self) -> dict[str, Any]:
        own = {"time_to_live": self.time_to_live, "resumes": self.resumes, "measures": self.measures}
        return {**super()._arguments(), **own, "attempt": self.attempt}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Dispatch until the time is up, and yield one event."""
        yield await self._told(self._dispatch)

    async def on_kill(self) -> None:
        """Nothing more is to be done (Airflow 3.3 asks): what was begun was finished before."""
        self.log.info("Ended by somebody, and nothing is left half done")

    def _dispatch(self, dispatcher: Dispatcher) -> TriggerEvent:
        journal = RunJournal(dispatcher, self._place())
        attempt = self.attempt or getattr(self.task_instance, "try_number", None) or 1
        report = run_cycles(
            dispatcher,
            journal,
            None if self.time_to_live is None else float(self.time_to_live),
            began=self._began(),
            attempt=attempt,
            wait=self._wait,
            rhythm=Rhythm.between(self.poll_interval),
            tell=Metrics(self.bqdispatch_conn_id).send,
            measures=self.measures,
        )
        self.log.info(
            "%d objects: %s; %d errors; the response document is %s",
            report.listed,
            report.in_words(),
            len(report.errors),
            journal.own_url,
        )
        if self.resumes == "always" or (self.resumes == "news" and (report.dispatched or not report.ok)):
            return _event("done", document=journal.own_url)
        own = links.of_report(report, dispatcher.store.task_url(""))
        return TaskSuccessEvent(xcoms=links.kept(own | {links.ResponseDocumentLink: links.object_of(journal.own_url)}))


class BqDispatchEventTrigger(_DispatcherTrigger, _EventTrigger):  # type: ignore[misc]
    """Tells again and again that there is something to dispatch, for an asset's watcher (Airflow 3).

    Yields ``{"status": "work", "events": number}`` when a look shows an event that it has not told of yet, or has told
    of a minute ago and that still waits. Whatever goes wrong is logged and tried again: what goes on is logged in full
    once, and then in a line a minute.

    :param bqdispatch_conn_id: ID of the connection.
    :param more: as every trigger here has it: ``variables``, ``only`` and ``poll_interval``.
    """

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look for as long as there is somebody who wants to know."""
        told: dict[tuple[str, int], float] = {}
        rhythm = Rhythm.between(self.poll_interval)
        failed, logged = "", -math.inf
        while True:
            try:
                async with self._opened() as call:
                    while True:
                        number, seconds = await call(partial(self._look, told, rhythm))
                        failed = ""
                        if number:
                            yield _event("work", events=number)
                        await call(partial(self._pause, seconds))
            except Exception as error:
                said = f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]
                if said != failed:
                    self.log.exception("The task folder cannot be looked at; it is tried again")
                    failed, logged = said, time.monotonic()
                elif time.monotonic() - logged >= LOGGED_AGAIN_AFTER:
                    self.log.warning("The task folder still cannot be looked at: %s", in_one_line(said))
                    logged = time.monotonic()
                await asyncio.sleep(self.poll_interval)

    def _look(self, told: dict[tuple[str, int], float], rhythm: Rhythm, dispatcher: Dispatcher) -> tuple[int, float]:
        """How many events there are, if one of them has to be told, and the seconds until the next look."""
        plan = dispatcher.look().plan
        now = time.monotonic()
        keys = {event.key for events in plan.events.values() for event in events}
        for gone in told.keys() - keys:
            del told[gone]
        news = {key for key in keys if now - told.get(key, -TOLD_AGAIN_AFTER) >= TOLD_AGAIN_AFTER}
        told.update(dict.fromkeys(keys, now) if news else {})
        return (len(keys) if news else 0), rhythm.after(plan, now)

    def _pause(self, seconds: float, _: Dispatcher) -> None:
        self._wait(seconds)


async def finished(thread: Executor, call: Callable[[], T], stopped: threading.Event) -> T:
    """What a call comes to that runs in a thread; when cancelled, wait until it has: a thread cannot be stopped.

    :param thread: of the trigger's own.
    :param call: what runs there.
    :param stopped: set when cancelled, so that the call comes to an end soon.
    """
    begun = asyncio.get_running_loop().run_in_executor(thread, call)
    try:
        return await asyncio.shield(begun)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.wait({begun})
        raise


def longest_deferral(task: Any, wanted: timedelta) -> timedelta:
    """For how long the scheduler lets a task be deferred that starts from its trigger.

    :param task: whose ``execution_timeout`` counts from then, too.
    :param wanted: for how long it is to be.
    """
    return min(wanted, task.execution_timeout or wanted)


def ends_unseen(task: Any) -> bool:
    """Tell whether a task may end in the triggerer: Airflow 3 calls no callbacks there but those of failures.

    :param task: which callbacks it has for its end.
    """
    return not (task.on_success_callback or task.on_skipped_callback)


def may_start_from_trigger(task: Any) -> bool:
    """Whether a task can begin in the triggerer; if not, a worker begins it, which renders its templates.

    :param task: whose templated fields may hold templates, or what another task returns.
    """
    values = [getattr(task, each) for each in task.template_fields]
    if not starts_from_trigger() or any(XComArg.iter_xcom_references(values)):
        return False
    return renders_triggers() or not any("{{" in repr(value) for value in values)


def _event(status: str, **more: Any) -> TriggerEvent:
    return TriggerEvent({"status": status, "message": "", **more})  # type: ignore[no-untyped-call]
