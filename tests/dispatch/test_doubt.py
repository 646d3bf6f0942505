"""Whether an event was delivered is proven, or in doubt and settled: by intents, new generations, old versions."""

import json
import math
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from google.api_core.exceptions import Forbidden
from test_move import put_target, share_of, target
from test_oversized import large
from waiting import HELD_MS, PATIENCE_S, wait_until
from world import FOLDER, JOURNAL, TASKS, TRIGGER, VERSIONING, World

from bqdispatch_provider.core.sizes import MAX_INTENT_BYTES
from bqdispatch_provider.core.targets import CREATED
from bqdispatch_provider.core.traces import LEASE
from bqdispatch_provider.core.windows import CLAIM_TIMEOUT
from bqdispatch_provider.cycle.recording import Recorder
from bqdispatch_provider.delivery.intent_objects import open_intents
from bqdispatch_provider.gcp.permissions import missing_permissions
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.gcp.storage_calls import RETRY
from bqdispatch_provider.names import WindowName

LATER = CLAIM_TIMEOUT.total_seconds() + 5


FIRST, LAST = "0", "z"
"""Owners of intents that come before, and after, every dispatcher's own."""


def put_intent(world, *names, owner=FIRST, generations=None, ending=""):
    """What another dispatcher has written down before it moves traces."""
    moves = [[name, int(world.blob(name).generation)] for name in names]
    for move, generation in zip(moves, generations or (), strict=False):
        move[1] = generation
    intent = f"intents/{owner}-000001{ending}.json"
    text = json.dumps({"version": 1, "owner": owner, "moves": moves})
    world.client.bucket(TASKS).blob(FOLDER + intent).upload_from_string(text)
    return intent


def instead_of_sleeping(monkeypatch, meanwhile):
    """What happens while a dispatcher waits for others; nobody else's pauses are touched."""
    monkeypatch.setattr(
        "bqdispatch_provider.delivery.intents.time", SimpleNamespace(sleep=meanwhile, monotonic=time.monotonic)
    )


def traces_of(world):
    return [name for name in world.names() if name.startswith("proj:")]


def deliver_and_consume(world, name):
    """What a dispatcher did that then died before the delete, and BqTail after it."""
    where = target(world, name)
    source = world.client.bucket(TASKS)
    source.copy_blob(source.blob(FOLDER + name), world.client.bucket(TRIGGER), where)
    world.delete(where, TRIGGER)
    return where


def test_a_trace_that_another_dispatcher_is_moving_is_left_to_it(world):
    names = world.traces(3)
    intent = put_intent(world, names[1])
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 2, "pending": 1, "ignored": 1}
    assert world.names() == [intent, names[1]]
    assert document["Status"] == "ok"


def test_whoever_leaves_traces_to_another_says_at_once_that_it_has_done(world):
    """The other waits for that, and a cycle of this one is over long before its intent may be deleted."""
    put_intent(world, *world.traces(3))
    with world.dispatcher() as dispatcher:
        assert dispatcher.cycle().dispatched == 0
        listed = {blob.name for blob in world.client.list_blobs(TASKS, prefix=f"{FOLDER}intents/")}
        mine = next(name for name in listed if dispatcher.own_intents.owner in name and name.endswith(".json"))
        assert f"{mine}.done" in listed


def test_the_first_of_those_that_see_each_other_goes_on_once_the_others_have_left_it_the_traces(world, monkeypatch):
    names = world.traces(3)
    intent = put_intent(world, *names, owner=LAST)

    def meanwhile(seconds):
        """The other leaves them, and comes again at once, as it does cycle after cycle."""
        world.delete(intent)
        world.client.bucket(TASKS).blob(f"{FOLDER}intents/{LAST}-000002.json").upload_from_string(
            json.dumps(
                {"version": 1, "owner": LAST, "moves": [[name, int(world.blob(name).generation)] for name in names]}
            )
        )

    instead_of_sleeping(monkeypatch, meanwhile)
    assert world.cycle().dispatched == 3
    assert traces_of(world) == []


def lists(world):
    return world.control.calls()["storage.objects.list"]


def test_nobody_waits_for_another_beyond_its_own_time(world):
    put_intent(world, *world.traces(3), owner=LAST)
    with world.dispatcher() as dispatcher:
        events = [event for lane in dispatcher.look().plan.events.values() for event in lane]
        world.control.reset_counters()
        announced = dispatcher.intents.announce(events, until=time.monotonic())
        assert len(announced.held) == len(events)
        assert lists(world) == 1
        dispatcher.intents.withdraw(announced, [])


def test_of_two_that_run_a_cycle_at_the_same_moment_one_goes_on(world):
    world.traces(3)
    together = threading.Barrier(2, timeout=PATIENCE_S)
    with world.dispatcher() as one, world.dispatcher() as other, ThreadPoolExecutor(2) as threads:
        for dispatcher in (one, other):
            check = dispatcher.intents._check_others
            dispatcher.intents._check_others = lambda *given, check=check: (together.wait(), check(*given))[1]
        running = [threads.submit(dispatcher.run, time_to_live=0) for dispatcher in (one, other)]
        assert sum(each.result().dispatched for each in running) == 3
    assert traces_of(world) == []


def when_it_is_read(monkeypatch, dispatcher, intent, then):
    """Do something between the list that shows an intent and the read of it, once."""
    read = dispatcher.store.read

    def read_late(url, *arguments):
        if url.endswith(intent):
            monkeypatch.setattr(dispatcher.store, "read", read)
            then()
        return read(url, *arguments)

    monkeypatch.setattr(dispatcher.store, "read", read_late)


