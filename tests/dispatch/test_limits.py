"""Count at a limit, besides jobs with a trace, what is moved and not consumed, and what others move."""

import pytest
from test_doubt import LAST, put_intent
from world import FOLDER, TASKS, TRIGGER

LIMITED = {"MaxConcurrentJobs": 3}


def test_what_bqtail_has_not_consumed_takes_a_place(world):
    """Its next job is submitted by whoever consumes it, under a heavy load many seconds later."""
    first = world.traces(2)
    assert world.cycle(**LIMITED).dispatched == len(first)
    world.traces(5)
    document = world.cycle(**LIMITED).to_dict()
    assert (document["Outcomes"]["dispatched"], document["Outcomes"]["throttled"]) == (1, 4)
    for path in world.names(TRIGGER, "_bqjob_/"):
        world.delete(path, TRIGGER)
    world.control.advance(3)  # what was completed a moment ago may have been consumed since that was looked at
    assert world.cycle(**LIMITED).dispatched == 3


def test_what_lies_beside_its_usual_target_takes_the_same_place(world):
    name = world.trace()
    assert world.cycle(**LIMITED).dispatched == 1
    world.put(name, content='{"other": 1}')
    world.cycle(**LIMITED)
    assert len(world.names(TRIGGER, "_bqjob_/")) == 2
    world.traces(3)
    assert world.cycle(**LIMITED).dispatched == 2


def test_what_bqtail_has_not_consumed_for_longer_than_a_function_runs_takes_none(world):
    world.traces(3)
    assert world.cycle(**LIMITED).dispatched == 3
    world.control.advance(700)
    world.traces(3)
    assert world.cycle(**LIMITED).dispatched == 3


def test_what_is_consumed_takes_its_place_once_as_soon_as_its_next_job_is_seen(world):
    world.trace()
    assert world.cycle(**LIMITED).dispatched == 1
    name = f"proj:p:US/ds.t--{world._event}_00002_copy--dispatch"
    world.put(name, age=10)
    world.jobs([name.rpartition("/")[2].replace(".", "_")], "RUNNING", "copy")
    world.traces(3)
    assert world.cycle(**LIMITED).dispatched == 2


def test_queries_and_other_jobs_have_places_of_their_own(world):
    world.traces(2, "query")
    assert world.cycle(**LIMITED, MaxConcurrentSQL=2).dispatched == 2
    world.traces(2, "query")
    world.traces(3)
    report = world.cycle(**LIMITED, MaxConcurrentSQL=2)
    assert report.to_dict()["Dispatched"]["LoadJobs"] == 3
    assert report.dispatched == 3


def test_a_trigger_bucket_that_cannot_be_listed_is_named_and_no_limit_is_passed(world):
    world.traces(2)
    world.control.add_fault("storage.objects.list", "status", status=403, reason="forbidden", bucket=TRIGGER)
    document = world.cycle(**LIMITED).to_dict()
    assert document["Outcomes"] == {"error": 2}
    assert "the limits cannot be counted" in document["Errors"][0]
    world.control.clear_faults()
    assert world.cycle(**LIMITED).dispatched == 2


def test_a_task_counts_what_bqtail_has_not_consumed(world):
    world.traces(3)
    with world.dispatcher(**LIMITED) as dispatcher:
        shares = dispatcher.look().plan.shares()
    world.traces(2)
    with world.dispatcher(**LIMITED, MaxConcurrentSQL=1) as other:
        assert other.cycle().dispatched == 3  # the oldest, which are the share's
    with world.dispatcher(**LIMITED) as late:
        assert late.dispatch(shares).dispatched == 0


@pytest.mark.parametrize("completed", [False, True])
def test_what_others_move_after_the_look_takes_their_place(world, completed):
    mine = world.traces(3)
    with world.dispatcher(**LIMITED) as dispatcher:
        sight = dispatcher.look()
        dispatcher._plan = sight.plan
        theirs = world.traces(2)
        intent = put_intent(world, *theirs, owner=LAST)
        if completed:  # a moment ago, by whoever is through with it
            world.client.bucket(TASKS).blob(f"{FOLDER}{intent}.done").upload_from_string("")
        report = dispatcher.dispatch(sight.plan.shares())
    assert report.to_dict()["Outcomes"] == {"dispatched": 1, "throttled": 2}
    assert mine[0] not in world.names()


def test_what_others_move_takes_no_place_that_is_left(world):
    world.traces(2)
    with world.dispatcher(MaxConcurrentJobs=9) as dispatcher:
        sight = dispatcher.look()
        dispatcher._plan = sight.plan
        put_intent(world, *world.traces(5), owner=LAST)
        assert dispatcher.dispatch(sight.plan.shares()).dispatched == 2


