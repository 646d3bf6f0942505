"""The job board: the only room that talks to BigQuery. It tells how jobs stand and never submits one."""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import requests
from google.api_core import exceptions
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import GoogleAuthError, TransportError

from bqdispatch_provider.courtesy import Courtesy, Pace
from bqdispatch_provider.model import Job, JobKey, Trace
from bqdispatch_provider.names import as_job_id, in_words
from bqdispatch_provider.refusals import means_too_many, refused

log = logging.getLogger(__name__)

_FEW = 5
"""Up to so many jobs of a project are looked up one by one; a list costs about as much and may have several pages."""

_LOOK_UPS = 100
"""Look-ups per project and cycle at most (BigQuery allows 100 a second): what a whole list lacks is hardly there."""

_MOST_CALLS, _LEAST_CALLS = 90, 10
"""Calls a second: BigQuery allows a user 100, and others may act as the same (BigQuery, "Quotas")."""

_PAGE = 1000
_SLICES, _SLICE = 32, 900
"""Lists of one project's jobs at most that are read side by side, since the pages of each come one after the other; and
traces for which one is made: so that their jobs are in its first page, with some of others between them."""

_TIMEOUT = (5.0, 60.0)
_BEFORE = timedelta(minutes=5)
"""BqTail writes the trace before it submits the job; this much is left for clocks that disagree."""

_LONGEST = timedelta(days=2)
"""No job is pending and running for longer (BigQuery, "Quotas")."""

_SOON = timedelta(minutes=15)
"""BqTail submits a load so soon after it is given a window, but for an outage."""

_LONG_BEFORE = timedelta(days=1)
"""A trace may be written again long after its job was submitted, which matters before it is called unknown."""


class _RateLimited(Exception):
    """BigQuery's 403 for too many requests, which passes, unlike its other 403s."""


class Unreadable(ValueError):
    """A job of which BigQuery's answer does not tell how it stands."""


