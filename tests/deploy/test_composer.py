"""`bqdispatch deploy composer`, with a gcloud that keeps one project in a file."""

import json
import os
import re
import subprocess
import sys

import pytest
from clouds import ACCOUNT, DOCUMENT, IMAGES, README, ROOT

from bqdispatch_provider import __version__
from bqdispatch_provider.commands.pools import expected_pools, pool_problems, slot_problems
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.setups import SetUp

BUCKET = "gs://europe-west1-ops-1234-bucket"
INDEX = "https://europe-west1-python.pkg.dev/acme-ops/bqdispatch-index/simple/"


@pytest.mark.parametrize("airflow", IMAGES)
def test_everything_is_in_place_afterwards(cloud_project, airflow):
    """The first command of deploy/composer/README.md."""
    cloud_project.in_processes = True
    cloud_project.set(image=IMAGES[airflow])
    done = cloud_project.deploy()
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    roles = "projects/acme-ops/roles"
    assert cloud_project.roles.keys() == {
        f"{roles}/{name}" for name in ("bqdispatchFolders", "bqdispatchTrigger", "bqdispatchJobs")
    }
    assert cloud_project.bindings == [
        ["gs://acme-ops", ACCOUNT, f"{roles}/bqdispatchFolders", None],
        ["gs://acme-errors", ACCOUNT, f"{roles}/bqdispatchFolders", None],
        ["gs://acme_ops_bqtail", ACCOUNT, f"{roles}/bqdispatchTrigger", None],
        ["gs://acme-config", ACCOUNT, "roles/storage.legacyObjectReader", None],
        ["acme-ops", ACCOUNT, f"{roles}/bqdispatchJobs", None],
        ["bqdispatch-index", ACCOUNT, "roles/artifactregistry.reader", None],
    ]
    assert cloud_project.packages == {"pandas": ">=2", "airflow-provider-bqdispatch": f"==={__version__}"}
    assert cloud_project.pip_conf == f"[global]\nindex-url = {INDEX}\n"
    variables = cloud_project.variables
    connection = json.loads(variables.pop("AIRFLOW_CONN_BQDISPATCH_DEFAULT"))
    assert connection == {"conn_type": "bqdispatch", "extra": {"config_url": "gs://acme-config/dispatch.json"}}
    assert variables == {"OTHER": "1", "BQDISPATCH_SQL_SLOTS": "40"}
    assert cloud_project.pools == {
        "bqdispatch_sql": {"slots": 40, "include_deferred": True},
        "bqdispatch_jobs": {"slots": -1, "include_deferred": True},
    }
    assert cloud_project.calls[-1] == ["gcloud", "storage", "cp", "-", f"{BUCKET}/dags/bqdispatch.py"]
    assert "dag = dispatch_dag()" in cloud_project.objects[f"{BUCKET}/dags/bqdispatch.py"]["text"]
    assert "bqdispatch smoke" in done.stderr


def test_pools_check_finds_nothing_wrong_with_what_was_deployed(deployed, monkeypatch):
    wanted = expected_pools(DispatchConfig.from_dict(DOCUMENT))
    monkeypatch.setenv("BQDISPATCH_SQL_SLOTS", deployed.variables["BQDISPATCH_SQL_SLOTS"])
    for problems in (pool_problems(deployed.pools, wanted), slot_problems(wanted, SetUp())):
        assert problems == {"bqdispatch_sql": "", "bqdispatch_jobs": ""}


def test_a_second_deployment_changes_nothing(deployed):
    before = deployed.state()
    done = deployed.deploy()
    assert done.returncode == 0, done.stderr
    assert deployed.state() == before
    # Airflow's answers come with the logs of Composer, so pools are set without looking.
    assert [change for change in deployed.changes() if "pools set" not in change] == ["make --silent dist DIST=dist"]


