"""Record the results of events, in the report and in the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from sys import intern

from bqdispatch_provider.core import log_lines
from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.limits import LimitKey, is_limited, limit_key
from bqdispatch_provider.core.model import BATCH_JOBS, Outcome, Reason, counter_of
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.targets import UNDECIDED
from bqdispatch_provider.core.waits import MIN_REPORTED_WAIT, Wait
from bqdispatch_provider.cycle.task_folder import TaskFolder
from bqdispatch_provider.delivery.moves import EventResult
from bqdispatch_provider.names import TraceName, WindowName, in_one_line

log = logging.getLogger(__name__)


class Recorder:
    """Records results in one report, and logs them.

    :param folder: task folder of the events.
    :param report: report to add to.
    :param logged_errors: errors that are not logged again; new ones are added.
    """

    def __init__(self, folder: TaskFolder, report: Report, logged_errors: set[str]) -> None:
        self.report = report
        self.freed: Counter[LimitKey] = Counter()
        """Slots that were planned for events that are refused."""

        self._folder = folder
        self._is_limited = is_limited(folder.config)
        self._logged_errors = logged_errors

    def error(self, message: str) -> None:
        """Record an error."""
        self.report.add_error(message)
        if message not in self._logged_errors:
            log.warning("%s", in_one_line(message))
            self._logged_errors.add(message)

    def record(self, results: Iterable[EventResult], reason: Reason | None = None) -> None:
        """Record results.

        :param reason: why pending events wait; by default it follows from their errors.
        """
        for result in results:
            self.report.outcomes[result.outcome] += 1
            self._record_wait(result, reason)
            if result.error:
                self.error(result.error)
            if self._is_limited and _is_refused(result):
                self.freed[limit_key(result.event, self._folder.config)] += 1
            if result.outcome is Outcome.DISPATCHED:
                self._record_dispatched(result)
            elif result.outcome is Outcome.QUARANTINED:
                store = self._folder.store
                self.report.quarantined[store.task_url(result.event.name)] = result.reason
                where = self._folder.config.error_url if result.target else store.task_url(UNDECIDED)
                log.warning("Quarantined %s under %r: %s", self._folder.url(result.event.name), where, result.reason)

    def record_all(self, events: Iterable[Event], outcome: Outcome, reason: Reason | None = None) -> None:
        """Record the same outcome for several events.

        :param reason: as in :meth:`record`.
        """
        self.record((EventResult(event, outcome) for event in events), reason)

    def record_failure(self, message: str, events: Sequence[Event], outcome: Outcome = Outcome.ERROR) -> None:
        """Record an error, and the outcome of events that it keeps from being dispatched: they wait for its end."""
        self.error(message)
        self.record_all(events, outcome, Reason.REFUSED)
        for wait in filter(None, (self.report.waits.get(event.name) for event in events)):
            self.report.waits[wait.name] = replace(wait, said=message)

    def record_throttled(self, events: Sequence[Event]) -> None:
        """Record events that wait for a limit."""
        self.record_all(events, Outcome.THROTTLED)
        for event in events:
            self._count(event, "Throttled")

    def forget_throttled(self, events: Iterable[Event]) -> None:
        """Take back that events wait for a limit."""
        for event in events:
            self.report.outcomes[Outcome.THROTTLED] -= 1
            self.report.waits.pop(event.name, None)
            self._count(event, "Throttled", -1)

    def _count(self, event: Event, gauge: str, number: int = 1) -> None:
        project, _ = limit_key(event, self._folder.config)
        counter = BATCH_JOBS if event.name.endswith(".win") else counter_of(TraceName.parse(event.name).action)
        self.report.count(project, gauge, counter, number)

    def _record_wait(self, result: EventResult, reason: Reason | None) -> None:
        if result.outcome is Outcome.ERROR:
            reason = Reason.IN_DOUBT if result.in_doubt else Reason.REFUSED
        elif result.outcome is Outcome.THROTTLED:
            reason = Reason.LIMIT
        elif result.outcome is Outcome.PENDING:
            reason = reason or (Reason.REFUSED if result.error else Reason.NEXT_CYCLE)
        else:
            return
        event = result.event
        since = WindowName.parse(event.name).end if event.name.endswith(".win") else event.created
        if reason is not Reason.NEXT_CYCLE:  # the plan's oldest event does not count what was about to go
            self.report.oldest = min(self.report.oldest or since, since)
        if self._folder.store.now() - since > MIN_REPORTED_WAIT:
            self.report.waits[event.name] = Wait(event.name, reason, since, result.error)

    def _record_dispatched(self, result: EventResult) -> None:
        event = result.event
        url = self._folder.store.task_url(event.name)
        if event.name.endswith(".win"):
            self.report.batched[url] = WindowName.parse(event.name).end.strftime("%Y-%m-%dT%H:%M:%SZ")
        else:
            self.report.jobs[url] = self._job(event, url)
        self._count(event, "Dispatched")
        level = logging.INFO if self.report.dispatched <= log_lines.MAX_EVENT_LINES else logging.DEBUG
        if log.isEnabledFor(level):
            target = f"gs://{self._folder.config.trigger_bucket}/{result.target}"
            log.log(level, "%s", log_lines.event_line(event, target, self._folder.store.now()))

    def _job(self, event: Event, url: str) -> dict[str, str]:
        """Return the entry of a dispatched trace in the response (docs/protocol.md, "The response of a run")."""
        trace = TraceName.parse(event.name)
        # A run has hundreds of thousands of these: values that many share are one object each.
        job = {
            "Project": intern(limit_key(event, self._folder.config)[0]),
            "Region": intern(trace.region or event.location),
            "ID": trace.job_id,
            "URL": url,
            "Status": "DONE",
            "DispatchTime": intern(self._folder.store.now().isoformat(timespec="milliseconds")),
        }
        if event.ended is not None:
            job["EndTime"] = event.ended.isoformat(timespec="milliseconds")
        if event.error:
            job["Error"] = event.error
        if event.table:
            job["Table"] = intern(event.table)
        return job


def _is_refused(result: EventResult) -> bool:
    """Tell whether an event was refused and frees its slot: what may have been delivered keeps it."""
    refused = result.outcome is Outcome.ERROR or (result.outcome is Outcome.PENDING and result.error)
    return bool(refused) and not (result.in_doubt or result.event.claimed or result.event.in_doubt)
