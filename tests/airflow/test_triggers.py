"""The trigger on an event loop, without a triggerer around it."""

import asyncio
import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from world import TASKS

from bqdispatch_provider.triggers import BqDispatchTrigger


def trigger(wait=0.0, **more):
    end = datetime.now(UTC) + timedelta(seconds=wait)
    return BqDispatchTrigger("bqdispatch_default", end, poll_interval=0.05, **more)


async def event_of(waiting):
    return (await anext(aiter(waiting.run()))).payload


def no_thread_is_left():
    """None of the trigger's own, and none of its dispatcher's."""
    left = [each for each in threading.enumerate() if each.name.startswith(("bqdispatch-trigger", "bqdispatch_"))]
    for each in left:
        each.join(1)
    return not any(each.is_alive() for each in left)


def test_a_trigger_is_made_again_from_what_it_serializes():
    first = trigger(variables={"a": "b"}, lanes=["sql"], only={"actions": ["load"]})
    path, arguments = first.serialize()
    assert path == f"{BqDispatchTrigger.__module__}.{BqDispatchTrigger.__qualname__}"
    assert BqDispatchTrigger(**arguments).serialize() == (path, arguments)


def test_a_triggers_arguments_survive_airflows_serialization():
    from airflow.serialization.serialized_objects import BaseSerialization

    _, arguments = trigger(variables={"a": "b"}, lanes=["sql"]).serialize()
    stored = json.dumps(BaseSerialization.serialize(arguments))
    assert BaseSerialization.deserialize(json.loads(stored)) == arguments
    assert len(stored) < 500


def test_work_ends_the_waiting(world, connect):
    world.trace()
    assert asyncio.run(event_of(trigger(30))) == {"status": "work", "message": ""}
    assert no_thread_is_left()


def test_work_of_another_lane_does_not_end_the_waiting(world, connect):
    world.trace()
    assert asyncio.run(event_of(trigger(lanes=["windows"])))["status"] == "nothing"


def test_the_end_of_its_time_ends_the_waiting(world, connect):
    assert asyncio.run(event_of(trigger(0.2)))["status"] == "nothing"


def test_an_exception_becomes_an_event(world, connect):
    world.control.add_fault("storage.objects.list", "status", bucket=TASKS, status=403)
    event = asyncio.run(event_of(trigger(30)))
    assert event["status"] == "error"
    assert "Forbidden" in event["message"]


def test_a_broken_connection_becomes_an_event(connect):
    connect({"config": {}, "config_url": "gs://b/c"})
    event = asyncio.run(event_of(trigger(30)))
    assert event["status"] == "error"
    assert "exactly one of" in event["message"]


def test_a_cancelled_trigger_waits_for_the_look_that_was_begun(world, connect):
    world.control.add_fault("storage.objects.list", "slow", bucket=TASKS, ms=500)

    async def cancel():
        task = asyncio.create_task(event_of(trigger(30)))
        while world.control.calls().get("storage.objects.list", 0) == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return world.control.calls()["storage.objects.list"]

    assert asyncio.run(cancel()) == 1
    assert no_thread_is_left()


def test_the_event_loop_is_never_blocked(world, connect):
    world.control.add_fault("storage.objects.list", "slow", bucket=TASKS, ms=400)

    async def longest_pause():
        task = asyncio.create_task(event_of(trigger()))
        longest = 0.0
        while not task.done():
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)
        return longest

    asyncio.run(event_of(trigger()))  # whatever is imported the first time
    assert asyncio.run(longest_pause()) < 0.3
