"""The dispatcher: each cycle observes, plans, acts and reports. This is the only loop."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

import google.auth
import requests
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Client

from bqdispatch_provider.config import ConfigError, DispatchConfig
from bqdispatch_provider.jobs import REFUSED, JobBoard
from bqdispatch_provider.model import (
    BATCH_JOBS,
    Event,
    Lane,
    Listing,
    Outcome,
    Plan,
    Sentinel,
    Share,
    Snapshot,
    StoredObject,
    Tidy,
    counter_of,
)
from bqdispatch_provider.names import TraceName, WindowName
from bqdispatch_provider.planning import (
    CLAIM_TIMEOUT,
    MIN_AGE,
    classify,
    limits,
    other_target,
    plan,
    target_of,
    unseen,
)
from bqdispatch_provider.report import Report
from bqdispatch_provider.storage import BATCH_SIZE, Result, Stamp, TaskStore

log = logging.getLogger(__name__)
T = TypeVar("T")

THREADS = 8
SHARE_LIFE = timedelta(minutes=2)
"""How long a share may be dispatched that was planned under a limit: then what runs has changed too much."""

_PAUSE = 1.0
_LESS = 5.0
"""A run ends so many seconds before its time to live is over (docs/protocol.md, "Configuration document")."""


class Dispatcher:
    """Dispatches the events of one task folder.

    :param config: see :class:`~bqdispatch_provider.config.DispatchConfig`.
    :param storage_client: a ``google.cloud.storage.Client``; by default one with the environment's credentials.
    :param session: a ``requests.Session`` with credentials for BigQuery; by default with the environment's.
    :param go_on: asked before new work is taken; once it says no, what was begun is finished and no more is begun.
    :raises ConfigError: when neither the configuration nor the credentials name a project.
    """

    def __init__(
        self,
        config: DispatchConfig,
        storage_client: Client | None = None,
        session: requests.Session | None = None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = storage_client or default_storage_client(config)
        self._session = session or default_session()
        self._go_on = go_on
        self._given = config
        self._until = float("inf")
        self._threads = ThreadPoolExecutor(THREADS, "bqdispatch")
        _widen(self._client._http)
        _widen(self._session)
        self.board = JobBoard(self._session)
        self._use(config)

    def _use(self, config: DispatchConfig) -> None:
        """Take a configuration over, and with it a folder of which nothing is known yet."""
        self.config = config.for_project(self._client.project)
        self.store = TaskStore(self._client, self.config.async_task_url, self.config.trigger_bucket or "")
        self._may_delete, self._refused = False, 0
        self._unfinished: dict[tuple[str, int], int] = {}

    def close(self) -> None:
        """Wait for what was begun, and let the threads go."""
        self._threads.shutdown()
        self.store.close()

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, time_to_live: float | timedelta | None = None, progress: Callable[[Report], None] = lambda _: None
    ) -> Report:
        """Cycle after cycle until the time is up, then write ``performance.json``.

        :param time_to_live: seconds, or a timedelta, for which new cycles are begun; 0 is one cycle; by default the
            configuration's ``TimeToLiveInMin`` less 5 s.
        :param progress: called with the run's report so far, after each cycle.
        """
        began = time.monotonic()
        if time_to_live is None:
            time_to_live = max(self.config.time_to_live_in_min * 60 - _LESS, 1.0)
        seconds = time_to_live.total_seconds() if isinstance(time_to_live, timedelta) else time_to_live
        until = began + seconds
        # A single cycle takes the time that it needs; a run stops taking new work when its time is up.
        self._until = until if seconds > 0 else float("inf")
        checked = began
        report = self._cycle_of_run()
        progress(report)
        while time.monotonic() + _PAUSE < until and self._go_on():
            time.sleep(_PAUSE)
            if self.config.check_in_ms and time.monotonic() - checked > self.config.check_in_ms / 1000:
                checked = time.monotonic()
                self._check_in(report)
            report.add_cycle(self._cycle_of_run())
            progress(report)
        self._until = float("inf")
        report.time_taken_ms = round((time.monotonic() - began) * 1000)
        if report.started is not None:  # otherwise nothing was seen, and what stands there is truer than nothing
            self.write_performance(report)
        return report

    def _cycle_of_run(self) -> Report:
        try:
            return self.cycle()
        except Exception as error:
            log.exception("A cycle has failed; the run goes on")
            report = Report(cycles=1)
            report.error(f"a cycle has failed, please report this: {_said(error)}")
            return report

    def _check_in(self, report: Report) -> None:
        try:
            changed = self._given.again(self._client)
            if changed != self._given:
                former = self.store
                self._use(changed)
                former.close()
                self._given = changed
                log.info("The configuration has changed: going on with the new one")
        except ConfigError as error:
            report.error(f"the changed configuration is not taken over: {error}")

    def cycle(self) -> Report:
        """Observe, plan and act once."""
        began = time.monotonic()
        try:
            seen = self.look()
        except _STORAGE_ERRORS as error:
            report = Report(cycles=1)
            report.error(f"the task folder {self.config.async_task_url!r} cannot be listed: {_said(error)}")
            log.error("%s", report.errors[0])
        else:
            report = seen.report
            report.add_part(self.dispatch(seen.plan.shares(limits(self.config), BATCH_SIZE)))
            report.add_part(self.tidy(seen.plan.tidy))
        report.time_taken_ms = round((time.monotonic() - began) * 1000)
        _log_cycle(report)
        return report

    def listing(self) -> Listing:
        """The task folder's objects by kind, without a look at their jobs.

        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        now, objects = self.store.listing()
        return classify(objects, self.config.project_id or "", now)

    def look(self) -> Sight:
        """Observe and plan, and touch nothing.

        :raises google.api_core.exceptions.GoogleAPIError: when the task folder cannot be listed.
        """
        began = time.monotonic()
        listing = self.listing()
        now, listed = listing.now, time.monotonic()
        sighting = self.board.look(listing.traces, self._threads)
        recent = self._jobs_since_firing(listing) if self.config.max_concurrent_jobs else {}
        planned = plan(Snapshot(listing, sighting.jobs, sighting.errors, recent), self.config, now)
        report = Report.of_plan(planned)
        report.started = now
        report.get_count = sighting.got
        report.list_ms = round((listed - began) * 1000) + sighting.list_ms
        for key, job in sighting.jobs.items():
            report.regions.setdefault(key.project, job.location)
        return Sight(planned, report)

    def _jobs_since_firing(self, listing: Listing) -> dict[str, datetime]:
        """The jobs of projects whose windows were fired a moment ago, since a load's trace may be gone already."""
        since: dict[str, datetime] = {}
        for window in unseen(listing, {}, listing.now):
            fired = window.sentinel.fired if window.sentinel and window.sentinel.fired else listing.now
            since[window.project] = min(fired, since.get(window.project, fired))
        recent: dict[str, datetime] = {}
        for project, fired in since.items():
            try:
                recent |= self.board.recent(project, fired - MIN_AGE)
            except REFUSED as error:
                log.warning("Windows of project %r count as active, its jobs cannot be listed: %s", project, error)
        return recent

    def dispatch(self, shares: Iterable[Share]) -> Report:
        """Move the traces and fire the windows of shares, each exactly in the generation that was planned.

        An event that is gone, or that has become another generation, was done by someone else: it counts as ignored.
        Events that were planned under a limit, but too long ago, are left: what runs has to be counted anew.

        :param shares: from :meth:`look`'s plan, here or in another process.
        """
        report = Report(cycles=1)
        if self._refused != 403:  # the service was busy, which passes
            self._refused = 0
        work: list[tuple[_Act, Sequence[Event]]] = []
        for share in shares:
            act = self._fire if share.lane is Lane.WINDOWS else self._move
            events = share.events
            if share.limit and self.store.now() - share.planned > SHARE_LIFE:
                log.warning("A share of %d events is too old to be within its limit: they wait", len(events))
                self._note(report, [_Done(event, Outcome.PENDING) for event in events])
                continue
            while act == self._move and events and not self._may_delete and not self._refused:
                # Until a delete was seen to work, one at a time: where it is refused, every copy is delivered in vain.
                self._note(report, self._unless_over(act, events[:1]))
                events = events[1:]
            work += [(act, chunk) for chunk in _chunks(events)]
        for done in self._threads.map(lambda each: self._unless_over(*each), work):
            self._note(report, done)
        if self._refused:
            why = "the account needs storage.objects.delete, and no retention policy or hold may stand against it"
            report.error(
                f"a delete in {self.config.async_task_url!r} was answered with {self._refused}, so no more is moved "
                f"from there{f': {why}' if self._refused == 403 else ' in this cycle'}"
            )
        return report

    def tidy(self, tidy: Tidy) -> Report:
        """Set aside what must not be dispatched, and delete windows and sentinels that were kept long enough.

        :param tidy: from :meth:`look`'s plan, here or in another process.
        """
        report = Report(cycles=1)
        aside = {Event(each.name, each.generation, each.created): each.reason for each in tidy.quarantines}
        for events in _chunks(list(aside)):
            for one in self._unless_over(self._set_aside, events):
                url, reason = self.store.task_url(one.event.name), aside[one.event]
                report.outcomes[one.outcome] += 1
                if one.error:
                    report.error(one.error)
                elif one.outcome is Outcome.QUARANTINED:
                    report.quarantined[url] = reason
                    log.warning("Set aside under %r: %r, %s", self.config.error_url, url, reason)
        # Windows come before sentinels: a sentinel outlives its window.
        for stale in _chunks(tidy.stale):
            for (name, _), result in zip(stale, self.store.delete(stale), strict=True):
                if not result.ok and not result.doubtful:
                    report.error(f"{self._url(name)} was fired and kept, but could not be deleted: {result}")
        return report

    def write_performance(self, report: Report) -> None:
        """Write ``performance.json``, from which BqTail's balancer takes how busy each project is."""
        url = f"{self.config.journal_url.rstrip('/')}/performance.json"
        try:
            self.store.write_json(url, report.performance())
        except _STORAGE_ERRORS as error:
            report.error(f"{url!r} cannot be written, so BqTail may send loads to a busy project: {_said(error)}")

    def _unless_over(self, act: _Act, events: Sequence[Event]) -> list[_Done]:
        if not self._go_on() or time.monotonic() > self._until or (act == self._move and self._refused):
            return [_Done(event, Outcome.PENDING) for event in events]
        try:
            return act(events)
        except Exception as error:
            log.exception("%d events could not be dispatched", len(events))
            return [_Done(event, Outcome.ERROR, error=f"{self._url(event.name)}: {_said(error)}") for event in events]

    def _move(self, events: Sequence[Event]) -> list[_Done]:
        return self._carry_out([(event, target_of(event, Lane.JOBS, self.config)) for event in events], self._delete)

    def _set_aside(self, events: Sequence[Event]) -> list[_Done]:
        # The target is a function of the object alone, so that a second try finds the first.
        moves = [(each, f"{each.created.strftime('%Y-%m-%d')}/{each.name}.{each.generation}") for each in events]
        done = self._carry_out(moves, self._delete, self.config.error_url)
        return [replace(one, outcome=Outcome.QUARANTINED) if one.outcome is Outcome.DISPATCHED else one for one in done]

    def _carry_out(self, moves: Sequence[tuple[Event, str]], finish: _Finish, to: str | None = None) -> list[_Done]:
        """Copy each event to its target, finish exactly what is proven to be copied, and look into what was refused.

        What was copied but could not be finished is kept in mind, and only finished when it comes again.

        :param finish: takes events that were copied and the generations of their copies.
        """
        new = [(event, target) for event, target in moves if event.key not in self._unfinished]
        copied = [(event, self._unfinished[event.key]) for event, _ in moves if event.key in self._unfinished]
        refused: list[tuple[Event, str, Result]] = []
        results = self.store.copy([(event.name, event.generation, target) for event, target in new], to)
        for (event, target), result in zip(new, results, strict=True):
            if result.ok:
                copied.append((event, result.generation))
            else:
                refused.append((event, target, result))
        # What is copied is finished first: looking into the rest takes time, in which it could be delivered twice.
        done = self._finished(copied, finish)
        looked = [self._look_into(event, target, result, to) for event, target, result in refused]
        done += [one for one in looked if one.outcome is not Outcome.DISPATCHED]
        done += self._finished(
            [(one.event, one.generation) for one in looked if one.outcome is Outcome.DISPATCHED], finish
        )
        by_key = {one.event.key: one for one in done}
        return [by_key[event.key] for event, _ in moves]

    def _finished(self, copied: Sequence[tuple[Event, int]], finish: _Finish) -> list[_Done]:
        self._unfinished.update({event.key: generation for event, generation in copied})
        done = finish(copied)
        for one in done:
            if not one.error:
                self._unfinished.pop(one.event.key, None)
        return done

    def _delete(self, copied: Sequence[tuple[Event, int]]) -> list[_Done]:
        done: list[_Done] = []
        results = self.store.delete([(event.name, event.generation) for event, _ in copied])
        for (event, generation), result in zip(copied, results, strict=True):
            # Gone, or written again meanwhile, which is another trace: what was copied is no longer there either way.
            if result.ok or result.doubtful:
                self._may_delete = True
                done.append(_Done(event, Outcome.DISPATCHED, generation))
            else:
                self._refused = self._refused or result.status or 503
                said = f"{self._url(event.name)} was copied but not deleted, so it may be delivered again: {result}"
                done.append(_Done(event, Outcome.ERROR, error=said))
        return done

    def _look_into(self, event: Event, target: str, result: Result, to: str | None) -> _Done:  # noqa: PLR0911  (one per case)
        """Find out why a copy was refused: by what lies at both ends now, never by the status alone."""
        said = f"{self._url(event.name)} could not be copied to {target!r}, so it waits: {result}"
        if not result.doubtful:
            return _Done(event, Outcome.ERROR, error=said)
        try:
            source = self.store.look(event.name)
            there = self.store.look_at_target(target, to)
        except _STORAGE_ERRORS as error:
            return _Done(event, Outcome.ERROR, error=f"{said}; and it cannot be looked into: {_said(error)}")
        if source is None or source.generation != event.generation:
            return _Done(event, Outcome.IGNORED)
        if there is None and result.status == 412:
            return _Done(event, Outcome.PENDING)  # what lay there has been consumed meanwhile
        if there is None:
            return _Done(event, Outcome.ERROR, error=said)
        if source.same_content(there):
            return _Done(event, Outcome.DISPATCHED, there.generation)
        other = other_target(target, event.generation)
        if target == other:
            return _Done(event, Outcome.ERROR, error=said)
        # Another trace of the same name lies there, not consumed yet: this one goes out beside it.
        (again,) = self.store.copy([(event.name, event.generation, other)], to)
        if again.ok:
            return _Done(event, Outcome.DISPATCHED, again.generation)
        return self._look_into(event, other, again, to)

    def _fire(self, events: Sequence[Event]) -> list[_Done]:
        """Fire windows: claim each by its sentinel, copy it, and mark the sentinel as fired once that is proven."""
        done: dict[tuple[str, int], _Done] = {}
        claims: dict[tuple[str, int], Sentinel] = {}
        began, now, owner = time.monotonic(), self.store.now(), uuid.uuid4().hex
        stamps: list[Stamp] = [
            (
                each.name,
                each.generation,
                WindowName.parse(each.name).sentinel,
                0,
                Sentinel.claim(each.generation, owner, now),
            )
            for each in events
        ]
        for event, stamp, result in zip(events, stamps, self.store.stamp(stamps), strict=True):
            claim = self._claimed(event, stamp, result, now)
            if isinstance(claim, _Done):
                done[event.key] = claim
            elif time.monotonic() - began > CLAIM_TIMEOUT.total_seconds() / 3:
                said = f"{self._url(event.name)} took too long to claim, so it is taken up again later"
                done[event.key] = _Done(event, Outcome.ERROR, error=said)
            else:
                claims[event.key] = claim
        mine = [(each, target_of(each, Lane.WINDOWS, self.config)) for each in events if each.key in claims]
        fired = self._carry_out(mine, lambda copied: self._mark(copied, claims, now))
        done.update((one.event.key, one) for one in fired)
        return [done[event.key] for event in events]

    def _mark(
        self, copied: Sequence[tuple[Event, int]], claims: Mapping[tuple[str, int], Sentinel], now: datetime
    ) -> list[_Done]:
        """Write into the sentinels that, and when, their windows were fired."""
        stamps: list[Stamp] = []
        for event, generation in copied:
            claim = claims[event.key]
            fire = claim.fire(generation, now)
            stamps.append((event.name, event.generation, claim.object.name, claim.object.generation, fire))
        done: list[_Done] = []
        for (event, generation), result in zip(copied, self.store.stamp(stamps), strict=True):
            if result.ok or (result.doubtful and self._is_marked(event)):
                done.append(_Done(event, Outcome.DISPATCHED, generation))
            else:
                said = f"{self._url(event.name)} was fired, but its sentinel could not say so: {result}"
                done.append(_Done(event, Outcome.ERROR, error=said))
        return done

    def _claimed(self, event: Event, stamp: Stamp, result: Result, now: datetime) -> Sentinel | _Done:
        """The sentinel by which a window is ours to fire, or what became of the window instead."""
        name, generation, target, replaces, metadata = stamp
        if result.ok:
            return _stamped(event, result.generation, metadata)
        said = f"{self._url(name)} could not be claimed for firing: {result}"
        if not result.doubtful:
            return _Done(event, Outcome.ERROR, error=said)
        try:
            there = self.store.look(target)
        except _STORAGE_ERRORS as error:
            return _Done(event, Outcome.ERROR, error=f"{said}; and it cannot be looked into: {_said(error)}")
        sentinel = None if there is None else Sentinel.of(there)
        if sentinel is not None and sentinel.owner == metadata["bqdispatch-owner"]:
            return sentinel  # one's own under a 412 is the answer to a first try that was lost
        if sentinel is None or sentinel.fired is not None or now - sentinel.claimed < CLAIM_TIMEOUT or replaces:
            return _Done(event, Outcome.IGNORED)
        log.info("%r was claimed at %s and not fired: taking it up again", self._url(name), sentinel.claimed)
        take_over = (name, generation, target, sentinel.object.generation, metadata)
        (again,) = self.store.stamp([take_over])
        return self._claimed(event, take_over, again, now)

    def _is_marked(self, event: Event) -> bool:
        """Whether the answer that a window was marked has been lost."""
        try:
            there = self.store.look(WindowName.parse(event.name).sentinel)
        except _STORAGE_ERRORS:
            return False
        sentinel = None if there is None else Sentinel.of(there)
        return sentinel is not None and sentinel.window == event.generation and sentinel.fired is not None

    def _url(self, name: str) -> str:
        """An object of the task folder for a message: names are untrusted text."""
        return repr(self.store.task_url(name))

    def _note(self, report: Report, done: Iterable[_Done]) -> None:
        for one in done:
            report.outcomes[one.outcome] += 1
            if one.error:
                report.error(one.error)
                log.warning("%s", one.error)
            if one.outcome is Outcome.DISPATCHED:
                self._note_dispatched(report, one.event)

    def _note_dispatched(self, report: Report, event: Event) -> None:
        url, configured = self.store.task_url(event.name), self.config.project_id or ""
        if event.name.endswith(".win"):
            window = WindowName.parse(event.name)
            report.batched[url] = window.end.strftime("%Y-%m-%dT%H:%M:%SZ")
            project, counter = window.dest_project or configured, BATCH_JOBS
        else:
            trace = TraceName.parse(event.name)
            project, counter = trace.project or configured, counter_of(trace.action)
            report.jobs[url] = {
                "Project": project,
                "Region": trace.region or event.location,
                "ID": trace.job_id,
                "URL": url,
                "Status": "DONE",
            }
        report.count(project, "Dispatched", counter)
        log.debug("Dispatched %r", url)


