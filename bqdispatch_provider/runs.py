"""Run the cycles of a DAG run's tasks, and end the run, on a worker and in a triggerer alike.

A task may be killed at any moment, and begin again elsewhere with the same arguments.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from bqdispatch_provider.core.events import Share
from bqdispatch_provider.core.model import Outcome
from bqdispatch_provider.core.polling import AdaptivePolling
from bqdispatch_provider.core.process_sums import FINAL, sums_of
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.journal import Checkpoint, RunJournal, TaskReport
from bqdispatch_provider.names import counted, in_words

if TYPE_CHECKING:
    from bqdispatch_provider.core.history import RunLabel
    from bqdispatch_provider.dispatcher import Dispatcher

T = TypeVar("T")
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
    """Run cycles, and write the task's document once a minute and at the end.

    What an earlier try of the task has dispatched stays in the document, even if that try was killed before it wrote
    it: a checkpoint says what was done since, and what a cycle is about to dispatch, if it could be written. Of the
    latter events those count as dispatched that are gone (traces), or that the ledger says were fired (windows).

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

    def wait_for_news(seconds: float) -> None:
        wait(seconds)
        # What a look has seen would grow old while the next checkpoint waits.
        journal.wait_for_checkpoint()

    seconds = dispatcher.seconds_to_live(time_to_live) - (datetime.now(UTC) - document.began).total_seconds()
    report = dispatcher.run(
        max(seconds, 0.0),
        progress,
        before_dispatch=document.write_checkpoint,
        wait=wait_for_news,
        polling=polling,
        first_shares=first_shares,
        writes_performance=writes_performance,
        label=_label(journal, journal.task_url),
    )
    send_metrics(report)
    return document.complete(report)


@dataclass(frozen=True)
class _Known:
    """Everything of a process that the document of its task has."""

    sums: Counter[str]
    named: tuple[int, int, int]
    errors: list[str]
    time_taken_ms: int


class _TaskDocument:
    """The document of a task, over all tries of the task, and the checkpoint of this process.

    :param attempt: try number of the task.
    :param began: when the task began, if it is known.
    """

    _left: TaskReport
    _earlier: Report
    _generation: int

    def __init__(self, dispatcher: Dispatcher, journal: RunJournal, attempt: int, began: datetime | None) -> None:
        self._dispatcher, self._journal, self._attempt = dispatcher, journal, attempt
        self._read(Report())
        same = [each.began for each in self._left.checkpoints if each.attempt == attempt]
        self.began = began or min(same, default=datetime.now(UTC))
        self._written = time.monotonic()
        self._report = Report()
        """Everything that this process has done until its last cycle; others add to it."""

        self._final = Counter[Outcome]()
        """Numbers of events that it has dispatched, and of objects that it has quarantined, until then."""

        self._begun: tuple[Share, ...] = ()
        """Everything that the cycle has begun."""

        self._known = _Known(Counter(), (0, 0, 0), list(self._earlier.errors), 0)
        self._has_checkpoint = False

    def _read(self, report: Report) -> None:
        """Read what other processes of the task have left, to go on with it.

        :param report: what this process has done so far.
        """
        left = self._journal.own_report()
        if left.report.attempt < self._attempt:
            left.report.errors = []  # this try reports anew what still fails
        if self._journal.process in left.report.parts:  # written by this process
            left.report.time_taken_ms -= self._known.time_taken_ms
            left.report.waits = {name: replace(wait, times=0) for name, wait in left.report.waits.items()}
        others = tuple(each for each in left.checkpoints if each.process != self._journal.process)
        _add_checkpoints(self._dispatcher, left.report, others, report)
        # Last, since any of the above may fail, and is done again then.
        self._left, self._earlier = replace(left, checkpoints=others), left.report
        self._generation = left.generations.get(self._journal.task_url, 0)

    def write_checkpoint(self, shares: Sequence[Share]) -> None:
        """Write what this cycle is about to dispatch, and what was done since the document was written."""
        if shares:
            self._write_checkpoint(tuple(shares))

    def update(self, report: Report) -> None:
        """Write the document if it is a minute old.

        :param report: what this process has done so far.
        """
        done = Counter({outcome: report.outcomes[outcome] for outcome in FINAL}) - self._final
        begun = sum(len(share.events) for share in self._begun)
        self._report, self._final, self._begun = report, self._final + done, ()
        is_old = time.monotonic() - self._written >= _DOCUMENT_INTERVAL_S
        # Others may dispatch what was left: a later try must not take it for this one's.
        has_more = done[Outcome.DISPATCHED] < begun or done[Outcome.QUARANTINED]
        if not (is_old and _try_to_write(lambda: self._write(report))) and has_more:
            self._write_checkpoint(())

    def complete(self, report: Report) -> Report:
        """Write the document for the last time, and return what it says.

        :param report: what this process has done.
        """
        is_known = (report.cycles, report.errors) == (self._known.sums["Cycles"], self._known.errors)
        whole = None if is_known else self._write(report)
        if self._has_checkpoint:
            self._journal.remove_checkpoint()
        return whole or self._with_earlier(report)

    def _write_checkpoint(self, begun: tuple[Share, ...]) -> None:
        self._begun = begun
        self._has_checkpoint = True
        done = self._report.since(self._known.named)
        checkpoint = Checkpoint(self._journal.process, self.began, self._attempt, sums_of(self._report), done, begun)
        _try_to_write(lambda: self._journal.write_checkpoint(checkpoint))

    def _write(self, report: Report) -> Report:
        """Write the document in the generation that was read, and return what it says.

        It has another generation if another process of the task has written it, and none if the run's document has it.
        """

        def write() -> Report:
            whole = self._with_earlier(report)
            self._generation = self._journal.write_document(whole, self._generation, self._journal.task_url)
            return whole

        whole = _until_undisturbed(write, lambda: self._read(report))
        self._known = _Known(sums_of(report), report.named(), list(report.errors), report.time_taken_ms)
        self._written = time.monotonic()
        if any(each.attempt == self._attempt for each in self._left.checkpoints) and not self._has_checkpoint:
            self._write_checkpoint(())  # which says when this try began
        self._journal.remove_checkpoints(self._left)
        self._left = replace(self._left, checkpoints=())
        return whole

    def _with_earlier(self, report: Report) -> Report:
        process = self._journal.process
        if self._earlier.cycles:
            whole = Report.from_dict(self._earlier.to_dict())
            whole.continue_with(process, report)
        else:
            whole = replace(report, parts={process: sums_of(report)})
        whole.attempt = max(self._attempt, self._earlier.attempt)
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
    # Before the document, which then has what another process removes meanwhile.
    task_reports = journal.task_reports() if task_reports is None else task_reports
    earlier, generation = journal.read_run()
    report = earlier or Report()
    dispatcher.history.mark_known(report, dispatcher.config)
    report = _merged(dispatcher, report, task_reports)
    last = dispatcher.observe_and_clean_up()
    for failure in failures:
        last.add_error(failure)
    report.continue_with(journal.process, last)
    if report.started is not None:
        if earlier is None:
            report.time_taken_ms = round((dispatcher.store.now() - report.started).total_seconds() * 1000)
        known = len(report.errors)
        dispatcher.write_performance(report, _label(journal, journal.document_url))
        last.errors += report.errors[known:]
        last.performance_written = report.performance_written
    waits = report.earlier_waits

    def read() -> None:
        nonlocal report, generation
        run, generation = journal.read_run()
        report = _merged(dispatcher, run or Report(), task_reports)
        report.continue_with(journal.process, last)
        report.earlier_waits = waits

    _until_undisturbed(lambda: journal.write_document(report, generation), read)
    journal.remove(task_reports, with_shares=not failures)
    send_metrics(last)
    return report


