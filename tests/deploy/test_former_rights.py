"""Rights that the account is left with once a set-up's configuration names other places: removed, or named."""

import subprocess

import pytest
from clouds import ACCOUNT, DOCUMENT

DISPATCHER = "dispatcher@acme-ops.iam.gserviceaccount.com"
ROLE = "projects/acme-ops/roles"
MOVED = {key: DOCUMENT[key].replace("gs://acme-ops/", "gs://acme-two/") for key in ("AsyncTaskURL", "JournalURL")}
FOLDERS = f"--member={ACCOUNT} --role={ROLE}/bqdispatchFolders"


@pytest.fixture
def moved(cloud_project):
    """URL of a document that names another bucket for the task folder and the journal."""
    return cloud_project.replace_document(DOCUMENT | MOVED, "moved.json")


def on(cloud, place):
    return [binding for binding in cloud.bindings if binding[0] == place]


def test_a_condition_of_its_own_is_removed_once_the_connection_names_the_new_document(cloud_project, moved):
    assert cloud_project.deploy("--by-prefix").returncode == 0
    assert len(on(cloud_project, "gs://acme-ops")) == 1
    done = cloud_project.deploy("--by-prefix", config=moved)
    assert done.returncode == 0, done.stderr
    assert on(cloud_project, "gs://acme-ops") == []
    assert len(on(cloud_project, "gs://acme-two")) == 1
    changes = [change for change in cloud_project.changes() if "update-env" in change or "remove-iam" in change]
    # Runs read the former document until the connection names the new one, which takes minutes.
    assert ["update-env" in changes[0], "gs://acme-config" in changes[1], "gs://acme-ops" in changes[2]] == [True] * 3
    before = cloud_project.state()
    assert cloud_project.deploy("--by-prefix", config=moved).returncode == 0
    assert cloud_project.state() == before


@pytest.mark.parametrize("case", ["a set-up of the name", "another set-up", "no list"])
def test_a_condition_that_an_environment_beside_it_may_use_is_named(cloud_project, moved, case):
    """As that which takes the place of this one, and which the same account and the same folders were given."""
    assert cloud_project.deploy("--by-prefix").returncode == 0
    variables = {} if case == "another set-up" else cloud_project.variables
    refuse = {"composer environments list": "PERMISSION_DENIED"} if case == "no list" else {}
    cloud_project.set(neighbours={"ops-3": {"envVariables": variables}, "new": {}}, refuse=refuse)
    done = cloud_project.deploy("--by-prefix", config=moved)
    assert done.returncode == 0, done.stderr
    assert len(on(cloud_project, "gs://acme-ops")) == (case != "another set-up")
    said = [line for line in done.stderr.splitlines() if "remove-iam-policy-binding gs://acme-ops " in line]
    if case != "another set-up":
        (line,) = said
        assert ("environment ops-3 has" if case != "no list" else "PERMISSION_DENIED") in line
        subprocess.run(["sh", "-c", line[line.index("gcloud storage") :]], env=cloud_project.shell, check=True)
        assert on(cloud_project, "gs://acme-ops") == []


def test_what_has_no_condition_is_named_with_the_command_that_takes_it_away(cloud_project, moved):
    assert cloud_project.deploy().returncode == 0
    done = cloud_project.deploy(config=moved)
    assert done.returncode == 0, done.stderr
    assert len(on(cloud_project, "gs://acme-ops")) == 1
    (line,) = [line for line in done.stderr.splitlines() if "no longer needs" in line]
    said, _, command = line.partition(": ")
    assert "bqdispatchFolders on gs://acme-ops" in said
    assert said.endswith("remove it if nothing else needs it")
    subprocess.run(["sh", "-c", command], env=cloud_project.shell, check=True)
    assert on(cloud_project, "gs://acme-ops") == []


def test_folders_that_move_in_a_bucket_can_be_reached_until_the_connection_names_the_new_document(cloud_project):
    assert cloud_project.deploy("--by-prefix").returncode == 0
    config = cloud_project.replace_document(DOCUMENT | {"AsyncTaskURL": "gs://acme-ops/New/Tasks/"}, "new.json")
    cloud_project.set(refuse={"update-env": "FAILED_PRECONDITION"})
    assert cloud_project.deploy("--by-prefix", config=config).returncode == 1
    assert [len(on(cloud_project, place)) for place in ("gs://acme-ops", "gs://acme-config")] == [2, 2]
    cloud_project.set(refuse={})
    assert cloud_project.deploy("--by-prefix", config=config).returncode == 0
    assert [len(on(cloud_project, place)) for place in ("gs://acme-ops", "gs://acme-config")] == [1, 1]


