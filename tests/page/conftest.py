"""Airflow's API server in this process, with the page in it, and users who may read some DAGs only."""

import atexit
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from waiting import PATIENCE_S

MADE_BY_OTHERS = f"bqdispatch-airflow-{os.getpid()}-"
"""tests/airflow/conftest.py may have set up an Airflow for this process: it can have no second one.

That of another process is of no use: processes that test side by side would delete each other's DAGs.
"""

if MADE_BY_OTHERS not in os.environ.get("AIRFLOW_HOME", ""):
    HOME = Path(tempfile.mkdtemp(prefix=MADE_BY_OTHERS))
    atexit.register(shutil.rmtree, HOME, ignore_errors=True)
    (HOME / "dags").mkdir()
    os.environ.update(
        {
            "AIRFLOW_HOME": str(HOME),
            "AIRFLOW__CORE__DAGS_FOLDER": str(HOME / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
            "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        }
    )


def pytest_collection_modifyitems(items):
    """Skip what needs the page where Airflow cannot show it."""
    if [int(part) for part in re.findall(r"[0-9]+", version("apache-airflow"))[:3]] < [3, 1, 1]:
        for item in items:
            if Path(__file__).parent in item.path.parents and "without_the_page" not in item.name:
                item.add_marker(pytest.mark.skip(reason="the page needs Airflow 3.1.1"))


SETTINGS = {
    "AIRFLOW__API_AUTH__JWT_SECRET": "a-secret-of-at-least-sixty-four-bytes-for-the-tokens-of-these-tests-only",
    "AIRFLOW__CORE__AUTH_MANAGER": "readers.ReadersAuthManager",
}


@pytest.fixture(autouse=True)
def settings_of_the_server(monkeypatch):
    """Those of these tests alone: this process may run tests of tests/airflow in between, which start Airflows."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def server():
    """The API server, with an auth manager whose users read the DAGs that their names say."""
    with pytest.MonkeyPatch.context() as patch:
        subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True)
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        from airflow.api_fastapi.app import create_app, purge_cached_app

        purge_cached_app()
        made = create_app(apps="core")
    yield made
    purge_cached_app()


@pytest.fixture
def known_dags(server):
    """Lets Airflow know some DAGs."""
    from airflow.api.common.delete_dag import delete_dag
    from airflow.exceptions import DagNotFound
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    known = []

    def forget(dag_ids):
        """Delete them with all that belongs to them: a test of another folder may have run them in this process."""
        for dag_id in dict.fromkeys(dag_ids):
            with contextlib.suppress(DagNotFound):
                delete_dag(dag_id)

    def know(*dag_ids):
        forget(dag_ids)
        with create_session() as session:
            session.merge(DagBundleModel(name="of_the_page"))
            session.flush()
            for dag_id in dag_ids:
                session.merge(DagModel(dag_id=dag_id, bundle_name="of_the_page", is_paused=False))
        known.extend(dag_ids)

    yield know
    forget(known)


@pytest.fixture
def connect(world, monkeypatch):
    """Sets the connection of a set-up, by default with the configuration of the world."""

    def set_connection(setup="default", document=None, extra=None, **more):
        extra = extra or {"config": world.document(**more) if document is None else document}
        monkeypatch.setenv(
            f"AIRFLOW_CONN_BQDISPATCH_{setup.upper()}", json.dumps({"conn_type": "bqdispatch", "extra": extra})
        )

    google = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}}
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(google))
    return set_connection


@pytest.fixture
def fresh(server, monkeypatch):
    """Nothing is known from an earlier test. However slow the machine is, the first reading is waited for."""
    from bqdispatch_provider.page import app
    from bqdispatch_provider.page.state import State

    monkeypatch.setattr("bqdispatch_provider.page.watcher.FIRST_WAIT_S", PATIENCE_S)
    app.app.state.bqdispatch = State()
    return app.app.state.bqdispatch


@pytest.fixture
def token(server):
    """Gives the token of a user who may read some DAGs."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    def make(*dag_ids):
        return get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=",".join(dag_ids) or "-", role="VIEWER"))

    return make


@pytest.fixture
def client(server, fresh, token):
    """Gives a client of a user who may read some DAGs; by default the DAG ``bqdispatch``."""
    from fastapi.testclient import TestClient

    def log_in(*dag_ids):
        client = TestClient(server, base_url="http://testserver/bqdispatch")
        client.headers["Authorization"] = f"Bearer {token(*dag_ids or ('bqdispatch',))}"
        return client

    return log_in
