"""IAM permissions: the ones that each API method needs, and the ones that the caller is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bqdispatch_provider.testing.standin.api import ApiError, Json

CALLER: Final = "standin@example.com"
"""E-mail address of every caller."""

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
"""Permissions that each method needs, each with the position of the target that it needs them on.

Source: "IAM permissions for JSON methods". In addition, a method that overwrites an object needs
``storage.objects.delete``, and ``compose`` needs ``storage.objects.get`` on every source.
"""

PROJECT_PERMISSIONS: Final = frozenset(("bigquery.jobs.get", "bigquery.jobs.list", "bigquery.jobs.listAll"))
STORAGE_PERMISSIONS: Final = frozenset(permission for needs in NEEDS.values() for permission, _ in needs)
_OBJECT_PERMISSIONS: Final = frozenset(
    permission
    for permission in STORAGE_PERMISSIONS
    if permission.startswith("storage.objects.") and "list" not in permission
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A permission that the caller is refused.

    :param permission: name of the permission, such as ``storage.objects.delete``.
    :param bucket: bucket on which it is refused; ``None``: all buckets.
    :param prefix: prefix of the objects on which it is refused, as in an IAM condition; ``None``: all objects.
    :param project: project in which a permission of BigQuery is refused; ``None``: all projects.
    """

    permission: str
    bucket: str | None = None
    prefix: str | None = None
    project: str | None = None

    @classmethod
    def of(cls, document: Json) -> Refusal:
        """Read a refusal from JSON.

        :param document: the parameters of the refusal by name.
        :raises ApiError: 400 if the refusal is invalid.
        """
        permission = document.get("permission")
        if permission not in STORAGE_PERMISSIONS | PROJECT_PERMISSIONS:
            known = ", ".join(sorted(STORAGE_PERMISSIONS | PROJECT_PERMISSIONS))
            raise ApiError(400, f"Unknown permission {permission!r}: the stand-in checks {known}.")
        fitting = {"project"} if permission in PROJECT_PERMISSIONS else {"bucket"}
        if permission in _OBJECT_PERMISSIONS:
            fitting.add("prefix")
        for name, value in document.items():
            if name != "permission" and value is not None and (name not in fitting or not isinstance(value, str)):
                known = " and ".join(sorted(fitting))
                raise ApiError(400, f"Invalid {name}={value!r}: {permission} is refused by {known}, each a string.")
        return cls(**document)

    def hits(self, permission: str, bucket: str, name: str) -> bool:
        """Return ``True`` if the caller is refused a permission.

        :param permission: name of the permission.
        :param bucket: name of the bucket.
        :param name: name of the object; empty: the permission is needed on the bucket.
        """
        return (
            self.permission == permission
            and self.bucket in (None, bucket)
            and (self.prefix is None or bool(name and name.startswith(self.prefix)))
        )


class Permissions:
    """The permissions of the caller: all of them, except those that are refused."""

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []

    def granted(self, permission: str, bucket: str, name: str = "") -> bool:
        """Return ``True`` if the caller has a permission.

        :param permission: name of the permission.
        :param bucket: name of the bucket.
        :param name: name of the object; empty: the permission is needed on the bucket.
        """
        return not any(refusal.hits(permission, bucket, name) for refusal in self.refusals)

    def require(self, permission: str, bucket: str, name: str = "") -> None:
        """Refuse a call on a bucket or an object if the caller does not have the permission.

        :param permission: name of the permission.
        :param bucket: name of the bucket.
        :param name: name of the object; empty: the permission is needed on the bucket.
        :raises ApiError: 403 if the permission is refused.
        """
        if not self.granted(permission, bucket, name):
            thing = "object" if permission in _OBJECT_PERMISSIONS else "bucket"
            raise ApiError(
                403,
                f"{CALLER} does not have {permission} access to the Google Cloud Storage {thing}."
                f" Permission '{permission}' denied on resource (or it may not exist).",
            )

    def require_for(self, call: str, targets: tuple[tuple[str, str], ...]) -> None:
        """Refuse a call of Cloud Storage if the caller does not have the permissions of its method.

        :param call: name of the API method; other methods are allowed.
        :param targets: bucket and object of everything that the call names.
        :raises ApiError: 403 if a permission is refused.
        """
        for permission, position in NEEDS.get(call, ()):
            self.require(permission, *targets[position])

    def require_jobs(self, permission: str, project: str) -> None:
        """Refuse a call of BigQuery if the caller does not have the permission in the project.

        The service still shows callers their own jobs; the stand-in refuses these too.

        :param permission: name of the permission.
        :param project: the project.
        :raises ApiError: 403 if the permission is refused.
        """
        for refusal in self.refusals:
            if refusal.permission == permission and refusal.project in (None, project):
                message = f"Access Denied: Project {project}: User does not have {permission} permission in project"
                raise ApiError(403, f"{message} {project}.", "accessDenied")