def _merged(dispatcher: Dispatcher, report: Report, task_reports: Sequence[TaskReport]) -> Report:
    """Return the report of a run with what its tasks have left.

    :param report: of the run before. Errors are those of the tasks that have left something new.
    """
    # How often they were met stands in ``waiting.json``, too, which is added later.
    report.waits = {name: replace(wait, times=0) for name, wait in report.waits.items()}
    news = [each for each in task_reports if not each.is_merged(report)]
    if news:
        report.errors = []  # all of them, since an error does not say whose it is
    for each in news:
        report.merge(each.report)
    for each in news:
        _add_checkpoints(dispatcher, report, each.checkpoints)
    return report


def _add_checkpoints(
    dispatcher: Dispatcher, report: Report, checkpoints: Sequence[Checkpoint], *others: Report
) -> None:
    """Add what killed processes have done since the document was written.

    :param checkpoints: theirs. Those that are no news are passed over.
    :param others: reports of what others have dispatched.
    """
    for checkpoint in checkpoints:
        if not checkpoint.is_news(report):
            continue
        urls = {url for each in (report, *others, checkpoint.done) for url in (*each.jobs, *each.batched)}
        begun = [
            replace(share, events=tuple(e for e in share.events if dispatcher.store.task_url(e.name) not in urls))
            for share in checkpoint.shares
        ]
        since = dispatcher.find_dispatched(begun) if any(share.events for share in begun) else Report()
        log.info("A killed task had dispatched %s in its last cycle", counted(since.dispatched, "event"))
        since.cycles = int(bool(begun))  # the one that it had begun
        since.parts = {checkpoint.process: checkpoint.sums + sums_of(since)}
        report.merge(checkpoint.done)
        report.merge(since)


def _until_undisturbed(write: Callable[[], T], read: Callable[[], object]) -> T:
    """Write a document, and read it anew and try again as long as somebody else has written it meanwhile.

    :param write: writes it in the generation that was read.
    :param read: reads it, and adds what is new.
    :raises google.api_core.exceptions.PreconditionFailed: after half a minute.
    """
    from google.api_core.exceptions import PreconditionFailed  # noqa: PLC0415  (DAG files import this module)
    from google.api_core.retry import Retry, if_exception_type  # noqa: PLC0415

    tries = 0

    def try_once() -> T:
        nonlocal tries
        tries += 1
        if tries > 1:
            read()
        return write()

    retry = Retry(if_exception_type(PreconditionFailed), initial=0.1, maximum=2.0, timeout=30.0)
    result: T = retry(try_once)()
    return result


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
