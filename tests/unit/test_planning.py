"""Planning: what must hold for every folder, limit and state, whatever the order of the listing."""

import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.model import (
    REPLAY,
    SINCE,
    Event,
    Job,
    Lane,
    Only,
    Outcome,
    Quarantine,
    Sentinel,
    Share,
    Snapshot,
    StoredObject,
    Tidy,
)
from bqdispatch_provider.names import TraceName, WindowName
from bqdispatch_provider.planning import aside_path, classify, is_target, limits, other_target, plan, target_of

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


def sentinel(name, fired_ago=None, claimed_ago=None, generation=1):
    metadata = Sentinel.claim(generation, "someone", NOW - timedelta(seconds=claimed_ago or fired_ago))
    if fired_ago is not None:
        claim = Sentinel.of(stored(name.sentinel, fired_ago, 5, metadata))
        metadata = claim.fire(generation, 9, NOW - timedelta(seconds=fired_ago))
    return stored(name.sentinel, fired_ago or claimed_ago, 5, metadata)


def planned(*objects, **limits_):
    return plan(Snapshot(classify(objects, "p", NOW)), config(**limits_), NOW)


def names(plan_, lane):
    return [event.name for event in plan_.events[lane]]


def total(plan_):
    events = sum(len(events) for events in plan_.events.values())
    return events + len(plan_.tidy.quarantines) + sum(plan_.outcomes.values())


def test_an_unfired_window_is_never_deleted_however_old():
    _, old = window(ended=90 * 86400, age=91 * 86400)
    made = planned(old)
    assert names(made, Lane.WINDOWS) == [old.name]
    assert made.tidy == Tidy()


def test_a_fired_window_is_kept_for_an_hour_after_its_firing():
    name, late = window(ended=7200, age=7300)
    assert planned(late, sentinel(name, fired_ago=3500)).tidy.stale == ()
    assert planned(late, sentinel(name, fired_ago=3700)).tidy.stale == ((late.name, 1),)


def test_a_fired_window_is_kept_for_max_trigger_delay_when_that_is_longer():
    name, late = window(ended=7200, age=7300)
    assert planned(late, sentinel(name, fired_ago=3700), MaxTriggerDelayMs=4_000_000).tidy.stale == ()


def test_a_sentinel_outlives_its_window_by_a_day():
    name, fired = window(ended=90_000, age=90_000)
    beside = sentinel(name, fired_ago=89_000)
    assert planned(fired, beside).tidy.stale == ((fired.name, 1),)
    assert planned(beside).tidy.stale == ()
    assert planned(sentinel(name, fired_ago=91_000)).tidy.stale == ((beside.name, 5),)


def test_a_window_that_comes_back_under_its_sentinel_is_a_late_twin():
    name, twin = window(generation=2)
    made = planned(twin, sentinel(name, fired_ago=400, generation=1))
    assert made.events[Lane.WINDOWS] == ()
    (quarantine,) = made.tidy.quarantines
    assert (quarantine.name, quarantine.generation) == (twin.name, 2)
    assert "late twin" in quarantine.reason


def test_a_sentinel_of_the_go_dispatcher_means_fired_and_proves_nothing():
    name, fired = window(ended=90_000, age=90_000)
    made = planned(fired, stored(name.sentinel, 89_990))
    assert made.events[Lane.WINDOWS] == ()
    assert made.tidy == Tidy()
    _, twin = window(ended=90_000, age=100)
    assert len(planned(twin, stored(name.sentinel, 89_990)).tidy.quarantines) == 1


def test_a_claimed_window_is_left_to_its_owner_and_taken_up_again_after_a_while():
    name, claimed = window()
    assert planned(claimed, sentinel(name, claimed_ago=100)).events[Lane.WINDOWS] == ()
    assert names(planned(claimed, sentinel(name, claimed_ago=200)), Lane.WINDOWS) == [claimed.name]


