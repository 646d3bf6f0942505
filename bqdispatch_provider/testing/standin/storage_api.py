"""The JSON API of Cloud Storage, and downloads by public path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Any

from bqdispatch_provider.testing.standin.api import (
    ApiError,
    Json,
    Operation,
    Reply,
    Request,
    decode_segment,
    encode,
    split_path,
)
from bqdispatch_provider.testing.standin.fields import below, fields_of, pick, pick_top
from bqdispatch_provider.testing.standin.permissions import Permissions
from bqdispatch_provider.testing.standin.storage_buckets import Buckets
from bqdispatch_provider.testing.standin.storage_conditions import Conditions, check_bucket
from bqdispatch_provider.testing.standin.storage_listing import Listing
from bqdispatch_provider.testing.standin.storage_media import UploadApi, media_reply
from bqdispatch_provider.testing.standin.storage_model import StoredObject, Version
from bqdispatch_provider.testing.standin.storage_objects import Objects, check_name
from bqdispatch_provider.testing.standin.storage_resources import (
    LIST_FIELDS,
    OBJECT_FIELDS,
    REWRITE_FIELDS,
    bucket_resource,
    object_reply,
    object_resource,
)


class StorageApi:
    """The methods of the API.

    :param buckets: the buckets.
    :param objects: their objects.
    :param permissions: permissions of the caller.
    """

    def __init__(self, buckets: Buckets, objects: Objects, permissions: Permissions) -> None:
        self._buckets = buckets
        self._objects = objects
        self._permissions = permissions
        self._uploads = UploadApi(buckets, objects)
        self.clear()
        self._calls: dict[tuple[str, str], tuple[str, Callable[..., Reply]]] = {
            ("POST", ""): ("storage.buckets.insert", self._bucket_insert),
            ("GET", ""): ("storage.buckets.list", self._bucket_list),
            ("GET", "*"): ("storage.buckets.get", self._bucket_get),
            ("PATCH", "*"): ("storage.buckets.patch", self._bucket_change),
            ("PUT", "*"): ("storage.buckets.update", self._bucket_change),
            ("DELETE", "*"): ("storage.buckets.delete", self._bucket_delete),
            ("GET", "*/o"): ("storage.objects.list", self._list),
            ("GET", "*/o/*"): ("storage.objects.get", self._get),
            ("PATCH", "*/o/*"): ("storage.objects.patch", self._change),
            ("PUT", "*/o/*"): ("storage.objects.update", self._change),
            ("DELETE", "*/o/*"): ("storage.objects.delete", self._delete),
            ("POST", "*/o/*/restore"): ("storage.objects.restore", self._restore),
            ("POST", "*/o/*/compose"): ("storage.objects.compose", self._compose),
            ("POST", "*/o/*/copyTo/b/*/o/*"): ("storage.objects.copy", self._copy),
            ("POST", "*/o/*/rewriteTo/b/*/o/*"): ("storage.objects.rewrite", self._rewrite),
        }

    def clear(self) -> None:
        """Remove all buckets, uploads and rewrites."""
        self._buckets.by_name.clear()
        self._uploads.clear()
        self._rewrites: dict[str, tuple[tuple[Any, ...], int]] = {}
        self.rewrite_calls = 1
        """Number of calls that a rewrite takes; more than one, as for a large object."""

    def find(self, request: Request) -> Operation | None:
        """Return the call that a request asks for.

        :param request: the request.
        :returns: the call; ``None`` if the path is not one of this API.
        """
        path = request.path
        if path == "/storage/v1/b" or path.startswith("/storage/v1/b/"):
            return self._json(request, path[14:])
        if path.startswith("/upload/storage/v1/b/"):
            return self._uploads.find(request, path[21:])
        if request.method not in ("GET", "HEAD"):
            return None
        if path.startswith("/download/storage/v1/b/"):
            shape, names = split_path(path[23:])
            return self._download(request, *names) if shape == "*/o/*" else None
        # Media by its public path ("Request endpoints", XML API), the only call of the XML API here.
        bucket, _, name = path[1:].partition("/")
        if not name or bucket not in self._buckets.by_name:
            return None
        return self._download(request, bucket, decode_segment(name))

    def _json(self, request: Request, rest: str) -> Operation | None:
        shape, names = split_path(rest)
        if shape == "*/iam/*" and names[1] == "testPermissions" and request.method == "GET":
            run = partial(self._test_permissions, request, names[0])
            return Operation("storage.buckets.testIamPermissions", run, ((names[0], ""),))
        if shape == "*/o/*" and request.method in ("GET", "HEAD") and request.one("alt") == "media":
            return self._download(request, *names)
        found = self._calls.get((request.method, shape))
        if found is None:
            return None
        call, answer = found
        targets = tuple(zip_longest(names[::2], names[1::2], fillvalue="")) or (("", ""),)
        return Operation(call, partial(answer, request, *names), targets, request.one("project") or "")

    # buckets

    def _bucket_insert(self, request: Request) -> Reply:
        body = request.json()
        if request.flag("enableObjectRetention"):
            body["objectRetention"] = {"mode": "Enabled"}
        bucket = self._buckets.create(str(body.pop("name", "")), request.one("project") or "", body)
        return Reply(200, bucket_resource(bucket, request.base))

    def _bucket_list(self, request: Request) -> Reply:
        prefix, project = request.one("prefix") or "", request.one("project")
        start = request.page_token()
        names = sorted(
            name
            for name, bucket in self._buckets.by_name.items()
            if name.startswith(prefix) and name >= start and (not project or bucket.project in ("standin", project))
        )
        limit = request.limit()
        body: Json = {"kind": "storage#buckets"}
        if names:
            body["items"] = [bucket_resource(self._buckets.by_name[name], request.base) for name in names[:limit]]
        if len(names) > limit:
            body["nextPageToken"] = encode(names[limit])
        return Reply(200, pick(body, fields_of(request)))

    def _bucket_get(self, request: Request, name: str) -> Reply:
        bucket = self._buckets.bucket(name)
        check_bucket(bucket, Conditions.of(request), reading=True)
        return Reply(200, pick(bucket_resource(bucket, request.base), fields_of(request)))

    def _bucket_change(self, request: Request, name: str) -> Reply:
        changes = {key: value for key, value in request.json().items() if key != "name"}
        bucket = self._buckets.change(name, Conditions.of(request), changes, whole=request.method == "PUT")
        return Reply(200, pick(bucket_resource(bucket, request.base), fields_of(request)))

    def _bucket_delete(self, request: Request, name: str) -> Reply:
        self._buckets.delete(name, Conditions.of(request))
        return Reply(204)

    def _test_permissions(self, request: Request, name: str) -> Reply:
        """Answer which permissions the caller has on a bucket ("Buckets: testIamPermissions")."""
        self._buckets.bucket(name)
        asked = request.query.get("permissions")
        if not asked:
            raise ApiError(400, "Required parameter: permissions", "required")
        body: Json = {"kind": "storage#testIamPermissionsResponse"}
        granted = [permission for permission in asked if self._permissions.granted(permission, name)]
        if granted:
            body["permissions"] = granted
        return Reply(200, body)

    # objects

    def _list(self, request: Request, bucket: str) -> Reply:
        listing = Listing(
            prefix=request.one("prefix") or "",
            delimiter=request.one("delimiter") or "",
            start=max((request.one("startOffset") or "", 0), _page_start(request)),
            end=request.one("endOffset"),
            limit=request.limit(),
            trailing=request.flag("includeTrailingDelimiter"),
            versions=request.flag("versions"),
            soft_deleted=request.flag("softDeleted"),
        )
        every = listing.versions or listing.soft_deleted
        if listing.versions and listing.soft_deleted:
            raise ApiError(400, "versions and softDeleted cannot be set together.", "invalidParameter")
        for name, asked in (
            ("matchGlob", request.one("matchGlob")),
            ("includeTrailingDelimiter with versions or softDeleted", every and listing.trailing),
        ):
            if asked:
                raise ApiError(501, f"The stand-in does not support {name}.")
        mask = fields_of(request, LIST_FIELDS)
        page = self._objects.page(bucket, listing)
        body: Json = {"kind": "storage#objects"}
        item_mask = below(mask, "items")
        if page.objects and item_mask != {}:
            body["items"] = [object_resource(stored, request.base, item_mask) for stored in page.objects]
        if page.prefixes:
            body["prefixes"] = page.prefixes
        if page.next_start is not None:
            body["nextPageToken"] = encode(f"{page.next_start[1]}/{page.next_start[0]}")
        return Reply(200, pick_top(body, mask))

    def _get(self, request: Request, bucket: str, name: str) -> Reply:
        if request.flag("softDeleted"):
            stored = self._objects.soft_deleted(bucket, name, request.number("generation"))
            Conditions.of(request).check(stored, reading=True)
        else:
            stored = self._objects.get(bucket, name, request.number("generation"), Conditions.of(request), reading=True)
        return object_reply(request, stored)

    def _change(self, request: Request, bucket: str, name: str) -> Reply:
        conditions, generation, whole = Conditions.of(request), request.number("generation"), request.method == "PUT"
        override = request.flag("overrideUnlockedRetention")
        changed = self._objects.change(
            bucket, name, generation, conditions, request.json(), whole=whole, override_retention=override
        )
        return object_reply(request, changed)

    def _delete(self, request: Request, bucket: str, name: str) -> Reply:
        self._objects.delete(bucket, name, request.number("generation"), Conditions.of(request))
        return Reply(204)

    def _restore(self, request: Request, bucket: str, name: str) -> Reply:
        for parameter in ("copySourceAcl", "restoreToken"):
            if request.one(parameter) not in (None, "false"):
                raise ApiError(501, f"The stand-in does not support {parameter}.")
        restored = self._objects.restore(bucket, name, request.number("generation"), Conditions.of(request))
        return object_reply(request, restored)

    def _copy(self, request: Request, source_bucket: str, source: str, bucket: str, name: str) -> Reply:
        mask = fields_of(request, OBJECT_FIELDS)
        stored = self._source(request, source_bucket, source)
        copied = self._objects.copy(stored, bucket, name, Conditions.of(request), request.json())
        return Reply(200, object_resource(copied, request.base, mask))

    def _source(self, request: Request, bucket: str, name: str) -> StoredObject:
        conditions = Conditions.of(request, "ifSource")
        return self._objects.get(bucket, name, request.number("sourceGeneration"), conditions)

    def _rewrite(self, request: Request, source_bucket: str, source: str, bucket: str, name: str) -> Reply:
        """Copy an object in :attr:`rewrite_calls` calls ("Objects: rewrite").

        A token is valid only for one generation of the source and one destination.
        """
        mask = fields_of(request, REWRITE_FIELDS)
        stored = self._source(request, source_bucket, source)
        conditions = Conditions.of(request)
        check_name(name)
        conditions.check(self._buckets.bucket(bucket).live(name))
        identity = (source_bucket, source, stored.generation, bucket, name)
        token, calls = request.one("rewriteToken"), 1
        if token is not None:
            known, before = self._rewrites.pop(token, (None, 0))
            if known != identity:
                raise ApiError(400, "The rewriteToken does not belong to this rewrite.", "invalidParameter")
            calls = before + 1
        size, needed = len(stored.content.data), self.rewrite_calls
        body: Json = {"kind": "storage#rewriteResponse", "objectSize": str(size)}
        if calls < needed:
            token = encode(f"{identity}/{calls}")
            self._rewrites[token] = (identity, calls)
            body |= {"done": False, "totalBytesRewritten": str(size * calls // needed), "rewriteToken": token}
        else:
            copied = self._objects.copy(stored, bucket, name, conditions, request.json())
            resource = object_resource(copied, request.base)
            body |= {"done": True, "totalBytesRewritten": str(size), "resource": resource}
        return Reply(200, pick(body, mask))

    def _compose(self, request: Request, bucket: str, name: str) -> Reply:
        return object_reply(request, self._objects.compose(bucket, name, request.json(), Conditions.of(request)))

    def _download(self, request: Request, bucket: str, name: str) -> Operation:
        run = partial(self._media, request, bucket, name)
        return Operation("storage.objects.get", run, ((bucket, name),), batchable=False)

    def _media(self, request: Request, bucket: str, name: str) -> Reply:
        if request.flag("softDeleted"):
            raise ApiError(400, "The media of a soft-deleted object cannot be read.", "invalid")
        stored = self._objects.get(bucket, name, request.number("generation"), Conditions.of(request), reading=True)
        return media_reply(request, stored)


def _page_start(request: Request) -> Version:
    generation, _, name = request.page_token().partition("/")
    if generation and not generation.isdecimal():
        raise ApiError(400, "Invalid pageToken.", "invalidParameter")
    return name, int(generation or 0)
