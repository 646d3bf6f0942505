"""Names are untrusted text: whatever is in them, events arrive unharmed, and no line of a log or a report is forged."""

import json
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from terminal import on_a_terminal
from world import FOLDER, TASKS, TRIGGER

from bqdispatch_provider.commands.checks import CheckResult
from bqdispatch_provider.commands.job_checks import check_jobs
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Share
from bqdispatch_provider.core.model import Job, Outcome
from bqdispatch_provider.core.targets import (
    CREATED,
    MAX_OBJECT_NAME_BYTES,
    SINCE,
    ledger_entry_name,
    undecided_name,
)
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.job_answers import JobStates
from bqdispatch_provider.names import TraceName
from bqdispatch_provider.view.journal_reader import JournalReader

BIN = Path(sys.executable).parent
AWKWARD = {
    "escape": "ds.\x1b]0;title\x07\x1b[2J",
    "c1": "ds.\x9b2J\x85t",
    "nul": "ds.\x00\x01\x7f",
    "tab": "ds.\tt",
    "separators": "ds.\u2028\u2029t",
    "bidi": "ds.\u202egpj.exe\u2066",
    "invisible": "ds.\u200b\ufeff\u00ad",
    "html": "ds.<img src=x onerror=alert(1)>",
    "quotes": "ds.'\"`\\",
    "emoji": "ds.\U0001f600\U0001f469\u200d\U0001f4bb",
    "combining": "ds.e\u0301",
    "percent": "ds.%2F%zz%0A%1B%",
    "url": "ds.?a=b&c#d;e+f g",
    "patterns": "ds.*[x]{y}~^|",
    "template": "ds.${x}{{ 1 }}%s{0}",
    "dots": "..",
    "markup": "ds.[bold red]x[-]",
}


def is_harmless(text):
    """Whether a terminal and a log take it for text in one line."""
    return not any(unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp", "Cs") for each in text)


def lines_are_harmless(caplog):
    own = (record.getMessage() for record in caplog.records if record.name != "google.resumable_media._helpers")
    return [each for each in own if not is_harmless(each)] == []  # that one tells of what the test itself has read


@pytest.fixture(params=AWKWARD.values(), ids=AWKWARD)
def dest(request):
    return request.param


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG)
    return caplog


def trace(world, dest, number="1", content="{}", project="p", mode="dispatch"):
    """The name of a trace that lies there; BigQuery takes no ID for most of these, so there is no job."""
    name = TraceName(project, "US", dest, number, 1, "load", mode).name
    world.put(name, content=content)
    return name


def all_done(world):
    """A dispatcher to whom every job is done."""
    dispatcher = world.dispatcher()
    dispatcher.board.look = lambda traces, *_: JobStates({each.job: Job("US", "DONE") for each in traces})
    return dispatcher


def in_trigger(world, prefix):
    return {name: world.blob(name, TRIGGER).download_as_bytes() for name in world.names(TRIGGER, prefix)}


def test_a_trace_arrives_unharmed(world, dest, log):
    name = trace(world, dest, content=f"the body of {dest!r}")
    with all_done(world) as dispatcher:
        report = dispatcher.cycle()
    assert report.to_dict()["Outcomes"] == {"dispatched": 1}
    ((arrived, body),) = in_trigger(world, "_bqjob_/").items()
    assert arrived.split("/", 2)[2] == f"{name}.json"
    assert body.decode() == f"the body of {dest!r}"
    assert world.names() == []
    assert list(json.loads(json.dumps(report.to_dict()))["Jobs"]) == [world.url_of(name)]
    assert lines_are_harmless(log)


@pytest.mark.parametrize("at", ["-62135596800", "-1", "0.5", "4e9", "1e300", "nan", "soon", ""])
@pytest.mark.parametrize("key", [CREATED, SINCE])
def test_a_time_in_metadata_that_cannot_be_keeps_no_other_trace(world, key, at):
    good = world.traces(10)
    bad = world.trace(state=None)
    world.put(bad, age=50 * 3600, metadata={key: at})
    asked = []
    with world.dispatcher() as dispatcher:
        ask = dispatcher.board.calls.ask
        dispatcher.board.calls.ask = lambda path, query: (
            asked.append(query.get("minCreationTime", 1)),
            ask(path, query),
        )[1]
        document = dispatcher.cycle().to_dict()
    assert document["Jobs"].keys() == {*map(world.url_of, good)}
    assert document["Quarantined"].keys() == {world.url_of(bad)}
    assert min(asked) > 0, "BigQuery takes no time before 1970"


