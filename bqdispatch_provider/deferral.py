"""Rules for tasks in the triggerer: which may start or end there, and how long they may stay."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import XComArg
from airflow.triggers.base import BaseTrigger, StartTriggerArgs

from bqdispatch_provider.compat import renders_triggers, starts_from_trigger


def may_start_from_trigger(task: Any) -> bool:
    """Return True if a task can start in the triggerer.

    Otherwise a worker starts it, which renders its templates and calls its ``on_execute_callback``.

    :param task: the operator. Its templated fields may hold templates, or other tasks' results.
    """
    values = [getattr(task, each) for each in task.template_fields]
    if not starts_from_trigger() or task.on_execute_callback or any(XComArg.iter_xcom_references(values)):
        return False
    return renders_triggers() or not any(mark in repr(value) for value in values for mark in ("{{", "{%"))


class _StartTriggerArgs(StartTriggerArgs):
    """Arguments that are made when Airflow serializes the DAG: what the trigger has to know is known only then."""

    def __init__(self, make_trigger: Callable[[], BaseTrigger], timeout: timedelta | None) -> None:
        self._make_trigger = make_trigger
        super().__init__(make_trigger().serialize()[0], "execute_complete", timeout=timeout)

    @property
    def trigger_kwargs(self) -> dict[str, Any]:
        return self._make_trigger().serialize()[1]

    @trigger_kwargs.setter
    def trigger_kwargs(self, value: object) -> None:
        """Ignore the default of the parent's."""


def set_start_trigger(task: Any, make_trigger: Callable[[], BaseTrigger], timeout: timedelta | None) -> None:
    """Let a task start in the triggerer. It resumes in ``execute_complete``.

    :param task: the operator.
    :param make_trigger: makes the trigger to start, once the DAG is whole.
    :param timeout: how long the scheduler lets the task be deferred; ``None`` for no limit.
    """
    task.start_from_trigger = True
    task.start_trigger_args = _StartTriggerArgs(make_trigger, timeout)


def longest_deferral(task: Any, wanted: timedelta) -> timedelta:
    """Return how long the scheduler lets a task be deferred that starts in the triggerer.

    :param task: the operator. Its ``execution_timeout`` counts from the same start.
    :param wanted: how long the task needs.
    """
    return min(wanted, task.execution_timeout or wanted)


def may_end_in_triggerer(task: Any) -> bool:
    """Return True if a task has no callback that a worker has to call.

    In the triggerer Airflow 3 calls ``on_failure_callback`` only.

    :param task: the operator.
    """
    return not (task.on_success_callback or task.on_skipped_callback)
