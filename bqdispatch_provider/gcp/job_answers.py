"""Answers of BigQuery as values: the states of jobs, and why some cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.api_core.exceptions import BadRequest, NotFound, RetryError

from bqdispatch_provider.core.model import Job, JobKey
from bqdispatch_provider.names import in_words

_STATES = ("DONE", "PENDING", "RUNNING")
_WRITING = ("load", "copy", "query")

WRITTEN_TABLE = f"configuration({','.join(f'{kind}(destinationTable)' for kind in _WRITING)})"
"""Field of a job that says which table it writes."""


class NoAnswer(Exception):
    """A project that has not answered in time."""


class UnreadableJob(ValueError):
    """A job whose state the answer does not tell."""


@dataclass
class JobStates:
    """The states of the jobs of traces.

    :param jobs: the jobs that were found. Others may be missing for many reasons.
    :param errors: by project why its jobs could not be read.
    :param unread: by job why its state is not known.
    :param unknown: jobs of overdue traces that BigQuery is proven not to know, and the places where they were looked
        up.
    :param listed: projects whose jobs were listed.
    :param got: number of jobs that were looked up one by one.
    :param list_ms: time spent on lists, in milliseconds, over all projects.
    """

    jobs: dict[JobKey, Job] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    unread: dict[JobKey, str] = field(default_factory=dict)
    unknown: dict[JobKey, JobKey] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    got: int = 0
    list_ms: int = 0

    @property
    def done(self) -> dict[JobKey, Job]:
        """The jobs that have ended."""
        return {key: job for key, job in self.jobs.items() if job.state == "DONE"}

    def refusal_of(self, project: str) -> str:
        """Return why a project refuses; empty if it has told of any job: then an error concerns single jobs.

        :param project: of the search that these states are from.
        """
        return "" if self.jobs else self.errors.get(project, "")

    def add(self, other: JobStates) -> None:
        """Add the states of another project's jobs."""
        self.jobs |= other.jobs
        self.errors |= other.errors
        self.unread |= other.unread
        self.listed |= other.listed
        self.unknown |= other.unknown
        self.got += other.got
        self.list_ms += other.list_ms

    def add_lookup(self, key: JobKey, found: Job | Exception, place: JobKey) -> bool:
        """Add the answer to a look-up.

        :param place: where the job was looked up.
        :returns: True if BigQuery says that there is no such job.
        """
        if isinstance(found, Job):
            self.jobs[key] = found
        elif isinstance(found, NotFound):
            # A wrong address is answered with 404, too, but without BigQuery's reason.
            return any(said.get("reason") == "notFound" for said in found.errors)
        elif isinstance(found, BadRequest | UnreadableJob) or place.project != key.project:
            # This concerns one job, and is no reason to give up the project.
            where = f" (asked for in project {place.project!r}, location {place.location!r})" if place != key else ""
            self.unread[key] = f"{reason_of(found)}{where}"
            if isinstance(found, UnreadableJob):
                self.jobs[key] = Job(key.location or "", "PENDING")  # it exists, and may be running
        else:
            self.errors.setdefault(key.project, reason_of(found))
        return False


def is_refusal(found: Job | Exception) -> bool:
    """Return whether an answer to a look-up is none: it may concern all jobs of the place."""
    return not isinstance(found, Job | NotFound | BadRequest | UnreadableJob)


def reason_of(error: Exception) -> str:
    """Return an error's reason for a message, in one line."""
    if isinstance(error, NoAnswer):
        return str(error)
    return in_words(error.cause if isinstance(error, RetryError) and error.cause else error)


def read_job(answer: Mapping[str, Any], location: str) -> Job:
    """Read a job that was listed or looked up. ``jobs.list`` has the state twice: at the top and in the status.

    :param location: is taken if the answer does not tell it.
    :raises UnreadableJob: when it has no state.
    """
    state = _state(answer)
    if state not in _STATES:
        raise UnreadableJob(f"its state is {str(state)[:80]!r}; expected one of {', '.join(_STATES)}")
    error = answer.get("errorResult") or part_of(answer, "status").get("errorResult")
    reason = error.get("reason") if isinstance(error, Mapping) else error
    where = part_of(answer, "jobReference").get("location") or location
    ended, said = moment_of(answer, "endTime"), str(reason or "unknown") if error else ""
    return Job(str(where), state, ended, said, _table(answer))


def listed_jobs(page: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the jobs on a page of a list; those without an ID are left out.

    :returns: the ID, the location, which may be empty, and the job's resource.
    """
    jobs = page.get("jobs")
    for listed in jobs if isinstance(jobs, list) else ():
        reference = part_of(listed, "jobReference") if isinstance(listed, Mapping) else {}
        if isinstance(reference.get("jobId"), str):
            yield reference["jobId"], str(reference.get("location") or ""), listed


def is_whole(page: Mapping[str, Any]) -> bool:
    """Tell whether a page of a list has all jobs that belong there, so that it proves others missing.

    False if BigQuery has left out a location that is unreachable now, or has answered in another form.
    """
    return not page.get("unreachable") and isinstance(page.get("jobs", []), list)


def part_of(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object within an answer; an empty one if it is missing."""
    part = whole.get(name)
    return part if isinstance(part, Mapping) else {}


def moment_of(answer: Mapping[str, Any], name: str) -> datetime | None:
    """Return a time from a job's statistics; ``None`` if it is missing."""
    try:
        return datetime.fromtimestamp(int(part_of(answer, "statistics")[name]) / 1000, UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def active_since(answer: Mapping[str, Any]) -> datetime | None:
    """Return when a job was created; ``None`` if it is done.

    A job that does not tell its creation may be the youngest of all.
    """
    return None if _state(answer) == "DONE" else moment_of(answer, "creationTime") or datetime.max.replace(tzinfo=UTC)


def _state(answer: Mapping[str, Any]) -> object:
    return answer.get("state") or part_of(answer, "status").get("state")


def _table(answer: Mapping[str, Any]) -> str:
    """Return the table that a job writes; empty for an anonymous one, which lies in a hidden dataset."""
    configuration = part_of(answer, "configuration")
    for kind in _WRITING:
        table = part_of(part_of(configuration, kind), "destinationTable")
        parts = [table.get(key) for key in ("projectId", "datasetId", "tableId")]
        if all(parts) and not str(parts[1]).startswith("_"):
            return ".".join(map(str, parts))
    return ""
