"""The pools of this environment's Airflow, set and compared by either command line."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import airflow
import psutil
import pytest
import requests
from waiting import PATIENCE_S, wait_until

from demo.ports import free_port

BIN = Path(sys.executable).parent
BQDISPATCH, WITHIN_AIRFLOW = [BIN / "bqdispatch"], [BIN / "airflow", "bqdispatch"]


@pytest.fixture
def pools(database):
    """Runs the command ``pools``; afterwards there are none."""

    def run(*arguments, by=BQDISPATCH):
        started = [*by, "pools", *map(str, arguments)]
        return subprocess.run(started, capture_output=True, text=True, check=False)

    yield run
    with sqlite3.connect(database) as connection:
        connection.execute("delete from slot_pool where pool != 'default_pool'")


def test_pools_are_made_and_changed_and_compared(pools, config):
    """The commands of README.md and docs/limits.md."""
    pools("--config", config(MaxConcurrentSQL=5), "--import")
    limits = config(MaxConcurrentSQL=7, MaxConcurrentJobs=3)
    apart = pools("--config", limits, "--check")
    assert (apart.returncode, apart.stdout.splitlines()) == (
        1,
        [
            "pool 'bqdispatch_sql' has 5 slots; expected 7 slots",
            "pool 'bqdispatch_jobs' has -1 slots; expected 3 slots",
        ],
    ), apart.stderr
    told = pools("--config", limits, "--import")
    assert (told.returncode, told.stdout.splitlines()) == (
        0,
        ["pool 'bqdispatch_sql' has 7 slots", "pool 'bqdispatch_jobs' has 3 slots"],
    ), told.stderr
    agreed = pools("--config", limits, "--check")
    assert (agreed.returncode, agreed.stdout) == (0, "the pools agree with the configuration\n"), agreed.stderr


def test_a_task_that_takes_more_slots_than_its_limit_says_which_variable_to_lower(pools, config, monkeypatch):
    """An import would change nothing, so it is not advised once the pools are set; and both may be done at once."""
    limits = config(MaxConcurrentSQL=3)
    pools("--config", limits, "--import")
    monkeypatch.setenv("BQDISPATCH_SQL_SLOTS", "9")
    variable = (
        "pool 'bqdispatch_sql' gets 3 slots by its limit, and a task takes 9, so the task never runs: lower "
        "BQDISPATCH_SQL_SLOTS to 3, here and where DAG files are parsed"
    )
    told = pools("--config", limits, "--check")
    assert (told.returncode, told.stdout.splitlines()) == (1, [variable]), told.stderr
    assert "--import" not in told.stderr
    fewer = config(MaxConcurrentSQL=2)
    told = pools("--config", fewer, "--check")
    assert told.stdout.splitlines() == [
        variable.replace("3", "2"),
        "pool 'bqdispatch_sql' has 3 slots; expected 2 slots",
    ]
    assert "Then run `bqdispatch pools --import` with the same options" in told.stderr
    both = pools("--config", fewer, "--check", "--import")
    set_first = ["pool 'bqdispatch_sql' has 2 slots", "pool 'bqdispatch_jobs' has -1 slots"]
    assert (both.returncode, both.stdout.splitlines()) == (1, [*set_first, variable.replace("3", "2")])


def test_the_pools_of_a_set_up_have_its_name(pools, config):
    """The command of docs/setups.md."""
    told = pools("--setup", "acme", "--config", config(MaxConcurrentSQL=5), "--import")
    assert (told.returncode, told.stdout.splitlines()) == (
        0,
        ["pool 'bqdispatch_acme_sql' has 5 slots", "pool 'bqdispatch_acme_jobs' has -1 slots"],
    ), told.stderr


def test_the_limits_are_those_of_the_set_ups_connection_where_no_configuration_is_given(
    pools, world, database, airflow_prints
):
    document = world.document(MaxConcurrentSQL=9, JournalURL="gs://${journal}/journal")
    extra = json.dumps({"config": document})
    airflow_prints("connections", "add", "bqdispatch_acme", "--conn-type", "bqdispatch", "--conn-extra", extra)
    try:
        printed = pools("--setup", "acme", "--var", "journal=journal")
        made = pools("--setup", "acme", "--var", "journal=journal", "--import")
    finally:
        with sqlite3.connect(database) as connection:
            connection.execute("delete from connection where conn_id = 'bqdispatch_acme'")
    assert (printed.returncode, made.returncode) == (0, 0), printed.stderr + made.stderr
    assert made.stdout.splitlines() == [
        "pool 'bqdispatch_acme_sql' has 9 slots",
        "pool 'bqdispatch_acme_jobs' has -1 slots",
    ]
    assert {name: pool["slots"] for name, pool in json.loads(printed.stdout).items()} == {
        "bqdispatch_acme_sql": 9,
        "bqdispatch_acme_jobs": -1,
    }


@pytest.mark.skipif(tuple(map(int, airflow.__version__.split(".")[:2])) < (3, 2), reason="commands of Airflow 3.2")
def test_airflow_has_the_same_command(pools, config):
    document = config(MaxConcurrentSQL=5)
    pools("--config", document, "--import", by=WITHIN_AIRFLOW)
    told = pools("--config", document, "--check")
    assert (told.returncode, told.stdout) == (0, "the pools agree with the configuration\n"), told.stderr


def test_a_connection_that_is_not_there_is_one_clear_message(pools):
    told = pools("--setup", "nobody", "--check")
    assert (told.returncode, told.stdout) == (2, "")
    assert "'bqdispatch_nobody'" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("google", "said"),
    [
        ({}, "DefaultCredentialsError: Your default credentials were not found"),
        ({"key_path": "/nowhere.json"}, "FileNotFoundError"),
        ({"keyfile_dict": '{"type": "service_account"}'}, "KeyError"),
    ],
)
def test_a_google_connection_whose_credentials_are_invalid_is_one_clear_message(
    pools, connect, monkeypatch, tmp_path, google, said
):
    """By the step of README.md that makes the pools, when nobody has logged in."""
    connect({"config_url": "gs://acme-config/dispatch.json"})
    conn = json.dumps({"conn_type": "google_cloud_platform", "extra": google})
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", conn)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "True")
    for variable in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST"):
        monkeypatch.delenv(variable, raising=False)
    told = pools("--import")
    assert (told.returncode, told.stdout) == (2, "")
    assert "Traceback" not in told.stderr
    assert (
        "the configuration of connection 'bqdispatch_default' is invalid:\n"
        "  - the document at 'gs://acme-config/dispatch.json' cannot be read with the connection "
        f"'google_cloud_default': {said}"
    ) in told.stderr


def test_an_airflow_that_cannot_be_imported_is_one_clear_message(pools, connect, monkeypatch):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "nonsense")
    told = pools("--check")
    assert (told.returncode, told.stdout) == (2, "")
    assert "the connection 'bqdispatch_default' cannot be read: " in told.stderr
    assert "Traceback" not in told.stderr


@pytest.fixture
def page(database, tmp_path):
    """The address of the Airflow's page, whose visitors may do everything."""
    port = free_port()
    if airflow.__version__.startswith("2."):
        # `airflow webserver` signals a gunicorn that is slow to start, and so stops it for ever.
        address = ["--bind", f"127.0.0.1:{port}", "--timeout", str(PATIENCE_S)]
        command = [BIN / "gunicorn", *address, "airflow.www.app:cached_app()"]
    else:
        command = [BIN / "airflow", "api-server", "--port", str(port), "--workers", "1", "--apps", "core"]
    (tmp_path / "webserver_config.py").write_text('AUTH_ROLE_PUBLIC = "Admin"\n')
    settings = {
        "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.default",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__WEBSERVER__CONFIG_FILE": str(tmp_path / "webserver_config.py"),
    }
    with (tmp_path / "log").open("wb") as log:
        server = psutil.Popen(
            command,
            env={**os.environ, **settings},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: server.poll() is not None or is_up(url), "it answers")
        assert server.poll() is None, (tmp_path / "log").read_text()
        yield url
    finally:
        family = [server]
        with suppress(psutil.NoSuchProcess):
            family += server.children(recursive=True)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family)
        print((tmp_path / "log").read_text()[-6000:])  # shown with what failed


