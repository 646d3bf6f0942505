"""Intents: what a dispatcher writes down before it moves traces, so that nobody else moves them, now or after its end.

A move is two calls, and BqTail deletes what it is given, so a copy that is not there proves nothing. An intent is a
small object in the task folder, for up to 1,000 traces. Whoever is about to move first writes down what, then looks at
what the others wrote: of two that want the same trace at least one sees the other, and leaves it. An intent that
outlives its dispatcher tells that its traces may have been delivered: they are in doubt
(:mod:`bqdispatch_provider.moves`).
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from datetime import datetime

from google.api_core.exceptions import NotFound

from bqdispatch_provider.model import Event, StoredObject
from bqdispatch_provider.names import INTENTS, in_words
from bqdispatch_provider.planning import CLAIM_TIMEOUT
from bqdispatch_provider.storage import BATCH_SIZE, STORAGE_ERRORS, TaskStore

log = logging.getLogger(__name__)

MOST = 1000
"""Traces in an intent at most."""

_WAIT = 20.0
"""Seconds for which a dispatcher waits for those that leave it the traces, or are through with them."""

_PAUSE = 0.3
_LEFT = "-left.json"
"""How the name ends of an intent that tells what its dispatcher has begun, and not brought to its end yet."""


Key = tuple[str, int]
"""Name and generation of a trace."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What one dispatcher was, or is, about to move.

    :param object: the intent itself.
    :param owner: which dispatcher wrote it.
    :param moves: names and generations of the traces.
    """

    object: StoredObject
    owner: str
    moves: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Announced:
    """What became of an announcement.

    :param mine: the intents that were written.
    :param held: names of traces that another dispatcher is moving right now.
    :param doubtful: traces that were to be moved before, by a dispatcher that did not come to its end.
    """

    mine: tuple[Intent, ...]
    held: Collection[str]
    doubtful: Collection[Key]


class Intents:
    """The intents of one task folder, as one dispatcher sees them.

    :param store: the task folder.
    :param owner: which dispatcher this is.
    :param threads: where intents are written and read side by side.
    """

    def __init__(self, store: TaskStore, owner: str, threads: Executor) -> None:
        self._store = store
        self._owner = owner
        self._threads = threads
        self._number = 0
        self._known: dict[Key, Intent] = {}
        self._withdrawn: set[str] = set()
        """This dispatcher's intents that are answered for but could not be removed: they cast no doubt here."""

    def announce(self, events: Sequence[Event]) -> Announced:
        """Write down what is about to move, then see who else is about to move it: one request per 1,000 and one list.

        Interrupted or refused in between, it takes back what it has written, for nothing was moved yet.

        :raises google.api_core.exceptions.GoogleAPIError: when that cannot be done, and nothing may be moved.
        """
        chunks = [events[start : start + MOST] for start in range(0, len(events), MOST)]
        writing = [self._threads.submit(self._write, self._next_name(), chunk) for chunk in chunks]
        try:
            return self._seen(tuple(each.result() for each in writing), {event.name for event in events})
        except BaseException:
            wait(writing)
            self._remove([each.result() for each in writing if each.exception() is None])
            raise

    def _seen(self, mine: tuple[Intent, ...], wanted: Set[str]) -> Announced:
        """See who else is about to move the same, and perhaps wait for them."""
        answered_for = self._withdrawn.union(intent.object.name for intent in mine)
        now, others = self._others(lambda name: name not in answered_for)
        rivals = self._rivals(others, wanted, now)
        # Of those that see each other the first waits, and the others leave it all: somebody goes on. Whoever is not
        # seen by this look writes after it, and so will see these.
        if self._is_first(rivals):
            until = time.monotonic() + _WAIT
            seen = {intent.object.name for intent in others}
            while self._is_first(rivals) and time.monotonic() < until:
                time.sleep(_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311  (spreads load, hides nothing)
                now, others = self._others(lambda name: name in seen or name.endswith(_LEFT))
                rivals = self._rivals(others, wanted, now)
        held = {name for intent in rivals for name, _ in intent.moves if name in wanted}
        if held:
            log.info("%d traces are being moved by another dispatcher: they are left to it", len(held))
        doubtful = {key for intent in others if self._is_over(intent, now) for key in intent.moves}
        return Announced(mine, held, doubtful)

    def _rivals(self, others: Iterable[Intent], wanted: Set[str], now: datetime) -> list[Intent]:
        """The intents of other dispatchers that may be moving some of the traces right now, or have to finish them."""
        alive = (intent for intent in others if not self._is_over(intent, now))
        return [intent for intent in alive if not wanted.isdisjoint(name for name, _ in intent.moves)]

    def _is_over(self, intent: Intent, now: datetime) -> bool:
        """Whether nobody moves what an intent tells of any more: it is too old, or of this dispatcher's past."""
        return intent.owner == self._owner or now - intent.object.created > CLAIM_TIMEOUT

    def _is_first(self, rivals: Iterable[Intent]) -> bool:
        """Whether it is worth while to wait for others, which leave what they see here, or are about to be through."""
        moving = [intent.owner for intent in rivals if not intent.object.name.endswith(_LEFT)]
        return bool(moving) and self._owner < min(moving)

    def withdraw(self, announced: Announced, left: Sequence[Event]) -> None:
        """Remove the intents of this dispatcher; one that stays costs a look later on, and no more.

        :param left: events whose delivery is still in doubt, or not followed by the delete: they stay written down.
        """
        if left:
            try:
                self._write(self._next_name(_LEFT), left)
            except STORAGE_ERRORS as error:
                log.warning("%d traces stay written down as to be moved: %s", len(left), in_words(error))
                return
        self._remove(announced.mine)

    def _remove(self, intents: Iterable[Intent]) -> None:
        gone = [(intent.object.name, intent.object.generation) for intent in intents]
        for start in range(0, len(gone), BATCH_SIZE):
            chunk = gone[start : start + BATCH_SIZE]
            for (name, _), result in zip(chunk, self._store.delete(chunk), strict=True):
                if not result.ok and not result.doubtful:
                    self._withdrawn.add(name)
                    log.warning("%r could not be deleted, it will be later on: %s", self._store.task_url(name), result)

    def spent(self, intents: Iterable[StoredObject], present: Collection[Key], now: datetime) -> list[StoredObject]:
        """Those of left intents of which nothing is there any more: they can be deleted, whoever they belong to.

        :param intents: from a listing of the task folder.
        :param present: names and generations of the traces in it.
        :param now: the storage server's time of the listing.
        """
        old = [stored for stored in intents if now - stored.created > CLAIM_TIMEOUT]
        read = self._threads.map(self._read, old)
        return [intent.object for intent in read if intent is not None and intent.moves.isdisjoint(present)]

    def _next_name(self, ending: str = ".json") -> str:
        self._number += 1
        return f"{INTENTS}{self._owner}-{self._number:06}{ending}"

    def _write(self, name: str, events: Sequence[Event]) -> Intent:
        moves = [event.key for event in events]
        generation = self._store.write_json(self._store.task_url(name), {"owner": self._owner, "moves": moves})
        return Intent(StoredObject(name, generation, self._store.now()), self._owner, frozenset(moves))

    def _others(self, of: Callable[[str], bool]) -> tuple[datetime, list[Intent]]:
        """The intents that are there, of those names that are looked at."""
        now, listed = self._store.listing(INTENTS)
        read = self._threads.map(self._read, [stored for stored in listed if of(stored.name)])
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
                document = json.loads(content)
                moves = frozenset((str(name), int(generation)) for name, generation in document["moves"])
                self._known[key] = Intent(stored, str(document["owner"]), moves)
            except (ValueError, KeyError, TypeError):
                log.warning("%r is no intent and says nothing", self._store.task_url(stored.name))
                self._known[key] = Intent(stored, "", frozenset())
        return self._known[key]
