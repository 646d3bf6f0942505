"""Events in doubt: they may have been delivered, because an answer was lost or a dispatcher ended between two calls.

1. The *fence*: the source is composed onto itself, which gives it a new generation. A copy that is still under way
   names the old generation, so it can no longer succeed.
2. The trigger bucket is searched for a copy: live, noncurrent and soft-deleted objects. One with the same content that
   is younger than the event proves its delivery, and only the delete or the ledger's entry is left to do.
3. Without such a copy the event was not delivered, provided that the bucket keeps deleted objects. Otherwise
   ``OnDoubt`` of the configuration decides (docs/protocol.md, "How a move is made").

No clock decides: a dispatcher that was stopped for an hour between two calls can no longer deliver what was fenced.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from enum import Enum

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.model import Outcome
from bqdispatch_provider.core.targets import CREATED, OWNER, is_target
from bqdispatch_provider.delivery.moves import EventResult, Move, claim_metadata, wait_until_changeable
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.storage import ComposeRequest, TaskStore
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.names import in_words

log = logging.getLogger(__name__)


class Resolution(Enum):
    """The next step of an event that was in doubt."""

    FINISH = 1
    """It was delivered: delete its source, or record its firing."""

    COPY = 2
    """It was not delivered, or ``OnDoubt`` says to deliver it again."""

    QUARANTINE = 3
    """``OnDoubt`` says to quarantine it."""


def without_proof(config: DispatchConfig) -> str:
    """Return the end of a sentence: a delivery can be neither proven nor excluded, and why.

    :param config: names the trigger bucket.
    """
    return (
        f"can be neither proven nor excluded, since bucket {config.trigger_bucket!r} does not keep deleted objects, or "
        "the account lacks storage.buckets.get"
    )


class InDoubtResolver:
    """Resolves events in doubt.

    :param store: the task folder.
    :param config: names the trigger bucket, and holds ``OnDoubt``.
    """

    def __init__(self, store: TaskStore, config: DispatchConfig) -> None:
        self._store = store
        self._config = config

    def resolve(self, moves: Sequence[Move]) -> Iterator[tuple[Move, EventResult | Resolution]]:
        """Yield what to do with each event, or its result when nothing can be done in this cycle.

        :param moves: events in doubt, at most 100.
        """
        fenced = [move for move in moves if move.fenced is not None]
        unfenced = [move for move in moves if move.fenced is None]
        for move, result in zip(unfenced, self._fence(unfenced) if unfenced else (), strict=True):
            if isinstance(result, EventResult):
                yield move, result
            else:
                move.fenced, move.generation, move.changed_at = result, result.generation, time.monotonic()
                fenced.append(move)
        if not fenced:
            return
        problem = self._settings_problem()
        stems = [move.usual_target.rpartition(".")[0] for move in fenced]
        for move, versions in zip(fenced, self._store.trigger.versions(stems), strict=True):
            yield move, self._resolution(move, versions, problem)

    def _settings_problem(self) -> str:
        """Return why it is not known now whether the trigger bucket keeps deleted objects; empty if it is."""
        try:
            self._store.trigger.settings()
        except GOOGLE_ERRORS as error:
            return f"the settings of bucket {self._config.trigger_bucket!r} cannot be read: {in_words(error)}"
        return ""

    def _resolution(self, move: Move, versions: list[StoredObject] | Result, problem: str) -> EventResult | Resolution:
        event, url = move.event, repr(self._store.task_url(move.event.name))
        if isinstance(versions, Result):
            error = f"{url} is in doubt and waits: the versions of its copy cannot be listed: {versions}"
            return EventResult(event, Outcome.ERROR, error, in_doubt=True)
        copies = [
            version
            for version in versions
            if is_target(version.name, move.usual_target)
            and move.fenced is not None
            and version.same_content(move.fenced)
            and version.created > move.created
        ]
        if copies:
            log.info("%s was delivered before; only finishing it", url)
            move.copy = copies[-1].generation
            return Resolution.FINISH
        return self._without_copy(move, problem)

    def _without_copy(self, move: Move, problem: str) -> EventResult | Resolution:
        event, url = move.event, repr(self._store.task_url(move.event.name))
        if problem:
            return EventResult(event, Outcome.ERROR, f"{url} is in doubt and waits: {problem}", in_doubt=True)
        if self._store.trigger.keeps_deleted(move.created):
            move.in_doubt = False
            return Resolution.COPY
        if not move.copies_itself and not event.claimed:
            # No look has searched for its load yet: this dispatcher has just claimed it, or has just taken over a claim
            # that the look did not know. So wait: the load will prove the delivery, or the claim is taken over in three
            # minutes. A second delivery beside the first load does harm:
            # 1. BqTail lists the files anew, and finds some that came since.
            # 2. It submits a load under the job ID of the first one, which exists, and takes that for its own.
            # 3. Once that has ended, it deletes or moves all files that it listed, also those that no load has taken.
            error = f"{url} is in doubt; waiting for its load, which would prove its delivery"
            return EventResult(event, Outcome.PENDING, error, in_doubt=True)
        if self._config.on_doubt == "quarantine":
            return Resolution.QUARANTINE
        move.in_doubt = False
        move.warning = (
            f"{url} may have been delivered twice: an earlier delivery {without_proof(self._config)}; enable soft "
            "delete, or set OnDoubt to 'quarantine'"
        )
        log.warning("%s", move.warning)
        return Resolution.COPY

    def _fence(self, moves: Sequence[Move]) -> list[StoredObject | EventResult]:
        """Give sources a new generation; a copy that is still under way names the old one and fails.

        :returns: each source as it is now, or the result of its event.
        """
        wait_until_changeable(moves)
        requests: list[ComposeRequest] = []
        owner = uuid.uuid4().hex
        for move in moves:
            metadata = (
                {CREATED: f"{move.created.timestamp():.6f}", OWNER: owner}
                if move.copies_itself
                else claim_metadata(owner, move.created, move.event)
            )
            requests.append((move.source, move.generation, move.source, move.generation, metadata))
        return [
            self._fenced(move, owner, result)
            for move, result in zip(moves, self._store.compose_with_metadata(requests), strict=True)
        ]

    def _fenced(self, move: Move, owner: str, result: Result) -> StoredObject | EventResult:
        event = move.event
        error = f"{self._store.task_url(event.name)!r} may have been delivered, and could not be fenced: {result}"
        if result.failed:
            return EventResult(event, Outcome.ERROR, error, unresolved=True, in_doubt=True)
        if result.body.get("crc32c"):
            size = int(result.body.get("size", 0))
            return StoredObject(move.source, result.generation, move.created, result.body["crc32c"], size)
        try:
            source = self._store.get(move.source)
        except GOOGLE_ERRORS as lookup_error:
            error = f"{error}; {in_words(lookup_error)}"
            return EventResult(event, Outcome.ERROR, error, unresolved=True, in_doubt=True)
        if source is not None and source.metadata.get(OWNER) == owner:
            return source  # the answer to a first try was lost, and the second one met the first
        if source is not None and source.generation == move.generation:
            return EventResult(event, Outcome.ERROR, error, unresolved=True, in_doubt=True)
        return EventResult(event, Outcome.IGNORED)
