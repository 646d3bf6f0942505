"""The dispatcher: each cycle observes, plans, acts and reports. This is the only loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import requests
from google.cloud.storage import Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.core import log_lines
from bqdispatch_provider.core.events import ALL_EVENTS, EventFilter, Share
from bqdispatch_provider.core.history import RunLabel
from bqdispatch_provider.core.limits import LimitKey
from bqdispatch_provider.core.model import Outcome
from bqdispatch_provider.core.plans import Cleanup, Plan
from bqdispatch_provider.core.polling import AdaptivePolling
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.cycle.clean_up import CleanUp
from bqdispatch_provider.cycle.dispatching import Dispatching, dispatch_plan, select_events
from bqdispatch_provider.cycle.history import HistoryWriter
from bqdispatch_provider.cycle.observation import Observation, Observer
from bqdispatch_provider.cycle.performance import PerformanceWriter
from bqdispatch_provider.cycle.retention import Retention
from bqdispatch_provider.cycle.services import Services
from bqdispatch_provider.cycle.unconsumed import Unconsumed
from bqdispatch_provider.cycle.work_gate import WorkGate
from bqdispatch_provider.gcp.clients import add_connections, client_of, default_session
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.jobs import JobBoard
from bqdispatch_provider.gcp.threads import Threads
from bqdispatch_provider.names import counted, in_words

log = logging.getLogger(__name__)
BeforeDispatch = Callable[[Sequence[Share]], None]

THREADS = 8
"""Threads that dispatch, each a batch of events at a time."""

READERS = 32
"""Threads that read the content of objects, which takes a request for each."""

_PROJECT_CONNECTIONS = 200
"""Connections for the threads that look up jobs, one or more for each project."""

_PERFORMANCE_INTERVAL_S = 60.0
"""Interval between two writes of ``performance.json``, which BqTail's balancer takes for the present."""

TIME_TO_LIVE_MARGIN_S = 5.0
"""A run ends this long before ``TimeToLiveInMin`` is over (docs/protocol.md, "Configuration document")."""