def test_what_an_intent_leaves_that_is_deleted_before_it_is_read_is_not_delivered_again(world, monkeypatch):
    left, other = world.traces(2)
    targets = [target(world, name) for name in (left, other)]
    intent = put_intent(world, left)

    def meanwhile():
        """The other dispatcher has copied the trace and could not delete it, and BqTail has taken the copy."""
        deliver_and_consume(world, left)
        put_intent(world, left, ending="-left")
        world.delete(intent)

    with world.dispatcher() as dispatcher:
        plan = dispatcher.look().plan
        when_it_is_read(monkeypatch, dispatcher, intent, meanwhile)
        report = dispatcher.dispatch(plan.shares(), plan.room)
        assert report.outcomes == {"dispatched": 1, "pending": 1}
        assert traces_of(world) == [left]
        world.control.advance(LATER)
        assert dispatcher.cycle().dispatched == 1
    assert sorted([*world.names(TRIGGER), *world.deleted()]) == sorted(targets)


def test_traces_wait_for_an_intent_that_is_listed_and_said_to_be_gone(world):
    name = world.trace()
    intent = put_intent(world, name)
    world.control.add_fault("storage.objects.get", "status", status=404, name=f"*{intent}")
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"error": 1, "ignored": 1}
    assert repr(world.url_of(intent)) in document["Error"]
    world.control.clear_faults()
    world.delete(intent)
    assert world.cycle().dispatched == 1


def test_intents_that_go_faster_than_they_are_read_are_not_listed_for_ever(world, monkeypatch):
    name = world.trace()
    with world.dispatcher() as dispatcher:
        plan = dispatcher.look().plan
        intents = [put_intent(world, name)]
        read = dispatcher.store.read

        def read_late(url, *arguments):
            """The other dispatcher has replaced its intent meanwhile, and goes on doing so."""
            if url.endswith(intents[-1]) and len(intents) < 50:
                world.delete(intents[-1])
                intents.append(put_intent(world, name, ending=f"-{len(intents)}"))
            return read(url, *arguments)

        monkeypatch.setattr(dispatcher.store, "read", read_late)
        report = dispatcher.dispatch(plan.shares(), plan.room)
    assert report.outcomes == {"error": 1}
    assert len(intents) < 10
    assert traces_of(world) == [name]


def test_nobody_waits_for_those_that_have_been_moving_for_a_while(world):
    """They are busy, or gone: what they leave is seen in a later cycle."""
    bad, other = world.traces(2)
    put_intent(world, bad, owner=LAST)
    world.control.advance(10)
    world.control.reset_counters()
    assert world.cycle().dispatched == 1
    assert lists(world) == 2
    assert traces_of(world) == [bad]
    assert other not in world.names()


def test_what_a_killed_dispatcher_had_in_hand_keeps_a_limit_for_seconds_and_not_minutes(world):
    put_intent(world, *world.traces(2, age=600))
    world.traces(2)
    assert world.cycle(MaxConcurrentJobs=2).dispatched == 0
    world.control.advance(LEASE.total_seconds() + 1)
    assert world.cycle(MaxConcurrentJobs=2).dispatched == 2


def test_a_dispatcher_that_lives_keeps_what_it_is_moving_for_as_long_as_that_takes(world, monkeypatch):
    for module in ("cycle.dispatching", "delivery.own_intents"):
        monkeypatch.setattr(f"bqdispatch_provider.{module}.RENEW_INTERVAL_S", 0.2)
    names = world.traces(3)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "slow", ms=HELD_MS)

    def intent():
        return next((blob for blob in world.client.list_blobs(TASKS, prefix=f"{FOLDER}intents/")), None)

    with ThreadPoolExecutor(1) as aside:
        moving = aside.submit(world.cycle)
        for _ in range(4):
            before = wait_until(intent, "it is written down").generation
            world.control.advance(LEASE.total_seconds() / 2)
            wait_until(lambda before=before: intent().generation != before, "it is renewed")
            assert world.cycle().outcomes["pending"] == len(names)
        world.control.clear_faults()
        assert moving.result().dispatched == len(names)
    assert len(world.names(TRIGGER)) == len(names)
    for _ in range(2):  # intents, and then what says that they are completed
        world.control.advance(LATER)
        world.cycle()
    assert world.intents() == []


def test_a_round_of_many_short_moves_is_renewed_too(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.delivery.own_intents.RENEW_INTERVAL_S", 0.2)
    world.traces(800)
    world.control.add_fault("storage.batch", "slow", ms=300)
    with world.dispatcher(MaxWritesPerSecond=500) as dispatcher:
        written = []
        write = dispatcher.own_intents._write
        dispatcher.own_intents._write = lambda *given, **more: (written.append(given[0]), write(*given, **more))[1]
        assert dispatcher.cycle().dispatched == 800
    assert len(written) > len(set(written))


def test_a_renewal_whose_answer_is_lost_leaves_no_doubt(cloud, world):
    world.control.reset()
    world = World(cloud.url, world.control, {})
    bad = world.trace()
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403, name=f"*{bad}")
    with world.dispatcher(OnDoubt="quarantine") as dispatcher:
        move = dispatcher.mover.move

        def slow_move(events, until):
            dispatcher.own_intents._written_at = dict.fromkeys(dispatcher.own_intents._written_at, -math.inf)
            world.control.advance(2)
            fault = {"status": 503, "after": True, "times": 1, "name": "*intents/*"}
            world.control.add_fault("storage.objects.insert", "status", **fault)
            dispatcher.own_intents.renew()
            return move(events, until)

        dispatcher.mover.move = slow_move
        assert dispatcher.cycle().outcomes["error"] == 1
        dispatcher.mover.move = move
        world.control.clear_faults()
        world.control.advance(2)
        report = dispatcher.cycle()
    assert (report.dispatched, report.quarantined) == (1, {})


def test_what_another_dispatcher_has_begun_is_left_to_it_also_when_it_says_so_late(world, monkeypatch):
    begun, other = world.traces(2)
    intent = put_intent(world, begun, other, owner=LAST)

    def meanwhile(seconds):
        """The other copies one, cannot delete it, and writes that down instead."""
        put_intent(world, begun, owner=LAST, ending="-left")
        world.delete(intent)

    instead_of_sleeping(monkeypatch, meanwhile)
    assert world.cycle().dispatched == 1
    assert traces_of(world) == [begun]


