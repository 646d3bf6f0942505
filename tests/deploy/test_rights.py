"""The rights that the account is granted, by command and by Terraform: the same, checked, no more than is named."""

import json
import re
import shutil
import subprocess

import pytest
from clouds import ACCOUNT, DOCUMENT
from terraform import MAIN, Terraform

from bqdispatch_provider.commands.rights import READER, ROLES

ROLE = "projects/acme-ops/roles"
BETWEEN, DISPATCHER = "between@acme-ops.iam.gserviceaccount.com", "dispatcher@acme-ops.iam.gserviceaccount.com"
ACTS_AS = "roles/iam.serviceAccountTokenCreator"
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
    "another account": ({}, [f"--impersonation-chain={DISPATCHER}"], {"impersonation_chain": [DISPATCHER]}),
    "a chain of accounts": (
        {},
        [f"--impersonation-chain={BETWEEN}, {DISPATCHER}"],
        {"impersonation_chain": [BETWEEN, DISPATCHER]},
    ),
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
    made = Terraform(cloud_project, tmp_path / "terraform", **given)
    made.apply()
    granted = len(cloud_project.bindings)
    cloud_project.set_pip_conf("[global]\nindex-url = https://pypi.acme.example/simple/\n")
    done = cloud_project.deploy("--published", "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    # Nothing is left to do for the command, and each of its steps is one of Terraform's.
    assert not re.search(r"^gcloud (iam|storage buckets|projects) ", done.stdout, re.MULTILINE)
    assert done.stdout.count(": up to date") == len(cloud_project.roles)
    assert done.stdout.count(": already granted") == granted
    assert "No changes." in made.plan()


@pytest.mark.parametrize(
    "document",
    [
        {"MaxConcurrentSQL": "40; id > owned #"},
        {"ErrorURL": "gs://acme-ops/BqTail/Tasks/errors"},
        {"TriggerBucket": "acme ops"},
        {"ProjectID": "acme-ops --role=roles/owner"},
        {"ProjectID": "--log-http"},
        {"ProjectID": "acme.example:-ops"},
    ],
)
def test_a_document_that_no_dispatcher_accepts_grants_nothing(cloud_project, tmp_path, document):
    cloud_project.document(**document)
    (key,) = document
    config = "--config=gs://acme-config/dispatch.json"
    for done in (cloud_project.command("deploy", "rights", config, "--project=acme-ops"), cloud_project.deploy()):
        assert (done.returncode, done.stdout) == (2, "")
        assert f"  - {key} " in done.stderr
    assert cloud_project.calls == []
    before = cloud_project.state()
    if shutil.which("terraform"):
        with pytest.raises(AssertionError, match=rf"  - {key} "):
            Terraform(cloud_project, tmp_path / "terraform").apply()
    assert cloud_project.state() == before


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
@pytest.mark.parametrize("by_prefix", [False, True])
def test_what_the_command_has_made_terraform_takes_over(cloud_project, tmp_path, by_prefix):
    assert cloud_project.deploy(*(["--by-prefix"] if by_prefix else [])).returncode == 0
    before = cloud_project.state()
    made = Terraform(cloud_project, tmp_path / "terraform", by_prefix=by_prefix)
    assert made.apply().imported == len(ROLES)
    assert cloud_project.state() == before
    assert "No changes." in made.plan()


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
def test_terraform_follows_the_configuration(cloud_project, tmp_path):
    """A folder that is gone is taken out of a condition, a bucket's binding goes with the bucket."""
    made = Terraform(cloud_project, tmp_path / "terraform", by_prefix=True)
    made.apply()
    cloud_project.document(ErrorURL="gs://acme-ops/BqTail/Errors")
    changed = made.apply()
    assert (changed.added, changed.changed, changed.destroyed) == (1, 0, 2)
    conditions = {where: condition for where, _, _, condition in cloud_project.bindings}
    assert "gs://acme-errors" not in conditions
    assert allows(conditions["gs://acme-ops"], "gs://acme-ops/BqTail/Errors/x")


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
def test_a_condition_that_was_widened_by_hand_is_left_by_terraform_and_removed_by_the_command(cloud_project, tmp_path):
    made = Terraform(cloud_project, tmp_path / "terraform", by_prefix=True)
    made.apply()
    wanted = cloud_project.bindings
    widened = [[*each[:3], each[3] and {**each[3], "expression": "true"}] for each in wanted]
    cloud_project.set(bindings=widened)
    made.apply()
    assert "No changes." in made.plan()
    assert all(each in cloud_project.bindings for each in widened)  # so the account is not limited
    assert cloud_project.deploy("--by-prefix").returncode == 0
    by_place = sorted(each for each in cloud_project.bindings if each[0] != "bqdispatch-index")
    assert by_place == sorted(wanted)
    assert "No changes." in made.plan()


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
def test_a_role_that_was_deleted_is_named_with_the_command_that_brings_it_back(cloud_project, tmp_path):
    made = Terraform(cloud_project, tmp_path / "terraform")
    made.apply()
    roles = cloud_project.roles
    roles[f"{ROLE}/bqdispatchFolders"]["deleted"] = True
    cloud_project.set(roles=roles)
    with pytest.raises(AssertionError, match="gcloud iam roles undelete bqdispatchFolders --project=acme-ops"):
        made.plan()


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
def test_a_further_set_up_leaves_the_roles_to_the_first_one(cloud_project, tmp_path):
    Terraform(cloud_project, tmp_path / "first").apply()
    url = cloud_project.replace_document(DOCUMENT | {"AsyncTaskURL": "gs://acme-x/Tasks"}, "acme.json")
    further = Terraform(cloud_project, tmp_path / "further", setup="acme", config=url, make_roles=False)
    assert further.apply().imported == 0
    assert "google_project_iam_custom_role.role" not in further.plan()


def test_terraform_calls_no_shell_and_decodes_no_document():
    text = MAIN.read_text()
    for gone in ("local-exec", "provisioner", "terraform_data", "null_resource", "bucket_object"):
        assert gone not in text
    assert re.findall(r"program\s*=\s*(\S+)", text) == ["local.program", "concat("]
    assert set(re.findall(r"jsondecode\((.*?)\)", text)) == {
        f"data.external.rights.result.{part}" for part in ("roles", "buckets", "projects", "acts_as")
    }
    assert not re.findall(r'"(roles/[\w.]+)"', text)
    assert set(re.findall(r'^resource "(\w+)"', text, re.MULTILINE)) == {
        "google_project_iam_custom_role",
        "google_storage_bucket_iam_member",
        "google_project_iam_member",
        "google_service_account_iam_member",
    }


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
def test_terraform_reads_the_file_and_finds_it_well_formed():
    command = ["terraform", "fmt", "-check", "-diff", MAIN.parent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rights_that_terraform_keeps_are_left_to_it(cloud_project):
    assert cloud_project.deploy("--no-rights").returncode == 0
    assert cloud_project.roles == {}
    assert [binding[0] for binding in cloud_project.bindings] == ["bqdispatch-index"]


@pytest.mark.parametrize("option", ["--by-prefix", "--job-project=acme-shop"])
def test_an_option_that_is_terraforms_alone_is_refused(cloud_project, option):
    done = cloud_project.deploy("--no-rights", "--dry-run", option)
    assert (done.returncode, done.stdout, cloud_project.calls) == (2, "", [])
    assert "give Terraform by_prefix and job_projects instead" in done.stderr
    assert done.stderr.count("\n") == 1


# Another account than the environment's


def grants(cloud):
    """Return the roles of each member, with their places, but for reading the index."""
    found = {}
    for place, member, role, _ in cloud.bindings:
        if place != "bqdispatch-index":
            found.setdefault(member.removeprefix("serviceAccount:"), set()).add((place, role.rpartition("/")[2]))
    return found


NEEDED = {
    ("gs://acme-ops", "bqdispatchFolders"),
    ("gs://acme-errors", "bqdispatchFolders"),
    ("gs://acme_ops_bqtail", "bqdispatchTrigger"),
    ("gs://acme-config", "storage.legacyObjectReader"),
    ("acme-ops", "bqdispatchJobs"),
}
CREATOR = ACTS_AS.rpartition("/")[2]
COMPOSER = ACCOUNT.removeprefix("serviceAccount:")


@pytest.mark.parametrize("is_option", [True, False])
def test_the_last_account_of_the_chain_has_the_roles_and_each_acts_as_the_next(cloud_project, is_option):
    chain = f"{BETWEEN},{DISPATCHER}"
    if not is_option:  # as somebody has set it
        extra = {"config_url": "gs://acme-config/old.json", "impersonation_chain": chain}
        cloud_project.set_connection({"conn_type": "bqdispatch", "extra": extra})
    options = [f"--impersonation-chain={chain}"] if is_option else []
    done = cloud_project.deploy(*options)
    assert done.returncode == 0, done.stderr
    assert grants(cloud_project) == {
        DISPATCHER: NEEDED,
        COMPOSER: {(BETWEEN, CREATOR)},
        BETWEEN: {(DISPATCHER, CREATOR)},
    }
    assert f"--impersonate-service-account={DISPATCHER}" in done.stderr


def test_the_accounts_of_two_set_ups_have_no_rights_on_each_others_buckets(cloud_project):
    for name in ("acme", "other"):
        document = {
            "ProjectID": "acme-ops",
            "TriggerBucket": f"{name}-bqtail",
            **{key: f"gs://{name}-ops/{key}" for key in ("AsyncTaskURL", "JournalURL", "ErrorURL")},
        }
        config = cloud_project.replace_document(document, f"{name}.json")
        done = cloud_project.deploy(f"--setup={name}", f"--impersonation-chain={name}@acme", config=config)
        assert done.returncode == 0, done.stderr
    found = grants(cloud_project)
    assert found.pop(COMPOSER) == {("acme@acme", CREATOR), ("other@acme", CREATOR)}
    for member, places in found.items():
        of_others = {place for place, _ in places if not place.startswith(f"gs://{member.partition('@')[0]}-")}
        assert of_others <= {"gs://acme-config", "acme-ops"}


def test_what_a_former_account_is_left_with_is_named(cloud_project):
    """Nobody else uses it; a set-up that does would need it."""
    assert cloud_project.deploy(f"--impersonation-chain={BETWEEN}").returncode == 0
    assert "still" not in cloud_project.deploy().stderr
    done = cloud_project.deploy(f"--impersonation-chain={DISPATCHER}")
    assert done.stderr.count(f"{BETWEEN} still has ") == len(NEEDED)
    assert f"{COMPOSER} may still act as {BETWEEN} … remove that if nothing else needs it: gcloud iam" in done.stderr
    # The environment's own account in the chain is the account, not a former one.
    assert f"{COMPOSER} still has" not in cloud_project.deploy(f"--impersonation-chain={COMPOSER}").stderr


def test_the_rights_of_an_account_that_another_set_up_uses_are_not_named(deployed):
    config = deployed.replace_document(DOCUMENT | {"AsyncTaskURL": "gs://acme-ops/acme/Tasks/"}, "acme.json")
    done = deployed.deploy("--setup=acme", f"--impersonation-chain={DISPATCHER}", config=config)
    assert done.returncode == 0
    assert "still" not in done.stderr


@pytest.mark.parametrize("chain", ["dispatcher", "a@acme,,b@acme", '["a@acme", "b@acme"]', "a@acme b@acme", "-x@acme"])
def test_a_chain_that_is_none_is_refused_before_anything_is_changed(cloud_project, chain):
    for done in (
        cloud_project.deploy(f"--impersonation-chain={chain}"),
        cloud_project.command(
            "deploy", "rights", "--config=gs://acme-config/dispatch.json", f"--impersonation-chain={chain}"
        ),
    ):
        assert (done.returncode, done.stdout) == (2, "")
        assert "expected addresses of service accounts" in done.stderr
    assert cloud_project.changes() == []


def test_an_account_that_gcloud_would_take_for_an_option_is_refused_in_a_connection_too(deployed):
    extra = deployed.connection["extra"] | {"impersonation_chain": "-x@acme"}
    deployed.set_connection({"conn_type": "bqdispatch", "extra": extra})
    done = deployed.deploy()
    assert (done.returncode, deployed.changes()) == (2, [])
    assert "connection 'bqdispatch_default'" in done.stderr
    assert "impersonation_chain is '-x@acme'; expected addresses of service accounts" in done.stderr
    assert deployed.deploy(f"--impersonation-chain={DISPATCHER}").returncode == 0


def test_what_the_environments_account_is_left_with_is_named(deployed):
    done = deployed.deploy(f"--impersonation-chain={DISPATCHER}")
    assert done.returncode == 0
    assert grants(deployed)[COMPOSER] == NEEDED | {(DISPATCHER, CREATOR)}
    assert done.stderr.count(f"{COMPOSER} still has ") == len(NEEDED)
    assert f"gcloud storage buckets remove-iam-policy-binding gs://acme-ops --member={ACCOUNT}" in done.stderr


def test_a_condition_that_somebody_has_written_is_told_in_one_line(deployed):
    theirs = {"title": "theirs\x1b[2J", "expression": "true ||\nfalse\u202e"}
    deployed.set(bindings=[*deployed.bindings, ["gs://acme-config", ACCOUNT, READER, theirs]])
    done = deployed.deploy(f"--impersonation-chain={DISPATCHER}")
    assert done.returncode == 0
    (line,) = [each for each in done.stderr.splitlines() if "title=theirs" in each]
    assert line.isprintable()
    (command,) = re.findall("gcloud storage .*", line)
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {command}"], text=True).split("\0")
    assert words[-2].endswith("title=theirs\x1b[2J|0|expression=true ||\nfalse\u202e")


def test_no_account_is_granted_anything_in_place_of_one_that_nobody_can_see_from_here(cloud_project):
    done = cloud_project.deploy("--gcp-conn-id=google_acme")
    assert done.returncode == 0, done.stderr
    assert grants(cloud_project) == {}
    assert len(cloud_project.roles) == len(ROLES)  # the commands below need them
    assert "connection google_acme … its account is unknown here, so grant it its roles yourself" in done.stderr
    said = re.findall(r"fill in the account of google_acme for ACCOUNT: gcloud (.*)", done.stderr)
    assert len(said) == len(NEEDED)
    for command in said:
        filled = command.replace("ACCOUNT", "acme@acme.iam.gserviceaccount.com")
        subprocess.run(["sh", "-c", f"gcloud {filled}"], env=cloud_project.shell, check=True)
    assert grants(cloud_project) == {"acme@acme.iam.gserviceaccount.com": NEEDED}
    assert "unknown here" not in cloud_project.deploy("--gcp-conn-id=google_cloud_default").stderr


def test_a_chain_that_begins_with_such_an_account_is_left_to_people_at_its_first_link(cloud_project):
    done = cloud_project.deploy("--gcp-conn-id=google_acme", f"--impersonation-chain={BETWEEN},{DISPATCHER}")
    assert done.returncode == 0, done.stderr
    assert grants(cloud_project) == {DISPATCHER: NEEDED, BETWEEN: {(DISPATCHER, CREATOR)}}
    assert f"its account is unknown here, so let it act as {BETWEEN} yourself" in done.stderr
    (command,) = re.findall(r"fill in the account of google_acme for ACCOUNT: (.*)", done.stderr)
    assert command.startswith(f"gcloud iam service-accounts add-iam-policy-binding {BETWEEN} --member=serviceAccount:A")
    assert "may still act" not in cloud_project.deploy().stderr


def test_what_the_environments_account_is_left_with_beside_a_google_connection_is_named(deployed):
    """The environment's account is another set-up's too, which needs none of these buckets."""
    places = {key: f"gs://acme-own/{key}" for key in ("AsyncTaskURL", "JournalURL", "ErrorURL")}
    config = deployed.replace_document(DOCUMENT | places, "acme.json")
    assert deployed.deploy("--setup=acme", config=config).returncode == 0
    done = deployed.deploy("--setup=acme", "--gcp-conn-id=google_acme", config=config)
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(rf"{COMPOSER} still has (.*)", done.stderr)
    assert line.startswith(
        "bqdispatchFolders on gs://acme-own … remove it if nothing else uses that account, and google_acme has another "
        f"account: gcloud storage buckets remove-iam-policy-binding gs://acme-own --member={ACCOUNT}"
    )


# Other set-ups of the environment


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"config_url": "gs://acme-config/dispatch.json"}, "so both would dispatch the same events"),
        ({"config": DOCUMENT}, "so both would dispatch the same events"),
        (
            {"config": {**DOCUMENT, "AsyncTaskURL": "gs://acme-x/T", "ErrorURL": f"{DOCUMENT['AsyncTaskURL']}x"}},
            "every object",
        ),
        (
            {"config": {**DOCUMENT, "AsyncTaskURL": "gs://acme-errors/BqTail", "ErrorURL": "gs://acme-x/E"}},
            "every object",
        ),
    ],
)
def test_a_set_up_that_shares_events_with_another_one_is_refused_before_anything_is_changed(cloud_project, there, said):
    before = cloud_project.state()
    connection = json.dumps({"conn_type": "bqdispatch", "extra": there})
    cloud_project.set(variables={**before["variables"], "AIRFLOW_CONN_BQDISPATCH_OTHER": connection})
    done = cloud_project.deploy()
    assert done.returncode == 1
    assert "connection bqdispatch_other has the " in done.stderr
    assert said in done.stderr
    assert cloud_project.changes() == []


