"""The operators: one dispatches events, the other merges what the tasks of a DAG run did into one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.providers.common.compat.sdk import BaseOperator

from bqdispatch_provider import compat, links
from bqdispatch_provider.assets import emit, with_alias
from bqdispatch_provider.compat import AirflowFailException, conf
from bqdispatch_provider.core import log_lines
from bqdispatch_provider.core.polling import MAX_INTERVAL_S, AdaptivePolling, seconds_of
from bqdispatch_provider.deferral import (
    longest_deferral,
    may_end_in_triggerer,
    may_start_from_trigger,
    set_start_trigger,
)
from bqdispatch_provider.gcp.threads import StopRequest
from bqdispatch_provider.hooks import BqDispatchHook, DispatchError, raise_on_error, trigger_failed
from bqdispatch_provider.journal import RunJournal, journal_path
from bqdispatch_provider.metrics import Metrics
from bqdispatch_provider.names import counted
from bqdispatch_provider.runs import end_run, run_cycles
from bqdispatch_provider.shares import read_handed_on
from bqdispatch_provider.task_order import check_emits_alone, is_reported
from bqdispatch_provider.triggers import DispatchTrigger, ResumeOnWorker

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.core.report import Report
    from bqdispatch_provider.dispatcher import Dispatcher

HAND_OVER_S = 8.0
"""Seconds by which the tasks of two DAG runs overlap: the next run's task takes this long to start."""

_MAX_LAST_CYCLE = timedelta(minutes=10)
"""Added to the time to live of a deferred task: the last cycle is always completed."""


