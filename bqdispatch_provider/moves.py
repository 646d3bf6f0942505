"""How a trace is moved and a window fired: copy, prove, and only then delete or note it (docs/protocol.md).

A trace is copied itself. Of a window the claim is copied, which lies in the ledger and holds the window's content.

Where it is not known whether an event was delivered - the answer to its copy was lost, or a dispatcher ended in
between - it is in doubt, and settled in this order:

1. What is copied is given a new generation. A copy that is still under way names the old one, so it can no longer be
   made.
2. The trigger bucket is searched for a copy, live, noncurrent or soft-deleted, that is younger than the event: then it
   was delivered, and only the rest is left to do.
3. Otherwise it was not, where the bucket keeps what is deleted. Where it does not, ``OnDoubt`` of the configuration
   decides.

So nothing rests on clocks: a dispatcher that was stopped for an hour between two calls can no longer deliver.
"""

from __future__ import annotations

import logging
import math
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from google.api_core.exceptions import PreconditionFailed

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.courtesy import SAME_NAME_S
from bqdispatch_provider.model import (
    CLAIMED,
    CREATED,
    OWNER,
    REASON,
    REPLAYED,
    Event,
    Key,
    Lane,
    Outcome,
    Quarantine,
    StoredObject,
)
from bqdispatch_provider.names import WindowName, in_words
from bqdispatch_provider.planning import (
    CLAIM_TIMEOUT,
    aside_path,
    entry_name,
    is_target,
    marker_name,
    other_target,
    target_of,
)
from bqdispatch_provider.quarantine import NOTE, note_of
from bqdispatch_provider.storage import BATCH_SIZE, STORAGE_ERRORS, Result, Stamp, TaskStore

log = logging.getLogger(__name__)

AT_MOST = CLAIM_TIMEOUT.total_seconds() / 3
"""For so many seconds after its claim or intent an event is still copied: then others may soon think it left."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one event.

    :param outcome: exactly one.
    :param error: what went wrong, in a sentence; empty when nothing did.
    :param open: whether it may have been delivered although its object is there still.
    :param reason: why it was set aside.
    :param target: path of its copy in the trigger bucket, where it was dispatched.
    :param unclear: whether an event that was not dispatched may have been delivered, so that it keeps its place at a
        limit.
    """

    event: Event
    outcome: Outcome
    error: str = ""
    open: bool = False
    reason: str = ""
    target: str = ""
    unclear: bool = False


@dataclass(slots=True)
class _Move:
    """An event on its way.

    :param usual: the target that follows from the event alone.
    :param source: name of what is copied: the trace, or the claim of the window.
    :param generation: of the source, as it is now.
    :param created: the trace's creation, or the window's first claim: no copy of it is older.
    :param doubtful: whether it may have been delivered before.
    :param content: the source, once no copy that was under way before can be made any more.
    :param changed: when this process has changed the source, by the monotonic clock.
    :param copy: generation of its copy, once that is proven.
    :param warning: what is to be reported although it was delivered.
    :param lost: what was said instead of an answer to its copy.
    :param again: whether its copy was refused for an object that was gone when it was looked for.
    """

    event: Event
    usual: str
    source: str
    generation: int
    created: datetime
    doubtful: bool = False
    content: StoredObject | None = None
    changed: float = -math.inf
    copy: int = 0
    warning: str = ""
    lost: str = ""
    again: bool = False
    target: str = field(init=False)

    def __post_init__(self) -> None:
        self.target = self.usual

    @classmethod
    def of_trace(cls, event: Event, target: str) -> _Move:
        return cls(event, target, event.name, event.generation, event.created, event.doubted)

    @property
    def key(self) -> Key:
        """What is known of its copy goes by the trace's generation as it is now, or by the window's."""
        return (self.event.name, self.generation) if self.source == self.event.name else self.event.key


def _claim_of(owner: str, since: datetime, event: Event) -> dict[str, str]:
    """The metadata of a claim.

    :param since: when the window was claimed first: no copy of it is older.
    """
    replayed = {REPLAYED: str(event.generation)} if event.replayed else {}
    return {OWNER: owner, CLAIMED: f"{since.timestamp():.6f}", **replayed}


