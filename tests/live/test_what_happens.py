"""Somebody meddles with a run of a real Airflow: the rows of docs/runs.md that need one."""

import json
import time

import pytest
from runs import asset_events, clear, has_ended, kill, logged, mark, returned, trigger
from waiting import HELD_MS
from world import JOURNAL, TRIGGER


@pytest.fixture
def ended(live, wait_until):
    """Starts a run of a DAG by hand, or takes one; gives it once it has ended."""

    def until_it_has_ended(dag_id, run_id="first", run=None):
        run = run or trigger(live, dag_id, run_id)
        wait_until(lambda: has_ended(live, run), f"{run} has ended")
        return run

    return until_it_has_ended


def document_of(world, live, run, task_id):
    return world.document_at(returned(live, run, task_id)["document"])


def test_a_lone_task_that_is_cleared_emits_nothing_again_and_its_document_is_added_to(live, world, unpaused, ended):
    first = world.trace(dest="ds.first")
    with unpaused("dispatch_tables"):
        run = ended("dispatch_tables", "cleared")
        assert asset_events(live, run) == ["first"]
        clear(live, run, "dispatch")
        ended("dispatch_tables", run=run)
        assert asset_events(live, run) == ["first"]
        second = world.trace(dest="ds.second")
        clear(live, run, "dispatch")
        ended("dispatch_tables", run=run)
        world.consume()
    assert asset_events(live, run) == ["first", "second"]
    document = document_of(world, live, run, "dispatch")
    assert set(document["Jobs"]) == {world.url_of(first), world.url_of(second)}


def test_a_run_that_is_cleared_adds_to_its_document_and_emits_what_is_new(live, world, unpaused, ended):
    traces = [world.trace(dest="ds.a")]
    with unpaused("by_hand"):
        run = ended("by_hand", "cleared")
        traces.append(world.trace(dest="ds.b"))
        clear(live, run)
        ended("by_hand", run=run)
        assert asset_events(live, run) == ["a", "b"]
        clear(live, run, "report")
        ended("by_hand", run=run)
        world.consume()
    assert asset_events(live, run) == ["a", "b"]
    document = document_of(world, live, run, "report")
    assert set(document["Jobs"]) == {world.url_of(name) for name in traces}
    assert document["Status"] == "ok"


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_task_that_is_marked_while_it_runs_finishes_what_it_has_begun_and_the_next_run_does_the_rest(
    live, world, wait_until, unpaused, ended, state
):
    names = set(world.traces(1700))
    world.control.add_fault("storage.batch", "slow", ms=HELD_MS, after=True)
    asked = live.home / "asked_to_end"
    asked.unlink(missing_ok=True)
    with unpaused("on_a_worker"):
        run = trigger(live, "on_a_worker", f"marked-{state}")
        wait_until(lambda: world.names(TRIGGER), "it dispatches")
        mark(live, run, "dispatch", state)
        wait_until(asked.exists, "it has heard that")
        world.control.clear_faults()
        wait_until(lambda: kill(live, "task", 0) == 0, "its process has ended")
        left = names & set(world.names())
        assert 0 < len(left) < len(names)
        assert len(world.names(TRIGGER)) == len(names - left)
        following = ended("on_a_worker", f"after-{state}")
        assert set(document_of(world, live, following, "dispatch")["Jobs"]) == {world.url_of(name) for name in left}
        assert len(world.names(TRIGGER)) == len(names)
        world.consume()


@pytest.mark.parametrize("act", ["success", "failed", "cleared"])
def test_a_deferred_task_that_is_marked_or_cleared_finishes_what_it_has_begun_and_the_next_does_the_rest(
    live, world, wait_until, unpaused, ended, act
):
    def trigger_of(run):
        found = live.get(f"{run}/taskInstances/dispatch")["trigger"]
        return found and found["id"]

    def told_by(run_id):
        found = [name for name in world.names(JOURNAL) if name.endswith(f"/{dag_id}/{run_id}/dispatch.json")]
        return {url for name in found for url in world.document_at(f"gs://{JOURNAL}/{name}").get("Jobs", {})}

    dag_id = "logs_on_triggerer"
    names = set(world.traces(1700))
    world.control.add_fault("storage.batch", "slow", ms=HELD_MS, after=True)
    with unpaused(dag_id):
        run = trigger(live, dag_id, f"meddled-{act}")
        wait_until(lambda: world.names(TRIGGER), "it dispatches")
        first = trigger_of(run)
        assert first
        if act == "cleared":
            clear(live, run, "dispatch")
        else:
            mark(live, run, "dispatch", act)
        wait_until(lambda: trigger_of(run) != first, "its trigger is taken away")
        world.control.clear_faults()
        wait_until(lambda: told_by(f"meddled-{act}"), "its trigger has finished what it had begun")
        ended(dag_id, run=run)
        ended(dag_id, f"after-{act}")
        assert len(world.names(TRIGGER)) == len(names)
        world.consume()
    told = [told_by(run_id) for run_id in (f"meddled-{act}", f"after-{act}")]
    assert not told[0] & told[1]
    assert told[0] | told[1] == {world.url_of(name) for name in names}


