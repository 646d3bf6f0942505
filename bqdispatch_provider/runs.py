"""Run the cycles of a DAG run's tasks, and end the run, on a worker and in a triggerer alike.

A task may be killed at any moment, and begin again elsewhere with the same arguments.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bqdispatch_provider.core.events import Share
from bqdispatch_provider.core.polling import AdaptivePolling
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.journal import Checkpoint, RunJournal, TaskReport
from bqdispatch_provider.names import counted, in_words

if TYPE_CHECKING:
    from bqdispatch_provider.core.history import RunLabel
    from bqdispatch_provider.dispatcher import Dispatcher

log = logging.getLogger(__name__)

_DOCUMENT_INTERVAL_S = 60.0
"""A task's document is no older than this: the history is written as often, and names it."""


def run_cycles(
    dispatcher: Dispatcher,
    journal: RunJournal,
    time_to_live: float | None = None,
    *,
    first_shares: Sequence[Share] | None = None,
    began: datetime | None = None,
    attempt: int = 1,
    wait: Callable[[float], object] = time.sleep,
    polling: AdaptivePolling | None = None,
    send_metrics: Callable[[Report], None] = lambda _: None,
    writes_performance: bool = True,
) -> Report:
    """Run cycles, and write the task's document after each one that has dispatched something, and once a minute.

    What an earlier try of the task has dispatched stays in the document, even if that try was killed before it wrote
    it: a checkpoint says what each cycle is about to dispatch, if it could be written. Of these events those count as
    dispatched that are gone (traces), or that the ledger says were fired (windows).

    :param journal: journal of the running task.
    :param time_to_live: how long new cycles are begun, in seconds since the task began; one cycle is run in any case;
        by default the configuration's ``TimeToLiveInMin`` less 5 s.
    :param first_shares: what the first cycle dispatches, as a sensor has handed it on: a share holds events of one
        lane (traces of query jobs, traces of other jobs, or windows). By default the cycle looks itself.
    :param began: when the task began. By default that is read from the checkpoint of the same try, which is there if
        its triggerer was restarted; otherwise it is now.
    :param attempt: try number of the task.
    :param wait: pauses for seconds between two cycles, and may return earlier.
    :param polling: decides how long these pauses are; by default by the changes that were seen.
    :param send_metrics: called after each cycle, and at the end, with what this process has done so far.
    :param writes_performance: write ``performance.json`` after the cycles, too.
    :returns: the report of the task, with what its earlier tries have done.
    :raises ValueError: when the object at the URL of the task's document, or of its checkpoint, cannot be read as one.
    :raises google.api_core.exceptions.GoogleAPIError: when an earlier try was killed, and what it has dispatched cannot
        be looked up; the checkpoint stays for the next try.
    """
    document = _TaskDocument(dispatcher, journal, attempt, began)

    def progress(report: Report) -> None:
        send_metrics(report)
        document.update(report)

    seconds = dispatcher.seconds_to_live(time_to_live) - (datetime.now(UTC) - document.began).total_seconds()
    report = dispatcher.run(
        max(seconds, 0.0),
        progress,
        before_dispatch=document.write_checkpoint,
        wait=wait,
        polling=polling,
        first_shares=first_shares,
        writes_performance=writes_performance,
        label=_label(journal, journal.task_url),
    )
    send_metrics(report)
    return document.complete(report)


class _TaskDocument:
    """The document of a task, and its checkpoint, over all tries of the task.

    :param attempt: try number of the task.
    :param began: when the task began, if it is known.
    """

    def __init__(self, dispatcher: Dispatcher, journal: RunJournal, attempt: int, began: datetime | None) -> None:
        self._journal = journal
        self._attempt = attempt
        own = journal.own_report()
        self._earlier, checkpoint = own.report, own.checkpoint
        self._remember(self._earlier)
        self._unreported: tuple[Share, ...] = ()
        """Everything that was begun since the document was written last."""

        if self._earlier.attempt != attempt:
            self._earlier.errors = []  # this try reports anew what still fails
        if checkpoint is not None:
            began = began or (checkpoint.began if checkpoint.attempt == attempt else None)
            self._unreported = _add_since_checkpoint(dispatcher, self._earlier, checkpoint)
        self.began = began or datetime.now(UTC)

    def write_checkpoint(self, shares: Sequence[Share]) -> None:
        """Write what is about to be dispatched, beside what was begun before and is not in the document yet."""
        if shares:
            self._write_checkpoint((*self._unreported, *shares))

    def update(self, report: Report) -> None:
        """Write the document if more was dispatched, or a minute after it was written last.

        :param report: what this process has done so far.
        """
        whole = self._with_earlier(report)
        has_dispatched = whole.dispatched != self._dispatched
        if self._unreported and not has_dispatched:  # others may dispatch these: a later try must not take them
            self._write_checkpoint(())
        is_old = time.monotonic() - self._written >= _DOCUMENT_INTERVAL_S
        if not (has_dispatched or is_old):
            return
        if _try_to_write(lambda: self._journal.write_document(whole, self._journal.task_url)):
            self._unreported = ()
            self._remember(whole)

    def complete(self, report: Report) -> Report:
        """Write the document for the last time, and return what it says.

        :param report: what this process has done.
        """
        whole = self._with_earlier(report)
        if (whole.cycles, whole.errors) != (self._cycles, self._errors):
            self._journal.write_document(whole, self._journal.task_url)
        self._journal.remove_checkpoint()
        return whole

    def _write_checkpoint(self, unreported: tuple[Share, ...]) -> None:
        self._unreported = unreported
        checkpoint = Checkpoint(self.began, self._attempt, self._dispatched, unreported)
        _try_to_write(lambda: self._journal.write_checkpoint(checkpoint))

    def _remember(self, written: Report) -> None:
        """Remember what the document has, and when it was written."""
        self._written = time.monotonic()
        self._dispatched, self._cycles, self._errors = written.dispatched, written.cycles, list(written.errors)

    def _with_earlier(self, report: Report) -> Report:
        whole = report
        if self._earlier.cycles:
            whole = Report.from_dict(self._earlier.to_dict())
            whole.add_cycle(report)
        whole.attempt = self._attempt
        return whole


