"""The page's reads in Airflow's database: connections, pools, and the last runs of DAGs. Kept for ten seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.pool import Pool
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import select

from bqdispatch_provider import compat
from bqdispatch_provider.core.connection import CONN_TYPE
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.view.journal_reader import KEPT_S

T = TypeVar("T")

MAX_TASKS = 20
"""Tasks of a run that the page shows; a run may have thousands of mapped ones."""


class Kept:
    """Values that are read again after ten seconds, each by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, tuple[float, Any]] = {}

    def get(self, key: str, read: Callable[[], T]) -> T:
        """Return a value.

        :param key: of the value.
        :param read: reads it.
        """
        with self._lock:
            read_at, value = self._values.get(key, (-KEPT_S, None))
            if time.monotonic() - read_at >= KEPT_S:
                value = read()
                self._values[key] = time.monotonic(), value
            kept: T = value
            return kept


class Database:
    """Airflow's database. It may be used from several threads."""

    def __init__(self) -> None:
        self._kept = Kept()

    def conn_ids(self) -> list[str]:
        """Return the IDs of all connections of type ``bqdispatch``, and the usual one.

        A secrets backend lists nothing, so that one is tried whether or not it is found elsewhere.
        """
        return self._kept.get("connections", lambda: sorted({SetUp().conn_id, *compat.connections_of(CONN_TYPE)}))

    def pools(self) -> Mapping[str, tuple[int, int]]:
        """Return the slots and the taken slots of all pools, by name; -1 slots are without limit."""
        return self._kept.get("pools", _read_pools)

    def pools_used(self, dag_ids: Iterable[str]) -> set[str]:
        """Return the names of the pools that the tasks of the last run of each of some DAGs use.

        :param dag_ids: IDs of the DAGs.
        """
        kept = (self._kept.get(f"pools {dag_id}", partial(_read_pools_used, dag_id)) for dag_id in dag_ids)
        return {pool for pools in kept for pool in pools}

    def last_run(self, dag_id: str) -> Mapping[str, Any] | None:
        """Return the last run of a DAG, with its tasks; ``None`` if there is no such DAG.

        :param dag_id: ID of the DAG.
        """
        return self._kept.get(f"run {dag_id}", lambda: _read_last_run(dag_id))


def _read_pools() -> dict[str, tuple[int, int]]:
    pools = {}
    for name, stats in Pool.slots_stats().items():
        taken = stats["running"] + stats["queued"]
        if stats["total"] == float("inf"):
            pools[name] = (-1, int(taken))
        else:
            pools[name] = (int(stats["total"]), int(stats["total"] - stats["open"]))
    return pools


def _read_pools_used(dag_id: str) -> set[str]:
    with create_session() as session:
        run = session.scalar(_last_run_of(dag_id))
        used = select(TaskInstance.pool).where(
            TaskInstance.dag_id == dag_id, TaskInstance.run_id == (run.run_id if run else None)
        )
        return {*session.scalars(used.distinct())}


def _last_run_of(dag_id: str) -> Any:
    return select(DagRun).where(DagRun.dag_id == dag_id).order_by(DagRun.run_after.desc(), DagRun.id.desc()).limit(1)


def _read_last_run(dag_id: str) -> dict[str, Any] | None:
    with create_session() as session:
        dag = session.scalar(select(DagModel).where(DagModel.dag_id == dag_id))
        if dag is None:
            return None
        run = session.scalar(_last_run_of(dag_id))
        tasks: Iterable[Any] = ()
        if run is not None:
            tasks = session.execute(
                select(TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state, TaskInstance.operator)
                .where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run.run_id)
                .order_by(TaskInstance.start_date.is_(None), TaskInstance.start_date, TaskInstance.task_id)
                .limit(MAX_TASKS)
            )
        return {
            "dag": dag_id,
            "paused": bool(dag.is_paused),
            "run": run.run_id if run else None,
            "state": str(getattr(run.state, "value", run.state)) if run else None,
            "started": run.start_date.isoformat(timespec="seconds") if run and run.start_date else None,
            "tasks": [
                {
                    "task": task,
                    "map_index": index,
                    "state": str(getattr(state, "value", state) or "none"),
                    "dispatches": operator == "DispatchOperator",
                }
                for task, index, state, operator in tasks
            ],
        }
