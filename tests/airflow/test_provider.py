"""The provider as Airflow sees it: metadata, DAG file, imports."""

import json
import runpy
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

SAMPLES = sorted((Path(__file__).parents[2] / "dags").glob("**/*.py"))
HOOK = "bqdispatch_provider.hooks.BqDispatchHook"

SMALL_DAG = """
from datetime import UTC, datetime
from airflow.providers.common.compat.sdk import DAG, BaseOperator, BaseSensorOperator, task
from airflow.triggers.base import BaseTrigger
from importlib.util import find_spec
schedule = None
if find_spec("airflow.sdk"):  # what a schedule by an asset brings
    from airflow.sdk import Asset, AssetWatcher
    from airflow.timetables.assets import AssetOrTimeSchedule
    from airflow.timetables.trigger import CronTriggerTimetable
    from airflow.triggers.base import BaseEventTrigger
    class Trigger(BaseEventTrigger):
        def serialize(self): return "small.Trigger", {}
        async def run(self): yield
    watched = Asset(name="small", watchers=[AssetWatcher(name="small", trigger=Trigger())])
    schedule = AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 0 * * *", timezone="UTC"), assets=[watched])
with DAG("small", schedule=schedule, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False):
    @task
    def more(): pass
    BaseOperator(task_id="nothing") >> more()
"""

PARSE = """
import json, os, runpy, sys
runpy.run_path(sys.argv[1])
small = set(sys.modules)
for file in sys.argv[2:]:  # each in a process of its own, where those before it have brought nothing
    child = os.fork()
    if not child:
        runpy.run_path(file)
        print(json.dumps([file, sorted(set(sys.modules) - small)]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, file
"""


@pytest.fixture(scope="session")
def modules(tmp_path_factory):
    """What each sample brings that a DAG of Airflow's own operators does not."""
    small = tmp_path_factory.mktemp("dags") / "small.py"
    small.write_text(SMALL_DAG)
    command = [sys.executable, "-c", PARSE, small, *SAMPLES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["list"], ["airflow-provider-bqdispatch"]),
        (
            ["get", "airflow-provider-bqdispatch", "--full"],
            ["BqTail dispatch", HOOK],
        ),
        (["hooks"], ["bqdispatch_conn_id", HOOK]),
        (["triggers"], ["bqdispatch_provider.triggers"]),
        (["notifications"], ["bqdispatch_provider.notifications.BqDispatchNotifier"]),
    ],
)
def test_airflow_shows_the_provider(database, airflow_prints, command, expected):
    printed = airflow_prints("providers", *command, "--output", "json")
    assert all(each in printed for each in expected), printed


def test_the_dag_files_have_no_import_errors(database, airflow_prints):
    printed = airflow_prints("dags", "list-import-errors", "--output", "json")
    assert printed.strip().splitlines()[-1] in ("[]", "No data found")


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.stem)
def test_a_sample_dag_imports_hardly_more_than_a_small_one(modules, file):
    more = modules[str(file)]
    assert any(module.startswith("bqdispatch_provider.") for module in more)
    assert [name for name in more if name.partition(".")[0] in ("google", "pandas", "requests")] == []
    assert [name for name in more if name.startswith("airflow.providers.google")] == []
    assert len(more) < 45


def test_the_sample_dag_is_what_the_docs_say(database, dags_folder, monkeypatch):
    monkeypatch.setenv("BQDISPATCH_SQL_SLOTS", "5")
    dag = runpy.run_path(str(dags_folder / "bqdispatch.py"))["dag"]
    assert (dag.dag_id, dag.max_active_runs, dag.catchup) == ("bqdispatch", 2, False)
    assert {task.task_id: (task.pool, task.pool_slots) for task in dag.tasks if task.pool != "default_pool"} == {
        "dispatch_sql": ("bqdispatch_sql", 5),
        "dispatch_jobs": ("bqdispatch_jobs", 1),
    }


