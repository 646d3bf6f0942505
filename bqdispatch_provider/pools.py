"""Airflow's pools for the limits: what they are to be, and how they are read and set, by its command or by REST."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.names import in_one_line
from bqdispatch_provider.setups import SetUp

if TYPE_CHECKING:
    import requests

TOKEN = "AIRFLOW_CLI_TOKEN"  # noqa: S105  (a name)
"""The environment variable with the token for Airflow's REST API, which ``airflowctl`` reads too."""

_TIMEOUT_S = 30
_UNLIMITED = "inf is not of type 'integer'"
"""By this Airflow 2.11 fails to tell of a pool without limit, even of one that it has just made as it was asked."""


class AirflowError(RuntimeError):
    """An Airflow whose pools can be neither read nor set, and what to do about it."""


def pools_of(config: DispatchConfig, setup: SetUp | None = None) -> dict[str, dict[str, Any]]:
    """Return Airflow's pools for a configuration's limits: as many slots, or -1 (no limit).

    They count deferred tasks: one that dispatches in the triggerer holds its slots there.

    :param config: the limits.
    :param setup: whose pools; by default those of the set-up without a name.
    """
    names = setup or SetUp()
    return {
        names.sql_pool: {
            "slots": config.max_concurrent_sql or -1,
            "description": "MaxConcurrentSQL: events of query jobs that may be in hand at one time",
            "include_deferred": True,
        },
        names.jobs_pool: {
            "slots": config.max_concurrent_jobs or -1,
            "description": "MaxConcurrentJobs: events of load, copy and export jobs and windows in hand at one time",
            "include_deferred": True,
        },
    }


def compared(
    found: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]], taken: Mapping[str, int]
) -> dict[str, str]:
    """Say what is wrong with each of the pools; empty for one that is as it should be.

    :param found: the pools that are there.
    :param wanted: from :func:`pools_of`.
    :param taken: slots that one task takes in each, from :meth:`SetUp.task_slots`.
    """
    wrong: dict[str, str] = {}
    for name, pool in wanted.items():
        there = found.get(name)
        if there is None:
            wrong[name] = f"is missing, so tasks in it never run; expected {pool['slots']} slots"
        elif there["slots"] != pool["slots"]:
            wrong[name] = f"has {there['slots']} slots; expected {pool['slots']} slots"
        elif there["include_deferred"] != pool["include_deferred"]:
            wrong[name] = "does not count deferred tasks, so one that dispatches in the triggerer holds no slot of it"
        elif 0 <= pool["slots"] < taken.get(name, 1):
            wrong[name] = f"has {pool['slots']} slots, and a task takes {taken[name]}, so it never runs"
        else:
            wrong[name] = ""
    return wrong