_RETRY = Retry(
    predicate=if_exception_type(
        exceptions.TooManyRequests,
        exceptions.ServerError,
        TransportError,
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
        _RateLimited,
    ),
    initial=0.2,
    maximum=8.0,
    multiplier=2.0,
    timeout=45.0,
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
    :param unknown: jobs of overdue traces that BigQuery is proven not to know.
    :param whole: projects whose jobs were listed, and whether to the list's end, with no location left out.
    :param got: how many jobs were looked up one by one.
    :param list_ms: time spent in listing, in milliseconds, over all projects.
    """

    jobs: dict[JobKey, Job] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    unread: dict[JobKey, str] = field(default_factory=dict)
    unknown: set[JobKey] = field(default_factory=set)
    whole: dict[str, bool] = field(default_factory=dict)
    got: int = 0
    list_ms: int = 0

    def take(self, key: JobKey, found: Job | Exception) -> bool:
        """Note what a look-up has answered, and tell whether BigQuery says that it does not know the job."""
        if isinstance(found, Job):
            self.jobs[key] = found
        elif isinstance(found, exceptions.NotFound):
            # An address that is wrong answers 404 too, but not in BigQuery's words.
            return any(said.get("reason") == "notFound" for said in found.errors)
        elif isinstance(found, exceptions.BadRequest | Unreadable):
            # Said of this job alone, so it is no reason to give up the project.
            self.unread[key] = _said(found)
            if isinstance(found, Unreadable):
                self.jobs[key] = Job(key.location or "", "PENDING")  # it is there, and may be running
        else:
            self.errors.setdefault(key.project, _said(found))
        return False


class _Search:
    """The jobs of one project that are looked for, by several threads.

    :param traces: of that project.
    :param doubted: jobs for which the list alone can prove that BigQuery does not know them.
    """

    def __init__(self, project: str, traces: Sequence[Trace], doubted: Collection[JobKey]) -> None:
        self.project = project
        self.missing = {trace.job: None for trace in traces}
        self.found: dict[JobKey, Job] = {}
        self.whole = True
        """Whether every list was read to its end, and no location was left out of it."""
        self.error = ""
        self._by_id: defaultdict[str, list[JobKey]] = defaultdict(list)
        for key in self.missing:
            self._by_id[key.job_id].append(key)
        self._unplaced = {key for key in self.missing if key.location is None}
        self.slices: list[tuple[datetime, datetime | None]] = []
        """From when on, and until when, the project's jobs are to be listed; none where looking them up is cheaper."""
        if len(self.missing) > _FEW or self._unplaced:
            created = sorted((trace.object.created for trace in traces), reverse=True)
            number = min(_SLICES, -(-len(created) // _SLICE))
            inner = dict.fromkeys(created[len(created) * each // number] for each in range(1, number))
            oldest = min(_since(trace, doubted) for trace in traces)
            self.slices = list(zip((*inner, oldest), (None, *inner), strict=True))

    def take(self, page: Mapping[str, Any]) -> None:
        """Find jobs in a page of a list."""
        if page.get("unreachable"):
            self.whole = False
        for job_id, location, listed in _named(page):
            for key in self._by_id.get(job_id, ()):
                if key in self.missing and (key.location is None or key.location.lower() == location.lower()):
                    # One that cannot be read stays missing, and is looked up.
                    with suppress(Unreadable):
                        self.found[key] = _job(listed, location)
                        self.missing.pop(key, None)
                        self._unplaced.discard(key)

    def tell(self, sighting: Sighting) -> list[JobKey]:
        """Add what was found; gives the jobs that are to be looked up."""
        sighting.jobs.update(self.found)
        if self.error:
            sighting.errors[self.project] = self.error
            return []
        if self.slices:
            sighting.whole[self.project] = self.whole
        # Others every time, so that each is asked for in the end.
        return random.sample(list(self.missing), min(len(self.missing), _LOOK_UPS))

    def is_over(self, pages: int) -> bool:
        """Whether the rest is found by fewer calls than going on may take, or another list was refused.

        :param pages: of the list that were read.
        """
        few = not self._unplaced and len(self.missing) <= max(_FEW, pages)
        return not self.missing or few or bool(self.error)


class JobBoard:
    """How the jobs of traces stand, by whichever of list and look-up takes fewer calls.

    The service's address is that of ``BIGQUERY_EMULATOR_HOST`` where it is set.

    :param session: a ``requests.Session`` with credentials; used from several threads.
    """

    def __init__(self, session: requests.Session) -> None:
        self._session = session
        host = os.environ.get("BIGQUERY_EMULATOR_HOST") or "https://bigquery.googleapis.com"
        self._courtesy = Courtesy()
        self._pace = Pace(_MOST_CALLS, _LEAST_CALLS)
        self._done: dict[JobKey, Job] = {}
        self._refused: dict[str, str] = {}
        self._host = (host if "://" in host else f"http://{host}").rstrip("/")

    def look(
        self, traces: Iterable[Trace], threads: Executor, overdue: Callable[[Trace], bool] = lambda _: False
    ) -> Sighting:
        """Find the jobs of traces; a project that refuses is an error of its own, and the others go on.

        :param traces: of any projects.
        :param threads: where projects are looked at side by side.
        :param overdue: for which traces it is worth proving that BigQuery does not know their job; by default for none.
        """
        waiting: defaultdict[str, list[Trace]] = defaultdict(list)
        doubted: set[JobKey] = set()
        sighting = Sighting()
        for trace in traces:
            if (key := trace.job) in self._done:
                sighting.jobs[key] = self._done[key]
                continue
            waiting[trace.project].append(trace)
            if overdue(trace):
                doubted.add(key)
        searches = [_Search(project, each, doubted) for project, each in waiting.items()]
        slices = [(search, *slice) for search in searches for slice in search.slices]
        for each in threads.map(self._listed, *zip(*slices, strict=True)) if slices else ():
            sighting.list_ms += each
        wanted = [key for search in searches for key in search.tell(sighting)]
        answers = zip(wanted, threads.map(self._got, wanted), strict=True)
        gone = [key for key, found in answers if sighting.take(key, found)]
        sighting.unknown = self._proven(gone, doubted, sighting.whole, threads)
        sighting.got = len(wanted)
        # What is done stays so, and need not be asked for again as long as its trace waits.
        self._done = {key: job for key, job in sighting.jobs.items() if job.state == "DONE"}
        for project, refusal in sighting.errors.items():
            if self._refused.get(project) != refusal:
                log.warning("The jobs of project %r cannot be looked at: %s", project, refusal)
        self._refused = dict(sighting.errors)
        return sighting

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

    def _listed(self, search: _Search, since: datetime, until: datetime | None) -> int:
        """List some of a project's jobs, newest first, until looking the rest up takes fewer calls than going on.

        Gives the milliseconds that it took.
        """
        began = time.monotonic()
        try:
            for number, page in enumerate(self._pages(search.project, since, until), start=1):
                search.take(page)
                if search.is_over(number):
                    search.whole = False
                    break
        except REFUSED as error:
            search.error = _said(error)
        return round((time.monotonic() - began) * 1000)

    def _got(self, key: JobKey) -> Job | Exception:
        try:
            return self._get(key)
        except (*REFUSED, Unreadable) as error:
            return error

    def _proven(
        self, gone: list[JobKey], doubted: Collection[JobKey], whole: Mapping[str, bool], threads: Executor
    ) -> set[JobKey]:
        """Which of the jobs that were answered with 404 BigQuery really does not know."""
        # Without a location only US and EU are looked at, so the list has to have shown all other places.
        suspects = [key for key in gone if key in doubted and (key.location or whole.get(key.project))]
        nowhere = zip(suspects, threads.map(self._is_nowhere_else, suspects), strict=True)
        unknown = {key for key, is_so in nowhere if is_so}
        unlisted = sorted({key.project for key in unknown} - whole.keys())
        answering = {*whole, *(project for project in unlisted if self._answers(project))}
        return {key for key in unknown if key.project in answering}

    def _is_nowhere_else(self, key: JobKey) -> bool:
        """Whether a job that is not where its trace says cannot be found without a location either."""
        return key.location is None or isinstance(self._got(replace(key, location=None)), exceptions.NotFound)

    def _answers(self, project: str) -> bool:
        """Whether a project's jobs can be listed: one that is gone answers 404 to every look-up."""
        try:
            self.first(project)
        except REFUSED as error:
            log.warning("The jobs of project %r cannot be listed, so none is called unknown: %s", project, _said(error))
            return False
        return True

    def recent(self, project: str, since: datetime) -> dict[str, datetime]:
        """The IDs of a project's jobs that were created since a moment, with their creation.

        :raises google.api_core.exceptions.GoogleAPICallError: when they may not be listed.
        """
        return {
            job_id: _moment(listed, "creationTime") or since
            for page in self._pages(project, since)
            for job_id, _, listed in _named(page)
        }

    def active(self, project: str, now: datetime) -> set[str]:
        """The IDs of a project's jobs that are pending or running.

        :raises google.api_core.exceptions.GoogleAPICallError: when they may not be listed.
        """
        pages = self._pages(project, now - _LONGEST, stateFilter=["pending", "running"])
        return {job_id for page in pages for job_id, _, _ in _named(page)}

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
        for begin, end in ((since - _BEFORE, soon), (soon, None)):
            if end is None and begin > now:
                break
            for page in self._pages(project, begin, end):
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
            "projection": "minimal",
            "minCreationTime": int(since.timestamp() * 1000),
            "maxResults": _PAGE,
            "fields": f"nextPageToken,unreachable,jobs({job})",
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
        query = {"fields": "jobReference(location),status(state,errorResult(reason)),statistics(endTime)"}
        if key.location:
            query["location"] = key.location
        answer = self._ask(f"projects/{quote(key.project, safe='')}/jobs/{quote(key.job_id, safe='')}", query)
        return _job(answer, key.location or "")

    def _ask(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = _RETRY(self._ask_once)(path, query)
        return answer

    def _ask_once(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        self._courtesy.wait()
        self._pace.take(1)
        response = self._session.get(f"{self._host}/bigquery/v2/{path}", params=query, timeout=_TIMEOUT)
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


def _since(trace: Trace, doubted: Collection[JobKey]) -> datetime:
    """From when on a list has to be read to find a trace's job."""
    # A look-up outside US and EU needs a location; without one the list alone can prove anything.
    if trace.name.region is None and trace.job in doubted:
        return trace.object.since - _LONG_BEFORE
    return trace.object.created - _BEFORE


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
    return Job(str(where), state, _moment(answer, "endTime"), str(reason or "unknown") if error else "")


def _said(error: Exception) -> str:
    cause = error.cause if isinstance(error, exceptions.RetryError) and error.cause else error
    return in_words(cause)