def test_an_interrupted_dispatcher_finishes_what_was_begun_and_leaves_the_rest_to_whoever_tries_again(world):
    names = world.traces(3000)
    for later in ("*--1[1-9]??_*", "*--[234]???_*"):  # than the first batch
        world.control.add_fault("storage.objects.copy", "slow", name=later, ms=HELD_MS, after=True)
    main, interrupted = threading.current_thread().ident, threading.Event()

    def interrupt():
        wait_until(lambda: world.control.calls().get("storage.objects.copy", 0) > 100, "it copies")
        signal.pthread_kill(main, signal.SIGINT)
        assert interrupted.wait(PATIENCE_S)
        world.control.clear_faults()

    def note(number, frame):
        interrupted.set()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, note)
    try:
        with ThreadPoolExecutor(1) as aside, pytest.raises(KeyboardInterrupt):
            aside.submit(interrupt)
            world.cycle()
    finally:
        signal.signal(signal.SIGINT, before)
    left = traces_of(world)
    assert 0 < len(left) < len(names)
    assert len(world.names(TRIGGER, "_bqjob_/")) == len(names) - len(left)
    assert not [name for name in world.names() if name.startswith("intents/")]
    assert world.cycle().to_dict()["Dispatched"]["LoadJobs"] == len(left)
    assert len(world.names(TRIGGER, "_bqjob_/")) == len(names)


def test_a_dispatcher_that_is_interrupted_while_it_notes_what_it_has_done_takes_back_what_it_has_written(
    world, monkeypatch
):
    names = world.traces(300)
    main, told, record = threading.current_thread().ident, threading.Event(), Recorder.record

    def interrupted(*arguments):
        if not told.is_set() and len(world.names(TRIGGER)) > 0:
            told.set()
            signal.pthread_kill(main, signal.SIGINT)
        record(*arguments)

    monkeypatch.setattr(Recorder, "record", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            world.cycle()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [name for name in world.names() if name.startswith("intents/")]
    assert len(world.names(TRIGGER, "_bqjob_/")) == len(names) - len(traces_of(world))


def test_a_dispatcher_that_is_interrupted_while_it_waits_for_others_takes_back_what_it_has_written(world, monkeypatch):
    names = world.traces(3)
    intent = put_intent(world, names[0], owner=LAST)

    def interrupt(seconds):
        raise KeyboardInterrupt

    instead_of_sleeping(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.cycle()
    assert [name for name in world.names() if name.startswith("intents/")] == [intent]
    world.delete(intent)
    assert world.cycle().dispatched == 3


def test_what_was_written_down_is_taken_back_when_the_others_cannot_be_seen(world):
    world.traces(3)
    with world.dispatcher() as dispatcher:
        plan = dispatcher.look().plan
        missing_permissions(dispatcher.store)
        world.control.add_fault("storage.objects.list", "status", status=403, times=1)
        report = dispatcher.dispatch(plan.shares())
    assert report.outcomes == {"error": 3}
    assert not [name for name in world.names() if name.startswith("intents/")]
    assert world.cycle().dispatched == 3


def test_a_trace_whose_dispatcher_died_before_its_copy_is_delivered_once(world):
    name = world.trace()
    where = target(world, name)
    put_intent(world, name)
    world.control.advance(LATER)
    report = world.cycle()
    assert (report.dispatched, report.errors) == (1, [])
    assert world.names(TRIGGER) == [where]
    assert traces_of(world) == []


@pytest.mark.parametrize("keeping", [None, VERSIONING], ids=["soft delete", "versioning"])
def test_a_trace_whose_copy_was_consumed_before_the_delete_is_not_delivered_again(cloud, world, keeping):
    if keeping:
        world.control.reset()
        world = World(cloud.url, world.control, keeping)
    name = world.trace()
    world.control.advance(1)
    put_intent(world, name)
    deliver_and_consume(world, name)
    world.control.advance(LATER)
    report = world.cycle()
    assert report.dispatched == 1
    assert world.names(TRIGGER) == traces_of(world) == []


@pytest.mark.parametrize("then", ["deliver", "quarantine"])
def test_versions_prove_only_what_was_deleted_while_they_were_kept(cloud, world, then):
    world.control.reset()
    world = World(cloud.url, world.control, {})
    name = world.trace()
    world.control.advance(1)
    put_intent(world, name)
    deliver_and_consume(world, name)
    bucket = world.client.bucket(TRIGGER)
    bucket.versioning_enabled = True
    bucket.patch()
    world.control.advance(LATER)
    report = world.cycle(OnDoubt=then)
    if then == "deliver":
        assert "may have been delivered twice" in report.errors[0]
    else:
        assert list(report.quarantined) == [world.url_of(name)]


def test_a_copy_from_before_the_trace_was_written_again_proves_nothing(world):
    name = world.trace(age=600, content="same")
    deliver_and_consume(world, name)
    world.control.advance(30)
    world.put(name, age=10, content="same")
    put_intent(world, name)
    world.control.advance(LATER)
    assert world.cycle().dispatched == 1
    assert len(world.names(TRIGGER)) == 1


def test_a_consumed_copy_of_other_content_proves_nothing(world):
    name = world.trace(age=600, content="mine")
    put_target(world, target(world, name), "another's")
    world.delete(target(world, name), TRIGGER)
    put_intent(world, name)
    world.control.advance(LATER)
    assert world.cycle().dispatched == 1
    assert len(world.names(TRIGGER)) == 1


def test_a_copy_whose_answer_is_lost_and_which_is_consumed_at_once_is_not_made_again(world):
    """Without any crash: BqTail is faster than the second try."""
    names = world.traces(3)
    world.control.add_fault("storage.objects.copy", "status", status=503, after=True, times=1, name=f"*{names[1]}*")
    with world.dispatcher() as dispatcher:
        copy = dispatcher.store.copy

        def copy_and_consume(copies, to=None):
            results = copy(copies, to)
            for name in world.names(TRIGGER):
                world.delete(name, TRIGGER)
            return results

        dispatcher.store.copy = copy_and_consume
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"dispatched": 3}
    assert len(world.deleted()) == 3
    assert world.names(TRIGGER) == world.names() == []


def test_a_copy_that_is_still_under_way_can_no_longer_be_made_once_it_is_settled(world):
    name = world.trace()
    share = share_of(world, name)
    put_intent(world, name)
    world.control.advance(LATER)
    with world.dispatcher() as late, world.dispatcher() as other:
        copy = late.store.copy

        def others_go_first(copies, to=None):
            late.store.copy = copy
            world.control.advance(LATER)
            assert other.cycle().dispatched == 1
            for each in world.names(TRIGGER):
                world.delete(each, TRIGGER)
            return copy(copies, to)

        late.store.copy = others_go_first
        late.intents._others = lambda mine: (datetime.now(UTC), [])  # it looked before the other's intent was there
        assert late.dispatch([share]).to_dict()["Outcomes"] == {"ignored": 1}
    assert world.names(TRIGGER) == traces_of(world) == []


def test_a_copy_that_would_arrive_after_it_was_looked_for_in_vain_is_refused(world):
    name = world.trace()
    generation, where = int(world.blob(name).generation), target(world, name)
    put_intent(world, name)
    world.control.advance(LATER)
    with world.dispatcher() as dispatcher:
        versions = dispatcher.store.trigger.versions

        def another_copies_now(stems):
            found = versions(stems)
            dispatcher.store.copy([(name, generation, where)])
            for each in world.names(TRIGGER):
                world.delete(each, TRIGGER)
            return found

        dispatcher.store.trigger.versions = another_copies_now
        assert dispatcher.cycle().dispatched == 1
    assert [*world.deleted(), *world.names(TRIGGER)] == [where]


def test_a_settled_trace_goes_where_it_would_have_gone(world):
    """It stays as old as it was, although its object is a new one."""
    name = world.trace(age=2 * 3600)
    where = target(world, name)
    put_intent(world, name)
    world.control.advance(LATER)
    world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden", times=1)
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden", times=1)
    assert world.cycle().to_dict()["Outcomes"] == {"error": 1, "ignored": 1}
    assert CREATED in world.blob(name).metadata
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == [where]


@pytest.mark.parametrize("status", [503, 404, 412])
def test_a_doubtful_trace_that_cannot_be_settled_stays_written_down(world, monkeypatch, status):
    """A fence is done when it is seen to be done: 404 and 412 do not say that somebody else has it in hand."""
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
    name = world.trace()
    world.control.add_fault("storage.objects.rewrite", "status", status=503, after=True, times=1)
    world.control.add_fault("storage.objects.compose", "status", status=status)
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"error": 1}
    assert "could not be fenced" in document["Error"]
    (intent,) = [each for each in world.names() if each.startswith("intents/")]
    assert json.loads(world.blob(intent).download_as_bytes())["moves"] == [[name, world.blob(name).generation]]
    world.control.clear_faults()
    for each in world.names(TRIGGER):
        world.delete(each, TRIGGER)
    world.control.advance(LATER)
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == traces_of(world) == []


