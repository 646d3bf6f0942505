"""The most that work costs: requests, calls beside the client library's own, and planning that is linear."""

import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from world import FOLDER, TASKS, TRIGGER, World

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.listing import StoredObject, classify
from bqdispatch_provider.core.model import Job
from bqdispatch_provider.core.planning import plan
from bqdispatch_provider.core.plans import Snapshot
from bqdispatch_provider.testing.standin import StandInControl


def requests_of(world, cycle):
    world.control.reset_counters()
    report = cycle()
    return report, world.control.requests_by_method()


def test_ten_thousand_finished_traces_take_fewer_than_300_requests(world):
    for _ in range(10):
        world.traces(1000)
    report, requests = requests_of(world, world.cycle)
    assert report.dispatched == 10_000
    assert sum(requests.values()) < 300, requests
    assert requests["storage.batch"] <= 2 * 100 + 3
    assert requests["storage.objects.insert"] == 10


def test_they_take_no_more_when_they_belong_to_fifty_projects(world):
    for project in range(50):
        world.traces(200, project=f"p{project}")
    report, requests = requests_of(world, world.cycle)
    assert report.dispatched == 10_000
    assert sum(requests.values()) < 300, requests


def test_a_hundred_finished_ones_among_five_thousand_take_fewer_than_30_requests(world):
    for _ in range(7):
        world.traces(700, state="RUNNING")
    world.traces(100)
    report, requests = requests_of(world, world.cycle)
    assert report.dispatched == 100
    assert sum(requests.values()) < 30, requests


def test_two_thousand_due_windows_take_fewer_than_250_requests(world):
    now = world.control.now()
    names = [f"ds.t{n}_77_{int(now) - 60}.win" for n in range(2000)]
    world.put(*names, age=200)
    report, requests = requests_of(world, world.cycle)
    assert len(report.batched) == 2000
    assert sum(requests.values()) < 250, requests


def test_a_cycle_that_follows_asks_only_for_what_may_have_changed(world):
    world.traces(900, "query")
    running = world.traces(3, "query", state="RUNNING")
    with world.dispatcher(MaxConcurrentSQL=3) as dispatcher:
        dispatcher.cycle()
        _, requests = requests_of(world, dispatcher.cycle)
    in_transit, task_folder = 1, 1
    assert requests == {"storage.objects.list": in_transit + task_folder, "bigquery.jobs.get": len(running)}


