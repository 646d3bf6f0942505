"""``bqdispatch pools``: print, set or compare Airflow's pools for the limits of a configuration.

The pools of this environment are reached by the ``airflow`` command, those of an Airflow elsewhere by its REST API.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bqdispatch_provider.commands.options import read_config, read_variables
from bqdispatch_provider.commands.output import FAILED, OK, airflow_to_stderr
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.core.pools import PoolProblem, is_too_small, pool_problem, slots_of
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.names import in_one_line, in_words

if TYPE_CHECKING:
    import requests

TOKEN_VARIABLE = "AIRFLOW_CLI_TOKEN"  # noqa: S105  (a name)
"""The environment variable with the token for Airflow's REST API, which ``airflowctl`` reads too."""

_TIMEOUT_S = 30
_NO_LIMIT_BUG = "inf is not of type 'integer'"
"""With this message, Airflow 2.11 fails to return a pool without limit, also when it has just made one."""

Pool = Mapping[str, Any]
"""A pool as ``airflow pools import`` reads it: ``slots`` (-1: no limit), ``description``, ``include_deferred``."""


class AirflowError(RuntimeError):
    """The pools of an Airflow cannot be read or set. The message says why, and what to do."""


def execute(options: argparse.Namespace) -> int:
    """Print the pools, set them, or compare them.

    :param options: of the command line.
    :returns: the exit code: 1 when the pools of the Airflow differ.
    :raises AirflowError: when they cannot be read or set.
    """
    wanted = expected_pools(read_config(options) if options.config else _connected_config(options), options.setup)
    if not options.set and not options.check:
        print(json.dumps(wanted, indent=1))
        return OK
    pools = _remote_pools(options.url) if options.url else LocalPools()
    if options.set:
        pools.set(wanted)
        for name, pool in wanted.items():
            print(f"pool {name!r} has {pool['slots']} slots")
    return _compare(pools.read(wanted), wanted, options.setup) if options.check else OK


def _compare(there: Mapping[str, Pool], wanted: Mapping[str, Pool], setup: SetUp) -> int:
    """Print what is wrong with the pools.

    :param there: the pools of the Airflow.
    :returns: the exit code.
    """
    # The slots of tasks come first: a pool that shrinks before they do takes no task any more.
    slots, problems = slot_problems(wanted, setup), pool_problems(there, wanted)
    found = [f"pool {name!r} {said}" for each in (slots, problems) for name, said in each.items() if said]
    print("\n".join(found or ["the pools agree with the configuration"]))
    if any(problems.values()):
        begin = "Then" if any(slots.values()) else "To set them,"
        print(f"{begin} run `bqdispatch pools --import` with the same options", file=sys.stderr)
    return FAILED if found else OK


def _remote_pools(url: str) -> RemotePools:
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise AirflowError(f"{TOKEN_VARIABLE} is not set: it must hold a token for Airflow's REST API")
    return RemotePools(url, token)


def _connected_config(options: argparse.Namespace) -> DispatchConfig:
    """Read the configuration of the set-up's connection in the Airflow of this environment."""
    conn_id = options.setup.conn_id
    if not has_airflow():
        raise AirflowError(
            "--config is missing, and this environment has no Airflow whose connection "
            f"{conn_id!r} could name the configuration"
        )
    with airflow_to_stderr():
        try:
            from bqdispatch_provider.hooks import BqDispatchHook  # noqa: PLC0415  (Airflow takes seconds)

            return BqDispatchHook.from_database(conn_id).get_config(read_variables(options))
        except ConfigError:
            raise
        except Exception as error:  # also of Airflow's import, by its own settings
            raise AirflowError(f"the connection {conn_id!r} cannot be read: {in_words(error)}") from error


def expected_pools(config: DispatchConfig, setup: SetUp | None = None) -> dict[str, Pool]:
    """Return the pools that mirror a configuration's limits.

    They count deferred tasks: a task that dispatches in the triggerer holds its slots there.

    :param config: with the limits; a pool without limit has -1 slots.
    :param setup: whose pools; by default the set-up without a name.
    """
    names = setup or SetUp()
    return {
        names.sql_pool: {
            "slots": slots_of(config.max_concurrent_sql),
            "description": "MaxConcurrentSQL: events of query jobs that may be in hand at one time",
            "include_deferred": True,
        },
        names.jobs_pool: {
            "slots": slots_of(config.max_concurrent_jobs),
            "description": "MaxConcurrentJobs: events of load, copy and export jobs and windows in hand at one time",
            "include_deferred": True,
        },
    }


def pool_problems(found: Mapping[str, Pool], wanted: Mapping[str, Pool]) -> dict[str, str]:
    """Return what is wrong with each pool, until it is set; an empty text when nothing is.

    :param found: the pools of the Airflow.
    :param wanted: from :func:`expected_pools`.
    """
    return {name: _problem(pool["slots"], found.get(name)) for name, pool in wanted.items()}


def slot_problems(wanted: Mapping[str, Pool], setup: SetUp) -> dict[str, str]:
    """Return for each pool what is wrong with the slots that a task takes, and what to do; empty when nothing is.

    :param wanted: from :func:`expected_pools`.
    :param setup: whose pools; its environment variables say how many slots a task takes.
    :raises ConfigError: when one of them holds no number of slots.
    """
    taken, problems = setup.task_slots(), dict.fromkeys(wanted, "")
    for (name, pool), variable in zip(wanted.items(), setup.slot_variables, strict=True):
        slots = pool["slots"]
        if is_too_small(slots, taken[name]):
            problems[name] = (
                f"gets {slots} slots by its limit, and a task takes {taken[name]}, so the task never runs: lower "
                f"{variable} to {slots}, here and where DAG files are parsed"
            )
    return problems


