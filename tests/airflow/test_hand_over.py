"""A task that hands over to that of the next run: it ends when its run's time is over, whenever it began."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.exceptions import TaskDeferred
from airflow.providers.common.compat.sdk import DAG
from waiting import PATIENCE_S
from world import JOURNAL

from bqdispatch_provider import compat
from bqdispatch_provider.compat import AirflowSkipException
from bqdispatch_provider.core.log_lines import share_summary
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.factory import dispatch_dag
from bqdispatch_provider.gcp.threads import StopRequest
from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.journal import RunJournal
from bqdispatch_provider.operators import HAND_OVER_S, DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor

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
            url = RunJournal(dispatcher.store, dispatcher.config, context).write_shares(shares)
        task.shares = [share_summary(share, url) for share in shares]
        ti.task_id = "dispatch"
        world.control.reset_counters()
        return task.execute(context)

    return run


def test_it_goes_on_until_its_runs_time_is_over_and_eight_seconds_more(world, execute, monkeypatch):
    waited = []  # cycles take no time
    for module in ("dispatcher", "cycle.work_gate"):
        clock = SimpleNamespace(monotonic=lambda: sum(waited))
        monkeypatch.setattr(f"bqdispatch_provider.{module}.time", clock)
    monkeypatch.setattr(StopRequest, "wait", lambda _, seconds: waited.append(seconds))
    world.trace()
    returned = execute(ago=0, time_to_live=PATIENCE_S)
    assert returned["Cycles"] == 1 + len(waited)
    assert 1 < sum(waited) <= PATIENCE_S + HAND_OVER_S
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
    end = trigger.deferred_at + timedelta(seconds=trigger.time_to_live)
    assert end == compat.due_of({}) + timedelta(seconds=MINUTE)
    assert (trigger.resume_on_worker, trigger.write_performance) == ("always", False)


def test_a_time_to_live_may_be_a_timedelta(world, execute):
    with pytest.raises(TaskDeferred) as deferred:
        execute(ago=0, deferrable=True, time_to_live=timedelta(minutes=3))
    assert deferred.value.trigger.time_to_live == 180 + HAND_OVER_S


@pytest.mark.parametrize(
    ("schedule", "minutes", "seconds"),
    [
        ("* * * * *", 5, 60),
        ("* * * * *", 0.2, 60),
        (timedelta(minutes=1), 1440, 60),
        ("*/10 * * * *", 10, 600),
        ("@continuous", 1440, 86400),
    ],
)
def test_a_busy_run_ends_before_its_time_out_whatever_the_configuration_says(
    world, connect, execute, schedule, minutes, seconds
):
    connect(TimeToLiveInMin=minutes)
    dag = dispatch_dag(schedule=schedule)
    for task_id in ("dispatch_sql", "dispatch_jobs"):
        with pytest.raises(TaskDeferred) as deferred:
            execute(ago=0, deferrable=True, time_to_live=dag.get_task(task_id).time_to_live)
        assert deferred.value.trigger.time_to_live == seconds + HAND_OVER_S
        left_for_the_report = dag.dagrun_timeout - timedelta(seconds=seconds + HAND_OVER_S)
        assert left_for_the_report > timedelta(minutes=3)


def test_the_time_out_of_a_run_is_that_of_the_options(database):
    assert dispatch_dag(dagrun_timeout=None).dagrun_timeout is None


@pytest.mark.parametrize("more", [{}, {"exponential_backoff": True}])
def test_a_sensor_on_a_worker_polls_soon_while_something_happens(world, connect, monkeypatch, more):
    """Its pauses grow while nothing changes, as in the triggerer, unless Airflow's own backoff is asked for."""
    polls, pauses, look = [], [], Dispatcher.look

    def looking(dispatcher):
        polls.append(dispatcher)
        if len(polls) == 3:
            world.trace()
        return look(dispatcher)

    monkeypatch.setattr(Dispatcher, "look", looking)
    pause = BqDispatchSensor._get_next_poke_interval
    monkeypatch.setattr(BqDispatchSensor, "_get_next_poke_interval", lambda *each: pauses.append(pause(*each)) or 0.01)
    world.trace(state="RUNNING")
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="detect", map_index=-1, xcom_push=lambda **_: None)
    due = datetime.now(UTC)
    context = {"dag": SimpleNamespace(dag_id="d"), "run_id": "r", "logical_date": due, "dag_run": None, "ti": ti}
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        detect = BqDispatchSensor(task_id="detect", timeout=PATIENCE_S, poke_interval=40, **more)
    (share,) = detect.execute(context)
    assert (share["events"], len(polls), len(set(polls))) == (1, 3, 1)
    assert pauses == [1, 1] if not more else min(pauses) >= 20


