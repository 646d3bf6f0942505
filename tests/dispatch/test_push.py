"""Messages of a log sink wake whoever waits for jobs; without them it is waited as long as it was to be."""

import logging
import threading
import time
from itertools import pairwise

import pytest
import requests

from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.pubsub import SUBSCRIPTION, Subscription
from bqdispatch_provider.gcp.rate_limit import SAME_NAME_S, NameCooldown
from bqdispatch_provider.journal import RunJournal
from bqdispatch_provider.runs import run_cycles

NAME = "projects/p/subscriptions/jobs"
FOR_EVER = 60


@pytest.fixture
def api(world, monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", world.url)

    def call(method, path, **body):
        requests.request(method, f"{world.url}/v1/projects/p/{path}", json=body, timeout=10).raise_for_status()

    return call


@pytest.fixture
def subscription(world, api):
    api("PUT", "topics/jobs")
    api("PUT", "subscriptions/jobs", topic="projects/p/topics/jobs")
    world.control.set_log_sink("projects/p/topics/jobs")
    with requests.Session() as session:
        yield Subscription(session, NAME)


def test_a_job_that_ends_wakes_whoever_waits(world, subscription):
    world.trace(state="RUNNING")
    woken = []
    waiting = threading.Thread(target=lambda: woken.append(subscription.wait(FOR_EVER)))
    waiting.start()
    world.control.seed_jobs([{"project": "p", "jobId": "another"}])
    waiting.join(FOR_EVER / 2)
    assert woken == [True]


def test_a_message_wakes_once(world, subscription):
    world.control.seed_jobs([{"project": "p", "jobId": "one"}, {"project": "p", "jobId": "two"}])
    assert subscription.wait(FOR_EVER)
    world.control.advance(601)
    assert not subscription.wait(1)


def test_nothing_ends_and_the_time_is_waited_for(subscription):
    began = time.monotonic()
    assert not subscription.wait(1)
    assert time.monotonic() - began >= 1


def test_a_message_whose_acknowledgement_fails_wakes_again(world, subscription, caplog):
    world.control.seed_jobs([{"project": "p", "jobId": "one"}])
    world.control.add_fault("pubsub.subscriptions.acknowledge", "status", status=503, times=1)
    assert not subscription.wait(1)
    world.control.advance(11)
    assert subscription.wait(FOR_EVER)
    assert "falling back to polling" in caplog.text


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 403}, {"kind": "status", "status": 429}, {"kind": "reset"}]
)
def test_a_subscription_that_cannot_be_used_is_told_of_once_and_waiting_is_sleeping(world, subscription, caplog, fault):
    world.control.add_fault("pubsub.subscriptions.pull", **fault)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not subscription.wait(0.6)
    assert caplog.text.count("unavailable; falling back to polling") == 1
    assert world.control.calls()["pubsub.subscriptions.pull"] == 3


def test_a_host_that_is_not_there_is_no_error(monkeypatch, caplog):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:9")
    with requests.Session() as session:
        assert not Subscription(session, NAME).wait(0.2)
    assert "unavailable; falling back to polling" in caplog.text


class Proxy(requests.Session):
    """Answers everything at once, and always the same."""

    def __init__(self, content):
        super().__init__()
        self.content, self.asked = content, 0

    def post(self, *_args, **_kwargs):
        self.asked += 1
        answer = requests.Response()
        answer.status_code, answer._content = 200, self.content
        return answer


def test_messages_that_come_all_the_time_wake_once_a_second():
    """A look follows each time."""
    proxy = Proxy(b'{"receivedMessages": [{"ackId": "x"}]}')
    subscription, until, woken = Subscription(proxy, NAME), time.monotonic() + 2.5, 0
    while time.monotonic() < until:
        woken += subscription.wait(FOR_EVER)
    assert woken <= 4


def test_what_a_look_has_seen_does_not_grow_old_while_the_checkpoint_waits_for_its_name(world, monkeypatch):
    """Whoever is woken again and again looks when it can dispatch at once."""
    seen = []

    class Cooldown(NameCooldown):
        def wait_for_some(self, keys):
            began = time.monotonic()
            found = super().wait_for_some(keys)
            if time.monotonic() - began > SAME_NAME_S / 10 and any("@" in str(each) for each in keys):
                seen.append("waited")
            return found

    look = Dispatcher.look
    monkeypatch.setattr(Dispatcher, "look", lambda self: seen.append("look") or look(self))
    monkeypatch.setattr("bqdispatch_provider.gcp.objects.NameCooldown", Cooldown)
    with world.dispatcher() as dispatcher:
        journal = RunJournal(dispatcher.store, dispatcher.config, "2026-03-05/dispatch/run/task")
        report = run_cycles(
            dispatcher,
            journal,
            5,
            wait=lambda _: (seen.append("woken"), world.trace()),
            send_metrics=lambda _: seen.append("done"),
        )
    assert report.dispatched > 1
    assert ("woken", "waited", "look") in zip(seen, seen[1:], seen[2:], strict=False)
    assert ("look", "waited") not in pairwise(seen)


def test_an_answer_that_is_no_object_ends_no_run(caplog):
    assert not Subscription(Proxy(b"[]"), NAME).wait(0.1)
    assert "the answer to pull is not a JSON object" in caplog.text


def test_who_is_answered_at_once_does_not_ask_without_end():
    proxy = Proxy(b"{}")
    assert not Subscription(proxy, NAME).wait(1.2)
    assert proxy.asked <= 3


def test_an_end_is_heard_while_it_waits(subscription):
    asked = iter([True, False])
    assert not subscription.wait(FOR_EVER, lambda: next(asked))


def test_the_right_to_use_it_is_asked_for(subscription):
    permission = "pubsub.subscriptions.consume"
    assert subscription.test_permissions([permission]) == [permission]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        (NAME, True),
        ("projects/acme.com:ops/subscriptions/bq-jobs", True),
        ("jobs", False),
        ("projects/p/topics/jobs", False),
        ("projects/p/subscriptions/x", False),
        ("projects/p/subscriptions/a/b?c=d", False),
        (f"{NAME}\n", False),
    ],
)
def test_a_name_is_a_full_one(name, is_one):
    assert bool(SUBSCRIPTION.fullmatch(name)) == is_one