def test_a_set_up_that_cannot_be_compared_is_named(cloud_project):
    variables = {
        "AIRFLOW_CONN_BQDISPATCH_URI": "bqdispatch://?config_url=gs%3A%2F%2Facme",
        "AIRFLOW_CONN_BQDISPATCH_AWAY": json.dumps(
            {"conn_type": "bqdispatch", "extra": {"config_url": "gs://acme-config/away.json"}}
        ),
        "AIRFLOW_CONN_bqdispatch_small": json.dumps({"conn_type": "bqdispatch", "extra": DOCUMENT}),
        "AIRFLOW_CONN_HTTP": "http://hunter2@acme",
        "AIRFLOW_CONN_JSON": json.dumps({"conn_type": "http", "extra": DOCUMENT}),
    }
    cloud_project.set(variables=variables)
    done = cloud_project.deploy()
    assert done.returncode == 0, done.stderr
    named = re.findall(r"connection (\w+) … not compared, since its configuration is unknown", done.stderr)
    assert named == ["bqdispatch_away", "bqdispatch_uri"]
    assert "hunter2" not in done.stderr


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
    done = deployed.deploy("--by-prefix")
    assert done.returncode == 0
    unlimited = {where for where, _, _, condition in deployed.bindings if condition is None}
    # Google's role on the document's bucket may be another DAG's.
    assert unlimited == {"acme-ops", "bqdispatch-index", "gs://acme-config"}
    assert (
        f"if none does: gcloud storage buckets remove-iam-policy-binding gs://acme-config --member={ACCOUNT}"
        in done.stderr
    )
    assert deployed.deploy().returncode == 0
    assert {condition for *_, condition in deployed.bindings} == {None}


