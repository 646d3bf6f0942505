"""Count at a limit, besides jobs with a trace, what is moved and not consumed, and what others move."""

import pytest
from google.api_core.exceptions import GatewayTimeout
from test_doubt import LAST, put_intent
from world import FOLDER, TASKS, TRIGGER

from bqdispatch_provider.core.events import EventFilter
from bqdispatch_provider.cycle.underway import find_in_transit
from bqdispatch_provider.delivery.intent_objects import KEEP_COMPLETED_S
from bqdispatch_provider.dispatcher import Dispatcher

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


def test_what_somebody_else_has_dispatched_waits_for_no_slot(world):
    """It is gone: nothing would ever take it off the report's list of what waits."""
    world.traces(2, "query")
    window = world.window()
    limits = {"MaxConcurrentSQL": 2, "MaxConcurrentJobs": 1}
    with world.dispatcher(**limits) as dispatcher:
        shares = dispatcher.look().plan.shares()
    assert world.cycle(**limits).dispatched == 3
    world.delete(window)
    with world.dispatcher(**limits) as late:
        report = late.dispatch(shares)
    assert (report.outcomes, report.waits) == ({"ignored": 3}, {})


@pytest.mark.parametrize(
    ("state", "age", "dispatched"), [(None, 20, 0), (None, 70, 1), ("DONE", 20, 1), ("RUNNING", 20, 0)]
)
def test_a_task_counts_a_young_trace_as_the_plan_does(world, state, age, dispatched):
    world.traces(1)
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        shares = dispatcher.look().plan.shares()
    world.trace(state=state, age=age)
    with world.dispatcher(MaxConcurrentJobs=1) as late:
        assert late.dispatch(shares).dispatched == dispatched


def dispatcher_of(world, table, **more):
    only = EventFilter.from_dict({"destinations": table})
    return Dispatcher(world.config(**more), world.client, world.session, only=only)


@pytest.fixture
def looks_age(monkeypatch):
    """A look gets old, as it does outside of tests."""
    monkeypatch.setattr("bqdispatch_provider.delivery.intents._MAX_LOOK_AGE_S", 10.0)


def move_unseen(world, only):
    """Let another dispatcher move what it finds, and let its intents be completed, old and deleted."""
    with dispatcher_of(world, only, MaxConcurrentJobs=1) as other:
        assert other.cycle().dispatched == 1
    for name in world.names(TASKS, f"{FOLDER}intents/"):
        if name.removesuffix(".done").removesuffix(".json").endswith("-000001"):
            world.delete(name.removeprefix(FOLDER))
    world.control.advance(11)


@pytest.mark.parametrize("then", ["jobs", "announcement"])
def test_a_plan_that_is_older_than_what_others_leave_behind_is_counted_again(world, looks_age, then):
    world.trace(dest="ds.a")
    world.trace(dest="ds.b")
    with dispatcher_of(world, "ds.a", MaxConcurrentJobs=1) as slow:
        asked, name = (slow.board, "look") if then == "jobs" else (slow.own_intents, "announce")
        call = getattr(asked, name)

        def call_for_long(*given):
            found = call(*given) if then == "jobs" else None
            if world.names(TRIGGER) == []:
                move_unseen(world, "ds.b")
            return found or call(*given)

        setattr(asked, name, call_for_long)
        report = slow.cycle()
        assert (report.dispatched, report.outcomes["throttled"], report.errors) == (0, 1, [])


def test_a_second_count_that_takes_long_is_repeated(world, looks_age):
    world.trace(dest="ds.a")
    world.trace(dest="ds.b")
    with dispatcher_of(world, "ds.a", MaxConcurrentJobs=1) as slow:
        shares = slow.look().plan.shares()
        look = slow.intents.look

        def look_for_long(*given):
            found = look(*given)
            if world.names(TRIGGER) == []:
                move_unseen(world, "ds.b")
            return found

        slow.intents.look = look_for_long
        assert slow.dispatch(shares).outcomes == {"throttled": 1}


@pytest.mark.parametrize("planned", [False, True])
def test_no_duration_of_a_count_stops_dispatching_and_it_is_said(world, looks_age, planned):
    world.traces(5)
    with world.dispatcher(**LIMITED) as dispatcher:
        shares = dispatcher.look().plan.shares()
        look = dispatcher.intents.look

        def look_for_long(*given):
            found = look(*given)
            world.control.advance(11)
            return found

        dispatcher.intents.look = look_for_long
        report = dispatcher.cycle() if planned else dispatcher.dispatch(shares)
        assert report.dispatched == 3
        (error,) = report.errors
        assert error.startswith("it took more than 120 s to count the limits")


