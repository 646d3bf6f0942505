"""Whole DAGs against the stand-in Google Cloud: what is dispatched, what is reported, what fails."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import cost
import pytest
from world import JOURNAL, TASKS, TRIGGER


def outcomes(document):
    """Count what became of events; what else lies there is the dispatcher's own."""
    return {outcome: number for outcome, number in document["Outcomes"].items() if outcome != "ignored"}


def adds_up(document):
    return sum(document["Outcomes"].values()) == document["Listed"]


def performance(world):
    blob = world.blob("journal/performance.json", JOURNAL)
    return blob and json.loads(blob.download_as_bytes())


def test_the_sample_dag_moves_and_fires_and_reports(world, run, document):
    loads, query, window = world.traces(3), world.trace("query"), world.window()
    world.trace(state="RUNNING")
    done = run("bqdispatch", "bqdispatch.py")
    assert done.state == "success"
    assert set(done.states) == {"detect", "dispatch_jobs", "dispatch_sql", "report"}
    assert set(done.states.values()) == {"success"}
    written = document(done)
    assert set(written["Jobs"]) == {world.url_of(name) for name in (*loads, query)}
    assert set(written["Batched"]) == {world.url_of(window)}
    assert written["Dispatched"] == {"LoadJobs": 3, "QueryJobs": 1, "BatchJobs": 1}
    assert (written["Status"], written["Running"]) == ("ok", {"LoadJobs": 1})
    assert outcomes(written) == {"dispatched": 5, "running": 1}
    assert adds_up(written)
    assert performance(world) == written["Performance"]
    assert len(world.names(TRIGGER)) == 5


def test_a_run_of_the_sample_dag_costs_what_the_model_of_growth_says(world, run, intents_stay_young):
    world.traces(300)
    world.traces(20, "query")
    world.window()
    world.control.reset_counters()
    run("bqdispatch", "bqdispatch.py")
    model = cost.look(321, 320, minutes=1)
    model += cost.look(1, 0, minutes=1)
    for traces, windows in ((300, 1), (20, 0)):
        model += cost.dispatch(traces, windows)
        model += cost.end(1)
    model += cost.journal(2)
    model += cost.history(first=True)
    made = Counter(world.control.requests_by_method())
    # What the last task removes was written by the others a moment ago: here they begin at once, in one process.
    made -= Counter(world.control.refused())
    assert made == model.requests


def test_with_nothing_to_do_the_tasks_are_skipped_and_the_run_is_reported(world, run, document):
    world.traces(2, state="RUNNING")
    done = run("bqdispatch", "bqdispatch.py")
    assert set(done.states.values()) == {"skipped"}
    assert document(done)["Outcomes"] == {"running": 2}
    assert performance(world)["p"]["Running"] == {"LoadJobs": 2}


def test_a_lane_without_events_is_not_skipped(world, run, document):
    world.trace("query")
    done = run("bqdispatch", "bqdispatch.py")
    assert set(done.states.values()) == {"success"}
    assert outcomes(document(done)) == {"dispatched": 1}


def test_an_xcom_says_in_short_what_is_to_be_dispatched_however_much_that_is(world, run, document):
    names = world.traces(600, dest="ds." + "t" * 300)
    done = run("bqdispatch", "bqdispatch.py")
    (share,) = done.returned("detect")
    assert (share["lane"], share["events"]) == ("jobs", 600)
    assert all(any(name.startswith(each) for name in names) for each in share["first"])
    assert len(json.dumps([share] * 3, indent=4)) < 4096, "Airflow cuts it there"
    assert all(len(json.dumps(done.returned(task))) < 1000 for task in ("dispatch_jobs", "report"))
    returned = done.returned("report")
    assert returned["document"].endswith(f"/bqdispatch/{done.run_id}.json")
    assert returned["Outcomes"] == document(done)["Outcomes"]
    assert outcomes(document(done)) == {"dispatched": 600}


def test_shares_can_be_mapped(world, run, document):
    world.traces(300)
    world.window()
    done = run("mapped")
    assert done.state == "success"
    assert {task for task in done.states if task.startswith("dispatch")} == {f"dispatch[{n}]" for n in range(2)}
    written = document(done)
    assert outcomes(written) == {"dispatched": 301}
    assert adds_up(written)


