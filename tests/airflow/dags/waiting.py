"""DAGs that wait until BqTail is through, in each mode of a sensor."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from bqdispatch_provider.operators import DispatchOperator
from bqdispatch_provider.sensors import BqDispatchDoneSensor

ORDERS = {"destinations": ["{{ 'sales' }}.orders"]}


class Consumed(DispatchOperator):
    """Dispatches, and consumes what it has delivered, as BqTail does."""

    def execute(self, context):
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        super().execute(context)
        client = Client(project="p", credentials=AnonymousCredentials())
        for blob in client.list_blobs("p_bqtail"):
            blob.delete()


def dag_of(dag_id):
    return DAG(dag_id, schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)


def sensor(**more):
    return BqDispatchDoneSensor(task_id="done", only=ORDERS, settle_time=0.2, poke_interval=0.1, **more)


MODES = {"poked": {}, "rescheduled": {"mode": "reschedule"}, "deferred": {"deferrable": True}}

for name, mode in MODES.items():
    with dag_of(f"done_{name}") as done:
        Consumed(task_id="dispatch", time_to_live=0) >> sensor(**mode)
    with dag_of(f"late_{name}") as late:
        sensor(timeout=0.5, **mode)
    globals().update({done.dag_id: done, late.dag_id: late})

with dag_of("done_wrong") as done_wrong:
    BqDispatchDoneSensor(task_id="done", only={"tables": ["sales.orders"]}, deferrable=True)
