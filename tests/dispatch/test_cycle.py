"""One cycle against the stand-in Google Cloud: what is moved, fired, held back and reported."""

import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from waiting import PATIENCE_S
from world import FOLDER, JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.core.events import EventFilter
from bqdispatch_provider.core.history import RunLabel
from bqdispatch_provider.core.model import Outcome
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.storage_calls import RETRY
from bqdispatch_provider.names import TraceName


def hour_of(world, age=60.0):
    return datetime.fromtimestamp(world.control.now() - age, UTC).strftime("%Y-%m-%d_%H")


def adds_up(report):
    document = report.to_dict()
    return sum(document["Outcomes"].values()) == document["Listed"]


def test_all_finished_traces_are_moved_and_all_due_windows_fired(world, intents_stay_young):
    traces = world.traces(700) + world.traces(300, "query")
    windows = [world.window(f"ds.t{n}") for n in range(10)]
    report = world.cycle()
    document = report.to_dict()
    assert document["Status"] == "ok"
    assert set(document["Jobs"]) == {world.url_of(name) for name in traces}
    assert set(document["Batched"]) == {world.url_of(name) for name in windows}
    assert document["Dispatched"] == {"LoadJobs": 700, "QueryJobs": 300, "BatchJobs": 10}
    assert (document["Listed"], document["BatchCount"]) == (1010, 10)
    assert document["Outcomes"] == {"dispatched": 1010}
    assert len(world.names(TRIGGER, "_bqjob_/")) == 1000
    assert world.names(TRIGGER, "_batch_/") == sorted(f"_batch_/{name}" for name in windows)
    again = world.cycle().to_dict()
    assert (again["Jobs"], again["Batched"]) == ({}, {})
    kept, intents, completed = 10, 2, 1
    assert again["Outcomes"] == {"ignored": kept + intents + completed}


def test_a_hundred_copies_or_deletes_travel_in_one_request(world):
    world.traces(1000)
    world.control.reset_counters()
    world.cycle()
    listing, jobs, permissions, first_move, batches = 1, 1, 2, 2, 10 + 10
    intent = 3  # written, others looked for, removed
    assert world.control.requests() <= listing + jobs + permissions + first_move + batches + intent


def test_an_empty_folder_costs_one_request(world):
    world.control.reset_counters()
    report = world.cycle()
    assert world.control.requests() == 1
    assert report.to_dict()["Listed"] == 0


@pytest.mark.parametrize("suffix", ["", ".json"])
def test_a_trace_goes_into_the_hour_of_its_creation(world, clock_stands_still, suffix):
    name = f"proj:p:US/ds.t--1_00001_load--dispatch{suffix}"
    world.put(name, age=7200, content='{"a": 1}')
    world.jobs(["ds_t--1_00001_load--dispatch"], age=7200)
    report = world.cycle()
    target = f"_bqjob_/{hour_of(world, 7200)}/proj:p:US/ds.t--1_00001_load--dispatch.json"
    assert world.names(TRIGGER) == [target]
    assert world.blob(target, TRIGGER).download_as_bytes() == b'{"a": 1}'
    assert world.names() == []
    told = report.to_dict()["Jobs"][world.url_of(name)]
    ended = datetime.fromisoformat(told.pop("EndTime"))
    assert ended <= report.started
    assert ended < datetime.fromisoformat(told.pop("DispatchTime"))
    assert told == {
        "Project": "p",
        "Region": "US",
        "ID": "ds_t--1_00001_load--dispatch",
        "URL": world.url_of(name),
        "Status": "DONE",
    }


def test_unfinished_jobs_stay_and_are_counted(world):
    world.traces(2, state="RUNNING")
    world.trace("copy", state="PENDING")
    world.trace("query", state="RUNNING", project="q")
    world.trace("export", state=None)
    document = world.cycle().to_dict()
    assert document["Running"] == {"LoadJobs": 2, "QueryJobs": 1}
    assert document["Pending"] == {"CopyJobs": 1}
    assert document["Outcomes"] == {"running": 3, "pending": 1, "not_found": 1}
    assert document["Performance"]["p"]["NoFound"] == 1
    assert document["Performance"]["p"]["Running"] == {"LoadJobs": 2}
    assert document["Performance"]["q"]["Running"] == {"QueryJobs": 1}
    assert len(world.names()) == 5


