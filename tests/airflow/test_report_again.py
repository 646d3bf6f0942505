"""A report that is tried again, or whose tasks are cleared: the document says what was done, each time."""

import json
import logging
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException
from google.api_core.exceptions import Forbidden
from world import JOURNAL

from bqdispatch_provider.journal import Part, RunJournal
from bqdispatch_provider.operators import DispatchReportOperator, _log_document
from bqdispatch_provider.report import Report


class Tasks:
    """The tasks of one DAG run, each as often as one likes."""

    def __init__(self, world):
        self._world = world
        self.shares = []

    def detect(self, task_id="detect"):
        with self._world.dispatcher() as dispatcher:
            sight = dispatcher.look()
            self.shares = sight.plan.shares({})
            lanes = {lane: len(events) for lane, events in sight.plan.events.items() if events}
            self._journal(dispatcher, task_id).write_part(Part(sight.report, lanes, sight.plan.tidy))

    def dispatch(self):
        for index, share in enumerate(self.shares):
            with self._world.dispatcher() as dispatcher:
                part = Part(dispatcher.dispatch([share]), {share.lane: len(share.events)})
                self._journal(dispatcher, "dispatch", index).write_part(part)

    def report(self, task_id="report"):
        with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
            operator = DispatchReportOperator(task_id=task_id)
        return operator.execute(self._context(task_id))

    def left(self):
        return [name.rpartition("/")[2] for name in self._world.names(JOURNAL, "journal/runs/")]

    def document(self):
        return json.loads(self._world.blob("journal/runs/2026-01-01/d/r.json", JOURNAL).download_as_bytes())

    def _journal(self, dispatcher, task_id, map_index=-1):
        return RunJournal(dispatcher, self._context(task_id, map_index))

    def _context(self, task_id, map_index=-1):
        # On Airflow 2 a task pushes its links.
        ti = SimpleNamespace(dag_id="d", run_id="r", task_id=task_id, map_index=map_index, xcom_push=lambda **_: None)
        return {"ti": ti, "logical_date": datetime(2026, 1, 1, tzinfo=UTC), "dag_run": None}


@pytest.fixture
def tasks(world, connect):
    return Tasks(world)


def test_a_run_that_is_cleared_counts_no_share_of_the_earlier_try(world, tasks, intents_stay_young):
    world.traces(600)
    tasks.detect()
    tasks.dispatch()
    world.trace()
    tasks.detect()
    tasks.dispatch()
    intents, completed = 3, 3  # of the earlier try
    assert tasks.report()["Outcomes"] == {"dispatched": 1, "ignored": intents + completed}
    assert tasks.left() == ["r.json"]


def test_a_dispatch_task_cleared_after_the_report_leaves_the_document_and_no_part(world, tasks):
    world.trace()
    tasks.detect()
    tasks.dispatch()
    first = tasks.report()
    tasks.dispatch()
    assert tasks.report() == first
    assert tasks.left() == ["r.json"]


@pytest.mark.parametrize("part", ["wait.json", "dispatch~0.json"])
def test_a_removal_that_fails_leaves_the_document_as_it_is(world, tasks, part):
    world.traces(3)
    tasks.detect("wait")
    tasks.dispatch()
    world.control.add_fault("storage.objects.delete", "status", status=403, name=f"*{part}")
    with pytest.raises(Forbidden):
        tasks.report()
    world.control.clear_faults()
    assert tasks.report()["Outcomes"] == tasks.document()["Outcomes"] == {"dispatched": 3}
    assert tasks.left() == ["r.json"]


def test_what_was_set_aside_stands_in_the_document_of_a_later_try(world, tasks):
    name = world.window()
    world.cycle()
    world.put(name, age=10)
    tasks.detect()
    world.control.add_fault("storage.objects.insert", "status", status=403, name="*/d/r.json")
    with pytest.raises(Forbidden):
        tasks.report()
    world.control.clear_faults()
    assert tasks.report()["Outcomes"]["quarantined"] == 1
    assert list(tasks.document()["Quarantined"]) == [world.url_of(name)]


def test_a_failed_report_that_is_cleared_fails_again(world, tasks):
    world.traces(3)
    tasks.detect()
    for task_id in ("report", "report", "another_report"):
        with pytest.raises(AirflowFailException, match="of 3 objects 3 went unaccounted for"):
            tasks.report(task_id)
        assert tasks.document()["Outcomes"] == {"error": 3}


def test_a_failed_task_that_is_cleared_completes_the_document(world, tasks):
    world.traces(3)
    tasks.detect()
    with pytest.raises(AirflowFailException):
        tasks.report()
    tasks.dispatch()
    assert tasks.report()["Outcomes"] == tasks.document()["Outcomes"] == {"dispatched": 3}
    assert tasks.left() == ["r.json"]


def test_two_sensors_are_refused_with_what_to_do(world, tasks):
    world.trace()
    tasks.detect("one")
    tasks.detect("two")
    with pytest.raises(AirflowFailException, match=r"the sensors one and two .*use one BqDispatchSensor, and"):
        tasks.report()


def test_a_report_that_names_awkward_objects_forges_no_line_of_the_log(caplog):
    name = "ds.\x1b[2J\x7f\x9b\u2028\u202et"
    report = Report()
    report.error(f"{name} is stuck")
    caplog.set_level("INFO")
    _log_document(SimpleNamespace(log=logging.getLogger("task")), report, "gs://journal/document.json")
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.endswith("t is stuck")]
