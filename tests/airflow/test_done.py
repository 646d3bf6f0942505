"""Waiting until BqTail is through: never too early, with few requests, in each mode of a sensor."""

import asyncio
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import requests
from google.api_core.exceptions import GoogleAPIError
from world import JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.model import Only
from bqdispatch_provider.testing.bqtail import BqTailSettings, StandInBqTail

ORDERS = Only(destinations=("sales.orders",))
ABSENT = 25.0


class DallyingBqTail(StandInBqTail):
    """Deletes what it consumes at once, and acts on it a while later: meanwhile nothing is to be seen of it."""

    def __init__(self, world, chance):
        settings = BqTailSettings.for_dispatcher(
            world.config(),
            window_s=30,
            unbatched=frozenset({"sales.direct"}),
            pending_ms=(0, 20_000),
            running_ms=(0, 20_000),
            failing=0.1,
        )
        super().__init__(world.client, requests.Session(), world.url, settings)
        self.world, self.chance, self.held = world, chance, []

    def step(self):
        now = self.world.control.now()
        for prefix in ("_batch_/", "_bqjob_/"):
            for blob in self.world.client.list_blobs(TRIGGER, prefix=prefix):
                body = blob.download_as_bytes()
                blob.delete()
                self.held.append((now + self.chance.uniform(0, ABSENT), blob.name, body))
        due = [each for each in self.held if each[0] <= now]
        self.held = [each for each in self.held if each[0] > now]
        for at, name, body in due:
            if not self._act(name, body):
                self.held.append((at, name, body))

    def unfinished(self, dest):
        return [problem for problem in self.account().problems if f"/{dest}/" in problem.file]


class Simulated:
    """BqTail and a dispatcher at work while a sensor sleeps, by the stand-in's clock."""

    def __init__(self, world, seed):
        self.world, self.chance = world, random.Random(seed)
        self.bqtail = DallyingBqTail(world, self.chance)
        self.dispatcher = world.dispatcher()

    def sleep(self, seconds):
        self.world.control.advance(seconds)
        if self.chance.random() < 0.5:
            self.dispatcher.cycle()
        self.bqtail.step()

    def wait(self, only, quiet_for):
        """As a sensor does: looks until it is done; gives how often it saw something."""
        from bqdispatch_provider.done import is_done, left

        times = 0
        while is_done(lambda: left(self.dispatcher, only), quiet_for, self.sleep, self.world.control.now):
            times += 1
            assert times < 1000
            self.sleep(10)
        return times


@pytest.mark.parametrize("seed", range(12))
def test_it_is_never_done_before_the_last_post_action_was_triggered(world, seed):
    there = Simulated(world, seed)
    with there.dispatcher:
        for dest in ("sales.orders", "sales.direct"):
            for _ in range(there.chance.randint(1, 4)):
                there.bqtail.put_file(dest)
                there.sleep(there.chance.uniform(0, 20))
        only = Only(destinations=(there.chance.choice(["sales.*", "sales.orders", "sales.direct"]),))
        assert there.wait(only, 2 * ABSENT) > 0
        for dest in ("sales.orders", "sales.direct"):
            if only.destinations[0] in ("sales.*", dest):
                assert there.bqtail.unfinished(dest) == []


def test_without_a_quiet_time_it_would_be_done_between_two_steps(world):
    early = 0
    for seed in range(3):
        there = Simulated(world, seed)
        with there.dispatcher:
            there.bqtail.put_file("sales.direct")
            there.wait(Only(), 0)
            early += bool(there.bqtail.unfinished("sales.direct"))
            there.wait(Only(), 2 * ABSENT)
            assert there.bqtail.unfinished("sales.direct") == []
    assert early


def seen(world, only=ORDERS):
    from bqdispatch_provider.done import left

    with world.dispatcher() as dispatcher:
        return sorted(url.rpartition("/")[2] for url in left(dispatcher, only))


def test_what_waits_is_left_and_what_others_have_is_not(world):
    mine = [world.trace(dest="sales.orders", state="RUNNING"), world.trace(dest="p:sales.orders")]
    window = world.window("sales.orders", due=-100)
    world.trace(dest="sales.returns")
    world.window("sales.returns")
    assert seen(world) == sorted([*(name.rpartition("/")[2] for name in mine), window])


