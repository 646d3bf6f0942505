"""The dispatcher: each cycle observes, plans, acts and reports. This is the only loop."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

import google.auth
import requests
from google.api_core.exceptions import GoogleAPIError, NotFound
from google.cloud.storage import Client

from bqdispatch_provider import story, threads
from bqdispatch_provider.config import ConfigError, DispatchConfig
from bqdispatch_provider.emulators import BIGQUERY, emulator
from bqdispatch_provider.firings import OpenFirings
from bqdispatch_provider.intents import RENEW_S, Intent, Intents, Noted
from bqdispatch_provider.jobs import JobBoard, Sighting
from bqdispatch_provider.late import AT_ONCE, Evidence, Judged
from bqdispatch_provider.ledger import Ledger
from bqdispatch_provider.model import (
    BATCH_JOBS,
    EVERYTHING,
    TROUBLE,
    Event,
    Firing,
    JobKey,
    Key,
    Lane,
    Listing,
    Load,
    Only,
    OpenFiring,
    Outcome,
    Plan,
    Quarantine,
    Reason,
    Share,
    Snapshot,
    Tidy,
    Trace,
    Wait,
    Window,
    counter_of,
    lane_of,
)
from bqdispatch_provider.moves import AT_MOST, Done, Mover
from bqdispatch_provider.names import INTENTS, LEDGER, UNDECIDED, TraceName, WindowName, counted, in_one_line, in_words
from bqdispatch_provider.planning import (
    GONE_FOR,
    MIN_AGE,
    TELLS_AFTER,
    classify,
    limits,
    moved_from,
    overdue,
    place_of,
    plan,
    returned,
    underway,
    unfired,
)
from bqdispatch_provider.report import MAX_NAMED, Report, after, waits_as, waits_of
from bqdispatch_provider.rhythm import Rhythm
from bqdispatch_provider.sessions import session_of
from bqdispatch_provider.storage import BATCH_SIZE, STORAGE_ERRORS, TaskStore, client_of

log = logging.getLogger(__name__)
T = TypeVar("T")

THREADS = 8
READERS = 32
"""Objects that are read side by side: what one of them says takes a request of its own."""

_OF_PROJECTS = 200
"""Connections for the threads that look for the jobs of projects."""

ROUND = 10_000
"""Traces that are written down, and then moved, at a time."""

_ORPHANS_EVERY_S = 600.0
"""How often it is looked whether folders were missed of windows that are gone."""

_MEASURED_EVERY_S = 60.0
"""So often a run that goes on writes ``performance.json``: BqTail's balancer takes it for the present."""

_CLEAN_EVERY_S = 3600.0
"""How often old entries of the ledger are looked for where there are none."""

_PAGES_AT_ONCE = 5
"""Thousands of old entries that are deleted in a cycle at most."""

_CLOCK = timedelta(seconds=2)
"""The most by which times of the storage server's answers are apart: it tells its clock in whole seconds."""

_LESS = 5.0
"""A run ends so many seconds before its time to live is over (docs/protocol.md, "Configuration document")."""