def test_windows_and_jobs_share_one_limit():
    jobs = {}
    running = [TraceName("p", "US", "ds.t", str(n), 1, "load") for n in range(30)]
    for name in running:
        jobs[next(iter(classify([stored(name.name)], "p", NOW).traces)).job] = Job("US", "RUNNING")
    windows = [window(f"ds.t{n}")[1] for n in range(30)]
    objects = [*(stored(name.name) for name in running), *windows]
    made = plan(Snapshot(classify(objects, "p", NOW), jobs, {}), config(jobs=10), NOW)
    assert made.events[Lane.WINDOWS] == ()
    assert made.outcomes == {Outcome.RUNNING: 30, Outcome.THROTTLED: 30}


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
    snapshot = Snapshot(classify([blind], "p", NOW), {}, {"closed": "403"})
    assert plan(snapshot, config(jobs=1), NOW).outcomes == {Outcome.ERROR: 1}
    assert names(plan(snapshot, config(), NOW), Lane.WINDOWS) == [blind.name]


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
    unknown = frozenset(trace.job for trace in listing.traces)
    return plan(Snapshot(listing, {}, errors or {}, {}, unknown), config(**more), NOW)


def test_a_trace_that_has_waited_a_day_for_an_unknown_job_is_quarantined_with_what_was_asked():
    made = lost(DAY + 1)
    (quarantine,) = made.tidy.quarantines
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
    assert "any location" in lost(DAY + 1, region="").tidy.quarantines[0].reason


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
    made = planned(held, sentinel(name, fired_ago=90_000))
    assert (made.outcomes, made.tidy) == ({Outcome.PENDING: 1, Outcome.IGNORED: 1}, Tidy())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1024), st.integers(1, 2**63))
def test_a_place_in_quarantine_has_room_for_every_name(name, generation):
    place = aside_path(NOW, name, generation, "gs://b/err/ors/")
    assert len(f"err/ors/{place}.json".encode()) <= 1024
    assert place.startswith("2026-01-02/")
    assert place.endswith(f".{generation}")
    if len(name.encode()) <= 900:
        assert place == f"2026-01-02/{name}.{generation}"


def test_names_that_are_cut_stay_apart():
    one, other = ("x" * 1010 + each for each in ("--a", "--b"))
    assert aside_path(NOW, one, 1, "gs://b") != aside_path(NOW, other, 1, "gs://b")


def test_the_last_moment_that_a_name_can_hold_is_no_trouble():
    assert planned(stored("ds.t_1_253402300799.win")).outcomes == {Outcome.PENDING: 1}


def test_a_sentinel_that_has_lost_its_metadata_proves_no_firing():
    name, claimed = window()
    lost = StoredObject(name.sentinel, 5, NOW - timedelta(seconds=100), size=40)
    assert planned(claimed, lost).outcomes == {Outcome.PENDING: 1, Outcome.IGNORED: 1}
    older = StoredObject(name.sentinel, 5, NOW - timedelta(seconds=400), size=40)
    assert names(planned(claimed, older), Lane.WINDOWS) == [claimed.name]


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
    assert other_target("_bqjob_/h/x.json", 7) == "_bqjob_/h/x_7.json"


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
    others = (replace(event, ended=None), replace(event, error="invalid"), replace(event, doubted=True))
    share = Share(Lane.SQL, 5, NOW, (event, *others))
    import json

    assert Share.from_dict(json.loads(json.dumps(share.to_dict()))) == share
    tidy = Tidy((Quarantine("w", 3, NOW, "twin", {"Fired": "x", "Window": 1}),), (("x", 1), ("y", 2)))
    assert Tidy.from_dict(json.loads(json.dumps(tidy.to_dict()))) == tidy


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"lane": "x", "limit": 0, "planned": 1, "events": []},
        {"lane": "sql", "limit": 0, "planned": 1, "events": [1]},
        {"lane": "sql", "limit": 0, "planned": 1, "events": [["ds.t_1_2.win", 1, 2.0, ""]]},
    ],
)
def test_what_is_no_share_is_refused(document):
    with pytest.raises(ValueError, match=r"not a share|not an event|not a valid Lane|not a trace"):
        Share.from_dict(document)


def test_shares_are_small_pieces_with_their_limit():
    made = planned(*(window(f"ds.t{n}")[1] for n in range(600)))
    shares = made.shares(limits(config(jobs=700)))
    assert [len(share.events) for share in shares] == [250, 250, 100]
    assert {(share.lane, share.limit) for share in shares} == {(Lane.WINDOWS, 700)}


