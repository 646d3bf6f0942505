"""What ``airflow providers`` and the connection's form show."""

from __future__ import annotations

from typing import Any

from bqdispatch_provider import __version__


def get_provider_info() -> dict[str, Any]:
    """The provider's metadata, in the form of Airflow's ``provider_info.schema.json``."""
    integration = "BqTail dispatch"
    return {
        "package-name": "airflow-provider-bqdispatch",
        "name": integration,
        "description": "BqTail's dispatcher: fires due batch windows and moves the traces of finished BigQuery jobs, "
        "within limits.",
        "versions": [__version__],
        "integrations": [{"integration-name": integration, "tags": ["gcp"]}],
        # Read by Airflow 3.2 and later; the others pass it over.
        "cli": ["bqdispatch_provider.commands.get_commands"],
        "hooks": [{"integration-name": integration, "python-modules": ["bqdispatch_provider.hooks"]}],
        "sensors": [
            {
                "integration-name": integration,
                "python-modules": ["bqdispatch_provider.sensors", "bqdispatch_provider.done"],
            }
        ],
        "operators": [{"integration-name": integration, "python-modules": ["bqdispatch_provider.operators"]}],
        "triggers": [
            {
                "integration-name": integration,
                "python-modules": ["bqdispatch_provider.triggers", "bqdispatch_provider.done"],
            }
        ],
        "extra-links": [
            "bqdispatch_provider.links.BigQueryJobLink",
            "bqdispatch_provider.links.TaskFolderLink",
            "bqdispatch_provider.links.ResponseDocumentLink",
        ],
        "notifications": ["bqdispatch_provider.notifications.BqDispatchNotifier"],
        "connection-types": [
            {
                "connection-type": "bqdispatch",
                "hook-class-name": "bqdispatch_provider.hooks.BqDispatchHook",
                "hook-name": integration,
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "schema", "login", "password", "port"],
                    "relabeling": {},
                    "placeholders": {},
                },
                "conn-fields": {
                    "config": _field(
                        "Configuration (JSON)",
                        'The document itself: {"AsyncTaskURL": "gs://…", "JournalURL": "gs://…", "ErrorURL": "gs://…"}',
                        format="multiline",
                    ),
                    "config_url": _field(
                        "Configuration URL",
                        "Where the document lies instead: gs://bucket/object, or file:/// in BQDISPATCH_FILE_ROOTS",
                    ),
                    "variables": _field("Variables (JSON)", "Values for ${name} in the document", format="multiline"),
                    "gcp_conn_id": _field(
                        "Google Cloud connection", "Whose credentials are used; google_cloud_default when left out"
                    ),
                    "impersonation_chain": _field(
                        "Impersonation chain", "Service accounts to impersonate, comma-separated"
                    ),
                    "quota_project_id": _field("Quota project", "Project that the calls are counted for"),
                    "subscription": _field(
                        "Pub/Sub subscription",
                        "projects/…/subscriptions/… on BigQuery's audit logs, which wakes the dispatcher at once",
                    ),
                },
            }
        ],
    }


def _field(label: str, description: str, **schema: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"], **schema}}
