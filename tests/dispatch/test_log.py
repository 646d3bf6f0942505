"""The log has one line for each event, and repeats nothing that goes on unchanged."""

import logging
from datetime import UTC, datetime

import pytest
from test_doubt import put_intent
from test_history import LABEL, seed_days
from world import TRIGGER

from bqdispatch_provider.core.events import Event


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, "bqdispatch_provider")
    return lambda: [record.message for record in caplog.records if record.name.startswith("bqdispatch_provider")]


def test_each_event_has_one_line_with_its_job_and_where_it_went(world, told):
    name, window = world.trace(dest="sales.orders"), world.window("sales.returns")
    world.cycle()
    of_trace, of_window, summary = sorted(told(), key=lambda line: "of sales" not in line)
    if "batch" in of_trace:
        of_trace, of_window = of_window, of_trace
    targets = {target.rpartition("/")[2]: target for target in world.names(TRIGGER)}
    assert of_trace.startswith("load of sales.orders (job sales_orders--")
    assert of_trace.endswith(f"dispatched to gs://{TRIGGER}/{targets[name.rpartition('/')[2] + '.json']}")
    assert of_window.endswith(f"fired to gs://{TRIGGER}/_batch_/{window}")
    assert summary == "2 objects in the task folder: 2 dispatched"


def test_beyond_a_hundred_events_the_number_is_told(world, told):
    world.traces(130)
    world.cycle()
    assert len([line for line in told() if "dispatched to" in line]) == 100
    assert "and 30 more were dispatched" in told()


def test_a_run_tells_what_waits_and_why_once_as_long_as_nothing_changes(world, told):
    world.traces(2, state="RUNNING")
    world.traces(3)
    with world.dispatcher(MaxConcurrentJobs=2) as dispatcher:
        for _ in range(3):
            dispatcher.cycle()
    assert told() == [
        "5 objects in the task folder: 2 running, 3 throttled",
        "project p has reached MaxConcurrentJobs (2): 3 LoadJobs waiting, 2 LoadJobs running",
    ]


def test_what_goes_wrong_in_each_cycle_is_told_once(world, told):
    name = world.trace()
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", name=f"*{name}", status=403)
    world.trace(project="q")
    world.control.refuse("bigquery.jobs.get", project="q")
    with world.dispatcher() as dispatcher:
        for _ in range(3):
            report = dispatcher.cycle()
    assert len(report.errors) == 2
    assert len([line for line in told() if name in line]) == 1
    assert len([line for line in told() if "project 'q' cannot be read" in line]) == 1


def test_one_trace_that_is_left_to_another_is_told_in_the_singular(world, told):
    put_intent(world, world.trace())
    world.cycle()
    assert "Another dispatcher is moving 1 trace; leaving them to it" in told()


def test_one_event_that_ends_in_an_error_is_told_in_the_singular(world, told):
    world.trace()
    with world.dispatcher() as dispatcher:
        dispatcher.mover.move = None
        assert dispatcher.cycle().outcomes == {"error": 1}
    assert "1 event could not be dispatched" in told()


def test_one_trace_whose_intent_stays_is_told_in_the_singular(world, told):
    with world.dispatcher() as dispatcher:
        world.control.add_fault("storage.objects.insert", "status", status=403, name="*intents/*")
        dispatcher.own_intents.withdraw((), [Event("x", 1, datetime.now(UTC))], mark=False)
    assert [line for line in told() if line.startswith("Intents of 1 trace stay, since")]


def test_one_window_whose_intent_stays_is_told_in_the_singular(world, told):
    left, done = (Event(f"ds.t_1_{end}.win", 1, datetime.now(UTC)) for end in (1, 2))
    with world.dispatcher() as dispatcher:
        intents = dispatcher.own_intents.announce_firings([left, done])
        world.control.add_fault("storage.objects.insert", "status", status=403, name="*intents/*")
        dispatcher.own_intents.settle_firings(intents, [left])
    assert [line for line in told() if line.startswith("The intent of 1 window stays, since")]


def test_one_document_that_is_deleted_is_told_in_the_singular(world, told):
    seed_days(world, "runs", 400)
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=LABEL)
    assert [line for line in told() if line.startswith("Deleted 1 document below")]
