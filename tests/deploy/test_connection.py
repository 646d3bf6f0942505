"""All that stands in the connection and is not the deployment's stays, and nothing secret is shown."""

import json

import pytest
from clouds import DOCUMENT

VARIABLE = "AIRFLOW_CONN_BQDISPATCH_DEFAULT"
KEPT = {
    "gcp_conn_id": "google_acme",
    "impersonation_chain": ["dispatcher@acme-ops.iam.gserviceaccount.com"],
    "quota_project_id": "acme-quota",
    "subscription": "projects/acme-ops/subscriptions/bqtail-jobs",
}
NEW = {"config_url": "gs://acme-config/dispatch.json"}


def connection(**extra):
    return {"conn_type": "bqdispatch", "extra": extra}


def test_credentials_and_subscription_are_kept(cloud_project):
    cloud_project.set_connection(connection(config_url="gs://acme-config/old.json", **KEPT))
    assert cloud_project.deploy().returncode == 0
    assert cloud_project.connection == connection(**NEW, **KEPT)


def test_the_options_set_credentials_and_take_them_out(cloud_project):
    options = ["--gcp-conn-id=google_acme", "--impersonation-chain=a@acme.example,b@acme.example"]
    assert cloud_project.deploy(*options).returncode == 0
    given = {"gcp_conn_id": "google_acme", "impersonation_chain": "a@acme.example,b@acme.example"}
    assert cloud_project.connection == connection(**NEW, **given)
    assert cloud_project.deploy("--impersonation-chain=").returncode == 0
    assert cloud_project.connection == connection(**NEW, gcp_conn_id="google_acme")


def test_the_same_connection_in_another_spelling_is_left_as_it_is(deployed):
    extra = json.dumps({**NEW, **KEPT, "variables": ""}, indent=2)
    spelt = json.dumps({"extra": extra, "conn_type": "bqdispatch"})
    deployed.set_connection(spelt)
    assert deployed.deploy().returncode == 0
    assert deployed.variables[VARIABLE] == spelt


def test_a_document_in_any_form_gives_way_to_the_new_one(cloud_project):
    for form in (
        {"config": DOCUMENT},
        {**DOCUMENT, "RulesURL": "gs://acme-config/rules"},
        {"extra__bqdispatch__config": "{}"},
    ):
        cloud_project.set_connection(connection(**form, **KEPT))
        done = cloud_project.deploy()
        assert done.returncode == 0, done.stderr
        assert cloud_project.connection == connection(**NEW, **KEPT)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("bqdispatch://?config_url=gs%3A%2F%2Facme&token=hunter2", "is no JSON object"),
        ('{"conn_type": "bqdispatch", "extra": {"token": "hunter2"', "is broken JSON"),
        ({"conn_type": "http", "password": "hunter2"}, "another type than bqdispatch"),
        ({"conn_type": "bqdispatch", "extra": "{hunter2"}, "an extra that is broken JSON"),
        ({"conn_type": "bqdispatch", "extra": ["hunter2"]}, "an extra that is no JSON object"),
        (connection(**NEW, token="hunter2"), "has 'token' beside the configuration"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_do(cloud_project, there, said):
    cloud_project.set_connection(there)
    before = cloud_project.variables
    for more in ([], ["--dry-run"]):
        done = cloud_project.deploy(*more)
        assert done.returncode == 1
        assert VARIABLE in done.stderr
        assert said in done.stderr
        assert f"--remove-env-variables={VARIABLE}" in done.stderr
        assert "hunter2" not in done.stderr + done.stdout
    assert cloud_project.variables == before


def test_the_dry_run_shows_what_changes_and_what_stays(cloud_project):
    cloud_project.set(variables={"BQDISPATCH_SQL_SLOTS": "60", "BQDISPATCH_JOBS_SLOTS": "7"})
    there = {"config_url": "gs://acme-config/old\n.json", "gcp_conn_id": "google_acme", "variables": {"a": "hunter2"}}
    cloud_project.set_connection(connection(**there))
    script = cloud_project.dry_run("--gcp-conn-id=other")
    shown = script.partition("# connection and slots (takes minutes)\n")[2].partition("\ngcloud")[0]
    assert shown.splitlines() == [
        rf'#   {VARIABLE}: config_url: "gs://acme-config/old\n.json" becomes "gs://acme-config/dispatch.json"',
        f'#   {VARIABLE}: gcp_conn_id: "google_acme" becomes "other"',
        f"#   {VARIABLE}: variables is removed (not shown)",
        "#   BQDISPATCH_SQL_SLOTS: 60 becomes 40",
        "#   BQDISPATCH_JOBS_SLOTS: 7 becomes nothing",
    ]
    assert "hunter2" not in script


def test_what_the_deployment_does_not_know_is_kept_and_never_shown(cloud_project):
    known = {
        "conn_type": "bqdispatch",
        "password": 'hun"ter2',
        "port": 4711,
        "extra": {"config_url": "gs://acme-config/o"},
    }
    cloud_project.set_connection(known)
    script = cloud_project.dry_run()
    assert '"password": "…"' in script
    assert "put in what is there before you type this" in script
    cloud_project.set(refuse={"update-env": f"Bad syntax for dict arg: [{json.dumps(known)}]"})
    refused = cloud_project.deploy()
    assert refused.returncode == 1
    cloud_project.set(refuse={})
    assert cloud_project.deploy().returncode == 0
    assert cloud_project.connection == known | {"extra": NEW}
    for secret in ("ter2", "4711"):
        assert secret not in script + refused.stderr + refused.stdout
