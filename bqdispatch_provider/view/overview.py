"""Dispatching at one glance: health in one sentence, lanes, limits, what waits and why, quarantine.

The terminal makes it from a look of its own, the page in Airflow from what the last run has left in the journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.history import Figures
from bqdispatch_provider.core.limits import limits
from bqdispatch_provider.core.model import Lane, Limit, Reason
from bqdispatch_provider.core.named_events import event_of, project_at
from bqdispatch_provider.core.report import Report, by_lane
from bqdispatch_provider.core.report_errors import ErrorReader, ReportError
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.core.waits import NEEDS_ATTENTION, Wait, most_pressing
from bqdispatch_provider.names import WindowName
from bqdispatch_provider.view.advice import ADVICE
from bqdispatch_provider.view.health import SILENT_AFTER, Health, health_of, is_current
from bqdispatch_provider.view.report_explanation import ReportExplainer

MAX_WAITS = 50
"""Waiting events that are shown, those first that need attention, then the oldest."""


MAX_ERRORS = 20
"""Errors that are shown, the newest ones."""


EACH_PROJECT = "each project"


@dataclass(frozen=True)
class LimitUse:
    """A limit of a project, and the pool that mirrors it.

    :param project: whose limit it is; ``EACH_PROJECT`` where none takes a slot of it.
    :param taken: slots of the limit that are taken: by jobs that run or wait in BigQuery, by events that were
        dispatched and whose jobs are not seen yet, and by those that are dispatched next.
    :param waiting: events that wait for a slot.
    :param pool: name of the pool; empty without Airflow.
    :param pool_slots: slots of the pool; ``None`` if it is not known.
    :param pool_taken: slots of the pool that tasks hold.
    """

    project: str
    key: str
    limit: int
    taken: int
    waiting: int
    pool: str = ""
    pool_slots: int | None = None
    pool_taken: int | None = None


@dataclass(frozen=True)
class WaitingEvent:
    """An event that waits, in words.

    :param name: path below the task folder.
    :param url: of the object.
    :param reason: one of the reasons of the report.
    :param since: since when it could have been dispatched (aware).
    :param meaning: what the reason means.
    :param said: what a service said last; empty if the reason says all.
    :param times: cycles in which it has waited for this reason.
    :param next_step: what happens next, and what to do.
    :param advice: the same for all events that wait for this reason.
    :param state: a few words, such as ``waits: job running``.
    :param details: the explanation, one sentence each, as ``bqdispatch explain`` has it.
    """

    name: str
    url: str
    reason: str
    since: datetime
    meaning: str
    said: str
    times: int
    next_step: str
    advice: str
    needs_attention: bool
    state: str
    details: Sequence[str]


@dataclass(frozen=True)
class Quarantined:
    """An object in quarantine, and the command that puts it back."""

    url: str
    reason: str
    since: datetime
    command: str


@dataclass(frozen=True)
class Overview:
    """All of it.

    :param at: when it was made (aware).
    :param health: of all projects.
    :param seen: when a dispatcher has looked at the task folder last (aware); ``None`` if never.
    :param lanes: ``running``, ``pending``, ``throttled``, ``errors`` and ``dispatched`` (in the last hour), by lane.
    :param reasons: events that have waited for more than a minute, by reason.
    :param waiting: the most pressing of them.
    :param unnamed: further events that wait, and of which the project is not known, since the report only counts them;
        0 where ``reasons`` has all projects.
    :param not_due: windows whose end has not come, the soonest first; ``since`` is that end.
    :param not_due_count: how many they are; of a project, as far as the report names them.
    :param quarantine: objects in quarantine; ``None`` if they are not known.
    :param errors: of the last look, of all projects.
    :param newest_errors: of the last look, the newest first: those of the project, and of no project alone.
    :param other_errors: how many are of no lane alone; ``lanes`` counts the others.
    :param hidden_errors: how many are of other projects.
    :param problems: what could not be read, one sentence each.
    :param is_current: False if no report says how things stood at the last look: then ``lanes``, ``limits``,
        ``waiting`` and ``errors`` say nothing.
    """

    at: datetime
    seen: datetime | None
    health: Health
    lanes: Mapping[str, Mapping[str, int]]
    limits: Sequence[LimitUse]
    reasons: Mapping[str, int]
    waiting: Sequence[WaitingEvent]
    quarantine: Sequence[Quarantined] | None
    errors: Sequence[str] = ()
    problems: Sequence[str] = ()
    projects: Sequence[str] = field(default=())
    unnamed: int = 0
    not_due: Sequence[WaitingEvent] = ()
    not_due_count: int = 0
    newest_errors: Sequence[ReportError] = ()
    other_errors: int = 0
    hidden_errors: int = 0
    is_current: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON; times are texts."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def overview(
    report: Report | None,
    config: DispatchConfig,
    at: datetime,
    last_hour: Figures,
    quarantine: Sequence[Quarantined] | None = (),
    *,
    setup: SetUp | None = None,
    pools: Mapping[str, tuple[int, int]] | None = None,
    problems: Sequence[str] = (),
    history_error: str = "",
    silence: timedelta = SILENT_AFTER,
    is_own_look: bool = False,
    project: str = "",
) -> Overview:
    """Put together how dispatching goes.

    :param report: of the last look, or of the last run; ``None`` if there is none.
    :param config: the limits.
    :param at: the time (aware).
    :param last_hour: figures of the last hour.
    :param quarantine: objects in quarantine; ``None`` if they are not known.
    :param setup: names the pools; without it none is shown.
    :param pools: slots and taken slots of Airflow's pools, by name; by default they are not known.
    :param problems: what could not be read.
    :param history_error: why the history is not known up to now; empty by default.
    :param silence: after how long nobody dispatches.
    :param is_own_look: whether the report is of a look that no dispatcher has made, and so no sign of one.
    :param project: show only this project; all by default.
    """
    report = report or Report()
    seen = last_hour.seen if is_own_look else _seen(report, last_hour)
    if not (known := is_current(report, seen)):
        report = Report()
    counts = {name: gauges for name, gauges in report.counts.items() if not project or name == project}
    hour = last_hour.projects.get(project, Figures()) if project else last_hour
    errors = ErrorReader(report, config).errors()
    shown = [each for each in errors if not project or each.project in ("", project)]
    return Overview(
        *(at, seen),
        health=health_of(
            report, at, seen, last_hour, quarantined=len(quarantine or ()), history_error=history_error, silence=silence
        ),
        lanes=_lanes(counts, hour, shown),
        limits=_limits(counts, report.slots, config, setup, pools=pools or {}, project=project),
        quarantine=quarantine,
        errors=tuple(report.errors),
        problems=tuple(problems),
        projects=tuple(sorted({*report.counts, *last_hour.projects})),
        newest_errors=shown[:MAX_ERRORS],
        other_errors=sum(not each.lane for each in shown),
        hidden_errors=len(errors) - len(shown),
        is_current=known,
        **_waits(report, config, project),
    )


def _waits(report: Report, config: DispatchConfig, project: str) -> dict[str, Any]:
    """Return what the overview says of events that wait."""
    explainer = ReportExplainer(report, config)
    waits = [each for each in report.waits.values() if not project or project_at(each.name, config) == project]
    reasons = Counter(each.reason for each in waits) if project else report.waits_by_reason()
    not_due = _not_due(report, project, config)
    return {
        "reasons": {str(reason): number for reason, number in sorted(reasons.items())},
        "unnamed": report.unnamed_waits.total() if project else 0,
        "waiting": [_event(wait, explainer) for wait in most_pressing(waits)[:MAX_WAITS]],
        "not_due": [_event(wait, explainer) for wait in not_due[:MAX_WAITS]],
        "not_due_count": len(not_due) if project else report.not_due_count,
    }


def _seen(report: Report, last_hour: Figures) -> datetime | None:
    """Return when the task folder was looked at last: a run that goes on for long tells it in the history."""
    return max(filter(None, (report.started, report.seen, last_hour.seen)), default=None)


def _lanes(counts: Mapping[str, Any], hour: Figures, errors: Sequence[ReportError]) -> dict[str, dict[str, int]]:
    columns = ("running", "pending", "throttled", "errors", "dispatched")
    lanes = {str(lane): dict.fromkeys(columns, 0) for lane in Lane}
    for lane, number in Counter(each.lane for each in errors if each.lane).items():
        lanes[lane]["errors"] = number
    for gauges in counts.values():
        for gauge, column in (("Running", "running"), ("Pending", "pending"), ("Throttled", "throttled")):
            for lane, number in by_lane(gauges.get(gauge, {})).items():
                lanes[lane][column] += number
    for name, number in hour.dispatched.items():
        lanes[name]["dispatched"] += number
    return lanes


def _limits(
    counts: Mapping[str, Any],
    slots_taken: Mapping[str, Counter[str]],
    config: DispatchConfig,
    setup: SetUp | None,
    *,
    pools: Mapping[str, tuple[int, int]],
    project: str,
) -> list[LimitUse]:
    """Return how much of each limit is taken: in each project that takes some of it, or else in none.

    :param slots_taken: of the report; what it does not tell follows from ``counts``.
    :param project: the only project that is shown; empty for all.
    """
    names = sorted({*counts, *(name for name in slots_taken if project in ("", name))})
    uses: list[LimitUse] = []
    for limit, number in limits(config).items():
        if not number:
            continue
        pool = "" if setup is None else setup.sql_pool if limit is Limit.SQL else setup.jobs_pool
        slots, occupied = pools.get(pool, (None, None))
        found: list[LimitUse] = []
        for name in names:
            gauges, taken, waiting = counts.get(name, {}), Counter[str](), 0
            for gauge in ("Running", "Pending", "Throttled"):
                lanes = by_lane(gauges.get(gauge, {}))
                # A window that waits for its end takes no slot.
                own = sum(
                    n
                    for lane, n in lanes.items()
                    if lane.limit is limit and (lane is not Lane.WINDOWS or gauge == "Throttled")
                )
                if gauge == "Throttled":
                    waiting = own
                else:
                    taken[gauge] += own
            used = slots_taken[name][str(limit)] if name in slots_taken else taken.total()
            if used or waiting:
                found.append(LimitUse(name, str(limit), number, used, waiting, pool, slots, occupied))
        # The pool is there whether or not a slot is taken, and so is what is wrong with it.
        uses += found or [LimitUse(project or EACH_PROJECT, str(limit), number, 0, 0, pool, slots, occupied)]
    return uses


def _event(wait: Wait, explainer: ReportExplainer) -> WaitingEvent:
    explained = explainer.explain(wait)
    return WaitingEvent(
        wait.name,
        explained.url,
        str(wait.reason),
        wait.since,
        ADVICE[wait.reason].meaning,
        wait.said,
        wait.times,
        explained.next_step,
        ADVICE[wait.reason].next_step,
        wait.reason in NEEDS_ATTENTION,
        explained.state,
        explained.details,
    )


def _not_due(report: Report, project: str, config: DispatchConfig) -> list[Wait]:
    """Return the windows whose end has not come, as events that wait for it."""
    events = ((path, event_of(path, config)) for path in report.not_due)
    return [
        Wait(path, Reason.NOT_DUE, event.name.end)
        for path, event in events
        if event is not None and isinstance(event.name, WindowName) and project in ("", event.project)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