def test_a_window_is_left_until_bqtail_has_consumed_it(world):
    window = world.window("sales.orders")
    world.cycle()
    assert seen(world) == [window]  # in the trigger bucket
    world.delete(f"_batch_/{window}", TRIGGER)
    assert seen(world) == []
    assert window in world.names()


def test_a_delivered_trace_is_left_until_bqtail_has_consumed_it(world):
    name = world.trace(dest="sales.orders")
    world.trace(dest="sales.returns")
    world.cycle()
    assert seen(world) == [f"{name.rpartition('/')[2]}.json"]


def test_what_was_delivered_under_a_name_that_cannot_be_read_is_left_of_everything(world):
    world.client.bucket(TRIGGER).blob("_bqjob_/2026-01-01_10/sales").upload_from_string("{}")
    assert seen(world) == ["sales"]


def test_a_window_is_a_load_to_come_and_has_no_event_id(world):
    window = world.window("sales.orders")
    assert seen(world, Only(actions=("load",))) == [window]
    assert seen(world, Only(actions=("query",))) == []
    assert seen(world, Only(event_ids=("1001",))) == []


def test_a_look_takes_three_lists_and_asks_for_no_job(world):
    world.traces(50, dest="sales.returns")
    world.control.reset_counters()
    assert seen(world) == []
    assert world.control.calls() == {"storage.objects.list": 3}


def test_a_look_at_due_windows_takes_a_list_of_each_minute_in_which_they_ended(world):
    due = [world.window("sales.orders", due=minutes * 60) for minutes in (2, 3, 4)]
    fired = world.window("sales.orders", due=7200)
    with world.dispatcher() as dispatcher:
        (share,) = dispatcher.look().plan.shares()
        dispatcher.dispatch([replace(share, events=share.events[:1])])
    world.delete(f"_batch_/{fired}", TRIGGER)
    world.control.reset_counters()
    assert seen(world) == sorted(due)
    assert world.control.calls()["storage.objects.list"] == 3 + 4
    assert world.control.requests() == 3 + 1


def test_a_ledger_that_cannot_be_read_is_not_taken_for_done(world):
    for minutes in (2, 3):
        world.window("sales.orders", due=minutes * 60)
    world.control.add_fault("storage.batch", "status", status=403)
    with pytest.raises(GoogleAPIError, match="~ledger"):
        seen(world)


@pytest.mark.parametrize("mode", ["poked", "rescheduled", "deferred"])
def test_a_sensor_waits_for_what_a_dispatcher_beside_it_does(world, run, mode):
    name = world.trace(dest="sales.orders")
    world.trace(dest="sales.returns", state="RUNNING")
    done = run(f"done_{mode}", "waiting.py")
    assert done.state == "success"
    assert name not in world.names()


@pytest.mark.parametrize("mode", ["poked", "rescheduled", "deferred"])
def test_a_sensor_whose_time_is_up_fails(world, run, mode):
    world.trace(dest="sales.orders", state="RUNNING")
    done = run(f"late_{mode}", "waiting.py")
    assert (done.state, done.states["done"]) == ("failed", "failed")


def test_a_deferred_sensor_that_may_not_look_fails_with_what_was_said(world, run):
    world.control.add_fault("storage.objects.list", "status", bucket=TASKS, status=403)
    assert run("done_deferred", "waiting.py").states["done"] == "failed"


def test_a_trigger_is_made_again_from_what_it_says(database):
    from bqdispatch_provider.done import BqDispatchDoneTrigger

    end = datetime(2026, 1, 1, tzinfo=UTC)
    path, given = BqDispatchDoneTrigger("c", end, only={"projects": ["p"]}, quiet_for=5).serialize()
    assert path.rpartition(".")[2] == "BqDispatchDoneTrigger"
    assert BqDispatchDoneTrigger(**given).serialize() == (path, given)


def test_a_cancelled_trigger_ends_with_the_look_that_was_begun(world, connect):
    from bqdispatch_provider.done import BqDispatchDoneTrigger

    trigger = BqDispatchDoneTrigger("bqdispatch_default", datetime.now(UTC) + timedelta(hours=1), quiet_for=3600)

    def wait_for_a_look():
        while not world.control.calls().get("storage.objects.list"):
            time.sleep(0.01)

    async def cancel():
        waiting = asyncio.ensure_future(anext(trigger.run()))
        await asyncio.to_thread(wait_for_a_look)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancel())


def test_what_is_no_only_fails_at_once(world, run):
    assert run("done_wrong", "waiting.py").state == "failed"
    assert world.names(JOURNAL) == []
