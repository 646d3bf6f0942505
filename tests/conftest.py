"""A stand-in Google Cloud for the whole session, emptied before each test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import World

from bqdispatch_provider.testing.standin import StandIn, StandInControl


@pytest.fixture(scope="session")
def cloud():
    with StandIn() as standin:
        yield standin


@pytest.fixture
def world(cloud, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", cloud.url)
    with StandInControl(cloud.url) as control:
        control.reset()
        yield World(cloud.url, control)
