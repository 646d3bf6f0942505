"""Tasks return the same in a scheduler and under `airflow dags test`, by which users try a DAG."""

import subprocess
import sys

import pytest
from runs import has_ended, trigger


def shape_of(value):
    """A value without what differs from run to run: the names in it, and their types."""
    if isinstance(value, list):
        return [shape_of(each) for each in value]
    return {name: type(each).__name__ for name, each in value.items()}


def returned_in(live, run):
    """The shape of what each task of a run returned, as Airflow has stored it; ``None`` where there is nothing."""
    found = {}
    for task in live.get(f"{run}/taskInstances")["task_instances"]:
        entries = f"{run}/taskInstances/{task['task_id']}/xcomEntries"
        keys = {entry["key"] for entry in live.get(entries)["xcom_entries"]}
        found[task["task_id"]] = (
            shape_of(live.get(f"{entries}/return_value")["value"]) if "return_value" in keys else None
        )
    return found


@pytest.mark.parametrize("dag_id", ["by_hand", "logs_on_worker", "logs_on_triggerer", "used_on_triggerer"])
def test_a_scheduler_and_a_trial_return_the_same(live, world, unpaused, wait_until, dag_id):
    world.traces(2)
    with unpaused(dag_id):
        run = trigger(live, dag_id, "returned")
        wait_until(lambda: has_ended(live, run), f"{run} has ended")
        world.consume()
    scheduled = returned_in(live, run)
    world.traces(2)
    tried = [sys.executable, "-m", "airflow", "dags", "test", dag_id]
    ended = subprocess.run(tried, env=live.environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    world.consume()
    (newest,) = live.get(f"dags/{dag_id}/dagRuns", order_by="-run_after", limit=1)["dag_runs"]
    assert newest["dag_run_id"] != "returned"
    assert returned_in(live, f"dags/{dag_id}/dagRuns/{newest['dag_run_id']}") == scheduled
    assert (scheduled["dispatch"] is None) == (dag_id == "logs_on_triggerer")
