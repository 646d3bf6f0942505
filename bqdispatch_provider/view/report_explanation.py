"""Explain the waiting events of a report, in the words of :mod:`bqdispatch_provider.view.explanation`.

A report has no look at the task folder, so it says less: not how a job has ended, nor which fired windows hold slots.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.limits import LimitKey, limits
from bqdispatch_provider.core.model import Lane, Reason
from bqdispatch_provider.core.named_events import NamedEvent, event_of
from bqdispatch_provider.core.report import Report, by_lane
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.view.explanation import (
    UNSEEN,
    Explanation,
    about_event,
    about_job,
    about_slots,
    explain_wait,
    job_of,
)

_STATES = {Reason.JOB_RUNNING: "RUNNING", Reason.JOB_PENDING: "PENDING"}
_HOLD_SLOTS = frozenset({*_STATES, Reason.NO_ANSWER})
"""Reasons of traces whose jobs count as active: one that cannot be looked at may be running."""


class ReportExplainer:
    """Explains the waiting events of one report.

    :param report: of the last look, or of the last run.
    :param config: the limits.
    """

    def __init__(self, report: Report, config: DispatchConfig) -> None:
        self._report, self._config = report, config
        self._holders: dict[LimitKey, list[str]] = defaultdict(list)
        for wait in sorted(report.waits.values(), key=lambda each: (each.since, each.name)):
            event = event_of(wait.name, config) if wait.reason in _HOLD_SLOTS else None
            if event is not None and event.lane is not Lane.WINDOWS:
                self._holders[event.project, event.lane.limit].append(job_of(wait.name))

    def explain(self, wait: Wait) -> Explanation:
        """Explain an event that waits.

        :param wait: of the report.
        """
        event = event_of(wait.name, self._config)
        details = []
        if event is not None and wait.reason is not Reason.UNDECIDED:
            details.append(about_event(event.name, event.project))
            if wait.reason in _STATES:
                details.append(about_job(_STATES[wait.reason]))
            if wait.reason is Reason.LIMIT:
                details.append(self._about_limit(event))
        return explain_wait(wait, self._config, details)

    def _about_limit(self, event: NamedEvent) -> str:
        project, limit = self._project_of(event), event.lane.limit
        if not project:
            return f"{limit} of the project in which its load runs is {limits(self._config)[limit]}."
        gauges = self._report.counts.get(project, {})
        taken = sum(
            number
            for gauge in ("Running", "Pending")
            for lane, number in by_lane(gauges.get(gauge, {})).items()
            if lane.limit is limit and lane is not Lane.WINDOWS
        )
        taken = self._report.slots.get(project, Counter({str(limit): taken}))[str(limit)]
        others = "jobs or events that the report does not name" if taken else UNSEEN
        return about_slots(project, limit, self._config, self._holders[project, limit], taken, others=others)

    def _project_of(self, event: NamedEvent) -> str:
        """Return the project whose limit holds an event back; empty if the report does not tell.

        A window counts where its load runs, which its content says and its name does not.
        """
        if event.lane is not Lane.WINDOWS:
            return event.project
        throttled = [
            project
            for project, gauges in self._report.counts.items()
            if by_lane(gauges.get("Throttled", {}))[Lane.WINDOWS]
        ]
        return throttled[0] if len(throttled) == 1 else ""
