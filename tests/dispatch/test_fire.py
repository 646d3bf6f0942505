"""A firing is claim, copy, mark: whoever is interrupted, the window is fired once and never forgotten."""

from datetime import UTC, datetime

import pytest
from world import JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.model import Event, Lane, Sentinel, Share, StoredObject
from bqdispatch_provider.names import WindowName
from bqdispatch_provider.storage import Result


def sentinel(world, name):
    blob = world.blob(WindowName.parse(name).sentinel)
    return blob and Sentinel.of(
        StoredObject(blob.name, int(blob.generation), blob.time_created, blob.crc32c, blob.size, blob.metadata or {})
    )


def share_of(world, name):
    blob = world.blob(name)
    return Share(Lane.WINDOWS, 0, datetime.now(UTC), (Event(name, int(blob.generation), blob.time_created),))


def claim(world, name, ago):
    """A sentinel that somebody left who claimed a window and went away."""
    generation = int(world.blob(name).generation)
    at = world.client.bucket(TASKS).blob("BqDispatch/Tasks/" + WindowName.parse(name).sentinel)
    at.metadata = Sentinel.claim(generation, "gone", datetime.fromtimestamp(world.control.now() - ago, UTC))
    at.upload_from_string("{}")


def test_a_fired_window_stays_beside_a_sentinel_that_proves_the_copy(world):
    name = world.window(content='{"EventID": 7}')
    document = world.cycle().to_dict()
    assert document["Batched"] == {world.url_of(name): WindowName.parse(name).end.strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert document["BatchCount"] == 1
    assert world.blob(f"_batch_/{name}", TRIGGER).download_as_bytes() == b'{"EventID": 7}'
    proof = sentinel(world, name)
    assert proof.window == world.blob(name).generation
    assert proof.fired is not None
    assert int(proof.object.metadata["bqdispatch-target"]) == world.blob(f"_batch_/{name}", TRIGGER).generation


def test_firing_a_hundred_windows_takes_three_batches(world):
    for n in range(100):
        world.window(f"ds.t{n}")
    world.control.reset_counters()
    assert world.cycle().dispatched == 100
    listing, permissions, batches = 1, 2, 3
    assert world.control.requests() <= listing + permissions + batches


def test_a_window_that_another_claims_is_left_to_it(world):
    name = world.window()
    claim(world, name, ago=60)
    share = share_of(world, name)
    with world.dispatcher() as dispatcher:
        assert dispatcher.dispatch([share]).to_dict()["Outcomes"] == {"ignored": 1}
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"pending": 1, "ignored": 1}
    assert world.names(TRIGGER) == []


def test_a_window_whose_owner_is_gone_is_taken_up_again(world):
    name = world.window()
    claim(world, name, ago=200)
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == [f"_batch_/{name}"]
    assert sentinel(world, name).fired is not None


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
    assert all(sentinel(world, name).fired for name in names)


def test_a_window_that_cannot_be_copied_is_not_reported_as_fired_and_comes_again(world):
    name = world.window()
    world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden")
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
    document = world.cycle().to_dict()
    assert (document["Status"], document["BatchCount"]) == ("error", 0)
    assert sentinel(world, name).fired is None
    world.control.clear_faults()
    world.control.advance(4000)
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == [f"_batch_/{name}"]


@pytest.mark.parametrize("status", [403, 503])
def test_a_claim_that_is_refused_fires_nothing(world, monkeypatch, status):
    monkeypatch.setattr("bqdispatch_provider.storage._PATIENCE", 0.1)
    name = world.window()
    world.control.add_fault("storage.objects.compose", "status", status=status)
    document = world.cycle().to_dict()
    assert (document["Outcomes"], document["Batched"]) == ({"error": 1}, {})
    assert world.url_of(name) in document["Error"]
    assert world.names(TRIGGER) == []


def test_a_fired_window_goes_after_an_hour_and_its_sentinel_after_a_day(world):
    name = world.window()
    world.cycle()
    world.control.advance(3500)
    world.cycle()
    assert len(world.names()) == 2
    world.control.advance(200)
    world.cycle()
    assert world.names() == [WindowName.parse(name).sentinel]
    world.control.advance(80_000)
    world.cycle()
    assert world.names() == [WindowName.parse(name).sentinel]
    world.control.advance(10_000)
    world.cycle()
    assert world.names() == []


