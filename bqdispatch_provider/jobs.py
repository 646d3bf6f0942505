"""The job board: the only room that talks to BigQuery. It tells how jobs stand and never submits one."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import requests
from google.api_core import exceptions
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import GoogleAuthError, TransportError

from bqdispatch_provider.courtesy import Courtesy, Pace
from bqdispatch_provider.emulators import BIGQUERY, emulator
from bqdispatch_provider.model import Job, JobKey, Trace
from bqdispatch_provider.names import as_job_id, in_words
from bqdispatch_provider.refusals import means_too_many, refused
from bqdispatch_provider.search import AT_ONCE, BEFORE, Memory, Pages, Search, by_project
from bqdispatch_provider.threads import begin, side_by_side

T = TypeVar("T")
log = logging.getLogger(__name__)

_MOST_CALLS, _LEAST_CALLS = 90, 10
"""Calls a second: BigQuery allows a user 100, and others may act as the same (BigQuery, "Quotas")."""

_PAGE = 1000
_TIMEOUT = (5.0, 60.0)
_NO_ANSWER = "no answer yet, which is still waited for"
_LONGEST = timedelta(days=2)
"""No job is pending and running for longer (BigQuery, "Quotas")."""

_SOON = timedelta(minutes=15)
"""BqTail submits a load so soon after it is given a window, but for an outage."""

_PATIENCE_S = 20.0
"""For so long each answer of a project is waited for, while the others wait, too. As long as it answers, it is waited
for: what it has answered is known to this process alone."""

_LESS_PATIENCE_S = 1.0
"""The same for a project that did not answer the last time."""

_LOOKS_EVERY_S = 0.25

_WRITING = ("load", "copy", "query")
_WRITES = f"configuration({','.join(f'{kind}(destinationTable)' for kind in _WRITING)})"
"""The field of a job that says which table it writes."""

_REST_S, _LONGEST_REST_S = 2.0, 60.0
"""For so long a project is not asked that has refused; twice as long each time."""


class _RateLimited(Exception):
    """BigQuery's 403 for too many requests, which passes, unlike its other 403s."""


class NoAnswer(Exception):
    """A project has not answered yet, and is waited for no longer."""


class Unreadable(ValueError):
    """A job of which BigQuery's answer does not tell how it stands."""


_FAILS = Retry(
    predicate=if_exception_type(
        exceptions.ServerError,
        TransportError,
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ),
    initial=0.2,
    maximum=1.0,
    multiplier=2.0,
    timeout=2.0,
)
"""Patience with failures: a later look asks again."""

_TOO_MANY = Retry(
    predicate=if_exception_type(exceptions.TooManyRequests, _RateLimited),
    initial=0.2,
    maximum=8.0,
    multiplier=2.0,
    timeout=15.0,
)

REFUSED = (
    exceptions.GoogleAPICallError,
    exceptions.RetryError,
    GoogleAuthError,
    requests.RequestException,
    _RateLimited,
)
"""What asking for jobs may raise, once all patience is over."""


@dataclass(frozen=True, slots=True)
class LoadJob:
    """A job that loads the files of a fired window.

    :param created: when it was submitted.
    :param sources: URIs of its files.
    """

    job_id: str
    job: Job
    created: datetime
    sources: frozenset[str]


