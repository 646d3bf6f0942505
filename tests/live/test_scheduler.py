"""The sample DAG in a real Airflow: a scheduler that runs it every minute, workers, pools."""

import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from runs import airflow_with, listening
from waiting import PATIENCE_S, wait_until
from world import JOURNAL, TRIGGER

ROOT = Path(__file__).parents[2]
SQL, JOBS = 5, 3


@pytest.fixture
def document(world):
    return world.document(MaxConcurrentSQL=SQL, MaxConcurrentJobs=JOBS)


@pytest.fixture
def live(world, document, tmp_path):
    slots = {"BQDISPATCH_SQL_SLOTS": str(SQL), "BQDISPATCH_JOBS_SLOTS": str(JOBS)}
    with airflow_with(document, world.url, tmp_path / "airflow", ROOT / "dags", **slots) as airflow:
        airflow.switch_on("bqdispatch")
        yield airflow


def wait_for_runs(live, number, seen):
    """Wait until so many runs have ended, and note the pools' slots that are taken meanwhile."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        runs = live.get("dags/bqdispatch/dagRuns", order_by="run_after")["dag_runs"]
        for pool in live.get("pools")["pools"]:
            seen.setdefault(pool["name"], []).append(pool["occupied_slots"])
        if len([run for run in runs if run["state"] in ("success", "failed")]) >= number:
            return runs
        time.sleep(0.5)
    raise AssertionError(f"no {number} runs have ended: {runs}; {live.log.read_text()[-4000:]}")


def documents(world):
    """The response documents by the IDs of their runs."""
    names = [name for name in world.names(JOURNAL, "journal/runs/") if name.count("/") == 4 and name.endswith(".json")]
    return {unquote(name.rpartition("/")[2].removesuffix(".json")): read(world, name) for name in names}


def performance(world):
    return read(world, "journal/performance.json")


def read(world, name):
    return json.loads(world.blob(name, JOURNAL).download_as_bytes())


def check_pools(live, config):
    return subprocess.run(
        [sys.executable, "-m", "bqdispatch_provider.commands.cli", "pools", "--check", "--config", str(config)],
        env=live.environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_minute_within_limits_and_pools(world, live, document, tmp_path):
    queries = world.traces(12, "query")
    world.traces(4, "load")
    world.traces(4, "copy")
    world.window("ds.w", due=20)
    seen = {}
    wait_for_runs(live, 1, seen)
    assert listening(live) == {"127.0.0.1"}
    consumed = world.consume()
    # On a slow machine the next run may be over by now, with nothing dispatched since all places were taken.
    number = len(live.get("dags/bqdispatch/dagRuns")["dag_runs"])
    wait_until(lambda: len([name for name in world.names(TRIGGER) if "_query--" in name]) >= SQL)
    runs = wait_for_runs(live, number + 1, seen)
    ended = [run for run in runs if run["state"] in ("success", "failed")]
    assert {(run["state"], run["run_type"]) for run in ended} == {("success", "scheduled")}, live.log.read_text()[
        -4000:
    ]
    delivered, waiting = consumed + world.names(TRIGGER), world.names()
    dispatched = [name for name in delivered if "_query--" in name]
    assert len(dispatched) == 2 * SQL
    assert len(delivered) - len(dispatched) <= 2 * JOBS
    assert len(dispatched) + len([name for name in waiting if name in queries]) == len(queries)
    assert max(seen["bqdispatch_sql"]) in range(1, SQL + 1)
    assert max(seen["bqdispatch_jobs"]) in range(1, JOBS + 1)

    reports = [documents(world)[run["dag_run_id"]] for run in ended]
    for each in reports:
        assert each["Status"] == "ok"
        assert sum(each["Outcomes"].values()) == each["Listed"]
        assert each["Dispatched"].get("QueryJobs", 0) <= SQL
        assert sum(number for name, number in each["Dispatched"].items() if name != "QueryJobs") <= JOBS
    assert sum(each["Dispatched"].get("QueryJobs", 0) for each in reports) == len(dispatched)
    # A run writes it before its document.
    wait_until(lambda: performance(world) in [each["Performance"] for each in documents(world).values()])

    config = tmp_path / "config.json"
    config.write_text(json.dumps(document))
    agreed = check_pools(live, config)
    assert (agreed.returncode, agreed.stdout) == (0, "the pools agree with the configuration\n"), agreed.stderr
    live.patch("pools/bqdispatch_sql", {"name": "bqdispatch_sql", "slots": 7, "include_deferred": False})
    apart = check_pools(live, config)
    assert (apart.returncode, apart.stdout) == (1, "pool 'bqdispatch_sql' has 7 slots; expected 5 slots\n"), (
        apart.stderr
    )
