"""The clock of the stand-in, and the formats in which Google's services write times."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache


class Clock:
    """A clock that shows the real time plus an offset that tests change."""

    def __init__(self) -> None:
        self._offset = 0.0

    def now(self) -> float:
        """Return the time in seconds since the epoch."""
        return time.time() + self._offset

    def millis(self) -> int:
        """Return the time in milliseconds since the epoch."""
        return int(self.now() * 1000)

    def set(self, now: float) -> None:
        """Set the time; the clock goes on from there.

        :param now: time in seconds since the epoch.
        """
        self._offset = now - time.time()

    def set_real(self) -> None:
        """Show the real time again."""
        self._offset = 0.0

    def advance(self, seconds: float) -> None:
        """Move the time.

        :param seconds: seconds to move forward; back if negative.
        """
        self._offset += seconds

    def http_date(self) -> str:
        """Return the time as the value of a ``Date`` header."""
        return _http_date(int(self.now()))


@lru_cache(maxsize=4)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


@lru_cache(maxsize=64)
def rfc3339(millis: int) -> str:
    """Return a time as Google writes it, such as ``2024-05-01T10:00:00.000Z``.

    :param millis: the time in milliseconds since the epoch.
    """
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
