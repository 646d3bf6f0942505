"""A task folder with its BqTail, and dispatchers that come and go in processes of their own."""

import json
import os
import random
import signal

import dispatching
import psutil
import requests

from bqdispatch_provider.testing.bqtail import BqTailSettings, Rule, StandInBqTail

AFTER_A_CRASH = 200
"""Seconds after which everybody takes up what a dispatcher has left: more than ``CLAIM_TIMEOUT``."""


RULES = {
    "q:ds.b$20260101": Rule(transient_project="q"),
    "ds.c--d": Rule(multi_path=True),
    "example.com:legacy.ds.e": Rule(balancer=("example.com:legacy", "other")),
}


class Crowd:
    """A task folder with its BqTail, and dispatchers that come and go."""

    def __init__(self, world, forks, log_file, seed, settings, **bqtail):
        self.world, self.forks, self.log_file = world, forks, log_file
        self.random = random.Random(seed)
        self.document = world.document(**settings)
        of_bqtail = BqTailSettings.for_dispatcher(world.config(), window_s=20, rules=RULES, **bqtail)
        self.bqtail = StandInBqTail(world.client, requests.Session(), world.url, of_bqtail)

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
        """BqTail consumes everything that was delivered, a moment after that: a name is changed once a second."""
        self.world.control.advance(1.5)
        while self.bqtail.step():
            self.world.control.advance(1.5)

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
