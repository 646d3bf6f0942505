"""Steps that put the wheel into an index from which the environment takes all its packages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from bqdispatch_provider.commands.composer import Environment
from bqdispatch_provider.commands.gcloud import DeployError, Gcloud, Step, bound_roles, member_of, printf_command
from bqdispatch_provider.commands.packages import MAX_PIP_CONF_BYTES, PACKAGE, PipConf, Wheel
from bqdispatch_provider.names import shell_joined, shell_quoted

REPOSITORY, PROXY, INDEX = "bqdispatch", "bqdispatch-pypi", "bqdispatch-index"
"""Repositories of Artifact Registry: one for the wheel, a proxy of PyPI, and an index of both."""

_PRIORITIES = {REPOSITORY: 100, PROXY: 10}
"""Priorities in the index. A version that is in both repositories comes from the one with the higher priority."""

_MODES = {REPOSITORY: "standard", PROXY: "remote", INDEX: "virtual"}
_UPSTREAMS = "--upstream-policy-file=/dev/stdin"
_EXISTS = "exists"


class PackageIndex:
    """The index of an environment, with the wheel in it.

    With a second index beside the public one, anybody could publish a wheel of this name that wins: pip takes the best
    one, from wherever. An index of Artifact Registry takes a version from the repository with the higher priority.

    :param gcloud: to look at what exists.
    :param wheel: the wheel to upload.
    :param environment: the environment.
    :param dry_run: nothing is changed, so a wheel that has to be built or downloaded does not exist.
    """

    def __init__(self, gcloud: Gcloud, wheel: Wheel, environment: Environment, *, dry_run: bool) -> None:
        self._gcloud, self._wheel, self._environment, self._dry_run = gcloud, wheel, environment, dry_run
        self._hint = f"you need roles/artifactregistry.admin in {environment.project!r}"
        self._host = f"https://{environment.location}-python.pkg.dev/{environment.project}"

    def steps(self) -> Iterator[Step]:
        """Yield the steps. Each looks at what exists once those before it are done.

        :raises DeployError: if something is in the way.
        """
        wheel = self._wheel
        if wheel.to_build:
            yield Step("build the wheel", ["make", "--silent", "dist", "DIST=dist"], "run `make setup` first")
        if wheel.url:
            yield self._download()
        yield self._repository(REPOSITORY, "for the package")
        command = ["uv", "publish", f"--publish-url={self._host}/{REPOSITORY}/", "--username=oauth2accesstoken"]
        command += ["--quiet", str(wheel.file)]
        title = f"upload {PACKAGE} {wheel.version}"
        yield Step(title, command, self._hint, done=self._uploaded(), needs_token=True)
        yield self._repository(PROXY, "a proxy of PyPI")
        yield self._repository(INDEX, "an index of both, in which the first goes before PyPI")
        yield self._reader()
        yield self._pip_conf(f"{self._host}/{INDEX}/simple/")

    def _download(self) -> Step:
        secrets, command = self._wheel.secrets, ["pip", "download", "--quiet", "--no-deps", "--dest=dist"]
        step = Step("download the wheel", [*command, self._wheel.url], "check the URL and the hash", secrets=secrets)
        if not secrets:
            return step
        (credentials,) = secrets
        typed = shell_joined([*command, self._wheel.url.replace(credentials, "…")])
        return replace(step, typed=typed, notes=["where it says … below, put in the credentials before you type this"])

    def _repository(self, name: str, purpose: str) -> Step:
        where, commands = self._environment.where, ["gcloud", "artifacts", "repositories"]
        title = f"repository {name}: {purpose}"
        path = f"projects/{self._environment.project}/locations/{self._environment.location}/repositories"
        upstreams = [{"id": id, "repository": f"{path}/{id}", "priority": each} for id, each in _PRIORITIES.items()]
        stdin = json.dumps(upstreams) if name == INDEX else ""
        found = self._gcloud.describe("artifacts", "repositories", "describe", name, *where)
        if found is None:
            more = {
                REPOSITORY: [],
                PROXY: ["--mode=remote-repository", "--remote-python-repo=PYPI"],
                INDEX: ["--mode=virtual-repository", _UPSTREAMS],
            }[name]
            create = [*commands, "create", name, "--repository-format=python", *more, *where]
            return Step(title, create, self._hint, stdin=stdin)
        self._check_kind(name, found)
        policies = found.get("virtualRepositoryConfig", {}).get("upstreamPolicies", [])
        known = {(str(each.get("repository")), int(each.get("priority", 0))) for each in policies}
        if name == INDEX and known != {(each["repository"], each["priority"]) for each in upstreams}:
            notes = [f"{upstream} with priority {priority} goes" for upstream, priority in sorted(known)]
            return Step(title, [*commands, "update", name, _UPSTREAMS, *where], self._hint, stdin=stdin, notes=notes)
        return Step(title, [], done=_EXISTS)

    def _check_kind(self, name: str, found: Any) -> None:
        """Refuse a repository of the same name that is of another kind.

        :raises DeployError: if it is.
        """
        mode = str(found.get("mode", "")).partition("_")[0].lower() or "standard"
        proxied = found.get("remoteRepositoryConfig", {}).get("pythonRepository", {}).get("publicRepository")
        if found.get("format") != "PYTHON" or mode != _MODES[name] or (name == PROXY and proxied != "PYPI"):
            raise DeployError(
                f"repository {name!r} in {self._environment.location!r} is a {mode} repository of format "
                f"{found.get('format')}{f' for {proxied}' if proxied else ''}; expected a {_MODES[name]} one of PYTHON"
                f"{' for PYPI' if name == PROXY else ''}: move it out of the way"
            )

    def _uploaded(self) -> str:
        """Return why the wheel need not be uploaded; a version can be uploaded only once."""
        wheel = self._wheel
        query = [f"--repository={REPOSITORY}", f"--package={PACKAGE}", f"--version={wheel.version}"]
        listed = self._gcloud.describe("artifacts", "files", "list", *query, *self._environment.where) or ()
        files = [file for file in listed if ".whl" in file["name"]]
        if self._dry_run and (wheel.to_build or wheel.url):
            return f"{_EXISTS}, if it is the same" if files else ""
        try:
            digests = wheel.verify()
        except ValueError as error:
            raise DeployError(f"the wheel is not what was asked for: {error}") from error
        # Of several wheels of one version, pip takes whichever has the higher build tag.
        if not all(any(each.get("value") in digests for each in file.get("hashes", ())) for file in files):
            raise DeployError(
                f"{PACKAGE} {wheel.version} is in the repository with other content, and a version cannot be replaced: "
                "raise __version__ in bqdispatch_provider/__init__.py"
            )
        return _EXISTS if files else ""

    def _reader(self) -> Step:
        account, role, where = self._environment.account, "roles/artifactregistry.reader", self._environment.where
        policy = self._gcloud.iam_policy("artifacts", "repositories", "get-iam-policy", INDEX, *where)
        member, bound = member_of(account), bound_roles(policy, account)
        command = ["gcloud", "artifacts", "repositories", "add-iam-policy-binding", INDEX, *where]
        command += [f"--member={member}", f"--role={role}"]
        return Step(
            "the account's role on the index", command, self._hint, "already granted" if (role, None) in bound else ""
        )

    def _pip_conf(self, index: str) -> Step:
        """Add the index to the environment's pip.conf, which may name no other source of packages."""
        url, generation, text = _read_pip_conf(self._gcloud, self._environment)
        try:
            conf = PipConf(text)
            done = conf.uses(index)
            after, added = (0, "") if done else conf.insertion(index)
        except ValueError as error:
            published = ""
            with suppress(ValueError):
                PipConf(text).check_own_index()
                published = (
                    f" Or, if the environment's own index has this version, and nobody else may publish {PACKAGE} "
                    "there, deploy with --published"
                )
            raise DeployError(f"{url} {error}, so this command does not change it. Remove that.{published}") from None
        command = ["gcloud", "storage", "cp", "-", url, f"--if-generation-match={generation}"]
        step = Step(
            "index-url in pip.conf",
            command,
            "you need storage.objects.create and .delete there",
            done="already set" if done else "",
            stdin="" if done else conf.with_index(index),
        )
        if not text:
            return step
        # The text may hold passwords, so a dry run edits what is there.
        cat = shell_joined(["gcloud", "storage", "cat", url])
        script = f'{{ print }} NR == {after} {{ printf "%s", {json.dumps(added)} }}'
        typed = f"{cat} | awk {shell_quoted(script)}" if after else f"{{ {cat}; {printf_command(added)}; }}"
        return replace(step, typed=f"{typed} | {shell_joined(command)}", secrets=conf.secrets)


