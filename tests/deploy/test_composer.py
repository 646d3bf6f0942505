"""`bqdispatch deploy composer`, with a gcloud that keeps one project in a file."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from bqdispatch_provider import __version__
from bqdispatch_provider.cli import main
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.deploy import PACKAGE, ROLES
from bqdispatch_provider.pools import pools_of
from bqdispatch_provider.setups import SetUp

ROOT = Path(__file__).parents[2]
README = ROOT / "deploy" / "composer" / "README.md"
FAKE = Path(__file__).parent / "fake_gcloud.py"
DOCUMENT = {
    "ProjectID": "acme-ops",
    "AsyncTaskURL": "gs://acme-ops/BqTail/Tasks/",
    "JournalURL": "gs://acme-ops/BqTail/Journal/",
    "ErrorURL": "gs://acme-errors/BqTail/Errors/",
    "MaxConcurrentSQL": 40,
}
IMAGES = {"2.11": "composer-3-airflow-2.11.1-build.3", "3": "composer-3-airflow-3.2.2-build.1"}
CHANGES = re.compile(r" (create|update|import|undelete|publish|cp|set|add-iam-policy-binding)\b")


class Cloud:
    """A project with an environment, and a checkout to deploy from."""

    def __init__(self, folder, world):
        self.checkout, self._state, self._world = folder / "checkout", folder / "state.json", world
        for part in ("deploy/roles", "dags"):
            shutil.copytree(ROOT / part, self.checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        self._bin = folder / "bin"
        self._bin.mkdir()
        for program in ("gcloud", "uv"):
            path = self._bin / program
            path.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {FAKE} {program} "$@"\n')
            path.chmod(0o755)
        self.set(
            environment="ops",
            image=IMAGES["2.11"],
            state="RUNNING",
            version=__version__,
            source="a wheel",
            packages={"pandas": ">=2"},
            variables={"OTHER": "1"},
            roles={},
            bindings=[],
            repository=False,
            files=[],
            pip_conf=None,
            dag_files={},
            old=False,
            refuse={},
            calls=[],
        )
        self.document()

    @property
    def shell(self):
        """An environment in which gcloud and uv are the fakes; its project keeps clients from asking for theirs."""
        return {
            **os.environ,
            "FAKE_GCLOUD": str(self._state),
            "GOOGLE_CLOUD_PROJECT": "acme-ops",
            "PATH": f"{self._bin}:{os.environ['PATH']}",
        }

    def document(self, **more):
        self._world.control.seed_objects(
            "acme-config", [{"name": "dispatch.json", "content": json.dumps(DOCUMENT | more)}]
        )

    def set(self, **what):
        known = json.loads(self._state.read_text()) if self._state.exists() else {}
        self._state.write_text(json.dumps(known | what))

    def __getattr__(self, name):
        return json.loads(self._state.read_text())[name]

    def deploy(self, *more, config="gs://acme-config/dispatch.json"):
        self.set(calls=[])
        options = ["--environment=ops", "--location=europe-west1", f"--config={config}", *more]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.checkout)
            for name, value in self.shell.items():
                patch.setenv(name, value)
            with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
                code = main(["deploy", "composer", *options])
        return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())

    def changes(self):
        return [" ".join(call) for call in self.calls if CHANGES.search(" ".join(call))]


@pytest.fixture
def cloud_project(tmp_path, world):
    return Cloud(tmp_path, world)


@pytest.fixture
def deployed(cloud_project):
    done = cloud_project.deploy()
    assert done.returncode == 0, done.stderr
    return cloud_project


@pytest.mark.parametrize("airflow", IMAGES)
def test_everything_is_in_place_afterwards(cloud_project, airflow):
    cloud_project.set(image=IMAGES[airflow])
    done = cloud_project.deploy()
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert cloud_project.roles.keys() == ROLES.keys()
    account = "serviceAccount:composer@acme-ops.iam.gserviceaccount.com"
    roles = "projects/acme-ops/roles"
    assert cloud_project.bindings == [
        ["gs://acme-ops", account, f"{roles}/bqdispatchFolders"],
        ["gs://acme-errors", account, f"{roles}/bqdispatchFolders"],
        ["gs://acme_ops_bqtail", account, f"{roles}/bqdispatchTrigger"],
        ["gs://acme-config", account, "roles/storage.legacyObjectReader"],
        ["acme-ops", account, f"{roles}/bqdispatchJobs"],
        ["bqdispatch", account, "roles/artifactregistry.reader"],
    ]
    assert cloud_project.packages == {"pandas": ">=2", "airflow-provider-bqdispatch": f"=={__version__}"}
    assert "https://europe-west1-python.pkg.dev/acme-ops/bqdispatch/simple/" in cloud_project.pip_conf
    variables = cloud_project.variables
    connection = json.loads(variables.pop("AIRFLOW_CONN_BQDISPATCH_DEFAULT"))
    assert connection == {"conn_type": "bqdispatch", "extra": {"config_url": "gs://acme-config/dispatch.json"}}
    assert variables == {"OTHER": "1", "BQDISPATCH_SQL_SLOTS": "40"}
    pools = [call[9:] for call in cloud_project.calls if call[7:9] == ["pools", "set"]]
    assert [pool[1:3] for pool in pools] == [["bqdispatch_sql", "40"], ["bqdispatch_jobs", "-1"]]
    assert cloud_project.calls[-1][:6] == ["gcloud", "composer", "environments", "storage", "dags", "import"]
    assert "bqdispatch smoke" in done.stderr


def test_a_second_deployment_repeats_only_what_may_be_repeated(deployed):
    done = deployed.deploy()
    assert done.returncode == 0, done.stderr
    repeated = ("add-iam-policy-binding", "pools set", "dags import")
    assert [change for change in deployed.changes() if not any(each in change for each in repeated)] == []


def test_what_was_broken_off_is_finished_by_another_deployment(cloud_project):
    cloud_project.set(refuse={"--update-pypi-package": "RESOURCE_EXHAUSTED: the build failed"})
    broken = cloud_project.deploy()
    assert broken.returncode == 1
    assert "the build failed" in broken.stderr
    assert "goes on with the packages that it had" in broken.stderr
    assert not any("dags import" in change for change in cloud_project.changes())
    cloud_project.set(refuse={})
    assert cloud_project.deploy().returncode == 0
    assert "airflow-provider-bqdispatch" in cloud_project.packages


def test_a_limit_that_is_gone_takes_its_variable_along(deployed):
    deployed.document(MaxConcurrentSQL=0, MaxConcurrentJobs=7)
    assert deployed.deploy().returncode == 0
    assert "BQDISPATCH_SQL_SLOTS" not in deployed.variables
    assert deployed.variables["BQDISPATCH_JOBS_SLOTS"] == "7"


def test_a_role_that_has_other_permissions_is_brought_up_to_date(deployed):
    roles = deployed.roles
    roles["bqdispatchFolders"] = {"includedPermissions": ["storage.objects.get"], "deleted": True}
    deployed.set(roles=roles)
    assert deployed.deploy().returncode == 0
    assert "storage.objects.delete" in deployed.roles["bqdispatchFolders"]["includedPermissions"]
    assert "deleted" not in deployed.roles["bqdispatchFolders"]


def test_a_second_set_up_stands_beside_the_first(deployed):
    before = deployed.variables
    done = deployed.deploy("--setup=acme")
    assert done.returncode == 0, done.stderr
    assert "switch the DAG bqdispatch_acme on" in done.stderr
    added = {name: value for name, value in deployed.variables.items() if name not in before}
    assert before.items() <= deployed.variables.items()
    assert added.keys() == {"AIRFLOW_CONN_BQDISPATCH_ACME", "BQDISPATCH_ACME_SQL_SLOTS"}
    pools = [call[10:12] for call in deployed.calls if call[7:9] == ["pools", "set"]]
    assert pools == [["bqdispatch_acme_sql", "40"], ["bqdispatch_acme_jobs", "-1"]]
    assert deployed.dag_files.keys() == {"gs://europe-west1-ops-1234-bucket/dags/bqdispatch_acme.py"}
    assert 'dispatch_dag("acme")' in deployed.dag_files.popitem()[1]


def test_other_repositories_of_the_environment_are_kept(cloud_project):
    cloud_project.set(pip_conf="[global]\nextra-index-url = https://pypi.acme.example/simple/\ntimeout = 60\n")
    assert cloud_project.deploy().returncode == 0
    for kept in ("https://pypi.acme.example/simple/", "timeout = 60", "bqdispatch/simple/"):
        assert kept in cloud_project.pip_conf


def test_changed_code_under_an_old_version_is_refused(deployed):
    deployed.set(source="another wheel")
    done = deployed.deploy()
    assert done.returncode == 1
    assert "raise __version__" in done.stderr


def test_a_document_on_this_machine_goes_into_the_connection(cloud_project, tmp_path):
    path = tmp_path / "dispatch.json"
    path.write_text(json.dumps(DOCUMENT | {"ErrorURL": "gs://${errors}/x"}))
    assert cloud_project.deploy("--var", "errors=acme-errors", config=path).returncode == 0
    extra = json.loads(cloud_project.variables["AIRFLOW_CONN_BQDISPATCH_DEFAULT"])["extra"]
    assert extra["variables"] == {"errors": "acme-errors"}
    config = DispatchConfig.from_dict(extra["config"], extra["variables"])
    assert config.error_url == "gs://acme-errors/x"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": "other"}, "gcloud composer environments list --locations=europe-west1"),
        ({"image": "composer-2.9.1-airflow-2.10.5"}, "expected one of Cloud Composer 3"),
        ({"image": "composer-3-airflow-2.10.5-build.3"}, "expected 2.11 or later"),
        ({"state": "UPDATING"}, "try again once it is RUNNING"),
        ({"image": IMAGES["3"], "old": True}, "gcloud components update"),
        ({"refuse": {"roles describe": "PERMISSION_DENIED"}}, "PERMISSION_DENIED"),
        ({"refuse": {"roles create": "PERMISSION_DENIED"}}, "roles/iam.roleAdmin"),
        ({"refuse": {"buckets add-iam": "PERMISSION_DENIED"}}, "storage.buckets.setIamPolicy on gs://acme-ops"),
        ({"refuse": {"repositories create": "SERVICE_DISABLED: enable it"}}, "roles/artifactregistry.admin"),
        ({"refuse": {"update-env": "another operation runs"}}, "only one update"),
    ],
)
def test_what_goes_wrong_says_what_to_do(cloud_project, change, said):
    cloud_project.set(**change)
    done = cloud_project.deploy()
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_without_gcloud_and_a_folder_that_is_no_checkout_are_named(cloud_project, tmp_path):
    (cloud_project.checkout / "dags" / "bqdispatch.py").unlink()
    assert "run this in the project's folder" in cloud_project.deploy().stderr
    command = [sys.executable, "-m", "bqdispatch_provider.cli", "deploy", "composer", "--environment=e", "--location=l"]
    path = tmp_path / "dispatch.json"
    path.write_text(json.dumps(DOCUMENT))
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [*command, f"--config={path}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "install the Google Cloud CLI" in done.stderr) == (1, True)


def dry_run(cloud):
    done = cloud.deploy("--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert cloud.changes() == []
    return done.stdout


def in_readme(airflow):
    text = README.read_text()
    return re.search(rf"## Airflow {re.escape(airflow)}\n.*?```sh\n\$ [^\n]*\n(.*?)```", text, re.DOTALL)[1]


def test_the_dry_run_for_2_11_is_what_the_readme_shows(cloud_project):
    assert dry_run(cloud_project) == in_readme("2.11")


def test_the_dry_run_for_3_is_what_the_readme_shows(cloud_project):
    """An environment of Airflow 3 that was deployed to before, with another limit."""
    cloud_project.set(image=IMAGES["3"])
    assert cloud_project.deploy().returncode == 0
    cloud_project.document(MaxConcurrentSQL=60)
    assert dry_run(cloud_project) == in_readme("3")


def test_a_dry_run_is_a_script_that_a_shell_takes(cloud_project):
    script = dry_run(cloud_project)
    shell = {"cwd": cloud_project.checkout, "env": cloud_project.shell, "text": True}
    subprocess.run(["sh", "-e"], input=script, check=True, capture_output=True, **shell)
    by_script = {name: getattr(cloud_project, name) for name in ("roles", "bindings", "packages", "variables")}
    assert cloud_project.deploy().returncode == 0
    assert {name: getattr(cloud_project, name) for name in by_script} == by_script


# Terraform

MAIN = ROOT / "deploy" / "composer" / "main.tf"


def test_terraform_has_the_roles_pools_variables_and_commands_of_the_deployment():
    text = MAIN.read_text()
    for role, file in ROLES.items():
        assert re.search(rf'{role} += yamldecode\(file\("\${{path.module}}/../roles/{file}"\)\)', text)
    pools = pools_of(DispatchConfig.from_dict(DOCUMENT))
    assert set(re.findall(r"^ +(bqdispatch_\w+) += \{ slots", text, re.MULTILINE)) == set(pools)
    for named in (
        SetUp().conn_variable,
        *SetUp().slots,
        f"update-pypi-package={PACKAGE}==",
        "pools set -- ",
        "uv publish --publish-url=",
    ):
        assert named in text
    granted = set(re.findall(r'"(roles/[\w.]+)"', text))
    assert granted == {"roles/storage.legacyObjectReader", "roles/artifactregistry.reader"}


def evaluated(tmp_path, document):
    """Terraform's locals for a configuration, worked out by Terraform itself: these need no provider."""
    local = re.search(r"^locals \{\n.*?^\}\n", MAIN.read_text(), re.DOTALL | re.MULTILINE)[0]
    local = local.replace("${path.module}/../..", str(ROOT)).replace("${path.module}/..", str(ROOT / "deploy"))
    local = local.replace("data.google_storage_bucket_object_content.config.content", "var.content")
    local = local.replace("data.google_composer_environment.airflow.config[0]", "var.airflow")
    airflow = {
        "node_config": [{"service_account": "composer@acme-ops.iam.gserviceaccount.com"}],
        "dag_gcs_prefix": "gs://europe-west1-ops-1234-bucket/dags",
    }
    values = {
        "project": "acme-ops",
        "location": "europe-west1",
        "environment": "ops",
        "config_bucket": "acme-config",
        "config_object": "dispatch.json",
        "content": json.dumps(document),
        "airflow": airflow,
    }
    (tmp_path / "main.tf").write_text(local + "".join(f'variable "{name}" {{\n  type = any\n}}\n' for name in values))
    (tmp_path / "given.auto.tfvars.json").write_text(json.dumps(values))
    wanted = "{roles = local.roles, pools = local.pools, variables = local.variables, trigger = local.trigger, "
    wanted += "folders = local.folders, account = local.account, bucket = local.bucket, version = local.version}"
    done = subprocess.run(
        ["terraform", f"-chdir={tmp_path}", "console"],
        input=f"jsonencode({wanted})\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
@pytest.mark.parametrize("limits", [{}, {"MaxConcurrentLoad": 7}])
def test_terraform_comes_to_the_same_values_as_the_command(cloud_project, tmp_path, limits):
    document = DOCUMENT | limits
    cloud_project.document(**limits)
    assert cloud_project.deploy().returncode == 0
    (tmp_path / "terraform").mkdir()
    found = evaluated(tmp_path / "terraform", document)
    slots = {name: pool["slots"] for name, pool in pools_of(DispatchConfig.from_dict(document)).items()}
    assert {name: pool["slots"] for name, pool in found["pools"].items()} == slots
    assert {name: sorted(role["includedPermissions"]) for name, role in found["roles"].items()} == {
        name: sorted(role["includedPermissions"]) for name, role in cloud_project.roles.items()
    }
    connection = found["variables"].pop(SetUp().conn_variable)
    assert json.loads(connection) == json.loads(cloud_project.variables[SetUp().conn_variable])
    for name, value in found["variables"].items():
        assert cloud_project.variables[name] == value
    assert len(found["variables"]) == len(cloud_project.variables) - 2  # OTHER, and the connection
    where = {name for name, _, role in cloud_project.bindings if role.endswith("bqdispatchFolders")}
    assert {f"gs://{bucket}" for bucket in found["folders"]} == where
    assert f"gs://{found['trigger']}" in {name for name, _, role in cloud_project.bindings if "Trigger" in role}
    assert found["account"] == cloud_project.bindings[0][1]
    assert (found["bucket"], found["version"]) == ("europe-west1-ops-1234-bucket", __version__)


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
def test_terraform_reads_the_file_and_finds_it_well_formed():
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", MAIN.parent], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
