"""Planning: what must hold for every folder, limit and state, whatever the order of the listing."""

import json
import random
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event, EventFilter, Load, Share
from bqdispatch_provider.core.listing import StoredObject, classify
from bqdispatch_provider.core.model import Job, Lane, Outcome
from bqdispatch_provider.core.planning import plan
from bqdispatch_provider.core.plans import Cleanup, Quarantine, Snapshot
from bqdispatch_provider.core.targets import (
    REASON,
    REPLAY,
    REPLAYED,
    SINCE,
    alternative_target,
    is_target,
    parse_quarantine_path,
    quarantine_path,
    target_of,
    undecided_name,
)
from bqdispatch_provider.core.windows import Firing, LateAction, OpenFiring, Verdict
from bqdispatch_provider.names import TraceName, WindowName

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TRACE, WINDOW = "proj:p:US/ds.t--1_00001_load--dispatch", "ds.t_7_1767323045.win"


def config(sql=0, jobs=0, **more):
    return DispatchConfig.from_dict(
        {
            "ProjectID": "p",
            "AsyncTaskURL": "gs://ops/tasks",
            "JournalURL": "gs://ops/journal",
            "ErrorURL": "gs://ops/errors",
            "MaxConcurrentSQL": sql,
            "MaxConcurrentJobs": jobs,
            **more,
        }
    )


def stored(name, age=60.0, generation=1, metadata=None):
    return StoredObject(name, generation, NOW - timedelta(seconds=age), metadata=metadata or {})


def window(dest="ds.t", ended=60.0, age=90.0, generation=1):
    name = WindowName(dest, "7", datetime.fromtimestamp(int(NOW.timestamp() - ended), UTC))
    return name, stored(name.name, age, generation)


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def firing(fired_ago=None, claimed_ago=None, **more):
    claimed = ago(fired_ago + 1 if claimed_ago is None else claimed_ago)
    return Firing(claimed, None if fired_ago is None else ago(fired_ago), **more)


def opened(name, generation=1, project="p", age=20.0, many=False):
    return OpenFiring(name.name, generation, project, "4711", many, ago(age))


def seen(*objects, **more):
    """A snapshot whose windows' loads run in the projects of their destinations, unless it is said where."""
    listing = classify(objects, "p", NOW)
    return Snapshot(listing, **{"loads": {each.key: Load(each.project) for each in listing.windows}, **more})


def planned(*objects, only=None, sql=0, jobs=0, configured=None, **more):
    return plan(seen(*objects, **more), config(sql, jobs, **configured or {}), NOW, EventFilter.from_dict(only))


def names(plan_, lane):
    return [event.name for event in plan_.events[lane]]


def total(plan_):
    events = sum(len(events) for events in plan_.events.values())
    return events + len(plan_.cleanup.quarantines) + sum(plan_.outcomes.values())


def test_an_unfired_window_is_never_deleted_however_old():
    _, old = window(ended=90 * 86400, age=91 * 86400)
    made = planned(old)
    assert names(made, Lane.WINDOWS) == [old.name]
    assert made.cleanup == Cleanup()


@pytest.mark.parametrize(("delay", "keep"), [(None, 120), (30_000, 30), (600_000, 600)])
def test_a_fired_window_is_kept_for_max_trigger_delay_after_its_firing(delay, keep):
    name, late = window(ended=7200, age=7300)
    configured = {} if delay is None else {"MaxTriggerDelayMs": delay}

    def stale(fired_ago):
        made = planned(late, firings={name.name: {1: firing(fired_ago, 7000)}}, configured=configured)
        assert (made.events[Lane.WINDOWS], made.outcomes) == ((), {Outcome.IGNORED: 1})
        return made.cleanup.stale

    assert stale(keep - 1) == ()
    assert stale(keep + 1) == ((late.name, 1),)


def test_a_fired_window_that_lies_beside_names_of_its_folders_goes_at_once():
    """A late event of another folder would find it there, and its file would be lost."""
    name, fired = window()
    made = planned(fired, stored(f"{name.locations}9.loc"), firings={name.name: {1: firing(1)}})
    assert made.cleanup.stale == ((fired.name, 1),)


def test_a_fired_window_that_may_not_be_deleted_stays():
    name, fired = window(ended=7200, age=7300)
    made = planned(replace(fired, protected_by="a hold"), firings={name.name: {1: firing(7000)}})
    assert (made.cleanup, made.outcomes) == (Cleanup(), {Outcome.IGNORED: 1})


def test_a_window_whose_load_proves_its_firing_is_not_fired_though_the_ledger_does_not_say_so():
    name, fired = window()
    ledger = {name.name: {1: firing(claimed_ago=1000)}}
    made = planned(fired, firings=ledger, cleanup=Cleanup(fired=((fired.name, 1),)))
    assert (made.events[Lane.WINDOWS], made.outcomes) == ((), {Outcome.IGNORED: 1})
    assert (made.cleanup.fired, made.cleanup.stale) == (((fired.name, 1),), ())


def returned(verdict, *beside, generation=2, held="", jobs=0, **more):
    """The plan for a window that has returned after its first generation was fired."""
    name, back = window(generation=generation)
    verdicts = {} if verdict is None else {(back.name, generation): verdict}
    ledger = {name.name: {1: firing(400), **more.pop("known", {})}}
    made = planned(replace(back, protected_by=held), *beside, firings=ledger, verdicts=verdicts, jobs=jobs, **more)
    return back, made


@pytest.mark.parametrize("verdict", [None, Verdict(LateAction.WAIT, "a load runs")])
def test_a_returned_window_waits_as_long_as_nobody_can_tell(verdict):
    _, made = returned(verdict)
    assert (made.outcomes, made.cleanup, made.awaited) == ({Outcome.PENDING: 1}, Cleanup(), 1)