AGES = st.floats(0, 1000)
STATES = st.sampled_from(["PENDING", "RUNNING", "DONE", None])
TRACES = st.tuples(st.sampled_from(["p", "q"]), st.sampled_from(["load", "copy", "query", "export"]), AGES, STATES)
WINDOWS = st.tuples(st.sampled_from(["p", "q"]), AGES, st.none() | st.floats(1, 1000), st.booleans(), st.booleans())
NOISE = st.sampled_from(["a.grp", "x.win", "strange", "y.wis", "f/9.loc", ""])


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
    traces, windows, noise, sql, jobs, failed, patience, random
):
    objects, states, unknown = [stored(name) for name in noise], {}, set()
    for number, (project, action, age, state) in enumerate(traces):
        name = TraceName(project, "US", "ds.t", str(number), 1, action)
        objects.append(stored(name.name, age))
        if state and project not in failed:
            states[classify([objects[-1]], "p", NOW).traces[0].job] = Job("US", state)
        elif number % 2:
            unknown.add(classify([objects[-1]], "p", NOW).traces[0].job)
    for number, (project, age, marked, fired, twin) in enumerate(windows):
        name, found = window(f"{project}:ds.t{number}", ended=age, age=age, generation=2 if twin else 1)
        objects.append(found)
        if marked is not None:
            objects.append(sentinel(name, **{"fired_ago" if fired else "claimed_ago": marked}))
    settings = config(sql=sql, jobs=jobs, MaxUnknownJobMin=patience)
    errors = dict.fromkeys(failed, "403")

    def decide():
        return plan(Snapshot(classify(objects, "p", NOW), states, errors, {}, frozenset(unknown)), settings, NOW)

    first = decide()
    assert total(first) == first.listed == len(objects)
    random.shuffle(objects)
    again = decide()
    assert (again.events, again.outcomes, again.counts) == (first.events, first.outcomes, first.counts)
    assert set(again.tidy.stale) == set(first.tidy.stale)

    active, begun = Counter(), Counter()
    for key, job in states.items():
        if job.state != "DONE":
            active[key.project, "_query--" in key.job_id] += 1
    for lane, events in first.events.items():
        for event in events:
            project = event.name.split(":")[0 if lane is Lane.WINDOWS else 1]
            begun[project, lane is Lane.SQL] += 1
    for project in ("p", "q"):
        for is_sql, limit in ((True, sql), (False, jobs)):
            if limit:
                room = max(limit - active[project, is_sql], 0)
                assert begun[project, is_sql] <= room
    for lane in (Lane.SQL, Lane.JOBS):
        created = [event.created for event in first.events[lane]]
        assert created == sorted(created)


def test_what_is_not_to_be_dispatched_takes_nothing_of_the_limit():
    traces = [
        stored(f"proj:p:US/{dest}--{n}_00001_query--dispatch", age=99 - n) for n, dest in enumerate(["a.b", "c.d"])
    ]
    listing = classify(traces, "p", NOW)
    jobs = {trace.job: Job("US", "DONE") for trace in listing.traces}
    some = plan(Snapshot(listing, jobs), config(sql=1), NOW, Only(destinations=("c.*",)))
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
        ({"destinations": "ds.t"}, "proj:p:US/ds.t$1--1_00001_load--dispatch", False),
        ({"actions": ["load"], "event_ids": ["1"]}, TRACE, True),
        ({"actions": ["load"], "event_ids": ["2"]}, TRACE, False),
        ({"destinations": ["ds.*"]}, WINDOW, True),
        ({"actions": ["load"]}, WINDOW, False),
    ],
)
def test_an_event_is_dispatched_that_matches_all_that_is_given(only, name, taken):
    parse = WindowName.parse if name.endswith(".win") else TraceName.parse
    assert Only.of(only).takes("p", parse(name)) is taken


@pytest.mark.parametrize(
    "only",
    [{"project": ["p"]}, {"projects": [1]}, {"projects": None}, {"projects": []}, {"actions": {"load": 1}}, "p", ["p"]],
)
def test_what_says_nothing_of_what_to_dispatch_is_refused(only):
    with pytest.raises(ValueError, match="expected lists of strings by projects, destinations, actions, event_ids"):
        Only.of(only)


def test_a_misspelt_action_is_refused_since_it_would_match_nothing():
    with pytest.raises(ValueError, match=r"only names the actions \['lod'\]; expected some of load, reload, copy"):
        Only.of({"actions": ["load", "lod"]})


@pytest.mark.parametrize("lanes", [["job"], "sql", ["sql", None]])
def test_what_is_no_list_of_lanes_is_refused(lanes):
    with pytest.raises(ValueError, match="expected a list of some of sql, jobs, windows"):
        Lane.of(lanes)


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
