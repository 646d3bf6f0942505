"""Explain single events: where an event stands, since when, why it waits, and what happens next.

An explanation follows from one observation of the task folder. It is pure, so it says what a plan would do at that
moment, by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.limits import LimitKey, limit_key, limits
from bqdispatch_provider.core.listing import Trace, Window
from bqdispatch_provider.core.model import Key, Limit, Reason, lane_of
from bqdispatch_provider.core.named_events import project_of
from bqdispatch_provider.core.plan_traces import is_active
from bqdispatch_provider.core.planning import plan
from bqdispatch_provider.core.plans import Plan, Quarantine, Snapshot
from bqdispatch_provider.core.targets import split_undecided_name, undecided_name
from bqdispatch_provider.core.traces import LEASE
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.core.windows import OpenFiring, WindowState, state_of
from bqdispatch_provider.names import TraceName, WindowName
from bqdispatch_provider.view.advice import ADVICE, next_step
from bqdispatch_provider.view.overdue import overdue
from bqdispatch_provider.view.suggested_commands import replay_command

MAX_HOLDERS = 5
"""Events that hold slots of a limit, and are named."""

_AFTER_FIRING = "Nothing to do: it is kept for MaxTriggerDelayMs, then deleted. BqTail loads its files."
_AFTER_FIRING_BY_GO = (
    'Nothing to do if its files were loaded. Otherwise delete the sentinel, and the next cycle fires it: "Old '
    'sentinels" in docs/migration.md.'
)


@dataclass(frozen=True)
class Explanation:
    """The place and the state of an event.

    :param name: path below the task folder; of an event that is elsewhere, as it is called there.
    :param url: where it lies.
    :param state: a few words, such as ``waits: job running``.
    :param since: since when it waits (aware); ``None`` if it does not.
    :param details: what is known beside that, one sentence each.
    :param next_step: what happens next, and what somebody has to do.
    """

    name: str
    url: str
    state: str
    since: datetime | None
    details: tuple[str, ...] = ()
    next_step: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return {
            "Name": self.name,
            "URL": self.url,
            "State": self.state,
            "Since": self.since.isoformat(timespec="seconds") if self.since else None,
            "Details": list(self.details),
            "Next": self.next_step,
        }


def matches(wanted: str, name: TraceName | WindowName, path: str, folder_url: str) -> bool:
    """Tell whether an event is one that somebody asked for.

    :param wanted: URL or name of a trace or a window, ID of a job, event ID, or a table (``dataset.table``, with its
        project or without).
    :param name: of the event.
    :param path: of the event below the task folder.
    :param folder_url: of the task folder.
    """
    wanted = wanted.removeprefix(folder_url)
    ids = {name.job_id, name.event_id} if isinstance(name, TraceName) else set()
    table = re.split(r"[:.]", name.dest.partition("$")[0])
    tables = {".".join(table), ".".join(table[-2:])}
    return wanted in {path, path.removesuffix(".json"), name.dest, *ids, *tables} or wanted.replace(":", ".") in tables


def refused_before(plan: Plan, earlier: Mapping[str, Wait]) -> dict[str, Wait]:
    """Return the waits of events that are dispatched next, and that earlier runs could not dispatch.

    A look does not see what is refused when it is tried; the runs have written it down.

    :param plan: of the look.
    :param earlier: waits that earlier runs have counted, by name.
    """
    names = {event.name for events in plan.events.values() for event in events}
    return {name: wait for name, wait in earlier.items() if name in names}


def about_event(name: TraceName | WindowName, project: str) -> str:
    """Say what an event stands for.

    :param name: of the event.
    :param project: of its job.
    """
    if isinstance(name, WindowName):
        return f"It is a batch of files for {name.dest}, and ends {name.end:%Y-%m-%d %H:%M:%S} UTC."
    where = f"location {name.region}" if name.region else "its name does not tell in which location"
    return f"It stands for the {name.action} job {name.job_id} (project {project}, {where})."


def about_job(state: str) -> str:
    """Say how a job stands, in BigQuery's words."""
    return f"BigQuery says: {state}."


def job_of(path: str) -> str:
    """Name the job of a trace as the holder of a slot."""
    return f"the job of {path}"


UNSEEN = "events that are dispatched next, or were dispatched and whose jobs are not seen yet"
"""Holders of slots that a look cannot name."""