def test_a_returned_window_whose_file_was_loaded_is_removed_with_what_names_its_folder():
    name, _ = window()
    stale = (f"{name.locations}9.loc", 5)
    back, made = returned(Verdict(LateAction.DROP, "loaded", (stale,)), stored(stale[0], generation=5))
    assert made.cleanup == Cleanup(stale=((back.name, 2), stale), late=((back.name, 2),))
    assert made.outcomes == {Outcome.IGNORED: 2}


def test_a_returned_window_whose_files_were_not_loaded_is_fired_once_stale_names_are_gone():
    stale = (("x/9.loc", 5),)
    back, made = returned(Verdict(LateAction.FIRE, "nothing was loaded", stale))
    (event,) = made.events[Lane.WINDOWS]
    assert (event.key, event.claimed, event.stale_locations) == ((back.name, 2), False, stale)
    _, made = returned(
        Verdict(LateAction.FIRE, "nothing was loaded"), jobs=1, open_firings=(opened(window("ds.x")[0]),)
    )
    assert made.outcomes == {Outcome.THROTTLED: 1}


def test_a_returned_window_that_cannot_be_decided_on_is_set_aside_in_the_task_folder():
    back, made = returned(Verdict(LateAction.UNDECIDED, "its content says nothing"))
    (quarantine,) = made.cleanup.quarantines
    assert (quarantine.name, quarantine.generation, quarantine.undecided) == (back.name, 2, True)
    assert (quarantine.reason, made.outcomes, made.cleanup.stale) == ("its content says nothing", {}, ())


@pytest.mark.parametrize("late", [LateAction.DROP, LateAction.FIRE, LateAction.UNDECIDED])
def test_a_returned_window_that_may_not_be_deleted_is_an_error_that_names_it(late):
    back, made = returned(Verdict(late, "x"), held="a hold")
    assert (made.outcomes, made.cleanup) == ({Outcome.ERROR: 1}, Cleanup())
    assert repr(back.name) in made.errors[0]


def test_a_window_that_was_put_back_from_quarantine_is_fired_whatever_is_known():
    name, back = window(generation=2)
    back = replace(back, metadata={REPLAYED: "9"})
    ledger = {name.name: {1: firing(400)}}
    assert names(planned(back, firings=ledger), Lane.WINDOWS) == [back.name]
    undecided = {(back.name, 2): Verdict(LateAction.UNDECIDED, "x")}
    assert names(planned(back, firings=ledger, verdicts=undecided), Lane.WINDOWS) == [back.name]
    again = planned(back, firings={name.name: {1: firing(400), 2: firing(4)}})
    assert (again.events[Lane.WINDOWS], again.outcomes) == ((), {Outcome.IGNORED: 1})


def test_a_sentinel_of_the_go_dispatcher_means_fired_and_proves_nothing():
    name, fired = window(ended=90_000, age=90_000)
    made = planned(fired, stored(name.sentinel, 89_990))
    assert made.events[Lane.WINDOWS] == ()
    assert made.cleanup == Cleanup()
    _, twin = window(ended=90_000, age=100)
    (quarantine,) = planned(twin, stored(name.sentinel, 89_990)).cleanup.quarantines
    assert (quarantine.name, quarantine.undecided) == (twin.name, True)
    assert "late twin" in quarantine.reason


def test_a_twin_that_was_put_back_from_quarantine_is_fired_beside_the_go_dispatchers_sentinel():
    name, twin = window()
    made = planned(replace(twin, metadata={REPLAYED: "9"}), stored(name.sentinel, 89_990))
    assert names(made, Lane.WINDOWS) == [twin.name]
    assert (made.cleanup, made.outcomes) == (Cleanup(), {Outcome.IGNORED: 1})


def test_a_sentinel_without_its_window_is_left_alone():
    name, _ = window()
    made = planned(stored(name.sentinel, 10**7))
    assert (made.outcomes, made.cleanup) == ({Outcome.IGNORED: 1}, Cleanup())


def test_a_claimed_window_is_left_to_its_owner_and_taken_up_again_after_a_while():
    name, claimed = window()

    def events(claimed_ago):
        return planned(claimed, firings={name.name: {1: firing(claimed_ago=claimed_ago)}}).events[Lane.WINDOWS]

    assert events(179) == ()
    (event,) = events(181)
    assert (event.key, event.claimed) == ((claimed.name, 1), True)


def test_a_window_of_which_the_ledger_cannot_be_read_is_an_error_that_says_why():
    name, due = window()
    made = planned(due, unreadable_windows={name.name: "the ledger cannot be listed: 403"})
    assert (made.events[Lane.WINDOWS], made.outcomes) == ((), {Outcome.ERROR: 1})
    assert made.errors == (f"window {name.name!r} waits: the ledger cannot be listed: 403",)


def test_a_window_of_many_folders_is_removed_before_it_is_fired():
    name, due = window()
    (event,) = planned(due, stored(f"{name.locations}9.loc")).events[Lane.WINDOWS]
    assert event.many_folders
    assert not planned(due, stored("ds.t_7_1.win/9.loc")).events[Lane.WINDOWS][0].many_folders


def abandoned(*objects, project="p", **more):
    """The plan for a window that somebody claimed, removed and did not fire."""
    name, _ = window(f"{project}:ds.t")
    left = opened(name, age=400, many=True)
    loads = {left.key: Load("q", "4711")}
    ledger = {name.name: {1: firing(claimed_ago=400)}}
    return name, planned(*objects, **{"abandoned": (left,), "loads": loads, "firings": ledger, **more})


