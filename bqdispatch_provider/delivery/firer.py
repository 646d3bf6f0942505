"""Firings of windows: claimed in the ledger, copied into the trigger bucket, recorded as fired.

A claim is an object in the ledger, composed from the window and created once: of many dispatchers that try, one
succeeds. The claim, not the window, is copied, so that a claim that is taken over from a dead dispatcher gets a new
generation, which a copy still under way cannot name. ``fired`` is written beside it once the copy is proven
(docs/protocol.md, "How a window is fired").
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.model import Lane, Outcome
from bqdispatch_provider.core.plans import Quarantine
from bqdispatch_provider.core.targets import (
    OWNER,
    REASON,
    REPLAYED,
    LedgerName,
    ledger_entries_prefix,
    ledger_entry_name,
    target_of,
    undecided_name,
)
from bqdispatch_provider.core.windows import CLAIM_TIMEOUT, is_due
from bqdispatch_provider.delivery.copier import Copier, QuarantineInDoubt
from bqdispatch_provider.delivery.ledger import firings_in
from bqdispatch_provider.delivery.moves import (
    MAX_COPYING_S,
    EventResult,
    Move,
    claim_metadata,
    first_claimed,
    wait_until_changeable,
)
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.storage import ANY_GENERATION, NEW, ComposeRequest
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.names import WindowName, in_words

log = logging.getLogger(__name__)


class WindowFirer:
    """Fires windows, at most 100 at a time; may be used by several threads.

    :param copier: copies claims.
    :param quarantine: quarantines windows in doubt where ``OnDoubt`` says so.
    :param owner: ID of this dispatcher.
    """

    def __init__(self, copier: Copier, quarantine: QuarantineInDoubt, owner: str) -> None:
        self._copier = copier
        self._store = copier.store
        self._config = copier.config
        self._quarantine = quarantine
        self._owner = owner
        self._url = copier.quoted_url

    def fire(self, events: Sequence[Event]) -> list[EventResult]:
        """Fire windows: claim them, copy the claims, and record the firings.

        A window that may gather files of many folders is deleted once it is claimed. A file of a new folder that comes
        late then makes BqTail create the window anew. Beside an existing window BqTail would only write a ``.loc``
        object with the folder's name, which it does not read after the firing.

        :param events: windows, each in exactly the generation that was planned.
        :returns: the result of each window, in the same order.
        """
        until = time.monotonic() + MAX_COPYING_S
        results = self._delete_stale_locations(events)
        moves: list[Move] = []
        for claim in self._claim([event for event in events if event.name not in results]):
            if isinstance(claim, EventResult):
                results[claim.event.name] = claim
            else:
                moves.append(claim)
        # This deletes also a window that was copied in an earlier cycle, and whose delete was refused then.
        if many := [move.event.key for move in moves if move.event.many_folders]:
            for (name, _), result in zip(many, self._store.delete(many), strict=True):
                if result.failed:
                    log.warning("%s was not deleted before its firing: %s", self._url(name), result)
        for fired in self._copier.carry_out(moves, self._record_fired, until, quarantine=self._quarantine):
            # A claimed window stays in its intent until its load is visible.
            results[fired.event.name] = replace(fired, unresolved=fired.outcome is not Outcome.QUARANTINED)
        self._give_up(moves, results)
        return [results[event.name] for event in events]

    def _give_up(self, moves: Sequence[Move], results: dict[str, EventResult]) -> None:
        """Delete the claims of windows whose first copy was refused.

        The windows lie in the task folder still, so the next cycle tries again, and their slots go to others. Other
        claims are kept: of windows of many folders, which are deleted by now, and those that were taken over.
        """
        refused = [
            move
            for move in moves
            if results[move.event.name].refused and move.fenced is None and not move.event.many_folders
        ]
        wait_until_changeable(refused)
        answers = self._store.delete([(move.source, move.generation) for move in refused]) if refused else ()
        for move, answer in zip(refused, answers, strict=True):
            if answer.gone:
                result = results[move.event.name]
                results[move.event.name] = replace(result, unresolved=False)

    def mark_undecided(self, quarantines: Sequence[Quarantine]) -> list[EventResult]:
        """Move windows into ``undecided/`` of the task folder, each with the reason, until somebody decides.

        A window is undecided because firing it might load files twice; or because BqTail has dropped it, so that firing
        it again might be in vain. A claimed one may be gone, so its claim is copied. To fire it, somebody
        calls ``bqdispatch replay``. Not to fire it, somebody deletes the object in ``undecided/``.

        :param quarantines: windows in the task folder, or claimed ones that are gone; at most 100.
        :returns: the result of each window, in the same order.
        """
        requests = [self._undecided_request(each) for each in quarantines]
        answers = self._store.compose_with_metadata(requests)
        results = {
            window.key: self._marked(window, request, answer)
            for window, request, answer in zip(quarantines, requests, answers, strict=True)
        }
        marked = [key for key, result in results.items() if result.outcome is Outcome.QUARANTINED]
        for key, answer in zip(marked, self._store.delete(marked) if marked else (), strict=True):
            if answer.failed:
                error = f"{self._url(key[0])} is undecided but was not deleted: {answer}"
                results[key] = EventResult(results[key].event, Outcome.ERROR, error)
        return list(results.values())

    def _undecided_request(self, window: Quarantine) -> ComposeRequest:
        claim = ledger_entry_name(*window.key, "claim", self._config.async_task_url)
        source, generation = (claim, ANY_GENERATION) if window.claimed else window.key
        marker = undecided_name(*window.key, self._config.async_task_url)
        return source, generation, marker, NEW, {OWNER: self._owner, REASON: window.reason}

    def _marked(self, window: Quarantine, request: ComposeRequest, answer: Result) -> EventResult:
        event = Event(*window.key, window.created)
        source, _, marker, _, _ = request
        error = f"{self._url(window.name)} could not be moved to {self._url(marker)}: {answer}"
        try:
            # The marker may exist from an earlier try.
            if answer.ok or (answer.overtaken and self._store.get(marker) is not None):
                return EventResult(event, Outcome.QUARANTINED, reason=window.reason)
            if answer.overtaken and self._store.get(source) is None:
                return EventResult(event, Outcome.IGNORED)
        except GOOGLE_ERRORS as lookup_error:
            error = f"{error}; {in_words(lookup_error)}"
        return EventResult(event, Outcome.ERROR, error)

    def _delete_stale_locations(self, events: Sequence[Event]) -> dict[str, EventResult]:
        """Delete the ``.loc`` objects beside returned windows whose folders were loaded.

        They are listed again first: a folder may have been named since the window was judged. The ledger is listed
        again, too: these events may come from a sensor's document, which others may be able to write. Such a
        document alone must not be able to make this dispatcher delete a ``.loc`` object.

        :returns: the results of the windows that must wait.
        """
        judged = [event for event in events if event.kept_locations is not None]  # those that have returned
        results: dict[str, EventResult] = {}
        windows = [WindowName.parse(event.name) for event in judged]
        folders = [window.locations for window in windows]
        answers = self._store.list_folders([*folders, *map(self._ledger_prefix, judged)])
        by_event = zip(judged, windows, answers[: len(judged)], answers[len(judged) :], strict=True)
        for event, window, found, entries in by_event:
            known = {*event.stale_locations, *(event.kept_locations or ())}
            if isinstance(found, Result):
                error = f"{self._url(event.name)} waits: its .loc objects cannot be listed: {found}"
                results[event.name] = EventResult(event, Outcome.ERROR, error)
            elif not {each.key for each in found if window.is_location(each.name)} <= known:
                results[event.name] = EventResult(event, Outcome.PENDING)
            elif event.stale_locations and (missing := self._missing_proof(event, entries)):
                results[event.name] = EventResult(event, Outcome.ERROR, f"{self._url(event.name)} waits: {missing}")
        stale = [(event, key) for event in judged if event.name not in results for key in event.stale_locations]
        deleted = self._store.delete([key for _, key in stale]) if stale else ()
        for (event, (name, _)), result in zip(stale, deleted, strict=True):
            if result.overtaken and result.status == 412:  # written again: the window is judged again
                results[event.name] = EventResult(event, Outcome.PENDING)
            elif result.failed:
                error = f"{self._url(event.name)} waits: the stale {self._url(name)} was not deleted: {result}"
                results[event.name] = EventResult(event, Outcome.ERROR, error)
        return results

    def _ledger_prefix(self, event: Event) -> str:
        """Return the prefix of all entries of the ledger about windows of this name."""
        return ledger_entries_prefix(event.name, self._config.async_task_url)

    def _missing_proof(self, event: Event, entries: Sequence[StoredObject] | Result) -> str:
        """Return what is missing for the proof that a window has returned; empty if nothing is missing.

        It has returned if it is due, and another generation of it was fired. A claim alone proves no firing.
        """
        if isinstance(entries, Result):
            return f"its entries in the ledger cannot be listed: {entries}"
        window = LedgerName.parse(self._entry(event, "claim")).window
        firings, unreadable = firings_in(entries, [window], self._store.task_url)
        if unreadable:
            return unreadable[window]
        own = firings.get(window, {})
        if not any(firing.fired for generation, firing in own.items() if generation != event.generation):
            return "no earlier firing is known, so none of its .loc is deleted"
        if not is_due(WindowName.parse(event.name), self._store.now()):
            return "it is not due, so none of its .loc is deleted"
        return ""

    def _claim(self, events: Sequence[Event]) -> list[Move | EventResult]:
        """Claim windows, or take over the claims of dispatchers that are gone."""
        owner = uuid.uuid4().hex
        copied = {event.key: self._move_of(event) for event in events if self._copier.is_unfinished(event)}
        fresh = [event for event in events if event.key not in copied and not event.claimed]
        now = self._store.now()  # never ahead of the server's clock
        requests: list[ComposeRequest] = [
            (event.name, event.generation, self._entry(event, "claim"), NEW, claim_metadata(owner, now, event))
            for event in fresh
        ]
        claims = {
            event.key: self._claimed(event, owner, result, now)
            for event, result in zip(fresh, self._store.compose_with_metadata(requests), strict=True)
        }
        return [copied.get(event.key) or claims.get(event.key) or self._take_over(event, owner) for event in events]

    def _entry(self, event: Event, what: str) -> str:
        return ledger_entry_name(event.name, event.generation, what, self._config.async_task_url)

    def _move_of(self, event: Event, claimed: datetime | None = None) -> Move:
        target = target_of(event, Lane.WINDOWS, self._config)
        return Move(event, target, self._entry(event, "claim"), 0, claimed or event.created)

    def _claimed(  # noqa: PLR0911  (one per case)
        self, event: Event, owner: str, result: Result, now: datetime
    ) -> Move | EventResult:
        """Return the move of a window whose claim succeeded, or the result of the window."""
        move = self._move_of(event, now)
        error = f"{self._url(event.name)} could not be claimed: {result}"
        if result.ok:
            move.generation, move.changed_at = result.generation, time.monotonic()
            return move
        if not result.overtaken:
            return EventResult(event, Outcome.ERROR, error)
        try:
            claim = self._store.get(move.source)
            if claim is None:
                window = self._store.get(event.name)
                unchanged = window is not None and window.generation == event.generation
                return EventResult(event, Outcome.ERROR, error) if unchanged else EventResult(event, Outcome.IGNORED)
        except GOOGLE_ERRORS as lookup_error:
            return EventResult(event, Outcome.ERROR, f"{error}; looking it up failed: {in_words(lookup_error)}")
        if claim.metadata.get(OWNER) == owner:  # the answer to a first try was lost
            move.generation, move.changed_at = claim.generation, time.monotonic()
            return move
        if self._store.now() - claim.created < CLAIM_TIMEOUT:
            return EventResult(event, Outcome.IGNORED)
        return self._take_over(event, owner)

    def _take_over(self, event: Event, owner: str) -> Move | EventResult:  # noqa: PLR0911  (one per case)
        """Take over the claim of a dispatcher that is gone.

        Nobody else can deliver the window from then on. The former owner may have delivered it before.
        """
        move = self._move_of(event)
        error = f"{self._url(event.name)} was claimed but not fired, and its claim could not be taken over"
        try:
            claim = self._store.get(move.source)
            if claim is None or self._store.now() - claim.created < CLAIM_TIMEOUT or self._is_recorded(move):
                return EventResult(event, Outcome.IGNORED)
            move.created = first_claimed(claim)
            if REPLAYED in claim.metadata:  # put back by somebody, so it is fired without a verdict
                move.event = replace(event, replayed=True)
            metadata = claim_metadata(owner, move.created, move.event)
            (result,) = self._store.compose_with_metadata(
                [(move.source, claim.generation, move.source, claim.generation, metadata)]
            )
            if result.failed:
                return EventResult(event, Outcome.ERROR, f"{error}: {result}")
            fenced = self._store.get(move.source)
            if fenced is None or fenced.metadata.get(OWNER) != owner:
                if fenced is not None and fenced.generation == claim.generation:
                    return EventResult(event, Outcome.ERROR, f"{error}: {result}")
                return EventResult(event, Outcome.IGNORED)
            if self._is_recorded(move):  # meanwhile
                return EventResult(event, Outcome.IGNORED)
        except GOOGLE_ERRORS as lookup_error:
            return EventResult(event, Outcome.ERROR, f"{error}: {in_words(lookup_error)}")
        log.info("%s was claimed at %s but not fired; taking the claim over", self._url(event.name), claim.created)
        move.generation, move.fenced, move.changed_at = fenced.generation, fenced, time.monotonic()
        move.in_doubt = True
        return move

    def _record_fired(self, copied: Sequence[Move]) -> list[EventResult]:
        """Record in the ledger that windows were fired, and when."""
        requests: list[ComposeRequest] = []
        for move in copied:
            metadata = {OWNER: self._owner, "bqdispatch-target": move.target, "bqdispatch-copy": str(move.copy)}
            # Another dispatcher may have taken the claim over, in a generation unknown here: the copy is proven anyway.
            requests.append((move.source, ANY_GENERATION, self._entry(move.event, "fired"), NEW, metadata))
        results: list[EventResult] = []
        for move, result in zip(copied, self._store.compose_with_metadata(requests), strict=True):
            recorded = result.ok
            with suppress(*GOOGLE_ERRORS):
                recorded = recorded or (result.overtaken and self._is_recorded(move))
            if recorded:
                results.append(EventResult(move.event, Outcome.DISPATCHED, target=move.target))
            else:
                error = f"{self._url(move.event.name)} was fired but not recorded; a later cycle retries: {result}"
                results.append(EventResult(move.event, Outcome.ERROR, error, unresolved=True, in_doubt=True))
        return results

    def _is_recorded(self, move: Move) -> bool:
        """Return whether the ledger says that a window was fired.

        :raises google.api_core.exceptions.GoogleAPIError: if that cannot be looked up.
        """
        return self._store.get(self._entry(move.event, "fired")) is not None
