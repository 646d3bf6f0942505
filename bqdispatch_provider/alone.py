"""A whole dispatcher in one task: cycles until its time to live is over, and one document that tells of all of them.

The task may be killed at any moment, on a worker or in a triggerer, and begun again elsewhere with the same arguments.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bqdispatch_provider.journal import RunJournal, Underway
from bqdispatch_provider.model import Plan
from bqdispatch_provider.names import in_words
from bqdispatch_provider.planning import limits
from bqdispatch_provider.report import Report
from bqdispatch_provider.rhythm import Rhythm

if TYPE_CHECKING:
    from bqdispatch_provider.dispatcher import Dispatcher

log = logging.getLogger(__name__)


def run_alone(
    dispatcher: Dispatcher,
    journal: RunJournal,
    time_to_live: float | None = None,
    *,
    began: datetime | None = None,
    attempt: int = 1,
    wait: Callable[[float], object] = time.sleep,
    rhythm: Rhythm | None = None,
    tell: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Run cycles, and write the document after each one that has dispatched something; gives what it tells.

    What an earlier try of the task has dispatched stays in it, also where that try was killed before it could say so:
    what a cycle is about to dispatch is written down, and what of that is gone has been dispatched.

    :param dispatcher: whose cycles they are.
    :param journal: of the running task.
    :param time_to_live: seconds for which new cycles are begun, from when the task began; one cycle is done in any
        case; by default the configuration's.
    :param began: when the task began, where that is known; otherwise now, or when a killed run of the same try began.
    :param attempt: which try of the task this is.
    :param wait: as :meth:`Dispatcher.run` takes it.
    :param rhythm: as :meth:`Dispatcher.run` takes it.
    :param tell: called after each cycle, and at the end, with what this process has done so far.
    :raises ValueError: when something else lies where an earlier try has left its document.
    """
    earlier = journal.read_document(journal.own_url) or Report()
    left = journal.read_underway()
    if left is None or left.attempt != attempt:
        earlier.errors = []  # they made that try fail, and this one is to make up for them
    if left is not None:
        if left.attempt == attempt:
            began = began or left.began
        if left.dispatched == earlier.dispatched:
            earlier.add_part(dispatcher.done_meanwhile(left.shares))
            log.info("Going on with a run that was killed: of what it had in hand, %d are through", earlier.dispatched)
    now = datetime.now(UTC)
    began = began or now
    told = earlier.dispatched

    def begin(plan: Plan) -> None:
        if any(plan.events.values()):
            shares = tuple(plan.shares(limits(dispatcher.config)))
            _try(lambda: journal.write_underway(Underway(began, attempt, told, shares)))

    def progress(report: Report) -> None:
        nonlocal told
        tell(report)
        so_far = _together(earlier, report)
        if so_far.dispatched != told:
            told = so_far.dispatched
            _try(lambda: journal.write_document(so_far, journal.own_url))

    seconds = dispatcher.seconds_to_live(time_to_live) - (now - began).total_seconds()
    report = dispatcher.run(max(seconds, 0.0), progress, begin=begin, wait=wait, rhythm=rhythm)
    tell(report)
    report = _together(earlier, report)
    journal.write_document(report, journal.own_url)
    journal.remove_underway()
    return report


def _together(earlier: Report, report: Report) -> Report:
    if not earlier.cycles:
        return report
    whole = Report.from_dict(earlier.to_dict())
    whole.add_cycle(report)
    return whole


def _try(write: Callable[[], object]) -> None:
    """Write into the journal as far as it goes: what is dispatched does not wait for it, and its end will tell."""
    from bqdispatch_provider.storage import STORAGE_ERRORS  # noqa: PLC0415  (importing this module costs nothing)

    try:
        write()
    except STORAGE_ERRORS as error:
        log.warning("The journal cannot be written for now: %s", in_words(error))