def test_the_dag_of_a_set_up_has_its_names_in_everything(database, monkeypatch):
    from bqdispatch_provider.factory import dispatch_dag

    monkeypatch.setenv("BQDISPATCH_SCHEDULE", "@continuous")
    monkeypatch.setenv("BQDISPATCH_ACME_SCHEDULE", "@hourly")
    monkeypatch.setenv("BQDISPATCH_ACME_SQL_SLOTS", "3")
    dag = dispatch_dag("acme", jobs_slots=7, tags=["acme"])
    assert (dag.dag_id, schedule_of(dag)) == ("bqdispatch_acme", "@hourly")
    assert list(dag.tags) == ["acme"]
    assert {task.bqdispatch_conn_id for task in dag.tasks} == {"bqdispatch_acme"}
    assert {task.task_id: (task.pool, task.pool_slots) for task in dag.tasks if task.pool != "default_pool"} == {
        "dispatch_sql": ("bqdispatch_acme_sql", 3),
        "dispatch_jobs": ("bqdispatch_acme_jobs", 7),
    }


@pytest.mark.parametrize("by", ["option", "environment"])
def test_runs_back_to_back_are_one_at_a_time_as_airflow_asks(database, monkeypatch, by):
    from bqdispatch_provider.factory import dispatch_dag

    if by == "environment":
        monkeypatch.setenv("BQDISPATCH_ACME_SCHEDULE", "@continuous")
    assert dispatch_dag("acme", **({"schedule": "@continuous"} if by == "option" else {})).max_active_runs == 1


@pytest.mark.parametrize("way", ["minute", "minute_deferred", "deferred", "events"])
def test_each_way_to_run_has_a_dag_for_any_set_up(database, way):
    from bqdispatch_provider.factory import dispatch_dag

    dag = dispatch_dag("acme", way)
    assert (dag.dag_id, {task.bqdispatch_conn_id for task in dag.tasks}) == ("bqdispatch_acme", {"bqdispatch_acme"})
    deferrable = {task.task_id: task.deferrable for task in dag.tasks if hasattr(task, "deferrable")}
    assert set(deferrable.values()) == {way != "minute"}


def test_a_dag_that_dispatches_is_switched_on_by_somebody(database, monkeypatch):
    """Whatever Airflow is configured for: beside BqTail's cloud function it would deliver twice (docs/migration.md)."""
    from bqdispatch_provider.factory import dispatch_dag

    monkeypatch.setenv("AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION", "False")
    assert dispatch_dag("acme").is_paused_upon_creation is True
    assert dispatch_dag("acme", is_paused_upon_creation=None).is_paused_upon_creation is None


def schedule_of(dag):
    return dag.schedule if hasattr(dag, "schedule") else dag.schedule_interval


def test_the_variable_of_the_schedule_is_for_runs_that_go_on_until_the_next_one(database, monkeypatch):
    """A deferred task goes on for ten minutes: by another schedule nothing would be dispatched in between."""
    from bqdispatch_provider.factory import dispatch_dag

    monkeypatch.setenv("BQDISPATCH_ACME_SCHEDULE", "@hourly")
    assert schedule_of(dispatch_dag("acme", "deferred")) == "@continuous"
    assert "hourly" not in str(schedule_of(dispatch_dag("acme", "events")))
    assert schedule_of(dispatch_dag("acme", "minute_deferred")) == "@hourly"


