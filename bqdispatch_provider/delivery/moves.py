"""Events on their way: what is copied from where to where, and what became of it.

A trace is copied itself. Of a window its claim is copied, which lies in the ledger and holds the window's content. A
:class:`Move` lives as long as one call of the mover or the firer; whatever must outlive the process is an object in the
task folder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.model import Key, Outcome
from bqdispatch_provider.core.targets import CLAIMED, OWNER, REPLAYED
from bqdispatch_provider.core.windows import CLAIM_TIMEOUT
from bqdispatch_provider.gcp.rate_limit import SAME_NAME_S

MAX_COPYING_S = CLAIM_TIMEOUT.total_seconds() / 3
"""Seconds after its claim in which a copy of a window may still start: others take over a claim after three minutes.

Copies of traces get the same time. It is longer than a lease, so their intents are renewed meanwhile.
"""


@dataclass(frozen=True, slots=True)
class EventResult:
    """The result of one event.

    :param outcome: where the event ended in this cycle.
    :param error: a sentence for the report; empty when nothing went wrong.
    :param unresolved: True if the event must stay in an intent, since its delivery or what follows it is unfinished.
    :param reason: why the event was quarantined; empty otherwise.
    :param target: path of the copy below the trigger bucket or ``ErrorURL``; empty without one.
    :param in_doubt: True if an event may have been delivered (copied) although it was not dispatched (copied and
        deleted or recorded); it keeps its slot at a limit.
    :param refused: True if its copy has failed in a way that proves that it was not delivered.
    """

    event: Event
    outcome: Outcome
    error: str = ""
    unresolved: bool = False
    reason: str = ""
    target: str = ""
    in_doubt: bool = False
    refused: bool = False


@dataclass(slots=True)
class Move:
    """An event that is being copied.

    :param event: the trace or the window.
    :param usual_target: path of the copy, a function of the event alone.
    :param source: name of the object to copy: the trace, or the window's claim.
    :param generation: current generation of the source.
    :param created: creation of the trace, or of the window's first claim; every copy is younger.
    :param in_doubt: True if the event may have been delivered before.
    :param fenced: the source in its new generation, once no earlier copy of it can succeed; ``None`` before.
    :param changed_at: when this process last changed the source, by the monotonic clock.
    :param copy: generation of the proven copy; 0 without one.
    :param warning: what to report although the event was delivered.
    :param lost_answer: what came instead of an answer to the last copy that got none; empty if each got one.
    :param retried: True once the copy was retried because the object in its way was gone.
    """

    event: Event
    usual_target: str
    source: str
    generation: int
    created: datetime
    in_doubt: bool = False
    fenced: StoredObject | None = None
    changed_at: float = -math.inf
    copy: int = 0
    warning: str = ""
    lost_answer: str = ""
    retried: bool = False
    target: str = field(init=False)
    """Path of the copy: the usual one, or an alternative where other content lies at the usual one."""

    def __post_init__(self) -> None:
        self.target = self.usual_target

    @classmethod
    def of_object(cls, event: Event, target: str) -> Move:
        """Return the move of an object that is copied itself: a trace, or whatever goes into quarantine.

        :param event: the object.
        :param target: path of the copy.
        """
        return cls(event, target, event.name, event.generation, event.created, event.in_doubt)

    @property
    def copies_itself(self) -> bool:
        """True if the object of the event is copied, False for a window whose claim is copied."""
        return self.source == self.event.name

    @property
    def key(self) -> Key:
        """The key under which the copy is remembered: of the object in its current generation, or of the window."""
        return (self.event.name, self.generation) if self.copies_itself else self.event.key


def claim_metadata(owner: str, since: datetime, event: Event) -> dict[str, str]:
    """Return the metadata of a claim.

    :param owner: who claims; unique to this attempt.
    :param since: when the window was claimed first.
    :param event: the window.
    """
    replayed = {REPLAYED: str(event.generation)} if event.replayed else {}
    return {OWNER: owner, CLAIMED: f"{since.timestamp():.6f}", **replayed}


def first_claimed(claim: StoredObject) -> datetime:
    """Return when a window was claimed first; a take-over creates the claim anew.

    :param claim: the claim.
    """
    return claim.noted(CLAIMED)


def folder_of_event(event: Event) -> str:
    """Return the folder below the task folder that holds an event, with its slash; empty at the root.

    :param event: a trace.
    """
    return "".join(event.name.rpartition("/")[:2])


def wait_until_changeable(moves: Sequence[Move]) -> None:
    """Wait until all sources may be changed again: one change a second and name (Cloud Storage, "Quotas").

    :param moves: events whose sources are to be changed.
    """
    pause = max((move.changed_at for move in moves), default=-math.inf) + SAME_NAME_S - time.monotonic()
    if pause > 0:
        time.sleep(pause)
