"""``bqdispatch deploy composer``: what an environment of Cloud Composer 3 needs, one command after the other.

Each step looks first whether it is done already, so the whole may be run again at any time: after a change of the
configuration, with a new version, or where it has stopped. All of them are commands that could be typed, and a dry run
prints them.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bqdispatch_provider import __version__
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.setups import SetUp

PACKAGE = "airflow-provider-bqdispatch"
REPOSITORY = "bqdispatch"
ROLES = {
    "bqdispatchFolders": "bqdispatch-folders.yaml",
    "bqdispatchTrigger": "bqdispatch-trigger.yaml",
    "bqdispatchJobs": "bqdispatch-jobs.yaml",
}
"""Custom roles, and their files in deploy/roles."""

_LEAST_AIRFLOW = (2, 11)
_IMAGE = re.compile(r"composer-(?P<composer>\d+)[^ ]*-airflow-(?P<airflow>\d+\.\d+(\.\d+)?)")
_PERMISSION = re.compile(r"^ *- ([\w.]+)", re.MULTILINE)
_NOT_FOUND = re.compile(r"not[ _]found|\b404\b|does not exist", re.IGNORECASE)


class DeployError(Exception):
    """A step that went wrong: which, what was said, and what to do."""


@dataclass(frozen=True)
class Environment:
    """An environment of Cloud Composer, as ``gcloud composer environments describe`` tells of it.

    :param airflow: its version, such as ``2.11.1``.
    :param bucket: its bucket, ``gs://…``.
    :param account: e-mail address of the service account that its tasks run as.
    :param packages: its PyPI packages, with what is asked of their versions.
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
    def of(cls, described: Mapping[str, Any]) -> Environment:
        """Read what was described.

        :raises DeployError: when it is no environment that this can be deployed to.
        """
        _, project, _, location, _, name = described["name"].split("/")
        config, state = described["config"], described.get("state", "RUNNING")
        software = config["softwareConfig"]
        image = _IMAGE.match(software["imageVersion"])
        if image is None or image["composer"] != "3":
            raise DeployError(f"environment {name!r} is {software['imageVersion']}; expected one of Cloud Composer 3")
        if tuple(map(int, image["airflow"].split(".")[:2])) < _LEAST_AIRFLOW:
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


@dataclass(frozen=True)
class Step:
    """One thing that has to be so, and the command that makes it so.

    :param what: in a few words.
    :param command: program and arguments.
    :param hint: what to do when it fails.
    :param done: why nothing is left to do; empty: it is to be done.
    :param given: standard input.
    :param token: whether it needs gcloud's access token, as ``UV_PUBLISH_PASSWORD``.
    """

    what: str
    command: Sequence[str]
    hint: str = ""
    done: str = ""
    given: str = ""
    token: bool = False

    def as_typed(self) -> str:
        """The command for a shell."""
        before = f"printf %s {shlex.quote(self.given)} | " if self.given else ""
        before += 'UV_PUBLISH_PASSWORD="$(gcloud auth print-access-token)" ' if self.token else ""
        return before + shlex.join(self.command)


