"""Rules for tasks in the triggerer: which may start or end there, how long they may stay, and when a sensor fails."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseSensorOperator, XComArg
from airflow.triggers.base import BaseTrigger, StartTriggerArgs

from bqdispatch_provider.compat import AirflowSkipException, renders_triggers, starts_from_trigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


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


class WaitingSensor(BaseSensorOperator):
    """A sensor that ``soft_fail`` skips only if it has waited in vain. An error fails the task, and its retries apply.

    Airflow skips its own sensors, too, if their trigger fails, if no triggerer runs, or if the task's
    ``execution_timeout`` is over during a poll. Then a run that has looked at nothing would be green.
    """

    def poke_until_done(self, context: Context) -> Any:
        """Poll on the worker, as Airflow's sensors do.

        :param context: the task's.
        """
        try:
            return super().execute(context)
        except AirflowSkipException as skipped:
            if self.soft_fail and skipped.__cause__ is not None:
                raise skipped.__cause__ from None
            raise

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the trigger: ``execute_complete`` knows when the task is skipped.

        :param next_method: name of the method that goes on; Airflow's ``__fail__`` if the trigger has failed.
        :param next_kwargs: its arguments.
        :param context: the task's.
        """
        if self.never_fail:
            return super().resume_execution(next_method, next_kwargs, context)
        return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)
