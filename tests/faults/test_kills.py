"""Dispatchers that are killed (SIGKILL) at the boundaries between two requests of a move and of a firing.

The boundaries are found by counting requests: the first one before which, or after which, the process ends itself.
"""

import os
import re

import pytest
from conftest import AFTER_A_CRASH
from world import SOFT_DELETE, VERSIONING

KILLS = int(os.environ.get("BQDISPATCH_KILLS", "200"))
DESTS = ["ds.a", "q:ds.b$20260101", "ds.c--d", "example.com:legacy.ds.e"]


def set_up(crowd):
    """Two due windows and two traces, older than a moment."""
    for dest in DESTS[:2]:
        crowd.bqtail.put_file(dest)
    crowd.world.control.advance(40)
    crowd.dispatch()
    crowd.consume()
    for dest in DESTS[2:]:
        crowd.bqtail.put_file(dest)
    crowd.world.control.advance(40)


@pytest.fixture(scope="module")
def boundaries():
    return {}


@pytest.mark.parametrize("consumed", [True, False], ids=["consumed", "not consumed"])
@pytest.mark.parametrize("keeping", [SOFT_DELETE, VERSIONING], ids=["soft delete", "versioning"])
def test_killed_at_any_request_it_loses_and_doubles_nothing(crowd, keeping, consumed):
    here = crowd(keeping)
    set_up(here)
    number = here.dispatch()["requests"]
    assert here.finish().ok
    for kill_at in range(1, number + 1):
        for after in (False, True):
            here = crowd(keeping)
            set_up(here)
            assert here.dispatch(kill_at=kill_at, after=after) is None
            if consumed:
                here.consume()
            here.world.control.advance(AFTER_A_CRASH)
            account = here.finish()
            assert account.ok, (kill_at, after, str(account), here.log())
            assert account.finished == account.events == 4


def kill_again_and_again(crowd, kills=KILLS):
    """Kill at random boundaries, each time another dispatcher, with new events coming in; gives how many it were."""
    killed = 0
    while killed < kills:
        for _ in range(crowd.random.randint(0, 3)):
            crowd.bqtail.put_file(crowd.random.choice(DESTS))
        crowd.world.control.advance(crowd.random.choice([5, 25, AFTER_A_CRASH]))
        answer = crowd.dispatch(kill_at=crowd.random.randint(1, 30), after=crowd.random.random() < 0.5)
        killed += answer is None
        if crowd.random.random() < 0.7:
            crowd.consume()
    return killed


@pytest.mark.parametrize("keeping", [SOFT_DELETE, VERSIONING], ids=["soft delete", "versioning"])
def test_many_kills_lose_and_double_nothing(crowd, keeping):
    here = crowd(keeping, seed=1)
    killed = kill_again_and_again(here)
    account = here.finish()
    assert (killed, account.missing, account.doubled) == (KILLS, 0, 0), str(account)


def test_where_nothing_deleted_is_kept_many_kills_lose_nothing_and_every_doubt_is_named(crowd):
    here = crowd({}, seed=2)
    kill_again_and_again(here)
    account = here.finish()
    assert account.missing == 0, str(account)
    named = re.findall(r"may have been delivered twice", here.log())
    print(f"{account.events} events, {account.doubled} doubled, {len(named)} doubts named")
    for problem in account.problems:
        chains = {chain.event_id for chain in account.chains if problem.file in str(chain)} or {problem.event_id}
        assert any(chain in line for chain in chains for line in here.log().splitlines() if "twice" in line), problem


def test_where_doubtful_events_are_set_aside_none_is_delivered_twice(crowd):
    here = crowd({}, seed=3, OnDoubt="quarantine")
    kill_again_and_again(here, KILLS // 4)
    account = here.finish()
    assert account.doubled == 0, str(account)
