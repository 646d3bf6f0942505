"""The job board: the states of the jobs of traces, over all projects. Each project is waited for on its own."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

import requests
from google.api_core.exceptions import ServiceUnavailable

from bqdispatch_provider.core.listing import Trace
from bqdispatch_provider.core.model import Job, JobKey
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.job_answers import JobStates, NoAnswer, active_since, is_whole, listed_jobs, reason_of
from bqdispatch_provider.gcp.job_calls import JobCalls
from bqdispatch_provider.gcp.job_search import Memory
from bqdispatch_provider.gcp.load_jobs import KnownLoads, LoadJob, find_loads
from bqdispatch_provider.gcp.project_search import ProjectSearch
from bqdispatch_provider.gcp.rate_limit import ProjectBackoff
from bqdispatch_provider.gcp.threads import run_in_thread

T = TypeVar("T")
log = logging.getLogger(__name__)

_NO_ANSWER = "no answer yet; still waiting"
_MAX_JOB_AGE = timedelta(days=2)
"""A job is neither pending nor running for longer (BigQuery, "Quotas")."""

_POLL_S = 0.25


class JobBoard:
    """The states of the jobs of traces.

    :param session: a ``requests.Session`` with credentials; used from several threads.
    """

    def __init__(self, session: requests.Session) -> None:
        self.calls = JobCalls(session)
        self._backoff = ProjectBackoff()
        self._memory = Memory()
        self._late: dict[str, Future[JobStates]] = {}
        """By project the search for which no look has waited."""

        self._done: dict[JobKey, Job] = {}
        self._warned: dict[str, str] = {}

    def look(
        self,
        traces: Iterable[Trace],
        overdue: Callable[[Trace], bool] = lambda _: False,
        place: Callable[[Trace], JobKey | None] = lambda _: None,
    ) -> JobStates:
        """Find the jobs of traces. A project that refuses, or does not answer, is an error of its own.

        An answer that comes too late is not lost: a later look has it.

        :param traces: of any projects.
        :param overdue: says for which traces it is worth proving that BigQuery does not know their job; by default for
            none.
        :param place: reads where the job of a trace runs whose name does not say it; by default nothing says it. It
            raises ``LookupError`` if that cannot be read now.
        """
        traces = list(traces)
        keys = {trace.job for trace in traces}
        self._collect()
        self._done = {key: job for key, job in self._done.items() if key in keys}
        self._memory.keep(keys)
        states = JobStates(dict(self._done))
        searches: dict[str, Future[JobStates]] = {}
        by_project: defaultdict[str, list[Trace]] = defaultdict(list)
        for trace in traces:
            if trace.job not in self._done:
                by_project[trace.project].append(trace)
        for project, waiting in by_project.items():
            if reason := _NO_ANSWER if project in self._late else self._backoff.paused(project):
                states.errors[project] = reason
            else:
                suspects = {trace.job for trace in waiting if overdue(trace)}
                search = ProjectSearch(self.calls, project, self._memory)
                searches[project] = run_in_thread(search.find, waiting, suspects, place)
        for project, found in self._answers(searches).items():
            if isinstance(found, JobStates):
                states.add(found)
            else:
                states.errors[project] = reason_of(found)
                if not searches[project].done():
                    self._late[project] = searches[project]
        # A job that is done stays so, and need not be asked for again as long as its trace waits.
        self._done |= states.done
        for project, reason in states.errors.items():
            if self._warned.get(project) != reason:
                log.warning("The jobs of project %r cannot be read: %s", project, reason)
        self._warned = dict(states.errors)
        return states

    def _collect(self) -> None:
        """Collect the results of searches for which an earlier look did not wait."""
        for project, search in list(self._late.items()):
            if search.done():
                del self._late[project]
                with suppress(Exception):
                    found = search.result()
                    self._done |= found.done
                    self._backoff.record(project, found.refusal_of(project))

    def _answers(self, asked: Mapping[str, Future[T]]) -> dict[str, T | Exception]:
        """Wait for the answers of projects, for each as long as its backoff says."""
        began = time.monotonic()
        answers: dict[str, T | Exception] = {}
        for project, future in asked.items():
            timeout, active = self._backoff.timeout_s(project), self.calls.last_active
            while not future.done() and time.monotonic() < max(began, active.get(project, began)) + timeout:
                wait([future], _POLL_S)
            answer: T | Exception
            try:
                answer = future.result() if future.done() else NoAnswer(_NO_ANSWER)
            except Exception as error:
                if not isinstance(error, GOOGLE_ERRORS):
                    log.exception("The jobs of project %r could not be read, please report this", project)
                answer = error
            answers[project] = answer
            if isinstance(answer, JobStates):
                failure = answer.refusal_of(project)
            else:
                failure = reason_of(answer) if isinstance(answer, Exception) else ""
            self._backoff.record(project, failure)
        return answers

    def loads(
        self, project: str, dest: str, event_id: str, known: KnownLoads, *, since: datetime, now: datetime
    ) -> list[LoadJob]:
        """Find the load of a fired window, as :func:`~bqdispatch_provider.gcp.load_jobs.find_loads` does.

        :raises google.api_core.exceptions.GoogleAPIError: when the project refuses, does not answer, or is not asked
            now, since it has not answered before; or when its list leaves out a location, and has no load.
        """
        if reason := self._backoff.paused(project):
            raise ServiceUnavailable(reason)
        asked = run_in_thread(lambda: find_loads(self.calls, project, dest, event_id, known, since=since, now=now))
        answer = self._answers({project: asked})[project]
        if isinstance(answer, GOOGLE_ERRORS):
            raise answer
        if isinstance(answer, Exception):
            raise ServiceUnavailable(reason_of(answer)) from answer
        if answer is None:  # no failure of the project: it has answered for its other locations
            raise ServiceUnavailable(_without_location(project))
        return answer

    def recent(
        self, since: Mapping[str, datetime], until: datetime | None = None
    ) -> tuple[dict[str, datetime | None], dict[str, str], dict[str, str]]:
        """List the jobs of projects that were created since a moment.

        :param since: that moment, by project.
        :param until: latest creation; by default now.
        :returns: by their IDs, when they were created, or ``None`` if they are done; by project why its jobs cannot be
            listed; and by project why its list, or the lack of one, proves no job missing.
        """
        found, refused, partial = self._list({project: {"since": at, "until": until} for project, at in since.items()})
        jobs = {job_id: since for jobs in found.values() for job_id, since in jobs.items()}
        return jobs, refused, {**partial, **refused}

    def active(
        self, projects: Iterable[str], now: datetime
    ) -> tuple[dict[str, set[str]], dict[str, str], Collection[str]]:
        """List the jobs of projects that are pending or running.

        :param now: the storage server's time.
        :returns: by project their IDs; by project why they cannot be listed; and the projects whose lists leave out a
            location, in which more may run.
        """
        query = {"since": now - _MAX_JOB_AGE, "stateFilter": ["pending", "running"]}
        found, refused, partial = self._list(dict.fromkeys(projects, query))
        return {project: set(jobs) for project, jobs in found.items()}, refused, partial.keys()

    def _list(
        self, queries: Mapping[str, Mapping[str, Any]]
    ) -> tuple[dict[str, dict[str, datetime | None]], dict[str, str], dict[str, str]]:
        """List jobs by their IDs, with the creation of those that are active; no project waits for another one.

        :returns: the jobs by project; by project why it refuses; and by project why its list leaves out a location.
        """
        partial: dict[str, str] = {}

        def listed(project: str, query: Mapping[str, Any]) -> dict[str, datetime | None]:
            jobs: dict[str, datetime | None] = {}
            for page in self.calls.pages(project, **query):
                jobs |= {job_id: active_since(job) for job_id, _, job in listed_jobs(page)}
                if not is_whole(page):
                    partial[project] = _without_location(project)
            return jobs

        refused = {project: reason for project in queries if (reason := self._backoff.paused(project))}
        asked = {
            project: run_in_thread(listed, project, query)
            for project, query in queries.items()
            if project not in refused
        }
        answers = self._answers(asked)
        found = {project: jobs for project, jobs in answers.items() if isinstance(jobs, dict)}
        refused |= {project: reason_of(error) for project, error in answers.items() if isinstance(error, Exception)}
        return found, refused, {project: partial[project] for project in found if project in partial}


def _without_location(project: str) -> str:
    return f"BigQuery cannot list the jobs of project {project!r} in every location now"
