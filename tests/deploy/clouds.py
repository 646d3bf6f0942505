"""A Google Cloud project with an environment of Composer, kept by fake_gcloud.py."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import fake_gcloud
import pytest

from bqdispatch_provider import __version__
from bqdispatch_provider.commands.cli import main
from bqdispatch_provider.commands.gcloud import Gcloud

ROOT = Path(__file__).parents[2]
README = ROOT / "deploy" / "composer" / "README.md"
FAKE = Path(__file__).parent / "fake_gcloud.py"
ACCOUNT = "serviceAccount:composer@acme-ops.iam.gserviceaccount.com"
DOCUMENT = {
    "ProjectID": "acme-ops",
    "AsyncTaskURL": "gs://acme-ops/BqTail/Tasks/",
    "JournalURL": "gs://acme-ops/BqTail/Journal/",
    "ErrorURL": "gs://acme-errors/BqTail/Errors/",
    "MaxConcurrentSQL": 40,
}
IMAGES = {"2.11": "composer-3-airflow-2.11.1-build.3", "3": "composer-3-airflow-3.2.2-build.1"}
CHANGES = re.compile(
    r" (create|update|import|undelete|publish|cp|set|dist|(add|remove)-iam-policy-binding|pip download)\b"
)


_START = Gcloud._run


def _call(self, command, stdin=b"", environment=None):
    if command[0] not in fake_gcloud.PROGRAMS:
        return _START(self, command, stdin, environment)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        code, printed, refused = fake_gcloud.call(command[0], command[1:], stdin)
    return subprocess.CompletedProcess(command, code, printed, refused.encode(errors="surrogateescape"))


class Cloud:
    """A project with an environment, and a checkout to deploy from."""

    in_processes = False

    def __init__(self, folder, world):
        self.folder, self._state, self._world = folder / "checkout", folder / "state.json", world
        (self.folder / "bqdispatch_provider").mkdir(parents=True)
        for part in ("Makefile", "pyproject.toml", "bqdispatch_provider/__init__.py"):
            shutil.copy(ROOT / part, self.folder / part)
        self._bin = folder / "bin"
        self._bin.mkdir()
        for program in fake_gcloud.PROGRAMS:
            path = self._bin / program
            path.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {FAKE} {program} "$@"\n')
            path.chmod(0o755)
        self.set(
            environment="ops",
            image=IMAGES["2.11"],
            state="RUNNING",
            version=__version__,
            source="a wheel",
            packages={"pandas": ">=2"},
            variables={"OTHER": "1"},
            roles={},
            bindings=[],
            repositories={},
            files=[],
            objects={},
            pools={},
            public={},
            installed=None,
            old=False,
            refuse={},
            calls=[],
        )
        self.document()

    @property
    def shell(self):
        """The environment of a shell with the fakes; its project keeps clients from asking for theirs."""
        return {
            **os.environ,
            "FAKE_GCLOUD": str(self._state),
            "GOOGLE_CLOUD_PROJECT": "acme-ops",
            "PATH": f"{self._bin}:{os.environ['PATH']}",
        }

    def document(self, **more):
        self.replace_document(DOCUMENT | more)

    def replace_document(self, document, name="dispatch.json"):
        """Put a document in place.

        :returns: its URL.
        """
        self._world.control.seed_objects("acme-config", [{"name": name, "content": json.dumps(document)}])
        return f"gs://acme-config/{name}"

    def set(self, **what):
        known = json.loads(self._state.read_text()) if self._state.exists() else {}
        self._state.write_text(json.dumps(known | what))

    def state(self):
        """All that deployments change."""
        known = json.loads(self._state.read_text())
        return {name: known[name] for name in sorted(known) if name not in ("calls", "refuse")}

    def __getattr__(self, name):
        return json.loads(self._state.read_text())[name]

    def deploy(self, *more, config="gs://acme-config/dispatch.json"):
        self.set(calls=[])
        options = ["--environment=ops", "--location=europe-west1", f"--config={config}", *more]
        return self.command("deploy", "composer", *options)

    def rights(self, *more, config="gs://acme-config/dispatch.json"):
        done = self.command("deploy", "rights", f"--config={config}", "--project=acme-ops", *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def command(self, *words):
        """Carry out a command of ours.

        Its calls of gcloud start no process, unless :attr:`in_processes` is true: that would be most of the time.
        """
        with pytest.MonkeyPatch.context() as patch:
            if not self.in_processes:
                patch.setattr(Gcloud, "_run", _call)
            patch.chdir(self.folder)
            for name, value in self.shell.items():
                patch.setenv(name, value)
            with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
                code = main(words)
        return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())

    @property
    def account(self):
        """Address of the environment's account."""
        return ACCOUNT.removeprefix("serviceAccount:")

    @property
    def pip_conf(self):
        return self.objects.get(fake_gcloud.PIP_CONF, {}).get("text")

    def set_pip_conf(self, text):
        self.set(objects=self.objects | {fake_gcloud.PIP_CONF: {"text": text, "generation": 17}})

    @property
    def connection(self):
        return json.loads(self.variables["AIRFLOW_CONN_BQDISPATCH_DEFAULT"])

    def set_connection(self, value):
        value = value if isinstance(value, str) else json.dumps(value)
        self.set(variables=self.variables | {"AIRFLOW_CONN_BQDISPATCH_DEFAULT": value})

    def dry_run(self, *more):
        done = self.deploy("--dry-run", *more)
        assert (done.returncode, done.stderr) == (0, "")
        assert self.changes() == []
        return done.stdout

    def changes(self):
        return [" ".join(call) for call in self.calls if CHANGES.search(" ".join(call))]
