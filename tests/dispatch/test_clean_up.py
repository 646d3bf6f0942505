"""The ledger forgets what is over, and nothing that somebody may still have to know."""

import json
import threading

import pytest
from world import FOLDER, JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.planning import KEEP_ENTRY, entry_name
from bqdispatch_provider.storage import BATCH_SIZE

DAY = 86_400
LONG = KEEP_ENTRY.total_seconds() + 3600


def entries(world):
    return [blob.name.removeprefix(f"{FOLDER}~ledger/") for blob in world.client.list_blobs(TASKS, prefix=f"{FOLDER}~")]


def remember(world, number, whats=("claim", "fired"), age=LONG, dest="ds.old"):
    """What the ledger says of windows that were fired long ago."""
    end = int(world.control.now() - age - 60)
    names = [f"{dest}{n}_7_{end - n}.win" for n in range(number)]
    url = world.config().async_task_url
    world.put(*(entry_name(name, 7, what, url) for name in names for what in whats), age=age)
    return names


def cycle_after_a_firing(world, **more):
    """A cycle that fires, so that there may be old entries; gives its report."""
    world.window("ds.new")
    return world.cycle(**more)


def test_entries_are_forgotten_after_eight_days_and_not_before(world):
    remember(world, 3, ("claim", "fired", "gone-00000", "aside"))
    young = remember(world, 2, age=LONG - DAY, dest="ds.young")
    report = cycle_after_a_firing(world)
    assert report.errors == []
    left = entries(world)
    assert len(left) == 2 * len(young) + 2
    assert not [name for name in left if "ds.old" in name]


def test_an_entry_is_as_old_as_it_is_and_not_as_its_window(world):
    """A window may be fired, or taken up again, long after its end."""
    name = world.window(due=LONG)
    world.cycle()
    world.cycle()
    assert sorted(world.ledger(name)) == ["claim", "fired"]


def test_a_window_that_was_claimed_and_not_fired_is_never_forgotten(world):
    """The claim of a window of many folders is all that is left of it."""
    remember(world, 3, ("claim",))
    cycle_after_a_firing(world)
    assert len([name for name in entries(world) if name.endswith(".claim")]) == 4


def test_a_window_that_lies_there_still_is_never_forgotten(world):
    """It would be fired again: a hold, or a delete that was refused, may keep it for as long as it likes."""
    name = world.window()
    world.cycle()
    world.control.add_fault("storage.objects.delete", "status", status=403, reason="forbidden", name="*.win")
    world.control.advance(LONG)
    for _ in range(2):
        world.window("ds.new")
        world.cycle()
    assert sorted(world.ledger(name)) == ["claim", "fired"]
    assert world.names(TRIGGER).count(f"_batch_/{name}") == 1


def test_claims_are_forgotten_first(world):
    """A claim that was left alone would seem to be of a window that was never fired, and would be fired."""
    remember(world, 3)
    world.window("ds.new")
    with world.dispatcher() as dispatcher:
        deleted, delete = [], dispatcher.store.delete

        def crash(objects):
            deleted.append([name for name, _ in objects])
            if len(deleted) == 2:
                raise KeyboardInterrupt
            return delete(objects)

        dispatcher.ledger._store.delete = crash
        with pytest.raises(KeyboardInterrupt):
            dispatcher.cycle()
    assert all(name.endswith(".claim") for name in deleted[0])
    assert {name.rpartition(".")[2] for name in entries(world) if "ds.old" in name} == {"fired"}
    world.control.advance(2 * 3600)
    cycle_after_a_firing(world)
    assert not [name for name in entries(world) if "ds.old" in name]
    assert [name for name in world.names(TRIGGER) if "ds.old" in name] == []


def test_many_entries_take_a_list_a_thousand_and_a_batch_a_hundred_and_deletes_are_free(world):
    remember(world, 1100)
    world.window("ds.new")
    with world.dispatcher() as dispatcher:
        dispatcher.dispatch(dispatcher.look().plan.shares())
        tidy = dispatcher.look().plan.tidy
        world.control.reset_counters()
        dispatcher.tidy(tidy)
    calls = world.control.calls()
    assert calls["storage.objects.delete"] == 2200
    assert calls["storage.objects.list"] <= 5
    assert world.control.requests_by_method()["storage.batch"] <= 2200 // BATCH_SIZE + 6
    assert len(entries(world)) == 2


def test_it_is_done_once_an_hour_by_whichever_dispatcher_comes(world):
    remember(world, 1)
    cycle_after_a_firing(world)
    written = world.blob("journal/ledger.json", JOURNAL).generation
    remember(world, 1, dest="ds.more")
    world.control.advance(3000)
    cycle_after_a_firing(world)
    assert world.blob("journal/ledger.json", JOURNAL).generation == written
    assert [name for name in entries(world) if "ds.more" in name]
    world.control.advance(1000)
    cycle_after_a_firing(world)
    assert not [name for name in entries(world) if "ds.more" in name]


def test_it_is_done_where_one_process_looks_another_one_fires_and_a_third_one_tidies(world):
    """As the tasks of a DAG do."""
    remember(world, 3)
    world.window("ds.new")
    with world.dispatcher() as sensor, world.dispatcher() as operator:
        operator.dispatch(sensor.look().plan.shares())
    world.control.advance(200)
    with world.dispatcher() as sensor, world.dispatcher() as report:
        report.tidy(sensor.look().plan.tidy)
    assert len(entries(world)) == 2


def test_a_folder_without_fired_windows_is_not_asked(world):
    remember(world, 3)
    world.trace()
    world.cycle()
    with world.dispatcher() as dispatcher:
        world.control.reset_counters()
        dispatcher.cycle()
        assert world.control.requests() == 1


def test_what_cannot_be_forgotten_is_an_error_and_keeps_nothing_from_being_fired(world, monkeypatch):
    def refuse(*_):
        from google.api_core.exceptions import Forbidden

        raise Forbidden("no")

    monkeypatch.setattr("bqdispatch_provider.storage.TaskStore.oldest", refuse)
    report = cycle_after_a_firing(world)
    assert (report.dispatched, len(report.errors)) == (1, 1)
    assert "~ledger/" in report.errors[0]


def test_what_was_read_of_windows_is_forgotten_once_they_are_over(world):
    """A run may go on for a day, and fire a million."""
    for n in range(20):
        world.window(f"ds.t{n}", content=json.dumps({"EventID": f"{n}"}))
    with world.dispatcher(MaxConcurrentJobs=50) as dispatcher:
        dispatcher.cycle()
        assert len(dispatcher.evidence._bodies) == 20
        world.jobs([f"ds_t{n}--{n}_00001_load--dispatch" for n in range(20)], age=0)
        world.control.advance(200)
        for _ in range(3):
            dispatcher.cycle()
        assert world.names() == []
        assert not dispatcher.evidence._bodies
        assert not dispatcher.ledger._fired


def test_contents_of_windows_are_read_side_by_side(world):
    for n in range(16):
        world.window(f"ds.t{n}", content=json.dumps({"EventID": f"{n}"}))
    with world.dispatcher() as dispatcher:
        dispatcher.cycle()
        world.control.advance(60)
        together, read = threading.Barrier(2, timeout=10), dispatcher.store.read

        def wait_for_another(url):
            together.wait()
            return read(url)

        dispatcher.store.read = wait_for_another
        dispatcher.look()
        assert len(dispatcher.evidence._bodies) == 16