def test_a_window_is_fired_unharmed_and_set_aside_when_it_returns_and_nobody_can_tell(world, dest, log):
    name = world.window(dest, content=f"the body of {dest!r}")
    assert world.cycle().to_dict()["Batched"].keys() == {world.url_of(name)}
    assert in_trigger(world, "_batch_/") == {f"_batch_/{name}": f"the body of {dest!r}".encode()}
    assert world.names() == [name]
    assert world.cycle().to_dict()["Outcomes"] == {"ignored": 2}
    world.put(name, content="again")
    generation = world.blob(name).generation
    report = world.cycle()
    assert report.quarantined.keys() == {world.url_of(name)}
    marker = undecided_name(name, generation, world.config().async_task_url)
    assert world.blob(marker).download_as_bytes() == b"again"
    assert world.names() == [marker]
    told = world.cycle().errors
    assert len(told) == 1
    assert all(map(is_harmless, (*report.quarantined.values(), *told)))
    assert lines_are_harmless(log)


@pytest.mark.parametrize("piece", ["x", "\u65e5"])
def test_a_window_whose_name_cannot_be_longer_is_fired_once_and_known_when_it_returns(world, piece):
    room = MAX_OBJECT_NAME_BYTES - len(f"{FOLDER}ds._77_1700000000.win")
    dest = f"ds.{piece * (room // len(piece.encode()))}"
    name = world.window(f"{dest}{'x' * (room % len(piece.encode()))}", content='{"EventID": "4711"}')
    assert len(f"{FOLDER}{name}".encode()) == MAX_OBJECT_NAME_BYTES
    assert world.cycle().to_dict()["Batched"].keys() == {world.url_of(name)}
    assert world.cycle().to_dict()["Outcomes"] == {"ignored": 2}
    assert world.names(TRIGGER) == [f"_batch_/{name}"]
    world.put(name, content="again")
    assert world.cycle().to_dict()["Outcomes"] == {"pending": 1, "ignored": 1}
    world.delete(f"_batch_/{name}", TRIGGER)
    world.cycle()
    entries = [blob.name for blob in world.client.list_blobs(TASKS, prefix=f"{FOLDER}~ledger/")]
    assert {entry.rpartition(".")[2] for entry in entries} == {"claim", "fired", "gone-00000"}
    assert len({entry.rpartition(".")[0] for entry in entries}) == 1


def test_a_trace_without_a_job_waits_and_the_others_go_on(world, dest, log):
    name, good = trace(world, dest), world.trace()
    report = world.cycle()
    assert report.to_dict()["Outcomes"] == {"dispatched": 1, "not_found": 1}
    assert list(report.jobs) == [world.url_of(good)]
    assert world.names() == [name]
    assert lines_are_harmless(log)


@pytest.fixture
def everything(world):
    """A trace and a window of each name."""
    for number, dest in enumerate(AWKWARD.values()):
        trace(world, dest, str(number))
        world.window(dest)


@pytest.mark.parametrize("call", ["storage.objects.copy", "storage.objects.delete", "storage.objects.compose"])
@pytest.mark.parametrize("status", [403, 404, 412])
def test_what_goes_wrong_is_told_in_one_line(world, everything, log, call, status):
    world.control.add_fault(call, "status", status=status)
    with all_done(world) as dispatcher:
        report = dispatcher.cycle()
    assert all(map(is_harmless, report.errors)), report.errors
    assert lines_are_harmless(log)


def held_meanwhile(world):
    """What a dispatch of objects says that came under a hold after they were looked at: Google's words name them."""
    with all_done(world) as dispatcher:
        shares = dispatcher.look().plan.shares()
        for name in world.names():
            blob = world.blob(name)
            blob.temporary_hold = True
            blob.patch()
        return dispatcher.dispatch(shares)


def refused_project(world, dest):
    """What a cycle says of a project whose jobs may not be looked at: BigQuery's words name it."""
    trace(world, "ds.t", project=f"{dest}x")
    world.control.refuse("bigquery.jobs.get", project=f"{dest}x")
    return world.cycle()


