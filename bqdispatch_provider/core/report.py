"""The response document: what a cycle, a run or a part of one has done (docs/protocol.md, "The response of a run")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from bqdispatch_provider.core import documents
from bqdispatch_provider.core.model import BATCH_JOBS, Counts, Lane, Outcome, Reason, no_counts
from bqdispatch_provider.core.process_sums import FINAL, add_sums, parse_sums, sums_of
from bqdispatch_provider.core.waits import Wait, add_waits, most_pressing, time_to_text, waits_from_dict, waits_to_dict
from bqdispatch_provider.names import in_one_line

if TYPE_CHECKING:
    from bqdispatch_provider.core.plans import Plan

MAX_NAMED = 1000
"""Unknown objects, errors and waits that a document names; ``Outcomes`` and ``WaitingCount`` always count all."""

_GAUGES = ("Running", "Pending", "Throttled")
_COUNTED = ("Running", "Pending", "Dispatched", "Throttled")
_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "Jobs": ("jobs", documents.objects_of_texts),
    "Batched": ("batched", documents.texts),
    "Quarantined": ("quarantined", documents.texts),
    "Unknown": ("unknown", documents.texts),
    "Errors": ("errors", documents.list_of_texts),
    "Cycles": ("cycles", documents.number),
    "Listed": ("listed", documents.number),
    "TimeTakenMs": ("time_taken_ms", documents.number),
    "GetCount": ("get_count", documents.number),
    "ListTime": ("list_ms", documents.number),
}
"""Keys of the document that hold an attribute as it is, and what reads it."""


@dataclass
class Report:
    """A report: what was listed, what became of it, and what went wrong.

    Counters (dispatched, batched, cycles) add up over a run's cycles; gauges (running, pending, throttled, not found)
    are the last cycle's. ``listed`` counts what earlier cycles dispatched or quarantined and what the last one listed,
    so that the outcomes add up to it after one cycle as after many.

    :param seen: when the task folder was looked at last (aware).
    :param oldest: since when the oldest event waits that was left waiting: a trace since its creation, a window since
        its end; ``None`` if none was.
    :param waits: events that have waited for more than a minute, by name.
    :param earlier_waits: how they had waited before this run, by what an earlier run has left.
    :param unnamed_waits: number of further waits, which a document that was read only counts.
    :param not_due: names of the windows whose end has not come, the soonest first, as far as a document names them.
    :param not_due_count: number of all of them.
    :param slots: slots of each project that are taken, by limit: by active jobs, by what was dispatched and whose job
        is not seen yet, and by what is about to be dispatched.
    :param late: number of returned windows that were removed here, since their files were loaded.
    :param performance_written: when this process wrote ``performance.json``; it does not go into the document.
    :param parts: what each process of the run has added to the sums, by its ID. Two documents of one run can so be
        merged, whichever processes they know in common.
    :param attempt: try number of the task whose report it is; 0 in the report of a run.
    """

    started: datetime | None = None
    time_taken_ms: int = 0
    cycles: int = 0
    listed: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    batched: dict[str, str] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    regions: dict[str, str] = field(default_factory=dict)
    traces: Counter[str] = field(default_factory=Counter)
    not_found: Counter[str] = field(default_factory=Counter)
    counts: Counts = field(default_factory=no_counts)
    get_count: int = 0
    list_ms: int = 0
    oldest: datetime | None = None
    waits: dict[str, Wait] = field(default_factory=dict)
    earlier_waits: dict[str, Wait] = field(default_factory=dict)
    unnamed_waits: Counter[Reason] = field(default_factory=Counter)
    not_due: list[str] = field(default_factory=list)
    not_due_count: int = 0
    slots: dict[str, Counter[str]] = field(default_factory=dict)
    late: int = 0
    performance_written: datetime | None = None
    parts: dict[str, Counter[str]] = field(default_factory=dict)
    attempt: int = 0
    seen: datetime | None = None

    @classmethod
    def from_plan(cls, plan: Plan) -> Report:
        """Return the report of a cycle before anything is dispatched: where all stands that needs no action."""
        report = cls(
            cycles=1,
            listed=plan.listed,
            outcomes=Counter(plan.outcomes),
            unknown=dict(list(plan.unknown.items())[:MAX_NAMED]),
            traces=Counter(plan.projects),
            not_found=Counter(plan.not_found),
            oldest=plan.oldest,
            not_due=list(plan.not_due[:MAX_NAMED]),
            not_due_count=len(plan.not_due),
            waits={each.name: each for each in plan.waits},
        )
        for (project, limit), taken in plan.taken.items():
            report.slots.setdefault(project, Counter())[str(limit)] = taken
        for message in plan.errors:
            report.add_error(message)
        report._add_counts(plan.counts, _GAUGES)
        return report

    @property
    def ok(self) -> bool:
        """True if nothing went wrong."""
        return not self.errors

    @property
    def dispatched(self) -> int:
        """The number of traces and windows that were dispatched."""
        return self.outcomes[Outcome.DISPATCHED]

    def in_words(self) -> str:
        """Return the outcomes in a line for people."""
        numbers = [f"{number} {outcome}" for outcome, number in self.outcomes.items() if number]
        return ", ".join(numbers) or "nothing there"

    def add_error(self, message: str) -> None:
        """Note that something went wrong; the same sentence is noted once.

        :param message: may quote names and services, which are untrusted text.
        """
        # In this order: to search the list for each of many errors would take long.
        if len(self.errors) < MAX_NAMED and (said := in_one_line(message)) not in self.errors:
            self.errors.append(said)

    def count(self, project: str, gauge: str, counter: str, number: int = 1) -> None:
        """Count jobs, or windows, of a project."""
        self.counts[project][gauge][counter] += number

    def add_part(self, part: Report) -> None:
        """Add what another task of the same cycle did: everything adds up, but for the number of cycles."""
        self.cycles = max(self.cycles, part.cycles)
        self.listed += part.listed
        self.outcomes.update(part.outcomes)
        self.traces.update(part.traces)
        self.not_found.update(part.not_found)
        self.oldest = _earlier(self.oldest, part.oldest)
        self.waits |= part.waits
        self.unnamed_waits += part.unnamed_waits
        self.not_due = (self.not_due + part.not_due)[:MAX_NAMED]
        self.not_due_count += part.not_due_count
        self._add_results(part, _COUNTED)

    def named(self) -> tuple[int, int, int]:
        """Return how many traces and windows it names as dispatched, and how many objects as quarantined."""
        return len(self.jobs), len(self.batched), len(self.quarantined)

    def since(self, named: tuple[int, int, int]) -> Report:
        """Return this report with the names alone that were added since.

        :param named: what :meth:`named` returned then.
        """
        jobs, batched, quarantined = named
        return replace(
            self,
            jobs=dict(islice(self.jobs.items(), jobs, None)),
            batched=dict(islice(self.batched.items(), batched, None)),
            quarantined=dict(islice(self.quarantined.items(), quarantined, None)),
        )

    def merge(self, other: Report) -> None:
        """Add what other processes of the run did, but not how things stood for them: a later look tells that.

        :param other: names them in its parts. What this report has of one of them is replaced, unless that is newer.
        """
        for process, sums in other.parts.items():
            if sums["Cycles"] >= self.parts.get(process, Counter())["Cycles"]:
                self._replace_part(process, sums)
        self.started = _earlier(self.started, other.started)
        add_waits(self.waits, other.waits)
        self._add_names(other)

    def continue_with(self, process: str, report: Report) -> None:
        """Add what a process has done, and how things stand now.

        :param process: its ID. What this report has of it is replaced.
        :param report: of the process alone.
        """
        self._replace_part(process, Counter())
        self.add_cycle(report)
        self.parts[process] = sums_of(report)

    def _replace_part(self, process: str, sums: Counter[str]) -> None:
        change = Counter(sums)
        change.subtract(self.parts.get(process, Counter()))
        self.parts[process] = sums
        add_sums(self, change)

    def _add_done(self, other: Report) -> None:
        """Add what was done, but not how things stood."""
        add_sums(self, sums_of(other))
        add_waits(self.waits, other.waits)
        self._add_names(other)

    def add_cycle(self, later: Report) -> None:
        """Go on with a later cycle of the same run: results add up, gauges are the later cycle's.

        A cycle that did not look, since it was given shares or the folder could not be listed, says nothing of how
        things stand.
        """
        self.started = _earlier(self.started, later.started)
        if later.seen is None and self.seen is not None:
            self._add_done(later)
            return
        self.cycles += later.cycles
        self.seen = later.seen or self.seen
        final = Counter({outcome: self.outcomes[outcome] for outcome in FINAL})
        self.time_taken_ms += later.time_taken_ms
        self.listed = final.total() + later.listed
        self.outcomes = final + later.outcomes
        self.traces, self.not_found, self.oldest = later.traces, later.not_found, later.oldest
        self.waits = {name: wait.continued_from(self.waits.get(name)) for name, wait in later.waits.items()}
        self.unnamed_waits = later.unnamed_waits
        self.not_due, self.not_due_count = later.not_due, later.not_due_count
        self.slots = later.slots
        self.unknown = {}
        for gauges in self.counts.values():
            for gauge in _GAUGES:
                gauges.pop(gauge, None)
        self._add_results(later, _COUNTED)

    def _add_results(self, other: Report, gauges: Iterable[str]) -> None:
        self._add_names(other)
        self.late += other.late
        self.get_count += other.get_count
        self.list_ms += other.list_ms
        self._add_counts(other.counts, gauges)

    def _add_names(self, other: Report) -> None:
        self.jobs.update(other.jobs)
        self.batched.update(other.batched)
        self.quarantined.update(other.quarantined)
        self.unknown.update(other.unknown)
        self.regions.update(other.regions)
        for message in other.errors:
            self.add_error(message)

    def _add_counts(self, counts: Mapping[str, Mapping[str, Mapping[str, int]]], gauges: Iterable[str]) -> None:
        for project, theirs in counts.items():
            for gauge in gauges:
                self.counts[project][gauge].update(theirs.get(gauge, {}))

    def waits_by_reason(self) -> Counter[Reason]:
        """Return the number of events that have waited for more than a minute, by reason."""
        return Counter(wait.reason for wait in self.waits.values()) + self.unnamed_waits

    def performance(self) -> dict[str, Any]:
        """Return the counters per project, in the form that BqTail's balancer reads from ``performance.json``."""
        return {
            project: {
                "ProjectID": project,
                "Region": self.regions.get(project, ""),
                "Count": self.traces[project],
                **{gauge: without_zeros(self.counts.get(project, {}).get(gauge, {})) for gauge in _COUNTED},
                "NoFound": self.not_found[project],
            }
            for project in sorted({*self.traces, *self.counts})
        }

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the document: small enough for an XCom or a log line."""
        document = self.to_dict()
        kept = ("Status", "Error", "BatchCount", "Cycles", "Running", "Pending", "Dispatched", "Throttled")
        return {key: document[key] for key in (*kept, "Listed", "Outcomes", "TimeTakenMs") if key in document}

    def to_dict(self) -> dict[str, Any]:
        """Return the response document; zero counters are left out."""
        waits = (wait.continued_from(self.earlier_waits.get(wait.name)) for wait in self.waits.values())
        return {
            "Status": "ok" if self.ok else "error",
            **({} if self.ok else {"Error": self.errors[0]}),
            **{key: getattr(self, attribute) for key, (attribute, _) in _FIELDS.items()},
            "BatchCount": len(self.batched),
            **{gauge: self._total(gauge) for gauge in _COUNTED},
            "Outcomes": {str(each): self.outcomes[each] for each in Outcome if self.outcomes[each]},
            "Waiting": waits_to_dict(most_pressing(waits)[:MAX_NAMED]),
            "WaitingCount": {str(reason): number for reason, number in sorted(self.waits_by_reason().items())},
            "NotDue": self.not_due,
            "NotDueCount": self.not_due_count,
            "Slots": {project: without_zeros(taken) for project, taken in sorted(self.slots.items())},
            "Late": self.late,
            "Started": time_to_text(self.started) if self.started else None,
            "Seen": time_to_text(self.seen) if self.seen else None,
            "Oldest": time_to_text(self.oldest) if self.oldest else None,
            "Performance": self.performance(),
            **({"Parts": self.parts} if self.parts else {}),
            **({"Try": self.attempt} if self.attempt else {}),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Report:
        """Read a response document that :meth:`to_dict` wrote.

        :raises ValueError: when it is something else.
        """
        try:
            report = cls(
                **{attribute: read(document[key]) for key, (attribute, read) in _FIELDS.items()},
                started=documents.moment(document.get("Started")),
                seen=documents.moment(document.get("Seen")),
                outcomes=Counter({Outcome(each): n for each, n in documents.numbers(document["Outcomes"]).items()}),
                late=documents.number(document.get("Late", 0)),
                not_due=documents.list_of_texts(document.get("NotDue", [])),
                not_due_count=documents.number(document.get("NotDueCount", 0)),
                slots={each: documents.numbers(taken) for each, taken in document.get("Slots", {}).items()},
                waits=waits_from_dict(document.get("Waiting", {})),
                oldest=documents.moment(document.get("Oldest")),
                parts={process: parse_sums(part) for process, part in document.get("Parts", {}).items()},
                attempt=documents.number(document.get("Try", 0)),
            )
            waiting = documents.numbers(document.get("WaitingCount", {}))
            counted = {Reason(reason): number for reason, number in waiting.items()}
            report.unnamed_waits = Counter(counted) - report.waits_by_reason()
            for project, each in document["Performance"].items():
                if each["Region"]:
                    report.regions[project] = documents.text(each["Region"])
                report.traces[project] = documents.number(each["Count"])
                report.not_found[project] = documents.number(each["NoFound"])
                for gauge in _COUNTED:
                    report.counts[project][gauge].update(documents.numbers(each[gauge]))
            return report
        except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
            raise ValueError(f"not a response document: {type(error).__name__}: {error}") from error

    def _total(self, gauge: str) -> dict[str, int]:
        total: Counter[str] = Counter()
        for gauges in self.counts.values():
            total.update(gauges.get(gauge, {}))
        return without_zeros(total)


def _earlier(*times: datetime | None) -> datetime | None:
    return min((each for each in times if each), default=None)


def by_lane(counters: Mapping[str, int]) -> Counter[Lane]:
    """Return numbers by lane.

    :param counters: of the response document (docs/protocol.md, "The response of a run").
    """
    lanes = {"QueryJobs": Lane.SQL, BATCH_JOBS: Lane.WINDOWS}
    numbers: Counter[Lane] = Counter()
    for counter, number in counters.items():
        numbers[lanes.get(counter, Lane.JOBS)] += number
    return numbers


def lags(jobs: Iterable[Mapping[str, str]]) -> Iterator[float]:
    """Return the seconds from each job's end until its trace was known to be dispatched; both clocks are Google's."""
    for job in jobs:
        with suppress(ValueError):  # whoever wrote the document may have written anything
            dispatched, ended = (documents.moment(job.get(key)) for key in ("DispatchTime", "EndTime"))
            if dispatched and ended:
                yield max((dispatched - ended).total_seconds(), 0.0)


def without_zeros(counter: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers of a counter that are not 0, by name."""
    return {name: counter[name] for name in sorted(counter) if counter[name]}
