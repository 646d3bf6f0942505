"""The operators: dispatch what the sensor found, and merge what the tasks of a run did into one report."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator

from bqdispatch_provider import compat, links
from bqdispatch_provider.assets import emit, with_alias
from bqdispatch_provider.compat import AirflowFailException, conf
from bqdispatch_provider.hooks import BqDispatchHook, DispatchError
from bqdispatch_provider.journal import RunJournal, place_of
from bqdispatch_provider.metrics import Metrics
from bqdispatch_provider.names import counted
from bqdispatch_provider.rhythm import MOST, Rhythm
from bqdispatch_provider.runs import end_run, run_cycles
from bqdispatch_provider.triggers import DispatchTrigger, ends_unseen, longest_deferral, may_start_from_trigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.model import Share
    from bqdispatch_provider.report import Report

_ERRORS_LOGGED = 20
_LAST_CYCLE = timedelta(minutes=10)
"""For how much longer than its time to live a run may be deferred: its last cycle is finished, however long."""

HAND_OVER_S = 8.0
"""For so many seconds more a task goes on that hands over: until then the next run has its own under way."""


class DispatchOperator(BaseOperator):
    """Moves traces and fires windows: those of shares at first, then, cycle after cycle, what it finds itself.

    Each event is dispatched exactly in the generation that was planned: one that is gone was done by someone else, so a
    second try repeats nothing, and adds to what the first one has reported. An event that cannot be dispatched waits
    for the next run and stands in the report; the task fails only when the shares, the connection or the journal cannot
    be used. Killed, it finishes what was begun, a batch of 100 events at most in each of 8 threads.

    Returns the counts of the response document (``Report.summary``), and its URL as ``document``. In a DAG with a
    :class:`DispatchReportOperator` that is the document of the run, into which the report merges what this task has
    left in the journal. Otherwise it is the task's own, and each job that went well becomes an asset event of the table
    that it has written (:func:`~bqdispatch_provider.assets.table_asset`) when the task succeeds.

    :param shares: what a :class:`BqDispatchSensor` returned: all of it, or one share as ``.expand(shares=…)`` gives it;
        they are the first cycle. By default the operator looks for itself at once (templated).
    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document; they go before the connection's own
        (templated).
    :param only: which events, by lists of ``lanes`` (``sql``, ``jobs``, ``windows``), ``projects``, ``destinations``
        (patterns, such as ``sales.*``), ``actions`` and ``event_ids``; what does not match all of them waits for
        someone else; all by default (templated).
    :param time_to_live: seconds (or a timedelta) for which new cycles are begun; 0 is one cycle. By default 0 with
        shares, otherwise the configuration's ``TimeToLiveInMin`` less 5 s (templated).
    :param hands_over: count the time to live from when the DAG run was due, whenever this task begins, and go on for
        8 s more, in which the task of the next run takes over: so that a DAG that runs every minute has no hole. By
        default the configuration's whole ``TimeToLiveInMin`` then.
    :param fail_on_error: fail the task once all is written if the report tells of an error; by default such an event
        waits for the next run, and the task succeeds.
    :param assets: whether jobs become asset events, where no report does that.
    :param poll_interval: seconds between two looks at most; while something is on its way, it looks every second.
    :param deferrable: dispatch in the triggerer, in a thread, once the shares are dispatched; by default ``[operators]
        default_deferrable``. It ends on a worker where that is needed: for tasks that follow, asset events,
        ``outlets``, callbacks or ``fail_on_error``. Otherwise it ends in the triggerer, without a return value.
    :param start_from_trigger: without shares, begin there, so that a run with nothing to dispatch starts no worker
        process. Airflow 3.0 to 3.2 begin on a worker all the same, and so does 2.11 where an argument is a template.
        Pools have no say in the triggerer, unless they include deferred tasks, and never where a task begins there.
    :raises ConfigError: when the connection or its configuration cannot be used.
    :raises DispatchError: with ``fail_on_error``, or when the trigger came to an error.
    :raises ValueError: when ``shares`` or ``only`` is something else.
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
        poll_interval: float = MOST,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._alias = bqdispatch_conn_id  # as Airflow knows it, also where it is a template
        if assets and shares is None:
            self.outlets = with_alias(self.outlets, self._alias)
        self.shares = shares
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.only = only
        self.time_to_live = time_to_live.total_seconds() if isinstance(time_to_live, timedelta) else time_to_live
        self.hands_over = hands_over
        self.fail_on_error = fail_on_error
        self.assets = assets
        self.poll_interval = poll_interval
        self.deferrable = deferrable or start_from_trigger
        self._on_its_own = shares is None
        self.links: Mapping[str, str] = {}
        self._done: tuple[Report, DispatchConfig, str] | None = None
        if start_from_trigger and self._on_its_own and may_start_from_trigger(self):
            self.start_from_trigger = True
            longest = self._longest_deferral(self.time_to_live) or self.execution_timeout
            resumes = "news" if fail_on_error or self.outlets else "never"
            self.start_trigger_args = compat.start_trigger_args(
                self._trigger(self.time_to_live, resumes, timeout=longest.total_seconds() if longest else None),
                timeout=longest,
            )

    def execute(self, context: Context) -> dict[str, Any]:
        """Dispatch; gives the counts."""
        began = datetime.now(UTC)
        if self.deferrable and self._on_its_own and not self.hands_over:
            self._go_on_deferred(context, began, self._seconds())
        with self._hook.get_dispatcher(self._go_on, self.variables, self.only) as dispatcher:
            journal = RunJournal(dispatcher, context)
            seconds, due = self._seconds(), None
            if self.hands_over:
                due = compat.due_of(context)
                seconds = dispatcher.config.time_to_live_in_min * 60 if seconds is None else seconds
                seconds += HAND_OVER_S
            elif not self._on_its_own:
                seconds = seconds or 0.0
            since = due or began
            goes_on = self.deferrable and seconds is not None and datetime.now(UTC) < since + timedelta(seconds=seconds)
            if not goes_on or not self._on_its_own:
                report = self._run(context, dispatcher, journal, 0.0 if goes_on else seconds, due)
            if not goes_on:
                return self._complete(context, dispatcher, report, journal)
        self._go_on_deferred(context, since, seconds)
        raise AssertionError("defer() raises")

    def execute_complete(self, context: Context, event: Mapping[str, Any] | str) -> dict[str, Any] | None:
        """End a run that the trigger has done; gives the counts.

        :param event: from :class:`DispatchTrigger`.
        """
        if isinstance(event, str):  # dag.test() resumes tasks that their triggers have ended
            return None
        if event["status"] == "error":
            raise DispatchError(f"dispatching came to an error: {event['message']}")
        with self._hook.get_dispatcher(variables=self.variables) as dispatcher:
            journal = RunJournal(dispatcher, context)
            report = journal.read_document(journal.own_url)
            if report is None:
                raise DispatchError(f"the document {journal.own_url} is gone that the trigger has written")
            return self._complete(context, dispatcher, report, journal)

    @cached_property
    def _killed(self) -> threading.Event:
        return threading.Event()  # not before it runs: it cannot be copied, and DAGs are

    def on_kill(self) -> None:
        """Begin nothing more; what was begun is finished."""
        self._killed.set()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """The tables that were dispatched to, and the jobs; the OpenLineage provider asks, where it is installed.

        :param task_instance: whose lineage this is.
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
        subscription = self._hook.get_subscription(dispatcher)
        return run_cycles(
            dispatcher,
            journal,
            seconds,
            first=self._found(journal, lasts=bool(seconds)),
            began=due,
            attempt=context["ti"].try_number,
            wait=self._killed.wait if subscription is None else partial(subscription.wait, go_on=self._go_on),
            rhythm=Rhythm.between(self.poll_interval),
            tell=Metrics(self.bqdispatch_conn_id).send,
            measures=not self._is_reported,
        )

    def _found(self, journal: RunJournal, *, lasts: bool) -> list[Share] | None:
        """Read what the sensor has found; ``None`` when it is time to look again.

        :param lasts: whether there is time for more than that.
        """
        given = self.shares
        if self._on_its_own:
            return None
        entries = [given] if isinstance(given, Mapping) else given
        if not isinstance(entries, list | tuple) or not all(isinstance(each, Mapping) for each in entries):
            raise ValueError(f"shares is {str(given)[:80]!r}; expected what BqDispatchSensor returned, sensor.output")
        shares: list[Share] = []
        for url in dict.fromkeys(str(each.get("all")) for each in entries):
            lanes = {each.get("lane") for each in entries if str(each.get("all")) == url}
            if (found := journal.read_shares(url)) is None:
                self.log.info("What the sensor has found is gone from the journal, so this task looks itself")
                return None
            shares += [share for share in found if share.lane in lanes]
        return shares or (None if lasts else [])

    def _complete(
        self, context: Context, dispatcher: Dispatcher, report: Report, journal: RunJournal
    ) -> dict[str, Any]:
        """Do what is left once all is dispatched, wherever it was."""
        url = journal.document_url if self._is_reported else journal.own_url
        mine = links.of_report(report, dispatcher.store.task_url(""))
        links.keep(self, context, mine | {links.ResponseDocumentLink: links.object_of(url)})
        self._done = (report, dispatcher.config, url)
        if self.assets and not self._is_reported and self._on_its_own:
            emit(context, self._alias, report, dispatcher.config, url)
        self.log.info(
            "Dispatched %s, all tries together, with %s; the response document is %s",
            counted(report.dispatched, "event"),
            counted(len(report.errors), "error"),
            url,
        )
        _check(self, report, url)
        return {**report.summary(), "document": url}

    def _go_on_deferred(self, context: Context, since: datetime, seconds: float | None) -> None:
        self.defer(
            trigger=self._trigger(
                seconds,
                self._resumes(),
                since=since,
                place=place_of(context),
                attempt=context["ti"].try_number,
                measures=not self._is_reported,
            ),
            method_name="execute_complete",
            timeout=self._longest_deferral(seconds),
        )

    def _trigger(self, seconds: float | None, resumes: str, **more: Any) -> DispatchTrigger:
        return DispatchTrigger(
            self.bqdispatch_conn_id,
            seconds,
            variables=self.variables,
            only=self.only,
            poll_interval=self.poll_interval,
            resumes=resumes,
            **more,
        )

    def _resumes(self) -> str:
        """When a worker has to end what the triggerer has done."""
        outlets = self.outlets[:-1] if self.assets and self._on_its_own else self.outlets
        if self.downstream_task_ids or outlets or not ends_unseen(self):
            return "always"
        return "news" if self.fail_on_error or self.outlets else "never"

    def _seconds(self) -> float | None:
        return None if self.time_to_live is None else float(self.time_to_live)

    def _longest_deferral(self, seconds: Any) -> timedelta | None:
        if seconds is None or isinstance(seconds, str):  # the configuration says it, or a template
            return None
        return longest_deferral(self, timedelta(seconds=seconds) + _LAST_CYCLE)

    @property
    def _is_reported(self) -> bool:
        """Tell whether a report of this DAG merges what this task has left."""
        return any(isinstance(task, DispatchReportOperator) for task in compat.tasks_beside(self))

    @property
    def _hook(self) -> BqDispatchHook:
        return BqDispatchHook(self.bqdispatch_conn_id)

    def _go_on(self) -> bool:
        return not self._killed.is_set()


class DispatchReportOperator(BaseOperator):
    """Merges what the tasks of this DAG run did into one response document; the last task of its DAG.

    It looks once more, so that the document says how all stands now, sets aside and deletes what is to be put in order,
    writes ``performance.json`` and ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>.json``, and removes what the
    tasks have left in the journal. Each job that went well becomes an asset event of the table that it has written
    (:func:`~bqdispatch_provider.assets.table_asset`) when this task succeeds, so that a DAG can be scheduled by it.
    Returns the document's counts (``Report.summary``), and its URL as ``document``.

    The document is only ever added to: by a run that is cleared, and by a report that is tried again. A task before
    this one that has failed stands in it as an error, with what it had dispatched until then, and this task fails once
    all is written, so that the DAG run is seen to have failed. An event that could not be dispatched is an error of the
    document alone: the next run takes it up again.

    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document; they go before the connection's own
        (templated).
    :param trigger_rule: by default ``all_done``, so that there is a report whatever happened before; a run in which the
        sensor has found nothing has one already, so ``none_skipped`` does without this task there.
    :param fail_on_error: fail the task once all is written if the report tells of an error; by default such an event
        waits for the next run, and the task succeeds.
    :param assets: whether jobs become asset events.
    :raises ConfigError: when the connection or its configuration cannot be used.
    :raises DispatchError: with ``fail_on_error``.
    :raises AirflowFailException: when a task before this one has failed.
    :raises ValueError: when it is made inside of a mapped task group, whose copies would write one document.
    """

    template_fields: Sequence[str] = ("bqdispatch_conn_id", "variables")
    template_fields_renderers: ClassVar[dict[str, str]] = {"variables": "json"}
    operator_extra_links = (links.ResponseDocumentLink(),)
    ui_color = "#ceead6"

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
        # Two that make one table known to Airflow at a time fail there, and the events of one are lost.
        super().__init__(**{"trigger_rule": trigger_rule, "max_active_tis_per_dag": 1, **kwargs})
        if self.get_closest_mapped_task_group() is not None:
            raise ValueError(
                f"the report {self.task_id!r} is in a mapped task group, whose copies would write one document: put it "
                "behind the group, where one report tells of all copies"
            )
        self._alias = bqdispatch_conn_id
        if assets:
            self.outlets = with_alias(self.outlets, self._alias)
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.fail_on_error = fail_on_error
        self.assets = assets
        self.links: Mapping[str, str] = {}

    def execute(self, context: Context) -> dict[str, Any]:
        """Merge, put in order and write; gives the counts and the document's URL."""
        failed = compat.failed_tasks(context, self.get_flat_relative_ids(upstream=True))
        failures = [f"the task {task} has failed: look at its log, and clear it with what follows" for task in failed]
        with BqDispatchHook(self.bqdispatch_conn_id).get_dispatcher(variables=self.variables) as dispatcher:
            journal = RunJournal(dispatcher, context)
            report = end_run(dispatcher, journal, Metrics(self.bqdispatch_conn_id).send, failures)
            url = journal.document_url
            links.keep(self, context, {links.ResponseDocumentLink: links.object_of(url)})
            if self.assets:
                emit(context, self._alias, report, dispatcher.config, url)
        _log_document(self, report, url)
        if failures:
            raise AirflowFailException(f"{'; '.join(failures)}; the report of all else is {url}")
        _check(self, report, url)
        return {**report.summary(), "document": url}


def _check(operator: DispatchOperator | DispatchReportOperator, report: Report, url: str) -> None:
    if operator.fail_on_error and not report.ok:
        raise DispatchError(
            f"{counted(len(report.errors), 'error')}, the first of them: {report.errors[0]}; all of them are in {url}"
        )


def _log_document(operator: DispatchReportOperator, report: Report, url: str) -> None:
    """Log what the tasks of a run came to, what went wrong in it, and where all of it lies."""
    operator.log.info("%d objects in the task folder: %s", report.listed, report.in_words())
    for error in report.errors[:_ERRORS_LOGGED]:
        operator.log.warning("%s", error)
    if len(report.errors) > _ERRORS_LOGGED:
        operator.log.warning("and %d more errors", len(report.errors) - _ERRORS_LOGGED)
    operator.log.info("The response document is %s", url)