def test_a_failed_job_is_done_too(world):
    name = world.trace(state=None)
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], error="invalid")
    assert world.cycle().to_dict()["Jobs"][world.url_of(name)]["Error"] == "invalid"


def test_an_object_younger_than_three_seconds_waits(world, clock_stands_still):
    world.trace(age=1)
    world.window(due=8, age=1)
    report = world.cycle()
    assert report.to_dict()["Outcomes"] == {"too_young": 2}
    world.control.advance(5)
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 2}


def test_a_window_is_due_seven_seconds_after_its_end(world, clock_stands_still):
    world.window(due=5)
    assert world.cycle().to_dict()["Outcomes"] == {"pending": 1}
    world.control.advance(4)
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 1}


def test_a_root_trace_is_looked_for_in_every_location(world):
    name = world.trace(root=True, region="europe-west3")
    document = world.cycle().to_dict()
    assert document["Jobs"][world.url_of(name)]["Region"] == "europe-west3"


def test_an_empty_region_is_looked_for_in_every_location(world):
    world.put("proj:p:/ds.t--1_00001_load--dispatch")
    world.jobs(["ds_t--1_00001_load--dispatch"], location="asia-east1")
    assert world.cycle().dispatched == 1


def test_a_job_of_another_location_is_not_this_traces_job(world):
    world.put("proj:p:EU/ds.t--1_00001_load--dispatch")
    world.jobs(["ds_t--1_00001_load--dispatch"], location="US")
    assert world.cycle().to_dict()["Outcomes"] == {"not_found": 1}


def test_names_that_meet_in_one_job_id_are_all_moved(world):
    for dest in ("p:ds.t", "p.ds.t", "p_ds.t"):
        world.put(f"proj:p:US/{dest}--1_00001_load--dispatch")
    world.jobs(["p_ds_t--1_00001_load--dispatch"])
    assert world.cycle().dispatched == 3
    assert len(world.names(TRIGGER)) == 3


@pytest.mark.parametrize("more", [0, 30], ids=["looked up", "listed"])
def test_jobs_of_one_id_are_kept_apart_by_project_and_location(world, more):
    job_id = "ds_t--1_00001_load--dispatch"
    states = {("p", "US"): "DONE", ("p", "EU"): "RUNNING", ("q", "US"): "PENDING"}
    for (project, location), state in states.items():
        world.put(f"proj:{project}:{location}/ds.t--1_00001_load--dispatch")
        world.jobs([job_id], state, project=project, location=location)
        world.traces(more, state="RUNNING", project=project)
    document = world.cycle().to_dict()
    assert list(document["Jobs"]) == [world.url_of("proj:p:US/ds.t--1_00001_load--dispatch")]
    assert document["Outcomes"] == {"dispatched": 1, "running": 1 + 3 * more, "pending": 1}


def test_jobs_of_other_users_are_seen(world):
    """Many of them: that a list does not show them is not made up for by look-ups."""
    ids = [TraceName.parse(name).job_id for name in world.traces(200, state=None)]
    world.control.seed_jobs(
        {"project": "p", "location": "US", "jobId": i, "type": "load", "userEmail": "bqtail@x.iam"} for i in ids
    )
    assert world.cycle().dispatched == 200


def test_what_is_no_trace_is_named_and_left(world):
    strange = ["notes.txt", "nowin.win", "a_12x.win", "x.wis", "proj:p/ds.t--1_00001_load--dispatch"]
    bookkeeping = ["xx:test.dummy.grp", "xx:test.dummy_1_1700000000/55.loc", "xx:test.dummy_1_1700000000/55", "a.cnt"]
    world.put(*strange, *bookkeeping)
    report = world.cycle()
    document = report.to_dict()
    assert document["Status"] == "ok"
    assert set(document["Unknown"]) == set(strange)
    assert document["Outcomes"] == {"ignored": 4, "unknown": 5}
    assert world.names() == sorted(strange + bookkeeping)


def test_a_body_that_is_no_json_is_moved_unread(world):
    world.trace(content="\x00 no json {")
    assert world.cycle().dispatched == 1
    (target,) = world.names(TRIGGER)
    assert world.blob(target, TRIGGER).download_as_bytes() == b"\x00 no json {"


