"""The trigger on an event loop, without a triggerer around it."""

import asyncio
import copy
import json
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import requests
from airflow.providers.common.compat.sdk import DAG, Asset, BaseOperator
from airflow.triggers.base import TaskSkippedEvent, TaskSuccessEvent
from serialized import serialized
from waiting import HELD_MS, PATIENCE_S, wait_until
from world import JOURNAL, TASKS

from bqdispatch_provider import compat, links
from bqdispatch_provider.names import TraceName
from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor
from bqdispatch_provider.triggers import BqDispatchEventTrigger, BqDispatchTrigger, DispatchTrigger

PATH = "2026-01-02/dag/run/task"


def trigger(timeout=0.0, **more):
    return BqDispatchTrigger("bqdispatch_default", timeout, **{"poll_interval": 0.05, "journal_path": PATH, **more})


def dispatch_trigger(time_to_live=0.0, **more):
    return DispatchTrigger("bqdispatch_default", time_to_live, **{"poll_interval": 0.05, "journal_path": PATH, **more})


def written(world, name=f"runs/{PATH}.json"):
    return json.loads(world.blob(f"journal/{name}", JOURNAL).download_as_bytes())


async def events_of(waiting):
    return [event async for event in waiting.run()]


async def event_of(waiting):
    return (await events_of(waiting))[0].payload


async def cancelled(world, waiting, call):
    """Cancel a trigger while a call is held up, for which it waits all the same."""
    task = asyncio.create_task(events_of(waiting))
    await asyncio.to_thread(wait_until, lambda: world.control.calls().get(call))
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    world.control.clear_faults()
    with pytest.raises(asyncio.CancelledError):
        await task


def no_thread_is_left():
    """None of the trigger's own, and none of its dispatcher's."""
    left = [each for each in threading.enumerate() if each.name.startswith(("bqdispatch-trigger", "bqdispatch_"))]
    for each in left:
        each.join(PATIENCE_S)
    return not any(each.is_alive() for each in left)


@pytest.mark.parametrize(
    "first",
    [
        trigger(variables={"a": "b"}, only={"actions": ["load"]}, deferral_timeout=60.0, skip_when_idle=True),
        dispatch_trigger(
            resume_on_worker="always", write_performance=False, attempt=2, deferred_at=datetime(2026, 1, 2, tzinfo=UTC)
        ),
        BqDispatchEventTrigger("bqdispatch_default", only={"projects": "p"}),
    ],
)
def test_a_trigger_is_made_again_from_what_it_serializes(first):
    path, arguments = first.serialize()
    assert path == f"{type(first).__module__}.{type(first).__qualname__}"
    assert type(first)(**arguments).serialize() == (path, arguments)
    assert type(copy.deepcopy(first)) is type(first)


def test_a_triggers_arguments_survive_airflows_serialization():
    from airflow.serialization.serialized_objects import BaseSerialization

    _, arguments = trigger(
        variables={"a": "b"}, only={"lanes": ["sql"]}, deferred_at=datetime(2026, 1, 2, tzinfo=UTC)
    ).serialize()
    stored = json.dumps(BaseSerialization.serialize(arguments))
    assert BaseSerialization.deserialize(json.loads(stored)) == arguments
    assert len(stored) < 500


def test_work_ends_the_waiting(world, connect):
    world.trace()
    event = asyncio.run(event_of(trigger(30, deferred_at=datetime(2026, 1, 1, tzinfo=UTC))))
    assert event == {"status": "work", "message": "", "until": "2026-01-01T00:00:30+00:00"}
    assert no_thread_is_left()


def test_work_of_another_lane_does_not_end_the_waiting(world, connect):
    world.trace()
    assert asyncio.run(event_of(trigger(only={"lanes": ["windows"]})))["status"] == "nothing"


def test_the_end_of_its_time_ends_the_waiting(world, connect):
    assert asyncio.run(event_of(trigger(0.2)))["status"] == "nothing"


def test_the_end_is_counted_from_when_the_task_was_deferred_however_often_the_trigger_is_started(world, connect):
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    assert asyncio.run(event_of(trigger(3000, deferred_at=an_hour_ago)))["status"] == "nothing"
    again = trigger(3000, deferral_timeout=3060.0)
    again.timeout_after = an_hour_ago + timedelta(seconds=3060)
    assert asyncio.run(event_of(again))["status"] == "nothing"