@pytest.mark.parametrize("recounts", [False, True])
def test_of_a_long_dispatch_each_part_fits_beside_all_others(world, looks_age, monkeypatch, recounts):
    """Once the limits were counted again, what the plan has left says nothing, and each part takes its own slots."""
    monkeypatch.setattr("bqdispatch_provider.cycle.dispatching.MAX_TRACES_PER_ROUND", 2)
    world.traces(9)
    with world.dispatcher(MaxConcurrentJobs=5) as dispatcher:
        announce = dispatcher.own_intents.announce

        def announce_late(events):
            if recounts:
                world.control.advance(11)
            return announce(events)

        dispatcher.own_intents.announce = announce_late
        assert dispatcher.cycle().outcomes == {"dispatched": 5, "throttled": 4}


def test_a_job_that_is_submitted_while_active_jobs_are_listed_for_long_takes_a_place(world):
    world.traces(1)
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        shares = dispatcher.look().plan.shares()
        active = dispatcher.board.active

        def active_for_long(*given):
            found = active(*given)
            world.trace(state="RUNNING")
            world.control.advance(70)
            return found

        dispatcher.board.active = active_for_long
        assert dispatcher.dispatch(shares).outcomes == {"throttled": 1}


@pytest.mark.parametrize("planned", [False, True])
def test_an_intent_that_cannot_be_read_while_limits_are_counted_lets_nothing_pass(world, planned):
    (mine,) = world.traces(1)
    theirs = world.traces(3)
    put_intent(world, *theirs, owner=LAST)
    for name in theirs:
        world.delete(name)
    with world.dispatcher(**LIMITED) as dispatcher:
        shares = None if planned else dispatcher.look().plan.shares()
        read = dispatcher.store.read

        def refuse_once(url, *more):
            if "intents/" in url:
                dispatcher.store.read = read
                raise GatewayTimeout("cannot be read")
            return read(url, *more)

        dispatcher.store.read = refuse_once
        report = dispatcher.cycle() if planned else dispatcher.dispatch(shares)
        assert report.dispatched == 0
        assert mine in world.names()


def test_a_window_that_another_dispatcher_takes_after_it_was_listed_is_no_error(world):
    name = world.window()
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        read = dispatcher.store.read

        def read_too_late(url, *more):
            if url == world.url_of(name):
                world.delete(name)
            return read(url, *more)

        dispatcher.store.read = read_too_late
        report = dispatcher.cycle()
    assert (report.outcomes, report.errors) == ({"pending": 1}, [])


@pytest.mark.parametrize("one_process", [False, True])
@pytest.mark.parametrize("status", [400, 403])
def test_a_window_whose_copy_is_refused_keeps_no_slot_and_is_named_in_each_cycle(world, status, one_process):
    name = world.window(due=600)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=status, name="*claim*")
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        for _ in range(4):
            world.trace(age=30)
            report = dispatcher.cycle() if one_process else world.cycle(MaxConcurrentJobs=1)
            assert report.dispatched == 1
            assert [name in each for each in report.errors] == [True]
            assert "claim" not in world.ledger(name)
            world.consume()
            world.control.advance(25)
        world.control.clear_faults()
        assert world.cycle(MaxConcurrentJobs=1).dispatched == 1
    assert world.names(TRIGGER, "_batch_/") == [f"_batch_/{name}"]


def test_a_window_whose_read_is_answered_with_404_while_it_is_there_is_named(world):
    name = world.window()
    world.control.add_fault("storage.objects.get", "status", status=404, name=f"*{name}")
    report = world.cycle(MaxConcurrentJobs=1)
    assert report.outcomes == {"error": 1}
    assert any(name in each for each in report.errors)


