"""A firing is claim, copy, note: whoever is interrupted, the window is fired once and never forgotten."""

import json
import threading
from datetime import UTC, datetime

import pytest
from world import TASKS, TRIGGER

from bqdispatch_provider.core.events import Event, Share
from bqdispatch_provider.core.model import Lane
from bqdispatch_provider.core.targets import ledger_entry_name
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.names import WindowName


def share_of(world, name):
    blob = world.blob(name)
    return Share(Lane.WINDOWS, datetime.now(UTC), (Event(name, int(blob.generation), blob.time_created),))


def test_a_fired_window_stays_while_the_ledger_proves_the_copy(world):
    name = world.window(content='{"EventID": 7}')
    document = world.cycle().to_dict()
    assert document["Batched"] == {world.url_of(name): WindowName.parse(name).end.strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert document["BatchCount"] == 1
    copy = world.blob(f"_batch_/{name}", TRIGGER)
    assert copy.download_as_bytes() == b'{"EventID": 7}'
    assert world.names() == [name]
    entries = world.ledger(name, world.blob(name).generation)
    assert sorted(entries) == ["claim", "fired"]
    assert entries["fired"].metadata["bqdispatch-target"] == f"_batch_/{name}"
    assert int(entries["fired"].metadata["bqdispatch-copy"]) == copy.generation


def test_firing_a_hundred_windows_takes_four_writes_of_which_three_are_batches(world):
    for n in range(100):
        world.window(f"ds.t{n}")
    world.control.reset_counters()
    with world.dispatcher() as dispatcher:
        plan = dispatcher.look().plan
        assert dispatcher.dispatch(plan.shares()).dispatched == 100
    look, permissions, intent, batches = 2, 1, 1, 3
    assert world.control.requests() == look + permissions + intent + batches


def test_a_look_at_known_windows_asks_the_ledger_for_nothing(world):
    for n in range(30):
        world.window(f"ds.t{n}")
    with world.dispatcher() as dispatcher:
        dispatcher.cycle()
        world.control.reset_counters()
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"ignored": 31}
        assert world.control.requests() == 1


def test_a_window_that_was_seen_before_it_was_due_is_claimed_without_another_look(world, clock_stands_still):
    world.window(due=-10)
    with world.dispatcher() as dispatcher:
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"pending": 1}
        world.control.advance(20)
        world.control.reset_counters()
        plan = dispatcher.look().plan
        assert dispatcher.dispatch(plan.shares()).dispatched == 1
        assert world.control.calls()["storage.objects.list"] == 1


def test_a_window_that_another_claims_is_left_to_it(world):
    name = world.window()
    world.claim(name, ago=60)
    share = share_of(world, name)
    with world.dispatcher() as dispatcher:
        assert dispatcher.dispatch([share]).to_dict()["Outcomes"] == {"ignored": 1}
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"pending": 1, "ignored": 1}
    assert world.names(TRIGGER) == []


def test_a_window_whose_owner_is_gone_is_taken_up_again(world):
    name = world.window()
    world.claim(name, ago=200)
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == [f"_batch_/{name}"]
    assert "fired" in world.ledger(name)


def test_a_copy_under_way_can_not_be_made_once_its_claim_was_taken_over(world):
    name = world.window()
    world.claim(name, ago=200)
    former = world.ledger(name)["claim"].generation
    world.cycle()
    entry = ledger_entry_name(name, world.blob(name).generation, "claim", world.config().async_task_url)
    with world.dispatcher() as dispatcher:
        (late,) = dispatcher.store.copy([(entry, former, "_batch_/late")])
    assert late.status in (404, 412)
    assert world.names(TRIGGER) == [f"_batch_/{name}"]


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 503}, {"kind": "reset"}])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["storage.objects.compose", "storage.objects.copy", "storage.batch"])
def test_a_passing_fault_fires_each_window_once(world, call, after, fault):
    names = [world.window(f"ds.t{n}") for n in range(10)]
    world.control.add_fault(call, after=after, times=3, **fault)
    document = world.cycle().to_dict()
    assert document["Errors"] == []
    assert document["BatchCount"] == 10
    assert world.names(TRIGGER) == sorted(f"_batch_/{name}" for name in names)
    assert all("fired" in world.ledger(name) for name in names)


def test_a_window_that_cannot_be_copied_is_not_reported_as_fired_and_comes_again(world):
    name = world.window()
    world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden")
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
    document = world.cycle().to_dict()
    assert (document["Status"], document["BatchCount"]) == ("error", 0)
    assert world.ledger(name) == {}
    world.control.clear_faults()
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == [f"_batch_/{name}"]


def test_a_claim_that_cannot_be_given_up_either_is_taken_over_later(world):
    name = world.window()
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403)
    world.control.add_fault("storage.objects.delete", "status", status=403, name="*.claim")
    assert world.cycle().outcomes == {"error": 1}
    world.control.clear_faults()
    assert world.cycle().dispatched == 0
    world.control.advance(200)
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == [f"_batch_/{name}"]


def test_the_window_of_many_folders_whose_copy_is_refused_keeps_its_claim(world):
    """The window is deleted by then, so its claim alone has its content."""
    name = world.window()
    world.put(f"{WindowName.parse(name).locations}1.loc", content="gs://data/x")
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403)
    assert world.cycle().outcomes["error"] == 1
    assert sorted(world.ledger(name)) == ["claim"]
    world.control.clear_faults()
    world.control.advance(200)
    assert world.cycle().dispatched == 1


