"""The environment's pip.conf is added to and never shown; it names one index, and no stranger's wheel is installed."""

import json
import re
import subprocess
import sys

import pytest
from fake_gcloud import INDEX
from pip._internal.models.index import PyPI

from bqdispatch_provider import __version__
from bqdispatch_provider.commands.packages import PipConf

LINE = f"index-url = {INDEX}\n"
KEPT = """\
# Ours: ask ops@acme.example before you change it.
[global]
; slow mirror
Timeout: 60
proxy = http://deployer:hunter2@proxy.acme.example:3128

[install]
no-compile = true
"""
PUBLIC = PyPI.simple_url
PUBLISHED = "[global]\nindex-url = https://deployer:hunter2@pypi.acme.example/simple/\n"
OTHERS = [
    PUBLISHED,
    "[global]\nextra-index-url = https://deployer:hunter2@pypi.acme.example/simple/\n",
    "[install]\nextra_index_url = https://deployer:hunter2@pypi.acme.example/simple/\n",
    f"[global]\nindex-url = {INDEX}\nextra-index-url =\n  https://deployer:hunter2@pypi.acme.example/simple/\n",
    "[global]\nfind-links = https://deployer:hunter2@files.acme.example/\n",
    "[global]\npypi-url = https://deployer:hunter2@pypi.acme.example/simple/\n",
]


def test_the_file_is_added_to_and_all_else_stays(cloud_project):
    cloud_project.set_pip_conf(KEPT)
    assert cloud_project.deploy().returncode == 0
    assert cloud_project.pip_conf == KEPT.replace("[global]\n", f"[global]\n{LINE}")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", f"[global]\n{LINE}"),
        ("[install]\na = 1", f"[install]\na = 1\n[global]\n{LINE}"),
        ("[global]", f"[global]\n{LINE}"),
        ("\r\n[global]\r\na=1\r\n", f"\r\n[global]\r\n{LINE}a=1\r\n"),
        ("[global]\n\n  a = 1\n", f"[global]\n  {LINE}\n  a = 1\n"),
        ("[install]\na =\n  [global]\n[global]\nb = 1\n", f"[install]\na =\n  [global]\n[global]\n{LINE}b = 1\n"),
    ],
)
def test_the_line_comes_where_pip_reads_it(tmp_path, text, wanted):
    conf = PipConf(text)
    assert not conf.uses(INDEX)
    added = conf.with_index(INDEX)
    assert added == wanted
    assert PipConf(added).uses(INDEX)
    path = tmp_path / "pip.conf"
    path.write_text(added, newline="")
    command = [sys.executable, "-m", "pip", "config", "list"]
    environment = {"PIP_CONFIG_FILE": str(path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"global.index-url='{INDEX}'" in done.stdout.splitlines()


def test_no_password_is_ever_shown(cloud_project):
    cloud_project.set_pip_conf(KEPT)
    shown = cloud_project.dry_run()
    cloud_project.set(refuse={"storage cp - gs://europe-west1-ops-1234-bucket/config": f"precondition failed: {KEPT}"})
    refused = cloud_project.deploy()
    for text in (shown, refused.stdout, refused.stderr):
        assert "hunter2" not in text
        assert "proxy.acme.example" not in text
    assert (refused.returncode, "precondition failed" in refused.stderr) == (1, True)


@pytest.mark.parametrize("text", [*OTHERS, "hunter2 without a section\n", "[global]\na = hunter2\na = hunter2\n"])
def test_another_source_of_packages_is_refused_and_not_shown(cloud_project, text):
    cloud_project.set_pip_conf(text)
    for more in ([], ["--dry-run"]):
        done = cloud_project.deploy(*more)
        assert done.returncode == 1
        assert "pip.conf" in done.stderr
        assert "hunter2" not in done.stderr + done.stdout
    assert cloud_project.pip_conf == text
    assert "airflow-provider-bqdispatch" not in cloud_project.packages
    # What would be refused, too, is no way out.
    cloud_project.set(public={__version__: ["published"]})
    assert ("--published" in done.stderr) == (cloud_project.deploy("--published", "--dry-run").returncode == 0)


@pytest.mark.parametrize(
    "text",
    [
        "[global]\ntimeout = 60\n# x\rextra-index-url = https://deployer:hunter2@evil.example/simple/\n",
        "[global]\rextra-index-url = https://deployer:hunter2@evil.example/simple/\r",
    ],
)
def test_a_line_that_only_pip_sees_is_refused(cloud_project, text):
    """pip ends a line at a lone carriage return, too."""
    cloud_project.set_pip_conf(text)
    done = cloud_project.deploy()
    assert done.returncode == 1
    assert "pip.conf has a carriage return without a line feed" in done.stderr.splitlines()[-1]
    assert "hunter2" not in done.stderr + done.stdout
    assert cloud_project.pip_conf == text


def test_a_strangers_wheel_of_the_same_version_is_not_installed(cloud_project):
    cloud_project.set(public={__version__: ["a stranger's"]})
    assert cloud_project.deploy().returncode == 0
    assert cloud_project.installed == "ours"


def test_the_index_has_our_repository_before_pypi(deployed):
    repositories = deployed.repositories
    assert {name: each["mode"] for name, each in repositories.items()} == {
        "bqdispatch": "STANDARD_REPOSITORY",
        "bqdispatch-pypi": "REMOTE_REPOSITORY",
        "bqdispatch-index": "VIRTUAL_REPOSITORY",
    }
    assert repositories["bqdispatch-pypi"]["remoteRepositoryConfig"] == {
        "pythonRepository": {"publicRepository": "PYPI"}
    }
    path = "projects/acme-ops/locations/europe-west1/repositories"
    assert repositories["bqdispatch-index"]["virtualRepositoryConfig"]["upstreamPolicies"] == [
        {"id": "bqdispatch", "repository": f"{path}/bqdispatch", "priority": 100},
        {"id": "bqdispatch-pypi", "repository": f"{path}/bqdispatch-pypi", "priority": 10},
    ]


def test_an_index_with_other_priorities_is_corrected(deployed):
    repositories = deployed.repositories
    policies = repositories["bqdispatch-index"]["virtualRepositoryConfig"]["upstreamPolicies"]
    policies[1]["priority"] = 1000
    deployed.set(repositories=repositories)
    assert (
        "#   projects/acme-ops/locations/europe-west1/repositories/bqdispatch-pypi with priority 1000 goes"
        in deployed.dry_run()
    )
    assert deployed.deploy().returncode == 0
    policies = deployed.repositories["bqdispatch-index"]["virtualRepositoryConfig"]["upstreamPolicies"]
    assert [each["priority"] for each in policies] == [100, 10]


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("bqdispatch", {"format": "DOCKER", "mode": "STANDARD_REPOSITORY"}),
        ("bqdispatch", {"format": "PYTHON", "mode": "REMOTE_REPOSITORY"}),
        ("bqdispatch-index", {"format": "PYTHON", "mode": "STANDARD_REPOSITORY"}),
        (
            "bqdispatch-pypi",
            {
                "format": "PYTHON",
                "mode": "REMOTE_REPOSITORY",
                "remoteRepositoryConfig": {"pythonRepository": {"customRepository": {"uri": "https://evil.example"}}},
            },
        ),
    ],
)
def test_a_repository_of_another_kind_is_refused(cloud_project, name, there):
    cloud_project.set(repositories={name: there})
    done = cloud_project.deploy()
    assert done.returncode == 1
    assert re.search(rf"repository '{name}' in 'europe-west1' is a .*; expected a ", done.stderr)


