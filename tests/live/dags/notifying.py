"""A DAG that tells Slack when it fails."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.notifications import BqDispatchNotifier
from bqdispatch_provider.operators import DispatchOperator

with DAG("tells", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False) as tells:
    DispatchOperator(
        task_id="dispatch",
        time_to_live=0,
        fail_on_error=True,
        retries=0,
        on_failure_callback=BqDispatchNotifier("#data-ops", slack_conn_id="slack_ops"),
    )
