"""The DAG that dispatches for a set-up, made by one line of a DAG file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.compat import schedule_on_events
from bqdispatch_provider.config_keys import MAX_TIME_TO_LIVE_MIN
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor
from bqdispatch_provider.triggers import BqDispatchEventTrigger

WAYS = ("minute", "minute_deferred", "deferred", "events")
"""Ways to run. docs/latency.md compares their costs and delays."""

_RETRIES: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=1)}
"""The scheduler may fail a deferred task without a reason (docs/versions.md). A retry repeats nothing."""

_MINUTE_DOC = """Dispatches what BqTail waits for, every minute, and all the minute.

`detect` waits for finished jobs and due windows. Then `dispatch_sql` and `dispatch_jobs` dispatch until the run of the
next minute takes over, and `report` writes the response document. Needs the connection `{0.conn_id}`, and the pools
`{0.sql_pool}` and `{0.jobs_pool}`, which `{0.pools_command}` makes. A task that takes more slots than its pool
has never runs: check with `{0.check_command}`,
which knows the slots of environment variables, not of `sql_slots` and `jobs_slots` in the DAG file.
"""
_ONE_TASK_DOC = """Dispatches what BqTail waits for: the whole dispatcher in one task, in a thread of the triggerer.

Needs the connection `{0.conn_id}`. Pools do not apply; the dispatcher itself keeps the limits.
"""
_SENSOR_TIMEOUT_S = 60.0
"""A run looks for something to dispatch until the next run does."""

_DEFERRED_S = 600.0
"""Time for which a task of the way ``deferred`` dispatches. The next run follows at once."""

_EACH_MINUTE = ("* * * * *", "*/1 * * * *", timedelta(minutes=1))
_MINUTE_S = 60.0
"""Time for which the tasks of a run dispatch if there is a run each minute."""

_MAX_RUN_S = MAX_TIME_TO_LIVE_MIN * 60.0
"""Time for which the tasks of any other run of lanes may dispatch: a DAG file does not know the configuration."""

_MAX_REST = timedelta(minutes=4)
"""Added to the time to live of a run of lanes: the last cycle, and the report."""

_AFTER_EVENT_S = 20.0
"""Time for which a task dispatches after an event has started it."""


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

    A DAG file that calls this has to contain the word ``airflow``, for instance in its docstring: Airflow skips all
    other files.

    :param setup: the set-up's name, which becomes part of other names. ``acme`` has the DAG ``bqdispatch_acme``, the
        connection and asset alias ``bqdispatch_acme``, and the pools ``bqdispatch_acme_sql`` and
        ``bqdispatch_acme_jobs``. Default: ``bqdispatch``, ``bqdispatch_default``, ``bqdispatch_sql`` and
        ``bqdispatch_jobs``.
    :param way: how the DAG runs. ``minute``: a run every minute, on workers, in pools that mirror the limits.
        ``minute_deferred``: the same in the triggerer. ``deferred``: one task in the triggerer, which needs neither
        pools nor, while it dispatches, a worker. ``events``: one task whenever there is something to dispatch. On
        Airflow 2, which has no asset watchers, it runs every minute. A run of the first two dispatches for a minute if
        the schedule is every minute, whatever the configuration says, and otherwise for its ``TimeToLiveInMin``.
    :param sql_slots: slots of the pool for query events that a task takes. Set it to ``MaxConcurrentSQL``: then the
        slots taken are the limit, and one of two runs waits for the other. Default: the environment variable
        ``BQDISPATCH_SQL_SLOTS`` (``BQDISPATCH_ACME_SQL_SLOTS`` for a set-up with a name), or 1.
    :param jobs_slots: slots of the pool for all other events and windows that a task takes: ``MaxConcurrentJobs``.
        Default: the environment variable ``BQDISPATCH_JOBS_SLOTS``, or 1.
    :param assets: emit asset events, as for :class:`~bqdispatch_provider.operators.DispatchReportOperator`.
    :param options: arguments of the DAG, which replace its own. Default of ``is_paused_upon_creation``: True, whatever
        Airflow's configuration says, since beside BqTail's cloud function the DAG would deliver events twice. Give
        ``None`` to leave it to the configuration. Default of ``schedule``: for the ways ``minute`` and
        ``minute_deferred`` the environment variable ``BQDISPATCH_SCHEDULE`` (``BQDISPATCH_ACME_SCHEDULE``), or every
        minute. A run of ``deferred`` dispatches for ten minutes, so by another schedule than its default,
        ``@continuous``, it may pause in between. With ``events`` it has to be a cron expression. ``default_args`` are
        added to three retries after a second each. Default of ``dagrun_timeout`` for the ways ``minute`` and
        ``minute_deferred``: 5 minutes if the schedule is every minute, otherwise a day, the longest
        ``TimeToLiveInMin``, and 4 minutes.
    :raises ValueError: if an argument or an environment variable is invalid.
    """
    names = _set_up(setup, way)
    in_minutes = way.startswith("minute")
    schedule, time_to_live = _schedule(names, way, options)
    defaults: dict[str, Any] = {
        "dag_id": names.dag_id,
        "doc_md": (_MINUTE_DOC if in_minutes else _ONE_TASK_DOC).format(names),
        "schedule": schedule,
        "start_date": datetime(2024, 1, 1, tzinfo=UTC),
        "catchup": False,
        "is_paused_upon_creation": True,
        "max_active_runs": 2 if in_minutes and schedule != "@continuous" else 1,
        "tags": ["bqtail", "bigquery"],
        "default_args": _RETRIES | (options.pop("default_args", None) or {}),
        **({"dagrun_timeout": timedelta(seconds=time_to_live or _MAX_RUN_S) + _MAX_REST} if in_minutes else {}),
    }
    with DAG(**defaults | options) as dag:
        if in_minutes:
            _add_minute_tasks(names, (sql_slots, jobs_slots), time_to_live, assets, deferrable=way != "minute")
        else:
            DispatchOperator(
                task_id="dispatch",
                bqdispatch_conn_id=names.conn_id,
                time_to_live=time_to_live,
                assets=assets,
                start_from_trigger=True,
            )
    return dag