def test_what_others_are_moving_and_is_gone_takes_a_place(world):
    theirs = world.traces(2)
    put_intent(world, *theirs, owner=LAST)
    for name in theirs:
        world.delete(name)
    world.traces(3)
    assert world.cycle(**LIMITED).dispatched == 1


def test_under_a_limit_what_is_completed_is_marked_at_once_and_stays_for_those_who_looked_before(world, monkeypatch):
    world.trace()
    with world.dispatcher(**LIMITED) as dispatcher:
        dispatcher.cycle()
        listed = {blob.name for blob in world.client.list_blobs(TASKS, prefix=f"{FOLDER}intents/")}
        assert {name.removesuffix(".done") for name in listed} == {name for name in listed if name.endswith(".json")}
        monkeypatch.setattr("bqdispatch_provider.intents._COUNTED_S", 0.0)
        world.control.advance(2)
        dispatcher.intents.remove()
    assert not [n for n in world.client.list_blobs(TASKS, prefix=f"{FOLDER}intents/") if n.name.endswith(".json")]


def refuse(world, name, status):
    """Let a copy of one trace be refused, in a batch and alone."""
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=status, name=f"*{name}")


@pytest.mark.parametrize("status", [400, 403, 404])
def test_the_place_of_what_is_refused_goes_to_the_next_one(world, status):
    bad = [world.trace(age=600), world.trace(age=500)]
    good = world.traces(5)
    for name in bad:
        refuse(world, name, status)
    document = world.cycle(**LIMITED).to_dict()
    assert document["Outcomes"] == {"dispatched": 3, "error": 2, "throttled": 2}
    assert document["Listed"] == 7
    assert document["Throttled"] == {"LoadJobs": 2}
    assert set(document["Jobs"]) == {world.url_of(name) for name in good[:3]}


def test_more_that_is_refused_than_a_limit_has_places_stops_nothing(world):
    for name in world.traces(8, age=600):
        refuse(world, name, 403)
    good = world.traces(2)
    document = world.cycle(**LIMITED).to_dict()
    assert document["Outcomes"] == {"dispatched": 2, "error": 8}
    assert set(document["Jobs"]) == {world.url_of(name) for name in good}


def test_the_place_of_a_window_that_cannot_be_claimed_goes_to_the_next_one(world):
    bad = world.window("ds.bad", due=600)
    good = world.window("ds.good")
    world.control.add_fault("storage.objects.compose", "status", status=403, name="*ds.bad*")
    document = world.cycle(MaxConcurrentJobs=1).to_dict()
    assert list(document["Batched"]) == [world.url_of(good)]
    assert world.url_of(bad) in document["Error"]


def test_what_may_have_been_delivered_keeps_its_place(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.storage._PATIENCE", 0.1)
    monkeypatch.setattr("bqdispatch_provider.dispatcher.AT_MOST", 0.5)
    refuse(world, world.trace(age=600), 503)
    world.traces(2)
    document = world.cycle(MaxConcurrentJobs=1).to_dict()
    assert document["Outcomes"] == {"error": 1, "throttled": 2}
    assert world.names(TRIGGER) == []


def test_what_was_copied_and_not_deleted_keeps_its_place(world):
    name = world.trace(age=600)
    world.control.add_fault("storage.objects.delete", "status", status=403, bucket=TASKS, name=f"*{name}")
    world.traces(2)
    assert world.cycle(MaxConcurrentJobs=1).to_dict()["Outcomes"] == {"error": 1, "throttled": 2}


def test_what_somebody_has_claimed_keeps_its_place_when_it_cannot_be_taken_over(world):
    """It may have been delivered, and its load be about to come."""
    world.claim(world.window("ds.claimed", due=600), ago=400)
    world.window("ds.other")
    world.control.add_fault("storage.objects.compose", "status", status=403, name="*ds.claimed*")
    document = world.cycle(MaxConcurrentJobs=1).to_dict()
    assert document["Outcomes"] == {"error": 1, "throttled": 1}


def test_the_place_of_what_lies_where_nothing_may_be_deleted_goes_to_the_next_one(world):
    world.trace(age=600)
    good = world.trace(region="EU")
    world.control.refuse("storage.objects.delete", bucket=TASKS, prefix=f"{FOLDER}proj:p:US/")
    document = world.cycle(MaxConcurrentJobs=1).to_dict()
    assert document["Outcomes"] == {"dispatched": 1, "pending": 1}
    assert list(document["Jobs"]) == [world.url_of(good)]