def test_a_dry_run_of_it_is_a_script_that_a_shell_takes(cloud_project, moved):
    assert cloud_project.deploy("--by-prefix").returncode == 0
    cloud_project.set(calls=[])
    done = cloud_project.deploy("--by-prefix", "--dry-run", config=moved)
    assert (done.returncode, done.stderr, cloud_project.changes()) == (0, "", [])
    (cloud_project.folder / "dry_run.sh").write_text(done.stdout)
    shell = {"cwd": cloud_project.folder, "env": cloud_project.shell, "stdin": subprocess.DEVNULL}
    subprocess.run(["sh", "-e", "dry_run.sh"], check=True, capture_output=True, **shell)
    before = cloud_project.state()
    assert on(cloud_project, "gs://acme-ops") == []
    assert cloud_project.deploy("--by-prefix", config=moved).returncode == 0
    assert cloud_project.state() == before


def test_what_another_set_up_needs_there_is_not_named(deployed, moved):
    other = deployed.replace_document(DOCUMENT | {"AsyncTaskURL": "gs://acme-ops/acme/Tasks/"}, "acme.json")
    assert deployed.deploy("--setup=acme", config=other).returncode == 0
    assert "no longer needs" not in deployed.deploy(config=moved).stderr


def test_a_former_account_is_named_on_a_former_bucket(deployed, moved):
    done = deployed.deploy(f"--impersonation-chain={DISPATCHER}", config=moved)
    assert done.returncode == 0, done.stderr
    assert f"remove-iam-policy-binding gs://acme-ops {FOLDERS} " in done.stderr


def test_a_role_is_named_on_a_bucket_that_stays_for_something_else(cloud_project):
    """As the document's bucket, in which the account could go on to write the document."""
    document = DOCUMENT | {"ErrorURL": "gs://acme-config/Errors/"}
    assert cloud_project.deploy(config=cloud_project.replace_document(document, "old.json")).returncode == 0
    done = cloud_project.deploy()
    assert done.returncode == 0, done.stderr
    assert f"remove-iam-policy-binding gs://acme-config {FOLDERS} " in done.stderr


@pytest.mark.parametrize("by_prefix", [False, True])
def test_variables_that_changed_are_another_configuration(cloud_project, by_prefix):
    config = cloud_project.replace_document(
        DOCUMENT | {"ProjectID": "${p}", "ErrorURL": "gs://${p}-e/E", "TriggerBucket": "acme-x"}, "any.json"
    )
    more = ["--by-prefix"] * by_prefix
    assert cloud_project.deploy("--var=p=acme-one", *more, config=config).returncode == 0
    done = cloud_project.deploy("--var=p=acme-two", *more, config=config)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "remove-iam-policy-binding gs://acme-ops " in line]
    assert ["no longer needs" in line for line in lines] == [True] * (not by_prefix)  # the bucket is named still
    said = "gcloud projects remove-iam-policy-binding acme-one"
    assert f"{said} --member={ACCOUNT} --role=projects/acme-one/roles/bqdispatchJobs --condition=None" in done.stderr
    assert len(on(cloud_project, "gs://acme-one-e")) == (not by_prefix)


def test_a_former_bucket_that_cannot_be_looked_at_holds_nothing_up(deployed, moved):
    deployed.set(refuse={"get-iam-policy gs://acme-ops": "PERMISSION_DENIED"})
    done = deployed.deploy(config=moved)
    assert done.returncode == 0, done.stderr
    assert "the account's former roles on gs://acme-ops … unknown: " in done.stderr
    assert "PERMISSION_DENIED" in done.stderr


def test_a_former_document_that_is_gone_is_named(deployed, moved):
    connection = {"conn_type": "bqdispatch", "extra": {"config_url": "gs://acme-config/gone.json"}}
    deployed.set_connection(connection)
    done = deployed.deploy(config=moved)
    assert done.returncode == 0, done.stderr
    assert "the former configuration … not compared, since it is unknown: " in done.stderr


def test_what_a_document_named_before_it_was_overwritten_is_said_to_be_unknown(cloud_project):
    assert "earlier deployments" not in cloud_project.deploy().stderr
    cloud_project.document(**MOVED)
    done = cloud_project.deploy()
    assert done.returncode == 0, done.stderr
    assert "no longer needs" not in done.stderr
    (line,) = [
        line
        for line in done.stderr.splitlines()
        if line.startswith("what earlier deployments granted elsewhere … unknown, if ")
    ]
    account = ACCOUNT.partition(":")[2]
    assert line.endswith(f": gcloud asset search-all-iam-policies --scope=projects/acme-ops --query=policy:{account}")


def test_rights_that_terraform_keeps_are_not_looked_at(deployed, moved):
    done = deployed.deploy("--no-rights", config=moved)
    assert done.returncode == 0
    assert "no longer needs" not in done.stderr
    assert "earlier deployments" not in done.stderr
