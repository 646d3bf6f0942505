"""BigQuery's jobs. The state of a job follows from its schedule and the clock: PENDING, RUNNING, DONE."""

from __future__ import annotations

import re
import sys
import uuid
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from bqdispatch_provider.testing.peaks import GROUPS, peaks_of
from bqdispatch_provider.testing.standin.api import MAX_PAGE_ENTRIES, ApiError, Json
from bqdispatch_provider.testing.standin.clock import Clock
from bqdispatch_provider.testing.standin.permissions import CALLER

SEED_KEYS: Final = frozenset(
    (
        *("project", "location", "jobId", "type", "pendingMs", "runningMs"),
        *("error", "creationTime", "userEmail", "labels", "sourceUris", "destinationTable"),
    )
)
"""Keys of a job to seed."""


@dataclass(slots=True)
class Job:
    """A job and its schedule.

    :param project: project of the job.
    :param location: location of the job.
    :param job_id: ID of the job, unique in project and location.
    :param type: ``load``, ``copy``, ``query`` or ``extract``.
    :param created_ms: creation time in milliseconds since the epoch.
    :param pending_ms: time in PENDING, in milliseconds.
    :param running_ms: time in RUNNING, in milliseconds.
    :param sequence: number of the job in the order of creation.
    :param error: reason of its failure; ``None``: it succeeds.
    :param user: e-mail address of its creator.
    :param labels: labels of the job.
    :param configuration: configuration as the caller gave it.
    :param cancelled_ms: time of its cancellation in milliseconds since the epoch; ``sys.maxsize``: not cancelled.
    :param logged: ``True`` if its end was published to the log sink.
    """

    project: str
    location: str
    job_id: str
    type: str
    created_ms: int
    pending_ms: int
    running_ms: int
    sequence: int
    error: str | None = None
    user: str = CALLER
    labels: dict[str, str] = field(default_factory=dict)
    configuration: Json = field(default_factory=dict)
    cancelled_ms: int = sys.maxsize
    logged: bool = False

    @property
    def started_ms(self) -> int:
        """Time when the job leaves PENDING, in milliseconds since the epoch."""
        return min(self.created_ms + self.pending_ms, self.cancelled_ms)

    @property
    def ended_ms(self) -> int:
        """Time when the job is DONE, in milliseconds since the epoch."""
        return min(self.created_ms + self.pending_ms + self.running_ms, self.cancelled_ms)

    def state(self, now: int) -> str:
        """Return the state of the job: PENDING, RUNNING or DONE.

        :param now: time in milliseconds since the epoch.
        """
        if now >= self.ended_ms:
            return "DONE"
        return "RUNNING" if now >= self.started_ms else "PENDING"

    def failure(self, now: int) -> Json | None:
        """Return the ``errorResult`` of the job.

        :param now: time in milliseconds since the epoch.
        :returns: reason and message; ``None`` if the job has not ended, or ended without an error.
        """
        if now < self.ended_ms:
            return None
        if self.ended_ms == self.cancelled_ms:
            return {"reason": "stopped", "message": "Job execution was cancelled: User requested cancellation"}
        if self.error:
            return {"reason": self.error, "message": f"The stand-in was asked to fail this job: {self.error}"}
        return None


