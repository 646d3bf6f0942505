"""The roles that the dispatcher's account needs, and where: for ``bqdispatch deploy``, and for Terraform."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.gcp.permissions import FOLDERS, JOBS, TRIGGER_BUCKET
from bqdispatch_provider.gcp.storage_calls import split_url


@dataclass(frozen=True)
class Role:
    """A custom role.

    :param title: its name in the console.
    :param description: what it allows.
    :param permissions: in alphabetical order.
    """

    title: str
    description: str
    permissions: tuple[str, ...]


_TEXTS = (
    (
        FOLDERS,
        "bqdispatch folders",
        "Lists, reads, writes and deletes what lies in the task folder, the journal and the quarantine.",
    ),
    (
        TRIGGER_BUCKET,
        "bqdispatch trigger bucket",
        "Delivers events to BqTail, and proves what was delivered before.",
    ),
    (JOBS, "bqdispatch jobs", "Looks at the state of BigQuery jobs."),
)

ROLES: Mapping[str, Role] = {
    needed.role: Role(title, description, tuple(sorted(needed.permissions))) for needed, title, description in _TEXTS
}
"""Custom roles by ID. deploy/roles has them as files."""

READER = "roles/storage.legacyObjectReader"
"""Google's role that reads objects and nothing else."""

ACTS_AS = "roles/iam.serviceAccountTokenCreator"
"""Google's role on an account that lets its holder act as that account."""

VIEWER = "roles/storage.objectViewer"
"""Google's role for one object, by a condition. Its permission to list has no effect: a list asks for the bucket."""


_WHOLE = "the whole bucket, for the configuration names it without a folder"
"""Said of a role that ``by_prefix`` does not limit."""


@dataclass(frozen=True)
class Condition:
    """A condition of IAM.

    :param title: by which a set-up recognizes its own.
    :param expression: in IAM's language.
    """

    title: str
    expression: str


@dataclass(frozen=True)
class Grant:
    """A role that the account has on a bucket or in a project.

    :param role: its full name.
    :param bucket: the bucket; ``None``: it holds in ``project``.
    :param project: the project; ``None``: it holds on ``bucket``.
    :param condition: what limits it; ``None``: nothing.
    :param without: the role that would undo the condition, if the account had it on the same bucket without one.
    :param note: what a reader might not expect; empty without.
    """

    role: str
    bucket: str | None = None
    project: str | None = None
    condition: Condition | None = None
    without: str = ""
    note: str = ""

    @property
    def place(self) -> str:
        """The bucket as ``gs://…``, or the project."""
        return f"gs://{self.bucket}" if self.bucket else str(self.project)


@dataclass(frozen=True)
class Rights:
    """All roles that the account needs.

    :param roles: custom roles to create, as project and ID.
    :param grants: the roles that the account has, and where.
    :param chain: the accounts that the environment's acts as, each by way of the one before it. The last one has the
        roles; without any, the environment's has them.
    """

    roles: tuple[tuple[str, str], ...]
    grants: tuple[Grant, ...]
    chain: tuple[str, ...] = ()

    def for_terraform(self) -> dict[str, str]:
        """Return the rights for Terraform's data source ``external``, which reads an object of strings: here JSON."""
        roles = {
            f"{project} {role}": {"project": project, "role_id": role, **asdict(ROLES[role])}
            for project, role in self.roles
        }
        buckets = {
            f"{each.bucket} {each.role}": {
                "bucket": each.bucket,
                "role": each.role,
                "condition": each.condition and asdict(each.condition),
            }
            for each in self.grants
            if each.bucket
        }
        projects = {each.project: {"project": each.project, "role": each.role} for each in self.grants if each.project}
        acts_as = {
            f"{by} {account}": {"account": account, "role": ACTS_AS, "by": by}
            for by, account in pairwise(("", *self.chain))
        }
        parts = {"roles": roles, "buckets": buckets, "projects": projects, "acts_as": acts_as}
        answer = {name: json.dumps(part) for name, part in parts.items()}
        return {**answer, "account": self.chain[-1] if self.chain else ""}


def required_rights(
    config: DispatchConfig,
    setup: SetUp,
    *,
    by_prefix: bool = False,
    job_projects: Iterable[str] = (),
    chain: Iterable[str] = (),
) -> Rights:
    """Return what the account needs for a configuration.

    :param config: with its project and trigger bucket filled in.
    :param setup: the set-up whose account it is. Its conditions carry its name.
    :param by_prefix: limit the account to the folders that the configuration names, and to the document itself.
    :param job_projects: projects with traces, beside the configuration's own.
    :param chain: the connection's ``impersonation_chain``.
    """
    project = str(config.project_id)
    custom = f"projects/{project}/roles"
    folders: dict[str, list[str]] = {}
    for url in (config.async_task_url, config.journal_url, config.error_url):
        bucket, folder = split_url(url)
        folders.setdefault(bucket, []).append(folder.rstrip("/"))
    trigger = str(config.trigger_bucket)
    places = [(bucket, f"{custom}/{FOLDERS.role}", names) for bucket, names in folders.items()]
    events = [config.post_job_prefix.strip("/"), config.batch_prefix.strip("/")]
    places.append((trigger, f"{custom}/{TRIGGER_BUCKET.role}", events))
    title = condition_title(setup.dag_id)
    grants = [
        Grant(role, bucket, condition=_below(title, bucket, names), without=role, note=_WHOLE if "" in names else "")
        if by_prefix
        else Grant(role, bucket)
        for bucket, role, names in places
    ]
    if config.url and config.url.startswith("gs://"):
        bucket, name = split_url(config.url)
        if by_prefix:
            expression = f"resource.name == {_quoted(_resource(bucket, name))}"
            grants.append(Grant(VIEWER, bucket, condition=Condition(title, expression), without=READER))
        elif bucket not in {*folders, trigger}:
            grants.append(Grant(READER, bucket))
    others = [each for each in dict.fromkeys(job_projects) if each != project]
    grants += [Grant(f"projects/{each}/roles/{JOBS.role}", project=each) for each in (project, *others)]
    # A project's custom role can be bound in that project only, so each further project has one of its own.
    roles = [(project, role) for role in ROLES] + [(each, JOBS.role) for each in others]
    return Rights(tuple(roles), tuple(grants), tuple(chain))


def condition_title(dag_id: str) -> str:
    """Return the title of a set-up's conditions.

    :param dag_id: ID of its DAG.
    """
    return f"{dag_id} by prefix"


def _below(title: str, bucket: str, folders: Iterable[str]) -> Condition | None:
    """Limit a role to folders of a bucket. Lists go on working, for they ask for the bucket."""
    names = list(dict.fromkeys(folders))
    if "" in names:
        return None
    below = [f"resource.name.startsWith({_quoted(_resource(bucket, f'{name}/'))})" for name in names]
    return Condition(title, " || ".join(['resource.type != "storage.googleapis.com/Object"', *below]))


def _resource(bucket: str, name: str) -> str:
    return f"projects/_/buckets/{bucket}/objects/{name}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