class Dispatcher:
    """Dispatches the events of one task folder.

    :param config: see :class:`~bqdispatch_provider.config.DispatchConfig`.
    :param storage_client: a ``google.cloud.storage.Client``; by default one with the environment's credentials.
    :param session: a ``requests.Session`` with credentials for BigQuery; by default with the environment's.
    :param go_on: asked before new work is taken; once it says no, what was begun is finished and no more is begun.
    :param only: which events are dispatched; all by default. Limits are held by whatever runs all the same.
    :raises ConfigError: when neither the configuration nor the credentials name a project.
    """

    def __init__(
        self,
        config: DispatchConfig,
        storage_client: Client | None = None,
        session: requests.Session | None = None,
        go_on: Callable[[], bool] = lambda: True,
        only: Only = EVERYTHING,
    ) -> None:
        self._client = storage_client or default_storage_client(config)
        self.session = session or default_session()
        self._go_on = go_on
        self._only = only
        self._given = config
        self._until = math.inf
        self._interrupted: BaseException | None = None
        self._plan: Plan | None = None
        self._teller = story.Teller(log)
        self._told: set[str] = set()
        self._waited: dict[str, Wait] | None = None
        """Waits that an earlier process has left; ``None`` as long as nobody had to know."""

        self._tells_waits = False
        """True when ``waiting.json`` tells of any, as far as this process has written it."""

        self._freed: Counter[tuple[str, bool]] = Counter()
        """Places at limits, by project and whether of queries, that were taken by what was refused in this cycle."""
        self._threads = threads.Threads(THREADS, "bqdispatch")
        self._readers = threads.Threads(READERS, "bqdispatch-read")
        _widen(self._client._http)
        _widen(self.session)
        self.board = JobBoard(self.session)
        self._use(config)

    def _use(self, config: DispatchConfig) -> None:
        """Take a configuration over, and with it a folder of which nothing is known yet."""
        self.config = config.for_project(self._client.project)
        self.store = TaskStore(
            self._client,
            self.config.async_task_url,
            self.config.trigger_bucket or "",
            self.config.max_writes_per_second,
        )
        self.mover = Mover(self.store, self.config, self._threads)
        self._is_limited = any(limits(self.config).values())
        self.intents = Intents(self.store, self.mover.owner, self._threads, limited=self._is_limited)
        self.ledger = Ledger(self.store, self.config.async_task_url, self.mover.owner)
        self.evidence = Evidence(self.store, self.board, self.ledger, self.config, self._readers)
        self._firings = OpenFirings(self.board, self.evidence)
        self._looked_at_orphans = self._clean_until = -math.inf
        self._clean_after = ""
        self._lacks: list[str] | None = None

    def close(self) -> None:
        """Wait for what was begun, say what is completed, and let the threads go."""
        self.intents.close()
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
        begin: Callable[[Sequence[Share]], None] = lambda _: None,
        wait: Callable[[float], object] = time.sleep,
        rhythm: Rhythm | None = None,
        first: Sequence[Share] | None = None,
        measures: bool = True,
    ) -> Report:
        """Cycle after cycle until the time is up. Write ``performance.json`` once a minute, and at the end.

        :param time_to_live: seconds, or a timedelta, for which new cycles are begun, and in them new work; the first
            cycle is done in any case, and all of it; 0 is that cycle alone; by default the configuration's
            ``TimeToLiveInMin`` less 5 s.
        :param progress: called with the run's report so far, after each cycle.
        :param begin: called in each cycle with what it is about to dispatch.
        :param wait: called between two cycles with seconds; it may come back earlier.
        :param rhythm: how many seconds these are.
        :param first: what the first cycle dispatches, without a look of its own; by default it looks.
        :param measures: whether to write ``performance.json``.
        """
        began = time.monotonic()
        rhythm = rhythm or Rhythm()
        until = began + self.seconds_to_live(time_to_live)
        checked = measured = began
        # The first cycle takes the time that it needs: were its look alone longer than the time to live, nothing would
        # ever be dispatched. After it, no new work is taken once the time is up.
        try:
            report = self._cycle_of_run(lambda: self.cycle(begin) if first is None else self._cycle_of(first, begin))
            self._until = until
            progress(report)
            while (left := until - time.monotonic()) > rhythm.least and self._go_on():
                seconds = rhythm.after(self._plan, time.monotonic())
                wait(max(rhythm.least, min(seconds, left - rhythm.least)))
                if not self._go_on():  # told meanwhile: one more look would be for nothing, and may be long
                    break
                if self.config.check_in_ms and time.monotonic() - checked > self.config.check_in_ms / 1000:
                    checked = time.monotonic()
                    self._check_in(report)
                report.add_cycle(self._cycle_of_run(lambda: self.cycle(begin)))
                if measures and time.monotonic() - measured > _MEASURED_EVERY_S and report.started is not None:
                    measured = time.monotonic()
                    self.write_performance(report)
                progress(report)
        finally:
            self._until = math.inf
        report.time_taken_ms = round((time.monotonic() - began) * 1000)
        if measures and report.started is not None:  # otherwise nothing was seen, and what stands there is truer
            self.write_performance(report)
        return report

    def seconds_to_live(self, time_to_live: float | timedelta | None = None) -> float:
        """For how long a run begins new cycles.

        :param time_to_live: as :meth:`run` takes it.
        """
        if time_to_live is None:
            return max(self.config.time_to_live_in_min * 60 - _LESS, 1.0)
        return time_to_live.total_seconds() if isinstance(time_to_live, timedelta) else time_to_live

    def _cycle_of(self, shares: Sequence[Share], begin: Callable[[Sequence[Share]], None]) -> Report:
        """Dispatch shares that were planned elsewhere."""
        began = time.monotonic()
        self._plan = None
        mine = self._chosen(shares)
        begin(mine)
        self._freed.clear()
        report = self.dispatch(mine)
        report.time_taken_ms = round((time.monotonic() - began) * 1000)
        return report

    def _chosen(self, shares: Sequence[Share]) -> list[Share]:
        """Keep of shares those events that are to be dispatched here."""
        if self._only == EVERYTHING:
            return list(shares)

        def takes(event: Event) -> bool:
            name = (WindowName if event.name.endswith(".win") else TraceName).parse(event.name)
            project = name.dest_project if isinstance(name, WindowName) else name.project
            return self._only.takes(project or self.config.project_id or "", name)

        chosen = (replace(share, events=tuple(filter(takes, share.events))) for share in shares)
        return [share for share in chosen if share.events]

    @staticmethod
    def _cycle_of_run(cycle: Callable[[], Report]) -> Report:
        try:
            return cycle()
        except Exception as error:
            log.exception("A cycle has failed; the run goes on")
            report = Report(cycles=1)
            report.error(f"a cycle has failed, please report this: {in_words(error)}")
            return report

    def _check_in(self, report: Report) -> None:
        try:
            changed = self._given.again(self._client)
            if changed != self._given:
                former, intents = self.store, self.intents
                intents.close()
                self._use(changed)
                former.close()
                self._given = changed
                log.info("The configuration has changed: going on with the new one")
        except ConfigError as error:
            self._error(report, f"the changed configuration is not taken over: {error}")

    def cycle(self, begin: Callable[[Sequence[Share]], None] = lambda _: None) -> Report:
        """Observe, plan and act once.

        :param begin: called with what is about to be dispatched.
        """
        began = time.monotonic()
        self._plan = None
        report, self._plan = self._seen()
        if self._plan is not None:
            shares = self._plan.shares()
            begin(shares)
            self._freed.clear()
            report.add_part(self.dispatch(shares))
            self._go_on_with_next(self._plan, report)
            self._put_in_order(self._plan, report)
        report.time_taken_ms = round((time.monotonic() - began) * 1000)
        if report.started is not None:
            told = f"{counted(report.listed, 'object')} in the task folder: {report.in_words()}"
            self._teller.tell([told, *story.of_waiting(report, self.config)])
        return report

    def take_stock(self) -> Report:
        """Observe, and put in order what is beside dispatching: a cycle that dispatches nothing."""
        began = time.monotonic()
        report, plan = self._seen()
        if plan is not None:
            self._note(report, (Done(each, Outcome.PENDING) for events in plan.events.values() for each in events))
            self._put_in_order(plan, report)
        report.time_taken_ms = round((time.monotonic() - began) * 1000)
        return report

    def _seen(self) -> tuple[Report, Plan | None]:
        """Look; gives the report, and no plan where the task folder cannot be listed."""
        try:
            seen = self.look()
        except STORAGE_ERRORS as error:
            report = Report(cycles=1)
            self._error(report, f"the task folder {self.config.async_task_url!r} cannot be listed: {in_words(error)}")
            return report, None
        return seen.report, seen.plan

    def _put_in_order(self, plan: Plan, report: Report) -> None:
        try:
            report.add_part(self.tidy(plan.tidy))
        except Exception as error:  # what was dispatched has to be told all the same
            log.exception("What is left of this cycle could not be put in order")
            report.error(f"windows and quarantine could not be put in order: {in_words(error)}")

    def _go_on_with_next(self, plan: Plan, report: Report) -> None:
        """Dispatch those that wait for a limit in place of what was refused: no place stays with what cannot go.

        :param report: of the cycle so far; it is added to.
        """
        until = time.monotonic() + AT_MOST
        waiting = list(plan.throttled)
        while self._freed and waiting and time.monotonic() < until:
            freed = Counter(self._freed)
            self._freed.clear()
            chosen: dict[Lane, list[Event]] = {}
            left: list[tuple[Lane, Event]] = []
            for lane, event in waiting:
                place = (self._project_of(event), lane is Lane.SQL)
                if freed[place] > 0:
                    freed[place] -= 1
                    chosen.setdefault(lane, []).append(event)
                    report.outcomes[Outcome.THROTTLED] -= 1
                    report.waits.pop(event.name, None)
                    report.count(place[0], "Throttled", _counter_of(event), -1)
                else:
                    left.append((lane, event))
            if chosen:
                instead = replace(plan, events={lane: tuple(events) for lane, events in chosen.items()})
                report.add_part(self.dispatch(instead.shares()))
            waiting = left

    def listing(self) -> Listing:
        """The task folder's objects by kind, without a look at their jobs.

        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        now, objects = self.store.listing()
        return classify(objects, self.config.project_id or "", now)

    def unfired(self, listing: Listing) -> list[tuple[Window, Firing | None]]:
        """The windows that have not been fired, with what the ledger says of those that were claimed.

        :param listing: of the task folder.
        :raises google.api_core.exceptions.GoogleAPIError: when the ledger cannot be read.
        """
        firings, hidden = self.ledger.look(listing.windows, listing.now)
        if hidden:
            raise GoogleAPIError(next(iter(hidden.values())))
        own = [(each, firings.get(each.object.name, {}).get(each.object.generation)) for each in listing.windows]
        return [(window, firing) for window, firing in own if window.sentinel is None and not _is_fired(firing)]

    def look(self) -> Sight:
        """Observe and plan, and touch nothing.

        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        began = time.monotonic()
        # First what is in transit, then the folder: what BqTail consumes in between has its next trace there.
        transit = self._in_transit()
        listing = self.listing()
        listed = time.monotonic()
        snapshot, sighting = self._observe(listing, transit)
        planned = plan(snapshot, self.config, listing.now, self._only)
        report = Report.of_plan(planned)
        report.started = listing.now
        report.get_count = sighting.got
        report.list_ms = round((listed - began) * 1000) + sighting.list_ms
        for key, job in sighting.jobs.items():
            report.regions.setdefault(key.project, job.location)
        report.time_taken_ms = round((time.monotonic() - began) * 1000)
        return Sight(planned, report)

    def _in_transit(self) -> _Transit:
        """Look which traces were moved that BqTail has not consumed, where that counts.

        One that BqTail has not consumed for longer than a function runs is no job that is about to come.
        """
        if not self._is_limited:
            return _Transit()
        under = self.config.post_job_prefix[1:]
        began = time.monotonic()
        try:
            found = self.store.in_transit(under)
        except STORAGE_ERRORS as error:
            where = f"gs://{self.config.trigger_bucket}/{under}"
            said = f"the limits cannot be counted, since {where!r} cannot be listed: {in_words(error)}"
            return _Transit(problem=said)
        now = self.store.now()
        looked = now - timedelta(seconds=time.monotonic() - began) - _CLOCK
        return _Transit(frozenset(moved_from(each.name) for each in found if each.created > now - GONE_FOR), looked)

    def _observe(self, listing: Listing, transit: _Transit) -> tuple[Snapshot, Sighting]:
        """Find out what a listing does not say: how the jobs stand, and what became of windows."""
        now, limited = listing.now, bool(self.config.max_concurrent_jobs)
        looking = self._threads.submit(
            self.board.look, listing.traces, lambda trace: overdue(trace, self.config, now), self._place
        )
        noted, findings = self._noted(listing, transit)
        orphans, undecided = self._now_and_then(listing)
        keys = {firing.key for intent in noted.windows for firing in intent.firings}
        others = [*orphans, *undecided]
        self.evidence.keep({name for name, _ in keys}.union(others, (each.object.name for each in listing.windows)))
        firings, hidden = self.ledger.look(listing.windows, now, keys, others)
        if findings and limited:
            hidden |= dict.fromkeys((window.object.name for window in listing.windows), findings[0])
        sighting = looking.result()
        opened = self._firings.look(noted.windows, listing, firings, sighting.jobs, limited=limited)
        waiting = [
            window
            for window in listing.windows
            if window.object.name not in hidden and unfired(window, firings.get(window.object.name, {}), now)
        ]
        beside = {window.object.name: window.locations for window in listing.windows} | dict(listing.locations)
        late = {
            window.key: beside[window.object.name]
            for window in waiting
            if returned(window, firings.get(window.object.name, {}))
        }
        late |= {
            firing.key: beside.get(firing.window, ())
            for firing in opened.abandoned
            if firings.get(firing.window, {}).keys() - {firing.generation}
        }
        judged = self.evidence.judge(late, listing, firings)
        loads: dict[Key, Load] = {}
        if limited:
            loads, unread = self._loads(waiting, opened.abandoned)
            hidden |= unread
        missed = {name: firings.get(name, {}) for name in orphans}
        lost = self.evidence.orphans(listing, missed) if missed else Judged()
        settled = self.evidence.settled(listing, firings) if undecided else []
        tidy = Tidy(
            tuple(opened.dropped),
            (*lost.stale, *settled, *noted.spent, *opened.spent),
            tuple(opened.fired),
            tuple(dict.fromkeys((*opened.gone, *judged.gone, *lost.gone))),
            tuple(lost.missed),
        )
        errors = {**opened.errors, **sighting.errors}
        snapshot = Snapshot(
            listing,
            sighting.jobs,
            errors,
            sighting.unread,
            sighting.unknown,
            firings,
            hidden,
            loads,
            judged.verdicts,
            tuple(opened.open) if limited else (),
            tuple(opened.abandoned),
            transit.names | noted.moving,
            (*(((now, transit.problem),) if transit.problem else ()), *noted.unread),
            tidy,
            (*findings, *judged.findings, *lost.findings),
        )
        return snapshot, sighting

    def _place(self, trace: Trace) -> JobKey | None:
        """Read where a job is from the content of its trace; ``None`` when that does not say it.

        :raises LookupError: when it cannot be read now.
        """
        try:
            content = self.store.read(self.store.task_url(trace.object.name))
        except STORAGE_ERRORS as error:
            raise LookupError(in_words(error)) from error
        return place_of(trace, content)

    def _noted(self, listing: Listing, transit: _Transit) -> tuple[Noted, tuple[str, ...]]:
        """What dispatchers have written down, and why that cannot be read."""
        present = {(trace.object.name, trace.object.generation) for trace in listing.traces}
        try:
            return self.intents.look(listing.intents, present, listing.now, transit.looked), ()
        except STORAGE_ERRORS as error:
            said = f"what dispatchers wrote down under {self._url(INTENTS)} cannot be read: {in_words(error)}"
            return Noted(), (said,)

    def _now_and_then(self, listing: Listing) -> tuple[list[str], list[str]]:
        """Windows that are looked at once a run, and then every ten minutes.

        :returns: those that are gone while their folders are still named, and those that wait for a decision.
        """
        if time.monotonic() - self._looked_at_orphans < _ORPHANS_EVERY_S:
            return [], []
        self._looked_at_orphans = time.monotonic()
        orphans = [
            name
            for name, locations in listing.locations.items()
            if all(listing.now - each.created > GONE_FOR for each in locations) and _is_window(name)
        ]
        waiting = (each.name.removeprefix(UNDECIDED).rpartition(".")[0] for each in listing.undecided)
        return orphans[:AT_ONCE], [name for name in waiting if _is_window(name)][:AT_ONCE]

    def _loads(
        self, waiting: Sequence[Window], abandoned: Sequence[OpenFiring]
    ) -> tuple[dict[Key, Load], dict[str, str]]:
        """Where the loads of windows will run, and those of which that cannot be read."""
        bodies, unread = self.evidence.bodies([window.key for window in waiting])
        claimed, gone = self.evidence.bodies([firing.key for firing in abandoned], claimed=True)
        refused = {name: said for (name, _), said in {**unread, **gone}.items()}
        return {key: body.load for key, body in {**bodies, **claimed}.items()}, refused

    def dispatch(self, shares: Iterable[Share]) -> Report:
        """Move the traces and fire the windows of shares, each exactly in the generation that was planned.

        An event that is gone, or that has become another generation, was done by someone else: it counts as ignored.
        One that another dispatcher is about to move is left to it. Of events that were planned elsewhere, no more are
        dispatched than the limits let through now.

        Interrupted, by a task's timeout or Ctrl-C, it begins nothing more, finishes what was begun, and only then
        raises: so whoever tries again can go on at once. A second interruption is raised as it comes.

        :param shares: from :meth:`look`'s plan, here or in another process.
        """
        # In a thread of its own nothing interrupts it, wherever it is: what is written down is taken back.
        dispatching = threads.begin(self._dispatch, shares)
        try:
            wait([dispatching])
        except BaseException as interrupted:
            self._interrupted = interrupted
            log.warning("Interrupted: what was begun is finished, and no more is begun")
            wait([dispatching])
        finally:
            interruption, self._interrupted = self._interrupted, None
        report = dispatching.result()
        if interruption is not None:
            raise interruption
        return report

    def _dispatch(self, shares: Iterable[Share]) -> Report:
        report = Report(cycles=1)
        events: list[Event] = []
        windows: list[Event] = []
        limited = False
        room = dict(self._plan.room) if self._plan is not None else {}
        for share in self._counted_anew(shares, room, report):
            if share.lane is Lane.WINDOWS:
                windows.extend(share.events)
                limited = limited or bool(limits(self.config)[share.lane])
            else:
                events.extend(share.events)
        asking = self._threads.submit(self.mover.movable, events)
        if (events or windows) and (lacking := self._lacking()):
            self._error(report, f"nothing is dispatched, for the account lacks {', '.join(lacking)}")
            self._note(report, [Done(event, Outcome.PENDING) for event in (*events, *windows)])
            return report
        # What must not be moved is not even written down.
        events, barred = asking.result()
        self._note(report, barred)
        firings, windows = self._announce_firings(windows, room if limited else None, report)
        work: list[_Work] = [(self.mover.fire, chunk) for chunk in _chunks(windows)]
        fired: list[Done] = []
        for start in range(0, len(events), ROUND):
            fired += self._move(events[start : start + ROUND], work, room, report)
            work = []
        fired += self._do(work, report)
        self._settle_firings(firings, windows, fired)
        if report.dispatched > story.TOLD:
            log.info("and %d more were dispatched", report.dispatched - story.TOLD)
        return report

    def _announce_firings(
        self, windows: Sequence[Event], room: _Room | None, report: Report
    ) -> tuple[list[Intent], list[Event]]:
        """Write down which windows are about to be fired; gives these intents, and the windows that may be fired.

        :param room: what was left of the limits; ``None`` where windows have none.
        """
        if not windows:
            return [], []
        try:
            firings = self.intents.announce_firings(windows)
        except STORAGE_ERRORS as error:
            said = f"what is to be fired could not be written down under {self._url(INTENTS)}, so it waits"
            self._error(report, f"{said}: {in_words(error)}")
            self._note(report, [Done(event, Outcome.ERROR) for event in windows])
            return [], []
        if room is None:
            return firings, list(windows)
        fitting = self._within_limits(windows, room, report)
        if not fitting:
            self.intents.settle_firings(firings, [])
        return firings if fitting else [], fitting

    def _within_limits(self, events: Sequence[Event], room: _Room, report: Report) -> list[Event]:
        """Keep those events that others have left room for, once it is written down that they are to be dispatched.

        Another dispatcher may have looked as this one has, and found the same room at the limit. What it has written
        down since takes its place; whichever of the two writes later sees the other.

        :param room: what was left of the limits when these events were counted.
        """
        try:
            firings, moves = self.intents.since()
        except STORAGE_ERRORS as error:
            said = f"what others are dispatching, under {self._url(INTENTS)}, cannot be told, so this waits"
            self._error(report, f"{said}: {in_words(error)}")
            self._note(report, [Done(event, Outcome.ERROR) for event in events])
            return []
        taken = underway(moves, (), (), self.config.project_id or "")
        taken.update((firing.project, False) for firing in firings)
        over = Counter({lane: number - room[lane] for lane, number in taken.items() if lane in room})
        fitting: list[Event] = []
        waiting: list[Event] = []
        for event in reversed(events):  # the youngest wait
            lane = (self._project_of(event), _is_query(event))
            over[lane] -= 1
            (waiting if over[lane] >= 0 else fitting).append(event)
        self._note_throttled(report, waiting)
        return fitting[::-1]

    def _settle_firings(self, firings: Sequence[Intent], windows: Sequence[Event], done: Sequence[Done]) -> None:
        """Keep written down what was claimed, and tell the ledger what it need not be asked."""
        mine = {event.key for event in windows}
        results = [one for one in done if one.event.key in mine]
        self.ledger.remember(one.event.key for one in results if one.outcome is Outcome.DISPATCHED)
        self.ledger.forget(one.event.key for one in results if one.outcome is not Outcome.DISPATCHED)
        self.intents.settle_firings(firings, [one.event for one in results if one.open])

    def done_meanwhile(self, shares: Iterable[Share]) -> Report:
        """Which events of shares have been dispatched, by whoever had them in hand when it was killed.

        :param shares: what was planned.
        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        listing = self.listing()
        waiting = {(trace.object.name, trace.object.generation) for trace in listing.traces}
        events = [event for share in shares for event in share.events]
        windows = [event.name for event in events if event.name.endswith(".win")]
        firings, hidden = self.ledger.look((), listing.now, names=windows)
        waiting |= {
            event.key
            for event in events
            if event.name in hidden
            or (event.name.endswith(".win") and not _is_fired(firings.get(event.name, {}).get(event.generation)))
        }
        report = Report(cycles=1)
        events = [event for event in events if event.key not in waiting]
        self._note(report, [Done(event, Outcome.DISPATCHED) for event in events])
        report.listed = len(events)
        return report

    def _counted_anew(self, shares: Iterable[Share], left: _Room, report: Report) -> Iterator[Share]:
        """Shares as far as they are still within their limit; what has to wait is noted.

        What was planned in another task has waited for this one, and for a pool: another dispatcher may have filled the
        limit meanwhile.

        :param left: takes up what is left of each limit that was counted.
        """
        room: _Room = {}
        begun: set[Key] = set()
        for share in shares:
            limit = limits(self.config)[share.lane]
            if not limit or (self._plan is not None and share.planned == self._plan.now):
                yield share
                continue
            is_sql = share.lane is Lane.SQL
            projects = {self._project_of(event) for event in share.events}
            projects -= {project for project, of_queries in room if of_queries is is_sql}
            try:
                taken, open_firings = self._taken(projects, is_sql, limit, report)
            except STORAGE_ERRORS as error:
                number = counted(len(share.events), "event")
                said = f"the limits cannot be counted again, which holds up {number}: {in_words(error)}"
                self._error(report, said)
                self._note(report, [Done(event, Outcome.PENDING) for event in share.events])
                continue
            begun |= open_firings
            room |= {(project, is_sql): limit - number for project, number in taken.items()}
            fitting: list[Event] = []
            waiting: list[Event] = []
            for event in share.events:
                key = (self._project_of(event), is_sql)
                room[key] -= event.key not in begun  # those count already
                (fitting if room[key] >= 0 else waiting).append(event)
            left |= {key: max(number, 0) for key, number in room.items()}
            if waiting:
                log.info("%d events wait: others have filled the limit of %d meanwhile", len(waiting), limit)
            self._note_throttled(report, waiting)
            yield replace(share, events=tuple(fitting))

    def _taken(
        self, projects: Collection[str], is_sql: bool, limit: int, report: Report
    ) -> tuple[dict[str, int], set[Key]]:
        """How many places of a limit are taken in projects now, and the firings among them.

        :param is_sql: whether it is the limit of query events, or that of all others.
        :param limit: taken as a whole in a project whose jobs cannot be looked at.
        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be read.
        """
        taken: dict[str, int] = {}
        active: set[tuple[str, str]] = set()
        if not projects:
            return taken, set()
        transit = self._in_transit()
        if transit.problem:
            raise GoogleAPIError(transit.problem)
        # First the jobs, then the folder: what was submitted in between has a trace that was written just now.
        since = self.store.now() - MIN_AGE
        found, refused = self.board.active(projects, since)
        for project, ids in found.items():
            active |= {(project, job_id) for job_id in ids}
            taken[project] = 0
        for project, error in refused.items():
            self._error(report, f"the jobs of project {project!r} cannot be looked at, so it waits: {error}")
            taken[project] = limit
        listing = self.listing()
        running: set[JobKey] = set()
        seen: set[str] = set()
        for trace in listing.traces:
            job = (trace.project, trace.name.job_id)
            if job in active:
                running.add(trace.job)
            if (job in active or trace.object.created >= since) and trace.project in taken:
                seen.add(trace.name.event_id)
                taken[trace.project] += is_sql == (lane_of(trace.name.action) is Lane.SQL)
        noted, _ = self._noted(listing, transit)
        moved = underway(transit.names | noted.moving, listing.traces, seen, self.config.project_id or "")
        for (project, of_queries), number in moved.items():
            if project in taken and of_queries is is_sql:
                taken[project] += number
        if is_sql:
            return taken, set()
        keys = {firing.key for intent in noted.windows for firing in intent.firings}
        firings, _ = self.ledger.look(listing.windows, listing.now, keys)
        opened = self._firings.look(noted.windows, listing, firings, running, limited=True).open
        for firing in opened:
            if firing.project in taken:
                taken[firing.project] += 1
        return taken, {firing.key for firing in opened}

    def _project_of(self, event: Event) -> str:
        if event.load is not None:
            return event.load.project
        if event.name.endswith(".win"):
            return WindowName.parse(event.name).dest_project or self.config.project_id or ""
        return TraceName.parse(event.name).project or self.config.project_id or ""

    def _lacking(self) -> list[str]:
        if self._lacks is None or self._lacks:  # what is granted meanwhile ends it
            self._lacks = self.store.lacking()
        return self._lacks

    def _move(self, events: Sequence[Event], beside: Sequence[_Work], room: _Room, report: Report) -> list[Done]:
        """Move traces, once it is written down and nobody else is about to.

        :param beside: other work that is done meanwhile.
        :param room: what was left of the limits.
        :returns: what became of all of it.
        """
        until = time.monotonic() + AT_MOST
        try:
            announced = self.intents.announce(events, self._until)
        except STORAGE_ERRORS as error:
            said = f"what is to be moved could not be written down under {self._url(INTENTS)}, so it waits"
            self._error(report, f"{said}: {in_words(error)}")
            self._note(report, [Done(event, Outcome.ERROR) for event in events])
            return self._do(beside, report)
        unread = {event.key: why for event in events for at, why in announced.unread[:1] if event.created <= at}
        for why in dict.fromkeys(unread.values()):
            self._error(report, why)
        self._note(report, [Done(event, Outcome.ERROR) for event in events if event.key in unread])
        events = [event for event in events if event.key not in unread]
        held = [Done(event, Outcome.PENDING) for event in events if event.name in announced.held]
        self._note(report, held, Reason.IN_HAND)
        mine = [
            replace(event, doubted=True) if event.key in announced.doubtful else event
            for event in events
            if event.name not in announced.held
        ]
        if self._is_limited and mine:
            mine = self._within_limits(mine, room, report)

        def move(chunk: Sequence[Event]) -> list[Done]:
            movable, barred = self.mover.movable(chunk)
            return [*barred, *(self.mover.move(movable, until) if movable else ())]

        done = self._do([*beside, *((move, chunk) for chunk in _chunks(mine))], report)
        traces = {event.key for event in mine}
        self.intents.withdraw(announced, [one.event for one in done if one.open and one.event.key in traces])
        return done

    def _do(self, work: Iterable[_Work], report: Report) -> list[Done]:
        everything: list[Done] = []
        for begun in [self._threads.submit(self._unless_over, *each) for each in work]:
            self.intents.renew()  # each may be done soon, and all of them late
            while wait([begun], RENEW_S / 4).not_done:
                self.intents.renew()
            done = begun.result()
            self._note(report, done)
            everything += done
        return everything

    def tidy(self, tidy: Tidy) -> Report:
        """Set aside what must not be dispatched, note what was found out, and delete what nobody needs any more.

        :param tidy: from :meth:`look`'s plan, here or in another process.
        """
        report = Report(cycles=1)
        self.intents.remove()
        for act, undecided in ((self.mover.set_aside, False), (self.mover.set_undecided, True)):
            for chunk in _chunks([each for each in tidy.quarantines if each.undecided is undecided]):
                self._set_aside(chunk, act, report)
        # Another process may have fired what is removed here.
        self.ledger.used = self.ledger.used or any(name.endswith(".win") for name, _ in tidy.stale)
        cleaned = self._threads.submit(self._cleaned)
        self.ledger.note((key, "fired") for key in tidy.fired)
        self.ledger.note((key, f"gone-{step:05}") for key, step in tidy.gone)
        for window, content in tidy.missed:
            self._make_anew(window, content, report)
        for stale in _chunks(tidy.stale):
            for (name, _), result in zip(stale, self.store.delete(stale), strict=True):
                if not result.ok and not result.doubtful:
                    self._error(report, f"{self._url(name)} is not needed any more, but was not deleted: {result}")
        try:
            self._clean_up(cleaned.result())
        except STORAGE_ERRORS as error:
            self._error(report, f"old entries of the ledger {self._url(LEDGER)} are not deleted: {in_words(error)}")
        return report

    def _make_anew(self, window: str, content: bytes, report: Report) -> None:
        """Make a window that is gone, for the next look; whoever makes one first has done it."""
        try:
            if self.store.create(self.store.task_url(window), content, {}):
                log.info("%s is made anew: a folder's event came when it had been fired", self._url(window))
        except STORAGE_ERRORS as error:
            self._error(report, f"{self._url(window)} could not be made anew for a missed folder: {in_words(error)}")

    def _set_aside(
        self, quarantines: Sequence[Quarantine], act: Callable[[Sequence[Quarantine]], list[Done]], report: Report
    ) -> None:
        of = {(each.name, each.generation): each for each in quarantines}
        events = [Event(each.name, each.generation, each.created) for each in quarantines]
        done = self._unless_over(lambda chosen: act([of[event.key] for event in chosen]), events)
        self._note(report, done)
        aside = (one.event.key for one in done if one.outcome is Outcome.QUARANTINED)
        self.ledger.note((key, "aside") for key in aside if of[key].dropped)

    def _cleaned(self) -> timedelta | None:
        """How long ago there was nothing old left in the ledger; nothing at all where nobody has to know."""
        if time.monotonic() < self._clean_until or not self.ledger.used:
            return timedelta()
        return self.store.age(self._cleaned_url)

    def _clean_up(self, cleaned: timedelta | None) -> None:
        """Delete old entries of the ledger: at once where there are many, else an hour after there were none."""
        every = timedelta(seconds=_CLEAN_EVERY_S)
        if cleaned is None or cleaned > every:
            present = {window.name.name for window in self.listing().windows}
            for _ in range(_PAGES_AT_ONCE):
                after = self.ledger.clean_up(self.store.now(), present, self._threads, self._clean_after)
                self._clean_after = after
                if not after:
                    break
            else:
                return  # the next cycle goes on
            told = {"Cleaned": self.store.now().isoformat(), "By": self.mover.owner}
            self.store.claim(self._cleaned_url, told, every)
            cleaned = timedelta()
        if self.ledger.used:
            self._clean_until = max(self._clean_until, time.monotonic() + (every - cleaned).total_seconds())

    @property
    def _cleaned_url(self) -> str:
        return f"{self.config.journal_url.rstrip('/')}/ledger.json"

    def write_performance(self, report: Report) -> None:
        """Write ``performance.json``, from which BqTail's balancer takes how busy each project is.

        Besides, ``waiting.json``, where there is trouble: by that the next process goes on counting.
        """
        self._write_waiting(report)
        url = f"{self.config.journal_url.rstrip('/')}/performance.json"
        try:
            self.store.write_json(url, report.performance())
            report.balanced = self.store.now()
        except STORAGE_ERRORS as error:
            self._error(
                report, f"{url!r} cannot be written, so BqTail may send loads to a busy project: {in_words(error)}"
            )

    def _write_waiting(self, report: Report) -> None:
        troubled = {name: wait for name, wait in report.waits.items() if wait.reason in TROUBLE}
        if not troubled and not self._tells_waits:
            return
        url = f"{self.config.journal_url.rstrip('/')}/waiting.json"
        try:
            if self._waited is None:
                self._waited = self._read_waiting(url)
            report.waited = self._waited = {name: each for name, each in self._waited.items() if name in troubled}
            told = sorted(troubled.values(), key=lambda each: each.since)[:MAX_NAMED]
            self.store.write_json(url, waits_as(after(each, self._waited.get(each.name)) for each in told))
            self._tells_waits = bool(troubled)
        except STORAGE_ERRORS as error:
            log.warning("%r cannot be read or written, so it is not counted how often events wait: %s", url, error)

    def _read_waiting(self, url: str) -> dict[str, Wait]:
        try:
            return waits_of(json.loads(self.store.read(url)))
        except (NotFound, ValueError, RecursionError) as error:
            log.debug("%r is not there, or something else: %s", url, error)
            return {}

    def _unless_over(self, act: _Act, events: Sequence[Event]) -> list[Done]:
        if not self._go_on() or self._interrupted is not None or time.monotonic() > self._until:
            return [Done(event, Outcome.PENDING) for event in events]
        try:
            return act(events)
        except Exception as error:
            log.exception("%d events could not be dispatched", len(events))
            return [
                Done(event, Outcome.ERROR, f"{self._url(event.name)}: {in_words(error)}", open=True, unclear=True)
                for event in events
            ]

    def _url(self, name: str) -> str:
        """An object of the task folder for a message: names are untrusted text."""
        return repr(self.store.task_url(name))

    def _error(self, report: Report, message: str) -> None:
        """Note that something went wrong; what goes wrong cycle after cycle is logged once."""
        report.error(message)
        if message not in self._told:
            log.warning("%s", in_one_line(message))
            self._told.add(message)

    def _note(self, report: Report, done: Iterable[Done], reason: Reason | None = None) -> None:
        """Take what became of events into a report.

        :param reason: why those are pending that are.
        """
        for one in done:
            report.outcomes[one.outcome] += 1
            self._note_wait(report, one, reason)
            if one.error:
                self._error(report, one.error)
            refused = one.outcome is Outcome.ERROR or (one.outcome is Outcome.PENDING and one.error)
            # What somebody has begun, or may have, keeps its place.
            begun = one.unclear or one.event.claimed or one.event.doubted
            if self._is_limited and refused and not begun:
                self._freed[self._project_of(one.event), _is_query(one.event)] += 1
            if one.outcome is Outcome.DISPATCHED:
                self._note_dispatched(report, one)
            elif one.outcome is Outcome.QUARANTINED:
                report.quarantined[self.store.task_url(one.event.name)] = one.reason
                where = self.config.error_url if one.target else self.store.task_url(UNDECIDED)
                log.warning("Set aside under %r: %s, %s", where, self._url(one.event.name), one.reason)

    def _note_wait(self, report: Report, one: Done, reason: Reason | None) -> None:
        if one.outcome is Outcome.ERROR:
            reason = Reason.IN_DOUBT if one.unclear else Reason.REFUSED
        elif one.outcome is Outcome.THROTTLED:
            reason = Reason.LIMIT
        elif one.outcome is Outcome.PENDING:
            reason = reason or (Reason.REFUSED if one.error else Reason.NEXT_CYCLE)
        else:
            return
        event = one.event
        since = WindowName.parse(event.name).end if event.name.endswith(".win") else event.created
        if self.store.now() - since > TELLS_AFTER:
            report.waits[event.name] = Wait(event.name, reason, since, one.error)

    def _note_throttled(self, report: Report, events: Sequence[Event]) -> None:
        self._note(report, [Done(event, Outcome.THROTTLED) for event in events])
        for event in events:
            report.count(self._project_of(event), "Throttled", _counter_of(event))

    def _note_dispatched(self, report: Report, one: Done) -> None:
        event = one.event
        url, project = self.store.task_url(event.name), self._project_of(event)
        if event.name.endswith(".win"):
            report.batched[url] = WindowName.parse(event.name).end.strftime("%Y-%m-%dT%H:%M:%SZ")
        else:
            trace = TraceName.parse(event.name)
            report.jobs[url] = {
                "Project": project,
                "Region": trace.region or event.location,
                "ID": trace.job_id,
                "URL": url,
                "Status": "DONE",
                "DispatchTime": self.store.now().isoformat(timespec="milliseconds"),
            }
            if event.ended is not None:
                report.jobs[url]["EndTime"] = event.ended.isoformat(timespec="milliseconds")
            if event.error:
                report.jobs[url]["Error"] = event.error
            if event.table:
                report.jobs[url]["Table"] = event.table
        report.count(project, "Dispatched", _counter_of(event))
        level = logging.INFO if report.dispatched <= story.TOLD else logging.DEBUG
        if log.isEnabledFor(level):
            target = f"gs://{self.config.trigger_bucket}/{one.target}"
            log.log(level, "%s", story.of_event(event, target, self.store.now()))


@dataclass(frozen=True)
class Sight:
    """A plan, and the report of what was seen while it was made."""

    plan: Plan
    report: Report


@dataclass(frozen=True)
class _Transit:
    """What was moved and not consumed.

    :param names: of the traces.
    :param looked: no moment is later at which all that had been moved was seen, by the storage server's clock.
    :param problem: why that cannot be told; empty where it can.
    """

    names: frozenset[str] = frozenset()
    looked: datetime | None = None
    problem: str = ""


def _is_window(name: str) -> bool:
    try:
        WindowName.parse(name)
    except ValueError:
        return False
    return True


def _is_fired(firing: Firing | None) -> bool:
    return firing is not None and firing.fired is not None


_Act = Callable[[Sequence[Event]], list[Done]]
_Work = tuple[_Act, Sequence[Event]]
_Room = dict[tuple[str, bool], int]


def default_storage_client(config: DispatchConfig) -> Client:
    """A client with the environment's credentials, or for the stand-in that ``STORAGE_EMULATOR_HOST`` names."""
    return client_of(config.project_id)


def default_session() -> requests.Session:
    """A session with the environment's credentials; a plain one when ``BIGQUERY_EMULATOR_HOST`` names a stand-in."""
    if emulator(BIGQUERY):
        return requests.Session()
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/bigquery.readonly"])
    return session_of(credentials)


def _is_query(event: Event) -> bool:
    return not event.name.endswith(".win") and lane_of(TraceName.parse(event.name).action) is Lane.SQL


def _counter_of(event: Event) -> str:
    return BATCH_JOBS if event.name.endswith(".win") else counter_of(TraceName.parse(event.name).action)


def _widen(session: requests.Session) -> None:
    """Give a session as many connections as there are threads; ``requests`` keeps ten and throws the others away.

    Each project's jobs are looked for by threads of its own.
    """
    most = 2 * THREADS + READERS + _OF_PROJECTS
    for scheme in ("https://", "http://"):
        adapter = session.adapters.get(scheme)
        if type(adapter) is requests.adapters.HTTPAdapter and getattr(adapter, "_pool_maxsize", 0) < most:
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=most))


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE))