def test_a_published_package_needs_neither_wheel_nor_repository(cloud_project):
    """The environment's own index is trusted with the name."""
    cloud_project.set(public={__version__: ["published"]})
    cloud_project.set_pip_conf(PUBLISHED)
    (cloud_project.folder / "Makefile").unlink()
    done = cloud_project.deploy("--published")
    assert done.returncode == 0, done.stderr
    assert cloud_project.pip_conf == PUBLISHED
    assert (cloud_project.repositories, cloud_project.files) == ({}, [])
    assert cloud_project.installed == "published"
    assert json.dumps(cloud_project.calls).count("artifacts") == 0


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "names no index of the environment's own"),
        ("[global]\ntimeout = 60\n", "names no index of the environment's own"),
        ("[global]\nindex-url =\n", "names no index of the environment's own"),
        (f"[global]\nindex-url = {PUBLIC.replace('//', '//u:hunter2@')}/\n", "names no index of the environment's own"),
        (f"{PUBLISHED}[install]\nindex_url = {PUBLIC}\n", "names no index of the environment's own"),
        (f"{PUBLISHED}extra-index-url = https://u:hunter2@pypi.acme.example/more/\n", "sets extra-index-url"),
        (f"{PUBLISHED}[install]\nfind_links = https://u:hunter2@files.acme.example/\n", "sets find-links"),
        (f"{PUBLISHED}# x\rextra-index-url = https://u:hunter2@pypi.acme.example/more/\n", "a carriage return"),
    ],
)
def test_a_published_package_comes_from_one_index_of_the_environments_own(cloud_project, text, said, more):
    cloud_project.set(public={__version__: ["a stranger's"]})
    if text is not None:
        cloud_project.set_pip_conf(text)
    before = cloud_project.state()
    done = cloud_project.deploy("--published", *more)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "pip.conf " in line
    assert said in line
    assert "hunter2" not in done.stderr + done.stdout
    assert cloud_project.state() == before
    # What would be refused, too, is no way out.
    assert ("deploy without --published" in line) == (cloud_project.deploy("--dry-run").returncode == 0)
