"""The resources of objects and buckets, as the JSON API of Cloud Storage shows them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from bqdispatch_provider.testing.standin.api import Json, Reply, Request, encode
from bqdispatch_provider.testing.standin.clock import rfc3339
from bqdispatch_provider.testing.standin.fields import Mask, compute, fields_of
from bqdispatch_provider.testing.standin.storage_model import Bucket, StoredObject
from bqdispatch_provider.testing.standin.storage_objects import WRITABLE_FIELDS
from bqdispatch_provider.testing.standin.storage_policies import retained_until

_UNSET_OBJECT_FIELDS = "acl contexts customerEncryption isUnfinalized kmsKeyName owner restoreToken"
"""Fields of the resource that no object here has, but that a selection may name."""


@lru_cache(maxsize=64)
def _quoted(name: str) -> str:
    return quote(name, safe="")


def _link(stored: StoredObject, base: str, root: str) -> str:
    return f"{base}{root}/b/{stored.bucket}/o/{_quoted(stored.name)}"


def etag(stored: StoredObject) -> str:
    """Return the ETag of an object, which changes with its generation and metageneration.

    :param stored: the object.
    """
    return encode(f"{stored.generation}/{stored.metageneration}")


def _time(millis: int | None) -> str | None:
    return None if millis is None else rfc3339(millis)


_OBJECT: Final[dict[str, Callable[[StoredObject, str], Any]]] = {
    "kind": lambda stored, base: "storage#object",
    "id": lambda stored, base: f"{stored.bucket}/{stored.name}/{stored.generation}",
    "selfLink": lambda stored, base: _link(stored, base, "/storage/v1"),
    "mediaLink": lambda stored, base: (
        f"{_link(stored, base, '/download/storage/v1')}?generation={stored.generation}&alt=media"
    ),
    "name": lambda stored, base: stored.name,
    "bucket": lambda stored, base: stored.bucket,
    "generation": lambda stored, base: str(stored.generation),
    "metageneration": lambda stored, base: str(stored.metageneration),
    "size": lambda stored, base: str(len(stored.content.data)),
    "md5Hash": lambda stored, base: stored.content.md5 if stored.components is None else None,
    "crc32c": lambda stored, base: stored.content.crc32c,
    "componentCount": lambda stored, base: stored.components,
    "etag": lambda stored, base: etag(stored),
    "timeCreated": lambda stored, base: rfc3339(stored.created_ms),
    "updated": lambda stored, base: rfc3339(stored.updated_ms),
    "timeFinalized": lambda stored, base: rfc3339(stored.created_ms),
    "timeStorageClassUpdated": lambda stored, base: rfc3339(stored.created_ms),
    "timeDeleted": lambda stored, base: _time(stored.noncurrent_ms),
    "softDeleteTime": lambda stored, base: _time(stored.soft_deleted_ms),
    "hardDeleteTime": lambda stored, base: _time(stored.hard_delete_ms),
    "retentionExpirationTime": lambda stored, base: _time(retained_until(stored)),
    **{key: (lambda stored, base, key=key: stored.properties.get(key)) for key in WRITABLE_FIELDS},  # type: ignore[misc]
    "storageClass": lambda stored, base: stored.properties.get("storageClass", "STANDARD"),
}
OBJECT_FIELDS: Final[dict[str, Any]] = dict.fromkeys([*_OBJECT, *_UNSET_OBJECT_FIELDS.split()])
LIST_FIELDS: Final[dict[str, Any]] = {"kind": None, "nextPageToken": None, "prefixes": None, "items": OBJECT_FIELDS}
REWRITE_FIELDS: Final[dict[str, Any]] = {
    **dict.fromkeys(["kind", "totalBytesRewritten", "objectSize", "done", "rewriteToken"]),
    "resource": OBJECT_FIELDS,
}


def object_resource(stored: StoredObject, base: str, mask: Mask | None = None) -> Json:
    """Return the resource of an object.

    :param stored: the object.
    :param base: scheme and host for its links.
    :param mask: selected fields, the only ones that are computed; ``None``: all fields.
    """
    return compute(_OBJECT, stored, base, dict.fromkeys(_OBJECT) if mask is None or "*" in mask else mask)


def object_reply(request: Request, stored: StoredObject) -> Reply:
    """Return the answer to a call: the fields of an object that the call selects.

    :param request: the call.
    :param stored: the object.
    """
    resource = object_resource(stored, request.base, fields_of(request, OBJECT_FIELDS))
    return Reply(200, resource, {"ETag": etag(stored)})


def bucket_resource(bucket: Bucket, base: str) -> Json:
    """Return the resource of a bucket.

    :param bucket: the bucket.
    :param base: scheme and host for its links.
    """
    return {
        "location": "US",
        "locationType": "multi-region",
        "storageClass": "STANDARD",
        "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}},
        **bucket.properties,
        "kind": "storage#bucket",
        "id": bucket.name,
        "name": bucket.name,
        "selfLink": f"{base}/storage/v1/b/{bucket.name}",
        "projectNumber": "0",
        "metageneration": str(bucket.metageneration),
        "etag": encode(str(bucket.metageneration)),
        "timeCreated": rfc3339(bucket.created_ms),
        "updated": rfc3339(bucket.updated_ms),
    }
