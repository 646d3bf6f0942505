"""All buckets, and the rules of Cloud Storage for them, independent of HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bqdispatch_provider.testing.standin.api import ApiError, Json
from bqdispatch_provider.testing.standin.clock import Clock
from bqdispatch_provider.testing.standin.storage_conditions import Conditions, check_bucket
from bqdispatch_provider.testing.standin.storage_model import Bucket
from bqdispatch_provider.testing.standin.storage_policies import complete_settings


class Buckets:
    """All buckets. Its methods raise :class:`ApiError` wherever the service refuses a call.

    :param clock: clock of the stand-in.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.by_name: dict[str, Bucket] = {}

    def bucket(self, name: str) -> Bucket:
        """Return a bucket.

        :param name: name of the bucket.
        :raises ApiError: 404 if there is no such bucket.
        """
        try:
            return self.by_name[name]
        except KeyError:
            raise ApiError(404, "The specified bucket does not exist.") from None

    def create(self, name: str, project: str, properties: Json | None = None) -> Bucket:
        """Create a bucket ("About buckets"; only the simple rules for names are checked).

        :param name: name of the bucket.
        :param project: project of the bucket.
        :param properties: fields of its resource.
        :raises ApiError: 400 if the name or a field is invalid, 409 if the bucket exists.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", name):
            raise ApiError(400, f"Invalid bucket name: {name!r}")
        if name in self.by_name:
            raise ApiError(409, f"A bucket named {name} exists already.")
        now = self._clock.millis()
        bucket = self.by_name[name] = Bucket(name, project, complete_settings(properties or {}, now), now)
        return bucket

    def change(self, name: str, conditions: Conditions, body: Json, *, whole: bool) -> Bucket:
        """Change the fields of a bucket.

        :param name: name of the bucket.
        :param conditions: preconditions.
        :param body: new values by field; ``None`` removes a field.
        :param whole: ``True``: remove all other fields.
        :raises ApiError: 404, 412, or 400 if a value is invalid.
        """
        bucket, now = self.bucket(name), self._clock.millis()
        check_bucket(bucket, conditions)
        bucket.properties = merge({} if whole else bucket.properties, complete_settings(body, now))
        bucket.metageneration += 1
        bucket.updated_ms = now
        return bucket

    def delete(self, name: str, conditions: Conditions) -> None:
        """Delete a bucket that has no objects, except soft-deleted ones.

        :param name: name of the bucket.
        :param conditions: preconditions.
        :raises ApiError: 404, 412, or 409 if the bucket is not empty.
        """
        bucket = self.bucket(name)
        check_bucket(bucket, conditions)
        if bucket.current.entries or bucket.noncurrent.entries:
            raise ApiError(409, "The bucket you tried to delete is not empty.")
        del self.by_name[name]


def merge(properties: Mapping[str, Any], changes: Mapping[str, Any]) -> Json:
    """Apply a JSON merge patch: ``None`` removes a field, and metadata is merged key by key.

    :param properties: fields before.
    :param changes: new values by field.
    :returns: fields after.
    """
    merged = dict(properties)
    for key, value in changes.items():
        new = value
        if key == "metadata" and isinstance(value, dict):
            texts = {name: item if item is None else str(item) for name, item in value.items()}
            new = merge(merged.get("metadata") or {}, texts) or None
        if new is None:
            merged.pop(key, None)
        else:
            merged[key] = new
    return merged
