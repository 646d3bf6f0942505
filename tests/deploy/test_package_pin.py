"""The pin of the package, as pip reads it: no stranger's wheel counts as the one that was deployed."""

import subprocess
import sys

import pytest
from clouds import ROOT
from fake_gcloud import PACKAGE, wheel

from bqdispatch_provider import __version__

NAME = PACKAGE.replace("-", "_")
EQUAL = ["0.1", "0.1.0.0", "0.1.0+x"]
"""Versions that satisfy ==0.1.0."""

SPELLINGS = ["0.01.0", "v0.1.0", "0!0.1.0"]
"""Versions that pip reads as 0.1.0."""


@pytest.fixture
def installed(tmp_path):
    """Whose wheel pip installs, from an index of both repositories: a function of ours, strangers' and the pin."""

    def install(ours, strangers, pin):
        index = tmp_path / "index"
        index.mkdir()
        (index / f"{NAME}-{ours}-py3-none-any.whl").write_bytes(wheel(ours, "ours"))
        for version in strangers:
            for tag in ("py3-none-any", "9-py3-none-any", "cp311-none-any"):
                (index / f"{NAME}-{version}-{tag}.whl").write_bytes(wheel(version, "a stranger's"))
        target = tmp_path / "installed"
        pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"]
        command = [*pip, "--no-index", f"--find-links={index}", f"--target={target}", f"{PACKAGE}{pin}"]
        subprocess.run(command, check=True, env={"PYTHONPATH": "", "HOME": str(tmp_path)})
        return (target / "bqdispatch_provider" / "__init__.py").read_text()

    return install


def test_a_strangers_version_that_counts_as_equal_is_not_installed(cloud_project, installed):
    assert cloud_project.deploy().returncode == 0
    assert installed(__version__, EQUAL, cloud_project.packages[PACKAGE]) == "ours"


def test_no_spelling_of_a_strangers_version_is_one_with_a_local_part(cloud_project, installed):
    """As deploy/composer/README.md says."""
    own = "0.1.0+acme"
    module = cloud_project.folder / "bqdispatch_provider" / "__init__.py"
    module.write_text(module.read_text().replace(f'"{__version__}"', f'"{own}"'))
    cloud_project.set(version=own)
    done = cloud_project.deploy()
    assert done.returncode == 0, done.stderr
    assert own in (ROOT / "deploy" / "composer" / "README.md").read_text()
    assert installed(own, [*EQUAL, *SPELLINGS, __version__], cloud_project.packages[PACKAGE]) == "ours"
