"""Run the cycles of a DAG run's tasks, and end the run: one way, wherever they run.

A task may be killed at any moment, on a worker or in a triggerer, and begun again elsewhere with the same arguments.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bqdispatch_provider.journal import RunJournal, Underway
from bqdispatch_provider.model import Share
from bqdispatch_provider.names import in_words
from bqdispatch_provider.report import Report
from bqdispatch_provider.rhythm import Rhythm

if TYPE_CHECKING:
    from bqdispatch_provider.dispatcher import Dispatcher

log = logging.getLogger(__name__)


def run_cycles(
    dispatcher: Dispatcher,
    journal: RunJournal,
    time_to_live: float | None = None,
    *,
    first: Sequence[Share] | None = None,
    began: datetime | None = None,
    attempt: int = 1,
    wait: Callable[[float], object] = time.sleep,
    rhythm: Rhythm | None = None,
    tell: Callable[[Report], None] = lambda _: None,
    measures: bool = True,
) -> Report:
    """Run cycles, and write the task's document after each one that has dispatched something; gives what it tells.

    What an earlier try of the task has dispatched stays in it, also where that try was killed before it could say so:
    what a cycle is about to dispatch is written down, and what of that is gone has been dispatched.

    :param dispatcher: whose cycles they are.
    :param journal: of the running task.
    :param time_to_live: seconds for which new cycles are begun, from when the task began; one cycle is done in any
        case; by default the configuration's.
    :param first: what the first cycle dispatches; by default it looks.
    :param began: when the task began, where that is known; otherwise now, or when a killed run of the same try began.
    :param attempt: which try of the task this is.
    :param wait: as :meth:`Dispatcher.run` takes it.
    :param rhythm: as :meth:`Dispatcher.run` takes it.
    :param tell: called after each cycle, and at the end, with what this process has done so far.
    :param measures: as :meth:`Dispatcher.run` takes it.
    :raises ValueError: when something else lies where an earlier try has left its document.
    """
    earlier = journal.read_document(journal.own_url) or Report()
    left = journal.read_underway()
    if left is None or left.attempt != attempt:
        earlier.errors = []  # they made that try fail, and this one is to make up for them
    if left is not None:
        if left.attempt == attempt:
            began = began or left.began
        _settle(dispatcher, earlier, left)
    now = datetime.now(UTC)
    began = began or now
    told = earlier.dispatched
    written = 0

    def begin(shares: Sequence[Share]) -> None:
        if shares:
            _try(lambda: journal.write_underway(Underway(began, attempt, told, tuple(shares))))

    def progress(report: Report) -> None:
        nonlocal told, written
        tell(report)
        so_far = _together(earlier, report)
        if so_far.dispatched != told and _try(lambda: journal.write_document(so_far, journal.own_url)):
            told, written = so_far.dispatched, so_far.cycles

    seconds = dispatcher.seconds_to_live(time_to_live) - (now - began).total_seconds()
    report = dispatcher.run(
        max(seconds, 0.0), progress, begin=begin, wait=wait, rhythm=rhythm, first=first, measures=measures
    )
    tell(report)
    report = _together(earlier, report)
    if written != report.cycles:
        journal.write_document(report, journal.own_url)
    journal.remove_underway()
    return report


def end_run(
    dispatcher: Dispatcher, journal: RunJournal, tell: Callable[[Report], None], failures: Sequence[str] = ()
) -> Report:
    """End a DAG run: add what its tasks did to its document, and how all stands now.

    What the document tells of was delivered, so it is only ever added to: by a run that is cleared, and by a report
    that is tried again. ``performance.json`` is written, too.

    :param dispatcher: which looks once more, and puts in order what is beside dispatching.
    :param journal: of the running task.
    :param tell: called with what this task has found alone.
    :param failures: sentences about tasks that have failed; what sensors have found then stays, for whoever clears
        them.
    :returns: the run's report, as its document has it.
    """
    earlier = journal.read_document()
    report = earlier or Report()
    parts = journal.parts()
    news = [part for part in parts if report.parts.get(part.task) != part.fingerprint]
    if news:
        report.errors = []  # of tasks that were cleared, and have made up for them since
    for part in news:
        if part.left is not None:
            _settle(dispatcher, part.report, part.left)
        report.add_deeds(part.report)
    stock = dispatcher.take_stock()
    for failure in failures:
        stock.error(failure)
    report.add_cycle(stock)
    report.parts = {part.task: part.fingerprint for part in parts}
    if report.started is not None:
        if earlier is None:
            report.time_taken_ms = round((dispatcher.store.now() - report.started).total_seconds() * 1000)
        known = len(report.errors)
        dispatcher.write_performance(report)
        stock.errors += report.errors[known:]
        stock.balanced = report.balanced
    journal.write_document(report)
    journal.remove(parts, shares=not failures)
    tell(stock)
    return report


def _settle(dispatcher: Dispatcher, report: Report, left: Underway) -> None:
    """Add to a task's report what it was about to dispatch, as far as that is through.

    :param report: as the task has left it; where it tells of more than it did before that, it tells of all.
    """
    if left.dispatched == report.dispatched:
        report.add_part(dispatcher.done_meanwhile(left.shares))
        log.info("Of what a task had in hand that was killed, all in all %d events are through", report.dispatched)


def _together(earlier: Report, report: Report) -> Report:
    if not earlier.cycles:
        return report
    whole = Report.from_dict(earlier.to_dict())
    whole.add_cycle(report)
    return whole


def _try(write: Callable[[], object]) -> bool:
    """Write into the journal as far as it goes: what is dispatched does not wait for it, and its end will tell."""
    from bqdispatch_provider.storage import STORAGE_ERRORS  # noqa: PLC0415  (importing this module costs nothing)

    try:
        write()
    except STORAGE_ERRORS as error:
        log.warning("The journal cannot be written for now: %s", in_words(error))
        return False
    return True
