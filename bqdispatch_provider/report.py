"""The response document: what a cycle, a run or a part of one came to (docs/protocol.md, "The response of a run")."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from bqdispatch_provider.model import TROUBLE, Outcome, Plan, Reason, Wait
from bqdispatch_provider.names import in_one_line

_GAUGES = ("Running", "Pending", "Throttled")
_DEEDS = (Outcome.DISPATCHED, Outcome.QUARANTINED)
MAX_NAMED = 1000
"""Unknown objects, and errors, in a document at most; their number is always in ``Outcomes``."""

Counts = dict[str, dict[str, Counter[str]]]


def _no_counts() -> Counts:
    return defaultdict(lambda: defaultdict(Counter))


@dataclass
class Report:
    """What was listed, what became of it, and what went wrong.

    Counters (dispatched, batched, cycles) add up over a run's cycles; gauges (running, pending, throttled, not found)
    are the last cycle's. ``listed`` counts what earlier cycles dispatched or set aside and what the last one listed,
    so that the outcomes add up to it after one cycle as after many.

    :param oldest: since when the oldest event waits that was left waiting: a trace since its creation, a window since
        its end; ``None`` when none was.
    :param waits: events that were left waiting for more than a minute, by name.
    :param waited: how they had waited before this run, by what an earlier one has left.
    :param more_waits: how many more wait, of whom a document that was read told the number alone.
    :param late: how many windows had returned for files that were loaded, and are removed.
    :param balanced: when ``performance.json`` was written, by this process; it does not go into the document.
    :param parts: documents that were merged into this one, and their fingerprints.
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
    counts: Counts = field(default_factory=_no_counts)
    get_count: int = 0
    list_ms: int = 0
    oldest: datetime | None = None
    waits: dict[str, Wait] = field(default_factory=dict)
    waited: dict[str, Wait] = field(default_factory=dict)
    more_waits: Counter[Reason] = field(default_factory=Counter)
    late: int = 0
    balanced: datetime | None = None
    parts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_plan(cls, plan: Plan) -> Report:
        """What is known before anything is dispatched: where all stands that needs no action."""
        report = cls(cycles=1, listed=plan.listed, outcomes=Counter(plan.outcomes))
        for message in plan.errors:
            report.error(message)
        report.unknown = dict(list(plan.unknown.items())[:MAX_NAMED])
        report.traces = Counter(plan.projects)
        report.not_found = Counter(plan.not_found)
        report.oldest, report.late = plan.oldest, plan.late
        report.waits = {each.name: each for each in plan.waits}
        for project, gauges in plan.counts.items():
            for gauge, counters in gauges.items():
                report.counts[project][gauge].update(counters)
        return report

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        return not self.errors

    @property
    def dispatched(self) -> int:
        """How many traces and windows were dispatched."""
        return self.outcomes[Outcome.DISPATCHED]

    def in_words(self) -> str:
        """The outcomes in a line for people."""
        return (
            ", ".join(f"{number} {outcome}" for outcome, number in self.outcomes.items() if number) or "nothing there"
        )

    def error(self, message: str) -> None:
        """Note that something went wrong; the same sentence once.

        :param message: may say what a service said, which quotes names as they are.
        """
        message = in_one_line(message)
        if message not in self.errors and len(self.errors) < MAX_NAMED:
            self.errors.append(message)

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
        self.oldest = min((each for each in (self.oldest, part.oldest) if each), default=None)
        self.waits |= part.waits
        self.more_waits += part.more_waits
        self._add_deeds(part, (*_GAUGES, "Dispatched"))

    def add_deeds(self, task: Report) -> None:
        """Add what another task did, and not how things stood for it: some task looks after it."""
        self.started = min((each for each in (self.started, task.started) if each), default=None)
        self.cycles += task.cycles
        for outcome in _DEEDS:
            self.outcomes[outcome] += task.outcomes[outcome]
        self.waits |= task.waits
        self._add_deeds(task, ("Dispatched",))

    def add_cycle(self, later: Report) -> None:
        """Go on with a later cycle of the same run: deeds add up, gauges are the later cycle's.

        A cycle that saw nothing, since the folder could not be listed, says nothing of how things stand.
        """
        if later.started is None and self.started is not None:
            self.cycles += later.cycles
            for message in later.errors:
                self.error(message)
            return
        self.started = self.started or later.started
        done = Counter({each: self.outcomes[each] for each in _DEEDS})
        self.cycles += later.cycles
        self.time_taken_ms += later.time_taken_ms
        self.listed = done.total() + later.listed
        self.outcomes = done + later.outcomes
        self.traces, self.not_found, self.oldest = later.traces, later.not_found, later.oldest
        self.more_waits = later.more_waits
        self.waits = {name: after(wait, self.waits.get(name)) for name, wait in later.waits.items()}
        self.unknown = {}
        for gauges in self.counts.values():
            for gauge in _GAUGES:
                gauges.pop(gauge, None)
        self._add_deeds(later, (*_GAUGES, "Dispatched"))

    def _add_deeds(self, other: Report, gauges: Iterable[str]) -> None:
        self.jobs.update(other.jobs)
        self.batched.update(other.batched)
        self.quarantined.update(other.quarantined)
        self.unknown.update(other.unknown)
        self.regions.update(other.regions)
        self.late += other.late
        self.get_count += other.get_count
        self.list_ms += other.list_ms
        for message in other.errors:
            self.error(message)
        for project, theirs in other.counts.items():
            for gauge in gauges:
                self.counts[project][gauge].update(theirs.get(gauge, {}))

    def performance(self) -> dict[str, Any]:
        """The counters per project, in the form that BqTail's balancer reads from ``performance.json``."""
        return {
            project: {
                "ProjectID": project,
                "Region": self.regions.get(project, ""),
                "Count": self.traces[project],
                **{
                    gauge: _plain(self.counts.get(project, {}).get(gauge, {}))
                    for gauge in ("Running", "Pending", "Dispatched", "Throttled")
                },
                "NoFound": self.not_found[project],
            }
            for project in sorted({*self.traces, *self.counts})
        }

    def to_dict(self) -> dict[str, Any]:
        """The response document; zero counters are left out."""
        document: dict[str, Any] = {"Status": "ok" if self.ok else "error"}
        if not self.ok:
            document["Error"] = self.errors[0]
        document |= {
            "Jobs": self.jobs,
            "Batched": self.batched,
            "BatchCount": len(self.batched),
            "Cycles": self.cycles,
            "Errors": self.errors,
            **{gauge: self._total(gauge) for gauge in ("Running", "Pending", "Dispatched", "Throttled")},
            "Listed": self.listed,
            "Outcomes": {str(each): self.outcomes[each] for each in Outcome if self.outcomes[each]},
            "Quarantined": self.quarantined,
            "Unknown": self.unknown,
            "Waiting": self._waiting(),
            "WaitingCount": {str(reason): number for reason, number in sorted(self.waiting().items())},
            "Late": self.late,
            "Started": _time(self.started),
            "Oldest": _time(self.oldest),
            "TimeTakenMs": self.time_taken_ms,
            "GetCount": self.get_count,
            "ListTime": self.list_ms,
            "Performance": self.performance(),
        }
        if self.parts:
            document["Parts"] = self.parts
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Report:
        """Read a response document that :meth:`to_dict` wrote.

        :raises ValueError: when it is something else.
        """
        try:
            performance = document["Performance"]
            report = cls(
                started=datetime.fromisoformat(document["Started"]) if document.get("Started") else None,
                time_taken_ms=document["TimeTakenMs"],
                cycles=document["Cycles"],
                listed=document["Listed"],
                outcomes=Counter({Outcome(each): number for each, number in document["Outcomes"].items()}),
                jobs=dict(document["Jobs"]),
                batched=dict(document["Batched"]),
                quarantined=dict(document["Quarantined"]),
                unknown=dict(document["Unknown"]),
                errors=list(document["Errors"]),
                regions={project: each["Region"] for project, each in performance.items() if each["Region"]},
                traces=Counter({project: each["Count"] for project, each in performance.items()}),
                not_found=Counter({project: each["NoFound"] for project, each in performance.items()}),
                get_count=document["GetCount"],
                list_ms=document["ListTime"],
                late=document.get("Late", 0),
                waits=waits_of(document.get("Waiting", {})),
                oldest=datetime.fromisoformat(document["Oldest"]) if document.get("Oldest") else None,
                parts=dict(document.get("Parts", {})),
            )
            counted = {Reason(reason): number for reason, number in document.get("WaitingCount", {}).items()}
            report.more_waits = Counter(counted) - report.waiting()
            for project, each in performance.items():
                for gauge in (*_GAUGES, "Dispatched"):
                    report.counts[project][gauge].update(each[gauge])
            return report
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a response document: {type(error).__name__}: {error}") from error

    def waiting(self) -> Counter[Reason]:
        """Count the events that wait for more than a minute, by their reasons."""
        return Counter(wait.reason for wait in self.waits.values()) + self.more_waits

    def _waiting(self) -> dict[str, dict[str, Any]]:
        """Those events for the document: what somebody may have to do something about first, then the oldest."""
        waits = (after(wait, self.waited.get(wait.name)) for wait in self.waits.values())
        first = sorted(waits, key=lambda wait: (wait.reason not in TROUBLE, wait.since, wait.name))
        return waits_as(first[:MAX_NAMED])

    def summary(self) -> dict[str, Any]:
        """The counts alone: small enough for an XCom or a line of a log."""
        document = self.to_dict()
        kept = ("Status", "Error", "BatchCount", "Cycles", "Running", "Pending", "Dispatched", "Throttled")
        return {key: document[key] for key in (*kept, "Listed", "Outcomes", "TimeTakenMs") if key in document}

    def _total(self, gauge: str) -> dict[str, int]:
        total: Counter[str] = Counter()
        for gauges in self.counts.values():
            total.update(gauges.get(gauge, {}))
        return _plain(total)