@pytest.mark.parametrize("same", [True, False], ids=["one dispatcher", "a new one each time"])
def test_a_doubt_that_cannot_be_settled_is_written_down_once_however_many_cycles_it_takes(world, monkeypatch, same):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
    name = world.trace()
    world.control.add_fault("storage.objects.rewrite", "status", status=503, after=True, times=1)
    world.control.add_fault("storage.objects.compose", "status", status=503)
    with world.dispatcher() as dispatcher:
        for _ in range(5):
            report = dispatcher.cycle() if same else world.cycle()
            assert report.outcomes["error"] == 1
            assert name in report.errors[0]
            assert len([each for each in world.intents() if each.endswith("-left.json")]) == 1
            world.control.advance(LATER)


def many_folders(world):
    """A window that is deleted before its copy, which is refused."""
    name = world.window(content='{"EventID": "4711"}')
    world.put(f"{WindowName.parse(name).locations}1.loc", content="gs://data/x")
    return name


def one_folder(world):
    """A window whose claim is taken over."""
    name = world.window(content='{"EventID": "4711"}')
    world.claim(name, ago=LATER)
    return name


@pytest.mark.parametrize("same", [True, False], ids=["one dispatcher", "a new one each time"])
@pytest.mark.parametrize(("refused", "limit"), [("copy", 0), ("copy", 5), ("versions", 0)])
@pytest.mark.parametrize("window", [many_folders, one_folder])
def test_a_window_whose_firing_is_refused_for_long_is_written_down_twice_at_most(world, window, refused, limit, same):
    name = window(world)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        if refused == "copy":
            world.control.add_fault(call, "status", status=403, reason="forbidden")
        else:
            world.control.add_fault(call, "status", status=503, times=1)
    if refused == "versions":
        world.control.add_fault("storage.objects.list", "status", status=403, bucket=TRIGGER)
    with world.dispatcher(MaxConcurrentJobs=limit) as dispatcher:
        for _ in range(6):
            report = dispatcher.cycle() if same else world.cycle(MaxConcurrentJobs=limit)
            assert report.dispatched == 0
            withdrawn = {name for name, _ in dispatcher.own_intents.completed}  # and to be deleted a second later
            assert len(set(open_intents(world.intents())) - withdrawn) <= 2
            world.control.advance(LATER)
        world.control.clear_faults()
        report = dispatcher.cycle() if same else world.cycle(MaxConcurrentJobs=limit)
        assert report.dispatched == 1
    assert world.names(TRIGGER) == [f"_batch_/{name}"]
    world.consume()
    world.jobs(["ds_t--4711_00001_load--dispatch"], age=0)
    for _ in range(3):
        world.control.advance(LATER)
        world.cycle(MaxConcurrentJobs=limit)
    assert world.intents() == []


