"""The intents of this dispatcher: written before it dispatches, renewed while it does, completed afterwards.

A move takes two calls, and BqTail deletes what it was given, so the buckets alone do not tell what a dispatcher had
begun when it died. Therefore it first writes down in an intent which events it will dispatch. A completed intent is
deleted, but no sooner than a second after it was written: Cloud Storage takes one change a second of one name. A
dispatcher that ends earlier marks it as completed instead, and a later one deletes both objects. If there is a limit, a
completed intent is marked at once, and stays for two minutes, since it counts.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, wait
from typing import Any

from google.api_core.exceptions import PreconditionFailed

from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.targets import INTENTS
from bqdispatch_provider.delivery.intent_objects import (
    COMPLETED_ENDING,
    KEEP_COMPLETED_S,
    LEFT_ENDING,
    LEFT_WINDOWS_ENDING,
    VERSION,
    WINDOWS_ENDING,
    Intent,
    firing_document,
    parse_firing,
)
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.rate_limit import SAME_NAME_S
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.names import counted, in_words

log = logging.getLogger(__name__)

MAX_EVENTS_PER_INTENT = 1000

RENEW_INTERVAL_S = 10.0
"""Seconds between two renewals of an intent: three in a lease (:data:`~bqdispatch_provider.core.traces.LEASE`)."""


class OwnIntents:
    """The intents that this dispatcher has written.

    :param store: the task folder.
    :param owner: ID of this dispatcher.
    :param threads: writes intents side by side.
    :param limited: True if there is a limit, so that other dispatchers count what is moved here.
    """

    def __init__(self, store: TaskStore, owner: str, threads: Executor, *, limited: bool = False) -> None:
        self.owner = owner
        self.limited = limited
        self._store = store
        self._threads = threads
        self._number = 0
        self.completed: dict[Key, float] = {}
        """Completed intents that are not deleted yet, and the time from which their age counts: when each was completed
        if there is a limit, otherwise when it was written. By the monotonic clock."""

        self.firings: dict[Key, Intent] = {}
        """Own intents that hold firings: what they say is known here, so they are not read again."""

        self._marked: set[str] = set()
        """Names of completed intents that are marked as completed in the task folder, too."""

        self._moving: dict[str, tuple[Sequence[Key], int]] = {}
        """By the name of an intent the traces that are being moved, and the intent's current generation."""

        self._written_at: dict[str, float] = {}

    def wrote(self, stored: StoredObject) -> bool:
        """Return whether this dispatcher has written an intent.

        :param stored: the intent.
        """
        return stored.name.startswith(f"{INTENTS}{self.owner}-")

    def announce(self, events: Sequence[Event]) -> tuple[Intent, ...]:
        """Write down which traces are about to be moved: one request for 1,000.

        :param events: the traces.
        :returns: the intents that were written.
        :raises google.api_core.exceptions.GoogleAPIError: if that fails; then none may be moved.
        """
        return self._write_all(self._write_moves, ".json", events)

    def announce_firings(self, events: Sequence[Event]) -> tuple[Intent, ...]:
        """Write down which windows are about to be fired: one request for 1,000.

        :param events: the windows.
        :returns: the intents that were written.
        :raises google.api_core.exceptions.GoogleAPIError: if that fails; then none may be fired.
        """
        return self._write_all(self._write_firings, WINDOWS_ENDING, events)

    def _write_all(
        self, write: Callable[[str, Sequence[Event]], Intent], ending: str, events: Sequence[Event]
    ) -> tuple[Intent, ...]:
        """Write as many intents as the events need; if one fails or the wait is interrupted, complete the others."""
        size = MAX_EVENTS_PER_INTENT
        chunks = [events[start : start + size] for start in range(0, len(events), size)]
        writing = [self._threads.submit(write, self._next_name(ending), chunk) for chunk in chunks]
        try:
            return tuple(each.result() for each in writing)
        except BaseException:
            wait(writing)
            self.complete([each.result() for each in writing if each.exception() is None])
            raise

    def settle_firings(self, intents: Iterable[Intent], fired: Sequence[Event], left: Sequence[Event] = ()) -> None:
        """Keep the intents of which everything was fired. Of others write anew what was begun, and complete them.

        What is written anew is not withdrawn any more. So no other intent needs to hold it
        (:func:`~bqdispatch_provider.delivery.intent_objects.firings_left`), however often its claim is taken over.

        :param intents: as :meth:`announce_firings` returned them.
        :param fired: their windows that were fired, whose loads are to be waited for.
        :param left: their windows that were claimed and perhaps not fired.
        """
        done = {event.key for event in fired}
        completed: list[Intent] = []
        for intent in intents:
            announced = {firing.key for firing in intent.firings}
            if announced <= done:
                continue
            begun = [event for event in (*fired, *left) if event.key in announced]
            try:
                if begun:
                    self._write_firings(self._next_name(LEFT_WINDOWS_ENDING), begun)
            except GOOGLE_ERRORS as error:
                windows = counted(len(begun), "window")
                log.warning("The intent of %s stays, since it cannot be rewritten: %s", windows, in_words(error))
                continue
            completed.append(intent)
        if completed:
            self.complete(completed)

    def renew(self) -> None:
        """Write intents of unfinished moves again once they are ten seconds old.

        Other dispatchers take over what is older than :data:`~bqdispatch_provider.core.traces.LEASE`.
        """
        for name, (moves, generation) in list(self._moving.items()):
            if time.monotonic() - self._written_at.get(name, -math.inf) >= RENEW_INTERVAL_S:
                try:
                    self._renew(name, moves, generation)
                except GOOGLE_ERRORS as error:
                    log.warning("Intent %r was not renewed: %s", self._store.task_url(name), in_words(error))

    def _renew(self, name: str, moves: Sequence[Key], generation: int) -> None:
        try:
            stored = self._write(name, {"moves": moves}, replaces=generation)
        except PreconditionFailed:
            # The answer to a first try may have been lost.
            if (renewed := self._store.get(name)) is None:
                log.info("Intent %r was deleted by another dispatcher", self._store.task_url(name))
                self._moving.pop(name, None)
                return
            stored, self._written_at[name] = renewed, time.monotonic()
        self._moving[name] = (moves, stored.generation)

    def withdraw(self, intents: Iterable[Intent], left: Sequence[Event], *, mark: bool) -> None:
        """Complete intents of moves. If an intent of the traces that are left cannot be written, leave all to others.

        :param intents: as :meth:`announce` returned them.
        :param left: traces that may have been delivered and still exist; they go into intents of their own.
        :param mark: True if another dispatcher may be waiting for the completion.
        """
        if left:
            try:
                self._write_all(self._write_moves, LEFT_ENDING, left)
            except GOOGLE_ERRORS as error:
                traces = counted(len(left), "trace")
                log.warning("Intents of %s stay, since they cannot be rewritten: %s", traces, in_words(error))
                for intent in intents:
                    self._moving.pop(intent.object.name, None)  # not renewed: nobody is moving these traces any more
                return
        self.complete(intents, mark=mark)

    def complete(self, intents: Iterable[Intent], *, mark: bool = False) -> None:
        """Complete intents: delete those that are old enough, and the others later.

        If there is a limit, the others are marked at once: until then they take slots of other dispatchers.

        :param intents: of this dispatcher.
        :param mark: as in :meth:`withdraw`; False by default.
        """
        for intent in intents:
            name = intent.object.name
            key = (name, self._moving.pop(name, ((), intent.object.generation))[1])
            written_at = self._written_at.pop(name, time.monotonic())
            self.completed[key] = time.monotonic() if self.limited else written_at
        self.delete_completed()
        if mark or self.limited:
            self._mark_completed()

    def delete_completed(self) -> None:
        """Delete completed intents that are old enough."""
        min_age = KEEP_COMPLETED_S if self.limited else SAME_NAME_S
        old = [key for key, at in self.completed.items() if time.monotonic() - at > min_age]
        for key, result in zip(old, self._store.delete(old) if old else (), strict=True):
            # 412: it was renewed in a generation that is unknown here.
            if result.gone or (result.overtaken and self._ensure_marked(key[0])):
                del self.completed[key]
                self._marked.discard(key[0])
            else:
                url = self._store.task_url(key[0])
                log.warning("Completed intent %r was not deleted; retrying later: %s", url, result)

    def _ensure_marked(self, name: str) -> bool:
        """Mark an intent as completed, and return whether its mark exists."""
        if name not in self._marked:
            self._mark_completed()
        return name in self._marked

    def close(self) -> None:
        """Delete completed intents, or mark those that are too young."""
        self.delete_completed()
        self._mark_completed()
        self.completed = {}

    def _mark_completed(self) -> None:
        """Write ``<intent>.done`` beside completed intents that cannot be deleted yet."""
        for name in sorted({name for name, _ in self.completed} - self._marked):
            try:
                self._store.write(f"{self._store.task_url(name)}{COMPLETED_ENDING}", b"")
                self._marked.add(name)
            except GOOGLE_ERRORS as error:
                # Harmless: a later look deletes it once none of its traces exists. Those that still exist are in doubt.
                log.warning("Intent %r was not marked as completed: %s", self._store.task_url(name), in_words(error))

    def keep_only(self, names: Collection[str]) -> None:
        """Forget what was written, but for intents with these names.

        :param names: names of intents.
        """
        self.firings = {key: intent for key, intent in self.firings.items() if key[0] in names}
        self._written_at = {name: at for name, at in self._written_at.items() if name in names}

    def _next_name(self, ending: str) -> str:
        self._number += 1
        return f"{INTENTS}{self.owner}-{self._number:06}{ending}"

    def _write_moves(self, name: str, events: Sequence[Event]) -> Intent:
        moves = [event.key for event in events]
        stored = self._write(name, {"moves": moves})
        if not name.endswith(LEFT_ENDING):
            self._moving[name] = (moves, stored.generation)
        return Intent(stored, self.owner, frozenset(moves))

    def _write_firings(self, name: str, events: Sequence[Event]) -> Intent:
        firings = [firing_document(event) for event in events]
        stored = self._write(name, {"firings": firings})
        intent = Intent(stored, self.owner, firings=tuple(parse_firing(each, stored.created) for each in firings))
        self.firings[stored.key] = intent
        return intent

    def _write(self, name: str, content: Mapping[str, Any], replaces: int | None = None) -> StoredObject:
        document = {"version": VERSION, "owner": self.owner, **content}
        generation = self._store.write_json(self._store.task_url(name), document, replaces=replaces)
        self._written_at[name] = time.monotonic()
        return StoredObject(name, generation, self._store.now())