class DispatchOperator(BaseOperator):
    """A task that dispatches events: first those of a sensor's shares, then, cycle after cycle, what it finds itself.

    The task dispatches each event in exactly the planned generation, so a retry repeats nothing and adds to what
    earlier tries reported. An event that cannot be dispatched becomes an error of the report and waits for the next
    run. The task itself fails only if its shares, the connection or the journal cannot be used. If killed, it finishes
    what has begun: at most 100 events in each of 8 threads.

    Returns the counts of the response document, and its URL as ``document``. In a DAG with a
    :class:`DispatchReportOperator` of the same connection this is the run's document, into which the report merges the
    work of all tasks.
    Otherwise it is the task's own. Without shares, each job that ended well then becomes an asset event of its table
    (:func:`~bqdispatch_provider.assets.table_asset`) when the task succeeds. With shares, only a report emits events.

    :param shares: what a :class:`~bqdispatch_provider.sensors.BqDispatchSensor` returned: the whole list, or one share
        of it as ``.expand(shares=…)`` gives it; of a mapped sensor, or as a list of several, what each returned. They
        are the first cycle. Default: the task polls at once (templated).
    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own
        (templated).
    :param only: filter of events, as lists by key: ``lanes`` (``sql``, ``jobs``, ``windows``), ``projects``,
        ``destinations`` (table patterns, such as ``sales.*``), ``actions`` and ``event_ids``. An event has to match
        every key that is given; all others wait for another task. Default: all events (templated).
    :param time_to_live: seconds, or a timedelta, for which new cycles start; 0 is one cycle. Default: 0 with shares,
        otherwise the configuration's ``TimeToLiveInMin``, less 5 s (templated).
    :param hands_over: dispatch until the task of the next DAG run takes over, so that a DAG that runs every minute
        leaves no gap. The time to live then counts from when the DAG run was due, whenever the task starts, and 8 s are
        added. Its default is then the whole ``TimeToLiveInMin``.
    :param fail_on_error: fail the task, after all is written, if the report has an error. Default: such an event waits
        for the next run, and the task succeeds.
    :param assets: emit asset events. Ignored with shares, and in a DAG with a :class:`DispatchReportOperator`, which
        emits them.
    :param poll_interval: longest pause between two polls, in seconds. After each change the pauses start at one second
        again.
    :param deferrable: dispatch in the triggerer, once the shares are dispatched. The task ends there without a return
        value, unless downstream tasks, asset events, ``outlets``, callbacks or ``fail_on_error`` need a worker.
        Default: the setting ``[operators] default_deferrable``.
    :param start_from_trigger: start in the triggerer too, so that a run with nothing to dispatch takes no worker; this
        implies ``deferrable``. With shares or ``hands_over``, or mapped, the task starts on a worker all the same. A
        deferred task takes a slot of its pool only if the pool includes deferred tasks; one that starts in the
        triggerer does not wait until a slot is free. Airflow 3.0 to 3.2 start the task on a worker all the same, and so
        does 2.11 if an argument is a template.
    :raises ConfigError: if the connection or its configuration is invalid.
    :raises DispatchError: if the trigger failed, or with ``fail_on_error`` the report has an error.
    :raises ValueError: if ``shares``, ``only`` or ``time_to_live`` is invalid, or a report of the DAG and connection
        does not follow the task.
    """

    template_fields: Sequence[str] = ("shares", "bqdispatch_conn_id", "variables", "only", "time_to_live")
    template_fields_renderers: ClassVar[dict[str, str]] = {"shares": "json", "variables": "json", "only": "json"}
    operator_extra_links = (links.BigQueryJobLink(), links.TaskFolderLink(), links.ResponseDocumentLink())
    ui_color = "#d2e3fc"

    def __init__(
        self,
        *,
        shares: Any = None,
        bqdispatch_conn_id: str = BqDispatchHook.default_conn_name,
        variables: Mapping[str, str] | None = None,
        only: Mapping[str, Sequence[str]] | None = None,
        time_to_live: timedelta | float | None = None,
        hands_over: bool = False,
        fail_on_error: bool = False,
        assets: bool = True,
        poll_interval: float = MAX_INTERVAL_S,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.alias = bqdispatch_conn_id  # as Airflow knows it, even if it is a template
        self._has_shares = shares is not None
        if assets and not self._has_shares:
            self.outlets = with_alias(self.outlets, self.alias)
        self.shares = shares
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.only = only
        if isinstance(time_to_live, timedelta | float | int):  # and no template
            time_to_live = seconds_of("time_to_live", time_to_live)
        self.time_to_live: Any = time_to_live
        self.hands_over = hands_over
        self.fail_on_error = fail_on_error
        self.assets = assets
        self.poll_interval = poll_interval
        self.deferrable = deferrable or start_from_trigger
        self.links: Mapping[str, str] = {}
        self._done: tuple[Report, DispatchConfig, str] | None = None
        on_worker = self._has_shares or hands_over  # a trigger knows neither the shares nor when the run was due
        if start_from_trigger and not on_worker and may_start_from_trigger(self):
            longest = self._longest_deferral(self.time_to_live) or self.execution_timeout
            seconds = longest.total_seconds() if longest else None
            set_start_trigger(self, lambda: self._trigger(self.time_to_live, deferral_timeout=seconds), longest)

    def execute(self, context: Context) -> dict[str, Any]:
        """Dispatch, and return the counts.

        :param context: the task's.
        """
        began = datetime.now(UTC)
        if self.deferrable and not self._has_shares and not self.hands_over:
            self._defer(context, began, self._time_to_live_s)
        due = compat.due_of(context) if self.hands_over else None
        with self._hook.get_dispatcher(self._goes_on, self.variables, self.only) as dispatcher:
            journal = RunJournal(dispatcher.store, dispatcher.config, context)
            seconds = self._seconds(dispatcher.config)
            end = (due or began) + timedelta(seconds=seconds or 0.0)
            if self.deferrable and datetime.now(UTC) < end:
                if self._has_shares:
                    self._run(context, dispatcher, journal, 0.0, due)
                self._defer(context, due or began, seconds)
            report = self._run(context, dispatcher, journal, seconds, due)
            return self._complete(context, dispatcher.config, report, journal)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | str) -> dict[str, Any] | None:
        """Complete what the trigger has dispatched, and return the counts.

        :param context: the task's.
        :param event: from :class:`~bqdispatch_provider.triggers.DispatchTrigger`.
        """
        if isinstance(event, str):  # dag.test() resumes a task that its trigger has ended
            return None
        if event["status"] == "error":
            raise trigger_failed("dispatched events", self.bqdispatch_conn_id, event)
        with self._hook.get_task_folder(self.variables) as folder:
            journal = RunJournal(folder.store, folder.config, context)
            report = journal.read_document(journal.task_url)
            if report is None:
                raise DispatchError(f"the trigger's document {journal.task_url} is missing: clear the task to go on")
            return self._complete(context, folder.config, report, journal)

    @cached_property
    def _killed(self) -> StopRequest:
        return StopRequest()  # made late: DAGs are copied, and it cannot be

    def on_kill(self) -> None:
        """Start nothing new. What has begun is finished."""
        self._killed.make()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Return the tables and jobs of what was dispatched, for the OpenLineage provider.

        :param task_instance: the task instance. What it dispatched is known here already.
        """
        if self._done is None:
            return None
        from bqdispatch_provider.lineage import lineage_of  # noqa: PLC0415  (needs that provider)

        return lineage_of(*self._done)

    def _run(
        self,
        context: Context,
        dispatcher: Dispatcher,
        journal: RunJournal,
        seconds: float | None,
        due: datetime | None,
    ) -> Report:
        subscription = self._hook.get_subscription(dispatcher.session)
        first = read_handed_on(self.shares, journal) if self._has_shares else None
        return run_cycles(
            dispatcher,
            journal,
            seconds,
            first_shares=None if seconds and not first else first,  # without shares, poll if there is time
            began=due,
            attempt=context["ti"].try_number,
            wait=self._killed.wait if subscription is None else partial(subscription.wait, go_on=self._goes_on),
            polling=AdaptivePolling.up_to(self.poll_interval),
            send_metrics=Metrics(self.bqdispatch_conn_id).send,
            writes_performance=not self._is_reported,
        )

    def _complete(
        self, context: Context, config: DispatchConfig, report: Report, journal: RunJournal
    ) -> dict[str, Any]:
        """Keep links, emit asset events and return the counts, wherever the events were dispatched."""
        url = journal.document_url if self._is_reported else journal.task_url
        links.keep(self, context, links.links_of_dispatch(report, config.async_task_url, url))
        self._done = (report, config, url)
        if self.assets and not self._is_reported and not self._has_shares:
            emit(context, self.alias, report, config, url)
        self.log.info(
            "Dispatched %s in all tries, with %s; response document: %s",
            counted(report.dispatched, "event"),
            counted(len(report.errors), "error"),
            url,
        )
        if self.fail_on_error:
            raise_on_error(report, url)
        return {**report.summary(), "document": url}

    def _defer(self, context: Context, since: datetime, seconds: float | None) -> NoReturn:
        self.defer(
            trigger=self._trigger(
                seconds,
                attempt=context["ti"].try_number,
                deferred_at=since,
                journal_path=journal_path(context),
            ),
            method_name="execute_complete",
            timeout=self._longest_deferral(seconds),
        )

    def _trigger(self, seconds: float | None, **more: Any) -> DispatchTrigger:
        return DispatchTrigger(
            self.bqdispatch_conn_id,
            seconds,
            resume_on_worker=self._resume_on_worker,
            write_performance=not self._is_reported,
            variables=self.variables,
            only=self.only,
            poll_interval=self.poll_interval,
            **more,
        )

    @property
    def _resume_on_worker(self) -> ResumeOnWorker:
        outlets = self.outlets[:-1] if self.assets and not self._has_shares else self.outlets
        if self.downstream_task_ids or outlets or not may_end_in_triggerer(self):
            return "always"
        return "on_work" if self.fail_on_error or self.outlets else "never"

    @property
    def _time_to_live_s(self) -> float | None:
        return None if self.time_to_live is None else seconds_of("time_to_live", self.time_to_live)

    def _seconds(self, config: DispatchConfig) -> float | None:
        """Return the seconds for which new cycles start; ``None`` for the configuration's default."""
        if self.hands_over:
            whole = config.time_to_live_in_min * 60 if self._time_to_live_s is None else self._time_to_live_s
            return whole + HAND_OVER_S
        return self._time_to_live_s or 0.0 if self._has_shares else self._time_to_live_s

    def _longest_deferral(self, seconds: Any) -> timedelta | None:
        if seconds is None or isinstance(seconds, str):  # the configuration's default, or a template
            return None
        return longest_deferral(self, timedelta(seconds=seconds) + _MAX_LAST_CYCLE)

    @property
    def _is_reported(self) -> bool:
        return is_reported(self)

    @property
    def _hook(self) -> BqDispatchHook:
        return BqDispatchHook(self.bqdispatch_conn_id)

    def _goes_on(self) -> bool:
        return not self._killed.is_made