def _set_up(setup: str | None, way: str) -> SetUp:
    """Return a set-up's names, unless it or the way to run is invalid."""
    if setup in WAYS or way not in WAYS:
        raise ValueError(
            f"the set-up is {setup!r} and the way to run {way!r}; expected a set-up that has no way's name, and one of "
            f"the ways {', '.join(WAYS)}, such as dispatch_dag(way='minute')"
        )
    return SetUp(setup)


def _slots(names: SetUp, given: Sequence[int | None]) -> list[int]:
    """Return how many slots of its pool each task takes: as given, or as the environment says."""
    for argument, slots in zip(("sql_slots", "jobs_slots"), given, strict=True):
        if slots is not None and not (isinstance(slots, int) and slots > 0):
            raise ValueError(f"{argument} is {slots!r}; expected a number of slots, or None where there is no limit")
    return [slots or default for slots, default in zip(given, names.task_slots().values(), strict=True)]


def _schedule(names: SetUp, way: str, options: dict[str, Any]) -> tuple[Any, float | None]:
    """Return a DAG's schedule, and the seconds for which its tasks dispatch; ``None`` for the configuration's.

    :param options: arguments of the DAG. The schedule is taken out.
    """
    if way == "deferred":
        return options.pop("schedule", "@continuous"), _DEFERRED_S
    if way != "events":
        schedule = options.pop("schedule", os.environ.get(names.variable("SCHEDULE"), _EACH_MINUTE[0]))
        return schedule, _MINUTE_S if schedule in _EACH_MINUTE else None
    schedule = options.pop("schedule", _EACH_MINUTE[0])
    on_events = schedule_on_events(f"{names.dag_id}_events", BqDispatchEventTrigger(names.conn_id), schedule)
    return on_events, None if on_events == schedule else _AFTER_EVENT_S


def _add_minute_tasks(
    names: SetUp, given_slots: Sequence[int | None], time_to_live: float | None, assets: bool, *, deferrable: bool
) -> None:
    """Add the tasks of a run that dispatches until the next run takes over."""
    slots = _slots(names, given_slots)
    detect = BqDispatchSensor(
        task_id="detect",
        bqdispatch_conn_id=names.conn_id,
        timeout=_SENSOR_TIMEOUT_S,
        deferrable=deferrable,
        start_from_trigger=deferrable,
    )
    # Jobs and windows share a limit, so one task plans both.
    lanes = (
        ("dispatch_sql", ["sql"], names.sql_pool, slots[0]),
        ("dispatch_jobs", ["jobs", "windows"], names.jobs_pool, slots[1]),
    )
    dispatch = [
        DispatchOperator(
            task_id=task_id,
            shares=detect.output,
            only={"lanes": lanes_of_task},
            time_to_live=time_to_live,
            hands_over=True,
            bqdispatch_conn_id=names.conn_id,
            deferrable=deferrable,
            pool=pool,
            pool_slots=pool_slots,
        )
        for task_id, lanes_of_task, pool, pool_slots in lanes
    ]
    report = DispatchReportOperator(
        task_id="report", bqdispatch_conn_id=names.conn_id, trigger_rule="none_skipped", assets=assets
    )
    detect >> dispatch >> report
