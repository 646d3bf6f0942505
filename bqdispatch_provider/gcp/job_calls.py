"""Calls of BigQuery that read jobs: retried, and no faster than BigQuery allows. No job is ever submitted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

import requests
from google.api_core.exceptions import BadGateway, ServerError, TooManyRequests
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import TransportError

from bqdispatch_provider.core.model import Job, JobKey
from bqdispatch_provider.gcp.emulators import BIGQUERY, emulator
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS, error_from_response
from bqdispatch_provider.gcp.job_answers import WRITTEN_TABLE, UnreadableJob, listed_jobs, read_job
from bqdispatch_provider.gcp.rate_limit import AdaptiveRateLimiter, SharedBackoff

MAX_CALLS_PER_S, MIN_CALLS_PER_S = 90, 10
"""BigQuery allows a user 100 calls a second, and others may act as the same user (BigQuery, "Quotas")."""

PAGE_SIZE = 1000
TIMEOUT_S = (5.0, 60.0)

RETRY_FAILURES = Retry(
    predicate=if_exception_type(
        ServerError,
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
"""Retries of what has failed; they are few, since a later look asks again."""

RETRY_RATE_LIMITS = Retry(
    predicate=if_exception_type(TooManyRequests), initial=0.2, maximum=8.0, multiplier=2.0, timeout=15.0
)


class JobCalls:
    """Calls with one session, from several threads.

    ``BIGQUERY_EMULATOR_HOST`` names a stand-in for BigQuery.

    :param session: a ``requests.Session`` with credentials.
    """

    def __init__(self, session: requests.Session) -> None:
        self._session = session
        self._backoff = SharedBackoff()
        self._limiter = AdaptiveRateLimiter(MAX_CALLS_PER_S, MIN_CALLS_PER_S)
        self._host = emulator(BIGQUERY) or "https://bigquery.googleapis.com"
        self.last_active: dict[str, float] = {}
        """The monotonic time at which each project was last asked, or answered; infinite while a call waits for the
        rate limit that all projects share."""

    def get(self, key: JobKey) -> Job:
        """Return a job.

        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be looked up.
        :raises UnreadableJob: when the answer does not tell its state.
        """
        fields = f"jobReference(location),status(state,errorResult(reason)),statistics(endTime),{WRITTEN_TABLE}"
        return read_job(self.get_fields(key, fields), key.location or "")

    def get_fields(self, key: JobKey, fields: str) -> dict[str, Any]:
        """Return some fields of a job.

        :param fields: as BigQuery's parameter of that name has them.
        :raises google.api_core.exceptions.GoogleAPICallError: when they cannot be looked up.
        """
        query = {"fields": fields, **({"location": key.location} if key.location else {})}
        return self.ask(f"{_jobs_path(key.project)}/{quote(key.job_id, safe='')}", query)

    def look_up(self, key: JobKey) -> Job | Exception:
        """Return a job, or why it cannot be read."""
        try:
            return self.get(key)
        except (*GOOGLE_ERRORS, UnreadableJob) as error:
            return error

    def list_one(self, project: str, all_users: bool = True) -> None:
        """List at most one job of a project, to find out whether its jobs may be listed.

        :param all_users: True: also jobs that other accounts have submitted.
        :raises google.api_core.exceptions.GoogleAPICallError: when they may not.
        """
        query = {"maxResults": 1, "fields": "kind", **({"allUsers": "true"} if all_users else {})}
        self.ask(_jobs_path(project), query)

    def created_since(self, project: str, since: datetime) -> Iterator[tuple[JobKey, Job]]:
        """List a project's jobs that were created since a moment, newest first; those that cannot be read are left out.

        :raises google.api_core.exceptions.GoogleAPICallError: when they may not be listed.
        """
        for page in self.pages(project, since):
            for job_id, location, listed in listed_jobs(page):
                with suppress(UnreadableJob):
                    yield JobKey(project, location or None, job_id), read_job(listed, location)

    def pages(
        self, project: str, since: datetime, until: datetime | None = None, **more: Any
    ) -> Iterator[dict[str, Any]]:
        """List a project's jobs, page by page, newest first.

        :param since: earliest creation.
        :param until: latest creation; by default now.
        :param more: further parameters (BigQuery, "jobs.list").
        :raises google.api_core.exceptions.GoogleAPICallError: when they may not be listed.
        """
        job = "jobReference(jobId,location),state,status(state),errorResult(reason),statistics(creationTime,endTime)"
        query: dict[str, Any] = {
            "allUsers": "true",
            "projection": "full",  # the minimal one does not say which table a job writes
            "minCreationTime": int(since.timestamp() * 1000),
            "maxResults": PAGE_SIZE,
            "fields": f"nextPageToken,unreachable,jobs({job},{WRITTEN_TABLE})",
            **more,
        }
        if until is not None:
            query["maxCreationTime"] = int(until.timestamp() * 1000)
        while True:
            answer = self.ask(_jobs_path(project), query)
            yield answer
            if not answer.get("nextPageToken"):
                return
            query["pageToken"] = answer["nextPageToken"]

    def ask(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        """Call BigQuery, and retry.

        :param path: below the API's version.
        :raises google.api_core.exceptions.GoogleAPICallError: when it is refused.
        """
        answer: dict[str, Any] = RETRY_RATE_LIMITS(RETRY_FAILURES(self._ask_once))(path, query)
        return answer

    def _ask_once(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        project = unquote(path.split("/")[1])
        self.last_active[project] = math.inf  # the call waits for its turn, and not for the project
        self._backoff.wait()
        self._limiter.acquire(1)
        self.last_active[project] = time.monotonic()
        response = self._session.get(f"{self._host}/bigquery/v2/{path}", params=query, timeout=TIMEOUT_S)
        self.last_active[project] = time.monotonic()
        if response.status_code == 200:
            self._backoff.record(busy=False)
            try:
                answer = json.loads(response.content)
            except (ValueError, RecursionError):
                answer = None
            if not isinstance(answer, dict) or "error" in answer:  # no resource of BigQuery has such a field
                raise BadGateway(f"the answer to {path!r} has an unexpected form: {response.content[:100]!r}")
            return answer
        error = error_from_response(response)
        busy = error.code in (429, 503)
        self._backoff.record(busy=busy)
        self._limiter.record(1, busy)
        raise error


def _jobs_path(project: str) -> str:
    return f"projects/{quote(project, safe='')}/jobs"
