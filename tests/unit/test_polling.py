"""The pauses between two looks."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.model import Lane, Outcome
from bqdispatch_provider.core.plans import Plan
from bqdispatch_provider.core.polling import MAX_INTERVAL_S, MIN_INTERVAL_S, AdaptivePolling

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EMPTY = Plan(NOW, {lane: () for lane in Lane}, 0)
RUNNING = replace(EMPTY, listed=1, outcomes={Outcome.RUNNING: 1}, awaited=1)


def pause(plan, quiet, *bounds):
    """Return the interval after looks have shown the same for some seconds."""
    polling = AdaptivePolling(*bounds)
    polling.next_interval(plan, 0)
    return polling.next_interval(plan, quiet)


def test_something_that_has_just_happened_is_followed_by_the_shortest_pause():
    assert pause(EMPTY, 0) == pause(RUNNING, 0) == MIN_INTERVAL_S


def test_an_idle_folder_is_soon_looked_at_as_seldom_as_is_allowed():
    assert pause(EMPTY, 60) == MAX_INTERVAL_S


def test_a_running_job_is_looked_at_more_often_than_an_idle_folder():
    assert pause(RUNNING, 20) == MIN_INTERVAL_S
    assert pause(RUNNING, 20) < pause(EMPTY, 20) < MAX_INTERVAL_S


def test_what_becomes_due_is_looked_at_when_it_is():
    due = replace(EMPTY, due_in=timedelta(seconds=2))
    assert pause(due, 600) == 3
    assert pause(replace(due, due_in=timedelta(hours=2)), 600) == MAX_INTERVAL_S


@given(st.floats(0, 1e6), st.integers(0, 9), st.none() | st.timedeltas())
def test_a_pause_lies_between_its_bounds(quiet, awaited, due_in):
    assert 0.1 <= pause(replace(EMPTY, awaited=awaited, due_in=due_in), quiet, 0.1, 7) <= 7


def test_pauses_grow_while_nothing_happens_and_are_short_once_something_does():
    polling = AdaptivePolling()
    assert polling.next_interval(EMPTY, 1000) == MIN_INTERVAL_S
    assert polling.next_interval(EMPTY, 1015) == pytest.approx(3)
    assert polling.next_interval(EMPTY, 1100) == MAX_INTERVAL_S
    assert polling.next_interval(RUNNING, 1105) == MIN_INTERVAL_S
    assert polling.next_interval(RUNNING, 1145) == pytest.approx(2)


def test_as_long_as_there_is_something_to_dispatch_pauses_are_short():
    polling = AdaptivePolling()
    busy = replace(EMPTY, events={**EMPTY.events, Lane.SQL: (Event("a", 1, NOW),)})
    assert [polling.next_interval(busy, at) for at in (0, 100, 200)] == [MIN_INTERVAL_S] * 3


def test_a_look_that_failed_is_followed_by_the_longest_pause():
    assert AdaptivePolling().next_interval(None, 0) == MAX_INTERVAL_S
