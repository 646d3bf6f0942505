"""Dispatcher and BqTail together, by the stand-in BqTail's account: every event once, within the limits."""

import pytest
import requests

from bqdispatch_provider.testing.bqtail import TRACE_LABEL, BqTailSettings, Rule, StandInBqTail

DESTS = ["ds.a", "q:ds.b$20260101", "ds.c--d", "example.com:legacy.ds.e"]
RULES = {
    "q:ds.b$20260101": Rule(transient_project="other", transient_location="EU"),
    "ds.c--d": Rule(balancer=("q", "third")),
    "example.com:legacy.ds.e": Rule(multi_path=True, transient_project="example.com:legacy", dml=True),
}
LIMITS = {"MaxConcurrentSQL": 5, "MaxConcurrentJobs": 3}


@pytest.fixture
def bqtail(world):
    settings = BqTailSettings.for_dispatcher(
        world.config(), window_s=20, pending_ms=(0, 2000), running_ms=(500, 6000), failing=0.1, rules=RULES
    )
    return StandInBqTail(world.client, requests.Session(), world.url, settings)


def go_on_until_finished(world, bqtail, cycle):
    """Alternate cycles of both, five seconds apart by the stand-in's clock."""
    for _ in range(200):
        cycle()
        bqtail.step()
        world.control.advance(5)
        bqtail.step()
        counters = bqtail.counters()
        if counters.finished == counters.events:
            return
    raise AssertionError(str(bqtail.account()))


def test_every_event_ends_in_one_finished_chain_and_no_limit_is_passed(world, bqtail):
    files = []
    for _ in range(6):
        files += [bqtail.put_file(dest) for dest in DESTS for _ in range(2)]
        world.control.advance(11)
    for file in files[::5]:
        bqtail.late_event(file)
    with world.dispatcher(**LIMITS) as dispatcher:
        go_on_until_finished(world, bqtail, dispatcher.cycle)
    account = bqtail.account()
    assert account.ok, str(account)
    assert (account.events, account.finished) == (48, 48)
    for project, peaks in world.control.peaks(TRACE_LABEL).items():
        assert (peaks["sql"] <= 5, peaks["jobs"] <= 3) == (True, True), (project, peaks)


@pytest.mark.parametrize("seed", range(3))
def test_faults_on_every_call_lose_nothing(world, bqtail, seed):
    """Answers that are lost after the deed may deliver again, which is not tried here; all else may fail."""
    for _ in range(4):
        for dest in DESTS:
            bqtail.put_file(dest)
        world.control.advance(11)
    world.control.seed_faults(seed)

    def cycle():
        world.control.add_fault("*", "status", status=503, probability=0.1)
        world.control.add_fault("storage.objects.*", "status", status=429, probability=0.05)
        world.control.add_fault("*", "reset", probability=0.02)
        with world.dispatcher(**LIMITS) as dispatcher:
            dispatcher.cycle()
        world.control.clear_faults()

    go_on_until_finished(world, bqtail, cycle)
    account = bqtail.account()
    assert account.ok, str(account)


def test_several_dispatchers_at_once_agree(world, bqtail):
    from concurrent.futures import ThreadPoolExecutor

    for _ in range(4):
        for dest in DESTS:
            bqtail.put_file(dest)
        world.control.advance(11)
    dispatchers = [world.dispatcher() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        go_on_until_finished(world, bqtail, lambda: list(threads.map(lambda each: each.cycle(), dispatchers)))
    for dispatcher in dispatchers:
        dispatcher.close()
    account = bqtail.account()
    assert account.ok, str(account)
