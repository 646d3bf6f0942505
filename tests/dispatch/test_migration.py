"""The switch from the Go service and back, as docs/migration.md has it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_late_windows import A, Rule
from world import JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.commands.check_idle import IdleCheck
from bqdispatch_provider.commands.checks import CheckResult
from bqdispatch_provider.commands.replay import Decisions
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.targets import undecided_name
from bqdispatch_provider.names import WindowName

GUIDE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
BIN = Path(sys.executable).parent


def test_the_go_services_document_is_read_as_it_is():
    """The document in docs/migration.md."""
    document = json.loads(re.search(r"```json\n(.*?)```", GUIDE, re.DOTALL)[1])
    config = DispatchConfig.from_dict(document, {"configBucket": "acme-config", "opsBucket": "acme-ops"})
    assert config.async_task_url == "gs://acme-ops/BqTail/Tasks/"
    assert (config.max_concurrent_jobs, config.max_concurrent_sql) == (15, 40)
    assert (config.check_in_ms, config.trigger_bucket) == (5000, "acme_ops_bqtail")


def test_the_guide_names_commands_that_are_there():
    listed = subprocess.run([BIN / "bqdispatch", "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.search(r"\{([\w,-]+)\}", listed)[1].split(","))
    assert {"smoke", "check-idle", "run", "replay"} <= set(re.findall(r"`?bqdispatch (\w[\w-]*) --", GUIDE)) <= known


def test_the_response_has_the_shape_that_the_guide_says(world):
    """The Go service nests jobs, writes a time as text, and counts windows as a project of their own."""
    table = GUIDE.partition("## What the response says otherwise\n")[2].partition("\n## ")[0]
    here = {row.split("|")[1].strip(): row.split("|")[3].strip() for row in table.splitlines() if row.startswith("|")}
    trace = world.trace()
    world.window()
    report = world.cycle().to_dict()
    assert here["`Jobs`"] == "`Jobs.<url>`" and set(report["Jobs"]) == {world.url_of(trace)}
    assert here["`ListTime`"] == "a number, in milliseconds" and isinstance(report["ListTime"], int)
    assert here["`MaxPending`"].startswith("–; `Oldest` and `Waiting`") and "MaxPending" not in report
    assert {"Oldest", "Waiting"} <= report.keys()
    assert here["windows in `Performance`"] == "as `BatchJobs` of their project"
    assert {name: each["Dispatched"] for name, each in report["Performance"].items()} == {
        "p": {"LoadJobs": 1, "BatchJobs": 1}
    }


def looked(world, **more):
    checks = list(IdleCheck(world.config(**more).for_project("p"), world.client).checks())
    return {result: [check for check in checks if check.result is result] for result in CheckResult}


def go_sentinel(world, name, age=60.0):
    world.put(WindowName.parse(name).sentinel, content=".", age=age)


def performance(world):
    world.control.seed_objects(JOURNAL, [{"name": "journal/performance.json", "content": "{}"}])


def moved(world):
    world.control.seed_objects(TRIGGER, ["_bqjob_/2026-01-01_00/ds_t--1_00001_load--dispatch.json"])


def fired(world):
    world.control.seed_objects(TRIGGER, ["_batch_/ds.t_77_1700000000.win"])


def old_window(world):
    go_sentinel(world, world.window())


def lone_sentinel(world):
    world.put("ds.t_77_1700000000.wis", content=".")


def intent(world):
    world.put("intents/abc-1.json")


@pytest.mark.parametrize("sign", [performance, moved, fired, old_window, lone_sentinel, intent])
def test_a_dispatcher_that_was_at_work_is_noticed_until_it_is_idle(world, sign):
    world.trace()
    assert looked(world)[CheckResult.FAILED] == []
    sign(world)
    (found,) = looked(world)[CheckResult.FAILED]
    assert "less than 10 minutes ago" in found.finding
    world.control.advance(11 * 60)
    assert looked(world)[CheckResult.FAILED] == []


def test_a_longer_run_is_waited_for_longer(world):
    performance(world)
    world.control.advance(20 * 60)
    assert looked(world)[CheckResult.FAILED] == []
    assert len(looked(world, TimeToLiveInMin=30)[CheckResult.FAILED]) == 1


def test_a_place_that_cannot_be_looked_at_is_not_called_idle(world):
    world.control.refuse("storage.objects.list", bucket=TASKS)
    (found,) = looked(world)[CheckResult.FAILED]
    assert found.what == "task folder"


def test_what_the_go_service_left_is_taken_over(world):
    """A fired window is not fired again, and one whose sentinel was deleted is; traces and other windows go out."""
    trace, new = world.trace(age=3600), world.window("ds.new", due=1800)
    done, lost = world.window("ds.done", due=1800), world.window("ds.lost", due=1800)
    go_sentinel(world, done, age=1790)
    go_sentinel(world, lost, age=1790)
    (warning,) = looked(world)[CheckResult.WARNING]
    assert warning.finding.startswith("2 windows")
    world.delete(WindowName.parse(lost).sentinel)
    report = world.cycle().to_dict()
    assert set(report["Jobs"]) == {world.url_of(trace)}
    assert set(report["Batched"]) == {world.url_of(new), world.url_of(lost)}
    assert done in world.names()


def test_a_twin_beside_a_sentinel_of_the_go_service_waits_and_is_fired_once_somebody_says_so(world):
    """The sentinel stays: what people have decided goes before what it says."""
    name = world.window(due=1800, age=100)
    go_sentinel(world, name, age=1790)
    assert set(world.cycle().quarantined) == {world.url_of(name)}
    with world.dispatcher() as dispatcher:
        decisions = Decisions(dispatcher)
        (waiting,) = decisions.listing()
        assert "late twin" in waiting.reason
        decisions.fire(waiting)
    world.control.advance(10)
    assert set(world.cycle().to_dict()["Batched"]) == {world.url_of(name)}
    assert world.names(TRIGGER) == [f"_batch_/{name}"]
    assert world.cycle().to_dict()["BatchCount"] == 0


def test_a_fired_window_that_lies_there_still_is_in_the_way_of_the_go_service_until_it_is_gone(world):
    name = world.window(due=1800, content='{"EventID": "4711"}')
    world.cycle(MaxTriggerDelayMs=1_200_000)
    world.jobs(["ds_t--4711_00001_load--dispatch"], age=0)
    world.delete(f"_batch_/{name}", TRIGGER)
    world.control.advance(15 * 60)
    world.cycle(MaxTriggerDelayMs=1_200_000)
    world.control.advance(15 * 60)
    (failed,) = looked(world, MaxTriggerDelayMs=1_200_000)[CheckResult.FAILED]
    assert failed.finding.startswith("1 fired window") and repr(name) in failed.finding
    assert "would fire them again" in failed.finding
    assert "`bqdispatch run --once` removes them 1200 s after their firing" in failed.finding
    world.cycle(MaxTriggerDelayMs=1_200_000)
    assert world.names() == []
    assert looked(world)[CheckResult.FAILED] == looked(world)[CheckResult.WARNING] == []


@pytest.mark.parametrize("many", [False, True])
def test_a_window_that_came_back_is_in_the_way_of_the_go_service_until_it_is_judged(world, many):
    """It waits for the load of its first firing; the Go service would fire it beside that load."""
    rule = Rule(world, many)
    event = rule.fired(f"{A}/1.json", state="RUNNING")
    rule.arrive(f"{A}/1.json")
    assert world.cycle().outcomes["pending"] == 1
    world.control.advance(15 * 60)
    (failed,) = looked(world)[CheckResult.FAILED]
    assert failed.finding.startswith("1 window that came back") and repr(rule.name) in failed.finding
    assert "may load files twice" in failed.finding and "`bqdispatch run --once`" in failed.finding
    rule.load(event, f"{A}/1.json", step=2)
    world.control.advance(2 * 10**6)
    assert world.cycle().late == 1
    world.control.advance(15 * 60)
    assert looked(world)[CheckResult.FAILED] == looked(world)[CheckResult.WARNING] == []


def test_a_window_that_somebody_put_back_is_left_to_whoever_fires_next(world):
    """It is fired whatever is known of earlier firings, by the Go service as well."""
    rule = Rule(world, many=False)
    rule.fired(f"{A}/1.json")
    rule.arrive(f"{A}/2.json")
    assert world.cycle().outcomes["quarantined"] == 1
    with world.dispatcher() as dispatcher:
        decisions = Decisions(dispatcher)
        decisions.fire(*decisions.listing())
    world.control.advance(15 * 60)
    assert rule.name in world.names()
    assert looked(world)[CheckResult.FAILED] == looked(world)[CheckResult.WARNING] == []


def test_a_ledger_that_cannot_be_read_is_not_called_idle(world):
    for due in (1800, 3600):
        world.window(due=due)
    world.control.add_fault("storage.batch", "status", status=403)
    (failed,) = looked(world)[CheckResult.FAILED]
    assert (failed.what, "~ledger/" in failed.finding) == ("task folder", True)


def test_a_window_that_waits_for_a_decision_is_named(world):
    name = world.window(due=1800)
    marker = undecided_name(name, 7, world.config().async_task_url)
    world.put(marker, age=1800)
    (warning,) = looked(world)[CheckResult.WARNING]
    assert warning.finding.startswith("1 window waiting") and repr(marker) in warning.finding
    assert "`bqdispatch replay`" in warning.finding


@pytest.mark.parametrize("many", [False, True])
def test_a_claim_that_was_not_fired_is_named_before_the_way_back(world, many):
    """Also where the window itself is gone: its intent tells of it."""
    name = world.window(due=1800, content='{"EventID": "4711"}')
    world.claim(name, ago=1200)
    if many:
        firing = {"window": name, "generation": world.blob(name).generation, "project": "", "event": "", "many": True}
        document = {"version": 1, "owner": "killed", "firings": [firing]}
        world.put("intents/killed-000001-windows.json", age=1200, content=json.dumps(document))
        world.delete(name)
    (warning,) = looked(world)[CheckResult.WARNING]
    first = "intents/killed-000001-windows.json" if many else name
    assert warning.finding.startswith(f"{first!r} left unfinished: `bqdispatch run --once` settles it")
    assert set(world.cycle().to_dict()["Batched"]) == {world.url_of(name)}
    world.jobs(["ds_t--4711_00001_load--dispatch"], age=0)
    world.control.advance(3600)
    world.cycle()
    assert world.intents() == []
    assert looked(world)[CheckResult.WARNING] == []


@pytest.mark.parametrize("also", [("intents/a-000001.json",), ()], ids=["beside its intent", "alone"])
@pytest.mark.parametrize("kind", ["", "-windows", "-left"])
def test_an_intent_that_is_completed_was_not_left_unfinished(world, also, kind):
    world.put(*(f"{name.removesuffix('.json')}{kind}.json" for name in also), age=1800)
    world.put(f"intents/a-000001{kind}.json.done", age=1790, content="")
    assert looked(world)[CheckResult.FAILED] == looked(world)[CheckResult.WARNING] == []
    world.put(f"intents/b-000001{kind}.json", age=1790)
    (warning,) = looked(world)[CheckResult.WARNING]
    assert f"'intents/b-000001{kind}.json' left unfinished: " in warning.finding


def test_the_command_exits_with_one_until_it_is_idle(world, tmp_path):
    """The command of docs/migration.md."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(world.document()))
    world.trace()
    command = [BIN / "bqdispatch", "check-idle", "--config", path]
    assert subprocess.run(command, check=False).returncode == 0
    world.cycle()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "moved traces" in ended.stdout


def test_what_cannot_be_seen_is_said_with_how_long_to_wait(world):
    (unseen,) = looked(world)[CheckResult.NOT_CHECKED]
    assert "sleeps for up to 100 minutes" in unseen.finding
