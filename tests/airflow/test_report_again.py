"""A report that is tried again, or whose tasks are cleared: the document says what was done, each time."""

import json
import logging
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG
from google.api_core.exceptions import Forbidden
from world import JOURNAL

from bqdispatch_provider.compat import AirflowFailException
from bqdispatch_provider.journal import RunJournal
from bqdispatch_provider.operators import DispatchReportOperator, _log_document
from bqdispatch_provider.report import Report
from bqdispatch_provider.runs import run_cycles


class Tasks:
    """The tasks of one DAG run, each as often as one likes."""

    def __init__(self, world, monkeypatch):
        self._world = world
        self._failed = []
        monkeypatch.setattr("bqdispatch_provider.compat.failed_tasks", lambda context, tasks: self._failed)

    def detect(self):
        with self._world.dispatcher() as dispatcher:
            self.shares = dispatcher.look().plan.shares()
            self._journal(dispatcher, "detect").write_shares(self.shares)

    def dispatch(self, task_id="dispatch"):
        with self._world.dispatcher() as dispatcher:
            return run_cycles(dispatcher, self._journal(dispatcher, task_id), 0, first=self.shares)

    def report(self, failed=()):
        self._failed = failed
        with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
            operator = DispatchReportOperator(task_id="report", assets=False)
        return operator.execute(self._context("report"))

    def left(self):
        return [name.rpartition("/")[2] for name in self._world.names(JOURNAL, "journal/runs/")]

    def document(self):
        return json.loads(self._world.blob("journal/runs/2026-01-01/d/r.json", JOURNAL).download_as_bytes())

    def dispatched(self):
        document = self.document()
        assert document["Outcomes"].get("dispatched", 0) == len(document["Jobs"]) + len(document["Batched"])
        assert sum(document["Outcomes"].values()) == document["Listed"]
        return len(document["Jobs"]) + len(document["Batched"])

    def _journal(self, dispatcher, task_id):
        return RunJournal(dispatcher, self._context(task_id))

    def _context(self, task_id):
        # On Airflow 2 a task pushes its links.
        ti = SimpleNamespace(dag_id="d", run_id="r", task_id=task_id, map_index=-1, xcom_push=lambda **_: None)
        run = {"dag": SimpleNamespace(dag_id="d"), "run_id": "r", "dag_run": None}
        return {"ti": ti, "logical_date": datetime(2026, 1, 1, tzinfo=UTC), **run}


@pytest.fixture
def tasks(world, connect, monkeypatch):
    return Tasks(world, monkeypatch)


def test_a_run_that_is_cleared_adds_to_what_was_delivered(world, tasks):
    world.traces(6)
    for number in (6, 7, 7):
        tasks.detect()
        tasks.dispatch()
        tasks.report()
        assert tasks.dispatched() == number
        assert tasks.left() == ["r.json"]
        if number == 6:
            world.trace()


def test_a_report_that_is_cleared_alone_says_the_same_again_and_how_things_stand_now(world, tasks):
    bad, _ = world.traces(2)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403, name=f"*{bad}")
    tasks.detect()
    tasks.dispatch()
    tasks.report()
    first = tasks.document()
    assert (first["Status"], first["Outcomes"]["pending"]) == ("error", 1)
    world.delete(bad)
    tasks.report()
    again = tasks.document()
    assert (again["Jobs"], again["Errors"], again["Outcomes"].get("pending")) == (first["Jobs"], first["Errors"], None)
    assert tasks.dispatched() == 1


def test_a_dispatch_task_that_is_cleared_alone_leaves_its_part_to_the_report(world, tasks):
    world.trace()
    tasks.detect()
    tasks.dispatch()
    tasks.report()
    world.trace()
    tasks.detect()
    tasks.dispatch()
    assert tasks.dispatched() == 1
    tasks.report()
    assert tasks.dispatched() == 2


@pytest.mark.parametrize("part", ["detect.shares", "dispatch.json"])
def test_a_removal_that_fails_is_made_up_for_and_nothing_counts_twice(world, tasks, part):
    world.traces(3)
    tasks.detect()
    tasks.dispatch()
    world.control.add_fault("storage.objects.delete", "status", status=403, name=f"*{part}")
    with pytest.raises(Forbidden):
        tasks.report()
    world.control.clear_faults()
    assert tasks.dispatched() == 3
    tasks.report()
    assert (tasks.dispatched(), tasks.left()) == (3, ["r.json"])


def test_what_was_set_aside_stands_in_the_document_of_a_later_try(world, tasks):
    name = world.window()
    world.cycle()
    world.put(name, age=10)
    world.control.add_fault("storage.objects.insert", "status", status=403, name="*/d/r.json")
    with pytest.raises(Forbidden):
        tasks.report()
    world.control.clear_faults()
    tasks.report()
    (undecided,) = [each for each in world.names() if each.startswith("undecided/")]
    assert any(undecided in error for error in tasks.document()["Errors"])


def test_a_failed_task_is_told_with_what_it_had_dispatched_and_clearing_it_completes_the_document(world, tasks):
    world.traces(3)
    tasks.detect()
    tasks.dispatch()
    world.trace()
    for _ in range(2):
        with pytest.raises(AirflowFailException, match="the task dispatch has failed"):
            tasks.report(failed=["dispatch"])
        assert (tasks.dispatched(), tasks.document()["Status"]) == (3, "error")
        assert tasks.left() == ["r.json", "detect.shares"]
    tasks.detect()
    tasks.dispatch()
    tasks.report()
    assert (tasks.dispatched(), tasks.document()["Status"]) == (4, "ok")
    assert tasks.left() == ["r.json"]


def test_what_a_killed_task_had_in_hand_is_told_as_far_as_it_is_through(world, tasks, monkeypatch):
    world.traces(3)
    tasks.detect()
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(RunJournal, "write_document", raises(KeyboardInterrupt))
        tasks.dispatch()
    with pytest.raises(AirflowFailException):
        tasks.report(failed=["dispatch"])
    assert tasks.dispatched() == 3
    tasks.dispatch()
    tasks.report()
    assert tasks.dispatched() == 3


def raises(error):
    def act(*_):
        raise error

    return act


def test_a_report_that_names_awkward_objects_forges_no_line_of_the_log(caplog):
    name = "ds.\x1b[2J\x7f\x9b\u2028\u202et"
    report = Report()
    report.error(f"{name} is stuck")
    caplog.set_level("INFO")
    _log_document(SimpleNamespace(log=logging.getLogger("task")), report, "gs://journal/document.json")
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.endswith("t is stuck")]
