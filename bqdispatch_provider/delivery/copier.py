"""Copies that are made once, and proven before anything follows from them.

A copy into the trigger bucket wakes BqTail up, and BqTail deletes what it has processed: a missing target proves
nothing, and a second copy is a second delivery. So each copy names the exact generation of its source and requires a
free target. Without a success, the answer (:class:`~bqdispatch_provider.gcp.storage_answers.Result`) says what follows:

- *overtaken* (404 or 412): both ends are looked up;
- *lost*: a copy into the trigger bucket may well have been made; it is never repeated, and the event is in doubt;
- any other failure: the event was certainly not delivered, and waits (``EventResult.refused``).

What was copied but not finished (its source deleted, or its firing recorded) is remembered, and a later cycle only
finishes it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.model import Key, Outcome
from bqdispatch_provider.core.targets import alternative_target, length_problem
from bqdispatch_provider.delivery.in_doubt import InDoubtResolver, Resolution
from bqdispatch_provider.delivery.moves import EventResult, Move, folder_of_event, wait_until_changeable
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.names import in_words

_MIN_RETRY_PAUSE_S = 0.2
_MAX_RETRY_PAUSE_S = 8.0


Unfinished = dict[tuple[Key, str | None], int]
"""Generations of copies, by the key of the move and the URL of the folder that was copied to."""


class MoveBatch:
    """Moves that are carried out together, at most 100, and their results.

    :param finish: finishes events that were copied, and returns their results in the same order.
    :param unfinished: copies whose event is not finished, in this batch or an earlier one.
    :param to: URL of the folder to copy to; ``None``: the trigger bucket.
    """

    def __init__(self, finish: Finish, unfinished: Unfinished, to: str | None) -> None:
        self._finish = finish
        self._unfinished = unfinished
        self.to = to
        self.results: dict[str, EventResult] = {}

    def finish(self, copied: Sequence[Move]) -> None:
        """Finish events whose copy is proven, and windows that are quarantined because no copy can be proven.

        :param copied: those events, each with the generation of its copy; 0 without a proven one.
        """
        if not copied:
            return
        self._unfinished.update({(move.key, self.to): move.copy for move in copied if move.copy})
        for result, move in zip(self._finish(copied), copied, strict=True):
            if not result.unresolved:
                self._unfinished.pop((move.key, self.to), None)
            # A fenced trace needs no intent, since the fence's metadata say that it is in doubt. For a window the
            # comparison is always False: its move has the claim's generation. The firer sets ``unresolved`` itself.
            unresolved = result.unresolved and move.generation == result.event.generation
            self.results[result.event.name] = replace(result, error=result.error or move.warning, unresolved=unresolved)


Finish = Callable[[Sequence[Move]], list[EventResult]]
"""Finishes copied events: deletes their sources, or records their firings."""

QuarantineInDoubt = Callable[[Move, MoveBatch], EventResult]
"""Quarantines an event in doubt."""


class Copier:
    """Copies events, at most 100 at a time; may be used by several threads.

    :param store: the task folder.
    :param config: names the trigger bucket, and ``ErrorURL``.
    """

    def __init__(self, store: TaskStore, config: DispatchConfig) -> None:
        self.store = store
        self.config = config
        self._in_doubt = InDoubtResolver(store, config)
        self.deletable_folders: set[str] = set()
        """Folders in which a delete has worked, and none was refused since."""

        self.unfinished: Unfinished = {}
        """Copies whose source is not deleted, or whose firing is not recorded yet."""

    def carry_out(
        self,
        moves: Sequence[Move],
        finish: Finish,
        until: float = math.inf,
        *,
        to: str | None = None,
        quarantine: QuarantineInDoubt | None = None,
    ) -> list[EventResult]:
        """Copy events, and finish those whose copy is proven.

        :param moves: events to copy, at most 100.
        :param finish: finishes events that were copied.
        :param until: when to start no more copies, by the monotonic clock.
        :param to: URL of the folder to copy to; ``None``: the trigger bucket.
        :param quarantine: quarantines an event in doubt where ``OnDoubt`` says so; needed for the trigger bucket alone.
        :returns: the result of each event, in the same order.
        """
        batch = MoveBatch(finish, self.unfinished, to)
        for move in moves:
            move.copy = self.unfinished.get((move.key, to), 0)
        batch.finish([move for move in moves if move.copy])
        left = [move for move in moves if not move.copy]
        pause = _MIN_RETRY_PAUSE_S
        while left:
            left = self._resolve_in_doubt(left, batch, quarantine)
            if time.monotonic() > until:
                self._postpone(left, batch)
                break
            left = self._to_copy_again(self._copy(left, batch), batch)
            if any(move.in_doubt for move in left):
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (spreads load, hides nothing)
                pause = min(pause * 2, _MAX_RETRY_PAUSE_S)
        return [batch.results[move.event.name] for move in moves]

    def _resolve_in_doubt(
        self, moves: Sequence[Move], batch: MoveBatch, quarantine: QuarantineInDoubt | None
    ) -> list[Move]:
        """Resolve events in doubt, and return all that are to be copied."""
        left = [move for move in moves if not move.in_doubt]
        delivered: list[Move] = []
        for move, resolution in self._in_doubt.resolve([move for move in moves if move.in_doubt]):
            if isinstance(resolution, EventResult):
                batch.results[move.event.name] = resolution
            elif resolution is Resolution.FINISH:
                delivered.append(move)
            elif resolution is Resolution.QUARANTINE and quarantine is not None:
                batch.results[move.event.name] = quarantine(move, batch)
            else:
                left.append(move)
        batch.finish(delivered)
        return left

    def _postpone(self, moves: Sequence[Move], batch: MoveBatch) -> None:
        """Leave events to the next cycle, since the time for copies is up."""
        for move in moves:
            result = EventResult(move.event, Outcome.PENDING)
            if move.lost_answer:
                error = self._not_copied(move, move.lost_answer)
                result = EventResult(move.event, Outcome.ERROR, error, in_doubt=True)
            batch.results[move.event.name] = result

    def _copy(self, moves: Sequence[Move], batch: MoveBatch) -> list[tuple[Move, Result]]:
        """Copy events and finish those that were copied; return the others, with the answers to their copies."""
        answers = self.store.copy([(move.source, move.generation, move.target) for move in moves], batch.to)
        copied: list[Move] = []
        for move, answer in zip(moves, answers, strict=True):
            if answer.ok:
                move.copy = answer.generation
                copied.append(move)
        # Before the other answers are looked into: that takes time, in which a crash would leave all of these in doubt.
        batch.finish(copied)
        return [(move, answer) for move, answer in zip(moves, answers, strict=True) if not answer.ok]

    def _to_copy_again(self, failed: Sequence[tuple[Move, Result]], batch: MoveBatch) -> list[Move]:
        """Return the events to copy again, and those in doubt after a lost answer, which are resolved first."""
        left: list[Move] = []
        for move, result in failed:
            if result.lost and batch.to is None:
                move.in_doubt, move.fenced, move.lost_answer = True, None, str(result)
                left.append(move)
            elif (found := self._investigate(move, result, batch.to)) is not None:
                batch.results[move.event.name] = found
            elif move.copy:
                batch.finish([move])
            else:
                left.append(move)
        return left

    def _investigate(  # noqa: PLR0911  (one per case)
        self, move: Move, result: Result, to: str | None
    ) -> EventResult | None:
        """Look up both ends after a 404 or 412 to find out why a copy was not made: the status alone proves nothing.

        :returns: the result of the event; ``None`` when it was copied before (then ``move.copy`` is set), or is to be
            copied again, perhaps to another ``move.target``.
        """
        event = move.event
        error = self._not_copied(move, str(result))
        if not result.overtaken:
            return EventResult(event, Outcome.ERROR, error, refused=True)
        try:
            source = self.store.get(move.source)
            target = self.store.get_target(move.target, to)
        except GOOGLE_ERRORS as lookup_error:
            return EventResult(event, Outcome.ERROR, f"{error}; looking it up failed: {in_words(lookup_error)}")
        if source is None or source.generation != move.generation:
            return EventResult(event, Outcome.IGNORED)
        if target is None and result.status == 412 and not move.retried:
            move.retried = True  # BqTail has processed the object that was in the way
            return None
        if target is None:
            return EventResult(event, Outcome.ERROR, error)
        if source.same_content(target):
            move.copy = target.generation
            return None
        alternative = alternative_target(move.usual_target, move.key[1])
        if move.target == alternative:
            return EventResult(event, Outcome.ERROR, error)
        # BqTail has not processed an earlier trace of the same name yet: this one goes beside it.
        if to is None and (too_long := length_problem(alternative)):
            error = (
                f"{self.quoted_url(event.name)} waits until BqTail has processed {move.target!r}, which has other "
                f"content; it cannot go beside it, since its name with the generation {too_long}"
            )
            return EventResult(event, Outcome.ERROR, error)
        move.target = alternative
        return None

    def delete_sources(self, copied: Sequence[Move]) -> list[EventResult]:
        """Delete the sources of copies, each in exactly the generation that was copied.

        :param copied: events whose copy is proven.
        :returns: the result of each event, in the same order.
        """
        wait_until_changeable(copied)
        results: list[EventResult] = []
        keys = [(move.source, move.generation) for move in copied]
        for move, result in zip(copied, self.store.delete(keys), strict=True):
            # A source that is gone, or written again as another trace, needs no delete either.
            if not result.failed:
                results.append(EventResult(move.event, Outcome.DISPATCHED, target=move.target))
            else:
                self.deletable_folders.discard(folder_of_event(move.event))
                error = (
                    f"{self.quoted_url(move.event.name)} was copied but not deleted; a later cycle retries: {result}"
                )
                results.append(EventResult(move.event, Outcome.ERROR, error, unresolved=True, in_doubt=True))
        return results

    def _not_copied(self, move: Move, answer: str) -> str:
        return f"{self.quoted_url(move.event.name)} was not copied to {move.target!r} and waits: {answer}"

    def is_unfinished(self, event: Event, to: str | None = None) -> bool:
        """Return whether an event was copied in an earlier cycle, and is not finished.

        :param to: URL of the folder that it was copied to; ``None``: the trigger bucket.
        """
        return (event.key, to) in self.unfinished

    def quoted_url(self, name: str) -> str:
        """Return the URL of an object of the task folder for a message; names are untrusted text.

        :param name: path below the task folder.
        """
        return repr(self.store.task_url(name))
