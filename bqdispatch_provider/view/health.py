"""The health of dispatching, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise

from bqdispatch_provider.core.history import Figures
from bqdispatch_provider.core.log_lines import duration
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.waits import NEEDS_ATTENTION, most_pressing
from bqdispatch_provider.names import counted
from bqdispatch_provider.view.advice import ADVICE

SILENT_AFTER = timedelta(minutes=5)
"""Nobody dispatches if nothing was seen for so long, where a run comes every minute."""

OUTDATED_AFTER = timedelta(minutes=3)
"""A report says nothing of the present if others have looked so much later. A run writes one every minute."""


class Level(StrEnum):
    """The level of health."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Health:
    """The sentence at the top.

    :param level: green, or not.
    :param sentence: how dispatching goes.
    :param next_step: what to do; empty if there is nothing.
    """

    level: Level
    sentence: str
    next_step: str = ""


def silent_after(looks: Iterable[datetime]) -> timedelta:
    """Return after how long a silence nobody dispatches: half as long again as the usual gap between two looks.

    Longer than usual are 5 % of the gaps, so a DAG that was down once is not waited for as long the next time.

    :param looks: when the task folder was looked at (aware), at most once in some minutes.
    """
    gaps = sorted(later - earlier for earlier, later in pairwise(sorted(looks)))
    usual = gaps[int(0.95 * (len(gaps) - 1))] if gaps else timedelta()
    return max(SILENT_AFTER, 1.5 * usual)


def last_look(looks: Iterable[datetime], performance: datetime | None) -> datetime | None:
    """Return when a dispatcher has looked at the task folder last, as far as it has left a sign; ``None`` if never.

    :param looks: looks that the history tells of (aware).
    :param performance: when ``performance.json`` was written (aware): a single cycle and the Go dispatcher leave
        nothing else. ``None`` if never.
    """
    return max((*looks, *filter(None, [performance])), default=None)


def is_current(report: Report, seen: datetime | None) -> bool:
    """Tell whether a report says how things stood when the task folder was looked at last.

    :param seen: when that was (aware); ``None`` if never.
    """
    looked = report.seen or report.started
    return seen is None or (looked is not None and seen - looked <= OUTDATED_AFTER)


def health_of(
    report: Report,
    at: datetime,
    seen: datetime | None,
    hour: Figures,
    *,
    quarantined: int = 0,
    history_error: str = "",
    silence: timedelta = SILENT_AFTER,
) -> Health:
    """Return the sentence at the top.

    :param report: of the last look, or of the last run.
    :param at: the time (aware).
    :param seen: when a dispatcher has looked at the task folder last (aware); ``None`` if never.
    :param hour: figures of the last hour.
    :param quarantined: number of objects in quarantine; 0 by default.
    :param history_error: why the history is not known up to now; empty by default.
    :param silence: from :func:`silent_after`.
    """
    overdue = _overdue(report, at)
    if seen is None:
        step = history_error or "Switch the DAG on, and see that its first run is green."
        if overdue:
            return Health(Level.ERROR, f"No run has been seen, and {overdue}.", step)
        found = _of_report(report, at, hour, quarantined)
        return Health(Level.UNKNOWN, "No run has been seen yet.", step) if found.level is Level.OK else found
    if at - seen > silence:
        since = duration(at - seen, minutes_from_s=120)
        step = "See that the DAG is switched on, and that its tasks run."
        if history_error:
            return Health(Level.UNKNOWN, f"Nothing is known of the last {since}.", history_error)
        return Health(Level.ERROR, f"Nobody has dispatched for {since}{f', and {overdue}' if overdue else ''}.", step)
    if not is_current(report, seen):
        sentence = f"{_dispatched(hour)}; what waits is not known: no response document is as young."
        return Health(Level.UNKNOWN, sentence, "Run `bqdispatch status`, which looks for itself.")
    return _of_report(report, at, hour, quarantined)


def _overdue(report: Report, at: datetime) -> str:
    """Say how many events are ready and not dispatched; empty if there are none."""
    overdue = [wait.since for wait in report.waits.values() if wait.reason is Reason.OVERDUE]
    if not overdue:
        return ""
    have = "has" if len(overdue) == 1 else "have"
    return f"{counted(len(overdue), 'event')} {have} been ready for {duration(at - min(overdue), minutes_from_s=120)}"


def _of_report(report: Report, at: datetime, hour: Figures, quarantined: int) -> Health:
    pressing = [wait for wait in report.waits.values() if wait.reason in NEEDS_ATTENTION]
    if report.errors:
        more = f" (and {len(report.errors) - 1} more)" if len(report.errors) > 1 else ""
        step = 'See "What waits, and why" below.' if pressing else "See the errors below."
        return Health(Level.ERROR, f"Something went wrong: {report.errors[0]}{more}", step)
    if overdue := _overdue(report, at):
        said = f"{overdue} without being dispatched."
        return Health(Level.ERROR, said, ADVICE[Reason.OVERDUE].next_step)
    if pressing:
        first = most_pressing(pressing)[0]
        number = f"{counted(len(pressing), 'event')} {'waits' if len(pressing) == 1 else 'wait'}"
        return Health(Level.WARNING, f"{number}: {first.reason}.", ADVICE[first.reason].next_step)
    if quarantined:
        number = f"{counted(quarantined, 'object')} {'is' if quarantined == 1 else 'are'}"
        step = "Look at the reasons below, and put them back or delete them."
        return Health(Level.WARNING, f"{number} in quarantine.", step)
    return Health(Level.OK, _all_is_well(report, at, hour))


def _all_is_well(report: Report, at: datetime, hour: Figures) -> str:
    dispatched = f"All is well: {_dispatched(hour)}"
    if not report.waits:
        return f"{dispatched}."
    oldest = min(report.waits.values(), key=lambda wait: wait.since)
    age = duration(at - oldest.since, minutes_from_s=120)
    return f"{dispatched}, {report.waits_by_reason().total():,} waiting, the oldest for {age} (now: {oldest.reason})."


def _dispatched(hour: Figures) -> str:
    return f"{counted(hour.dispatched.total(), 'event')} dispatched in the last hour"
