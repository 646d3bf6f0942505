"""The search for the jobs of one project's traces: what is missing, and whether a list or look-ups find it sooner.

Pure decisions; :mod:`~bqdispatch_provider.gcp.project_search` makes the calls.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bqdispatch_provider.core.listing import Trace
from bqdispatch_provider.core.model import Job, JobKey

MAX_LOOKUPS_WITHOUT_LIST = 5
"""Jobs of a project that are looked up one by one; a list costs about as much, and may have several pages."""

MAX_LOOKUPS = 100
"""Look-ups in a project and cycle (BigQuery allows 100 a second). What a whole list lacks hardly exists."""

PARALLEL_CALLS = 8
"""Calls for one project that are made at a time."""

MAX_LISTS, TRACES_PER_LIST = 32, 900
"""Lists of one project's jobs that are read at a time, since the pages of each come one after the other. Each list is
made for so many traces that their jobs are in its first page, with some others between them."""

MAX_PAGES = 20
"""Pages of a list that are read in a cycle for jobs that nothing but a list can find. The next cycle goes on there."""

CLOCK_MARGIN = timedelta(minutes=5)
"""BqTail writes the trace before it submits the job. The margin is for clocks that disagree."""

_REWRITE_MARGIN = timedelta(days=1)
"""A trace may be written again long after its job was submitted. This counts before the job is called unknown."""

_OVERLAP = timedelta(minutes=1)
"""This much of a list is read again: a job may appear in it a little late."""


@dataclass(frozen=True, slots=True)
class Span:
    """A time whose jobs were all listed.

    :param since: creation of the first of them.
    :param until: creation of the last.
    """

    since: datetime
    until: datetime

    def joined(self, older: Span) -> Span:
        """Add an older time, unless something between the two was not listed."""
        if older.until < self.since:
            return self
        return Span(min(self.since, older.since), max(self.until, older.until))


@dataclass
class Memory:
    """Knowledge of jobs whose traces' names do not say where they run.

    :param places: where they run, by the content of the trace or an earlier list.
    :param unplaced: jobs whose trace's content does not say it either: nothing but a list can find them.
    :param listed: by unplaced job the time that was listed without finding it.
    """

    places: dict[JobKey, JobKey] = field(default_factory=dict)
    unplaced: set[JobKey] = field(default_factory=set)
    listed: dict[JobKey, Span] = field(default_factory=dict)

    def keep(self, keys: Collection[JobKey]) -> None:
        """Forget all jobs but these."""
        # Searches for which no look has waited may be adding to them.
        for known in (self.places, self.listed):
            for key in [*known]:
                if key not in keys:
                    known.pop(key, None)
        for key in [*self.unplaced]:
            if key not in keys:
                self.unplaced.discard(key)


@dataclass
class ListProgress:
    """The part of a list of jobs, newest first, that was read.

    :param since: creation from which it goes.
    :param until: creation up to which it goes; ``None``: now.
    :param pages: number of pages that were read.
    :param newest: latest creation in them.
    :param oldest: earliest creation in them.
    :param ended: True once there is no further page.
    """

    since: datetime
    until: datetime | None
    pages: int = 0
    newest: datetime | None = None
    oldest: datetime | None = None
    ended: bool = False

    def add(self, created: Iterable[datetime]) -> None:
        """Add a page, by the creation of its jobs."""
        self.pages += 1
        for at in created:
            self.newest = max(self.newest or at, at)
            self.oldest = min(self.oldest or at, at)

    @property
    def span(self) -> Span | None:
        """The time whose jobs were read; ``None`` if there is none."""
        oldest = self.since if self.ended else self.oldest
        return None if oldest is None else Span(oldest, self.until or self.newest or oldest)

    @property
    def pages_left(self) -> float:
        """An estimate of the pages that are left, by the time that those covered that were read."""
        newest, oldest = self.until or self.newest, self.oldest
        if newest is None or oldest is None:
            return 0
        covered = max((newest - oldest).total_seconds(), 0.001)
        return max((oldest - self.since).total_seconds(), 0.0) * self.pages / covered


class Search:
    """A search for jobs of one project, which several threads carry out.

    :param traces: of that project.
    :param suspects: jobs that BigQuery may not know, which the search is to prove.
    :param memory: of earlier searches; it is added to.
    """

    def __init__(self, traces: Sequence[Trace], suspects: Collection[JobKey], memory: Memory) -> None:
        self._traces = {trace.job: trace for trace in traces}
        self._suspects = suspects
        self._memory = memory
        self._by_id: defaultdict[str, list[JobKey]] = defaultdict(list)
        for key in self._traces:
            self._by_id[key.job_id].append(key)
        self.missing = dict.fromkeys(self._traces)
        self.found: dict[JobKey, Job] = {}
        self.unread: dict[JobKey, str] = {}
        """By job why the content of its trace, which may say where it runs, cannot be read now."""

        self.all_locations = True
        """False once a list has left out a location, or had none of the form of a list."""

    @property
    def is_small(self) -> bool:
        """True if look-ups are enough, whatever number of pages a list has."""
        return len(self.missing) <= MAX_LOOKUPS_WITHOUT_LIST

    def place(self, key: JobKey) -> JobKey:
        """Return where a job runs, as far as that is known."""
        return self._memory.places.get(key, key)

    def contents_to_read(self, of: Collection[JobKey] | None = None) -> list[Trace]:
        """Choose traces whose content may say where their jobs run; others every time.

        :param of: only for these jobs; by default for all.
        """
        wanted = [
            key
            for key in self.missing
            if self._needs_place(key) and key not in self._memory.unplaced and (of is None or key in of)
        ]
        return [self._traces[key] for key in _sample(wanted)]

    def add_content(self, trace: Trace, place: JobKey | None) -> None:
        """Add what the content of a trace says.

        :param place: where its job runs; ``None`` if the content does not say it.
        """
        if place is None:
            self._memory.unplaced.add(trace.job)
        else:
            self._memory.places[trace.job] = place

    def lists_to_read(self, *, small: bool) -> list[ListProgress]:
        """Choose the lists that are worth a first page, newest first.

        :param small: True: only for jobs that nothing but a list can find.
        """
        wanted = self._traces.values() if not small else [self._traces[key] for key in self._unplaced()]
        if not wanted:
            return []
        created = sorted((trace.object.created for trace in wanted), reverse=True)
        number = min(MAX_LISTS, -(-len(created) // TRACES_PER_LIST))
        inner = dict.fromkeys(created[len(created) * each // number] for each in range(1, number))
        oldest = min(self._unread_since(trace) for trace in wanted)
        lists = [ListProgress(*each) for each in zip((*inner, oldest), (None, *inner), strict=True)]
        # What earlier searches have not reached, since they read no more than so many pages.
        behind = [
            (since, span.since)
            for key in self._unplaced()
            if (span := self._memory.listed.get(key)) and (since := self._earliest(self._traces[key])) < span.since
        ]
        if behind:
            lists.append(ListProgress(min(since for since, _ in behind), max(until for _, until in behind)))
        return lists

    def add_listed(self, job_id: str, location: str, job: Job) -> None:
        """Add a job that was listed, if a trace waits for it."""
        for key in self._by_id.get(job_id, ()):
            place = self.place(key)
            if key in self.missing and (place.location or location).lower() == location.lower():
                if place.location is None:
                    self._memory.places[key] = JobKey(key.project, location, job_id)
                    self._memory.unplaced.discard(key)
                self.found[key] = job
                self.missing.pop(key, None)

    def is_list_over(self, progress: ListProgress) -> bool:
        """Return whether look-ups find the rest sooner than the next pages of a list.

        :param progress: of the list.
        """
        # A copy, since other threads find some of them meanwhile. More than can be looked up need not be counted.
        until = progress.until
        listable = (key for key in list(self.missing) if until is None or self._earliest(self._traces[key]) < until)
        left = list(itertools.islice(listable, MAX_LOOKUPS + 1))
        if not left:
            return True
        if self._unplaced():
            return progress.pages >= MAX_PAGES
        if len(left) > MAX_LOOKUPS:
            # Each cycle looks up some of them, which is sooner if BigQuery does not know most of them any more. The
            # estimate is good enough after as many pages as one cycle's look-ups take.
            rounds = math.ceil(len(self.missing) / PARALLEL_CALLS)
            return progress.pages * PARALLEL_CALLS >= MAX_LOOKUPS and rounds <= progress.pages_left
        calls = sum(2 if self._needs_place(key) else 1 for key in left)
        return calls <= MAX_LOOKUPS_WITHOUT_LIST or math.ceil(calls / PARALLEL_CALLS) <= progress.pages_left

    def add_lists(self, lists: Sequence[ListProgress]) -> None:
        """Remember what was read of lists.

        :param lists: the first of them goes up to now.
        """
        spans = [span for each in lists if (span := each.span) is not None]
        if not self.all_locations or lists[0].span is None:
            return
        for key in self._unplaced():
            known = [*spans, *([self._memory.listed[key]] if key in self._memory.listed else [])]
            known.sort(key=lambda span: span.until, reverse=True)
            self._memory.listed[key] = functools.reduce(Span.joined, known)

    def is_listed(self, key: JobKey) -> bool:
        """Return whether all jobs were listed that could be this one, which nothing but a list can find."""
        span = self._memory.listed.get(key) if key in self._memory.unplaced else None
        return self.all_locations and span is not None and span.since <= self._earliest(self._traces[key])

    def jobs_to_look_up(self) -> list[JobKey]:
        """Choose jobs to look up: others every time, so that each has its turn."""
        return _sample(list(self.missing))

    def _needs_place(self, key: JobKey) -> bool:
        return key.location is None and key not in self._memory.places

    def _unplaced(self) -> list[JobKey]:
        return [key for key in list(self._memory.unplaced) if key in self.missing]

    def _earliest(self, trace: Trace) -> datetime:
        """Return the earliest creation of a job that could be a trace's."""
        # Without a location a look-up reaches only US and EU, so nothing but the list can prove anything.
        if trace.job in self._memory.unplaced and trace.job in self._suspects:
            return trace.object.since - _REWRITE_MARGIN
        return trace.object.created - CLOCK_MARGIN

    def _unread_since(self, trace: Trace) -> datetime:
        """Return the creation from which on a list that goes up to now tells what earlier ones have not."""
        span = self._memory.listed.get(trace.job)
        return self._earliest(trace) if span is None else span.until - _OVERLAP


def _sample(keys: list[JobKey]) -> list[JobKey]:
    return random.sample(keys, min(len(keys), MAX_LOOKUPS))
