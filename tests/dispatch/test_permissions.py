"""The custom roles in deploy/roles are enough for all that a dispatcher does, and nothing in them is too much."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from google.api_core.exceptions import GoogleAPIError
from world import JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.commands.rights import required_rights
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.delivery.quarantine import QuarantineStore
from bqdispatch_provider.gcp.permissions import missing_permissions
from bqdispatch_provider.testing.standin.permissions import PROJECT_PERMISSIONS, STORAGE_PERMISSIONS

ROLES = Path(__file__).parents[2] / "deploy" / "roles"
PLACES = {TASKS: "folders", JOURNAL: "folders", TRIGGER: "trigger"}


def granted(name):
    return set(yaml.safe_load((ROLES / f"bqdispatch-{name}.yaml").read_text())["includedPermissions"])


@pytest.fixture
def bound(world):
    """The account has the roles and nothing else."""
    for bucket, name in PLACES.items():
        for permission in STORAGE_PERMISSIONS - granted(name):
            world.control.refuse(permission, bucket=bucket)
    for permission in PROJECT_PERMISSIONS - granted("jobs"):
        world.control.refuse(permission, project="p")


def everything(world):
    """All that a dispatcher does, and what went wrong."""
    world.trace()
    world.traces(7, "query")
    world.trace(root=True)
    window = world.window()
    with world.dispatcher() as dispatcher:
        errors = dispatcher.run(time_to_live=0).errors
        errors = errors + dispatcher.run(time_to_live=0).errors  # performance.json is written over
        world.control.advance(4000)  # the window is stale, the next one a late twin of which nothing is known
        errors = errors + dispatcher.cycle().errors
        world.put(window)
        errors = errors + dispatcher.cycle().errors
        told = dispatcher.cycle().errors
        errors = errors + [each for each in told if not each.startswith(f"window {window!r} ")]
        world.window(content='{"EventID": "4711"}')  # BqTail takes it, and nothing comes
        errors = errors + [each for each in dispatcher.cycle().errors if each not in told]
        since = dispatcher.store.now() - timedelta(hours=1)
        told = dispatcher.store.trigger.keeps_deleted(since)
        versions = dispatcher.store.trigger.versions(["_bqjob_/"])
        try:
            with QuarantineStore(world.client, dispatcher.config) as quarantine:
                quarantine.listing()
        except GoogleAPIError as error:
            errors.append(str(error))
    return [
        *errors,
        *missing_permissions(dispatcher.store),
        *(["doubt"] if not told or not isinstance(versions[0], list) else []),
    ]


def test_the_roles_are_enough_for_everything(world, bound):
    assert everything(world) == []
    window, undecided = world.names()
    assert undecided.startswith("undecided/")
    assert window.endswith(".win")
    assert len(world.names(TRIGGER)) == 11


BEGINNINGS = "~_2Bbeijprux"
"""First characters of what a dispatcher would write at the top of a bucket, and of others."""


def test_the_folders_that_conditions_name_are_enough_for_everything(world, bound):
    """As with `--by-prefix`: nothing is read or written beside them."""
    rights = required_rights(world.config().for_project("p"), SetUp(), by_prefix=True)
    for grant in rights.grants:
        if grant.condition:
            start = f'startsWith\\("projects/_/buckets/{grant.bucket}/objects/(.*?)"\\)'
            inside = {each[0] for each in re.findall(start, grant.condition.expression)}
            assert inside
            for prefix in {*BEGINNINGS} - inside:
                for permission in ("get", "create", "delete"):
                    world.control.refuse(f"storage.objects.{permission}", bucket=grant.bucket, prefix=prefix)
    assert everything(world) == []


@pytest.mark.parametrize(
    ("bucket", "permission"),
    [(bucket, permission) for bucket, name in PLACES.items() for permission in sorted(granted(name))],
)
def test_nothing_in_a_storage_role_is_too_much(world, bound, bucket, permission):
    world.control.refuse(permission, bucket=bucket)
    assert everything(world) != []


@pytest.mark.parametrize("permission", sorted(granted("jobs")))
def test_nothing_in_the_role_for_jobs_is_too_much(world, bound, permission):
    world.control.refuse(permission, project="p")
    world.trace()
    first = world.cycle()
    world.trace(root=True)
    assert [*first.errors, *world.cycle().errors]
