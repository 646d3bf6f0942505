"""Several set-ups side by side in one Airflow: what each one's connection, pools, DAG and variables are called."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass

from bqdispatch_provider.config import ConfigError

_NAME = re.compile(r"[a-z0-9_]{1,50}")
_UNNAMED = "default"
_TAKEN = (_UNNAMED, "deferred", "events")


def _number(variable: str) -> int:
    given = os.environ.get(variable, "1")
    if not given.isdecimal() or not int(given):
        raise ConfigError(
            [f"{variable} is {given!r}; expected a number of slots, or no such variable where there is no limit"],
            "the environment",
        )
    return int(given)


@dataclass(frozen=True)
class SetUp:
    """One task folder with its dispatcher, in an Airflow that may have more of them.

    Without a name, everything is called as it is where there is but one.

    :param name: lower-case letters, digits and underscores, as it becomes part of environment variables too.
    :raises ValueError: when the name is none.
    """

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and (not _NAME.fullmatch(self.name) or self.name in _TAKEN):
            raise ValueError(
                f"the set-up is {self.name!r}; expected up to 50 lower-case letters, digits and underscores, and not "
                f"{' or '.join(_TAKEN)}, which are the ends of names of the set-up without a name"
            )

    @property
    def dag_id(self) -> str:
        """The DAG's ID; all other names begin with it."""
        return f"bqdispatch_{self.name}" if self.name else "bqdispatch"

    @property
    def conn_id(self) -> str:
        """ID of the connection, of type ``bqdispatch``."""
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

    def variable(self, what: str) -> str:
        """The environment variable of something.

        :param what: ``SCHEDULE``, ``SQL_SLOTS`` or ``JOBS_SLOTS``.
        """
        return f"{self.dag_id}_{what}".upper()

    @property
    def slots(self) -> tuple[str, str]:
        """The environment variables of the tasks' slots in either pool."""
        return self.variable("SQL_SLOTS"), self.variable("JOBS_SLOTS")

    def task_slots(self) -> dict[str, int]:
        """Read from the environment how many slots a task takes in either pool: 1 where that is not said.

        :raises ConfigError: when it is no number of slots.
        """
        return {
            pool: _number(variable) for pool, variable in zip((self.sql_pool, self.jobs_pool), self.slots, strict=True)
        }

    @property
    def dag_file(self) -> str:
        """The text of a DAG file for this set-up."""
        whose, name = (f"the set-up {self.name}", json.dumps(self.name)) if self.name else ("the dispatcher", "")
        return (
            f'"""Airflow\'s DAG of {whose}."""\n\n'
            "from bqdispatch_provider.factory import dispatch_dag\n\n"
            f"dag = dispatch_dag({name})\n"
        )