def test_the_package_is_known_by_each_spelling_of_its_name(cloud_project):
    """Names that differ in case and in the marks between words are one package's."""
    spelling = "Airflow_Provider_BqDispatch"
    cloud_project.set(packages={"pandas": ">=2", spelling: "==0.0.9"})
    assert cloud_project.deploy().returncode == 0
    assert cloud_project.packages == {"pandas": ">=2", spelling: f"==={__version__}"}
    assert "package in the environment (takes minutes): already this version" in cloud_project.dry_run()


def test_extras_of_the_package_stay(cloud_project):
    """Somebody has added the one that docs/slack.md names, on Composer's page."""
    cloud_project.set(packages={"airflow-provider-bqdispatch": "[slack]==0.0.9"})
    assert cloud_project.deploy().returncode == 0
    assert cloud_project.packages == {"airflow-provider-bqdispatch": f"[slack]==={__version__}"}
    assert "package in the environment (takes minutes): already this version" in cloud_project.dry_run()


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        ("composer environments describe", "PERMISSION_DENIED: missing permission on projects/shop-404"),
        (
            "storage buckets get-iam-policy gs://acme-ops",
            "HTTPError 403: you do not have storage.buckets.getIamPolicy access to the bucket logs-404.",
        ),
    ],
)
def test_what_may_not_be_seen_is_not_taken_for_missing_whatever_its_name(cloud_project, call, refusal):
    cloud_project.set(refuse={call: refusal})
    done = cloud_project.deploy("--dry-run")
    assert done.returncode == 1
    assert f"failed: ERROR: (gcloud) {refusal}" in done.stderr


def test_what_gcloud_says_to_do_is_shown(cloud_project):
    said = "You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud auth login\n\nto go on."
    cloud_project.set(refuse={"composer environments describe": said})
    assert "active account selected. Please run: $ gcloud auth login to go on." in cloud_project.deploy().stderr


@pytest.mark.parametrize("call", ["environments update", "environments run"])
def test_a_permission_that_whoever_deploys_lacks_is_named(cloud_project, call):
    cloud_project.set(refuse={call: "PERMISSION_DENIED: you may not"})
    permission = {"environments update": "update", "environments run": "executeAirflowCommand"}[call]
    assert f"you need composer.environments.{permission}, as in roles/composer.admin" in cloud_project.deploy().stderr


def test_of_a_missing_environment_those_of_its_own_project_are_listed(cloud_project):
    cloud_project.set(environment="another")
    done = cloud_project.deploy("--project=acme-ops")
    assert "`gcloud composer environments list --locations=europe-west1 --project=acme-ops`" in done.stderr


@pytest.mark.parametrize("project", ["Foo Bar", "a,b", "", "--role=roles/owner"])
def test_what_is_no_project_is_refused_before_anything_is_asked(cloud_project, project, capsys):
    with pytest.raises(SystemExit, match="2"):
        cloud_project.deploy(f"--job-project={project}")
    assert cloud_project.calls == []


def test_what_was_broken_off_is_finished_by_another_deployment(cloud_project):
    cloud_project.set(refuse={"--update-pypi-package": "RESOURCE_EXHAUSTED: the build failed"})
    broken = cloud_project.deploy()
    assert broken.returncode == 1
    assert "the build failed" in broken.stderr
    assert "keeps the packages that it had" in broken.stderr
    assert not any("dags/" in change for change in cloud_project.changes())
    cloud_project.set(refuse={})
    assert cloud_project.deploy().returncode == 0
    assert "airflow-provider-bqdispatch" in cloud_project.packages


def test_a_limit_that_is_gone_takes_its_variable_along(deployed):
    deployed.document(MaxConcurrentSQL=0, MaxConcurrentJobs=7)
    assert deployed.deploy().returncode == 0
    assert "BQDISPATCH_SQL_SLOTS" not in deployed.variables
    assert deployed.variables["BQDISPATCH_JOBS_SLOTS"] == "7"


