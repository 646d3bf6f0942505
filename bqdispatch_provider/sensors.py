"""The sensors: one finds what there is to dispatch, the other waits until BqTail has finished some events."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.providers.common.compat.sdk import PokeReturnValue

from bqdispatch_provider import compat, links
from bqdispatch_provider.compat import AirflowSensorTimeout, AirflowSkipException, conf
from bqdispatch_provider.core.events import EventFilter
from bqdispatch_provider.core.log_lines import ChangeLogger, summary_line, throttle_lines
from bqdispatch_provider.core.model import Lane
from bqdispatch_provider.core.polling import AdaptivePolling, seconds_of
from bqdispatch_provider.core.pools import is_too_small, slots_of
from bqdispatch_provider.deferral import (
    WaitingSensor,
    longest_deferral,
    may_end_in_triggerer,
    may_start_from_trigger,
    set_start_trigger,
)
from bqdispatch_provider.hooks import BqDispatchHook, trigger_failed
from bqdispatch_provider.journal import RunJournal, journal_path
from bqdispatch_provider.metrics import Metrics
from bqdispatch_provider.names import in_one_line
from bqdispatch_provider.runs import end_idle_run
from bqdispatch_provider.shares import hand_on
from bqdispatch_provider.triggers import BqDispatchDoneTrigger, BqDispatchTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.core.plans import Plan
    from bqdispatch_provider.dispatcher import Dispatcher

_TRIGGERER_DELAY = timedelta(minutes=1)
"""Added to what the scheduler allows a deferred sensor: triggers start late if the triggerer is busy."""


@dataclass
class _Opened:
    """Objects that the polls of one try share.

    :param dispatcher: keeps what it has read from poll to poll.
    :param change_logger: logs what has changed since the poll before.
    :param polling: gives the pauses between polls.
    :param plan: of the last poll.
    """

    dispatcher: Dispatcher
    change_logger: ChangeLogger
    polling: AdaptivePolling
    plan: Plan | None = None


class BqDispatchSensor(WaitingSensor):
    """A sensor that waits until traces or windows can be dispatched, and returns them as shares.

    A share holds events of one lane, as many as the limits allow. The events themselves are written to the journal. The
    return value is a list of dicts, one for each share: its lane, the number of events, the first of them, and where
    all of them are. Pass it to a :class:`~bqdispatch_provider.operators.DispatchOperator` as a whole
    (``shares=sensor.output``) or one by one (``.expand(shares=sensor.output)``).

    If nothing comes within ``timeout``, the task writes the run's response document and ``performance.json`` and is
    skipped, and so are the tasks that follow. If other tasks of the run have left something in the journal, it writes
    neither: they may still dispatch what another sensor has found, and the report ends the run.

    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own
        (templated).
    :param only: filter of events, as lists by key: ``lanes`` (``sql``, ``jobs``, ``windows``), ``projects``,
        ``destinations`` (table patterns, such as ``sales.*``), ``actions`` and ``event_ids``. An event has to match
        every key that is given. Default: all events (templated).
    :param poke_interval: the longest pause between two polls, in seconds or as a timedelta. Pauses start at one second
        again after each change. With ``mode="reschedule"`` every pause is as long, and with ``exponential_backoff``
        pauses are Airflow's.
    :param timeout: seconds, or a timedelta, to wait for something to dispatch.
    :param soft_fail: skip the task if nothing came within ``timeout``; with ``False`` it fails. An error fails it in
        both cases, and so does its ``execution_timeout``, or a triggerer that does not run.
    :param mode: ``poke`` or ``reschedule``, as for every sensor. Ignored if deferred.
    :param deferrable: wait in the triggerer, without a worker. A task for which nothing came ends there, unless it has
        an ``on_success_callback``, an ``on_skipped_callback``, or ``soft_fail=False``. Default: the setting
        ``[operators] default_deferrable``.
    :param start_from_trigger: start in the triggerer too, so that a run with nothing to dispatch takes no worker; this
        implies ``deferrable``. Set ``trigger_rule="none_skipped"`` on the report task then. A mapped task starts on a
        worker all the same. A deferred task takes a slot of its pool only if the pool includes deferred tasks; one that
        starts in the triggerer does not wait until a slot is free. Airflow 3.0 to 3.2 start the task on a worker all
        the same, and so does 2.11 if an argument is a template.
    :raises ConfigError: if the connection or its configuration is invalid.
    :raises DispatchError: if the trigger failed.
    :raises ValueError: if ``only`` is invalid.
    """

    template_fields: Sequence[str] = ("bqdispatch_conn_id", "variables", "only")
    template_fields_renderers: ClassVar[dict[str, str]] = {"variables": "json", "only": "json"}
    operator_extra_links = (links.TaskFolderLink(), links.ResponseDocumentLink())
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        bqdispatch_conn_id: str = BqDispatchHook.default_conn_name,
        variables: Mapping[str, str] | None = None,
        only: Mapping[str, Sequence[str]] | None = None,
        poke_interval: timedelta | float = 5.0,
        timeout: timedelta | float = 50.0,
        soft_fail: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, soft_fail=soft_fail, **kwargs)
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.only = only
        self.deferrable = deferrable or start_from_trigger
        if start_from_trigger and may_start_from_trigger(self):
            longest = longest_deferral(self, timedelta(seconds=self.timeout) + _TRIGGERER_DELAY)
            set_start_trigger(self, lambda: self._trigger(deferral_timeout=longest.total_seconds()), longest)
        self._opened: _Opened | None = None
        self.links: Mapping[str, str] = {}

    def execute(self, context: Context) -> Any:
        """Poll until there is something to dispatch, and return the shares."""
        with self._open() as opened:
            if not self.deferrable:
                try:
                    return self.poke_until_done(context)
                except (AirflowSkipException, AirflowSensorTimeout):
                    self._end_run(context, opened.dispatcher)
                    raise
            first = self.poke(context)
        if not first.is_done:
            self._wait_in_triggerer(context, datetime.now(UTC) + timedelta(seconds=self.timeout))
        return first.xcom_value

    def execute_complete(self, context: Context, event: Mapping[str, Any] | str) -> list[dict[str, Any]]:
        """Poll again after the trigger's event, and return the shares.

        :param context: the task's.
        :param event: from :class:`BqDispatchTrigger`.
        """
        message = f"nothing to dispatch within {self.timeout:g} s"
        if isinstance(event, str):  # dag.test() resumes a task that its trigger has ended
            raise AirflowSkipException(message)
        if event["status"] == "error":
            raise trigger_failed("waited for events", self.bqdispatch_conn_id, event)
        with self._open() as opened:
            polled = self.poke(context)
            if polled.is_done:
                shares: list[dict[str, Any]] = polled.xcom_value or []
                return shares
            # Another task may have dispatched everything meanwhile: that of the DAG run before this one, for example.
            until = datetime.fromisoformat(event["until"]) if "until" in event else datetime.min.replace(tzinfo=UTC)
            goes_on = until > datetime.now(UTC)
            if not goes_on:
                self._end_run(context, opened.dispatcher)
        if goes_on:
            self._wait_in_triggerer(context, until)
        raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once. If there is something to dispatch, write it to the journal and return the shares.

        :param context: the task's.
        """
        with self._open() as opened:
            return self._poll(context, opened)

    def _poll(self, context: Context, opened: _Opened) -> PokeReturnValue:
        dispatcher = opened.dispatcher
        config, store = dispatcher.config, dispatcher.store
        seen = dispatcher.look()
        opened.plan = seen.plan
        shares = seen.plan.shares()
        number = sum(len(share.events) for share in shares)
        lines = [summary_line(seen.report, number), *throttle_lines(seen.report, config)]
        opened.change_logger.log_if_changed(lines)
        if not shares:
            return PokeReturnValue(is_done=False)
        first = store.task_url(shares[0].events[0].name)
        links.keep(self, context, {links.TaskFolderLink: links.folder_page(first)})
        return PokeReturnValue(is_done=True, xcom_value=hand_on(shares, RunJournal(store, config, context), config))

    def _get_next_poke_interval(self, *args: Any) -> float:
        """Return the seconds until the next poll, as Airflow's sensor asks for them after each."""
        if self._opened is None or self.reschedule or self.exponential_backoff:
            return super()._get_next_poke_interval(*args)
        return self._opened.polling.next_interval(self._opened.plan, time.monotonic())

    def _wait_in_triggerer(self, context: Context, until: datetime) -> NoReturn:
        began = until - timedelta(seconds=self.timeout)
        self.defer(
            trigger=self._trigger(deferred_at=began, journal_path=journal_path(context)),
            method_name="execute_complete",
            timeout=until - datetime.now(UTC) + _TRIGGERER_DELAY,
        )

    def _trigger(self, **more: Any) -> BqDispatchTrigger:
        return BqDispatchTrigger(
            self.bqdispatch_conn_id,
            self.timeout,
            skip_when_idle=self.soft_fail and may_end_in_triggerer(self),
            variables=self.variables,
            only=self.only,
            poll_interval=self.poke_interval,
            **more,
        )

    @contextmanager
    def _open(self) -> Iterator[_Opened]:
        """Open the dispatcher, unless it is open.

        Airflow's ``execute`` calls :meth:`poke` and passes nothing on, so the sensor itself keeps what is open.
        """
        if self._opened is not None:
            yield self._opened
            return
        hook = BqDispatchHook(self.bqdispatch_conn_id)
        with hook.get_dispatcher(variables=self.variables, only=self.only) as dispatcher:
            self._warn_of_slots(dispatcher.config)
            polling = AdaptivePolling.up_to(self.poke_interval)
            self._opened = _Opened(dispatcher, ChangeLogger(self.log), polling)
            try:
                yield self._opened
            finally:
                self._opened = None

    def _warn_of_slots(self, config: DispatchConfig) -> None:
        """Warn of tasks that take more slots than their pool has, if it mirrors the limit. Such a task never runs."""
        for task in compat.tasks_beside(self):
            lanes = _known_lanes(task)
            limit = config.max_concurrent_sql if lanes == {Lane.SQL} else config.max_concurrent_jobs
            if lanes and is_too_small(slots_of(limit), task.pool_slots):
                self.log.warning(
                    "Task %s takes %d slots of the pool %r, which has %d if it mirrors its limit. Then the task never "
                    "runs; lower its pool_slots%s",
                    task.task_id,
                    task.pool_slots,
                    task.pool,
                    limit,
                    _where_slots_are_set(task.pool),
                )

    def _end_run(self, context: Context, dispatcher: Dispatcher) -> None:
        """End a run in which there was nothing to dispatch."""
        journal = RunJournal(dispatcher.store, dispatcher.config, context)
        end_idle_run(dispatcher, journal, Metrics(self.bqdispatch_conn_id).send)
        links.keep(self, context, {links.ResponseDocumentLink: links.object_page(journal.document_url)})


