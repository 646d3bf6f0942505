"""The custom roles are what docs/permissions.md says that the account needs."""

import re
from pathlib import Path

import pytest
import yaml

from bqdispatch_provider.commands.rights import ROLES as DEPLOYED
from bqdispatch_provider.commands.rights import required_rights
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.setups import SetUp

ROOT = Path(__file__).parents[2]
ROLES = ROOT / "deploy" / "roles"
NAMES = ["folders", "trigger", "jobs"]


def role(name):
    return yaml.safe_load((ROLES / f"bqdispatch-{name}.yaml").read_text())


def granted(name):
    return set(role(name)["includedPermissions"])


def rows():
    """The rows of the table of permissions: what a place is, and the permissions there."""
    section = (ROOT / "docs" / "permissions.md").read_text().partition("\n## ")[0]
    for row in filter(lambda line: line.startswith("|"), section.splitlines()):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        found, full = set(), ""
        for word in re.findall(r"`([\w.]+)`", cells[-1]):
            full = word if not word.startswith(".") else f"{full.rpartition('.')[0]}{word}"
            found.add(full)
        if found:
            yield cells[0], found


PLACES = [
    ("task folder", "folders"),
    ("journal and errors", "folders"),
    ("trigger bucket", "trigger"),
    ("each", "jobs"),
]


@pytest.mark.parametrize(("place", "name"), PLACES)
def test_a_role_is_what_the_table_says_of_its_place(place, name):
    (permissions,) = [found for where, found in rows() if re.search(place, where)]
    assert permissions == granted(name)


@pytest.mark.parametrize("name", NAMES)
def test_gcloud_takes_the_file(name):
    document = role(name)
    assert set(document) == {"title", "description", "stage", "includedPermissions"}
    assert len(document["title"]) <= 100
    assert len(document["description"]) <= 256
    assert document["stage"] == "GA"
    assert document["includedPermissions"] == sorted(set(document["includedPermissions"]))
    assert all(re.fullmatch(r"(storage|bigquery)\.\w+\.\w+", each) for each in document["includedPermissions"])


def test_every_file_is_created_by_the_commands():
    assert {file.name for file in ROLES.glob("*.yaml")} == {f"bqdispatch-{name}.yaml" for name in NAMES}
    created = re.findall(r"roles create (\w+) .*--file=(\S+)", (ROLES / "README.md").read_text())
    assert {file for _, file in created} == {f"deploy/roles/bqdispatch-{name}.yaml" for name in NAMES}
    bound = re.findall(r"--role=projects/\$PROJECT/roles/(\w+)", (ROLES / "README.md").read_text())
    assert {name for name, _ in created} == set(bound)
    assert all(re.fullmatch(r"[A-Za-z0-9_.]{3,64}", name) for name, _ in created)


def test_no_role_may_submit_a_job_or_change_what_was_delivered():
    everything = set().union(*map(granted, NAMES))
    assert not [each for each in everything if re.search(r"jobs\.(create|update|delete)|setIam|\.update$", each)]
    assert "storage.objects.delete" not in granted("trigger")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_deployed_is_the_file(name):
    deployed, document = DEPLOYED[f"bqdispatch{name.capitalize()}"], role(name)
    assert (deployed.title, deployed.description) == (document["title"], document["description"])
    assert list(deployed.permissions) == document["includedPermissions"]
    assert len(DEPLOYED) == len(NAMES)


def test_the_condition_in_the_readme_is_the_one_that_is_deployed():
    document = {
        "ProjectID": "acme-ops",
        "AsyncTaskURL": "gs://acme-ops/BqTail/Tasks",
        "JournalURL": "gs://acme-ops/BqTail/Journal",
        "ErrorURL": "gs://acme-errors/BqTail/Errors",
    }
    rights = required_rights(DispatchConfig.from_dict(document).for_project(None), SetUp(), by_prefix=True)
    (condition,) = (each.condition for each in rights.grants if each.bucket == "acme-ops")
    text = (ROLES / "README.md").read_text()
    assert f"title={condition.title}|0|expression={condition.expression}'" in text
