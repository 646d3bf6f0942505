"""An environment of Cloud Composer 3, and what it gets: the package, connection and slots, pools, and the DAG.

Each step looks at what exists, and is skipped if nothing is left to do. So a deployment can be run again at any time:
after a change of the configuration, with a new version, or where it stopped. Each step is one command, which a dry run
prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bqdispatch_provider.commands.gcloud import DeployError, Gcloud, Step, escaped_list
from bqdispatch_provider.commands.packages import PACKAGE, is_ours
from bqdispatch_provider.commands.pools import Pool
from bqdispatch_provider.commands.rights import required_rights
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.connection_extra import GCP_CONN_ID, ConnectionExtra
from bqdispatch_provider.core.connection import UpdatedConnection, stored_extra, updated_connection
from bqdispatch_provider.core.pools import is_too_small
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.names import shell_joined

_MIN_AIRFLOW = (2, 11)
_IMAGE = re.compile(r"composer-(?P<composer>\d+)[^ ]*-airflow-(?P<airflow>\d+\.\d+(\.\d+)?)")
_UP_TO_DATE = "up to date"
_TO_UPDATE = "you need composer.environments.update, as in roles/composer.admin"
_TO_RUN_AIRFLOW = "you need composer.environments.executeAirflowCommand, as in roles/composer.admin"

_CONNECTION = re.compile(r"AIRFLOW_CONN_([A-Z0-9_]+)")
"""Environment variables that hold connections. Airflow reads no other spelling."""


@dataclass(frozen=True)
class OtherSetUp:
    """Another set-up of an environment, whose connection is an environment variable.

    :param conn_id: ID of the connection.
    :param account: the service account that it works as; empty if that is unknown.
    :param config: its configuration with its project filled in, or why that is unknown.
    """

    conn_id: str
    account: str
    config: DispatchConfig | Exception

    @property
    def dag_id(self) -> str:
        """ID of its DAG, if the deployment has made it."""
        return self.conn_id.removesuffix("_default")

    def may_need(self, bucket: str, role: str) -> bool:
        """Tell whether its account may need a role on a bucket.

        :param role: the role's full name.
        """
        if isinstance(self.config, Exception):
            return True
        return (role, bucket) in {(each.role, each.bucket) for each in required_rights(self.config, SetUp()).grants}


@dataclass(frozen=True)
class Environment:
    """An environment, as ``gcloud composer environments describe`` prints it.

    :param name: its name.
    :param location: its region.
    :param project: its project.
    :param airflow: version of its Airflow, such as ``2.11.1``.
    :param bucket: its bucket, ``gs://…``.
    :param account: e-mail address of the service account that its tasks run as.
    :param packages: its PyPI packages, with the constraints on their versions.
    :param variables: its environment variables.
    """

    name: str
    location: str
    project: str
    airflow: str
    bucket: str
    account: str
    packages: Mapping[str, str]
    variables: Mapping[str, str]

    @classmethod
    def find(cls, gcloud: Gcloud, name: str, location: str, project: str | None = None) -> Environment:
        """Look an environment up.

        :param gcloud: to ask.
        :param name: its name.
        :param location: its region.
        :param project: its project; by default gcloud's.
        :raises DeployError: when there is no such environment, or it is no Composer 3 with Airflow 2.11 or later that
            is running.
        """
        in_project = [f"--project={project}"] if project else []
        where = [f"--location={location}", *in_project]
        described = gcloud.describe("composer", "environments", "describe", name, *where)
        if described is None:
            list_all = ["gcloud", "composer", "environments", "list", f"--locations={location}", *in_project]
            raise DeployError(
                f"there is no environment {name!r} in {location!r}; to list those that exist: "
                f"`{shell_joined(list_all)}`"
            )
        return cls._from_description(described)

    @classmethod
    def _from_description(cls, described: Mapping[str, Any]) -> Environment:
        _, project, _, location, _, name = described["name"].split("/")
        config, state = described["config"], described.get("state", "RUNNING")
        software = config["softwareConfig"]
        image = _IMAGE.match(software["imageVersion"])
        if image is None or image["composer"] != "3":
            raise DeployError(f"environment {name!r} is {software['imageVersion']}; expected one of Cloud Composer 3")
        if tuple(map(int, image["airflow"].split(".")[:2])) < _MIN_AIRFLOW:
            raise DeployError(
                f"environment {name!r} has Airflow {image['airflow']}; expected 2.11 or later: upgrade it"
            )
        if state != "RUNNING":
            raise DeployError(f"environment {name!r} is {state}: try again once it is RUNNING")
        return cls(
            name,
            location,
            project,
            image["airflow"],
            config["dagGcsPrefix"].removesuffix("/dags"),
            config["nodeConfig"]["serviceAccount"],
            software.get("pypiPackages", {}),
            software.get("envVariables", {}),
        )

    def account_of(self, extra: ConnectionExtra) -> str:
        """Return the service account that a set-up works as; empty if that is unknown: its Google connection says it.

        :param extra: of the set-up's connection.
        """
        if chain := extra.impersonation_chain:
            return chain[-1]
        return self.account if extra.gcp_conn_id == GCP_CONN_ID else ""

    def other_set_ups(self, setup: SetUp) -> list[OtherSetUp]:
        """Return the other set-ups. Documents in buckets are read as whoever deploys.

        :param setup: the one that is deployed.
        """
        found = []
        for name, value in sorted(self.variables.items()):
            conn_id = match[1].lower() if (match := _CONNECTION.fullmatch(name)) else setup.conn_id
            if conn_id != setup.conn_id and (other := self._set_up(conn_id, value)):
                found.append(other)
        return found

    def former_config(self, setup: SetUp) -> DispatchConfig | Exception | None:
        """Return the configuration that a set-up has by its existing connection, or why that is unknown.

        :param setup: the one that is deployed.
        :returns: ``None`` without a connection.
        """
        former = self._set_up(setup.conn_id, self.variables.get(setup.conn_variable, ""))
        return former.config if former else None

    def _set_up(self, conn_id: str, value: str) -> OtherSetUp | None:
        """Read a set-up's connection; ``None`` if it is of another type.

        :param value: of its environment variable.
        """
        account = ""
        config: DispatchConfig | Exception
        try:
            if (stored := stored_extra(value)) is None:
                return None
            extra = ConnectionExtra(conn_id, stored)
            account = self.account_of(extra)
            config = extra.config(None, lambda: None).for_project(self.project)
        except (ConfigError, ValueError) as error:
            config = error
        return OtherSetUp(conn_id, account, config)

    @property
    def where(self) -> list[str]:
        """Options of gcloud for this region and project."""
        return [f"--location={self.location}", f"--project={self.project}"]


class Composer:
    """An environment, and the set-up that it gets.

    :param gcloud: to look at what exists.
    :param environment: the environment.
    :param setup: the set-up.
    """

    def __init__(self, gcloud: Gcloud, environment: Environment, setup: SetUp) -> None:
        self.gcloud, self.environment, self._setup = gcloud, environment, setup

    def check_airflow(self) -> Step:
        """Return the step that runs a harmless command of Airflow."""
        hint = f"{_TO_RUN_AIRFLOW}, in {self.environment.project!r}"
        if self.environment.airflow.startswith("3"):
            hint += "; an old gcloud does not know Airflow 3: run `gcloud components update`"
        return Step("check that gcloud can run Airflow's commands", self._airflow("version"), hint)

    def package(self, version: str) -> Step:
        """Return the step that installs the package.

        :param version: its version.
        """
        known = self.environment.packages
        # Under its known spelling: another one would be a second entry of the same package.
        name = next((each for each in known if is_ours(each)), PACKAGE)
        there = known.get(name, "")
        extras = there[: there.find("]") + 1]
        # With == a file of another version that counts as equal, such as 0.1 or 0.1.0.0, could be a stranger's.
        wanted = f"{extras}==={version}"
        return Step(
            "package in the environment (takes minutes)",
            self._update(f"--update-pypi-package={name}{wanted}"),
            f"{_TO_UPDATE}; the environment keeps the packages that it had; the log of its build names conflicts",
            done="already this version" if there == wanted else "",
        )

    def connection(self, wanted: Mapping[str, Any]) -> UpdatedConnection:
        """Return the connection as it is to be.

        :param wanted: keys of its extra; what else it holds stays.
        :raises DeployError: if the existing connection cannot be read.
        """
        name = self._setup.conn_variable
        try:
            return updated_connection(self.environment.variables.get(name), wanted)
        except ValueError as error:
            raise DeployError(
                f"{name} {error}, so what it holds besides the configuration is unknown: set it, by "
                '--update-env-variables, to {"conn_type": "bqdispatch", "extra": {…}} with what has to stay '
                "(gcp_conn_id, impersonation_chain, subscription, quota_project_id), and deploy again; if nothing has "
                f"to stay, remove it by `{shell_joined(self._update(f'--remove-env-variables={name}'))}`"
            ) from None

    def variables(self, config: DispatchConfig, connection: UpdatedConnection) -> Step:
        """Return the step that sets the connection and the slots, as environment variables.

        Every version of Airflow reads a connection from there. This one holds no secret.

        :param config: with the limits.
        :param connection: as it is to be.
        """
        name, known = self._setup.conn_variable, self.environment.variables
        limits = dict(
            zip(self._setup.slot_variables, (config.max_concurrent_sql, config.max_concurrent_jobs), strict=True)
        )
        values = {name: connection.value, **{slots: str(limit) for slots, limit in limits.items() if limit}}
        changed = {each: value for each, value in values.items() if known.get(each) != value}
        removed = [slots for slots, limit in limits.items() if not limit and slots in known]
        secrets = connection.hidden if name in changed else ()
        notes = [f"{name}: {change}" for change in connection.changes if name in changed]
        if name not in known:
            notes += [
                f"{name}: new; it goes before a connection {self._setup.conn_id} made on Airflow's page, and after "
                "one of a secrets backend"
            ]
        notes += [f"{name}: where it says … below, put in what is there before you type this"] if secrets else []
        notes += [
            f"{slots}: {known[slots]} becomes {changed.get(slots, 'nothing')}"
            for slots in limits
            if slots in known and slots in {*changed, *removed}
        ]
        step = Step(
            "connection and slots (takes minutes)",
            self._set_variables(changed, removed),
            f"{_TO_UPDATE}; only one update of an environment runs at a time: try again once it is RUNNING",
            done="" if changed or removed else _UP_TO_DATE,
            notes=notes,
            secrets=secrets,
        )
        if not secrets:
            return step
        return replace(step, typed=shell_joined(self._set_variables({**changed, name: connection.shown}, removed)))

    def pools(self, pools: Mapping[str, Pool]) -> tuple[list[Step], list[Step]]:
        """Return the steps that set the pools: those before the variables, and those after them.

        Airflow never runs a task that takes more slots than its pool has. So a pool gets more slots before the
        variable, and fewer after it. Then a deployment may stop anywhere.

        :param pools: by name, in the order of the variables.
        """
        before: list[Step] = []
        after: list[Step] = []
        for (name, pool), variable in zip(pools.items(), self._setup.slot_variables, strict=True):
            deferred = ["--include-deferred"] if pool["include_deferred"] else []
            values = [*deferred, name, str(pool["slots"]), pool["description"]]
            command = self._airflow("pools", "set", "--", *values)
            taken = self.environment.variables.get(variable, "")
            shrinks = taken.isdecimal() and is_too_small(pool["slots"], int(taken))
            (after if shrinks else before).append(Step(f"pool {name}", command, _TO_RUN_AIRFLOW))
        return before, after

    def dag(self) -> Step:
        """Return the step that copies the DAG file."""
        hint = "you need storage.objects.create on the environment's bucket, and .delete where the file is there"
        url, text = f"{self.environment.bucket}/dags/{self._setup.dag_id}.py", self._setup.dag_source
        there, wanted = self.gcloud.describe("storage", "objects", "describe", url) or {}, text.encode()
        # Whatever has another size is not read.
        same = int(there.get("size") or 0) == len(wanted) and self.gcloud.output("storage", "cat", url) == wanted
        done = _UP_TO_DATE if same else ""
        return Step("DAG file", ["gcloud", "storage", "cp", "-", url], hint, done, stdin=text)

    def _set_variables(self, changed: Mapping[str, str], removed: Sequence[str]) -> list[str]:
        pairs = [f"{name}={value}" for name, value in changed.items()]
        options = [f"--update-env-variables={escaped_list(pairs)}"] if pairs else []
        options += [f"--remove-env-variables={','.join(removed)}"] if removed else []
        return self._update(*options)

    def _update(self, *options: str) -> list[str]:
        environment = self.environment
        return ["gcloud", "composer", "environments", "update", environment.name, *options, *environment.where]

    def _airflow(self, *arguments: str) -> list[str]:
        environment = self.environment
        return ["gcloud", "composer", "environments", "run", environment.name, *environment.where, *arguments]
