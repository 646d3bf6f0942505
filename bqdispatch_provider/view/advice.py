"""Each reason to wait, in words: what it means, what happens next, and what somebody has to do."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.model import Limit, Reason, lane_of
from bqdispatch_provider.core.targets import split_undecided_name
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.names import WindowName, parse_event, shell_quoted
from bqdispatch_provider.view.suggested_commands import gcloud_command, replay_command, smoke_command


class Advice(NamedTuple):
    """Words about a reason.

    :param meaning: what it means.
    :param next_step: what happens next, and what somebody has to do about it.
    """

    meaning: str
    next_step: str


ADVICE: dict[Reason, Advice] = {
    Reason.JOB_PENDING: Advice(
        "BigQuery has not begun the job yet.",
        "Nothing to do: it is dispatched within seconds of the job's end. If that takes longer than usual, look at the "
        "job in BigQuery.",
    ),
    Reason.JOB_RUNNING: Advice(
        "BigQuery runs the job.",
        "Nothing to do: it is dispatched within seconds of the job's end. If that takes longer than usual, look at the "
        "job in BigQuery.",
    ),
    Reason.LIMIT: Advice(
        "The limit of its project is reached. The oldest events go first.",
        "Nothing to do if the backlog shrinks. Otherwise raise MaxConcurrentSQL or MaxConcurrentJobs.",
    ),
    Reason.TOO_YOUNG: Advice(
        "It was written a few seconds ago, and its job may not be visible yet.", "Nothing to do: wait a few seconds."
    ),
    Reason.NOT_DUE: Advice("The end of the window has not come.", "Nothing to do: it is fired when the window ends."),
    Reason.IN_HAND: Advice(
        "Another dispatcher has begun to dispatch it.",
        "Nothing to do: if that one was killed, another takes up a trace after 30 s, a window after three minutes.",
    ),
    Reason.IN_DOUBT: Advice(
        "It may have been delivered: an answer was lost, or a dispatcher was killed.",
        "Nothing to do: the next cycle finds out. If it lasts, grant storage.buckets.get on the trigger bucket.",
    ),
    Reason.REFUSED: Advice(
        "A service has refused a call that it needs, or something that decides on it cannot be read.",
        "Read the error. If a permission may be missing, `bqdispatch smoke` tries all that are needed. Each cycle "
        "tries again.",
    ),
    Reason.PROTECTED: Advice(
        "It is under a hold or a retention policy. What cannot be deleted afterwards would be delivered again and "
        "again, so it is not delivered.",
        "End the hold, or take the retention policy off the bucket of the task folder. The next cycle dispatches it.",
    ),
    Reason.NO_ANSWER: Advice(
        "BigQuery has not told how its job stands.",
        "Read the error: it is a permission, a quota or an outage. Each cycle tries again.",
    ),
    Reason.NOT_FOUND: Advice(
        "BigQuery does not find its job.",
        "Nothing to do yet: the job may still appear. If it does not within MaxUnknownJobMin, its trace is "
        "quarantined, and can be put back.",
    ),
    Reason.UNDECIDED: Advice(
        "To fire this window would load some files again, or nobody can tell which ones were loaded. So somebody has "
        "to decide; until then nothing happens.",
        "See in its table which of its files were loaded. All: delete it. Otherwise fire it with `bqdispatch replay`.",
    ),
    Reason.RETURNED: Advice(
        "BqTail has made this window again, after one of its name was fired. What the earlier loads have loaded "
        "decides what becomes of it.",
        "Nothing to do: it is judged once these loads have ended.",
    ),
    Reason.COMING_BACK: Advice(
        "Somebody is putting it back from quarantine.",
        "Nothing to do: it is dispatched once that is through. If it stays, put it back again.",
    ),
    Reason.OTHERS: Advice(
        "The argument `only` of this dispatcher does not match it.", "See that `only` of another task does."
    ),
    Reason.NEXT_CYCLE: Advice(
        "The time of the cycle was up.", "Nothing to do: the next cycle dispatches it, the oldest events first."
    ),
    Reason.UNKNOWN_NAME: Advice(
        "It lies in the task folder, and its name is not that of a trace or a window. So nobody dispatches it.",
        "See who writes it. If it is a trace or a window, write it again under the right name (docs/protocol.md). Move "
        "it out of the task folder, or delete it.",
    ),
    Reason.OVERDUE: Advice(
        "It could have been dispatched for more than five minutes, and nobody has dispatched it.",
        "See that the DAG is switched on, and that its tasks run. Nothing else to do if the number shrinks.",
    ),
}


def next_step(  # noqa: PLR0911  (one per reason)
    wait: Wait, url: str, config: DispatchConfig, until: datetime | None = None
) -> str:
    """Return what happens next with an event, and what somebody has to do about it, as exactly as it is known.

    :param wait: the event, and the reason.
    :param url: of the event.
    :param config: named by commands that need it.
    :param until: until when its job is looked for; ``None``, the default: for ever, or it is not looked for.
    """
    if wait.reason in (Reason.JOB_RUNNING, Reason.JOB_PENDING) and (command := _look_at_job(wait.name)):
        return (
            "Nothing to do: it is dispatched within seconds of the job's end. If that takes longer than usual, look at "
            f"the job: `{command}`"
        )
    if wait.reason is Reason.LIMIT:
        return f"Nothing to do if the backlog shrinks. Otherwise raise {_limit_of(wait.name)} in the configuration."
    if wait.reason is Reason.PROTECTED:
        return _end_protection(wait.said, url)
    if wait.reason in (Reason.REFUSED, Reason.NO_ANSWER) and "permission" in wait.said:
        return (
            "Give the account that dispatches a role with this permission: docs/permissions.md says which. Each cycle "
            "tries again."
        )
    if wait.reason is Reason.REFUSED:
        return (
            f"Read the error. If a permission may be missing, `{smoke_command(config)}` tries all that are needed. "
            "Each cycle tries again."
        )
    if wait.reason is Reason.IN_HAND:
        after = "three minutes" if wait.name.endswith(".win") else "30 s"
        return f"Nothing to do: if that one was killed, another takes it up after {after}."
    if wait.reason is Reason.NOT_FOUND:
        return _look_for_job(wait.name, until)
    if wait.reason is Reason.UNDECIDED:
        return (
            f"See in {_table_of(wait.name)} which of its files were loaded. All: delete it, by "
            f"`{gcloud_command('rm', url)}`. Otherwise fire it, by `{replay_command(config, url)}`: folders that are "
            "known to be loaded are left out. But if its own file was not loaded, all of that file's folder may be "
            "loaded again."
        )
    return ADVICE[wait.reason].next_step


def _end_protection(said: str, url: str) -> str:
    for hold, option in (("temporaryHold", "--no-temporary-hold"), ("eventBasedHold", "--no-event-based-hold")):
        if hold in said:
            command = gcloud_command("objects update", url, option)
            return f"End the hold, and the next cycle dispatches it: `{command}`"
    if "retention" in said:
        return "Take the retention policy off the bucket of the task folder, or wait until it ends for this object."
    return ADVICE[Reason.PROTECTED].next_step


def _look_for_job(path: str, until: datetime | None) -> str:
    look = f" To look for it yourself: `{command}`" if (command := _look_at_job(path)) else ""
    end = "It is looked for without end, since MaxUnknownJobMin is 0."
    if until is not None:
        then = "its trace is quarantined, and can be put back"
        end = f"If BigQuery still does not know it at {until:%Y-%m-%d %H:%M} UTC, {then}."
    return f"Nothing to do yet: the job may still appear. {end}{look}"


def _limit_of(path: str) -> Limit:
    name = parse_event(path)
    return Limit.JOBS if isinstance(name, WindowName) else lane_of(name.action).limit


def _look_at_job(path: str) -> str:
    """Return the command that shows the job of a trace; empty if its name does not say where the job is.

    A project that begins with a dash is none, and would be an option of bq.
    """
    name = parse_event(path)
    if isinstance(name, WindowName) or not name.project or name.project.startswith("-"):
        return ""
    location = f"--location={shell_quoted(name.region)} " if name.region else ""
    return f"bq show --job {location}{shell_quoted(f'{name.project}:{name.job_id}')}"


def _table_of(path: str) -> str:
    """Return the table of an undecided window, unless its name could be taken for the beginning of a command."""
    with suppress(ValueError):
        dest = WindowName.parse(split_undecided_name(path)[0]).dest
        if "`" not in dest:
            return dest
    return "its table"
