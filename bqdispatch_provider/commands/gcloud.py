"""``gcloud`` and the other programs that a deployment runs, and the steps that they carry out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, dropwhile, takewhile
from pathlib import Path
from typing import Any

from bqdispatch_provider.commands.rights import Condition
from bqdispatch_provider.names import in_one_line, shell_joined

_NOT_FOUND = re.compile(r"not[ _]found|HTTPError 404\b|does not exist", re.IGNORECASE)
"""Words with which gcloud does not find something. A name in a refusal may contain 404, but none of these."""

_HOW_TO_INSTALL = {
    "gcloud": "install the Google Cloud CLI",
    "uv": "pip install uv",
    "make": "install make, or give --wheel",
    "pip": "install pip, or download the wheel, and give --wheel its path",
}
_MAX_ERROR_CHARS = 1000


class DeployError(Exception):
    """A failed step. The message says which step, what the program printed, and what to do."""


class _NotFound(DeployError):
    """Something that gcloud does not find."""


@dataclass(frozen=True)
class Step:
    """One part of a deployment, and the command that brings it about.

    :param title: the part, in a few words.
    :param command: program and arguments.
    :param hint: what to do when the command fails.
    :param done: why nothing is left to do; empty: the command has to run.
    :param stdin: standard input of the command.
    :param needs_token: give it gcloud's access token as ``UV_PUBLISH_PASSWORD``.
    :param notes: what changes, a line each.
    :param typed: the command for a dry run, when the command itself or its input holds secrets.
    :param secrets: texts that no message may show, even when the command prints them.
    """

    title: str
    command: Sequence[str]
    hint: str = ""
    done: str = ""
    stdin: str = ""
    needs_token: bool = False
    notes: Sequence[str] = ()
    typed: str = ""
    secrets: Sequence[str] = ()

    def as_typed(self) -> str:
        """Return the command for a shell."""
        stdin = f"{printf_command(self.stdin)} | " if self.stdin else ""
        token = 'UV_PUBLISH_PASSWORD="$(gcloud auth print-access-token)" ' if self.needs_token else ""
        return self.typed or stdin + token + shell_joined(self.command)

    def as_comment(self) -> str:
        """Return the title and what changes, as comments for a shell."""
        title = f"{self.title}: {self.done}" if self.done else self.title
        return "\n".join(f"# {in_one_line(line)}" for line in (title, *(f"  {note}" for note in self.notes)))


class Gcloud:
    """``gcloud``, and the other programs that steps run.

    :param others: names of the others.
    :raises DeployError: if one is not installed.
    """

    def __init__(self, others: Iterable[str]) -> None:
        self._paths = {name: _find_program(name) for name in sorted({"gcloud", *others})}

    def run(self, step: Step) -> None:
        """Carry out a step.

        :raises DeployError: when its command fails.
        """
        token = self.output("auth", "print-access-token").decode().strip() if step.needs_token else ""
        environment = {"UV_PUBLISH_PASSWORD": token} if token else {}
        ended = self._run(step.command, step.stdin.encode(errors="surrogateescape"), environment)
        if ended.returncode:
            error = _error_text(ended, step.secrets)
            raise DeployError(f"{step.title}: `{step.as_typed()}` failed: {error}; {step.hint}")

    def describe(self, *arguments: str) -> Any:
        """Return what gcloud prints as JSON; ``None`` when it does not find what it is asked about.

        :raises DeployError: when it fails otherwise.
        """
        try:
            printed = self.output(*arguments, "--format=json")
        except _NotFound:
            return None
        try:
            return json.loads(printed)
        except ValueError as error:
            raise DeployError(f"`{shell_joined(['gcloud', *arguments])}` printed no JSON: {error}") from error

    def output(self, *arguments: str) -> bytes:
        """Return what gcloud prints.

        :raises DeployError: when it fails.
        """
        command = ["gcloud", *arguments]
        ended = self._run(command)
        if ended.returncode:
            error = _error_text(ended)
            kind = _NotFound if _NOT_FOUND.search(error) else DeployError
            raise kind(f"`{shell_joined(command)}` failed: {error}")
        return ended.stdout

    def iam_policy(self, *arguments: str) -> Mapping[str, Any]:
        """Return an IAM policy; an empty one when gcloud does not find what it is asked about.

        :param arguments: of gcloud, to print the policy.
        """
        return self.describe(*arguments) or {}

    def _run(
        self, command: Sequence[str], stdin: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(  # noqa: S603  (no shell)
            [self._paths[command[0]], *command[1:]],
            env={**os.environ, **(environment or {})},
            input=stdin,
            capture_output=True,
            check=False,
        )


def bound_roles(policy: Mapping[str, Any], account: str) -> list[tuple[str, Condition | None]]:
    """Return the roles that an IAM policy binds to a service account, each with its condition.

    :param account: its e-mail address.
    """
    return [
        (each["role"], Condition(found.get("title", ""), found["expression"]) if found else None)
        for each in policy.get("bindings", ())
        for found in [each.get("condition")]
        if member_of(account) in each.get("members", ())
    ]


def member_of(account: str) -> str:
    """Return a service account as IAM policies name it."""
    return f"serviceAccount:{account}"


def escaped_list(items: Sequence[str]) -> str:
    """Return a list as gcloud reads it, with a delimiter that no item contains (`gcloud topic escaping`)."""
    delimiters = chain(["|"], (f"|{number}|" for number in count()))
    delimiter = next(each for each in delimiters if each.join(items).split(each) == list(items))
    return f"^{delimiter}^{delimiter.join(items)}"


def printf_command(text: str) -> str:
    """Return a shell's command that prints a text. Lines that end as usual are words, so that any shell takes it.

    :param text: not empty.
    """
    *lines, rest = text.split("\n")
    return shell_joined(["printf", "%s", text] if rest else ["printf", "%s\\n", *lines])


def _find_program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise DeployError(f"{name} not found: {_HOW_TO_INSTALL[name]}")
    return found


def _error_text(ended: subprocess.CompletedProcess[bytes], secrets: Iterable[str] = ()) -> str:
    """Return what a program printed from its first error on, or else its last lines, without the secrets.

    What follows the error may say what to do; a traceback does not.
    """
    text = (ended.stderr or ended.stdout).decode(errors="replace")
    for each in sorted(secrets, key=len, reverse=True):
        text = text.replace(each, "…")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = list(
        takewhile(
            lambda line: not line.startswith("Traceback "),
            dropwhile(lambda line: not line.startswith("ERROR"), lines),
        )
    )
    return " ".join(errors or lines[-3:])[:_MAX_ERROR_CHARS] or f"exit code {ended.returncode}, nothing printed"