def test_a_run_that_is_deleted_and_started_again_adds_to_its_document(live, world, unpaused, ended):
    traces = [world.trace(dest="ds.a")]
    with unpaused("by_hand"):
        run = ended("by_hand", "deleted")
        live.delete(run)
        traces.append(world.trace(dest="ds.b"))
        ended("by_hand", "deleted")
        world.consume()
    assert asset_events(live, run) == ["a", "b"]
    assert set(document_of(world, live, run, "report")["Jobs"]) == {world.url_of(name) for name in traces}


def test_a_paused_dag_dispatches_nothing_and_loses_nothing(live, world, bqtail, unpaused, wait_until):
    with unpaused("bqdispatch"):
        bqtail.put_file("ds.f")
        wait_until(lambda: bqtail.counters().finished == 1, "it dispatches")
    name = world.trace()
    time.sleep(3)  # a time, since nothing is to happen in it
    assert name in world.names()
    with unpaused("bqdispatch"):
        wait_until(lambda: name not in world.names(), "it dispatches what came meanwhile")


def test_a_connection_that_is_changed_holds_for_the_next_task(live, world, unpaused, ended):
    def connection(journal):
        extra = {"config": world.document(JournalURL=f"gs://{JOURNAL}/{journal}")}
        return {"connection_id": "changing", "conn_type": "bqdispatch", "extra": json.dumps(extra)}

    names = [world.trace(), None]
    live.post("connections", connection("before"))
    with unpaused("changing"):
        before = ended("changing", "before")
        names[1] = world.trace()
        live.patch("connections/changing", connection("after"))
        after = ended("changing", "after")
        world.consume()
    for run, journal, name in ((before, "before", names[0]), (after, "after", names[1])):
        url = returned(live, run, "dispatch")["document"]
        assert url.startswith(f"gs://{JOURNAL}/{journal}/")
        assert set(world.document_at(url)["Jobs"]) == {world.url_of(name)}


def test_a_deferred_task_has_the_log_that_it_has_on_a_worker(live, world, unpaused, ended):
    lines = {}
    for where in ("worker", "triggerer"):
        bad, _ = world.traces(2)
        for call in ("storage.objects.copy", "storage.objects.rewrite"):
            world.control.add_fault(call, "status", status=403, name=f"*{bad}")
        with unpaused(f"logs_on_{where}"):
            run = ended(f"logs_on_{where}")
            world.consume()
        own = ("bqdispatch_provider.operators", "bqdispatch_provider.triggers")
        lines[where] = sorted(
            "".join(each for each in event if not each.isdigit())
            for logger, event in logged(live, run, "dispatch")
            if logger and logger.startswith("bqdispatch_provider") and not logger.startswith(own)
        )
        world.control.clear_faults()
        for left in (bad, *world.intents()):
            world.delete(left)
    assert lines["worker"] == lines["triggerer"]
    assert len(lines["worker"]) >= 3


@pytest.mark.parametrize("dag_id", ["tells_of_success", "tells_of_a_skip"])
def test_a_deferred_task_that_finds_nothing_tells_of_a_stuck_window(
    live, slack, world, unpaused, ended, wait_until, dag_id
):
    name = world.window(due=20 * 60)
    with unpaused(dag_id):
        ended(dag_id)
        wait_until(lambda: slack.messages, "Slack is told")
    assert "stuck window" in slack.messages[0]["text"]
    assert name in slack.messages[0]["text"]
    world.delete(name)


def test_a_run_that_fails_tells_what_its_document_says(live, slack, world, unpaused, ended, wait_until):
    name = world.trace()
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403, name=f"*{name}")
    with unpaused("tells_of_its_run"):
        run = ended("tells_of_its_run")
        assert live.get(run)["state"] == "failed"
        wait_until(lambda: slack.messages, "Slack is told")
    assert name in slack.messages[0]["text"]
    assert "• error:" in slack.messages[0]["text"]
