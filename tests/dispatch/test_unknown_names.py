"""Objects of the task folder whose names are those of nothing: named everywhere, dispatched and deleted by nobody."""

import json
import re

import pytest
from situations import LATER

from bqdispatch_provider.commands.cli import main
from bqdispatch_provider.core.history import NewFigures
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.waits import MIN_REPORTED_WAIT
from bqdispatch_provider.view.advice import ADVICE

pytestmark = pytest.mark.usefixtures("no_logs")

UNKNOWN = ["proj:p:US/sales.orders--123_1_load--dispatch", "ds.t_1_x.win", "ds.t_1_x.wis"]
ADVISED = ADVICE[Reason.UNKNOWN_NAME]


@pytest.fixture
def tell(config, capsys):
    """Gives the exit code of a command, and what it says in JSON."""

    def run(command, *arguments):
        code = main([command, "--json", "--config", str(config()), *arguments])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_told_in_the_same_words_everywhere(world, tell, name):
    world.performance()
    world.put(name, age=LATER)
    for asked in (name, world.url_of(name)):
        code, (explained,) = tell("explain", asked)
        assert (code, explained["State"], explained["Next"]) == (0, "waits: unknown name", ADVISED.next_step)
        assert explained["Details"][0] == ADVISED.meaning
        assert re.fullmatch(r"In detail: '.*' is not a (trace|batch window): expected .*", explained["Details"][1])
    code, told = tell("status")
    assert (code, told["health"]["level"]) == (0, "warning")
    assert (told["health"]["sentence"], told["health"]["next_step"]) == (
        "1 event waits: unknown name.",
        ADVISED.next_step,
    )
    (waiting,) = told["waiting"]
    assert (waiting["name"], waiting["reason"]) == (name, Reason.UNKNOWN_NAME)
    report = world.cycle()
    assert (report.ok, [*report.to_dict()["Waiting"]]) == (True, [name])


def test_a_name_that_was_written_a_moment_ago_is_no_warning_yet(world, tell):
    world.performance()
    world.put(UNKNOWN[0], age=MIN_REPORTED_WAIT.total_seconds() / 2)
    assert tell("status")[1]["health"]["level"] == "ok"
    assert tell("explain", UNKNOWN[0])[0] == 0


def test_what_somebody_has_to_act_on_sooner_comes_first(world, tell):
    world.performance()
    world.put(*(f"stray-{number}" for number in range(60)), age=10 * LATER)
    name = world.trace(state=None, age=LATER)
    _, told = tell("status")
    assert told["health"]["sentence"] == f"61 events wait: {Reason.NOT_FOUND}."
    assert told["waiting"][0]["name"] == name
    assert told["reasons"][Reason.UNKNOWN_NAME] == 60


def test_no_window_is_due_that_is_none(world):
    world.put("ds.t_1_x.win", age=LATER)
    report = Report.from_dict(world.cycle().to_dict())
    figures = NewFigures().take(report, world.config())
    assert (figures.windows_due, figures.waiting[Reason.UNKNOWN_NAME]) == (0, 1)


def test_no_command_deletes_it_for_whoever_pastes_all_lines(world, config, capsys):
    world.performance()
    world.put(UNKNOWN[0], age=LATER)
    main(["status", "--config", str(config())])
    assert "Commands" not in capsys.readouterr().out


STRAY = ["undecided/x", "undecided/x.7", "undecided/ds.t_77_1700000000.win.x"]


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_object_beside_undecided_windows_waits_for_no_decision(world, tell, config, capsys, name):
    world.performance(age=LATER)
    world.put(name, age=LATER)
    report = world.cycle()
    assert (report.ok, report.outcomes["unknown"], [*report.unknown]) == (True, 1, [name])
    _, (explained,) = tell("explain", name)
    assert (explained["State"], explained["Next"]) == ("waits: unknown name", ADVISED.next_step)
    assert f"{name!r} is not an undecided window: expected undecided/<window>.<generation>" in explained["Details"][1]
    path = str(config())
    assert main(["replay", "--config", path]) == 0
    assert "Nothing is in quarantine." in capsys.readouterr().err
    assert main(["replay", "--config", path, world.url_of(name)]) == 1
    said = capsys.readouterr().err
    assert f"{name!r} is not an undecided window" in said
    assert ADVISED.next_step in said
    main(["check-idle", "--config", path])
    said = capsys.readouterr().out
    assert f"1 object with an unknown name, such as {name!r}: {ADVISED.next_step}" in said
    assert "decision" not in said


def test_the_folder_of_undecided_windows_is_no_object_of_it(world):
    """Google Cloud's console makes an object of that name for an empty folder."""
    world.put("undecided/", age=LATER)
    report = world.cycle()
    assert (report.ok, report.outcomes, report.waits) == (True, {"ignored": 1}, {})
