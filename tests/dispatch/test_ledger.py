"""The ledger of fired windows: it remembers for eight days, and forgets nothing that is still needed."""

import json

import pytest
from world import FOLDER, JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.model import CLAIMED, OWNER
from bqdispatch_provider.names import WindowName
from bqdispatch_provider.planning import entry_name

DAY = 86_400


def entries(world):
    return [name.removeprefix(FOLDER) for name in world.names(TASKS, f"{FOLDER}~ledger/")]


def clean_up(world):
    """A dispatcher that fires something, long after the last one."""
    world.window("ds.other")
    return world.cycle()


def test_entries_go_after_eight_days(world):
    name = world.window()
    world.cycle()
    world.control.advance(130)
    world.cycle()
    world.control.advance(7.9 * DAY)
    clean_up(world)
    assert sorted(world.ledger(name)) == ["claim", "fired"]
    world.control.advance(0.2 * DAY)
    clean_up(world)
    assert world.ledger(name) == {}


def test_what_lies_there_or_was_not_fired_is_not_forgotten(world):
    kept, claimed = world.window("ds.kept"), world.window("ds.claimed")
    world.claim(claimed, ago=1)
    world.cycle(MaxTriggerDelayMs=20 * DAY * 1000)
    world.delete(claimed)
    world.control.advance(9 * DAY)
    world.window("ds.other")
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden", name="*claimed*")
    world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden", name="*claimed*")
    world.cycle(MaxTriggerDelayMs=20 * DAY * 1000)
    assert sorted(world.ledger(kept)) == ["claim", "fired"]
    assert sorted(world.ledger(claimed)) == ["claim"]


def test_old_entries_are_looked_for_once_an_hour(world):
    written = []
    for minutes in (0, 30, 40):
        world.control.advance(60 * minutes)
        clean_up(world)
        written.append(world.blob("journal/ledger.json", JOURNAL).generation)
    assert written[0] == written[1] != written[2]
    assert world.document_at(f"gs://{JOURNAL}/journal/ledger.json")["By"]


def test_a_look_does_not_see_the_ledger_however_large_it_is(world):
    end = int(world.control.now())
    world.control.seed_objects(
        TASKS,
        [
            {
                "name": FOLDER
                + entry_name(f"ds.t{n % 100}_7_{end - n}.win", n + 1, what, world.config().async_task_url),
                "content": "{}",
                "timeCreated": world.control.now() - n,
            }
            for n in range(3000)
            for what in ("claim", "fired")
        ],
    )
    world.traces(20, state="RUNNING")
    world.control.reset_counters()
    assert world.cycle().to_dict()["Outcomes"] == {"running": 20}
    assert world.control.requests() == 2


def test_an_entry_of_another_form_is_passed_over(world):
    name = world.window()
    folder = entry_name(name, 1, "claim", world.config().async_task_url).rpartition("/")[0]
    world.put(f"{folder}/what.is.this", f"{folder}/{name}.x.claim", f"{folder}/{name}.7.claimed", age=300)
    assert world.cycle().dispatched == 1


def test_a_firing_that_lost_its_claim_counts_as_fired(world):
    """Whatever deletes objects by age, a lifecycle rule for instance, does so one by one."""
    name = world.window()
    world.cycle()
    (claim,) = [entry for entry in entries(world) if entry.endswith(".claim")]
    world.delete(claim)
    assert world.cycle().dispatched == 0
    world.control.advance(200)
    assert world.cycle().dispatched == 0
    assert name not in world.names()


def test_a_claim_without_metadata_is_taken_over_as_any_other(world):
    name = world.window()
    blob = world.blob(name)
    claim = entry_name(name, int(blob.generation), "claim", world.config().async_task_url)
    world.put(claim, age=200, content=blob.download_as_bytes().decode())
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == [f"_batch_/{name}"]


@pytest.mark.parametrize("status", [403, 500])
def test_windows_of_which_the_ledger_cannot_be_read_wait_and_are_named(world, monkeypatch, status):
    monkeypatch.setattr("bqdispatch_provider.storage._PATIENCE", 0.1)
    name, trace = world.window(), world.trace()
    world.control.add_fault("storage.objects.list", "status", status=status, name="*~ledger*")
    with world.dispatcher() as dispatcher:
        listed = dispatcher.store.entries
        from bqdispatch_provider.storage import Result

        dispatcher.store.entries = lambda folders: [Result(status, message="no")] * len(folders)
        document = dispatcher.cycle().to_dict()
        assert document["Outcomes"] == {"dispatched": 1, "error": 1}
        assert name in document["Error"]
        assert "~ledger" in document["Error"]
        dispatcher.store.entries = listed
        world.control.clear_faults()
        assert dispatcher.cycle().dispatched == 1
    assert trace not in world.names()


def test_a_long_name_has_an_entry(world):
    dest = "d." + "ä" * 480
    name = WindowName.parse(f"{dest}_1_{int(world.control.now()) - 60}.win").name
    assert len((FOLDER + name).encode()) <= 1024 < len((FOLDER + name).encode()) + 60
    world.put(name, age=100, content=json.dumps({"EventID": "1"}))
    assert world.cycle().dispatched == 1
    assert world.cycle().dispatched == 0
    world.control.advance(200)
    world.cycle()
    assert world.names() == []
    assert all(len((FOLDER + entry).encode()) <= 1024 for entry in entries(world))


def test_a_claim_tells_who_and_since_when(world):
    name = world.window()
    world.cycle()
    metadata = world.ledger(name)["claim"].metadata
    assert metadata.keys() == {OWNER, CLAIMED}
    assert float(metadata[CLAIMED]) == pytest.approx(world.control.now(), abs=10)