def test_a_window_that_was_claimed_and_removed_is_fired_by_its_claim():
    name, made = abandoned(jobs=1)
    (event,) = made.events[Lane.WINDOWS]
    assert (event.key, event.claimed, event.many_folders, event.load) == ((name.name, 1), True, True, Load("q", "4711"))
    assert (made.listed, made.outcomes) == (1, {})
    _, made = abandoned(only={"projects": "p"})
    assert len(made.events[Lane.WINDOWS]) == 1
    _, made = abandoned(only={"projects": "q"})
    assert (made.listed, made.outcomes) == (1, {Outcome.PENDING: 1})


def test_a_window_that_was_claimed_and_removed_waits_where_its_load_cannot_be_counted():
    _, made = abandoned(jobs=1, project_errors={"q": "403"})
    assert (made.events[Lane.WINDOWS], made.outcomes) == ((), {Outcome.ERROR: 1})
    _, made = abandoned(jobs=1, loads={})
    assert (made.events[Lane.WINDOWS], made.outcomes) == ((), {Outcome.PENDING: 1})
    name, made = abandoned(
        jobs=1, loads={}, unreadable_windows={window("p:ds.t")[0].name: "its content cannot be read: 403"}
    )
    assert (made.events[Lane.WINDOWS], made.outcomes) == ((), {Outcome.ERROR: 1})
    assert made.errors == (f"window {name.name!r} waits: its content cannot be read: 403",)


@pytest.mark.parametrize(
    ("verdict", "outcomes"),
    [
        (None, {Outcome.PENDING: 1}),
        (Verdict(LateAction.WAIT, "a load runs"), {Outcome.PENDING: 1}),
        (Verdict(LateAction.DROP, "loaded"), {Outcome.IGNORED: 1}),
        (Verdict(LateAction.FIRE, "nothing was loaded", (("x/9.loc", 5),)), {}),
    ],
)
def test_a_window_that_had_returned_and_was_claimed_and_removed_is_judged_again(verdict, outcomes):
    name, _ = window("p:ds.t")
    ledger = {name.name: {1: firing(claimed_ago=400), 7: firing(4000)}}
    verdicts = {} if verdict is None else {(name.name, 1): verdict}
    _, made = abandoned(firings=ledger, verdicts=verdicts)
    assert (made.listed, made.outcomes) == (1, outcomes)
    assert made.awaited == outcomes.get(Outcome.PENDING, 0), "a load that runs is looked at often"
    stale = [event.stale_locations for event in made.events[Lane.WINDOWS]]
    assert stale == ([] if outcomes else [(("x/9.loc", 5),)])
    assert made.cleanup.fired == (((name.name, 1),) if verdict and verdict.action is LateAction.DROP else ())


def test_a_window_that_was_claimed_and_removed_is_set_aside_by_its_claim_if_nobody_can_decide():
    name, _ = window("p:ds.t")
    ledger = {name.name: {1: firing(claimed_ago=400), 7: firing(4000)}}
    _, made = abandoned(firings=ledger, verdicts={(name.name, 1): Verdict(LateAction.UNDECIDED, "who knows")})
    assert (made.listed, made.outcomes, made.events[Lane.WINDOWS]) == (1, {}, ())
    (aside,) = made.cleanup.quarantines
    assert (aside.key, aside.reason, aside.undecided, aside.claimed) == ((name.name, 1), "who knows", True, True)


def test_what_waits_for_a_decision_is_an_error_of_every_report():
    name, _ = window()
    marker = undecided_name(name.name, 7, "gs://ops/tasks")
    made = planned(stored(marker, metadata={REASON: "nobody knows"}), stored("undecided/strange"))
    assert made.outcomes == {Outcome.IGNORED: 1, Outcome.UNKNOWN: 1}
    (said,) = made.errors
    assert repr(name.name) in said and repr(marker) in said and "nobody knows" in said
    assert "`bqdispatch replay`" in said


def test_a_window_whose_name_was_shortened_waits_for_a_decision_as_well():
    marker = undecided_name(f"ds.{'x' * 1000}_77_1700000000.win", 7, "gs://ops/tasks")
    made = planned(stored(marker))
    assert (made.outcomes, len(made.errors)) == ({Outcome.IGNORED: 1}, 1)


def test_what_was_found_out_is_told_and_what_is_to_be_put_in_order_is_handed_on():
    dropped = Quarantine("w", 3, NOW, "dropped", undecided=True, claimed=True)
    cleanup = Cleanup((dropped,), (("x", 1),), (("y", 2),), ((("z", 3), 0),))
    made = planned(findings=("a folder was missed",), cleanup=cleanup)
    assert (made.errors, made.cleanup, made.listed) == (("a folder was missed",), cleanup, 1)


def test_what_is_older_than_an_intent_that_cannot_be_read_waits():
    old, young = (stored(TRACE.replace("--1_", f"--{age}_"), age=age) for age in (100, 80))
    _, due = window(age=100)
    snapshot = seen(old, young, due, blocks=((ago(90), "it cannot be read"),))
    jobs = {trace.job: Job("US", "DONE") for trace in snapshot.listing.traces}
    made = plan(replace(snapshot, jobs=jobs), config(), NOW)
    assert (names(made, Lane.JOBS), names(made, Lane.WINDOWS)) == ([young.name], [])
    assert (made.outcomes, made.errors) == ({Outcome.ERROR: 2}, ("it cannot be read",))