@pytest.mark.parametrize("dest", ["ds.<b>&t", "ds.%2F..%2F", "ds.a b+c", "ds.tä\t\x01", "ds.$20240101", "..--"])
def test_names_are_untrusted_text(world, clock_stands_still, dest):
    name = f"proj:p:US/{dest}--1_00001_load--dispatch"
    world.put(name)
    world.jobs([f"{dest}--1_00001_load--dispatch".replace("$", "_").replace(".", "_").replace(":", "_")])
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 1}
    assert world.names(TRIGGER) == [f"_bqjob_/{hour_of(world)}/{name}.json"]


def test_a_project_that_may_not_be_listed_is_an_error_and_the_others_go_on(world):
    world.traces(10, project="closed")
    world.traces(10, project="open")
    world.control.add_fault("bigquery.jobs.*", "status", status=403, reason="accessDenied", project="closed")
    document = world.cycle().to_dict()
    assert document["Status"] == "error"
    assert len(document["Errors"]) == 1
    assert "'closed'" in document["Errors"][0]
    assert document["Outcomes"] == {"dispatched": 10, "error": 10}
    assert len(world.names()) == 10


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 403, "reason": "forbidden"},
        {"kind": "text", "status": 200, "text": '{"error": {"code": 403, "message": "no"}}'},
    ],
    ids=["refused", "refused with the status of a success"],
)
def test_a_folder_that_cannot_be_listed_is_an_error(world, monkeypatch, fault):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY", RETRY.with_timeout(0.3))
    world.control.add_fault("storage.objects.list", **fault)
    document = world.cycle().to_dict()
    assert document["Status"] == "error"
    assert f"gs://{TASKS}/{FOLDER}" in document["Error"]


def test_limits_hold_whatever_runs_already(world):
    world.traces(3, "query", state="RUNNING")
    world.traces(10, "query")
    world.traces(1, "load", state="PENDING")
    world.traces(5, "copy")
    world.window("ds.w")
    report = world.cycle(MaxConcurrentSQL=5, MaxConcurrentJobs=3)
    document = report.to_dict()
    assert document["Dispatched"].get("QueryJobs") == 2
    assert document["Dispatched"].get("CopyJobs", 0) + document["Dispatched"].get("BatchJobs", 0) == 2
    assert document["Throttled"]["QueryJobs"] == 8
    assert adds_up(report)


def test_limits_are_per_project(world):
    for project in ("a", "b"):
        world.traces(3, project=project)
    assert world.cycle(MaxConcurrentJobs=2).dispatched == 4


def test_a_window_counts_in_the_project_in_which_its_load_runs(world):
    """BqTail loads in the project that the body names, else in its own, whatever the destination."""
    for number, body in enumerate(({"ProjectID": "other"}, {"ProjectID": "other"}, {}, {}, "no JSON")):
        world.window(f"a:ds.t{number}", content=body if isinstance(body, str) else json.dumps(body))
    world.trace(state="RUNNING", project="other")
    world.trace(state="RUNNING", project="a")
    report = world.cycle(MaxConcurrentJobs=2)
    assert {project: each["Dispatched"] for project, each in report.performance().items()} == {
        "a": {},
        "other": {"BatchJobs": 1},
        "p": {"BatchJobs": 2},
    }
    assert {project: each["Throttled"] for project, each in report.performance().items()} == {
        "a": {},
        "other": {"BatchJobs": 1},
        "p": {"BatchJobs": 1},
    }


@pytest.mark.parametrize("folder", ["gs://elsewhere", "gs://elsewhere/a/Tasks/b"])
def test_a_windows_project_is_its_destinations_wherever_the_folder_lies(world, folder):
    bucket, path = world.client.create_bucket("elsewhere"), folder.removeprefix("gs://elsewhere").strip("/")
    end = int(world.control.now()) - 60
    for number, dest in enumerate(("a:ds.t", "example.com:b.ds.t", "ds.t")):
        bucket.blob(f"{path}/{dest}_{number}_{end}.win".lstrip("/")).upload_from_string("{}")
    world.control.advance(10)
    report = world.cycle(AsyncTaskURL=folder)
    assert {project: each["Dispatched"] for project, each in report.performance().items()} == {
        project: {"BatchJobs": 1} for project in ("a", "example.com:b", "p")
    }


def test_the_oldest_go_first(world):
    young = world.trace(age=100)
    old = world.trace(age=900)
    middle = world.trace(age=500)
    assert list(world.cycle(MaxConcurrentJobs=2).to_dict()["Jobs"]) == [world.url_of(old), world.url_of(middle)]
    assert world.names() == [young]