def is_up(url):
    try:
        return requests.get(f"{url}/api/v{'1' if airflow.__version__.startswith('2.') else '2'}/version", timeout=30).ok
    except requests.RequestException:
        return False


def test_pools_of_an_airflow_elsewhere_are_made_and_changed_by_its_rest_api(page, database, config, monkeypatch):
    token = requests.get(f"{page}/auth/token", timeout=30)  # Airflow 2 has none, and lets everybody in
    monkeypatch.setenv("AIRFLOW_CLI_TOKEN", token.json()["access_token"] if token.ok else "any")

    def pools(what, **limits):
        command = [BIN / "bqdispatch", "pools", what, "--url", f"{page}/", "--config", config(**limits)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.stderr == "" or ended.returncode == 1, ended.stderr
        return ended.stdout.splitlines()

    assert pools("--check") == [
        "pool 'bqdispatch_sql' is missing, so tasks in it never run; expected -1 slots",
        "pool 'bqdispatch_jobs' is missing, so tasks in it never run; expected -1 slots",
    ]
    pools("--import", MaxConcurrentSQL=5)
    assert pools("--import", MaxConcurrentSQL=7) == [
        "pool 'bqdispatch_sql' has 7 slots",
        "pool 'bqdispatch_jobs' has -1 slots",
    ]
    assert pools("--check", MaxConcurrentSQL=7) == ["the pools agree with the configuration"]
    with sqlite3.connect(database) as connection:
        query = "select pool, slots, include_deferred from slot_pool where pool like 'bqdispatch%' order by slots"
        assert connection.execute(query).fetchall() == [("bqdispatch_jobs", -1, 1), ("bqdispatch_sql", 7, 1)]
        connection.execute("delete from slot_pool where pool != 'default_pool'")
