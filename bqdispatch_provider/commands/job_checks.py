"""Checks of the projects: permissions on their jobs, and the locations that the traces' names say."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import NamedTuple

from bqdispatch_provider.commands.checks import Check, CheckResult
from bqdispatch_provider.core.listing import Trace
from bqdispatch_provider.core.model import JobKey
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.permissions import problem_in_project
from bqdispatch_provider.names import TraceName, counted, in_words

_MAX_JOBS, _MAX_JOB_AGE = 5_000, timedelta(days=30)
"""Number of a project's jobs that are read, and their greatest age."""


class JobsFound(NamedTuple):
    """Jobs that the checks of the projects have come across.

    :param finished: a finished job of each project whose ID has BqTail's form; ``None`` if it has none.
    :param location: a location in which the projects' jobs run; the configuration's if none was seen.
    """

    finished: Mapping[str, JobKey | None]
    location: str


def check_jobs(dispatcher: Dispatcher) -> Generator[Check, None, JobsFound]:
    """Yield the checks of the set-up's own project, and of those of its traces.

    :param dispatcher: of the set-up.
    :returns: the jobs that were found.
    """
    traces: Sequence[Trace] = ()
    unlisted = ""
    try:
        traces = dispatcher.folder.listing().traces
    except GOOGLE_ERRORS as error:
        unlisted = f"the task folder cannot be listed: {in_words(error)}"
    finished: dict[str, JobKey | None] = {}
    places = [trace.name.region for trace in traces]
    board, now = dispatcher.board, dispatcher.store.now()
    for project in dict.fromkeys([dispatcher.config.project_id or "", *(trace.project for trace in traces)]):
        if problem := problem_in_project(board, project):
            yield Check("jobs", project, CheckResult.FAILED, problem)
            continue
        yield Check("jobs", project, CheckResult.OK, "the account may list and get them")
        mine = [trace for trace in traces if trace.project == project]
        since = min([now - _MAX_JOB_AGE, *(trace.object.created - timedelta(minutes=5) for trace in mine)])
        try:
            jobs = dict(islice(board.calls.created_since(project, since), _MAX_JOBS))
        except GOOGLE_ERRORS as error:
            yield Check("location", project, CheckResult.NOT_CHECKED, f"the jobs cannot be listed: {in_words(error)}")
            continue
        finished[project] = next((key for key, job in jobs.items() if job.state == "DONE" and trace_name_of(key)), None)
        places[:0] = [key.location for key in jobs]
        if unlisted:
            yield Check("location", project, CheckResult.NOT_CHECKED, unlisted)
        else:
            yield _check_locations(project, mine, jobs)
    return JobsFound(finished, next(filter(None, places), dispatcher.config.region))


def trace_name_of(key: JobKey) -> TraceName | None:
    """Return the name of a job's trace; ``None`` if the job's ID has another form than BqTail's."""
    try:
        name = TraceName.parse(f"proj:{key.project}:{key.location or ''}/{key.job_id}")
    except ValueError:
        return None
    return name if name.job_id == key.job_id else None


def _check_locations(project: str, traces: Iterable[Trace], jobs: Iterable[JobKey]) -> Check:
    """Check that the traces' jobs are where the traces' names say: elsewhere they would never be found."""
    locations: dict[str, set[str]] = {}
    for key in jobs:
        locations.setdefault(key.job_id, set()).add((key.location or "").lower())
    checked = 0
    misplaced: dict[tuple[str, str], list[str]] = {}
    for trace in traces:
        region, found = trace.name.region, locations.get(trace.name.job_id)
        if region is None or found is None:
            continue
        checked += 1
        if region.lower() not in found:
            misplaced.setdefault((region, ", ".join(sorted(found))), []).append(trace.object.name)
    if not misplaced:
        finding = f"the jobs of {counted(checked, 'trace')} are where the traces' names say"
        return Check("location", project, CheckResult.OK, finding if checked else "no trace waits for a job")
    (region, location), names = max(misplaced.items(), key=lambda each: len(each[1]))
    finding = (
        f"{counted(len(names), 'trace')} with the location {region!r}, such as {names[0]!r}, but with jobs in "
        f"{location!r}, so the jobs are never found: correct the location in BqTail's configuration, and move these "
        f"traces into the folder proj:{project}:{location.upper() if len(location) == 2 else location}/"
    )
    return Check("location", project, CheckResult.FAILED, finding)