@pytest.mark.parametrize("limit", [60, 20, 0])
@pytest.mark.parametrize("refused", ["pools set -- --include-deferred bqdispatch_sql", "environments update"])
def test_no_task_takes_more_slots_than_its_pool_has_wherever_a_deployment_stops(deployed, limit, refused):
    """Airflow never runs such a task."""
    deployed.document(MaxConcurrentSQL=limit)
    deployed.set(refuse={refused: "UNAVAILABLE: try again"})
    assert deployed.deploy().returncode == 1
    slots = deployed.pools["bqdispatch_sql"]["slots"]
    assert slots == -1 or slots >= int(deployed.variables.get("BQDISPATCH_SQL_SLOTS", 1))
    deployed.set(refuse={})
    assert deployed.deploy().returncode == 0
    assert deployed.pools["bqdispatch_sql"]["slots"] == (limit or -1)
    assert deployed.variables.get("BQDISPATCH_SQL_SLOTS", "0") == str(limit)


def test_a_limit_that_is_gone_alone_is_a_change_that_composer_takes(deployed):
    deployed.document(MaxConcurrentSQL=0)
    assert deployed.deploy().returncode == 0
    assert "BQDISPATCH_SQL_SLOTS" not in deployed.variables


def test_a_role_that_has_other_permissions_is_brought_up_to_date(deployed):
    role = "projects/acme-ops/roles/bqdispatchFolders"
    deployed.set(roles=deployed.roles | {role: {"includedPermissions": ["storage.objects.get"], "deleted": True}})
    assert deployed.deploy().returncode == 0
    assert "storage.objects.delete" in deployed.roles[role]["includedPermissions"]
    assert "deleted" not in deployed.roles[role]


@pytest.mark.parametrize(("change", "is_read"), [(lambda text: text * 1000, False), (str.swapcase, True)])
def test_another_dag_file_is_written_over_and_read_only_if_it_has_the_same_size(deployed, change, is_read):
    url, objects = f"{BUCKET}/dags/bqdispatch.py", deployed.objects
    text = objects[url]["text"]
    objects[url]["text"] = change(text)
    deployed.set(objects=objects)
    assert deployed.deploy().returncode == 0
    assert deployed.objects[url]["text"] == text
    assert (["gcloud", "storage", "cat", url] in deployed.calls) is is_read


def test_a_second_set_up_stands_beside_the_first(deployed):
    before = deployed.variables
    config = deployed.replace_document(DOCUMENT | {"AsyncTaskURL": "gs://acme-ops/${whose}/Tasks/"}, "acme.json")
    done = deployed.deploy("--setup=acme", "--var=whose=acme", config=config)
    assert done.returncode == 0, done.stderr
    assert f"`bqdispatch smoke --config {config} --var=whose=acme --setup=acme`" in done.stderr
    assert "switch the DAG bqdispatch_acme on" in done.stderr
    added = {name: value for name, value in deployed.variables.items() if name not in before}
    assert before.items() <= deployed.variables.items()
    assert added.keys() == {"AIRFLOW_CONN_BQDISPATCH_ACME", "BQDISPATCH_ACME_SQL_SLOTS"}
    assert deployed.pools["bqdispatch_acme_sql"]["slots"] == 40
    assert 'dispatch_dag("acme")' in deployed.objects[f"{BUCKET}/dags/bqdispatch_acme.py"]["text"]


