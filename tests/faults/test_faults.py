"""Services that fail, at any call and any rate, several dispatchers at once, and clocks that are wrong."""

import threading
from collections import Counter

import pytest
from world import SOFT_DELETE, TRIGGER

DESTS = ["ds.a", "q:ds.b$20260101", "ds.c--d", "example.com:legacy.ds.e"]


def break_calls(control, rate):
    """A share of all calls fails, each in its own way; some of them after they were carried out."""
    for after in (False, True):
        control.add_fault("*", "status", status=503, probability=rate / 6, after=after)
        control.add_fault("*", "reset", probability=rate / 6, after=after)
    control.add_fault("*", "status", status=429, probability=rate / 6)
    control.add_fault("*", "status", status=403, reason="rateLimitExceeded", probability=rate / 12)
    control.add_fault("*", "slow", ms=20, probability=rate / 12)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3])
def test_failing_calls_lose_and_double_nothing(crowd, rate):
    here = crowd(seed=4)
    here.world.control.seed_faults(int(rate * 100))
    for _ in range(8):
        for dest in DESTS:
            here.bqtail.put_file(dest)
        here.world.control.advance(25)
        break_calls(here.world.control, rate)
        here.dispatch(cycles=2)
        here.world.control.clear_faults()
        here.consume()
    account = here.finish()
    assert account.ok, str(account)
    assert account.finished == 32


class Consumer(threading.Thread):
    """Deletes from the trigger bucket what arrives there, and counts how often each trace came."""

    def __init__(self, world):
        super().__init__(daemon=True)
        self.bucket = world.client.bucket(TRIGGER)
        self.client = world.client
        self.came = Counter()
        self.done = threading.Event()

    def run(self):
        while not self.done.is_set():
            self.consume()

    def consume(self):
        blobs = list(self.client.list_blobs(self.bucket, fields="items(name,generation),nextPageToken"))
        for start in range(0, len(blobs), 100):
            batch = self.client.batch(raise_exception=False)
            with batch:
                for blob in blobs[start : start + 100]:
                    self.bucket.delete_blob(blob.name, if_generation_match=blob.generation)
            for blob, answer in zip(blobs[start : start + 100], batch._responses, strict=True):
                if answer.status_code < 300:
                    self.came[blob.name.partition("proj:")[2]] += 1
        self.done.wait(0.05)


def dispatch_at_once(crowd, number, traces, rate, cycles=3, rounds=20):
    """Dispatchers side by side, while all that is delivered is consumed, until nothing is left."""
    world = crowd.world
    for start in range(0, traces, 1000):
        world.traces(min(1000, traces - start), action="query" if start % 2000 else "load")
    consumer = Consumer(world)
    consumer.start()
    world.control.seed_faults(5)
    try:
        for _ in range(rounds):
            faults = [("storage.objects.copy", False), ("storage.objects.copy", True), ("*", False)]
            for call, after in faults if rate else ():
                for kind in ({"kind": "status", "status": 503}, {"kind": "reset"}):
                    world.control.add_fault(
                        call,
                        probability=rate / 6,
                        after=after,
                        bucket=f"[!{TRIGGER[0]}]*" if call == "*" else None,
                        **kind,
                    )
            if rate:
                world.control.add_fault("storage.objects.*", "status", status=429, probability=rate / 3, bucket="ops")
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
    consumer.consume()
    return consumer.came


def test_four_dispatchers_deliver_ten_thousand_traces_once_while_every_fifth_call_fails(crowd):
    came = dispatch_at_once(crowd(SOFT_DELETE), 4, 10_000, 0.2)
    assert len(came) == 10_000
    assert set(came.values()) == {1}


def test_four_dispatchers_deliver_every_trace_once(crowd):
    came = dispatch_at_once(crowd(SOFT_DELETE), 4, 2_000, 0)
    assert len(came) == 2_000
    assert set(came.values()) == {1}


@pytest.mark.parametrize("ahead", [-300, 300])
def test_a_machine_whose_clock_is_wrong_dispatches_as_any_other(crowd, ahead):
    """The services' clock is moved, which is the same as the machine's going wrong by as much the other way."""
    here = crowd()
    here.world.control.advance(ahead)
    for dest in DESTS:
        here.bqtail.put_file(dest)
    answer = here.dispatch()
    assert answer["reports"][0]["Outcomes"] == {"pending": 4}
    here.world.control.advance(28)
    assert here.dispatch()["reports"][0]["BatchCount"] == 4
    account = here.finish()
    assert account.ok, str(account)