def test_a_jobs_end_is_told_by_its_subscription_in_the_middle_of_a_long_pause(world, connect, monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", world.url)
    monkeypatch.setattr("bqdispatch_provider.core.polling.MIN_INTERVAL_S", 600.0)
    topic, subscription = "projects/p/topics/jobs", "projects/p/subscriptions/jobs"
    for path, body in ((topic, {}), (subscription, {"topic": topic})):
        requests.put(f"{world.url}/v1/{path}", json=body, timeout=10).raise_for_status()
    world.control.set_log_sink(topic)
    connect({"config": world.document(), "subscription": subscription})
    job = TraceName.parse(world.trace(state=None)).job_id
    world.control.seed_jobs(
        [{"project": "p", "location": "US", "jobId": job, "creationTime": world.control.now(), "runningMs": 60_000}]
    )
    world.control.reset_counters()

    def end_the_job_while_it_is_waited_for():
        wait_until(lambda: world.control.calls().get("pubsub.subscriptions.pull"), "it waits for a message")
        looked = world.control.calls()["storage.objects.list"]
        world.control.advance(61)
        return looked

    async def both():
        waiting = asyncio.create_task(event_of(trigger(600, poll_interval=600.0)))
        looked = await asyncio.to_thread(end_the_job_while_it_is_waited_for)
        return looked, await asyncio.wait_for(waiting, PATIENCE_S)

    looked, event = asyncio.run(both())
    assert event["status"] == "work"
    calls = world.control.calls()
    assert (calls["storage.objects.list"], calls["pubsub.subscriptions.acknowledge"]) == (2 * looked, 1)


def test_nothing_to_dispatch_ends_the_task_and_is_reported_by_the_trigger(world, connect):
    world.trace(state="RUNNING")
    world.window(due=-600)
    lost = world.trace(state=None, age=2 * 24 * 3600)
    (event,) = asyncio.run(events_of(trigger(skip_when_idle=True)))
    assert type(event) is TaskSkippedEvent
    document = written(world, "runs/2026-01-02/dag/run.json")
    assert list(document["Quarantined"]) == [world.url_of(lost)]
    assert document["Outcomes"] == {"running": 1, "pending": 1, "quarantined": 1}
    assert sum(document["Outcomes"].values()) == document["Listed"]
    assert written(world, "performance.json") == document["Performance"]


def test_one_object_and_one_error_are_told_in_the_singular_by_both_triggers(world, connect, caplog):
    polling, dispatching = trigger(skip_when_idle=True), dispatch_trigger()
    polling._log = dispatching._log = logging.getLogger("task")  # at a level of its own, whatever Airflow's is
    caplog.set_level(logging.INFO, "task")
    world.trace(state="RUNNING")
    asyncio.run(events_of(polling))
    assert [each for each in caplog.messages if each.startswith("Nothing to dispatch; 1 object: 1 running; gs://")]
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403)
    world.trace()
    asyncio.run(events_of(dispatching))
    assert [each for each in caplog.messages if each.startswith("2 objects: ") and "; 1 error; document gs://" in each]


def started_there(trigger):
    """Give a trigger the task instance that the triggerer knows: a mere row on Airflow 2, with a context on 3."""
    when = datetime(2026, 1, 2, tzinfo=UTC)
    ids = {"dag_id": "dag", "run_id": "run", "task_id": "task", "map_index": -1, "try_number": 2}
    ti = trigger.task_instance = SimpleNamespace(**ids, trigger_timeout=None)
    if compat.AIRFLOW_V_3_0_PLUS:
        context = {"ti": ti, "dag": SimpleNamespace(dag_id="dag"), "run_id": "run", "logical_date": when}
        ti.get_template_context = lambda: context
    else:
        ti.execution_date = when
    return trigger


def test_a_task_that_starts_in_the_triggerer_finds_its_journal_there(world, connect):
    (idle,) = asyncio.run(events_of(started_there(trigger(skip_when_idle=True, journal_path=None))))
    world.trace()
    (done,) = asyncio.run(events_of(started_there(dispatch_trigger(journal_path=None))))
    assert (type(idle), type(done)) == (TaskSkippedEvent, TaskSuccessEvent)
    assert written(world, "runs/2026-01-02/dag/run.json")["Status"] == "ok"
    assert (written(world)["Outcomes"], written(world)["Try"]) == ({"dispatched": 1}, 2)


def test_a_trigger_that_cannot_report_says_so(world, connect):
    world.control.add_fault("storage.objects.insert", "status", bucket=JOURNAL, name="*/run.json", status=403)
    assert asyncio.run(event_of(trigger(skip_when_idle=True)))["status"] == "error"


def test_a_dispatching_trigger_ends_the_task_with_a_document_and_without_a_value(world, connect):
    names = world.traces(3)
    (event,) = asyncio.run(events_of(dispatch_trigger()))
    assert type(event) is TaskSuccessEvent
    assert "return_value" not in event.xcoms
    assert set(written(world)["Jobs"]) == {world.url_of(name) for name in names}
    assert written(world, "performance.json") == written(world)["Performance"]
    assert world.names(JOURNAL, "journal/runs/") == [f"journal/runs/{PATH}.json"]
    assert no_thread_is_left()


