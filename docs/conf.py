"""Settings of the documentation site, which ``make docs`` builds from the pages that docs/site.py gathers."""

from docutils import nodes

from bqdispatch_provider import __version__

project = "airflow-provider-bqdispatch"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "BqTail dispatch for Airflow"
exclude_patterns = ["files"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
nitpicky = True
# Objects of other packages, and of the rooms behind what users import, have no pages here.
nitpick_ignore_regex = [
    ("py:.*", r"(?!bqdispatch_provider).*"),
    ("py:.*", r"bqdispatch_provider\.(core|cycle|delivery|gcp|config_keys|testing)\..*"),
]

_PYTHON = "https://docs.python.org/3/library"
_AIRFLOW = "https://airflow.apache.org/docs/apache-airflow/stable/_api/airflow"
_TASK_SDK = "https://airflow.apache.org/docs/task-sdk/stable/api.html#airflow.sdk"
_EXCEPTIONS = f"{_AIRFLOW}/exceptions/index.html#airflow.exceptions"
_STORAGE_CLIENT = "https://cloud.google.com/python/docs/reference/storage/latest/google.cloud.storage.client.Client"
OBJECTS = {
    "Context": f"{_TASK_SDK}.Context",
    "PokeReturnValue": f"{_TASK_SDK}.PokeReturnValue",
    "airflow.sdk.definitions.asset.Asset": f"{_TASK_SDK}.Asset",
    "airflow.sdk.definitions.dag.DAG": f"{_TASK_SDK}.DAG",
    "airflow.triggers.base.TriggerEvent": f"{_AIRFLOW}/triggers/base/index.html#airflow.triggers.base.TriggerEvent",
    "AirflowFailException": f"{_EXCEPTIONS}.AirflowFailException",
    "AirflowSensorTimeout": f"{_EXCEPTIONS}.AirflowSensorTimeout",
    "Client": _STORAGE_CLIENT,
    "google.cloud.storage.client.Client": _STORAGE_CLIENT,
    "google.api_core.exceptions.GoogleAPIError": (
        "https://googleapis.dev/python/google-api-core/latest/exceptions.html#google.api_core.exceptions.GoogleAPIError"
    ),
    "requests.Session": "https://requests.readthedocs.io/en/latest/api/#requests.Session",
    "requests.sessions.Session": "https://requests.readthedocs.io/en/latest/api/#requests.Session",
    "datetime.datetime": f"{_PYTHON}/datetime.html#datetime.datetime",
    "datetime.timedelta": f"{_PYTHON}/datetime.html#datetime.timedelta",
    **{
        f"collections.abc.{name}": f"{_PYTHON}/collections.abc.html#collections.abc.{name}"
        for name in ("AsyncIterator", "Iterable", "Mapping", "Sequence")
    },
}
"""The pages of other packages' objects. Sphinx could read them from these packages' inventories, but for that the site
would have to be built with a network."""


def _link_elsewhere(app, env, node, content):
    address = OBJECTS.get(node.get("reftarget", ""))
    return address and nodes.reference("", "", content, refuri=address, internal=False)


def setup(app):
    """Register with Sphinx."""
    app.connect("missing-reference", _link_elsewhere)
