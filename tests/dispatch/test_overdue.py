"""Events that are ready and not dispatched are no good news: nobody dispatches, or nobody dispatches these."""

import json

import pytest
from world import JOURNAL

from bqdispatch_provider.commands.cli import main
from bqdispatch_provider.core.history import RunLabel
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.view.advice import ADVICE

pytestmark = pytest.mark.usefixtures("no_logs")

HOUR = 3600
STEP = ADVICE[Reason.OVERDUE].next_step


@pytest.fixture
def tell(world, config, capsys):
    """Gives the exit code of a command, and what it says in JSON."""

    def run(command, *arguments, **more):
        code = main([command, "--json", "--config", str(config(**more)), *arguments])
        return code, json.loads(capsys.readouterr().out)

    return run


def looked(world, ago=0, performance=None, label=None):
    """Let a dispatcher look, and write down what it has seen."""
    world.control.advance(-ago)
    with world.dispatcher() as dispatcher:
        dispatcher.look()
        report = Report(started=dispatcher.store.now()) if performance is None else performance
        dispatcher.write_performance(report, label)
    world.control.advance(ago)


def sentence(told):
    return told["health"]["sentence"]


def test_nobody_has_ever_dispatched(world, tell):
    names = {*world.traces(3, "query", age=HOUR), world.window(due=HOUR)}
    code, told = tell("status")
    assert (code, told["health"]["level"]) == (1, "error")
    assert sentence(told) == "No run has been seen, and 4 events have been ready for 60 minutes."
    assert told["health"]["next_step"] == "Switch the DAG on, and see that its first run is green."
    assert {each["name"] for each in told["waiting"]} == names
    assert {(each["reason"], each["next_step"]) for each in told["waiting"]} == {(Reason.OVERDUE, STEP)}


@pytest.mark.parametrize("label", [None, RunLabel("dag")], ids=["performance.json", "history"])
def test_nobody_has_dispatched_for_an_hour(world, tell, label):
    (name,) = world.traces(1, age=HOUR)
    looked(world, HOUR, label=label)
    code, told = tell("status")
    assert (code, told["health"]["level"]) == (1, "error")
    assert sentence(told) == "Nobody has dispatched for 60 minutes, and 1 event has been ready for 60 minutes."
    assert told["health"]["next_step"] == "See that the DAG is switched on, and that its tasks run."
    assert [each["name"] for each in told["waiting"]] == [name]


def test_nobody_has_dispatched_for_an_hour_in_which_nothing_was_ready(world, tell):
    """As the page says it: what becomes ready next would not be dispatched."""
    looked(world, HOUR)
    code, told = tell("status")
    assert (code, sentence(told)) == (1, "Nobody has dispatched for 60 minutes.")


def test_a_dispatcher_that_looks_and_does_not_dispatch(world, tell):
    """As one whose tasks for a lane do not run, or whose argument `only` matches nothing of it."""
    (name,) = world.traces(1, age=HOUR)
    looked(world, label=RunLabel("dag"))
    code, told = tell("status")
    assert (code, told["health"]["level"]) == (1, "error")
    assert sentence(told) == "1 event has been ready for 60 minutes without being dispatched."
    assert told["health"]["next_step"] == STEP
    assert [each["name"] for each in told["waiting"]] == [name]


@pytest.mark.parametrize("kind", ["trace", "window"])
def test_an_event_that_has_been_ready_for_long_is_explained_as_such(world, tell, kind):
    name = world.trace(age=HOUR) if kind == "trace" else world.window(due=HOUR)
    _, (explained,) = tell("explain", name)
    assert (explained["State"], explained["Next"]) == (f"waits: {Reason.OVERDUE}", STEP)
    assert ADVICE[Reason.OVERDUE].meaning in explained["Details"]


def test_a_fresh_installation_has_seen_no_run(world, tell):
    world.trace(age=60)
    code, told = tell("status")
    assert (code, told["health"]["level"], sentence(told)) == (1, "unknown", "No run has been seen yet.")
    assert told["waiting"] == []


def test_what_is_wrong_is_told_before_the_first_run(world, tell):
    world.control.refuse("bigquery.jobs.list")
    world.control.refuse("bigquery.jobs.get")
    world.trace(age=60)
    _, told = tell("status")
    assert "Something went wrong" in sentence(told)


@pytest.mark.parametrize("ago", [0, 60, 240])
def test_a_dispatcher_that_looks_every_few_minutes_is_no_silence(world, tell, ago):
    world.trace(age=ago)
    looked(world, ago)
    code, told = tell("status")
    assert (code, told["health"]["level"], told["waiting"]) == (0, "ok", [])


def test_a_job_that_ended_a_moment_ago_is_ready_since_then(world, tell):
    """Its trace is as old as its job."""
    (name,) = world.traces(1, state=None, age=HOUR)
    (trace,) = world.dispatcher().folder.listing().traces
    now = world.control.now()
    job = {"project": "p", "location": "US", "jobId": trace.job.job_id, "type": "load", "creationTime": now - HOUR}
    world.control.seed_jobs([{**job, "runningMs": (HOUR - 60) * 1000}])
    looked(world)
    code, told = tell("status")
    assert (code, told["waiting"]) == (0, [])
    _, (explained,) = tell("explain", name)
    assert explained["State"] == "is dispatched next"


@pytest.mark.parametrize(("ago", "waits"), [(30, False), (HOUR, True)])
def test_what_waited_for_a_limit_has_not_been_ready_since_its_job_ended(world, tell, ago, waits):
    """Its slot became free a moment ago; but not if nobody has dispatched since."""
    name = world.trace(age=HOUR)
    throttled = Report()
    throttled.count("p", "Throttled", "LoadJobs")
    looked(world, ago, throttled)
    more = {"MaxConcurrentJobs": 1}
    code, told = tell("status", **more)
    assert (code == 1) is bool(told["waiting"]) is waits
    _, (explained,) = tell("explain", name, **more)
    assert (explained["State"] == f"waits: {Reason.OVERDUE}") is waits


def test_what_a_limit_of_another_kind_holds_back_excuses_nothing(world, tell):
    world.trace(age=HOUR)
    throttled = Report()
    throttled.count("p", "Throttled", "QueryJobs")
    looked(world, performance=throttled)
    code, told = tell("status", MaxConcurrentJobs=1, MaxConcurrentSQL=1)
    assert (code, len(told["waiting"])) == (1, 1)


def test_a_performance_that_cannot_be_read_is_told(world, tell):
    world.trace(age=HOUR)
    world.control.refuse("storage.objects.get", bucket=JOURNAL)
    _, told = tell("status", MaxConcurrentJobs=1)
    assert any("performance.json" in each for each in told["problems"])
    _, (explained,) = tell("explain", "ds.t", MaxConcurrentJobs=1)
    assert explained["State"] == f"waits: {Reason.OVERDUE}"


def test_a_performance_that_is_something_else_hides_nothing(world, tell):
    world.trace(age=HOUR)
    world.performance(content=json.dumps({"p": {"Throttled": {"LoadJobs": "many"}}, "q": 3}))
    code, told = tell("status", MaxConcurrentJobs=1)
    assert (code, len(told["waiting"])) == (1, 1)
