"""The command line as a user runs it: real processes, documents on standard output, everything else beside it."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from terminal import on_a_terminal
from waiting import HELD_MS, PATIENCE_S, wait_until
from world import FOLDER, JOURNAL, TASKS, TRIGGER, World

from bqdispatch_provider import __version__
from bqdispatch_provider.testing.standin import StandInControl

BIN = Path(sys.executable).parent


def bqdispatch(*arguments, **environment):
    return subprocess.run(
        [BIN / "bqdispatch", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_seeded_stand_in_is_dispatched_whole_and_then_there_is_nothing_to_do(tmp_path, monkeypatch):
    """The stand-in by its own command, in a process of its own."""
    with subprocess.Popen([BIN / "bqdispatch-standin", "--port", "0"], stdout=subprocess.PIPE, text=True) as standin:
        try:
            url = standin.stdout.readline().strip()
            environment = {"STORAGE_EMULATOR_HOST": url, "BIGQUERY_EMULATOR_HOST": url}
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            with StandInControl(url) as control:
                world = World(url, control)
                traces = world.traces(1000)
                windows = [world.window(f"ds.t{n}") for n in range(10)]
                path = tmp_path / "config.json"
                path.write_text(json.dumps(world.document()))
                first = bqdispatch("run", "--once", "--config", path)
                document = json.loads(first.stdout)
                assert first.returncode == 0
                assert set(document["Jobs"]) == {world.url_of(name) for name in traces}
                assert set(document["Batched"]) == {world.url_of(name) for name in windows}
                assert document["Listed"] == sum(document["Outcomes"].values()) == 1010
                assert (len(world.names(TRIGGER, "_bqjob_/")), len(world.names(TRIGGER, "_batch_/"))) == (1000, 10)
                second = json.loads(bqdispatch("run", "--once", "--config", path.as_uri()).stdout)
                assert (second["Jobs"], second["Batched"], second["Dispatched"]) == ({}, {}, {})
        finally:
            standin.terminate()
        assert standin.wait(PATIENCE_S) == 0


def test_standard_output_holds_the_document_alone(world, config):
    world.trace()
    ended = bqdispatch("run", "--once", "--config", config(RulesURL="gs://x/rules"))
    assert json.loads(ended.stdout)["Status"] == "ok"
    assert "RulesURL" in ended.stderr


def test_a_run_without_once_lasts_for_its_time_to_live(world, config):
    document = json.loads(bqdispatch("run", "--config", config(TimeToLiveInMin=0.14)).stdout)
    assert document["Cycles"] > 1
    assert 1000 < document["TimeTakenMs"] < 60_000


def test_an_error_exits_with_one_and_still_prints_the_document(world, config):
    world.control.add_fault("storage.objects.list", "status", status=403, reason="forbidden", bucket=TASKS)
    ended = bqdispatch("run", "--once", "--config", config())
    assert ended.returncode == 1
    document = json.loads(ended.stdout)
    assert (document["Status"], f"gs://{TASKS}/{FOLDER}" in document["Error"]) == ("error", True)


@pytest.mark.parametrize("command", [["run", "--once"], ["pools"], ["replay", "--all"]])
def test_a_bad_configuration_exits_with_two_and_touches_nothing(world, config, command):
    world.trace()
    world.control.reset_counters()
    ended = bqdispatch(*command, "--config", config(MaxConcurrentSQL=-1, JournalURL="${journal}", ErrorURL=None))
    assert (ended.returncode, ended.stdout) == (2, "")
    for said in ("MaxConcurrentSQL is -1", "${journal}", "ErrorURL is missing"):
        assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert world.control.requests() == 0


@pytest.mark.parametrize(
    "arguments", [["--config", "nowhere.json"], ["--config", "s3://a/b"], ["--config", "x", "--var", "y"]]
)
def test_what_cannot_be_read_exits_with_two(arguments):
    ended = bqdispatch("run", "--once", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr


def test_the_configuration_may_lie_in_a_bucket_with_variables(world):
    blob = world.client.bucket(JOURNAL).blob("config.json")
    blob.upload_from_string(json.dumps(world.document(ErrorURL="gs://${bucket}/errors")))
    ended = bqdispatch("run", "--once", "--config", f"gs://{JOURNAL}/config.json", "--var", "bucket=else-where")
    assert ended.returncode == 0, ended.stderr


def test_the_version_is_printed():
    ended = bqdispatch("--version")
    assert (ended.returncode, ended.stdout) == (0, f"bqdispatch {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["pools", "--config", "{config}"]])
def test_help_and_pools_load_neither_airflow_nor_a_client_of_google(config, arguments):
    arguments = [each.format(config=config()) for each in arguments]
    program = "import sys; from bqdispatch_provider.commands.cli import main\ntry: main(sys.argv[1:])\n"
    program += "finally: print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert not {"airflow", "google.auth", "google.cloud.storage", "requests", "rich"} & set(ended.stderr.split())


def test_a_terminal_sees_how_far_a_run_is(world, config):
    world.trace()
    code, shown, printed = on_a_terminal([BIN / "bqdispatch", "run", "--once", "--config", config()])
    assert (code, json.loads(printed)["Status"]) == (0, "ok")
    assert b"Cycle 1: 1 dispatched" in shown


def test_pools_are_printed_as_airflow_imports_them(config):
    pools = json.loads(bqdispatch("pools", "--config", config(MaxConcurrentSQL=5)).stdout)
    assert {name: pool["slots"] for name, pool in pools.items()} == {"bqdispatch_sql": 5, "bqdispatch_jobs": -1}
    assert all(pool["description"] for pool in pools.values())


def test_pools_of_a_set_up_carry_its_name(config):
    pools = json.loads(bqdispatch("pools", "--setup", "acme", "--config", config(MaxConcurrentSQL=5)).stdout)
    assert {name: pool["slots"] for name, pool in pools.items()} == {
        "bqdispatch_acme_sql": 5,
        "bqdispatch_acme_jobs": -1,
    }


def test_a_set_up_whose_name_is_none_is_one_clear_message(config):
    ended = bqdispatch("pools", "--setup", "Acme", "--config", config())
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "expected up to 50 lower-case letters" in ended.stderr


def test_pools_of_an_airflow_without_a_database_are_one_clear_message(config, tmp_path):
    none = {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/none.db"}
    ended = bqdispatch("pools", "--check", "--config", config(), **none)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "airflow db migrate" in ended.stderr
    assert "no such table: slot_pool" in ended.stderr
    assert "configuration" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) < 5


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--import", "--url", "http://127.0.0.1:9"], {}, "AIRFLOW_CLI_TOKEN is not set"),
        (["--check", "--url", "http://127.0.0.1:9"], {"AIRFLOW_CLI_TOKEN": "t"}, "cannot be reached"),
        (["--check", "--url", "{standin}"], {"AIRFLOW_CLI_TOKEN": "t"}, "is not the address of an Airflow"),
    ],
)
def test_an_airflow_that_cannot_be_asked_is_one_clear_message(world, config, arguments, environment, said):
    arguments = [each.format(standin=world.url) for each in arguments]
    ended = bqdispatch("pools", "--config", config(), *arguments, **environment)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "configuration" not in ended.stderr


def test_pools_without_a_configuration_need_an_airflow_whose_connection_has_it(tmp_path):
    ended = bqdispatch("pools", HOME=str(tmp_path), AIRFLOW_HOME="", AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--config is missing" in ended.stderr
    assert "'bqdispatch_default'" in ended.stderr


@pytest.mark.parametrize("command", [["run", "--once"], ["pools"], ["replay"]])
def test_a_reader_who_has_gone_is_no_traceback(world, config, command):
    world.trace(state=None, age=90_000)
    world.cycle()
    name = world.trace()
    reads, writes = os.pipe()
    os.close(reads)
    ended = subprocess.run(
        [BIN / "bqdispatch", *command, "--config", config()],
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writes)
    assert ended.returncode == 141
    assert "BrokenPipe" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert world.names() == ([] if command[0] == "run" else [name])


def quarantined(world, *dests):
    names = [f"proj:p:US/{dest}--{n}_00001_load--dispatch" for n, dest in enumerate(dests)]
    world.put(*names, age=90_000)
    assert world.cycle().to_dict()["Outcomes"] == {"quarantined": len(names)}
    return names


def test_replay_lists_what_is_in_quarantine_one_a_line(world, config):
    quarantined(world, "ds.a", "ds.<b>", "ds.[red]c")
    ended = bqdispatch("replay", "--config", config())
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    assert (ended.returncode, len(rows)) == (0, 3)
    assert {row[0] for row in rows} == {
        f"gs://{JOURNAL}/{each}" for each in world.names(JOURNAL, "errors/") if not each.endswith(".json")
    }
    assert all("404" in row[2] for row in rows)
    assert world.names() == []


def test_replay_shows_a_table_on_a_terminal(world, config):
    quarantined(world, "ds.[red]c")
    parent, child = pty.openpty()
    subprocess.run(
        [BIN / "bqdispatch", "replay", "--config", config()],
        stdout=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
        check=True,
    )
    os.close(child)
    shown = os.read(parent, 65536).decode()
    os.close(parent)
    assert "[red]c" in shown
    assert "why" in shown
    assert "\t" not in shown


def test_replay_of_nothing_says_so(world, config):
    ended = bqdispatch("replay", "--config", config())
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (0, "", "Nothing is in quarantine.")
    assert bqdispatch("replay", "--all", "--config", config()).returncode == 0


def test_replay_takes_urls_as_they_are_listed_or_reported(world, config):
    names = quarantined(world, "ds.a", "ds.b\x1b[31m\\n", "ds.c")
    listed = [line.split("\t")[0] for line in bqdispatch("replay", "--config", config()).stdout.splitlines()]
    (odd,) = [url for url in listed if "ds.b" in url]
    assert "\x1b" not in odd
    ended = bqdispatch("replay", "--config", config(), odd, world.url_of(names[0]))
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout
    assert world.names() == sorted(names[:2])
    assert bqdispatch("replay", "--config", config(), "--all").returncode == 0
    assert world.names() == sorted(names)


def test_replay_exits_with_one_when_something_stays(world, config):
    taken, free = quarantined(world, "ds.a", "ds.b")
    world.put(taken, content="new")
    ended = bqdispatch("replay", "--config", config(), "gs://no/such", "--all")
    assert ended.returncode == 1
    assert "gs://no/such: nothing of that URL" in ended.stderr
    assert "an object of that name exists there" in ended.stderr
    assert world.names() == sorted([taken, free])
    assert world.blob(taken).download_as_bytes() == b"new"


def test_replay_says_what_refused(world, config):
    quarantined(world, "ds.a")
    world.control.add_fault("storage.objects.get", "status", status=403, reason="forbidden", bucket=TASKS)
    ended = bqdispatch("replay", "--all", "--config", config())
    assert (ended.returncode, "403" in ended.stderr, "Traceback" in ended.stderr) == (1, True, False)
    world.control.add_fault("storage.objects.list", "status", status=403, reason="forbidden", bucket=JOURNAL)
    ended = bqdispatch("replay", "--config", config())
    assert (ended.returncode, "cannot be listed" in ended.stderr, "Traceback" in ended.stderr) == (1, True, False)


def test_replay_of_a_folder_that_cannot_be_looked_at_is_one_clear_message(world, config):
    folder = world.url_of("ds.t_77_1700000000/1a2b.loc")
    world.control.add_fault("storage.objects.get", "status", status=403, reason="forbidden", bucket=TASKS)
    ended = bqdispatch("replay", folder, "--config", config())
    assert (ended.returncode, "403" in ended.stderr, "Traceback" in ended.stderr) == (1, True, False)
    assert folder in ended.stderr


def test_standin_serves_with_latency(monkeypatch):
    arguments = [BIN / "bqdispatch-standin", "--port", "0", "--latency-ms", "30"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as standin:
        url = standin.stdout.readline().strip()
        answer = requests.get(f"{url}/storage/v1/b?project=p", timeout=10)
        standin.terminate()
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() >= 0.03


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_finishes_what_was_begun_and_prints_the_document(world, config, number):
    world.traces(300)
    world.control.add_fault("storage.objects.delete", "slow", ms=HELD_MS, name="*--dispatch")
    command = [BIN / "bqdispatch", "run", "--config", config()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        wait_until(lambda: run.poll() is not None or world.names(TRIGGER), "it dispatches")
        run.send_signal(number)
        assert any("finishing what has begun" in line for line in run.stderr)
        world.control.clear_faults()
        document, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0
    moved = {name.rpartition("/")[2].removesuffix(".json") for name in world.names(TRIGGER)}
    assert moved.isdisjoint(name.rpartition("/")[2] for name in world.names())
    assert len(json.loads(document)["Jobs"]) == len(moved) > 0


def test_without_a_configuration_it_takes_the_go_services_environment(world, config):
    world.trace(root=True)
    document = {key: value for key, value in world.document().items() if key != "ProjectID"}
    more = {"GCP_PROJECT": "p", "FUNCTION_REGION": "eu", "FUNCTION_TIMEOUT_SEC": "540"}
    for given in (json.dumps(document), config().as_uri(), str(config())):
        done = bqdispatch("run", "--once", CONFIG=given, **more)
        assert (done.returncode, json.loads(done.stdout)["Status"]) == (0, "ok"), done.stderr
    assert world.names() == []
    assert len(world.names(TRIGGER)) == 1


@pytest.mark.parametrize("given", ["abc", "nan", "-1"])
def test_a_time_out_of_the_go_service_that_is_none_is_one_line(world, given):
    done = bqdispatch("run", "--once", CONFIG=json.dumps(world.document()), FUNCTION_TIMEOUT_SEC=given)
    assert done.returncode == 2
    assert f"FUNCTION_TIMEOUT_SEC is '{given}'; expected a number of seconds above 0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["gs://[x/y", "http://[::1", "file://[x"])
def test_a_url_with_a_bracket_is_one_line(url):
    done = bqdispatch("run", "--once", "--config", url)
    assert done.returncode == 2
    assert f"the document's URL is '{url}'; expected gs://bucket/object or file:///path" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_no_configuration_at_all_it_says_where_it_has_looked():
    done = bqdispatch("run", CONFIG="")
    assert done.returncode == 2
    assert "CONFIG" in done.stderr


@pytest.mark.parametrize("form", ["{}", "{}/", "http://{}", "http://{}/"])
def test_stand_ins_may_be_named_with_and_without_scheme_and_slash(world, config, form):
    world.trace()
    host = form.format(world.url.removeprefix("http://"))
    done = bqdispatch("run", "--once", "--config", config(), STORAGE_EMULATOR_HOST=host, BIGQUERY_EMULATOR_HOST=host)
    assert done.returncode == 0, done.stderr
    assert world.names() == []