def test_a_document_on_this_machine_goes_into_the_connection(cloud_project, tmp_path):
    path = tmp_path / "dispatch.json"
    path.write_text(json.dumps(DOCUMENT | {"ErrorURL": "gs://${errors}/x"}))
    assert cloud_project.deploy("--var", "errors=acme-errors", config=path).returncode == 0
    extra = cloud_project.connection["extra"]
    assert extra["variables"] == {"errors": "acme-errors"}
    config = DispatchConfig.from_dict(extra["config"], extra["variables"])
    assert config.error_url == "gs://acme-errors/x/"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_document_on_this_machine_is_read_by_the_rules_of_all_documents(cloud_project, tmp_path, encoding):
    path = tmp_path / "dispatch.json"
    path.write_text(json.dumps(DOCUMENT | {"PerformanceFile": "\xe9"}, ensure_ascii=False), encoding=encoding)
    done = cloud_project.deploy(config=path)
    if encoding == "latin-1":
        assert (done.returncode, "is no JSON (it is no text)" in done.stderr) == (2, True)
    else:
        assert done.returncode == 0, done.stderr
        assert cloud_project.connection["extra"]["config"]["PerformanceFile"] == "\xe9"


def test_a_variable_may_hold_whatever_stands_between_variables_elsewhere(cloud_project):
    for value in ("|~#@!", "|0|1|2|", '"|0', "a,b^c=d|"):
        done = cloud_project.deploy("--var", f"x={value}")
        assert done.returncode == 0, done.stderr
        assert cloud_project.connection["extra"]["variables"] == {"x": value}
        assert cloud_project.variables["OTHER"] == "1"


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


def test_a_machine_without_gcloud_is_named(tmp_path):
    path = tmp_path / "dispatch.json"
    path.write_text(json.dumps(DOCUMENT))
    command = [
        sys.executable,
        "-m",
        "bqdispatch_provider.commands.cli",
        "deploy",
        "composer",
        "--environment=e",
        "--location=l",
    ]
    done = subprocess.run(
        [*command, f"--config={path}"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "install the Google Cloud CLI" in done.stderr) == (1, True)


def in_readme(airflow):
    text = README.read_text()
    return re.search(rf"## Airflow {re.escape(airflow)}\n.*?```sh\n\$ [^\n]*\n(.*?)```", text, re.DOTALL)[1]


def test_the_dry_run_for_2_11_is_what_the_readme_shows(cloud_project):
    """The first script in deploy/composer/README.md."""
    assert cloud_project.dry_run() == in_readme("2.11")


def test_the_dry_run_for_3_is_what_the_readme_shows(cloud_project):
    """An environment of Airflow 3 that was deployed to before, with another limit and a subscription.

    The second script in deploy/composer/README.md.
    """
    cloud_project.set(image=IMAGES["3"])
    assert cloud_project.deploy().returncode == 0
    extra = {**cloud_project.connection["extra"], "subscription": "projects/acme-ops/subscriptions/bqtail-jobs"}
    cloud_project.set_connection({"conn_type": "bqdispatch", "extra": extra})
    cloud_project.document(MaxConcurrentSQL=60)
    assert cloud_project.dry_run("--impersonation-chain=dispatcher@acme-ops.iam.gserviceaccount.com") == in_readme("3")


@pytest.mark.parametrize(
    "pip_conf",
    [None, "", "[global]\ntimeout = 60\n", "# ours\n[install]\nquiet = 1", "[global]", "[global]\n  a = 1\n"],
)
def test_a_dry_run_is_a_script_that_a_shell_takes(cloud_project, pip_conf):
    if pip_conf is not None:
        cloud_project.set_pip_conf(pip_conf)
    script = cloud_project.dry_run("--by-prefix", "--job-project=acme-shop")
    # A file: of a script that arrives by a pipe in pieces, the first command that reads its stdin takes the rest.
    (cloud_project.folder / "dry_run.sh").write_text(script)
    shell = {"cwd": cloud_project.folder, "env": cloud_project.shell, "text": True, "stdin": subprocess.DEVNULL}
    typed = subprocess.run(["sh", "-e", "dry_run.sh"], check=False, capture_output=True, **shell)
    assert typed.returncode == 0, typed.stderr
    before = cloud_project.state()
    done = cloud_project.deploy("--by-prefix", "--job-project=acme-shop")
    assert done.returncode == 0, done.stderr
    assert cloud_project.state() == before
