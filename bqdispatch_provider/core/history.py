"""Figures of how dispatching goes, for whoever looks at it later: spans of five minutes, one document an hour.

A report tells what a run has done so far. :class:`NewFigures` takes from it what was not taken before; figures of many
runs and dispatchers add up. Deeds (dispatched, quarantined) are sums, states (running, waiting) are the last ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core import documents
from bqdispatch_provider.core.model import Lane, Outcome, Reason
from bqdispatch_provider.core.named_events import project_at
from bqdispatch_provider.core.report import Report, by_lane, lags, without_zeros
from bqdispatch_provider.core.report_errors import ErrorReader
from bqdispatch_provider.core.waits import Wait

SPAN = timedelta(minutes=5)
"""Length of the time that figures stand for."""

LAG_BOUNDS_S = (1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 1800, 3600)
"""Upper bounds of the lags that are counted together, in seconds; what is longer is counted last."""

MAX_PROJECTS = 20
"""Projects that have figures of their own in a span; those in which the least happened have none."""

MAX_TICKETS = 10
"""Writes that an hour remembers."""

VERSION = 1
_NEVER_DUE = frozenset({Reason.NOT_DUE, Reason.UNKNOWN_NAME})
_STATES = ("Running", "Pending", "Throttled")


@dataclass(frozen=True)
class RunLabel:
    """Words of the history about a run, beside its figures.

    :param dag_id: ID of its DAG; empty for a run without Airflow.
    :param document_url: where its response document lies; empty if it has none.
    """

    dag_id: str = ""
    document_url: str = ""


@dataclass
class Figures:
    """Figures of one span of time, or of more that were added up.

    :param dispatched: events, by lane.
    :param failed: errors that reports have told of.
    :param quarantined: objects that were quarantined.
    :param late: windows that had returned for files that were loaded, and were removed; not known of single projects.
    :param lags: how many lags, from a job's end to its trace's delivery, fell between two of :data:`LAG_BOUNDS_S`.
    :param seen: when the states were seen (aware); ``None`` if nothing was seen.
    :param states: how many jobs or events ``Running``, ``Pending`` and ``Throttled`` counted, by lane.
    :param waiting: events that had waited for more than a minute, by reason.
    :param windows_due: windows that were due for more than a minute, and not fired.
    :param projects: figures of single projects. What is of no project that is known, such as an error that names none,
        is only in the sum. What a window waits for is its destination's, and what it is dispatched as is its load's.
    """

    dispatched: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    quarantined: int = 0
    late: int = 0
    lags: Counter[int] = field(default_factory=Counter)
    seen: datetime | None = None
    states: dict[str, Counter[str]] = field(default_factory=dict)
    waiting: Counter[str] = field(default_factory=Counter)
    windows_due: int = 0
    projects: dict[str, Figures] = field(default_factory=dict)

    def add(self, other: Figures) -> None:
        """Add the figures of another run, or of another span.

        :param other: is not changed.
        """
        self.dispatched.update(other.dispatched)
        self.failed += other.failed
        self.quarantined += other.quarantined
        self.late += other.late
        self.lags.update(other.lags)
        if other.seen is not None and (self.seen is None or other.seen >= self.seen):
            self.seen, self.states = other.seen, other.states
            self.waiting, self.windows_due = other.waiting, other.windows_due
            for project, figures in self.projects.items():
                if project not in other.projects:
                    figures.states, figures.waiting, figures.windows_due = {}, Counter(), 0
        for project, figures in other.projects.items():
            self.projects.setdefault(project, Figures()).add(figures)

    def lag(self, share: float) -> float | None:
        """Return the lag, in seconds, that a share of the events did not exceed; ``None`` without any event.

        :param share: 0.5 for the median, 0.95 for the 95th percentile. The result lies between two bounds.
        """
        rank, passed = share * self.lags.total(), 0
        for index in sorted(self.lags):
            passed += self.lags[index]
            if passed >= rank:
                low = LAG_BOUNDS_S[index - 1] if index else 0
                high = LAG_BOUNDS_S[index] if index < len(LAG_BOUNDS_S) else 2 * LAG_BOUNDS_S[-1]
                return high - (high - low) * (passed - rank) / self.lags[index]
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return a form for the journal; what is zero is left out."""
        busiest = sorted(self.projects, key=lambda each: self.projects[each].weight(), reverse=True)[:MAX_PROJECTS]
        document = {
            "Dispatched": without_zeros(self.dispatched),
            "Failed": self.failed,
            "Quarantined": self.quarantined,
            "Late": self.late,
            "Lags": {
                str(LAG_BOUNDS_S[i]) if i < len(LAG_BOUNDS_S) else "more": n for i, n in sorted(self.lags.items())
            },
            "Seen": self.seen.isoformat(timespec="seconds") if self.seen else None,
            **{state: without_zeros(self.states.get(state, {})) for state in _STATES},
            "Waiting": without_zeros(self.waiting),
            "WindowsDue": self.windows_due,
            "Projects": {project: self.projects[project].to_dict() for project in sorted(busiest)},
        }
        return {key: value for key, value in document.items() if value}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Figures:
        """Read what :meth:`to_dict` wrote.

        :raises ValueError: when it is something else.
        """
        try:
            lag_counts = documents.numbers(document.get("Lags", {}))
            bounds = {str(bound): index for index, bound in enumerate(LAG_BOUNDS_S)}
            return cls(
                Counter({str(Lane(lane)): n for lane, n in documents.numbers(document.get("Dispatched", {})).items()}),
                documents.number(document.get("Failed", 0)),
                documents.number(document.get("Quarantined", 0)),
                documents.number(document.get("Late", 0)),
                +Counter({bounds.get(b, len(LAG_BOUNDS_S)): n for b, n in lag_counts.items()}),
                documents.moment(document.get("Seen")),
                {state: documents.numbers(document[state]) for state in _STATES if document.get(state)},
                documents.numbers(document.get("Waiting", {})),
                documents.number(document.get("WindowsDue", 0)),
                {str(project): cls.from_dict(each) for project, each in document.get("Projects", {}).items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not figures: {type(error).__name__}: {error}") from error

    def weight(self) -> tuple[int, int]:
        """Return how much happened, and how much there is, to choose which projects have figures of their own.

        What happened comes first: anybody who may write objects can make many projects that wait.
        """
        there = sum(counter.total() for counter in (self.waiting, *self.states.values()))
        return self.dispatched.total() + self.failed + self.quarantined, there + self.windows_due


@dataclass
class Hour:
    """The document of one hour.

    :param dags: IDs of the DAGs whose runs have written into it: who may read one of them may see it.
    :param spans: figures by when their span begins (aware, UTC).
    :param document: where the response document of the last run lies; empty if none was written.
    :param tickets: of the last writes: whoever lost the answer to his own finds out whether it was made.
    """

    dags: set[str] = field(default_factory=set)
    spans: dict[datetime, Figures] = field(default_factory=dict)
    document: str = ""
    tickets: list[str] = field(default_factory=list)

    def add(self, at: datetime, figures: Figures, dag_id: str = "", document: str = "", ticket: str = "") -> None:
        """Add what a run did.

        :param at: when (aware).
        :param figures: what is new.
        :param dag_id: of the run's DAG; empty for the command line.
        :param document: where the run's response document lies.
        :param ticket: of this write.
        """
        self.spans.setdefault(span_of(at), Figures()).add(figures)
        self.dags |= {dag_id} - {""}
        self.document = document or self.document
        self.tickets = [*self.tickets, *filter(None, [ticket])][-MAX_TICKETS:]

    def to_dict(self) -> dict[str, Any]:
        """Return a form for the journal."""
        spans = {at.strftime("%H:%M"): figures.to_dict() for at, figures in sorted(self.spans.items())}
        return {
            "Version": VERSION,
            "DAGs": sorted(self.dags),
            "Document": self.document,
            "Tickets": self.tickets,
            "Spans": spans,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], hour: datetime) -> Hour:
        """Read what :meth:`to_dict` wrote.

        :param hour: when the hour begins (aware).
        :raises ValueError: when it is something else, or of another version.
        """
        try:
            if document["Version"] != VERSION:
                raise ValueError(f"the version is {document['Version']!r}; expected {VERSION}")
            spans = {
                hour.replace(minute=int(at.partition(":")[2])): Figures.from_dict(each)
                for at, each in document["Spans"].items()
            }
            return cls(
                set(documents.list_of_texts(document["DAGs"])),
                spans,
                documents.text(document["Document"]),
                documents.list_of_texts(document["Tickets"]),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not an hour of the history: {type(error).__name__}: {error}") from error


def looks(hours: Mapping[datetime, Hour]) -> list[datetime]:
    """Return when the task folder was looked at: the last look of each span.

    :param hours: of the history.
    """
    return [figures.seen for hour in hours.values() for figures in hour.spans.values() if figures.seen]


class NewFigures:
    """Takes from the reports of a run, which tell of all that it did so far, what is new since the last one."""

    def __init__(self) -> None:
        self._taken: Counter[tuple[str, ...]] = Counter()
        self._jobs = 0
        self._known_errors: set[str] = set()

    def take(self, report: Report, config: DispatchConfig) -> Figures:
        """Return what is new in a report.

        :param report: of the run so far.
        :param config: names the project of events whose name has none.
        """
        lag_counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for job in islice(report.jobs.values(), self._jobs, None):
            lag_counts[job.get("Project", "")].update(bisect_left(LAG_BOUNDS_S, lag) for lag in lags([job]))
        self._jobs = len(report.jobs)
        failed = self._new_errors(report, config)
        folder_url = config.async_task_url
        quarantined = Counter(project_at(url.removeprefix(folder_url), config) for url in report.quarantined)
        waits: defaultdict[str, list[Wait]] = defaultdict(list)
        for wait in report.waits.values():
            waits[project_at(wait.name, config)].append(wait)
        figures = Figures(
            failed=failed.total(),
            quarantined=self._new(report.outcomes[Outcome.QUARANTINED], "quarantined"),
            late=self._new(report.late, "late"),
            lags=sum(lag_counts.values(), Counter()),
            seen=report.seen or report.started,
            waiting=_numbers(report.waits_by_reason()),
            windows_due=sum(map(_windows_due, waits.values())),
        )
        for project in {*report.counts, *failed, *quarantined, *waits} - {""}:
            counts = report.counts.get(project, {})
            dispatched = by_lane(counts.get("Dispatched", {}))
            mine = Figures(
                Counter({str(lane): self._new(number, project, lane) for lane, number in dispatched.items()}),
                failed[project],
                self._new(quarantined[project], project, "quarantined"),
                lags=lag_counts[project],
                seen=figures.seen,
                states={state: _numbers(by_lane(counts.get(state, {}))) for state in _STATES},
                waiting=_numbers(Counter(wait.reason for wait in waits[project])),
                windows_due=_windows_due(waits[project]),
            )
            figures.dispatched.update(mine.dispatched)
            for state, counter in mine.states.items():
                figures.states.setdefault(state, Counter()).update(counter)
            if any(mine.weight()):
                figures.projects[project] = mine
        return figures

    def _new_errors(self, report: Report, config: DispatchConfig) -> Counter[str]:
        """Count the errors that are new, by project. Later looks may tell another project of the same sentence."""
        new = [each for each in ErrorReader(report, config).errors() if each.said not in self._known_errors]
        self._known_errors.update(each.said for each in new)
        return Counter(each.project for each in new)

    def _new(self, total: int, *what: str) -> int:
        new, self._taken[what] = total - self._taken[what], total
        return max(new, 0)


def _windows_due(waits: Iterable[Wait]) -> int:
    return sum(wait.name.endswith(".win") and wait.reason not in _NEVER_DUE for wait in waits)


def _numbers(counter: Mapping[Any, int]) -> Counter[str]:
    return Counter({str(key): number for key, number in counter.items()})


def span_of(at: datetime) -> datetime:
    """Return when the span begins that a moment lies in (UTC)."""
    at = at.astimezone(UTC)
    return at.replace(minute=at.minute - at.minute % (SPAN.seconds // 60), second=0, microsecond=0)
