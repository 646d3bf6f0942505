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