def test_a_bucket_that_is_named_without_a_folder_is_given_whole_and_named(cloud_project):
    cloud_project.document(ErrorURL="gs://acme-errors")
    assert cloud_project.dry_run().count("the whole bucket") == 0
    (line,) = re.findall(r"# (.*)\n#   the whole bucket", cloud_project.dry_run("--by-prefix"))
    assert line == "the account's role on gs://acme-errors"


def test_a_right_that_another_set_up_may_need_is_left(deployed):
    config = deployed.replace_document(
        DOCUMENT | {"AsyncTaskURL": "gs://acme-ops/acme/Tasks/", "TriggerBucket": "acme-x"}, "acme.json"
    )
    assert deployed.deploy("--setup=acme", "--no-rights", config=config).returncode == 0
    done = deployed.deploy("--by-prefix")
    assert done.returncode == 0
    assert "not yet: bqdispatch_acme may need it" in done.stderr
    assert ["gs://acme-ops", ACCOUNT, f"{ROLE}/bqdispatchFolders", None] in deployed.bindings
    # The other one has another trigger bucket, and no limit is undone there.
    assert ["gs://acme_ops_bqtail", ACCOUNT, f"{ROLE}/bqdispatchTrigger", None] not in deployed.bindings
    assert deployed.deploy("--setup=acme", "--by-prefix", config=config).returncode == 0
    done = deployed.deploy("--by-prefix")
    assert "not yet" not in done.stderr
    assert {where for where, _, _, condition in deployed.bindings if condition is None} == {
        "acme-ops",
        "bqdispatch-index",
        "gs://acme-config",
    }


