"""How long to wait between two looks at the task folder: short while something is about to happen, long when not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bqdispatch_provider.model import Outcome, Plan

LEAST = 1.0
"""Seconds between two looks at least, where nobody says otherwise."""

MOST = 5.0
"""Seconds between two looks at most, where nobody says otherwise."""

_SHARE_WAITING = 0.05
_SHARE_IDLE = 0.2
_CLOCK = 1.0


def pause(plan: Plan, quiet: float, least: float = LEAST, most: float = MOST) -> float:
    """Seconds until the next look.

    A share of the time for which nothing has happened: a job that has run for a minute is looked at every three
    seconds, a folder in which nothing waits grows quiet four times as fast. What becomes due by time alone is looked at
    when it is.

    :param plan: of the last look.
    :param quiet: seconds for which the looks have shown the same.
    :param least: seconds between two looks at least.
    :param most: seconds between two looks at most.
    """
    seconds = quiet * (_SHARE_WAITING if plan.awaited else _SHARE_IDLE)
    if plan.due_in is not None:
        # The server's clock is told in whole seconds: a second later, it surely says so.
        seconds = min(seconds, plan.due_in.total_seconds() + _CLOCK)
    return max(least, min(seconds, most))


@dataclass
class Rhythm:
    """The pauses of one loop, which remembers for how long nothing has happened.

    :param least: seconds between two looks at least.
    :param most: seconds between two looks at most.
    """

    least: float = LEAST
    most: float = MOST
    _seen: tuple[int, Mapping[Outcome, int]] | None = field(default=None, init=False)
    _since: float = field(default=0.0, init=False)

    @classmethod
    def between(cls, most: float) -> Rhythm:
        """The rhythm of a loop that is told only how long a pause may be.

        :param most: seconds between two looks at most; below a second, all pauses are that long.
        """
        return cls(min(LEAST, most), most)

    def after(self, plan: Plan | None, now: float) -> float:
        """Seconds until the next look.

        :param plan: of the last look; ``None`` where it has failed.
        :param now: a monotonic clock's time, in seconds.
        """
        if plan is None:
            return self.most
        seen = (plan.listed, dict(plan.outcomes))
        if seen != self._seen or any(plan.events.values()):
            self._seen, self._since = seen, now
        return pause(plan, now - self._since, self.least, self.most)
