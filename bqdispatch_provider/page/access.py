"""Who may see what: Airflow's login for every route, and for a set-up the right to read one of its DAGs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends

LOGGED_IN = Depends(get_user)
"""Airflow's login. Without a token the answer is 401."""

User = Annotated[Any, LOGGED_IN]
"""Who asks."""


def readable_dags(user: Any) -> set[str]:
    """Return the IDs of all DAGs that a user may read. They exist, so no invented ID grants anything.

    :param user: who asks.
    """
    return set(get_auth_manager().get_authorized_dag_ids(user=user))


def dags_with_readable_runs(user: Any, dag_ids: Iterable[str]) -> list[str]:
    """Return those of some DAGs whose runs and tasks a user may read.

    :param user: who asks.
    :param dag_ids: of DAGs that the user may read.
    """
    manager = get_auth_manager()
    return [
        dag_id
        for dag_id in sorted(dag_ids)
        if all(
            manager.is_authorized_dag(method="GET", access_entity=entity, details=DagDetails(id=dag_id), user=user)
            for entity in (DagAccessEntity.RUN, DagAccessEntity.TASK_INSTANCE)
        )
    ]
