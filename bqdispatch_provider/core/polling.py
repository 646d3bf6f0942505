"""Intervals between two looks at the task folder: short while something is about to happen, long when not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bqdispatch_provider.core.model import Outcome
    from bqdispatch_provider.core.plans import Plan

MIN_INTERVAL_S = 1.0
"""Default of the shortest interval between two looks, in seconds."""

MAX_INTERVAL_S = 5.0
"""Default of the longest interval between two looks, in seconds."""

_SHARE_WHILE_JOBS_RUN = 0.05
_SHARE_WHILE_IDLE = 0.2
"""The interval is this share of the time for which nothing has changed."""

_CLOCK_RESOLUTION_S = 1.0


def seconds_of(argument: str, value: Any) -> float:
    """Return the seconds that an argument says.

    :param argument: its name, for the message.
    :param value: a number, text that is one, or a timedelta.
    :raises ValueError: if it is something else, or below 0.
    """
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{argument} is {value!r}; expected a number of seconds, 0 or more")
    return seconds


@dataclass
class AdaptivePolling:
    """Polling intervals of one loop. They grow while nothing changes.

    :param min_interval_s: shortest interval, in seconds.
    :param max_interval_s: longest interval, in seconds.
    """

    min_interval_s: float = MIN_INTERVAL_S
    max_interval_s: float = MAX_INTERVAL_S
    _seen: tuple[int, Mapping[Outcome, int]] | None = field(default=None, init=False)
    _changed_at: float = field(default=0.0, init=False)

    @classmethod
    def up_to(cls, max_interval_s: float) -> AdaptivePolling:
        """Return the polling of a loop that is told only its longest interval.

        :param max_interval_s: in seconds; below :data:`MIN_INTERVAL_S`, all intervals are that long.
        """
        return cls(min(MIN_INTERVAL_S, max_interval_s), max_interval_s)

    def next_interval(self, plan: Plan | None, now: float) -> float:
        """Return the seconds until the next look.

        They are a share of the time for which nothing has changed: after a minute a running job is looked at every
        three seconds, and a folder in which nothing waits every :attr:`max_interval_s`. What becomes due by time alone
        is looked at when it is due.

        :param plan: of the last look; ``None`` when that failed.
        :param now: time of a monotonic clock, in seconds.
        """
        if plan is None:
            return self.max_interval_s
        seen = (plan.listed, dict(plan.outcomes))
        if seen != self._seen or any(plan.events.values()):
            self._seen, self._changed_at = seen, now
        seconds = (now - self._changed_at) * (_SHARE_WHILE_JOBS_RUN if plan.awaited else _SHARE_WHILE_IDLE)
        if plan.due_in is not None:
            # The server tells its time in whole seconds: a second later, it surely says so.
            seconds = min(seconds, plan.due_in.total_seconds() + _CLOCK_RESOLUTION_S)
        return max(self.min_interval_s, min(seconds, self.max_interval_s))
