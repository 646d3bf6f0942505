"""A move is two calls: whatever either answers is looked into, and nothing is deleted without a proven copy."""

from datetime import UTC, datetime, timedelta

import pytest
from world import SOFT_DELETE, TASKS, TRIGGER, World

from bqdispatch_provider.core.events import Event, Share
from bqdispatch_provider.core.model import Lane
from bqdispatch_provider.core.targets import target_of


def share_of(world, *names):
    events = tuple(Event(name, int(blob.generation), blob.time_created) for name in names if (blob := world.blob(name)))
    return Share(Lane.JOBS, datetime.now(UTC), events)


def target(world, name):
    blob = world.blob(name)
    return target_of(Event(name, int(blob.generation), blob.time_created), Lane.JOBS, world.config())


def put_target(world, name, content):
    world.client.bucket(TRIGGER).blob(name).upload_from_string(content)


def test_a_copy_that_was_made_before_is_not_made_again(world):
    name = world.trace(content='{"a": 1}')
    before = target(world, name)
    put_target(world, before, '{"a": 1}')
    generation = world.blob(before, TRIGGER).generation
    assert world.cycle().dispatched == 1
    assert world.names() == []
    assert world.names(TRIGGER) == [before]
    assert world.blob(before, TRIGGER).generation == generation


def test_another_trace_of_the_same_name_goes_out_beside_the_first(world):
    name = world.trace(content="second")
    first, generation = target(world, name), world.blob(name).generation
    put_target(world, first, "first")
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 1}
    other = first.removesuffix(".json") + f"_{generation}.json"
    assert world.names(TRIGGER) == sorted([first, other])
    assert world.blob(first, TRIGGER).download_as_bytes() == b"first"
    assert world.blob(other, TRIGGER).download_as_bytes() == b"second"
    assert world.names() == []


def test_both_names_taken_by_others_leave_the_trace_where_it_is(world):
    name = world.trace(content="third")
    first, generation = target(world, name), world.blob(name).generation
    put_target(world, first, "first")
    put_target(world, first.removesuffix(".json") + f"_{generation}.json", "second")
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"error": 1}
    assert name in document["Error"]
    assert world.names() == [name]


def test_a_trace_that_was_written_again_is_left_to_the_next_cycle(world):
    name = world.trace(content="old")
    share = share_of(world, name)
    world.put(name, content="new")
    with world.dispatcher() as dispatcher:
        report = dispatcher.dispatch([share])
    assert report.to_dict()["Outcomes"] == {"ignored": 1}
    assert world.blob(name).download_as_bytes() == b"new"
    assert world.names(TRIGGER) == []


def test_a_trace_that_somebody_else_moved_is_not_an_error(world):
    names = world.traces(3)
    share = share_of(world, *names)
    world.delete(names[1])
    with world.dispatcher() as dispatcher:
        report = dispatcher.dispatch([share])
    assert report.to_dict()["Outcomes"] == {"dispatched": 2, "ignored": 1}
    assert report.ok


def test_a_trace_written_again_between_copy_and_delete_is_not_deleted(world):
    name = world.trace(content="old")
    with world.dispatcher() as dispatcher:
        delete = dispatcher.store.delete

        def write_again_first(objects):
            dispatcher.store.delete = delete  # the next one is that of the intent
            world.put(name, content="new")
            return delete(objects)

        dispatcher.store.delete = write_again_first
        assert dispatcher.cycle().dispatched == 1
    assert world.blob(name).download_as_bytes() == b"new"
    assert len(world.names(TRIGGER)) == 1


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 503}, {"kind": "status", "status": 429}, {"kind": "reset"}]
)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["storage.objects.copy", "storage.objects.delete", "storage.batch"])
def test_a_passing_fault_loses_and_doubles_nothing(world, call, after, fault):
    names = world.traces(30)
    world.control.add_fault(call, after=after, times=2, **fault)
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 30}, document["Errors"]
    assert document["Status"] == "ok"
    assert len(world.names(TRIGGER)) == len(names)
    assert world.names() == []


def test_a_copy_that_is_refused_keeps_its_source_and_the_others_go(world):
    names = world.traces(5)
    world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden", name=f"*{names[2]}")
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 4, "error": 1}
    assert document["Status"] == "error"
    assert world.url_of(names[2]) in document["Error"]
    assert world.names() == [names[2]]
    assert world.url_of(names[2]) not in document["Jobs"]


def test_where_no_delete_works_nothing_is_moved_in_no_process(world):
    names = world.traces(450)
    world.control.add_fault("storage.objects.delete", "status", status=403, reason="forbidden", bucket=TASKS)
    for _ in range(2):
        document = world.cycle().to_dict()
        assert document["Outcomes"] == {"pending": 450}
        assert "a delete there was answered with 403" in document["Error"]
        assert len(document["Errors"]) == 1
    assert world.names(TRIGGER) == []
    assert world.names() == sorted(names)


