"""A dispatcher that lives in the triggerer of a real Airflow: killed, and woken by an event."""

from runs import has_ended, kill, trigger
from waiting import HELD_MS
from world import JOURNAL, TASKS, TRIGGER

AFTER_A_CRASH = 200
"""Seconds after which everybody takes up what a dispatcher has left."""


def test_a_killed_triggerer_loses_and_doubles_nothing_and_the_document_is_complete(live, world, wait_until, unpaused):
    world.control.add_fault(
        "storage.objects.delete", "slow", bucket=TASKS, name="*--dispatch", ms=HELD_MS, times=1, after=True
    )
    names = world.traces(30)
    with unpaused("alone"):
        run = trigger(live, "alone", "killed")
        wait_until(lambda: world.control.faults()[0]["times"] == 0, "it has moved a trace")
        assert kill(live, "triggerer") > 0
        assert world.names() != []
        world.control.clear_faults()
        live.start("triggerer")
        world.control.advance(AFTER_A_CRASH)
        wait_until(lambda: not [name for name in world.names() if name in names], "all is dispatched")
        wait_until(lambda: has_ended(live, run), "the run has ended")
        assert live.get(run)["state"] == "success"
        task = live.get(f"{run}/taskInstances/dispatch")
        assert (task["try_number"], task["pid"]) == (1, None), "no worker process was needed"
        assert len(world.names(TRIGGER)) == len(names)
        assert live.get(f"{run}/taskInstances/dispatch/xcomEntries")["xcom_entries"] == []
        (place,) = [name for name in world.names(JOURNAL, "journal/runs/") if "/alone/killed/" in name]
        document = world.document_at(f"gs://{JOURNAL}/{place}")
        assert set(document["Jobs"]) == {world.url_of(name) for name in names}
        assert document["Outcomes"]["dispatched"] == len(names)
        world.consume()


def test_an_event_starts_a_run_without_the_minute(live, world, wait_until, unpaused):
    def dispatched_on_event():
        runs = live.get("dags/bqdispatch_on_events/dagRuns", run_type=["asset_triggered"], state=["success"])[
            "dag_runs"
        ]
        paths = (f"dags/bqdispatch_on_events/dagRuns/{run['dag_run_id']}" for run in runs)
        tasks = (live.get(f"{path}/taskInstances/dispatch/xcomEntries")["xcom_entries"] for path in paths)
        if any(each["key"] == "return_value" for entries in tasks for each in entries):  # it has dispatched something
            return True
        if not world.names():
            world.trace()  # the minute's own run was faster
        return False

    with unpaused("bqdispatch_on_events"):
        wait_until(dispatched_on_event, "a run that an event has started has dispatched it")
        wait_until(lambda: not world.names(), "the last one is through, too")
        world.consume()
