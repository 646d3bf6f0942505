"""``bqdispatch deploy composer``: what an environment of Cloud Composer 3 needs, one command after the other.

Each step looks first whether it is done already, so the whole may be run again at any time: after a change of the
configuration, with a new version, or where it has stopped. All of them are commands that could be typed, and a dry run
prints them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from bqdispatch_provider import __version__
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.connection import renewed
from bqdispatch_provider.names import in_one_line
from bqdispatch_provider.packages import PACKAGE, PipConf, Wheel
from bqdispatch_provider.rights import ROLES, Condition, Grant, Rights, title_of
from bqdispatch_provider.setups import SetUp

REPOSITORY, PROXY, INDEX = "bqdispatch", "bqdispatch-pypi", "bqdispatch-index"
"""Repositories of Artifact Registry: the wheel's, one that passes on what PyPI has, and both as one index."""

_PRIORITIES = {REPOSITORY: 100, PROXY: 10}
"""In the index: the higher one has a version that is in both."""

_LEAST_AIRFLOW = (2, 11)
_IMAGE = re.compile(r"composer-(?P<composer>\d+)[^ ]*-airflow-(?P<airflow>\d+\.\d+(\.\d+)?)")
_NOT_FOUND = re.compile(r"not[ _]found|\b404\b|does not exist", re.IGNORECASE)
_PROGRAMS = {
    "gcloud": "install the Google Cloud CLI",
    "uv": "pip install uv",
    "make": "install make, or give --wheel",
    "pip": "install pip, or download the wheel, and give --wheel its path",
}


class DeployError(Exception):
    """A step that went wrong: which, what was said, and what to do."""


@dataclass(frozen=True)
class Environment:
    """An environment of Cloud Composer, as ``gcloud composer environments describe`` tells of it.

    :param name: its name.
    :param location: its region.
    :param project: its project.
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

        :param described: gcloud's answer.
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
    :param notes: what changes by it, a line each.
    :param typed: what to type instead, where the command or its input holds what must not be shown.
    :param hidden: what must not be shown of what the command says, either.
    """

    what: str
    command: Sequence[str]
    hint: str = ""
    done: str = ""
    given: str = ""
    token: bool = False
    notes: Sequence[str] = ()
    typed: str = ""
    hidden: Sequence[str] = ()

    def as_typed(self) -> str:
        """Return the command for a shell."""
        before = f"printf %s {shlex.quote(self.given)} | " if self.given else ""
        before += 'UV_PUBLISH_PASSWORD="$(gcloud auth print-access-token)" ' if self.token else ""
        return self.typed or before + shlex.join(self.command)

    def as_comment(self) -> str:
        """Return what it is and what changes, as comments for a shell."""
        first = f"{self.what}: {self.done}" if self.done else self.what
        return "\n".join(f"# {in_one_line(line)}" for line in (first, *(f"  {note}" for note in self.notes)))


