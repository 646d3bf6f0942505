"""Everything that waits says for what: in the report, for how long, how often, and what was said last."""

import json
from datetime import datetime

import pytest
from world import FOLDER, JOURNAL, TASKS

from bqdispatch_provider.core.events import EventFilter
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.targets import CREATED, REASON, REPLAY
from bqdispatch_provider.core.waits import waits_from_dict
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.journal import RunJournal
from bqdispatch_provider.runs import end_run, run_cycles
from bqdispatch_provider.view.advice import next_step

WAITING = f"gs://{JOURNAL}/journal/waiting.json"


def waiting(world, **more):
    """Return what a run tells of waiting events, by their names."""
    with world.dispatcher(**more) as dispatcher:
        return dispatcher.run(time_to_live=0).to_dict()["Waiting"]


def reason(world, name, **more):
    return waiting(world, **more)[name]["Reason"]


def refuse(world, name, status=403):
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=status, name=f"*{name}")


def test_nothing_is_told_of_what_waits_for_less_than_a_minute(world, clock_stands_still):
    world.trace(state="RUNNING", age=30)
    world.window(due=-30)
    assert waiting(world) == {}


@pytest.mark.parametrize(("state", "told"), [("RUNNING", "job running"), ("PENDING", "job pending")])
def test_a_job_that_is_not_done(world, clock_stands_still, state, told):
    name = world.trace(state=state, age=120)
    document = waiting(world)
    assert document[name]["Reason"] == told
    since = datetime.fromisoformat(document[name]["Since"])
    assert abs(world.control.now() - 120 - since.timestamp()) < 5
    assert "Times" not in document[name]


def test_a_limit(world):
    first, second = world.trace(age=200), world.trace(age=120)
    assert waiting(world, MaxConcurrentJobs=1).keys() == {second}
    assert first not in world.names()
    window = world.window(due=100)
    assert reason(world, window, MaxConcurrentJobs=1) == "limit reached"


def test_a_job_that_is_not_found_and_a_project_that_does_not_answer(world, asked_once):
    lost = world.trace(state=None, age=120)
    assert reason(world, lost) == "job not found"
    name = world.trace(project="q", age=120)
    world.control.add_fault("bigquery.*", "status", status=503, project="q")
    told = waiting(world)[name]
    assert told["Reason"] == "job cannot be looked up"
    assert "503" in told["Said"]


def test_what_another_dispatcher_has_in_hand(world):
    name = world.trace(age=120)
    generation = int(world.blob(name).generation)
    intent = {"version": 1, "owner": "0", "moves": [[name, generation]]}
    world.put("intents/0-000001.json", age=5, content=json.dumps(intent))
    window = world.window(due=100)
    world.claim(window, ago=20)
    told = waiting(world)
    assert {told[each]["Reason"] for each in (name, window)} == {"in another dispatcher's hands"}


def test_what_is_protected_undecided_or_comes_back(world):
    held, back, undecided = world.trace(age=120), world.trace(age=120), f"undecided/{world.window(due=500)}.7"
    blob = world.client.bucket(TASKS).get_blob(FOLDER + held)
    blob.temporary_hold = True
    blob.patch()
    world.put(back, age=120, metadata={REPLAY: "1"})
    world.put(undecided, age=100, metadata={REASON: "nobody knows"})
    told = waiting(world)
    assert told[held]["Reason"] == "under a hold or a retention policy"
    assert told[back]["Reason"] == "on its way back from quarantine"
    assert (told[undecided]["Reason"], told[undecided]["Said"]) == ("undecided", "nobody knows")


def test_what_is_for_others_to_dispatch(world):
    name = world.trace(age=120)
    only = EventFilter(destinations=("other.*",))
    with Dispatcher(world.config(), world.client, world.session, only=only) as dispatcher:
        assert dispatcher.run(time_to_live=0).to_dict()["Waiting"][name]["Reason"] == "for others to dispatch"


def test_what_is_refused_tells_what_was_said_and_how_often_from_run_to_run(world):
    name = world.trace(age=120)
    good = world.trace(age=120)
    refuse(world, name)
    for times in (1, 2, 3):
        told = waiting(world)
        assert told.keys() == {name}
        assert (told[name]["Reason"], told[name]["Times"]) == ("refused", times)
        assert "403" in told[name]["Said"]
        assert world.document_at(WAITING) == told
        world.control.advance(2)
    assert good not in world.names()


def test_how_often_is_counted_by_cycles_in_one_run(world):
    name = world.trace(age=120)
    refuse(world, name)
    waiting(world)
    cycles = []
    with world.dispatcher(go_on=lambda: len(cycles) < 3) as dispatcher:
        report = dispatcher.run(time_to_live=600, progress=cycles.append, wait=lambda _: world.control.advance(2))
    assert report.to_dict()["Waiting"][name]["Times"] == 1 + len(cycles) == 4