def test_windows_and_jobs_share_one_limit():
    jobs = {}
    running = [TraceName("p", "US", "ds.t", str(n), 1, "load") for n in range(30)]
    for name in running:
        jobs[next(iter(classify([stored(name.name)], "p", NOW).traces)).job] = Job("US", "RUNNING")
    windows = [window(f"ds.t{n}")[1] for n in range(30)]
    objects = [*(stored(name.name) for name in running), *windows]
    made = plan(replace(seen(*objects), jobs=jobs), config(jobs=10), NOW)
    assert made.events[Lane.WINDOWS] == ()
    assert made.outcomes == {Outcome.RUNNING: 30, Outcome.THROTTLED: 30}


def test_a_firing_whose_load_is_not_seen_takes_a_place_at_the_limit_of_the_loads_project():
    _, due = window()
    elsewhere = opened(window("ds.x")[0], project="q")
    here = opened(window("q:ds.y")[0], project="p")
    assert names(planned(due, open_firings=(elsewhere,), jobs=1), Lane.WINDOWS) == [due.name]
    made = planned(due, open_firings=(here,), jobs=1)
    assert made.outcomes == {Outcome.THROTTLED: 1}
    assert names(planned(due, open_firings=(here,)), Lane.WINDOWS) == [due.name]
    billed = {(due.name, 1): Load("q")}
    assert names(planned(due, open_firings=(here,), loads=billed, jobs=1), Lane.WINDOWS) == [due.name]
    assert planned(due, open_firings=(elsewhere,), loads=billed, jobs=1).outcomes == {Outcome.THROTTLED: 1}


def test_a_window_of_which_it_is_not_known_where_its_load_runs_waits_where_there_is_a_limit():
    _, due = window()
    assert planned(due, loads={}, jobs=5).outcomes == {Outcome.PENDING: 1}
    assert names(planned(due, loads={}), Lane.WINDOWS) == [due.name]


@pytest.mark.parametrize("known", [{}, {1: firing(claimed_ago=400)}])
def test_a_firing_that_is_taken_over_does_not_count_twice(known):
    name, due = window()
    ledger = {name.name: known} if known else {}
    made = planned(due, open_firings=(opened(name, age=400),), firings=ledger, jobs=1)
    assert names(made, Lane.WINDOWS) == [due.name]


def test_a_firing_that_somebody_left_goes_before_older_windows_for_it_may_have_been_delivered():
    """Else both would run, under a limit of one: what was delivered is not called back."""
    name, claimed = window(ended=60)
    _, older = window("ds.older", ended=600)
    ledger = {name.name: {1: firing(claimed_ago=400)}}
    for begun in ((opened(name, age=400),), ()):
        made = planned(claimed, older, open_firings=begun, firings=ledger, jobs=1)
        assert (names(made, Lane.WINDOWS), made.outcomes) == ([claimed.name], {Outcome.THROTTLED: 1})
    running = replace(
        seen(claimed, older, stored(TRACE, age=600), firings=ledger), open_firings=(opened(name, age=400),)
    )
    (trace,) = running.listing.traces
    made = plan(replace(running, jobs={trace.job: Job("US", "RUNNING")}), config(jobs=2), NOW)
    assert (names(made, Lane.WINDOWS), made.outcomes[Outcome.THROTTLED]) == ([claimed.name], 1)


def test_firings_that_were_left_under_a_higher_limit_go_one_after_the_other():
    left = [window(f"ds.t{n}", ended=60 + n) for n in range(3)]
    ledger = {name.name: {1: firing(claimed_ago=400)} for name, _ in left}
    _, fresh = window("ds.fresh", ended=900)
    begun = tuple(opened(name, age=400) for name, _ in left)
    made = planned(fresh, *(each for _, each in left), open_firings=begun, firings=ledger, jobs=1)
    assert (names(made, Lane.WINDOWS), made.outcomes) == ([left[2][1].name], {Outcome.THROTTLED: 3})


def test_a_limit_of_one_lets_one_through():
    both = [window("ds.a")[1], window("ds.b")[1]]
    assert len(planned(*both).events[Lane.WINDOWS]) == 2
    assert len(planned(*both, jobs=1).events[Lane.WINDOWS]) == 1


@pytest.mark.parametrize("action", ["load", "reload", "copy", "export", "anything"])
def test_everything_but_queries_falls_under_max_concurrent_jobs(action):
    name = TraceName("p", "US", "ds.t", "1", 1, action).name
    listing = classify([stored(name)], "p", NOW)
    made = plan(Snapshot(listing, {listing.traces[0].job: Job("US", "DONE")}), config(sql=1), NOW)
    assert names(made, Lane.JOBS) == [name]
    both = [stored(name, age=90), stored(TraceName("p", "US", "ds.t", "2", 1, action).name)]
    listing = classify(both, "p", NOW)
    made = plan(Snapshot(listing, {trace.job: Job("US", "DONE") for trace in listing.traces}), config(jobs=1), NOW)
    assert (names(made, Lane.JOBS), made.outcomes) == ([name], {Outcome.THROTTLED: 1})


def test_windows_of_a_project_that_cannot_be_seen_wait_when_there_is_a_limit():
    _, blind = window("closed:ds.t")
    assert planned(blind, project_errors={"closed": "403"}, jobs=1).outcomes == {Outcome.ERROR: 1}
    assert names(planned(blind, project_errors={"closed": "403"}, loads={}), Lane.WINDOWS) == [blind.name]
    elsewhere = {(blind.name, 1): Load("billed")}
    assert names(planned(blind, project_errors={"closed": "403"}, loads=elsewhere, jobs=1), Lane.WINDOWS) == [
        blind.name
    ]
    assert planned(blind, project_errors={"billed": "403"}, loads=elsewhere, jobs=1).outcomes == {Outcome.ERROR: 1}


