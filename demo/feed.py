"""Files that land in the demo: some all the time, and now and then a burst that shows the limits at work."""

from __future__ import annotations

import threading
import time
from collections import Counter

from bqdispatch_provider.testing.bqtail import Rule, StandInBqTail

TABLES = {
    "sales.orders": "one folder a window",
    "web.clicks": "loads run in another project",
    "sales.returns": "one folder a window",
    "web.sessions": "many folders a window",
}
RULES = {
    "web.clicks": Rule(transient_project="acme-loads"),
    "web.sessions": Rule(multi_path=True),
}
BURST = 12
"""Folders that come at one time. Each has a window of its own, so as many loads are due together."""

_EVERY_S = 3.0
_FIRST_EVERY_S = 0.25
_BURST_EVERY_S = 150.0
_MAX_UNFINISHED = 30
"""Files that may be on their way: on a machine on which more would be, fewer files come."""

_BLOCK = 10
"""Files after which two other tables have their turn, so that a window has several files."""

_LATE_S = 40.0
"""Delay of the event of a folder's first file, now and then: it comes after its window was fired."""


class Feed:
    """Puts data files into the trigger bucket. For some of them the storage event comes late, or twice.

    :param bqtail: takes them from there.
    :param stopped: ends the feed.
    """

    def __init__(self, bqtail: StandInBqTail, stopped: threading.Event) -> None:
        self._bqtail, self._stopped = bqtail, stopped
        self._landed: Counter[str] = Counter()

    def put_files(self, number: int) -> None:
        """Put some files there, as fast as they are taken.

        :param number: how many.
        """
        while self._landed.total() < number and not self._stopped.wait(_FIRST_EVERY_S):
            self._put_file()

    def run(self) -> None:
        """Put files there until stopped, no more than are dispatched."""
        burst = time.monotonic() + _BURST_EVERY_S / 2
        while not self._stopped.wait(_EVERY_S):
            unfinished = self._bqtail.counters().unfinished
            if unfinished < _MAX_UNFINISHED:
                self._put_file()
            if unfinished < _MAX_UNFINISHED - BURST and time.monotonic() >= burst:
                burst = time.monotonic() + _BURST_EVERY_S
                for number in range(BURST):
                    self._bqtail.put_file("sales.orders", folder=f"store-{number:02}")

    def _put_file(self) -> None:
        number = self._landed.total()
        tables = tuple(TABLES)
        dest = tables[number // _BLOCK % 2 * 2 + number % 2]
        count = self._landed[dest]
        self._landed[dest] += 1
        if dest != "web.sessions":
            landed = self._bqtail.put_file(dest)
        elif count % 6 == 4:  # a folder of which nobody has heard when its window is fired
            landed = self._bqtail.put_file(dest, folder=f"late-{count}", event_delay=_LATE_S)
        else:
            landed = self._bqtail.put_file(dest, folder=f"part-{count % 2}")
        if number % 20 == 9:
            self._bqtail.late_event(landed)
