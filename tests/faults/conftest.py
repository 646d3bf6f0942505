"""Dispatchers in processes of their own against one stand-in, and BqTail's account of what they did."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import dispatching
import psutil
import pytest
import requests
from world import SOFT_DELETE, World

from bqdispatch_provider.testing.bqtail import BqTailSettings, StandInBqTail
from bqdispatch_provider.testing.standin import StandInControl

BIN = Path(sys.executable).parent
AFTER_A_CRASH = 200
"""Seconds after which everybody takes up what a dispatcher has left: more than ``CLAIM_TIMEOUT``."""


TRIALS = []


def pytest_addoption(parser):
    parser.addoption("--trials", metavar="FILE", help="write the table of trials between its marks in a document")


def pytest_sessionfinish(session):
    document = session.config.getoption("--trials")
    if document and TRIALS:
        lines = ["| fault | trials | events | lost | doubled |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(map(str, each))} |" for each in TRIALS]
        text = Path(document).read_text()
        table = "<!-- trials -->\n" + "\n".join(lines) + "\n<!-- /trials -->"
        Path(document).write_text(re.sub(r"<!-- trials -->.*<!-- /trials -->", lambda _: table, text, flags=re.DOTALL))


@pytest.fixture
def trials():
    """Notes what came of a fault: trials, events, lost, doubled."""
    return lambda *row: TRIALS.append(row)


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

        def make(keeping=SOFT_DELETE, seed=0, chain=("load", "copy", "query"), **settings):
            control.reset()
            return Crowd(World(standin, control, keeping), forks, tmp_path / "log", seed, chain, settings)

        yield make
        control.reset()


class Crowd:
    """A task folder with its BqTail, and dispatchers that come and go."""

    def __init__(self, world, forks, log_file, seed, chain, settings):
        self.world, self.forks, self.log_file = world, forks, log_file
        self.random = random.Random(seed)
        self.document = world.document(**settings)
        bqtail = BqTailSettings.for_dispatcher(world.config(), window_s=20, chain=chain)
        self.bqtail = StandInBqTail(world.client, requests.Session(), world.url, bqtail)

    def start(self, **more):
        """A dispatcher in a process of its own."""
        receiver, sender = self.forks.Pipe(duplex=False)
        process = self.forks.Process(
            target=dispatching.dispatch,
            args=(sender, self.log_file, self.world.url, self.document),
            kwargs=more,
            daemon=True,
        )
        process.start()
        sender.close()
        return Running(process, receiver)

    def dispatch(self, **more):
        """Run a dispatcher to its end, whichever that is."""
        return self.start(**more).answer()

    def consume(self):
        """BqTail consumes everything that was delivered."""
        while self.bqtail.step():
            pass

    def finish(self):
        """Dispatch, undisturbed now, until there is nothing left to do; gives BqTail's account."""
        self.world.control.clear_faults()
        for _ in range(60):
            self.consume()
            self.world.control.advance(AFTER_A_CRASH)
            (report,) = self.dispatch()["reports"]
            if report["Outcomes"].keys() <= {"ignored"}:
                break
        self.consume()
        return self.bqtail.account()

    def log(self):
        return self.log_file.read_text() if self.log_file.exists() else ""


class Running:
    """A dispatcher that was started."""

    def __init__(self, process, receiver):
        self.process, self.receiver = process, receiver

    def wait_until_stopped(self):
        """Until it has stopped itself; tells whether it did, or came to its end before."""
        while not self.receiver.poll(0.005):
            if psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED:
                return True
        return False

    def go_on(self):
        """Wake it up again."""
        os.kill(self.process.pid, signal.SIGCONT)

    def answer(self):
        """What it sent; ``None`` when it was killed before."""
        try:
            return json.loads(self.receiver.recv())
        except EOFError:
            return None
        finally:
            self.process.join()
            self.receiver.close()