@dataclass
class Sighting:
    """What the board has seen.

    :param jobs: the jobs that were found; a key that is missing was not found, which may have many reasons.
    :param errors: projects that could not be looked at, with what BigQuery said.
    :param unread: jobs of which BigQuery does not say how they stand, with what it said instead.
    :param unknown: jobs of overdue traces that BigQuery is proven not to know, with where it was asked for them.
    :param listed: projects whose jobs were listed.
    :param got: how many jobs were looked up one by one.
    :param list_ms: time spent in listing, in milliseconds, over all projects.
    """

    jobs: dict[JobKey, Job] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    unread: dict[JobKey, str] = field(default_factory=dict)
    unknown: dict[JobKey, JobKey] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    got: int = 0
    list_ms: int = 0

    def add(self, other: Sighting) -> None:
        """Add what was seen of another project."""
        self.jobs |= other.jobs
        self.errors |= other.errors
        self.unread |= other.unread
        self.listed |= other.listed
        self.unknown |= other.unknown
        self.got += other.got
        self.list_ms += other.list_ms

    def take(self, key: JobKey, found: Job | Exception, place: JobKey) -> bool:
        """Note what a look-up has answered, and tell whether BigQuery says that it does not know the job.

        :param place: where it was looked up.
        """
        if isinstance(found, Job):
            self.jobs[key] = found
        elif isinstance(found, exceptions.NotFound):
            # An address that is wrong answers 404 too, but not in BigQuery's words.
            return any(said.get("reason") == "notFound" for said in found.errors)
        elif isinstance(found, exceptions.BadRequest | Unreadable) or place.project != key.project:
            # Said of this job alone, so it is no reason to give up the project.
            where = f" (asked for in project {place.project!r}, location {place.location!r})" if place != key else ""
            self.unread[key] = f"{_said(found)}{where}"
            if isinstance(found, Unreadable):
                self.jobs[key] = Job(key.location or "", "PENDING")  # it is there, and may be running
        else:
            self.errors.setdefault(key.project, _said(found))
        return False


