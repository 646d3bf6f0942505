"""The ledger forgets what is over, and nothing that somebody may still have to know."""

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from waiting import PATIENCE_S
from world import FOLDER, JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.core.history import RunLabel
from bqdispatch_provider.core.targets import ledger_entry_name
from bqdispatch_provider.core.windows import ENTRY_RETENTION
from bqdispatch_provider.gcp.gcs_batch import BATCH_SIZE

DAY = 86_400
LONG = ENTRY_RETENTION.total_seconds() + 3600


def entries(world):
    return [blob.name.removeprefix(f"{FOLDER}~ledger/") for blob in world.client.list_blobs(TASKS, prefix=f"{FOLDER}~")]


def remember(world, number, whats=("claim", "fired"), age=LONG, dest="ds.old"):
    """What the ledger says of windows that were fired long ago."""
    end = int(world.control.now() - age - 60)
    names = [f"{dest}{n}_7_{end - n}.win" for n in range(number)]
    url = world.config().async_task_url
    world.put(*(ledger_entry_name(name, 7, what, url) for name in names for what in whats), age=age)
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
    remember(world, 3, ("claim", "fired", "gone-00000"))
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
    assert {name.rpartition(".")[2] for name in entries(world) if "ds.old" in name} == {"fired", "gone-00000"}
    world.control.advance(2 * 3600)
    cycle_after_a_firing(world)
    assert not [name for name in entries(world) if "ds.old" in name]
    assert [name for name in world.names(TRIGGER) if "ds.old" in name] == []


def test_fired_is_forgotten_last_and_what_was_left_without_it_goes_too(world):
    """An entry that was left alone would seem to be of a window that was claimed and not fired."""
    remember(world, 2, ("claim", "fired", "gone-00000"))
    remember(world, 1, ("gone-00000",), dest="ds.older")
    world.control.add_fault("storage.objects.delete", "status", status=403, name="*old1_*.gone-00000")
    cycle_after_a_firing(world)
    left = {name.rpartition(".")[2] for name in entries(world) if "ds.old" in name}
    assert left == {"fired", "gone-00000"}
    assert not [name for name in entries(world) if "ds.older" in name or "ds.old0" in name]
    world.control.clear_faults()
    world.control.advance(2 * 3600)
    cycle_after_a_firing(world)
    assert not [name for name in entries(world) if "ds.old" in name]


def unfired(world):
    """Old windows that seem to be claimed and not fired; the newest one of a test is not old."""
    old = [name.rpartition(".") for name in entries(world) if "ds.old" in name]
    return {start for start, _, what in old if what == "claim"} - {start for start, _, what in old if what == "fired"}


def test_a_firing_at_the_end_of_a_page_is_forgotten_as_a_whole(world):
    remember(world, 334, ("claim", "fired", "gone-00000"))
    with world.dispatcher() as dispatcher:
        first, more = dispatcher.store.list_first("~ledger/", "~ledger/9")
        assert (more, first[-1].name.endswith(".claim")) == (True, True)
    cycle_after_a_firing(world)
    assert unfired(world) == set()
    assert [name for name in entries(world) if "ds.old" in name] == []


@pytest.mark.parametrize("status", [403, 429, 503])
def test_what_is_known_of_a_firing_stays_with_its_claim(world, monkeypatch, status):
    """A refused delete must not leave a claim alone: it would seem to be of a window that was never fired."""
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
    remember(world, 2)
    world.control.add_fault("storage.objects.delete", "status", status=status, name="*old1_*.claim")
    cycle_after_a_firing(world)
    left = {name.rpartition(".")[2] for name in entries(world) if "ds.old1" in name}
    assert left == {"claim", "fired"}
    assert [name for name in entries(world) if "ds.old0" in name] == []
    world.control.clear_faults()
    world.control.advance(2 * 3600)
    cycle_after_a_firing(world)
    assert [name for name in entries(world) if "ds.old" in name] == []


def test_what_is_known_of_a_firing_stays_while_its_claim_is_younger(world):
    """Who took a claim over has written it again, and then found that it had been fired."""
    (name,) = remember(world, 1, ("fired",))
    world.put(ledger_entry_name(name, 7, "claim", world.config().async_task_url), age=LONG - 7200)
    cycle_after_a_firing(world)
    assert sorted(world.ledger(name)) == ["claim", "fired"]


def test_many_entries_take_a_list_a_thousand_and_a_batch_a_hundred_and_deletes_are_free(world):
    remember(world, 1100)
    world.window("ds.new")
    with world.dispatcher() as dispatcher:
        dispatcher.dispatch(dispatcher.look().plan.shares())
        cleanup = dispatcher.look().plan.cleanup
        world.control.reset_counters()
        dispatcher.clean_up(cleanup)
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
        report.clean_up(sensor.look().plan.cleanup)
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

    monkeypatch.setattr("bqdispatch_provider.gcp.storage.TaskStore.list_first", refuse)
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
        together, read = threading.Barrier(2, timeout=PATIENCE_S), dispatcher.store.read

        def wait_for_another(*given):
            together.wait()
            return read(*given)

        dispatcher.store.read = wait_for_another
        dispatcher.look()
        assert len(dispatcher.evidence._bodies) == 16


def test_old_documents_go_on_to_be_deleted_by_the_next_run_if_there_are_more(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.cycle.retention.MAX_DELETED", 3)
    day = (datetime.now(UTC) - timedelta(days=40)).strftime("%Y-%m-%d")
    created = world.control.now() - 40 * DAY
    names = [f"journal/runs/{day}/d/{number}.json" for number in range(8)]
    world.control.seed_objects(JOURNAL, [{"name": name, "timeCreated": created} for name in names])
    left = []
    for _ in range(4):
        with world.dispatcher() as dispatcher:
            dispatcher.run(0.0, label=RunLabel("d", "gs://journal/journal/runs/r.json"))
        left.append(len(world.names(JOURNAL, f"journal/runs/{day}/")))
    assert left == [5, 2, 0, 0]