def test_what_a_service_says_is_one_line_of_the_report(world, dest):
    trace(world, dest)
    errors = held_meanwhile(world).errors + refused_project(world, dest).errors
    assert len(errors) > 1
    assert all(map(is_harmless, errors)), errors


def test_what_a_service_says_is_one_line_of_the_log(world, log):
    trace(world, AWKWARD["escape"])
    held_meanwhile(world)
    refused_project(world, AWKWARD["escape"])
    assert lines_are_harmless(log)


def test_an_unknown_name_is_named_and_explained_in_one_line(world, dest, log):
    world.put(name := f"what {dest} is")
    report = world.cycle()
    assert report.to_dict()["Outcomes"] == {"unknown": 1}
    assert list(report.unknown) == [name]
    assert all(map(is_harmless, report.unknown.values()))
    assert world.names() == [name]
    assert lines_are_harmless(log)


def test_a_project_that_cannot_be_seen_is_told_in_one_line(world, dest, log):
    trace(world, "ds.t", project=f"{dest}x")
    world.control.add_fault("bigquery.jobs.*", "status", status=403, reason="accessDenied")
    report = world.cycle()
    assert report.to_dict()["Outcomes"] == {"error": 1}
    assert all(map(is_harmless, report.errors))
    assert lines_are_harmless(log)


def test_a_path_that_climbs_is_left_where_it_is(world):
    names = ["../x", "../proj:p:US/ds.t--1_00001_load--dispatch", "proj:p:US/../ds.t--1_00001_load--dispatch", "a/../x"]
    world.put(*names)
    assert world.cycle().to_dict()["Outcomes"] == {"ignored": 4}
    assert world.names() == sorted(names)


ENDING = "--1_00001_load--dispatch"
IN_TRIGGER = len("_bqjob_/2026-01-01_00/.json")


def of_length(bytes_, character="d"):
    """A trace's name with so many bytes below the task folder."""
    start = "proj:p:US/ds."
    room = bytes_ - len(start) - len(ENDING)
    return f"{start}{character * (room // len(character.encode()))}{'x' * (room % len(character.encode()))}{ENDING}"


@pytest.mark.parametrize("character", ["d", "\u00e9", "\U0001f600"])
def test_the_longest_name_that_fits_in_the_trigger_bucket_arrives(world, character):
    world.put(name := of_length(1024 - IN_TRIGGER, character))
    with all_done(world) as dispatcher:
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"dispatched": 1}
    (arrived,) = world.names(TRIGGER)
    assert arrived.endswith(f"/{name}.json")
    assert len(arrived.encode()) == 1024


@pytest.mark.parametrize("bytes_", [1024 - IN_TRIGGER + 1, 1024 - len(FOLDER)])
def test_a_name_that_is_too_long_there_is_set_aside_with_the_reason_while_the_others_go_on(world, bytes_, log):
    world.put(name := of_length(bytes_))
    good, window = world.trace(), world.window()
    with all_done(world) as dispatcher:
        report = dispatcher.cycle()
    assert report.to_dict()["Outcomes"] == {"dispatched": 2, "quarantined": 1}
    assert (list(report.jobs), list(report.batched)) == ([world.url_of(good)], [world.url_of(window)])
    assert name not in world.names()
    assert f"{bytes_ + IN_TRIGGER} bytes long in the trigger bucket" in report.quarantined[world.url_of(name)]
    assert lines_are_harmless(log)


def test_a_name_that_fits_waits_behind_another_trace_of_that_name_if_it_has_no_room_for_its_generation(world, log):
    world.put(name := of_length(1024 - IN_TRIGGER))
    with all_done(world) as dispatcher:
        assert dispatcher.cycle().dispatched == 1
        world.control.advance(2)
        world.put(name, content="second")
        world.control.reset_counters()
        document = dispatcher.cycle().to_dict()
        assert document["Outcomes"]["error"] == 1
        for said in (world.url_of(name), "1041 bytes", "1024", "BqTail has processed", "shorten PostJobPrefix"):
            assert said in document["Error"]
        assert world.control.calls()["storage.objects.rewrite"] == 1
        world.consume()
        assert dispatcher.cycle().dispatched == 1
    assert lines_are_harmless(log)