def test_a_run_that_is_ended_again_counts_no_cycle_twice(world):
    """Its report was cleared: it goes on with a document that has what ``waiting.json`` has."""
    name = world.trace(age=120)
    refuse(world, name)
    waiting(world)
    path = "2026-03-05/dispatch/run/"
    with world.dispatcher() as dispatcher:
        journal = RunJournal(dispatcher.store, dispatcher.config, f"{path}task")
        run_cycles(dispatcher, journal, 0, writes_performance=False)
    for _ in range(3):
        with world.dispatcher() as dispatcher:
            journal = RunJournal(dispatcher.store, dispatcher.config, f"{path}report")
            told = end_run(dispatcher, journal, lambda _: None).to_dict()["Waiting"]
        world.control.advance(2)
        assert (told[name]["Reason"], told[name]["Times"]) == ("refused", 1 + 1)


def test_what_was_not_tried_again_is_told_as_before(world):
    name = world.trace(age=120)
    refuse(world, name)
    stopped = []
    with world.dispatcher(go_on=lambda: not stopped) as dispatcher:
        first = dispatcher.cycle()
        stopped.append(True)
        first.add_cycle(dispatcher.cycle())
    assert first.to_dict()["Waiting"][name]["Reason"] == "refused"


def test_what_has_gone_on_is_not_counted_on(world):
    name = world.trace(age=120)
    refuse(world, name)
    with world.dispatcher() as dispatcher:
        dispatcher.run(time_to_live=0)
        world.control.clear_faults()
        world.control.advance(2)
        assert dispatcher.run(time_to_live=0).to_dict()["Waiting"] == {}
    assert world.document_at(WAITING) == {}


def test_where_nothing_is_wrong_it_costs_no_request(world):
    world.trace(state="RUNNING", age=120)
    world.control.reset_counters()
    waiting(world)
    assert world.control.calls()["storage.objects.insert"] == 1  # performance.json
    assert "storage.objects.get" not in world.control.calls()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"x": 1}',
        '{"x": {"Reason": "unheard of", "Since": "2026-01-01"}}',
        '{"x": {"Reason": "refused", "Since": "2026-01-01", "Times": 1}}',
    ],
)
def test_something_else_in_the_place_of_what_waits_is_begun_anew(world, content):
    name = world.trace(age=120)
    refuse(world, name)
    world.control.seed_objects(JOURNAL, [{"name": "journal/waiting.json", "content": content}])
    assert waiting(world)[name]["Times"] == 1


def test_of_many_the_number_is_told_and_trouble_first(world):
    bad = world.trace(age=90)
    refuse(world, bad)
    world.traces(1100, state="RUNNING", age=200)
    with world.dispatcher() as dispatcher:
        document = dispatcher.run(time_to_live=0).to_dict()
    assert document["WaitingCount"] == {"job running": 1100, "refused": 1}
    assert len(document["Waiting"]) == 1000
    assert next(iter(document["Waiting"])) == bad


def test_a_delivery_in_doubt(world):
    name = world.trace(age=120)
    world.put(name, age=120, metadata={CREATED: str(world.control.now() - 120)})
    world.control.add_fault("storage.objects.list", "status", status=403, bucket="p_bqtail")
    assert reason(world, name) == "delivery in doubt"


def an_intent_of_a_newer_version(world):
    world.put("intents/newer-000001.json", age=100, content='{"version": 2}')
    return {}, "upgrade this dispatcher"


def a_trigger_bucket_that_cannot_be_listed(world):
    world.control.refuse("storage.objects.list", bucket="p_bqtail")
    return {"MaxConcurrentJobs": 5}, "the limits cannot be counted"


@pytest.mark.parametrize("situation", [an_intent_of_a_newer_version, a_trigger_bucket_that_cannot_be_listed])
def test_what_is_held_back_since_something_cannot_be_read_is_in_no_doubt(world, situation):
    """It was not tried, so nobody has to ask whether it was delivered."""
    name = world.trace(age=120)
    more, said = situation(world)
    wait = waiting(world, **more)[name]
    assert wait["Reason"] == "refused"
    assert said in wait["Said"]
    assert "storage.buckets.get" not in next_step(waits_from_dict({name: wait})[name], "gs://x", world.config(**more))


def test_what_a_document_counts_is_counted_by_whoever_reads_it(world):
    world.traces(1100, state="RUNNING", age=200)
    with world.dispatcher() as dispatcher:
        document = dispatcher.run(time_to_live=0).to_dict()
    again = Report.from_dict(document).to_dict()
    assert again["WaitingCount"] == document["WaitingCount"] == {"job running": 1100}
    whole = Report.from_dict(document)
    whole.add_part(Report.from_dict(document))
    assert whole.waits_by_reason()["job running"] == 1200, "the same 1,000, and 100 more of each"


@pytest.mark.parametrize("kind", ["trace", "window"])
def test_what_is_refused_is_the_oldest_that_waits(world, kind):
    """The plan is about to dispatch it, so it does not count it."""
    name = world.trace(age=7200) if kind == "trace" else world.window(due=7200)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403)
    report = world.cycle()
    assert report.outcomes["error"] == 1
    assert world.control.now() - report.oldest.timestamp() == pytest.approx(7200, abs=600)
    world.control.clear_faults()
    assert name in world.names()