class Jobs:
    """The jobs of all projects.

    :param clock: clock of the stand-in.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.clear()

    def clear(self) -> None:
        """Remove all jobs, and let new ones be DONE at once by default."""
        self.default_pending_ms = 0
        self.default_running_ms = 0
        self._jobs: dict[tuple[str, str, str], Job] = {}
        self._by_time: dict[str, list[tuple[int, int]]] = {}
        self._by_sequence: dict[int, Job] = {}
        self._ends: list[tuple[int, int]] = []
        self._sequence = 0

    def seed(self, entries: list[Json]) -> None:
        """Create the jobs that a test describes: all of them, or none if one is invalid.

        :param entries: jobs with the keys in ``SEED_KEYS``.
        :raises ApiError: 400 if a description is invalid or a job exists.
        """
        prepared = [self._from_seed(entry) for entry in entries]
        keys = [_key(job.project, job.location, job.job_id) for job in prepared]
        if len(set(keys)) != len(keys) or any(key in self._jobs for key in keys):
            raise ApiError(400, "A job of that id exists in its project and location.", "duplicate")
        for job in prepared:
            self._keep(job)
            self._by_time.setdefault(job.project, []).append((job.created_ms, job.sequence))
        for project in {job.project for job in prepared}:
            self._by_time[project].sort()

    def insert(self, project: str, body: Json) -> Job:
        """Create the job that a client submits ("Method: jobs.insert").

        :param project: project of the job.
        :param body: resource of the job.
        :raises ApiError: 400 if the resource is invalid, 409 if a job with this ID exists.
        """
        configuration = body.get("configuration")
        kinds = [kind for kind in GROUPS if isinstance(configuration, dict) and kind in configuration]
        if not isinstance(configuration, dict) or len(kinds) != 1:
            raise ApiError(400, "A job needs exactly one of load, copy, query and extract in its configuration.")
        reference = body.get("jobReference") or {}
        if reference.get("projectId") not in (None, project):
            raise ApiError(400, "jobReference.projectId is not the project of the request.")
        job_id = reference.get("jobId") or f"job_{uuid.uuid4().hex}"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,1024}", job_id):
            raise ApiError(400, f"Invalid job ID {job_id!r}.")
        location = reference.get("location") or "US"
        if _key(project, location, job_id) in self._jobs:
            raise ApiError(409, f"Already Exists: Job {project}:{location}.{job_id}", "duplicate")
        labels = {str(name): str(value) for name, value in (configuration.get("labels") or {}).items()}
        job = Job(
            project,
            location,
            job_id,
            kinds[0],
            self.clock.millis(),
            _label_millis(labels, "standin-pending-ms", self.default_pending_ms),
            _label_millis(labels, "standin-running-ms", self.default_running_ms),
            self._next(),
            error=labels.get("standin-error"),
            labels=labels,
            configuration=configuration,
        )
        self._keep(job)
        insort(self._by_time.setdefault(project, []), (job.created_ms, job.sequence))
        return job

    def _keep(self, job: Job) -> None:
        self._jobs[_key(job.project, job.location, job.job_id)] = self._by_sequence[job.sequence] = job
        heappush(self._ends, (job.ended_ms, job.sequence))

    def take_ended(self) -> Iterator[Job]:
        """Yield the jobs that have ended, each once, in the order of their ends."""
        while self._ends and self._ends[0][0] <= self.clock.millis():
            _, sequence = heappop(self._ends)
            job = self._by_sequence[sequence]
            if not job.logged:
                job.logged = True
                yield job

    def get(self, project: str, job_id: str, location: str | None) -> Job:
        """Return a job ("Method: jobs.get").

        :param project: project of the job.
        :param job_id: ID of the job.
        :param location: location of the job; ``None``: US or EU.
        :raises ApiError: 404 if there is no such job.
        """
        for place in [location] if location else ["US", "EU"]:
            job = self._jobs.get(_key(project, place, job_id))
            if job is not None:
                return job
        where = f"{project}:{location}.{job_id}" if location else f"{project}:{job_id}"
        raise ApiError(404, f"Not found: Job {where}")

    def cancel(self, project: str, job_id: str, location: str | None) -> Job:
        """Cancel a job, unless it has ended.

        :param project: project of the job.
        :param job_id: ID of the job.
        :param location: location of the job; ``None``: US or EU.
        :raises ApiError: 404 if there is no such job.
        """
        job = self.get(project, job_id, location)
        if self.clock.millis() < job.ended_ms:
            job.cancelled_ms = self.clock.millis()
            heappush(self._ends, (job.ended_ms, job.sequence))
        return job

    def page(
        self,
        project: str,
        *,
        user: str | None = None,
        states: frozenset[str] = frozenset(),
        min_created_ms: int | None = None,
        max_created_ms: int | None = None,
        before: tuple[int, int] | None = None,
        limit: int = MAX_PAGE_ENTRIES,
    ) -> tuple[list[Job], tuple[int, int] | None]:
        """Return a page of the project's jobs, newest first, and the position after which the next page starts.

        :param project: the project.
        :param user: list only jobs of this creator; ``None``: of everyone.
        :param states: list only jobs in these states; empty: in any state.
        :param min_created_ms: list only jobs created at this time or later, in milliseconds since the epoch.
        :param max_created_ms: list only jobs created at this time or earlier, in milliseconds since the epoch.
        :param before: position of the last job of the previous page, which newer jobs do not shift.
        :param limit: maximum number of jobs in the page.
        """
        order = self._by_time.get(project, [])
        start = bisect_left(order, (min_created_ms, 0)) if min_created_ms is not None else 0
        end = bisect_right(order, (max_created_ms + 1, 0)) if max_created_ms is not None else len(order)
        if before is not None:
            end = min(end, bisect_left(order, before))
        now = self.clock.millis()
        page: list[Job] = []
        for position in reversed(range(start, end)):
            job = self._by_sequence[order[position][1]]
            if (user is not None and job.user != user) or (states and job.state(now) not in states):
                continue
            if len(page) == limit:
                last = page[-1]
                return page, (last.created_ms, last.sequence)
            page.append(job)
        return page, None

    def peaks(self, label: str | None = None) -> dict[str, dict[str, int]]:
        """Return by project the maximum numbers of concurrent jobs up to now, as in :func:`peaks_of`.

        :param label: count only jobs with this label; ``None``: all jobs.
        """
        now = self.clock.millis()
        spans: dict[str, list[tuple[str, int, int]]] = {}
        for job in self._jobs.values():
            if job.created_ms <= now and job.created_ms < job.ended_ms and (label is None or label in job.labels):
                spans.setdefault(job.project, []).append((job.type, job.created_ms, job.ended_ms))
        return {project: peaks_of(jobs) for project, jobs in spans.items()}

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _from_seed(self, entry: Json) -> Job:
        if not entry.keys() <= SEED_KEYS:
            raise ApiError(400, f"A job to seed has {', '.join(sorted(SEED_KEYS))}, not {', '.join(sorted(entry))}.")
        for name in ("project", "jobId"):
            if not isinstance(entry.get(name), str) or not entry[name]:
                raise ApiError(400, f"Every job needs a {name}.")
        kind = entry.get("type", "load")
        if kind not in GROUPS:
            raise ApiError(400, f"A job's type is one of {', '.join(GROUPS)}, not {kind!r}.")
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
                int(entry.get("pendingMs", self.default_pending_ms)),
                int(entry.get("runningMs", self.default_running_ms)),
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
