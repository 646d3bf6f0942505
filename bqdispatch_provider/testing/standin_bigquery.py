"""A stand-in BigQuery: jobs that go from PENDING over RUNNING to DONE on a schedule, and the jobs API over them.

Nothing ticks: a job's state follows from its schedule and the clock.
"""

from __future__ import annotations

import base64
import re
import uuid
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Any, Final

from bqdispatch_provider.testing.standin_api import (
    PAGE,
    ApiError,
    Clock,
    Json,
    Operation,
    Reply,
    Request,
    below,
    compute,
    pick,
    pick_top,
    split_path,
)
from bqdispatch_provider.testing.standin_permissions import CALLER, Permissions

TYPES: Final = ("load", "copy", "query", "extract")
SEED: Final = frozenset(
    (
        *("project", "location", "jobId", "type", "pendingMs", "runningMs"),
        *("error", "creationTime", "userEmail", "labels", "sourceUris", "destinationTable"),
    )
)
"""What may be said of a job that is seeded."""
GROUPS: Final = {"load": "jobs", "copy": "jobs", "extract": "jobs", "query": "sql"}


@dataclass(slots=True)
class Job:
    """A job and its schedule.

    :param project: the project that it runs in.
    :param location: where it runs.
    :param job_id: its ID, unique in project and location.
    :param type: ``load``, ``copy``, ``query`` or ``extract``.
    :param created: when it was created, in milliseconds since the epoch.
    :param pending: how long it is PENDING, in milliseconds.
    :param running: how long it is RUNNING, in milliseconds.
    :param sequence: its place in the order of creation.
    :param error: the reason with which it fails; ``None``: it does not.
    :param user: e-mail address of whoever created it.
    :param labels: its labels.
    :param configuration: its configuration, as it was given.
    :param cancelled: when it was cancelled, in milliseconds since the epoch; ``None``: it was not.
    :param told: whether its end was told of.
    """

    project: str
    location: str
    job_id: str
    type: str
    created: int
    pending: int
    running: int
    sequence: int
    error: str | None = None
    user: str = CALLER
    labels: dict[str, str] = field(default_factory=dict)
    configuration: Json = field(default_factory=dict)
    cancelled: int | None = None
    told: bool = False

    @property
    def started(self) -> int:
        """When it leaves PENDING."""
        due = self.created + self.pending
        return due if self.cancelled is None else min(due, self.cancelled)

    @property
    def ended(self) -> int:
        """When it is DONE."""
        due = self.created + self.pending + self.running
        return due if self.cancelled is None else min(due, self.cancelled)

    def state(self, now: int) -> str:
        """PENDING, RUNNING or DONE."""
        if now >= self.ended:
            return "DONE"
        return "RUNNING" if now >= self.started else "PENDING"

    def failure(self, now: int) -> Json | None:
        """The ``errorResult`` of a job that has ended badly."""
        if now < self.ended:
            return None
        if self.cancelled is not None and self.cancelled < self.created + self.pending + self.running:
            return {"reason": "stopped", "message": "Job execution was cancelled: User requested cancellation"}
        if self.error:
            return {"reason": self.error, "message": f"The stand-in was asked to fail this job: {self.error}"}
        return None