class Dispatcher:
    """Dispatches the events of one task folder.

    :param config: see :class:`~bqdispatch_provider.config.DispatchConfig`.
    :param storage_client: a ``google.cloud.storage.Client``; by default one with the environment's credentials.
    :param session: a ``requests.Session`` with credentials for BigQuery; by default with the environment's.
    :param go_on: called before new work is begun; once it returns ``False``, only what was begun is finished.
    :param only: events to dispatch; all by default. The others still count at the limits.
    :raises ConfigError: when neither the configuration nor the credentials name a project.
    """

    def __init__(
        self,
        config: DispatchConfig,
        storage_client: Client | None = None,
        session: requests.Session | None = None,
        go_on: Callable[[], bool] = lambda: True,
        only: EventFilter = ALL_EVENTS,
    ) -> None:
        self._client = storage_client or client_of(config.project_id)
        self.session = session or default_session()
        self._go_on = go_on
        self._only = only
        self._given_config = config
        self._change_logger = log_lines.ChangeLogger(log)
        self._logged_errors: set[str] = set()
        self._performance = PerformanceWriter()
        self.history = HistoryWriter()
        self._unconsumed = Unconsumed()
        self._threads = Threads(THREADS, "bqdispatch")
        self._readers = Threads(READERS, "bqdispatch-read")
        for used in (self._client._http, self.session):
            add_connections(used, 2 * THREADS + READERS + _PROJECT_CONNECTIONS)
        self.board = JobBoard(self.session)
        self._use(config)

    def _use(self, config: DispatchConfig) -> None:
        """Use a configuration, and know nothing of its task folder yet."""
        services = Services(
            config,
            self._client,
            board=self.board,
            threads=self._threads,
            readers=self._readers,
            logged_errors=self._logged_errors,
        )
        self._services = services
        self.folder, self.config, self.store = services.folder, services.config, services.store
        self.mover, self.intents, self.own_intents = services.mover, services.intents, services.own_intents
        self.ledger, self.evidence = services.ledger, services.evidence
        self._observer = Observer(services, self._only)
        self._cleaner = CleanUp(services)
        self._retention = Retention(self.config, self.store, self._threads)

    def close(self) -> None:
        """Finish what was begun, complete the intents, and end the threads."""
        self.own_intents.close()
        self._threads.shutdown()
        self._readers.shutdown()
        self.store.close()

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        time_to_live: float | timedelta | None = None,
        progress: Callable[[Report], None] = lambda _: None,
        *,
        before_dispatch: BeforeDispatch = lambda _: None,
        wait: Callable[[float], object] = time.sleep,
        polling: AdaptivePolling | None = None,
        first_shares: Sequence[Share] | None = None,
        writes_performance: bool = True,
        label: RunLabel | None = None,
    ) -> Report:
        """Run cycles until the time is up.

        :param time_to_live: how long new work is begun, in seconds or as a timedelta; the first cycle is completed in
            any case, and 0 runs it alone; by default the configuration's ``TimeToLiveInMin`` less 5 s.
        :param progress: called after each cycle with the run's report so far.
        :param before_dispatch: called in each cycle with what it is about to dispatch, and again with what takes the
            slots of refused events.
        :param wait: called between two cycles with seconds to wait; it may return earlier.
        :param polling: gives these seconds; adaptive by default.
        :param first_shares: what the first cycle dispatches; by default it looks for itself.
        :param writes_performance: whether to write ``performance.json`` and the history, once a minute and at the end.
        :param label: of the run, for the history; by default it has none, and a run of one cycle leaves no history.
        :returns: the report of all cycles.
        """
        began = checked = written = time.monotonic()
        polling = polling or AdaptivePolling()
        until = began + self.seconds_to_live(time_to_live)
        # The first cycle has no time limit: if its look took longer than the time to live, nothing would ever be
        # dispatched.
        report, plan = self._try_cycle(WorkGate(self._go_on), before_dispatch, first_shares)
        progress(report)
        while (left := until - time.monotonic()) > polling.min_interval_s and self._go_on():
            seconds = polling.next_interval(plan, time.monotonic())
            wait(max(polling.min_interval_s, min(seconds, left - polling.min_interval_s)))
            if not self._go_on():  # another look would be in vain, and may take long
                break
            if self.config.check_in_ms and time.monotonic() - checked > self.config.check_in_ms / 1000:
                checked = time.monotonic()
                self._check_in(report)
            cycle, plan = self._try_cycle(WorkGate(self._go_on, until), before_dispatch)
            report.add_cycle(cycle)
            if writes_performance and report.seen and time.monotonic() - written > _PERFORMANCE_INTERVAL_S:
                written = time.monotonic()
                self.write_performance(report, label or RunLabel())
            progress(report)
        report.time_taken_ms = _ms_since(began)
        if writes_performance and report.seen:  # otherwise nothing was seen, and the old document is better
            one_cycle = label is None and until == began
            self.write_performance(report, None if one_cycle else label or RunLabel())
        return report

    def seconds_to_live(self, time_to_live: float | timedelta | None = None) -> float:
        """Return for how long a run begins new cycles, in seconds.

        :param time_to_live: as in :meth:`run`.
        """
        if time_to_live is None:
            return max(self.config.time_to_live_in_min * 60 - TIME_TO_LIVE_MARGIN_S, 1.0)
        return time_to_live.total_seconds() if isinstance(time_to_live, timedelta) else time_to_live

    def _try_cycle(
        self, gate: WorkGate, before_dispatch: BeforeDispatch, shares: Sequence[Share] | None = None
    ) -> tuple[Report, Plan | None]:
        """Run a cycle, and report its failure instead of raising it.

        :param shares: what it dispatches; by default it looks for itself.
        :returns: its report, and its plan; no plan if it has made none.
        """
        plan = None
        try:
            if shares is not None:
                return self._dispatch_given(shares, gate, before_dispatch), None
            report, plan = self._observe()
            self._act(report, plan, gate, before_dispatch)
        except Exception as error:
            log.exception("A cycle has failed; the run goes on")
            report = Report(cycles=1)
            report.add_error(f"a cycle has failed, please report this: {in_words(error)}")
        return report, plan

    def _dispatch_given(self, shares: Sequence[Share], gate: WorkGate, before_dispatch: BeforeDispatch) -> Report:
        """Dispatch shares that were planned elsewhere, as far as they match the filter."""
        began = time.monotonic()
        shares = select_events(shares, self._only, self.config)
        started = self.store.now()
        before_dispatch(shares)
        report, _ = Dispatching(self._services, gate).run(shares)
        report.started, report.listed = started, report.outcomes.total()
        report.time_taken_ms = _ms_since(began)
        return report

    def _check_in(self, report: Report) -> None:
        """Take over the configuration if its document has changed."""
        try:
            changed = self._given_config.reload(self._client)
            if changed != self._given_config:
                former = self._services
                former.own_intents.close()
                self._use(changed)
                former.store.close()
                self._given_config = changed
                log.info("The configuration has changed; going on with the new one")
        except ConfigError as error:
            self._services.recorder(report).error(
                f"the changed configuration {self._given_config.url!r} is ignored, and the former one stays in use: "
                f"{'; '.join(error.findings)}"
            )

    def cycle(self) -> Report:
        """Observe, plan and act once.

        :returns: the report of this cycle.
        """
        report, plan = self._observe()
        self._act(report, plan, WorkGate(self._go_on))
        return report

    def observe_and_clean_up(self) -> Report:
        """Observe and clean up: a cycle that dispatches nothing.

        :returns: the report of this cycle, in which the events that could go are pending.
        """
        report, plan = self._observe()
        began = time.monotonic()
        if plan is not None:
            events = (event for lane in plan.events.values() for event in lane)
            self._services.recorder(report).record_all(events, Outcome.PENDING)
            self._clean_up_after(plan, report, WorkGate(self._go_on))
        report.time_taken_ms += _ms_since(began)
        return report

    def _observe(self) -> tuple[Report, Plan | None]:
        """Look, and return the report and the plan: no plan if the task folder cannot be listed."""
        began = time.monotonic()
        try:
            seen = self.look()
        except GOOGLE_ERRORS as error:
            recorder = self._services.recorder()
            recorder.error(f"the task folder {self.config.async_task_url!r} cannot be listed: {in_words(error)}")
            recorder.report.time_taken_ms = _ms_since(began)
            return recorder.report, None
        return seen.report, seen.plan

    def _act(
        self, report: Report, plan: Plan | None, gate: WorkGate, before_dispatch: BeforeDispatch = lambda _: None
    ) -> None:
        """Dispatch what a plan says, clean up, and log how things stand.

        :param plan: nothing is done without one.
        :param report: report of the plan; what was done is added.
        """
        began = time.monotonic()
        if plan is not None:
            dispatch_plan(self._services, gate, plan, report, before_dispatch)
            self._clean_up_after(plan, report, gate)
        report.time_taken_ms += _ms_since(began)
        if report.seen is not None:
            summary = f"{counted(report.listed, 'object')} in the task folder: {report.in_words()}"
            self._change_logger.log_if_changed([summary, *log_lines.throttle_lines(report, self.config)])

    def _clean_up_after(self, plan: Plan, report: Report, gate: WorkGate) -> None:
        try:
            report.add_part(self._cleaner.run(plan.cleanup, gate))
        except Exception as error:  # what was dispatched is reported all the same
            log.exception("A cycle could not be cleaned up after; the run goes on")
            report.add_error(f"cleaning up has failed, please report this: {in_words(error)}")

    def look(self) -> Observation:
        """Observe and plan, and touch nothing.

        :returns: the plan, and the report of how things stand.
        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        return self._observer.look()

    def dispatch(self, shares: Sequence[Share], room: Mapping[LimitKey, int] | None = None) -> Report:
        """Move the traces and fire the windows of shares, each in exactly the generation that was planned.

        An event that is gone, or has another generation, was dispatched by somebody else and is ignored. One that
        another dispatcher is about to move is left to it.

        An interruption, by a task's timeout or Ctrl-C, is raised once what was begun is finished, so that the next try
        can begin at once. A second interruption is raised as it comes.

        :param shares: from :meth:`look`'s plan, here or in another process.
        :param room: room of that plan, if it was made just now; by default the limits are counted again.
        :returns: the report of these events.
        """
        report, _ = Dispatching(self._services, WorkGate(self._go_on), room).run(shares)
        return report

    def find_dispatched(self, shares: Sequence[Share]) -> Report:
        """Report those events of shares that have been dispatched, by a task that was killed.

        :param shares: what that task was about to dispatch.
        :returns: the report of those that were dispatched.
        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        events = self._observer.find_dispatched(shares)
        recorder = self._services.recorder()
        recorder.record_all(events, Outcome.DISPATCHED)
        recorder.report.listed = len(events)
        return recorder.report

    def clean_up(self, cleanup: Cleanup) -> Report:
        """Quarantine what must not be dispatched, record what was found out, and delete what is no longer needed.

        :param cleanup: from :meth:`look`'s plan, here or in another process.
        :returns: a report of what was quarantined, and of errors.
        """
        return self._cleaner.run(cleanup, WorkGate(self._go_on))

    def write_performance(self, report: Report, label: RunLabel | None = None) -> None:
        """Write ``performance.json`` for BqTail's balancer, and ``waiting.json`` if events wait in trouble.

        With a label, also see whether BqTail consumes what is delivered, write the history, and delete what is old
        in the journal.

        :param report: of the run so far; what went wrong is added.
        :param label: of the run; ``None`` to leave the history as it is.
        """
        self._performance.write(report, self._services)
        if label is not None:
            self._unconsumed.check(report, self._services)
            self.history.write(report, self.store, self.config, label)
            self._retention.run()


def _ms_since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