def test_what_ends_in_the_triggerer_has_its_links(world, connect, monkeypatch):
    monkeypatch.setattr(links, "emulator", lambda _: "")
    world.trace()
    (done,) = asyncio.run(events_of(dispatch_trigger()))
    (idle,) = asyncio.run(events_of(trigger(skip_when_idle=True)))
    document = f"https://console.cloud.google.com/storage/browser/_details/{JOURNAL}/journal/runs/2026-01-02/dag/run"
    assert done.xcoms.keys() == {"bqdispatch_job", "bqdispatch_folder", "bqdispatch_document"}
    assert done.xcoms["bqdispatch_document"] == f"{document}/task.json"
    assert idle.xcoms == {"bqdispatch_document": f"{document}.json"}


def test_a_dispatching_trigger_wakes_a_worker_only_where_something_was_done(world, connect):
    assert type(asyncio.run(events_of(dispatch_trigger(resume_on_worker="on_work")))[0]) is TaskSuccessEvent
    world.trace()
    event = asyncio.run(event_of(dispatch_trigger(resume_on_worker="on_work")))
    assert event == {"status": "done", "message": "", "document": f"gs://{JOURNAL}/journal/runs/{PATH}.json"}


def test_a_dispatching_trigger_goes_on_until_its_time_to_live_is_over(world, connect, monkeypatch):
    over = threading.Event()
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * over.is_set())
    monkeypatch.setattr("bqdispatch_provider.dispatcher.time", clock)

    def looks():
        return world.control.calls().get("storage.objects.list", 0)

    async def dispatch():
        task = asyncio.create_task(events_of(dispatch_trigger(3600.0)))
        await asyncio.to_thread(wait_until, looks)
        world.trace()
        await asyncio.to_thread(wait_until, lambda: not world.names())
        so_far = looks()
        await asyncio.to_thread(wait_until, lambda: looks() > so_far + 1)
        over.set()
        await task

    asyncio.run(dispatch())
    assert written(world)["Dispatched"] == {"LoadJobs": 1}
    assert written(world)["Cycles"] > 2


def test_a_dispatching_trigger_that_is_started_again_goes_on_until_the_same_end(world, connect):
    deferred_at = datetime.now(UTC) - timedelta(hours=1)
    asyncio.run(events_of(dispatch_trigger(3600.0, deferred_at=deferred_at)))
    assert written(world)["Cycles"] == 1


def test_a_cancelled_dispatching_trigger_finishes_what_was_begun_and_the_next_one_adds_to_its_document(world, connect):
    first = world.traces(2)
    world.control.add_fault("storage.objects.copy", "slow", ms=HELD_MS, times=1)
    asyncio.run(cancelled(world, dispatch_trigger(3600.0), "storage.objects.copy"))
    assert no_thread_is_left()
    through = set(written(world)["Jobs"])
    assert through
    later = world.traces(2)
    asyncio.run(events_of(dispatch_trigger()))
    document = written(world)
    assert set(document["Jobs"]) == {world.url_of(name) for name in (*first, *later)}
    assert document["Outcomes"]["dispatched"] == 4
    assert world.names() == []


def test_an_event_trigger_tells_of_each_event_once(world, connect):
    async def tell():
        telling = aiter(BqDispatchEventTrigger("bqdispatch_default", poll_interval=0.05).run())
        world.traces(2)
        told = [(await anext(telling)).payload]
        world.control.reset_counters()
        following = asyncio.create_task(anext(telling))
        while world.control.calls().get("storage.objects.list", 0) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not following.done()
        world.trace()
        told.append((await following).payload)
        await telling.aclose()
        return told

    assert asyncio.run(tell()) == [{"status": "work", "message": "", "events": number} for number in (2, 3)]
    assert no_thread_is_left()


