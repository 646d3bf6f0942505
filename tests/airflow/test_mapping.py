"""Sensors, operators and groups of both that are mapped over filters."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, task_group
from world import JOURNAL, TRIGGER

from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator


@pytest.mark.parametrize("dag_id", ["mapped_operators", "mapped_sensors", "mapped_sensors_of_the_same", "mapped_group"])
def test_what_is_mapped_over_filters_dispatches_each_event_once(world, run, document, dag_id):
    names, window = world.traces(3), world.window()
    done = run(dag_id, "mapping.py")
    assert (done.state, set(done.states.values())) == ("success", {"success"})
    written = document(done)
    assert set(written["Jobs"]) == {world.url_of(name) for name in names}
    assert list(written["Batched"]) == [world.url_of(window)]
    assert (written["Outcomes"]["dispatched"], written["Errors"]) == (4, [])
    assert len(world.names(TRIGGER)) == 4


@pytest.mark.parametrize("dag_id", ["mapped_sensors", "mapped_group"])
def test_a_mapped_sensor_that_finds_nothing_keeps_nobody_from_what_another_has_found(world, run, document, dag_id):
    """As docs/own_dags.md has it."""
    window = world.window()
    done = run(dag_id, "mapping.py")
    assert (done.state, sorted(set(done.states.values()))) == ("success", ["skipped", "success"])
    written = document(done)
    assert (list(written["Batched"]), written["Jobs"]) == ([world.url_of(window)], {})


def test_a_report_in_a_mapped_group_is_refused_with_where_to_put_it():
    @task_group
    def each(only):
        DispatchReportOperator(task_id="report", variables=only)

    with (
        DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)),
        pytest.raises(ValueError, match=r"'each\.report' is in a mapped task group, .*; put it behind the group"),
    ):
        each.expand(only=[{"a": "b"}])


def test_a_mapped_report_is_refused_before_it_writes_anything(world, connect):
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="report", map_index=0)
    with pytest.raises(ValueError, match=r"'report' is mapped, so several copies would write one document; remove"):
        DispatchReportOperator(task_id="report").execute({"ti": ti})
    assert world.names(JOURNAL) == []


def test_a_task_knows_a_mapped_report():
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        task = DispatchOperator(task_id="dispatch")
        assert not task._is_reported
        task >> DispatchReportOperator.partial(task_id="report").expand(variables=[{"a": "b"}])
    assert task._is_reported


@pytest.mark.parametrize("dag_id", ["report_before", "report_beside"])
def test_a_report_that_does_not_follow_the_task_is_refused_and_nothing_is_dispatched(world, run, dag_id):
    """Otherwise what the task dispatches has no asset event."""
    name = world.trace()
    done = run(dag_id, "refused.py")
    assert done.states["dispatch"] == "failed"
    assert world.names() == [name]


def test_a_report_that_does_not_follow_the_task_is_named_with_where_to_put_it():
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        task = DispatchOperator(task_id="dispatch")
        DispatchReportOperator(task_id="report")
    with pytest.raises(ValueError, match=r"'report' .* does not follow the task 'dispatch', .*: dispatch >> report$"):
        _ = task._is_reported


def test_two_reports_that_would_emit_the_same_asset_events_are_refused(world, run):
    world.trace()
    done = run("two_reports", "refused.py")
    assert (done.states["dispatch"], done.states["first"], done.states["second"]) == ("success", "failed", "failed")


def test_a_report_of_another_connection_is_nobodys_business_here():
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        task = DispatchOperator(task_id="dispatch")
        DispatchReportOperator(task_id="report", bqdispatch_conn_id="other")
    assert not task._is_reported
