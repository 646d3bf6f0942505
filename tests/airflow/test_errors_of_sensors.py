"""Errors of a sensor that ``soft_fail`` would skip: they fail the task, and its retries apply."""

import pytest
from airflow.exceptions import AirflowNotFoundException, AirflowTaskTimeout

from bqdispatch_provider.compat import AirflowException, AirflowSensorTimeout, AirflowSkipException
from bqdispatch_provider.sensors import BqDispatchDoneSensor, BqDispatchSensor

SENSORS = pytest.mark.parametrize("sensor", [BqDispatchSensor, BqDispatchDoneSensor])


@SENSORS
@pytest.mark.parametrize("soft_fail", [True, False])
@pytest.mark.parametrize("error", ["Trigger failure", "Trigger timeout", "Trigger/execution timeout"])
def test_a_trigger_that_fails_or_that_no_triggerer_runs_fails_its_task_which_is_tried_again(sensor, soft_fail, error):
    task = sensor(task_id="waits", deferrable=True, soft_fail=soft_fail)
    with pytest.raises(AirflowException, match=error) as ended:
        task.resume_execution("__fail__", {"error": error}, {})
    assert not isinstance(ended.value, AirflowSkipException | AirflowSensorTimeout)  # neither is tried again


def test_a_connection_that_is_removed_while_its_task_waits_fails_the_task(database):
    task = BqDispatchSensor(task_id="waits", bqdispatch_conn_id="removed", deferrable=True)
    with pytest.raises(AirflowNotFoundException, match="removed"):
        task.resume_execution("execute_complete", {"event": {"status": "work"}}, {})


@SENSORS
def test_a_sensor_that_never_fails_is_skipped_where_airflow_skips_it(sensor, monkeypatch):
    def wait_in_vain(*_, **__):
        raise AirflowSkipException

    monkeypatch.setattr(sensor, "execute_complete", wait_in_vain)
    task = sensor(task_id="waits", deferrable=True, soft_fail=False, never_fail=True)
    with pytest.raises(AirflowSkipException):
        task.resume_execution("execute_complete", {"event": {}}, {})


@SENSORS
def test_a_task_whose_time_is_over_during_a_poll_fails(sensor, monkeypatch, world, connect):
    def hang(*_):
        raise AirflowTaskTimeout("over")

    monkeypatch.setattr(sensor, "poke", hang)
    task = sensor(task_id="waits", deferrable=False, soft_fail=True)
    with pytest.raises(AirflowTaskTimeout):
        task.poke_until_done({})
