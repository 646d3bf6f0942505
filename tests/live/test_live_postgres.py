"""The sample DAG in an Airflow with PostgreSQL, as teams have it, where what writes at a time collides."""

import itertools
import json
import os
from pathlib import Path

import psutil
import pytest
from postgres import BINARIES, postgres
from waiting import wait_until
from world import TRIGGER, World

from bqdispatch_provider.pools import pools_of
from bqdispatch_provider.testing.live import LiveAirflow

pytestmark = pytest.mark.skipif(BINARIES is None, reason="there is no PostgreSQL: apt-get install postgresql")

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("BQDISPATCH_TABLES", "1"))
"""How often there are new tables; `make soak` asks for more."""
NEW, ACTIONS = 40, ("query", "load", "copy")
"""So many tables that Airflow does not know, and the jobs that have written each of them, in both lanes of traces."""
UNWELL = ["failed", "up_for_retry", "upstream_failed"]


@pytest.fixture
def live(world, tmp_path):
    environment = {
        "STORAGE_EMULATOR_HOST": world.url,
        "BIGQUERY_EMULATOR_HOST": world.url,
        "AIRFLOW_CONN_BQDISPATCH_DEFAULT": json.dumps(
            {"conn_type": "bqdispatch", "extra": {"config": World.document(TimeToLiveInMin=0.2)}}
        ),
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(
            {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}}
        ),
    }
    with postgres() as url:
        environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = url
        with LiveAirflow(tmp_path / "airflow", ROOT / "dags", pools_of(World.config()), environment) as airflow:
            yield airflow
            started = set(airflow.processes())
        assert started
        assert not [each for each in started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_each_of_forty_new_tables_has_its_events_and_no_task_fails(live, world):
    known = []
    for number in range(ROUNDS):
        for action, each in itertools.product(ACTIONS, range(NEW)):
            known.append(table := f"t_{number}_{each}")
            world.trace(action, dest=f"ds.{table}")
        wait_until(lambda: len(tables(live)) >= len(known), "each job has an event of its table")
    assert sorted(tables(live)) == sorted(known)
    assert everything(live, "dags/bqdispatch/dagRuns/~/taskInstances", "task_instances", state=UNWELL) == []
    assert len(world.names(TRIGGER)) == len(known)


def tables(live):
    """The tables of all asset events, each as often as it has one."""
    events = everything(live, "assets/events", "asset_events", source_dag_id="bqdispatch")
    return [event["uri"].rpartition("/")[2] for event in events]


def everything(live, path, what, **query):
    """All pages of an answer."""
    found = []
    while page := live.get(path, limit=100, offset=len(found), **query)[what]:
        found += page
    return found
