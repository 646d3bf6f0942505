"""The trigger: looks at the task folder for a deferred sensor, in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.model import Lane

if TYPE_CHECKING:
    from bqdispatch_provider.dispatcher import Dispatcher

T = TypeVar("T")

_LONGEST_MESSAGE = 2000


class BqDispatchTrigger(BaseTrigger):
    """Waits until there is something to dispatch, or until its time is up.

    Yields one event, ``{"status": "work" | "nothing" | "error", "message": …}``. What there is to dispatch is not in
    it: who resumes looks again. The connection is resolved before the thread starts, and the event loop is never
    blocked. Cancelled, it waits for the look that was begun.

    :param bqdispatch_conn_id: ID of the connection.
    :param end: when to stop waiting (aware); it looks once at least.
    :param variables: values for ``${name}`` in the configuration document.
    :param lanes: the lanes to wait for; all by default.
    :param only: which events, as the sensor has it; all by default.
    :param poll_interval: seconds between two looks.
    """

    def __init__(
        self,
        bqdispatch_conn_id: str,
        end: datetime,
        *,
        variables: Mapping[str, str] | None = None,
        lanes: Sequence[str] | None = None,
        only: Mapping[str, Sequence[str]] | None = None,
        poll_interval: float = 5.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.end = end
        self.variables = dict(variables or {})
        self.lanes = list(lanes) if lanes is not None else None
        self.only = dict(only or {})
        self.poll_interval = poll_interval
        self._cancelled = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class's path and the arguments that make this trigger again."""
        return (
            "bqdispatch_provider.triggers.BqDispatchTrigger",
            {
                "bqdispatch_conn_id": self.bqdispatch_conn_id,
                "end": self.end,
                "variables": self.variables,
                "lanes": self.lanes,
                "only": self.only,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look again and again, and yield one event."""
        try:
            event = {"status": await self._wait(), "message": ""}
        except Exception as error:
            self.log.exception("The task folder cannot be looked at")
            event = {"status": "error", "message": f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _wait(self) -> str:
        hook = await BqDispatchHook.resolved(self.bqdispatch_conn_id)
        # The loop's own executor is shared by everything in the triggerer.
        thread = ThreadPoolExecutor(1, "bqdispatch-trigger")
        held = ExitStack()
        try:
            dispatcher = await self._finish(
                thread,
                lambda: held.enter_context(hook.get_dispatcher(lambda: not self._cancelled, self.variables, self.only)),
            )
            while True:
                if await self._finish(thread, lambda: self._has_work(dispatcher)):
                    return "work"
                if (left := (self.end - datetime.now(UTC)).total_seconds()) <= 0:
                    return "nothing"
                await asyncio.sleep(min(self.poll_interval, left))
        finally:
            await self._finish(thread, held.close)
            thread.shutdown(wait=False)

    def _has_work(self, dispatcher: Dispatcher) -> bool:
        events = dispatcher.look().plan.events
        return any(events[lane] for lane in (Lane if self.lanes is None else map(Lane, self.lanes)))

    async def _finish(self, thread: Executor, call: Callable[[], T]) -> T:
        """Call in the thread; when cancelled, wait until what was begun is done: a thread cannot be stopped."""
        begun = asyncio.get_running_loop().run_in_executor(thread, call)
        try:
            return await asyncio.shield(begun)
        except asyncio.CancelledError:
            self._cancelled = True
            await asyncio.wait({begun})
            raise
