"""The loads of a fired window: the one that BqTail has submitted for it, and those that replace it after a failure."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.api_core.exceptions import BadGateway, NotFound

from bqdispatch_provider.core.model import Job, JobKey
from bqdispatch_provider.gcp.job_answers import UnreadableJob, is_whole, listed_jobs, moment_of, part_of, read_job
from bqdispatch_provider.gcp.job_calls import JobCalls
from bqdispatch_provider.gcp.job_search import CLOCK_MARGIN, PARALLEL_CALLS
from bqdispatch_provider.gcp.threads import map_in_threads
from bqdispatch_provider.names import as_job_id

_SOON = timedelta(minutes=15)
"""BqTail submits a load this soon after it is given a window, except after an outage."""

_FIELDS = (
    "jobReference(location),status(state,errorResult(reason)),statistics(creationTime,endTime),"
    "configuration(load(sourceUris))"
)


@dataclass(frozen=True, slots=True)
class LoadJob:
    """A job that loads the files of a fired window.

    :param created: time at which it was submitted.
    :param sources: URIs of its files.
    """

    job_id: str
    job: Job
    created: datetime
    sources: frozenset[str]


KnownLoads = MutableMapping[JobKey, LoadJob | None]
"""Loads of a table that are done, by their jobs; ``None`` for those that are not of the window."""


def find_loads(
    calls: JobCalls, project: str, dest: str, event_id: str, known: KnownLoads, *, since: datetime, now: datetime
) -> list[LoadJob] | None:
    """Find the load of a fired window, and those that replace it after a failure.

    BqTail loads the files that are not corrupt again. After an internal error of BigQuery it starts again with an event
    that the window does not name. So a load of the same files belongs to the window, too.

    :param project: in which they run.
    :param dest: destination, as in the window's name.
    :param event_id: of the event that created the window.
    :param known: of the same window; it is added to, and what is known is not asked for again.
    :param since: time at which the window was fired.
    :param now: the storage server's time.
    :returns: oldest first; ``None`` if none is found, and BigQuery has left out a location that is unreachable now.
    :raises google.api_core.exceptions.GoogleAPICallError: when BigQuery refuses to say.
    """
    key, is_complete = _first_key(calls, project, f"{as_job_id(dest)}--{as_job_id(event_id)}_", since, now)
    if key is None and not is_complete:
        return None
    first = None if key is None else known.get(key) or _load(calls, key)
    if key is None or first is None or not first.job.error:
        return [] if first is None else [first]
    known[key] = first
    any_load = re.compile(rf"{re.escape(as_job_id(dest))}--.+_[0-9]{{5}}_(re)?load--dispatch")
    later = [key for key, _ in calls.created_since(project, first.created) if any_load.fullmatch(key.job_id)]

    def look_up(key: JobKey) -> LoadJob | None:
        if key in known:
            return known[key]
        load = _load(calls, key)
        if load is None:
            return None
        its_own = load if load.created >= first.created and load.sources & first.sources else None
        if load.job.state == "DONE":
            known[key] = its_own
        return its_own

    loads = map_in_threads(look_up, [key for key in later if key.job_id != first.job_id], PARALLEL_CALLS)
    return sorted([first, *filter(None, loads)], key=lambda load: load.created)


def _first_key(calls: JobCalls, project: str, stem: str, since: datetime, now: datetime) -> tuple[JobKey | None, bool]:
    """Return the first load, and whether the list was complete, so that it proves that there is none."""
    is_complete = True
    first = re.compile(rf"{re.escape(stem)}[0-9]{{5}}_load--dispatch")
    # Nearly always it was submitted at once. Only the whole list proves that there is none.
    soon = since + _SOON
    for start, end in ((since - CLOCK_MARGIN, soon), (soon, None)):
        if end is None and start > now:
            break
        for page in calls.pages(project, start, end):
            is_complete = is_complete and is_whole(page)
            for job_id, location, _ in listed_jobs(page):
                if first.fullmatch(job_id):
                    return JobKey(project, location or None, job_id), is_complete
    return None, is_complete


def _load(calls: JobCalls, key: JobKey) -> LoadJob | None:
    """Return a load job with its files; ``None`` if it does not exist."""
    try:
        answer = calls.get_fields(key, _FIELDS)
        job = read_job(answer, key.location or "")
    except NotFound:
        return None
    except UnreadableJob as error:
        raise BadGateway(f"job {key.job_id!r} of project {key.project!r}: {error}") from error
    load = part_of(part_of(answer, "configuration"), "load")
    created = moment_of(answer, "creationTime") or datetime.fromtimestamp(0, UTC)
    return LoadJob(key.job_id, job, created, frozenset(map(str, load.get("sourceUris") or ())))