def test_a_window_fired_a_moment_ago_counts_until_its_load_is_seen(world, clock_stands_still):
    for n in range(3):
        world.window(f"ds.t{n}", content=json.dumps({"EventID": f"{n}"}))
    assert world.cycle(MaxConcurrentJobs=2).dispatched == 2
    assert world.cycle(MaxConcurrentJobs=2).dispatched == 0
    world.jobs(["ds_t0--another_00001_load--dispatch"], age=-1)
    world.control.advance(70)
    assert world.cycle(MaxConcurrentJobs=2).dispatched == 0, "a load of the table that is not the window's own"
    world.jobs(["ds_t0--0_00001_load--dispatch"], age=0)
    assert world.cycle(MaxConcurrentJobs=2).dispatched == 1


def test_a_fired_window_of_which_bqtail_makes_no_load_counts_until_none_can_come(world, clock_stands_still):
    for n in range(2):
        world.window(f"ds.t{n}", content=json.dumps({"EventID": f"{n}", "Source": {"URL": "gs://p_bqtail/f"}}))
    world.client.bucket(TRIGGER).blob("f").upload_from_string("1")
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 1
    world.control.advance(1000)
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 0, "BqTail has not consumed it yet"
    (fired,) = world.names(TRIGGER, "_batch_/")
    world.delete(fired, TRIGGER)
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 0
    world.control.advance(590)
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 0
    world.control.advance(20)
    report = world.cycle(MaxConcurrentJobs=1)
    assert "BqTail has submitted no load" in report.quarantined[world.url_of(fired.removeprefix("_batch_/"))]
    assert world.cycle(MaxConcurrentJobs=1).to_dict()["Status"] == "error", "named by every report"
    assert sum(len(each) for each in (world.names(TRIGGER, "_batch_/"),)) == 1


def test_a_fired_window_whose_load_is_over_already_counts_no_more(world, clock_stands_still):
    world.window("ds.t0", content='{"EventID": "77"}')
    world.window("ds.t1", content='{"EventID": "78"}')
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 1
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 0
    world.jobs(["ds_t0--77_00001_load--dispatch"], age=0)
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 1


def test_performance_is_written_after_the_work(world):
    world.traces(2, "query")
    with world.dispatcher() as dispatcher:
        report = dispatcher.run(time_to_live=0)
    written = world.blob("journal/performance.json", JOURNAL).download_as_bytes()
    assert json.loads(written) == report.to_dict()["Performance"]
    assert json.loads(written)["p"]["Dispatched"] == {"QueryJobs": 2}


def test_a_run_whose_first_look_takes_longer_than_its_time_dispatches_all_the_same(world):
    world.traces(300)
    world.control.set_latency(100)  # a list of objects and one of jobs
    with world.dispatcher() as dispatcher:
        assert dispatcher.run(time_to_live=0.1).dispatched == 300
    world.control.set_latency(0)


def test_a_run_goes_on_until_its_time_is_up_and_is_ok(world, monkeypatch):
    world.trace()
    seen, waited = [], []
    clock = SimpleNamespace(monotonic=lambda: sum(waited))  # cycles take no time
    for module in ("dispatcher", "cycle.work_gate"):
        monkeypatch.setattr(f"bqdispatch_provider.{module}.time", clock)
    with world.dispatcher() as dispatcher:
        report = dispatcher.run(
            time_to_live=3.5,
            progress=lambda so_far: (seen.append(so_far.cycles), world.trace() if len(seen) == 1 else 0),
            wait=waited.append,
        )
    assert 2.5 <= sum(waited) <= 3.5
    document = report.to_dict()
    assert document["Status"] == "ok"
    assert document["Cycles"] == len(seen) >= 3
    assert document["Dispatched"] == {"LoadJobs": 2}
    assert document["Outcomes"]["dispatched"] == 2
    assert document["Listed"] == sum(document["Outcomes"].values())


def test_no_new_work_is_taken_once_it_is_told_to_stop(world):
    world.traces(5)
    report = world.cycle(go_on=lambda: False)
    assert report.to_dict()["Outcomes"] == {"pending": 5}
    assert len(world.names()) == 5


