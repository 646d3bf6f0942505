"""What growth costs, in virtual time and by counts: ``python benchmarks/scale.py``; ``--write`` for ``docs/scale.md``.

Nothing is sent and nothing waits: what a cycle asks for comes from ``cost.py``, and how long that takes is made of the
figures below.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

import cost
from marks import write
from rich.console import Console
from rich.table import Table

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.dispatcher import _CLEAN_EVERY_S, _LESS, _PAGES_AT_ONCE, READERS, ROUND, THREADS
from bqdispatch_provider.firings import _LIST_EVERY_S
from bqdispatch_provider.intents import MOST
from bqdispatch_provider.jobs import _MOST_CALLS
from bqdispatch_provider.names import counted
from bqdispatch_provider.planning import DUE_AFTER, KEEP_ENTRY
from bqdispatch_provider.rhythm import LEAST
from bqdispatch_provider.storage import BATCH_SIZE

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
KIB, SOFT_DELETED, GIB_HOUR = 4, 7, 0.000027397
"""KiB of a trace or window, days for which a bucket keeps what is deleted, and dollars of a GiB for an hour."""

REQUEST, TASK = 0.03, 3.0
"""Seconds of a request, and from what an Airflow task waits for until it works."""
START, LISTED, LOOKED_UP, MOVED, FIRED = 0.6, 16e-6, 24e-6, 90e-6, 170e-6
"""CPU seconds of a process, and for an object in a list, its job, a move, and a firing (benchmarks/README.md)."""
BASE_MB, OBJECT_KB, JOB_KB = 66, 1.2, 0.45

HOUR, DAY, WARM = 3600, 86_400, 900
MINUTE, LASTS, HAND_OVER = 60, 8, 1.7
"""Seconds from one run of the sample DAG to the next, for how many more its tasks go on, and from then until those of
the next run dispatch (docs/latency.md)."""
LANES = (("query",), ("load", "copy", "window"))
"""The kinds of events of each of its tasks."""
BEHIND = 600
"""Seconds for which an event waits where a dispatcher has fallen behind."""
SHORTEST_LONGEST = {"load": (5, 60), "copy": (3, 15), "query": (5, 180)}
JOBS = {
    kind: [low * (high / low) ** ((each + 0.5) / 8) for each in range(8)]
    for kind, (low, high) in SHORTEST_LONGEST.items()
}
"""How many seconds jobs take, each of these as often as the others."""
KINDS = ("window", *SHORTEST_LONGEST)
BQTAIL = 2
"""Seconds until BqTail has consumed what was delivered, and written the next trace."""

T = TypeVar("T")
Events = tuple[int, str, int]
"""From which second on they can be dispatched, their kind, and how many there are."""


@dataclass(frozen=True)
class Setup:
    """A dispatcher, and what it has to do.

    :param tables: with batch windows of 60 to 90 s each, one load for each, and a copy or a query after it.
    :param back_to_back: a ``DispatchOperator`` on its own, cycle after cycle, instead of the sample DAG.
    :param minutes: ``TimeToLiveInMin`` of such an operator.
    :param task: seconds until a task works.
    :param gap: seconds from the end of a run's dispatching task until that of the next run works.
    :param page: seconds of a page of a list; ``batch``, of a batch.
    :param writes: that the trigger bucket, and that of the task folder, take a second.
    :param keep: seconds for which a fired window is kept: ``MaxTriggerDelayMs``.
    :param outage: seconds for which nothing was dispatched before.
    """

    tables: int
    back_to_back: bool = False
    minutes: float = DispatchConfig.time_to_live_in_min
    task: float = TASK
    gap: float = HAND_OVER
    page: float = REQUEST
    batch: float = REQUEST
    writes: int = 5000
    keep: float = DispatchConfig.max_trigger_delay_ms / 1000
    outage: int = 0
    hours: float = 1

    @property
    def projects(self) -> int:
        """50 tables each: with 100 it would be more loads than BigQuery lets a project do in a day."""
        return ceil(self.tables / 50)

    @property
    def end(self) -> float:
        return WARM + self.hours * HOUR


class Folder:
    """One task folder in virtual time: events by when they can be dispatched, in numbers and not one by one."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.cost, self.cpu, self.clock = cost.Cost(), 0.0, 0.0
        self.arrived = self.dispatched = self.traces = self.most = 0
        self.lags: Counter[int] = Counter()
        self.looks: list[float] = []
        self.caught_up = self._tidied_at = self._cleaned_at = 0.0
        self._jobs_listed_at = -_LIST_EVERY_S
        self._old = 0
        """Firings that the ledger is to forget."""
        self._begun = 0
        """Firings since the last look, whose loads the next one looks for."""
        self._lanes = dict.fromkeys(LANES, 2 * setup.task - LASTS - setup.gap)
        """Until when the dispatching tasks of the sample DAG are busy."""
        self._coming: Counter[tuple[int, str]] = Counter()
        self._order: list[tuple[int, str]] = []
        self._turn = 0
        chance = random.Random(1)
        windows: Counter[int] = Counter()
        for _ in range(setup.tables):
            length = chance.uniform(60, 90)
            due = chance.uniform(0, length) + DUE_AFTER.total_seconds() - setup.outage
            while due < setup.end:
                windows[ceil(due)] += 1
                due += length
        self.windows_a_second = sum(windows.values()) / (setup.end + setup.outage)
        for due_at, number in windows.items():
            self._arrive(due_at, "window", number)
        self.kept = round(self.windows_a_second * setup.keep)
        """Fired windows: so many since long ago."""

    def _arrive(self, ready: float, kind: str, number: int) -> None:
        self.arrived += number
        self.traces += number if kind != "window" else 0
        self._wait(ceil(ready), kind, number)

    def _wait(self, ready: int, kind: str, number: int) -> None:
        if not self._coming[ready, kind]:
            heappush(self._order, (ready, kind))
        self._coming[ready, kind] += number

    def ready(self, now: float, kinds: Collection[str]) -> list[Events]:
        """Take what can be dispatched, oldest first."""
        taken: list[Events] = []
        others: list[tuple[int, str]] = []
        while self._order and self._order[0][0] <= now:
            ready, kind = heappop(self._order)
            if kind in kinds:
                taken.append((ready, kind, self._coming.pop((ready, kind))))
            else:
                others.append((ready, kind))
        for other in others:
            heappush(self._order, other)
        self.most = max(self.most, sum(number for _, _, number in taken))
        return taken

    @property
    def waiting(self) -> int:
        """Events that have not been dispatched, whether they can be or not."""
        return self._coming.total()

    @property
    def objects(self) -> int:
        """In the task folder: windows that have been fired and those that fill, and traces."""
        return self.kept + self.setup.tables + self.traces

    @property
    def falls_behind(self) -> bool:
        """Whether an event waits that could have been dispatched long ago."""
        return bool(self._order) and self.clock - self._order[0][0] > BEHIND

    def look(
        self, now: float, *, first: bool = True, kinds: Collection[str] = tuple(KINDS)
    ) -> tuple[list[Events], float]:
        """Look at everything; gives what can be dispatched, and when that is known.

        :param first: whether this process knows nothing of fired windows yet.
        :param kinds: of events that it dispatches.
        """
        setup, objects = self.setup, self.objects
        asked = cost.look(objects, self.traces, setup.projects)
        pages = asked.requests["storage.objects.list"]
        jobs = asked.requests.total() - pages
        if self._begun and now - self._jobs_listed_at >= _LIST_EVERY_S:
            asked.add("bigquery.jobs.list", setup.projects)
            self._jobs_listed_at = now
            jobs += setup.projects
        # By which event a load is known is read of each window once; what another process wrote down, in each process.
        bodies = self._begun
        intents = ceil(self._begun / MOST) if first else 0
        asked.add("storage.objects.get", bodies + intents)
        self._begun = 0
        minutes = ceil(setup.keep / 60) + 2 if first else 0
        asked.together("storage.objects.list", minutes)
        self.cost += asked
        cpu = objects * LISTED + self.traces * LOOKED_UP
        self.cpu += cpu
        # The next page is on its way while one is read.
        seconds = setup.page + max((pages - 1) * setup.page, objects * LISTED)
        seconds += setup.batch if minutes else 0.0
        seconds += ceil(bodies / READERS) * REQUEST + ceil(intents / THREADS) * REQUEST
        seconds += max(ceil(jobs / THREADS) * REQUEST, jobs / _MOST_CALLS if jobs > THREADS else 0)
        seconds += self.traces * LOOKED_UP
        self.looks.append(seconds)
        return self.ready(now, kinds), now + seconds

    def dispatch(self, events: Sequence[Events], begin: float, until: float, *, first: bool = True) -> float:
        """Dispatch in one process; gives when it is through. What cannot be begun in time waits."""
        setup = self.setup
        numbers = [number for _, _, number in events]
        windows = sum(number for _, kind, number in events if kind == "window")
        traces = sum(numbers) - windows
        batches = 3 * ceil(windows / BATCH_SIZE) + 2 * ceil(traces / BATCH_SIZE)
        rate = min(DispatchConfig.max_writes_per_second, setup.writes)
        cpu = windows * FIRED + traces * MOVED
        seconds = max(ceil(batches / THREADS) * setup.batch, cpu, (2 * windows + traces) / rate)
        begun = begin + (4 + ceil(traces / ROUND) + ceil(windows / MOST / THREADS)) * REQUEST
        done = Counter[bool]()
        for (ready, kind, number), so_far in zip(events, accumulate(numbers), strict=True):
            at = begun + seconds * (so_far - number / 2) / sum(numbers)
            if at > until:
                self._wait(ready, kind, number)
                continue
            done[kind == "window"] += number
            self._delivered(ready, kind, number, at)
        self.cost += cost.dispatch(done[False], done[True], first=first)
        self.cost += cost.tidy(ceil(done[False] / MOST))
        self._begun += done[True]
        self.cpu += cpu
        return begun + seconds * min(1.0, sum(done.values()) / max(1, sum(numbers)))

    def _delivered(self, ready: int, kind: str, number: int, at: float) -> None:
        self.dispatched += number
        self.traces -= number if kind != "window" else 0
        if ready < 0:
            self.caught_up = max(self.caught_up, at)
        if at > WARM:
            self.lags[round(at - ready)] += number
        following = {"window": ("load",), "load": ("copy", "query")}.get(kind, ())
        for action, chains in self._parts(following, number):
            for seconds, jobs in self._parts(JOBS[action], chains):
                self._arrive(at + BQTAIL + seconds, action, jobs)

    def _parts(self, among: Sequence[T], number: int) -> Iterator[tuple[T, int]]:
        """Spread a number evenly; those that are left over go to one after the other."""
        each, more = divmod(number, max(1, len(among)))
        for position, one in enumerate(among):
            mine = each + ((position - self._turn) % len(among) < more)
            if mine:
                yield one, mine
        self._turn += more

    def run(self) -> Folder:
        """Let the time go by."""
        step = self._operator_run if self.setup.back_to_back else self._minute
        while self.clock < self.setup.end:
            self.clock = step(self.clock)
        return self

    def _tidied(self, now: float) -> float:
        asked = cost.tidy(round(self.windows_a_second * (now - self._tidied_at)))
        self._tidied_at = now
        seconds = asked.requests.total() * self.setup.batch
        if now - self._cleaned_at >= _CLEAN_EVERY_S:
            self._old += round(self.windows_a_second * (now - self._cleaned_at))
            self._cleaned_at = now
        if self._old:
            # Two entries of each firing; in one cycle no more than some thousand of them.
            cleaned = min(self._old, _PAGES_AT_ONCE * 1000 // 2)
            self._old -= cleaned
            swept = cost.clean_up(self.objects, cleaned)
            asked += swept
            lists = swept.requests["storage.objects.list"]
            seconds += (lists + ceil((swept.requests.total() - lists) / THREADS)) * self.setup.batch
        self.cost += asked
        return now + seconds

    def _minute(self, begin: float) -> float:
        """A minute of the sample DAG: the sensor, two tasks that go on until those of the next run, the report."""
        until = begin + MINUTE + LASTS
        self.look(begin + self.setup.task, kinds=())
        first = dict.fromkeys(LANES, True)
        for lane, busy in self._lanes.items():
            self._lanes[lane] = max(busy, begin + LASTS) + self.setup.gap
        while (now := self._lanes[lane := min(self._lanes, key=lambda each: self._lanes[each])]) < until:
            events, now = self.look(now, first=first[lane], kinds=lane)
            now = self.dispatch(events, now, math.inf, first=first[lane])
            self._lanes[lane], first[lane] = self._tidied(now) + LEAST, False
        self.look(until, kinds=())
        self.cost += cost.journal(len(LANES))
        self.cpu += (len(LANES) + 2) * START
        return begin + MINUTE

    def _operator_run(self, begin: float) -> float:
        """One run of a dispatching task on its own: cycles until its time to live is over."""
        now, first = begin + self.setup.task, True
        until = min(now + 60 * self.setup.minutes - _LESS, max(now, self.setup.end))
        while first or now + LEAST < until:
            events, now = self.look(now if first else now + LEAST, first=first)
            now = self.dispatch(events, now, math.inf if first else until, first=first)
            now, first = self._tidied(now), False
        self.cost.add("storage.objects.insert", 2)
        self.cpu += START
        return now + REQUEST


def lag(folder: Folder, part: float) -> str:
    """Seconds within which so great a part of the events went out, from when they could."""
    wanted, so_far = part * folder.lags.total(), 0
    for seconds in sorted(folder.lags):
        so_far += folder.lags[seconds]
        if so_far >= wanted:
            return str(seconds)
    return "-"


def figures(setup: Setup, dispatchers: int = 1) -> list[str]:
    """A line of a table: a day of so many dispatchers, each with its part of the tables in a folder of its own."""
    folder = Folder(replace(setup, tables=setup.tables // dispatchers)).run()
    days = folder.clock / DAY / dispatchers
    a, b = (number / days for number in folder.cost.billed)
    events = folder.lags.total() * dispatchers * DAY / (folder.clock - WARM)
    deleted = folder.cost.calls["storage.objects.delete"] / days + events  # BqTail deletes what it has consumed
    remembered = 2 * folder.windows_a_second * dispatchers * KEEP_ENTRY.total_seconds()
    kept = (deleted * SOFT_DELETED + remembered) * KIB / 2**20 * 24 * GIB_HOUR
    memory = BASE_MB + (folder.objects * OBJECT_KB + folder.traces * JOB_KB) / 1000
    shown = [f"{folder.objects:,}", f"{max(folder.looks):.0f} s"]
    if folder.falls_behind:
        return [*shown, "falls behind", *("-",) * 7]
    return [
        *shown,
        f"{lag(folder, 0.5)} / {lag(folder, 0.95)} / {lag(folder, 1)} s",
        f"{events:,.0f}",
        f"{folder.most:,}",
        f"{folder.cost.requests.total() / days:,.0f}",
        f"{a:,.0f} + {b:,.0f}",
        f"{a * cost.A + b * cost.B:,.2f} + {kept:,.2f}",
        f"{memory:,.0f} MB",
        f"{folder.cpu / days / HOUR:.1f} h",
    ]


HEAD = ["objects in a folder", "a look", "lag: half, 95 %, all", "events a day", "most at one time", "requests a day"]
HEAD += ["billed, class A + B", "$ a day + what is kept", "memory", "CPU a day"]
MANY = (1, 2, 4, 8)
MODES = {
    "every minute": Setup(0),
    "back to back": Setup(0, back_to_back=True),
    "back to back, 30 min": Setup(0, back_to_back=True, minutes=30),
}


def growth() -> Iterator[list[str]]:
    """One dispatcher, ever more tables."""
    for times in (1, 10, 40, 100):
        for mode, setup in MODES.items():
            work = f"{1.4 * times:g} million, {100 * times:,} tables"
            yield [work, mode, *figures(replace(setup, tables=100 * times))]


def shared() -> Iterator[list[str]]:
    """The same work for more dispatchers."""
    for times, dispatchers in ((10, 1), (10, 2), (10, 10), (100, 1), (100, 10), (100, 50)):
        yield [f"{1.4 * times:g} million", f"{dispatchers}", *_of(times, dispatchers)]
    yield ["140 million", "50, Kubernetes: 25 s until a task works", *_of(100, 50, task=25, gap=25)]
    yield ["140 million", "50, a page takes 150 ms, a batch 500 ms", *_of(100, 50, page=0.15, batch=0.5)]
    yield ["140 million", "50, fired windows kept for 10 minutes", *_of(100, 50, keep=600)]


def _of(times: int, dispatchers: int, **more: Any) -> list[str]:
    return figures(replace(Setup(100 * times), **more), dispatchers)


def outages() -> Iterator[list[str]]:
    """How long it takes until what had gathered in an hour is handed on."""
    for writes, batch in ((1000, REQUEST), (5000, REQUEST), (5000, 0.5), (20_000, 0.5)):
        setup = Setup(1000, writes=writes, batch=batch, outage=HOUR, hours=0)
        parts = [replace(setup, tables=setup.tables // many, writes=writes // many) for many in MANY]
        after = [Folder(part).run().caught_up for part in parts]
        yield [f"{writes:,} writes a second, a batch takes {batch} s", *(f"{seconds:.0f} s" for seconds in after)]


TABLES = {
    "growth": (["files a day", "runs", *HEAD], growth),
    "shared": (["files a day", "dispatchers", *HEAD], shared),
    "outages": (["the buckets take", *(counted(number, "dispatcher") for number in MANY)], outages),
}


def main() -> None:
    """Print, and perhaps write."""
    parser = argparse.ArgumentParser(description="Count what growth costs.")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    options = parser.parse_args()
    for name, (head, lines) in TABLES.items():
        rows = list(lines())
        shown = Table(*head, title=name)
        for row in rows:
            shown.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 220).print(shown)
        if options.write:
            write(PAGE, name, "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)))


if __name__ == "__main__":
    main()