def test_an_event_trigger_tells_again_of_what_nobody_has_dispatched(world, connect, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.triggers.REPEAT_AFTER_S", 0.3)

    async def tell():
        telling = aiter(BqDispatchEventTrigger("bqdispatch_default", poll_interval=0.05).run())
        world.trace()
        told = [(await anext(telling)).payload["events"] for _ in range(3)]
        await telling.aclose()
        return told

    assert asyncio.run(tell()) == [1, 1, 1]


def test_an_event_trigger_survives_looks_that_fail(world, connect):
    world.control.add_fault("storage.objects.list", "status", bucket=TASKS, status=403, times=2)
    world.trace()

    async def tell():
        telling = aiter(BqDispatchEventTrigger("bqdispatch_default", poll_interval=0.05).run())
        event = await anext(telling)
        await telling.aclose()
        return event.payload["events"]

    assert asyncio.run(tell()) == 1
    assert no_thread_is_left()


def test_what_goes_on_failing_is_logged_in_full_once_and_then_in_a_line(world, database, monkeypatch, caplog):
    monkeypatch.setattr("bqdispatch_provider.triggers.LOG_AGAIN_AFTER_S", 0.0)
    caplog.set_level(logging.WARNING)

    async def tell():
        telling = BqDispatchEventTrigger("of_nobody", poll_interval=0.01)
        telling._log = logging.getLogger("telling")  # Airflow 3 gives one that no handler hears
        following = asyncio.create_task(anext(aiter(telling.run())))
        while len(caplog.records) < 4 and not following.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        following.cancel()

    asyncio.run(tell())
    first, *others = caplog.records
    assert first.exc_info is not None
    assert all(each.exc_info is None and "\n" not in each.getMessage() for each in others)
    assert all("of_nobody" in each.getMessage() for each in others)


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
    world.control.add_fault("storage.objects.list", "slow", bucket=TASKS, ms=HELD_MS)
    asyncio.run(cancelled(world, trigger(3600), "storage.objects.list"))
    assert world.control.calls()["storage.objects.list"] == 1
    assert no_thread_is_left()


def test_the_event_loop_is_never_blocked(world, connect, monkeypatch):
    """It goes on while a call is under way; no call is made in its thread, and next to nothing computed."""
    asyncio.run(event_of(trigger()))  # whatever is imported the first time
    world.control.add_fault("storage.objects.list", "slow", bucket=TASKS, ms=30_000)
    world.control.reset_counters()
    send, callers = requests.Session.send, set()

    def noting(*arguments, **more):
        callers.add(threading.get_ident())
        return send(*arguments, **more)

    monkeypatch.setattr(requests.Session, "send", noting)

    async def look():
        computed = time.thread_time()
        task = asyncio.create_task(event_of(trigger()))
        await asyncio.to_thread(wait_until, lambda: world.control.calls().get("storage.objects.list"))
        assert not task.done()
        await asyncio.to_thread(world.control.clear_faults)
        await task
        return time.thread_time() - computed

    assert asyncio.run(look()) < 0.3
    assert callers
    assert threading.get_ident() not in callers


def test_a_task_begins_in_the_triggerer_where_airflow_can_know_its_arguments_there():
    with DAG("begins", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        number = BaseOperator(task_id="number")
        tasks = [
            DispatchOperator(task_id=f"dispatch_{index}", time_to_live=seconds, start_from_trigger=True)
            for index, seconds in enumerate((30, "{{ 30 }}", "{% if 1 %}30{% endif %}", number.output))
        ]
    can, renders = compat.starts_from_trigger(), compat.renders_triggers()
    assert [task.start_from_trigger for task in tasks] == [can, can and renders, can and renders, False]


@pytest.mark.skipif(not compat.starts_from_trigger(), reason="this Airflow starts tasks on workers")
@pytest.mark.parametrize(
    ("arguments", "after", "expected"),
    [
        ({"assets": False}, (), ("never", True)),
        ({}, (), ("on_work", True)),
        ({"assets": False, "fail_on_error": True}, (), ("on_work", True)),
        ({"assets": False, "on_success_callback": print}, (), ("always", True)),
        ({"assets": False, "on_skipped_callback": print}, (), ("always", True)),
        ({"outlets": [Asset("gs://a/b")]}, (), ("always", True)),
        ({"assets": False}, (BaseOperator,), ("always", True)),
        ({"assets": False}, (DispatchReportOperator,), ("always", False)),
    ],
)
def test_a_task_that_begins_in_the_triggerer_ends_on_a_worker_where_one_that_is_deferred_does(
    database, arguments, after, expected
):
    with DAG("ends", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        task = DispatchOperator(task_id="dispatch", start_from_trigger=True, **arguments)
        for kind in after:
            task >> kind(task_id="after")
    stored = serialized(task.dag).get_task("dispatch").start_trigger_args.trigger_kwargs
    stored = stored.get("__var", stored)
    assert (stored["resume_on_worker"], stored["write_performance"]) == expected


def test_a_task_that_hands_over_begins_on_a_worker_which_knows_when_its_run_was_due():
    with DAG("begins", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        task = DispatchOperator(task_id="dispatch", time_to_live=60, hands_over=True, start_from_trigger=True)
    assert (task.start_from_trigger, task.deferrable) == (False, True)


def test_a_task_with_a_callback_for_its_start_begins_on_a_worker():
    with DAG("begins", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        for kind in (DispatchOperator, BqDispatchSensor):
            task = kind(task_id=kind.__name__, start_from_trigger=True, on_execute_callback=print)
            assert not task.start_from_trigger