def check_own_index(gcloud: Gcloud, environment: Environment) -> None:
    """Check that the environment takes all its packages from one index of its own, for a package that is there.

    :param gcloud: to look at what exists.
    :param environment: the environment.
    :raises DeployError: if a wheel of this name could come from elsewhere.
    """
    url, _, text = _read_pip_conf(gcloud, environment)
    try:
        PipConf(text).check_own_index()
    except ValueError as error:
        unpublished = ""
        with suppress(ValueError):
            PipConf(text).uses("none")  # so it names no source at all
            unpublished = ", or deploy without --published"
        raise DeployError(
            f"{url} {error}, so pip could install a stranger's {PACKAGE}: let it set index-url and no other source of "
            "packages, with an index of yours that also passes on what PyPI has and where nobody else may publish that "
            f"name{unpublished}"
        ) from None


def _read_pip_conf(gcloud: Gcloud, environment: Environment) -> tuple[str, int, str]:
    """Return the URL, the generation and the text of the environment's pip.conf; 0 and no text if there is none."""
    url = f"{environment.bucket}/config/pip/pip.conf"
    there = gcloud.describe("storage", "objects", "describe", url)
    if not there:
        return url, 0, ""
    if int(there.get("size") or 0) > MAX_PIP_CONF_BYTES:
        raise DeployError(f"{url} has more than {MAX_PIP_CONF_BYTES:,} bytes: look at it, and make it shorter")
    return url, int(there["generation"]), gcloud.output("storage", "cat", url).decode(errors="surrogateescape")


def find_wheel(given: str | None) -> Wheel:
    """Return the wheel to deploy.

    :param given: path or URL; ``None``: the wheel is built here.
    :raises DeployError: if there is none, or it is not of this package.
    """
    try:
        wheel = Wheel.parse(given) if given is not None else Wheel.from_checkout()
    except ValueError as error:
        raise DeployError(f"--wheel: {error}") from error
    if wheel is None:
        raise DeployError(
            f"this folder is no checkout of {PACKAGE}, where the wheel could be built: give --wheel, a path or a URL "
            "with #sha256=…, or --published if the environment's own index has it"
        )
    return wheel
