"""Differences between Airflow's versions that ``airflow.providers.common.compat.sdk`` does not hide.

DAG files import this module, so it imports nothing that is slow.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

try:
    from airflow.providers.common.compat.sdk import (
        AirflowException,
        AirflowFailException,
        AirflowSensorTimeout,
        AirflowSkipException,
        Stats,
        conf,
    )
except ImportError:  # common-compat has all of them from 1.12 on
    from airflow.configuration import conf
    from airflow.exceptions import (  # type: ignore[attr-defined,no-redef]
        AirflowException,
        AirflowFailException,
        AirflowSensorTimeout,
        AirflowSkipException,
    )
    from airflow.stats import Stats

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

__all__ = ("AirflowException", "AirflowFailException", "AirflowSensorTimeout", "AirflowSkipException", "Stats", "conf")

log = logging.getLogger(__name__)


def date_of(context: Context) -> datetime | None:
    """Return the logical date of the context's run, or on Airflow 3, where it may have none, when it was due.

    :param context: the running task's.
    """
    return context.get("logical_date") or getattr(context.get("dag_run"), "run_after", None)


def emitted(context: Context, alias: str, since: datetime) -> list[tuple[str, Mapping[str, Any]]] | None:
    """Read the asset events that earlier tries of a task have emitted.

    :param context: the running task's.
    :param alias: name of the alias through which they were emitted.
    :param since: the earliest time.
    :returns: the URI of each event's asset, and its extra; ``None`` before Airflow 3.2, which cannot tell.
    """
    try:
        from airflow.sdk import AssetAlias  # noqa: PLC0415
        from airflow.sdk.execution_time.context import InletEventsAccessors  # noqa: PLC0415

        events = InletEventsAccessors([AssetAlias(alias)])[AssetAlias(alias)].after(since.isoformat())
    except (ImportError, AttributeError):
        return None
    ti: Any = context["ti"]
    mine = (each for each in events if (each.source_dag_id, each.source_run_id) == (ti.dag_id, ti.run_id))
    return [(each.asset.uri, each.extra or {}) for each in mine]


def due_of(context: Context) -> datetime:
    """Return when the context's run was due.

    :param context: the running task's.
    """
    run: Any = context["dag_run"]
    due: datetime
    if AIRFLOW_V_3_0_PLUS:
        due = run.run_after
    elif str(run.run_type) == "scheduled":
        due = run.data_interval_end
    else:  # its data interval is that of the last scheduled run
        due = run.queued_at or run.start_date
    return due


def tasks_beside(task: Any) -> list[Any]:
    """Return all tasks of a task's DAG; none if it has no DAG.

    :param task: any operator.
    """
    return list(task.dag.tasks) if task.has_dag() else []


def failed_tasks(context: Context, task_ids: Iterable[str]) -> list[str]:
    """Find the failed tasks of the context's run. A mapped task has failed if one of its instances has.

    :param context: the running task's.
    :param task_ids: IDs of the tasks to look at.
    """
    ti: Any = context["ti"]
    wanted = sorted(task_ids)
    if AIRFLOW_V_3_0_PLUS:
        found = ti.get_task_states(dag_id=ti.dag_id, task_ids=wanted, run_ids=[ti.run_id])
        states = [(task, state) for of_run in found.values() for task, state in of_run.items()]
        failed = {task for task, state in states if state in ("failed", "upstream_failed")}
        # A mapped task's state has the key <task ID>_<map index>, which may look like another task's ID.
        mapped = {re.sub("_[0-9]+$", "", key) for key in failed.difference(wanted)}
        return [each for each in wanted if each in failed | mapped]
    instances: Any = context["dag_run"]
    failed = {each.task_id for each in instances.get_task_instances(state=["failed", "upstream_failed"])}
    return [each for each in wanted if each in failed]


async def extra_of(conn_id: str) -> Mapping[str, Any]:
    """Read a connection's extra on an event loop, without blocking it.

    Airflow can do this from 3.3.2 on. Before that, masking a connection's secrets calls the triggerer's supervisor,
    which must not happen on the event loop, and on 3.1 only in a thread of asgiref.

    :param conn_id: ID of the connection.
    :raises AirflowNotFoundException: if it does not exist.
    """
    from airflow.providers.common.compat.sdk import BaseHook, Connection  # noqa: PLC0415

    if hasattr(Connection, "aextra_dejson"):
        connection = await BaseHook.aget_connection(conn_id)
        extra: Mapping[str, Any] = await connection.aextra_dejson()
        return extra
    from asgiref.sync import sync_to_async  # noqa: PLC0415

    return await sync_to_async(lambda: BaseHook.get_connection(conn_id).extra_dejson)()


def form_widgets(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a connection's form before Airflow 3.2, which reads the provider's metadata.

    :param fields: ``conn-fields`` of the metadata.
    """
    # Airflow 3.0 and 3.1 replace these modules, which they lack.
    from flask_appbuilder import fieldwidgets  # type: ignore[import-not-found]  # noqa: PLC0415
    from flask_babel import lazy_gettext  # type: ignore[import-not-found]  # noqa: PLC0415
    from wtforms import StringField  # type: ignore[import-untyped]  # noqa: PLC0415

    widgets = {}
    for name, field in fields.items():
        has_lines = "format" in field["schema"]
        widget = getattr(fieldwidgets, f"BS3Text{'Area' if has_lines else ''}FieldWidget")()
        widgets[name] = StringField(lazy_gettext(field["label"]), widget=widget)
        if has_lines and hasattr(widgets[name], "param"):  # Airflow 3 looks at no widget
            widgets[name].param.schema |= field["schema"]
    return widgets