class Jobs:
    """All jobs of all projects."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.clear()

    def clear(self) -> None:
        """Forget all jobs and take the default schedule back to "done at once"."""
        self.default_pending = 0
        self.default_running = 0
        self._jobs: dict[tuple[str, str, str], Job] = {}
        self._by_time: dict[str, list[tuple[int, int]]] = {}
        self._by_sequence: dict[int, Job] = {}
        self._ends: list[tuple[int, int]] = []
        self._sequence = 0

    def add(self, entries: list[Json]) -> list[Job]:
        """Seed jobs: all of them, or none when one is wrong.

        :param entries: what to say of each, with keys in ``SEED``.
        """
        prepared = [self._from_seed(entry) for entry in entries]
        keys = [_key(job.project, job.location, job.job_id) for job in prepared]
        if len(set(keys)) != len(keys) or any(key in self._jobs for key in keys):
            raise ApiError(400, "A job of that id exists in its project and location.", "duplicate")
        for key, job in zip(keys, prepared, strict=True):
            self._jobs[key] = self._by_sequence[job.sequence] = job
            self._by_time.setdefault(job.project, []).append((job.created, job.sequence))
            heappush(self._ends, (job.ended, job.sequence))
        for project in {job.project for job in prepared}:
            self._by_time[project].sort()
        return prepared

    def insert(self, project: str, body: Json) -> Job:
        """A job of the caller's ("Method: jobs.insert").

        :param project: the project that it is to run in.
        :param body: the job's resource.
        :raises ApiError: 400, or 409 when there is a job of that ID.
        """
        configuration = body.get("configuration")
        kinds = [kind for kind in TYPES if isinstance(configuration, dict) and kind in configuration]
        if not isinstance(configuration, dict) or len(kinds) != 1:
            raise ApiError(400, "A job needs exactly one of load, copy, query and extract in its configuration.")
        reference = body.get("jobReference") or {}
        if reference.get("projectId") not in (None, project):
            raise ApiError(400, "jobReference.projectId is not the project of the request.")
        job_id = reference.get("jobId") or f"job_{uuid.uuid4().hex}"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,1024}", job_id):
            raise ApiError(400, f"Invalid job ID {job_id!r}.")
        location = reference.get("location") or "US"
        key = _key(project, location, job_id)
        if key in self._jobs:
            raise ApiError(409, f"Already Exists: Job {project}:{location}.{job_id}", "duplicate")
        labels = {str(name): str(value) for name, value in (configuration.get("labels") or {}).items()}
        job = Job(
            project,
            location,
            job_id,
            kinds[0],
            self.clock.millis(),
            _label_millis(labels, "standin-pending-ms", self.default_pending),
            _label_millis(labels, "standin-running-ms", self.default_running),
            self._next(),
            error=labels.get("standin-error"),
            labels=labels,
            configuration=configuration,
        )
        self._jobs[key] = self._by_sequence[job.sequence] = job
        insort(self._by_time.setdefault(project, []), (job.created, job.sequence))
        heappush(self._ends, (job.ended, job.sequence))
        return job

    def take_ended(self) -> Iterator[Job]:
        """The jobs that are done and have not been given here before, in the order of their ends."""
        while self._ends and self._ends[0][0] <= self.clock.millis():
            _, sequence = heappop(self._ends)
            job = self._by_sequence[sequence]
            if not job.told:
                job.told = True
                yield job

    def get(self, project: str, job_id: str, location: str | None) -> Job:
        """The job; without a location only US and EU are looked at, as in "Method: jobs.get"."""
        for place in [location] if location else ["US", "EU"]:
            job = self._jobs.get(_key(project, place, job_id))
            if job is not None:
                return job
        where = f"{project}:{location}.{job_id}" if location else f"{project}:{job_id}"
        raise ApiError(404, f"Not found: Job {where}")

    def cancel(self, project: str, job_id: str, location: str | None) -> Job:
        """End the job now, unless it has ended."""
        job = self.get(project, job_id, location)
        if job.cancelled is None and self.clock.millis() < job.ended:
            job.cancelled = self.clock.millis()
            heappush(self._ends, (job.ended, job.sequence))
        return job

    def page(
        self,
        project: str,
        *,
        user: str | None = None,
        states: frozenset[str] = frozenset(),
        earliest: int | None = None,
        latest: int | None = None,
        before: tuple[int, int] | None = None,
        limit: int = PAGE,
    ) -> tuple[list[Job], tuple[int, int] | None]:
        """A page of the project's jobs, newest first, and where the next page starts.

        :param project: the project.
        :param user: leave out jobs that somebody else created; ``None``: everybody's.
        :param states: leave out jobs in other states; empty: all states.
        :param earliest: least creation time (inclusive), in milliseconds since the epoch.
        :param latest: greatest creation time (inclusive), in milliseconds since the epoch.
        :param before: the position of the last job of the page before. Newer jobs cannot shift it.
        :param limit: most jobs in the page.
        """
        order = self._by_time.get(project, [])
        stop = bisect_left(order, (earliest, 0)) if earliest is not None else 0
        at = bisect_right(order, (latest + 1, 0)) if latest is not None else len(order)
        if before is not None:
            at = min(at, bisect_left(order, before))
        now = self.clock.millis()
        page: list[Job] = []
        while at > stop:
            at -= 1
            job = self._by_sequence[order[at][1]]
            if (user is not None and job.user != user) or (states and job.state(now) not in states):
                continue
            if len(page) == limit:
                last = page[-1]
                return page, (last.created, last.sequence)
            page.append(job)
        return page, None

    def peaks(self, without_label: str | None = None) -> dict[str, dict[str, int]]:
        """For every project the most jobs that were active at one time: by type, and by group ``sql`` and ``jobs``.

        :param without_label: leave out jobs that do not have this label.
        """
        now = self.clock.millis()
        edges: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for job in self._jobs.values():
            if without_label is not None and without_label not in job.labels:
                continue
            begin, end = job.created, job.ended
            if begin > now or begin >= end:
                continue
            for kind in (job.type, GROUPS[job.type]):
                # At the same instant an end (-1) sorts before a beginning (+1): the two never overlap.
                edges.setdefault((job.project, kind), []).extend([(begin, 1), (end, -1)])
        peaks: dict[str, dict[str, int]] = {}
        for (project, kind), steps in edges.items():
            active = highest = 0
            for moment, step in sorted(steps):
                if moment > now:
                    break
                active += step
                highest = max(highest, active)
            peaks.setdefault(project, dict.fromkeys((*TYPES, "sql", "jobs"), 0))[kind] = highest
        return peaks

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _from_seed(self, entry: Json) -> Job:
        if not entry.keys() <= SEED:
            raise ApiError(400, f"A job to seed has {', '.join(sorted(SEED))}, not {', '.join(sorted(entry))}.")
        for name in ("project", "jobId"):
            if not isinstance(entry.get(name), str) or not entry[name]:
                raise ApiError(400, f"Every job needs a {name}.")
        kind = entry.get("type", "load")
        if kind not in TYPES:
            raise ApiError(400, f"A job's type is one of {', '.join(TYPES)}, not {kind!r}.")
        details: Json = {}
        if "sourceUris" in entry:
            sources = entry["sourceUris"]
            if kind != "load" or not isinstance(sources, list) or not all(isinstance(uri, str) for uri in sources):
                raise ApiError(400, f"Job {entry['jobId']}: sourceUris are the URIs, as a list, that a load job reads.")
            details["sourceUris"] = sources
        if "destinationTable" in entry:
            details["destinationTable"] = entry["destinationTable"]
        try:
            labels = {str(name): str(value) for name, value in (entry.get("labels") or {}).items()}
            return Job(
                entry["project"],
                entry.get("location") or "US",
                entry["jobId"],
                kind,
                int(float(entry.get("creationTime", self.clock.now())) * 1000),
                int(entry.get("pendingMs", self.default_pending)),
                int(entry.get("runningMs", self.default_running)),
                self._next(),
                error=entry.get("error"),
                user=entry.get("userEmail") or CALLER,
                labels=labels,
                configuration={kind: details, "labels": labels} if labels else {kind: details},
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ApiError(400, f"Job {entry['jobId']}: {error}") from None


def _key(project: str, location: str, job_id: str) -> tuple[str, str, str]:
    return project, location.lower(), job_id


def _label_millis(labels: dict[str, str], name: str, default: int) -> int:
    try:
        return int(labels.get(name, default))
    except ValueError:
        raise ApiError(400, f"Label {name} must be a number of milliseconds.") from None


# ---- resources -----------------------------------------------------------------------------------------------------


def _status(job: Job, now: int) -> Json:
    status: Json = {"state": job.state(now)}
    failure = job.failure(now)
    if failure:
        status |= {"errorResult": failure, "errors": [failure]}
    return status


def _statistics(job: Job, now: int) -> Json:
    statistics: Json = {"creationTime": str(job.created)}
    if now >= job.started:
        statistics["startTime"] = str(job.started)
    if now >= job.ended:
        statistics["endTime"] = str(job.ended)
        statistics[job.type] = {}
    return statistics


def _reference(job: Job) -> Json:
    return {"projectId": job.project, "jobId": job.job_id, "location": job.location}


def _configuration(job: Job) -> Json:
    return {"jobType": job.type.upper(), **job.configuration}


_ITEM: Final[dict[str, Callable[[Job, int], Any]]] = {
    "kind": lambda job, now: "bigquery#job",
    "id": lambda job, now: f"{job.project}:{job.location}.{job.job_id}",
    "jobReference": lambda job, now: _reference(job),
    "state": lambda job, now: job.state(now),
    "errorResult": lambda job, now: job.failure(now),
    "statistics": _statistics,
    "status": _status,
    "user_email": lambda job, now: job.user,
    "configuration": lambda job, now: _configuration(job),
}
"""An entry of a list; ``configuration`` is there only with projection=full ("Method: jobs.list")."""

ITEM_FIELDS: Final[dict[str, Any]] = dict.fromkeys([*_ITEM, "principal_subject"])
LIST_FIELDS: Final[dict[str, Any]] = {
    **dict.fromkeys(["kind", "etag", "nextPageToken", "unreachable"]),
    "jobs": ITEM_FIELDS,
}


def job_resource(job: Job, now: int, base: str) -> Json:
    """The job as the API shows it on its own."""
    status = _status(job, now)
    return {
        "kind": "bigquery#job",
        "etag": base64.b64encode(f"{job.sequence}/{status['state']}".encode()).decode(),
        "id": f"{job.project}:{job.location}.{job.job_id}",
        "selfLink": f"{base}/bigquery/v2/projects/{job.project}/jobs/{job.job_id}?location={job.location}",
        "user_email": job.user,
        "configuration": _configuration(job),
        "jobReference": _reference(job),
        "statistics": _statistics(job, now),
        "status": status,
    }


# ---- the API -------------------------------------------------------------------------------------------------------


class JobsApi:
    """Recognises BigQuery requests and answers them from :class:`Jobs`."""

    def __init__(self, jobs: Jobs, permissions: Permissions) -> None:
        self.jobs = jobs
        self.permissions = permissions
        self._calls: dict[tuple[str, str], tuple[str, Callable[..., Reply]]] = {
            ("POST", "*/jobs"): ("bigquery.jobs.insert", self._insert),
            ("GET", "*/jobs"): ("bigquery.jobs.list", self._list),
            ("GET", "*/jobs/*"): ("bigquery.jobs.get", self._get),
            ("POST", "*/jobs/*/cancel"): ("bigquery.jobs.cancel", self._cancel),
            ("GET", "*/queries/*"): ("bigquery.jobs.getQueryResults", self._results),
        }

    def find(self, request: Request) -> Operation | None:
        """The operation that the request asks for, or None when its path is not one of BigQuery's jobs API.

        The prefix ``/bigquery/v2`` may be left out: clients differ in what they add to an emulator's address.
        """
        path = request.path.removeprefix("/bigquery/v2")
        if not path.startswith("/projects/"):
            return None
        shape, names = split_path(path[10:])
        found = self._calls.get((request.method, shape))
        if found is None:
            return None
        call, answer = found
        job_id = names[1] if len(names) > 1 else ""
        if answer == self._insert:
            reference = request.json().get("jobReference")
            job_id = str(reference.get("jobId") or "") if isinstance(reference, dict) else ""
        return Operation(call, partial(answer, request, *names), (("", job_id),), names[0], batchable=False)

    def _insert(self, request: Request, project: str) -> Reply:
        return self._reply(request, self.jobs.insert(project, request.json()))

    def _get(self, request: Request, project: str, job_id: str) -> Reply:
        self.permissions.require_jobs("bigquery.jobs.get", project)
        return self._reply(request, self.jobs.get(project, job_id, request.one("location")))

    def _reply(self, request: Request, job: Job) -> Reply:
        resource = job_resource(job, self.jobs.clock.millis(), request.base)
        known = dict.fromkeys([*resource, "jobCreationReason", "principal_subject"])
        return Reply(200, pick(resource, request.fields(known)))

    def _cancel(self, request: Request, project: str, job_id: str) -> Reply:
        job = self.jobs.cancel(project, job_id, request.one("location"))
        resource = job_resource(job, self.jobs.clock.millis(), request.base)
        return Reply(200, {"kind": "bigquery#jobCancelResponse", "job": resource})

    def _results(self, request: Request, project: str, job_id: str) -> Reply:
        """Whether the query has ended; results are always empty, for there is no data here."""
        job = self.jobs.get(project, job_id, request.one("location"))
        now = self.jobs.clock.millis()
        failure = job.failure(now)
        if failure:
            raise ApiError(400, failure["message"], failure["reason"])
        done = job.state(now) == "DONE"
        body: Json = {
            "kind": "bigquery#getQueryResultsResponse",
            "jobReference": _reference(job),
            "jobComplete": done,
        }
        if done:
            body |= {"schema": {"fields": []}, "totalRows": "0", "totalBytesProcessed": "0", "cacheHit": False}
        return Reply(200, body)

    def _list(self, request: Request, project: str) -> Reply:
        self.permissions.require_jobs("bigquery.jobs.list", project)
        if request.flag("allUsers"):
            self.permissions.require_jobs("bigquery.jobs.listAll", project)
        mask = request.fields(LIST_FIELDS)
        states = frozenset(state.upper() for state in request.query.get("stateFilter", []))
        if not states <= {"PENDING", "RUNNING", "DONE"}:
            raise ApiError(400, f"Invalid stateFilter: {', '.join(sorted(states))}.", "invalidParameter")
        page, rest = self.jobs.page(
            project,
            user=None if request.flag("allUsers") else CALLER,
            states=states,
            earliest=request.number("minCreationTime"),
            latest=request.number("maxCreationTime"),
            before=_position(request.one("pageToken")),
            limit=request.limit(),
        )
        shown = dict.fromkeys(_ITEM)
        if (request.one("projection") or "minimal").lower() != "full":
            del shown["configuration"]
        selected = below(mask, "jobs")
        if selected is not None and "*" not in selected:
            shown = {key: sub for key, sub in selected.items() if key in shown}
        now = self.jobs.clock.millis()
        body: Json = {"kind": "bigquery#jobList", "etag": base64.b64encode(str(now).encode()).decode()}
        if selected != {}:
            body["jobs"] = [compute(_ITEM, job, now, shown) for job in page]
        if rest is not None:
            body["nextPageToken"] = base64.urlsafe_b64encode(f"{rest[0]}.{rest[1]}".encode()).decode()
        return Reply(200, pick_top(body, mask))


def _position(token: str | None) -> tuple[int, int] | None:
    if not token:
        return None
    try:
        created, _, sequence = base64.urlsafe_b64decode(token).decode().partition(".")
        return int(created), int(sequence)
    except ValueError:
        raise ApiError(400, "Invalid pageToken.", "invalidParameter") from None
