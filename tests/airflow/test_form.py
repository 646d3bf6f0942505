"""The connection where people meet it: the form of Airflow's page, and `airflow connections test`."""

import json
import subprocess
import sys

import airflow
import pytest

from bqdispatch_provider.provider_info import get_provider_info

FORM_OF_AIRFLOW_3 = """
import json
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
(found,) = (each for each in HookMetaService.hook_meta_data() if each.connection_type == "bqdispatch")
fields = {name: [field["schema"].get("title"), field["schema"].get("format") == "multiline"]
          for name, field in found.extra_fields.items()}
standard = found.standard_fields.model_dump()
hidden = [name for name, field in standard.items() if field and field["hidden"]]
print(json.dumps([fields, ["schema" if name == "url_schema" else name for name in hidden]]))
"""
FORM_OF_AIRFLOW_2 = """
import json
from airflow.providers_manager import ProvidersManager
manager = ProvidersManager()
widgets = manager.connection_form_widgets
fields = {widgets[name].field_name:
          [str(widgets[name].field.args[0]), "Area" in type(widgets[name].field.kwargs["widget"]).__name__]
          for name in widgets if name.startswith("extra__bqdispatch__")}
print(json.dumps([fields, manager.field_behaviours["bqdispatch"]["hidden_fields"]]))
"""


def test_the_form_shows_the_providers_fields_and_hides_the_others(database):
    form = FORM_OF_AIRFLOW_2 if airflow.__version__.startswith("2.") else FORM_OF_AIRFLOW_3
    printed = subprocess.run([sys.executable, "-c", form], capture_output=True, text=True, check=True).stdout
    fields, hidden = json.loads(printed.splitlines()[-1])
    (connection,) = get_provider_info()["connection-types"]
    assert {name: label for name, (label, _) in fields.items()} == {
        name: field["label"] for name, field in connection["conn-fields"].items()
    }
    assert {name for name, (_, has_lines) in fields.items() if has_lines} == {"config", "variables"}
    assert sorted(hidden) == sorted(connection["ui-field-behaviour"]["hidden-fields"])


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({}, "Connection success!"),
        ({"AsyncTaskURL": "gs://nowhere/tasks"}, "Connection failed!\nbucket nowhere does not exist"),
    ],
)
def test_airflow_connections_test_says_what_is_wrong(world, connect, database, monkeypatch, extra, said):
    connect(world.document(**extra))
    monkeypatch.setenv("AIRFLOW__CORE__TEST_CONNECTION", "Enabled")
    command = [sys.executable, "-m", "airflow", "connections", "test", "bqdispatch_default"]
    # How it ends after a failure differs from version to version.
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said in ended.stdout, ended.stdout + ended.stderr
