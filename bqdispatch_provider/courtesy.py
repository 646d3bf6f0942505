"""Courtesy towards a service: once it is too busy, all threads that call it wait, not only the one that was told; and
what it takes a second is not passed again and again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_FIRST = 0.2
_LONGEST = 8.0


class Courtesy:
    """How long the callers of one host wait, together: twice as long each time that it is too busy again.

    Each call's own retries come on top.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._pause = 0.0

    def wait(self) -> None:
        """Wait before a call, if the host was too busy a moment ago."""
        pause = self._until - time.monotonic()
        if pause > 0:
            time.sleep(pause)

    def note(self, *, busy: bool) -> None:
        """Note what the host has answered.

        :param busy: whether it was a 429 or a 503, to a request or to most of the calls in it.
        """
        with self._lock:
            now = time.monotonic()
            if not busy:
                self._pause = 0.0
            elif now >= self._until:  # what was under way when it was told first says nothing new
                self._pause = min(max(2 * self._pause, _FIRST), _LONGEST)
                self._until = now + self._pause * random.uniform(0.5, 1.0)  # noqa: S311  (spreads load, hides nothing)


_SLOWER, _GROWTH, _AT_ONCE = 0.05, 0.1, 0.25
_GROWN = 600.0
"""Seconds of growth at most after idle ones: no rate is further from its ceiling, and no power of it overflows."""


class Pace:
    """How many calls a second all threads make together, to what takes only so many: a bucket's writes, a look at jobs.

    It begins at its ceiling, gives way to refusals by their share of the calls, and grows again by a tenth a second
    (Cloud Storage, "Request rate and access distribution guidelines"; BigQuery, "Quotas", API requests).

    :param ceiling: calls a second that are never passed.
    :param floor: calls a second that are made however many are refused; what is refused is tried again anyway, ever
        later.
    """

    def __init__(self, ceiling: float, floor: float) -> None:
        self._lock = threading.Lock()
        self._ceiling = self.rate = ceiling
        self._floor = min(floor, ceiling)
        self._next = self._grown = self._told = time.monotonic()

    def take(self, calls: int) -> None:
        """Wait until so many calls may be made."""
        with self._lock:
            now = time.monotonic()
            self.rate = min(self._ceiling, self.rate * (1 + _GROWTH) ** min(now - self._grown, _GROWN))
            self._grown = now
            begin = max(now, self._next)
            self._next = begin + calls / self.rate
        if begin > now:
            time.sleep(begin - now)

    def note(self, calls: int, refused: int) -> None:
        """Note how many of the calls were refused, for there were too many of them."""
        with self._lock:
            now = time.monotonic()
            if refused and now >= self._told:  # what was under way when it was told first says nothing new
                self.rate = max(self._floor, self.rate * (1 - max(_SLOWER, 0.9 * refused / calls)))
                self._told = now + _AT_ONCE


SAME_NAME_S = 1.0
"""Seconds between two changes of one object name (Cloud Storage, "Quotas & limits": writes to the same name)."""

_FEW_REFUSED = 0.05


def too_many(refused: int, calls: int) -> bool:
    """Return whether refusals say that a bucket takes fewer writes, and not that a few names were changed too often.

    Cloud Storage answers both with the same 429.

    :param refused: calls of a batch that were answered with 429.
    :param calls: calls that the batch began with, also when only those that were refused are tried again.
    """
    return refused > 1 and refused > _FEW_REFUSED * calls


class NameRest(Generic[K]):
    """What changes an object name waits until a second after the last change of that name; all else goes on.

    Keys stand for names: URLs, or positions in a batch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[K, float] = {}

    def rest(self, keys: Sequence[K]) -> None:
        """Note that names were changed a moment ago, or are known to have been by a refusal."""
        with self._lock:
            now = time.monotonic()
            self._until = {key: until for key, until in self._until.items() if until > now}
            self._until.update(dict.fromkeys(keys, now + SAME_NAME_S))

    def due(self, keys: Sequence[K]) -> list[K]:
        """Return those whose names may be changed now; wait first if none may be."""
        with self._lock:
            now = time.monotonic()
            until = [self._until.get(key, now) for key in keys]
        begin = max(now, min(until, default=now))
        if begin > now:
            time.sleep(begin - now)
        return [key for key, end in zip(keys, until, strict=True) if end <= begin]
