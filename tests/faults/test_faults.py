"""Services that fail, at any call and any rate, several dispatchers at once, and clocks that are wrong."""

import os
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
import requests
from waiting import PATIENCE_S
from world import SOFT_DELETE, TRIGGER

ROUNDS = int(os.environ.get("BQDISPATCH_ROUNDS", "8"))
DESTS = ["ds.a", "q:ds.b$20260101", "ds.c--d", "example.com:legacy.ds.e"]


def break_calls(control, rate, calls="*", bucket=None):
    """A share of all calls fails, each in its own way; some of them after they were carried out.

    Connections are reset for whole requests: with a hundred calls in each, resetting by calls would reset them all.
    """
    for after in (False, True):
        control.add_fault(calls, "status", status=503, probability=rate / 4, after=after, bucket=bucket)
        control.add_fault("storage.batch", "reset", probability=rate / 2, after=after)
        control.add_fault("bigquery.*", "reset", probability=rate / 2, after=after)
    control.add_fault(calls, "status", status=429, probability=rate / 4, bucket=bucket)
    control.add_fault(calls, "status", status=403, reason="rateLimitExceeded", probability=rate / 8, bucket=bucket)
    control.add_fault(calls, "slow", ms=2, probability=rate / 8, bucket=bucket)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3])
def test_failing_calls_lose_and_double_nothing(crowd, trials, rate):
    here = crowd(seed=4)
    here.world.control.seed_faults(int(rate * 100))
    for _ in range(ROUNDS):
        for dest in DESTS:
            here.bqtail.put_file(dest)
        here.world.control.advance(25)
        break_calls(here.world.control, rate)
        here.dispatch(cycles=2)
        here.world.control.clear_faults()
        here.consume()
    account = here.finish()
    assert account.ok, str(account)
    assert account.finished == 4 * ROUNDS
    trials(f"{rate:.0%} of all calls fail or are late", 2 * ROUNDS, account.events, account.missing, account.doubled)


class Consumer(threading.Thread):
    """Deletes from the trigger bucket whatever arrives there."""

    def __init__(self, world):
        super().__init__(daemon=True)
        self.world, self.done = world, threading.Event()
        self.bucket = world.client.bucket(TRIGGER)

    def run(self):
        while not self.done.is_set():
            self.consume()
            self.done.wait(0.05)

    def consume(self):
        blobs = list(self.world.client.list_blobs(self.bucket, fields="items(name,generation),nextPageToken"))
        for start in range(0, len(blobs), 100):
            with suppress(requests.ConnectionError), self.world.client.batch(raise_exception=False):
                for blob in blobs[start : start + 100]:
                    self.bucket.delete_blob(blob.name, if_generation_match=blob.generation)

    def came(self):
        """How often each trace came: every delivery has left a soft-deleted version."""
        self.world.control.advance(1)  # a name is changed once a second
        self.consume()
        assert not self.world.names(TRIGGER)
        return Counter(name.partition("proj:")[2] for name in self.world.deleted())


def dispatch_at_once(crowd, number, traces, rate, cycles=3, rounds=30):
    """Dispatchers side by side, while all that is delivered is consumed, until nothing is left."""
    world = crowd.world
    for start in range(0, traces, 1000):
        world.traces(min(1000, traces - start), action="query" if start % 2000 else "load")
    consumer = Consumer(world)
    consumer.start()
    world.control.seed_faults(5)
    try:
        for _ in range(rounds):
            if rate:
                # Not those of the consumer, which has no patience: it lists and deletes in the trigger bucket.
                break_calls(world.control, rate, "storage.objects.*", bucket="ops")
            for each in [crowd.start(cycles=cycles) for _ in range(number)]:
                each.answer()
            world.control.clear_faults()
            if not [name for name in world.names() if name.startswith("proj:")]:
                break
            world.control.advance(200)
    finally:
        world.control.clear_faults()
        consumer.done.set()
        consumer.join()
    return consumer.came()


@pytest.mark.parametrize(("traces", "rate"), [(10_000, 0.2), (2_000, 0)], ids=["every fifth call fails", "calm"])
def test_four_dispatchers_at_once_deliver_every_trace_once(crowd, trials, traces, rate):
    came = dispatch_at_once(crowd(SOFT_DELETE), 4, traces, rate)
    assert len(came) == traces
    assert set(came.values()) == {1}
    trials(f"4 dispatchers at once, {rate:.0%} of calls fail", 1, traces, traces - len(came), came.total() - len(came))


@pytest.mark.parametrize("ahead", [-300, 300])
def test_a_machine_whose_clock_is_wrong_dispatches_as_any_other(crowd, trials, ahead):
    """The services' clock is moved, which is the same as the machine's going wrong by as much the other way."""
    here = crowd()
    here.bqtail.settings = replace(here.bqtail.settings, window_s=PATIENCE_S)
    here.world.control.advance(ahead)
    for dest in DESTS:
        here.bqtail.put_file(dest)
    here.world.control.advance(5)
    answer = here.dispatch()
    assert answer["reports"][0]["Outcomes"]["pending"] == 4
    here.world.control.advance(PATIENCE_S + 5)
    assert here.dispatch()["reports"][0]["BatchCount"] == 4
    account = here.finish()
    assert account.ok, str(account)
    trials(f"the machine's clock is {-ahead:+d} s wrong", 1, account.events, account.missing, account.doubled)