def test_a_right_that_no_other_set_up_needs_is_taken_away(deployed):
    """The other one works as another account."""
    config = deployed.replace_document(DOCUMENT | {"AsyncTaskURL": "gs://acme-ops/acme/Tasks/"}, "acme.json")
    assert deployed.deploy("--setup=acme", f"--impersonation-chain={DISPATCHER}", config=config).returncode == 0
    assert "not yet" not in deployed.deploy("--by-prefix").stderr
    assert ["gs://acme-ops", ACCOUNT, f"{ROLE}/bqdispatchFolders", None] not in deployed.bindings


def test_a_right_that_a_set_up_with_another_google_connection_may_need_is_left(cloud_project):
    """Nobody can see which account that one works as: it may be the same."""
    assert cloud_project.deploy(f"--impersonation-chain={DISPATCHER}").returncode == 0
    config = cloud_project.replace_document(DOCUMENT | {"AsyncTaskURL": "gs://acme-ops/acme/Tasks/"}, "acme.json")
    other = cloud_project.deploy("--setup=acme", "--no-rights", "--gcp-conn-id=google_acme", config=config)
    assert other.returncode == 0
    assert "not yet: bqdispatch_acme may need it" in cloud_project.deploy("--by-prefix").stderr
    account = f"serviceAccount:{DISPATCHER}"
    assert ["gs://acme-ops", account, f"{ROLE}/bqdispatchFolders", None] in cloud_project.bindings


def test_the_environments_account_may_be_that_of_another_google_connection(deployed):
    """Nobody can see which account that one works as: so nobody is told to take these roles away."""
    config = deployed.replace_document(DOCUMENT | {"AsyncTaskURL": "gs://acme-ops/acme/Tasks/"}, "acme.json")
    other = deployed.deploy("--setup=acme", "--no-rights", "--gcp-conn-id=google_acme", config=config)
    assert other.returncode == 0, other.stderr
    done = deployed.deploy(f"--impersonation-chain={DISPATCHER}")
    assert done.returncode == 0, done.stderr
    assert "still has" not in done.stderr


def test_the_answer_is_what_terraforms_data_source_takes(cloud_project):
    answer = cloud_project.rights()
    assert answer.keys() == {"roles", "buckets", "projects", "acts_as", "account"}
    roles = json.loads(answer["roles"])
    assert {role["role_id"]: tuple(role["permissions"]) for role in roles.values()} == {
        name: role.permissions for name, role in ROLES.items()
    }