def test_a_run_whose_time_is_up_takes_no_new_work(world, monkeypatch):
    """Not even that which its last cycle has found."""
    later = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(later), sleep=time.sleep)
    for module in ("dispatcher", "cycle.work_gate"):
        monkeypatch.setattr(f"bqdispatch_provider.{module}.time", clock)
    with world.dispatcher() as dispatcher:
        look = dispatcher.look

        def look_until_the_time_is_up():
            seen = look()
            later.append(3600)
            return seen

        def fill(report):
            if report.cycles == 1:
                world.traces(5)
                world.window()
                dispatcher.look = look_until_the_time_is_up

        document = dispatcher.run(time_to_live=2 * PATIENCE_S, progress=fill).to_dict()
    assert (document["Status"], document["Cycles"], document["Outcomes"]) == ("ok", 2, {"pending": 6})
    assert len(world.names()) == 6


def test_a_run_that_is_told_to_stop_between_two_cycles_looks_no_more(world):
    told = iter([True, False])  # before the pause, and after it
    with world.dispatcher(go_on=lambda: next(told)) as dispatcher:
        assert dispatcher.run(time_to_live=PATIENCE_S).cycles == 1


def test_a_run_that_was_interrupted_leaves_a_dispatcher_that_can_go_on(world):
    def interrupt(report):
        raise KeyboardInterrupt

    with world.dispatcher() as dispatcher:
        with pytest.raises(KeyboardInterrupt):
            dispatcher.run(time_to_live=0, progress=interrupt)
        world.trace()
        assert dispatcher.cycle().dispatched == 1


def test_what_was_copied_when_it_is_told_to_stop_is_deleted_too(world):
    world.traces(1500)
    document = world.cycle(go_on=lambda: not world.names(TRIGGER)).to_dict()
    copied = {name.split("/", 2)[2].removesuffix(".json") for name in world.names(TRIGGER)}
    assert len(copied) == document["Outcomes"]["dispatched"] > 0
    assert copied.isdisjoint(world.names())
    assert len(world.names()) == document["Outcomes"]["pending"] == 1500 - len(copied)


def test_each_of_a_thousand_moves_has_an_outcome_of_its_own_and_no_error_is_lost(world):
    names = world.traces(1000)
    refused = {name for name in names if "--13" in name}
    world.control.add_fault("storage.objects.copy", "status", status=403, name="*--13*")
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 900, "error": 100}
    assert set(document["Jobs"]) == {world.url_of(name) for name in names if name not in refused}
    assert set(world.names()) == refused
    assert all(any(world.url_of(name) in error for error in document["Errors"]) for name in refused)


def test_what_a_refusal_says_does_not_decide_what_it_means(world):
    words = "context deadline exceeded, not found"
    closed = world.trace(project=words)
    stays = world.trace(dest=f"ds.{words}")
    world.control.refuse("bigquery.jobs.get", project=words)
    world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden")
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"error": 2}
    assert all(words in error for error in document["Errors"])
    assert (len(document["Errors"]), world.names()) == (2, sorted([closed, stays]))


def test_a_cycle_in_which_everything_happens_accounts_for_each_object(world, clock_stands_still):
    fired = world.window("ds.fired")
    world.cycle()
    world.put(fired, age=10)
    world.trace()
    world.traces(2, "query")
    world.trace("query", state="RUNNING")
    world.trace(state="PENDING")
    world.trace(age=1)
    world.trace(state=None)
    world.trace(state=None, age=2 * 86_400)
    world.trace(project="closed")
    world.window(due=1)
    world.put("x.grp", "strange")
    world.control.refuse("bigquery.jobs.get", project="closed")
    report = world.cycle(MaxConcurrentSQL=2)
    assert report.to_dict()["Outcomes"] == {
        "dispatched": 2,
        "running": 1,
        "pending": 2,
        "throttled": 1,
        "too_young": 1,
        "not_found": 1,
        "quarantined": 2,
        "ignored": 2,
        "unknown": 1,
        "error": 1,
    }
    assert report.outcomes.keys() == set(Outcome)
    assert adds_up(report)


