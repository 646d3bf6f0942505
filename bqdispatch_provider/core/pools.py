"""Airflow's pools that mirror the limits of a configuration, and what may be wrong with one."""

from __future__ import annotations

from enum import Enum, auto


class PoolProblem(Enum):
    """Disagreements of a pool with the limit that it mirrors."""

    MISSING = auto()
    """Tasks in it never run."""

    OTHER_SLOTS = auto()
    """It has another number of slots than its limit."""

    DEFERRED_NOT_COUNTED = auto()
    """A task that dispatches in the triggerer takes no slot."""


def slots_of(limit: int) -> int:
    """Return the slots of the pool that mirrors a limit: without a limit -1, as Airflow has it."""
    return limit or -1


def is_too_small(slots: int, task_slots: int) -> bool:
    """Tell whether a task takes more slots than its pool has. Airflow never runs such a task, and says nothing."""
    return 0 <= slots < task_slots


def pool_problem(wanted: int, found: int | None, *, counts_deferred: bool = True) -> PoolProblem | None:
    """Return what is wrong with a pool; ``None`` if nothing is.

    :param wanted: the slots that it should have, from :func:`slots_of`.
    :param found: the slots that it has; ``None`` if there is no such pool.
    :param counts_deferred: whether it counts deferred tasks.
    """
    if found is None:
        return PoolProblem.MISSING
    if found != wanted:
        return PoolProblem.OTHER_SLOTS
    return None if counts_deferred else PoolProblem.DEFERRED_NOT_COUNTED