def test_deliveries_that_cannot_all_be_listed_are_named_and_no_limit_is_passed(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.trigger_bucket._MAX_TRANSIT_PAGES", 1)
    old = [f"_bqjob_/2026-01-01_00/ds.t--{n}_00001_query--dispatch.json" for n in range(1001)]
    world.control.seed_objects(TRIGGER, old)
    world.trace()
    (error,) = world.cycle(**LIMITED).errors
    assert "more than 1,000 objects" in error
    assert world.names() != []


@pytest.mark.parametrize("completed", [False, True])
def test_what_others_move_after_the_look_takes_their_place(world, completed):
    mine = world.traces(3)
    with world.dispatcher(**LIMITED) as dispatcher:
        sight = dispatcher.look()
        theirs = world.traces(2)
        intent = put_intent(world, *theirs, owner=LAST)
        if completed:  # a moment ago, by whoever is through with it
            world.client.bucket(TASKS).blob(f"{FOLDER}{intent}.done").upload_from_string("")
        report = dispatcher.dispatch(sight.plan.shares(), sight.plan.room)
    assert report.to_dict()["Outcomes"] == {"dispatched": 1, "throttled": 2}
    assert mine[0] not in world.names()


def test_what_others_move_takes_no_place_that_is_left(world):
    world.traces(2)
    with world.dispatcher(MaxConcurrentJobs=9) as dispatcher:
        sight = dispatcher.look()
        put_intent(world, *world.traces(5), owner=LAST)
        assert dispatcher.dispatch(sight.plan.shares(), sight.plan.room).dispatched == 2


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
        monkeypatch.setattr("bqdispatch_provider.delivery.own_intents.KEEP_COMPLETED_S", 0.0)
        world.control.advance(2)
        dispatcher.own_intents.delete_completed()
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


def test_what_may_have_been_delivered_keeps_its_place(world, few_tries):
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


def test_what_takes_the_place_of_a_refused_event_is_told_before_it_is_dispatched(world):
    """A task notes what it has in hand, for whoever goes on with it when it is killed."""
    refused, *others = world.traces(3)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403, name=f"*{refused}*")
    told = []
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        report = dispatcher.run(
            0, before_dispatch=lambda shares: told.append([e.name for s in shares for e in s.events])
        )
    (dispatched,) = [name for name in others if name not in world.names()]
    assert report.dispatched == 1
    assert told == [[refused], [refused, dispatched]]


def test_a_running_load_without_a_trace_takes_a_place_as_long_as_its_trace_may_be_unlisted(world):
    world.window("ds.a", content='{"EventID": "1"}')
    world.window("ds.b", content='{"EventID": "2"}')
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 1
    world.consume()
    world.jobs(["ds_a--1_00001_load--dispatch"], "RUNNING", age=0)
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 0
    world.control.advance(15)
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 1


def submit_after_listing(world, folder):
    """Let BqTail take what was fired, and submit its load, just after the next list of the task folder."""
    listing = folder.listing

    def list_too_early():
        folder.listing = listing
        found = listing()
        world.consume()
        world.put("proj:p:US/ds.a--1_00001_load--dispatch", age=0)
        world.jobs(["ds_a--1_00001_load--dispatch"], "RUNNING", age=0)
        return found

    folder.listing = list_too_early


def test_a_load_that_is_submitted_after_the_folder_was_listed_takes_a_place(world):
    world.window("ds.a", content='{"EventID": "1"}')
    world.cycle(MaxConcurrentJobs=1)
    world.window("ds.b", content='{"EventID": "2"}')
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        submit_after_listing(world, dispatcher.folder)
        for _ in range(3):
            assert dispatcher.cycle().to_dict()["Throttled"] == {"BatchJobs": 1}
            world.control.advance(20)


def test_a_task_counts_a_load_that_is_submitted_after_the_folder_was_listed(world):
    world.window("ds.b", content='{"EventID": "2"}')
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        shares = dispatcher.look().plan.shares()
    world.window("ds.a", content='{"EventID": "1"}')
    with dispatcher_of(world, "ds.a", MaxConcurrentJobs=1) as other:
        assert other.cycle().dispatched == 1
    with world.dispatcher(MaxConcurrentJobs=1) as late:
        submit_after_listing(world, late.folder)
        assert late.dispatch(shares).outcomes == {"throttled": 1}


