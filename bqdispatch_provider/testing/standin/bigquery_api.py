"""BigQuery's REST API for jobs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from bqdispatch_provider.testing.standin.api import ApiError, Json, Operation, Reply, Request, encode, split_path
from bqdispatch_provider.testing.standin.bigquery_jobs import Job, Jobs
from bqdispatch_provider.testing.standin.fields import below, compute, fields_of, pick, pick_top
from bqdispatch_provider.testing.standin.permissions import CALLER, Permissions


def _status(job: Job, now: int) -> Json:
    status: Json = {"state": job.state(now)}
    failure = job.failure(now)
    if failure:
        status |= {"errorResult": failure, "errors": [failure]}
    return status


def _statistics(job: Job, now: int) -> Json:
    statistics: Json = {"creationTime": str(job.created_ms)}
    if now >= job.started_ms:
        statistics["startTime"] = str(job.started_ms)
    if now >= job.ended_ms:
        statistics["endTime"] = str(job.ended_ms)
        statistics[job.type] = {}
    return statistics


_ENTRY: Final[dict[str, Callable[[Job, int], Any]]] = {
    "kind": lambda job, now: "bigquery#job",
    "id": lambda job, now: f"{job.project}:{job.location}.{job.job_id}",
    "jobReference": lambda job, now: {"projectId": job.project, "jobId": job.job_id, "location": job.location},
    "state": lambda job, now: job.state(now),
    "errorResult": lambda job, now: job.failure(now),
    "statistics": _statistics,
    "status": _status,
    "user_email": lambda job, now: job.user,
    "configuration": lambda job, now: {"jobType": job.type.upper(), **job.configuration},
}
"""Fields of an entry of a list; ``configuration`` only with ``projection=full`` ("Method: jobs.list")."""
LIST_FIELDS: Final[dict[str, Any]] = {
    **dict.fromkeys(["kind", "etag", "nextPageToken", "unreachable"]),
    "jobs": dict.fromkeys([*_ENTRY, "principal_subject"]),
}


def job_resource(job: Job, now: int, base: str) -> Json:
    """Return the resource of a job ("Job" resource representation).

    :param job: the job.
    :param now: time in milliseconds since the epoch.
    :param base: scheme and host for its links.
    """
    fields = {name: field(job, now) for name, field in _ENTRY.items() if name not in ("state", "errorResult")}
    return {
        **fields,
        "etag": encode(f"{job.sequence}/{job.state(now)}"),
        "selfLink": f"{base}/bigquery/v2/projects/{job.project}/jobs/{job.job_id}?location={job.location}",
    }


class JobsApi:
    """The methods of the API.

    :param jobs: the jobs.
    :param permissions: permissions of the caller.
    """

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
        """Return the call that a request asks for.

        The prefix ``/bigquery/v2`` is optional: not every client adds it to the address of an emulator.

        :param request: the request.
        :returns: the call; ``None`` if the path is not one of this API.
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
        return Reply(200, pick(resource, fields_of(request, known)))

    def _cancel(self, request: Request, project: str, job_id: str) -> Reply:
        job = self.jobs.cancel(project, job_id, request.one("location"))
        resource = job_resource(job, self.jobs.clock.millis(), request.base)
        return Reply(200, {"kind": "bigquery#jobCancelResponse", "job": resource})

    def _results(self, request: Request, project: str, job_id: str) -> Reply:
        """Answer whether a query has ended, with an empty result, as the stand-in has no data."""
        job = self.jobs.get(project, job_id, request.one("location"))
        now = self.jobs.clock.millis()
        failure = job.failure(now)
        if failure:
            raise ApiError(400, failure["message"], failure["reason"])
        done = job.state(now) == "DONE"
        reference = _ENTRY["jobReference"](job, now)
        body: Json = {"kind": "bigquery#getQueryResultsResponse", "jobReference": reference, "jobComplete": done}
        if done:
            body |= {"schema": {"fields": []}, "totalRows": "0", "totalBytesProcessed": "0", "cacheHit": False}
        return Reply(200, body)

    def _list(self, request: Request, project: str) -> Reply:
        self.permissions.require_jobs("bigquery.jobs.list", project)
        if request.flag("allUsers"):
            self.permissions.require_jobs("bigquery.jobs.listAll", project)
        mask = fields_of(request, LIST_FIELDS)
        states = frozenset(state.upper() for state in request.query.get("stateFilter", []))
        if not states <= {"PENDING", "RUNNING", "DONE"}:
            raise ApiError(400, f"Invalid stateFilter: {', '.join(sorted(states))}.", "invalidParameter")
        page, rest = self.jobs.page(
            project,
            user=None if request.flag("allUsers") else CALLER,
            states=states,
            min_created_ms=request.number("minCreationTime"),
            max_created_ms=request.number("maxCreationTime"),
            before=_position(request.page_token()),
            limit=request.limit(),
        )
        shown = dict.fromkeys(_ENTRY)
        if (request.one("projection") or "minimal").lower() != "full":
            del shown["configuration"]
        selected = below(mask, "jobs")
        if selected is not None and "*" not in selected:
            shown = {key: sub for key, sub in selected.items() if key in shown}
        now = self.jobs.clock.millis()
        body: Json = {"kind": "bigquery#jobList", "etag": encode(str(now))}
        if selected != {}:
            body["jobs"] = [compute(_ENTRY, job, now, shown) for job in page]
        if rest is not None:
            body["nextPageToken"] = encode(f"{rest[0]}.{rest[1]}")
        return Reply(200, pick_top(body, mask))


def _position(token: str) -> tuple[int, int] | None:
    if not token:
        return None
    created, _, sequence = token.partition(".")
    if not created.isdecimal() or not sequence.isdecimal():
        raise ApiError(400, "Invalid pageToken.", "invalidParameter")
    return int(created), int(sequence)
