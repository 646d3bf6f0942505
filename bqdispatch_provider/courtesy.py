"""Courtesy towards a service: once it is too busy, all threads that call it wait, not only the one that was told."""

from __future__ import annotations

import random
import threading
import time

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
