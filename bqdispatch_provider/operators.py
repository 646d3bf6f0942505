"""The operators: dispatch what the sensor found, and merge what the tasks of a run did into one report."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, BaseOperator

from bqdispatch_provider import links
from bqdispatch_provider.alone import run_alone
from bqdispatch_provider.assets import emit, with_alias
from bqdispatch_provider.compat import start_trigger_args
from bqdispatch_provider.hooks import BqDispatchHook, DispatchError
from bqdispatch_provider.journal import TIDIED, Part, RunJournal, place_of
from bqdispatch_provider.metrics import Metrics
from bqdispatch_provider.model import Lane, Outcome, Share
from bqdispatch_provider.names import counted
from bqdispatch_provider.rhythm import MOST, Rhythm
from bqdispatch_provider.triggers import DispatchTrigger, longest_deferral, may_start_from_trigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.report import Report

_ERRORS_LOGGED = 20
_LAST_CYCLE = timedelta(minutes=10)
"""For how much longer than its time to live a run may be deferred: its last cycle is finished, however long."""


class DispatchOperator(BaseOperator):
    """Moves the traces and fires the windows of shares; without shares, finds them itself, cycle after cycle.

    Each event is dispatched exactly in the generation that was planned: one that is gone was done by someone else, so a
    second try repeats nothing, and adds to what the first one has reported. An event that cannot be dispatched waits
    for the next run and stands in the report; the task fails only when the shares, the connection or the journal cannot
    be used. Killed, it finishes what was begun, a batch of 100 events at most in each of 8 threads.

    Each event dispatched whose job went well becomes an asset event of the table that the job has written
    (:func:`~bqdispatch_provider.assets.table_asset`) when the task succeeds, so that a DAG can be scheduled by it. Its
    extra tells ``event_id``, ``step``, ``action``, ``job_id``, ``project``, ``location`` and ``end_time``.

    Returns the counts of the response document (``Report.summary``). With shares its part goes into the journal for a
    :class:`DispatchReportOperator`; without, the whole response document does, and ``document`` is its URL.

    :param shares: what a :class:`BqDispatchSensor` returned: all of it, or one share as ``.expand(shares=…)`` gives it;
        by default the operator looks for itself (templated).
    :param lane: of shares, dispatch those of this lane only, ``sql``, ``jobs`` or ``windows``; the task is skipped when
        there is none; by default all (templated).
    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document; they go before the connection's own
        (templated).
    :param only: without shares, which events, by lists of ``projects``, ``destinations`` (patterns, such as
        ``sales.*``), ``actions`` and ``event_ids``; what does not match all of them waits for someone else; all by
        default (templated).
    :param time_to_live: without shares, seconds for which new cycles are begun; 0 is one cycle; by default the
        configuration's ``TimeToLiveInMin`` less 5 s (templated).
    :param fail_on_error: fail the task once all is written if the report tells of an error; by default such an event
        waits for the next run, and the task succeeds.
    :param assets: whether dispatched events become asset events.
    :param poll_interval: without shares, seconds between two looks at most; while something is on its way, it looks
        every second.
    :param deferrable: without shares, dispatch in the triggerer, in a thread: the whole dispatcher without a worker,
        which is needed at the end only where something is left for it, such as asset events, or ``fail_on_error``.
    :param start_from_trigger: begin there, so that a run with nothing to dispatch starts no worker process. Airflow 3.0
        to 3.2 begin on a worker all the same, and so does 2.11 where an argument is a template. Pools have no say in
        the triggerer.
    :raises ConfigError: when the connection or its configuration cannot be used.
    :raises DispatchError: with ``fail_on_error``, or when the trigger came to an error.
    :raises ValueError: when ``shares``, ``lane`` or ``only`` is something else.
    """

    template_fields: Sequence[str] = ("shares", "lane", "bqdispatch_conn_id", "variables", "only", "time_to_live")
    template_fields_renderers: ClassVar[dict[str, str]] = {"shares": "json", "variables": "json", "only": "json"}
    operator_extra_links = (links.BigQueryJobLink(), links.TaskFolderLink(), links.ResponseDocumentLink())
    ui_color = "#d2e3fc"

    def __init__(
        self,
        *,
        shares: Any = None,
        lane: str | None = None,
        bqdispatch_conn_id: str = BqDispatchHook.default_conn_name,
        variables: Mapping[str, str] | None = None,
        only: Mapping[str, Sequence[str]] | None = None,
        time_to_live: float | None = None,
        fail_on_error: bool = False,
        assets: bool = True,
        poll_interval: float = MOST,
        deferrable: bool = False,
        start_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if assets:
            self.outlets = with_alias(self.outlets)
        self.shares = shares
        self.lane = lane
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.only = only
        self.time_to_live = time_to_live
        self.fail_on_error = fail_on_error
        self.assets = assets
        self.poll_interval = poll_interval
        self.deferrable = deferrable
        self._on_its_own = shares is None
        self.links: Mapping[str, str] = {}
        self._done: tuple[Report, DispatchConfig, str] | None = None
        if start_from_trigger and self._on_its_own and may_start_from_trigger(self):
            self.start_from_trigger = True
            longest = self._longest_deferral() or self.execution_timeout
            self.start_trigger_args = start_trigger_args(
                self._trigger(timeout=longest.total_seconds() if longest else None), timeout=longest
            )

    def execute(self, context: Context) -> dict[str, Any]:
        """Dispatch; gives the counts."""
        if not self._on_its_own:
            return self._dispatch(context)
        if not self.deferrable:
            return self._run(context)
        trigger = self._trigger(since=datetime.now(UTC), place=place_of(context), attempt=context["ti"].try_number)
        self.defer(trigger=trigger, method_name="execute_complete", timeout=self._longest_deferral())
        raise AssertionError("defer() raises")

    def execute_complete(self, context: Context, event: Mapping[str, Any] | str) -> dict[str, Any]:
        """End a run that the trigger has done; gives the counts.

        :param event: from :class:`DispatchTrigger`.
        """
        if isinstance(event, Mapping) and event["status"] == "error":
            raise DispatchError(f"dispatching came to an error: {event['message']}")
        with self._hook.get_dispatcher(variables=self.variables) as dispatcher:
            journal = RunJournal(dispatcher, context)
            report = journal.read_document(journal.own_url)
            if report is None:
                raise DispatchError(f"the document {journal.own_url} is gone that the trigger has written")
            return self._complete(context, dispatcher, report, journal.own_url)

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

    def _dispatch(self, context: Context) -> dict[str, Any]:
        shares = self._chosen()
        if not shares:
            raise AirflowSkipException(f"nothing to dispatch in lane {self.lane}" if self.lane else "no shares")
        lanes: Counter[Lane] = Counter()
        for share in shares:
            lanes[share.lane] += len(share.events)
        with self._hook.get_dispatcher(self._go_on, self.variables) as dispatcher:
            journal = RunJournal(dispatcher, context)
            earlier = journal.earlier_part()  # before anything is moved: without the journal, nothing is
            part = Part(dispatcher.dispatch(shares), lanes)
            part = part if earlier is None else part.after(earlier)
            journal.write_part(part)
            report = part.report
            links.keep(self, context, links.of_report(report, dispatcher.store.task_url("")))
            self._emit(context, report, dispatcher, journal.own_url)
        self.log.info("Dispatched %d of %d events", report.dispatched, lanes.total())
        _check(self, report, journal.own_url)
        return report.summary()

    def _run(self, context: Context) -> dict[str, Any]:
        seconds = None if self.time_to_live is None else float(self.time_to_live)
        hook = self._hook
        with hook.get_dispatcher(self._go_on, self.variables, self.only) as dispatcher:
            journal = RunJournal(dispatcher, context)
            subscription = hook.get_subscription(dispatcher)
            report = run_alone(
                dispatcher,
                journal,
                seconds,
                attempt=context["ti"].try_number,
                wait=self._killed.wait if subscription is None else partial(subscription.wait, go_on=self._go_on),
                rhythm=Rhythm.between(self.poll_interval),
                tell=Metrics(self.bqdispatch_conn_id).send,
            )
            return self._complete(context, dispatcher, report, journal.own_url)

    def _emit(self, context: Context, report: Report, dispatcher: Dispatcher, url: str) -> None:
        """Note the asset events; they are lost if the task fails, so whoever tries it again notes them again."""
        self._done = (report, dispatcher.config, url)
        if self.assets:
            emit(context, report, dispatcher.config, url)

    def _complete(self, context: Context, dispatcher: Dispatcher, report: Report, url: str) -> dict[str, Any]:
        """What is left once a run of its own is over, wherever it was."""
        mine = links.of_report(report, dispatcher.store.task_url(""))
        links.keep(self, context, mine | {links.ResponseDocumentLink: links.object_of(url)})
        self._emit(context, report, dispatcher, url)
        self.log.info("%d errors; the response document is %s", len(report.errors), url)
        _check(self, report, url)
        return {**report.summary(), "document": url}

    def _trigger(self, **more: Any) -> DispatchTrigger:
        return DispatchTrigger(
            self.bqdispatch_conn_id,
            self.time_to_live,
            variables=self.variables,
            only=self.only,
            poll_interval=self.poll_interval,
            resumes=bool(self.fail_on_error or self.outlets),
            **more,
        )

    def _longest_deferral(self) -> timedelta | None:
        if self.time_to_live is None or isinstance(self.time_to_live, str):  # the configuration says it, or a template
            return None
        return longest_deferral(self, timedelta(seconds=self.time_to_live) + _LAST_CYCLE)

    def _chosen(self) -> list[Share]:
        """The shares to dispatch, of whichever form they came in."""
        lanes = Lane.of([self.lane] if self.lane else None)
        given = self.shares
        if given is None:
            return []
        if isinstance(given, str):
            raise ValueError(
                f"shares is the text {given[:80]!r}; expected what BqDispatchSensor returned, sensor.output"
            )
        shares = [Share.from_dict(each) for each in ([given] if isinstance(given, Mapping) else given)]
        return [share for share in shares if share.lane in lanes]

    @property
    def _hook(self) -> BqDispatchHook:
        return BqDispatchHook(self.bqdispatch_conn_id)

    def _go_on(self) -> bool:
        return not self._killed.is_set()


class DispatchReportOperator(BaseOperator):
    """Merges what the tasks of this DAG run did into one response document; the last task of its DAG.

    Sets aside and deletes what the sensor found to be put in order, writes ``performance.json`` and
    ``<JournalURL>/runs/<YYYY-MM-DD>/<dag_id>/<run_id>.json``, and removes the tasks' parts from the journal. Returns
    the document's counts (``Report.summary``), and its URL as ``document``. A DAG may have one sensor beside it.

    Every object that the sensor listed has to be accounted for. One that is not, because its task failed, stands in the
    document as an error, and the task fails once all is written, so that the DAG run is seen to have failed; the parts
    then stay, so that clearing the failed task with what follows it completes the document. An event that could not be
    dispatched is an error of the document alone: the next run takes it up again.

    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document; they go before the connection's own
        (templated).
    :param trigger_rule: by default ``all_done``, so that there is a report whatever happened before.
    :param fail_on_error: fail the task once all is written if the report tells of an error; by default such an event
        waits for the next run, and the task succeeds.
    :raises ConfigError: when the connection or its configuration cannot be used.
    :raises DispatchError: with ``fail_on_error``.
    :raises AirflowFailException: when no sensor has left its part, or more than one, or objects are not accounted for.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(trigger_rule=trigger_rule, **kwargs)
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.variables = variables
        self.fail_on_error = fail_on_error
        self.links: Mapping[str, str] = {}

    def execute(self, context: Context) -> dict[str, Any]:
        """Merge, put in order and write; gives the counts and the document's URL."""
        with BqDispatchHook(self.bqdispatch_conn_id).get_dispatcher(variables=self.variables) as dispatcher:
            journal = RunJournal(dispatcher, context)
            parts = journal.parts()
            sights = [(task, part) for task in parts for part in parts[task] if part.tidy is not None]
            if not sights:
                return self._written_before(context, journal, parts)
            if len(sights) > 1:
                names = " and ".join(task for task, _ in sights)
                raise AirflowFailException(
                    f"the sensors {names} have looked at the same objects in this DAG run, so a report would count "
                    "them more than once: use one BqDispatchSensor, and DispatchOperator(lane=…) for each lane, or a "
                    "DAG for each sensor and its report"
                )
            ((_, sight),) = sights
            if TIDIED not in parts and sight.tidy is not None:
                tidied = Part(dispatcher.tidy(sight.tidy), url=journal.tidied_url)
                journal.write_part(tidied, tidied.url)
                parts[TIDIED] = [tidied]
            report = sight.report
            for part in _each(parts):
                if part is not sight:
                    report.add_part(part.report)
            missing = self._account(report, parts)
            if report.started is not None:
                report.time_taken_ms = round((dispatcher.store.now() - report.started).total_seconds() * 1000)
            dispatcher.write_performance(report)
            url = journal.write_document(report)
            links.keep(self, context, {links.ResponseDocumentLink: links.object_of(url)})
            Metrics(self.bqdispatch_conn_id).send(report)
            if not missing:
                journal.remove_parts(_each(parts))
        _log_document(self, report, url)
        if missing:
            raise AirflowFailException(f"{missing}; the report of all else is {url}")
        _check(self, report, url)
        return {**report.summary(), "document": url}

    def _written_before(
        self, context: Context, journal: RunJournal, parts: Mapping[str, Sequence[Part]]
    ) -> dict[str, Any]:
        """What an earlier try has written: it removes the sensor's part first, once the document says all."""
        report = journal.read_document()
        if report is None:
            raise AirflowFailException(
                f"no sensor of this DAG run has left its part beside {journal.own_url}, so there is nothing to report, "
                "and performance.json stays as it is: look at the BqDispatchSensor before this task, which has failed, "
                "or uses another JournalURL"
            )
        journal.remove_parts(_each(parts))
        links.keep(self, context, {links.ResponseDocumentLink: links.object_of(journal.document_url)})
        _check(self, report, journal.document_url)
        return {**report.summary(), "document": journal.document_url}

    def _account(self, report: Report, parts: Mapping[str, Sequence[Part]]) -> str:
        """Count what was listed and has no outcome as errors; gives one sentence about it, empty when there is none."""
        number = report.listed - report.outcomes.total()
        if number == 0:
            return ""
        if number > 0:
            said = f"of {counted(report.listed, 'object')} {number} went unaccounted for"
            report.outcomes[Outcome.ERROR] += number
        else:
            said = f"{report.listed} listed and {report.outcomes.total()} outcomes, so a share was given to two tasks"
        missing: Counter[str] = Counter()
        for part in _each(parts):
            sign = 1 if part.tidy is not None else -1
            missing.update({str(lane): sign * events for lane, events in part.lanes.items()})
        lanes = [lane for lane, events in missing.items() if events]
        tasks = ", ".join(self._to_look_at(lanes, parts)) or "those before this one"
        said += f" (lane {', '.join(lanes) or 'unknown'}): look at the tasks {tasks}"
        report.error(said)
        return said

    def _to_look_at(self, lanes: Sequence[str], parts: Mapping[str, Sequence[Part]]) -> list[str]:
        """The tasks that were to dispatch these lanes: those that left nothing, or all of them if none did not."""
        lane_of = {task_id: getattr(self.dag.get_task(task_id), "lane", None) for task_id in self.upstream_task_ids}
        left_nothing = [task_id for task_id in lane_of if task_id not in parts]
        in_lane = [task_id for task_id in left_nothing if lane_of[task_id] in (None, *lanes)]
        return sorted(in_lane or left_nothing or lane_of)


def _each(parts: Mapping[str, Sequence[Part]]) -> Iterator[Part]:
    """The parts of all tasks."""
    return chain.from_iterable(parts.values())


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
