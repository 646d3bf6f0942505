"""The search for the jobs of one project's traces: what is missing, and whether a list or look-ups find it sooner."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bqdispatch_provider.model import Job, JobKey, Trace

FEW = 5
"""Up to so many jobs of a project are looked up one by one; a list costs about as much and may have several pages."""

LOOK_UPS = 100
"""Look-ups per project and cycle at most (BigQuery allows 100 a second): what a whole list lacks is hardly there."""

AT_ONCE = 8
"""Calls for one project that are made side by side."""

SLICES, SLICE = 32, 900
"""Lists of one project's jobs at most that are read side by side, since the pages of each come one after the other; and
traces for which one is made: so that their jobs are in its first page, with some of others between them."""

MOST_PAGES = 20
"""Pages of one list that are read in a cycle for jobs that nothing but a list can find; the next one goes on there."""

BEFORE = timedelta(minutes=5)
"""BqTail writes the trace before it submits the job; this much is left for clocks that disagree."""

_LONG_BEFORE = timedelta(days=1)
"""A trace may be written again long after its job was submitted, which matters before it is called unknown."""

_AGAIN = timedelta(minutes=1)
"""So much of a list is read again: jobs may come into it a little late."""


@dataclass(frozen=True, slots=True)
class Span:
    """A time whose jobs were all listed.

    :param since: creation of the first of them.
    :param until: creation of the last.
    """

    since: datetime
    until: datetime

    def joined(self, older: Span) -> Span:
        """Add an older time; without it where something between the two was not listed."""
        if older.until < self.since:
            return self
        return Span(min(self.since, older.since), max(self.until, older.until))


@dataclass
class Memory:
    """Keep in mind what is known of jobs whose traces do not say where they run.

    :param places: where they are, by what their trace or an earlier list has told.
    :param lost: those of which nothing but a list can tell: the trace's content does not either.
    :param listed: of those, the time of which no job is theirs.
    """

    places: dict[JobKey, JobKey] = field(default_factory=dict)
    lost: set[JobKey] = field(default_factory=set)
    listed: dict[JobKey, Span] = field(default_factory=dict)

    def keep(self, keys: Collection[JobKey]) -> None:
        """Forget all but these."""
        # Searches that nobody has waited for may be adding to them.
        for known in (self.places, self.listed):
            for key in [*known]:
                if key not in keys:
                    known.pop(key, None)
        for key in [*self.lost]:
            if key not in keys:
                self.lost.discard(key)


@dataclass
class Pages:
    """Count what was read of one list of jobs, newest first.

    :param since: creation from which on it goes.
    :param until: creation up to which it goes; ``None``: now.
    """

    since: datetime
    until: datetime | None
    number: int = 0
    newest: datetime | None = None
    oldest: datetime | None = None
    ended: bool = False
    """True once there is no further page."""

    def add(self, created: Iterable[datetime]) -> None:
        """Note a page by the creation of its jobs."""
        self.number += 1
        for at in created:
            self.newest = max(self.newest or at, at)
            self.oldest = min(self.oldest or at, at)

    @property
    def read(self) -> Span | None:
        """The time whose jobs were read; ``None`` where that is none."""
        oldest = self.since if self.ended else self.oldest
        return None if oldest is None else Span(oldest, self.until or self.newest or oldest)

    @property
    def left(self) -> float:
        """Estimate how many pages are left, by how much time those have covered that were read."""
        newest, oldest = self.until or self.newest, self.oldest
        if newest is None or oldest is None:
            return 0
        covered = max((newest - oldest).total_seconds(), 0.001)
        return max((oldest - self.since).total_seconds(), 0.0) * self.number / covered


class Search:
    """Jobs of one project that are looked for, by several threads.

    :param traces: of that project.
    :param doubted: jobs of which it is to be proven that BigQuery does not know them.
    :param memory: of earlier searches; it is added to.
    """

    def __init__(self, traces: Sequence[Trace], doubted: Collection[JobKey], memory: Memory) -> None:
        self._traces = {trace.job: trace for trace in traces}
        self._doubted = doubted
        self._memory = memory
        self._by_id: defaultdict[str, list[JobKey]] = defaultdict(list)
        for key in self._traces:
            self._by_id[key.job_id].append(key)
        self.missing = dict.fromkeys(self._traces)
        self.found: dict[JobKey, Job] = {}
        self.whole = True
        """True as long as no location was left out of a list."""

    @property
    def is_small(self) -> bool:
        """Tell whether look-ups are enough, without a look at how many pages a list has."""
        return len(self.missing) <= FEW

    def place(self, key: JobKey) -> JobKey:
        """Return where a job is, as far as that is known."""
        return self._memory.places.get(key, key)

    def unread(self, of: Collection[JobKey] | None = None) -> list[Trace]:
        """Give traces whose content is to be asked where their jobs are; others every time.

        :param of: only for these jobs; by default for all.
        """
        asked = [
            key
            for key in self.missing
            if self._is_unplaced(key) and key not in self._memory.lost and (of is None or key in of)
        ]
        return [self._traces[key] for key in random.sample(asked, min(len(asked), LOOK_UPS))]

    def told(self, trace: Trace, place: JobKey | None) -> None:
        """Note what the content of a trace says."""
        if place is None:
            self._memory.lost.add(trace.job)
        else:
            self._memory.places[trace.job] = place

    def lists(self, *, small: bool) -> list[Pages]:
        """Give the lists that are worth a first page, newest first.

        :param small: whether only what nothing else can tell is looked for.
        """
        wanted = self._traces.values() if not small else [self._traces[key] for key in self._lost()]
        if not wanted:
            return []
        created = sorted((trace.object.created for trace in wanted), reverse=True)
        number = min(SLICES, -(-len(created) // SLICE))
        inner = dict.fromkeys(created[len(created) * each // number] for each in range(1, number))
        oldest = min(self._since(trace) for trace in wanted)
        lists = [Pages(*each) for each in zip((*inner, oldest), (None, *inner), strict=True)]
        # What earlier searches have not come to: they read up to so many pages.
        behind = [
            (since, span.since)
            for key in self._lost()
            if (span := self._memory.listed.get(key)) and (since := self._first(self._traces[key])) < span.since
        ]
        if behind:
            lists.append(Pages(min(since for since, _ in behind), max(until for _, until in behind)))
        return lists

    def take(self, job_id: str, location: str, job: Job) -> None:
        """Note a job that was listed."""
        for key in self._by_id.get(job_id, ()):
            place = self.place(key)
            if key in self.missing and (place.location or location).lower() == location.lower():
                if place.location is None:
                    self._memory.places[key] = JobKey(key.project, location, job_id)
                    self._memory.lost.discard(key)
                self.found[key] = job
                self.missing.pop(key, None)

    def is_over(self, pages: Pages) -> bool:
        """Tell whether the rest is found sooner by look-ups than by going on with a list.

        :param pages: what was read of it.
        """
        # A copy, for other threads find some of them meanwhile. More than can be looked up need not be counted.
        left = list(
            itertools.islice(
                (
                    key
                    for key in list(self.missing)
                    if pages.until is None or self._first(self._traces[key]) < pages.until
                ),
                LOOK_UPS + 1,
            )
        )
        if not left:
            return True
        if self._lost():
            return pages.number >= MOST_PAGES
        if len(left) > LOOK_UPS:
            return False
        calls = sum(2 if self._is_unplaced(key) else 1 for key in left)
        return calls <= FEW or math.ceil(calls / AT_ONCE) <= pages.left

    def end_of(self, lists: Sequence[Pages]) -> None:
        """Note what of the lists was read.

        :param lists: the first of them goes up to now.
        """
        spans = [span for each in lists if (span := each.read) is not None]
        if not self.whole or lists[0].read is None:
            return
        for key in self._lost():
            known = [*spans, *([self._memory.listed[key]] if key in self._memory.listed else [])]
            known.sort(key=lambda span: span.until, reverse=True)
            self._memory.listed[key] = functools.reduce(Span.joined, known)

    def is_listed(self, key: JobKey) -> bool:
        """Tell whether all jobs were listed that could be this one, of which nothing but a list can tell."""
        span = self._memory.listed.get(key) if key in self._memory.lost else None
        return self.whole and span is not None and span.since <= self._first(self._traces[key])

    def asked(self) -> list[JobKey]:
        """Give the jobs that are to be looked up: others every time, so that each is asked for in the end."""
        return random.sample(list(self.missing), min(len(self.missing), LOOK_UPS))

    def _is_unplaced(self, key: JobKey) -> bool:
        return key.location is None and key not in self._memory.places

    def _lost(self) -> list[JobKey]:
        return [key for key in list(self._memory.lost) if key in self.missing]

    def _first(self, trace: Trace) -> datetime:
        """Return from when on the jobs are to be listed that could be a trace's."""
        # A look-up outside US and EU needs a location; without one the list alone can prove anything.
        if trace.job in self._memory.lost and trace.job in self._doubted:
            return trace.object.since - _LONG_BEFORE
        return trace.object.created - BEFORE

    def _since(self, trace: Trace) -> datetime:
        """Return from when on a list that goes up to now tells what earlier ones have not."""
        span = self._memory.listed.get(trace.job)
        return self._first(trace) if span is None else span.until - _AGAIN


def by_project(traces: Iterable[Trace]) -> Mapping[str, list[Trace]]:
    """Sort traces by the project of their jobs."""
    sorted_traces: defaultdict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        sorted_traces[trace.project].append(trace)
    return sorted_traces
