"""The gate for new work: it closes when a run's time is up, or somebody stops or interrupts it.

What was begun before is always finished.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.model import Outcome
from bqdispatch_provider.cycle.task_folder import TaskFolder
from bqdispatch_provider.delivery.moves import EventResult
from bqdispatch_provider.names import counted, in_words

log = logging.getLogger(__name__)

Action = Callable[[Sequence[Event]], list[EventResult]]
"""A function that acts on a batch of events, and returns their results."""


@dataclass
class WorkGate:
    """A gate that lets a cycle begin new work.

    :param go_on: called each time; once it returns ``False``, nothing new is begun.
    :param until: time of the monotonic clock at which the gate closes; by default never.
    :param interrupted: whether a timeout or Ctrl-C has interrupted the cycle.
    """

    go_on: Callable[[], bool]
    until: float = math.inf
    interrupted: bool = False

    @property
    def is_open(self) -> bool:
        """True if new work may be begun now."""
        return self.go_on() and not self.interrupted and time.monotonic() <= self.until

    def act(self, action: Action, events: Sequence[Event], folder: TaskFolder) -> list[EventResult]:
        """Act on events if the gate is open, otherwise leave them pending.

        :param folder: task folder of the events.
        """
        if not self.is_open:
            return [EventResult(event, Outcome.PENDING) for event in events]
        try:
            return action(events)
        except Exception as error:
            log.exception("%s could not be dispatched", counted(len(events), "event"))
            return [
                EventResult(
                    event, Outcome.ERROR, f"{folder.url(event.name)}: {in_words(error)}", unresolved=True, in_doubt=True
                )
                for event in events
            ]
