"""Waiting until nothing of a table, a project or an event is left: a sensor, and its trigger.

An event goes round between two places: a trace or a window lies in the task folder, is delivered to the trigger bucket,
and BqTail, which consumes it there, writes the next trace. While BqTail does so there may be nothing to be seen at all.
So nothing is left of what has not been seen for a while, looked at more often than anything can pass unseen.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseSensorOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from bqdispatch_provider.compat import AirflowSensorTimeout, AirflowSkipException, conf
from bqdispatch_provider.hooks import BqDispatchHook, DispatchError
from bqdispatch_provider.model import Only
from bqdispatch_provider.names import TraceName, WindowName, in_one_line
from bqdispatch_provider.threads import Threads
from bqdispatch_provider.triggers import finished

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.dispatcher import Dispatcher

BETWEEN = 2.0
"""Seconds between two looks while nothing is to be seen: a trace is left for 3 s at least, so none passes unseen."""

_TRIGGERER_MAY_BE_LATE = timedelta(minutes=1)
_LONGEST_MESSAGE = 2000


def left(dispatcher: Dispatcher, only: Only) -> Iterator[str]:
    """The URLs of what waits in the task folder, and of what was delivered and not consumed yet.

    A list of the task folder, one of each minute in which windows were due, and one of each prefix in the trigger
    bucket; no job is asked for.

    :param dispatcher: of the task folder.
    :param only: which events. A window's load is still to come, so a window is left of any ``actions`` that have
        ``load`` or ``reload`` among them. What lies in the trigger bucket under a name that cannot be read is left of
        everything.
    """
    config, store, listing = dispatcher.config, dispatcher.store, dispatcher.listing()
    own = config.project_id or ""
    for trace in listing.traces:
        if only.takes(trace.project, trace.name):
            yield store.task_url(trace.object.name)
    for window, _ in dispatcher.unfired(listing):
        if _takes(only, window.project, window.name):
            yield store.task_url(window.object.name)
    for prefix in (config.post_job_prefix, config.batch_prefix):
        folder = f"gs://{config.trigger_bucket}{prefix}"
        for url in store.names(folder):
            name = _delivered(url.removeprefix(folder), batch=prefix == config.batch_prefix)
            if name is None or _takes(only, _project(name) or own, name):
                yield url


def is_done(
    look: Callable[[], Iterator[str]],
    quiet_for: float,
    sleep: Callable[[float], Any] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Look until something is seen, or nothing for a while.

    :param look: gives what is left, such as :func:`left`.
    :param quiet_for: seconds for which nothing may be seen.
    :param sleep: waits for so many seconds; what it gives is true to break off.
    :param clock: tells seconds.
    :returns: what was seen; empty when it is done.
    """
    began = clock()
    while True:
        looked = clock()
        for url in look():
            return url
        if looked - began >= quiet_for:
            return ""
        if sleep(max(min(BETWEEN, quiet_for - (looked - began)), 0.01)):
            return "what could not be looked at any more"


class BqDispatchDoneSensor(BaseSensorOperator):
    """Waits until BqTail is through with some events: nothing of them waits, runs, or is still to be consumed.

    Then all their jobs were done, and the last post action has been triggered, as far as BqTail has heard of the files.
    It does not dispatch. Between two steps of a chain nothing is to be seen for a moment, so once nothing is, the
    sensor looks every two seconds, in the same worker whatever its mode, and comes to an end only when nothing was seen
    for ``quiet_for``.

    A trace that cannot be dispatched keeps it waiting, until it is quarantined or the time is up.

    :param only: which events, by lists of ``projects``, ``destinations`` (patterns, such as ``sales.*``; loads into
        partitions of a table are ``sales.orders$*``), ``actions`` and ``event_ids``; by default all (templated). A
        chain whose first step ends is not through: where ``actions`` are given, those are what is waited for, and not
        the steps before them. A window has no event ID yet.
    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document; they go before the connection's own
        (templated).
    :param quiet_for: seconds (or a timedelta) for which nothing may be seen: longer than BqTail takes from consuming an
        event to submitting the next job.
    :param poke_interval: seconds (or a timedelta) between two looks while something is to be seen.
    :param timeout: seconds (or a timedelta) after which it fails; as in every sensor, a week where it is left out.
    :param mode: ``poke`` or ``reschedule``, as in every sensor; without effect when deferred.
    :param deferrable: wait in the triggerer, without a worker; by default ``[operators] default_deferrable``.
    :raises AirflowSensorTimeout: when something is still to be seen after ``timeout``; with ``soft_fail`` the task is
        skipped.
    :raises ConfigError: when the connection or its configuration cannot be used.
    :raises DispatchError: when the trigger came to an error.
    :raises ValueError: when ``only`` is something else.
    """

    template_fields: Sequence[str] = ("only", "bqdispatch_conn_id", "variables")
    ui_color = "#fef7e0"

    def __init__(
        self,
        *,
        only: Mapping[str, Sequence[str]] | None = None,
        bqdispatch_conn_id: str = BqDispatchHook.default_conn_name,
        variables: Mapping[str, str] | None = None,
        quiet_for: timedelta | float = 60.0,
        poke_interval: timedelta | float = 30.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.only = only
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.quiet_for = quiet_for.total_seconds() if isinstance(quiet_for, timedelta) else float(quiet_for)
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        """Wait until it is done."""
        Only.of(self.only)
        if not self.deferrable:
            return super().execute(context)
        self.defer(
            trigger=BqDispatchDoneTrigger(
                bqdispatch_conn_id=self.bqdispatch_conn_id,
                end=datetime.now(UTC) + timedelta(seconds=self.timeout),
                only=self.only,
                variables=self.variables,
                quiet_for=self.quiet_for,
                poll_interval=self.poke_interval,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout + self.quiet_for) + _TRIGGERER_MAY_BE_LATE,
        )
        return None

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> None:
        """Take over what the trigger has come to.

        :param event: from :class:`BqDispatchDoneTrigger`.
        """
        if event["status"] == "error":
            raise DispatchError(f"waiting came to an error: {event['message']}")
        if event["status"] == "left":
            message = f"after {self.timeout:g} s {event['message']} was still to be seen"
            raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)
        self.log.info("Nothing was to be seen for %g s", self.quiet_for)

    def poke(self, context: Context) -> bool:
        """Look until something is seen, or nothing for long enough."""
        only = Only.of(self.only)
        with BqDispatchHook(self.bqdispatch_conn_id).get_dispatcher(variables=self.variables) as dispatcher:
            seen = is_done(lambda: left(dispatcher, only), self.quiet_for)
        if seen:
            self.log.info("Not through yet: %s is to be seen", in_one_line(seen))
        else:
            self.log.info("Nothing was to be seen for %g s", self.quiet_for)
        return not seen


