"""Uploads to Cloud Storage (simple, multipart, resumable), and downloads (whole objects, ranges)."""

from __future__ import annotations

import gzip
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from bqdispatch_provider.testing.standin.api import (
    ApiError,
    Json,
    Operation,
    Reply,
    Request,
    parse_json,
    split_path,
)
from bqdispatch_provider.testing.standin.multipart import split_multipart
from bqdispatch_provider.testing.standin.storage_buckets import Buckets, merge
from bqdispatch_provider.testing.standin.storage_conditions import Conditions
from bqdispatch_provider.testing.standin.storage_model import Content, StoredObject
from bqdispatch_provider.testing.standin.storage_objects import Objects, check_name, writable
from bqdispatch_provider.testing.standin.storage_resources import etag, object_reply

CHUNK_UNIT_BYTES: Final = 256 * 1024
"""Size of which every chunk of a resumable upload, except the last, is a multiple ("Resumable uploads")."""


@dataclass(slots=True)
class Upload:
    """A resumable upload.

    :param bucket: name of the bucket.
    :param name: name of the object.
    :param properties: fields of its resource.
    :param conditions: preconditions, checked at the start and when the object is written.
    :param resource: resource that the client sent, with checksums of the bytes.
    :param data: bytes received so far.
    :param done: the object; ``None``: not written yet.
    """

    bucket: str
    name: str
    properties: Json
    conditions: Conditions
    resource: Json
    data: bytearray
    done: StoredObject | None = None


class UploadApi:
    """The methods for uploads.

    :param buckets: the buckets.
    :param objects: their objects.
    """

    def __init__(self, buckets: Buckets, objects: Objects) -> None:
        self._buckets = buckets
        self._objects = objects
        self._uploads: dict[str, Upload] = {}

    def clear(self) -> None:
        """Remove all uploads that are not complete."""
        self._uploads.clear()

    def find(self, request: Request, rest: str) -> Operation | None:
        """Return the call that a request asks for.

        :param request: the request.
        :param rest: path below ``/upload/storage/v1/b/``.
        :returns: the call; ``None`` if the path is not one for uploads.
        :raises ApiError: 400 if the type of upload is unknown.
        """
        shape, names = split_path(rest)
        if shape != "*/o":
            return None
        bucket, session = names[0], request.one("upload_id")
        if session is not None:
            known = self._uploads.get(session)
            target = bucket, known.name if known else ""
            if request.method == "DELETE":
                return Operation("storage.uploads.delete", partial(self._cancel, session), (target,), batchable=False)
            return Operation("storage.uploads.put", partial(self._chunk, request, session), (target,), batchable=False)
        kind = request.one("uploadType") or ""
        if request.method != "POST" or kind not in ("media", "multipart", "resumable"):
            message = "An upload is a POST with uploadType media, multipart or resumable."
            raise ApiError(400, message, "invalidParameter")
        resource, media, content_type = _sent(request, kind)
        name, properties = _upload_target(request, resource, content_type)
        upload = Upload(bucket, name, properties, Conditions.of(request), resource, bytearray(media))
        run = partial(self._start if kind == "resumable" else self._finish, request, upload)
        return Operation("storage.objects.insert", run, ((bucket, name),), batchable=False)

    def _start(self, request: Request, upload: Upload) -> Reply:
        upload.conditions.check(self._buckets.bucket(upload.bucket).live(upload.name))
        check_name(upload.name)
        session = uuid.uuid4().hex
        self._uploads[session] = upload
        location = f"{request.base}{request.path}?uploadType=resumable&upload_id={session}"
        return Reply(200, None, {"Location": location, "X-GUploader-UploadID": session})

    def _cancel(self, session: str) -> Reply:
        if self._uploads.pop(session, None) is None:
            raise ApiError(404, "No such upload.")
        return Reply(499)

    def _chunk(self, request: Request, session: str) -> Reply:
        """Take a chunk, or answer how many bytes have been received ("Resumable uploads")."""
        upload = self._uploads.get(session)
        if upload is None:
            raise ApiError(404, "No such upload.")
        if upload.done is not None:
            return object_reply(request, upload.done)
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
        if wanted[3] == str(len(upload.data)):
            return self._finish(request, upload)
        if wanted[3] != "*" and len(upload.data) > int(wanted[3]):
            raise ApiError(400, "More bytes than the upload's size.")
        # Bytes beyond a multiple of 256 KiB are dropped, and the client sends them again.
        del upload.data[len(upload.data) // CHUNK_UNIT_BYTES * CHUNK_UNIT_BYTES :]
        return Reply(308, None, {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {})

    def _finish(self, request: Request, upload: Upload) -> Reply:
        """Write the object of an upload."""
        content = Content(bytes(upload.data))
        _check_hashes(content, upload.resource, request.headers)
        stored = self._objects.insert(upload.bucket, upload.name, content, upload.properties, upload.conditions)
        # A copy, so that a later patch does not change the answer to a repeated last chunk.
        upload.done = replace(stored)
        upload.data = bytearray()
        return object_reply(request, stored)


def _sent(request: Request, kind: str) -> tuple[Json, bytes, str | None]:
    """Return resource, media, and type of the media that a request contains."""
    if kind == "media":
        return {}, request.body, request.headers.get("content-type")
    if kind == "resumable":
        return request.json(), b"", request.headers.get("x-upload-content-type")
    parts = split_multipart(request.body, request.headers.get("content-type", ""))
    if len(parts) != 2:
        raise ApiError(400, "A multipart upload has two parts: metadata and media.", "badContent")
    (_, metadata), (headers, media) = parts
    return parse_json(metadata), media, headers.get("content-type")


def _upload_target(request: Request, resource: Json, content_type: str | None) -> tuple[str, Json]:
    """Return name and fields of the object; parameters and resource have precedence over the type of the media."""
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


def _check_hashes(content: Content, resource: Json, headers: Mapping[str, str]) -> None:
    """Refuse bytes whose checksums differ from those that the client sent."""
    expected = {"crc32c": resource.get("crc32c"), "md5": resource.get("md5Hash")}
    sent = (entry.strip().partition("=") for entry in headers.get("x-goog-hash", "").split(","))
    expected |= {name: value for name, _, value in sent if value}
    for name, calculated in (("crc32c", content.crc32c), ("md5", content.md5)):
        if expected[name] and expected[name] != calculated:
            raise ApiError(400, f"Provided {name} {expected[name]} does not match the calculated {calculated}.")


def media_reply(request: Request, stored: StoredObject) -> Reply:
    """Return the bytes of an object, or the range that a call asks for, with the headers that clients check.

    :param request: the call.
    :param stored: the object.
    """
    data, headers = stored.content.data, _media_headers(stored)
    if stored.properties.get("contentEncoding") == "gzip" and "gzip" not in request.headers.get("accept-encoding", ""):
        # "Transcoding of gzip-compressed files": a client that does not accept gzip gets all bytes, decompressed.
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


def _media_headers(stored: StoredObject) -> dict[str, str]:
    properties = stored.properties
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
        "X-Goog-Stored-Content-Length": str(len(stored.content.data)),
    }
    for key, header in (
        ("contentEncoding", "Content-Encoding"),
        ("contentDisposition", "Content-Disposition"),
        ("contentLanguage", "Content-Language"),
    ):
        if properties.get(key):
            headers[header] = properties[key]
    return headers


def _range(first: str, last: str, size: int) -> tuple[int, int]:
    """Return first and last position of a range; first is greater than last if the range cannot be satisfied."""
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) else (1, 0)
    return int(first), min(int(last), size - 1) if last else size - 1
