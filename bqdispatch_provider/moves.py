"""How a trace is moved and a window fired: copy, prove, and only then delete or mark (docs/protocol.md).

Where it is not known whether an event was delivered - the answer to its copy was lost, or a dispatcher ended in
between - it is in doubt, and settled in this order:

1. It is given a new generation. A copy that is still under way names the old one, so it can no longer be made.
2. The trigger bucket is searched for a copy, live, noncurrent or soft-deleted, that is younger than the event: then it
   was delivered, and only the rest is left to do.
3. Otherwise it was not, where the bucket keeps what is deleted. Where it does not, ``OnDoubt`` of the configuration
   decides.

So nothing rests on clocks: a dispatcher that was stopped for an hour between two calls can no longer deliver.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import datetime

from google.api_core.exceptions import PreconditionFailed

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.model import CREATED, OWNER, Event, Lane, Outcome, Quarantine, Sentinel, StoredObject
from bqdispatch_provider.names import WindowName, in_words
from bqdispatch_provider.planning import CLAIM_TIMEOUT, aside_path, is_target, other_target, target_of
from bqdispatch_provider.quarantine import NOTE, note_of
from bqdispatch_provider.storage import STORAGE_ERRORS, Result, Stamp, TaskStore

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
    """

    event: Event
    outcome: Outcome
    error: str = ""
    open: bool = False
    reason: str = ""
    target: str = ""