class DispatchReportOperator(BaseOperator):
    """A task that merges what the tasks of its DAG run did into one response document: the last task of its DAG.

    The task polls once more for the current counts, cleans up fired windows, and quarantines. It writes
    ``performance.json`` and ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>.json``, and removes what the other tasks
    left in the journal. Each job that ended well becomes an asset event of its table
    (:func:`~bqdispatch_provider.assets.table_asset`) when this task succeeds.

    Returns the counts of the response document (``Report.summary``), and its URL as ``document``.

    Retries and cleared tasks only ever add to the document. A failed upstream task becomes an error of the document,
    beside what the task dispatched before it failed. Then this task fails too, after all is written. An event that
    could not be dispatched is an error of the document only: the next run tries again.

    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own
        (templated).
    :param trigger_rule: as for every task. The default, ``all_done``, gives a report whatever happened upstream. With
        ``none_skipped`` the task is skipped if the sensor found nothing, since the sensor has then written the
        document. Use that with a single sensor only.
    :param fail_on_error: fail the task, after all is written, if the report has an error. Default: such an event waits
        for the next run, and the task succeeds.
    :param assets: emit asset events.
    :raises ConfigError: if the connection or its configuration is invalid.
    :raises DispatchError: if the report has an error, with ``fail_on_error``.
    :raises AirflowFailException: if an upstream task failed.
    :raises ValueError: if it is mapped, or in a mapped task group, where several copies would write one document; or
        if another report of its DAG and connection emits asset events, too.
    """

    template_fields: Sequence[str] = ("bqdispatch_conn_id", "variables")
    template_fields_renderers: ClassVar[dict[str, str]] = {"variables": "json"}
    operator_extra_links = (links.ResponseDocumentLink(),)
    ui_color = "#ceead6"
    ends_run: ClassVar[bool] = True

    def __init__(
        self,
        *,
        bqdispatch_conn_id: str = BqDispatchHook.default_conn_name,
        variables: Mapping[str, str] | None = None,
        trigger_rule: str = "all_done",
        fail_on_error: bool = False,
        assets: bool = True,
        **kwargs: Any,
    ) -> None:
        # If two tasks report the same new table at once, Airflow fails one of them, and its asset events are lost.
        super().__init__(**{"trigger_rule": trigger_rule, "max_active_tis_per_dag": 1, **kwargs})
        if self.get_closest_mapped_task_group() is not None:
            raise ValueError(
                f"the report {self.task_id!r} is in a mapped task group, where several copies would write one "
                "document; put it behind the group"
            )
        self.alias = bqdispatch_conn_id
        if assets:
            self.outlets = with_alias(self.outlets, self.alias)
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.fail_on_error = fail_on_error
        self.assets = assets
        self.links: Mapping[str, str] = {}

    def execute(self, context: Context) -> dict[str, Any]:
        """End the run, and return the counts.

        :param context: the task's.
        """
        index = context["ti"].map_index
        if index is not None and index >= 0:
            raise ValueError(
                f"the report {self.task_id!r} is mapped, so several copies would write one document; remove `.expand`"
            )
        check_emits_alone(self)
        failed = compat.failed_tasks(context, self.get_flat_relative_ids(upstream=True))
        failures = [
            f"the task {task} has failed; check its log, then clear it and its downstream tasks" for task in failed
        ]
        with BqDispatchHook(self.bqdispatch_conn_id).get_dispatcher(variables=self.variables) as dispatcher:
            journal = RunJournal(dispatcher.store, dispatcher.config, context)
            report = end_run(dispatcher, journal, Metrics(self.bqdispatch_conn_id).send, failures)
            url = journal.document_url
            links.keep(self, context, {links.ResponseDocumentLink: links.object_page(url)})
            if self.assets:
                emit(context, self.alias, report, dispatcher.config, url)
        log_lines.log_document(self.log, report, url)
        if failures:
            raise AirflowFailException(f"{'; '.join(failures)}; the report of all else is {url}")
        if self.fail_on_error:
            raise_on_error(report, url)
        return {**report.summary(), "document": url}
