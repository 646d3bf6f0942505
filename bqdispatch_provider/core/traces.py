"""The age of traces, and the job that a trace waits for."""

from __future__ import annotations

from datetime import datetime, timedelta

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core import documents
from bqdispatch_provider.core.listing import Trace
from bqdispatch_provider.core.model import JobKey
from bqdispatch_provider.core.sizes import MAX_ID_CHARS

MIN_AGE = timedelta(seconds=3)
"""A younger object waits for the next cycle: BqTail writes the trace before it submits (docs/protocol.md, "Timing")."""

SUBMISSION_TIME = timedelta(minutes=1)
"""A younger trace whose job is not found counts as an active job, which may be about to appear."""

LEASE = timedelta(seconds=30)
"""Time for which a trace is left to the dispatcher whose intent names it. A living dispatcher renews its intent. No
guarantee rests on it."""

JOB_RETENTION = timedelta(days=175)
"""BigQuery forgets jobs after half a year: what it does not know of an older trace proves nothing."""

_MAX_QUIET_WAIT = timedelta(days=1)
"""A trace whose job is not found is an error after this time, where none is quarantined."""


def is_overdue(trace: Trace, config: DispatchConfig, now: datetime) -> bool:
    """Tell whether a trace has waited so long that it is quarantined if BigQuery is proven not to know its job."""
    limit = timedelta(minutes=config.max_unknown_job_min)
    return bool(limit) and now - trace.object.created > limit and now - trace.object.since < JOB_RETENTION


def waits_too_long(trace: Trace, config: DispatchConfig, now: datetime) -> bool:
    """Tell whether a trace has waited so long for a job that is not found that it is an error."""
    limit = timedelta(minutes=config.max_unknown_job_min) or _MAX_QUIET_WAIT
    return now - trace.object.created > limit


def _may_be_named(value: object) -> bool:
    """Tell whether a value may be a project or a location: text of some length that can be sent to a service."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS:
        return False
    return value == value.encode(errors="ignore").decode()


def job_in_content(trace: Trace, content: bytes) -> JobKey | None:
    """Return a trace's job by the trace's content.

    :param content: anybody who may write to the bucket may have written it, so it is believed only about this trace's
        own job.
    :returns: ``None`` if the content does not say.
    """
    try:
        reference = documents.loads(content)["Job"]["jobReference"]
        project, location, job_id = (reference[key] for key in ("projectId", "location", "jobId"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    named = all(map(_may_be_named, (project, location)))
    return JobKey(project, location, job_id) if named and job_id == trace.name.job_id else None