def test_a_changed_configuration_is_taken_over_when_it_is_looked_for(world):
    world.traces(3)
    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.dispatcher import Dispatcher

    bucket = world.client.bucket(JOURNAL)
    bucket.blob("config.json").upload_from_string(json.dumps(world.document(CheckInMs=1, MaxConcurrentJobs=1)))
    config = DispatchConfig.from_url(f"gs://{JOURNAL}/config.json", storage_client=world.client)

    seen = []

    def loosen(report):
        seen.append(report.cycles)
        world.control.advance(1)  # the document is written again
        if report.cycles == 1:
            bucket.blob("config.json").upload_from_string(json.dumps(world.document(CheckInMs=1)))
        elif report.cycles == 2:
            bucket.blob("config.json").upload_from_string("{")

    with Dispatcher(config, world.client, world.session, go_on=lambda: len(seen) < 3) as dispatcher:
        report = dispatcher.run(time_to_live=3 * PATIENCE_S, progress=loosen)
    assert report.outcomes[Outcome.DISPATCHED] == 3
    assert report.cycles == 3
    assert any("no JSON" in error for error in report.errors)


def test_a_cycle_that_sees_nothing_says_nothing_of_how_things_stand(world):
    world.traces(3, state="RUNNING")
    seen = []

    def close_the_folder(report):
        seen.append(report.cycles)
        world.control.add_fault("storage.objects.list", "status", status=403, reason="forbidden")

    with world.dispatcher(go_on=lambda: len(seen) < 2) as dispatcher:
        document = dispatcher.run(time_to_live=2 * PATIENCE_S, progress=close_the_folder).to_dict()
    assert (document["Status"], document["Cycles"]) == ("error", 2)
    assert document["Performance"]["p"]["Running"] == {"LoadJobs": 3}
    assert document["Outcomes"] == {"running": 3}


@pytest.mark.parametrize("limit", [0, 5])
def test_shares_wait_by_name_while_nothing_answers(world, monkeypatch, limit):
    """Not even the server's time is known then."""
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY", RETRY.with_timeout(0.3))
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.3)
    names = world.traces(3)
    with world.dispatcher(MaxConcurrentJobs=limit) as dispatcher:
        shares = dispatcher.look().plan.shares()
    world.control.add_fault("storage.*", "reset")
    with world.dispatcher(MaxConcurrentJobs=limit) as dispatcher:
        document = dispatcher.run(0, first_shares=shares, label=RunLabel("dispatch")).to_dict()
    assert document["Outcomes"] == {"pending": 3}
    assert {*document["Waiting"]} == {*names}
    assert "Connection aborted" in document["Error"]
    assert f"gs://{TASKS}/{FOLDER}" in document["Error"]


def test_performance_is_written_once_a_minute_while_a_run_goes_on(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.dispatcher._PERFORMANCE_INTERVAL_S", 0.0)
    world.traces(2, state="RUNNING")
    written = []

    def progress(report):
        if report.cycles == 2:
            written.append(world.document_at(f"gs://{JOURNAL}/journal/performance.json"))
            raise KeyboardInterrupt

    with world.dispatcher() as dispatcher, pytest.raises(KeyboardInterrupt):
        dispatcher.run(time_to_live=2 * PATIENCE_S, progress=progress, wait=lambda _: None)
    assert written[0]["p"]["Running"] == {"LoadJobs": 2}


def test_to_bqtails_balancer_a_job_that_is_done_is_none_that_is_pending(world):
    """Also where somebody else is to dispatch it."""
    world.trace()
    world.trace(state="PENDING")
    with Dispatcher(
        world.config(), world.client, world.session, only=EventFilter(destinations=("other.*",))
    ) as dispatcher:
        report = dispatcher.run(time_to_live=0)
    assert report.outcomes == {"pending": 2}
    assert report.performance()["p"]["Pending"] == {"LoadJobs": 1}


def test_performance_is_left_as_it_is_when_nothing_was_seen(world):
    world.control.add_fault("storage.objects.list", "status", status=403, reason="forbidden")
    with world.dispatcher() as dispatcher:
        dispatcher.run(time_to_live=0)
    world.control.clear_faults()
    assert world.names(JOURNAL) == []


def test_a_cycle_that_fails_does_not_lose_the_run(world):
    world.trace()
    seen = []
    with world.dispatcher(go_on=lambda: len(seen) < 2) as dispatcher:
        look, looks = dispatcher.look, []

        def fail_once():
            looks.append(1)
            return look() if len(looks) > 1 else 1 / 0

        dispatcher.look = fail_once
        document = dispatcher.run(time_to_live=2 * PATIENCE_S, progress=lambda _: seen.append(1)).to_dict()
    assert "ZeroDivisionError" in document["Error"]
    assert document["Dispatched"] == {"LoadJobs": 1}
