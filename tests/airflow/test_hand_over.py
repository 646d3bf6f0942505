"""A task that hands over to that of the next run: it ends when its run's time is over, whenever it began."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.exceptions import TaskDeferred
from airflow.providers.common.compat.sdk import DAG
from world import JOURNAL

from bqdispatch_provider import compat
from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.journal import RunJournal
from bqdispatch_provider.operators import HAND_OVER_S, DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor
from bqdispatch_provider.story import in_short

MINUTE = 60 + HAND_OVER_S


@pytest.fixture
def execute(world, connect, monkeypatch):
    """Executes a task of a run that was due so many seconds ago, with what a sensor has found."""

    def run(ago, only=None, **more):
        due = datetime.now(UTC) - timedelta(seconds=ago)
        monkeypatch.setattr(compat, "due_of", lambda _: due)
        ti = SimpleNamespace(dag_id="d", run_id="r", map_index=-1, try_number=1, xcom_push=lambda **_: None)
        context = {"dag": SimpleNamespace(dag_id="d"), "run_id": "r", "logical_date": due, "dag_run": None, "ti": ti}
        with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
            task = DispatchOperator(task_id="dispatch", shares=[], only=only, hands_over=True, **more)
            task >> DispatchReportOperator(task_id="report")
        with BqDispatchHook().get_dispatcher() as dispatcher:
            shares = dispatcher.look().plan.shares()
            ti.task_id = "detect"
            url = RunJournal(dispatcher, context).write_shares(shares)
        task.shares = [in_short(share, url) for share in shares]
        ti.task_id = "dispatch"
        world.control.reset_counters()
        return task.execute(context)

    return run


def test_it_goes_on_until_its_runs_time_is_over_and_eight_seconds_more(world, execute):
    world.trace()
    began = datetime.now(UTC)
    returned = execute(ago=MINUTE - 3)
    assert returned["Cycles"] > 1
    assert datetime.now(UTC) - began > timedelta(seconds=1)
    assert returned["Dispatched"] == {"LoadJobs": 1}


def test_of_a_run_whose_time_is_over_it_dispatches_what_the_sensor_has_found_and_ends(world, execute):
    world.trace()
    returned = execute(ago=3600)
    assert (returned["Cycles"], returned["Dispatched"]) == (1, {"LoadJobs": 1})


def test_a_lane_for_which_the_sensor_has_found_nothing_looks_itself(world, execute):
    window = world.window()
    returned = execute(ago=MINUTE - 3, only={"lanes": ["sql"]})
    assert (returned["Cycles"] > 0, returned["Dispatched"]) == (True, {})
    assert window in world.names()


def test_what_it_returns_names_the_document_of_the_run_and_it_leaves_the_numbers_to_the_report(world, execute):
    world.trace()
    returned = execute(ago=3600)
    assert returned["document"].endswith("/d/r.json")
    assert world.names(JOURNAL, "journal/performance.json") == []


def test_deferred_it_dispatches_first_and_goes_on_in_the_triggerer_until_the_same_moment(world, execute):
    world.trace()
    with pytest.raises(TaskDeferred) as deferred:
        execute(ago=30, deferrable=True)
    assert world.names() == []
    trigger = deferred.value.trigger
    left = trigger.since + timedelta(seconds=trigger.time_to_live) - datetime.now(UTC)
    assert timedelta(seconds=MINUTE - 30 - 20) < left <= timedelta(seconds=MINUTE - 30)
    assert (trigger.resumes, trigger.measures) == ("always", False)


def test_a_time_to_live_may_be_a_timedelta(world, execute):
    with pytest.raises(TaskDeferred) as deferred:
        execute(ago=0, deferrable=True, time_to_live=timedelta(minutes=3))
    assert deferred.value.trigger.time_to_live == 180 + HAND_OVER_S


def test_a_sensor_names_a_task_that_takes_more_slots_than_the_limit(world, connect, caplog, monkeypatch):
    connect(MaxConcurrentSQL=5)
    world.trace()
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        detect = BqDispatchSensor(task_id="detect")
        DispatchOperator(task_id="sql", shares=detect.output, only={"lanes": ["sql"]}, pool="p", pool_slots=10)
    said = []
    monkeypatch.setattr(type(detect), "log", SimpleNamespace(warning=lambda text, *more: said.append(text % more)))
    detect._warn_of_slots(world.config(MaxConcurrentSQL=5))
    assert len(said) == 1
    assert "sql takes 10 slots of the pool 'p', which has 5" in said[0]
