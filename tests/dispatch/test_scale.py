"""What the simulation of growth rests on: its counts are those of the dispatcher, and no event gets lost in it."""

from collections import Counter

import cost
import pytest
from scale import Folder, Setup
from workloads import DOCUMENT, Workload, fill, traces, windows
from world import World

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.dispatcher import Dispatcher


def counted(world, cycle):
    world.control.reset_counters()
    report = cycle()
    calls = {method: number for method, number in world.control.calls().items() if method != "storage.batch"}
    return report, cost.Cost(Counter(world.control.requests_by_method()), Counter(calls))


def cycle_of(world: World, listed, finished, filled):
    """A cycle of the dispatcher on what the benchmarks fill a task folder with."""
    fill(Workload("", listed, finished, filled, ""), world.control)
    with Dispatcher(DispatchConfig.from_dict(DOCUMENT), world.client, world.session) as dispatcher:
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
    model += cost.dispatch(finished, 0)
    assert real == model


@pytest.mark.parametrize("number", [1, 200, 301])
def test_windows_cost_what_the_model_says(world, number):
    report, real = cycle_of(world, number, number, windows)
    assert len(report.batched) == number
    model = cost.look(number, 0)
    model += cost.dispatch(0, number)
    assert real == model


def test_what_was_fired_costs_what_the_model_says_as_long_as_it_is_kept_and_when_it_goes(world):
    for number, age in ((1500, 600), (250, 10**6)):
        at = str(world.control.now() - age)
        metadata = {"bqdispatch-window": "1", "bqdispatch-claimed": at, "bqdispatch-fired": at}
        world.put(*(f"ds.t_{n}_{10**9 + age}.wis" for n in range(number)), age=age, metadata=metadata)
    _, real = counted(world, world.cycle)
    model = cost.look(1750, 0)
    model += cost.tidy(250)
    assert real == model


def test_a_cycle_that_follows_costs_what_the_model_says(world):
    world.traces(300)
    with world.dispatcher() as dispatcher:
        dispatcher.cycle()
        world.traces(300)
        _, real = counted(world, dispatcher.cycle)
    model = cost.look(300, 300)
    model += cost.dispatch(300, 0, first=False)
    assert real == model


@pytest.mark.parametrize("more", [{}, {"workers": 3}, {"back_to_back": True}, {"page": 1.0, "outage": 900}])
def test_in_the_simulation_every_event_is_dispatched_or_waits(more):
    folder = Folder(Setup(60, hours=0.2, **more)).run()
    assert folder.dispatched > 1000
    assert folder.arrived == folder.dispatched + folder.waiting
    assert folder.lags.total() <= folder.dispatched


def test_back_to_back_an_event_waits_for_a_shorter_time_and_costs_more():
    minute, back = (Folder(Setup(60, back_to_back=each, hours=0.2)).run() for each in (False, True))
    assert max(back.lags) < 0.5 * max(minute.lags)
    assert back.cost.billed[0] > minute.cost.billed[0]


def test_a_dispatcher_that_cannot_look_in_time_falls_behind():
    assert not Folder(Setup(60, hours=0.5)).run().falls_behind
    assert Folder(Setup(60, hours=0.5, page=60)).run().falls_behind