def test_traces_whose_jobs_cannot_be_seen_count_as_active():
    name = TraceName("p", "US", "ds.t", "1", 1, "load")
    other = TraceName("p", "US", "ds.t", "2", 1, "load")
    listing = classify([stored(name.name, age=900), stored(other.name)], "p", NOW)
    jobs = {listing.traces[1].job: Job("US", "DONE")}
    made = plan(Snapshot(listing, jobs, {"p": "403"}), config(jobs=1), NOW)
    assert made.outcomes == {Outcome.ERROR: 1, Outcome.THROTTLED: 1}


@pytest.mark.parametrize(("age", "dispatched"), [(59.0, 0), (61.0, 1)])
def test_a_trace_whose_job_is_not_there_yet_counts_as_active_for_a_minute(age, dispatched):
    listing = classify([stored(TraceName("p", "US", "ds.t", n, 1, "load").name, age) for n in ("1", "2")], "p", NOW)
    made = plan(Snapshot(listing, {listing.traces[1].job: Job("US", "DONE")}), config(jobs=1), NOW)
    assert len(made.events[Lane.JOBS]) == dispatched
    assert made.outcomes[Outcome.NOT_FOUND] == 1


def test_what_cannot_be_seen_counts_as_pending_for_bqtails_balancer():
    actions = ("load", "load", "reload", "query")
    traces = [stored(TraceName("p", "US", "ds.t", str(n), 1, each).name) for n, each in enumerate(actions)]
    made = plan(Snapshot(classify(traces, "p", NOW), {}, {"p": "403"}), config(), NOW)
    assert made.outcomes == {Outcome.ERROR: 4}
    assert made.counts == {"p": {"Pending": {"LoadJobs": 3, "QueryJobs": 1}}}


DAY = 86_400.0


def lost(age, metadata=None, errors=None, region="US", **more):
    """The plan for one trace whose job is proven to be unknown."""
    listing = classify([stored(TraceName("p", region, "ds.t", "1", 1, "load").name, age, 7, metadata)], "p", NOW)
    unknown = {trace.job: trace.job for trace in listing.traces}
    return plan(Snapshot(listing, {}, errors or {}, unknown_jobs=unknown), config(**more), NOW)


def test_a_trace_that_has_waited_a_day_for_an_unknown_job_is_quarantined_with_what_was_asked():
    made = lost(DAY + 1)
    (quarantine,) = made.cleanup.quarantines
    assert (made.outcomes, made.not_found, made.listed) == ({}, {}, 1)
    assert (quarantine.name, quarantine.generation) == ("proj:p:US/ds.t--1_00001_load--dispatch", 7)
    for said in ("'p'", "'US'", "'ds_t--1_00001_load--dispatch'", "404", "2026-01-01T03:04:04+00:00"):
        assert said in quarantine.reason
    assert dict(quarantine.asked) == {
        "Project": "p",
        "Location": "US",
        "ID": "ds_t--1_00001_load--dispatch",
        "Answer": 404,
    }
    assert "any location" in lost(DAY + 1, region="").cleanup.quarantines[0].reason


def test_a_trace_waits_as_long_as_the_configuration_says():
    assert lost(DAY - 1).outcomes == {Outcome.NOT_FOUND: 1}
    assert lost(61.0, MaxUnknownJobMin=1).outcomes == {}
    assert lost(100 * DAY, MaxUnknownJobMin=0).outcomes == {Outcome.NOT_FOUND: 1}
    assert lost(100 * DAY, MaxUnknownJobMin=10_000_000_000).outcomes == {Outcome.NOT_FOUND: 1}


def test_a_job_that_was_merely_not_found_is_no_reason_for_quarantine():
    old = stored(TraceName("p", "US", "ds.t", "1", 1, "load").name, 9 * DAY)
    assert planned(old).outcomes == {Outcome.NOT_FOUND: 1}
    assert lost(9 * DAY, errors={"p": "503"}).outcomes == {Outcome.ERROR: 1}


def test_a_job_that_bigquery_may_have_forgotten_is_no_reason_for_quarantine():
    assert lost(170 * DAY).outcomes == {}
    assert lost(180 * DAY).outcomes == {Outcome.NOT_FOUND: 1}
    first = {SINCE: str(NOW.timestamp() - 180 * DAY)}
    assert lost(2 * DAY, first).outcomes == {Outcome.NOT_FOUND: 1}
    assert lost(2 * DAY, {SINCE: "nonsense"}).outcomes == {}


def test_what_is_on_its_way_back_from_quarantine_waits():
    assert lost(2 * DAY, {REPLAY: "7"}).outcomes == {Outcome.PENDING: 1}
    listing = classify([stored(TraceName("p", "US", "ds.t", "1", 1, "load").name, metadata={REPLAY: "7"})], "p", NOW)
    done = {listing.traces[0].job: Job("US", "DONE")}
    assert plan(Snapshot(listing, done), config(), NOW).outcomes == {Outcome.PENDING: 1}
    name, twin = window(generation=2)
    held = StoredObject(twin.name, 2, twin.created, metadata={REPLAY: "7"})
    assert planned(held).outcomes == {Outcome.PENDING: 1}
    made = planned(held, firings={name.name: {1: firing(90_000)}})
    assert (made.outcomes, made.cleanup) == ({Outcome.PENDING: 1}, Cleanup())
    made = planned(held, stored(name.sentinel, 90_000))
    assert (made.outcomes, made.cleanup) == ({Outcome.PENDING: 1, Outcome.IGNORED: 1}, Cleanup())