def test_the_longest_window_is_fired(world):
    end = "_77_1700000000.win"
    world.put(name := f"{'d' * (1024 - len(FOLDER) - len(end) - 3)}ds.{end}".replace("ds.", "s.t"))
    assert world.cycle().to_dict()["Batched"].keys() == {world.url_of(name)}
    assert world.names(TRIGGER) == [f"_batch_/{name}"]


def test_a_terminal_gets_no_escape_sequence_of_a_name(world, tmp_path):
    hostile = list(AWKWARD.values())
    for number, dest in enumerate(hostile):
        trace(world, dest, str(number))
        world.window(dest)
        world.put(f"unknown {dest}")
    world.control.add_fault("storage.objects.compose", "status", status=403)
    trace(world, "ds.t", "99", project="\x1b[2Jx")
    world.control.refuse("bigquery.jobs.get", project="\x1b[2Jx")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(world.document()))
    command = [BIN / "bqdispatch", "run", "--once", "--verbose", "--config", path]
    _, shown, printed = on_a_terminal(command, TERM="dumb")
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    assert [line for line in lines if not is_harmless(line.replace("\x1b[?25l", "").replace("\x1b[?25h", ""))] == []
    assert all(is_harmless(line) for line in printed.decode().splitlines())
    document = json.loads(printed)
    assert document["Outcomes"] == {
        str(Outcome.NOT_FOUND): len(hostile),
        str(Outcome.ERROR): len(hostile) + 1,
        str(Outcome.UNKNOWN): len(hostile),
    }


@pytest.mark.parametrize("said", ["-62135596800", "-1e18", "253402300799", "1e18", "nan", "inf", "x"])
def test_a_forged_time_of_creation_holds_nothing_up(world, said):
    name, window = world.trace(), world.window()
    for each in (name, window):
        world.put(each, metadata={CREATED: said})
    with world.dispatcher() as dispatcher:
        assert {check.result for check in check_jobs(dispatcher)} == {CheckResult.OK}
        report = dispatcher.cycle()
    assert report.to_dict()["Outcomes"] == {"dispatched": 2}
    assert not any("Date header" in each for each in report.errors)


KEYS = "ds.\x1b[201~\x15touch ran #\x0f\u202e\\'`\u00e9"
"""Keys that end a paste, empty the line, and run it."""


def test_a_command_with_a_name_is_one_word_of_printable_characters_and_exact(world, tmp_path):
    names = [trace(world, dest, str(number)) for number, dest in enumerate((KEYS, *AWKWARD.values()))]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(world.document(MaxUnknownJobMin=1)))
    config = DispatchConfig.from_url(path.as_uri())
    world.control.advance(3600)
    with Dispatcher(config, world.client, world.session) as dispatcher:
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"quarantined": len(names)}
    held = JournalReader(world.client, config).quarantine()
    assert all(is_harmless(each.command) and each.command.isprintable() for each in held)
    (command,) = [each.command for each in held if "touch ran" in each.command]
    shown = subprocess.run([BIN / "bqdispatch", "explain", "--config", path, names[0]], capture_output=True, text=True)
    assert f"  Next: Put it back with: {command}\n" in shown.stdout
    for each in held:
        if "\x00" not in each.url:  # which nothing can give to a program
            words = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {each.command}"], text=True)
            assert words.split("\n")[-2] == each.url
    world.control.advance(1)
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path, env={**os.environ, "PATH": f"{BIN}:/usr/bin"})
    assert (world.names(), (tmp_path / "ran").exists()) == ([names[0]], False)


@pytest.mark.parametrize(("due", "known"), [(-3600, "fired"), (4, "fired"), (60, "claim"), (60, "")])
def test_a_forged_share_deletes_no_name_of_a_folder(world, due, known):
    """Of a window that is not due, or was never fired, each folder is still to be loaded."""
    window = world.window(due=due, age=100)
    if known:
        world.put(ledger_entry_name(window, 7, known, world.config().async_task_url))
    location = f"{window.removesuffix('.win')}/x1.loc"
    (generation,) = world.put(location, content="gs://data/folder/")
    forged = [window, 1, 1.0, "", 0, "", "", False, None, False, False, False, [[location, generation]], []]
    share = Share.from_dict({"lane": "windows", "planned": 1.0, "events": [forged]})
    with world.dispatcher() as dispatcher:
        report = dispatcher.dispatch([share])
    assert location in world.names()
    assert "none of its .loc is deleted" in report.errors[0]