def make_known(alias: str) -> None:
    """Register an asset alias before events go through it.

    Airflow 3 does this itself. Airflow 2 fails a task whose alias its scheduler has not read from a DAG file, such as
    that of a mapped task, or of a DAG in ``dag.test()``.

    :param alias: name of the alias.
    """
    if AIRFLOW_V_3_0_PLUS:
        return
    from airflow.models.dataset import DatasetAliasModel  # type: ignore[import-not-found]  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415
    from sqlalchemy.exc import IntegrityError  # noqa: PLC0415

    with suppress(IntegrityError), create_session() as session:  # another task may register it just now
        if session.scalar(select(DatasetAliasModel).where(DatasetAliasModel.name == alias)) is None:
            session.add(DatasetAliasModel(name=alias))


def stored_extra(conn_id: str) -> dict[str, Any]:
    """Read a connection's extra from Airflow's secrets backends and database, for a command.

    :param conn_id: ID of the connection.
    :raises AirflowNotFoundException: if it does not exist.
    """
    from airflow.models.connection import Connection  # noqa: PLC0415  (tasks have no database)

    extra: dict[str, Any] = Connection.get_connection_from_secrets(conn_id).extra_dejson
    return extra


def connections_of(conn_type: str) -> set[str]:
    """Find the connections of a type in Airflow's database and in ``AIRFLOW_CONN_…``, for a command.

    :param conn_type: such as ``bqdispatch``.
    :returns: their IDs.
    """
    from airflow.models.connection import Connection  # noqa: PLC0415  (tasks have no database)
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    prefix, found = "AIRFLOW_CONN_", set()
    for variable in [variable for variable in os.environ if variable.startswith(prefix)]:
        conn_id = variable.removeprefix(prefix).lower()
        with suppress(Exception):  # a malformed connection has no type
            if Connection.get_connection_from_secrets(conn_id).conn_type == conn_type:
                found.add(conn_id)
    with create_session() as session:
        found |= set(session.scalars(select(Connection.conn_id).where(Connection.conn_type == conn_type)))
    return found


def stores_links() -> bool:
    """Return True if Airflow stores a task's links when it ends. Airflow 2 reads them in its web server."""
    return AIRFLOW_V_3_0_PLUS


def renders_triggers() -> bool:
    """Return True if a task that starts in the triggerer may have templated arguments: from 3.3 on."""
    import airflow  # noqa: PLC0415

    return tuple(int(part) for part in airflow.__version__.split(".")[:2]) >= (3, 3)


def has_plugin_pages() -> bool:
    """Return True if an app of a plugin is told who has logged in: from 3.1.1 on."""
    import airflow  # noqa: PLC0415

    version = [int(digits) for digits in re.findall(r"[0-9]+", airflow.__version__)[:3]]
    return version >= [3, 1, 1]