@pytest.mark.parametrize("name", [TraceName("p", "US", "ds.t", "1", 1, "load").name, window()[0].name])
def test_what_stays_on_its_way_back_from_quarantine_is_an_error_that_says_what_to_do(name):
    assert planned(stored(name, 590, metadata={REPLAY: "7"})).errors == ()
    late = planned(stored(name, 610, metadata={REPLAY: "7"}))
    assert late.outcomes == {Outcome.PENDING: 1}
    (error,) = late.errors
    assert error.startswith(f"{name!r} has been on its way back from quarantine since 2026-01-02 02:53 UTC")
    assert error.endswith("do it again with `bqdispatch replay`")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1024), st.integers(1, 2**63))
def test_a_place_in_quarantine_has_room_for_every_name(name, generation):
    place = quarantine_path(NOW, name, generation, "gs://b/err/ors/")
    assert len(f"err/ors/{place}.json".encode()) <= 1024
    assert place.startswith("2026-01-02/")
    assert place.endswith(f".{generation}")
    read = parse_quarantine_path(place)
    assert (f"{read.day:%Y-%m-%d}", read.generation) == ("2026-01-02", generation)
    if len(name.encode()) <= 900:
        assert place == f"2026-01-02/{name}.{generation}"
        assert read.name == name


def test_names_that_are_cut_stay_apart():
    one, other = ("x" * 1010 + each for each in ("--a", "--b"))
    assert quarantine_path(NOW, one, 1, "gs://b") != quarantine_path(NOW, other, 1, "gs://b")


def test_the_last_moment_that_a_name_can_hold_is_no_trouble():
    assert planned(stored("ds.t_1_253402300799.win")).outcomes == {Outcome.PENDING: 1}


@pytest.fixture
def in_tokyo(monkeypatch):
    with monkeypatch.context() as there:
        there.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


def test_the_date_folder_is_utc_whatever_the_machine_thinks(in_tokyo):
    event = Event("proj:p:US/ds.t--1_00001_load--dispatch", 1, datetime(2026, 1, 1, 23, 59, tzinfo=UTC))
    assert target_of(event, Lane.JOBS, config()) == f"_bqjob_/2026-01-01_23/{event.name}.json"
    assert target_of(event, Lane.WINDOWS, config()) == f"_batch_/{event.name}"


def test_the_other_target_carries_the_generation():
    assert alternative_target("_bqjob_/h/x.json", 7) == "_bqjob_/h/x_7.json"


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("_bqjob_/h/x.json", True),
        ("_bqjob_/h/x_7.json", True),
        ("_bqjob_/h/x_1700000000000001.json", True),
        ("_bqjob_/h/x_7", False),
        ("_bqjob_/h/x_y.json", False),
        ("_bqjob_/h/x_.json", False),
        ("_bqjob_/h/xx_7.json", False),
        ("_bqjob_/h/x_7_8.json", False),
    ],
)
def test_a_target_is_the_usual_one_or_one_beside_it(name, is_one):
    assert is_target(name, "_bqjob_/h/x.json") == is_one


def test_shares_travel_as_json_and_back():
    event = Event("ds.t--1_00001_query--dispatch", 2**60, NOW, "EU", NOW)
    others = (
        replace(event, ended=None),
        replace(event, error="invalid"),
        replace(event, in_doubt=True),
        replace(event, table="p.ds.t"),
    )
    share = Share(Lane.SQL, NOW, (event, *others))
    assert Share.from_dict(json.loads(json.dumps(share.to_dict()))) == share
    fired = Event(
        WINDOW,
        2**60,
        NOW,
        load=Load("p", "4711"),
        claimed=True,
        many_folders=True,
        stale_locations=((f"{WINDOW[:-4]}/9.loc", 5),),
    )
    windows = (
        Event(WINDOW, 2**60, NOW),
        fired,
        *(
            replace(fired, **{key: value})
            for key, value in [("load", None), ("claimed", False), ("many_folders", False)]
        ),
        replace(fired, load=Load("p"), stale_locations=()),
    )
    share = Share(Lane.WINDOWS, NOW, windows)
    assert Share.from_dict(json.loads(json.dumps(share.to_dict()))) == share


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"lane": "x", "planned": 1, "events": []},
        {"lane": "sql", "planned": 1e400, "events": []},
        {"lane": "sql", "planned": 1, "events": [1]},
        {"lane": "sql", "planned": 1, "events": [["ds.t_1_2.win", 1, 2.0, ""]]},
    ],
)
def test_what_is_no_share_is_refused(document):
    with pytest.raises(ValueError, match=r"not a share|not an event|not a valid Lane|not a trace"):
        Share.from_dict(document)


@pytest.mark.parametrize(
    ("lane", "name", "stale"),
    [
        ("jobs", "proj:p:US/ds.t--1_00001_load--dispatch.grp", []),
        ("jobs", "proj:p:US/ds.t--1_00001_load--dispatch.win", []),
        ("jobs", "proj:p:US/ds.t--1_00001_load--dispatch.wis", []),
        ("jobs", "intents/me-000001.json", []),
        ("jobs", "~ledger/0000/ds.t--1_00001_load--dispatch", []),
        ("jobs", "proj:p:US/ds.t--1_00001_query--dispatch", []),
        ("sql", "proj:p:US/ds.t--1_00001_load--dispatch", []),
        ("windows", "proj:p:US/ds.t--1_00001_load--dispatch", []),
        ("windows", "undecided/ds.t_77_1769904000.win", []),
        ("windows", "ds.t_77_1769904000.win", [["proj:p:US/ds.t--1_00001_load--dispatch", 1]]),
        ("windows", "ds.t_77_1769904000.win", [["ds.t_77_1769904060/1.loc", 1]]),
        ("windows", "ds.t_77_1769904000.win", [["ds.t_77_1769904000.win", 1]]),
    ],
)
def test_an_event_from_outside_is_refused_that_its_lane_does_not_dispatch(lane, name, stale):
    """Whoever may write the journal names objects that are to be moved, or removed."""
    event = [name, 1, 2.0, "", 0, *(["", "", False, None, False, False, False, stale, None] if stale else [])]
    with pytest.raises(ValueError, match=name.partition("/")[0]):
        Share.from_dict({"lane": lane, "planned": 1, "events": [event]})


