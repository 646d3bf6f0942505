"""Steps that grant the account its roles: custom roles, their bindings, and the bindings that these replace."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from bqdispatch_provider.commands.composer import Environment
from bqdispatch_provider.commands.gcloud import Gcloud, Step, escaped_list
from bqdispatch_provider.commands.rights import ROLES, Condition, Grant, Rights, condition_title
from bqdispatch_provider.core.setups import SetUp

_GRANTED = "already granted"


class Access:
    """The roles of an environment's service account.

    :param gcloud: to look at the existing ones.
    :param rights: what the account needs.
    :param setup: whose account it is.
    :param environment: the environment.
    """

    def __init__(self, gcloud: Gcloud, rights: Rights, setup: SetUp, environment: Environment) -> None:
        self._gcloud, self._rights, self._setup, self._environment = gcloud, rights, setup, environment

    def steps(self) -> Iterator[Step]:
        """Yield the steps. Each looks at what exists once those before it are done."""
        yield from self._roles()
        for bucket in dict.fromkeys(each.bucket for each in self._rights.grants if each.bucket):
            yield from self._on_bucket(bucket)
        for grant in self._rights.grants:
            if grant.project:
                yield self._on_jobs(grant.role, grant.project)

    def _roles(self) -> Iterator[Step]:
        several = len({project for project, _ in self._rights.roles}) > 1
        for project, role in self._rights.roles:
            where, wanted = f"--project={project}", ROLES[role]
            title = f"role {role}{f' in {project}' if several else ''}"
            hint = f"you need roles/iam.roleAdmin in {project!r}"
            found = self._gcloud.describe("iam", "roles", "describe", role, where)
            if found is not None and found.get("deleted"):
                yield Step(f"undelete {title}", ["gcloud", "iam", "roles", "undelete", role, where], hint)
            texts = {"title": wanted.title, "description": wanted.description, "stage": "GA"}
            same = (
                found is not None
                and sorted(found.get("includedPermissions", ())) == sorted(wanted.permissions)
                and all(found.get(key) == text for key, text in texts.items())
            )
            verb = "create" if found is None else "update"
            command = ["gcloud", "iam", "roles", verb, role, where, *(f"--{key}={text}" for key, text in texts.items())]
            command += [f"--permissions={','.join(wanted.permissions)}", "--quiet"]
            yield Step(title, command, hint, done="up to date" if same else "")

    def _on_bucket(self, bucket: str) -> Iterator[Step]:
        url, commands = f"gs://{bucket}", ["gcloud", "storage", "buckets"]
        hint = f"the bucket has to exist, and you need storage.buckets.setIamPolicy on {url}"
        bound = self._gcloud.bound_roles(self._environment.member, "storage", "buckets", "get-iam-policy", url)
        wanted = [each for each in self._rights.grants if each.bucket == bucket]
        for grant in wanted:
            command = [*commands, "add-iam-policy-binding", url, *self._binding(grant.role, grant.condition)]
            done = _GRANTED if (grant.role, grant.condition) in bound else ""
            yield Step(f"the account's role on {url}", command, hint, done)
        for role, condition, kept in self._superseded(bound, wanted):
            command = [*commands, "remove-iam-policy-binding", url, *self._binding(role, condition)]
            which = "with an older condition" if condition else "without a condition"
            yield Step(f"remove the account's {role.rpartition('/')[2]} {which} on {url}", command, hint, kept)

    def _on_jobs(self, role: str, project: str) -> Step:
        bound = self._gcloud.bound_roles(self._environment.member, "projects", "get-iam-policy", project)
        command = ["gcloud", "projects", "add-iam-policy-binding", project, *self._binding(role, None)]
        hint = f"you need roles/resourcemanager.projectIamAdmin in {project!r}"
        return Step(
            f"the account's role on jobs of {project}", command, hint, _GRANTED if (role, None) in bound else ""
        )

    def _superseded(
        self, bound: Sequence[tuple[str, Condition | None]], wanted: Sequence[Grant]
    ) -> Iterator[tuple[str, Condition | None, str]]:
        """Yield the bindings to remove, and why one is kept for now.

        They are older ones of this set-up, and those without a condition that would undo a wanted one with a condition.
        """
        conditions = [each.condition for each in wanted if each.condition]
        undone = {each.without for each in wanted if each.condition}
        title, own = condition_title(self._setup), self._setup.conn_variable
        variables = [each for each in self._environment.variables if re.fullmatch(r"AIRFLOW_CONN_BQDISPATCH_\w+", each)]
        others = ", ".join(sorted({*variables} - {own}))
        for role, condition in bound:
            if condition is not None and condition.title == title and condition not in conditions:
                yield role, condition, ""
            if condition is None and role in undone:
                kept = f"not yet: {others} may need it, until deployed with --by-prefix too"
                yield role, None, kept if others else ""

    def _binding(self, role: str, condition: Condition | None) -> list[str]:
        """Return options of gcloud for a binding."""
        pairs = [f"{key}={value}" for key, value in asdict(condition).items()] if condition else []
        limited = escaped_list(pairs) if condition else "None"
        return [f"--member={self._environment.member}", f"--role={role}", f"--condition={limited}"]
