"""Log lines for people: one for each event, what waits and why, and what has changed since the last look.

Lines quote names, which are untrusted text: each is one line, whatever a name holds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event, Share
from bqdispatch_provider.core.limits import limits
from bqdispatch_provider.core.model import BATCH_JOBS, Limit, counter_of
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.names import TraceName, WindowName, counted, in_one_line

MAX_EVENT_LINES = 100
"""Events of one share, or cycle, that have a line of their own; the others are only counted."""

MAX_ERROR_LINES = 20
"""Errors of a report that have a line of their own; the others are only counted."""

_MAX_PROJECT_LINES = 10
_MAX_SUMMARY_NAMES, _MAX_NAME_CHARS = 5, 150


def event_line(event: Event, target: str, now: datetime) -> str:
    """Return the line for an event that was dispatched.

    :param target: URL of the object that BqTail was given.
    :param now: when the event was dispatched.
    """
    if event.name.endswith(".win"):
        window = WindowName.parse(event.name)
        line = f"batch of {window.dest} due for {duration(now - window.end)}: fired to {target}"
    else:
        name = TraceName.parse(event.name)
        location = name.region or event.location
        line = f"{name.action} of {name.dest} (job {name.job_id}{f' in {location}' if location else ''})"
        if event.ended:
            state = f"failed ({event.error})" if event.error else "done"
            line += f" {state} {duration(now - event.ended)} ago"
        line += f": dispatched to {target}"
    return in_one_line(line)


def summary_line(report: Report, number: int) -> str:
    """Return the line for a look at the task folder.

    :param report: of the look.
    :param number: events that are going to be dispatched.
    """
    others = f", {report.in_words()}" if report.outcomes.total() else ""
    return f"{counted(report.listed, 'object')} in the task folder: {number} to dispatch{others}"


def throttle_lines(report: Report, config: DispatchConfig) -> Iterator[str]:
    """Yield a line for each project that has reached a limit, and what takes its slots.

    :param report: of a look, or of a cycle.
    :param config: the limits.
    """
    throttled = [
        project for project, gauges in sorted(report.counts.items()) if sum(gauges.get("Throttled", {}).values())
    ]
    for project in throttled[:_MAX_PROJECT_LINES]:
        for limit, slots in limits(config).items():
            if usage := _usage(report.counts[project], limit):
                yield in_one_line(f"project {project} has reached {limit} ({slots}): {usage}")
    if (more := len(throttled) - _MAX_PROJECT_LINES) > 0:
        yield f"{counted(more, 'more project')} {'has' if more == 1 else 'have'} reached a limit"


def _usage(counts: Mapping[str, Mapping[str, int]], limit: Limit) -> str:
    """Return what waits for a limit, and what takes its slots; empty if nothing waits."""
    numbers = {
        gauge: " and ".join(
            f"{counter[name]} {name}"
            for name in sorted(counter)
            if counter[name]
            and (name == counter_of("query")) is (limit is Limit.SQL)
            and (gauge, name) != ("Pending", BATCH_JOBS)  # windows that are not due take no slot
        )
        for gauge, counter in counts.items()
    }
    if not numbers.get("Throttled"):
        return ""
    words = {"Throttled": "waiting", "Running": "running", "Pending": "pending", "Dispatched": "just dispatched"}
    return ", ".join(f"{numbers[gauge]} {word}" for gauge, word in words.items() if numbers.get(gauge))


def share_summary(share: Share, url: str, limit: int = 0) -> dict[str, Any]:
    """Return the XCom of a share, for people who look at a task and for the task that takes the share.

    :param share: what is going to be dispatched.
    :param url: where the whole share lies.
    :param limit: limit under which it was planned; 0, the default, for none.
    """
    return {
        "lane": str(share.lane),
        "events": len(share.events),
        **({"limit": limit} if limit else {}),
        "first": [in_one_line(event.name)[:_MAX_NAME_CHARS] for event in islice(share.events, _MAX_SUMMARY_NAMES)],
        "all": url,
    }


class ChangeLogger:
    """Logs what a loop sees only when it has changed.

    :param log: logger.
    """

    def __init__(self, log: Any) -> None:
        self._log: logging.Logger = log  # Airflow 3 has a protocol of its own
        self._last: list[str] = []

    def log_if_changed(self, lines: Iterable[str]) -> None:
        """Log lines at INFO; at DEBUG if they are those of the last call."""
        now = list(lines)
        level = logging.DEBUG if now == self._last else logging.INFO
        self._last = now
        for line in now:
            self._log.log(level, "%s", line)


def duration(elapsed: timedelta, *, minutes_from_s: float = 600) -> str:
    """Return a time in words, such as ``12 minutes``; one below 0 counts as none, since two services have two clocks.

    :param minutes_from_s: seconds from which on it is told in minutes.
    """
    seconds = max(elapsed.total_seconds(), 0.0)
    units = ((172_800, 86_400, "days"), (7200, 3600, "hours"), (minutes_from_s, 60, "minutes"), (0, 1, "s"))
    length, unit = next((length, unit) for least, length, unit in units if seconds >= least)
    return f"{seconds / length:.0f} {unit}"


def log_document(logger: Any, report: Report, url: str) -> None:
    """Log the counts, the errors and the URL of a run's document.

    :param logger: a task's.
    :param url: of the document.
    """
    logger.info("%s in the task folder: %s", counted(report.listed, "object"), report.in_words())
    for error in report.errors[:MAX_ERROR_LINES]:
        logger.warning("%s", error)
    if len(report.errors) > MAX_ERROR_LINES:
        logger.warning("and %s", counted(len(report.errors) - MAX_ERROR_LINES, "more error"))
    logger.info("Response document: %s", url)
