"""Many sensors that wait in the triggerer at one time, each for a trace of its own table."""

import os
from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator
from bqdispatch_provider.sensors import BqDispatchSensor

with DAG("deferred", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False):
    for number in range(int(os.environ["BQDISPATCH_SENSORS"])):
        only = {"destinations": [f"ds.t{number}"]}
        detect = BqDispatchSensor(
            task_id=f"detect_{number}", only=only, deferrable=True, poke_interval=1, timeout=600, soft_fail=False
        )
        DispatchOperator(task_id=f"dispatch_{number}", shares=detect.output)