def test_a_share_has_all_events_of_its_lane():
    made = planned(*(window(f"ds.t{n}")[1] for n in range(600)))
    (share,) = made.shares()
    assert (share.lane, len(share.events)) == (Lane.WINDOWS, 600)


AGES = st.floats(0, 1000)
STATES = st.sampled_from(["PENDING", "RUNNING", "DONE", None])
TRACES = st.tuples(st.sampled_from(["p", "q"]), st.sampled_from(["load", "copy", "query", "export"]), AGES, STATES)
WINDOWS = st.tuples(
    st.sampled_from(["p", "q"]),
    AGES,
    st.sampled_from(["fresh", "claimed", "fired", "returned", "go", "put back"]),
    AGES,
    st.sampled_from([None, *LateAction]),
    st.booleans(),
    st.sampled_from(["p", "q"]),
)
NOISE = st.sampled_from(["a.grp", "x.win", "strange", "y.wis", "f/9.loc", ""])


ANNOUNCED, CLAIMED = ("q", 0.0, "fresh", 0.0, None, True, "q"), ("q", 9.0, "claimed", 179.0, None, False, "q")


@example([], [ANNOUNCED, ANNOUNCED, ANNOUNCED, CLAIMED], [], 0, 3, set(), 0, random.Random(0))
@given(
    st.lists(TRACES, max_size=12),
    st.lists(WINDOWS, max_size=8),
    st.lists(NOISE, max_size=3, unique=True),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sets(st.sampled_from(["p", "q"])),
    st.integers(0, 15),
    st.randoms(use_true_random=False),
)
def test_every_object_has_one_outcome_and_limits_hold_in_any_order(
    traces, windows, noise, sql, jobs, failed, patience, shuffler
):
    objects, states, unknown = [stored(name) for name in noise], {}, set()
    for number, (project, action, age, state) in enumerate(traces):
        name = TraceName(project, "US", "ds.t", str(number), 1, action)
        objects.append(stored(name.name, age))
        if state and project not in failed:
            states[classify([objects[-1]], "p", NOW).traces[0].job] = Job("US", state)
        elif number % 2:
            unknown.add(classify([objects[-1]], "p", NOW).traces[0].job)
    ledger, verdicts, loads, begun_before = {}, {}, {}, []
    for number, (project, age, kind, at, late, is_open, billed) in enumerate(windows):
        back = kind in ("returned", "put back")
        name, found = window(f"{project}:ds.t{number}", ended=age, age=age, generation=2 if back else 1)
        objects.append(replace(found, metadata={REPLAYED: "9"}) if kind == "put back" else found)
        loads[found.name, found.generation] = Load(billed)
        if kind == "go":
            objects.append(stored(name.sentinel, at))
        elif kind != "fresh":
            ledger[name.name] = {1: firing(None if kind == "claimed" else at, at + 1)}
        if late and back:
            verdicts[found.name, 2] = Verdict(late, "x")
        if is_open:
            begun_before.append(opened(name, found.generation, billed))
    settings = config(sql=sql, jobs=jobs, MaxUnknownJobMin=patience)
    errors = dict.fromkeys(failed, "403")

    def decide():
        observed = seen(*objects, firings=ledger, verdicts=verdicts, loads=loads, open_firings=tuple(begun_before))
        observed = replace(observed, jobs=states, project_errors=errors, unknown_jobs={job: job for job in unknown})
        return plan(observed, settings, NOW)

    first = decide()
    assert total(first) == first.listed == len(objects)
    shuffler.shuffle(objects)
    again = decide()
    assert (again.events, again.outcomes, again.counts) == (first.events, first.outcomes, first.counts)
    assert set(again.cleanup.stale) == set(first.cleanup.stale)

    running = Counter((key.project, "_query--" in key.job_id) for key, job in states.items() if job.state != "DONE")
    before = Counter((each.project, False) for each in begun_before)
    open_keys = {each.key for each in begun_before}
    fresh, again = Counter(), Counter()
    for lane, events in first.events.items():
        for event in events:
            project = event.load.project if event.load else event.name.split(":")[1]
            (again if event.key in open_keys else fresh)[project, lane is Lane.SQL] += 1
    for place in ((project, is_sql) for project in ("p", "q") for is_sql in (False, True)):
        if limit := (sql if place[1] else jobs):
            assert running[place] + before[place] + fresh[place] <= limit or not fresh[place]
            assert running[place] + again[place] <= limit or not again[place]
    for lane in (Lane.SQL, Lane.JOBS):
        created = [event.created for event in first.events[lane]]
        assert created == sorted(created)


def test_what_is_not_to_be_dispatched_takes_nothing_of_the_limit():
    traces = [
        stored(f"proj:p:US/{dest}--{n}_00001_query--dispatch", age=99 - n) for n, dest in enumerate(["a.b", "c.d"])
    ]
    listing = classify(traces, "p", NOW)
    jobs = {trace.job: Job("US", "DONE") for trace in listing.traces}
    some = plan(Snapshot(listing, jobs), config(sql=1), NOW, EventFilter(destinations=("c.*",)))
    assert names(some, Lane.SQL) == [traces[1].name]
    assert some.outcomes == {Outcome.PENDING: 1}


