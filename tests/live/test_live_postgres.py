"""The sample DAG in an Airflow with PostgreSQL, as teams have it, where what writes at a time collides."""

import itertools
import os
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from postgres import BINARIES, postgres
from runs import airflow_with, clear, has_ended
from waiting import wait_until
from world import TRIGGER, World

from bqdispatch_provider.assets import table_asset

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
            airflow.switch_on("bqdispatch")
            yield airflow


def test_each_of_forty_new_tables_has_its_events_and_no_task_fails(live, world):
    known = []
    for number in range(ROUNDS):
        for action, each in itertools.product(ACTIONS, range(NEW)):
            known.append(table := f"t_{number}_{each}")
            world.trace(action, dest=f"ds.{table}")
        wait_until(lambda: len(tables(live)) >= len(known), "each job has an event of its table")
    assert sorted(tables(live)) == sorted(known)
    assert instances(live, state=UNWELL) == []
    assert len(world.names(TRIGGER)) == len(known)


def test_a_table_that_two_dags_make_known_at_one_time_fails_a_report_and_clearing_it_emits_the_event(live, world):
    """Airflow itself collides there. It is seen, and one click mends it."""
    asset = table_asset("p.ds.contested")
    with closing(psycopg2.connect(database_of(live))) as other:
        with other.cursor() as cursor:  # as the other DAG's task does, whose transaction has not ended
            cursor.execute(
                'insert into asset (name, uri, "group", extra, created_at, updated_at)'
                " values (%s, %s, 'asset', '{}', now(), now())",
                (asset.name, asset.uri),
            )
        world.trace(dest="ds.contested")
        wait_until(lambda: is_somebody_waiting(live), "the report's event waits for the other transaction")
        other.commit()
    wait_until(lambda: instances(live, state=["failed"]), "the report has failed")
    (failed,) = instances(live, state=UNWELL)
    assert failed["task_id"] == "report"
    assert tables(live) == []
    run = f"dags/bqdispatch/dagRuns/{failed['dag_run_id']}"
    # Else the scheduler may end the run although its task has been cleared meanwhile, and nobody starts it again.
    wait_until(lambda: has_ended(live, run), "the run has ended")
    clear(live, run, "report")
    wait_until(lambda: tables(live), "the event of the table is there")
    assert tables(live) == ["contested"]


def database_of(live):
    return live.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")


def is_somebody_waiting(live):
    """Tell whether a session of Airflow waits for another one's transaction."""
    with closing(psycopg2.connect(database_of(live))) as connection, connection.cursor() as cursor:
        cursor.execute("select 1 from pg_stat_activity where wait_event_type = 'Lock' and query ilike '%asset%'")
        return cursor.fetchone() is not None


def instances(live, **query):
    return everything(live, "dags/bqdispatch/dagRuns/~/taskInstances", "task_instances", **query)


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
