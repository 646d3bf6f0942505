"""The DAG that dispatches for a set-up: one line in a DAG file, and as many of them as there are set-ups."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.compat import schedule_on_events
from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor
from bqdispatch_provider.setups import SetUp
from bqdispatch_provider.triggers import BqDispatchEventTrigger

WAYS = ("minute", "minute_deferred", "deferred", "events")
"""Ways to run: which costs what, and how soon each is, says docs/latency.md."""

_TRIED_AGAIN: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=1)}
"""A deferred task may be failed by the scheduler for nothing (docs/versions.md); no try repeats what was done."""

_MINUTE = """Dispatches what BqTail waits for, every minute, and all the minute.

`detect` waits for finished jobs and due windows. Then `dispatch_sql` and `dispatch_jobs` dispatch until the run of the
next minute takes over, and `report` writes what became of it. Needs the connection `{0.conn_id}`, and the pools
`{0.sql_pool}` and `{0.jobs_pool}`, which `bqdispatch pools --import` makes: a task that takes more slots than its pool
has never runs, and `bqdispatch pools --check` tells.
"""
_ONE_TASK = """Dispatches what BqTail waits for: the whole dispatcher in one task, in a thread of the triggerer.

Needs the connection `{0.conn_id}`. Pools have no say in it; the dispatcher holds the limits itself.
"""
_SENSOR_S = 60.0
"""For so long a run looks for something to dispatch: until the next one does."""

_DEFERRED_S, _ON_EVENT_S = 600.0, 20.0
"""For so long one task dispatches: without an end, and once an event has started it."""


def dispatch_dag(
    setup: str | None = None,
    way: str = "minute",
    *,
    sql_slots: int | None = None,
    jobs_slots: int | None = None,
    assets: bool = True,
    **options: Any,
) -> DAG:
    """Return the DAG of a set-up.

    Airflow passes over files in which it does not find its name, so a file that calls this has to have it somewhere.

    :param setup: its name, from which those of DAG, connection, pools and asset alias follow: ``acme`` has the DAG
        ``bqdispatch_acme``, the connection and the asset alias ``bqdispatch_acme``, and the pools
        ``bqdispatch_acme_sql`` and ``bqdispatch_acme_jobs``. Without a name they are ``bqdispatch``,
        ``bqdispatch_default``, ``bqdispatch_sql`` and ``bqdispatch_jobs``.
    :param way: how it runs. ``minute``: a run every minute, on workers, in pools that mirror the limits.
        ``minute_deferred``: the same in the triggerer. ``deferred``: one task in the triggerer, for the shortest way at
        the least cost. ``events``: one task whenever there is something to dispatch; on Airflow 2,
        where nothing watches, every minute.
    :param sql_slots: slots that a task takes in the pool for query events: ``MaxConcurrentSQL``, then the slots that
        are taken are the limit, and of two runs one waits for the other. By default the environment variable
        ``BQDISPATCH_SQL_SLOTS`` (of a set-up with a name ``BQDISPATCH_ACME_SQL_SLOTS``), else 1.
    :param jobs_slots: the same for all other events and windows: ``MaxConcurrentJobs``, ``BQDISPATCH_JOBS_SLOTS``.
    :param assets: whether jobs become asset events, as :class:`DispatchReportOperator` has it.
    :param options: of the DAG, in place of those that it has. Its ``schedule`` is by default the environment variable
        ``BQDISPATCH_SCHEDULE`` (``BQDISPATCH_ACME_SCHEDULE``), else what the way says; that of ``events`` is
        a cron expression. Its ``default_args`` are added to ``retries`` and ``retry_delay``, by which each task is
        tried three times more, a second later.
    :raises ValueError: when the set-up's name or the way is none, or an environment variable holds no number of slots.
    """
    names = SetUp(setup)
    if way not in WAYS:
        raise ValueError(f"the way to run is {way!r}; expected one of {', '.join(WAYS)}")
    in_minutes = way.startswith("minute")
    usual = "@continuous" if way == "deferred" else "* * * * *"
    schedule: Any = options.pop("schedule", os.environ.get(names.variable("SCHEDULE"), usual))
    lasts: float | None = _DEFERRED_S
    if way == "events":
        every, trigger = schedule, BqDispatchEventTrigger(names.conn_id)
        schedule = schedule_on_events(f"{names.dag_id}_events", trigger, every)
        lasts = _ON_EVENT_S if schedule != every else None
    defaults: dict[str, Any] = {
        "dag_id": names.dag_id,
        "doc_md": (_MINUTE if in_minutes else _ONE_TASK).format(names),
        "schedule": schedule,
        "start_date": datetime(2024, 1, 1, tzinfo=UTC),
        "catchup": False,
        "max_active_runs": 2 if in_minutes and schedule != "@continuous" else 1,
        "tags": ["bqtail", "bigquery"],
        **({"dagrun_timeout": timedelta(minutes=5)} if in_minutes else {}),
    }
    options["default_args"] = _TRIED_AGAIN | (options.get("default_args") or {})
    with DAG(**defaults | options) as dag:
        if in_minutes:
            given = zip(names.task_slots().items(), (sql_slots, jobs_slots), strict=True)
            slots = {pool: slots or by_environment for (pool, by_environment), slots in given}
            _every_minute(names, slots, assets=assets, deferrable=way == "minute_deferred")
        else:
            DispatchOperator(
                task_id="dispatch",
                bqdispatch_conn_id=names.conn_id,
                time_to_live=lasts,
                assets=assets,
                start_from_trigger=True,
            )
    return dag


def _every_minute(names: SetUp, slots: dict[str, int], *, assets: bool, deferrable: bool) -> None:
    """Make the tasks of a run that goes on until the next one takes over."""
    detect = BqDispatchSensor(
        task_id="detect",
        bqdispatch_conn_id=names.conn_id,
        timeout=_SENSOR_S,
        deferrable=deferrable,
        start_from_trigger=deferrable,
    )
    # One planner for jobs and windows: two would spend one limit.
    lanes = (
        ("dispatch_sql", ["sql"], names.sql_pool),
        ("dispatch_jobs", ["jobs", "windows"], names.jobs_pool),
    )
    dispatch = [
        DispatchOperator(
            task_id=task_id,
            shares=detect.output,
            only={"lanes": lanes_of_task},
            hands_over=True,
            bqdispatch_conn_id=names.conn_id,
            deferrable=deferrable,
            pool=pool,
            pool_slots=slots[pool],
        )
        for task_id, lanes_of_task, pool in lanes
    ]
    report = DispatchReportOperator(
        task_id="report", bqdispatch_conn_id=names.conn_id, trigger_rule="none_skipped", assets=assets
    )
    detect >> dispatch >> report
