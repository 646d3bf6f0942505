"""Standard output of commands that ask Airflow, whose own logs go there."""

import json
import subprocess
import sys
from pathlib import Path

import airflow
import pytest

BIN = Path(sys.executable).parent
BY_BQDISPATCH, BY_AIRFLOW = [BIN / "bqdispatch"], [BIN / "airflow", "bqdispatch"]


@pytest.fixture
def command(world, database, tmp_path, monkeypatch):
    """Runs a command that logs a key which it ignores. Airflow's log has its usual level."""
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "INFO")
    document = world.document(RulesURL="gs://x/rules")
    extra = {"conn_type": "bqdispatch", "extra": {"config": document}}
    monkeypatch.setenv("AIRFLOW_CONN_BQDISPATCH_DEFAULT", json.dumps(extra))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document))

    def run(*arguments, by=BY_BQDISPATCH):
        arguments = [path if each == "{config}" else each for each in arguments]
        return subprocess.run([*by, *arguments], capture_output=True, text=True, check=False)

    return run


def test_smoke_prints_nothing_but_its_table(world, command):
    """The cycles of its trial log what they see."""
    world.trace()
    ended = command("smoke", "--config", "{config}")
    assert "2 objects in the task folder" in ended.stderr, ended.stdout + ended.stderr
    assert {len(line.split("\t")) for line in ended.stdout.splitlines()} == {4}, ended.stdout


@pytest.mark.parametrize("arguments", [["pools", "--config", "{config}"], ["pools"]])
@pytest.mark.parametrize("by", [BY_BQDISPATCH, BY_AIRFLOW])
def test_pools_prints_nothing_but_its_document(command, arguments, by):
    if by is BY_AIRFLOW and tuple(map(int, airflow.__version__.split(".")[:2])) < (3, 2):
        pytest.skip("commands of Airflow 3.2")
    ended = command(*arguments, by=by)
    assert "RulesURL" in ended.stderr
    assert json.loads(ended.stdout).keys() == {"bqdispatch_sql", "bqdispatch_jobs"}