def test_the_parts_are_removed_once_the_document_is_written(world, run):
    world.trace()
    done = run("mapped")
    left = world.names(JOURNAL, "journal/runs/")
    assert len(left) == 1
    assert left[0].endswith(f"/mapped/{done.run_id}.json")


def test_a_sensor_waits_until_a_window_is_due(world, run, document):
    window = world.window(due=6)
    done = run("bqdispatch", "bqdispatch.py", timeout=30)
    assert done.state == "success"
    assert list(document(done)["Batched"]) == [world.url_of(window)]


def test_a_sensor_can_be_rescheduled(world, run, document):
    window = world.window(due=6)
    done = run("rescheduled", timeout=30)
    assert done.state == "success"
    assert list(document(done)["Batched"]) == [world.url_of(window)]


def test_a_deferred_sensor_feeds_mapped_operators(world, run, document):
    window = world.window(due=6)
    done = run("deferred", timeout=30)
    assert done.state == "success"
    assert list(document(done)["Batched"]) == [world.url_of(window)]
    assert done.states["dispatch[0]"] == "success"


def test_a_deferrable_sensor_does_not_defer_when_there_is_work(world, connect, run):
    connect(JournalRetentionDays=0)  # old documents are listed once an hour
    world.trace()
    world.control.reset_counters()
    assert run("deferred").state == "success"
    looks = world.control.calls()["storage.objects.list"]
    world.trace()
    world.control.reset_counters()
    run("mapped")
    assert world.control.calls()["storage.objects.list"] == looks


def test_a_deferred_sensor_is_skipped_when_its_time_is_up(world, run, document):
    world.trace(state="RUNNING")
    done = run("deferred")
    assert (done.state, done.states["detect"]) == ("success", "skipped")
    assert document(done)["Outcomes"] == {"running": 1}


def test_a_deferred_sensor_fails_with_what_its_trigger_came_to(world, run):
    world.trace(state="RUNNING")

    over = threading.Event()

    def break_after_the_sensors_own_look():
        while not world.control.calls().get("storage.objects.list") and not over.wait(0.01):
            pass
        world.control.add_fault("storage.objects.list", "status", bucket=TASKS, status=403)

    with ThreadPoolExecutor() as aside:
        aside.submit(break_after_the_sensors_own_look)
        try:
            done = run("deferred", timeout=30)
        finally:
            over.set()
    assert (done.state, done.states["detect"]) == ("failed", "failed")


def test_a_strict_sensor_fails_when_its_time_is_up_and_the_run_is_reported(world, run, document):
    world.trace(state="RUNNING")
    done = run("strict")
    assert (done.state, done.states["detect"], done.states["dispatch"], done.states["report"]) == (
        "failed",
        "failed",
        "upstream_failed",
        "failed",
    )
    assert document(done)["Outcomes"] == {"running": 1}


def test_a_sensor_of_one_lane_leaves_the_others(world, run, document):
    world.trace()
    window = world.window()
    done = run("one_lane")
    assert done.state == "success"
    written = document(done)
    assert (list(written["Batched"]), written["Jobs"]) == ([world.url_of(window)], {})
    assert outcomes(written) == {"dispatched": 1, "pending": 1}


@pytest.mark.parametrize("dag_id", ["alone", "alone_deferred"])
def test_an_operator_on_its_own_looks_and_dispatches(world, run, dag_id):
    names = world.traces(2)
    done = run(dag_id)
    assert done.state == "success"
    returned = done.returned("dispatch")
    assert returned["Dispatched"] == {"LoadJobs": 2}
    written = world.document_at(returned["document"])
    assert set(written["Jobs"]) == {world.url_of(name) for name in names}
    assert performance(world) == written["Performance"]


def test_an_operator_that_nobody_waits_for_ends_in_the_triggerer_and_returns_nothing(world, run):
    world.trace()
    done = run("alone_deferred_without_assets")
    assert (done.state, done.returned("dispatch"), world.names()) == ("success", None, [])