@pytest.mark.parametrize("left", [PATIENCE_S, -1])
def test_a_sensor_goes_on_waiting_if_the_run_before_has_dispatched_what_it_had_seen(world, connect, left):
    due = datetime.now(UTC)
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="detect", map_index=-1, xcom_push=lambda **_: None)
    context = {"dag": SimpleNamespace(dag_id="d"), "run_id": "r", "logical_date": due, "dag_run": None, "ti": ti}
    until = due + timedelta(seconds=left)
    with pytest.raises(TaskDeferred if left > 0 else AirflowSkipException) as ended:
        BqDispatchSensor(task_id="detect", timeout=50).execute_complete(
            context, {"status": "work", "until": until.isoformat()}
        )
    if left > 0:
        trigger = ended.value.trigger
        assert trigger.deferred_at + timedelta(seconds=trigger.timeout) == until
        assert world.names(JOURNAL) == []


@pytest.fixture
def slot_warnings(world, monkeypatch):
    """Tells what a sensor warns of under some limits."""
    said = []
    log = SimpleNamespace(warning=lambda text, *more: said.append(text % more))
    monkeypatch.setattr(BqDispatchSensor, "log", log)

    def warn(sensor, **limits):
        said.clear()
        sensor._warn_of_slots(world.config(**limits))
        return list(said)

    return warn


def test_a_sensor_names_a_task_that_takes_more_slots_than_the_limit(slot_warnings):
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        detect = BqDispatchSensor(task_id="detect")
        DispatchOperator(task_id="sql", shares=detect.output, only={"lanes": ["sql"]}, pool="p", pool_slots=10)
    (said,) = slot_warnings(detect, MaxConcurrentSQL=5)
    assert "sql takes 10 slots of the pool 'p', which has 5" in said
    assert said.endswith("lower its pool_slots")


@pytest.mark.parametrize(
    ("setup", "lane", "limit", "variable"),
    [
        (None, "jobs", "MaxConcurrentJobs", "BQDISPATCH_JOBS_SLOTS"),
        ("acme", "sql", "MaxConcurrentSQL", "BQDISPATCH_ACME_SQL_SLOTS"),
    ],
)
def test_a_sensor_names_what_sets_the_slots(slot_warnings, setup, lane, limit, variable):
    detect = dispatch_dag(setup, **{f"{lane}_slots": 10}).get_task("detect")
    detect.bqdispatch_conn_id = "bqdispatch_default"
    (said,) = slot_warnings(detect, **{limit: 5})
    assert said.endswith(f": `{lane}_slots` of dispatch_dag, or the environment variable {variable}")


@pytest.mark.parametrize(("setup", "command"), [(None, "pools --check"), ("acme", "pools --setup acme --check")])
def test_the_page_of_a_dag_names_the_command_that_checks_its_own_pools(setup, command):
    assert f"`bqdispatch {command}`" in dispatch_dag(setup).doc_md


@pytest.mark.parametrize(("only", "limits"), [("sql", {"MaxConcurrentSQL": 5}), ("windows", {"MaxConcurrentJobs": 5})])
def test_a_lane_may_be_a_string_and_has_its_own_limit(world, slot_warnings, only, limits):
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        detect = BqDispatchSensor(task_id="detect")
        DispatchOperator(task_id="one", shares=detect.output, only={"lanes": only}, pool="p", pool_slots=10)
    (said,) = slot_warnings(detect, **limits)
    assert "one takes 10 slots of the pool 'p', which has 5" in said
    others = {"MaxConcurrentSQL", "MaxConcurrentJobs"} - set(limits)
    assert slot_warnings(detect, **dict.fromkeys(others, 5)) == []


def test_a_filter_that_is_not_known_yet_is_passed_over(world, slot_warnings):
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        detect = BqDispatchSensor(task_id="detect")
        other = BqDispatchSensor(task_id="other").output
        more = {"shares": detect.output, "pool": "p", "pool_slots": 10}
        DispatchOperator.partial(task_id="mapped", **more).expand(only=[{"lanes": ["sql"]}])
        DispatchOperator.partial(task_id="by_keys", **more).expand_kwargs([{"only": {"lanes": ["sql"]}}])
        for number, only in enumerate(
            (other, "{{ params.only }}", {"lanes": other}, {"lanes": [other]}, {"lanes": ["{{ params.lane }}"]})
        ):
            DispatchOperator(task_id=f"later_{number}", only=only, **more)
    assert slot_warnings(detect, MaxConcurrentSQL=5, MaxConcurrentJobs=5) == []