def test_an_intent_of_windows_gives_way_only_to_one_that_nobody_withdraws(world):
    name = one_folder(world)
    generation = int(world.blob(name).generation)
    world.delete(name)
    world.control.add_fault("storage.objects.compose", "status", status=403)
    firing = {"window": name, "generation": generation, "project": "", "event": "", "many": True}
    document = json.dumps({"version": 1, "owner": "gone", "firings": [firing]})

    def left_of(*intents, age):
        world.put(*(f"intents/{each}.json" for each in intents), age=age, content=document)
        world.cycle()
        return [each[len("intents/") : -len(".json")] for each in open_intents(world.intents())]

    assert left_of("a-1-windows", "b-1-windows", age=100) == ["a-1-windows", "b-1-windows"]
    assert left_of("c-1-left-windows", age=10) == ["c-1-left-windows"]
    assert left_of("e-1-windows", "f-1-left-windows", age=10) == ["c-1-left-windows", "e-1-windows", "f-1-left-windows"]
    world.control.advance(LATER)
    assert left_of(age=0) == ["f-1-left-windows"]


def test_a_doubtful_trace_that_cannot_be_written_down_anew_is_left_to_others_once_the_lease_is_over(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
    world.trace()
    world.control.add_fault("storage.objects.rewrite", "status", status=503, after=True, times=1)
    world.control.add_fault("storage.objects.compose", "status", status=503)
    world.control.add_fault("storage.objects.insert", "status", status=403, name="*-left.json")
    with world.dispatcher() as dispatcher:
        assert dispatcher.cycle().outcomes == {"error": 1}
        world.control.clear_faults()
        (intent,) = [each for each in world.names() if each.startswith("intents/")]
        generation = world.blob(intent).generation
        dispatcher.own_intents._written_at = dict.fromkeys(dispatcher.own_intents._written_at, -math.inf)
        world.control.advance(LEASE.total_seconds() + 1)
        dispatcher.own_intents.renew()
        assert world.blob(intent).generation == generation
        assert world.cycle().dispatched == 1
    assert len(world.names(TRIGGER)) == 1


class TestNothingDeletedIsKept:
    @pytest.fixture
    def in_doubt(self, cloud, world):
        """A trace that was delivered and consumed, of which nothing tells."""
        world.control.reset()
        world = World(cloud.url, world.control, {})
        name = world.trace()
        put_intent(world, name)
        deliver_and_consume(world, name)
        world.control.advance(LATER)
        return world, name

    def test_it_is_delivered_again_and_the_report_says_so(self, in_doubt):
        world, name = in_doubt
        document = world.cycle().to_dict()
        assert document["Outcomes"] == {"dispatched": 1, "ignored": 1}
        assert world.url_of(name) in document["Error"]
        assert "may have been delivered twice" in document["Error"]
        assert len(world.names(TRIGGER)) == 1

    def test_or_it_is_set_aside_when_the_configuration_says_so(self, in_doubt):
        world, name = in_doubt
        document = world.cycle(OnDoubt="quarantine").to_dict()
        assert document["Outcomes"] == {"quarantined": 1, "ignored": 1}
        assert "may have been delivered" in document["Quarantined"][world.url_of(name)]
        assert world.names(TRIGGER) == traces_of(world) == []
        assert len(world.names(JOURNAL, "errors/")) == 2

    def test_what_was_set_aside_and_not_deleted_is_not_taken_for_delivered_later(self, in_doubt):
        world, name = in_doubt
        with world.dispatcher(OnDoubt="quarantine") as dispatcher:
            world.control.add_fault("storage.objects.delete", "status", status=403, name=f"*{name}")
            assert dispatcher.cycle().outcomes["error"] == 1
            (copy,) = [each for each in world.names(JOURNAL, "errors/") if not each.endswith(".json")]
            world.control.clear_faults()
            world.control.advance(2)
            document = dispatcher.cycle().to_dict()
        assert document["Outcomes"]["quarantined"] == 1
        assert "its note says why" in document["Quarantined"][world.url_of(name)]
        assert world.names(TRIGGER) == traces_of(world) == []
        assert world.names(JOURNAL, "errors/") == [copy, f"{copy}.json"]

    def test_what_was_set_aside_and_not_deleted_is_set_aside_once_by_whoever_comes_later(self, in_doubt):
        world, name = in_doubt
        world.control.add_fault("storage.objects.delete", "status", status=403, name=f"*{name}")
        assert world.cycle(OnDoubt="quarantine").outcomes["error"] == 1
        before = world.names(JOURNAL, "errors/")
        world.control.clear_faults()
        world.control.advance(2)
        assert world.cycle(OnDoubt="quarantine").outcomes["quarantined"] == 1
        assert world.names(TRIGGER) == traces_of(world) == []
        assert world.names(JOURNAL, "errors/") == before

    def test_what_is_set_aside_among_what_is_moved_waits_for_no_other_thread(self, in_doubt):
        """All threads may be moving something, and would wait for one another for ever."""
        world, _ = in_doubt
        with world.dispatcher(OnDoubt="quarantine") as dispatcher:
            dispatcher.mover._threads = None
            assert dispatcher.cycle().outcomes["quarantined"] == 1

    def test_a_name_that_was_fenced_is_not_changed_again_within_a_second(self, in_doubt):
        world, _ = in_doubt
        assert world.cycle(OnDoubt="quarantine").outcomes["quarantined"] == 1
        assert world.control.refused() == {}

    def test_what_was_surely_not_delivered_is_not_doubted_although_its_intent_could_not_be_removed(self, cloud, world):
        world.control.reset()
        world = World(cloud.url, world.control, {})
        world.traces(2)
        world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden")
        world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
        world.control.add_fault(
            "storage.objects.delete", "status", status=403, reason="forbidden", name=f"{FOLDER}intents/*"
        )
        with world.dispatcher(OnDoubt="quarantine") as dispatcher:
            assert dispatcher.cycle().to_dict()["Outcomes"] == {"error": 2}
            world.control.clear_faults()
            report = dispatcher.cycle()
        assert (report.dispatched, report.errors) == (2, [])

    def test_a_copy_that_lies_there_still_is_proof_enough(self, cloud, world):
        world.control.reset()
        world = World(cloud.url, world.control, {})
        name = world.trace()
        put_intent(world, name)
        put_target(world, target(world, name), "{}")
        world.control.advance(LATER)
        assert world.cycle().to_dict()["Status"] == "ok"
        assert len(world.names(TRIGGER)) == 1
        assert traces_of(world) == []

    def loaded_without_an_answer(self, cloud, world, **config):
        """A window whose firing was not answered, and which BqTail has loaded, in buckets that keep nothing."""
        world.control.reset()
        world = World(cloud.url, world.control, config)
        name = world.window(content='{"EventID": "4711"}')
        assert self.fire_without_an_answer(world).outcomes == {"pending": 1}
        world.jobs(["ds_t--4711_00001_load--dispatch"], age=-1)
        return world, name

    @staticmethod
    def fire_without_an_answer(world, **more):
        """A firing that BqTail takes at once, and of which nobody is told."""
        with world.dispatcher(**more) as dispatcher:
            copy = dispatcher.store.copy

            def lost(copies, to=None):
                copy(copies, to)
                for name in world.names(TRIGGER):
                    world.delete(name, TRIGGER)
                return [Result(503)] * len(copies)

            dispatcher.store.copy = lost
            return dispatcher.cycle()

    def test_a_window_is_set_aside_as_fired(self, cloud, world):
        world.control.reset()
        world = World(cloud.url, world.control, {})
        name = world.window()
        assert self.fire_without_an_answer(world, OnDoubt="quarantine").outcomes == {"pending": 1}
        world.control.advance(LATER)
        assert world.cycle(OnDoubt="quarantine").to_dict()["Outcomes"]["quarantined"] == 1
        assert world.names() == world.names(TRIGGER) == []
        assert "fired" in world.ledger(name)
        assert len(world.names(JOURNAL, "errors/")) == 2

    def test_a_window_that_could_not_be_recorded_as_fired_is_set_aside_by_the_same_dispatcher_later(self, cloud, world):
        world.control.reset()
        world = World(cloud.url, world.control, {})
        name = world.window()
        self.fire_without_an_answer(world, OnDoubt="quarantine")
        world.control.advance(LATER)
        with world.dispatcher(OnDoubt="quarantine") as dispatcher:
            world.control.add_fault("storage.objects.compose", "status", status=403, name="*.fired")
            assert dispatcher.cycle().outcomes["error"] == 1
            world.control.clear_faults()
            world.control.advance(LATER)
            assert dispatcher.cycle().outcomes["quarantined"] == 1
        assert "fired" in world.ledger(name)

    @pytest.mark.parametrize("many", [False, True])
    def test_a_window_that_cannot_be_set_aside_is_named_as_undecided_once_no_load_has_come(self, cloud, world, many):
        world.control.reset()
        world = World(cloud.url, world.control, {})
        name = world.window(content='{"EventID": "4711", "Source": {"URL": "gs://data/x/1.json"}}')
        if many:
            world.put(f"{WindowName.parse(name).locations}1.loc", content="gs://data/x")
        self.fire_without_an_answer(world, OnDoubt="quarantine")
        world.control.advance(LATER)
        world.control.add_fault("storage.objects.insert", "status", status=403, name="errors/*")
        assert world.cycle(OnDoubt="quarantine").outcomes["error"] == 1
        for _ in range(4):
            world.control.advance(LATER + 600)
            world.cycle(OnDoubt="quarantine")
        assert [each for each in world.names() if each.startswith(f"undecided/{name}")]
        assert world.names(TRIGGER) == []

    def test_a_window_whose_load_is_there_was_fired(self, cloud, world):
        """Its second delivery would load nothing, and might delete files that the first has not loaded."""
        world, name = self.loaded_without_an_answer(cloud, world)
        world.control.advance(LATER)
        assert world.cycle().dispatched == 0
        assert world.names(TRIGGER) == []
        assert "fired" in world.ledger(name)

    def test_the_load_is_looked_for_at_the_moment_of_the_take_over(self, cloud, world, clock_stands_still):
        """A process that has seen it a moment ago, when the claim was too young, does not remember that."""
        world, name = self.loaded_without_an_answer(cloud, world)
        world.control.advance(LATER - 15)
        with world.dispatcher() as dispatcher:
            assert dispatcher.cycle().outcomes["pending"] == 1
            world.control.advance(15)
            assert dispatcher.cycle().dispatched == 0
        assert world.names(TRIGGER) == []
        assert "fired" in world.ledger(name)

    @pytest.mark.parametrize("call", ["bigquery.jobs.list", "storage.objects.get"])
    def test_no_claim_is_taken_over_while_its_load_cannot_be_looked_for(self, cloud, world, call):
        world, name = self.loaded_without_an_answer(cloud, world)
        world.control.advance(LATER)
        world.control.add_fault(call, "status", status=403, **({"name": "*intents/*"} if "storage" in call else {}))
        report = world.cycle()
        assert (report.dispatched, world.names(TRIGGER)) == (0, [])
        assert report.errors
        world.control.clear_faults()
        world.cycle()
        assert "fired" in world.ledger(name)
        assert world.names(TRIGGER) == []

    def test_no_claim_is_taken_over_while_its_content_cannot_be_read(self, cloud, world):
        """It tells which load to look for."""
        world, name = self.loaded_without_an_answer(cloud, world)
        world.control.advance(LATER)
        with world.dispatcher() as dispatcher:
            read = dispatcher.store.read

            def refused(url, *more):
                if "~ledger/" in url:
                    raise Forbidden("no")
                return read(url, *more)

            dispatcher.store.read = refused
            report = dispatcher.cycle()
            assert (report.dispatched, world.names(TRIGGER)) == (0, [])
            assert "its load cannot be looked for" in report.errors[0]
            dispatcher.store.read = read
            assert dispatcher.cycle().errors == []
        assert "fired" in world.ledger(name)
        assert world.names(TRIGGER) == []

    @pytest.mark.parametrize("limit", [0, 5])
    def test_no_claim_is_taken_over_while_a_location_cannot_be_listed(self, cloud, world, limit):
        """Its load may run there."""
        world, name = self.loaded_without_an_answer(cloud, world, MaxConcurrentJobs=limit)
        world.control.advance(LATER)
        with world.dispatcher() as dispatcher:
            ask = dispatcher.board.calls.ask
            dispatcher.board.calls.ask = lambda path, query: {"unreachable": ["US"]}
            report = dispatcher.cycle()
            assert (report.dispatched, world.names(TRIGGER)) == (0, [])
            assert "its load cannot be looked for" in report.errors[0]
            dispatcher.board.calls.ask = ask
            assert dispatcher.cycle().errors == []
        assert "fired" in world.ledger(name)
        assert world.names(TRIGGER) == []

    def test_a_window_in_quarantine_is_not_set_aside_once_more_as_dropped(self, cloud, world):
        world.control.reset()
        world = World(cloud.url, world.control, {})
        world.window(content='{"EventID": "4711", "Source": {"URL": "gs://data/x/1.json"}}')
        self.fire_without_an_answer(world, OnDoubt="quarantine")
        for _ in range(5):
            world.control.advance(LATER + 600)
            world.cycle(OnDoubt="quarantine")
        assert world.names() == []
        assert len(world.names(JOURNAL, "errors/")) == 2
        assert not world.intents()

    def test_a_trace_that_cannot_be_looked_up_in_quarantine_waits(self, cloud, world, in_doubt):
        world = in_doubt[0] if isinstance(in_doubt, tuple) else in_doubt
        world.control.add_fault("storage.objects.get", "status", status=403, name="errors/*")
        report = world.cycle(OnDoubt="quarantine")
        assert "cannot be looked up in quarantine" in report.errors[0]
        assert (report.outcomes["error"], world.names(JOURNAL, "errors/")) == (1, [])
        world.control.clear_faults()
        assert world.cycle(OnDoubt="quarantine").outcomes["quarantined"] == 1


@pytest.mark.parametrize(("on_doubt", "outcome"), [("deliver", "dispatched"), ("quarantine", "quarantined")])
def test_it_asks_for_nothing_where_it_may_not_see_whether_deleted_objects_are_kept(world, on_doubt, outcome):
    name = world.trace()
    put_intent(world, name)
    world.control.refuse("storage.buckets.get", bucket=TRIGGER)
    world.control.advance(LATER)
    document = world.cycle(OnDoubt=on_doubt).to_dict()
    assert "the account lacks storage.buckets.get" in document.get("Error", "") + str(document.get("Quarantined"))
    assert document["Outcomes"][outcome] == 1


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 503}, {"kind": "status", "status": 401}, {"kind": "reset"}], ids=str
)
def test_while_it_cannot_be_told_whether_deleted_objects_are_kept_doubt_waits_and_all_else_goes(
    world, monkeypatch, fault
):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY", RETRY.with_timeout(0.3))
    doubtful, good = world.traces(3), world.traces(3)
    put_intent(world, *doubtful)
    for name in doubtful:
        deliver_and_consume(world, name)
    doubtful += world.traces(3)
    put_intent(world, *doubtful[3:], owner="another")
    world.control.advance(LATER)
    world.control.add_fault("storage.buckets.get", bucket=TRIGGER, **fault)
    with world.dispatcher(OnDoubt="quarantine") as dispatcher:
        document = dispatcher.cycle().to_dict()
        assert {url.rpartition("Tasks/")[2] for url in document["Jobs"]} == {*doubtful[:3], *good}
        assert document["Outcomes"]["error"] == 3
        assert "is in doubt and waits: the settings of bucket 'p_bqtail' cannot be read" in document["Error"]
        assert world.control.calls()["storage.buckets.get"] < 10
        world.control.clear_faults()
        assert dispatcher.cycle().to_dict()["Outcomes"]["dispatched"] == 3
    assert len(world.names(TRIGGER)) + len(world.deleted()) == 9