class Patience:
    """Keep in mind how long each project is waited for, and when it is asked again after it has refused."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float, str]] = {}

    def of(self, project: str) -> float:
        """Seconds for which its answer is waited for."""
        return _LESS_PATIENCE_S if project in self._failures else _PATIENCE_S

    def resting(self, project: str) -> str:
        """Give what a project has said that is not to be asked yet; empty when it is."""
        _, until, said = self._failures.get(project, (0, 0.0, ""))
        return said if time.monotonic() < until else ""

    def note(self, project: str, said: str) -> None:
        """Note what asking a project has come to.

        :param said: why there is no answer; empty where there is one.
        """
        if not said:
            self._failures.pop(project, None)
            return
        number = self._failures.get(project, (0, 0.0, ""))[0] + 1
        # The first one may be all that there is.
        rest = min(_REST_S * 2.0 ** min(number - 2, 9), _LONGEST_REST_S) if number > 1 else 0.0
        self._failures[project] = (number, time.monotonic() + rest, said)


class JobBoard:
    """How the jobs of traces stand, by whichever of list and look-up takes fewer calls.

    The service's address is that of ``BIGQUERY_EMULATOR_HOST`` where it is set.

    :param session: a ``requests.Session`` with credentials; used from several threads.
    """

    def __init__(self, session: requests.Session) -> None:
        self._session = session
        self._courtesy = Courtesy()
        self._pace = Pace(_MOST_CALLS, _LEAST_CALLS)
        self._patience = Patience()
        self._active: dict[str, float] = {}
        """Last moments at which each project was asked, or answered, by the monotonic clock; infinite while a call
        waits for the pace that all keep."""

        self._memory = Memory()
        self._late: dict[str, Future[Sighting]] = {}
        """Searches for which no look has waited, by project."""

        self._done: dict[JobKey, Job] = {}
        self._refused: dict[str, str] = {}
        self._host = emulator(BIGQUERY) or "https://bigquery.googleapis.com"

    def look(
        self,
        traces: Iterable[Trace],
        overdue: Callable[[Trace], bool] = lambda _: False,
        place: Callable[[Trace], JobKey | None] = lambda _: None,
    ) -> Sighting:
        """Find the jobs of traces; a project that refuses, or does not answer, is an error of its own.

        What it answers too late is not lost: it is there for a later look.

        :param traces: of any projects.
        :param overdue: for which traces it is worth proving that BigQuery does not know their job; by default for none.
        :param place: reads where the job of a trace is whose name does not say it; by default nothing tells. It raises
            ``LookupError`` when that cannot be read now.
        """
        traces = list(traces)
        keys = {trace.job for trace in traces}
        self._collect()
        self._done = {key: job for key, job in self._done.items() if key in keys}
        self._memory.keep(keys)
        sighting = Sighting(dict(self._done))
        searches: dict[str, Future[Sighting]] = {}
        for project, waiting in by_project(trace for trace in traces if trace.job not in self._done).items():
            if said := _NO_ANSWER if project in self._late else self._patience.resting(project):
                sighting.errors[project] = said
            else:
                doubted = {trace.job for trace in waiting if overdue(trace)}
                searches[project] = begin(self._searched, project, waiting, doubted, place)
        for project, found in self._answers(searches).items():
            if isinstance(found, Sighting):
                sighting.add(found)
            else:
                sighting.errors[project] = _said(found)
                if not searches[project].done():
                    self._late[project] = searches[project]
        # What is done stays so, and need not be asked for again as long as its trace waits.
        self._done |= _done(sighting)
        for project, refusal in sighting.errors.items():
            if self._refused.get(project) != refusal:
                log.warning("The jobs of project %r cannot be looked at: %s", project, refusal)
        self._refused = dict(sighting.errors)
        return sighting

    def _collect(self) -> None:
        """Take what searches have found for which an earlier look did not wait."""
        for project, search in list(self._late.items()):
            if search.done():
                del self._late[project]
                with suppress(Exception):
                    found = search.result()
                    self._done |= _done(found)
                    self._patience.note(project, found.errors.get(project, ""))

    def _answers(self, asked: Mapping[str, Future[T]]) -> dict[str, T | Exception]:
        """Wait for what projects answer, for each of them as long as it deserves."""
        began = time.monotonic()
        answers: dict[str, T | Exception] = {}
        for project, future in asked.items():
            patience = self._patience.of(project)
            while not future.done() and time.monotonic() < max(began, self._active.get(project, began)) + patience:
                wait([future], _LOOKS_EVERY_S)
            answer: T | Exception
            try:
                answer = future.result() if future.done() else NoAnswer(_NO_ANSWER)
            except Exception as error:
                if not isinstance(error, REFUSED):
                    log.exception("The jobs of project %r could not be looked at, please report this", project)
                answer = error
            answers[project] = answer
            if isinstance(answer, Sighting):
                said = answer.errors.get(project, "")
            else:
                said = _said(answer) if isinstance(answer, Exception) else ""
            self._patience.note(project, said)
        return answers

    def _searched(
        self,
        project: str,
        traces: Sequence[Trace],
        doubted: Collection[JobKey],
        place: Callable[[Trace], JobKey | None],
    ) -> Sighting:
        """Find the jobs of one project's traces."""
        sighting = Sighting()
        search = Search(traces, doubted, self._memory)
        small = search.is_small
        # What is to be proven takes a list that reaches further back, unless content tells more.
        self._read(search, search.unread(None if small else doubted), place)
        lists = search.lists(small=small)
        took = side_by_side(lambda pages: self._listed(project, search, pages), lists, AT_ONCE)
        sighting.list_ms = sum(each for each, _ in took)
        sighting.jobs = search.found
        if (refused := next((error for _, error in took if error is not None), None)) is not None:
            sighting.errors[project] = _said(refused)
            return sighting
        if lists:
            search.end_of(lists)
            sighting.listed.add(project)
        self._read(search, search.unread(), place)
        wanted = search.asked()
        places = {key: search.place(key) for key in wanted}
        answers = side_by_side(self._got, places.values(), AT_ONCE)
        gone = {
            key: places[key]
            for key, found in zip(wanted, answers, strict=True)
            if sighting.take(key, found, places[key])
        }
        # Without a location only US and EU are looked at, so the list has to have shown all other places, far back.
        suspects = [key for key in gone if key in doubted and (gone[key].location or search.is_listed(key))]
        sighting.unknown = {key: gone[key] for key in self._proven(suspects, gone, sighting.listed)}
        sighting.got = len(wanted)
        return sighting

    @staticmethod
    def _read(search: Search, traces: Sequence[Trace], place: Callable[[Trace], JobKey | None]) -> None:
        """Read where jobs are from the content of traces whose names do not say it."""

        def read(trace: Trace) -> None:
            with suppress(LookupError):
                search.told(trace, place(trace))

        side_by_side(read, traces, AT_ONCE)

    def first(self, project: str, all_users: bool = True) -> None:
        """Ask for one job of a project, to see whether its jobs may be listed.

        :param all_users: whether also those that others have submitted.
        :raises google.api_core.exceptions.GoogleAPICallError: when they may not.
        """
        query = {"maxResults": 1, "fields": "kind", **({"allUsers": "true"} if all_users else {})}
        self._ask(f"projects/{quote(project, safe='')}/jobs", query)

    def lacking(self, project: str) -> list[str]:
        """The permissions that the account needs in a project, and has not.

        :raises google.api_core.exceptions.GoogleAPICallError: when that cannot be told.
        """
        lacking: list[str] = []
        try:
            self.first(project)
        except exceptions.Forbidden:
            try:
                self.first(project, all_users=False)
                lacking.append("bigquery.jobs.listAll")
            except exceptions.Forbidden:
                lacking.append("bigquery.jobs.list")
        try:
            self._get(JobKey(project, None, "bqdispatch_asks_for_no_job"))
        except exceptions.Forbidden:
            lacking.append("bigquery.jobs.get")
        except exceptions.NotFound:
            log.debug("Jobs of project %r may be looked up", project)
        return lacking

    def seen(self, project: str, since: datetime) -> Iterator[tuple[JobKey, Job]]:
        """A project's jobs that were created since a moment, newest first.

        :raises google.api_core.exceptions.GoogleAPICallError: when they may not be listed.
        """
        for page in self._pages(project, since):
            for job_id, location, listed in _named(page):
                with suppress(Unreadable):
                    yield JobKey(project, location or None, job_id), _job(listed, location)

    def _listed(self, project: str, search: Search, pages: Pages) -> tuple[int, Exception | None]:
        """Read a list of jobs, newest first, until looking the rest up is sooner than going on.

        Gives the milliseconds that it took, and why it could not be read.
        """
        began = time.monotonic()
        refused: Exception | None = None
        try:
            for page in self._pages(project, pages.since, pages.until):
                if page.get("unreachable"):
                    search.whole = False
                for job_id, location, listed in _named(page):
                    # One that cannot be read stays missing, and is looked up.
                    with suppress(Unreadable):
                        search.take(job_id, location, _job(listed, location))
                pages.add(at for _, _, listed in _named(page) if (at := _moment(listed, "creationTime")))
                pages.ended = not page.get("nextPageToken")
                if not pages.ended and search.is_over(pages):
                    break
        except REFUSED as error:
            refused = error
        return round((time.monotonic() - began) * 1000), refused

    def _got(self, key: JobKey) -> Job | Exception:
        try:
            return self._get(key)
        except (*REFUSED, Unreadable) as error:
            return error

    def _proven(
        self, suspects: Sequence[JobKey], gone: Mapping[JobKey, JobKey], listed: Collection[str]
    ) -> set[JobKey]:
        """Find those of the jobs that were answered with 404 which BigQuery really does not know.

        :param gone: the places where they were looked for.
        :param listed: projects that have answered a list.
        """
        nowhere = side_by_side(lambda key: self._is_nowhere_else(gone[key]), suspects, AT_ONCE)
        unknown = {key for key, is_so in zip(suspects, nowhere, strict=True) if is_so}
        unlisted = sorted({key.project for key in unknown}.difference(listed))
        answering = {*listed, *(project for project in unlisted if self._answers_lists(project))}
        return {key for key in unknown if key.project in answering}

    def _is_nowhere_else(self, key: JobKey) -> bool:
        """Whether a job that is not where its trace says cannot be found without a location either."""
        return key.location is None or isinstance(self._got(replace(key, location=None)), exceptions.NotFound)

    def _answers_lists(self, project: str) -> bool:
        """Whether a project's jobs can be listed: one that is gone answers 404 to every look-up."""
        try:
            self.first(project)
        except REFUSED as error:
            log.warning("The jobs of project %r cannot be listed, so none is called unknown: %s", project, _said(error))
            return False
        return True

    def recent(self, since: Mapping[str, datetime]) -> tuple[set[str], dict[str, str]]:
        """List the jobs of projects that were created since a moment.

        :param since: that moment, by project.
        :returns: their IDs, and by project why they cannot be listed.
        """
        found, refused = self._ids({project: {"since": at} for project, at in since.items()})
        return {job_id for ids in found.values() for job_id in ids}, refused

    def active(self, projects: Iterable[str], now: datetime) -> tuple[dict[str, set[str]], dict[str, str]]:
        """List the jobs of projects that are pending or running.

        :param now: the storage server's time.
        :returns: by project their IDs, or why they cannot be listed.
        """
        asked = {"since": now - _LONGEST, "stateFilter": ["pending", "running"]}
        return self._ids(dict.fromkeys(projects, asked))

    def _ids(self, asked: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, set[str]], dict[str, str]]:
        """List jobs by their IDs; no project waits for another one."""

        def listed(project: str, query: Mapping[str, Any]) -> set[str]:
            return {job_id for page in self._pages(project, **query) for job_id, _, _ in _named(page)}

        refused = {project: said for project in asked if (said := self._patience.resting(project))}
        answers = self._answers(
            {project: begin(listed, project, query) for project, query in asked.items() if project not in refused}
        )
        found = {project: ids for project, ids in answers.items() if isinstance(ids, set)}
        refused |= {project: _said(error) for project, error in answers.items() if isinstance(error, Exception)}
        return found, refused

    def loads(self, project: str, dest: str, event_id: str, since: datetime, now: datetime) -> list[LoadJob]:
        """The load of a fired window, and those that BqTail has submitted in its place since it failed, oldest first.

        BqTail loads the files that are not corrupt again, and after an error of BigQuery's own it begins again with an
        event that the window does not name: so what has taken the same files belongs to it.

        :param project: in which they run.
        :param dest: destination, as the window's name has it.
        :param event_id: of the event that made the window.
        :param since: when the window was fired.
        :param now: the storage server's time.
        :raises google.api_core.exceptions.GoogleAPICallError: when that cannot be told.
        """
        first = self._first_load(project, f"{as_job_id(dest)}--{as_job_id(event_id)}_", since, now)
        if first is None or not first.job.error:
            return [] if first is None else [first]
        any_load = re.compile(rf"{re.escape(as_job_id(dest))}--.+_[0-9]{{5}}_(re)?load--dispatch")
        found = [first]
        for key, _ in self.seen(project, first.created):
            if any_load.fullmatch(key.job_id) and key.job_id != first.job_id:
                load = self._load(key)
                if load is not None and load.created >= first.created and load.sources & first.sources:
                    found.append(load)
        return sorted(found, key=lambda load: load.created)

    def _first_load(self, project: str, stem: str, since: datetime, now: datetime) -> LoadJob | None:
        first = re.compile(rf"{re.escape(stem)}[0-9]{{5}}_load--dispatch")
        # Nearly always it was submitted at once; only the whole list proves that there is none.
        soon = since + _SOON
        for start, end in ((since - BEFORE, soon), (soon, None)):
            if end is None and start > now:
                break
            for page in self._pages(project, start, end):
                for job_id, location, _ in _named(page):
                    if first.fullmatch(job_id):
                        return self._load(JobKey(project, location or None, job_id))
        return None

    def _load(self, key: JobKey) -> LoadJob | None:
        """A load job with the files that it was given; ``None`` when there is none."""
        job = "jobReference(location),status(state,errorResult(reason)),statistics(creationTime,endTime)"
        query = {
            "fields": f"{job},configuration(load(sourceUris))",
            **({"location": key.location} if key.location else {}),
        }
        try:
            answer = self._ask(f"projects/{quote(key.project, safe='')}/jobs/{quote(key.job_id, safe='')}", query)
        except exceptions.NotFound:
            return None
        load = _part(_part(answer, "configuration"), "load")
        created = _moment(answer, "creationTime") or datetime.fromtimestamp(0, UTC)
        try:
            job_now = _job(answer, key.location or "")
        except Unreadable as error:
            raise exceptions.BadGateway(f"job {key.job_id!r} of project {key.project!r}: {error}") from error
        return LoadJob(key.job_id, job_now, created, frozenset(map(str, load.get("sourceUris") or ())))

    def _pages(
        self, project: str, since: datetime, until: datetime | None = None, **more: Any
    ) -> Iterator[dict[str, Any]]:
        job = "jobReference(jobId,location),state,status(state),errorResult(reason),statistics(creationTime,endTime)"
        query: dict[str, Any] = {
            "allUsers": "true",
            "projection": "full",  # a minimal one does not say what a job writes
            "minCreationTime": int(since.timestamp() * 1000),
            "maxResults": _PAGE,
            "fields": f"nextPageToken,unreachable,jobs({job},{_WRITES})",
            **more,
        }
        if until is not None:
            query["maxCreationTime"] = int(until.timestamp() * 1000)
        while True:
            answer = self._ask(f"projects/{quote(project, safe='')}/jobs", query)
            yield answer
            if not answer.get("nextPageToken"):
                return
            query["pageToken"] = answer["nextPageToken"]

    def _get(self, key: JobKey) -> Job:
        query = {"fields": f"jobReference(location),status(state,errorResult(reason)),statistics(endTime),{_WRITES}"}
        if key.location:
            query["location"] = key.location
        answer = self._ask(f"projects/{quote(key.project, safe='')}/jobs/{quote(key.job_id, safe='')}", query)
        return _job(answer, key.location or "")

    def _ask(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = _TOO_MANY(_FAILS(self._ask_once))(path, query)
        return answer

    def _ask_once(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        project = unquote(path.split("/")[1])
        self._active[project] = math.inf  # it waits for its turn, which is not the project's doing
        self._courtesy.wait()
        self._pace.take(1)
        self._active[project] = time.monotonic()
        response = self._session.get(f"{self._host}/bigquery/v2/{path}", params=query, timeout=_TIMEOUT)
        self._active[project] = time.monotonic()
        if response.status_code == 200:
            self._courtesy.note(busy=False)
            answer = response.json()
            if not isinstance(answer, dict):
                raise exceptions.BadGateway(f"the answer to {path!r} is no object of JSON: {response.text[:100]!r}")
            return answer
        error = refused(response)
        limited = error.code == 403 and means_too_many(error.errors)
        busy = limited or error.code in (429, 503)
        self._courtesy.note(busy=busy)
        self._pace.note(1, busy)
        if limited:
            raise _RateLimited(error.message) from error
        raise error


def _done(sighting: Sighting) -> dict[JobKey, Job]:
    return {key: job for key, job in sighting.jobs.items() if job.state == "DONE"}


def _part(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of an answer; an empty one where there is none."""
    part = whole.get(name)
    return part if isinstance(part, Mapping) else {}


def _named(page: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Go through the jobs of a list that tell their ID, with their location: one that does not is nobody's here."""
    jobs = page.get("jobs")
    for listed in jobs if isinstance(jobs, list) else ():
        reference = _part(listed, "jobReference") if isinstance(listed, Mapping) else {}
        if isinstance(reference.get("jobId"), str):
            yield reference["jobId"], str(reference.get("location") or ""), listed


def _moment(answer: Mapping[str, Any], what: str) -> datetime | None:
    """Return a moment of a job's statistics; ``None`` where it is not told."""
    try:
        return datetime.fromtimestamp(int(_part(answer, "statistics")[what]) / 1000, UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


_STATES = frozenset({"PENDING", "RUNNING", "DONE"})


def _job(answer: Mapping[str, Any], location: str) -> Job:
    """Read a job that was listed or looked up: ``jobs.list`` has the state at the top, and in the status, too.

    :raises Unreadable: when it has no state.
    """
    status = _part(answer, "status")
    state = answer.get("state") or status.get("state")
    if state not in _STATES:
        raise Unreadable(f"its state is {state!r}, which is none of {', '.join(sorted(_STATES))}")
    error = answer.get("errorResult") or status.get("errorResult")
    reason = error.get("reason") if isinstance(error, Mapping) else error
    where = _part(answer, "jobReference").get("location") or location
    ended, said = _moment(answer, "endTime"), str(reason or "unknown") if error else ""
    return Job(str(where), state, ended, said, _table(answer))


def _table(answer: Mapping[str, Any]) -> str:
    """Return the table that a job writes; empty for one without a name of its own, in a dataset that is hidden."""
    configuration = _part(answer, "configuration")
    for kind in _WRITING:
        table = _part(_part(configuration, kind), "destinationTable")
        parts = [table.get(key) for key in ("projectId", "datasetId", "tableId")]
        if all(parts) and not str(parts[1]).startswith("_"):
            return ".".join(map(str, parts))
    return ""


def _said(error: Exception) -> str:
    if isinstance(error, NoAnswer):
        return str(error)
    cause = error.cause if isinstance(error, exceptions.RetryError) and error.cause else error
    return in_words(cause)
