"""Threads that know whose work they do, and threads for what may never come back, for which nobody has to wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")
A = TypeVar("A")


class Threads(ThreadPoolExecutor):
    """A pool whose threads log where the caller does: in a triggerer, the log of a task follows the context."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call a function in a thread, in a copy of the context; a context is in one thread at a time."""
        return super().submit(copy_context().run, fn, *args, **kwargs)


def begin(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call a function in a thread of its own.

    :returns: what comes of it.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=copy_context().run, args=(call,), name="bqdispatch-apart", daemon=True).start()
    except RuntimeError:  # there are as many threads as can be
        call()
    return future


def side_by_side(function: Callable[[A], T], arguments: Iterable[A], most: int) -> list[T]:
    """Call a function with each of the arguments.

    :param most: calls at a time.
    :returns: what they gave, in the order of the arguments.
    :raises Exception: the first that a call has raised.
    """
    left = deque(enumerate(arguments))
    results: dict[int, T] = {}

    def work() -> None:
        while True:
            try:
                number, argument = left.popleft()
            except IndexError:
                return
            results[number] = function(argument)

    number = len(left)
    others = [begin(work) for _ in range(min(most, number) - 1)]
    work()
    for other in others:
        other.result()
    return [results[each] for each in range(number)]