@pytest.mark.parametrize("dag_id", ["used", "used_deferred"])
def test_a_task_that_follows_gets_the_counts_wherever_they_were_dispatched(world, run, dag_id):
    """Airflow 3 gives it a trigger's return value as JSON text, so a worker ends the task."""
    world.traces(2)
    done = run(dag_id)
    returned = done.returned("dispatch")
    assert returned["Dispatched"] == done.returned("count") == {"LoadJobs": 2}
    assert returned["document"].endswith(f"/{dag_id}/{done.run_id}/dispatch.json")


def test_a_dispatch_task_that_failed_is_reported_and_the_run_fails(world, run, document):
    world.traces(3)
    query, window = world.trace("query"), world.window()
    done = run("half_broken")
    assert done.state == "failed"
    assert (done.states["dispatch_jobs"], done.states["report"]) == ("failed", "failed")
    written = document(done)
    assert list(written["Jobs"]) == [world.url_of(query)]
    assert list(written["Batched"]) == [world.url_of(window)]
    assert written["Outcomes"]["dispatched"] == 2
    assert written["Outcomes"]["pending"] == 3
    assert adds_up(written)
    assert written["Errors"] == [
        "the task dispatch_jobs has failed; check its log, then clear it and its downstream tasks"
    ]
    assert performance(world) == written["Performance"]


def test_failed_tasks_are_told_by_their_own_names(run, document):
    errors = document(run("numbered"))["Errors"]
    assert [error.partition(" has failed")[0] for error in errors] == ["the task dispatch_1", "the task lanes"]


def test_an_event_that_cannot_be_dispatched_is_reported_and_the_run_succeeds(world, run, document):
    bad, good = world.traces(2)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", name=f"*{bad}", status=403)
    done = run("bqdispatch", "bqdispatch.py")
    assert done.state == "success"
    written = document(done)
    assert written["Status"] == "error"
    assert list(written["Jobs"]) == [world.url_of(good)]
    assert written["Outcomes"]["dispatched"] == written["Outcomes"]["pending"] == 1
    assert world.url_of(bad) in written["Errors"][0]


def test_without_a_look_the_run_fails_and_performance_stays_as_it_is(world, run):
    world.client.bucket(JOURNAL).blob("journal/performance.json").upload_from_string('{"p": "before"}')
    world.control.add_fault("storage.objects.list", "status", bucket=TASKS, status=403)
    done = run("bqdispatch", "bqdispatch.py")
    assert (done.state, done.states["detect"], done.states["report"]) == ("failed", "failed", "failed")
    assert performance(world) == {"p": "before"}


def test_a_share_that_is_dispatched_twice_moves_each_trace_once(world, run, document):
    names = world.traces(2)
    done = run("twice")
    assert len(world.names(TRIGGER)) == 2
    written = document(done)
    assert set(written["Jobs"]) == {world.url_of(name) for name in names}
    assert written["Outcomes"]["dispatched"] == 2
    assert (done.state, written["Errors"]) == ("success", [])


def test_a_second_try_of_a_dispatch_task_adds_to_the_first(world, run, document):
    names = world.traces(3)
    window = world.window()
    done = run("retried")
    assert done.state == "success"
    written = document(done)
    assert outcomes(written) == {"dispatched": 4}
    assert set(written["Jobs"]) == {world.url_of(name) for name in names}
    assert list(written["Batched"]) == [world.url_of(window)]
    assert written["Dispatched"] == {"LoadJobs": 3, "BatchJobs": 1}


def test_without_the_journal_nothing_is_moved(world, run):
    names = world.traces(2)
    world.control.add_fault("storage.objects.list", "status", status=403, bucket=JOURNAL)
    done = run("twice")
    assert (done.state, done.states["dispatch"]) == ("failed", "failed")
    assert world.names() == sorted(names)


def test_two_sensors_have_one_report(world, run, document):
    window, trace = world.window(), world.trace()
    done = run("two_sensors")
    assert (done.state, done.states["report"]) == ("success", "success")
    written = document(done)
    assert (list(written["Jobs"]), list(written["Batched"])) == ([world.url_of(trace)], [world.url_of(window)])
    assert written["Outcomes"]["dispatched"] == 2
    assert adds_up(written)