def about_slots(
    project: str, limit: Limit, config: DispatchConfig, holders: Sequence[str], number: int, *, others: str = UNSEEN
) -> str:
    """Say which limit is reached, and who holds its slots.

    :param holders: jobs and loads that hold slots, the oldest first; the first ones are named.
    :param number: how many slots are taken.
    :param others: what holds them if ``holders`` is empty.
    """
    named, more = "; ".join(holders[:MAX_HOLDERS]), max(number, len(holders)) - min(len(holders), MAX_HOLDERS)
    if named and more:
        named += f"; and {more} more"
    return f"{limit} of project {project} is {limits(config)[limit]}. Its slots are held by {named or others}."


def explain_wait(wait: Wait, config: DispatchConfig, details: Iterable[str] = ()) -> Explanation:
    """Explain an event that waits.

    :param wait: the event, and the reason.
    :param config: says where the event lies and until when a job is looked for; commands name it.
    :param details: what is known of the event.
    """
    told = [*details, ADVICE[wait.reason].meaning]
    if wait.said:
        told.append(f"In detail: {wait.said.rstrip('.')}.")
    if wait.times > 1:
        told.append(f"It has waited for this reason in {wait.times} cycles.")
    looks_until = wait.reason is Reason.NOT_FOUND and config.max_unknown_job_min
    until = wait.since + timedelta(minutes=config.max_unknown_job_min) if looks_until else None
    since = None if wait.reason is Reason.NOT_DUE else wait.since  # it waits for a time that has not come
    url = config.async_task_url + wait.name
    step = next_step(wait, url, config, until)
    return Explanation(wait.name, url, f"waits: {wait.reason}", since, tuple(told), step)


def _in_hand(name: str, since: datetime, announced: datetime, now: datetime) -> Wait:
    """Return why a trace waits that a dispatcher has announced: it dispatches it now, or was killed."""
    until = announced + LEASE
    said = f"a dispatcher has announced it at {announced:%H:%M:%S} UTC"
    if now <= until:
        said += f"; if it does not dispatch it, another one takes it up after {until:%H:%M:%S} UTC"
        return Wait(name, Reason.IN_HAND, since, said)
    return Wait(name, Reason.IN_DOUBT, since, f"{said}, and has not dispatched it")