def _where_slots_are_set(pool: str) -> str:
    """Return what sets the slots of a task that ``dispatch_dag`` has put into a pool of its set-up."""
    lane = re.fullmatch("bqdispatch.*_(sql|jobs)", pool)
    return f": `{lane[1]}_slots` of dispatch_dag, or the environment variable {pool.upper()}_SLOTS" if lane else ""


def _known_lanes(task: Any) -> set[str]:
    """Return the lanes that a task's filter names; none if Airflow knows them only once the task runs.

    :param task: any operator. Its filter may be a template, mapped, or another task's result.
    """
    only = getattr(task, "only", None)
    lanes = only.get("lanes") if isinstance(only, Mapping) else None
    names = [lanes] if isinstance(lanes, str) else lanes if isinstance(lanes, list | tuple) else []
    return set(names) if all(each in tuple(Lane) for each in names) else set()


class BqDispatchDoneSensor(WaitingSensor):
    """A sensor that waits until BqTail has finished some events: none of them waits, runs, or is still to be consumed.

    Then their jobs have ended, and the last post action has been triggered, for all files that BqTail knows of. The
    sensor dispatches nothing.

    Between two steps of a chain no event can be seen for a moment. So the sensor succeeds only if none was seen for
    ``settle_time``. During that time it polls every two seconds, and keeps its worker in every mode.

    A trace that cannot be dispatched keeps the sensor waiting until the trace is quarantined, or until ``timeout``.

    :param only: filter of events, as lists by key: ``projects``, ``destinations`` (table patterns, such as ``sales.*``;
        partitions are ``sales.orders$*``), ``actions`` and ``event_ids``. An event has to match every key that is
        given. With ``actions`` the sensor does not wait for the earlier steps of a chain. Windows have no event ID
        yet. Default: all events (templated).
    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own
        (templated).
    :param settle_time: seconds, or a timedelta, for which no event may be seen. Choose more than BqTail takes from
        consuming an event to submitting the next job.
    :param poke_interval: seconds, or a timedelta, between two polls while events are seen.
    :param timeout: seconds, or a timedelta, after which the task fails if an event is not finished. With ``soft_fail``
        it is skipped instead; an error, its ``execution_timeout``, or a triggerer that does not run fails it even then.
        Default: the setting ``[sensors] default_timeout``, a week.
    :param mode: ``poke`` or ``reschedule``, as for every sensor. Ignored if deferred.
    :param deferrable: wait in the triggerer, without a worker. Default: the setting ``[operators] default_deferrable``.
    :raises AirflowSensorTimeout: if an event is not finished after ``timeout``.
    :raises ConfigError: if the connection or its configuration is invalid.
    :raises DispatchError: if the trigger failed.
    :raises ValueError: if ``only`` or ``settle_time`` is invalid.
    """

    template_fields: Sequence[str] = ("only", "bqdispatch_conn_id", "variables")
    ui_color = "#fef7e0"

    def __init__(
        self,
        *,
        only: Mapping[str, Sequence[str]] | None = None,
        bqdispatch_conn_id: str = BqDispatchHook.default_conn_name,
        variables: Mapping[str, str] | None = None,
        settle_time: timedelta | float = 60.0,
        poke_interval: timedelta | float = 30.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.only = only
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.settle_time = seconds_of("settle_time", settle_time)
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        """Wait until no event is left."""
        EventFilter.from_dict(self.only)
        if self.deferrable:
            self.defer(
                trigger=BqDispatchDoneTrigger(
                    self.bqdispatch_conn_id,
                    datetime.now(UTC) + timedelta(seconds=self.timeout),
                    settle_time=self.settle_time,
                    variables=self.variables,
                    only=self.only,
                    poll_interval=self.poke_interval,
                ),
                method_name="execute_complete",
                timeout=timedelta(seconds=self.timeout + self.settle_time) + _TRIGGERER_DELAY,
            )
        return self.poke_until_done(context)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> None:
        """Succeed, be skipped or fail, as the trigger's event says.

        :param context: the task's.
        :param event: from :class:`BqDispatchDoneTrigger`.
        """
        if event["status"] == "error":
            raise trigger_failed("waited for BqTail", self.bqdispatch_conn_id, event)
        if event["status"] == "left":
            message = f"BqTail has not finished {event['message']} after {self.timeout:g} s"
            raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)
        self.log.info("No event was seen for %g s", self.settle_time)

    def poke(self, context: Context) -> bool:
        """Poll until an event is seen, or until none was seen for the settle time.

        :param context: the task's.
        """
        from bqdispatch_provider.remaining import first_remaining  # noqa: PLC0415  (few DAG files need it)

        only = EventFilter.from_dict(self.only)
        with BqDispatchHook(self.bqdispatch_conn_id).get_task_folder(self.variables) as folder:
            url = first_remaining(folder, only, self.settle_time)
        if url:
            self.log.info("BqTail has not finished %s", in_one_line(url))
        else:
            self.log.info("No event was seen for %g s", self.settle_time)
        return not url
