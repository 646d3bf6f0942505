"""If BqTail consumes nothing of what is delivered, each run says so: otherwise all is green, and nothing is loaded."""

import json

import pytest
from world import TRIGGER

from bqdispatch_provider.commands.cli import main
from bqdispatch_provider.core.history import RunLabel
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.cycle import unconsumed as watched


def run(world, **config):
    """A run of one cycle in a DAG."""
    with world.dispatcher(**config) as dispatcher:
        return dispatcher.run(time_to_live=0, label=RunLabel("minute", "gs://journal/run.json"))


@pytest.fixture(params=[0, 5], ids=["without limits", "limited"])
def limits(request):
    return {"MaxConcurrentJobs": request.param}


@pytest.mark.parametrize("kind", ["trace", "window"])
def test_what_bqtail_has_not_consumed_for_long_is_an_error_of_each_run(world, kind, limits):
    world.trace() if kind == "trace" else world.window()
    assert run(world, **limits).errors == []
    (delivered,) = world.names(TRIGGER)
    world.control.advance(599)
    assert run(world, **limits).errors == []
    world.control.advance(60)
    for _ in range(2):
        (said,) = run(world, **limits).errors
        assert said.startswith("BqTail has not consumed 1 object for more than ten minutes, the first of them ")
        assert f"'gs://{TRIGGER}/{delivered}' since " in said
    world.consume()
    assert run(world, **limits).errors == []


def test_the_first_of_many_is_named(world):
    world.traces(3)
    run(world)
    first = min(world.names(TRIGGER), key=lambda name: world.blob(name, TRIGGER).time_created)
    world.control.advance(60)
    world.window()
    run(world)
    world.control.advance(700)
    (said,) = run(world).errors
    assert "not consumed 4 objects" in said
    assert world.blob(first, TRIGGER).time_created.strftime("since %Y-%m-%d %H:%M UTC") in said


def test_a_folder_that_somebody_has_made_there_is_no_delivery(world, limits):
    """The console makes an empty object for each, which nobody ever takes."""
    for folder in ("_bqjob_/", "_bqjob_/2026-01-01_00/", "_batch_/"):
        world.client.bucket(TRIGGER).blob(folder).upload_from_string(b"")
    assert run(world, **limits).errors == []
    world.control.advance(700)
    assert run(world, **limits).errors == []


def test_of_very_many_the_first_page_is_enough(world, config, capsys, monkeypatch):
    """They are more every minute while BqTail consumes nothing: a list of all would take ever longer, and then fail."""
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.PAGE_SIZE", 2)
    monkeypatch.setattr("bqdispatch_provider.gcp.trigger_bucket._MAX_TRANSIT_PAGES", 2)
    world.traces(5)
    run(world)
    world.control.advance(700)
    (said,) = run(world).errors
    assert said.startswith("BqTail has not consumed at least 2 objects for more than ten minutes, one of them ")
    with world.dispatcher() as dispatcher:
        dispatcher.store.now()
        world.control.reset_counters()
        assert watched.unconsumed(dispatcher.store, dispatcher.config) == (said, "")
        assert world.control.calls() == {"storage.objects.list": 2}
    assert main(["status", "--json", "--config", str(config())]) == 1
    assert json.loads(capsys.readouterr().out)["errors"] == [said]


def test_a_lasting_run_asks_once_in_ten_minutes(world, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(watched.time, "monotonic", lambda: now)
    with world.dispatcher() as dispatcher:
        label = RunLabel("lasting", "gs://journal/run.json")
        asked = []
        for seconds in (0, 60, 500, 100, 60):
            now += seconds
            world.control.reset_counters()
            dispatcher.write_performance(Report(), label)
            asked.append(world.control.calls().get("storage.objects.list", 0))
    assert [each - asked[1] for each in asked[1:]] == [0, 0, 2, 0]


def test_bqtails_balancer_does_not_wait_for_it(world, monkeypatch):
    """To list the trigger bucket may take half a minute of retries."""
    written = []

    def looked(store, config):
        written.append(store.generation(f"{config.journal_url}performance.json"))
        return "", ""

    monkeypatch.setattr(watched, "unconsumed", looked)
    run(world)
    assert written[0] is not None


def test_a_list_that_is_refused_is_an_error_and_the_run_goes_on(world):
    world.trace()
    world.control.add_fault("storage.objects.list", "status", bucket=TRIGGER, status=403)
    report = run(world)
    assert report.dispatched == 1
    (said,) = report.errors
    assert said.startswith("whether BqTail consumes what is delivered is not known: ")


def test_status_says_so(world, config, capsys):
    world.trace()
    world.cycle()
    world.control.advance(700)
    assert main(["status", "--json", "--config", str(config())]) == 1
    seen = json.loads(capsys.readouterr().out)
    assert seen["errors"][0].startswith("BqTail has not consumed 1 object ")
    assert seen["errors"][0] in seen["health"]["sentence"]


def test_status_of_somebody_who_may_not_list_the_trigger_bucket_is_no_error(world, config, capsys):
    world.performance()
    world.control.add_fault("storage.objects.list", "status", bucket=TRIGGER, status=403)
    assert main(["status", "--json", "--config", str(config())]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["errors"] == []
    assert any("whether BqTail consumes what is delivered" in said for said in seen["problems"])
