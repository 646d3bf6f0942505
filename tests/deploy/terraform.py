"""deploy/composer/main.tf, applied by Terraform itself, with providers that keep a fake project (provider.py)."""

import json
import os
import shutil
import subprocess
from itertools import pairwise
from types import SimpleNamespace

from clouds import ROOT
from provider import provided

MAIN = ROOT / "deploy" / "composer" / "main.tf"
USUAL = {
    "project": "acme-ops",
    "location": "europe-west1",
    "environment": "ops",
    "config": "gs://acme-config/dispatch.json",
}


class Terraform:
    """A folder with main.tf and the state of what it has made.

    :param cloud: the project.
    :param folder: of its own.
    :param given: variables of main.tf, beside the usual ones.
    """

    def __init__(self, cloud, folder, **given):
        self._cloud, self._folder = cloud, folder
        folder.mkdir(exist_ok=True)
        shutil.copy(MAIN, folder)
        (folder / "given.auto.tfvars.json").write_text(json.dumps({**USUAL, **given}))
        self._run("init", "-input=false")

    def apply(self):
        """Apply; gives how many resources were imported, added, changed and destroyed."""
        done = self._run("apply", "-auto-approve", "-input=false")
        (line,) = [line for line in done.splitlines() if line.startswith("Apply complete!")]
        words = line.removesuffix(".").replace(",", "").split()
        counts = {"imported": 0} | {what: int(number) for number, what in pairwise(words) if number.isdigit()}
        return SimpleNamespace(**counts)

    def plan(self):
        """Plan; gives what Terraform says."""
        return self._run("plan", "-input=false")

    def _run(self, *words):
        with provided(self._cloud) as variables:
            done = subprocess.run(
                ["terraform", f"-chdir={self._folder}", words[0], "-no-color", *words[1:]],
                env={**os.environ, **variables, "CHECKPOINT_DISABLE": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout
