"""A common part of the sensors: they are skipped only if they have waited in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseSensorOperator

from bqdispatch_provider.compat import AirflowSkipException

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


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
