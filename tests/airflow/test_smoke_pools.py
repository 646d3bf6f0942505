"""`bqdispatch smoke` beside an Airflow: its pools and its other connections are looked at, too."""

import json
import sqlite3
import subprocess
import sys

from world import TASKS

from bqdispatch_provider.commands.pools import expected_pools


def smoke(config, *looked_for, setup=()):
    command = [sys.executable, "-m", "bqdispatch_provider.commands.cli", "smoke", "--config", str(config), *setup]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    return {where: (verdict, said) for verdict, what, where, said in rows if what in (looked_for or ("pool", "pools"))}


def test_pools_that_an_airflow_lacks_are_named(world, database, airflow_prints, tmp_path):
    world.control.refuse("storage.objects.delete", bucket=TASKS)  # no trial, which takes seconds
    config, pools = tmp_path / "config.json", tmp_path / "pools.json"
    config.write_text(json.dumps(world.document(MaxConcurrentSQL=5)))
    found = smoke(config)
    assert {name: verdict for name, (verdict, _) in found.items()} == dict.fromkeys(
        ["bqdispatch_sql", "bqdispatch_jobs"], "failed"
    )
    assert "is missing" in found["bqdispatch_sql"][1]
    pools.write_text(json.dumps(expected_pools(world.config(MaxConcurrentSQL=5))))
    airflow_prints("pools", "import", str(pools))
    try:
        assert {verdict for verdict, _ in smoke(config).values()} == {"ok"}
    finally:
        with sqlite3.connect(database) as connection:
            connection.execute("delete from slot_pool where pool != 'default_pool'")


def test_other_connections_with_the_task_folder_are_named(world, database, airflow_prints, tmp_path, monkeypatch):
    world.control.refuse("storage.objects.delete", bucket=TASKS)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(document := world.document()))
    monkeypatch.delenv("BQDISPATCH_FILE_ROOTS", raising=False)
    given = {
        "DEFAULT": document,
        "SAME": {"config": document},
        "ELSEWHERE": {**document, "AsyncTaskURL": "gs://ops/elsewhere"},
        "FILE": {"config_url": config.as_uri()},
    }
    for name, extra in given.items():
        connection = json.dumps({"conn_type": "bqdispatch", "extra": extra})
        monkeypatch.setenv(f"AIRFLOW_CONN_BQDISPATCH_{name}", connection)
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "http", "extra": document}))
    monkeypatch.setenv("AIRFLOW_CONN_MALFORMED", "{")
    stored = ["--conn-type", "bqdispatch", "--conn-extra", json.dumps({"config": document})]
    airflow_prints("connections", "add", "stored", *stored)
    try:
        found = smoke(config, "other set-ups")
        named = smoke(config, "other set-ups", setup=("--setup", "same"))
    finally:
        with sqlite3.connect(database) as connection:
            connection.execute("delete from connection where conn_id = 'stored'")
    assert {where: verdict for where, (verdict, _) in found.items()} == {
        "connection bqdispatch_elsewhere": "warning",
        "connection bqdispatch_same": "failed",
        "connection stored": "failed",
        "connection bqdispatch_file": "not checked",
    }
    assert "BQDISPATCH_FILE_ROOTS" in found["connection bqdispatch_file"][1]
    assert found.keys() ^ named.keys() == {"connection bqdispatch_same", "connection bqdispatch_default"}


def test_an_airflow_that_cannot_be_imported_is_not_compared(world, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "nonsense")
    world.control.refuse("storage.objects.delete", bucket=TASKS)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(world.document()))
    assert smoke(config, "pools", "other set-ups")["Airflow"][0] == "not checked"