@pytest.mark.parametrize("status", [403, 503])
def test_a_claim_that_is_refused_fires_nothing(world, monkeypatch, status):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
    name = world.window()
    world.control.add_fault("storage.objects.compose", "status", status=status)
    document = world.cycle().to_dict()
    assert (document["Outcomes"], document["Batched"]) == ({"error": 1}, {})
    assert world.url_of(name) in document["Error"]
    assert world.names(TRIGGER) == []


@pytest.mark.parametrize("status", [404, 412])
def test_a_claim_that_is_refused_for_no_reason_that_can_be_seen_is_an_error(world, status):
    """Else it would be somebody else's, look after look, for ever."""
    name = world.window()
    world.control.add_fault("storage.objects.compose", "status", status=status, name="*.claim")
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"error": 1}
    assert world.url_of(name) in document["Error"]


@pytest.mark.parametrize(("delay", "kept"), [(None, 120), (30_000, 30), (600_000, 600)])
def test_a_fired_window_goes_when_the_configuration_says_so(world, clock_stands_still, delay, kept):
    more = {} if delay is None else {"MaxTriggerDelayMs": delay}
    name = world.window()
    world.cycle(**more)
    world.control.advance(kept - 5)
    world.cycle(**more)
    assert world.names() == [name]
    world.control.advance(10)
    world.cycle(**more)
    assert world.names() == []
    assert "fired" in world.ledger(name)


def test_a_window_that_cannot_be_deleted_is_not_fired_again(world):
    name = world.window()
    world.cycle()
    world.control.advance(100_000)
    world.control.add_fault("storage.objects.delete", "status", status=403, reason="forbidden", name="*.win")
    for _ in range(2):
        document = world.cycle().to_dict()
        assert (document["BatchCount"], document["Status"]) == (0, "error")
    assert world.names() == [name]
    assert world.names(TRIGGER) == [f"_batch_/{name}"]


def test_a_window_fired_late_is_kept_as_long_as_any_other(world):
    name = world.window(due=86_400)
    world.cycle()
    world.cycle()
    assert name in world.names()


def test_a_sentinel_of_the_go_dispatcher_is_taken_over_as_fired(world):
    name = world.window()
    world.put(WindowName.parse(name).sentinel, content=".")
    assert world.cycle().to_dict()["Outcomes"] == {"ignored": 2}
    assert world.names(TRIGGER) == []


def test_a_window_written_again_is_not_fired_in_its_old_generation(world):
    name = world.window(content="old")
    share = share_of(world, name)
    world.put(name, content="new", age=5)
    with world.dispatcher() as dispatcher:
        assert dispatcher.dispatch([share]).to_dict()["Outcomes"] == {"ignored": 1}
    assert world.names(TRIGGER) == []
    assert world.ledger(name) == {}


def test_a_window_that_this_run_has_fired_is_only_noted_later(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
    names = [world.window(f"ds.t{n}") for n in range(3)]
    with world.dispatcher() as dispatcher:
        stamp = dispatcher.store.compose_with_metadata
        dispatcher.store.compose_with_metadata = lambda stamps: (
            stamp(stamps) if stamps[0][2].endswith(".claim") else [Result(503, message="busy")] * len(stamps)
        )
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"error": 3}
        for name in names:
            world.delete(f"_batch_/{name}", TRIGGER)
        dispatcher.store.compose_with_metadata = stamp
        world.control.advance(200)
        assert dispatcher.cycle().dispatched == 3
    assert world.names(TRIGGER) == []
    assert all("fired" in world.ledger(name) for name in names)


@pytest.mark.parametrize("status", [403, 404, 412])
def test_a_take_over_that_is_refused_is_an_error(world, status):
    name = world.window()
    world.claim(name, ago=200)
    world.control.add_fault("storage.objects.compose", "status", status=status)
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"error": 1}
    assert name in document["Error"]


def test_what_fires_is_written_down_until_its_load_is_seen(world):
    name = world.window(content=json.dumps({"EventID": "4711", "Source": {"URL": "gs://p_bqtail/data/f"}}))
    with world.dispatcher(MaxConcurrentJobs=5) as dispatcher:
        dispatcher.cycle()
        (intent,) = world.intents()
        firing = json.loads(world.blob(intent).download_as_bytes())["firings"][0]
        assert firing == {
            "window": name,
            "generation": world.blob(name).generation,
            "project": "p",
            "event": "4711",
            "many": False,
        }
        world.control.advance(130)
        dispatcher.cycle()
        assert world.intents() == [intent]
        world.jobs(["ds_t--4711_00001_load--dispatch"], "RUNNING", age=15)
        dispatcher.cycle()
    assert world.intents() == []


def test_more_windows_than_one_intent_holds_are_written_down_under_names_of_their_own(world, monkeypatch):
    """Threads that count for themselves could give two intents one name."""
    now = datetime.now(UTC)
    events = [Event(f"ds.t{n}_7_{int(now.timestamp())}.win", 1, now) for n in range(2001)]
    with world.dispatcher() as dispatcher:
        own, counting = dispatcher.own_intents, set()
        name = own._next_name
        monkeypatch.setattr(own, "_next_name", lambda *given: (counting.add(threading.get_ident()), name(*given))[1])
        intents = own.announce_firings(events)
    assert len({intent.object.name for intent in intents}) == 3
    assert counting == {threading.get_ident()}


def test_a_share_of_windows_names_each_generation(world):
    name = world.window()
    share = share_of(world, name)
    assert Share.from_dict(json.loads(json.dumps(share.to_dict()))) == share
    assert world.client.bucket(TASKS).exists()
