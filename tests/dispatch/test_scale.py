"""What the simulation of growth rests on: its counts are those of the dispatcher, and no event gets lost in it."""

import json
from collections import Counter
from math import ceil

import cost
import pytest
from simulated_folder import Folder, Setup
from workloads import DOCUMENT, Workload, fill, traces, windows
from world import FOLDER, TASKS, World

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.targets import ledger_entry_name
from bqdispatch_provider.delivery.own_intents import MAX_EVENTS_PER_INTENT
from bqdispatch_provider.dispatcher import Dispatcher


@pytest.fixture(autouse=True)
def keeps_completed_intents(monkeypatch):
    """They are deleted in this cycle or in the next one otherwise, by how long this machine takes."""
    monkeypatch.setattr("bqdispatch_provider.delivery.own_intents.SAME_NAME_S", 3600.0)


def counted(world, cycle):
    world.control.reset_counters()
    report = cycle()
    calls = {method: number for method, number in world.control.calls().items() if method != "storage.batch"}
    return report, cost.Cost(Counter(world.control.requests_by_method()), Counter(calls))


def cycle_of(world: World, listed, finished, filled, **more):
    """A cycle of the dispatcher on what the benchmarks fill a task folder with."""
    fill(Workload("", listed, finished, filled, ""), world.control)
    with Dispatcher(DispatchConfig.from_dict({**DOCUMENT, **more}), world.client, world.session) as dispatcher:
        return counted(world, dispatcher.cycle)


@pytest.mark.parametrize(
    ("listed", "finished", "projects"),
    [
        (0, 0, 1),
        (1, 1, 1),
        (4, 2, 1),
        (1000, 1000, 1),
        (1102, 1102, 1),
        (5000, 100, 1),
        (3000, 60, 7),
        (10_500, 10_500, 1),
    ],
)
def test_traces_cost_what_the_model_says(world, listed, finished, projects):
    report, real = cycle_of(world, listed, finished, traces(projects))
    assert report.dispatched == finished
    model = cost.look(listed, listed, projects)
    model += cost.dispatch(finished, 0, folders=min(projects, finished))
    assert real == model


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("number", [1, 200, 301, 1001])
def test_windows_cost_what_the_model_says(world, number, limited):
    """The first cycle that fires looks for old entries of the ledger, too."""
    world.control.advance(30 - world.control.now() % 60)  # they ended in the two minutes before, or in more
    report, real = cycle_of(world, number, number, windows, MaxConcurrentJobs=2000 if limited else 0)
    assert len(report.batched) == number
    minutes = {end[: len("2026-01-01T00:00")] for end in report.batched.values()}
    model = cost.look(number, 0, minutes=len(minutes), bodies=number if limited else 0, limited=limited)
    model += cost.dispatch(0, number, limited=limited)
    model += cost.delete_old_entries(number + ceil(number / MAX_EVENTS_PER_INTENT), 0)
    assert real == model


def test_fired_windows_cost_what_the_model_says_while_they_are_kept_and_when_they_go(world):
    for n in range(250):
        world.window(f"ds.t{n}", content=json.dumps({"EventID": f"{n}"}))
    with world.dispatcher() as first, world.dispatcher() as second:
        first.cycle()
        _, real = counted(world, first.cycle)
        assert real == cost.look(251, 0)
        _, real = counted(world, second.cycle)
        model = cost.look(251, 0, minutes=len(minutes_of(world)))
        model.add("storage.objects.get")  # what the other one has written down
        assert real == model
        world.jobs([f"ds_t{n}--{n}_00001_load--dispatch" for n in range(250)], age=0)
        world.control.advance(200)
        model = cost.look(251, 0, bodies=250)
        model.add("bigquery.jobs.list")
        model += cost.clean_up(251)
        _, real = counted(world, first.cycle)
        assert real == model
        assert world.names() == []
        _, real = counted(world, first.cycle)
        assert real == cost.look(0, 0)


def minutes_of(world):
    """The folders of the ledger that have entries."""
    return {name.split("/")[-2] for name in world.names(TASKS, f"{FOLDER}~ledger/")}


def test_what_is_forgotten_costs_what_the_model_says(world):
    at = int(world.control.now()) - 9 * 86_400
    url = world.config().async_task_url
    old = [ledger_entry_name(f"ds.old{n}_7_{at}.win", 7, what, url) for n in range(700) for what in ("claim", "fired")]
    world.put(*old, age=9 * 86_400)
    world.window()
    _, real = counted(world, world.cycle)
    model = cost.look(1, 0, minutes=1)
    model += cost.dispatch(0, 1)
    model += cost.delete_old_entries(2, 700)
    assert real == model
    assert len(minutes_of(world)) == 1


def test_a_cycle_that_follows_costs_what_the_model_says(world):
    world.traces(300)
    with world.dispatcher() as dispatcher:
        dispatcher.cycle()
        world.traces(300)
        _, real = counted(world, dispatcher.cycle)
    model = cost.look(300, 300)
    model += cost.dispatch(300, 0, first=False)
    assert real == model


def test_completed_intents_cost_what_the_model_says(world, monkeypatch):
    world.traces(2100)
    with world.dispatcher() as dispatcher:
        dispatcher.cycle()
        monkeypatch.setattr("bqdispatch_provider.delivery.own_intents.SAME_NAME_S", 0.0)
        world.control.advance(2)
        _, real = counted(world, dispatcher.own_intents.delete_completed)
    assert real == cost.clean_up(3)


def test_a_process_that_ends_at_once_notes_what_it_has_completed(world):
    world.traces(2100)
    dispatcher = world.dispatcher()
    assert dispatcher.cycle().dispatched == 2100
    _, real = counted(world, dispatcher.close)
    assert real == cost.end(3)


@pytest.mark.parametrize("more", [{}, {"gap": 25.0}, {"back_to_back": True}, {"page": 1.0, "outage": 900}])
def test_in_the_simulation_every_event_is_dispatched_or_waits(more):
    folder = Folder(Setup(60, hours=0.2, **more)).run()
    assert folder.dispatched > 1000
    assert folder.arrived == folder.dispatched + folder.waiting
    assert folder.lags.total() <= folder.dispatched


def test_every_minute_two_tasks_look_where_back_to_back_one_does():
    minute, back = (Folder(Setup(60, back_to_back=each, hours=0.2)).run() for each in (False, True))
    assert max(minute.lags) < 10
    lists = [folder.cost.requests["storage.objects.list"] for folder in (minute, back)]
    assert 1.2 < lists[0] / lists[1] < 2.2


def test_where_a_task_waits_for_a_pod_events_wait_for_it_at_each_hand_over():
    celery, pod = (Folder(Setup(60, gap=each, hours=0.2)).run() for each in (1.0, 25.0))
    assert 20 < max(pod.lags) - max(celery.lags) < 30


def test_a_dispatcher_that_cannot_look_in_time_falls_behind():
    assert not Folder(Setup(60, hours=0.5)).run().falls_behind
    assert Folder(Setup(60, hours=0.5, page=2000)).run().falls_behind