def _folder_of(event: Event) -> str:
    return "".join(event.name.rpartition("/")[:2])


def _wait_for_change(moves: Sequence[_Move]) -> None:
    """Wait until the sources may be changed again: a name takes one change a second (Cloud Storage, "Quotas")."""
    pause = max((move.changed for move in moves), default=-math.inf) + SAME_NAME_S - time.monotonic()
    if pause > 0:
        time.sleep(pause)


_Finish = Callable[[Sequence[_Move]], list[Done]]
_Finished = Callable[[Sequence[_Move]], None]


class Mover:
    """Moves traces and fires windows, a chunk of at most 100 at a time; may be used from several threads.

    :param store: the task folder.
    :param config: names the trigger bucket's folders, and ``ErrorURL``.
    :param threads: where notes are written side by side.
    """

    def __init__(self, store: TaskStore, config: DispatchConfig, threads: Executor) -> None:
        self.store = store
        self.config = config
        self._threads = threads
        self.owner = uuid.uuid4().hex
        self._deletable: set[str] = set()
        """Folders in which objects may be deleted, and no delete was refused since that was proven."""
        # What was copied but could not be deleted or marked: only that is still to be done.
        self._unfinished: dict[Key, int] = {}

    def movable(self, events: Sequence[Event]) -> tuple[list[Event], list[Done]]:
        """Tell which traces may be moved: not those in folders where nothing may be deleted, for each copy would be
        delivered again and again.

        That is proven by a delete of what is not there. After a refused delete it is asked again, for that may be one
        object's alone.

        :returns: those that may be, and what becomes of the others.
        """
        folders = sorted({_folder_of(event) for event in events} - self._deletable)
        barred: dict[str, str] = {}
        for folder, result in zip(folders, self.store.delete_nothing(folders) if folders else (), strict=True):
            if result.ok or result.status == 404:
                self._deletable.add(folder)
            else:
                barred[folder] = (
                    f"nothing is moved from {self._url(folder)}, for it would be delivered again and again: a delete "
                    f"there was answered with {result}"
                )
        if not barred:
            return list(events), []
        movable: list[Event] = []
        done: list[Done] = []
        for event in events:
            if (said := barred.get(_folder_of(event))) is None:
                movable.append(event)
            else:
                done.append(Done(event, Outcome.PENDING, said, unclear=event.key in self._unfinished))
        return movable, done

    def move(self, events: Sequence[Event], until: float) -> list[Done]:
        """Move traces.

        :param until: when no more copies are begun, by the monotonic clock.
        """
        moves = [_Move.of_trace(event, target_of(event, Lane.JOBS, self.config)) for event in events]
        return self._carry_out(moves, self._delete, until)

    def set_aside(self, quarantines: Sequence[Quarantine]) -> list[Done]:
        """Move objects to ``ErrorURL``, onto names that a second try finds, each after a note that says why."""
        done: list[Done] = []
        moves: list[_Move] = []
        reasons: dict[str, str] = {}
        for quarantine, one in zip(quarantines, self._threads.map(self._write_note, quarantines), strict=True):
            path = self._aside_path(one.event)
            cut = "" if one.event.name in path else f"; the name is too long there, it lies under ErrorURL as {path!r}"
            reasons[one.event.name] = f"{quarantine.reason}{cut}"
            if one.error:
                done.append(one)
            else:
                moves.append(_Move.of_trace(one.event, path))
        for one in self._carry_out(moves, self._delete, float("inf"), self.config.error_url):
            aside = one.outcome is Outcome.DISPATCHED
            done.append(replace(one, outcome=Outcome.QUARANTINED, reason=reasons[one.event.name]) if aside else one)
        return done

    def _write_note(self, quarantine: Quarantine) -> Done:
        event = Event(quarantine.name, quarantine.generation, quarantine.created)
        note = note_of(quarantine, self.store.task_url(event.name), self.store.now())
        url = f"{self.config.error_url.rstrip('/')}/{self._aside_path(event)}{NOTE}"
        try:
            self.store.write_json(url, note, replaces=0)
        except PreconditionFailed:
            log.debug("%r is there from an earlier try", url)
        except STORAGE_ERRORS as error:
            said = f"{self._url(event.name)} stays, since its note {url!r} cannot be written: {in_words(error)}"
            return Done(event, Outcome.ERROR, said)
        return Done(event, Outcome.QUARANTINED)

    def _aside_path(self, event: Event) -> str:
        return aside_path(event.created, event.name, event.generation, self.config.error_url)

    def fire(self, events: Sequence[Event]) -> list[Done]:
        """Fire windows: claim each in the ledger, copy the claim, and note the firing once the copy is proven.

        A window of many folders is removed once it is claimed: a late event of a new folder makes it anew then, and
        would be lost beside it.
        """
        until = time.monotonic() + AT_MOST
        done = self._without_stale(events)
        moves: list[_Move] = []
        for claim in self._claims([each for each in events if each.name not in done]):
            if isinstance(claim, Done):
                done[claim.event.name] = claim
            else:
                moves.append(claim)
        if many := [move.event.key for move in moves if move.event.many and not move.copy]:
            for (name, _), result in zip(many, self.store.delete(many), strict=True):
                if not result.ok and not result.doubtful:
                    log.warning("%s has many folders and could not be removed yet: %s", self._url(name), result)
        for one in self._carry_out(moves, self._note_fired, until):
            # What was claimed stays written down until the ledger says that it was fired.
            done[one.event.name] = replace(one, open=one.outcome is not Outcome.QUARANTINED)
        return [done[event.name] for event in events]

    def set_undecided(self, quarantines: Sequence[Quarantine]) -> list[Done]:
        """Set windows aside in the task folder, where every look finds them, each with the reason.

        :param quarantines: windows in the task folder, or such as are gone and were claimed; at most 100.
        """
        done: list[Done] = []
        stamps: list[Stamp] = []
        for each in quarantines:
            url = self.config.async_task_url
            marker = marker_name(each.name, each.generation, url)
            claim = entry_name(each.name, each.generation, "claim", url)
            source, generation = (claim, 0) if each.dropped else (each.name, each.generation)
            stamps.append((source, generation, marker, 0, {OWNER: self.owner, REASON: each.reason}))
        for each, stamp, result in zip(quarantines, stamps, self.store.stamp(stamps), strict=True):
            event = Event(each.name, each.generation, each.created)
            said = f"{self._url(each.name)} could not be set aside as {self._url(stamp[2])}: {result}"
            try:
                # It may lie there from an earlier try.
                there = result.ok or (result.doubtful and self.store.look(stamp[2]) is not None)
                gone = not there and result.doubtful and self.store.look(stamp[0]) is None
            except STORAGE_ERRORS as error:
                there, gone, said = False, False, f"{said}; {in_words(error)}"
            if there:
                done.append(Done(event, Outcome.QUARANTINED, reason=each.reason))
            else:
                done.append(Done(event, Outcome.IGNORED) if gone else Done(event, Outcome.ERROR, said))
        kept = [index for index, one in enumerate(done) if one.outcome is Outcome.QUARANTINED]
        deleted = self.store.delete([done[index].event.key for index in kept]) if kept else []
        for index, result in zip(kept, deleted, strict=True):
            if not result.ok and not result.doubtful:
                event = done[index].event
                done[index] = Done(event, Outcome.ERROR, f"{self._url(event.name)} could not be set aside: {result}")
        return done

    def _without_stale(self, events: Sequence[Event]) -> dict[str, Done]:
        """Remove what names folders that were loaded, beside windows that have returned; gives those that must wait.

        What lies there is listed again first: a name of such a folder may have come since the window was judged.
        """
        judged = [event for event in events if event.beside is not None]
        done: dict[str, Done] = {}
        folders = [WindowName.parse(event.name).locations for event in judged]
        for event, found in zip(judged, self.store.entries(folders) if folders else (), strict=True):
            if isinstance(found, Result):
                said = f"{self._url(event.name)} waits, since what names its folders cannot be listed: {found}"
                done[event.name] = Done(event, Outcome.ERROR, said)
            elif not {(each.name, each.generation) for each in found} <= {*event.stale, *(event.beside or ())}:
                done[event.name] = Done(event, Outcome.PENDING)
        stale = [(event, key) for event in judged if event.name not in done for key in event.stale]
        for start in range(0, len(stale), BATCH_SIZE):
            chunk = stale[start : start + BATCH_SIZE]
            for (event, (name, _)), result in zip(chunk, self.store.delete([key for _, key in chunk]), strict=True):
                if result.doubtful and result.status == 412:  # written again: the window is judged anew
                    done[event.name] = Done(event, Outcome.PENDING)
                elif not result.ok and not result.doubtful:
                    said = f"{self._url(event.name)} waits, since {self._url(name)} could not be removed: {result}"
                    done[event.name] = Done(event, Outcome.ERROR, said)
        return done

    def _claims(self, events: Sequence[Event]) -> list[_Move | Done]:
        """Claim windows, or take their claims over from whoever is gone."""
        owner = uuid.uuid4().hex
        known = {event.key: self._window_move(event) for event in events if event.key in self._unfinished}
        fresh = [event for event in events if event.key not in known and not event.claimed]
        now = self.store.now()  # it is never ahead
        stamps: list[Stamp] = [
            (each.name, each.generation, self._entry(each, "claim"), 0, _claim_of(owner, now, each)) for each in fresh
        ]
        results = {
            event.key: self._claimed(event, owner, result, now)
            for event, result in zip(fresh, self.store.stamp(stamps) if stamps else (), strict=True)
        }
        return [known.get(event.key) or results.get(event.key) or self._taken_over(event, owner) for event in events]

    def _entry(self, event: Event, what: str) -> str:
        return entry_name(event.name, event.generation, what, self.config.async_task_url)

    def _window_move(self, event: Event, claimed: datetime | None = None) -> _Move:
        target = target_of(event, Lane.WINDOWS, self.config)
        return _Move(event, target, self._entry(event, "claim"), 0, claimed or event.created)

    def _claimed(self, event: Event, owner: str, result: Result, now: datetime) -> _Move | Done:  # noqa: PLR0911  (one per case)
        """A window that is ours to fire, or what became of it instead."""
        move = self._window_move(event, now)
        said = f"{self._url(event.name)} could not be claimed for firing: {result}"
        if result.ok:
            move.generation, move.changed = result.generation, time.monotonic()
            return move
        if not result.doubtful:
            return Done(event, Outcome.ERROR, said)
        try:
            claim = self.store.look(move.source)
            if claim is None:
                window = self.store.look(event.name)
                same = window is not None and window.generation == event.generation
                return Done(event, Outcome.ERROR, said) if same else Done(event, Outcome.IGNORED)
        except STORAGE_ERRORS as error:
            return Done(event, Outcome.ERROR, f"{said}; and it cannot be looked into: {in_words(error)}")
        if claim.metadata.get(OWNER) == owner:  # the answer to a first try was lost
            move.generation, move.changed = claim.generation, time.monotonic()
            return move
        if self.store.now() - claim.created < CLAIM_TIMEOUT:
            return Done(event, Outcome.IGNORED)
        return self._taken_over(event, owner)

    def _taken_over(self, event: Event, owner: str) -> _Move | Done:
        """A window whose claim somebody left: from now on nobody else can deliver it, but it may have been."""
        move = self._window_move(event)
        said = f"{self._url(event.name)} was claimed and not fired, and its claim cannot be taken over"
        try:
            claim = self.store.look(move.source)
            if claim is None or self.store.now() - claim.created < CLAIM_TIMEOUT:
                return Done(event, Outcome.IGNORED)
            with suppress(KeyError, ValueError, OverflowError, OSError):
                move.created = datetime.fromtimestamp(float(claim.metadata[CLAIMED]), UTC)
            if REPLAYED in claim.metadata:
                move.event = replace(event, replayed=True)
            metadata = _claim_of(owner, move.created, move.event)
            (result,) = self.store.stamp([(move.source, claim.generation, move.source, claim.generation, metadata)])
            if not result.ok and not result.doubtful:
                return Done(event, Outcome.ERROR, f"{said}: {result}")
            again = self.store.look(move.source)
            if again is None or again.metadata.get(OWNER) != owner:
                same = again is not None and again.generation == claim.generation
                return Done(event, Outcome.ERROR, f"{said}: {result}") if same else Done(event, Outcome.IGNORED)
            if self.store.look(self._entry(event, "fired")) is not None:
                return Done(event, Outcome.IGNORED)
        except STORAGE_ERRORS as error:
            return Done(event, Outcome.ERROR, f"{said}: {in_words(error)}")
        log.info("%s was claimed at %s and not fired: taking it up again", self._url(event.name), claim.created)
        move.generation, move.content, move.changed = again.generation, again, time.monotonic()
        move.doubtful = True
        return move

    def _carry_out(self, moves: Sequence[_Move], finish: _Finish, until: float, to: str | None = None) -> list[Done]:
        """Copy each event to its target, finish exactly what is proven to be copied, and look into what was refused.

        What was copied but could not be finished is kept in mind, and only finished when it comes again.

        :param finish: takes events that were copied.
        :param to: URL of the folder to copy to; by default the trigger bucket.
        """
        done: dict[str, Done] = {}

        def finished(copied: Sequence[_Move]) -> None:
            self._unfinished.update({move.key: move.copy for move in copied})
            for one, move in zip(finish(copied) if copied else [], copied, strict=True):
                if not one.open:
                    self._unfinished.pop(move.key, None)
                # In a new generation it says itself that it is in doubt.
                is_open = one.open and move.generation == one.event.generation
                done[one.event.name] = replace(one, error=one.error or move.warning, open=is_open)

        left: list[_Move] = []
        for move in moves:
            move.copy = self._unfinished.get(move.key, 0)
            if not move.copy:
                left.append(move)
        finished([move for move in moves if move.copy])
        delay = 0.2
        while left:
            left = self._settled(left, finished, done)
            if time.monotonic() > until:
                for move in left:
                    one = Done(move.event, Outcome.PENDING)
                    if move.lost:
                        one = Done(move.event, Outcome.ERROR, self._not_copied(move, move.lost), unclear=True)
                    done[move.event.name] = one
                break
            refused = self._copied(left, finished, to)
            left = []
            for move, result in refused:
                if result.lost and to is None:
                    move.doubtful, move.content, move.lost = True, None, str(result)
                    left.append(move)
                elif (found := self._look_into(move, result, to)) is not None:
                    done[move.event.name] = found
                elif move.copy:
                    finished([move])
                else:
                    left.append(move)
            if any(move.doubtful for move in left):
                time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  (spreads load, hides nothing)
                delay = min(delay * 2, 8.0)
        return [done[move.event.name] for move in moves]

    def _copied(self, moves: Sequence[_Move], finished: _Finished, to: str | None) -> list[tuple[_Move, Result]]:
        """Copy and finish; those that were not copied come back, with what was said."""
        copied: list[_Move] = []
        refused: list[tuple[_Move, Result]] = []
        results = self.store.copy([(move.source, move.generation, move.target) for move in moves], to)
        for move, result in zip(moves, results, strict=True):
            if result.ok:
                move.copy = result.generation
                copied.append(move)
            else:
                refused.append((move, result))
        finished(copied)  # before the rest is looked into, which takes time in which these could be consumed
        return refused

    def _settled(self, moves: Sequence[_Move], finished: _Finished, done: dict[str, Done]) -> list[_Move]:
        """The events that are to be copied, once those in doubt are settled."""
        left = [move for move in moves if not move.doubtful]
        doubtful = [move for move in moves if move.doubtful]
        if not doubtful:
            return left
        fenced: list[_Move] = [move for move in doubtful if move.content is not None]
        unfenced = [move for move in doubtful if move.content is None]
        for move, result in zip(unfenced, self._fence(unfenced) if unfenced else (), strict=True):
            if isinstance(result, Done):
                done[move.event.name] = result
            else:
                move.content, move.generation, move.changed = result, result.generation, time.monotonic()
                fenced.append(move)
        delivered: list[_Move] = []
        stems = [move.usual.rpartition(".")[0] for move in fenced]
        for move, found in zip(fenced, self.store.versions(stems) if stems else [], strict=True):
            event = move.event
            if isinstance(found, Result):
                said = f"it cannot be told whether {self._url(event.name)} was delivered, so it waits: {found}"
                done[event.name] = Done(event, Outcome.ERROR, said, unclear=True)
                continue
            copies = [
                each
                for each in found
                if is_target(each.name, move.usual)
                and move.content is not None
                and each.same_content(move.content)
                and each.created > move.created
            ]
            if copies:
                log.info("%s was delivered before: only the rest is done", self._url(event.name))
                move.copy = copies[-1].generation
                delivered.append(move)
            elif self.store.keeps_deleted(move.created):
                move.doubtful = False
                left.append(move)
            elif move.source != event.name and not event.claimed:
                # In three minutes its load tells, or it is taken up again: a second delivery may delete files unloaded.
                said = f"whether {self._url(event.name)} was delivered cannot be told, so its load is waited for"
                done[event.name] = Done(event, Outcome.PENDING, said, unclear=True)
            elif self.config.on_doubt == "quarantine":
                done[event.name] = self._set_aside_doubtful(move, finished, done)
            else:
                move.doubtful = False
                move.warning = (
                    f"{self._url(event.name)} may have been delivered twice: an earlier delivery could neither be "
                    f"proven nor excluded, for bucket {self.config.trigger_bucket!r} does not keep what is deleted, or "
                    "the account may not ask whether it does (storage.buckets.get); see OnDoubt and soft delete"
                )
                log.warning("%s", move.warning)
                left.append(move)
        finished(delivered)
        return left

    def _set_aside_doubtful(self, move: _Move, finished: _Finished, done: Mapping[str, Done]) -> Done:
        if move.event.name.endswith(".win"):
            finished([move])  # the ledger says that it was fired, so that it is known should it come again
            if done[move.event.name].outcome is not Outcome.DISPATCHED:
                return done[move.event.name]
        reason = (
            "it may have been delivered already: that could neither be proven nor excluded, for bucket "
            f"{self.config.trigger_bucket!r} does not keep what is deleted"
        )
        if move.source != move.event.name:
            return self._set_claim_aside(move, reason)
        (one,) = self.set_aside([Quarantine(move.event.name, move.generation, move.event.created, reason)])
        return replace(one, event=move.event)

    def _set_claim_aside(self, move: _Move, reason: str) -> Done:
        """Set a window aside by its claim, since the window itself may be gone."""
        event = move.event
        noted = self._write_note(Quarantine(event.name, event.generation, move.created, reason))
        if noted.error:
            return replace(noted, event=event)
        path = self._aside_path(replace(event, created=move.created))
        aside = _Move(event, path, move.source, move.generation, move.created)
        (one,) = self._carry_out([aside], self._remove_window, float("inf"), self.config.error_url)
        return replace(one, outcome=Outcome.QUARANTINED, reason=reason) if one.outcome is Outcome.DISPATCHED else one

    def _remove_window(self, copied: Sequence[_Move]) -> list[Done]:
        done: list[Done] = []
        for move, result in zip(copied, self.store.delete([move.event.key for move in copied]), strict=True):
            said = "" if result.ok or result.doubtful else f"{self._url(move.event.name)} was not deleted: {result}"
            done.append(Done(move.event, Outcome.DISPATCHED, said, target=move.target))
        return done

    def _fence(self, moves: Sequence[_Move]) -> list[StoredObject | Done]:
        """Give what is copied a new generation, which no copy that is still under way can name."""
        _wait_for_change(moves)
        stamps: list[Stamp] = []
        owner = uuid.uuid4().hex
        for move in moves:
            is_trace = move.source == move.event.name
            metadata = (
                {CREATED: f"{move.created.timestamp():.6f}", OWNER: owner}
                if is_trace
                else _claim_of(owner, move.created, move.event)
            )
            stamps.append((move.source, move.generation, move.source, move.generation, metadata))
        fenced: list[StoredObject | Done] = []
        for move, result in zip(moves, self.store.stamp(stamps), strict=True):
            event = move.event
            said = f"{self._url(event.name)} may have been delivered, and cannot be settled: {result}"
            if not result.ok and not result.doubtful:
                fenced.append(Done(event, Outcome.ERROR, said, open=True, unclear=True))
                continue
            if result.body.get("crc32c"):
                size = int(result.body.get("size", 0))
                fenced.append(StoredObject(move.source, result.generation, move.created, result.body["crc32c"], size))
                continue
            try:
                # One's own under a 412 is the answer to a first try that was lost.
                now = self.store.look(move.source)
            except STORAGE_ERRORS as error:
                fenced.append(Done(event, Outcome.ERROR, f"{said}; {in_words(error)}", open=True, unclear=True))
                continue
            if now is not None and now.metadata.get(OWNER) == owner:
                fenced.append(now)
            elif now is not None and now.generation == move.generation:
                fenced.append(Done(event, Outcome.ERROR, said, open=True, unclear=True))
            else:
                fenced.append(Done(event, Outcome.IGNORED))
        return fenced

    def _delete(self, copied: Sequence[_Move]) -> list[Done]:
        _wait_for_change(copied)
        done: list[Done] = []
        keys = [(move.source, move.generation) for move in copied]
        for move, result in zip(copied, self.store.delete(keys), strict=True):
            # Gone, or written again meanwhile, which is another trace: what was copied is no longer there either way.
            if result.ok or result.doubtful:
                done.append(Done(move.event, Outcome.DISPATCHED, target=move.target))
            else:
                self._deletable.discard(_folder_of(move.event))
                said = f"{self._url(move.event.name)} was copied but not deleted, which is tried again later: {result}"
                done.append(Done(move.event, Outcome.ERROR, said, open=True, unclear=True))
        return done

    def _look_into(self, move: _Move, result: Result, to: str | None) -> Done | None:  # noqa: PLR0911  (one per case)
        """Find out why a copy was refused, by what lies at both ends now, never by the status alone.

        :returns: what became of the event; ``None`` when it was copied before (``move.copy``), or is to be copied
            again, perhaps to another target (``move.target``).
        """
        event = move.event
        said = self._not_copied(move, str(result))
        if not result.doubtful:
            return Done(event, Outcome.ERROR, said)
        try:
            source = self.store.look(move.source)
            there = self.store.look_at_target(move.target, to)
        except STORAGE_ERRORS as error:
            return Done(event, Outcome.ERROR, f"{said}; and it cannot be looked into: {in_words(error)}")
        if source is None or source.generation != move.generation:
            return Done(event, Outcome.IGNORED)
        if there is None and result.status == 412 and not move.again:
            move.again = True  # what lay there has been consumed meanwhile
            return None
        if there is None:
            return Done(event, Outcome.ERROR, said)
        if source.same_content(there):
            move.copy = there.generation
            return None
        other = other_target(move.usual, move.key[1])
        if move.target == other:
            return Done(event, Outcome.ERROR, said)
        # Another trace of the same name lies there, not consumed yet: this one goes out beside it.
        move.target = other
        return None

    def _note_fired(self, copied: Sequence[_Move]) -> list[Done]:
        """Note in the ledger that, and when, windows were fired."""
        stamps: list[Stamp] = []
        for move in copied:
            metadata = {OWNER: self.owner, "bqdispatch-target": move.target, "bqdispatch-copy": str(move.copy)}
            # The claim may be another's by now, whose generation is not known: the copy is proven all the same.
            stamps.append((move.source, 0, self._entry(move.event, "fired"), 0, metadata))
        done: list[Done] = []
        for move, result in zip(copied, self.store.stamp(stamps), strict=True):
            if result.ok or (result.doubtful and self._is_noted(move)):
                done.append(Done(move.event, Outcome.DISPATCHED, target=move.target))
            else:
                said = f"{self._url(move.event.name)} was fired, but the ledger could not say so: {result}"
                done.append(Done(move.event, Outcome.ERROR, said, open=True, unclear=True))
        return done

    def _is_noted(self, move: _Move) -> bool:
        """Whether the ledger says already that a window was fired."""
        try:
            return self.store.look(self._entry(move.event, "fired")) is not None
        except STORAGE_ERRORS:
            return False

    def _not_copied(self, move: _Move, answer: str) -> str:
        return f"{self._url(move.event.name)} could not be copied to {move.target!r}, so it waits: {answer}"

    def _url(self, name: str) -> str:
        """An object of the task folder for a message: names are untrusted text."""
        return repr(self.store.task_url(name))