@pytest.mark.parametrize("schedule", ["* * * * *", "*/1 * * * *", timedelta(minutes=1)])
def test_a_run_each_minute_is_one_however_it_is_written(database, schedule):
    from bqdispatch_provider.factory import dispatch_dag

    dag = dispatch_dag("acme", schedule=schedule)
    assert dag.dagrun_timeout == timedelta(minutes=5)
    assert {task.time_to_live for task in dag.tasks if task.task_id.startswith("dispatch")} == {60.0}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"setup": "minute"}, r"the set-up is 'minute' and the way to run 'minute'; .* dispatch_dag\(way='minute'\)"),
        ({"setup": "deferred"}, r"the set-up is 'deferred' and "),
        ({"setup": 5}, r"the set-up is 5; expected up to 50 lower-case letters"),
        ({"sql_slots": 0}, r"sql_slots is 0; expected a number of slots"),
        ({"jobs_slots": "3"}, r"jobs_slots is '3'; expected a number of slots"),
        ({"way": "hourly"}, r"the way to run 'hourly'; expected .* one of the ways minute, "),
    ],
)
def test_an_argument_of_the_factory_that_is_none_is_named_with_what_is_expected(database, given, said):
    from bqdispatch_provider.factory import dispatch_dag

    with pytest.raises(ValueError, match=said):
        dispatch_dag(**given)


@pytest.mark.parametrize("seconds", [-5, timedelta(seconds=-1), float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused_when_the_dag_is_parsed(database, seconds):
    from bqdispatch_provider.operators import DispatchOperator
    from bqdispatch_provider.sensors import BqDispatchDoneSensor

    with pytest.raises(ValueError, match=r"time_to_live is .*; expected a number of seconds, 0 or more"):
        DispatchOperator(task_id="dispatch", time_to_live=seconds)
    with pytest.raises(ValueError, match=r"settle_time is .*; expected a number of seconds, 0 or more"):
        BqDispatchDoneSensor(task_id="done", settle_time=seconds)


def test_a_template_that_gives_no_time_is_named(database):
    from bqdispatch_provider.operators import DispatchOperator

    task = DispatchOperator(task_id="dispatch", time_to_live="{{ params.t }}")
    task.time_to_live = "two"
    with pytest.raises(ValueError, match="time_to_live is 'two'; expected a number of seconds"):
        _ = task._time_to_live_s


def test_what_an_event_driven_dag_runs_at_in_any_case_is_a_cron_expression(database):
    from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

    from bqdispatch_provider.factory import dispatch_dag

    if AIRFLOW_V_3_0_PLUS:
        for schedule in (None, timedelta(minutes=5), "@continuous", "@once", "* * *"):
            with pytest.raises(ValueError, match="expected a cron expression"):
                dispatch_dag("acme", "events", schedule=schedule)
    else:  # where nothing watches, it is a schedule as any other
        assert dispatch_dag("acme", "events", schedule="@continuous").schedule_interval == "@continuous"


@pytest.mark.parametrize("slots", ["", "many", "0", "-1"])
def test_a_number_of_slots_that_is_none_is_refused_with_the_variables_name(monkeypatch, slots):
    from bqdispatch_provider.factory import dispatch_dag

    monkeypatch.setenv("BQDISPATCH_ACME_SQL_SLOTS", slots)
    with pytest.raises(ValueError, match=r"BQDISPATCH_ACME_SQL_SLOTS is .*; expected a number of slots"):
        dispatch_dag("acme")


def test_a_set_ups_tasks_are_tried_again_as_often_as_its_options_say(database):
    from bqdispatch_provider.factory import dispatch_dag

    tries = {(task.retries, task.retry_delay) for task in dispatch_dag("acme").tasks}
    assert tries == {(3, timedelta(seconds=1))}
    owned = dispatch_dag("acme", default_args={"owner": "acme", "retries": 7})
    assert {(task.owner, task.retries, task.retry_delay) for task in owned.tasks} == {("acme", 7, timedelta(seconds=1))}


@pytest.mark.parametrize("file", [each for each in SAMPLES if each.parent.name == "dags"], ids=lambda file: file.stem)
def test_a_sample_dag_that_dispatches_is_tried_again(database, file):
    from airflow.providers.common.compat.sdk import DAG

    dags = [each for each in runpy.run_path(str(file)).values() if isinstance(each, DAG)]
    assert all(task.retries > 0 for dag in dags for task in dag.tasks)
