"""Several set-ups in one Airflow: the names of each one's connection, pools, DAG and environment variables."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass

from bqdispatch_provider.config_errors import ConfigError

_NAME = re.compile(r"[a-z0-9_]{1,50}")
_UNNAMED = "default"
_RESERVED = (_UNNAMED, "deferred", "events", "on_events")
"""Ends of ``bqdispatch_…`` in IDs that belong to the set-up without a name: its DAGs in ``dags/`` are among them."""


@dataclass(frozen=True)
class SetUp:
    """One task folder with its dispatcher, in an Airflow that may have several.

    :param name: up to 50 lower-case letters, digits and underscores, since it becomes part of environment variables;
        ``None``, the default, where there is but one set-up.
    :raises ValueError: when the name is invalid.
    """

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and (
            not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or self.name in _RESERVED
        ):
            raise ValueError(
                f"the set-up is {self.name!r}; expected up to 50 lower-case letters, digits and underscores, and not "
                f"{' or '.join(_RESERVED)}, which are the ends of names of the set-up without a name"
            )

    @property
    def dag_id(self) -> str:
        """The DAG's ID, with which most other names begin."""
        return f"bqdispatch_{self.name}" if self.name else "bqdispatch"

    @property
    def dag_ids(self) -> frozenset[str]:
        """The IDs of DAGs that belong to this set-up by their names."""
        ends = () if self.name else _RESERVED[1:]
        return frozenset({self.dag_id, *(f"{self.dag_id}_{end}" for end in ends)})

    @property
    def conn_id(self) -> str:
        """The ID of the connection, of type ``bqdispatch``."""
        return f"bqdispatch_{self.name or _UNNAMED}"

    @property
    def conn_variable(self) -> str:
        """The environment variable in which Airflow finds that connection."""
        return f"AIRFLOW_CONN_{self.conn_id}".upper()

    @property
    def sql_pool(self) -> str:
        """The pool that mirrors ``MaxConcurrentSQL``."""
        return f"{self.dag_id}_sql"

    @property
    def jobs_pool(self) -> str:
        """The pool that mirrors ``MaxConcurrentJobs``."""
        return f"{self.dag_id}_jobs"

    @property
    def pools_command(self) -> str:
        """The command that makes both pools, or sets their slots."""
        return self._pools("--import")

    @property
    def check_command(self) -> str:
        """The command that compares both pools with the limits, and with the environment variables of the tasks."""
        return self._pools("--check")

    def _pools(self, option: str) -> str:
        return f"bqdispatch pools{f' --setup {self.name}' if self.name else ''} {option}"

    def variable(self, what: str) -> str:
        """Return an environment variable of this set-up.

        :param what: ``SCHEDULE``, ``SQL_SLOTS`` or ``JOBS_SLOTS``.
        """
        return f"{self.dag_id}_{what}".upper()

    @property
    def slot_variables(self) -> tuple[str, str]:
        """The environment variables that say how many slots a task takes in the SQL pool, and in the jobs pool."""
        return self.variable("SQL_SLOTS"), self.variable("JOBS_SLOTS")

    def task_slots(self) -> dict[str, int]:
        """Read from the environment how many slots a task takes in each pool: 1 by default.

        :raises ConfigError: when a variable holds no number of slots.
        """
        slots = zip((self.sql_pool, self.jobs_pool), self.slot_variables, strict=True)
        return {pool: _read_slots(variable) for pool, variable in slots}

    @property
    def dag_source(self) -> str:
        """The text of a DAG file for this set-up."""
        whose, name = (f"the set-up {self.name}", json.dumps(self.name)) if self.name else ("the dispatcher", "")
        return (
            f'"""Airflow\'s DAG of {whose}."""\n\n'
            "from bqdispatch_provider.factory import dispatch_dag\n\n"
            f"dag = dispatch_dag({name})\n"
        )


def _read_slots(variable: str) -> int:
    value = os.environ.get(variable, "1")
    if not value.isdecimal() or not int(value):
        raise ConfigError(
            [f"{variable} is {value!r}; expected a number of slots, or no such variable where there is no limit"],
            "the environment",
        )
    return int(value)