@dataclass(frozen=True)
class Sight:
    """A plan, and the report of what was seen while it was made."""

    plan: Plan
    report: Report


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of one event: exactly one outcome."""

    event: Event
    outcome: Outcome
    generation: int = 0
    error: str = ""


_Act = Callable[[Sequence[Event]], list[_Done]]
_Finish = Callable[[Sequence[tuple[Event, int]]], list[_Done]]
_STORAGE_ERRORS = (GoogleAPIError, GoogleAuthError, requests.RequestException)


def default_storage_client(config: DispatchConfig) -> Client:
    """A client with the environment's credentials, or for the stand-in that ``STORAGE_EMULATOR_HOST`` names."""
    return Client(project=config.project_id) if config.project_id else Client()


def default_session() -> requests.Session:
    """A session with the environment's credentials; a plain one when ``BIGQUERY_EMULATOR_HOST`` names a stand-in."""
    if os.environ.get("BIGQUERY_EMULATOR_HOST"):
        return requests.Session()
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/bigquery.readonly"])
    session: requests.Session = AuthorizedSession(credentials)
    return session


def _widen(session: requests.Session) -> None:
    """Give a session as many connections as there are threads; ``requests`` keeps ten and throws the others away."""
    for scheme in ("https://", "http://"):
        adapter = session.adapters.get(scheme)
        if type(adapter) is requests.adapters.HTTPAdapter and getattr(adapter, "_pool_maxsize", 0) < 2 * THREADS:
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=2 * THREADS))


def _stamped(event: Event, generation: int, metadata: Mapping[str, str]) -> Sentinel:
    name = WindowName.parse(event.name).sentinel
    return Sentinel.of(StoredObject(name, generation, event.created, metadata=metadata))


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _log_cycle(report: Report) -> None:
    if report.started is not None:
        log.info("Cycle of %d ms: %d listed: %s", report.time_taken_ms, report.listed, report.in_words())
