"""Threads that keep the context of their caller. Those outside of a pool are daemons: no exit waits for them."""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")
A = TypeVar("A")


class Threads(ThreadPoolExecutor):
    """A pool whose threads keep the caller's context: in a triggerer it decides which task's log a line goes to."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call a function in a thread, in a copy of the context: two threads cannot enter the same one."""
        return super().submit(copy_context().run, fn, *args, **kwargs)


class StopRequest:
    """A request to stop, which a signal handler may make.

    ``threading.Event.set`` must not be called there: it takes a lock. If the interrupted code holds it, for instance in
    ``wait`` or in another handler, nothing ever ends.
    """

    def __init__(self) -> None:
        self._made = False
        self._event = threading.Event()

    def make(self) -> None:
        """Ask to stop, from wherever, and as often as you like."""
        if not self._made:
            self._made = True
            _thread.start_new_thread(self._event.set, ())  # takes no lock of Python's here

    @property
    def is_made(self) -> bool:
        """True once somebody has asked."""
        return self._made

    def wait(self, seconds: float) -> bool:
        """Wait until somebody asks.

        :param seconds: wait no longer.
        :returns: true if somebody has asked.
        """
        return self._made or self._event.wait(seconds)


def run_in_thread(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call a function in a daemon thread of its own; in this thread if no other can be started.

    :returns: the result to come.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=copy_context().run, args=(call,), name="bqdispatch-call", daemon=True).start()
    except RuntimeError:  # the limit of threads is reached
        call()
    return future


def map_in_threads(function: Callable[[A], T], arguments: Iterable[A], max_threads: int) -> list[T]:
    """Call a function with each of some arguments, in this thread and others.

    :param max_threads: calls at a time.
    :returns: the results, in the order of the arguments.
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
    others = [run_in_thread(work) for _ in range(min(max_threads, number) - 1)]
    work()
    for other in others:
        other.result()
    return [results[each] for each in range(number)]
