"""Find the loads of announced firings: by their traces, or among the jobs that BigQuery lists."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from bqdispatch_provider.core.events import Load
from bqdispatch_provider.core.model import JobKey, Key
from bqdispatch_provider.core.traces import MIN_AGE
from bqdispatch_provider.core.windows import (
    LOAD_IS_LATE,
    MAX_FUNCTION_RUNTIME,
    OpenFiring,
    unlisted_jobs,
    visible_loads,
)
from bqdispatch_provider.delivery.evidence import Evidence
from bqdispatch_provider.delivery.firings_found import FiringsFound
from bqdispatch_provider.gcp.jobs import JobBoard
from bqdispatch_provider.names import WindowName, as_job_id

LIST_INTERVAL_S = 30.0
"""Seconds between two lists of jobs if no limit needs them."""


class VisibleLoads:
    """Finds the loads of the firings of one task folder.

    :param board: lists jobs.
    :param evidence: what became of fired windows.
    """

    def __init__(self, board: JobBoard, evidence: Evidence) -> None:
        self._board = board
        self._evidence = evidence
        self._listed_at = -LIST_INTERVAL_S
        self._sought: set[Key] = set()
        """Firings that BqTail has not consumed for long, and whose loads were looked for once."""

    def find(self, announced: Mapping[Key, OpenFiring], jobs: Collection[JobKey], found: FiringsFound) -> set[Key]:
        """Return the firings whose load is visible.

        :param announced: the firings, by their keys.
        :param jobs: jobs that BigQuery has shown to exist: a trace proves no job without one of them.
        :param found: what the look has found so far; what the lists of jobs tell is added.
        """
        loads = self._loads(announced, found)
        event_ids = {as_job_id(load.event_id) for load in loads.values()}
        traces = [trace for trace in found.listing.traces if trace.job in jobs] if announced else []
        seen = visible_loads(traces, (), event_ids)
        unseen = {key: load for key, load in loads.items() if _load_id(key, load) not in seen}
        if self._must_list(unseen, announced, found):
            recent = self._recent_jobs(unseen, announced, found)
            seen |= visible_loads((), recent, event_ids)
            unlisted = visible_loads((), unlisted_jobs(recent, found.listing), event_ids)
            found.unlisted = {key for key, load in unseen.items() if _load_id(key, load) in unlisted}
        return {key for key, load in loads.items() if _load_id(key, load) in seen}

    def _must_list(self, unseen: Mapping[Key, Load], announced: Mapping[Key, OpenFiring], found: FiringsFound) -> bool:
        """Return whether the jobs must be listed to find loads that no trace shows."""
        # Before a claim is taken over, its load is looked for: that would prove that the window was fired.
        if found.limited or any(map(found.may_be_taken_over, unseen)):
            return bool(unseen)
        late = any(found.listing.now - announced[key].since > LOAD_IS_LATE for key in unseen)
        return late and time.monotonic() - self._listed_at >= LIST_INTERVAL_S

    def _recent_jobs(
        self, unseen: Mapping[Key, Load], announced: Mapping[Key, OpenFiring], found: FiringsFound
    ) -> dict[str, datetime | None]:
        """List the jobs among which the loads are that no trace shows, by ID with the creation of the active ones."""
        self._listed_at = time.monotonic()
        # What BqTail never consumes has no load. It may lie there for days, in which there are ever more jobs.
        old = found.late(unseen, MAX_FUNCTION_RUNTIME)
        stuck = found.unconsumed.keys.intersection(old) if old else set()
        begun: dict[Key, datetime] = {}
        for key in unseen:
            entry = found.entry(key)
            begun[key] = min(announced[key].since, entry.claimed if entry else found.listing.now)
        recent, errors, unproven = self._board.recent(_since(begun, unseen, unseen.keys() - stuck))
        if unsought := stuck - self._sought:  # unless BqTail has consumed it, and could not delete it
            fired = (entry.fired for key in unsought if (entry := found.entry(key)) and entry.fired)
            until = max(fired) + MAX_FUNCTION_RUNTIME
            of_stuck, _, not_sought = self._board.recent(_since(begun, unseen, unsought), until)
            recent |= of_stuck
            self._sought |= {key for key in unsought if unseen[key].project not in not_sought}
        found.errors |= errors
        for key, load in unseen.items():
            if load.project in unproven and found.may_be_taken_over(key):
                found.unproven[key[0]] = f"its load cannot be looked for: {unproven[load.project]}"
        return recent

    def _loads(self, announced: Mapping[Key, OpenFiring], found: FiringsFound) -> dict[Key, Load]:
        """Return where the loads of firings run, unless that is unknown, or not worth a request yet."""
        known = {key: Load(firing.project, firing.event_id) for key, firing in announced.items() if firing.event_id}
        unread = [
            key
            for key, firing in announced.items()
            if key not in known
            and (found.limited or found.listing.now - firing.since > LOAD_IS_LATE or found.may_be_taken_over(key))
            and found.entry(key)
        ]
        bodies, refused = self._evidence.bodies(unread, claimed=True)
        for key, reason in refused.items():
            if found.may_be_taken_over(key):
                found.unproven[key[0]] = f"its load cannot be looked for: {reason}"
        return {**known, **{key: body.load for key, body in bodies.items() if body.load.event_id}}


def _since(begun: Mapping[Key, datetime], loads: Mapping[Key, Load], keys: Iterable[Key]) -> dict[str, datetime]:
    """Return from when on the jobs of each project have to be listed, to find the loads of some firings."""
    since: dict[str, datetime] = {}
    for key in keys:
        project, at = loads[key].project, begun[key] - MIN_AGE
        since[project] = min(at, since.get(project, at))
    return since


def _load_id(key: Key, load: Load) -> tuple[str, str]:
    """Return destination and event of a load as its job ID has them."""
    return (as_job_id(WindowName.parse(key[0]).dest), as_job_id(load.event_id))
