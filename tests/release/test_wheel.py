"""What `make dist` builds is all that a user needs: the wheel alone, in an environment with Airflow."""

import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from world import TRIGGER

from bqdispatch_provider import __version__

ROOT = Path(__file__).parents[2]
CLEAN = ROOT / ".venv" / "clean" / "bin"
UV = ROOT / ".venv" / "bin" / "uv"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(["make", "-s", "-C", ROOT, "dist", ".venv/clean/ready", f"DIST={folder}"], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return built / f"airflow_provider_bqdispatch-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def sources(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(built / f"airflow_provider_bqdispatch-{__version__}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


@pytest.fixture
def installed(wheel):
    """The wheel alone in the clean environment; nothing of this checkout can be imported there."""
    pip, python = [UV, "pip"], ["--quiet", "--python", CLEAN / "python"]
    subprocess.run([*pip, "uninstall", *python, "airflow-provider-bqdispatch"], check=True)
    assert subprocess.run(
        [CLEAN / "python", "-c", "import bqdispatch_provider"], cwd="/", stderr=subprocess.DEVNULL
    ).returncode
    subprocess.run([*pip, "install", *python, "--offline", "--no-deps", wheel], check=True)
    yield CLEAN
    subprocess.run([*pip, "uninstall", *python, "airflow-provider-bqdispatch"], check=True)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "bqdispatch_provider"
    files = {*package.rglob("*.py"), package / "py.typed", *(package / "page" / "static").iterdir()}
    assert names == {str(path.relative_to(ROOT)) for path in files}


def test_the_sources_are_enough_to_test_build_and_deploy(sources):
    for name in (
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
        "pyproject.toml",
        ".ci/test",
        ".ci/run",
    ):
        assert (sources / name).read_bytes() == (ROOT / name).read_bytes(), name
    for folder in ("bqdispatch_provider", "dags", "deploy", "docs", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (sources / path.relative_to(ROOT)).is_file(), path


def test_the_sample_dag_runs_from_the_wheel_alone(world, installed, sources, tmp_path):
    """By `make dist`, as README.md installs it."""
    queries = world.traces(3, "query")
    world.trace("load")
    window = world.window()
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "bqdispatch.py").write_bytes((sources / "dags" / "bqdispatch.py").read_bytes())
    google = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))},
        "PATH": f"{installed}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "AIRFLOW_CONN_BQDISPATCH_DEFAULT": json.dumps(
            {"conn_type": "bqdispatch", "extra": {"config": world.document()}}
        ),
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(google),
    }

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "run" in run("bqdispatch", "--help")
    assert "airflow-provider-bqdispatch" in run("airflow", "providers", "list", "--output", "plain")
    run("airflow", "db", "migrate")
    sample = Path(__file__).with_name("sample.py").read_text()
    (tmp_path / "sample.py").write_text(sample)
    said = json.loads(run("python", "sample.py", str(dags / "bqdispatch.py")).splitlines()[-1])
    assert (said["state"], said["version"]) == ("success", __version__)
    assert Path(said["code"]).is_relative_to(ROOT / ".venv" / "clean")
    assert len(world.names(TRIGGER)) == len(queries) + 2
    assert f"_batch_/{window}" in world.names(TRIGGER)
