"""Airflow, a shell and the stand-in take the commands and settings of README.md and docs/*.md."""

import configparser
import contextlib
import json
import os
import re
import runpy
import shlex
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[2]


def commands(page, program):
    """List the commands of a page's console blocks that begin with a program, each as its words."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(rf"^ *\$ ({program} .*)$", text, re.MULTILINE)]


def block(page, language):
    """Return the only block of a page in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return found


@pytest.fixture
def airflow(database, airflow_prints):
    """Runs a command of Airflow's, which knows the DAG; afterwards there is nothing of it left."""
    from airflow.api.common.delete_dag import delete_dag
    from airflow.exceptions import DagNotFound
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    bundle = {}
    with create_session() as session:
        with contextlib.suppress(ImportError):  # Airflow 2 has no bundles
            from airflow.models.dagbundle import DagBundleModel

            session.merge(DagBundleModel(name="of_the_commands"))
            session.flush()
            bundle = {"bundle_name": "of_the_commands"}
        session.merge(DagModel(dag_id="bqdispatch", is_paused=True, **bundle))
    yield lambda command: airflow_prints(*command[1:])
    with contextlib.suppress(DagNotFound):
        delete_dag("bqdispatch")  # with all that belongs to it: what stayed would be in the way of its next run
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("delete from connection")
        connection.execute("delete from slot_pool where pool != 'default_pool'")


def test_the_dag_is_copied_where_airflow_looks_for_it(tmp_path):
    """By the commands of README.md, on a machine where Airflow has no folder for DAGs yet."""
    lines = re.findall(r"^ *\$ ((?:mkdir|cp) .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "a" / "dags"), "PATH": path}
    subprocess.run(["bash", "-ec", "\n".join(lines)], cwd=ROOT, env=environment, check=True)
    assert (tmp_path / "a" / "dags" / "bqdispatch.py").read_text() == (ROOT / "dags" / "bqdispatch.py").read_text()


def test_airflow_is_set_up_by_the_commands_of_the_readme(airflow, database):
    """Those of README.md, but for the copy of the DAG file."""
    for command in commands("README.md", "airflow"):
        airflow(command)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        kinds = dict(connection.execute("select conn_id, conn_type from connection"))
        assert kinds == {"google_cloud_default": "google_cloud_platform", "bqdispatch_default": "bqdispatch"}
        assert connection.execute("select is_paused from dag where dag_id = 'bqdispatch'").fetchone() == (0,)


def test_the_document_of_a_connection_goes_into_a_file(airflow_prints, world, monkeypatch):
    """The pipe of docs/commands.md, whichever way the connection holds its document."""
    text = (ROOT / "docs/commands.md").read_text()
    (program,) = re.findall(r"\| jq '(.*)' > dispatch.json", text)
    (asked,) = commands("docs/commands.md", "airflow")
    for extra in (world.document(), {"config": world.document()}, {"config": json.dumps(world.document())}):
        connection = {"conn_type": "bqdispatch", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_BQDISPATCH_DEFAULT", json.dumps(connection))
        shown = airflow_prints(*asked[1 : asked.index("|")])
        made = subprocess.run(["jq", program], input=shown, capture_output=True, text=True, check=True).stdout
        assert json.loads(made) == world.document()


def test_the_uninstalled_leave_nothing_in_airflow(airflow, database):
    """The commands of docs/upgrade.md."""
    add = ["airflow", "connections", "add", "bqdispatch_default", "--conn-type", "bqdispatch"]
    for made in (add, *(["airflow", "pools", "set", f"bqdispatch_{lane}", "1", ""] for lane in ("sql", "jobs"))):
        airflow(made)
    for command in commands("docs/upgrade.md", "airflow"):
        airflow(command)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        left = "select conn_id from connection union select pool from slot_pool where pool != 'default_pool'"
        assert connection.execute(f"{left} union select dag_id from dag where dag_id = 'bqdispatch'").fetchall() == []


def test_airflow_knows_the_settings_that_send_metrics(airflow_prints):
    """Those of docs/grafana.md. Airflow refuses to tell the value of a setting that it does not know."""
    settings = configparser.ConfigParser()
    settings.read_string(textwrap.dedent(block("docs/grafana.md", "ini")))
    assert settings.sections() == ["metrics"]
    for name in settings["metrics"]:
        assert airflow_prints("config", "get-value", "metrics", name)


def test_a_connection_takes_the_subscription(database, monkeypatch):
    """The extra of docs/push.md."""
    from bqdispatch_provider.hooks import BqDispatchHook

    extra = json.loads(block("docs/push.md", "json"))
    monkeypatch.setenv("AIRFLOW_CONN_BQDISPATCH_DEFAULT", json.dumps({"conn_type": "bqdispatch", "extra": extra}))
    assert BqDispatchHook().get_subscription(requests.Session()) is not None


def test_a_file_of_three_lines_makes_the_dag_of_a_set_up(tmp_path):
    """The file of docs/setups.md, which Airflow reads as a DAG file."""
    from airflow.utils.file import might_contain_dag

    from bqdispatch_provider.core.setups import SetUp

    file = tmp_path / "acme.py"
    file.write_text(block("docs/setups.md", "python"))
    assert might_contain_dag(str(file), safe_mode=True)
    assert runpy.run_path(str(file))["dag"].dag_id == "bqdispatch_acme"
    assert file.read_text() == SetUp("acme").dag_source


def test_the_file_of_another_way_makes_a_dag_of_its_own(tmp_path):
    """The file of docs/dag.md, which Airflow reads as a DAG file."""
    from airflow.utils.file import might_contain_dag

    file = tmp_path / "deferred.py"
    file.write_text(block("docs/dag.md", "python"))
    assert might_contain_dag(str(file), safe_mode=True)
    dag = runpy.run_path(str(file))["dag"]
    assert dag.dag_id == "bqdispatch_minute_deferred"
    assert dag.get_task("dispatch_sql").deferrable


def test_the_dag_takes_the_notifier(tmp_path):
    """The file of docs/slack.md, which Airflow reads as a DAG file."""
    from airflow.utils.file import might_contain_dag

    file = tmp_path / "bqdispatch.py"
    file.write_text(block("docs/slack.md", "python"))
    assert might_contain_dag(str(file), safe_mode=True)
    made = runpy.run_path(str(file))
    assert made["slack"].channel == "#data-ops"
    assert made["dag"].on_success_callback is made["dag"].on_failure_callback is made["slack"]


def test_a_bucket_is_made_in_the_stand_in(world):
    """The command of docs/testing.md."""
    (line,) = re.findall(r"^\$ (curl .*)$", (ROOT / "docs/testing.md").read_text(), re.MULTILINE)
    world.client.bucket("ops").delete()
    subprocess.run(["bash", "-c", line], env={**os.environ, "NO_PROXY": "*"}, capture_output=True, check=True)
    assert world.client.get_bucket("ops").exists()


def test_the_example_of_a_response_is_one():
    """The document in docs/protocol.md."""
    from bqdispatch_provider.core.report import Report

    document = json.loads(block("docs/protocol.md", "json"))
    assert document.keys() <= Report().to_dict().keys()
    assert sum(document["Outcomes"].values()) == document["Listed"]
    assert document["BatchCount"] == len(document["Batched"]) == document["Dispatched"]["BatchJobs"]
    assert [url == job["URL"] for url, job in document["Jobs"].items()] == [True]