def test_intents_are_removed_once_nothing_of_them_is_left_and_not_before(world):
    world.traces(2)
    left = world.trace(state="RUNNING")
    gone = put_intent(world, left, owner="gone", generations=[1])
    alive = put_intent(world, left, owner="alive")
    world.cycle()
    assert gone in world.names()
    world.control.advance(LATER)
    world.cycle()
    assert world.names() == sorted([alive, left])


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"status": 403, "reason": "rateLimitExceeded"}])
def test_the_others_intents_are_read_again_while_there_are_too_many_calls(world, fault):
    names = world.traces(3)
    put_intent(world, names[0])
    world.control.add_fault("storage.objects.get", "status", times=2, name="*intents*", **fault)
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 2, "pending": 1, "ignored": 1}


def test_what_is_no_intent_among_the_intents_does_no_harm(world):
    world.put("intents/readme.txt", content="hello", age=1)
    world.put("intents/list.json", content="[1]", age=LATER)
    name = world.trace()
    assert world.cycle().dispatched == 1
    assert name not in world.names()


DEEP = "[" * 100_000 + "]" * 100_000
FIRING = {"window": "ds.t_7_1700000000.win", "generation": 1, "project": "p", "event": "1", "many": False}
UNREADABLE = {
    "another version": '{"version": 2, "owner": "x", "moves": [], "firings": []}',
    "deep moves": f'{{"version": 1, "owner": "x", "moves": {DEEP}}}',
    "deep firings": f'{{"version": 1, "owner": "x", "firings": {DEEP}}}',
    "too large a number": '{"version": 1, "owner": "x", "moves": [["proj:p:US/ds.t--1_00001_load--dispatch", 1e400]]}',
    "too large a generation": json.dumps({"version": 1, "owner": "x", "firings": [FIRING]}).replace(
        '"generation": 1', '"generation": 1e400'
    ),
    "too large a version": '{"version": 1e400, "owner": "x", "moves": []}',
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("ending", [".json", "-left.json", "-windows.json"])
def test_an_intent_that_cannot_be_read_holds_back_what_is_older_and_stays(world, ending, content):
    older, window = world.trace(age=200), world.window(due=200)
    intent = f"intents/x-000001{ending}"
    world.put(intent, age=100, content=content)
    for cycle in range(3):
        younger = world.trace(age=10)
        report = world.cycle()
        assert report.dispatched == 1, cycle
        assert [error for error in report.errors if world.url_of(intent) in error]
        assert {older, window, intent} <= {*world.names(), *world.intents()}
        assert younger not in world.names()
        world.control.advance(LATER)
    world.delete(intent)
    assert world.cycle().dispatched == 2


NEWER = '{"version": 2, "owner": "x", "loads": []}'


@pytest.mark.parametrize("content", [NEWER, "{", large(MAX_INTENT_BYTES)], ids=["newer", "broken", "large"])
def test_under_a_limit_all_windows_wait_for_an_intent_of_windows_that_cannot_be_read(world, content):
    """The windows in it may be fired already, and count nowhere."""
    intent = "intents/x-000001-windows.json"
    world.put(intent, age=100, content=content)
    world.window("ds.young", due=30, age=50)
    assert world.cycle(MaxConcurrentSQL=5).dispatched == 1
    windows = {world.window(f"ds.t{number}", due=30, age=50) for number in range(3)}
    world.trace(age=50)
    report = world.cycle(MaxConcurrentJobs=5)
    assert (report.dispatched, report.batched, report.outcomes["error"]) == (1, {}, 3)
    (error,) = report.errors
    assert error.startswith("all windows wait, since") and world.url_of(intent) in error
    assert "upgrade this dispatcher, or delete the object" in error
    assert windows <= set(world.names())
    world.delete(intent)
    assert world.cycle(MaxConcurrentJobs=5).dispatched == 3


@pytest.mark.parametrize("here", [True, False], ids=["planned here", "planned elsewhere"])
def test_an_intent_of_windows_that_cannot_be_read_is_seen_also_if_it_was_written_after_the_plan(world, here):
    name = world.window(due=30, age=50)
    with world.dispatcher(MaxConcurrentJobs=5) as dispatcher, world.dispatcher(MaxConcurrentJobs=5) as other:
        shares = (dispatcher if here else other).look().plan.shares()
        world.put("intents/x-000001-windows.json", age=0, content=NEWER)
        report = dispatcher.dispatch(shares)
        assert (report.dispatched, report.outcomes) == (0, {"error": 1})
        assert report.errors[0].startswith("all windows wait, since")
    assert world.ledger(name) == {}
    assert open_intents(world.intents()) == ["intents/x-000001-windows.json"]


def test_a_thousand_moves_take_one_intent_and_one_look_at_the_others(world, intents_stay_young):
    world.traces(1000)
    world.control.reset_counters()
    world.cycle()
    calls = world.control.calls()
    written, completed = 1, 1
    assert calls["storage.objects.insert"] == written + completed
    assert calls["storage.objects.list"] == 2
    assert world.names() == []


def test_nothing_is_moved_or_fired_without_the_permission_to_delete(world):
    world.traces(3)
    world.window()
    world.control.refuse("storage.objects.delete", bucket=TASKS)
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"pending": 4}
    assert "storage.objects.delete on bucket 'ops'" in document["Error"]
    assert world.names(TRIGGER) == []


