"""The rights that the account is granted, by command and by Terraform: the same, checked, no more than is named."""

import json
import re
import shutil
import subprocess

import pytest
import terraform
from clouds import ACCOUNT, DOCUMENT

from bqdispatch_provider.commands.rights import ROLES

ROLE = "projects/acme-ops/roles"
CASES = {
    "as it is": ({}, [], {}),
    "no limits": ({"MaxConcurrentSQL": 0}, [], {}),
    "null for what has a default": ({"TriggerBucket": None, "MaxConcurrentSQL": None}, [], {}),
    "nothing for what has a default": ({"TriggerBucket": "", "Region": ""}, [], {}),
    "capitals as in Go": ({"ERRORURL": "gs://acme-quarantine/x", "ErrorURL": None}, [], {}),
    "no project": ({"ProjectID": None}, [], {}),
    "another trigger bucket": ({"TriggerBucket": "acme-trigger"}, [], {}),
    "the document beside the tasks": ({"AsyncTaskURL": "gs://acme-config/Tasks"}, [], {}),
    "a whole bucket": ({"ErrorURL": "gs://acme-errors"}, [], {}),
    "variables": (
        {"ErrorURL": "gs://${errors}/x; id > owned #"},
        ["--var=errors=acme-errors"],
        {"variables": {"errors": "acme-errors"}},
    ),
    "more projects": (
        {},
        ["--job-project=acme-shop", "--job-project=acme-web"],
        {"job_projects": ["acme-shop", "acme-web"]},
    ),
    "a set-up with a name": ({}, ["--setup=acme"], {"setup": "acme"}),
}
CASES |= {
    f"{name}, by prefix": (document, [*options, "--by-prefix"], {**given, "by_prefix": True})
    for name, (document, options, given) in CASES.items()
}


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
@pytest.mark.parametrize("case", CASES)
def test_terraform_grants_what_the_command_grants(cloud_project, tmp_path, case):
    document, options, given = CASES[case]
    document = {key: value for key, value in {**DOCUMENT, **document}.items() if key != "ErrorURL" or value}
    cloud_project.replace_document(document)
    found = terraform.rights(cloud_project, tmp_path / "terraform", **given)
    terraform.apply(cloud_project, found)
    cloud_project.set_pip_conf("[global]\nindex-url = https://pypi.acme.example/simple/\n")
    done = cloud_project.deploy("--published", "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    # Nothing is left to do for the command, and each of its steps is one of Terraform's.
    assert not re.search(r"^gcloud (iam|storage buckets|projects) ", done.stdout, re.MULTILINE)
    assert done.stdout.count(": up to date") == len(found["roles"])
    assert done.stdout.count(": already granted") == len(found["buckets"]) + len(found["projects"])


@pytest.mark.parametrize(
    "document",
    [
        {"MaxConcurrentSQL": "40; id > owned #"},
        {"ErrorURL": "gs://acme-ops/BqTail/Tasks/errors"},
        {"TriggerBucket": "acme ops"},
        {"ProjectID": "acme-ops --role=roles/owner"},
    ],
)
def test_a_document_that_no_dispatcher_accepts_grants_nothing(cloud_project, document):
    cloud_project.document(**document)
    (key,) = document
    config = "--config=gs://acme-config/dispatch.json"
    for done in (cloud_project.command("deploy", "rights", config, "--project=acme-ops"), cloud_project.deploy()):
        assert (done.returncode, done.stdout) == (2, "")
        assert f"  - {key} " in done.stderr
    assert cloud_project.calls == []


def test_terraform_calls_no_shell_and_decodes_no_document():
    text = terraform.MAIN.read_text()
    for gone in ("local-exec", "provisioner", "terraform_data", "null_resource", "bucket_object", "gcloud"):
        assert gone not in text
    assert re.findall(r"program\s*=\s*(\S+)", text) == ["local.program", "concat("]
    assert set(re.findall(r"jsondecode\((.*?)\)", text)) == {
        f"data.external.rights.result.{part}" for part in ("roles", "buckets", "projects")
    }
    assert not re.findall(r'"(roles/[\w.]+)"', text)
    assert set(re.findall(r'^resource "(\w+)"', text, re.MULTILINE)) == {
        "google_project_iam_custom_role",
        "google_storage_bucket_iam_member",
        "google_project_iam_member",
    }


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
def test_terraform_reads_the_file_and_finds_it_well_formed():
    command = ["terraform", "fmt", "-check", "-diff", terraform.MAIN.parent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rights_that_terraform_keeps_are_left_to_it(cloud_project):
    assert cloud_project.deploy("--no-rights").returncode == 0
    assert cloud_project.roles == {}
    assert [binding[0] for binding in cloud_project.bindings] == ["bqdispatch-index"]


# By prefix

FOLDERS = {
    "gs://acme-ops": ["BqTail/Tasks/", "BqTail/Journal/"],
    "gs://acme-errors": ["BqTail/Errors/"],
    "gs://acme_ops_bqtail": ["_bqjob_/", "_batch_/"],
}


def allows(condition, name):
    """Tell whether a condition holds for an object of a name, or for the bucket itself."""
    bucket, _, path = name.removeprefix("gs://").partition("/")
    resource = f"projects/_/buckets/{bucket}" + (f"/objects/{path}" if path else "")
    kind = "Object" if path else "Bucket"
    said = condition["expression"]
    if same := re.fullmatch(r'resource\.name == "(.*)"', said):
        return resource == same[1]
    first, *others = said.split(" || ")
    assert first == 'resource.type != "storage.googleapis.com/Object"'
    prefixes = [re.fullmatch(r'resource\.name\.startsWith\("(.*)"\)', each)[1] for each in others]
    return kind != "Object" or any(resource.startswith(prefix) for prefix in prefixes)


def test_by_prefix_the_account_has_the_folders_that_are_named(cloud_project):
    assert cloud_project.deploy("--by-prefix").returncode == 0
    conditions = {where: condition for where, _, _, condition in cloud_project.bindings}
    for bucket, folders in FOLDERS.items():
        assert allows(conditions[bucket], bucket)  # it may be listed
        for folder in folders:
            assert allows(conditions[bucket], f"{bucket}/{folder}x")
        for other in ("x", "BqTail/config.json", f"{folders[0].rstrip('/')}x", f"x/{folders[0]}x"):
            assert not allows(conditions[bucket], f"{bucket}/{other}")
    config = conditions["gs://acme-config"]
    assert allows(config, "gs://acme-config/dispatch.json")
    assert not allows(config, "gs://acme-config/dispatch.json2")
    assert not allows(config, "gs://acme-config")
    assert {condition and condition["title"] for condition in conditions.values()} == {None, "bqdispatch by prefix"}


def test_the_folders_of_a_condition_are_those_of_the_configuration_as_it_is_now(cloud_project):
    assert cloud_project.deploy("--by-prefix").returncode == 0
    before = len(cloud_project.bindings)
    cloud_project.document(ErrorURL="gs://acme-errors/elsewhere", PostJobPrefix="/jobs/")
    assert cloud_project.deploy("--by-prefix").returncode == 0
    conditions = {where: condition for where, _, _, condition in cloud_project.bindings}
    assert len(cloud_project.bindings) == before
    assert allows(conditions["gs://acme-errors"], "gs://acme-errors/elsewhere/x")
    assert not allows(conditions["gs://acme-errors"], "gs://acme-errors/BqTail/Errors/x")
    assert allows(conditions["gs://acme_ops_bqtail"], "gs://acme_ops_bqtail/jobs/x")


def test_a_condition_takes_the_place_of_a_right_without_one(deployed):
    assert deployed.deploy("--by-prefix").returncode == 0
    unlimited = {where for where, _, _, condition in deployed.bindings if condition is None}
    assert unlimited == {"acme-ops", "bqdispatch-index"}
    assert deployed.deploy().returncode == 0
    assert {condition for *_, condition in deployed.bindings} == {None}


def test_a_right_that_another_set_up_may_need_is_left(deployed):
    assert deployed.deploy("--setup=acme").returncode == 0
    done = deployed.deploy("--by-prefix")
    assert done.returncode == 0
    assert "not yet: AIRFLOW_CONN_BQDISPATCH_ACME may need it" in done.stderr
    assert ["gs://acme-ops", ACCOUNT, f"{ROLE}/bqdispatchFolders", None] in deployed.bindings


def test_the_answer_is_what_terraforms_data_source_takes(cloud_project):
    answer = cloud_project.rights()
    assert answer.keys() == {"roles", "buckets", "projects"}
    roles = json.loads(answer["roles"])
    assert {role["role_id"]: tuple(role["permissions"]) for role in roles.values()} == {
        name: role.permissions for name, role in ROLES.items()
    }
