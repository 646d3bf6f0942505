"""The sample DAG in an Airflow with PostgreSQL, as teams have it, where what writes at a time collides."""

import itertools
import os
from pathlib import Path

import pytest
from postgres import BINARIES, postgres
from runs import airflow_with
from waiting import wait_until
from world import TRIGGER, World

pytestmark = pytest.mark.skipif(BINARIES is None, reason="there is no PostgreSQL: apt-get install postgresql")

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("BQDISPATCH_TABLES", "1"))
"""Number of times that there are new tables; `make soak` asks for more."""
NEW, ACTIONS = 40, ("query", "load", "copy")
"""So many tables that Airflow does not know, and the jobs that have written each of them, in both lanes of traces."""
UNWELL = ["failed", "up_for_retry", "upstream_failed"]


@pytest.fixture
def live(world, tmp_path):
    with postgres() as database:
        there = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database}
        with airflow_with(World.document(), world.url, tmp_path / "airflow", ROOT / "dags", **there) as airflow:
            yield airflow


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