def test_a_firing_that_is_not_looked_up_takes_a_place(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.delivery.open_firings.MAX_LOOKED_UP", 1)
    for n in range(6):
        world.window(f"ds.t{n}", due=90 - n, content=f'{{"EventID": "{n}"}}')
    with world.dispatcher(**LIMITED) as dispatcher:
        assert dispatcher.cycle().dispatched == 3
        world.consume()
        for seconds in (60, 1, 1):  # each look learns of one that BqTail has consumed it
            world.control.advance(seconds)
            assert dispatcher.cycle().dispatched == 0
        world.control.advance(700)
        assert [dispatcher.cycle().dispatched for _ in range(4)] == [1, 1, 1, 0]


def test_what_bqtail_has_not_consumed_is_asked_for_once_in_a_look_even_if_it_cannot_be_listed(world):
    world.window(content='{"EventID": "1"}')
    with world.dispatcher(MaxConcurrentJobs=5) as dispatcher:
        assert dispatcher.cycle().dispatched == 1
        world.control.advance(700)
        asked = []
        for times in (0, None):  # it may be listed; it may not
            world.control.add_fault("storage.objects.list", "status", bucket=TRIGGER, status=403, times=times)
            world.control.reset_counters()
            dispatcher.look()
            asked.append(world.control.calls()["storage.objects.list"])
    assert asked[0] == asked[1]


@pytest.mark.parametrize("limit", ["MaxConcurrentJobs", "MaxConcurrentSQL"])
def test_a_job_where_bigquery_cannot_list_takes_its_place_when_the_limits_are_counted_again(world, limit):
    kind = "query" if limit == "MaxConcurrentSQL" else "load"
    world.trace(kind)
    with world.dispatcher(**{limit: 1}) as dispatcher:
        shares = dispatcher.look().plan.shares()
    running = world.trace(kind, state="RUNNING", region="asia-east1", age=3600)
    with world.dispatcher(**{limit: 1}) as late:
        ask, listed = late.board.calls.ask, []

        def without_a_location(path, query):
            answer = ask(path, query)
            if "jobs" in answer:
                jobs = [job for job in answer["jobs"] if job["jobReference"]["location"] != "asia-east1"]
                listed.append(path)
                return {**answer, "jobs": jobs, "unreachable": ["asia-east1"]}
            return answer

        late.board.calls.ask = without_a_location
        assert late.dispatch(shares).outcomes == {"throttled": 1}
        assert listed
    assert running in world.names()


def test_a_firing_that_is_over_soon_counts_for_whoever_has_looked_before_it(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.delivery.intents._MAX_LOOK_AGE_S", KEEP_COMPLETED_S)
    world.window("ds.a", content='{"EventID": "1"}')
    world.window("ds.b", content='{"EventID": "2"}')
    with dispatcher_of(world, "ds.b", MaxConcurrentJobs=1) as slow:
        announce = slow.own_intents.announce_firings

        def announce_late(events):
            with dispatcher_of(world, "ds.a", MaxConcurrentJobs=1) as other:
                assert other.cycle().dispatched == 1
                world.consume()
                world.put("proj:p:US/ds.a--1_00001_load--dispatch", age=0)
                world.jobs(["ds_a--1_00001_load--dispatch"], "RUNNING", age=0)
                world.control.advance(65)
                other.cycle()
            return announce(events)

        slow.own_intents.announce_firings = announce_late
        assert slow.cycle().outcomes == {"throttled": 1, "pending": 1}


@pytest.mark.parametrize("completed", [True, False])
def test_what_others_move_while_the_trigger_bucket_is_listed_for_long_takes_a_place(world, monkeypatch, completed):
    mine = world.trace(dest="ds.a")
    theirs = world.trace(dest="ds.b")

    def find_for_long(services):
        monkeypatch.setattr("bqdispatch_provider.cycle.observation.find_in_transit", find_in_transit)
        found = find_in_transit(services)
        if completed:
            with dispatcher_of(world, "ds.b", MaxConcurrentJobs=1) as other:
                assert other.cycle().dispatched == 1
        else:  # its dispatcher was killed between the move and the completion
            put_intent(world, theirs, owner=LAST)
            world.delete(theirs)
        world.control.advance(33)
        return found

    monkeypatch.setattr("bqdispatch_provider.cycle.observation.find_in_transit", find_for_long)
    with dispatcher_of(world, "ds.a", MaxConcurrentJobs=1) as slow:
        assert slow.cycle().dispatched == 0
    assert mine in world.names()


def test_what_a_dispatcher_has_moved_before_it_was_killed_counts_for_whoever_has_looked_before_it(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.delivery.intents._MAX_LOOK_AGE_S", KEEP_COMPLETED_S)
    mine, theirs = world.trace(dest="ds.a"), world.trace(dest="ds.b")
    with dispatcher_of(world, "ds.a", MaxConcurrentJobs=1) as slow:
        announce = slow.own_intents.announce

        def announce_late(events):
            put_intent(world, theirs, owner=LAST)
            world.delete(theirs)
            world.control.advance(60)
            with dispatcher_of(world, "ds.b", MaxConcurrentJobs=1) as another:
                another.cycle()
            return announce(events)

        slow.own_intents.announce = announce_late
        assert slow.cycle().outcomes["throttled"] == 1
    assert mine in world.names()
    world.control.advance(KEEP_COMPLETED_S)
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 1
    assert not any("-000001.json" in name and LAST in name for name in world.intents())


def test_a_window_that_was_announced_and_left_takes_no_place(world):
    world.window("ds.a", content='{"EventID": "1"}')
    world.window("ds.b", content='{"EventID": "2"}')
    with (
        dispatcher_of(world, "ds.a", MaxConcurrentJobs=1) as first,
        dispatcher_of(world, "ds.b", MaxConcurrentJobs=1) as second,
    ):
        sight, announce = second.look(), first.own_intents.announce_firings

        def announce_at_the_same_time(events):
            first.own_intents.announce_firings = announce
            written = announce(events)
            assert second.dispatch(sight.plan.shares(), sight.plan.room).outcomes == {"throttled": 1}
            return written

        first.own_intents.announce_firings = announce_at_the_same_time
        assert first.cycle().outcomes["throttled"] == 1
        world.control.advance(3)
        assert second.cycle().dispatched == 1
