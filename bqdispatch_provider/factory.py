"""The sample DAG, made for a set-up: one line in a DAG file, and as many of them as there are set-ups."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor
from bqdispatch_provider.setups import SetUp

_TRIED_AGAIN: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=1)}
"""A deferred task may be failed by the scheduler for nothing (docs/versions.md); no try repeats what was done."""

_DOC = """Dispatches what BqTail waits for.

`detect` waits for finished jobs and due windows, three tasks dispatch one lane each, and `report` writes what became of
it. Needs the connection `{0.conn_id}`, and the pools `{0.sql_pool}` and `{0.jobs_pool}`, which `bqdispatch pools`
prints for `airflow pools import`.
"""


def dispatch_dag(
    setup: str | None = None,
    *,
    sql_slots: int | None = None,
    jobs_slots: int | None = None,
    assets: bool = True,
    **options: Any,
) -> DAG:
    """The DAG of a set-up: detect, dispatch each lane, report.

    :param setup: its name, from which those of DAG, connection and pools follow: ``acme`` has the DAG
        ``bqdispatch_acme``, the connection ``bqdispatch_acme``, and the pools ``bqdispatch_acme_sql`` and
        ``bqdispatch_acme_jobs``. Without a name they are ``bqdispatch``, ``bqdispatch_default``, ``bqdispatch_sql`` and
        ``bqdispatch_jobs``.
    :param sql_slots: slots that a task takes in the pool for query events: ``MaxConcurrentSQL``, then the slots that
        are taken are the events in hand. A task with more slots than its pool never runs. By default the environment
        variable ``BQDISPATCH_SQL_SLOTS`` (of a set-up with a name ``BQDISPATCH_ACME_SQL_SLOTS``), else 1.
    :param jobs_slots: the same for all other events and windows: ``MaxConcurrentJobs``, ``BQDISPATCH_JOBS_SLOTS``.
    :param assets: whether dispatched events become asset events, as :class:`DispatchOperator` has it.
    :param options: of the DAG, in place of those that it has. Its ``schedule`` is by default the environment variable
        ``BQDISPATCH_SCHEDULE`` (``BQDISPATCH_ACME_SCHEDULE``), else every minute. Its ``default_args`` are added to
        ``retries`` and ``retry_delay``, by which each task is tried three times more, a second later.
    :raises ValueError: when the set-up's name is none, or an environment variable holds no number of slots.
    """
    names = SetUp(setup)
    sql, jobs = (
        _slots(variable) if given is None else given
        for variable, given in zip(names.slots, (sql_slots, jobs_slots), strict=True)
    )
    defaults: dict[str, Any] = {
        "dag_id": names.dag_id,
        "doc_md": _DOC.format(names),
        "schedule": os.environ.get(names.variable("SCHEDULE"), "* * * * *"),
        "start_date": datetime(2024, 1, 1, tzinfo=UTC),
        "catchup": False,
        "max_active_runs": 1,
        "dagrun_timeout": timedelta(minutes=5),
        "tags": ["bqtail", "bigquery"],
    }
    options["default_args"] = _TRIED_AGAIN | (options.get("default_args") or {})
    with DAG(**defaults | options) as dag:
        detect = BqDispatchSensor(task_id="detect", bqdispatch_conn_id=names.conn_id)
        dispatch = [
            DispatchOperator(
                task_id=task_id,
                shares=detect.output,
                lane=lane,
                bqdispatch_conn_id=names.conn_id,
                assets=assets,
                pool=pool,
                pool_slots=slots,
            )
            for task_id, lane, pool, slots in (
                ("dispatch_sql", "sql", names.sql_pool, sql),
                ("dispatch_jobs", "jobs", names.jobs_pool, jobs),
                ("fire_windows", "windows", names.jobs_pool, jobs),
            )
        ]
        detect >> dispatch >> DispatchReportOperator(task_id="report", bqdispatch_conn_id=names.conn_id)
    return dag


def _slots(variable: str) -> int:
    given = os.environ.get(variable, "1")
    if not given.isdecimal() or not int(given):
        raise ValueError(
            f"{variable} is {given!r}; expected a number of slots, or no such variable where there is no limit"
        )
    return int(given)
