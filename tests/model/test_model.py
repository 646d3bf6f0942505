"""The models of delivery hold in all of their states, and do not where a guard is taken out."""

import os

import pytest
from automaton import Automaton
from completed import Completed
from kernel import explore
from limits import Limits
from traces import IDLE, Traces
from windows import Windows

ALL = bool(os.environ.get("BQDISPATCH_MODEL"))
"""Whether the explorations are made that take minutes: with BQDISPATCH_MODEL=all."""

SMALL = {"fails": False, "drops": False}
TRACES = {
    "once": {"contents": "a"},
    "two deaths": {"contents": "a", "deaths": 2},
    "nothing kept": {"contents": "a", "keeps": False},
    "nothing kept, quarantine": {"contents": "a", "keeps": False, "on_doubt": "quarantine"},
    "denied calls": {"contents": "a", "denials": 2},
    "denied calls, nothing kept": {"contents": "a", "denials": 1, "keeps": False, "on_doubt": "quarantine"},
}
MORE_TRACES = {
    "two lost answers": {"contents": "a", "losses": 2},
    "twice the same": {"contents": "aa"},
    "twice, differing": {"contents": "ab"},
    "twice the same, a denied call": {"contents": "aa", "denials": 1},
    "two deaths and lost answers": {"contents": "a", "deaths": 2, "losses": 2},
}
WINDOWS = {
    "one folder, one event, two dispatchers": {"files": "A", "fails": False},
    "one folder, a late event": {"files": "AA", "dispatchers": 1},
    "one folder, lost answer": {"files": "AA", "dispatchers": 1, "losses": 1, "deaths": 0, "fails": False},
    "one folder, nothing kept": {"files": "AA", "dispatchers": 1, "keeps": False, "fails": False},
    "one folder, quarantine": {
        "files": "AA",
        "dispatchers": 1,
        "keeps": False,
        "on_doubt": "quarantine",
        "fails": False,
    },
    "files deleted after their load": {"files": "AA", "dispatchers": 1, "deletes": True, "fails": False},
    "an event that comes again": {"files": "A", "dispatchers": 1, "repeats": 1, "fails": False},
    "eight days later": {"files": "AA", "dispatchers": 1, "cleans": True, "fails": False},
    "denied calls": {"files": "AA", "dispatchers": 1, "denials": 1, "fails": False},
    "denied calls, nothing kept": {
        "files": "A",
        "dispatchers": 1,
        "losses": 1,
        "denials": 1,
        "deaths": 0,
        "keeps": False,
        "on_doubt": "quarantine",
        "fails": False,
    },
    "many folders, denied calls": {
        "files": "AB",
        "many": True,
        "dispatchers": 1,
        "deaths": 0,
        "denials": 1,
        **SMALL,
    },
    "many folders, denied calls, two dispatchers": {"files": "A", "many": True, "deaths": 0, "denials": 2, **SMALL},
    "a 429 for a window": {"files": "AA", "dispatchers": 1, "world": ["busy"], "fails": False},
    "restarts by another event ID": {"files": "AA", "dispatchers": 1, "deaths": 0, "world": ["restarts"]},
    "many folders, one event": {"files": "A", "many": True, "dispatchers": 1},
    "many folders, a late new one": {"files": "AB", "many": True, "dispatchers": 1, "deaths": 0, **SMALL},
    "many folders, late known and dropped": {
        "files": "AA",
        "many": True,
        "dispatchers": 1,
        "deaths": 0,
        "fails": False,
    },
}
MORE_WINDOWS = {
    "one folder, one event, failing": {"files": "A"},
    "one folder, a late event, two dispatchers": {"files": "AA", **SMALL},
    "many folders, one event, two dispatchers": {"files": "A", "many": True, **SMALL},
    "many folders, a late new one, a death": {"files": "AB", "many": True, "dispatchers": 1, "fails": False},
    "many folders, late known and new": {"files": "AAB", "many": True, "dispatchers": 1, "deaths": 0, **SMALL},
    "three events": {"files": "AAA", "dispatchers": 1, "deaths": 0, "fails": False},
}
LIMITS = {"two windows": {"windows": 2}}
MORE_LIMITS = {
    "two windows, two deaths": {"windows": 2, "deaths": 2},
    "three windows": {"windows": 3, "ages": False},
    "lowered": {"windows": 2, "limit": 2, "lowered": 1, "deaths": 2, "ages": False},
}


def named(*tables):
    return [pytest.param(settings, id=name) for table in tables for name, settings in table.items()]


def holds(model):
    explored = explore(model)
    print(f"{explored.states:,} states, {explored.settled} of them settled")
    assert explored.found is None, str(explored.found)
    assert explored.states > 10
    assert explored.settled


def finds(model):
    explored = explore(model)
    print(f"found after {explored.states:,} states: {explored.found}")
    assert explored.found is not None
    return explored.found


@pytest.mark.parametrize("settings", named(TRACES, MORE_TRACES if ALL else {}))
def test_no_trace_is_lost_doubled_or_stuck(settings):
    holds(Traces(**settings))