@dataclass(slots=True)
class _Move:
    """An event on its way.

    :param usual: the target that follows from the event alone.
    :param generation: of its object, as it is now.
    :param doubtful: whether it may have been delivered before.
    :param copy: generation of its copy, once that is proven.
    :param warning: what is to be reported although it was delivered.
    """

    event: Event
    usual: str
    generation: int
    doubtful: bool = False
    copy: int = 0
    warning: str = ""
    target: str = field(init=False)

    def __post_init__(self) -> None:
        self.target = self.usual

    @property
    def key(self) -> tuple[str, int]:
        return (self.event.name, self.generation)


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
        self.may_delete = False
        """Whether a delete in the task folder was seen to work."""
        self.refused = 0
        """The status of a delete that was refused; 0 when none was."""
        # What was copied but could not be deleted or marked: only that is still to be done.
        self._unfinished: dict[tuple[str, int], int] = {}

    def move(self, events: Sequence[Event], until: float) -> list[Done]:
        """Move traces.

        :param until: when no more copies are begun, by the monotonic clock.
        """
        moves = [_Move(e, target_of(e, Lane.JOBS, self.config), e.generation, e.doubted) for e in events]
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
                moves.append(_Move(one.event, path, one.event.generation))
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
        """Fire windows: claim each by its sentinel, copy it, and mark the sentinel as fired once that is proven."""
        done: dict[str, Done] = {}
        claims: dict[str, Sentinel] = {}
        moves: list[_Move] = []
        until, now, owner = time.monotonic() + AT_MOST, self.store.now(), uuid.uuid4().hex
        stamps: list[Stamp] = [
            (
                each.name,
                each.generation,
                WindowName.parse(each.name).sentinel,
                0,
                Sentinel.claim(each.generation, owner, now),
            )
            for each in events
        ]
        for event, stamp, result in zip(events, stamps, self.store.stamp(stamps), strict=True):
            claim, taken_over = self._claimed(event, stamp, result, now)
            if isinstance(claim, Done):
                done[event.name] = claim
            else:
                claims[event.name] = claim
                target = target_of(event, Lane.WINDOWS, self.config)
                moves.append(_Move(event, target, event.generation, taken_over or event.doubted))
        fired = self._carry_out(moves, lambda copied: self._mark(copied, claims), until)
        done.update((one.event.name, one) for one in fired)
        return [done[event.name] for event in events]

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
                done[one.event.name] = replace(one, error=one.error or move.warning)
                if not one.open:
                    self._unfinished.pop(move.key, None)

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
                    done[move.event.name] = Done(move.event, Outcome.PENDING)
                break
            refused = self._copied(left, finished, to)
            left = []
            for move, result in refused:
                if result.lost and to is None:
                    move.doubtful = True
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
        results = self.store.copy([(move.event.name, move.generation, move.target) for move in moves], to)
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
        content: dict[str, StoredObject] = {}
        fenced: list[_Move] = []
        for move, result in zip(doubtful, self._fence(doubtful), strict=True):
            if isinstance(result, Done):
                done[move.event.name] = result
            else:
                content[move.event.name] = result
                move.generation = result.generation
                fenced.append(move)
        delivered: list[_Move] = []
        stems = [move.usual.rpartition(".")[0] for move in fenced]
        for move, found in zip(fenced, self.store.versions(stems) if stems else [], strict=True):
            event = move.event
            if isinstance(found, Result):
                said = f"it cannot be told whether {self._url(event.name)} was delivered, so it waits: {found}"
                done[event.name] = Done(event, Outcome.ERROR, said, open=True)
                continue
            copies = [
                each
                for each in found
                if is_target(each.name, move.usual)
                and each.same_content(content[event.name])
                and each.created > event.created
            ]
            if copies:
                log.info("%s was delivered before: only the rest is done", self._url(event.name))
                move.copy = copies[-1].generation
                delivered.append(move)
            elif self.store.keeps_deleted(event.created):
                move.doubtful = False
                left.append(move)
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
            finished([move])  # its sentinel says that it was fired, so that it is known should it come again
            if done[move.event.name].outcome is not Outcome.DISPATCHED:
                return done[move.event.name]
        reason = (
            "it may have been delivered already: that could neither be proven nor excluded, for bucket "
            f"{self.config.trigger_bucket!r} does not keep what is deleted"
        )
        (one,) = self.set_aside([Quarantine(move.event.name, move.generation, move.event.created, reason)])
        return replace(one, event=move.event)

    def _fence(self, moves: Sequence[_Move]) -> list[StoredObject | Done]:
        """Give objects a new generation, which no copy that is still under way can name."""
        stamps: list[Stamp] = []
        for move in moves:
            metadata = {CREATED: f"{move.event.created.timestamp():.6f}", OWNER: self.owner}
            stamps.append((move.event.name, move.generation, move.event.name, move.generation, metadata))
        fenced: list[StoredObject | Done] = []
        for move, result in zip(moves, self.store.stamp(stamps), strict=True):
            event = move.event
            said = f"{self._url(event.name)} may have been delivered, and cannot be settled: {result}"
            if not result.ok and not result.doubtful:
                fenced.append(Done(event, Outcome.ERROR, said, open=True))
                continue
            if result.body.get("crc32c"):
                size = int(result.body.get("size", 0))
                fenced.append(StoredObject(event.name, result.generation, event.created, result.body["crc32c"], size))
                continue
            try:
                # One's own under a 412 is the answer to a first try that was lost.
                now = self.store.look(event.name)
            except STORAGE_ERRORS as error:
                fenced.append(Done(event, Outcome.ERROR, f"{said}; {in_words(error)}", open=True))
                continue
            mine = now is not None and now.metadata.get(OWNER) == self.owner
            fenced.append(now if now is not None and mine else Done(event, Outcome.IGNORED))
        return fenced

    def _delete(self, copied: Sequence[_Move]) -> list[Done]:
        done: list[Done] = []
        for move, result in zip(copied, self.store.delete([move.key for move in copied]), strict=True):
            # Gone, or written again meanwhile, which is another trace: what was copied is no longer there either way.
            if result.ok or result.doubtful:
                self.may_delete = True
                done.append(Done(move.event, Outcome.DISPATCHED, target=move.target))
            else:
                self.refused = self.refused or result.status or 503
                said = f"{self._url(move.event.name)} was copied but not deleted, which is tried again later: {result}"
                done.append(Done(move.event, Outcome.ERROR, said, open=True))
        return done

    def _look_into(self, move: _Move, result: Result, to: str | None) -> Done | None:  # noqa: PLR0911  (one per case)
        """Find out why a copy was refused, by what lies at both ends now, never by the status alone.

        :returns: what became of the event; ``None`` when it was copied before (``move.copy``), or goes to another
            target (``move.target``).
        """
        event = move.event
        said = f"{self._url(event.name)} could not be copied to {move.target!r}, so it waits: {result}"
        if not result.doubtful:
            return Done(event, Outcome.ERROR, said)
        try:
            source = self.store.look(event.name)
            there = self.store.look_at_target(move.target, to)
        except STORAGE_ERRORS as error:
            return Done(event, Outcome.ERROR, f"{said}; and it cannot be looked into: {in_words(error)}")
        if source is None or source.generation != move.generation:
            return Done(event, Outcome.IGNORED)
        if there is None and result.status == 412:
            return Done(event, Outcome.PENDING)  # what lay there has been consumed meanwhile
        if there is None:
            return Done(event, Outcome.ERROR, said)
        if source.same_content(there):
            move.copy = there.generation
            return None
        other = other_target(move.usual, move.generation)
        if move.target == other:
            return Done(event, Outcome.ERROR, said)
        # Another trace of the same name lies there, not consumed yet: this one goes out beside it.
        move.target = other
        return None

    def _mark(self, copied: Sequence[_Move], claims: Mapping[str, Sentinel]) -> list[Done]:
        """Write into the sentinels that, and when, their windows were fired."""
        stamps: list[Stamp] = []
        now = self.store.now()
        for move in copied:
            claim = claims[move.event.name]
            fired = claim.fire(move.generation, move.copy, now)
            stamps.append((move.event.name, move.generation, claim.object.name, claim.object.generation, fired))
        done: list[Done] = []
        for move, result in zip(copied, self.store.stamp(stamps), strict=True):
            if result.ok or (result.doubtful and self._is_marked(move)):
                done.append(Done(move.event, Outcome.DISPATCHED, target=move.target))
            else:
                said = f"{self._url(move.event.name)} was fired, but its sentinel could not say so: {result}"
                done.append(Done(move.event, Outcome.ERROR, said, open=True))
        return done

    def _claimed(self, event: Event, stamp: Stamp, result: Result, now: datetime) -> tuple[Sentinel | Done, bool]:
        """The sentinel by which a window is ours to fire, or what became of the window instead; and whether somebody
        else had claimed it before."""
        name, generation, target, replaces, metadata = stamp
        if result.ok:
            written = StoredObject(target, result.generation, event.created, metadata=metadata)
            return Sentinel.of(written), bool(replaces)
        said = f"{self._url(name)} could not be claimed for firing: {result}"
        if not result.doubtful:
            return Done(event, Outcome.ERROR, said), False
        try:
            there = self.store.look(target)
        except STORAGE_ERRORS as error:
            return Done(event, Outcome.ERROR, f"{said}; and it cannot be looked into: {in_words(error)}"), False
        sentinel = None if there is None else Sentinel.of(there)
        if sentinel is not None and sentinel.owner == metadata[OWNER]:
            return sentinel, bool(replaces)  # one's own under a 412 is the answer to a first try that was lost
        if sentinel is None or sentinel.fired is not None or now - sentinel.claimed < CLAIM_TIMEOUT or replaces:
            return Done(event, Outcome.IGNORED), False
        log.info("%s was claimed at %s and not fired: taking it up again", self._url(name), sentinel.claimed)
        take_over = (name, generation, target, sentinel.object.generation, metadata)
        (again,) = self.store.stamp([take_over])
        return self._claimed(event, take_over, again, now)

    def _is_marked(self, move: _Move) -> bool:
        """Whether the answer that a window was marked has been lost."""
        try:
            there = self.store.look(WindowName.parse(move.event.name).sentinel)
        except STORAGE_ERRORS:
            return False
        sentinel = None if there is None else Sentinel.of(there)
        return sentinel is not None and sentinel.window == move.generation and sentinel.fired is not None

    def _url(self, name: str) -> str:
        """An object of the task folder for a message: names are untrusted text."""
        return repr(self.store.task_url(name))
