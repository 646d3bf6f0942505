"""`bqdispatch status` and `bqdispatch top` on a terminal of 80 columns."""

import re
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from situations import LATER, hold, late_twin, refused
from terminal import on_a_terminal

from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.view.advice import next_step
from bqdispatch_provider.view.suggested_commands import commands_in, replay_command, without_commands

BIN = Path(sys.executable).parent
DOCS = Path(__file__).parents[2] / "docs" / "commands.md"


@pytest.fixture
def config(config):
    """Writes the configuration, and gives its path as a command takes it."""
    return lambda **more: str(config(**more))


def shown_by(*arguments, **more):
    """Return the exit code of a command, and its lines on a terminal of 80 columns, without colours."""
    code, shown, _ = on_a_terminal([BIN / "bqdispatch", *arguments], "stdout", COLUMNS="80", **more)
    return code, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r", "").splitlines()


def test_commands_stand_below_the_tables_each_whole_on_its_line(world, config):
    quarantined = world.trace(state=None, age=90_000)
    world.cycle()
    late_twin(world)  # two commands, of which somebody has to choose one, are in no list
    held = world.trace(dest="ds.a'b `c`", age=LATER)
    hold(world, held)
    running = world.trace(state="RUNNING", age=LATER)
    refused(world)
    path = config()
    _, lines = shown_by("status", "--config", path)
    last = max(number for number, line in enumerate(lines) if line.startswith("└"))
    commands = [shlex.split(line) for line in lines[last:] if line.startswith(("bqdispatch ", "gcloud ", "bq "))]
    job = running.rpartition("/")[2].replace(".", "_")
    (error,) = [each for each in world.names("journal", "errors/") if not each.endswith(".json")]
    replay = ["bqdispatch", "replay", "--config", f"file://{path}"]
    assert sorted(commands) == sorted(
        [
            [*replay, f"gs://journal/{error}"],
            ["bqdispatch", "smoke", "--config", f"file://{path}"],
            ["gcloud", "storage", "objects", "update", world.url_of(held), "--no-temporary-hold"],
            ["bq", "show", "--job", "--location=US", f"p:{job}"],
        ]
    )
    assert quarantined.rpartition("/")[2] in error
    told = last_cells(lines)
    assert "All: delete it, by `gcloud storage rm …`. Otherwise fire it, by `bqdispatch replay …`: " in told
    assert "`gcloud storage objects …`" in told
    assert not any(each in told for each in ("--config", "--no-temporary-hold", "gs://ops"))


def test_the_block_in_the_docs_is_what_is_printed(world, config):
    """Word by word; figures are its own."""
    world.client.create_bucket("acme_shop_bqtail")
    world.performance()
    world.traces(2, project="acme-shop", state="RUNNING", age=30)
    world.trace(project="acme-shop", dest="sales.orders", region="EU", age=320)
    world.window(dest="sales.orders", due=-280)
    _, lines = shown_by("status", "--config", config(ProjectID="acme-shop", MaxConcurrentJobs=2))
    block = re.search("`bqdispatch status` prints.*?```text\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    assert without_figures(block) == without_figures("\n".join(lines))


def without_figures(text):
    return re.sub(r"\d+", "0", " ".join(text.split()))


def last_cells(lines):
    return " ".join(line.rstrip("│ ").rpartition("│")[2].strip() for line in lines if line.startswith("│"))


def test_what_is_not_listed_is_counted(world, config):
    for _ in range(12):
        world.trace(state=None, age=90_000)
    world.cycle()
    for number in range(13):
        hold(world, world.trace(dest=f"ds.t{number}", age=LATER))
    _, lines = shown_by("status", "--config", config())
    assert "What waits, and why" in [line.strip() for line in lines]
    for said in (
        "and 2 more; `bqdispatch replay` lists all",
        "and 3 more; the response document has all",
        "and 3 more; `bqdispatch explain` tells of each",
    ):
        assert said in lines


def test_markup_in_the_name_of_a_project_is_text(world, config):
    name = "[link=x]acme:smile:"
    world.traces(1, "query", project=name, state="RUNNING")
    _, lines = shown_by("status", "--config", config(MaxConcurrentSQL=1))
    (limit,) = [line for line in lines if "MaxConcurrentSQL" in line and line.startswith("│")]
    assert limit.split("│")[1].strip() == name


def test_a_name_with_backticks_cannot_break_a_command():
    awkward = f"gs://b/{'`bq x` it'}'s `"
    command = f"gcloud storage rm {shlex.quote(awkward)}"
    said = f"Look in `ds`.t`. Run `{command}`; otherwise `bq show --job p:j`, or nothing `"
    assert commands_in(said) == [command, "bq show --job p:j"]
    assert without_commands(said) == "Look in `ds`.t`. Run `gcloud storage rm …`; otherwise `bq show …`, or nothing `"


def test_a_table_with_backticks_is_no_command(world):
    name = "undecided/ds.t`bq x; touch owned #_77_1795947618.win.7"
    url = world.url_of(name)
    wait = Wait(name, Reason.UNDECIDED, datetime(2026, 1, 1, tzinfo=UTC))
    said = next_step(wait, url, world.config())
    assert commands_in(said) == [f"gcloud storage rm {shlex.quote(url)}", replay_command(world.config(), url)]


def test_a_project_that_bq_would_take_for_an_option_is_in_no_command(world):
    name = "proj:--apilog=owned:US/ds.t--77_00001_load--dispatch"
    for reason in (Reason.NOT_FOUND, Reason.JOB_RUNNING):
        wait = Wait(name, reason, datetime(2026, 1, 1, tzinfo=UTC))
        assert commands_in(next_step(wait, world.url_of(name), world.config())) == []


def test_top_draws_until_ctrl_c(world, config):
    world.trace(state="RUNNING", age=LATER)
    code, shown, said = on_a_terminal(
        [BIN / "bqdispatch", "top", "--config", config()], "stdout", press={b"Lanes": b"\x03"}, COLUMNS="80", LINES="40"
    )
    assert code == 130
    assert b"job running" in shown
    assert b"\x1b[?1049l" in shown.rpartition(b"Lanes")[2]  # the terminal is as it was before
    assert b"Traceback" not in shown + said


@pytest.mark.parametrize(
    ("reason", "said", "verb"),
    [(Reason.UNDECIDED, "", "rm"), (Reason.PROTECTED, "it has a temporaryHold", "objects update")],
)
def test_a_name_with_wildcards_of_gcloud_names_one_object(world, reason, said, verb):
    wait = Wait("undecided/**_h[a]?_1.win.7", reason, datetime(2026, 1, 1, tzinfo=UTC), said)
    step = next_step(wait, f"gs://ops/tasks/{wait.name}", world.config())
    (command,) = [each for each in commands_in(step) if each.startswith("gcloud ")]
    assert f"gcloud storage {verb} 'gs://ops/tasks/undecided/[*][*]_h[[]a][?]_1.win.7'" in command