class PoolsHere:
    """The pools of the Airflow of this environment, by its ``airflow`` command: of any version, in its database."""

    def read(self, _: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
        """Read the slots of all pools, and whether they count deferred tasks.

        :raises AirflowError: when they cannot be read.
        """
        listed = self._airflow("list", "--output", "json")
        try:
            # Airflow may print warnings before its JSON.
            pools = json.loads(listed.stdout[listed.stdout.index("[{") :])
            return {
                pool["pool"]: {
                    "slots": int(pool["slots"]),
                    "include_deferred": str(pool["include_deferred"]).lower() == "true",
                }
                for pool in pools
            }
        except (ValueError, KeyError) as error:
            raise _failed(listed, "and no list of pools") from error

    def set(self, pools: Mapping[str, Mapping[str, Any]]) -> None:
        """Make pools, or change them.

        :param pools: from :func:`pools_of`.
        :raises AirflowError: when they cannot be set.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "pools.json")
            file.write_text(json.dumps(pools))
            imported = self._airflow("import", str(file))
        if imported.returncode:
            raise _failed(imported, "so the pools are not set")

    @staticmethod
    def _airflow(*arguments: str) -> subprocess.CompletedProcess[str]:
        airflow = shutil.which("airflow", path=str(Path(sys.executable).parent)) or shutil.which("airflow")
        if airflow is None:
            raise AirflowError("there is no `airflow` command in this environment; --url names an Airflow elsewhere")
        command = [airflow, "pools", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (a fixed command)


class PoolsElsewhere:
    """The pools of an Airflow of which only the address is known, by its REST API; 2.11 has another than 3.

    :param url: of Airflow's page.
    :param token: of a user who may change pools.
    """

    def __init__(self, url: str, token: str) -> None:
        import requests  # noqa: PLC0415  (costs 0.1 s)

        self._url = url.rstrip("/")
        self._token = token
        self._session = requests.Session()
        # By this the token goes to no other host, and no entry of ~/.netrc takes its place.
        self._session.auth = self._sign
        self._api = ""

    def read(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Read the slots of these pools, as far as they are there, and whether they count deferred tasks.

        :param names: of the pools.
        :raises AirflowError: when they cannot be read.
        """
        answers = {name: self._ask("GET", f"pools/{quote(name, safe='')}", or_else=404) for name in names}
        return {
            name: {"slots": int(pool["slots"]), "include_deferred": bool(pool["include_deferred"])}
            for name, pool in answers.items()
            if pool is not None
        }

    def set(self, pools: Mapping[str, Mapping[str, Any]]) -> None:
        """Make pools, or change them.

        :param pools: from :func:`pools_of`.
        :raises AirflowError: when they cannot be set.
        """
        for name, pool in pools.items():
            body = {"name": name, **pool}
            if self._ask("PATCH", f"pools/{quote(name, safe='')}", body, or_else=404) is None:
                self._ask("POST", "pools", body)

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if str(request.url).startswith(f"{self._url}/"):
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _ask(self, method: str, path: str, body: Any = None, or_else: int | None = None) -> Any:
        """The answer; ``None`` for the status ``or_else``."""
        answer = self._send(method, f"{self._api_url()}/{path}", body)
        if answer.status_code == or_else:
            return None
        if answer.status_code == 500 and _UNLIMITED in answer.text:
            return {"slots": -1, "include_deferred": True}  # as this has made it
        if not answer.ok:
            refused = answer.status_code in (401, 403)
            raise AirflowError(
                f"Airflow at {self._url} has answered {method} {path} with {answer.status_code}: "
                f"{in_one_line(answer.text)[:300]}"
                + (f" Is the token in {TOKEN} still good, and may its user change pools?" if refused else "")
            )
        return self._read(answer)

    def _api_url(self) -> str:
        """Where the API lies: Airflow 2 has ``/api/v1``, Airflow 3 ``/api/v2``."""
        if not self._api:
            for version in ("v2", "v1"):
                answer = self._send("GET", f"{self._url}/api/{version}/version")
                if answer.ok and "version" in self._read(answer):
                    self._api = f"{self._url}/api/{version}"
                    break
                if answer.status_code != 404:
                    raise AirflowError(f"{self._url} has answered with {answer.status_code} when asked for its version")
            else:
                raise AirflowError(f"{self._url} is not the address of an Airflow: it has neither /api/v2 nor /api/v1")
        return self._api

    def _send(self, method: str, url: str, body: Any = None) -> requests.Response:
        import requests  # noqa: PLC0415

        try:
            return self._session.request(method, url, json=body, timeout=_TIMEOUT_S, allow_redirects=False)
        except requests.RequestException as error:
            raise AirflowError(f"Airflow at {self._url} cannot be reached: {in_one_line(str(error))}") from error

    def _read(self, answer: requests.Response) -> Any:
        try:
            return answer.json()
        except ValueError as error:
            raise AirflowError(f"{self._url} has answered with something other than JSON, such as a page") from error


def has_airflow() -> bool:
    """Whether an Airflow has been set up here; its command would set up an empty one."""
    places = [os.environ.get("AIRFLOW_HOME", ""), os.environ.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "")]
    return any(places) or (Path.home() / "airflow" / "airflow.cfg").exists()


def _failed(ended: subprocess.CompletedProcess[str], what: str) -> AirflowError:
    command = " ".join(["airflow", *ended.args[1:3]])
    return AirflowError(
        f"`{command}` ended with {ended.returncode} {what} ({_error_of(ended)}): is AIRFLOW_HOME that of your Airflow, "
        "and has `airflow db migrate` been run there?"
    )


def _error_of(ended: subprocess.CompletedProcess[str]) -> str:
    """The error that a command ended with, without its traceback: the last line that names one, or the last of all."""
    lines = [line.strip() for line in (ended.stderr or ended.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:500]
