"""Events that are left until BqTail is through: nothing is over too early, and a look takes few requests."""

import json
import os
import random
from dataclasses import replace

import pytest
import requests
from google.api_core.exceptions import GoogleAPIError
from world import TRIGGER

from bqdispatch_provider.core.events import EventFilter
from bqdispatch_provider.core.targets import ledger_entry_name
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.remaining import first_remaining, remaining_urls
from bqdispatch_provider.testing.bqtail import BqTailSettings, StandInBqTail

ORDERS = EventFilter(destinations=("sales.orders",))
ABSENT = 25.0
SEEDS = 12 if os.environ.get("BQDISPATCH_SEEDS") else 4


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
            if not self._deliveries.act(name, body):
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

    def wait(self, only, settle_time):
        """As a sensor does: looks until it is done; gives how often it saw something."""
        times = 0
        while first_remaining(self.dispatcher.folder, only, settle_time, self.sleep, self.world.control.now):
            times += 1
            assert times < 1000
            self.sleep(10)
        return times


@pytest.mark.parametrize("seed", range(SEEDS))
def test_it_is_never_done_before_the_last_post_action_was_triggered(world, seed):
    there = Simulated(world, seed)
    with there.dispatcher:
        for dest in ("sales.orders", "sales.direct"):
            for _ in range(there.chance.randint(1, 4)):
                there.bqtail.put_file(dest)
                there.sleep(there.chance.uniform(0, 20))
        only = EventFilter(destinations=(there.chance.choice(["sales.*", "sales.orders", "sales.direct"]),))
        assert there.wait(only, 2 * ABSENT) > 0
        for dest in ("sales.orders", "sales.direct"):
            if only.destinations[0] in ("sales.*", dest):
                assert there.bqtail.unfinished(dest) == []


def test_without_a_settle_time_it_would_be_done_between_two_steps(world):
    for seed in range(10):
        there = Simulated(world, seed)
        with there.dispatcher:
            there.bqtail.put_file("sales.direct")
            there.wait(EventFilter(), 0)
            if there.bqtail.unfinished("sales.direct"):
                return
    raise AssertionError("it was never done too early")


def seen(world, only=ORDERS):
    with world.dispatcher() as dispatcher:
        return sorted(url.rpartition("/")[2] for url in remaining_urls(dispatcher.folder, only))


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


def test_a_window_that_was_deleted_and_not_fired_is_left(world):
    window = world.window("sales.orders", content=json.dumps({"EventID": "1"}))
    world.put(f"{window[:-4]}/1.loc", age=60, content=f"gs://{TRIGGER}/data/a")
    with world.dispatcher() as dispatcher:
        dispatcher.store.copy = lambda copies, to=None: [Result(403, message="no")] * len(copies)
        dispatcher.cycle()
    assert window not in world.names()
    assert window in seen(world)
    assert seen(world, EventFilter(destinations=("sales.returns",))) == []


def test_a_delivered_trace_is_left_until_bqtail_has_consumed_it(world):
    name = world.trace(dest="sales.orders")
    world.trace(dest="sales.returns")
    world.cycle()
    assert seen(world) == [f"{name.rpartition('/')[2]}.json"]


def test_what_was_delivered_under_a_name_that_cannot_be_read_is_left_of_everything(world):
    world.client.bucket(TRIGGER).blob("_bqjob_/2026-01-01_10/sales").upload_from_string("{}")
    assert seen(world) == ["sales"]


def test_a_folder_that_somebody_has_made_there_is_not_waited_for(world):
    """The console makes an empty object for each, which nobody ever takes."""
    for folder in ("_bqjob_/", "_bqjob_/2026-01-01_10/", "_batch_/"):
        world.client.bucket(TRIGGER).blob(folder).upload_from_string(b"")
    assert seen(world) == []


def test_a_window_is_a_load_to_come_and_has_no_event_id(world):
    window = world.window("sales.orders")
    assert seen(world, EventFilter(actions=("load",))) == [window]
    assert seen(world, EventFilter(actions=("query",))) == []
    assert seen(world, EventFilter(event_ids=("1001",))) == []


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
    assert world.control.requests() == 3 + 1 + 1  # the intent of the window that was fired


def test_a_ledger_that_cannot_be_read_is_not_taken_for_done(world):
    for minutes in (2, 3):
        world.window("sales.orders", due=minutes * 60)
    world.control.add_fault("storage.batch", "status", status=403)
    with pytest.raises(GoogleAPIError, match="~ledger"):
        seen(world)


def test_an_entry_that_cannot_be_read_stops_the_sensors_of_its_own_table_alone(world):
    window = world.window("sales.returns")
    world.put(f"{ledger_entry_name(window, world.blob(window).generation, 'fired', world.config().async_task_url)}-v2")
    assert seen(world, EventFilter(destinations=("sales.orders",))) == []
    with pytest.raises(GoogleAPIError, match="fired-v2"):
        seen(world, EventFilter(destinations=("sales.returns",)))
