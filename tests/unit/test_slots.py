"""Limits: what takes a slot, and what waits for one."""

from datetime import UTC, datetime

import pytest

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event, Load
from bqdispatch_provider.core.limits import Slots, hold_back, limit_key, limits
from bqdispatch_provider.core.listing import StoredObject, Trace
from bqdispatch_provider.core.model import Lane, Limit
from bqdispatch_provider.core.windows import OpenFiring
from bqdispatch_provider.names import TraceName

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLACES = {"AsyncTaskURL": "gs://ops/tasks", "JournalURL": "gs://ops/journal", "ErrorURL": "gs://ops/errors"}
CONFIG = DispatchConfig.from_dict({**PLACES, "ProjectID": "p", "MaxConcurrentSQL": 1, "MaxConcurrentJobs": 2})
SQL, JOBS = ("p", Limit.SQL), ("p", Limit.JOBS)


def trace(event_id, action="load", project="p"):
    name = TraceName(project, "US", "ds.t", event_id, 1, action)
    return Trace(StoredObject(name.name, 1, NOW), name, project)


def event(event_id, action="load"):
    return Event(trace(event_id, action).object.name, 1, NOW)


def test_queries_have_a_limit_of_their_own_and_windows_share_the_jobs():
    assert [lane.limit for lane in Lane] == [Limit.SQL, Limit.JOBS, Limit.JOBS]
    assert limits(CONFIG) == {Limit.SQL: 1, Limit.JOBS: 2}


@pytest.mark.parametrize(
    ("name", "load", "key"),
    [
        ("proj:q:US/ds.t--1_00001_query--dispatch", None, ("q", Limit.SQL)),
        ("proj:q:US/ds.t--1_00001_copy--dispatch", None, ("q", Limit.JOBS)),
        ("ds.t--1_00001_load--dispatch", None, JOBS),
        ("q:ds.t_7_1767323045.win", None, ("q", Limit.JOBS)),
        ("ds.t_7_1767323045.win", None, JOBS),
        ("q:ds.t_7_1767323045.win", Load("billed"), ("billed", Limit.JOBS)),
    ],
)
def test_an_event_counts_where_its_job_ran_or_its_load_will_run(name, load, key):
    assert limit_key(Event(name, 1, NOW, load=load), CONFIG) == key


def test_active_jobs_moved_traces_and_open_firings_take_slots():
    slots = Slots(CONFIG)
    listed = [trace("1"), trace("2", "query")]
    slots.count_traces(listed)
    slots.count_moved([trace("3").object.name, f"{trace('4', project='q').object.name}.json"], listed)
    slots.count_firings([OpenFiring("ds.t_7_1.win", 1, "p", "4711", False, NOW)])
    assert slots.taken == {SQL: 1, JOBS: 3, ("q", Limit.JOBS): 1}
    assert slots.room() == {SQL: 0, JOBS: -1, ("q", Limit.JOBS): 1}


def test_a_moved_trace_counts_once():
    """Neither beside its next job, nor as long as it lies in the task folder, nor where its name says nothing."""
    slots = Slots(CONFIG)
    slots.count_traces([trace("1")])
    slots.count_moved([trace("1", "query").object.name, trace("2").object.name, "x"], [trace("2")])
    assert slots.taken == {JOBS: 1}


def test_a_slot_is_taken_once_there_is_one_and_what_is_counted_takes_no_other():
    slots = Slots(CONFIG)
    assert [slots.take(JOBS) for _ in range(3)] == [True, True, False]
    assert slots.take(JOBS, counted=True)
    slots.fill(JOBS)
    assert not slots.take(JOBS, counted=True)
    assert slots.take(SQL)


def test_without_a_limit_everything_fits():
    slots = Slots(DispatchConfig.from_dict({**PLACES, "ProjectID": "p"}))
    assert all(slots.take(JOBS) for _ in range(9))
    assert slots.room() == {}


def test_the_last_events_wait_for_what_others_have_begun():
    others = Slots(CONFIG)
    others.count_moved([trace("8").object.name, trace("9", "query").object.name])
    events = [event("1"), event("2", "query"), event("3")]
    assert hold_back(events, others, {JOBS: 0, SQL: 1}, CONFIG) == (events[:2], events[2:])
    assert hold_back(events, others, {JOBS: 1, SQL: 1}, CONFIG) == (events, [])
    assert hold_back(events, others, {}, CONFIG) == (events, [])
