"""What a log tells people: one line for each event, what waits and why, and what has changed since the last look.

Lines hold names, which are untrusted text: each is one line, whatever is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.model import Event, Share, counter_of
from bqdispatch_provider.names import TraceName, WindowName, counted, in_one_line
from bqdispatch_provider.report import Report

TOLD = 100
"""Events of one share, or cycle, that have a line of their own; of those beyond it the number is told."""

_UNITS = ((2 * 86_400, 86_400, "days"), (2 * 3600, 3600, "hours"), (600, 60, "minutes"))
"""From how many seconds on, in pieces of how many, and what these are called."""

_PROJECTS = 10
_QUERIES = counter_of("query")
_NAMED, _LONGEST_NAME = 5, 150


def of_event(event: Event, target: str, now: datetime) -> str:
    """What became of an event that was dispatched, and of its job.

    :param event: whose name can be read.
    :param target: URL of what BqTail was given.
    :param now: when it was dispatched.
    """
    if event.name.endswith(".win"):
        window = WindowName.parse(event.name)
        told = f"batch of {window.dest} due for {_seconds(now - window.end)}: fired to {target}"
    else:
        name = TraceName.parse(event.name)
        place = name.region or event.location
        told = f"{name.action} of {name.dest} (job {name.job_id}{f' in {place}' if place else ''})"
        if event.ended:
            how = f"failed ({event.error})" if event.error else "done"
            told += f" {how} {_seconds(now - event.ended)} ago"
        told += f": dispatched to {target}"
    return in_one_line(told)


def of_look(report: Report, number: int) -> str:
    """What a look has shown: what is going to be dispatched, and how all else stands.

    :param report: of the look.
    :param number: how many events are going to be dispatched.
    """
    others = f", {report.in_words()}" if report.outcomes.total() else ""
    return f"{counted(report.listed, 'object')} in the task folder: {number} to dispatch{others}"


def of_waiting(report: Report, config: DispatchConfig) -> Iterator[str]:
    """Which projects are at a limit, and what takes their places.

    :param report: of a look, or of a cycle.
    :param config: the limits.
    """
    limits = {"MaxConcurrentSQL": config.max_concurrent_sql, "MaxConcurrentJobs": config.max_concurrent_jobs}
    waiting = [
        project for project, gauges in sorted(report.counts.items()) if sum(gauges.get("Throttled", {}).values())
    ]
    for project in waiting[:_PROJECTS]:
        for key, limit in limits.items():
            if told := _at_limit(report.counts[project], of_queries=key == "MaxConcurrentSQL"):
                yield in_one_line(f"project {project} is at {key}, which is {limit}: {told}")
    if len(waiting) > _PROJECTS:
        yield f"{len(waiting) - _PROJECTS} more projects are at a limit"


def _at_limit(counts: Mapping[str, Mapping[str, int]], *, of_queries: bool) -> str:
    """Tell what waits for one of the limits, and beside what; nothing where nothing does."""
    gauges = {
        gauge: {name: number for name, number in counter.items() if (name == _QUERIES) is of_queries and number}
        for gauge, counter in counts.items()
    }
    if not gauges.get("Throttled"):
        return ""
    taken = [
        f"{_counted(gauges[gauge])} {word}"
        for gauge, word in (("Running", "running"), ("Pending", "pending"), ("Dispatched", "just dispatched"))
        if gauges.get(gauge)
    ]
    beside = f" beside {', '.join(taken)}" if taken else ""
    return f"{_counted(gauges['Throttled'])} wait{beside}"


def in_short(share: Share, url: str, limit: int = 0) -> dict[str, Any]:
    """Return what an XCom holds of a share, for people who look at a task, and for the task that it is for.

    :param share: what is going to be dispatched.
    :param url: where all of it lies.
    :param limit: under which it was planned; 0 for none.
    """
    return {
        "lane": str(share.lane),
        "events": len(share.events),
        **({"limit": limit} if limit else {}),
        "first": [in_one_line(event.name)[:_LONGEST_NAME] for event in islice(share.events, _NAMED)],
        "all": url,
    }


class Teller:
    """Tells what is seen when it has changed, and not each time it is looked at.

    :param log: where it is told.
    """

    def __init__(self, log: Any) -> None:
        self._log: logging.Logger = log  # Airflow 3 has a protocol of its own
        self._last: list[str] = []

    def tell(self, lines: Iterable[str]) -> None:
        """Log lines: at INFO, or at DEBUG where they are those of the last time.

        :param lines: what is seen.
        """
        told = list(lines)
        level = logging.DEBUG if told == self._last else logging.INFO
        self._last = told
        for line in told:
            self._log.log(level, "%s", line)


def _counted(counter: Mapping[str, int]) -> str:
    return " and ".join(f"{counter[name]} {name}" for name in sorted(counter) if counter[name])


def _seconds(since: timedelta) -> str:
    seconds = max(since.total_seconds(), 0.0)  # two services' clocks
    for least, length, unit in _UNITS:
        if seconds >= least:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
