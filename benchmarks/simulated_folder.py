"""A task folder in virtual time: what growth costs, by counts.

Nothing is sent and nothing waits. What a cycle asks for comes from ``cost.py``; how long that takes is made of the
figures below.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from math import ceil
from typing import TypeVar

import cost

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.polling import MIN_INTERVAL_S
from bqdispatch_provider.core.windows import DUE_AFTER
from bqdispatch_provider.cycle.clean_up import LEDGER_INTERVAL, MAX_LEDGER_PAGES
from bqdispatch_provider.cycle.dispatching import MAX_TRACES_PER_ROUND
from bqdispatch_provider.delivery.own_intents import MAX_EVENTS_PER_INTENT
from bqdispatch_provider.delivery.visible_loads import LIST_INTERVAL_S
from bqdispatch_provider.dispatcher import READERS, THREADS, TIME_TO_LIVE_MARGIN_S
from bqdispatch_provider.gcp.gcs_batch import BATCH_SIZE
from bqdispatch_provider.gcp.job_calls import MAX_CALLS_PER_S

REQUEST_S, TASK_START_S = 0.03, 3.0
"""Seconds of a request, and until an Airflow task works whose condition is met."""
PROCESS_CPU_S, LISTED_CPU_S, LOOKED_UP_CPU_S, MOVED_CPU_S, FIRED_CPU_S = 0.6, 16e-6, 24e-6, 90e-6, 170e-6
"""CPU seconds of a process, of an object in a list, of its job, of a move, and of a firing (benchmarks/README.md)."""
NAME_S = 9e-6
"""Seconds that an event adds to each writing of its task's document: 350 bytes at 50 MB/s, and the CPU."""
HOUR_S, WARM_UP_S = 3600, 900
RUN_INTERVAL_S, OVERLAP_S, HAND_OVER_S = 60, 8, 1.7
"""Seconds from one run of the sample DAG to the next, seconds for which its tasks go on in that one, and seconds from
then until the next run's tasks dispatch (docs/latency.md)."""
LANES = (("query",), ("load", "copy", "window"))
"""The kinds of events of each task."""
MAX_LAG_S = 600
"""An event that waits longer shows that a dispatcher has fallen behind."""
JOB_RANGES_S = {"load": (5, 60), "copy": (3, 15), "query": (5, 180)}
JOB_DURATIONS_S = {
    kind: [low * (high / low) ** ((each + 0.5) / 8) for each in range(8)] for kind, (low, high) in JOB_RANGES_S.items()
}
"""Durations of jobs, each as frequent as the others."""
KINDS = ("window", *JOB_RANGES_S)
BQTAIL_S = 2
"""Seconds until BqTail has consumed an event and written the next trace."""

T = TypeVar("T")
Events = tuple[int, str, int]
"""Second from which on they can be dispatched, kind, and number."""


@dataclass(frozen=True)
class Setup:
    """A dispatcher, and its work.

    :param tables: tables with batch windows of 60 to 90 s, one load for each window, and a copy or a query after it.
    :param back_to_back: a ``DispatchOperator`` on its own, cycle after cycle, instead of the sample DAG.
    :param minutes: ``TimeToLiveInMin`` of such an operator.
    :param task: seconds until an Airflow task works.
    :param gap: seconds from the end of a run's dispatching task until that of the next run works.
    :param page: seconds of a page of a list.
    :param batch: seconds of a batch.
    :param writes: writes a second that each of the two buckets takes.
    :param keep: seconds for which a fired window is kept: ``MaxTriggerDelayMs``.
    :param outage: seconds without a dispatcher before the start.
    :param hours: how long it goes on, after the warm-up.
    """

    tables: int
    back_to_back: bool = False
    minutes: float = DispatchConfig.time_to_live_in_min
    task: float = TASK_START_S
    gap: float = HAND_OVER_S
    page: float = REQUEST_S
    batch: float = REQUEST_S
    writes: int = 5000
    keep: float = DispatchConfig.max_trigger_delay_ms / 1000
    outage: int = 0
    hours: float = 1

    @property
    def projects(self) -> int:
        """Return the number of projects, with 50 tables each: 100 tables would exceed a project's loads a day."""
        return ceil(self.tables / 50)

    @property
    def end(self) -> float:
        """Return the second at which it ends."""
        return WARM_UP_S + self.hours * HOUR_S


