"""A stand-in Cloud Storage: the JSON API, and downloads by public path, over :class:`Buckets`."""

from __future__ import annotations

import base64
import gzip
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from itertools import zip_longest
from typing import Any, Final
from urllib.parse import quote

from bqdispatch_provider.testing.standin_api import (
    ApiError,
    Json,
    Mask,
    Operation,
    Reply,
    Request,
    below,
    boundary_of,
    compute,
    decode_segment,
    parse_json,
    pick,
    pick_top,
    rfc3339,
    split_path,
)
from bqdispatch_provider.testing.standin_buckets import (
    WRITABLE,
    Buckets,
    Upload,
    check_bucket,
    check_name,
    merge,
    writable,
)
from bqdispatch_provider.testing.standin_objects import Bucket, Conditions, Content, Listing, StoredObject, Version
from bqdispatch_provider.testing.standin_policies import retained_until

CHUNK: Final = 256 * 1024
"""What a chunk of a resumable upload must be a multiple of ("Resumable uploads")."""

_UNSET_OBJECT_FIELDS = "acl contexts customerEncryption isUnfinalized kmsKeyName owner restoreToken"
"""Fields that exist in the resource but that no object here has: a selection may name them."""


# ---- resources -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _quoted(name: str) -> str:
    return quote(name, safe="")


def _link(stored: StoredObject, base: str, root: str) -> str:
    return f"{base}{root}/b/{stored.bucket}/o/{_quoted(stored.name)}"


def etag(stored: StoredObject) -> str:
    """Changes with every generation and metageneration."""
    return base64.b64encode(f"{stored.generation}/{stored.metageneration}".encode()).decode()


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
    "timeCreated": lambda stored, base: rfc3339(stored.created),
    "updated": lambda stored, base: rfc3339(stored.updated),
    "timeFinalized": lambda stored, base: rfc3339(stored.created),
    "timeStorageClassUpdated": lambda stored, base: rfc3339(stored.created),
    "timeDeleted": lambda stored, base: _time(stored.noncurrent),
    "softDeleteTime": lambda stored, base: _time(stored.soft_deleted),
    "hardDeleteTime": lambda stored, base: _time(stored.hard_delete),
    "retentionExpirationTime": lambda stored, base: _time(retained_until(stored)),
    **{key: (lambda stored, base, key=key: stored.properties.get(key)) for key in WRITABLE},  # type: ignore[misc]
    "storageClass": lambda stored, base: stored.properties.get("storageClass", "STANDARD"),
}

OBJECT_FIELDS: Final[dict[str, Any]] = dict.fromkeys([*_OBJECT, *_UNSET_OBJECT_FIELDS.split()])
LIST_FIELDS: Final[dict[str, Any]] = {"kind": None, "nextPageToken": None, "prefixes": None, "items": OBJECT_FIELDS}
REWRITE_FIELDS: Final[dict[str, Any]] = {
    **dict.fromkeys(["kind", "totalBytesRewritten", "objectSize", "done", "rewriteToken"]),
    "resource": OBJECT_FIELDS,
}


def object_resource(stored: StoredObject, base: str, mask: Mask | None = None) -> Json:
    """The object as the API shows it.

    :param stored: the object.
    :param base: scheme and host for its links.
    :param mask: what of it is wanted, and computed; everything when left out.
    """
    if mask is None or "*" in mask:
        shown = {key: field(stored, base) for key, field in _OBJECT.items() if key not in WRITABLE}
        resource = {key: value for key, value in shown.items() if value is not None}
        return {**resource, "storageClass": "STANDARD", **stored.properties}
    return compute(_OBJECT, stored, base, mask)


def bucket_resource(bucket: Bucket, base: str) -> Json:
    """The bucket as the API shows it."""
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
        "etag": base64.b64encode(str(bucket.metageneration).encode()).decode(),
        "timeCreated": rfc3339(bucket.created),
        "updated": rfc3339(bucket.updated),
    }


# ---- the JSON API --------------------------------------------------------------------------------------------------