def test_a_window_that_cannot_be_deleted_keeps_its_sentinel_and_is_not_fired_again(world):
    name = world.window()
    world.cycle()
    world.control.advance(100_000)
    world.control.add_fault("storage.objects.delete", "status", status=403, reason="forbidden", name="*.win")
    for _ in range(2):
        document = world.cycle().to_dict()
        assert (document["BatchCount"], document["Status"]) == (0, "error")
    assert world.names() == sorted([name, WindowName.parse(name).sentinel])
    assert world.names(TRIGGER) == [f"_batch_/{name}"]


def test_a_window_fired_late_is_kept_as_long_as_any_other(world):
    name = world.window(due=86_400)
    world.cycle()
    world.cycle()
    assert name in world.names()


def test_a_late_twin_is_set_aside_and_named(world):
    name = world.window(content="first")
    world.cycle()
    world.delete(name)
    world.control.advance(300)
    world.put(name, content="second", age=10)
    generation = world.blob(name).generation
    document = world.cycle().to_dict()
    assert "late twin" in document["Quarantined"][world.url_of(name)]
    assert document["Outcomes"] == {"ignored": 1, "quarantined": 1}
    assert world.names() == [WindowName.parse(name).sentinel]
    aside, note = world.names(JOURNAL, "errors/")
    assert note == f"{aside}.json"
    assert aside.endswith(f"/{name}.{generation}")
    assert world.blob(aside, JOURNAL).download_as_bytes() == b"second"
    assert len(world.names(TRIGGER)) == 1


def test_a_twin_that_was_set_aside_but_not_deleted_is_deleted_later(world):
    name = world.window(content="first")
    world.cycle()
    world.put(name, content="second", age=10)
    world.control.add_fault("storage.objects.delete", "status", status=403, reason="forbidden", times=1)
    assert world.cycle().to_dict()["Outcomes"] == {"ignored": 1, "error": 1}
    assert world.cycle().to_dict()["Outcomes"] == {"ignored": 1, "quarantined": 1}
    assert len(world.names(JOURNAL, "errors/")) == 2
    assert world.names() == [WindowName.parse(name).sentinel]


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
    assert sentinel(world, name) is None


def test_a_window_that_this_run_has_fired_is_only_marked_later(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.storage._PATIENCE", 0.1)
    names = [world.window(f"ds.t{n}") for n in range(3)]
    with world.dispatcher() as dispatcher:
        stamp = dispatcher.store.stamp
        dispatcher.store.stamp = lambda stamps: (
            stamp(stamps) if stamps[0][3] == 0 else [Result(503, message="busy")] * len(stamps)
        )
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"error": 3}
        for name in names:
            world.delete(f"_batch_/{name}", TRIGGER)
        dispatcher.store.stamp = stamp
        world.control.advance(200)
        assert dispatcher.cycle().dispatched == 3
    assert world.names(TRIGGER) == []
    assert all(sentinel(world, name).fired for name in names)


def test_a_take_over_that_is_refused_is_an_error(world):
    name = world.window()
    claim(world, name, ago=200)
    world.control.add_fault("storage.objects.compose", "status", status=403, reason="forbidden", after=False)
    with world.dispatcher() as dispatcher:
        stamp = dispatcher.store.stamp
        dispatcher.store.stamp = lambda stamps: [Result(412)] * len(stamps) if stamps[0][3] == 0 else stamp(stamps)
        document = dispatcher.cycle().to_dict()
    assert document["Outcomes"] == {"ignored": 1, "error": 1}
    assert name in document["Error"]


def test_what_is_set_aside_does_not_stop_dispatching(world):
    name = world.window(content="first")
    world.cycle()
    world.put(name, content="second", age=10)
    world.trace()
    world.control.add_fault("storage.objects.*", "status", status=403, reason="forbidden", bucket=JOURNAL)
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 1, "ignored": 1, "error": 1}