class Folder:
    """One task folder in virtual time. It counts events by when they can be dispatched, instead of holding each."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.cost, self.cpu, self.clock = cost.Cost(), 0.0, 0.0
        self.arrived = self.dispatched = self.traces = self.most = self.named = 0
        self.lags: Counter[int] = Counter()
        self.looks: list[float] = []
        self.caught_up = self._windows_cleaned_at = self._ledger_cleaned_at = 0.0
        self._jobs_listed_at = -LIST_INTERVAL_S
        self._old = 0
        """Firings to remove from the ledger."""
        self._begun = 0
        """Firings since the last look. The next one looks for their loads."""
        self._lanes = dict.fromkeys(LANES, 2 * setup.task - OVERLAP_S - setup.gap)
        """Second until which each dispatching task of the sample DAG is busy."""
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
        """Fired windows that are kept at any time."""

    def _arrive(self, ready: float, kind: str, number: int) -> None:
        self.arrived += number
        self.traces += number if kind != "window" else 0
        self._wait(ceil(ready), kind, number)

    def _wait(self, ready: int, kind: str, number: int) -> None:
        if not self._coming[ready, kind]:
            heappush(self._order, (ready, kind))
        self._coming[ready, kind] += number

    def ready(self, now: float, kinds: Collection[str]) -> list[Events]:
        """Remove the events that can be dispatched, and return them, oldest first."""
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
        """Return the number of events that have not been dispatched, whether they can be or not."""
        return self._coming.total()

    @property
    def objects(self) -> int:
        """Return the number of objects in the task folder: fired windows, windows that fill, and traces."""
        return self.kept + self.setup.tables + self.traces

    @property
    def falls_behind(self) -> bool:
        """Tell whether an event waits that could have been dispatched long ago."""
        return bool(self._order) and self.clock - self._order[0][0] > MAX_LAG_S

    def look(
        self, now: float, *, first: bool = True, kinds: Collection[str] = tuple(KINDS)
    ) -> tuple[list[Events], float]:
        """Look at everything.

        :param first: this process does not know the fired windows yet.
        :param kinds: kinds of events that it dispatches.
        :returns: the events that can be dispatched, and the second at which they are known.
        """
        setup, objects = self.setup, self.objects
        asked = cost.look(objects, self.traces, setup.projects)
        pages = asked.requests["storage.objects.list"]
        jobs = asked.requests.total() - pages
        if self._begun and now - self._jobs_listed_at >= LIST_INTERVAL_S:
            asked.add("bigquery.jobs.list", setup.projects)
            self._jobs_listed_at = now
            jobs += setup.projects
        # Each window is read once, to learn by which event its load is known. Each process reads intents of others.
        bodies = self._begun
        intents = ceil(self._begun / MAX_EVENTS_PER_INTENT) if first else 0
        asked.add("storage.objects.get", bodies + intents)
        self._begun = 0
        minutes = ceil(setup.keep / 60) + 2 if first else 0
        asked.together("storage.objects.list", minutes)
        self.cost += asked
        cpu = objects * LISTED_CPU_S + self.traces * LOOKED_UP_CPU_S
        self.cpu += cpu
        # The next page is on its way while one is read.
        seconds = setup.page + max((pages - 1) * setup.page, objects * LISTED_CPU_S)
        seconds += setup.batch if minutes else 0.0
        seconds += ceil(bodies / READERS) * REQUEST_S + ceil(intents / THREADS) * REQUEST_S
        seconds += max(ceil(jobs / THREADS) * REQUEST_S, jobs / MAX_CALLS_PER_S if jobs > THREADS else 0)
        seconds += self.traces * LOOKED_UP_CPU_S
        self.looks.append(seconds)
        return self.ready(now, kinds), now + seconds

    def dispatch(self, events: Sequence[Events], begin: float, until: float, *, first: bool = True) -> float:
        """Dispatch in one process. Events that cannot be begun in time wait.

        :returns: the second at which it is done.
        """
        setup = self.setup
        numbers = [number for _, _, number in events]
        windows = sum(number for _, kind, number in events if kind == "window")
        traces = sum(numbers) - windows
        batches = 3 * ceil(windows / BATCH_SIZE) + 2 * ceil(traces / BATCH_SIZE)
        rate = min(DispatchConfig.max_writes_per_second, setup.writes)
        cpu = windows * FIRED_CPU_S + traces * MOVED_CPU_S
        seconds = max(ceil(batches / THREADS) * setup.batch, cpu, (2 * windows + traces) / rate)
        begun = (
            begin
            + (4 + ceil(traces / MAX_TRACES_PER_ROUND) + ceil(windows / MAX_EVENTS_PER_INTENT / THREADS)) * REQUEST_S
        )
        done = Counter[bool]()
        for (ready, kind, number), so_far in zip(events, accumulate(numbers), strict=True):
            at = begun + seconds * (so_far - number / 2) / sum(numbers)
            if at > until:
                self._wait(ready, kind, number)
                continue
            done[kind == "window"] += number
            self._delivered(ready, kind, number, at)
        self.cost += cost.dispatch(done[False], done[True], first=first)
        if not first:
            self.cost.add("storage.objects.insert")  # the checkpoint; the first one is among those of the journal
        self.cost += cost.clean_up(ceil(done[False] / MAX_EVENTS_PER_INTENT))
        self._begun += done[True]
        self.cpu += cpu
        return begun + seconds * min(1.0, sum(done.values()) / max(1, sum(numbers)))

    def _delivered(self, ready: int, kind: str, number: int, at: float) -> None:
        self.dispatched += number
        self.traces -= number if kind != "window" else 0
        if ready < 0:
            self.caught_up = max(self.caught_up, at)
        if at > WARM_UP_S:
            self.lags[round(at - ready)] += number
        following = {"window": ("load",), "load": ("copy", "query")}.get(kind, ())
        for action, chains in self._parts(following, number):
            for seconds, jobs in self._parts(JOB_DURATIONS_S[action], chains):
                self._arrive(at + BQTAIL_S + seconds, action, jobs)

    def _parts(self, among: Sequence[T], number: int) -> Iterator[tuple[T, int]]:
        """Spread a number evenly. The remainder goes to one after the other."""
        each, more = divmod(number, max(1, len(among)))
        for position, one in enumerate(among):
            mine = each + ((position - self._turn) % len(among) < more)
            if mine:
                yield one, mine
        self._turn += more

    def run(self) -> Folder:
        """Run until the end."""
        step = self._operator_run if self.setup.back_to_back else self._minute
        while self.clock < self.setup.end:
            self.clock = step(self.clock)
        return self

    def _cleaned_up(self, now: float) -> float:
        asked = cost.clean_up(round(self.windows_a_second * (now - self._windows_cleaned_at)))
        self._windows_cleaned_at = now
        seconds = asked.requests.total() * self.setup.batch
        if now - self._ledger_cleaned_at >= LEDGER_INTERVAL.total_seconds():
            self._old += round(self.windows_a_second * (now - self._ledger_cleaned_at))
            self._ledger_cleaned_at = now
        if self._old:
            # Two entries of each firing; in one cycle no more than some thousand of them.
            cleaned = min(self._old, MAX_LEDGER_PAGES * 1000 // 2)
            self._old -= cleaned
            swept = cost.delete_old_entries(self.objects, cleaned)
            asked += swept
            lists = swept.requests["storage.objects.list"]
            seconds += (lists + ceil((swept.requests.total() - lists) / THREADS)) * self.setup.batch
        self.cost += asked
        return now + seconds

    def _minute(self, begin: float) -> float:
        """Run a minute of the sample DAG: the sensor, two tasks that go on until those of the next run, the report."""
        until = begin + RUN_INTERVAL_S + OVERLAP_S
        self.look(begin + self.setup.task, kinds=())
        first, names = dict.fromkeys(LANES, True), self.dispatched
        for lane, busy in self._lanes.items():
            self._lanes[lane] = max(busy, begin + OVERLAP_S) + self.setup.gap
        while (now := self._lanes[lane := min(self._lanes, key=lambda each: self._lanes[each])]) < until:
            events, now = self.look(now, first=first[lane], kinds=lane)
            now = self.dispatch(events, now, math.inf, first=first[lane])
            self._lanes[lane], first[lane] = self._cleaned_up(now) + MIN_INTERVAL_S, False
        self.look(until, kinds=())
        self.named = max(self.named, self.dispatched - names)
        self.cost += cost.journal(len(LANES))
        self.cost += cost.history()
        self.cpu += (len(LANES) + 2) * PROCESS_CPU_S
        return begin + RUN_INTERVAL_S

    def _operator_run(self, begin: float) -> float:
        """Run a dispatching task on its own: cycles until its time to live is over."""
        now, first = begin + self.setup.task, True
        written, names = now, self.dispatched
        until = min(now + 60 * self.setup.minutes - TIME_TO_LIVE_MARGIN_S, max(now, self.setup.end))
        while first or now + MIN_INTERVAL_S < until:
            events, now = self.look(now if first else now + MIN_INTERVAL_S, first=first)
            now = self.dispatch(events, now, math.inf if first else until, first=first)
            now, first = self._cleaned_up(now), False
            if now - written >= RUN_INTERVAL_S:
                now += (self.dispatched - names) * NAME_S
                written = now
                self.cost.add("storage.objects.insert")
        self.named = max(self.named, self.dispatched - names)
        self.cost.add("storage.objects.insert", 2)
        self.cost += cost.history()
        self.cpu += PROCESS_CPU_S
        return now + REQUEST_S
