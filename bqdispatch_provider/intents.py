"""Intents: what a dispatcher writes down before it dispatches, so that everybody knows of it, now and after its end.

A move is two calls, and BqTail deletes what it is given, so a copy that is not there proves nothing. An intent is a
small object in the task folder, for up to 1,000 events. Whoever is about to move traces first writes down which, then
looks at what the others wrote: of two that want the same trace at least one sees the other, and leaves it. An intent
that outlives its dispatcher tells that its traces may have been delivered: they are in doubt
(:mod:`bqdispatch_provider.moves`).

Who fires windows is decided by their claims. Their intent tells of firings whose load has not been seen, and stays
until all loads have been.

An intent is deleted no sooner than a second after it was written, since a name may be changed once a second. A
dispatcher that ends earlier writes a second object beside it: completed.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from google.api_core.exceptions import NotFound, PreconditionFailed

from bqdispatch_provider.courtesy import SAME_NAME_S
from bqdispatch_provider.model import Event, Key, OpenFiring, StoredObject
from bqdispatch_provider.names import INTENTS, WindowName, in_one_line, in_words
from bqdispatch_provider.planning import LEASE
from bqdispatch_provider.storage import BATCH_SIZE, STORAGE_ERRORS, TaskStore

log = logging.getLogger(__name__)

MOST = 1000
"""Events in an intent at most."""

VERSION = 1
"""The form of an intent; one of another version holds back what it may be about."""

_WAIT = 5.0
"""Seconds for which a dispatcher waits for those that leave it the traces, or are through with them; then it looks
again, as it does for whatever others are moving."""

RENEW_S = 10.0
"""So often a dispatcher that lives renews what it has written down: three times in a lease."""

_PAUSE = 0.3
_LEFT = "-left.json"
"""How the name ends of an intent that tells what its dispatcher has begun, and not brought to its end yet."""

_WINDOWS = "-windows.json"
"""How the name ends of an intent that tells of firings."""

_DONE = ".done"
"""What is added to the name of an intent by the object that says that it is completed."""

_COUNTED_S = 10.0
"""Under a limit, for so many seconds an intent stays that is completed: those count it whose look was before it."""

_SETTLED = timedelta(seconds=2)
"""What was written by others is deleted no sooner: the server's clock is told in whole seconds."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What one dispatcher was, or is, about to dispatch.

    :param object: the intent itself.
    :param owner: which dispatcher wrote it.
    :param moves: names and generations of traces.
    :param firings: windows that were to be fired, as long as their loads have not been seen.
    :param problem: why it cannot be read; empty where it can.
    """

    object: StoredObject
    owner: str
    moves: frozenset[Key] = frozenset()
    firings: tuple[OpenFiring, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Announced:
    """What became of an announcement.

    :param mine: the intents that were written.
    :param held: names of traces that another dispatcher is moving right now.
    :param doubtful: traces that were to be moved before, by a dispatcher that did not come to its end.
    :param unread: what holds back the traces that are older than it, with the reason: intents that cannot be read.
    :param met: whether another dispatcher was about to move some of the same traces.
    """

    mine: tuple[Intent, ...]
    held: Collection[str]
    doubtful: Collection[Key]
    unread: tuple[tuple[datetime, str], ...] = ()
    met: bool = False


@dataclass(frozen=True, slots=True)
class Noted:
    """What a look finds written down.

    :param windows: intents that tell of firings.
    :param moving: names of traces that others are moving, or have moved a moment ago, where that was asked for.
    :param unread: as in :class:`Announced`.
    :param spent: intents, and what says that they are completed, which nobody needs any more.
    """

    windows: tuple[Intent, ...] = ()
    moving: frozenset[str] = frozenset()
    unread: tuple[tuple[datetime, str], ...] = ()
    spent: tuple[Key, ...] = ()


class Intents:
    """The intents of one task folder, as one dispatcher sees them.

    :param store: the task folder.
    :param owner: which dispatcher this is.
    :param threads: where intents are written and read side by side.
    :param limited: whether others count what is moved, so that it stays written down for a while.
    """

    def __init__(self, store: TaskStore, owner: str, threads: Executor, *, limited: bool = False) -> None:
        self._limited = limited
        self._store = store
        self._owner = owner
        self._threads = threads
        self._number = 0
        self._known: dict[Key, Intent] = {}
        self._completed: dict[Key, float] = {}
        """This dispatcher's intents that are answered for, and when they were written, by the monotonic clock."""

        self._marked: set[str] = set()
        """Those of them beside which it is said that they are completed."""

        self._held: dict[str, tuple[Sequence[Key], int]] = {}
        """This dispatcher's intents of what it is moving: the traces, and the generation of the intent as it is now."""

        self._written: dict[str, float] = {}
        self._looked: frozenset[str] = frozenset()
        """Names of the intents that the last look has found."""

    def announce(self, events: Sequence[Event], until: float = math.inf) -> Announced:
        """Write down what is about to move, then see who else is about to move it: one request per 1,000 and one list.

        Interrupted or refused in between, it takes back what it has written, for nothing was moved yet.

        :param until: when nobody is waited for any more, by the monotonic clock.
        :raises google.api_core.exceptions.GoogleAPIError: when that cannot be done, and nothing may be moved.
        """
        chunks = [events[start : start + MOST] for start in range(0, len(events), MOST)]
        writing = [self._threads.submit(self._write_moves, self._next_name(), chunk) for chunk in chunks]
        try:
            return self._seen(tuple(each.result() for each in writing), {event.name for event in events}, until)
        except BaseException:
            wait(writing)
            self.complete([each.result() for each in writing if each.exception() is None])
            raise

    def announce_firings(self, events: Sequence[Event]) -> list[Intent]:
        """Write down which windows are about to be fired: one request per 1,000.

        :raises google.api_core.exceptions.GoogleAPIError: when that cannot be done, and none of them may be fired.
        """
        chunks = [events[start : start + MOST] for start in range(0, len(events), MOST)]
        writing = [self._threads.submit(self._write_firings, chunk) for chunk in chunks]
        try:
            return [each.result() for each in writing]
        except BaseException:
            wait(writing)
            self.complete([each.result() for each in writing if each.exception() is None])
            raise

    def since(self) -> tuple[list[OpenFiring], set[str]]:
        """Read which firings, and names of traces, others have written down since the last look: one list.

        What is completed meanwhile is among them, for the look has not seen what came of it.

        :raises google.api_core.exceptions.GoogleAPIError: when that cannot be told.
        """
        _, listed = self._store.listing(INTENTS)
        asked = [
            stored
            for stored in listed
            if stored.name not in self._looked
            and not stored.name.endswith((_DONE, _LEFT))
            and not self._is_mine(stored)
        ]
        read = [intent for intent in self._threads.map(self._read, asked) if intent is not None]
        firings = [firing for intent in read for firing in intent.firings]
        return firings, {name for intent in read for name, _ in intent.moves}

    def _is_mine(self, stored: StoredObject) -> bool:
        return stored.name.startswith(f"{INTENTS}{self._owner}-")

    def settle_firings(self, intents: Iterable[Intent], open_events: Sequence[Event]) -> None:
        """Keep written down what was fired, or may have been, and nothing else.

        :param intents: as :meth:`announce_firings` gave them.
        :param open_events: those of them whose loads are to be waited for.
        """
        left = {event.key for event in open_events}
        over = [intent for intent in intents if not {firing.key for firing in intent.firings} <= left]
        if not over:
            return
        kept = {firing.key for intent in over for firing in intent.firings} & left
        try:
            if kept:
                self.announce_firings([event for event in open_events if event.key in kept])
        except STORAGE_ERRORS as error:
            log.warning("%d windows stay written down as to be fired: %s", len(kept), in_words(error))
            return
        self.complete(over)

    def renew(self) -> None:
        """Write down again what is being moved, once that was some time ago: who is silent is taken for gone."""
        for name, (moves, generation) in list(self._held.items()):
            if time.monotonic() - self._written.get(name, -math.inf) < RENEW_S:
                continue
            try:
                stored = self._write(name, {"moves": moves}, replaces=generation)
                self._held[name] = (moves, stored.generation)
            except PreconditionFailed:
                self._look_at_own(name, moves)
            except STORAGE_ERRORS as error:
                log.warning("%r could not be renewed: %s", self._store.task_url(name), in_words(error))

    def _look_at_own(self, name: str, moves: Sequence[Key]) -> None:
        """See whether an intent is there, whose names nobody else uses: the answer to a first try may be lost."""
        try:
            there = self._store.look(name)
        except STORAGE_ERRORS as error:
            log.warning("%r cannot be looked at: %s", self._store.task_url(name), in_words(error))
            return
        if there is None:
            log.info("%r was removed by another dispatcher", self._store.task_url(name))
            self._held.pop(name, None)
        else:
            self._held[name] = (moves, there.generation)
            self._written[name] = time.monotonic()

    def _seen(self, mine: tuple[Intent, ...], wanted: Set[str], until: float) -> Announced:
        """See who else is about to move the same, and perhaps wait for them."""
        answered_for = {name for name, _ in self._completed}.union(intent.object.name for intent in mine)
        now, others = self._others(lambda name: name not in answered_for)
        rivals = self._rivals(others, wanted, now)
        # Of those that see each other the first waits, and the others leave it all: somebody goes on. Whoever is not
        # seen by this look writes after it, and so will see these.
        met = bool(rivals)
        if self._is_first(rivals, now):
            until = min(until, time.monotonic() + _WAIT)
            seen = {intent.object.name for intent in others}
            while self._is_first(rivals, now) and time.monotonic() < until:
                time.sleep(_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311  (spreads load, hides nothing)
                now, others = self._others(lambda name: name in seen or name.endswith(_LEFT))
                rivals = self._rivals(others, wanted, now)
        held = {name for intent in rivals for name, _ in intent.moves if name in wanted}
        if held:
            log.info("%d traces are being moved by another dispatcher: they are left to it", len(held))
        doubtful = {key for intent in others if self._is_over(intent, now) for key in intent.moves}
        return Announced(mine, held, doubtful, self._unread(others), met)

    def _rivals(self, others: Iterable[Intent], wanted: Set[str], now: datetime) -> list[Intent]:
        """The intents of other dispatchers that may be moving some of the traces right now, or have to finish them."""
        alive = (intent for intent in others if not self._is_over(intent, now))
        return [intent for intent in alive if not wanted.isdisjoint(name for name, _ in intent.moves)]

    def _is_over(self, intent: Intent, now: datetime) -> bool:
        """Whether nobody moves what an intent tells of any more: it is too old, or of this dispatcher's past."""
        return intent.owner == self._owner or now - intent.object.created > LEASE

    def _is_first(self, rivals: Iterable[Intent], now: datetime) -> bool:
        """Tell whether to wait for others is worth while, which leave what they see here, or are about to be through.

        It is not for those that have written theirs a while ago: they are busy, or gone.
        """
        moving = [intent for intent in rivals if not intent.object.name.endswith(_LEFT)]
        young = any((now - intent.object.created).total_seconds() <= _WAIT for intent in moving)
        return young and self._owner < min(intent.owner for intent in moving)

    def _unread(self, intents: Iterable[Intent]) -> tuple[tuple[datetime, str], ...]:
        return tuple(
            (
                intent.object.created,
                f"what is older than {self._store.task_url(intent.object.name)!r} waits, since that cannot be read "
                f"({intent.problem}): upgrade this dispatcher, or delete the object once no other dispatcher runs",
            )
            for intent in intents
            if intent.problem
        )

    def withdraw(self, announced: Announced, left: Sequence[Event]) -> None:
        """Complete the intents of this dispatcher.

        :param left: events whose delivery is still in doubt, or not followed by the delete: they stay written down,
            where no other intent says so.
        """
        left = [event for event in left if event.key not in announced.doubtful]
        if left:
            try:
                self._write_moves(self._next_name(_LEFT), left)
            except STORAGE_ERRORS as error:
                log.warning("%d traces stay written down as to be moved: %s", len(left), in_words(error))
                return
        self.complete(announced.mine)
        if announced.met or self._limited:
            self._mark()  # somebody may be waiting for it

    def complete(self, intents: Iterable[Intent]) -> None:
        """Note that intents of this dispatcher are answered for, and delete those that may be deleted by now."""
        for intent in intents:
            name = intent.object.name
            key = (name, self._held.pop(name, ((), intent.object.generation))[1])
            self._completed[key] = self._written.pop(intent.object.name, time.monotonic())
        self.remove()

    def remove(self) -> None:
        """Delete the completed intents of this dispatcher that are old enough; others later on."""
        least = _COUNTED_S if self._limited else SAME_NAME_S
        old = [key for key, at in self._completed.items() if time.monotonic() - at > least]
        for start in range(0, len(old), BATCH_SIZE):
            chunk = old[start : start + BATCH_SIZE]
            for key, result in zip(chunk, self._store.delete(chunk), strict=True):
                if result.ok or (result.doubtful and (result.status == 404 or self._is_marked(key[0]))):
                    del self._completed[key]
                    self._marked.discard(key[0])
                else:
                    # Asked again with the next ones, and answered for all the same.
                    log.warning(
                        "%r could not be deleted, it will be later on: %s", self._store.task_url(key[0]), result
                    )

    def _is_marked(self, name: str) -> bool:
        """Say beside an intent that it is completed: it was written again, which this process has not heard of."""
        if name not in self._marked:
            self._mark()
        return name in self._marked

    def close(self) -> None:
        """Delete what is completed, or say beside it that it is."""
        self.remove()
        self._mark()
        self._completed = {}

    def _mark(self) -> None:
        """Say beside the intents that are completed, and cannot be deleted yet, that they are."""
        for name in sorted({name for name, _ in self._completed} - self._marked):
            try:
                self._store.write(f"{self._store.task_url(name)}{_DONE}", b"")
                self._marked.add(name)
            except STORAGE_ERRORS as error:
                # It casts doubt on nothing that is still there: a look more, later on.
                log.warning(
                    "%r is completed, which could not be noted: %s", self._store.task_url(name), in_words(error)
                )

    def look(
        self, intents: Sequence[StoredObject], present: Collection[Key], now: datetime, since: datetime | None = None
    ) -> Noted:
        """Read what is written down in a task folder.

        :param intents: from a listing of it.
        :param present: names and generations of the traces in it.
        :param now: the storage server's time of the listing.
        :param since: what others have completed before is not being moved any more; by default, before the listing.
        """
        since = since or now
        names = {stored.name for stored in intents}
        self._looked = frozenset(names)
        self._written = {name: at for name, at in self._written.items() if name in names}
        spent: list[Key] = []
        asked: list[StoredObject] = []
        least = timedelta(seconds=_COUNTED_S) if self._limited else _SETTLED
        done = {each.name.removesuffix(_DONE): each.created for each in intents if each.name.endswith(_DONE)}
        recent = [
            stored
            for stored in intents
            if self._limited
            and not stored.name.endswith((_DONE, _LEFT, _WINDOWS))
            and not self._is_mine(stored)
            and now - stored.created < LEASE
            and done.get(stored.name, now) >= since
        ]
        for stored in intents:
            key = (stored.name, stored.generation)
            settled = now - stored.created > least and not stored.held
            old = now - stored.created > LEASE
            if stored.name.endswith(_DONE):
                # After its intent: alone, that would seem to be of a dispatcher which did not come to its end.
                if settled and stored.name.removesuffix(_DONE) not in names:
                    spent.append(key)
            elif f"{stored.name}{_DONE}" in names:
                if settled:
                    spent.append(key)
            elif key not in self._completed and (old or stored.name.endswith(_WINDOWS)):
                asked.append(stored)
        read = [intent for intent in self._threads.map(self._read, asked) if intent is not None]
        spent += [
            (intent.object.name, intent.object.generation)
            for intent in read
            if not (intent.problem or intent.firings or intent.object.held) and intent.moves.isdisjoint(present)
        ]
        self._known = {(i.object.name, i.object.generation): i for i in self._known.values() if i.object.name in names}
        windows = tuple(intent for intent in read if intent.firings)
        others = [intent for intent in self._threads.map(self._read, recent) if intent is not None]
        moving = frozenset(name for intent in others for name, _ in intent.moves)
        return Noted(windows, moving, self._unread(read), tuple(spent))

    def _next_name(self, ending: str = ".json") -> str:
        self._number += 1
        return f"{INTENTS}{self._owner}-{self._number:06}{ending}"

    def _write_moves(self, name: str, events: Sequence[Event]) -> Intent:
        moves = [event.key for event in events]
        stored = self._write(name, {"moves": moves})
        if not name.endswith(_LEFT):
            self._held[name] = (moves, stored.generation)
        return Intent(stored, self._owner, frozenset(moves))

    def _write_firings(self, events: Sequence[Event]) -> Intent:
        firings = [
            {
                "window": event.name,
                "generation": event.generation,
                "project": event.load.project if event.load else "",
                "event": event.load.event_id if event.load else "",
                "many": event.many,
            }
            for event in events
        ]
        stored = self._write(self._next_name(_WINDOWS), {"firings": firings})
        intent = Intent(stored, self._owner, firings=tuple(_firing(each, stored.created) for each in firings))
        self._known[stored.name, stored.generation] = intent
        return intent

    def _write(self, name: str, content: Mapping[str, Any], replaces: int | None = None) -> StoredObject:
        document = {"version": VERSION, "owner": self._owner, **content}
        generation = self._store.write_json(self._store.task_url(name), document, replaces=replaces)
        self._written[name] = time.monotonic()
        return StoredObject(name, generation, self._store.now())

    def _others(self, of: Callable[[str], bool]) -> tuple[datetime, list[Intent]]:
        """The intents that are there, of those names that are looked at, and that are not completed."""
        now, listed = self._store.listing(INTENTS)
        names = {stored.name for stored in listed}
        asked = [
            stored
            for stored in listed
            if of(stored.name) and not stored.name.endswith((_DONE, _WINDOWS)) and f"{stored.name}{_DONE}" not in names
        ]
        read = self._threads.map(self._read, asked)
        return now, [intent for intent in read if intent is not None]

    def _read(self, stored: StoredObject) -> Intent | None:
        """An intent's content; ``None`` when it is gone."""
        key = (stored.name, stored.generation)
        if key not in self._known:
            try:
                content = self._store.read(self._store.task_url(stored.name))
            except NotFound:
                return None
            try:
                self._known[key] = _intent(stored, content)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                # Read again by the next look: it may be the answer, and not the intent.
                return Intent(stored, "", problem=in_one_line(f"{type(error).__name__}: {error}")[:200])
        return self._known[key]


def open_intents(names: Iterable[str]) -> list[str]:
    """Return those intents that are not completed.

    :param names: of everything that dispatchers have written down in a task folder.
    """
    present = set(names)
    return sorted(name for name in present if not name.endswith(_DONE) and f"{name}{_DONE}" not in present)


def _intent(stored: StoredObject, content: bytes) -> Intent:
    document = json.loads(content)
    if document["version"] != VERSION:
        raise ValueError(f"its version is {document['version']!r}; this dispatcher knows {VERSION}")
    return Intent(
        stored,
        str(document["owner"]),
        frozenset((str(name), int(generation)) for name, generation in document.get("moves", ())),
        tuple(_firing(each, stored.created) for each in document.get("firings", ())),
    )


def _firing(document: Mapping[str, Any], since: datetime) -> OpenFiring:
    WindowName.parse(document["window"])
    return OpenFiring(
        document["window"],
        int(document["generation"]),
        str(document["project"]),
        str(document["event"]),
        bool(document["many"]),
        since,
    )
