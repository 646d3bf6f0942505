"""Common parts of the triggers: a dispatcher in a thread of its own, and the start of a deferred task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import KW_ONLY, dataclass, fields
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from bqdispatch_provider import journal
from bqdispatch_provider.compat import context_of, ends_at
from bqdispatch_provider.core.polling import MAX_INTERVAL_S
from bqdispatch_provider.gcp.threads import Threads
from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.names import in_words

if TYPE_CHECKING:
    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.gcp.pubsub import Subscription

T = TypeVar("T")
_Opened = TypeVar("_Opened")
_Opened_co = TypeVar("_Opened_co", covariant=True)
_Open = Callable[[BqDispatchHook], AbstractContextManager[_Opened]]
"""Opens something with the connection's hook, such as :meth:`DispatcherTrigger._dispatcher`."""

_MAX_MESSAGE_CHARS = 2000


class _Run(Protocol[_Opened_co]):
    def __call__(self, call: Callable[[_Opened_co], T]) -> Awaitable[T]: ...


@dataclass(eq=False, repr=False)
class DispatcherTrigger(BaseTrigger):
    """A trigger that uses a dispatcher, or its task folder, in a thread of its own, so that it never blocks the loop.

    The connection is read before the thread starts. A cancelled trigger starts nothing new, and waits for the call in
    progress: a thread cannot be stopped.

    :param bqdispatch_conn_id: ID of the connection.
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own.
    :param only: filter of events, as the operators take it. Default: all events.
    :param poll_interval: longest pause between two polls, in seconds. After each change the pauses start at one second
        again.
    """

    bqdispatch_conn_id: str
    _: KW_ONLY
    variables: Mapping[str, str] | None = None
    only: Mapping[str, Sequence[str]] | None = None
    poll_interval: float = MAX_INTERVAL_S

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._subscription: Subscription | None = None

    @cached_property
    def _stopped(self) -> threading.Event:
        return threading.Event()  # made late: DAGs are copied, and it cannot be

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path, and the arguments that make this trigger again."""
        arguments = {argument.name: getattr(self, argument.name) for argument in fields(self)}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    @contextmanager
    def _dispatcher(self, hook: BqDispatchHook) -> Iterator[Dispatcher]:
        """Open a dispatcher, and the subscription: its messages are for those that dispatch, and end their pauses."""
        with hook.get_dispatcher(self._goes_on, self.variables, self.only) as dispatcher:
            self._subscription = hook.get_subscription(dispatcher.session)
            yield dispatcher

    @asynccontextmanager
    async def _in_thread(self, open_with: _Open[_Opened]) -> AsyncIterator[_Run[_Opened]]:
        """Open something in the thread, and yield a function that runs calls with it there."""
        hook = await BqDispatchHook.resolved(self.bqdispatch_conn_id)
        # The whole triggerer shares the event loop's own executor.
        thread = Threads(1, "bqdispatch-trigger")
        held = ExitStack()
        try:
            opened = await await_in_thread(thread, lambda: held.enter_context(open_with(hook)), self._stopped)
            yield lambda call: await_in_thread(thread, lambda: call(opened), self._stopped)
        finally:
            await await_in_thread(thread, held.close, self._stopped)
            thread.shutdown(wait=False)

    async def _event_of(
        self,
        open_with: _Open[_Opened],
        call: Callable[[_Opened], TriggerEvent],
    ) -> TriggerEvent:
        """Return the event that a call gives, or an error event if the call fails.

        :param open_with: opens what the call is given.
        :param call: runs in the thread.
        """
        try:
            async with self._in_thread(open_with) as run:
                return await run(call)
        except Exception as error:
            self.log.exception("%s of connection %r has failed", type(self).__name__, self.bqdispatch_conn_id)
            return trigger_event("error", message=error_message(error))

    def _goes_on(self) -> bool:
        return not self._stopped.is_set()

    def _wait(self, seconds: float) -> None:
        if self._subscription is None:
            self._stopped.wait(seconds)
        else:
            self._subscription.wait(seconds, self._goes_on)


@dataclass(eq=False, repr=False)
class TaskTrigger(DispatcherTrigger):
    """A trigger of a deferred task. It may be started again, in another triggerer.

    :param bqdispatch_conn_id: ID of the connection.
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own.
    :param only: filter of events, as the operators take it. Default: all events.
    :param poll_interval: longest pause between two polls, in seconds. After each change the pauses start at one second
        again.
    :param deferred_at: when the task's time began (aware). Default: derived from ``deferral_timeout``, or now.
    :param deferral_timeout: how long the scheduler lets the task be deferred, in seconds. Needed by a task that starts
        in the triggerer, which learns only when its deferral ends.
    :param journal_path: the task's path in the journal (:func:`~bqdispatch_provider.journal.journal_path`). Default:
        the path of the task instance, which a task that starts in the triggerer knows.
    """

    _: KW_ONLY
    deferred_at: datetime | None = None
    deferral_timeout: float | None = None
    journal_path: str | None = None

    def _began(self) -> datetime | None:
        """Return when the task's time began, however often the trigger was started; ``None`` if that is unknown."""
        end = ends_at(self)
        if self.deferred_at is None and self.deferral_timeout is not None and end is not None:
            return end - timedelta(seconds=self.deferral_timeout)
        return self.deferred_at

    def _journal_path(self) -> str:
        return self.journal_path or journal.journal_path(context_of(self))


async def await_in_thread(thread: Executor, call: Callable[[], T], stopped: threading.Event) -> T:
    """Run a call in a thread and return its result. If cancelled, wait for the call: a thread cannot be stopped.

    :param thread: the trigger's own.
    :param call: the function to run.
    :param stopped: set when cancelled, so that the call ends soon.
    """
    running = asyncio.get_running_loop().run_in_executor(thread, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.wait({running})
        raise


def trigger_event(status: str, **more: Any) -> TriggerEvent:
    """Return an event with a status and a message, which is empty by default.

    :param status: what happened, for whoever receives the event.
    :param more: further values of the payload.
    """
    return TriggerEvent({"status": status, "message": "", **more})  # type: ignore[no-untyped-call]


def error_message(error: BaseException) -> str:
    """Return an error in one line, short enough for Airflow's database.

    :param error: the error.
    """
    return in_words(error)[:_MAX_MESSAGE_CHARS]
