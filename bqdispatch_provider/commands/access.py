"""Steps that grant the account its roles: custom roles, their bindings, and the bindings that these replace.

The account is the environment's, or the one that the connection impersonates. That of another Google Cloud connection
is unknown: then the commands are shown, and nothing is granted to anybody in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import pairwise
from typing import Any

from bqdispatch_provider.commands.composer import Environment, OtherSetUp
from bqdispatch_provider.commands.gcloud import DeployError, Gcloud, Step, bound_roles, escaped_list, member_of
from bqdispatch_provider.commands.rights import (
    ACTS_AS,
    READER,
    ROLES,
    VIEWER,
    Condition,
    Grant,
    Rights,
    condition_title,
    required_rights,
)
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.connection_extra import GCP_CONN_ID
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.names import in_words, shell_joined

UNKNOWN_ACCOUNT = "ACCOUNT"
"""Stands in a command for an account that nobody can see from here."""

_GRANTED = "already granted"
_GOOGLES = "other DAGs may need this role of Google's; if none does"


class Access:
    """The roles of a set-up's service account.

    :param gcloud: to look at the existing ones.
    :param rights: what the account needs, and by which accounts it is impersonated.
    :param setup: whose account it is.
    :param environment: the environment, whose account it is without impersonation.
    :param others: the other set-ups of the environment.
    :param former: the accounts that the set-up impersonated before.
    :param gcp_conn_id: the set-up's Google Cloud connection.
    """

    def __init__(
        self,
        gcloud: Gcloud,
        rights: Rights,
        setup: SetUp,
        environment: Environment,
        *,
        others: Sequence[OtherSetUp],
        former: Sequence[str],
        gcp_conn_id: str,
    ) -> None:
        self._gcloud, self._rights, self._setup, self._others = gcloud, rights, setup, others
        self._gcp_conn_id = gcp_conn_id
        self._chain = (environment.account if gcp_conn_id == GCP_CONN_ID else UNKNOWN_ACCOUNT, *rights.chain)
        self._former = (environment.account, *former)
        self._environment = environment
        self._account = self._chain[-1]
        self._superseded_steps: list[Step] = []

    def steps(self) -> Iterator[Step]:
        """Yield the steps that grant the roles. Each looks at what exists once those before it are done."""
        if self._chain[0] == UNKNOWN_ACCOUNT:
            what = f"let it act as {self._chain[1]}" if self._rights.chain else "grant it its roles"
            done = f"its account is unknown here, so {what} yourself, as it says below"
            yield Step(f"connection {self._gcp_conn_id}", (), done=done)
        yield from self._impersonation()
        yield from self._roles()
        for bucket in dict.fromkeys(each.bucket for each in self._rights.grants if each.bucket):
            yield from self._on_bucket(bucket)
        for grant in self._rights.grants:
            if grant.project:
                yield from self._on_jobs(grant.role, grant.project)

    def left_behind(self, former: DispatchConfig | Exception | None) -> Iterator[Step]:
        """Yield the steps for what earlier deployments granted, and the configuration does not need.

        The set-up works with its former configuration until its connection is set, so these steps come after that. Its
        own conditions are removed, unless another environment may use them. Other bindings may be in use elsewhere, so
        they are named.

        :param former: as the existing connection says, or why it is unknown; ``None`` without a connection.
        """
        yield from self._superseded_steps
        if former is None:
            return
        wanted = {(each.place, role) for each in self._rights.grants for role in (each.role, each.without)}
        kept = {place for place, _ in wanted}
        places: dict[str, set[str]] = {}
        if isinstance(former, Exception):
            yield Step("the former configuration", (), done=f"not compared, since it is unknown: {in_words(former)}")
        else:
            for each in required_rights(former, self._setup).grants:
                if (each.place, each.role) not in wanted:
                    places.setdefault(each.place, set()).add(each.role)
        for place, roles in places.items():
            yield from self._left_behind_on(place, roles, is_gone=place not in kept)
        query = ["gcloud", "asset", "search-all-iam-policies", f"--scope=projects/{self._environment.project}"]
        done = "unknown, if a document was overwritten or a --job-project left out; to list all roles of the account: "
        done += shell_joined([*query, f"--query=policy:{self._account}"])
        yield Step("what earlier deployments granted elsewhere", (), done=done)

    def _left_behind_on(self, place: str, roles: Collection[str], *, is_gone: bool) -> Iterator[Step]:
        """Yield the steps for one place of the former configuration.

        :param place: a project, or a bucket as ``gs://…``.
        :param roles: those that the new configuration does not take there.
        :param is_gone: the new configuration takes no role there.
        """
        commands = ["gcloud", "storage", "buckets"] if place.startswith("gs://") else ["gcloud", "projects"]
        try:
            policy = self._gcloud.iam_policy(*commands[1:], "get-iam-policy", place)
        except DeployError as error:
            yield Step(f"the account's former roles on {place}", (), done=f"unknown: {error}")
            return
        bound = bound_roles(policy, self._account)
        for role, condition in bound:
            command = [*commands, "remove-iam-policy-binding", place, *self._binding(role, condition)]
            title = f"the account's {role.rpartition('/')[2]} on {place}, which the configuration no longer needs"
            if condition and condition.title == condition_title(self._setup.dag_id) and is_gone:
                hint = f"you need storage.buckets.setIamPolicy on {place}; run it yourself, for it is not tried again"
                if users := self._other_users:
                    done = f"{users}; remove it if nothing else needs it: {shell_joined(command)}"
                    yield Step(title, (), done=done)
                else:
                    yield Step(f"remove {title}", command, hint)
            elif condition is None and role in roles and not self._needing(self._account, place, bound, role, None):
                unless = _GOOGLES if role == READER else "remove it if nothing else needs it"
                yield Step(title, (), done=f"{unless}: {shell_joined(command)}")
        yield from self._of_former(policy, {*roles, VIEWER} if is_gone else roles, *commands, place)

    @cached_property
    def _other_users(self) -> str:
        """The environments of the region that may use this set-up's conditions, in words; empty if none may.

        A set-up of the same name knows them by the same title, and its account may be the same.
        """
        environment, variable = self._environment, self._setup.conn_variable
        where = [f"--locations={environment.location}", f"--project={environment.project}"]
        try:
            listed = self._gcloud.describe("composer", "environments", "list", *where) or ()
        except DeployError as error:
            return f"whether another environment uses it is unknown: {error}"
        variables = {
            each["name"].rpartition("/")[2]: each.get("config", {}).get("softwareConfig", {}).get("envVariables", {})
            for each in listed
        }
        users = [name for name, known in variables.items() if name != environment.name and variable in known]
        return f"environment {', '.join(users)} has a set-up of this name, which may use it" if users else ""

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
        policy = self._gcloud.iam_policy("storage", "buckets", "get-iam-policy", url)
        bound = bound_roles(policy, self._account)
        wanted = [each for each in self._rights.grants if each.bucket == bucket]
        for grant in wanted:
            command = [*commands, "add-iam-policy-binding", url, *self._binding(grant.role, grant.condition)]
            done = _GRANTED if (grant.role, grant.condition) in bound else self._left_to_people(command)
            yield Step(f"the account's role on {url}", command, hint, done, notes=[grant.note] if grant.note else [])
        for role, condition, kept in self._superseded(bound, wanted):
            command = [*commands, "remove-iam-policy-binding", url, *self._binding(role, condition)]
            which = "with an older condition" if condition else "without a condition"
            title = f"the account's {role.rpartition('/')[2]} {which} on {url}"
            step = Step(f"remove {title}", command, hint, kept)
            if role == READER:
                step = Step(title, command, done=f"{_GOOGLES}: {shell_joined(command)}")
            self._superseded_steps.append(step)
        roles = {READER, VIEWER, *(each.role for each in wanted)}
        yield from self._of_former(policy, roles, *commands, url)

    def _on_jobs(self, role: str, project: str) -> Iterator[Step]:
        policy = self._gcloud.iam_policy("projects", "get-iam-policy", project)
        command = ["gcloud", "projects", "add-iam-policy-binding", project, *self._binding(role, None)]
        hint = f"you need roles/resourcemanager.projectIamAdmin in {project!r}"
        done = _GRANTED if (role, None) in bound_roles(policy, self._account) else self._left_to_people(command)
        yield Step(f"the account's role on jobs of {project}", command, hint, done)
        yield from self._of_former(policy, {role}, "gcloud", "projects", project)

    def _of_former(self, policy: Mapping[str, Any], roles: Collection[str], *where: str) -> Iterator[Step]:
        """Yield the roles of the accounts that the set-up used before, or would use without impersonation.

        Nobody takes them away: other set-ups and DAGs may use these accounts.

        :param policy: IAM policy of a place.
        :param roles: those that a set-up may have had there.
        :param where: words of a command for the place, which is the last one.
        """
        *commands, place = where
        unknown = self._account == UNKNOWN_ACCOUNT
        for account in sorted({self._former[0], self._former[-1]} - {self._account}):
            bound = bound_roles(policy, account)
            for role, condition in bound:
                if role in roles and not self._needing(account, place, bound, role, condition):
                    binding = self._binding(role, condition, account)
                    command = shell_joined([*commands, "remove-iam-policy-binding", place, *binding])
                    unless = _GOOGLES if role in (READER, VIEWER) else "remove it if nothing else uses that account"
                    unless += f", and {self._gcp_conn_id} has another account" if unknown else ""
                    yield Step(
                        f"{account} still has {role.rpartition('/')[2]} on {place}", (), done=f"{unless}: {command}"
                    )

    def _impersonation(self) -> Iterator[Step]:
        """Yield the steps that let each account of the chain act as the next one."""
        commands = ["gcloud", "iam", "service-accounts"]
        policies = {}
        for by, account in pairwise(self._chain):
            policies[account] = self._gcloud.iam_policy(*commands[1:], "get-iam-policy", account)
            bound = bound_roles(policies[account], by)
            command = [*commands, "add-iam-policy-binding", account, *self._binding(ACTS_AS, None, by)]
            hint = f"the account has to exist, and you need roles/iam.serviceAccountAdmin on {account}"
            done = _GRANTED if (ACTS_AS, None) in bound else self._left_to_people(command, by)
            yield Step(f"let {by} act as {account}", command, hint, done)
        for by, account in sorted({*pairwise(self._former)} - {*pairwise(self._chain)}):
            if account in policies and (ACTS_AS, None) not in bound_roles(policies[account], by):
                continue
            command = [*commands, "remove-iam-policy-binding", account, *self._binding(ACTS_AS, None, by)]
            done = f"remove that if nothing else needs it: {shell_joined(command)}"
            yield Step(f"{by} may still act as {account}", (), done=done)

    def _superseded(
        self, bound: Sequence[tuple[str, Condition | None]], wanted: Sequence[Grant]
    ) -> Iterator[tuple[str, Condition | None, str]]:
        """Yield the bindings to remove, and why one is kept for now.

        They are older ones of this set-up, and those without a condition that would undo a wanted one with a condition.
        """
        conditions = [each.condition for each in wanted if each.condition]
        undone = {each.without for each in wanted if each.condition}
        place = f"gs://{wanted[0].bucket}"
        for role, condition in bound:
            if condition is not None and condition.title == condition_title(self._setup.dag_id):
                if condition not in conditions:
                    yield role, condition, ""
            elif condition is None and role in undone:
                needed = self._needing(self._account, place, bound, role, None)
                yield role, None, needed and f"not yet: {needed} may need it, until deployed with --by-prefix too"

    def _needing(
        self,
        account: str,
        place: str,
        bound: Sequence[tuple[str, Condition | None]],
        role: str,
        condition: Condition | None,
    ) -> str:
        """Return the other set-ups that may need a binding, by their connections. An unknown account may be any.

        :param account: the one that is bound.
        :param place: a project, or a bucket as ``gs://…``.
        :param bound: all that it has there.
        :param role: of the binding.
        :param condition: of the binding.
        """
        titles = {each.title for _, each in bound if each}
        needing = []
        for each in self._others:
            title = condition_title(each.dag_id)
            # The projects of its --job-project are unknown.
            unlimited = title not in titles and (
                not place.startswith("gs://") or each.may_need(place.removeprefix("gs://"), role)
            )
            if each.account in (account, "") and (condition.title == title if condition else unlimited):
                needing.append(each.conn_id)
        return ", ".join(needing)

    def _left_to_people(self, command: Sequence[str], account: str | None = None) -> str:
        """Return what people have to do for a binding of an unknown account; empty if the account is known.

        :param command: that binds it.
        :param account: the one that is bound; by default the one that has the roles.
        """
        if (account or self._account) != UNKNOWN_ACCOUNT:
            return ""
        return f"fill in the account of {self._gcp_conn_id} for {UNKNOWN_ACCOUNT}: {shell_joined(command)}"

    def _binding(self, role: str, condition: Condition | None, account: str | None = None) -> list[str]:
        """Return options of gcloud for a binding, of the account by default."""
        pairs = [f"{key}={value}" for key, value in asdict(condition).items()] if condition else []
        limited = escaped_list(pairs) if condition else "None"
        return [f"--member={member_of(account or self._account)}", f"--role={role}", f"--condition={limited}"]
