"""One cycle in one task, on a worker."""

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator


class TellingOperator(DispatchOperator):
    """Tells a test that it was asked to end."""

    def on_kill(self) -> None:
        super().on_kill()
        Path(os.environ["AIRFLOW_HOME"], "asked_to_end").touch()


with DAG("on_a_worker", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False) as dag:
    TellingOperator(task_id="dispatch", time_to_live=0, assets=False, deferrable=False)
