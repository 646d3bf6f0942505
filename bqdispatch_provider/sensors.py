"""The sensor: finds out what there is to dispatch, and hands it on in shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseSensorOperator, PokeReturnValue

from bqdispatch_provider import compat, links
from bqdispatch_provider.compat import AirflowSensorTimeout, AirflowSkipException, conf
from bqdispatch_provider.hooks import BqDispatchHook, DispatchError
from bqdispatch_provider.journal import RunJournal, place_of
from bqdispatch_provider.metrics import Metrics
from bqdispatch_provider.planning import limits
from bqdispatch_provider.runs import end_run
from bqdispatch_provider.story import Teller, in_short, of_look, of_waiting
from bqdispatch_provider.triggers import BqDispatchTrigger, ends_unseen, longest_deferral, may_start_from_trigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.dispatcher import Dispatcher

_TRIGGERER_MAY_BE_LATE = timedelta(minutes=1)


class BqDispatchSensor(BaseSensorOperator):
    """Waits until traces or windows can be dispatched, and returns them as shares, for a :class:`DispatchOperator`.

    A share is the events of one lane, no more than the limits let through. They lie in the journal; the return value is
    a list of dicts, one for each share, that tell where, how many events there are, and the first of them. Give it on
    whole (``shares=sensor.output``) or one by one (``.expand(shares=sensor.output)``).

    Where there is nothing to dispatch when its time is up, the task writes the run's document and ``performance.json``,
    and is skipped, and so is what follows; with ``soft_fail=False`` it fails.

    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param variables: values for ``${name}`` in the configuration document; they go before the connection's own
        (templated).
    :param only: which events, by lists of ``lanes`` (``sql``, ``jobs``, ``windows``), ``projects``, ``destinations``
        (patterns, such as ``sales.*``), ``actions`` and ``event_ids``; what does not match all of them waits for
        someone else; all by default (templated).
    :param poke_interval: seconds (or a timedelta) between two looks; deferred, the most: while something is on its way,
        it looks every second.
    :param timeout: seconds (or a timedelta) after which there is nothing to dispatch.
    :param soft_fail: skip the task when its time is up, rather than fail it. An error fails it either way.
    :param mode: ``poke`` or ``reschedule``, as in every sensor; without effect when deferred.
    :param deferrable: wait in the triggerer, without a worker; by default ``[operators] default_deferrable``. There
        being nothing to dispatch then ends the task there, unless it has a callback for that, or ``soft_fail=False``.
    :param start_from_trigger: begin in the triggerer, so that a run with nothing to dispatch starts no worker process;
        give its :class:`DispatchReportOperator` ``trigger_rule="none_skipped"`` then. Airflow 3.0 to 3.2 begin on a
        worker all the same, and so does 2.11 where an argument is a template. Airflow's own sensor time-out and pools
        have no say in the triggerer.
    :raises ConfigError: when the connection or its configuration cannot be used.
    :raises DispatchError: when the trigger came to an error.
    :raises ValueError: when ``only`` is something else.
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
            self.start_from_trigger = True
            longest = longest_deferral(self, timedelta(seconds=self.timeout) + _TRIGGERER_MAY_BE_LATE)
            self.start_trigger_args = compat.start_trigger_args(
                self._trigger(timeout=longest.total_seconds()), timeout=longest
            )
        self._dispatcher: Dispatcher | None = None
        self.links: Mapping[str, str] = {}

    def execute(self, context: Context) -> Any:
        """Look until there is something to dispatch; gives the shares."""
        with ExitStack() as held:
            self._open(held)
            if self.deferrable:
                looked = self.poke(context)
                if looked.is_done:
                    return looked.xcom_value
            else:
                try:
                    return super().execute(context)
                except (AirflowSkipException, AirflowSensorTimeout):
                    self._close(context)
                    raise
        self.defer(
            trigger=self._trigger(since=datetime.now(UTC), place=place_of(context)),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + _TRIGGERER_MAY_BE_LATE,
        )
        return None

    def _trigger(self, **more: Any) -> BqDispatchTrigger:
        return BqDispatchTrigger(
            self.bqdispatch_conn_id,
            self.timeout,
            variables=self.variables,
            only=self.only,
            poll_interval=self.poke_interval,
            closes=self.soft_fail and ends_unseen(self),
            **more,
        )

    def execute_complete(self, context: Context, event: Mapping[str, Any] | str) -> list[dict[str, Any]]:
        """Look again once the trigger says so; gives the shares.

        :param event: from :class:`BqDispatchTrigger`.
        """
        if isinstance(event, str):  # dag.test() resumes tasks that their triggers have ended
            raise AirflowSkipException(f"nothing to dispatch within {self.timeout:g} s")
        if event["status"] == "error":
            raise DispatchError(f"waiting for something to dispatch came to an error: {event['message']}")
        with ExitStack() as held:
            self._open(held)
            looked = self.poke(context)
            if looked.is_done:
                shares: list[dict[str, Any]] = looked.xcom_value or []
                return shares
            self._close(context)
        message = f"nothing to dispatch within {self.timeout:g} s"
        raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once; what is to be dispatched is written to the journal, and what tells of it is returned."""
        assert self._dispatcher is not None, "execute() opens the dispatcher"  # noqa: S101
        sight = self._dispatcher.look()
        shares = sight.plan.shares()
        number = sum(len(share.events) for share in shares)
        self._teller.tell([of_look(sight.report, number), *of_waiting(sight.report, self._dispatcher.config)])
        if not shares:
            return PokeReturnValue(is_done=False)
        url = RunJournal(self._dispatcher, context).write_shares(shares)
        first = self._dispatcher.store.task_url(shares[0].events[0].name)
        links.keep(self, context, {links.TaskFolderLink: links.folder_of(first)})
        limit_of = limits(self._dispatcher.config)
        return PokeReturnValue(is_done=True, xcom_value=[in_short(each, url, limit_of[each.lane]) for each in shares])

    def _open(self, held: ExitStack) -> None:
        self._teller = Teller(self.log)
        hook = BqDispatchHook(self.bqdispatch_conn_id)
        self._dispatcher = held.enter_context(hook.get_dispatcher(variables=self.variables, only=self.only))
        held.callback(setattr, self, "_dispatcher", None)
        self._warn_of_slots(self._dispatcher.config)

    def _warn_of_slots(self, config: DispatchConfig) -> None:
        """Name tasks that take more slots than their pool has, if it mirrors the limit: they wait for ever."""
        for task in compat.tasks_beside(self):
            lanes = (getattr(task, "only", None) or {}).get("lanes", ())
            limit = config.max_concurrent_sql if list(lanes) == ["sql"] else config.max_concurrent_jobs
            if lanes and 0 < limit < task.pool_slots:
                self.log.warning(
                    "The task %s takes %d slots of the pool %r, which has %d if it mirrors its limit: then it never "
                    "runs. `bqdispatch pools --check` tells",
                    task.task_id,
                    task.pool_slots,
                    task.pool,
                    limit,
                )

    def _close(self, context: Context) -> None:
        """End a run in which nothing was to be dispatched."""
        if self._dispatcher is None:
            return
        journal = RunJournal(self._dispatcher, context)
        end_run(self._dispatcher, journal, Metrics(self.bqdispatch_conn_id).send)
        links.keep(self, context, {links.ResponseDocumentLink: links.object_of(journal.document_url)})
