"""A BqTail's client of BigQuery, by REST."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import requests
from google.api_core.exceptions import Conflict, GoogleAPIError, NotFound

from bqdispatch_provider.testing.bqtail.bodies import Document, TraceBody
from bqdispatch_provider.testing.bqtail.calls import call
from bqdispatch_provider.testing.peaks import peaks_of

log = logging.getLogger(__name__)


class BigQuery:
    """A client for jobs.

    :param session: session with credentials, if BigQuery needs them.
    :param url: scheme and host of BigQuery.
    """

    def __init__(self, session: requests.Session, url: str) -> None:
        self._session = session
        self._url = f"{url.rstrip('/')}/bigquery/v2/projects"

    def submit(self, project: str, job: Document) -> bool:
        """Submit a job.

        :param project: project of the job.
        :param job: resource of the job.
        :returns: ``False`` if BigQuery refused the job because one with this ID exists.
        :raises GoogleAPIError: for any other error.
        """
        try:
            call(self._session, "POST", self._jobs_url(project), json=job)
        except Conflict:
            return False
        return True

    def status(self, trace: TraceBody) -> dict[str, Any]:
        """Return the status of a job, empty if there is no such job.

        :param trace: trace of the job.
        """
        url = f"{self._jobs_url(trace.project)}/{quote(trace.job_id, safe='')}"
        where = {"location": trace.location} if trace.location else {}
        try:
            return dict(call(self._session, "GET", url, params=where).json().get("status", {}))
        except NotFound:
            return {}

    def status_in_words(self, trace: TraceBody) -> str:
        """Return the status of a job in words, such as ``its job is RUNNING``.

        :param trace: trace of the job.
        """
        status = self.status(trace)
        state = f"is {status['state']}" if status else "is unknown to BigQuery"
        return f"its job {state}{' with an error' if 'errorResult' in status else ''}"

    def peaks(self, kinds: Mapping[tuple[str, str], str]) -> dict[str, dict[str, int]]:
        """Return the maximum numbers of concurrent jobs with a trace, by project; without projects that fail to list.

        :param kinds: kinds of the jobs with a trace by project and ID.
        """
        peaks: dict[str, dict[str, int]] = {}
        for project in sorted({project for project, _ in kinds}):
            try:
                peaks[project] = peaks_of(
                    (kinds[project, job_id], begin, end)
                    for job_id, begin, end in self._spans(project)
                    if (project, job_id) in kinds
                )
            except (GoogleAPIError, KeyError, ValueError) as error:
                log.warning("Cannot list the jobs of %s, no peaks: %s", project, error)
        return peaks

    def _spans(self, project: str) -> Iterator[tuple[str, int, int]]:
        """Yield ID, start and end of each job of a project, in milliseconds; a running job ends at ``sys.maxsize``."""
        fields = "nextPageToken,jobs(jobReference/jobId,statistics(creationTime,endTime))"
        asked = {"allUsers": "true", "maxResults": "1000", "fields": fields}
        while True:
            page = call(self._session, "GET", self._jobs_url(project), params=asked).json()
            for job in page.get("jobs", ()):
                begin, end = (int(job["statistics"].get(at, 0)) for at in ("creationTime", "endTime"))
                yield job["jobReference"]["jobId"], begin, end or sys.maxsize
            if "nextPageToken" not in page:
                return
            asked["pageToken"] = page["nextPageToken"]

    def _jobs_url(self, project: str) -> str:
        return f"{self._url}/{quote(project, safe='')}/jobs"
