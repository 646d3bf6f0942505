"""Dispatchers in processes of their own against one stand-in, and BqTail's account of what they did."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from crowd import Crowd
from world import SOFT_DELETE, World

from bqdispatch_provider.testing.standin import StandInControl

BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def forks():
    """Processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dispatching", "google.cloud.storage", "bqdispatch_provider.dispatcher"])
    return context


@pytest.fixture(scope="session")
def standin():
    """A stand-in in a process of its own: it shares no thread and no lock with whoever is killed."""
    with subprocess.Popen([BIN / "bqdispatch-standin", "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture
def crowd(standin, forks, monkeypatch, tmp_path):
    """Makes a :class:`Crowd`, over buckets of one's choice."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", standin)
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", standin)
    with StandInControl(standin) as control:

        def make(keeping=SOFT_DELETE, seed=0, chain=("load", "copy", "query"), running_ms=None, **settings):
            control.reset()
            bqtail = {"chain": chain, **({"running_ms": running_ms} if running_ms else {})}
            return Crowd(World(standin, control, keeping), forks, tmp_path / "log", seed, settings, **bqtail)

        yield make
        control.reset()
