"""Show what a dispatcher would do, and do nothing.

Use it before you switch a dispatcher on, or to see why an event waits: trigger it by hand in Airflow's UI. The plan is
in the task's log, and its counts are the task's return value. The task reads the task folder, the jobs and the limits,
and writes nothing.
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
            seen = dispatcher.look()
        for lane, events in seen.plan.events.items():
            for event in events:
                print(f"{lane}: {event.name!r}")
        would = {str(lane): len(events) for lane, events in seen.plan.events.items()}
        return {"would dispatch": would, **seen.report.summary()}

    look()