def starts_from_trigger() -> bool:
    """Return True if the scheduler supports ``start_from_trigger``: not on 3.0 to 3.2, which start on a worker."""
    return not AIRFLOW_V_3_0_PLUS or renders_triggers()


def event_trigger() -> Any:
    """Return the base class of triggers that watch assets; on Airflow 2, which has none, that of all triggers."""
    from airflow.triggers import base  # noqa: PLC0415

    return getattr(base, "BaseEventTrigger", base.BaseTrigger)


def ends_at(trigger: BaseTrigger) -> datetime | None:
    """Return when the scheduler ends a task's deferral (aware); ``None`` if that is unknown.

    :param trigger: the running trigger.
    """
    end: datetime | None = getattr(trigger, "timeout_after", None)
    end = end or getattr(trigger.task_instance, "trigger_timeout", None)
    return end if end is None or end.tzinfo else end.replace(tzinfo=UTC)


def context_of(trigger: BaseTrigger) -> Context:
    """Return what a trigger knows of its task's context, if the task has started in the triggerer.

    :param trigger: the running trigger.
    """
    ti: Any = trigger.task_instance
    known: Any
    if AIRFLOW_V_3_0_PLUS:
        known = ti.get_template_context()
    else:  # a row of the database, without its task
        dag = SimpleNamespace(dag_id=ti.dag_id)
        known = {"ti": ti, "dag": dag, "run_id": ti.run_id, "logical_date": ti.execution_date}
    context: Context = known
    return context


def schedule_on_events(name: str, trigger: Any, cron: str) -> Any:
    """Return a DAG's schedule by a trigger's events and by time; on Airflow 2 by time only.

    :param name: name of the asset that the trigger watches. It has no URI, since Airflow would load every provider in
        each task for a registered scheme.
    :param trigger: the trigger, of the class that :func:`event_trigger` returns.
    :param cron: cron expression, UTC, for runs without an event.
    :raises ValueError: if ``cron`` is invalid, on Airflow 3.
    """
    if not AIRFLOW_V_3_0_PLUS:
        log.info("Asset watchers need Airflow 3; scheduling by time instead of %r", name)
        return cron
    from airflow.sdk import Asset, AssetWatcher  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    from airflow.timetables.assets import AssetOrTimeSchedule  # noqa: PLC0415
    from airflow.timetables.trigger import CronTriggerTimetable  # noqa: PLC0415

    expected = f"the schedule is {cron!r}; expected a cron expression, for runs without an event"
    if not isinstance(cron, str):
        raise ValueError(expected)
    timetable = CronTriggerTimetable(cron, timezone="UTC")
    try:
        timetable.validate()  # the DAG validates the outer timetable only
    except AirflowException as error:
        raise ValueError(f"{expected}: {error}") from error
    asset: Any = Asset(name=name, watchers=[AssetWatcher(name=name, trigger=trigger)])
    return AssetOrTimeSchedule(timetable=timetable, assets=[asset])


def triggering_events(context: Mapping[str, Any], asset: Any) -> list[Any]:
    """Return the events of an asset that have started a run.

    :param context: the running task's.
    :param asset: the asset in the DAG's schedule.
    """
    if AIRFLOW_V_3_0_PLUS:
        return list(context["triggering_asset_events"].get(asset, ()))
    return list(context["triggering_dataset_events"].get(asset.uri, ()))


def mask(secret: str) -> None:
    """Mask a secret in Airflow's logs.

    :param secret: the secret.
    """
    for module in ("sdk.log", "sdk.execution_time.secrets_masker", "utils.log.secrets_masker"):
        with suppress(ImportError, AttributeError):
            import_module(f"airflow.{module}").mask_secret(secret)
            return


def slack_client(conn_id: str) -> Any:
    """Return the client of a Slack connection; ``None`` if the Slack provider is not installed.

    :param conn_id: ID of the connection.
    """
    try:
        from airflow.providers.slack.hooks.slack import SlackHook  # noqa: PLC0415
    except ImportError:
        return None
    return SlackHook(slack_conn_id=conn_id, timeout=10).client