@pytest.mark.parametrize(
    ("guard", "contents"),
    [
        ("source", "a"),
        ("target", "ab"),
        ("fence", "a"),
        ("intent", "a"),
        ("look after", "a"),
        ("versions", "a"),
        ("younger", "aa"),
        ("order", "a"),
        ("generation", "aa"),
        ("proof", "ab"),
        ("denied delete", "a"),
        ("denied fence", "a"),
    ],
)
def test_each_guard_of_traces_is_needed(guard, contents):
    denials = int(guard.startswith("denied"))
    assert "trace" in finds(Traces(contents, denials=denials, without=[guard])).why


@pytest.mark.parametrize("settings", named(WINDOWS, MORE_WINDOWS if ALL else {}))
def test_no_window_and_no_file_is_lost_doubled_or_stuck(settings):
    holds(Windows(**settings))


ONE, BACK = {"files": "A"}, {"files": "AA", "dispatchers": 1}
MANY, ALONE = {"files": "AB", "many": True, "dispatchers": 1, **SMALL}, {"files": "A", "many": True}
GUARDS = {
    "source": ONE,
    "fence": ONE,
    "versions": ONE,
    "claim": ONE,
    "lost": {**ONE, "dispatchers": 1, "losses": 1},
    "fired first": {**ONE, "dispatchers": 1},
    "generation": BACK,
    "ledger after": {"files": "AA", "deaths": 0, "fails": False},
    "evidence": BACK,
    "drop": BACK,
    "flow": BACK,
    "ended": BACK,
    "ten minutes": BACK,
    "unfired": MANY,
    "restarts seen": {**BACK, "world": ["restarts"]},
    "stale": MANY,
    "locations last": MANY,
    "window after claim": {**ALONE, "dispatchers": 1},
    "intent": {**ALONE, "dispatchers": 1},
    "own intent": {**ALONE, **SMALL},
    "left": {**ALONE, **SMALL},
    "fired ends": {**ALONE, "dispatchers": 1},
    "clean": {**ONE, "dispatchers": 1, "cleans": True},
    "denied stale": {**MANY, "deaths": 0, "denials": 1},
    "denied name": {**BACK, "deaths": 0, "denials": 1},
}


@pytest.mark.parametrize(("guard", "settings"), GUARDS.items())
def test_each_guard_of_windows_is_needed(guard, settings):
    finds(Windows(without=[guard], **settings))


@pytest.mark.parametrize(
    ("world", "settings", "why"),
    [
        ("again", MANY, "a file was loaded twice"),
        ("swallowed", {**MANY, "deaths": 0}, "nothing leads to a settled state from here"),
    ],
)
def test_what_the_world_does_no_dispatcher_can_help(world, settings, why):
    assert finds(Windows(world=[world], **settings)).why == why


@pytest.mark.parametrize("settings", named(LIMITS, MORE_LIMITS if ALL else {}))
def test_no_limit_is_passed_and_none_waits_for_ever(settings):
    holds(Limits(**settings))


@pytest.mark.parametrize("guard", ["look again", "younger", "count again", "unclaimed", "open", "listed"])
def test_each_guard_of_limits_is_needed(guard):
    finds(Limits(deaths=2, without=[guard]))


def test_a_dispatcher_that_is_taken_for_dead_and_is_not_can_pass_a_limit():
    assert "loads at once" in finds(Limits(stopped=True)).why


def test_completed_intents_cast_no_doubt_and_do_not_add_up():
    holds(Completed())


def test_a_note_that_outlives_its_intent_is_needed():
    assert finds(Completed(without=["order"])).why == "a completed intent casts doubt"


@pytest.fixture(scope="module")
def of_traces():
    return Automaton(explore(Traces("a")).automata, IDLE, {"write intent", "fence", "copy", "list versions", "delete"})


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [("write intent", "ok"), ("copy", "ok"), ("delete", "ok")],
        [("write intent", "ok"), ("copy", "lost"), ("fence", "ok"), ("list versions", "found"), ("delete", "ok")],
        [("write intent", "ok"), ("fence", "ok"), ("list versions", "?"), ("copy", "ok"), ("delete", "refused")],
        [("write intent", "ok"), ("copy", "ok"), ("delete", "lost"), ("delete", "refused")],
        [("write intent", "ok"), ("copy", "refused"), ("write intent", "ok"), ("copy", "ok")],
    ],
)
def test_what_a_dispatcher_does_is_in_the_model(of_traces, calls):
    assert of_traces.accepts(calls)


@pytest.mark.parametrize(
    ("calls", "first"),
    [
        ([("copy", "ok")], 0),
        ([("write intent", "ok"), ("delete", "ok")], 1),
        ([("write intent", "ok"), ("copy", "lost"), ("copy", "ok")], 2),
        ([("write intent", "ok"), ("copy", "lost"), ("fence", "ok"), ("copy", "ok")], 3),
        ([("write intent", "ok"), ("copy", "ok"), ("delete", "ok"), ("delete", "ok")], 3),
    ],
)
def test_what_no_dispatcher_does_is_not_in_the_model(of_traces, calls, first):
    assert of_traces.first_unknown(calls) == first
