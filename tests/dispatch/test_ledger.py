"""The ledger of fired windows: it remembers for eight days, and forgets nothing that is still needed."""

import json

import pytest
from world import FOLDER, JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.core.targets import CLAIMED, OWNER, ledger_entries_prefix, ledger_entry_name
from bqdispatch_provider.names import WindowName

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
                + ledger_entry_name(f"ds.t{n % 100}_7_{end - n}.win", n + 1, what, world.config().async_task_url),
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


def put_entry(world, name, ending, age=300):
    """An object in the ledger whose name begins like those of a window's entries."""
    entry = f"{ledger_entries_prefix(name, world.config().async_task_url)}{ending}"
    world.put(entry, age=age)
    return entry


def longer_name(name):
    """The name of a window that begins with another's, and ends in the same minute."""
    return f"{name}.x_7_{int(WindowName.parse(name).end.timestamp())}.win"


def waits_and_is_named(world, name, entry, dispatcher=None):
    """A window waits with an error that names it and the entry, cycle after cycle."""
    for _ in range(2):
        report = dispatcher.cycle() if dispatcher else world.cycle()
        said = [error for error in report.errors if f"window {name!r}" in error and world.url_of(entry) in error]
        assert len(said) == len(report.errors) == 1, report.errors
        world.control.advance(200)
    assert not [each for each in world.names(TRIGGER) if name in each]
    assert name in world.names()


def holds_back_alone(world, name, other, entry):
    """Show that an entry holds one window back, and no other, for as long as it is there."""
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == [f"_batch_/{other}"]
    world.control.advance(200)
    waits_and_is_named(world, name, entry)
    world.delete(entry)
    assert world.cycle().dispatched == 1


@pytest.mark.parametrize(
    "ending",
    ["7.fired-v2", "7.claim2", "7.v2.claim", "v2.7.claim", "7.claimed", "x.claim", "007.fired", "7", "7.claim/x"],
)
def test_an_entry_of_another_version_holds_its_window_back_and_no_other(world, ending):
    name, other = world.window(), world.window("ds.t2")
    entry = put_entry(world, name, ending)
    holds_back_alone(world, name, other, entry)


def test_the_same_dispatcher_fires_it_once_the_entry_is_gone(world):
    name = world.window()
    entry = put_entry(world, name, "7.fired-v2")
    with world.dispatcher() as dispatcher:
        waits_and_is_named(world, name, entry, dispatcher)
        world.delete(entry)
        assert dispatcher.cycle().dispatched == 1


def test_an_entry_of_another_version_stays_however_old(world):
    name = world.window()
    entry = put_entry(world, name, "v2.7.fired")
    world.control.advance(9 * DAY)
    clean_up(world)
    waits_and_is_named(world, name, entry)


def test_a_claimed_window_that_is_gone_is_named_with_the_entry_that_holds_it_back(world):
    name = world.window(content='{"EventID": "4711", "Source": {"URL": "gs://data/x/1.json"}}')
    world.put(f"{WindowName.parse(name).locations}1.loc", content="gs://data/x")
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden", name="*claim*")
    world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden", name="*claim*")
    world.cycle()
    assert name not in world.names()
    world.control.clear_faults()
    entry = put_entry(world, name, "7.fired-v2", age=0)
    world.control.advance(200)
    report = world.cycle()
    assert (report.dispatched, world.names(TRIGGER)) == (0, [])
    assert [error for error in report.errors if f"window {name!r}" in error and world.url_of(entry) in error]


def test_what_is_no_entry_of_any_window_in_the_ledger_holds_nothing_back(world):
    """The entry of a window whose name goes on behind the other's ``.win`` is its own."""
    name = world.window()
    minute = put_entry(world, longer_name(name), "7.claim").rpartition("/")[0]
    world.put(f"{minute}/what.is.this", f"{minute}/{name}", age=300)
    report = world.cycle()
    assert (report.dispatched, report.errors) == (1, [])


def test_an_odd_entry_concerns_the_longest_name_that_it_begins_with(world):
    name = world.window()
    longer = longer_name(name)
    world.put(longer, age=100)
    entry = put_entry(world, longer, "7.claim2")
    assert world.cycle().dispatched == 1
    world.control.advance(200)
    waits_and_is_named(world, longer, entry)


@pytest.mark.parametrize("kind", ["gone-00000", "gone-00002", "aside"])
@pytest.mark.parametrize("own", [True, False], ids=["its generation", "another"])
def test_an_entry_without_claim_and_fired_holds_its_window_back(world, kind, own):
    name, other = world.window(), world.window("ds.t2")
    generation = int(world.blob(name).generation) if own else 7
    entry = put_entry(world, name, f"{generation}.{kind}", age=900)
    holds_back_alone(world, name, other, entry)


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
    claim = ledger_entry_name(name, int(blob.generation), "claim", world.config().async_task_url)
    world.put(claim, age=200, content=blob.download_as_bytes().decode())
    assert world.cycle().dispatched == 1
    assert world.names(TRIGGER) == [f"_batch_/{name}"]


@pytest.mark.parametrize("status", [403, 500])
def test_windows_of_which_the_ledger_cannot_be_read_wait_and_are_named(world, monkeypatch, status):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
    name, trace = world.window(), world.trace()
    world.control.add_fault("storage.objects.list", "status", status=status, name="*~ledger*")
    with world.dispatcher() as dispatcher:
        listed = dispatcher.store.list_folders
        from bqdispatch_provider.gcp.storage_answers import Result

        dispatcher.store.list_folders = lambda folders: [Result(status, message="no")] * len(folders)
        document = dispatcher.cycle().to_dict()
        assert document["Outcomes"] == {"dispatched": 1, "error": 1}
        assert name in document["Error"]
        assert "~ledger" in document["Error"]
        dispatcher.store.list_folders = listed
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


def test_a_claim_tells_who_and_since_when(world, clock_stands_still):
    name = world.window()
    world.cycle()
    metadata = world.ledger(name)["claim"].metadata
    assert metadata.keys() == {OWNER, CLAIMED}
    assert float(metadata[CLAIMED]) == pytest.approx(world.control.now(), abs=10)