def test_only_what_a_sensor_is_to_look_for_is_dispatched_and_the_rest_waits(world, run, document):
    mine = [*world.traces(2, project="q", dest="sales.orders"), world.window("q:sales.x")]
    others = world.traces(2, dest="sales.orders") + world.traces(2, project="q", dest="ops.x")
    done = run("some_of_it")
    assert done.state == "success"
    assert [name for name in world.names() if name.startswith("proj:")] == sorted(others)
    report = document(done)
    assert {url.rpartition("/Tasks/")[2] for url in (*report["Jobs"], *report["Batched"])} == set(mine)
    assert report["Outcomes"]["pending"] == 4
    assert sum(report["Outcomes"].values()) == report["Listed"]


def test_an_operator_alone_dispatches_only_what_it_is_told_to(world, run):
    others = world.traces(2, "load")
    world.traces(2, "copy")
    assert run("alone_with_some").returned("dispatch")["Dispatched"] == {"CopyJobs": 2}
    assert world.names() == sorted(others)


def test_a_second_try_of_an_operator_on_its_own_adds_to_the_documents_of_the_first(world, run):
    names = world.traces(2)
    done = run("alone_retried")
    assert done.state == "success"
    assert done.returned("dispatch")["Dispatched"] == {"LoadJobs": 2}
    assert done.returned("dispatch")["Cycles"] == 2
    assert len(world.names(TRIGGER)) == len(names)


def test_a_run_from_the_trigger_with_nothing_to_do_skips_its_report_which_the_trigger_has_written(world, run, document):
    world.trace(state="RUNNING")
    done = run("from_trigger")
    assert set(done.states.values()) == {"skipped"}
    assert document(done)["Outcomes"] == {"running": 1}
    assert performance(world)["p"]["Running"] == {"LoadJobs": 1}


def test_a_run_from_the_trigger_dispatches_and_reports(world, run, document):
    names = world.traces(2)
    done = run("from_trigger", timeout=20)
    assert set(done.states.values()) == {"success"}
    assert set(document(done)["Jobs"]) == {world.url_of(name) for name in names}


@pytest.mark.parametrize("dag", ["fails_on_error", "alone_fails_on_error", "alone_deferred_fails_on_error"])
def test_an_event_that_could_not_be_dispatched_fails_the_task_where_it_is_to(world, run, dag):
    names = world.traces(2)
    world.control.add_fault(
        "storage.objects.*", "status", status=403, reason="forbidden", name=f"*{names[0]}*", bucket="ops"
    )
    done = run(dag)
    assert {"dispatch": "failed"}.items() <= done.states.items()
    assert done.states.get("report", "failed") == "failed"
    assert world.names() == [names[0]]
    world.control.clear_faults()
    assert run(dag).state == "success"
    assert world.names() == []


def test_a_killed_operator_begins_nothing_more(world, run, document):
    names = world.traces(2)
    done = run("killed")
    assert world.names() == sorted(names)
    assert outcomes(document(done)) == {"pending": 2}


def test_a_second_report_finds_what_the_first_has_written(world, run):
    world.trace()
    done = run("reported_again")
    assert done.state == "success"
    one, other = done.returned("report"), done.returned("report_again")
    assert (one["Dispatched"], one["document"]) == (other["Dispatched"], other["document"])


def test_variables_are_templated(world, connect, run):
    connect(world.document(AsyncTaskURL=f"gs://{TASKS}/${{folder}}/Tasks"))
    world.trace()
    assert run("templated").state == "success"
    assert world.names() == []


def test_a_late_twin_is_set_aside_by_the_report(world, run, document):
    window = world.window()
    run("bqdispatch", "bqdispatch.py")
    world.delete(window)
    world.put(window)
    done = run("bqdispatch", "bqdispatch.py")
    written = document(done)
    assert list(written["Quarantined"]) == [world.url_of(window)]
    assert adds_up(written)
    (undecided,) = world.names()
    assert undecided.startswith(f"undecided/{window}.")


@pytest.mark.parametrize("dag_id", ["not_shares"])
def test_what_is_no_share_fails_the_task(world, run, dag_id):
    assert run(dag_id).state == "failed"
