"""The page explains each event that waits as explain and status do, and from what it has read anyway."""

import json
from datetime import datetime, timedelta

import pytest
from shown import state
from situations import LATER, SITUATIONS, name_of, refused
from world import JOURNAL

from bqdispatch_provider.commands.cli import main
from bqdispatch_provider.core.history import RunLabel
from bqdispatch_provider.core.model import Reason

DOCUMENT = f"gs://{JOURNAL}/config/dispatch.json"
CYCLES = "It has waited for this reason in"
BY_A_LOOK = ("BigQuery says: DONE", "A dispatcher has claimed it in the ledger", CYCLES)
"""Sentences of explain that need a look of its own. It counts itself as one cycle more, too."""


pytestmark = pytest.mark.usefixtures("no_logs")


@pytest.fixture
def on_page(world, client, connect, known_dags):
    """Lets a run dispatch; gives what the page says of its events, by name."""

    def look(**more):
        known_dags("bqdispatch")
        bucket, _, path = DOCUMENT.removeprefix("gs://").partition("/")
        world.client.bucket(bucket).blob(path).upload_from_string(json.dumps(world.document(**more)))
        connect(extra={"config_url": DOCUMENT})
        with world.dispatcher(**more) as dispatcher:
            url = "gs://journal/journal/runs/bqdispatch.json"
            report = dispatcher.run(0, label=RunLabel("bqdispatch", url))
            dispatcher.store.write_json(url, report.to_dict())
        view = state(client())["overview"]
        return {each["name"]: each for each in (*view["waiting"], *view["not_due"])}

    return look


@pytest.fixture
def tell(world, capsys):
    """Gives what a command says in JSON, with the configuration of the page."""

    def run(command, *arguments):
        capsys.readouterr()  # what Airflow has said meanwhile
        main([command, "--json", "--config", DOCUMENT, *arguments])
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(("situation", "reason"), SITUATIONS, ids=name_of)
def test_an_event_is_told_of_in_the_same_words_everywhere(world, on_page, tell, situation, reason):
    name, more = situation(world)
    seen = on_page(**more)[name]
    (explained,) = tell("explain", name)
    status = tell("status")
    listed = {each["name"]: each for each in (*status["waiting"], *status["not_due"])}[name]
    assert seen["reason"] == listed["reason"] == reason
    assert seen["state"] == listed["state"] == explained["State"] == f"waits: {reason}"
    assert seen["next_step"] == listed["next_step"] == explained["Next"]
    assert without_a_look(seen["details"]) == without_a_look(explained["Details"])
    assert seen["meaning"] in seen["details"]
    assert seen["url"] == explained["URL"]
    if reason is not Reason.NOT_DUE:
        assert seen["since"][:19] == explained["Since"][:19]


def without_a_look(details):
    return [each for each in details if not each.startswith(BY_A_LOOK)]


def test_how_often_it_was_refused_and_with_what_words(world, on_page):
    name, _ = refused(world)
    details = on_page()[name]["details"]
    assert f"{CYCLES} 6 cycles." in details
    assert any(each.startswith("In detail: ") for each in details)


def test_which_limit_is_reached_and_who_holds_its_slots(world, on_page):
    holders = world.traces(7, state="RUNNING", age=LATER + 60)
    name = world.trace(age=LATER)
    young = world.trace(age=30, state="RUNNING")
    said = next(each for each in on_page(MaxConcurrentJobs=2)[name]["details"] if "slots" in each)
    assert said.startswith("MaxConcurrentJobs of project p is 2. Its slots are held by the job of ")
    assert [each in said for each in (*holders, young)] == [True] * 5 + [False] * 3
    assert said.endswith("; and 3 more.")


def test_jobs_that_the_report_does_not_name_are_counted(world, on_page):
    world.traces(2, state="RUNNING", age=30)
    name = world.trace(age=LATER)
    said = next(each for each in on_page(MaxConcurrentJobs=1)[name]["details"] if "slots" in each)
    assert said.endswith("Its slots are held by jobs or events that the report does not name.")


def test_a_window_whose_load_runs_in_a_project_that_is_not_told(world, on_page):
    world.traces(2, state="RUNNING", age=LATER)
    name = world.window(dest="other:ds.t", due=LATER)
    details = on_page(MaxConcurrentJobs=1)[name]["details"]
    assert any(each.startswith("MaxConcurrentJobs of project p is 1.") for each in details)


def test_until_when_a_job_is_looked_for(world, on_page, tell):
    name = world.trace(state=None, age=LATER)
    until = datetime.fromisoformat(on_page()[name]["since"]) + timedelta(days=1)
    for said in (on_page()[name]["next_step"], tell("explain", name)[0]["Next"]):
        assert f"not know it at {until:%Y-%m-%d %H:%M} UTC, its trace is quarantined" in said


def test_a_job_that_is_looked_for_without_end(world, on_page):
    name = world.trace(state=None, age=LATER)
    said = on_page(MaxUnknownJobMin=0)[name]["next_step"]
    assert "without end, since MaxUnknownJobMin is 0" in said
    assert "quarantined" not in said


def test_a_click_asks_google_for_nothing(world, client, on_page, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.page.watcher.KEPT_S", 3600.0)
    world.trace(state="RUNNING", age=LATER)
    assert on_page()
    state(client(), range="week")  # which is read in the background
    world.control.reset_counters()
    (event,) = state(client())["overview"]["waiting"]
    assert event["details"]
    assert sum(world.control.calls().values()) == 0


def test_windows_that_are_not_due_are_told_of_by_project(world, on_page, client):
    first, second = (world.window(dest, due=due) for dest, due in (("one:ds.t", -600), ("two:ds.t", -1200)))
    assert [*on_page()] == [first, second]
    view = state(client(), project="two")["overview"]
    assert ([each["name"] for each in view["not_due"]], view["not_due_count"]) == ([second], 1)
    assert state(client())["overview"]["not_due_count"] == 2
