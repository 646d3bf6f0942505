"""Differences between the versions of Airflow; what ``airflow.providers.common.compat.sdk`` has is taken from it.

Importing this costs nothing: DAG files import it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC
from importlib import import_module
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
    from airflow.triggers.base import BaseTrigger, StartTriggerArgs

__all__ = ("AirflowException", "AirflowFailException", "AirflowSensorTimeout", "AirflowSkipException", "Stats", "conf")

log = logging.getLogger(__name__)


def date_of(context: Context) -> datetime | None:
    """When the context's run was to start: its logical date, or where it has none (Airflow 3), what stands for it.

    :param context: the running task's.
    """
    return context.get("logical_date") or getattr(context.get("dag_run"), "run_after", None)


def emitted(context: Context, alias: str, since: datetime) -> list[tuple[str, Mapping[str, Any]]] | None:
    """Ask which asset events earlier tries of a task have emitted; ``None`` where Airflow cannot tell, before 3.2.

    :param context: the running task's.
    :param alias: through which they went.
    :param since: from when on.
    :returns: for each the URI of its asset, and its extra.
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
    """Return when the context's run was due: of a scheduled one, on the minute.

    :param context: the running task's.
    """
    run: Any = context["dag_run"]
    due: datetime
    if AIRFLOW_V_3_0_PLUS:
        due = run.run_after
    elif str(run.run_type) == "scheduled":
        due = run.data_interval_end
    else:  # its data interval is that of the last scheduled one
        due = run.queued_at or run.start_date
    return due


def tasks_beside(task: Any) -> list[Any]:
    """Return all tasks of a task's DAG; none where it has no DAG.

    :param task: any operator.
    """
    return list(task.dag.tasks) if task.has_dag() else []


def failed_tasks(context: Context, task_ids: Iterable[str]) -> list[str]:
    """Find the tasks of the context's run that have failed, or of which one of several has.

    :param context: the running task's.
    :param task_ids: among which.
    """
    ti: Any = context["ti"]
    wanted = sorted(task_ids)
    if AIRFLOW_V_3_0_PLUS:
        found = ti.get_task_states(dag_id=ti.dag_id, task_ids=wanted, run_ids=[ti.run_id])
        states = [(task, state) for of_run in found.values() for task, state in of_run.items()]
        # A mapped task's state stands under its ID, an underscore and its number.
        failed = {task for task, state in states if state in ("failed", "upstream_failed")}
        return [each for each in wanted if any(re.fullmatch(rf"{re.escape(each)}(_[0-9]+)?", task) for task in failed)]
    instances: Any = context["dag_run"]
    failed = {each.task_id for each in instances.get_task_instances(state=["failed", "upstream_failed"])}
    return [each for each in wanted if each in failed]


async def extra_of(conn_id: str) -> Mapping[str, Any]:
    """A connection's extra, read on an event loop without blocking it.

    From 3.3.2 on Airflow reads it there. Before that, a connection hides its secrets from the logs by a call to the
    triggerer's supervisor that must not be made on the event loop, and on 3.1 only from a thread that asgiref knows.

    :param conn_id: ID of the connection.
    :raises AirflowNotFoundException: when there is none.
    """
    from airflow.providers.common.compat.sdk import BaseHook, Connection  # noqa: PLC0415

    if hasattr(Connection, "aextra_dejson"):
        connection = await BaseHook.aget_connection(conn_id)
        extra: Mapping[str, Any] = await connection.aextra_dejson()
        return extra
    from asgiref.sync import sync_to_async  # noqa: PLC0415

    return await sync_to_async(lambda: BaseHook.get_connection(conn_id).extra_dejson)()


