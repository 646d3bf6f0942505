"""Events that wait, and their form in documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from bqdispatch_provider.core import documents
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.names import in_one_line

NEEDS_ATTENTION = frozenset(
    {
        *(Reason.IN_DOUBT, Reason.REFUSED, Reason.PROTECTED, Reason.NO_ANSWER, Reason.NOT_FOUND, Reason.UNDECIDED),
        *(Reason.OVERDUE, Reason.UNKNOWN_NAME),
    }
)
"""Reasons that somebody may have to act on. The cycles in which an event has waited for one of them are counted."""

MIN_REPORTED_WAIT = timedelta(minutes=1)
"""An event that has waited for longer is listed in the report."""


@dataclass(frozen=True, slots=True)
class Wait:
    """An event that waits.

    :param name: path below the task folder.
    :param since: when it could have been dispatched first: a trace at its creation, a window at its end.
    :param said: what a service said last, or what is known about the event; empty where the reason says all.
    :param times: cycles in which it has waited for this reason, as far as they are counted.
    """

    name: str
    reason: Reason
    since: datetime
    said: str = ""
    times: int = 1

    def continued_from(self, earlier: Wait | None) -> Wait:
        """Return this wait as one that goes on from an earlier one, if that was for the same reason and is counted."""
        if earlier is None or earlier.reason not in NEEDS_ATTENTION:
            return self
        if self.reason is Reason.NEXT_CYCLE:
            return earlier  # it was not tried again
        if earlier.reason is not self.reason:
            return self
        return replace(self, times=self.times + earlier.times, since=min(self.since, earlier.since))


def add_waits(waits: dict[str, Wait], others: Mapping[str, Wait]) -> None:
    """Add the waits that another task of the same run has noted. Of two of one event, keep the one that says more.

    A task that leaves an event to others knows nothing of it.

    :param waits: by name; they are changed.
    :param others: by name; of two that say as much, theirs is kept.
    """
    for name, other in others.items():
        if name not in waits or _weight(other) >= _weight(waits[name]):
            waits[name] = other


def _weight(wait: Wait) -> tuple[bool, bool]:
    return wait.reason in NEEDS_ATTENTION, wait.reason is not Reason.OTHERS


def most_pressing(waits: Iterable[Wait]) -> list[Wait]:
    """Sort waits: first those that somebody may have to act on, then the oldest.

    Unknown names come after the others of the first kind: they may lie there for good.
    """

    def rank(wait: Wait) -> tuple[bool, bool, datetime, str]:
        return wait.reason not in NEEDS_ATTENTION, wait.reason is Reason.UNKNOWN_NAME, wait.since, wait.name

    return sorted(waits, key=rank)


def waits_to_dict(waits: Iterable[Wait]) -> dict[str, dict[str, Any]]:
    """Return waits as documents have them, by name."""
    return {
        wait.name: {
            "Reason": str(wait.reason),
            "Since": time_to_text(wait.since),
            **({"Times": wait.times} if wait.reason in NEEDS_ATTENTION else {}),
            **({"Said": in_one_line(wait.said)} if wait.said else {}),
        }
        for wait in waits
    }


def waits_from_dict(document: Mapping[str, Mapping[str, Any]]) -> dict[str, Wait]:
    """Read what :func:`waits_to_dict` wrote.

    :raises ValueError: when it is something else.
    """
    try:
        return {
            name: Wait(
                name,
                Reason(each["Reason"]),
                datetime.fromisoformat(each["Since"]).astimezone(UTC),
                documents.text(each.get("Said", "")),
                documents.number(each.get("Times", 1)),
            )
            for name, each in document.items()
        }
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a list of what waits: {type(error).__name__}: {error}") from error


def time_to_text(at: datetime) -> str:
    """Return a time as documents have it."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")