def end_idle_run(dispatcher: Dispatcher, journal: RunJournal, send_metrics: Callable[[Report], None]) -> Report | None:
    """End a DAG run for a sensor that has found nothing, unless another task of the run has left something.

    Such a task may still run, for another sensor, and goes on with what it has left. The report ends the run then.

    :param dispatcher: looks once more, and cleans up.
    :param journal: journal of the sensor.
    :param send_metrics: called with what this task alone has found.
    :returns: the run's report, as its document has it; ``None`` if the run was not ended.
    """
    task_reports = journal.task_reports()
    if any(each.task != journal.task for each in task_reports):
        log.info("Other tasks of this run have dispatched or found something; leaving its end to the report")
        return None
    return end_run(dispatcher, journal, send_metrics, task_reports=task_reports)


def end_run(
    dispatcher: Dispatcher,
    journal: RunJournal,
    send_metrics: Callable[[Report], None],
    failures: Sequence[str] = (),
    task_reports: Sequence[TaskReport] | None = None,
) -> Report:
    """End a DAG run: add what its tasks did to its document, and how things stand now.

    What the document counts was delivered. So its numbers are never reset, not even if the run is cleared or the
    reporting task is tried again: they are only added to. Errors are those of the tasks that ran last.
    ``performance.json`` is written, too.

    :param dispatcher: looks once more, and cleans up.
    :param journal: journal of the running task.
    :param send_metrics: called with what this task alone has found.
    :param failures: sentences about failed tasks; the sensors' shares then stay, since these tasks need them if
        they are cleared.
    :param task_reports: what the tasks have left. Default: read from the journal.
    :returns: the run's report, as its document has it.
    """
    earlier = journal.read_document()
    report = earlier or Report()
    dispatcher.history.mark_known(report, dispatcher.config)
    # How often they were met stands in ``waiting.json``, too, which is added below.
    report.waits = {name: replace(wait, times=0) for name, wait in report.waits.items()}
    task_reports = journal.task_reports() if task_reports is None else task_reports
    # ``report.parts`` has a fingerprint of each task's part that was merged before, so none is counted twice.
    news = [each for each in task_reports if not each.is_merged(report.parts.get(each.task, ""))]
    if news:
        report.errors = []  # all of them, since an error does not say whose it is
    for each in news:
        new = Report() if each.has_merged_document(report.parts.get(each.task, "")) else each.report
        if each.checkpoint is not None:
            _add_since_checkpoint(dispatcher, new, each.checkpoint)
        report.add_task(new)
    last = dispatcher.observe_and_clean_up()
    for failure in failures:
        last.add_error(failure)
    report.add_cycle(last)
    report.parts = {each.task: each.fingerprint for each in task_reports}
    if report.started is not None:
        if earlier is None:
            report.time_taken_ms = round((dispatcher.store.now() - report.started).total_seconds() * 1000)
        known = len(report.errors)
        dispatcher.write_performance(report, _label(journal, journal.document_url))
        last.errors += report.errors[known:]
        last.performance_written = report.performance_written
    journal.write_document(report)
    journal.remove(task_reports, with_shares=not failures)
    send_metrics(last)
    return report


def _add_since_checkpoint(dispatcher: Dispatcher, report: Report, checkpoint: Checkpoint) -> tuple[Share, ...]:
    """Add to a killed task's report what it has dispatched since its checkpoint.

    :param report: as the task has left it. If its number of dispatched events differs from the checkpoint's, it is
        newer, and has these events already.
    :returns: the shares whose events were looked for.
    """
    if checkpoint.dispatched != report.dispatched:
        return ()
    since = dispatcher.find_dispatched(checkpoint.shares)
    report.add_part(since)
    log.info("A killed task had dispatched %s since its last report", counted(since.dispatched, "event"))
    return checkpoint.shares


def _try_to_write(write: Callable[[], object]) -> bool:
    """Write to the journal, and return whether that went well: dispatching does not wait for it."""
    from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS  # noqa: PLC0415  (DAG files import this module)

    try:
        write()
    except GOOGLE_ERRORS as error:
        log.warning("The journal cannot be written; the next cycle tries again: %s", in_words(error))
        return False
    return True


def _label(journal: RunJournal, document_url: str) -> RunLabel:
    """Return the label of a run in the history: its DAG, and the URL of its document."""
    from bqdispatch_provider.core.history import RunLabel  # noqa: PLC0415  (DAG files import this module)

    return RunLabel(journal.dag_id, document_url)
