"""Which permissions the caller of a stand-in lacks, and which the services' methods need."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from bqdispatch_provider.testing.standin_api import ApiError, Json

CALLER: Final = "standin@example.com"
"""Whom the stand-in takes every caller for."""

_COPY: Final = (("storage.objects.get", 0), ("storage.objects.create", 1))
NEEDS: Final[dict[str, tuple[tuple[str, int], ...]]] = {
    "storage.buckets.insert": (("storage.buckets.create", 0),),
    "storage.buckets.list": (("storage.buckets.list", 0),),
    "storage.buckets.get": (("storage.buckets.get", 0),),
    "storage.buckets.patch": (("storage.buckets.update", 0),),
    "storage.buckets.update": (("storage.buckets.update", 0),),
    "storage.buckets.delete": (("storage.buckets.delete", 0),),
    "storage.objects.list": (("storage.objects.list", 0),),
    "storage.objects.get": (("storage.objects.get", 0),),
    "storage.objects.patch": (("storage.objects.update", 0),),
    "storage.objects.update": (("storage.objects.update", 0),),
    "storage.objects.delete": (("storage.objects.delete", 0),),
    "storage.objects.insert": (("storage.objects.create", 0),),
    "storage.objects.compose": (("storage.objects.create", 0),),
    "storage.objects.copy": _COPY,
    "storage.objects.rewrite": _COPY,
    "storage.objects.restore": (("storage.objects.restore", 0), ("storage.objects.create", 0)),
}
"""By method: what it needs, and on which of its targets ("IAM permissions for JSON methods").

Beyond that, overwriting needs ``storage.objects.delete``, and composing needs ``storage.objects.get`` on every source.
"""

_ON_PROJECT: Final = frozenset(("bigquery.jobs.get", "bigquery.jobs.list", "bigquery.jobs.listAll"))
_STORAGE: Final = frozenset(permission for needs in NEEDS.values() for permission, _ in needs)
_ON_OBJECT: Final = frozenset(
    permission for permission in _STORAGE if permission.startswith("storage.objects.") and "list" not in permission
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A permission that the caller lacks.

    :param permission: its name, such as ``storage.objects.delete``.
    :param bucket: on which bucket; ``None``: on all.
    :param prefix: only on objects whose names begin with it, as a condition of IAM has it; ``None``: on all.
    :param project: for BigQuery: in which project; ``None``: in all.
    """

    permission: str
    bucket: str | None = None
    prefix: str | None = None
    project: str | None = None

    @classmethod
    def of(cls, document: Json) -> Refusal:
        """A refusal from its JSON form; 400 with the reason when it is not one."""
        permission = document.get("permission")
        if permission not in _STORAGE | _ON_PROJECT:
            known = ", ".join(sorted(_STORAGE | _ON_PROJECT))
            raise ApiError(400, f"The stand-in asks for {known}, never for {permission!r}.")
        fitting = {"project"} if permission in _ON_PROJECT else {"bucket"}
        if permission in _ON_OBJECT:
            fitting.add("prefix")
        for name, value in document.items():
            if name != "permission" and value is not None and (name not in fitting or not isinstance(value, str)):
                raise ApiError(
                    400, f"{permission} is refused by {' and '.join(sorted(fitting))}, not {name}={value!r}."
                )
        return cls(**document)

    def hits(self, permission: str, bucket: str, name: str) -> bool:
        """Whether the caller lacks the permission on that object; an empty name stands for the bucket."""
        return (
            self.permission == permission
            and self.bucket in (None, bucket)
            and (self.prefix is None or bool(name and name.startswith(self.prefix)))
        )


class Permissions:
    """What the caller lacks; nothing at first."""

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []

    def granted(self, permission: str, bucket: str, name: str = "") -> bool:
        """Whether the caller has it on the bucket, or on the object."""
        return not any(refusal.hits(permission, bucket, name) for refusal in self.refusals)

    def require(self, permission: str, bucket: str, name: str = "") -> None:
        """Refuse a call on a bucket or an object that the caller lacks the permission for."""
        if self.refusals and not self.granted(permission, bucket, name):
            thing = "object" if permission in _ON_OBJECT else "bucket"
            raise ApiError(
                403,
                f"{CALLER} does not have {permission} access to the Google Cloud Storage {thing}."
                f" Permission '{permission}' denied on resource (or it may not exist).",
            )

    def require_for(self, call: str, targets: tuple[tuple[str, str], ...]) -> None:
        """Refuse a call of Cloud Storage that the caller lacks a permission for.

        :param call: the method's name.
        :param targets: buckets and objects that it names.
        """
        for permission, place in NEEDS.get(call, ()):
            self.require(permission, *targets[place])

    def require_jobs(self, permission: str, project: str) -> None:
        """Refuse a call of BigQuery that the caller lacks the permission for, in all the project.

        The service would let callers look at jobs of their own; here everything is refused, whosever job it is.
        """
        for refusal in self.refusals:
            if refusal.permission == permission and refusal.project in (None, project):
                message = f"Access Denied: Project {project}: User does not have {permission} permission in project"
                raise ApiError(403, f"{message} {project}.", "accessDenied")

    def shown(self) -> list[dict[str, Any]]:
        """All refusals in their JSON form."""
        return [asdict(refusal) for refusal in self.refusals]
