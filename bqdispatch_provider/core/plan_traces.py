"""The decisions of a plan about traces."""

from __future__ import annotations

from datetime import datetime

from bqdispatch_provider.core.draft import Candidate, Draft, Item
from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.listing import Trace
from bqdispatch_provider.core.model import Job, JobKey, Outcome, Reason, counter_of, lane_of
from bqdispatch_provider.core.plans import Snapshot
from bqdispatch_provider.core.targets import REPLAY
from bqdispatch_provider.core.traces import MIN_AGE, SUBMISSION_TIME, is_overdue, waits_too_long


def is_active(trace: Trace, snapshot: Snapshot, now: datetime) -> bool:
    """Tell whether a trace's job counts as active.

    A trace is written before its job is submitted, so for a while the job may be about to appear. A job that cannot be
    looked at may be running.
    """
    if (job := snapshot.jobs.get(trace.job)) is not None:
        return job.state != "DONE"
    return trace.project in snapshot.project_errors or now - trace.object.created < SUBMISSION_TIME


def plan_trace(draft: Draft, trace: Trace) -> None:
    """Decide on one trace; the draft takes the decision."""
    stored, snapshot, name = trace.object, draft.snapshot, trace.name
    item = Item(name, stored.name, stored.created, trace.project, counter_of(name.action), stored.protected_by)
    job, failed = snapshot.jobs.get(trace.job), trace.project in snapshot.project_errors
    asked = snapshot.unknown_jobs.get(trace.job)
    lost = asked if asked and is_overdue(trace, draft.config, draft.now) else None
    unread = snapshot.unreadable_jobs.get(trace.job)
    age = draft.now - stored.created
    if unread is not None or (not (job or failed or lost) and waits_too_long(trace, draft.config, draft.now)):
        draft.problems.append(_not_found(trace, unread or ""))
    if REPLAY in stored.metadata:
        draft.pend_coming_back(item, stored)
    elif job is None and failed:
        draft.fail(item, Reason.NO_ANSWER, snapshot.project_errors[trace.project])
        # Without numbers, BqTail's balancer would take the project for a free one, and send more loads there.
        draft.counts[trace.project]["Pending"][item.counter] += 1
    elif age < MIN_AGE:
        draft.outcomes[Outcome.TOO_YOUNG] += 1
        draft.due_in.append(MIN_AGE - age)
    elif job is not None:
        _plan_by_job(draft, trace, item, job)
    elif lost:
        _quarantine(draft, trace, lost)
    else:
        draft.outcomes[Outcome.NOT_FOUND] += 1
        draft.not_found[trace.project] += 1
        draft.wait(item, Reason.NOT_FOUND, unread or "")


def _plan_by_job(draft: Draft, trace: Trace, item: Item, job: Job) -> None:
    stored = trace.object
    if job.state == "DONE":
        location, ended, error, table = job.location, job.ended, job.error, job.table
        event = Event(*stored.key, stored.created, location, ended, error, table, stored.in_doubt)
        draft.offer(Candidate(item, event, lane_of(trace.name.action), trace.project))
    elif job.state == "RUNNING":
        draft.outcomes[Outcome.RUNNING] += 1
        draft.counts[trace.project]["Running"][item.counter] += 1
        draft.wait(item, Reason.JOB_RUNNING)
    else:
        draft.pend(item, Reason.JOB_PENDING)


def _not_found(trace: Trace, said: str) -> str:
    """Return the error of a trace whose job is not found.

    :param said: what BigQuery said when it was asked for that job; empty for nothing.
    """
    key, since = trace.job, trace.object.created.isoformat(timespec="seconds")
    where = f"location {key.location!r}" if key.location else "any location"
    said = said or "not found yet; if that lasts, see whether the trace names the right project and location"
    return (
        f"trace {trace.object.name!r} has waited since {since} for job {key.job_id!r} of project {key.project!r}, "
        f"{where}: {said}"
    )


def _quarantine(draft: Draft, trace: Trace, key: JobKey) -> None:
    """Quarantine a trace whose job BigQuery does not know.

    :param key: the job, as BigQuery was asked for it.
    """
    since = trace.object.created.isoformat(timespec="seconds")
    where = f"location {key.location!r}" if key.location else "any location, nor in the list of jobs since then"
    reason = (
        f"it has waited since {since} for job {key.job_id!r}, and BigQuery answered 404 for that ID in project "
        f"{key.project!r}, {where}"
    )
    asked = {"Project": key.project, "Location": key.location, "ID": key.job_id, "Answer": 404}
    draft.quarantine(trace.object, reason, asked)
