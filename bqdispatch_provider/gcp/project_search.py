"""The search for the jobs of one project's traces, carried out by lists and look-ups."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from google.api_core.exceptions import NotFound

from bqdispatch_provider.core.listing import Trace
from bqdispatch_provider.core.model import Job, JobKey
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.job_answers import (
    JobStates,
    UnreadableJob,
    is_refusal,
    is_whole,
    listed_jobs,
    moment_of,
    read_job,
    reason_of,
)
from bqdispatch_provider.gcp.job_calls import JobCalls
from bqdispatch_provider.gcp.job_search import PARALLEL_CALLS, ListProgress, Memory, Search
from bqdispatch_provider.gcp.threads import map_in_threads

log = logging.getLogger(__name__)


class ProjectSearch:
    """A search for the jobs of one project's traces.

    :param calls: of BigQuery.
    :param project: of the traces.
    :param memory: of earlier searches; it is added to.
    """

    def __init__(self, calls: JobCalls, project: str, memory: Memory) -> None:
        self._calls, self._project, self._memory = calls, project, memory

    def find(
        self, traces: Sequence[Trace], suspects: Collection[JobKey], place: Callable[[Trace], JobKey | None]
    ) -> JobStates:
        """Find the jobs.

        :param suspects: jobs that BigQuery may not know, which the search is to prove.
        :param place: reads where the job of a trace runs; see :meth:`~bqdispatch_provider.gcp.jobs.JobBoard.look`.
        """
        states = JobStates()
        search = Search(traces, suspects, self._memory)
        small = search.is_small
        # A proof takes a list that reaches further back, unless the content of the trace says where the job runs.
        _read_contents(search, search.contents_to_read(None if small else suspects), place)
        lists = search.lists_to_read(small=small)
        took = map_in_threads(lambda progress: self._list(search, progress), lists, PARALLEL_CALLS)
        states.list_ms = sum(each for each, _ in took)
        states.jobs = search.found
        if (refusal := next((error for _, error in took if error is not None), None)) is not None:
            states.errors[self._project] = reason_of(refusal)
            return states
        if lists:
            search.add_lists(lists)
            states.listed.add(self._project)
        _read_contents(search, search.contents_to_read(), place)
        wanted = search.jobs_to_look_up()
        places = {key: search.place(key) for key in wanted}
        looked_up = self._look_up(places)
        not_found = {key: places[key] for key, found in looked_up.items() if states.add_lookup(key, found, places[key])}
        # Without a location a look-up reaches only US and EU. A list must have shown all other places, far back.
        provable = [key for key in not_found if key in suspects and (not_found[key].location or search.is_listed(key))]
        states.unknown = {key: not_found[key] for key in self._proven(provable, not_found, states.listed)}
        states.unread |= {key: search.unread[key] for key in not_found if key in search.unread}
        states.got = len(looked_up)
        return states

    def _look_up(self, places: Mapping[JobKey, JobKey]) -> dict[JobKey, Job | Exception]:
        """Look jobs up, until a location refuses as many as are asked for at a time. Each of them may take long.

        :param places: where to look each of them up.
        :returns: what came of those that were looked up.
        """
        refused: Counter[tuple[str, str | None]] = Counter()
        answering: set[tuple[str, str | None]] = set()

        def look_up(place: JobKey) -> Job | Exception | None:
            where = place.project, place.location
            if refused[where] >= PARALLEL_CALLS and where not in answering:
                return None
            found = self._calls.look_up(place)
            if is_refusal(found):
                refused[where] += 1
            else:
                answering.add(where)
            return found

        answers = map_in_threads(look_up, places.values(), PARALLEL_CALLS)
        return {key: found for key, found in zip(places, answers, strict=True) if found is not None}

    def _list(self, search: Search, progress: ListProgress) -> tuple[int, Exception | None]:
        """Read a list of jobs, newest first, until look-ups find the rest sooner.

        :returns: the milliseconds that it took, and why it could not be read.
        """
        began = time.monotonic()
        refusal: Exception | None = None
        try:
            for page in self._calls.pages(self._project, progress.since, progress.until):
                if not is_whole(page):
                    search.all_locations = False
                for job_id, location, listed in listed_jobs(page):
                    # A job that cannot be read stays missing, and is looked up.
                    with suppress(UnreadableJob):
                        search.add_listed(job_id, location, read_job(listed, location))
                progress.add(at for _, _, listed in listed_jobs(page) if (at := moment_of(listed, "creationTime")))
                progress.ended = not page.get("nextPageToken")
                if not progress.ended and search.is_list_over(progress):
                    break
        except GOOGLE_ERRORS as error:
            refusal = error
        return round((time.monotonic() - began) * 1000), refusal

    def _proven(
        self, suspects: Sequence[JobKey], places: Mapping[JobKey, JobKey], listed: Collection[str]
    ) -> set[JobKey]:
        """Return the jobs that BigQuery really does not know, among those whose look-up was answered with 404.

        :param places: where they were looked up.
        :param listed: projects that have answered a list.
        """
        nowhere = map_in_threads(lambda key: self._is_nowhere_else(places[key]), suspects, PARALLEL_CALLS)
        unknown = {key for key, is_so in zip(suspects, nowhere, strict=True) if is_so}
        unlisted = sorted({key.project for key in unknown}.difference(listed))
        answering = {*listed, *(project for project in unlisted if self._answers_lists(project))}
        return {key for key in unknown if key.project in answering}

    def _is_nowhere_else(self, key: JobKey) -> bool:
        """Return whether a job that is not where its trace says is not found without a location either."""
        return key.location is None or isinstance(self._calls.look_up(replace(key, location=None)), NotFound)

    def _answers_lists(self, project: str) -> bool:
        """Return whether a project's jobs can be listed. One that does not exist answers all look-ups with 404."""
        try:
            self._calls.list_one(project)
        except GOOGLE_ERRORS as error:
            reason = reason_of(error)
            log.warning("The jobs of project %r cannot be listed; assuming that they exist: %s", project, reason)
            return False
        return True


def _read_contents(search: Search, traces: Sequence[Trace], place: Callable[[Trace], JobKey | None]) -> None:
    """Read where jobs run from the content of traces whose names do not say it."""

    def read(trace: Trace) -> None:
        try:
            search.add_content(trace, place(trace))
        except LookupError as error:
            search.unread[trace.job] = str(error)

    map_in_threads(read, traces, PARALLEL_CALLS)
