"""`docker compose --profile fake-gcs up`: the same on fake-gcs-server's Cloud Storage."""

import subprocess
from pathlib import Path

import pytest
from stack import ROOT, Stack

IMAGE = "fsouza/fake-gcs-server:1.56.1"
BUILT = ROOT / ".work/bin/fake-gcs-server"
DOCKERFILE = """
FROM bqdispatch-airflow:3.3.2
COPY --chmod=755 fake-gcs-server /bin/
ENTRYPOINT ["/bin/fake-gcs-server"]
"""


def docker(*arguments, **more):
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, **more)


@pytest.fixture(scope="module")
def image():
    """fake-gcs-server's image: where it cannot be pulled, made of what `make fake-gcs` has built."""
    if docker("image", "inspect", IMAGE).returncode == 0 or docker("pull", "--quiet", IMAGE).returncode == 0:
        yield
        return
    assert BUILT.exists(), f"{IMAGE} cannot be pulled here, and {BUILT} is not there: `make fake-gcs` builds it"
    with Stack() as builder:
        builder.compose("build")
    made = docker("build", "--tag", IMAGE, "--file", "-", str(Path(BUILT).parent), input=DOCKERFILE)
    assert made.returncode == 0, made.stderr
    yield
    docker("rmi", IMAGE)


@pytest.fixture(scope="module")
def stack(image):
    with Stack("fake-gcs") as stack:
        stack.up()
        yield stack


def test_every_event_goes_through_once(stack):
    stack.wait_for_runs(3)
    account = stack.end_the_feed()
    assert account["ok"], account["problems"]
    assert account["events"] == account["finished"] > 0


def test_nothing_is_stored_in_the_stand_in(stack):
    said = stack.compose("exec", "cloud", "curl", "--silent", "http://localhost:9023/storage/v1/b?project=demo-project")
    assert "demo" not in said


def test_down_leaves_nothing(stack):
    stack.compose("down", "--volumes")
    assert stack.left() == []


def test_the_readme_has_the_command_that_was_run_here(stack):
    assert stack.commands_of_the_readme()
    assert [command for command in stack.commands_of_the_readme() if command not in stack.commands] == []
