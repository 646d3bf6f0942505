"""The words of a cycle: lanes and limits, outcomes, reasons to wait, and BigQuery's jobs."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Limit(StrEnum):
    """A limit of the configuration, by its key there. It holds for each project by itself."""

    SQL = "MaxConcurrentSQL"
    JOBS = "MaxConcurrentJobs"


class Lane(StrEnum):
    """Events that are dispatched together: those of query jobs, those of all other jobs, and due windows."""

    SQL = "sql"
    JOBS = "jobs"
    WINDOWS = "windows"

    @property
    def limit(self) -> Limit:
        """The limit that holds for this lane (docs/protocol.md, "Configuration document")."""
        return Limit.SQL if self is Lane.SQL else Limit.JOBS


class Outcome(StrEnum):
    """The outcome of a listed object. Every object has exactly one in a cycle."""

    DISPATCHED = "dispatched"
    RUNNING = "running"
    PENDING = "pending"
    THROTTLED = "throttled"
    TOO_YOUNG = "too_young"
    NOT_FOUND = "not_found"
    QUARANTINED = "quarantined"
    IGNORED = "ignored"
    UNKNOWN = "unknown"
    ERROR = "error"


class Reason(StrEnum):
    """Reasons why an event waits, in the words of the report, the log and the metrics."""

    JOB_PENDING = "job pending"
    JOB_RUNNING = "job running"
    LIMIT = "limit reached"
    TOO_YOUNG = "too young"
    NOT_DUE = "not due"
    IN_HAND = "in another dispatcher's hands"
    IN_DOUBT = "delivery in doubt"
    REFUSED = "refused"
    PROTECTED = "under a hold or a retention policy"
    NO_ANSWER = "job cannot be looked up"
    NOT_FOUND = "job not found"
    UNDECIDED = "undecided"
    RETURNED = "to be judged"
    COMING_BACK = "on its way back from quarantine"
    OTHERS = "for others to dispatch"
    NEXT_CYCLE = "left to the next cycle"
    UNKNOWN_NAME = "unknown name"
    OVERDUE = "ready but not dispatched"


BATCH_JOBS = "BatchJobs"
"""The response document's counter for windows."""

_COUNTERS = {"query": "QueryJobs", "load": "LoadJobs", "reload": "LoadJobs", "copy": "CopyJobs"}


def counter_of(action: str) -> str:
    """Return the response document's counter for jobs of an action (docs/protocol.md, "The response of a run")."""
    return _COUNTERS.get(action, "OtherJobs")


def lane_of(action: str) -> Lane:
    """Return the lane of a finished job's action."""
    return Lane.SQL if action == "query" else Lane.JOBS


Counts = dict[str, dict[str, Counter[str]]]
"""Numbers of jobs and windows by project, gauge (or ``Dispatched``) and counter."""


def no_counts() -> Counts:
    """Return counts in which every number is 0."""
    return defaultdict(lambda: defaultdict(Counter))


Key = tuple[str, int]
"""The name and the generation of an object."""


@dataclass(frozen=True, slots=True)
class JobKey:
    """The identity of a BigQuery job. IDs repeat across projects and locations, so an ID alone is none."""

    project: str
    location: str | None
    job_id: str


@dataclass(frozen=True, slots=True)
class Job:
    """The state of a BigQuery job.

    :param state: ``PENDING``, ``RUNNING`` or ``DONE``; a failed job is done too.
    :param ended: end of the job, by BigQuery's clock; ``None`` before it.
    :param error: reason of the failure, in BigQuery's words; empty without one.
    :param table: the table that it writes, ``project.dataset.table``; empty if it writes none, or an anonymous one.
    """

    location: str
    state: str
    ended: datetime | None = None
    error: str = ""
    table: str = ""