def test_a_permission_that_is_granted_during_a_run_is_made_use_of(world):
    world.trace()
    world.control.refuse("storage.objects.delete", bucket=TASKS)
    with world.dispatcher() as dispatcher:
        assert dispatcher.cycle().dispatched == 0
        world.control.allow_all()
        assert dispatcher.cycle().dispatched == 1


def test_permissions_are_asked_for_once_a_run(world):
    with world.dispatcher() as dispatcher:
        for _ in range(3):
            world.trace()
            dispatcher.cycle()
    assert world.control.calls()["storage.buckets.testIamPermissions"] == 2


def test_where_only_a_condition_refuses_the_delete_each_run_stops_at_once_and_nothing_is_delivered_twice(world):
    world.traces(5)
    world.control.refuse("storage.objects.delete", bucket=TASKS, prefix=f"{FOLDER}proj:")
    for _ in range(5):
        document = world.cycle().to_dict()
        assert any("answered with 403" in error for error in document["Errors"])
        assert "dispatched" not in document["Outcomes"]
        for each in world.names(TRIGGER):
            world.delete(each, TRIGGER)
        world.control.advance(LATER)
    assert len(traces_of(world)) == 5
    deliveries = world.deleted()
    assert len(deliveries) == len(set(deliveries)) <= 5


@pytest.mark.parametrize("hold", ["temporaryHold", "eventBasedHold"])
def test_an_object_under_a_hold_waits_and_the_others_go(world, hold):
    held, *others = world.traces(4)
    window = world.window()
    bucket = world.client.bucket(TASKS)
    for name in (held, window):
        blob = bucket.get_blob(FOLDER + name)
        setattr(blob, "temporary_hold" if hold == "temporaryHold" else "event_based_hold", True)
        blob.patch()
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 3, "error": 2}
    assert held in " ".join(document["Errors"])
    assert hold in document["Error"]
    assert world.names() == sorted([held, window])
    assert len(world.names(TRIGGER)) == len(others)


def test_objects_under_a_retention_policy_wait(world):
    bucket = world.client.get_bucket(TASKS)
    bucket.retention_period = 3600
    bucket.patch()
    name = world.trace(age=60)
    assert "a retention policy until" in world.cycle().to_dict()["Error"]
    assert world.names(TRIGGER) == []
    world.control.advance(timedelta(hours=1).total_seconds())
    bucket.retention_period = None
    bucket.patch()
    assert world.cycle().dispatched == 1
    assert name not in world.names()