@dataclass
class Explainer:
    """Explains the events of one observation.

    :param snapshot: what was observed.
    :param config: the limits.
    :param earlier: waits that earlier runs have counted, by name; none by default.
    :param announced: traces that dispatchers may not be through with, each with when it was announced; none by default.
    :param reached: limits that a dispatcher has found reached a moment ago; none by default.
    """

    snapshot: Snapshot
    config: DispatchConfig
    earlier: dict[str, Wait] = field(default_factory=dict)
    announced: Mapping[Key, datetime] = field(default_factory=dict)
    reached: Container[LimitKey] = ()

    def __post_init__(self) -> None:
        self._now = self.snapshot.listing.now
        self._plan: Plan = plan(self.snapshot, self.config, self._now, all_waits=True)
        self._waits = {wait.name: wait.continued_from(self.earlier.get(wait.name)) for wait in self._plan.waits}
        self._dispatched = {event.key for events in self._plan.events.values() for event in events}
        self._refused = refused_before(self._plan, self.earlier)
        self._waits |= self._refused
        self._overdue = overdue(self._plan, self.earlier, self.config, self.reached)
        self._throttled = {event.key: limit_key(event, self.config) for _, event in self._plan.throttled}
        self._quarantined = {each.key: each for each in self._plan.cleanup.quarantines}

    def find(self, wanted: str) -> list[Explanation]:
        """Explain the events of the task folder that somebody asked for.

        :param wanted: as :func:`matches` takes it.
        """
        unknown = self.snapshot.listing.unknown.get(wanted.removeprefix(self.config.async_task_url))
        strange = [self._explain(unknown.name, unknown.since, ())] if unknown else []
        return [*self._find(wanted), *strange]

    def _find(self, wanted: str) -> Iterator[Explanation]:
        listing = self.snapshot.listing
        for trace in listing.traces:
            if matches(wanted, trace.name, trace.object.name, self.config.async_task_url):
                yield self._explain_trace(trace)
        for window in listing.windows:
            if matches(wanted, window.name, window.object.name, self.config.async_task_url):
                yield self._explain_window(window)
        for firing in self.snapshot.abandoned:
            if matches(wanted, WindowName.parse(firing.window), firing.window, self.config.async_task_url):
                yield self._explain_abandoned(firing)
        for marker in listing.undecided:
            window_name, _ = split_undecided_name(marker.name)
            if wanted.removeprefix(self.config.async_task_url) in (marker.name, window_name):
                yield self._explain(marker.name, marker.created, ())

    def _explain_trace(self, trace: Trace) -> Explanation:
        name, stored = trace.name, trace.object
        key = (stored.name, stored.generation)
        job = self.snapshot.jobs.get(trace.job)
        details = [about_event(name, trace.project)]
        if job is not None:
            ended = f", ended {job.ended:%Y-%m-%d %H:%M:%S} UTC" if job.ended else ""
            details.append(about_job(f"{job.state}{ended}{f', failed: {job.error}' if job.error else ''}"))
        if stored.in_doubt:
            details.append("An earlier delivery could not be excluded, so it was given a new generation.")
        return self._finish(key, stored.created, details)

    def _explain_window(self, window: Window) -> Explanation:
        stored = window.object
        state = state_of(window, self.snapshot.firings.get(stored.name, {}), self._now)
        details = [about_event(window.name, window.project)]
        if window.locations:
            details.append(f"It has {len(window.locations)} data folders.")
        is_proven = window.key in self.snapshot.cleanup.fired and state is not WindowState.COMING_BACK
        is_fired = is_proven or state in (WindowState.FIRED, WindowState.FIRED_BY_GO)
        if is_fired and window.key not in self._quarantined:
            url, step = self.config.async_task_url + stored.name, _AFTER_FIRING
            if state is WindowState.FIRED_BY_GO:
                details.append("The Go dispatcher's sentinel beside it says so, and proves no copy.")
                step = _AFTER_FIRING_BY_GO
            return Explanation(stored.name, url, "was fired", None, tuple(details), step)
        if state is WindowState.CLAIMED:
            details.append("A dispatcher has claimed it in the ledger.")
        return self._finish(window.key, window.name.end, details)

    def _explain_abandoned(self, firing: OpenFiring) -> Explanation:
        name = WindowName.parse(firing.window)
        gone = "The window itself is gone: a dispatcher has claimed it in the ledger, and has not fired it."
        return self._finish(firing.key, name.end, [about_event(name, project_of(name, self.config)), gone])

    def _finish(self, key: tuple[str, int], since: datetime, details: list[str]) -> Explanation:
        url = self.config.async_task_url + key[0]
        if key in self._dispatched and key[0] not in self._refused:
            if key in self.announced:
                wait = _in_hand(key[0], since, self.announced[key], self._now)
                return explain_wait(wait, self.config, details)
            if key[0] in self._overdue:
                return explain_wait(self._overdue[key[0]], self.config, details)
            return Explanation(
                key[0],
                url,
                "is dispatched next",
                since,
                tuple(details),
                "Nothing to do: the next cycle dispatches it.",
            )
        if key in self._quarantined:
            return self._explain_quarantine(self._quarantined[key], url, since, details)
        if key in self._plan.cleanup.stale:
            details += [f"It has returned, and {each.reason}." for each in [self.snapshot.verdicts.get(key)] if each]
            step = "Nothing to do: an earlier firing has loaded its file."
            return Explanation(key[0], url, "is deleted next", since, tuple(details), step)
        if key in self._throttled:
            details += self._holders(self._throttled[key])
        return self._explain(key[0], since, details)

    def _explain_quarantine(
        self, quarantine: Quarantine, url: str, since: datetime, details: Iterable[str]
    ) -> Explanation:
        told = (*details, quarantine.reason)
        if not quarantine.undecided:
            step = f"Look at the reason. Once it is in quarantine, `{replay_command(self.config, url)}` puts it back."
            return Explanation(quarantine.name, url, "is quarantined next", since, told, step)
        folder = self.config.async_task_url
        marker = undecided_name(*quarantine.key, folder)
        wait = Wait(marker, Reason.UNDECIDED, since, quarantine.reason)
        step = f"Once it waits as {marker}, somebody has to decide. {next_step(wait, folder + marker, self.config)}"
        return Explanation(quarantine.name, url, "becomes undecided next", since, told, step)

    def _explain(self, name: str, since: datetime, details: Iterable[str]) -> Explanation:
        wait = self._waits.get(name) or Wait(name, Reason.TOO_YOUNG, since)
        return explain_wait(wait, self.config, details)

    def _holders(self, key: LimitKey) -> list[str]:
        """Say which limit is reached, and who holds its slots."""
        project, limit = key
        traces = [
            trace
            for trace in self.snapshot.listing.traces
            if (trace.project, lane_of(trace.name.action).limit) == key and is_active(trace, self.snapshot, self._now)
        ]
        traces.sort(key=lambda trace: (trace.object.created, trace.object.name))
        firings = [firing.window for firing in self.snapshot.open_firings if (firing.project, Limit.JOBS) == key]
        holders = [*(job_of(trace.object.name) for trace in traces), *(f"the load of {name}" for name in firings)]
        return [about_slots(project, limit, self.config, holders, self._plan.taken[key])]