class Deployment:
    """A deployment to one environment.

    :param config: the configuration, as it is.
    :param connection: the extra of the connection.
    :param pools: to be set, as ``airflow pools import`` reads them.
    :param checkout: where the project's sources lie.
    :param setup: which of several in that Airflow; by default the one without a name.
    :param project: of the environment; by default gcloud's.
    :param dry: change nothing.
    """

    def __init__(
        self,
        config: DispatchConfig,
        connection: Mapping[str, Any],
        pools: Mapping[str, Mapping[str, Any]],
        checkout: Path,
        *,
        setup: SetUp | None = None,
        project: str | None = None,
        dry: bool = False,
    ) -> None:
        if not (checkout / "deploy" / "roles").is_dir() or not (checkout / "dags" / "bqdispatch.py").is_file():
            raise DeployError(f"{str(checkout)!r} is no checkout of {PACKAGE}: run this in the project's folder")
        self._given, self._connection, self._pools = config, connection, pools
        self._checkout, self._project, self._dry = checkout, project, dry
        self._setup = setup or SetUp()
        self._gcloud, self._uv = _program("gcloud", "install the Google Cloud CLI"), _program("uv", "pip install uv")

    def look(self, name: str, location: str) -> Environment:
        """The environment as it is.

        :raises DeployError: when it cannot be deployed to.
        """
        hint = f"`gcloud composer environments list --locations={location}` lists those that are there"
        in_project = [f"--project={self._project}"] if self._project else []
        described = self._read("composer", "environments", "describe", name, f"--location={location}", *in_project)
        if described is None:
            raise DeployError(f"there is no environment {name!r} in {location!r}: {hint}")
        return Environment.of(described)

    def steps(self, at: Environment) -> Iterator[Step]:
        """What is to be done, in this order; each step is looked at once those before it are done."""
        config = self._given.for_project(self._given.project_id or at.project)
        yield self._airflow_runs(at)
        yield from self._roles(config, at)
        yield from self._bindings(config, at)
        yield from self._package(at)
        yield self._variables(config, at)
        yield from self._slots(at)
        yield self._dag(at)

    def run(self, step: Step) -> None:
        """Carry out a step.

        :raises DeployError: when it fails.
        """
        more = {"UV_PUBLISH_PASSWORD": self._said("auth", "print-access-token")} if step.token else {}
        program = {"gcloud": self._gcloud, "uv": self._uv}[step.command[0]]
        ended = subprocess.run(  # noqa: S603  (no shell)
            [program, *step.command[1:]],
            cwd=self._checkout,
            env={**os.environ, **more},
            input=step.given,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise DeployError(f"{step.what}: `{step.as_typed()}` failed: {_last_words(ended)}; {step.hint}")

    # steps

    def _airflow_runs(self, at: Environment) -> Step:
        hint = f"whoever deploys needs roles/composer.user in {at.project!r}"
        if at.airflow.startswith("3"):
            hint += "; of an old gcloud that knows no Airflow 3, `gcloud components update` makes a newer one"
        return Step("Airflow's commands can be run there", self._airflow(at, "version"), hint)

    def _roles(self, config: DispatchConfig, at: Environment) -> Iterator[Step]:
        where = f"--project={config.project_id}"
        hint = f"whoever deploys needs roles/iam.roleAdmin in {config.project_id!r}"
        for role, file in ROLES.items():
            path = f"deploy/roles/{file}"
            wanted = _PERMISSION.findall((self._checkout / path).read_text())
            found = self._read("iam", "roles", "describe", role, where)
            if found is not None and found.get("deleted"):
                yield Step(f"role {role} back from the bin", ["gcloud", "iam", "roles", "undelete", role, where], hint)
            same = found is not None and sorted(found.get("includedPermissions", ())) == sorted(wanted)
            verb = "create" if found is None else "update"
            command = ["gcloud", "iam", "roles", verb, role, where, f"--file={path}", "--quiet"]
            yield Step(f"role {role}", command, hint, done="it has these permissions" if same else "")

    def _bindings(self, config: DispatchConfig, at: Environment) -> Iterator[Step]:
        member = f"--member=serviceAccount:{at.account}"
        roles = f"--role=projects/{config.project_id}/roles"
        folders = (_bucket(url) for url in (config.async_task_url, config.journal_url, config.error_url))
        bound = {bucket: f"{roles}/bqdispatchFolders" for bucket in folders}
        bound[config.trigger_bucket or ""] = f"{roles}/bqdispatchTrigger"
        if config.url and config.url.startswith("gs://"):
            bound.setdefault(_bucket(config.url), "--role=roles/storage.legacyObjectReader")
        for bucket, role in bound.items():
            command = ["gcloud", "storage", "buckets", "add-iam-policy-binding", f"gs://{bucket}", member, role]
            command += ["--condition=None"]
            hint = (
                f"the bucket has to be there, and whoever deploys needs storage.buckets.setIamPolicy on gs://{bucket}"
            )
            yield Step(f"the account's rights on gs://{bucket}", command, hint)
        command = ["gcloud", "projects", "add-iam-policy-binding", str(config.project_id), member]
        command += [f"{roles}/bqdispatchJobs", "--condition=None"]
        hint = f"whoever deploys needs roles/resourcemanager.projectIamAdmin in {config.project_id!r}"
        yield Step(f"the account's rights on jobs of {config.project_id}", command, hint)

    def _package(self, at: Environment) -> Iterator[Step]:
        wheel = f"dist/{PACKAGE.replace('-', '_')}-{__version__}-py3-none-any.whl"
        yield Step(
            "the wheel", ["uv", "build", "--wheel", "--quiet", "--out-dir=dist"], "see that pyproject.toml is there"
        )
        where = [f"--location={at.location}", f"--project={at.project}"]
        registry = ["gcloud", "artifacts", "repositories"]
        hint = f"whoever deploys needs roles/artifactregistry.admin in {at.project!r}"
        found = self._read("artifacts", "repositories", "describe", REPOSITORY, *where)
        if found is not None and found.get("format") != "PYTHON":
            raise DeployError(
                f"repository {REPOSITORY!r} in {at.location!r} is of format {found.get('format')}, not PYTHON"
            )
        yield Step(
            "a repository of Python packages",
            [*registry, "create", REPOSITORY, "--repository-format=python", *where],
            hint,
            done="it is there" if found else "",
        )
        member = f"--member=serviceAccount:{at.account}"
        command = [
            *registry,
            "add-iam-policy-binding",
            REPOSITORY,
            *where,
            member,
            "--role=roles/artifactregistry.reader",
        ]
        yield Step("the account reads the repository", command, hint)
        url = f"https://{at.location}-python.pkg.dev/{at.project}/{REPOSITORY}/"
        yield Step(
            f"{PACKAGE} {__version__} in the repository",
            ["uv", "publish", f"--publish-url={url}", "--username=oauth2accesstoken", "--quiet", wheel],
            hint,
            done=self._uploaded(wheel, where),
            token=True,
        )
        yield self._pip_conf(at, f"{url}simple/")
        wanted = f"=={__version__}"
        yield Step(
            "the environment has the package (this takes minutes)",
            self._composer(at, "update", at.name, f"--update-pypi-package={PACKAGE}{wanted}"),
            "the environment goes on with the packages that it had; its build's log says what does not go together",
            done="it has this version" if at.packages.get(PACKAGE) == wanted else "",
        )

    def _uploaded(self, wheel: str, where: Sequence[str]) -> str:
        """Why the wheel need not be uploaded; a version can be uploaded once only."""
        listed = [f"--repository={REPOSITORY}", f"--package={PACKAGE}", f"--version={__version__}", *where]
        files = [file for file in self._read("artifacts", "files", "list", *listed) or () if ".whl" in file["name"]]
        if not files or self._dry:
            return "it is there, if it is the same" if files else ""
        digest = hashlib.sha256((self._checkout / wheel).read_bytes())
        same = {digest.hexdigest(), base64.b64encode(digest.digest()).decode()}
        if any(each.get("value") in same for file in files for each in file.get("hashes", ())):
            return "it is there"
        raise DeployError(
            f"{PACKAGE} {__version__} is in the repository with other content, and a version cannot be replaced: raise "
            "__version__ in bqdispatch_provider/__init__.py"
        )

    def _pip_conf(self, at: Environment, index: str) -> Step:
        """The environment's pip.conf, with the repository added to what stands there."""
        url = f"{at.bucket}/config/pip/pip.conf"
        there = self._read("storage", "objects", "describe", url)
        conf = configparser.RawConfigParser()
        if there is not None:
            conf.read_string(self._said("storage", "cat", url))
        if not conf.has_section("global"):
            conf.add_section("global")
        indexes = conf.get("global", "extra-index-url", fallback="").split()
        known = index in [*indexes, conf.get("global", "index-url", fallback="")]
        conf.set("global", "extra-index-url", "\n".join([*indexes, index]))
        written = io.StringIO()
        conf.write(written)
        generation = there["generation"] if there is not None else 0
        return Step(
            "pip.conf names the repository",
            ["gcloud", "storage", "cp", "-", url, f"--if-generation-match={generation}"],
            "whoever deploys needs storage.objects.create and .delete on the environment's bucket",
            done="it does" if known else "",
            given=written.getvalue(),
        )

    def _variables(self, config: DispatchConfig, at: Environment) -> Step:
        """Connection and slots, as environment variables: the same for every version, and no secret among them."""
        limits = dict(zip(self._setup.slots, (config.max_concurrent_sql, config.max_concurrent_jobs), strict=True))
        connection = {"conn_type": "bqdispatch", "extra": self._connection}
        wanted = {
            self._setup.conn_variable: json.dumps(connection),
            **{name: str(each) for name, each in limits.items() if each},
        }
        gone = [name for name, each in limits.items() if not each and name in at.variables]
        changed = {name: value for name, value in wanted.items() if at.variables.get(name) != value}
        mark = next(each for each in "|~#@!" if not any(each in value for value in wanted.values()))
        pairs = mark.join(f"{name}={value}" for name, value in changed.items())
        updates = [f"--update-env-variables=^{mark}^{pairs}"] if changed else []
        updates += [f"--remove-env-variables={','.join(gone)}"] if gone else []
        return Step(
            "connection and slots (this takes minutes)",
            self._composer(at, "update", at.name, *updates),
            "only one update of an environment runs at a time: try again once it is RUNNING",
            done="" if updates else "they are set",
        )

    def _slots(self, at: Environment) -> Iterator[Step]:
        for name, pool in self._pools.items():
            command = self._airflow(at, "pools", "set", "--", name, str(pool["slots"]), pool["description"])
            yield Step(f"pool {name}", command, "Airflow's own message above says what it did not take")

    def _dag(self, at: Environment) -> Step:
        """The sample DAG's file, or one of a line for a set-up with a name."""
        hint = "whoever deploys needs roles/composer.user, and storage.objects.create on the environment's bucket"
        if self._setup.name is None:
            command = self._composer(at, "storage", "dags", "import", "--source=dags/bqdispatch.py")
            return Step("the DAG", command, hint)
        url = f"{at.bucket}/dags/{self._setup.dag_id}.py"
        return Step("the DAG", ["gcloud", "storage", "cp", "-", url], hint, given=self._setup.dag_file)

    # commands

    def _composer(self, at: Environment, *arguments: str) -> list[str]:
        where = [f"--location={at.location}", f"--project={at.project}"]
        named = [f"--environment={at.name}"] if arguments[0] == "storage" else []
        return ["gcloud", "composer", "environments", *arguments, *named, *where]

    def _airflow(self, at: Environment, *arguments: str) -> list[str]:
        where = [f"--location={at.location}", f"--project={at.project}"]
        return ["gcloud", "composer", "environments", "run", at.name, *where, *arguments]

    def _read(self, *arguments: str) -> Any:
        """What gcloud tells of something, ``None`` when there is no such thing."""
        ended = self._ask(*arguments, "--format=json")
        if ended.returncode and _NOT_FOUND.search(ended.stderr):
            return None
        if ended.returncode:
            raise DeployError(f"`{shlex.join(['gcloud', *arguments])}` failed: {_last_words(ended)}")
        try:
            return json.loads(ended.stdout)
        except ValueError as error:
            raise DeployError(f"`{shlex.join(['gcloud', *arguments])}` answered with no JSON: {error}") from error

    def _said(self, *arguments: str) -> str:
        ended = self._ask(*arguments)
        if ended.returncode:
            raise DeployError(f"`{shlex.join(['gcloud', *arguments])}` failed: {_last_words(ended)}")
        return ended.stdout.strip()

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603  (no shell)
            [self._gcloud, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )


def _program(name: str, how: str) -> str:
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name) or shutil.which(name, path=beside)
    if found is None:
        raise DeployError(f"there is no {name} here: {how}")
    return found


def _bucket(url: str) -> str:
    return url.removeprefix("gs://").partition("/")[0]


def _last_words(ended: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (ended.stderr or ended.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return " ".join(errors or lines[-3:])[:1000] or f"it said nothing, and ended with {ended.returncode}"