class StorageApi:
    """Recognises Cloud Storage requests and answers them from :class:`Buckets`."""

    def __init__(self, buckets: Buckets) -> None:
        self.buckets = buckets
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

    def find(self, request: Request) -> Operation | None:
        """The operation that the request asks for, or None when its path is not one of Cloud Storage's."""
        path = request.path
        if path == "/storage/v1/b" or path.startswith("/storage/v1/b/"):
            return self._json(request, path[14:])
        if path.startswith("/upload/storage/v1/b/"):
            return self._upload(request, path[21:])
        if request.method not in ("GET", "HEAD"):
            return None
        if path.startswith("/download/storage/v1/b/"):
            shape, names = split_path(path[23:])
            return self._download(request, *names) if shape == "*/o/*" else None
        # Media by its public path ("Request endpoints", XML API): the only call of that API that is known here.
        bucket, _, name = path[1:].partition("/")
        if not name or bucket not in self.buckets.buckets:
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
        run = partial(self._permitted, call, targets, partial(answer, request, *names))
        return Operation(call, run, targets, request.one("project") or "")

    def _permitted(self, call: str, targets: tuple[tuple[str, str], ...], run: Callable[[], Reply]) -> Reply:
        self.buckets.permissions.require_for(call, targets)
        return run()

    # buckets

    def _bucket_insert(self, request: Request) -> Reply:
        body = request.json()
        if request.flag("enableObjectRetention"):
            body["objectRetention"] = {"mode": "Enabled"}
        bucket = self.buckets.create_bucket(str(body.pop("name", "")), request.one("project") or "", body)
        return Reply(200, bucket_resource(bucket, request.base))

    def _bucket_list(self, request: Request) -> Reply:
        prefix, project = request.one("prefix") or "", request.one("project")
        start = _page_start(request)
        names = sorted(
            name
            for name, bucket in self.buckets.buckets.items()
            if name.startswith(prefix) and name >= start and (not project or bucket.project in ("standin", project))
        )
        limit = request.limit()
        body: Json = {"kind": "storage#buckets"}
        if names:
            body["items"] = [bucket_resource(self.buckets.buckets[name], request.base) for name in names[:limit]]
        if len(names) > limit:
            body["nextPageToken"] = _token(names[limit])
        return Reply(200, pick(body, request.fields()))

    def _bucket_get(self, request: Request, name: str) -> Reply:
        bucket = self.buckets.bucket(name)
        check_bucket(bucket, Conditions.of(request), reading=True)
        return Reply(200, pick(bucket_resource(bucket, request.base), request.fields()))

    def _bucket_change(self, request: Request, name: str) -> Reply:
        changes = {key: value for key, value in request.json().items() if key != "name"}
        bucket = self.buckets.change_bucket(name, Conditions.of(request), changes, whole=request.method == "PUT")
        return Reply(200, pick(bucket_resource(bucket, request.base), request.fields()))

    def _bucket_delete(self, request: Request, name: str) -> Reply:
        self.buckets.delete_bucket(name, Conditions.of(request))
        return Reply(204)

    def _test_permissions(self, request: Request, name: str) -> Reply:
        """Which of the asked permissions the caller has on the bucket ("Buckets: testIamPermissions")."""
        self.buckets.bucket(name)
        asked = request.query.get("permissions")
        if not asked:
            raise ApiError(400, "Required parameter: permissions", "required")
        body: Json = {"kind": "storage#testIamPermissionsResponse"}
        granted = [permission for permission in asked if self.buckets.permissions.granted(permission, name)]
        if granted:
            body["permissions"] = granted
        return Reply(200, body)

    # objects

    def _list(self, request: Request, bucket: str) -> Reply:
        listing = Listing(
            prefix=request.one("prefix") or "",
            delimiter=request.one("delimiter") or "",
            start=max((request.one("startOffset") or "", 0), _object_page_start(request)),
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
                raise ApiError(501, f"The stand-in does not know {name}.")
        mask = request.fields(LIST_FIELDS)
        page = self.buckets.page(bucket, listing)
        body: Json = {"kind": "storage#objects"}
        item_mask = below(mask, "items")
        if page.objects and item_mask != {}:
            body["items"] = [object_resource(stored, request.base, item_mask) for stored in page.objects]
        if page.prefixes:
            body["prefixes"] = page.prefixes
        if page.next_start is not None:
            body["nextPageToken"] = _object_token(page.next_start)
        return Reply(200, pick_top(body, mask))

    def _get(self, request: Request, bucket: str, name: str) -> Reply:
        if request.flag("softDeleted"):
            stored = self.buckets.soft_deleted(bucket, name, request.number("generation"))
            Conditions.of(request).check(stored, reading=True)
            return _object_reply(request, stored)
        stored = self.buckets.get(bucket, name, request.number("generation"), Conditions.of(request), reading=True)
        return _object_reply(request, stored)

    def _change(self, request: Request, bucket: str, name: str) -> Reply:
        conditions, generation, whole = Conditions.of(request), request.number("generation"), request.method == "PUT"
        override = request.flag("overrideUnlockedRetention")
        changed = self.buckets.change(
            bucket, name, generation, conditions, request.json(), whole=whole, override_retention=override
        )
        return _object_reply(request, changed)

    def _delete(self, request: Request, bucket: str, name: str) -> Reply:
        self.buckets.delete(bucket, name, request.number("generation"), Conditions.of(request))
        return Reply(204)

    def _restore(self, request: Request, bucket: str, name: str) -> Reply:
        for parameter in ("copySourceAcl", "restoreToken"):
            if request.one(parameter) not in (None, "false"):
                raise ApiError(501, f"The stand-in does not know {parameter}.")
        restored = self.buckets.restore(bucket, name, request.number("generation"), Conditions.of(request))
        return _object_reply(request, restored)

    def _copy(self, request: Request, source_bucket: str, source: str, bucket: str, name: str) -> Reply:
        mask = request.fields(OBJECT_FIELDS)
        stored = self._source(request, source_bucket, source)
        copied = self.buckets.copy(stored, bucket, name, Conditions.of(request), request.json())
        return Reply(200, object_resource(copied, request.base, mask))

    def _source(self, request: Request, bucket: str, name: str) -> StoredObject:
        conditions = Conditions.of(request, "ifSource")
        return self.buckets.get(bucket, name, request.number("sourceGeneration"), conditions)

    def _rewrite(self, request: Request, source_bucket: str, source: str, bucket: str, name: str) -> Reply:
        """Copy in as many calls as the control API asks for ("Objects: rewrite").

        A token stands for one source generation and one destination; with anything else it is refused.
        """
        mask = request.fields(REWRITE_FIELDS)
        stored = self._source(request, source_bucket, source)
        conditions = Conditions.of(request)
        check_name(name)
        conditions.check(self.buckets.bucket(bucket).live(name))
        identity = (source_bucket, source, stored.generation, bucket, name)
        token, calls = request.one("rewriteToken"), 1
        if token is not None:
            known, before = self.buckets.rewrites.pop(token, (None, 0))
            if known != identity:
                raise ApiError(400, "The rewriteToken does not belong to this rewrite.", "invalidParameter")
            calls = before + 1
        size, needed = len(stored.content.data), self.buckets.rewrite_calls
        body: Json = {"kind": "storage#rewriteResponse", "objectSize": str(size)}
        if calls < needed:
            token = base64.urlsafe_b64encode(f"{identity}/{calls}".encode()).decode()
            self.buckets.rewrites[token] = (identity, calls)
            body |= {"done": False, "totalBytesRewritten": str(size * calls // needed), "rewriteToken": token}
        else:
            copied = self.buckets.copy(stored, bucket, name, conditions, request.json())
            resource = object_resource(copied, request.base)
            body |= {"done": True, "totalBytesRewritten": str(size), "resource": resource}
        return Reply(200, pick(body, mask))

    def _compose(self, request: Request, bucket: str, name: str) -> Reply:
        return _object_reply(request, self.buckets.compose(bucket, name, request.json(), Conditions.of(request)))

    def _download(self, request: Request, bucket: str, name: str) -> Operation:
        call, targets = "storage.objects.get", ((bucket, name),)
        run = partial(self._permitted, call, targets, partial(self._media, request, bucket, name))
        return Operation(call, run, targets, batchable=False)

    def _media(self, request: Request, bucket: str, name: str) -> Reply:
        """The object's bytes, or a range of them, with the headers that clients check them by."""
        if request.flag("softDeleted"):
            raise ApiError(400, "The media of a soft-deleted object cannot be read.", "invalid")
        stored = self.buckets.get(bucket, name, request.number("generation"), Conditions.of(request), reading=True)
        data, properties = stored.content.data, stored.properties
        hashes = f"crc32c={stored.content.crc32c}"
        if stored.components is None:
            hashes += f",md5={stored.content.md5}"
        headers = {
            "Content-Type": properties.get("contentType") or "application/octet-stream",
            "Cache-Control": properties.get("cacheControl") or "no-cache, no-store, max-age=0, must-revalidate",
            "ETag": etag(stored),
            "Accept-Ranges": "bytes",
            "X-Goog-Generation": str(stored.generation),
            "X-Goog-Metageneration": str(stored.metageneration),
            "X-Goog-Hash": hashes,
            "X-Goog-Storage-Class": properties.get("storageClass", "STANDARD"),
            "X-Goog-Stored-Content-Encoding": properties.get("contentEncoding") or "identity",
            "X-Goog-Stored-Content-Length": str(len(data)),
        }
        for key, header in (
            ("contentEncoding", "Content-Encoding"),
            ("contentDisposition", "Content-Disposition"),
            ("contentLanguage", "Content-Language"),
        ):
            if properties.get(key):
                headers[header] = properties[key]
        if properties.get("contentEncoding") == "gzip" and "gzip" not in request.headers.get("accept-encoding", ""):
            # "Transcoding of gzip-compressed files": who cannot read it gets it unpacked, and always whole.
            del headers["Content-Encoding"]
            return Reply(200, gzip.decompress(data), headers)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if wanted is None or wanted.group() == "bytes=-":
            return Reply(200, data, headers)
        first, last = _range(wanted[1], wanted[2], len(data))
        if first > last:
            error = ApiError(416, "The requested range cannot be satisfied.").reply()
            error.headers["Content-Range"] = f"bytes */{len(data)}"
            return error
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Reply(206, data[first : last + 1], headers)

    # uploads

    def _upload(self, request: Request, rest: str) -> Operation | None:
        shape, names = split_path(rest)
        if shape != "*/o":
            return None
        bucket, session = names[0], request.one("upload_id")
        if session is not None:
            known = self.buckets.uploads.get(session)
            target = bucket, known.name if known else ""
            if request.method == "DELETE":
                return Operation("storage.uploads.delete", partial(self._cancel, session), (target,), batchable=False)
            return Operation("storage.uploads.put", partial(self._chunk, request, session), (target,), batchable=False)
        begin = {"media": self._simple, "multipart": self._multipart, "resumable": self._start}
        kind = request.one("uploadType") or ""
        if request.method != "POST" or kind not in begin:
            raise ApiError(
                400, "An upload is a POST with uploadType media, multipart or resumable.", "invalidParameter"
            )
        run, name = begin[kind](request, bucket)
        call, targets = "storage.objects.insert", ((bucket, name),)
        return Operation(call, partial(self._permitted, call, targets, run), targets, batchable=False)

    def _simple(self, request: Request, bucket: str) -> tuple[Callable[[], Reply], str]:
        return self._insertion(request, bucket, {}, request.body, request.headers.get("content-type"))

    def _multipart(self, request: Request, bucket: str) -> tuple[Callable[[], Reply], str]:
        parts = split_multipart(request.body, request.headers.get("content-type", ""))
        if len(parts) != 2:
            raise ApiError(400, "A multipart upload has two parts: metadata and media.", "badContent")
        (_, metadata), (headers, data) = parts
        return self._insertion(request, bucket, parse_json(metadata), data, headers.get("content-type"))

    def _insertion(
        self, request: Request, bucket: str, resource: Json, data: bytes, content_type: str | None
    ) -> tuple[Callable[[], Reply], str]:
        name, properties = _upload_target(request, resource, content_type)

        def run() -> Reply:
            content = Content(data)
            _check_hashes(content, resource, request.headers)
            return _object_reply(
                request, self.buckets.insert(bucket, name, content, properties, Conditions.of(request))
            )

        return run, name

    def _start(self, request: Request, bucket: str) -> tuple[Callable[[], Reply], str]:
        resource = request.json()
        content_type = request.headers.get("x-upload-content-type")
        name, properties = _upload_target(request, resource, content_type)

        def run() -> Reply:
            conditions = Conditions.of(request)
            conditions.check(self.buckets.bucket(bucket).live(name))
            check_name(name)
            upload = uuid.uuid4().hex
            self.buckets.uploads[upload] = Upload(bucket, name, properties, conditions, resource)
            location = f"{request.base}{request.path}?uploadType=resumable&upload_id={upload}"
            return Reply(200, None, {"Location": location, "X-GUploader-UploadID": upload})

        return run, name

    def _cancel(self, upload: str) -> Reply:
        if self.buckets.uploads.pop(upload, None) is None:
            raise ApiError(404, "No such upload.")
        return Reply(499)

    def _chunk(self, request: Request, identity: str) -> Reply:
        """Take a chunk, or tell how far the upload has come ("Resumable uploads")."""
        upload = self.buckets.uploads.get(identity)
        if upload is None:
            raise ApiError(404, "No such upload.")
        if upload.done is not None:
            return _object_reply(request, upload.done)
        text = request.headers.get("content-range")
        if text is None:
            upload.data[:] = request.body
            return self._finish(request, upload)
        wanted = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", text)
        if wanted is None:
            raise ApiError(400, f"Invalid Content-Range: {text}")
        if wanted[1] is not None:
            first = int(wanted[1])
            if first > len(upload.data) or int(wanted[2]) - first + 1 != len(request.body):
                raise ApiError(400, f"Content-Range {text} does not continue {len(upload.data)} bytes.")
            upload.data += request.body[len(upload.data) - first :]
        if wanted[3] != "*" and len(upload.data) == int(wanted[3]):
            return self._finish(request, upload)
        if wanted[3] != "*" and len(upload.data) > int(wanted[3]):
            raise ApiError(400, "More bytes than the upload's size.")
        # What is not a whole number of 256 KiB is not kept, and the client sends it again.
        del upload.data[len(upload.data) // CHUNK * CHUNK :]
        return Reply(308, None, {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {})

    def _finish(self, request: Request, upload: Upload) -> Reply:
        content = Content(bytes(upload.data))
        _check_hashes(content, upload.hashes, request.headers)
        stored = self.buckets.insert(upload.bucket, upload.name, content, upload.properties, upload.conditions)
        # A copy: a later patch must not show in the answer to a repeated last chunk.
        upload.done = replace(stored)
        upload.data = bytearray()
        return _object_reply(request, stored)


def split_multipart(body: bytes, content_type: str) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a multipart body: headers (lower-case names) and content, byte for byte.

    :param body: the body as sent.
    :param content_type: its ``Content-Type``, which names the boundary.
    :raises ApiError: 400, when the type has no boundary or the body does not hold it.
    """
    boundary = boundary_of(content_type)
    if boundary is None:
        raise ApiError(400, "The multipart body has no boundary.", "badContent")
    pieces = (b"\n" + body).split(b"\n--" + boundary.encode())
    if len(pieces) < 2:
        raise ApiError(400, "The multipart body does not hold its boundary.", "badContent")
    parts = []
    for text in pieces[1:]:
        if text.startswith(b"--"):
            break
        # Between the boundary and the headers there is just the line's end; before the next boundary its line break.
        piece = text[text.find(b"\n") + 1 :].removesuffix(b"\r")
        if piece.startswith((b"\r\n", b"\n")):
            head, content = b"", piece[piece.find(b"\n") + 1 :]
        else:
            ends = [(piece.find(mark), len(mark)) for mark in (b"\r\n\r\n", b"\n\n") if mark in piece]
            at, length = min(ends) if ends else (len(piece), 0)
            head, content = piece[:at], piece[at + length :]
        headers = {}
        for line in head.decode("latin-1").splitlines():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        parts.append((headers, content))
    return parts


def _object_reply(request: Request, stored: StoredObject) -> Reply:
    resource = object_resource(stored, request.base, request.fields(OBJECT_FIELDS))
    return Reply(200, resource, {"ETag": etag(stored)})


def _object_token(start: Version) -> str:
    return _token(f"{start[1]}/{start[0]}")


def _object_page_start(request: Request) -> Version:
    generation, _, name = _page_start(request).partition("/")
    if generation and not generation.isdecimal():
        raise ApiError(400, "Invalid pageToken.", "invalidParameter")
    return name, int(generation or 0)


def _token(start: str) -> str:
    # Where a page goes on after a rolled-up prefix need not be a name that UTF-8 can write.
    return base64.urlsafe_b64encode(start.encode(errors="surrogatepass")).decode()


def _page_start(request: Request) -> str:
    try:
        token = base64.b64decode(request.one("pageToken") or "", altchars=b"-_", validate=True)
        return token.decode(errors="surrogatepass")
    except ValueError:
        raise ApiError(400, "Invalid pageToken.", "invalidParameter") from None


def _range(first: str, last: str, size: int) -> tuple[int, int]:
    """First and last position of a Range header's ``first-last``; an unsatisfiable one comes back reversed."""
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) else (1, 0)
    return int(first), min(int(last), size - 1) if last else size - 1


def _upload_target(request: Request, resource: Json, content_type: str | None) -> tuple[str, Json]:
    """Name and properties of what is uploaded; parameters and the resource win over the media's own type."""
    name = request.one("name") or resource.get("name")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "An upload needs the object's name.", "required")
    properties = merge({}, writable(resource))
    if content_type:
        properties.setdefault("contentType", content_type)
    encoding = request.one("contentEncoding")
    if encoding:
        properties["contentEncoding"] = encoding
    return name, properties


def _check_hashes(content: Content, resource: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    """Refuse bytes that are not those whose checksum the client sent along."""
    expected: Json = {"crc32c": resource.get("crc32c"), "md5": resource.get("md5Hash")}
    for entry in headers.get("x-goog-hash", "").split(","):
        name, _, value = entry.strip().partition("=")
        if value:
            expected[name] = value
    for name, value in expected.items():
        if value and name in ("crc32c", "md5") and value != getattr(content, name):
            raise ApiError(400, f"Provided {name} {value} does not match the calculated {getattr(content, name)}.")
