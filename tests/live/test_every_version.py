"""The ways to run in a real scheduler, on each version of Airflow: on workers and in the triggerer.

Asks Airflow's database, whose tables are alike in all versions, not its REST API, which is not.
"""

import json
import time
from contextlib import closing, contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import PurePosixPath

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
minute_deferred = dispatch_dag(way="minute_deferred", dag_id="minute_deferred")
idle = dispatch_dag(way="minute_deferred", dag_id="idle")
deferred = dispatch_dag(way="deferred", dag_id="deferred")
deferred.get_task("dispatch").time_to_live = 5
"""
MINUTE = timedelta(minutes=1)
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
        try:
            yield
        finally:
            rows("update dag set is_paused = true where dag_id = %s", dag_id)
        # The scheduler starts no task of a paused DAG, so a run may stay as it is.
        tasks = "select 1 from task_instance where dag_id = %s and state in ('queued', 'running', 'deferred')"
        wait_until(lambda: not rows(tasks, dag_id), "no task runs")

    return switch_on


def written(world, dag_id, pattern="*.json"):
    """The response documents of a DAG's runs."""
    names = [PurePosixPath(name) for name in world.names(JOURNAL, "journal/runs/")]
    found = [str(name) for name in names if name.match(f"runs/*/{dag_id}/{pattern}")]
    return [json.loads(world.blob(name, JOURNAL).download_as_bytes()) for name in found]


def documents(world, dag_id):
    """The response documents of runs that have ended and dispatched something."""
    return [document for document in written(world, dag_id) if document["Dispatched"]]


def dispatched(world, dag_id):
    """Count the events that these documents tell of."""
    return sum(sum(document["Dispatched"].values()) for document in documents(world, dag_id))


def nothing_failed(rows, dag_id):
    """No task of the DAG has failed, nor was tried again on a worker.

    The scheduler may take a deferred task for killed, which then is tried again (docs/versions.md).
    """
    odd = "state in ('failed', 'upstream_failed')" + (" or try_number > 1" if dag_id == "minute" else "")
    found = rows(f"select task_id, run_id, state, try_number from task_instance where dag_id = %s and ({odd})", dag_id)
    assert found == []
    return True


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
    nothing_failed(rows, dag_id)
    ended = rows(
        "select data_interval_end, task_instance.end_date from task_instance join dag_run using (dag_id, run_id) "
        "where dag_id = %s and task_id like 'dispatch%%' and task_instance.state = 'success'",
        dag_id,
    )
    assert len(ended) >= 2
    assert [end - due for due, end in ended if end - due < MINUTE] == []


def test_a_minute_with_nothing_to_dispatch_is_skipped_in_the_triggerer(world, rows, switched_on):
    ended = "select state from dag_run where dag_id = 'idle' and state in ('success', 'failed')"
    with switched_on("idle"):
        wait_until(lambda: nothing_failed(rows, "idle") and rows(ended), "a run has ended")
        tasks = "select state from task_instance where dag_id = 'idle' and task_id = 'detect'"
        assert ("skipped",) in rows(tasks)
    assert {each["Status"] for each in written(world, "idle")} == {"ok"}


def test_a_task_alone_in_the_triggerer_dispatches(world, rows, switched_on):
    world.trace()
    ended = "select 1 from dag_run where dag_id = 'deferred' and state = 'success'"
    with switched_on("deferred"):
        wait_until(lambda: nothing_failed(rows, "deferred") and rows(ended), "a run has ended")
        found = [each for each in written(world, "deferred", "*/dispatch.json") if each["Dispatched"]]
    assert [(sum(each["Dispatched"].values()), each["Status"]) for each in found] == [(1, "ok")]
    assert len(world.names(TRIGGER)) == 1