class Deployment:
    """A deployment to one environment.

    :param config: the configuration, as it is.
    :param connection: what is wanted in the connection's extra.
    :param pools: to be set, as ``airflow pools import`` reads them.
    :param setup: which of several in that Airflow; by default the one without a name.
    :param project: of the environment; by default gcloud's.
    :param wheel: path or URL of the wheel, as pip takes it; by default it is built, in a checkout of the project.
    :param published: take the package from where the environment gets its packages, and upload nothing.
    :param rights: what the account is to be granted, once the project is known; ``None``: nothing.
    :param dry: change nothing.
    :raises DeployError: if the wheel cannot be used, or a program is missing.
    """

    def __init__(
        self,
        config: DispatchConfig,
        connection: Mapping[str, Any],
        pools: Mapping[str, Mapping[str, Any]],
        *,
        setup: SetUp | None = None,
        project: str | None = None,
        wheel: str | None = None,
        published: bool = False,
        rights: Callable[[DispatchConfig], Rights] | None = None,
        dry: bool = False,
    ) -> None:
        self._given, self._connection, self._pools = config, connection, pools
        self._setup, self._project, self._rights, self._dry = setup or SetUp(), project, rights, dry
        self._wheel = None if published else _wheel(wheel)
        self._builds = wheel is None and not published
        needed = {"gcloud"}
        if self._wheel is not None:
            needed |= {"uv", *(["make"] if self._builds else []), *(["pip"] if self._wheel.url else [])}
        self._programs = {name: _program(name) for name in sorted(needed)}

    def look(self, name: str, location: str) -> Environment:
        """Return the environment as it is.

        :param name: its name.
        :param location: its region.
        :raises DeployError: when it cannot be deployed to.
        """
        hint = f"`gcloud composer environments list --locations={location}` lists those that are there"
        in_project = [f"--project={self._project}"] if self._project else []
        described = self._read("composer", "environments", "describe", name, f"--location={location}", *in_project)
        if described is None:
            raise DeployError(f"there is no environment {name!r} in {location!r}: {hint}")
        return Environment.of(described)

    def steps(self, at: Environment) -> Iterator[Step]:
        """Yield what is to be done, in this order; each step is looked at once those before it are done.

        :param at: the environment.
        """
        config = self._given.for_project(at.project)
        yield self._airflow_runs(at)
        if self._rights is not None:
            rights = self._rights(config)
            yield from self._roles(rights)
            yield from self._bindings(rights, at)
        if self._wheel is not None:
            yield from self._index(self._wheel, at)
        yield self._package(at)
        yield self._variables(config, at)
        yield from self._slots(at)
        yield self._dag(at)

    def run(self, step: Step) -> None:
        """Carry out a step.

        :param step: one of :meth:`steps`.
        :raises DeployError: when it fails.
        """
        more = {"UV_PUBLISH_PASSWORD": self._said("auth", "print-access-token").decode().strip()} if step.token else {}
        ended = subprocess.run(  # noqa: S603  (no shell)
            [self._programs[step.command[0]], *step.command[1:]],
            env={**os.environ, **more},
            input=step.given.encode(errors="surrogateescape"),
            capture_output=True,
            check=False,
        )
        if ended.returncode:
            said = _last_words(ended.returncode, ended.stderr or ended.stdout, step.hidden)
            raise DeployError(f"{step.what}: `{step.as_typed()}` failed: {said}; {step.hint}")

    # steps

    def _airflow_runs(self, at: Environment) -> Step:
        hint = f"whoever deploys needs roles/composer.user in {at.project!r}"
        if at.airflow.startswith("3"):
            hint += "; of an old gcloud that knows no Airflow 3, `gcloud components update` makes a newer one"
        return Step("Airflow's commands can be run there", self._airflow(at, "version"), hint)

    def _roles(self, rights: Rights) -> Iterator[Step]:
        several = len({project for project, _ in rights.roles}) > 1
        for project, role in rights.roles:
            where, wanted = f"--project={project}", ROLES[role]
            what = f"role {role}{f' in {project}' if several else ''}"
            hint = f"whoever deploys needs roles/iam.roleAdmin in {project!r}"
            found = self._read("iam", "roles", "describe", role, where)
            if found is not None and found.get("deleted"):
                yield Step(f"{what} back from the bin", ["gcloud", "iam", "roles", "undelete", role, where], hint)
            texts = {"title": wanted.title, "description": wanted.description, "stage": "GA"}
            same = found is not None and sorted(found.get("includedPermissions", ())) == sorted(wanted.permissions)
            same = same and found is not None and all(found.get(key) == text for key, text in texts.items())
            verb = "create" if found is None else "update"
            command = ["gcloud", "iam", "roles", verb, role, where, *(f"--{key}={text}" for key, text in texts.items())]
            command += [f"--permissions={','.join(wanted.permissions)}", "--quiet"]
            yield Step(what, command, hint, done="it has these permissions" if same else "")

    def _bindings(self, rights: Rights, at: Environment) -> Iterator[Step]:
        member = f"serviceAccount:{at.account}"
        for bucket in dict.fromkeys(each.bucket for each in rights.grants if each.bucket):
            url = f"gs://{bucket}"
            commands = ["gcloud", "storage", "buckets"]
            hint = f"the bucket has to be there, and whoever deploys needs storage.buckets.setIamPolicy on {url}"
            there = self._bound(member, "storage", "buckets", "get-iam-policy", url)
            wanted = [each for each in rights.grants if each.bucket == bucket]
            for grant in wanted:
                command = [*commands, "add-iam-policy-binding", url, *_binding(member, grant.role, grant.condition)]
                done = "it has them" if (grant.role, grant.condition) in there else ""
                yield Step(f"the account's rights on {url}", command, hint, done)
            for role, condition, kept in self._superseded(there, wanted, at):
                command = [*commands, "remove-iam-policy-binding", url, *_binding(member, role, condition)]
                which = "with an older condition" if condition else "without a condition"
                what = f"the account no longer has {role.rpartition('/')[2]} {which} on {url}"
                yield Step(what, command, hint, kept)
        for project in (each.project for each in rights.grants if each.project):
            there = self._bound(member, "projects", "get-iam-policy", project)
            (role,) = (each.role for each in rights.grants if each.project == project)
            command = ["gcloud", "projects", "add-iam-policy-binding", project, *_binding(member, role, None)]
            hint = f"whoever deploys needs roles/resourcemanager.projectIamAdmin in {project!r}"
            done = "it has them" if (role, None) in there else ""
            yield Step(f"the account's rights on jobs of {project}", command, hint, done)

    def _superseded(
        self, there: Sequence[tuple[str, Condition | None]], wanted: Sequence[Grant], at: Environment
    ) -> Iterator[tuple[str, Condition | None, str]]:
        """Yield each binding that this set-up made before, or that undoes a condition, and why it is kept."""
        conditions = [each.condition for each in wanted if each.condition]
        title = title_of(self._setup)
        named = r"AIRFLOW_CONN_BQDISPATCH_\w+"
        others = [name for name in at.variables if re.fullmatch(named, name) and name != self._setup.conn_variable]
        for role, condition in there:
            if condition is not None and condition.title == title and condition not in conditions:
                yield role, condition, ""
            if condition is None and role in {each.without for each in wanted if each.condition}:
                shared = f"not yet: {', '.join(sorted(others))} may need it, until deployed with --by-prefix too"
                yield role, None, shared if others else ""

    def _bound(self, member: str, *arguments: str) -> list[tuple[str, Condition | None]]:
        """Roles that a member has somewhere, with their conditions."""
        policy = self._read(*arguments) or {}
        return [
            (each["role"], Condition(found.get("title", ""), found["expression"]) if found else None)
            for each in policy.get("bindings", ())
            for found in [each.get("condition")]
            if member in each.get("members", ())
        ]

    def _index(self, wheel: Wheel, at: Environment) -> Iterator[Step]:
        """The wheel, in an index from which the environment takes all packages.

        A second index beside the public one would let anybody's wheel of this name win: pip takes the best, from
        wherever. An index of Artifact Registry takes a version from where it has the higher priority.
        """
        if self._builds:
            yield Step(
                "the wheel", ["make", "--silent", "dist", "DIST=dist"], "`make setup` makes what it is built with"
            )
        if wheel.url:
            command = ["pip", "download", "--quiet", "--no-deps", "--dest=dist", wheel.url]
            yield Step("the wheel", command, "see that the URL and the hash are right")
        where = [f"--location={at.location}", f"--project={at.project}"]
        hint = f"whoever deploys needs roles/artifactregistry.admin in {at.project!r}"
        yield from self._repository(REPOSITORY, "a repository of Python packages", at, hint)
        host = f"https://{at.location}-python.pkg.dev/{at.project}"
        command = ["uv", "publish", f"--publish-url={host}/{REPOSITORY}/", "--username=oauth2accesstoken", "--quiet"]
        yield Step(
            f"{PACKAGE} {wheel.version} in the repository",
            [*command, str(wheel.file)],
            hint,
            done=self._uploaded(wheel, where),
            token=True,
        )
        yield from self._repository(PROXY, "a repository that passes on what PyPI has", at, hint)
        yield from self._repository(INDEX, "an index of both, in which the first one goes before PyPI", at, hint)
        member, role = f"serviceAccount:{at.account}", "roles/artifactregistry.reader"
        bound = self._bound(member, "artifacts", "repositories", "get-iam-policy", INDEX, *where)
        command = ["gcloud", "artifacts", "repositories", "add-iam-policy-binding", INDEX, *where]
        command += [f"--member={member}", f"--role={role}"]
        yield Step("the account reads the index", command, hint, "it does" if (role, None) in bound else "")
        yield self._pip_conf(at, f"{host}/{INDEX}/simple/")

    def _repository(self, name: str, what: str, at: Environment, hint: str) -> Iterator[Step]:
        where = [f"--location={at.location}", f"--project={at.project}"]
        command = ["gcloud", "artifacts", "repositories"]
        mode = {REPOSITORY: "standard", PROXY: "remote", INDEX: "virtual"}[name]
        more = {
            REPOSITORY: [],
            PROXY: ["--mode=remote-repository", "--remote-python-repo=PYPI"],
            INDEX: ["--mode=virtual-repository", "--upstream-policy-file=/dev/stdin"],
        }[name]
        path = f"projects/{at.project}/locations/{at.location}/repositories"
        upstreams = [{"id": id, "repository": f"{path}/{id}", "priority": each} for id, each in _PRIORITIES.items()]
        given = json.dumps(upstreams) if name == INDEX else ""
        found = self._read("artifacts", "repositories", "describe", name, *where)
        if found is None:
            create = [*command, "create", name, "--repository-format=python", *more, *where]
            yield Step(what, create, hint, given=given)
            return
        is_mode = str(found.get("mode", "")).partition("_")[0].lower() or "standard"
        proxied = found.get("remoteRepositoryConfig", {}).get("pythonRepository", {}).get("publicRepository")
        if found.get("format") != "PYTHON" or is_mode != mode or (name == PROXY and proxied != "PYPI"):
            is_it = f"{is_mode} repository of format {found.get('format')}{f' for {proxied}' if proxied else ''}"
            wanted = f"{mode} one of PYTHON{' for PYPI' if name == PROXY else ''}"
            raise DeployError(
                f"repository {name!r} in {at.location!r} is a {is_it}; expected a {wanted}: move it out of the way"
            )
        policies = found.get("virtualRepositoryConfig", {}).get("upstreamPolicies", [])
        known = {(str(each.get("repository")), int(each.get("priority", 0))) for each in policies}
        if name == INDEX and known != {(each["repository"], each["priority"]) for each in upstreams}:
            notes = [f"{upstream} with priority {priority} goes" for upstream, priority in sorted(known)]
            update = [*command, "update", name, more[1], *where]
            yield Step(what, update, hint, given=given, notes=notes)
            return
        yield Step(what, [], done="it is there")

    def _uploaded(self, wheel: Wheel, where: Sequence[str]) -> str:
        """Say why the wheel need not be uploaded; a version can be uploaded once only."""
        listed = [f"--repository={REPOSITORY}", f"--package={PACKAGE}", f"--version={wheel.version}", *where]
        files = [file for file in self._read("artifacts", "files", "list", *listed) or () if ".whl" in file["name"]]
        if self._dry and (self._builds or wheel.url):
            return "it is there, if it is the same" if files else ""
        try:
            same = wheel.digests()
        except ValueError as error:
            raise DeployError(f"the wheel is not what was asked for: {error}") from error
        # Of several wheels of one version, pip takes whichever has the higher build tag.
        if not all(any(each.get("value") in same for each in file.get("hashes", ())) for file in files):
            raise DeployError(
                f"{PACKAGE} {wheel.version} is in the repository with other content, and a version cannot be replaced: "
                "raise __version__ in bqdispatch_provider/__init__.py"
            )
        return "it is there" if files else ""

    def _pip_conf(self, at: Environment, index: str) -> Step:
        """Add the index to the environment's pip.conf, in which nothing else may say where packages come from."""
        url = f"{at.bucket}/config/pip/pip.conf"
        what, hint = "pip.conf names the index", "whoever deploys needs storage.objects.create and .delete there"
        there = self._read("storage", "objects", "describe", url)
        text = self._said("storage", "cat", url).decode(errors="surrogateescape") if there is not None else ""
        try:
            conf = PipConf(text)
            known = conf.names(index)
            after, added = (0, "") if known else conf.line_for(index)
        except ValueError as error:
            raise DeployError(
                f"{url} {error}, so this command leaves it alone. Change that; or, where the environment's own index "
                f"has this version, and nobody else may publish {PACKAGE} there, deploy with --published"
            ) from None
        generation = there["generation"] if there is not None else 0
        command = ["gcloud", "storage", "cp", "-", url, f"--if-generation-match={generation}"]
        step = Step(
            what, command, hint, done="it does" if known else "", given=conf.with_index(index) if not known else ""
        )
        if not text:
            return step
        cat = shlex.join(["gcloud", "storage", "cat", url])
        script = f'{{ print }} NR == {after} {{ printf "%s", {json.dumps(added)} }}'
        typed = f"{cat} | awk {shlex.quote(script)}" if after else f"{{ {cat}; printf %s {shlex.quote(added)}; }}"
        return replace(step, typed=f"{typed} | {shlex.join(command)}", hidden=conf.hidden)

    def _package(self, at: Environment) -> Step:
        wanted = f"=={self._wheel.version if self._wheel else __version__}"
        return Step(
            "the environment has the package (this takes minutes)",
            self._composer(at, "update", at.name, f"--update-pypi-package={PACKAGE}{wanted}"),
            "the environment goes on with the packages that it had; its build's log says what does not go together",
            done="it has this version" if at.packages.get(PACKAGE) == wanted else "",
        )

    def _variables(self, config: DispatchConfig, at: Environment) -> Step:
        """Connection and slots, as environment variables: the same for every version, and no secret among them."""
        name = self._setup.conn_variable
        try:
            connection = renewed(at.variables.get(name), self._connection)
        except ValueError as error:
            raise DeployError(
                f"{name} {error}, so it cannot be told what in it has to stay: set it, by --update-env-variables, to "
                '{"conn_type": "bqdispatch", "extra": {…}} with what has to stay (gcp_conn_id, impersonation_chain, '
                "subscription, quota_project_id), and deploy again; where nothing has to, take it out by "
                f"`{shlex.join(self._composer(at, 'update', at.name, f'--remove-env-variables={name}'))}`"
            ) from None
        limits = dict(zip(self._setup.slots, (config.max_concurrent_sql, config.max_concurrent_jobs), strict=True))
        wanted = {name: connection.value, **{slots: str(each) for slots, each in limits.items() if each}}
        gone = [slots for slots, each in limits.items() if not each and slots in at.variables]
        changed = {each: value for each, value in wanted.items() if at.variables.get(each) != value}
        shown = connection.changes if name in changed else ()
        secret = connection.hidden if name in changed else ()
        notes = [f"{name}: {change}" for change in shown]
        notes += [f"{name}: where it says … below, put in what is there before you type this"] if secret else []
        notes += [
            f"{each}: {at.variables[each]} becomes {changed.get(each, 'nothing')}"
            for each in self._setup.slots
            if each in at.variables and each in {*changed, *gone}
        ]
        step = Step(
            "connection and slots (this takes minutes)",
            self._updated(at, changed, gone),
            "only one update of an environment runs at a time: try again once it is RUNNING",
            done="" if changed or gone else "they are set",
            notes=notes,
            hidden=secret,
        )
        if not secret:
            return step
        return replace(step, typed=shlex.join(self._updated(at, {**changed, name: connection.shown}, gone)))

    def _updated(self, at: Environment, changed: Mapping[str, str], gone: Sequence[str]) -> list[str]:
        pairs = [f"{name}={value}" for name, value in changed.items()]
        updates = [f"--update-env-variables={_list_of(pairs)}"] if pairs else []
        updates += [f"--remove-env-variables={','.join(gone)}"] if gone else []
        return self._composer(at, "update", at.name, *updates)

    def _slots(self, at: Environment) -> Iterator[Step]:
        for name, pool in self._pools.items():
            command = self._airflow(at, "pools", "set", "--", name, str(pool["slots"]), pool["description"])
            yield Step(f"pool {name}", command, "Airflow's own message above says what it did not take")

    def _dag(self, at: Environment) -> Step:
        hint = "whoever deploys needs roles/composer.user, and storage.objects.create on the environment's bucket"
        url = f"{at.bucket}/dags/{self._setup.dag_id}.py"
        text = self._setup.dag_file
        there = self._read("storage", "objects", "describe", url)
        same = there is not None and self._said("storage", "cat", url).decode(errors="replace").strip() == text.strip()
        done = "it is there" if same else ""
        return Step("the DAG", ["gcloud", "storage", "cp", "-", url], hint, done, given=text)

    # commands

    def _composer(self, at: Environment, *arguments: str) -> list[str]:
        return [
            "gcloud",
            "composer",
            "environments",
            *arguments,
            f"--location={at.location}",
            f"--project={at.project}",
        ]

    def _airflow(self, at: Environment, *arguments: str) -> list[str]:
        where = [f"--location={at.location}", f"--project={at.project}"]
        return ["gcloud", "composer", "environments", "run", at.name, *where, *arguments]

    def _read(self, *arguments: str) -> Any:
        """Return what gcloud tells of something, ``None`` when there is no such thing."""
        ended = self._ask(*arguments, "--format=json")
        said = _last_words(ended.returncode, ended.stderr)
        if ended.returncode and _NOT_FOUND.search(said):
            return None
        if ended.returncode:
            raise DeployError(f"`{shlex.join(['gcloud', *arguments])}` failed: {said}")
        try:
            return json.loads(ended.stdout)
        except ValueError as error:
            raise DeployError(f"`{shlex.join(['gcloud', *arguments])}` answered with no JSON: {error}") from error

    def _said(self, *arguments: str) -> bytes:
        ended = self._ask(*arguments)
        if ended.returncode:
            said = _last_words(ended.returncode, ended.stderr)
            raise DeployError(f"`{shlex.join(['gcloud', *arguments])}` failed: {said}")
        return ended.stdout

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(  # noqa: S603  (no shell)
            [self._programs["gcloud"], *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )


def _wheel(given: str | None) -> Wheel:
    if given is None:
        if (built := Wheel.of_checkout()) is None:
            raise DeployError(
                f"this folder is no checkout of {PACKAGE}, where the wheel could be built: give --wheel, its path or "
                "its URL with #sha256=…, or --published if the environment's own index has it"
            )
        return built
    try:
        return Wheel.of(given)
    except ValueError as error:
        raise DeployError(f"--wheel: {error}") from error


def _program(name: str) -> str:
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name) or shutil.which(name, path=beside)
    if found is None:
        raise DeployError(f"there is no {name} here: {_PROGRAMS[name]}")
    return found


def _binding(member: str, role: str, condition: Condition | None) -> list[str]:
    limited = "None" if condition is None else _list_of([f"{key}={value}" for key, value in asdict(condition).items()])
    return [f"--member={member}", f"--role={role}", f"--condition={limited}"]


def _list_of(items: Sequence[str]) -> str:
    """Return a list as gcloud reads it, between delimiters that none of its items has (`gcloud topic escaping`)."""
    marks = chain(["|"], (f"|{number}|" for number in count()))
    mark = next(each for each in marks if each.join(items).split(each) == list(items))
    return f"^{mark}^{mark.join(items)}"


def _last_words(code: int, said: bytes, hidden: Iterable[str] = ()) -> str:
    text = said.decode(errors="replace")
    for each in sorted(hidden, key=len, reverse=True):
        text = text.replace(each, "…")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return " ".join(errors or lines[-3:])[:1000] or f"it said nothing, and ended with {code}"