@pytest.fixture
def elsewhere(monkeypatch):
    """A stand-in in a process of its own, whose calls are not counted here."""
    command = [Path(sys.executable).parent / "bqdispatch-standin"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
            monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", url)
            with StandInControl(url) as control:
                yield World(url, control)
        finally:
            process.terminate()


def python_calls(work):
    """Count the functions that are called, in threads that begin meanwhile too: about the same number every time."""
    numbers = Counter()

    def note(frame, event, argument):
        numbers[threading.get_ident()] += event == "call"

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return numbers.total()


def test_a_trace_takes_a_tenth_of_the_calls_within_the_client_library_at_most(elsewhere):
    source, target = elsewhere.client.bucket(TASKS), elsewhere.client.bucket(TRIGGER)
    names = elsewhere.traces(100)

    def one_by_one():
        for name in names:
            source.copy_blob(source.blob(FOLDER + name), target, name)
            source.delete_blob(FOLDER + name)

    peer = python_calls(one_by_one) / 100
    for _ in range(3):
        elsewhere.traces(1000)

    def in_batches():
        with elsewhere.dispatcher() as dispatcher:
            dispatcher.cycle()

    ours = python_calls(in_batches) / 3000
    assert elsewhere.names() == []
    assert ours < peer / 10


def test_planning_is_linear_in_the_number_of_objects():
    now, document = datetime(2026, 1, 2, tzinfo=UTC), World.document(MaxConcurrentSQL=100, MaxConcurrentJobs=100)
    config = DispatchConfig.from_dict(document)

    def plan_for(number):
        traces = [f"proj:p{n % 7}:US/ds.t{n % 50}--{n}_00001_query--dispatch" for n in range(number)]
        windows = [f"ds.t{n}_7_{int(now.timestamp()) - 60}.win" for n in range(number // 10)]
        objects = [StoredObject(name, 1, now - timedelta(minutes=5)) for name in [*traces, *windows]]
        listing = classify(objects, "p", now)
        jobs = {trace.job: Job("US", "DONE") for trace in listing.traces}
        return lambda: plan(Snapshot(listing, jobs), config, now)

    small, large = python_calls(plan_for(1000)), python_calls(plan_for(8000))
    assert large < 10 * small
    assert large / 8000 < 45


def fire(world, dispatcher, number):
    """Fire windows, and let a minute pass, after which their loads are late. Return the windows."""
    names = [world.window(f"ds.t{n}", content=f'{{"EventID": "{n}"}}') for n in range(number)]
    assert dispatcher.cycle().dispatched == number
    world.control.advance(60)
    return names


@pytest.mark.parametrize("limit", [0, 1000])
def test_two_hundred_firings_that_bqtail_has_not_consumed_cost_one_list(world, limit):
    with world.dispatcher(MaxConcurrentJobs=limit) as dispatcher:
        fire(world, dispatcher, 200)
        if not limit:
            dispatcher.cycle()  # their events are read once, as without a limit no intent has them
        for _ in range(3):
            _, requests = requests_of(world, dispatcher.cycle)
            assert "storage.objects.get" not in requests
            assert requests.get("bigquery.jobs.list", 0) <= 1, requests
            assert sum(requests.values()) < 10, requests


def test_of_many_firings_without_a_load_each_look_asks_for_some_and_each_gets_its_turn(world):
    with world.dispatcher(MaxConcurrentJobs=1000) as dispatcher:
        fire(world, dispatcher, 200)
        world.consume()
        for _ in range(4):
            _, requests = requests_of(world, dispatcher.cycle)
            assert requests["bigquery.jobs.list"] <= 51, requests
            assert requests["storage.objects.get"] <= 2 * 50, requests
        gone = [name for name in world.names(TASKS, f"{FOLDER}~ledger/") if name.endswith(".gone-00000")]
        assert len(gone) == 200
        _, requests = requests_of(world, dispatcher.cycle)
        assert sum(requests.values()) < 10, requests


def meet_another(function):
    """Return a function that goes on once it was called by two threads at the same time."""
    barrier = threading.Barrier(2, timeout=20)

    def called(*given, **more):
        barrier.wait()
        return function(*given, **more)

    return called


def test_firings_are_looked_up_side_by_side(world):
    with world.dispatcher(MaxConcurrentJobs=1000) as dispatcher:
        names = fire(world, dispatcher, 2)
        world.consume()
        dispatcher.board.loads = meet_another(dispatcher.board.loads)
        dispatcher.cycle()
    assert all("gone-00000" in world.ledger(name) for name in names)


def test_a_list_of_what_was_fired_that_is_refused_is_replaced_by_look_ups(world):
    with world.dispatcher() as dispatcher:
        taken, waiting = fire(world, dispatcher, 2)
        world.delete(f"_batch_/{taken}", TRIGGER)
        world.control.add_fault("storage.objects.list", "status", status=403, reason="forbidden", bucket=TRIGGER)
        dispatcher.cycle()
    assert "gone-00000" in world.ledger(taken)
    assert "gone-00000" not in world.ledger(waiting)


def test_the_loads_after_a_failed_one_are_asked_for_once(world):
    name = world.window(content='{"EventID": "1", "Source": {"URL": "gs://p_bqtail/a/1"}}')
    with world.dispatcher() as dispatcher:
        dispatcher.cycle()
        world.consume()
        world.jobs(["ds_t--1_00001_load--dispatch"], age=0, error="invalid")
        world.control.advance(200)
        dispatcher.cycle()
        world.jobs([f"ds_t--{n}_00001_load--dispatch" for n in range(100, 130)], age=20)
        world.put(name, age=20, content='{"EventID": "2", "Source": {"URL": "gs://p_bqtail/a/1"}}')
        ask, side_by_side = dispatcher.board.calls.get_fields, meet_another(dispatcher.board.calls.get_fields)
        dispatcher.board.calls.get_fields = lambda key, fields: (ask if "--1_" in key.job_id else side_by_side)(
            key, fields
        )
        _, requests = requests_of(world, dispatcher.cycle)
        assert requests["bigquery.jobs.get"] == 31, requests
        _, requests = requests_of(world, dispatcher.cycle)
        assert "bigquery.jobs.get" not in requests