def test_in_which_folder_a_delete_works_is_seen_before_anything_is_moved_from_there(world):
    good, bad = world.traces(3), world.traces(3, project="other")
    root = world.trace(root=True)
    world.control.add_fault(
        "storage.objects.delete", "status", status=403, reason="forbidden", bucket=TASKS, name="*proj:other:*"
    )
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 4, "pending": 3}
    assert "proj:other:US/" in document["Error"]
    assert set(document["Jobs"]) == {world.url_of(name) for name in [*good, root]}
    assert world.names() == sorted(bad)


@pytest.mark.parametrize("status", [400, 403, 503])
@pytest.mark.parametrize("calls", [("copy", "rewrite"), ("delete",)], ids="/".join)
def test_what_is_refused_of_the_oldest_trace_keeps_none_of_the_others(world, few_tries, calls, status):
    oldest = world.trace(age=600)
    world.traces(150)
    for call in calls:
        world.control.add_fault(f"storage.objects.{call}", "status", status=status, bucket=TASKS, name=f"*{oldest}")
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 150, "error": 1}
    assert world.url_of(oldest) in document["Error"]
    assert str(status) in document["Error"]


@pytest.mark.parametrize("status", [404, 412])
def test_a_delete_is_done_when_it_is_seen_to_be_done(world, status):
    """A service, or a proxy, may say that an object is gone which is there still: then it would be delivered again."""
    name = world.trace()
    world.control.add_fault("storage.objects.delete", "status", status=status, bucket=TASKS, name=f"*{name}")
    for _ in range(3):
        document = world.cycle().to_dict()
        assert document["Outcomes"]["error"] == 1
        assert f"{status}" in document["Error"]
        assert "it still exists" in document["Error"]
        assert list(document["Jobs"]) == []
        for each in world.names(TRIGGER):
            world.delete(each, TRIGGER)
        world.control.advance(200)
    assert len(world.deleted()) == 1
    world.control.clear_faults()
    assert world.cycle().to_dict()["Outcomes"]["dispatched"] == 1
    assert world.names(TRIGGER) == []


def test_a_copy_that_is_refused_for_what_is_not_there_is_tried_again_and_then_said(world):
    name = world.trace()
    fault = {"kind": "status", "status": 412, "reason": "conditionNotMet", "name": f"*{name}"}
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, times=1, **fault)
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 1}
    world.control.clear_faults()
    name = world.trace()
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, **fault | {"name": f"*{name}"})
    document = world.cycle().to_dict()
    assert document["Outcomes"]["error"] == 1
    assert world.url_of(name) in document["Error"]


def test_what_was_tried_all_the_time_and_not_done_is_an_error_with_its_reason(world, few_tries):
    names = world.traces(21)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=503)
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"error": 21}
    assert document["Status"] == "error"
    assert "503" in document["Error"]
    assert len(document["Errors"]) == len(names)


@pytest.mark.parametrize("batches", [True, False])
def test_a_copy_that_is_too_large_for_a_batch_goes_on_by_rewrites(world, batches):
    names = world.traces(3)
    world.control.add_fault("storage.objects.copy", "status", status=413, name=f"*{names[1]}")
    if not batches:
        world.control.add_fault("storage.batch", "status", status=404, reason="notFound")
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 3}


def test_an_endpoint_without_batches_is_served_by_single_calls(world):
    world.traces(4)
    world.window()
    world.control.add_fault("storage.batch", "status", status=404, reason="notFound")
    world.control.set_rewrite_calls(3)
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 5}
    assert len(world.names(TRIGGER)) == 5
    assert world.control.calls()["storage.objects.rewrite"] >= 12


def test_a_share_is_bound_to_its_generations_in_another_process(world):
    name = world.trace()
    with world.dispatcher() as dispatcher:
        shares = [share.to_dict() for share in dispatcher.look().plan.shares()]
    import json

    shares = [Share.from_dict(share) for share in json.loads(json.dumps(shares))]
    with world.dispatcher() as dispatcher:
        first = dispatcher.dispatch(shares)
        again = dispatcher.dispatch(shares)
    assert list(first.to_dict()["Jobs"]) == [world.url_of(name)]
    assert again.to_dict()["Outcomes"] == {"ignored": 1}
    assert len(world.names(TRIGGER)) == 1


def test_one_that_cannot_be_looked_into_keeps_none_of_the_others_from_being_deleted(world):
    names = world.traces(50)
    world.control.add_fault("storage.objects.copy", "status", status=412, reason="conditionNotMet", name=f"*{names[7]}")
    world.control.add_fault("storage.objects.get", "status", status=403, reason="forbidden", name=f"*{names[7]}")
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 49, "error": 1}
    assert world.names() == [names[7]]


