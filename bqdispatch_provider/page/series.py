"""Figures of the history as the page draws them: sums over a range of time, and points of a chart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from bqdispatch_provider.core.history import MAX_PROJECTS, Figures, Hour
from bqdispatch_provider.core.model import Lane

_HOUR = timedelta(hours=1)
_STATES = {"running": "Running", "pending": "Pending", "throttled": "Throttled"}


class Range(StrEnum):
    """A range of time that the page shows."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"

    @property
    def length(self) -> timedelta:
        """Return its length."""
        return {Range.HOUR: _HOUR, Range.DAY: timedelta(days=1), Range.WEEK: timedelta(weeks=1)}[self]

    @property
    def step(self) -> timedelta:
        """The time that a point of a chart stands for."""
        return {Range.HOUR: timedelta(minutes=5), Range.DAY: timedelta(minutes=30), Range.WEEK: timedelta(hours=3)}[
            self
        ]


@dataclass(frozen=True)
class Selection:
    """The figures to sum up.

    :param span: the range of time.
    :param project: the project; empty for all.
    """

    span: Range
    project: str = ""

    def figures(self, spans: Iterable[Figures]) -> Figures:
        """Return the sum of figures, those of single projects left out. Late windows are those of all projects."""
        total = Figures()
        for each in spans:
            mine = each.projects.get(self.project, Figures()) if self.project else each
            total.add(replace(mine, late=each.late, seen=each.seen, projects={}))
        return total


def series(hours: Mapping[datetime, Hour], selection: Selection, now: datetime) -> list[dict[str, Any]]:
    """Return the points of the charts, the oldest first. A point in which nothing was seen has no states.

    :param hours: of the history.
    :param now: the time (aware).
    """
    step = selection.span.step
    last = _floor(now, step)
    starts = [last - number * step for number in range(int(selection.span.length / step) - 1, -1, -1)]
    spans: dict[datetime, list[Figures]] = {start: [] for start in starts}
    for hour in hours.values():
        for at, figures in sorted(hour.spans.items()):
            if (start := _floor(at, step)) in spans:
                spans[start].append(figures)
    return [{"at": start.isoformat(), **point(selection.figures(each))} for start, each in spans.items()]


def last_hour(hours: Mapping[datetime, Hour], now: datetime) -> Figures:
    """Return the sum over the last hour, with those of single projects.

    :param hours: of the history.
    :param now: the time (aware).
    """
    figures = Figures()
    for each in _since(hours, Range.HOUR, now):
        figures.add(each)
    return figures


def is_cut(hours: Mapping[datetime, Hour], selection: Selection, now: datetime) -> bool:
    """Tell whether figures of the project may be missing: the history keeps those of the busiest alone.

    :param hours: of the history.
    :param now: the time (aware).
    """
    spans = _since(hours, selection.span, now) if selection.project else ()
    return any(len(each.projects) >= MAX_PROJECTS and selection.project not in each.projects for each in spans)


def total(hours: Mapping[datetime, Hour], selection: Selection, now: datetime) -> Figures:
    """Return the sum over the range of time that :func:`series` draws.

    :param hours: of the history.
    :param now: the time (aware).
    """
    return selection.figures(_since(hours, selection.span, now))


def _since(hours: Mapping[datetime, Hour], span: Range, now: datetime) -> Iterator[Figures]:
    since = _floor(now, span.step) - span.length + span.step
    return (figures for hour in hours.values() for at, figures in sorted(hour.spans.items()) if since <= at <= now)


def point(figures: Figures) -> dict[str, Any]:
    """Return figures in a form for JSON, with the median and the 95th percentile of the lag."""
    seen = figures.seen is not None
    return {
        "seen": seen,
        "dispatched": {str(lane): figures.dispatched[str(lane)] for lane in Lane},
        **{key: _sum(figures, state) if seen else None for key, state in _STATES.items()},
        "waiting": figures.waiting.total() if seen else None,
        "failed": figures.failed,
        "quarantined": figures.quarantined,
        "late": figures.late,
        "windows_due": figures.windows_due,
        "lag_median": figures.lag(0.5),
        "lag_p95": figures.lag(0.95),
        "lags": figures.lags.total(),
    }


def _sum(figures: Figures, state: str) -> int:
    return sum(figures.states.get(state, {}).values())


def _floor(at: datetime, step: timedelta) -> datetime:
    """Return the last full step of the day before a moment."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + (at - midnight) // step * step
