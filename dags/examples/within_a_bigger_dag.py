"""Dispatch a table's events within a DAG that makes its files, and continue once they are loaded.

Use it for a DAG that puts files into BqTail's bucket and needs them in BigQuery in its next step, without waiting for
another DAG to dispatch them. Beside the DAG ``bqdispatch``, each event is still dispatched once.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.operators import DispatchOperator
from bqdispatch_provider.sensors import BqDispatchDoneSensor

ORDERS = {"destinations": ["sales.orders"]}

with DAG(
    "within_a_bigger_dag",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=True,
) as dag:

    @task
    def put_files() -> None:
        print("files of sales.orders are put into BqTail's bucket")

    dispatch = DispatchOperator(task_id="dispatch", only=ORDERS, time_to_live=600)
    loaded = BqDispatchDoneSensor(task_id="loaded", only=ORDERS, mode="reschedule", timeout=timedelta(minutes=30))

    @task
    def use() -> None:
        print("sales.orders is loaded")

    put_files() >> [dispatch, loaded]
    loaded >> use()