@pytest.mark.parametrize("keeping", [SOFT_DELETE, {}], ids=["soft delete", "nothing kept"])
def test_what_this_run_has_copied_is_only_deleted_later_even_if_it_was_consumed(cloud, world, monkeypatch, keeping):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
    world.control.reset()
    world = World(cloud.url, world.control, keeping)
    world.traces(20)
    world.control.add_fault("storage.objects.delete", "status", status=503, bucket=TASKS, name="*--dispatch")
    with world.dispatcher() as dispatcher:
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"error": 20}
        delivered = world.names(TRIGGER)
        for name in delivered:
            world.delete(name, TRIGGER)
        world.control.clear_faults()
        report = dispatcher.cycle()
    assert (report.dispatched, report.errors) == (20, [])
    assert len(delivered) == 20
    assert world.names(TRIGGER) == []
    assert not [name for name in world.names() if name.startswith("proj:")]


def test_a_share_that_was_planned_under_a_limit_long_ago_is_counted_again(world):
    """However long a look has taken, or a task has waited for a slot of its pool."""
    name = world.trace()
    share = Share(Lane.JOBS, datetime.now(UTC) - timedelta(minutes=3), share_of(world, name).events)
    with world.dispatcher() as dispatcher:
        assert dispatcher.dispatch([share]).to_dict()["Outcomes"] == {"dispatched": 1}


def test_a_look_that_takes_minutes_stops_nothing_under_a_limit(world):
    world.traces(3)
    with world.dispatcher(MaxConcurrentJobs=2) as dispatcher:
        look = dispatcher.look

        def long_look():
            seen = look()
            world.control.advance(180)
            dispatcher.store.listing()
            return seen

        dispatcher.look = long_look
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"dispatched": 2, "throttled": 1}


def test_a_share_that_was_planned_elsewhere_is_held_to_its_limit_by_what_runs_now(world):
    names = world.traces(4)
    with world.dispatcher(MaxConcurrentJobs=5) as dispatcher:
        shares = dispatcher.look().plan.shares()
    world.traces(3, "copy", state="RUNNING")
    world.traces(2, "query", state="RUNNING")
    world.jobs(["ds_t--1_00002_copy--tail", "somebody_elses"], "RUNNING")  # without a trace
    with world.dispatcher(MaxConcurrentJobs=5) as dispatcher:
        document = dispatcher.dispatch(shares).to_dict()
    assert (document["Outcomes"], document["Throttled"]) == ({"dispatched": 2, "throttled": 2}, {"LoadJobs": 2})
    assert set(document["Jobs"]) == {world.url_of(name) for name in names[:2]}


def test_jobs_without_a_trace_take_no_place_of_a_share_that_was_planned_elsewhere(world):
    """BqTail gives them IDs of the same form."""
    world.traces(3)
    with world.dispatcher(MaxConcurrentJobs=3) as dispatcher:
        shares = dispatcher.look().plan.shares()
    world.jobs([f"ds_t--{n}_00003_copy--dispatch" for n in range(5)], "RUNNING", age=2)
    with world.dispatcher(MaxConcurrentJobs=3) as dispatcher:
        assert dispatcher.dispatch(shares).outcomes == {"dispatched": 3}


def test_of_a_share_that_was_planned_elsewhere_nothing_goes_while_what_runs_cannot_be_told(world):
    name = world.trace()
    with world.dispatcher(MaxConcurrentJobs=5) as dispatcher:
        shares = dispatcher.look().plan.shares()
    world.control.refuse("bigquery.jobs.list", project="p")
    with world.dispatcher(MaxConcurrentJobs=5) as dispatcher:
        document = dispatcher.dispatch(shares).to_dict()
    assert document["Outcomes"] == {"throttled": 1}
    assert "the jobs of project 'p' cannot be listed" in document["Error"]
    assert world.names() == [name]


def test_what_is_planned_and_dispatched_in_one_cycle_is_counted_once(world):
    world.traces(4)
    world.control.reset_counters()
    world.cycle(MaxConcurrentJobs=5)
    calls = world.control.calls()
    assert (calls["bigquery.jobs.get"], "bigquery.jobs.list" in calls) == (4, False)


def test_a_look_of_another_form_does_not_prove_that_a_trace_is_gone(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
    name = world.trace()
    world.control.add_fault("storage.objects.delete", "status", status=404, bucket=TASKS, name=f"*{name}")
    world.control.add_fault("storage.objects.get", "text", status=200, text='{"kind": "odd"}', bucket=TASKS)
    document = world.cycle().to_dict()
    assert (document["Outcomes"], list(document["Jobs"])) == ({"error": 1}, [])
    assert "unexpected form" in document["Error"]
