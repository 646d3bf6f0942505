"""Waiting until BqTail is through, in each mode of a sensor."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from waiting import wait_until
from world import JOURNAL, TASKS


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
    from bqdispatch_provider.triggers import BqDispatchDoneTrigger

    end = datetime(2026, 1, 1, tzinfo=UTC)
    path, given = BqDispatchDoneTrigger("c", end, only={"projects": ["p"]}, settle_time=5).serialize()
    assert path.rpartition(".")[2] == "BqDispatchDoneTrigger"
    assert BqDispatchDoneTrigger(**given).serialize() == (path, given)


def test_a_cancelled_trigger_ends_with_the_look_that_was_begun(world, connect):
    from bqdispatch_provider.triggers import BqDispatchDoneTrigger

    trigger = BqDispatchDoneTrigger("bqdispatch_default", datetime.now(UTC) + timedelta(hours=1), settle_time=3600)

    def wait_for_a_look():
        wait_until(lambda: world.control.calls().get("storage.objects.list"), "a look was begun")

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
