"""Moves of traces into the trigger bucket, and of objects into quarantine.

A move is a copy followed by a delete of exactly the generation that was copied: Cloud Storage has no single call that
moves an object to another bucket. Where nothing can be deleted nothing is copied, since a trace that stays would be
delivered again in every cycle. An object goes into quarantine in the same way, after a note that says why.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from google.api_core.exceptions import PreconditionFailed

from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.model import Lane, Outcome
from bqdispatch_provider.core.plans import Quarantine
from bqdispatch_provider.core.targets import quarantine_path, target_of
from bqdispatch_provider.delivery.copier import Copier, MoveBatch
from bqdispatch_provider.delivery.in_doubt import without_proof
from bqdispatch_provider.delivery.moves import EventResult, Move, folder_of_event
from bqdispatch_provider.delivery.quarantine import note_of
from bqdispatch_provider.delivery.quarantine_notes import NOTE_ENDING
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.names import in_words

log = logging.getLogger(__name__)


class Mover:
    """Moves traces and quarantines objects, at most 100 at a time; may be used by several threads.

    :param copier: makes the copies.
    :param threads: writes notes side by side.
    """

    def __init__(self, copier: Copier, threads: Executor) -> None:
        self._copier = copier
        self._store = copier.store
        self._config = copier.config
        self._threads = threads

    def movable(self, events: Sequence[Event]) -> tuple[list[Event], list[EventResult]]:
        """Check that traces can be deleted where they lie.

        For each folder a delete of a name that does not exist is tried: a 404 proves that deletes are permitted. If a
        moved trace cannot be deleted, its folder is checked again before the next move: perhaps only that one object is
        protected.

        :param events: traces.
        :returns: those that may be moved, and the results of the others.
        """
        folders = sorted({folder_of_event(event) for event in events} - self._copier.deletable_folders)
        refused: dict[str, str] = {}
        for folder, result in zip(folders, self._store.delete_nothing(folders), strict=True):
            if result.ok or result.status == 404:
                self._copier.deletable_folders.add(folder)
            else:
                refused[folder] = (
                    f"nothing is moved from {self._copier.quoted_url(folder)}, since what cannot be deleted would be "
                    f"delivered again and again: a delete there was answered with {result}"
                )
        movable = [event for event in events if folder_of_event(event) not in refused]
        results = [
            EventResult(event, Outcome.PENDING, error, in_doubt=self._copier.is_unfinished(event))
            for event in events
            if (error := refused.get(folder_of_event(event)))
        ]
        return movable, results

    def move(self, events: Sequence[Event], until: float) -> list[EventResult]:
        """Move traces into the trigger bucket. Those that lie in quarantine already are only deleted.

        :param events: traces, each in exactly the generation that was planned.
        :param until: when to start no more copies, by the monotonic clock.
        :returns: the result of each trace, in the same order.
        """
        copier = self._copier
        reason = "it was copied there in an earlier cycle, and its note says why"
        quarantined: list[Quarantine] = []
        results: dict[str, EventResult] = {}
        for event in events:
            try:
                if self._is_quarantined(event):
                    quarantined.append(Quarantine(*event.key, event.created, reason))
            except GOOGLE_ERRORS as error:
                message = f"{copier.quoted_url(event.name)} waits: it cannot be looked up in quarantine"
                results[event.name] = EventResult(
                    event, Outcome.ERROR, f"{message}: {in_words(error)}", unresolved=True, in_doubt=True
                )
        results |= {result.event.name: result for result in self._quarantine(quarantined)}
        moves = [
            Move.of_object(event, target_of(event, Lane.JOBS, self._config))
            for event in events
            if event.name not in results
        ]
        moved = copier.carry_out(moves, copier.delete_sources, until, quarantine=self.quarantine_in_doubt)
        results |= {result.event.name: result for result in moved}
        return [results[event.name] for event in events]

    def _is_quarantined(self, event: Event) -> bool:
        """Return whether an event was copied below ``ErrorURL``, and not deleted, by this dispatcher or another one.

        Ask before it is fenced once more: its path in quarantine has the generation, and a fence changes that.

        :raises google.api_core.exceptions.GoogleAPIError: if that cannot be looked up.
        """
        if self._copier.is_unfinished(event, self._config.error_url):
            return True
        if not event.in_doubt or self._config.on_doubt != "quarantine":
            return False
        path = self._path(Quarantine(*event.key, event.created, ""))
        return self._store.get_target(path, self._config.error_url) is not None

    def quarantine(self, quarantines: Sequence[Quarantine]) -> list[EventResult]:
        """Move objects below ``ErrorURL``, each after a note that says why.

        The path is a function of the object alone, so that a second try finds what the first has left.

        :param quarantines: objects, with the reasons.
        :returns: the result of each object.
        """
        return self._quarantine(quarantines, self._threads.map(self._write_note, quarantines))

    def _quarantine(
        self, quarantines: Sequence[Quarantine], errors: Iterable[str] | None = None, changed_at: float = -math.inf
    ) -> list[EventResult]:
        """Quarantine objects.

        :param errors: of writing their notes; by default they are written here. A thread of the pool must not wait for
            another one of it, since all may be waiting.
        :param changed_at: when this process last changed these objects, by the monotonic clock; by default never.
        """
        if errors is None:
            errors = map(self._write_note, quarantines)
        results: list[EventResult] = []
        moves: list[Move] = []
        reasons: dict[str, str] = {}
        for quarantine, error in zip(quarantines, errors, strict=True):
            event, path = Event(*quarantine.key, quarantine.created), self._path(quarantine)
            shortened = "" if event.name in path else f"; its name is too long there and was shortened: {path!r}"
            reasons[event.name] = f"{quarantine.reason}{shortened}"
            if error:
                results.append(EventResult(event, Outcome.ERROR, error))
            else:
                moves.append(replace(Move.of_object(event, path), changed_at=changed_at))
        copier = self._copier
        for result in copier.carry_out(moves, copier.delete_sources, to=self._config.error_url):
            reason = reasons[result.event.name]
            moved = result.outcome is Outcome.DISPATCHED
            results.append(replace(result, outcome=Outcome.QUARANTINED, reason=reason) if moved else result)
        return results

    def quarantine_in_doubt(self, move: Move, batch: MoveBatch) -> EventResult:
        """Move an event below ``ErrorURL`` whose delivery can be neither proven nor excluded.

        :param move: the event.
        :param batch: in which it was to be delivered.
        :returns: the result of the event.
        """
        event = move.event
        if event.name.endswith(".win"):
            batch.finish([move])  # recorded as fired, so that the ledger knows of it should the window return
            if batch.results[event.name].outcome is not Outcome.DISPATCHED:
                return batch.results[event.name]
        reason = f"it may have been delivered: that {without_proof(self._config)}"
        if not move.copies_itself:
            return self._quarantine_claim(move, reason)
        quarantine = Quarantine(event.name, move.generation, event.created, reason)
        (result,) = self._quarantine([quarantine], changed_at=move.changed_at)
        return replace(result, event=event)

    def _quarantine_claim(self, move: Move, reason: str) -> EventResult:
        """Quarantine a window by a copy of its claim, since the window itself may be gone."""
        event = move.event
        quarantine = Quarantine(*event.key, move.created, reason)
        if error := self._write_note(quarantine):
            return EventResult(event, Outcome.ERROR, error)
        copy = Move(event, self._path(quarantine), move.source, move.generation, move.created)
        (result,) = self._copier.carry_out([copy], self._delete_windows, to=self._config.error_url)
        if result.outcome is Outcome.DISPATCHED:
            return replace(result, outcome=Outcome.QUARANTINED, reason=reason)
        return result

    def _write_note(self, quarantine: Quarantine) -> str:
        """Write the note of an object; return the error if that fails."""
        note = note_of(quarantine, self._store.task_url(quarantine.name), self._store.now())
        url = f"{self._config.error_url}{self._path(quarantine)}{NOTE_ENDING}"
        try:
            self._store.write_json(url, note, replaces=0)
        except PreconditionFailed:
            log.debug("%r exists from an earlier try", url)
        except GOOGLE_ERRORS as error:
            source = self._copier.quoted_url(quarantine.name)
            return f"{source} was not quarantined, since its note {url!r} cannot be written: {in_words(error)}"
        return ""

    def _path(self, quarantine: Quarantine) -> str:
        return quarantine_path(quarantine.created, *quarantine.key, self._config.error_url)

    def _delete_windows(self, copied: Sequence[Move]) -> list[EventResult]:
        results: list[EventResult] = []
        for move, result in zip(copied, self._store.delete([move.event.key for move in copied]), strict=True):
            url = self._copier.quoted_url(move.event.name)
            error = f"{url} was quarantined but not deleted: {result}" if result.failed else ""
            results.append(EventResult(move.event, Outcome.DISPATCHED, error, target=move.target))
        return results
