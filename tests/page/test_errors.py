"""Errors of the last run on the page: by lane and by project, the newest first, with their words."""

from datetime import UTC, datetime

import pytest
from shown import state
from world import World

from bqdispatch_provider.core.history import Figures, RunLabel
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.report import MAX_NAMED, Report
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.view.overview import overview

NOW = datetime(2024, 3, 5, 12, tzinfo=UTC)
FOLDER_URL = World.config().async_task_url
QUERY, LOAD = "proj:one:US/ds.t--1_00001_query--dispatch", "proj:two:US/ds.t--2_00001_load--dispatch"
WINDOW = "one:ds.t_77_1700000000.win"


def seen(*errors, waits=(), project=""):
    report = Report(started=NOW, waits={each.name: each for each in waits})
    for each in errors:
        report.add_error(each)
    return overview(report, World.config(), NOW, Figures(), project=project)


def told(view):
    return [(each.lane, each.project) for each in view.newest_errors]


@pytest.mark.parametrize(
    ("error", "lane", "project"),
    [
        (f"{FOLDER_URL + QUERY!r} was not moved: 403", "sql", "one"),
        (
            f"trace {LOAD!r} has waited since yesterday for job 'x' of project 'two', any location: not found",
            "jobs",
            "two",
        ),
        (f"window {WINDOW!r} waits: its content cannot be read", "windows", "one"),
        (f"window 'x' has waited as {f'undecided/{WINDOW}.7'!r}: late", "windows", "one"),
        ("the jobs of project 'two' cannot be looked up, so its traces wait: 403", "", "two"),
        ("'gs://journal/performance.json' cannot be written: 503", "", ""),
    ],
)
def test_a_lane_and_a_project_are_read_from_the_names_that_an_error_quotes(error, lane, project):
    assert told(seen(error)) == [(lane, project)]


def test_they_are_read_from_the_events_that_wait_for_it_too():
    error = "windows wait, since their intent cannot be written: 403"
    waits = [Wait(name, Reason.REFUSED, NOW, error) for name in (WINDOW, "two:ds.t_77_1700000000.win")]
    assert told(seen(error, waits=waits[:1])) == [("windows", "one")]
    assert told(seen(error, waits=waits)) == [("windows", "")]
    silent = "the jobs of project 'two' cannot be looked up, so its traces wait: 403"
    assert told(seen(silent, waits=[Wait(LOAD, Reason.NO_ANSWER, NOW, "403")])) == [("jobs", "two")]


def test_the_newest_come_first_and_all_are_counted_by_lane():
    errors = [f"{FOLDER_URL + QUERY!r} was not moved: {number}" for number in range(30)]
    view = seen(*errors, f"window {WINDOW!r} waits: x", "something else")
    assert [each.said for each in view.newest_errors][:3] == [
        "something else",
        f"window {WINDOW!r} waits: x",
        errors[29],
    ]
    assert len(view.newest_errors) == 20
    assert {lane: each["errors"] for lane, each in view.lanes.items()} == {"sql": 30, "jobs": 0, "windows": 1}
    assert (view.other_errors, view.hidden_errors) == (1, 0)


def test_one_projects_errors_and_those_that_are_of_no_project_alone():
    errors = (f"{FOLDER_URL + QUERY!r} failed", f"{FOLDER_URL + LOAD!r} failed", "something else")
    view = seen(*errors, project="two")
    assert [each.said for each in view.newest_errors] == [errors[2], errors[1]]
    assert {lane: each["errors"] for lane, each in view.lanes.items()} == {"sql": 0, "jobs": 1, "windows": 0}
    assert (view.other_errors, view.hidden_errors) == (1, 1)


def test_the_page_has_them(world, client, connect, known_dags):
    names = {world.trace("query", project="one", age=7200): "sql", world.trace("load", project="two", age=7200): "jobs"}
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=400)
    known_dags("bqdispatch")
    connect()
    with world.dispatcher() as dispatcher:
        url = "gs://journal/journal/runs/bqdispatch.json"
        report = dispatcher.run(0, label=RunLabel("bqdispatch", url))
        dispatcher.store.write_json(url, report.to_dict())
    view = state(client())["overview"]
    assert {lane: each["errors"] for lane, each in view["lanes"].items()} == {"sql": 1, "jobs": 1, "windows": 0}
    for name, lane in names.items():
        (error,) = [each for each in view["newest_errors"] if name in each["said"]]
        assert error["lane"] == lane
    assert "errors" not in view, "each is sent once"
    (two,) = state(client(), project="two")["overview"]["newest_errors"]
    assert two["project"] == "two"


def test_a_thousand_long_errors_are_told_of_in_a_short_answer():
    view = seen(*(f"{number} {'x' * 1000}" for number in range(MAX_NAMED + 5)))
    assert view.other_errors == MAX_NAMED
    assert len(str([each.said for each in view.newest_errors])) < 30_000


def test_a_name_that_is_quoted_in_another_way_is_read_too():
    name = "proj:one:US/ds.it's--1_00001_query--dispatch"
    assert told(seen(f"{FOLDER_URL + name!r} was not moved")) == [("sql", "one")]
