"""The order of a DAG's tasks: a report stands behind all tasks that dispatch, and one report emits asset events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bqdispatch_provider.compat import tasks_beside

if TYPE_CHECKING:
    from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator


def is_reported(task: DispatchOperator) -> bool:
    """Return True if a report task of a DAG merges what a task does: one with the same connection.

    :raises ValueError: if it does not follow the task. It would lack the events.
    """
    reports = [each.task_id for each in _reports_beside(task)]
    if reports and not task.get_flat_relative_ids(upstream=False).intersection(reports):
        raise ValueError(
            f"the report {reports[0]!r} of connection {task.alias!r} does not follow the task {task.task_id!r}, so it "
            f"would lack what the task dispatches; put it behind the task: {task.task_id} >> {reports[0]}"
        )
    return bool(reports)


def check_emits_alone(report: DispatchReportOperator) -> None:
    """Make sure that no other report of a DAG and connection emits the same asset events.

    :raises ValueError: if one does.
    """
    others = {each.task_id for each in _reports_beside(report) if getattr(each, "assets", False)} - {report.task_id}
    if report.assets and others:
        raise ValueError(
            f"the reports {report.task_id!r} and {min(others)!r} of connection {report.alias!r} would emit the same "
            "asset events; remove one of them, or give it assets=False"
        )


def _reports_beside(task: DispatchOperator | DispatchReportOperator) -> list[Any]:
    """Return the report tasks of a task's DAG and connection."""
    reports = (each for each in tasks_beside(task) if getattr(each.operator_class, "ends_run", False))
    # A mapped report has no alias. It is refused when it runs.
    return [each for each in reports if getattr(each, "alias", task.alias) == task.alias]
