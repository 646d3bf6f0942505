"""A real Airflow on this machine: SQLite, LocalExecutor, every component, few processes. For Airflow 3."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil
import requests

from demo.ports import free_port, is_free
from demo.processes import POLL_S, Sessions

_START_TIMEOUT_S = 600.0
_MAX_TRIES = 5
_TIMEOUT_S = 60.0
_NO_LOG_SERVER = dict.fromkeys(("scheduler", "triggerer"), "--skip-serve-logs")
"""Options of components, by name. Their log servers would listen on all addresses, which no setting changes. Airflow's
page reads the log files instead, which are on the same machine."""


class AirflowDied(RuntimeError):
    """Airflow has ended, or does not get healthy. The message says where its log is."""


class LiveAirflow:
    """An Airflow that runs while the context is open. Nothing of it is left behind.

    It listens on 127.0.0.1 only.

    :param home: an empty folder for its database and logs.
    :param dags: folder of the DAG files.
    :param pools: pools to set, as ``airflow pools import`` reads them.
    :param environment: further environment variables: connections, settings, what the DAG files read.
    :param port: port of its page; by default, or when it is taken, a free one.
    :param may_go_on: called again and again while Airflow starts. If it raises, the start ends, and all processes do.
        A signal handler must not raise (as the one for ``KeyboardInterrupt`` does): it could strike while a process is
        being started, before its ID is known. Let it make a ``StopRequest``, and raise here.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        pools: Mapping[str, Any],
        environment: Mapping[str, str],
        *,
        port: int | None = None,
        may_go_on: Callable[[], object] = lambda: None,
    ) -> None:
        self.home = home
        self.port = port if port and is_free(port) else free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "airflow.log"
        self._pools = pools
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            **_settings(home, dags, self.port, self.url),
            # `airflow standalone` starts its components by name.
            "PATH": os.pathsep.join(
                (str(home / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
            ),
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        self._may_go_on = may_go_on
        self._process: subprocess.Popen[bytes] | None = None
        self._sessions = Sessions()
        self._session = requests.Session()
        self._session.trust_env = False

    def __enter__(self) -> LiveAirflow:
        self.home.mkdir(parents=True, exist_ok=True)
        pools = self.home / "pools.json"
        pools.write_text(json.dumps(self._pools))
        self._write_launcher()
        try:
            with self.log.open("ab") as log_file:
                self._airflow(log_file, "db", "migrate")
                self._process = self._start(log_file, "standalone")
                self._airflow(log_file, "pools", "import", str(pools))
            self._wait_until_healthy()
            self._log_in()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process of this Airflow, and wait until all are gone."""
        self._sessions.stop()
        self._process = None

    def start(self, component: str) -> None:
        """Start a component in place of one that has ended.

        :param component: as ``airflow`` names its command, such as ``triggerer``.
        """
        with self.log.open("ab") as log_file:
            self._start(log_file, component, *filter(None, [_NO_LOG_SERVER.get(component)]))

    def processes(self) -> list[psutil.Process]:
        """Return every process that was seen to be Airflow's, also those that have ended."""
        self._sessions.running()
        return list(self._sessions.seen)

    @property
    def password(self) -> str:
        """Password of the user ``admin``."""
        found = json.loads((self.home / "simple_auth_manager_passwords.json.generated").read_text())
        return str(found["admin"])

    @property
    def token(self) -> str:
        """Token of the user ``admin`` for Airflow's REST API."""
        return str(self._session.headers["Authorization"]).removeprefix("Bearer ")

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Get from Airflow's REST API (``/api/v2``).

        :raises AirflowDied: when Airflow has ended.
        :raises requests.HTTPError: when it answers with an error.
        """
        return self._ask("GET", path, params=query)

    def post(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Post to Airflow's REST API (``/api/v2``); raises as :meth:`get`."""
        return self._ask("POST", path, json=document)

    def patch(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Patch by Airflow's REST API (``/api/v2``); raises as :meth:`get`."""
        return self._ask("PATCH", path, json=document)

    def delete(self, path: str) -> None:
        """Delete by Airflow's REST API (``/api/v2``); raises as :meth:`get`."""
        self._ask("DELETE", path)

    def switch_on(self, dag_id: str) -> None:
        """Switch a DAG on as soon as Airflow has read its file; raises as :meth:`get`.

        :raises AirflowDied: if it has not read the file in time.
        """
        until = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < until:
            self._may_go_on()
            paused = {each["dag_id"]: each["is_paused"] for each in self.get("dags", limit=100)["dags"]}
            if paused.get(dag_id) is False:
                return
            if dag_id in paused:
                with suppress(requests.Timeout):  # on a busy machine: the next look tells whether it was done
                    self.patch(f"dags/{dag_id}", {"is_paused": False})
            time.sleep(POLL_S)
        raise AirflowDied(f"Airflow has no DAG {dag_id!r}: {self.get('importErrors')}; its log is {self.log}")

    def check(self) -> None:
        """Check that Airflow runs.

        :raises AirflowDied: when it does not.
        """
        if self._process is None or self._process.poll() is not None:
            raise AirflowDied(f"Airflow has ended; its log is {self.log}")
        self._sessions.running()

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        for tries_left in reversed(range(_MAX_TRIES)):
            self.check()
            try:
                response = self._session.request(method, f"{self.url}/api/v2/{path}", timeout=_TIMEOUT_S, **more)
            except requests.Timeout:  # on a busy machine; whoever writes does not know whether it was written
                if method != "GET" or not tries_left:
                    raise
                continue
            if response.status_code != 500:  # SQLite lets one write at a time, and gives up waiting for it
                break
            time.sleep(1)
        response.raise_for_status()
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer

    def _write_launcher(self) -> None:
        """Write a command ``airflow`` for ``airflow standalone``, which gives components their options."""
        airflow = shlex.quote(self._command())
        cases = [f'  {name}) exec {airflow} "$@" {option} ;;' for name, option in _NO_LOG_SERVER.items()]
        lines = ["#!/bin/sh", 'case "$1" in', *cases, f'  *) exec {airflow} "$@" ;;', "esac", ""]
        launcher = self.home / "bin" / "airflow"
        launcher.parent.mkdir(exist_ok=True)
        launcher.write_text("\n".join(lines))
        launcher.chmod(0o755)

    @staticmethod
    def _command() -> str:
        return str(Path(sys.executable).parent / "airflow")

    def _start(self, log_file: IO[bytes], *arguments: str) -> subprocess.Popen[bytes]:
        return self._sessions.start([self._command(), *arguments], self.environment, log_file)

    def _airflow(self, log_file: IO[bytes], *arguments: str) -> None:
        process = self._start(log_file, *arguments)
        while process.poll() is None:
            self._may_go_on()
            time.sleep(POLL_S)
        if process.returncode:
            raise AirflowDied(f"`airflow {' '.join(arguments)}` ended with {process.returncode}; the log is {self.log}")

    def _wait_until_healthy(self) -> None:
        until = time.monotonic() + _START_TIMEOUT_S
        parts: Mapping[str, Any] = {}
        while time.monotonic() < until:
            self._may_go_on()
            self.check()
            try:
                answer = self._session.get(f"{self.url}/api/v2/monitor/health", timeout=5)
                parts = answer.json() if answer.ok else {}
            except (requests.RequestException, ValueError):
                parts = {}
            needed = ("metadatabase", "scheduler", "triggerer", "dag_processor")
            if parts and all((parts.get(part) or {}).get("status") == "healthy" for part in needed):
                return
            time.sleep(0.5)
        raise AirflowDied(
            f"Airflow is not healthy after {_START_TIMEOUT_S:.0f} s: {dict(parts)}; its log is {self.log}"
        )

    def _log_in(self) -> None:
        answer = self._session.post(
            f"{self.url}/auth/token", json={"username": "admin", "password": self.password}, timeout=_TIMEOUT_S
        )
        answer.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def _settings(home: Path, dags: Path, port: int, url: str) -> dict[str, str]:
    """Return the settings of an Airflow with few processes that listen on 127.0.0.1 alone."""
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        # Ports that nobody serves, so that no logs of another Airflow are shown.
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    }
