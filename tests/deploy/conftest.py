"""A project to deploy to."""

import pytest
from clouds import Cloud


@pytest.fixture
def cloud_project(tmp_path, world):
    return Cloud(tmp_path, world)


@pytest.fixture
def deployed(cloud_project):
    done = cloud_project.deploy()
    assert done.returncode == 0, done.stderr
    return cloud_project
