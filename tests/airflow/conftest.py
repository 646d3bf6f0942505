"""An Airflow of its own for the session: home, database and DAG folder lie in a temporary directory."""

import atexit
import fcntl
import functools
import json
import os
import runpy
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HOME = Path(tempfile.mkdtemp(prefix=f"bqdispatch-airflow-{os.getpid()}-"))
DAGS = HOME / "dags"

if "airflow" in sys.modules:
    raise pytest.UsageError("Airflow was imported before tests/airflow/conftest.py could say where its home is")

atexit.register(shutil.rmtree, HOME, ignore_errors=True)
DAGS.mkdir()
for file in (*REPOSITORY.glob("dags/**/*.py"), *Path(__file__).parent.glob("dags/*.py")):
    (DAGS / file.name).symlink_to(file)
os.environ.update(
    {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",  # the sequential one would reschedule every sensor
        "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY": "True",
    }
)
for variable in ("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "BQDISPATCH_SCHEDULE", "AIRFLOW_CONN_BQDISPATCH_DEFAULT"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def airflow_prints():
    """Run an `airflow` command that has to succeed, and return what it prints.

    It has a process of its own: a command in this one would change what later tests of it find.
    """
    return _airflow


def _airflow(*arguments):
    command = [sys.executable, "-m", "airflow", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """An empty database. To make it takes half a minute, so processes that test side by side make it once."""
    made, run = HOME / "airflow.db", os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None or made.exists():  # in use by tests/page, which has the same Airflow
        _airflow("db", "migrate")
        return made
    template = tmp_path_factory.getbasetemp().parent / f"airflow-{run}.db"
    with template.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            _airflow("db", "migrate")
            shutil.copy(made, template)
    shutil.copy(template, made)
    return made


class Run:
    """One DAG run: how it ended, and what its tasks returned."""

    def __init__(self, dag_run, database):
        self.state = str(getattr(dag_run.state, "value", dag_run.state))
        self.run_id, self.dag_id = dag_run.run_id, dag_run.dag_id
        self._database = database
        rows = self._rows("select task_id, map_index, state from task_instance", "order by task_id, map_index")
        self.states = {task if index < 0 else f"{task}[{index}]": state for task, index, state in rows}

    def returned(self, task_id):
        """The task's return value as it is stored; `None` when there is none."""
        rows = self._rows("select value from xcom", "and key = 'return_value' and task_id = ?", task_id)
        return json.loads(rows[0][0]) if rows else None

    def tries(self, task_id):
        """How often the task was tried."""
        ((number,),) = self._rows("select try_number from task_instance", "and task_id = ?", task_id)
        return number

    def asset_events(self):
        """The URI and the extra of each asset event of the run, datasets' on Airflow 2."""
        kind = self._asset_kind()
        query = f"select uri, e.extra from {kind}_event e join {kind} a on a.id = e.{kind}_id where source_dag_id = ? "
        rows = self._query(query + "and source_run_id = ? order by e.id", self.dag_id, self.run_id)
        return [(uri, json.loads(extra)) for uri, extra in rows]

    def aliases(self):
        """The names of the aliases through which the run's asset events came."""
        kind = self._asset_kind()
        query = f"select distinct a.name from {kind}_alias a join {kind}_alias_{kind}_event l on l.alias_id = a.id "
        query += f"join {kind}_event e on e.id = l.event_id where source_dag_id = ? and source_run_id = ? order by 1"
        return [name for (name,) in self._query(query, self.dag_id, self.run_id)]

    def _asset_kind(self):
        tables = {name for (name,) in self._query("select name from sqlite_master")}
        return "asset" if "asset_event" in tables else "dataset"

    def _rows(self, select, more, *values):
        return self._query(f"{select} where dag_id = ? and run_id = ? {more}", self.dag_id, self.run_id, *values)

    def _query(self, query, *values):
        with sqlite3.connect(self._database) as connection:
            return connection.execute(query, values).fetchall()


@pytest.fixture
def dags_folder():
    return DAGS


@pytest.fixture
def connect(world, monkeypatch):
    """Sets the connection's extra, by default the configuration of the world, and that of Google Cloud."""

    def set_connection(extra=None, **more):
        extra = world.document(**more) if extra is None else extra
        monkeypatch.setenv("AIRFLOW_CONN_BQDISPATCH_DEFAULT", json.dumps({"conn_type": "bqdispatch", "extra": extra}))
        google = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}}
        monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(google))

    set_connection()
    return set_connection


@pytest.fixture(scope="session")
def one_api_server():
    """One for all tasks, as in 3.3: ``dag.test()`` of 3.1 and 3.2 makes one for each, which takes eight seconds."""
    try:
        from airflow.sdk.execution_time import supervisor
    except ImportError:  # Airflow 2 has none
        return
    supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)


@pytest.fixture
def run(connect, database, one_api_server):
    """Runs a DAG of the DAG folder; its tasks wait for no longer than they are told."""
    from airflow.providers.common.compat.sdk import DAG

    def run_dag(dag_id, file="variants.py", timeout=0.1):
        known = runpy.run_path(str(DAGS / file))
        dag = next(each for each in known.values() if isinstance(each, DAG) and each.dag_id == dag_id)
        if "detect" in dag.task_dict:
            dag.get_task("detect").timeout = timeout
            dag.get_task("detect").poke_interval = 0.1
        for task in dag.tasks:
            if hasattr(task, "settle_time"):
                task.settle_time, task.poke_interval = 0.2, 0.1
            if getattr(task, "time_to_live", None):
                task.time_to_live = 0
            if getattr(task, "hands_over", False):
                task.hands_over = False
        return Run(dag.test(), database)

    return run_dag


@pytest.fixture
def document(world):
    """The response document that a run has left in the journal."""
    from world import JOURNAL

    def read(done):
        names = [name for name in world.names(JOURNAL, "journal/runs/") if name.endswith(f"/{done.run_id}.json")]
        assert len(names) == 1, world.names(JOURNAL)
        return json.loads(world.blob(names[0], JOURNAL).download_as_bytes())

    return read
