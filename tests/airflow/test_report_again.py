"""A report that is tried again, or whose tasks are cleared: the document says what was done, each time."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG
from airflow.triggers.base import TaskSkippedEvent
from google.api_core.exceptions import Forbidden, ServiceUnavailable
from waiting import PATIENCE_S
from world import FOLDER, JOURNAL, TASKS

from bqdispatch_provider.commands.cli import main
from bqdispatch_provider.compat import AirflowFailException, AirflowSkipException
from bqdispatch_provider.core.events import ALL_EVENTS, EventFilter
from bqdispatch_provider.core.history import Figures
from bqdispatch_provider.core.log_lines import MAX_ERROR_LINES, log_document
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.targets import CREATED, OWNER
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.objects import ObjectStore
from bqdispatch_provider.journal import RunJournal, journal_path
from bqdispatch_provider.operators import DispatchReportOperator
from bqdispatch_provider.runs import run_cycles
from bqdispatch_provider.sensors import BqDispatchSensor
from bqdispatch_provider.triggers import BqDispatchTrigger
from bqdispatch_provider.view.journal_reader import JournalReader
from bqdispatch_provider.view.overview import overview


async def events_of(trigger):
    return [event async for event in trigger.run()]


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

    def dispatch(self, task_id="dispatch", seconds=0, only=ALL_EVENTS, go_on=lambda: True, **more):
        world = self._world
        with Dispatcher(world.config(), world.client, world.session, only=only, go_on=go_on) as dispatcher:
            journal = self._journal(dispatcher, task_id)
            return run_cycles(dispatcher, journal, seconds, first_shares=self.shares, **more)

    def dispatch_and_die(self, monkeypatch):
        """Dispatch, and be killed before the document is written."""
        with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
            killed.setattr(RunJournal, "write_document", raises(KeyboardInterrupt))
            self.dispatch()

    def report(self, failed=()):
        self._failed = failed
        with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
            operator = DispatchReportOperator(task_id="report", assets=False)
        return operator.execute(self._context("report"))

    def find_nothing(self, task_id, *, in_triggerer=False):
        """Run a sensor that waits for windows."""
        if in_triggerer:
            path = journal_path(self._context(task_id))
            only = {"lanes": "windows"}
            trigger = BqDispatchTrigger("bqdispatch_default", 0, skip_when_idle=True, only=only, journal_path=path)
            (event,) = asyncio.run(events_of(trigger))
            assert type(event) is TaskSkippedEvent
            return
        sensor = BqDispatchSensor(task_id=task_id, only={"lanes": "windows"}, timeout=0, poke_interval=0.01)
        with pytest.raises(AirflowSkipException):
            sensor.execute(self._context(task_id))

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
        return RunJournal(dispatcher.store, dispatcher.config, self._context(task_id))

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


def test_a_run_whose_tasks_are_given_all_they_dispatch_began_with_them(world, tasks):
    world.traces(2)
    tasks.detect()
    report = tasks.dispatch()
    assert (report.listed, report.outcomes) == (2, {"dispatched": 2})
    world.control.advance(5)
    tasks.report()
    document = tasks.document()
    assert document["Started"] <= min(job["DispatchTime"] for job in document["Jobs"].values())
    assert document["TimeTakenMs"] >= 5000


@pytest.mark.parametrize("order", [("sql", "jobs"), ("jobs", "sql")])
def test_what_the_task_of_its_lane_says_of_an_event_is_kept(world, tasks, order, capsys, config):
    """The task of another lane knows only that the event is not its own."""
    name = world.trace("load", age=7200)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=400, name=f"*{name}")
    tasks.shares = None  # each task looks for itself, as it does after its shares
    for number, lane in enumerate(order):
        tasks.dispatch(f"task_{number}", only=EventFilter(lanes=(lane,)), writes_performance=False)
    tasks.report()
    (wait,) = tasks.document()["Waiting"].values()
    assert (wait["Reason"], bool(wait["Said"])) == (Reason.REFUSED, True)
    assert tasks.document()["WaitingCount"] == {"refused": 1}
    main(["explain", "--config", str(config()), name])
    assert "waits: refused" in capsys.readouterr().out
    report = Report.from_dict(tasks.document())
    assert 'See "What waits, and why"' in overview(report, world.config(), report.started, Figures()).health.next_step


def test_a_task_that_dispatches_nothing_says_each_minute_how_things_stand(world, tasks, monkeypatch):
    """The history names its document as often."""
    monkeypatch.setattr("bqdispatch_provider.dispatcher._PERFORMANCE_INTERVAL_S", 0.0)
    monkeypatch.setattr("bqdispatch_provider.runs._DOCUMENT_INTERVAL_S", 0.0, raising=False)
    name = world.trace(age=7200)
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=400, name=f"*{name}")
    tasks.shares = None
    pauses = iter([lambda: None, raises(KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        tasks.dispatch(seconds=600, wait=lambda _: next(pauses)())
    with world.dispatcher() as dispatcher:
        now = dispatcher.store.now()
    report = JournalReader(world.client, world.config()).report(now)
    assert report is not None and report.waits[name].reason is Reason.REFUSED
    assert now - report.seen < timedelta(minutes=1)


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


def test_a_run_that_airflow_has_ended_without_a_report_is_completed_by_clearing_its_tasks(world, tasks):
    world.traces(3)
    tasks.detect()
    tasks.dispatch("dispatch_sql")
    assert tasks.left() == ["detect.shares", "dispatch_sql.json"]
    tasks.dispatch("dispatch_jobs")  # Airflow had skipped it
    tasks.report()
    assert (tasks.dispatched(), tasks.left()) == (3, ["r.json"])


@pytest.mark.parametrize("in_triggerer", [False, True])
def test_a_sensor_that_finds_nothing_leaves_what_others_are_dispatching_to_the_report(world, tasks, in_triggerer):
    world.traces(3)
    tasks.detect()
    pauses = []

    def pause(_):
        pauses.append(sorted(tasks.left()))
        if len(pauses) == 1:
            tasks.find_nothing("detect_windows", in_triggerer=in_triggerer)
            world.trace()

    tasks.dispatch(seconds=PATIENCE_S, wait=pause, go_on=lambda: len(pauses) < 2)
    tasks.report()
    assert (tasks.dispatched(), tasks.left()) == (4, ["r.json"])
    assert pauses[0] == pauses[1]


@pytest.mark.parametrize("in_triggerer", [False, True])
def test_a_sensor_that_finds_nothing_ends_a_run_in_which_nobody_else_has_left_anything(world, tasks, in_triggerer):
    tasks.detect()  # a try of the same sensor that was killed
    tasks.find_nothing("detect", in_triggerer=in_triggerer)
    assert (tasks.document()["Status"], tasks.left()) == ("ok", ["r.json"])


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
    tasks.dispatch_and_die(monkeypatch)
    with pytest.raises(AirflowFailException):
        tasks.report(failed=["dispatch"])
    assert tasks.dispatched() == 3
    tasks.dispatch()
    tasks.report()
    assert tasks.dispatched() == 3


def test_what_a_task_had_in_hand_that_was_killed_twice_is_told(world, tasks, monkeypatch):
    for number in (3, 2):
        world.traces(number)
        tasks.detect()
        tasks.dispatch_and_die(monkeypatch)
    with pytest.raises(AirflowFailException):
        tasks.report(failed=["dispatch"])
    assert tasks.dispatched() == 5


def test_what_a_task_dispatched_while_its_document_could_not_be_written_is_told_after_it_is_killed(world, tasks):
    world.traces(3)
    tasks.detect()
    world.control.add_fault("storage.objects.insert", "status", status=403, name="*/dispatch.json")
    cycles = iter([lambda: world.traces(2), raises(KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        tasks.dispatch(seconds=600, send_metrics=lambda _: next(cycles)(), wait=lambda _: None)
    world.control.clear_faults()
    assert world.names() == []
    with pytest.raises(AirflowFailException):
        tasks.report(failed=["dispatch"])
    assert tasks.dispatched() == 5


def test_what_a_second_try_dispatches_of_its_shares_is_told_beside_what_the_first_one_did(world, tasks):
    late, _ = world.traces(2)
    tasks.detect()
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403, name=f"*{late}")
    pauses = iter([lambda: world.traces(1), raises(KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        tasks.dispatch(seconds=600, wait=lambda _: next(pauses)())
    world.control.clear_faults()
    tasks.dispatch(attempt=2)
    tasks.report()
    assert late not in world.names()
    assert tasks.dispatched() == 3


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_is_cleared_counts_nothing_twice_though_its_objects_could_not_be_removed(
    world, tasks, monkeypatch, killed
):
    world.traces(3)
    tasks.detect()
    tasks.dispatch()
    world.control.add_fault("storage.objects.delete", "status", status=403, name="*dispatch.json")
    with pytest.raises(Forbidden):
        tasks.report()
    world.control.clear_faults()
    world.trace()
    tasks.detect()
    if killed:
        tasks.dispatch_and_die(monkeypatch)
        with pytest.raises(AirflowFailException):
            tasks.report(failed=["dispatch"])
        assert tasks.dispatched() == 4
    tasks.dispatch()
    tasks.report()
    assert tasks.dispatched() == 4


def test_what_another_task_dispatches_of_a_share_is_not_told_by_one_that_left_it_and_is_killed_later(world, tasks):
    name = world.trace()
    tasks.detect()
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403, name=f"*{name}", times=2)
    with pytest.raises(KeyboardInterrupt):
        tasks.dispatch(seconds=600, wait=raises(KeyboardInterrupt))
    world.control.clear_faults()
    assert world.cycle().dispatched == 1
    with pytest.raises(AirflowFailException):
        tasks.report(failed=["dispatch"])
    assert tasks.dispatched() == 0


def test_a_trace_that_was_fenced_before_the_kill_is_told_once(world, tasks, monkeypatch):
    name = world.trace()
    tasks.detect()
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("bqdispatch_provider.cycle.dispatching.Dispatching.run", raises(KeyboardInterrupt))
        tasks.dispatch()
    fenced = world.client.bucket(TASKS).blob(FOLDER + name)
    fenced.metadata = {CREATED: str(world.control.now() - 30), OWNER: "gone"}
    fenced.compose([world.blob(name)])
    tasks.shares = None
    tasks.dispatch()
    tasks.report()
    assert tasks.dispatched() == 1


def test_a_report_that_fails_while_it_removes_what_it_has_added_adds_it_once(world, tasks, monkeypatch):
    world.traces(5)
    tasks.detect()
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(RunJournal, "remove_checkpoint", raises(KeyboardInterrupt))
        tasks.dispatch()
    removed, remove = [], ObjectStore.remove

    def remove_one(store, url, *generation):
        if any(each.endswith((".json", ".underway")) for each in removed):
            raise KeyboardInterrupt
        removed.append(url)
        remove(store, url, *generation)

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(ObjectStore, "remove", remove_one)
        tasks.report()
    tasks.report()
    assert tasks.dispatched() == 5


def test_what_goes_wrong_after_the_last_cycle_is_in_the_tasks_document(world, tasks):
    world.traces(3)
    tasks.shares = None
    world.control.add_fault("storage.objects.insert", "status", status=403, name="*/performance.json")
    (error,) = tasks.dispatch().errors
    world.control.clear_faults()
    tasks.report()
    assert tasks.document()["Errors"] == [error]


@pytest.mark.parametrize(("attempt", "kept"), [(1, True), (2, False)])
def test_errors_stay_in_the_document_while_the_same_try_goes_on_elsewhere(world, tasks, attempt, kept):
    """A task that is deferred after its shares goes on in the triggerer, or in another one that is started anew."""
    world.trace()
    tasks.shares = None
    world.control.add_fault("storage.objects.insert", "status", status=403, name="*/performance.json")
    (error,) = tasks.dispatch(attempt=1).errors
    world.control.clear_faults()
    assert tasks.dispatch(attempt=attempt).errors == ([error] if kept else [])
    tasks.report()
    assert tasks.document()["Errors"] == ([error] if kept else [])


@pytest.mark.parametrize("interval", [0.0, 60.0], ids=["document", "checkpoint"])
def test_a_report_that_runs_while_a_task_goes_on_counts_nothing_twice(world, tasks, monkeypatch, interval):
    """A task that is marked as done learns of it seconds later, and the report begins at once."""
    monkeypatch.setattr("bqdispatch_provider.runs._DOCUMENT_INTERVAL_S", interval)
    world.traces(3)
    tasks.detect()
    pauses = []

    def pause(_):
        pauses.append(tasks.report() and tasks.dispatched())
        world.trace()

    tasks.dispatch(seconds=PATIENCE_S, wait=pause, go_on=lambda: len(pauses) < 3)
    tasks.report()
    assert (pauses, tasks.dispatched(), tasks.left()) == ([3, 4, 5], 5, ["r.json"])


@pytest.mark.parametrize("interval", [0.0, 60.0], ids=["document", "checkpoint"])
def test_a_try_that_begins_while_an_earlier_one_lives_loses_none_of_its_events(world, tasks, monkeypatch, interval):
    """A worker that is lost is not always dead: its task goes on for a while."""
    monkeypatch.setattr("bqdispatch_provider.runs._DOCUMENT_INTERVAL_S", interval)
    world.traces(3)
    tasks.detect()
    pauses = []

    def pause(_):
        world.trace()
        if not pauses:
            tasks.shares = None
            assert tasks.dispatch(attempt=2).dispatched == 4
            world.traces(2)
        pauses.append(0)

    first = tasks.dispatch(seconds=PATIENCE_S, wait=pause, go_on=lambda: len(pauses) < 2, attempt=1)
    assert first.dispatched == len(first.jobs) == 6
    tasks.report()
    assert (tasks.dispatched(), tasks.left()) == (6, ["r.json"])


def test_a_document_that_another_try_wrote_just_now_is_added_to(world, tasks, monkeypatch):
    world.traces(3)
    tasks.detect()
    write, others = RunJournal.write_document, []

    def write_after_another(journal, *document):
        if not others:
            others.append(0)
            world.traces(2)
            tasks.shares = None
            others.append(tasks.dispatch(attempt=2).dispatched)
        return write(journal, *document)

    with monkeypatch.context() as slowed:
        slowed.setattr(RunJournal, "write_document", write_after_another)
        report = tasks.dispatch()
    assert (others, report.dispatched) == ([0, 5], 5)
    tasks.report()
    assert (tasks.dispatched(), tasks.left()) == (5, ["r.json"])


def test_two_reports_of_a_run_at_the_same_time_count_nothing_twice(world, tasks, monkeypatch):
    world.traces(3)
    tasks.detect()
    tasks.dispatch()
    write, others = RunJournal.write_document, []

    def write_after_another(journal, *document):
        if not others:
            others.append(0)
            tasks.report()
        return write(journal, *document)

    monkeypatch.setattr(RunJournal, "write_document", write_after_another)
    tasks.report()
    assert (others, tasks.dispatched(), tasks.left()) == ([0], 3, ["r.json"])


def test_a_report_that_is_repeated_keeps_what_a_killed_task_had_dispatched_last(world, tasks, monkeypatch):
    """Its document is older than its checkpoint then."""
    monkeypatch.setattr("bqdispatch_provider.runs._DOCUMENT_INTERVAL_S", 0.0)
    world.traces(3)
    tasks.detect()
    pauses = []

    def pause(_):
        if pauses:
            raise KeyboardInterrupt
        pauses.append(world.traces(2))
        monkeypatch.setattr("bqdispatch_provider.runs._DOCUMENT_INTERVAL_S", 60.0)

    with pytest.raises(KeyboardInterrupt):
        tasks.dispatch(seconds=PATIENCE_S, wait=pause)
    world.control.add_fault("storage.objects.delete", "status", status=403, name="*dispatch*")
    with pytest.raises(Forbidden):
        tasks.report()
    world.control.clear_faults()
    assert tasks.dispatched() == 5
    tasks.report()
    assert (tasks.dispatched(), tasks.left()) == (5, ["r.json"])


def test_many_sensors_that_find_nothing_at_the_same_time_are_all_skipped(world, tasks, monkeypatch):
    """Each time that one of them is about to write the document of the run, another one has."""
    write, others = RunJournal.write_document, []

    def write_after_another(journal, *document):
        if journal.task == "detect" and len(others) < 3:
            others.append(0)
            tasks.find_nothing(f"detect_{len(others)}")
        return write(journal, *document)

    monkeypatch.setattr(RunJournal, "write_document", write_after_another)
    tasks.find_nothing("detect")
    assert (len(others), tasks.document()["Status"], tasks.left()) == (3, "ok", ["r.json"])


def test_what_another_try_had_begun_is_kept_until_the_document_has_it(world, tasks, monkeypatch):
    """The document was replaced, and what that try had dispatched cannot be looked up the first time."""
    world.traces(3)
    tasks.detect()
    pauses = []

    def pause(_):
        pauses.append(0)
        monkeypatch.setattr("bqdispatch_provider.runs._DOCUMENT_INTERVAL_S", 0.0)
        if len(pauses) == 1:
            world.traces(2)
            tasks.shares = None
            tasks.dispatch(attempt=2)
            world.traces(2)
            with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
                killed.setattr(RunJournal, "write_document", raises(KeyboardInterrupt))
                tasks.dispatch(attempt=3)
            world.trace()
            find = Dispatcher.find_dispatched
            fails = iter([raises(ServiceUnavailable("down"))])
            monkeypatch.setattr(Dispatcher, "find_dispatched", lambda *given: next(fails, lambda: find(*given))())

    tasks.dispatch(seconds=PATIENCE_S, wait=pause, go_on=lambda: len(pauses) < 3)
    tasks.report()
    assert (tasks.dispatched(), tasks.left()) == (8, ["r.json"])


def test_what_a_killed_task_had_set_aside_is_told(world, tasks):
    name = world.window()
    world.cycle()
    world.put(name, age=10)
    tasks.shares = None
    with pytest.raises(KeyboardInterrupt):
        tasks.dispatch(seconds=600, wait=raises(KeyboardInterrupt))
    with pytest.raises(AirflowFailException):
        tasks.report(failed=["dispatch"])
    assert [each for each in tasks.document()["Quarantined"] if each.endswith(name)]


def test_a_task_writes_one_small_object_for_each_cycle_and_its_document_at_the_end(world, tasks, monkeypatch):
    """A document grows with the task: written after each cycle, a long task would write ever longer."""
    written = []
    for name in ("write_document", "write_checkpoint"):
        write = getattr(RunJournal, name)
        monkeypatch.setattr(
            RunJournal, name, lambda *given, name=name, write=write: written.append(name) or write(*given)
        )
    tasks.shares, cycles = None, []

    def pause(_):
        cycles.append(world.trace())

    tasks.dispatch(seconds=PATIENCE_S, wait=pause, go_on=lambda: len(cycles) < 4)
    assert written == ["write_checkpoint"] * 3 + ["write_document"]


def raises(error):
    def act(*_):
        raise error

    return act


def test_a_report_that_names_awkward_objects_forges_no_line_of_the_log(caplog):
    name = "ds.\x1b[2J\x7f\x9b\u2028\u202et"
    report = Report()
    report.add_error(f"{name} is stuck")
    caplog.set_level("INFO")
    log_document(logging.getLogger("task"), report, "gs://journal/document.json")
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.endswith("t is stuck")]


def test_one_object_and_one_more_error_are_told_in_the_singular(caplog):
    report = Report(listed=1)
    for number in range(MAX_ERROR_LINES + 1):
        report.add_error(f"{number} is stuck")
    caplog.set_level("INFO")
    log_document(logging.getLogger("task"), report, "gs://journal/document.json")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("1 object in the task folder: ")
    assert "and 1 more error" in lines
