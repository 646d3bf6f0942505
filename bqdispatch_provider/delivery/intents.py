"""The intents of all dispatchers: who is about to dispatch what.

An intent is a small object in the task folder that names up to 1,000 events. Whoever is about to move traces first
writes down which, then lists the others' intents: of two dispatchers that want the same trace at least one sees the
other, and leaves it. An intent that outlives its dispatcher says that its traces may have been delivered; they are in
doubt (:mod:`~bqdispatch_provider.delivery.in_doubt`).

Who fires a window is decided by its claim, not by an intent. Intents of windows hold firings whose load is not visible
yet, so that they count at the limits. They stay until all of these firings are closed (``open_firings``).
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timedelta

from google.api_core.exceptions import GoogleAPIError, NotFound

from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.sizes import MAX_INTENT_BYTES
from bqdispatch_provider.core.targets import INTENTS
from bqdispatch_provider.core.traces import LEASE
from bqdispatch_provider.core.windows import OpenFiring
from bqdispatch_provider.delivery.intent_objects import (
    COMPLETED_ENDING,
    KEEP_COMPLETED_S,
    LEFT_ENDING,
    WINDOWS_ENDING,
    Intent,
    parse_intent,
)
from bqdispatch_provider.delivery.own_intents import OwnIntents
from bqdispatch_provider.gcp.objects import ObjectTooLarge
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.names import counted, in_one_line

log = logging.getLogger(__name__)

_MAX_LOOK_AGE_S = KEEP_COMPLETED_S
"""Maximum age of a look from which to go on. Intents that were completed since an older one may be gone already."""

_MAX_WAIT_S = 5.0
"""Seconds to wait for dispatchers that leave the traces, or finish them; the next cycle looks again."""

_POLL_INTERVAL_S = 0.3

_MAX_LISTS = 5
"""Lists of intents until all that are listed can be read. A second one nearly always does: no intent is deleted within
a second of its creation."""

_MIN_AGE_TO_DELETE = timedelta(seconds=2)
"""Age at which another dispatcher's intent may be deleted: a name may be changed once a second, and the server's clock
is known in whole seconds."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """The result of announcing moves.

    :param own: the intents that were written.
    :param held: names of traces that another dispatcher is moving.
    :param in_doubt: traces of intents that nobody works on any more: they are too old, or this dispatcher left them.
    :param unreadable: for each intent that cannot be read its creation and the reason; it holds back older traces.
    :param contested: True if another dispatcher was about to move some of the same traces.
    """

    own: tuple[Intent, ...]
    held: Collection[str]
    in_doubt: Collection[Key]
    unreadable: tuple[tuple[datetime, str], ...] = ()
    contested: bool = False


@dataclass(frozen=True, slots=True)
class IntentsFound:
    """The intents in a task folder.

    :param of_windows: intents that hold firings.
    :param moving: names of traces that others are moving or have just moved; empty without a limit.
    :param unreadable: as in :class:`Announcement`.
    :param completed_intents: intents and ``.done`` objects that nobody needs any more.
    """

    of_windows: tuple[Intent, ...] = ()
    moving: frozenset[str] = frozenset()
    unreadable: tuple[tuple[datetime, str], ...] = ()
    completed_intents: tuple[Key, ...] = ()


class Intents:
    """The intents of one task folder.

    :param store: the task folder.
    :param own: the intents of this dispatcher.
    :param threads: reads intents side by side.
    """

    def __init__(self, store: TaskStore, own: OwnIntents, threads: Executor) -> None:
        self._store = store
        self._own = own
        self._threads = threads
        self._known: dict[Key, Intent] = {}
        self._seen: frozenset[str] = frozenset()
        """Names of the intents that the last look has found."""

        self.unreadable_firings = ""
        """Why others' firings cannot be counted at a limit, by the last look and what is new since; empty if they can.
        No window may be fired under a limit then."""

        self._looked: datetime | None = None
        """When that look began, by the storage server's clock."""

    def announce(self, events: Sequence[Event], until: float = math.inf) -> Announcement:
        """Write down which traces are about to be moved, then check who else is about to move them.

        It takes one request for 1,000 traces and one list. If it fails or is interrupted, the intents that it wrote are
        completed, since nothing was moved yet: renewed no more, and deleted once they are old enough.

        :param events: the traces.
        :param until: when to stop waiting for other dispatchers, by the monotonic clock; by default after five seconds.
        :returns: the traces that must be left alone, and those in doubt.
        :raises google.api_core.exceptions.GoogleAPIError: if that fails; then nothing may be moved.
        """
        own = self._own.announce(events)
        try:
            return self._check_others(own, {event.name for event in events}, until)
        except BaseException:
            self._own.complete(own)
            raise

    def new_since_look(self) -> tuple[list[OpenFiring], set[str]] | None:
        """Return what other dispatchers have written down since the last :meth:`look`: one list.

        Completed intents are included, since that look has not seen what came of them.

        :returns: firings, and names of traces; ``None`` if the look began so long ago that intents which were written
            and completed since may be gone already, or if there was none.
        :raises google.api_core.exceptions.GoogleAPIError: if the intents cannot be read.
        """
        now, listed = self._store.listing(INTENTS)
        if self._looked is None or now - self._looked > timedelta(seconds=_MAX_LOOK_AGE_S):
            return None
        new = [
            stored
            for stored in listed
            if stored.name not in self._seen
            and not stored.name.endswith((COMPLETED_ENDING, LEFT_ENDING))
            and not self._own.wrote(stored)
        ]
        read = self._read_all(new)
        self.unreadable_firings = self.unreadable_firings or self._unreadable_firings(read)
        firings = {firing.key: firing for intent in read for firing in intent.firings}  # some are written down twice
        return list(firings.values()), {name for intent in read for name, _ in intent.moves}

    def _check_others(self, own: tuple[Intent, ...], wanted: Set[str], until: float) -> Announcement:
        """Check who else is about to move traces, and perhaps wait for them.

        :param wanted: names of the traces.
        """
        mine = {name for name, _ in self._own.completed}.union(intent.object.name for intent in own)
        now, others = self._uncompleted(lambda name: name not in mine)
        rivals = self._rivals(others, wanted, now)
        # Of dispatchers that see each other, the one with the lowest owner ID waits, and all others leave the traces. A
        # dispatcher whose intent is not seen here writes it later, and will see the intents of this one.
        contested = bool(rivals)
        if self._is_worth_waiting(rivals, now):
            until = min(until, time.monotonic() + _MAX_WAIT_S)
            seen = {intent.object.name for intent in others}
            while self._is_worth_waiting(rivals, now) and time.monotonic() < until:
                time.sleep(_POLL_INTERVAL_S * random.uniform(0.5, 1.5))  # noqa: S311  (spreads load, hides nothing)
                now, others = self._uncompleted(lambda name: name in seen or name.endswith(LEFT_ENDING))
                rivals = self._rivals(others, wanted, now)
        held = {name for intent in rivals for name, _ in intent.moves if name in wanted}
        if held:
            log.info("Another dispatcher is moving %s; leaving them to it", counted(len(held), "trace"))
        in_doubt = {key for intent in others if self._is_abandoned(intent, now) for key in intent.moves}
        return Announcement(own, held, in_doubt, self._unreadable(others), contested)

    def _rivals(self, others: Iterable[Intent], wanted: Set[str], now: datetime) -> list[Intent]:
        """Return the intents of other dispatchers that may be moving some of the traces, or have left some."""
        alive = (intent for intent in others if not self._is_abandoned(intent, now))
        return [intent for intent in alive if not wanted.isdisjoint(name for name, _ in intent.moves)]

    def _is_abandoned(self, intent: Intent, now: datetime) -> bool:
        """Return whether nobody works on an intent any more: it is too old, or from this dispatcher's past."""
        return intent.owner == self._own.owner or now - intent.object.created > LEASE

    def _is_worth_waiting(self, rivals: Iterable[Intent], now: datetime) -> bool:
        """Return whether to wait for other dispatchers, since they will leave the traces or soon finish them.

        Dispatchers that wrote their intents a while ago are busy or gone, and are not waited for.
        """
        moving = [intent for intent in rivals if not intent.object.name.endswith(LEFT_ENDING)]
        young = any((now - intent.object.created).total_seconds() <= _MAX_WAIT_S for intent in moving)
        return young and self._own.owner < min(intent.owner for intent in moving)

    def _unreadable(self, intents: Iterable[Intent]) -> tuple[tuple[datetime, str], ...]:
        return tuple(
            (
                intent.object.created,
                f"intent {self._store.task_url(intent.object.name)!r} cannot be read ({intent.problem}), so everything "
                "older waits: upgrade this dispatcher, or delete the object once no other dispatcher runs",
            )
            for intent in intents
            if intent.problem and intent.object.name.endswith(".json")  # anything else is no intent
        )

    def _unreadable_firings(self, intents: Iterable[Intent]) -> str:
        """Return a sentence about the first intent of windows that cannot be read; empty without one."""
        unreadable = (each for each in intents if each.problem and not each.invalid)
        for intent in unreadable:
            if intent.object.name.endswith(WINDOWS_ENDING):
                return (
                    f"all windows wait, since intent {self._store.task_url(intent.object.name)!r} cannot be read "
                    f"({intent.problem}), so the windows that it holds cannot be counted at MaxConcurrentJobs: upgrade "
                    "this dispatcher, or delete the object once no other dispatcher runs"
                )
        return ""

    def withdraw(self, announcement: Announcement, unresolved: Sequence[Event]) -> None:
        """Complete the intents of an announcement.

        :param announcement: as :meth:`announce` returned it.
        :param unresolved: traces that may have been delivered and still exist. They go into a new intent, unless an
            older one holds them.
        """
        left = [event for event in unresolved if event.key not in announcement.in_doubt]
        self._own.withdraw(announcement.own, left, mark=announcement.contested)

    def look(
        self, intents: Sequence[StoredObject], present: Collection[Key], now: datetime, since: datetime | None = None
    ) -> IntentsFound:
        """Read the intents of a task folder.

        :param intents: all objects of its ``intents/``, from a listing.
        :param present: names and generations of its traces.
        :param now: the storage server's time of the listing.
        :param since: when the trigger bucket was listed; by default ``now``. A move that was completed
            before this time counts at its limit by its copy in that list, a later one by its intent.
        """
        names = {stored.name for stored in intents}
        self._own.keep_only(names)
        completed, unknown = self._deletable_and_unread(intents, now)
        read = self._read_all(unknown)
        completed += [
            intent.object.key
            for intent in read
            if not (intent.problem or intent.firings or intent.object.protected_by)
            and intent.moves.isdisjoint(present)
            and now - intent.object.created > self._min_age_to_delete
        ]
        self._known = {key: intent for key, intent in self._known.items() if key[0] in names}
        of_windows = tuple(intent for intent in read if intent.firings)
        others = self._read_all(self._moving(intents, now, since or now))
        moving = frozenset(name for intent in others for name, _ in intent.moves)
        # Only now: what could not be read must not count as seen.
        self._seen, self._looked = frozenset(names), since or now
        self.unreadable_firings = self._unreadable_firings(read)
        return IntentsFound(of_windows, moving, self._unreadable(read), tuple(completed))

    def announced(self, intents: Sequence[StoredObject]) -> dict[Key, datetime]:
        """Return which traces dispatchers have announced and may not be through with, and when each was announced last.

        :param intents: all objects of the task folder's ``intents/``, from a listing.
        :raises google.api_core.exceptions.GoogleAPIError: if they cannot be read.
        """
        found = sorted(self._read_all(_uncompleted(intents)), key=lambda intent: intent.object.created)
        return {key: intent.object.created for intent in found for key in intent.moves}

    def _deletable_and_unread(
        self, intents: Sequence[StoredObject], now: datetime
    ) -> tuple[list[Key], list[StoredObject]]:
        """Return the completed intents that may be deleted, and the intents that must be read."""
        names = {stored.name for stored in intents}
        completed: list[Key] = []
        unknown: list[StoredObject] = []
        completed_at = _completed_at(intents)
        for stored in intents:
            key = stored.key
            since = max(stored.created, completed_at.get(stored.name, stored.created))
            deletable = now - since > self._min_age_to_delete and not stored.protected_by
            abandoned = now - stored.created > LEASE
            if stored.name.endswith(COMPLETED_ENDING):
                # This mark is deleted after its intent: an intent alone would look like that of a dispatcher that died.
                if deletable and stored.name.removesuffix(COMPLETED_ENDING) not in names:
                    completed.append(key)
            elif f"{stored.name}{COMPLETED_ENDING}" in names:
                if deletable:
                    completed.append(key)
            elif key not in self._own.completed and (abandoned or stored.name.endswith(WINDOWS_ENDING)):
                unknown.append(stored)
        return completed, unknown

    @property
    def _min_age_to_delete(self) -> timedelta:
        return timedelta(seconds=KEEP_COMPLETED_S) if self._own.limited else _MIN_AGE_TO_DELETE

    def _moving(self, intents: Sequence[StoredObject], now: datetime, since: datetime) -> list[StoredObject]:
        """Return other dispatchers' intents that were neither completed nor abandoned; none if nothing is limited.

        :param since: the time for which that is asked: to list the trigger bucket since may have taken longer than a
            lease.
        """
        completed_at = _completed_at(intents)
        return [
            stored
            for stored in intents
            if self._own.limited
            and not stored.name.endswith((COMPLETED_ENDING, LEFT_ENDING, WINDOWS_ENDING))
            and not self._own.wrote(stored)
            and completed_at.get(stored.name, now) >= since
            and (stored.name in completed_at or since - stored.created < LEASE)
        ]

    def _uncompleted(self, is_wanted: Callable[[str], bool]) -> tuple[datetime, list[Intent]]:
        """List and read intents of moves that are not completed, this dispatcher's left ones among them.

        :param is_wanted: tells by an intent's name whether to read it.
        :returns: the server's time of the list, and the intents.
        :raises google.api_core.exceptions.GoogleAPIError: if some of them are said to be gone, however often they are
            listed.
        """
        for _ in range(_MAX_LISTS):
            now, listed = self._store.listing(INTENTS)
            wanted = [stored for stored in _uncompleted(listed) if is_wanted(stored.name)]
            read = self._read_all(wanted)
            # Before an intent is deleted, what it leaves in doubt is written into another one, which this list may
            # not have.
            if len(read) == len(wanted):
                return now, read
        gone = {stored.name for stored in wanted}.difference(intent.object.name for intent in read)
        url = self._store.task_url(min(gone))
        raise GoogleAPIError(f"intent {url!r} is listed, and reading it is answered 404")

    def _read_all(self, objects: Iterable[StoredObject]) -> list[Intent]:
        """Read intents, each once; leave out those that are gone."""
        return [intent for intent in self._threads.map(self._read, objects) if intent is not None]

    def _read(self, stored: StoredObject) -> Intent | None:
        intent = self._own.firings.get(stored.key) or self._known.get(stored.key)
        if intent is None:
            try:
                content = self._store.read(self._store.task_url(stored.name), MAX_INTENT_BYTES, stored.size)
                intent = parse_intent(stored, content)
            except NotFound:
                return None
            except ObjectTooLarge as error:
                intent = Intent(stored, "", problem=in_one_line(str(error)))
            if not intent.problem:  # perhaps the answer was broken, and not the intent: the next look reads it again
                self._known[stored.key] = intent
        return intent


def _completed_at(intents: Iterable[StoredObject]) -> dict[str, datetime]:
    """Return when intents were marked as completed, by their names."""
    marks = (each for each in intents if each.name.endswith(COMPLETED_ENDING))
    return {each.name.removesuffix(COMPLETED_ENDING): each.created for each in marks}


def _uncompleted(intents: Iterable[StoredObject]) -> list[StoredObject]:
    """Return the intents of traces that nobody has marked as completed."""
    listed = list(intents)
    names = {stored.name for stored in listed}
    return [
        stored
        for stored in listed
        if not stored.name.endswith((COMPLETED_ENDING, WINDOWS_ENDING))
        and f"{stored.name}{COMPLETED_ENDING}" not in names
    ]
