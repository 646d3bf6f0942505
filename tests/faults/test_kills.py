"""Dispatchers that are killed (SIGKILL) at the boundaries between two requests of a move and of a firing.

The boundaries are found by counting requests: the first one before which, or after which, the process ends itself.
"""

import itertools
import os
import re
import signal

import pytest
from crowd import AFTER_A_CRASH
from world import JOURNAL, SOFT_DELETE, VERSIONING

from bqdispatch_provider.testing.bqtail import TRACE_LABEL

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


@pytest.mark.parametrize(
    ("keeping", "consumed"),
    [(SOFT_DELETE, True), (SOFT_DELETE, False), (VERSIONING, True)],
    ids=["soft delete", "not consumed", "versioning"],
)
def test_killed_at_any_request_it_loses_and_doubles_nothing(crowd, trials, keeping, consumed, request):
    killed, missing, doubled = 0, 0, 0
    every = 1 if KILLS > 200 or (consumed and keeping is SOFT_DELETE) else 3
    for kill_at in itertools.count(1, every):
        for after in (False, True):
            here = crowd(keeping, chain=("load",))
            set_up(here)
            killed_now = here.dispatch(kill_at=kill_at, after=after) is None
            if consumed:
                here.consume()
            here.world.control.advance(AFTER_A_CRASH)
            account = here.finish()
            assert account.ok, (kill_at, after, str(account), here.log())
            assert account.finished == account.events == 4
            killed, missing, doubled = killed + killed_now, missing + account.missing, doubled + account.doubled
        if not killed_now:
            break
    assert killed > 20 // every
    which = "every request" if every == 1 else "every third request"
    trials(f"killed before and after {which} ({request.node.callspec.id})", killed, 4 * killed, missing, doubled)


def test_stopped_at_any_request_and_woken_after_others_went_on_it_doubles_nothing(crowd, trials):
    """Nothing rests on a dispatcher knowing how late it is."""
    stopped, missing, doubled = 0, 0, 0
    for stop_at in itertools.count(1, 1 if KILLS > 200 else 2):
        here = crowd(chain=("load",))
        set_up(here)
        sleeper = here.start(kill_at=stop_at, by=signal.SIGSTOP)
        stopped_now = sleeper.wait_until_stopped()
        here.world.control.advance(AFTER_A_CRASH)
        here.dispatch()
        here.consume()
        if stopped_now:
            sleeper.go_on()
        sleeper.answer()
        account = here.finish()
        assert account.ok, (stop_at, str(account), here.log())
        if not stopped_now:
            break
        stopped, missing, doubled = stopped + 1, missing + account.missing, doubled + account.doubled
    assert stopped > 5
    trials("stopped before every other request, woken when others had gone on", stopped, 4 * stopped, missing, doubled)


def kill_again_and_again(crowd, kills):
    """Kill at random boundaries, each time another dispatcher, while new events come in; gives how many it were."""
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


@pytest.mark.parametrize(
    ("keeping", "kills"), [(SOFT_DELETE, KILLS), (VERSIONING, KILLS // 4)], ids=["soft delete", "versioning"]
)
def test_many_kills_lose_and_double_nothing(crowd, trials, keeping, kills, request):
    here = crowd(keeping, seed=1)
    killed = kill_again_and_again(here, kills)
    account = here.finish()
    trials(
        f"killed at random requests ({request.node.callspec.id})",
        killed,
        account.events,
        account.missing,
        account.doubled,
    )
    assert (killed, account.missing, account.doubled) == (kills, 0, 0), str(account)
    assert account.finished == account.events > kills


def test_four_dispatchers_at_once_that_are_killed_again_and_again_pass_no_limit(crowd, trials):
    """Some loads run in three other projects: one that is named, a transient one, and a balancer's."""
    here = crowd(seed=6, running_ms=(500, 20_000), MaxConcurrentSQL=2, MaxConcurrentJobs=2)
    killed = 0
    while killed < KILLS // 2:
        for _ in range(here.random.randint(0, 6)):
            here.bqtail.put_file(here.random.choice(DESTS))
        here.world.control.advance(here.random.choice([5, 25, AFTER_A_CRASH]))
        kills = [(here.random.randint(1, 60), here.random.random() < 0.5) for _ in range(4)]
        running = [here.start(kill_at=kill_at, after=after) for kill_at, after in kills]
        killed += [each.answer() for each in running].count(None)
        if here.random.random() < 0.7:
            here.consume()
    account = here.finish()
    peaks = here.world.control.peaks(TRACE_LABEL)
    loading = {project for project, each in peaks.items() if each["load"]}
    trials(
        "four at once, killed at random requests, limits of 2", killed, account.events, account.missing, account.doubled
    )
    assert account.ok, str(account)
    assert len(loading) == 4
    assert {project: most for project, each in peaks.items() if (most := max(each["sql"], each["jobs"])) > 2} == {}


def test_where_nothing_deleted_is_kept_many_kills_lose_nothing_and_every_doubled_event_was_doubted(crowd, trials):
    here = crowd({}, seed=2)
    killed = kill_again_and_again(here, KILLS)
    account = here.finish()
    assert account.missing == 0, str(account)
    doubted = [line for line in here.log().splitlines() if "may have been delivered twice" in line]
    again = [re.findall(r"(?:trace|window) (\S+) arrived", each.why) for each in account.problems]
    unexplained = [names for names in again if not any(name in line for name in names for line in doubted)]
    trials(
        f"killed at random requests (nothing kept; {len(doubted)} deliveries were doubted)",
        killed,
        account.events,
        account.missing,
        f"{account.doubled}, not promised: each was doubted",
    )
    assert doubted
    assert not unexplained


def test_where_doubtful_events_are_set_aside_none_is_delivered_twice(crowd, trials):
    here = crowd({}, seed=3, OnDoubt="quarantine")
    killed = kill_again_and_again(here, KILLS // 4)
    account = here.finish()
    aside = [name for name in here.world.names(JOURNAL, "errors/") if not name.endswith(".json")]
    trials(
        "killed at random requests (nothing kept, `OnDoubt` quarantine)",
        killed,
        account.events,
        f"0, and {len(aside)} in quarantine",
        account.doubled,
    )
    assert account.doubled == 0, str(account)
    assert account.missing <= len(aside) * 4