@pytest.mark.parametrize(
    ("only", "name", "taken"),
    [
        ({}, TRACE, True),
        ({"projects": "p"}, TRACE, True),
        ({"projects": ["q"]}, TRACE, False),
        ({"destinations": ["ds.*", "x"]}, TRACE, True),
        ({"destinations": "DS.*"}, TRACE, False),
        ({"destinations": "ds.t*"}, "proj:p:US/q:ds.t$1--1_00001_load--dispatch", True),
        ({"destinations": "example.com:q.ds.*"}, "example.com:q.ds.t_7_1767323045.win", True),
        ({"destinations": "q.ds.t"}, "proj:p:US/q:ds.t--1_00001_load--dispatch", True),
        ({"destinations": "q:ds.t"}, "proj:p:US/q.ds.t--1_00001_load--dispatch", True),
        ({"destinations": "r.ds.t"}, "proj:p:US/q:ds.t--1_00001_load--dispatch", False),
        ({"destinations": "ds.t"}, "proj:p:US/ds.t$1--1_00001_load--dispatch", False),
        ({"actions": ["load"], "event_ids": ["1"]}, TRACE, True),
        ({"actions": ["load"], "event_ids": ["2"]}, TRACE, False),
        ({"destinations": ["ds.*"]}, WINDOW, True),
        ({"actions": ["load"]}, WINDOW, False),
    ],
)
def test_an_event_is_dispatched_that_matches_all_that_is_given(only, name, taken):
    parse = WindowName.parse if name.endswith(".win") else TraceName.parse
    assert EventFilter.from_dict(only).matches("p", parse(name)) is taken


@pytest.mark.parametrize(
    "only",
    [
        {"project": ["p"]},
        {"projects": [1]},
        {"projects": None},
        {"projects": []},
        {"actions": {"load": 1}},
        {"destinations": ""},
        {"destinations": ["ds.t", " "]},
        {"event_ids": "4711\n"},
        "p",
        ["p"],
    ],
)
def test_what_says_nothing_of_what_to_dispatch_is_refused(only):
    with pytest.raises(ValueError, match="expected lists of strings by projects, destinations, actions, event_ids"):
        EventFilter.from_dict(only)


def test_a_misspelt_action_is_refused_since_it_would_match_nothing():
    with pytest.raises(ValueError, match=r"only names the actions \['lod'\]; expected some of load, reload, copy"):
        EventFilter.from_dict({"actions": ["load", "lod"]})


def test_a_misspelt_lane_is_refused_too():
    with pytest.raises(ValueError, match=r"only names the lanes \['job'\]; expected some of sql, jobs, windows"):
        EventFilter.from_dict({"lanes": ["sql", "job"]})


def test_a_plan_tells_when_the_next_object_is_due_that_waits_for_time_alone():
    _, soon = window(ended=-20)
    _, later = window("ds.u", ended=-3600)
    assert planned(soon, later).due_in == timedelta(seconds=27)
    assert planned(soon, later, stored(TRACE, age=1)).due_in == timedelta(seconds=2)
    assert planned(stored(TRACE)).due_in is None


def test_a_plan_tells_how_many_wait_for_a_job():
    running, unseen_yet, lost = (
        stored(TRACE.replace("--1_", f"--{n}_"), age=age) for n, age in ((1, 600), (2, 30), (3, 600))
    )
    listing = classify([running, unseen_yet, lost], "p", NOW)
    jobs = {trace.job: Job("US", "RUNNING") for trace in listing.traces if trace.object is running}
    assert plan(Snapshot(listing, jobs), config(), NOW).awaited == 2


LONG = "x" * 980


def test_what_has_too_long_a_name_in_the_trigger_bucket_is_set_aside_with_the_reason():
    trace = stored(f"proj:p:US/ds.{LONG}--1_00001_load--dispatch")
    _, due = window(f"ds.{LONG}")
    job = classify([trace], "p", NOW).traces[0].job
    made = planned(trace, due, configured={"BatchPrefix": f"/{'b' * 40}/"})
    assert [each.name for each in made.cleanup.quarantines] == [due.name]
    made = plan(replace(seen(trace), jobs={job: Job("US", "DONE")}), config(), NOW)
    (aside,) = made.cleanup.quarantines
    assert aside.name == trace.name
    assert "bytes long in the trigger bucket" in aside.reason
    assert (made.events[Lane.JOBS], total(made)) == ((), 1)


def test_a_window_that_waits_is_the_oldest_whatever_it_waits_for():
    name, due = window(ended=3600, age=3700)
    _, young = window("ds.other", ended=-60, age=90)
    trace = stored(TRACE, age=120)
    for more in (
        {"unreadable_windows": {name.name: "its ledger cannot be read"}},
        {"firings": {name.name: {1: firing(claimed_ago=20)}}},
    ):
        assert planned(due, young, trace, **more).oldest == name.end
    assert planned(due, young, trace).oldest == trace.created
    assert planned(due, young, trace, firings={name.name: {1: firing(fired_ago=20)}}).oldest == trace.created
    assert planned(due, trace, jobs=1, loads={}).oldest == name.end


def test_a_clock_that_is_behind_is_noticed_and_said():
    young = stored(TRACE, age=-600)
    made = planned(young)
    assert made.outcomes == {Outcome.TOO_YOUNG: 1}
    (error,) = made.errors
    assert "at least 600 s behind" in error
    assert TRACE in error
    assert planned(stored(TRACE, age=-20)).errors == ()