def form_widgets(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a connection's form for Airflow 2; Airflow 3 reads them from the provider's metadata.

    :param fields: that metadata's ``conn-fields``.
    """
    from flask_appbuilder import fieldwidgets  # type: ignore[import-not-found]  # noqa: PLC0415  (Airflow 2 only)
    from flask_babel import lazy_gettext  # type: ignore[import-not-found]  # noqa: PLC0415
    from wtforms import StringField  # type: ignore[import-untyped]  # noqa: PLC0415

    return {
        name: StringField(
            lazy_gettext(field["label"]),
            widget=getattr(fieldwidgets, f"BS3Text{'Area' if 'format' in field['schema'] else ''}FieldWidget")(),
        )
        for name, field in fields.items()
    }


def make_known(alias: str) -> None:
    """Make sure that Airflow knows an asset alias before events go through it.

    Airflow 3 makes it on its own. Airflow 2 fails the task whose alias its scheduler has not read from a DAG file, as
    those of mapped tasks, or of a DAG that is only tested.

    :param alias: its name.
    """
    if AIRFLOW_V_3_0_PLUS:
        return
    from airflow.models.dataset import DatasetAliasModel  # type: ignore[import-not-found]  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415
    from sqlalchemy.exc import IntegrityError  # noqa: PLC0415

    with suppress(IntegrityError), create_session() as session:  # another task may have made it just now
        if session.scalar(select(DatasetAliasModel).where(DatasetAliasModel.name == alias)) is None:
            session.add(DatasetAliasModel(name=alias))


def stored_extra(conn_id: str) -> dict[str, Any]:
    """Read a connection's extra from where Airflow's components store it, for a command.

    :raises AirflowNotFoundException: when there is no such connection.
    """
    from airflow.models.connection import Connection  # noqa: PLC0415  (tasks have no database)

    extra: dict[str, Any] = Connection.get_connection_from_secrets(conn_id).extra_dejson
    return extra


def connections_of(conn_type: str) -> set[str]:
    """Find the connections of a type in Airflow's database and in the environment, for a command.

    :param conn_type: such as ``bqdispatch``.
    :returns: their IDs.
    """
    from airflow.models.connection import Connection  # noqa: PLC0415  (tasks have no database)
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    prefix, found = "AIRFLOW_CONN_", set()
    for variable in [variable for variable in os.environ if variable.startswith(prefix)]:
        conn_id = variable.removeprefix(prefix).lower()
        with suppress(Exception):  # one that is malformed is not ours to name
            if Connection.get_connection_from_secrets(conn_id).conn_type == conn_type:
                found.add(conn_id)
    with create_session() as session:
        found |= set(session.scalars(select(Connection.conn_id).where(Connection.conn_type == conn_type)))
    return found


def stores_links() -> bool:
    """Whether a task's links are stored when it ends; in Airflow 2 the web server asks for them."""
    return AIRFLOW_V_3_0_PLUS


def renders_triggers() -> bool:
    """Whether the arguments of a trigger that a task starts from may be templates: from 3.3 on."""
    import airflow  # noqa: PLC0415

    return tuple(int(part) for part in airflow.__version__.split(".")[:2]) >= (3, 3)


def starts_from_trigger() -> bool:
    """Whether the scheduler makes use of ``start_from_trigger``: 3.0 to 3.2 pass it over, and begin on a worker."""
    return not AIRFLOW_V_3_0_PLUS or renders_triggers()


def event_trigger() -> Any:
    """The class of triggers that can watch an asset; Airflow 2 has none, there it is that of all triggers."""
    from airflow.triggers import base  # noqa: PLC0415

    return getattr(base, "BaseEventTrigger", base.BaseTrigger)


def start_trigger_args(trigger: BaseTrigger, **more: Any) -> StartTriggerArgs:
    """What a task starts from in the triggerer; it resumes in ``execute_complete``.

    :param trigger: as it is to be made there.
    :param more: as ``StartTriggerArgs`` has it.
    """
    from airflow.triggers.base import StartTriggerArgs  # noqa: PLC0415

    path, kwargs = trigger.serialize()
    return StartTriggerArgs(path, "execute_complete", trigger_kwargs=kwargs, **more)


def ends_at(trigger: BaseTrigger) -> datetime | None:
    """When the scheduler ends a task's deferral (aware), of which no trigger's arguments tell; ``None``: not known.

    :param trigger: the running one.
    """
    end: datetime | None = getattr(trigger, "timeout_after", None)
    end = end or getattr(trigger.task_instance, "trigger_timeout", None)
    return end if end is None or end.tzinfo else end.replace(tzinfo=UTC)


def context_of(trigger: BaseTrigger) -> Context:
    """As much of a task's context as its trigger may know, where the task has started from it.

    :param trigger: the running one.
    """
    ti: Any = trigger.task_instance
    known: Any = ti.get_template_context() if AIRFLOW_V_3_0_PLUS else {"ti": ti, "logical_date": ti.execution_date}
    context: Context = known
    return context


def schedule_on_events(name: str, trigger: Any, cron: str) -> Any:
    """Return a DAG's schedule by an asset that a trigger watches, and by time; on Airflow 2 by time alone.

    :param name: of the asset. It has no URI of its own: a registered scheme would load every provider in each task.
    :param trigger: one of :func:`event_trigger`'s kind.
    :param cron: when to run in any case, UTC.
    :raises AirflowTimetableInvalid: when ``cron`` is none, on Airflow 3.
    """
    if not AIRFLOW_V_3_0_PLUS:
        log.info("No DAG is scheduled by %r here: only Airflow 3 has triggers that watch assets", name)
        return cron
    from airflow.sdk import Asset, AssetWatcher  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    from airflow.timetables.assets import AssetOrTimeSchedule  # noqa: PLC0415
    from airflow.timetables.trigger import CronTriggerTimetable  # noqa: PLC0415

    in_any_case = CronTriggerTimetable(cron, timezone="UTC")
    in_any_case.validate()  # the DAG asks the outer timetable alone
    asset: Any = Asset(name=name, watchers=[AssetWatcher(name=name, trigger=trigger)])
    return AssetOrTimeSchedule(timetable=in_any_case, assets=[asset])


def triggering_events(context: Mapping[str, Any], asset: Any) -> list[Any]:
    """The events of an asset that have started a run; Airflow 3 lists those of an alias a second time under that.

    :param context: the running task's.
    :param asset: by which its DAG is scheduled.
    """
    if AIRFLOW_V_3_0_PLUS:
        return list(context["triggering_asset_events"].get(asset, ()))
    return list(context["triggering_dataset_events"].get(asset.uri, ()))


def mask(secret: str) -> None:
    """Keep a secret out of logs, whoever should write it there.

    :param secret: as it might be written.
    """
    for module in ("sdk.log", "sdk.execution_time.secrets_masker", "utils.log.secrets_masker"):
        with suppress(ImportError, AttributeError):
            import_module(f"airflow.{module}").mask_secret(secret)
            return


def slack_client(conn_id: str) -> Any:
    """The client of a connection of the Slack provider; ``None`` where that is not installed.

    :param conn_id: ID of the connection.
    """
    try:
        from airflow.providers.slack.hooks.slack import SlackHook  # noqa: PLC0415
    except ImportError:
        return None
    return SlackHook(slack_conn_id=conn_id, timeout=10).client
