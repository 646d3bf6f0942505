"""The sample DAG in a real scheduler, on each version of Airflow: runs hand over, on workers and in the triggerer.

Asks Airflow's database, whose tables are alike in all versions, not its REST API, which is not.
"""

import json
import time
from contextlib import closing, contextmanager
from importlib.metadata import version

import psycopg2
import pytest
from postgres import BINARIES, postgres
from runs import airflow_with
from waiting import PATIENCE_S, wait_until
from world import JOURNAL, TRIGGER, World

from demo.live import LiveAirflow

pytestmark = pytest.mark.skipif(BINARIES is None, reason="there is no PostgreSQL: apt-get install postgresql")

LIMIT = 1000
"""Never reached. With a limit each task takes all slots of its pool, so that of the next run waits for it."""
DAGS = """# Airflow reads a file that has this word alone
from bqdispatch_provider.factory import dispatch_dag

minute = dispatch_dag(dag_id="minute")
deferred = dispatch_dag(way="minute_deferred", dag_id="minute_deferred")
"""
ALIVE = ("running", "deferred")


class Airflow2(LiveAirflow):
    """An Airflow 2 without a web server, which `airflow standalone` would let listen on all addresses."""

    def __enter__(self):
        self.home.mkdir(parents=True)
        pools = self.home / "pools.json"
        pools.write_text(json.dumps(self._pools))
        try:
            with self.log.open("ab") as log_file:
                self._airflow(log_file, "db", "migrate")
                self._airflow(log_file, "pools", "import", str(pools))
            for component in ("scheduler", "triggerer"):
                self.start(component)
        except BaseException:
            self.stop()
            raise
        return self


@pytest.fixture(scope="module")
def airflow(cloud, tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    (home / "dags").mkdir()
    (home / "dags" / "ways.py").write_text(DAGS)
    document = World.document(MaxConcurrentSQL=LIMIT, MaxConcurrentJobs=LIMIT)
    kind = Airflow2 if version("apache-airflow").startswith("2.") else LiveAirflow
    with postgres() as database:
        settings = {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "5",  # of Airflow 2
            "BQDISPATCH_SQL_SLOTS": str(LIMIT),
            "BQDISPATCH_JOBS_SLOTS": str(LIMIT),
        }
        with airflow_with(document, cloud.url, home / "airflow", home / "dags", kind=kind, **settings) as live:
            yield live


@pytest.fixture
def rows(airflow):
    """Asks Airflow's database."""
    url = airflow.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True

        def ask(query, *values):
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return cursor.fetchall() if cursor.description else cursor.rowcount

        yield ask


@pytest.fixture
def switched_on(rows):
    """Lets a DAG go on meanwhile; afterwards none of its tasks runs."""

    @contextmanager
    def switch_on(dag_id):
        wait_until(lambda: rows("update dag set is_paused = false where dag_id = %s", dag_id), "the DAG is parsed")
        yield
        rows("update dag set is_paused = true where dag_id = %s", dag_id)
        # The scheduler starts no task of a paused DAG, so a run may stay as it is.
        tasks = "select 1 from task_instance where dag_id = %s and state in ('queued', 'running', 'deferred')"
        wait_until(lambda: not rows(tasks, dag_id), "no task runs")

    return switch_on


def documents(world, dag_id):
    """The response documents of runs that have ended and dispatched something."""
    names = [name for name in world.names(JOURNAL, "journal/runs/") if f"/{dag_id}/" in name and name.count("/") == 4]
    found = [json.loads(world.blob(name, JOURNAL).download_as_bytes()) for name in names if name.endswith(".json")]
    return [document for document in found if document["Dispatched"]]


def dispatched(world, dag_id):
    """How many events these documents tell of."""
    return sum(sum(document["Dispatched"].values()) for document in documents(world, dag_id))


@pytest.mark.parametrize("dag_id", ["minute", "minute_deferred"])
def test_a_run_goes_on_until_the_next_one_does_and_no_event_is_left_between_them(world, rows, switched_on, dag_id):
    events = []
    with switched_on(dag_id):
        until = time.monotonic() + PATIENCE_S
        first, after = None, 0
        while after < 5:  # so many events that the first run cannot have dispatched
            assert time.monotonic() < until, f"{len(events)} events, {rows('select * from task_instance')}"
            events += [world.trace("query"), world.trace("load")]
            time.sleep(1)
            lanes = "select pool, run_id, state from task_instance where dag_id = %s and task_id like 'dispatch%%'"
            alive = [(pool, run_id) for pool, run_id, state in rows(lanes, dag_id) if state in ALIVE]
            assert len(alive) == len({pool for pool, _ in alive}), "a pool has the tasks of one run at a time"
            first = first or min((run_id for _, run_id in alive), default=None)
            after += first is not None and first not in {run_id for _, run_id in alive}
        wait_until(lambda: dispatched(world, dag_id) >= len(events), "every event is dispatched and reported")
    assert len(world.names(TRIGGER)) == dispatched(world, dag_id) == len(events)
    found = documents(world, dag_id)
    assert {each["Status"] for each in found} == {"ok"}
    assert len(found) >= 2
    failed = "select task_id, run_id, state, try_number from task_instance where dag_id = %s and state = 'failed'"
    assert rows(failed, dag_id) == []