def after(wait: Wait, before: Wait | None) -> Wait:
    """Return a wait that goes on from an earlier one, where that was for the same reason and is counted."""
    if before is None or before.reason not in TROUBLE:
        return wait
    if wait.reason is Reason.NEXT_CYCLE:
        return before  # it was not tried again
    if before.reason is not wait.reason:
        return wait
    return replace(wait, times=wait.times + before.times, since=min(wait.since, before.since))


def waits_as(waits: Iterable[Wait]) -> dict[str, dict[str, Any]]:
    """Return waits as documents have them."""
    return {
        wait.name: {
            "Reason": str(wait.reason),
            "Since": _time(wait.since),
            **({"Times": wait.times} if wait.reason in TROUBLE else {}),
            **({"Said": in_one_line(wait.said)} if wait.said else {}),
        }
        for wait in waits
    }


def waits_of(document: Mapping[str, Mapping[str, Any]]) -> dict[str, Wait]:
    """Read what :func:`waits_as` wrote.

    :raises ValueError: when it is something else.
    """
    try:
        return {
            name: Wait(
                name,
                Reason(each["Reason"]),
                datetime.fromisoformat(each["Since"]).astimezone(UTC),
                str(each.get("Said", "")),
                int(each.get("Times", 1)),
            )
            for name, each in document.items()
        }
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a list of what waits: {type(error).__name__}: {error}") from error


def _time(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat(timespec="milliseconds") if at else None


def _plain(counter: Mapping[str, int]) -> dict[str, int]:
    return {name: counter[name] for name in sorted(counter) if counter[name]}
