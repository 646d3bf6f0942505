"""Backoff and rate limits that all threads share: one that is told to slow down slows down all others, too."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MIN_BACKOFF_S, MAX_BACKOFF_S = 0.2, 8.0


class SharedBackoff:
    """A wait of all callers of one host while it is overloaded, which doubles each time that it still is.

    The retries of each call come on top.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._pause = 0.0

    def wait(self) -> None:
        """Wait before a call, if the host was overloaded a moment ago."""
        pause = self._until - time.monotonic()
        if pause > 0:
            time.sleep(pause)

    def record(self, *, busy: bool) -> None:
        """Record what the host has answered.

        :param busy: True for a 429 or a 503, to a request or to most of the calls in it.
        """
        with self._lock:
            now = time.monotonic()
            if not busy:
                self._pause = 0.0
            elif now >= self._until:  # a call that began before the wait says nothing new
                self._pause = min(max(2 * self._pause, MIN_BACKOFF_S), MAX_BACKOFF_S)
                self._until = now + self._pause * random.uniform(0.5, 1.0)  # noqa: S311  (spreads load, hides nothing)


_MIN_SLOWDOWN = 0.05
"""Share of the rate that a refusal takes away at least."""

_GROWTH_PER_S = 0.1
_SLOWDOWN_PAUSE_S = 0.25
"""Refusals within this time of a slowdown belong to calls that were made before it."""

_MAX_GROWTH_S = 600.0
"""Seconds of growth after an idle time at most. They are enough for any rate, and no power of it overflows."""


class AdaptiveRateLimiter:
    """A limit on the calls that all threads make together in a second.

    The rate begins at its ceiling. Refusals lower it by their share of the calls. It grows again by a tenth a second
    (Cloud Storage, "Request rate and access distribution guidelines"; BigQuery, "Quotas", API requests).

    :param ceiling: highest rate, in calls a second.
    :param floor: lowest rate, however many calls are refused: they are retried anyway, ever later.
    """

    def __init__(self, ceiling: float, floor: float) -> None:
        self._lock = threading.Lock()
        self._ceiling = self.rate = ceiling
        self._floor = min(floor, ceiling)
        self._next = self._grown = self._slowed_until = time.monotonic()

    def acquire(self, calls: int) -> None:
        """Wait until some calls may be made."""
        with self._lock:
            now = time.monotonic()
            growth = (1 + _GROWTH_PER_S) ** min(now - self._grown, _MAX_GROWTH_S)
            self.rate = min(self._ceiling, self.rate * growth)
            self._grown = now
            begin = max(now, self._next)
            self._next = begin + calls / self.rate
        if begin > now:
            time.sleep(begin - now)

    def record(self, calls: int, refused: int) -> None:
        """Record the answers to some calls.

        :param refused: number of calls that were refused because there were too many.
        """
        with self._lock:
            now = time.monotonic()
            if refused and now >= self._slowed_until:
                self.rate = max(self._floor, self.rate * (1 - max(_MIN_SLOWDOWN, 0.9 * refused / calls)))
                self._slowed_until = now + _SLOWDOWN_PAUSE_S


SAME_NAME_S = 1.0
"""Seconds between two changes of one object name (Cloud Storage, "Quotas & limits": writes to the same name)."""

_MAX_NAME_REFUSALS = 0.05
"""Share of refused calls up to which the names were changed too often, and not the bucket."""


def too_many(refused: int, calls: int) -> bool:
    """Tell a bucket that takes fewer writes from names that were changed too often: both are answered with 429.

    :param refused: calls of a batch that were answered with 429.
    :param calls: calls that the batch began with, also when only those that were refused are retried.
    :returns: True if it is the bucket.
    """
    return refused > 1 and refused > _MAX_NAME_REFUSALS * calls


class NameCooldown(Generic[K]):
    """A wait of each object name for a second after its last change; changes of other names go on.

    Keys stand for names: URLs, or positions in a batch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[K, float] = {}

    def start(self, keys: Sequence[K]) -> None:
        """Start the wait of names that were changed just now, or were refused because they had been."""
        with self._lock:
            now = time.monotonic()
            self._until = {key: until for key, until in self._until.items() if until > now}
            self._until.update(dict.fromkeys(keys, now + SAME_NAME_S))

    def wait_for_some(self, keys: Sequence[K]) -> list[K]:
        """Return the names that may be changed now; wait for the first of them if there is none."""
        with self._lock:
            now = time.monotonic()
            until = [self._until.get(key, now) for key in keys]
        begin = max(now, min(until, default=now))
        if begin > now:
            time.sleep(begin - now)
        return [key for key, end in zip(keys, until, strict=True) if end <= begin]


ANSWER_TIMEOUT_S = 20.0
"""Seconds without an answer after which a project is waited for no longer; the others wait meanwhile. It is waited for
as long as it goes on answering: what it has answered is known to this process alone."""

ANSWER_TIMEOUT_AFTER_FAILURE_S = 1.0
"""The same for a project that did not answer the last time."""

_MIN_PAUSE_S, _MAX_PAUSE_S = 2.0, 60.0
"""Seconds for which a project that has refused twice is not asked; they double each time."""


class ProjectBackoff:
    """A pause for each project that refuses, and a shorter wait for its answers."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float, str]] = {}
        """By project the number of failures in a row, the end of its pause, and the reason."""

    def timeout_s(self, project: str) -> float:
        """Return the seconds without an answer after which a project is waited for no longer."""
        return ANSWER_TIMEOUT_AFTER_FAILURE_S if project in self._failures else ANSWER_TIMEOUT_S

    def paused(self, project: str) -> str:
        """Return why a project is not asked now; empty if it may be asked."""
        _, until, reason = self._failures.get(project, (0, 0.0, ""))
        return reason if time.monotonic() < until else ""

    def record(self, project: str, failure: str) -> None:
        """Record what came of asking a project.

        :param failure: why there is no answer; empty if there is one.
        """
        if not failure:
            self._failures.pop(project, None)
            return
        if self.paused(project):
            return  # this call was under way already when another one failed
        number = self._failures.get(project, (0, 0.0, ""))[0] + 1
        # No pause after the first failure: it may stay the only one.
        pause = min(_MIN_PAUSE_S * 2.0 ** min(number - 2, 9), _MAX_PAUSE_S) if number > 1 else 0.0
        self._failures[project] = (number, time.monotonic() + pause, failure)
