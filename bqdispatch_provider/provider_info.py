"""The provider's metadata: what ``airflow providers`` and the connection's form show."""

from __future__ import annotations

from typing import Any

from bqdispatch_provider import __version__
from bqdispatch_provider.core.connection import CONN_TYPE

HIDDEN_FIELDS = ["host", "schema", "login", "password", "port"]
"""Fields of every connection that the form of type ``bqdispatch`` hides."""

INTEGRATION = "BqTail dispatch"
"""The name of the integration, and of its type of connection."""


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, in the form of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-bqdispatch",
        "name": INTEGRATION,
        "description": "BqTail's dispatcher: fires due batch windows and moves the traces of finished BigQuery jobs, "
        "within limits.",
        "versions": [__version__],
        "integrations": [{"integration-name": INTEGRATION, "tags": ["gcp"]}],
        # Airflow reads this from 3.2 on.
        "cli": ["bqdispatch_provider.commands.get_commands"],
        **{kind: [_module(kind)] for kind in ("hooks", "sensors", "operators", "triggers")},
        "extra-links": [
            "bqdispatch_provider.links.BigQueryJobLink",
            "bqdispatch_provider.links.TaskFolderLink",
            "bqdispatch_provider.links.ResponseDocumentLink",
        ],
        "notifications": ["bqdispatch_provider.notifications.BqDispatchNotifier"],
        "connection-types": [
            {
                "connection-type": CONN_TYPE,
                "hook-class-name": "bqdispatch_provider.hooks.BqDispatchHook",
                "hook-name": INTEGRATION,
                "ui-field-behaviour": {"hidden-fields": HIDDEN_FIELDS, "relabeling": {}, "placeholders": {}},
                "conn-fields": connection_fields(),
            }
        ],
    }


def connection_fields() -> dict[str, Any]:
    """Return the fields of the connection's form, as the metadata describes them."""
    return {
        "config": _field(
            "Configuration (JSON)",
            'The document itself: {"AsyncTaskURL": "gs://…", "JournalURL": "gs://…", "ErrorURL": "gs://…"}',
            format="multiline",
        ),
        "config_url": _field(
            "Configuration URL",
            "Where the document is instead: gs://bucket/object, or file:/// in BQDISPATCH_FILE_ROOTS",
        ),
        "variables": _field("Variables (JSON)", "Values for ${name} in the document", format="multiline"),
        "gcp_conn_id": _field(
            "Google Cloud connection", "Whose credentials are used; google_cloud_default when left out"
        ),
        "impersonation_chain": _field("Impersonation chain", "Service accounts to impersonate, comma-separated"),
        "quota_project_id": _field("Quota project", "Project that the calls are counted for"),
        "subscription": _field(
            "Pub/Sub subscription",
            "projects/…/subscriptions/… on BigQuery's audit logs, which wakes the dispatcher at once",
        ),
    }


def _module(kind: str) -> dict[str, Any]:
    return {"integration-name": INTEGRATION, "python-modules": [f"bqdispatch_provider.{kind}"]}


def _field(label: str, description: str, **schema: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"], **schema}}
