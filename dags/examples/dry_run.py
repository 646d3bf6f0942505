"""Show what a dispatcher would do, and do nothing.

Use it before you switch a dispatcher on, or to see why an event waits: trigger it in Airflow's page by hand. The plan
is in the task's log, and its counts are what the task returns. The task folder, the jobs and the limits are looked at
as they are, and nothing is written anywhere.
"""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from bqdispatch_provider.hooks import BqDispatchHook

with DAG(
    "dry_run", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False, is_paused_upon_creation=True
) as dag:

    @task
    def look(only: dict[str, list[str]] | None = None) -> dict[str, Any]:
        with BqDispatchHook().get_dispatcher(only=only) as dispatcher:
            sight = dispatcher.look()
        for lane, events in sight.plan.events.items():
            for event in events:
                print(f"{lane}: {event.name!r}")
        would = {str(lane): len(events) for lane, events in sight.plan.events.items()}
        return {"would dispatch": would, **sight.report.summary()}

    look()