class BqDispatchDoneTrigger(BaseTrigger):
    """Waits for a :class:`BqDispatchDoneSensor`, or until its time is up.

    Yields one event, ``{"status": "done" | "left" | "error", "message": …}``; of ``left`` the message is the URL of
    something that is still to be seen. The connection is resolved before the thread starts, and the event loop is never
    blocked. Cancelled, it waits for the look that was begun.

    :param bqdispatch_conn_id: ID of the connection.
    :param end: when to stop waiting (aware); once nothing is to be seen it goes on until ``quiet_for`` is over.
    :param only: which events, as the sensor has it; all by default.
    :param variables: values for ``${name}`` in the configuration document.
    :param quiet_for: seconds for which nothing may be seen.
    :param poll_interval: seconds between two looks while something is to be seen.
    """

    def __init__(
        self,
        bqdispatch_conn_id: str,
        end: datetime,
        *,
        only: Mapping[str, Sequence[str]] | None = None,
        variables: Mapping[str, str] | None = None,
        quiet_for: float = 60.0,
        poll_interval: float = 30.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.end = end
        self.only = dict(only or {})
        self.variables = dict(variables or {})
        self.quiet_for = quiet_for
        self.poll_interval = poll_interval
        self._cancelled = threading.Event()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class's path and the arguments that make this trigger again."""
        return (
            "bqdispatch_provider.done.BqDispatchDoneTrigger",
            {
                "bqdispatch_conn_id": self.bqdispatch_conn_id,
                "end": self.end,
                "only": self.only,
                "variables": self.variables,
                "quiet_for": self.quiet_for,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look again and again, and yield one event."""
        try:
            seen = await self._wait()
            event = {"status": "left" if seen else "done", "message": in_one_line(seen)}
        except Exception as error:
            self.log.exception("The task folder and the trigger bucket cannot be looked at")
            event = {"status": "error", "message": in_one_line(f"{type(error).__name__}: {error}")[:_LONGEST_MESSAGE]}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _wait(self) -> str:
        only = Only.of(self.only)
        hook = await BqDispatchHook.resolved(self.bqdispatch_conn_id)
        # The loop's own executor is shared by everything in the triggerer.
        thread = Threads(1, "bqdispatch-done")
        held = ExitStack()
        try:
            dispatcher = await finished(
                thread, lambda: held.enter_context(hook.get_dispatcher(variables=self.variables)), self._cancelled
            )
            while True:
                seen = await finished(
                    thread,
                    lambda: is_done(lambda: left(dispatcher, only), self.quiet_for, self._cancelled.wait),
                    self._cancelled,
                )
                until = (self.end - datetime.now(UTC)).total_seconds()
                if not seen or until <= 0:
                    return seen
                await asyncio.sleep(min(self.poll_interval, until))
        finally:
            await finished(thread, held.close, self._cancelled)
            thread.shutdown(wait=False)


def _takes(only: Only, project: str, name: TraceName | WindowName) -> bool:
    if isinstance(name, WindowName) and {"load", "reload"} & set(only.actions):
        only = Only(only.projects, only.destinations, event_ids=only.event_ids)
    return only.takes(project, name)


def _delivered(name: str, *, batch: bool) -> TraceName | WindowName | None:
    """What was delivered under a name, without the trigger bucket's prefix; ``None``: it cannot be read."""
    try:
        return WindowName.parse(name) if batch else TraceName.parse(name.partition("/")[2])
    except ValueError:
        return None


def _project(name: TraceName | WindowName) -> str | None:
    return name.dest_project if isinstance(name, WindowName) else name.project