def _problem(wanted: int, found: Pool | None) -> str:
    slots, counts_deferred = (found["slots"], found["include_deferred"]) if found else (None, True)
    match pool_problem(wanted, slots, counts_deferred=counts_deferred):
        case PoolProblem.MISSING:
            return f"is missing, so tasks in it never run; expected {wanted} slots"
        case PoolProblem.OTHER_SLOTS:
            return f"has {slots} slots; expected {wanted} slots"
        case PoolProblem.DEFERRED_NOT_COUNTED:
            return "does not count deferred tasks, so a task that dispatches in the triggerer takes no slot"
    return ""


class LocalPools:
    """The pools of the Airflow of this environment, reached by its ``airflow`` command, whatever its version."""

    def read(self, _: Iterable[str] = ()) -> dict[str, Pool]:
        """Return all pools.

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
            raise _failed(listed, "and printed no list of pools") from error

    def set(self, pools: Mapping[str, Pool]) -> None:
        """Make pools, or change them.

        :param pools: from :func:`expected_pools`.
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
            raise AirflowError("no `airflow` command found in this environment; name an Airflow elsewhere with --url")
        command = [airflow, "pools", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (a fixed command)


class RemotePools:
    """The pools of an Airflow elsewhere, reached by its REST API: ``/api/v1`` of Airflow 2, ``/api/v2`` of Airflow 3.

    :param url: address of Airflow's page.
    :param token: of a user who may change pools.
    """

    def __init__(self, url: str, token: str) -> None:
        import requests  # noqa: PLC0415  (costs 0.1 s)

        self._url = url.rstrip("/")
        self._token = token
        self._session = requests.Session()
        # So the token goes to no other host, and no entry of ~/.netrc takes its place.
        self._session.auth = self._sign

    def read(self, names: Iterable[str]) -> dict[str, Pool]:
        """Return the pools that exist.

        :param names: of the pools.
        :raises AirflowError: when they cannot be read.
        """
        answers = {name: self._call("GET", f"pools/{quote(name, safe='')}") for name in names}
        return {
            name: {"slots": int(pool["slots"]), "include_deferred": bool(pool["include_deferred"])}
            for name, pool in answers.items()
            if pool is not None
        }

    def set(self, pools: Mapping[str, Pool]) -> None:
        """Make pools, or change them.

        :param pools: from :func:`expected_pools`.
        :raises AirflowError: when they cannot be set.
        """
        for name, pool in pools.items():
            body = {"name": name, **pool}
            if self._call("PATCH", f"pools/{quote(name, safe='')}", body) is None:
                self._call("POST", "pools", body, may_be_missing=False)

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if str(request.url).startswith(f"{self._url}/"):
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _call(self, method: str, path: str, body: Any = None, *, may_be_missing: bool = True) -> Any:
        """Call the API.

        :returns: the answer; ``None`` for a 404.
        """
        answer, document = self._send(method, f"{self._api}/{path}", body)
        if answer.status_code == 404 and may_be_missing:
            return None
        if answer.status_code == 500 and _NO_LIMIT_BUG in answer.text:
            return {"slots": -1, "include_deferred": True}  # as this has made it
        if not answer.ok:
            hint = f". Check that the token in {TOKEN_VARIABLE} is valid, and that its user may change pools"
            raise AirflowError(
                f"Airflow at {self._url} answered {method} {path} with {answer.status_code}: "
                f"{in_one_line(answer.text)[:300]}{hint if answer.status_code in (401, 403) else ''}"
            )
        return document

    @cached_property
    def _api(self) -> str:
        """The address of the API, which is found by asking for its version."""
        for version in ("v2", "v1"):
            answer, document = self._send("GET", f"{self._url}/api/{version}/version")
            if answer.ok and "version" in document:
                return f"{self._url}/api/{version}"
            if answer.status_code != 404:
                raise AirflowError(f"{self._url} answered with {answer.status_code} when asked for its version")
        raise AirflowError(
            f"{self._url} is not the address of an Airflow: it has neither /api/v2 nor /api/v1; check --url, and that "
            "Airflow's API server runs"
        )

    def _send(self, method: str, url: str, body: Any = None) -> tuple[requests.Response, Any]:
        """Send a request.

        :returns: the answer, and its JSON if it is no error.
        """
        import requests  # noqa: PLC0415

        try:
            answer = self._session.request(method, url, json=body, timeout=_TIMEOUT_S, allow_redirects=False)
            return answer, answer.json() if answer.ok else None
        except requests.JSONDecodeError as error:
            raise AirflowError(f"{self._url} did not answer with JSON, but perhaps with a page") from error
        except requests.RequestException as error:
            raise AirflowError(f"Airflow at {self._url} cannot be reached: {in_one_line(str(error))}") from error


def has_airflow() -> bool:
    """Tell whether this environment has an Airflow. Without one, the ``airflow`` command would set up an empty one."""
    places = [os.environ.get("AIRFLOW_HOME", ""), os.environ.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "")]
    return any(places) or (Path.home() / "airflow" / "airflow.cfg").exists()


def _failed(ended: subprocess.CompletedProcess[str], result: str) -> AirflowError:
    command = " ".join(["airflow", *ended.args[1:3]])
    return AirflowError(
        f"`{command}` exited with {ended.returncode} {result} ({_error_line(ended)}). Check that AIRFLOW_HOME is that "
        "of your Airflow, and that `airflow db migrate` has been run there"
    )


def _error_line(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that names an error, without its traceback; if there is none, the last line."""
    lines = [line.strip() for line in (ended.stderr or ended.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    return (errors or lines or ["it printed nothing"])[-1][:500]
