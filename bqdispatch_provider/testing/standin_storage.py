"""A stand-in Cloud Storage: buckets and objects in memory, and the JSON API over them.

`Buckets` holds the state and its rules and knows nothing of HTTP; `StorageApi` turns requests into calls on it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import struct
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final
from urllib.parse import quote

import google_crc32c

from .standin_api import (
    ApiError,
    Clock,
    Json,
    Mask,
    Operation,
    Reply,
    Request,
    below,
    check_fields,
    decode_segment,
    parse_fields,
    parse_json,
    pick,
    rfc3339,
)

PAGE: Final = 1000
"""Most entries in one page of a list ("Objects: list", maxResults)."""
COMPOSE_SOURCES: Final = 32
"""Most sources of one call ("Composite objects")."""
NAME_BYTES: Final = 1024
"""Longest object name in UTF-8 ("About Cloud Storage objects", naming requirements)."""
CHUNK: Final = 256 * 1024
"""What a chunk of a resumable upload must be a multiple of ("Resumable uploads")."""

WRITABLE: Final = frozenset(
    (
        *("cacheControl", "contentDisposition", "contentEncoding", "contentLanguage", "contentType"),
        *("customTime", "eventBasedHold", "metadata", "retention", "storageClass", "temporaryHold"),
    )
)
"""What of an object's resource a caller may set ("Objects" resource representation)."""

_UNSET_OBJECT_FIELDS = (
    "acl contexts customerEncryption hardDeleteTime isUnfinalized kmsKeyName owner restoreToken"
    " retentionExpirationTime softDeleteTime timeDeleted"
)
"""Fields that exist in the resource but that no object here has: a selection may name them."""


class Content:
    """An object's bytes and their checksums, shared by all copies."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @cached_property
    def md5(self) -> str:
        """Base64 of the MD5 digest, as in ``md5Hash``."""
        return base64.b64encode(hashlib.md5(self.data, usedforsecurity=False).digest()).decode()

    @cached_property
    def crc32c(self) -> str:
        """Base64 of the big-endian CRC32C, as in ``crc32c``."""
        return base64.b64encode(struct.pack(">I", google_crc32c.value(self.data))).decode()


@dataclass(slots=True)
class StoredObject:
    """One generation of an object."""

    bucket: str
    name: str
    content: Content
    generation: int
    created: int
    """Milliseconds since the epoch, as is ``updated``."""
    updated: int
    properties: Json
    """What callers set: the names in WRITABLE."""
    metageneration: int = 1
    components: int | None = None
    """How many parts it was composed of; such an object has no MD5."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The preconditions of a call on one object ("Request preconditions")."""

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None

    @classmethod
    def of(cls, request: Request, prefix: str = "if") -> Conditions:
        """Those that the request's parameters give; ``ifSource`` is the other prefix."""
        if not request.query:
            return NO_CONDITIONS
        return cls(
            request.number(f"{prefix}GenerationMatch"),
            request.number(f"{prefix}GenerationNotMatch"),
            request.number(f"{prefix}MetagenerationMatch"),
            request.number(f"{prefix}MetagenerationNotMatch"),
        )

    def check(self, live: StoredObject | None, reading: bool = False) -> None:
        """Refuse the call unless ``live`` meets all of them.

        A condition on what is not there fails, save for generation 0, which stands for "no live object".
        A read whose not-match condition fails is answered with 304, every other failure is a 412.
        """
        if live is None:
            generation, metageneration = 0, None
        else:
            generation, metageneration = live.generation, live.metageneration
        if self.generation is not None and self.generation != generation:
            raise _condition_failed()
        if self.metageneration is not None and self.metageneration != metageneration:
            raise _condition_failed()
        if self.not_generation is not None and (live is None or self.not_generation == generation):
            raise _condition_failed(304 if reading else 412)
        if self.not_metageneration is not None and (live is None or self.not_metageneration == metageneration):
            raise _condition_failed(304 if reading else 412)


NO_CONDITIONS: Final = Conditions()


def _condition_failed(status: int = 412) -> ApiError:
    return ApiError(status, "At least one of the pre-conditions you specified did not hold.", "conditionNotMet")


class Bucket:
    """A bucket: its properties and its live objects, listed in the order of their names."""

    _FEW_CHANGES = 200
    """Up to this many changes between two lists are put into the sorted names one by one."""

    def __init__(self, name: str, project: str, properties: Json, now: int) -> None:
        self.name = name
        self.project = project
        self.properties = properties
        self.created = self.updated = now
        self.metageneration = 1
        self._live: dict[str, StoredObject] = {}
        self._sorted: list[str] = []
        self._added: set[str] = set()
        self._removed: set[str] = set()

    def __len__(self) -> int:
        return len(self._live)

    def live(self, name: str) -> StoredObject | None:
        """The object's live generation."""
        return self._live.get(name)

    def put(self, stored: StoredObject) -> None:
        """Make it the live generation of its name."""
        name = stored.name
        if name not in self._live:
            if name in self._removed:
                self._removed.remove(name)
            else:
                self._added.add(name)
        self._live[name] = stored

    def remove(self, name: str) -> None:
        """Leave nothing live under that name."""
        del self._live[name]
        if name in self._added:
            self._added.remove(name)
        else:
            self._removed.add(name)

    def names(self) -> list[str]:
        """All names, sorted; code points sort as UTF-8 does, which is the service's order.

        Brought up to date only here, so that seeding many objects costs one sort.
        """
        if len(self._added) + len(self._removed) > self._FEW_CHANGES:
            self._sorted = sorted(self._live)
        else:
            for name in self._removed:
                del self._sorted[bisect_left(self._sorted, name)]
            for name in self._added:
                insort(self._sorted, name)
        self._added.clear()
        self._removed.clear()
        return self._sorted


@dataclass(slots=True)
class Page:
    """One page of a list."""

    objects: list[StoredObject] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_start: str | None = None
    """The smallest name that the next page may hold."""


@dataclass(slots=True)
class Upload:
    """A resumable upload that has been started."""

    bucket: str
    name: str
    properties: Json
    conditions: Conditions
    hashes: Mapping[str, Any]
    data: bytearray = field(default_factory=bytearray)
    done: StoredObject | None = None


class Buckets:
    """All buckets, and what may be done with their objects. Raises `ApiError` for what the service refuses."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rewrite_calls = 1
        """How many calls a rewrite takes; more than one stands for a large object."""
        self._last_generation = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything but the last generation, so that generations keep growing."""
        self.buckets: dict[str, Bucket] = {}
        self.uploads: dict[str, Upload] = {}
        self.rewrites: dict[str, tuple[tuple[Any, ...], int]] = {}
        self.rewrite_calls = 1

    def bucket(self, name: str) -> Bucket:
        """The bucket of that name, or a 404."""
        try:
            return self.buckets[name]
        except KeyError:
            raise ApiError(404, "The specified bucket does not exist.") from None

    def create_bucket(self, name: str, project: str, properties: Json | None = None) -> Bucket:
        """A new, empty bucket; names are checked as far as the service's rules are simple ("About buckets")."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", name):
            raise ApiError(400, f"Invalid bucket name: {name!r}")
        if name in self.buckets:
            raise ApiError(409, f"A bucket named {name} exists already.")
        bucket = self.buckets[name] = Bucket(name, project, properties or {}, self.clock.millis())
        return bucket

    def delete_bucket(self, name: str, conditions: Conditions) -> None:
        """Remove an empty bucket."""
        bucket = self.bucket(name)
        check_bucket(bucket, conditions)
        if len(bucket):
            raise ApiError(409, "The bucket you tried to delete is not empty.")
        del self.buckets[name]

    def get(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> StoredObject:
        """The live object, to be read."""
        stored = self._existing(bucket, name, generation)
        if conditions is not NO_CONDITIONS:
            conditions.check(stored, reading=True)
        return stored

    def insert(
        self,
        bucket: str,
        name: str,
        data: bytes | Content,
        properties: Json,
        conditions: Conditions,
        *,
        components: int | None = None,
        created: float | None = None,
    ) -> StoredObject:
        """A new live generation.

        Args:
            properties: taken over as they are: not shared with the caller afterwards.
            created: when it was created, in seconds since the epoch; now when left out.
        """
        home = self.bucket(bucket)
        live = home.live(name)
        if live is None:
            check_name(name)
        conditions.check(live)
        now = self.clock.now() if created is None else created
        content = data if isinstance(data, Content) else Content(data)
        millis = int(now * 1000)
        stored = StoredObject(bucket, name, content, self._generation(), millis, millis, properties)
        stored.components = components
        home.put(stored)
        return stored

    def change(
        self, bucket: str, name: str, generation: int | None, conditions: Conditions, body: Json, *, whole: bool
    ) -> StoredObject:
        """New metadata under the same generation: all of it (``whole``) or what the body names, null removing."""
        stored = self._existing(bucket, name, generation)
        conditions.check(stored)
        changes = {key: value for key, value in body.items() if key in WRITABLE}
        properties = {} if whole else stored.properties
        # Replaced, never changed in place: copies share the old dictionary.
        stored.properties = _merge(properties, changes)
        stored.metageneration += 1
        stored.updated = self.clock.millis()
        return stored

    def delete(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> None:
        """Remove the live generation."""
        stored = self._existing(bucket, name, generation)
        conditions.check(stored)
        self.buckets[bucket].remove(name)

    def copy(
        self,
        source: StoredObject,
        bucket: str,
        name: str,
        conditions: Conditions,
        body: Json | None = None,
    ) -> StoredObject:
        """The source's bytes as a new generation elsewhere.

        Args:
            body: the destination's resource; what it sets replaces all of the source's metadata. One that sets
                nothing (clients send empty ones, or just the name) counts as none, and the metadata is carried over.
        """
        settings = {key: value for key, value in (body or {}).items() if key in WRITABLE}
        properties = _merge({}, settings) if settings else source.properties
        return self.insert(bucket, name, source.content, properties, conditions, components=source.components)

    def source(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> StoredObject:
        """The object to copy from: reading it, but a failed condition is always a 412."""
        stored = self._existing(bucket, name, generation)
        conditions.check(stored)
        return stored

    def compose(self, bucket: str, name: str, body: Json, conditions: Conditions) -> StoredObject:
        """One object out of 1 to 32 others of the same bucket ("Objects: compose")."""
        self.bucket(bucket)
        sources = body.get("sourceObjects") or []
        if not isinstance(sources, list) or not 1 <= len(sources) <= COMPOSE_SOURCES:
            raise ApiError(400, f"The number of source components must be 1 to {COMPOSE_SOURCES}.")
        parts = []
        for entry in sources:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise ApiError(400, "Every source object needs a name.")
            wanted = (entry.get("objectPreconditions") or {}).get("ifGenerationMatch")
            condition = Conditions(generation=int(wanted)) if wanted is not None else NO_CONDITIONS
            generation = int(entry["generation"]) if entry.get("generation") is not None else None
            parts.append(self.source(bucket, entry["name"], generation, condition))
        settings = {key: value for key, value in (body.get("destination") or {}).items() if key in WRITABLE}
        data = b"".join(part.content.data for part in parts)
        count = sum(part.components or 1 for part in parts)
        return self.insert(bucket, name, data, _merge({}, settings), conditions, components=count)

    def page(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        start: str = "",
        end: str | None = None,
        limit: int = PAGE,
        trailing: bool = False,
    ) -> Page:
        """A page of the live objects whose names begin with ``prefix``, in order.

        Args:
            delimiter: names that hold it after the prefix are rolled up into one entry of ``prefixes``.
            start: first name (inclusive).
            end: first name that is no longer wanted.
            trailing: whether a name that ends with its first delimiter is also listed as an object.
        """
        home = self.bucket(bucket)
        names = home.names()
        at = bisect_left(names, max(prefix, start))
        stop = bisect_left(names, successor(prefix)) if prefix else len(names)
        if end:
            stop = min(stop, bisect_left(names, end))
        page = Page()
        if not delimiter:
            last = min(stop, at + limit)
            live = home._live
            page.objects = [live[name] for name in names[at:last]]
            if last < stop:
                page.next_start = names[last]
            return page
        while at < stop:
            name = names[at]
            cut = name.find(delimiter, len(prefix))
            if len(page.objects) + len(page.prefixes) >= limit:
                page.next_start = name
                break
            if cut < 0:
                page.objects.append(home._live[name])
                at += 1
                continue
            rolled = name[: cut + len(delimiter)]
            page.prefixes.append(rolled)
            if trailing and name == rolled:
                page.objects.append(home._live[name])
            at = bisect_left(names, successor(rolled), at)
        return page

    def seed(self, bucket: str, objects: Iterable[Json]) -> list[int]:
        """Many objects at once, the bucket too when it is missing; answers their generations."""
        home = self.buckets.get(bucket) or self.create_bucket(bucket, "standin")
        prepared = []
        for entry in objects:
            name = entry.get("name")
            if not isinstance(name, str):
                raise ApiError(400, "Every object needs a name.")
            check_name(name)
            properties = {key: entry[key] for key in ("contentType", "metadata") if entry.get(key) is not None}
            prepared.append((name, Content(str(entry.get("content") or "").encode()), properties, entry))
        now = self.clock.now()
        generations = []
        for name, content, properties, entry in prepared:
            millis = int(float(entry.get("timeCreated", now)) * 1000)
            stored = StoredObject(bucket, name, content, self._generation(), millis, millis, properties)
            home.put(stored)
            generations.append(stored.generation)
        return generations

    def _existing(self, bucket: str, name: str, generation: int | None) -> StoredObject:
        stored = self.bucket(bucket).live(name)
        if stored is None or (generation is not None and generation != stored.generation):
            suffix = "" if generation is None else f"#{generation}"
            raise ApiError(404, f"No such object: {bucket}/{name}{suffix}")
        return stored

    def _generation(self) -> int:
        self._last_generation = max(self._last_generation + 1, int(self.clock.now() * 1_000_000))
        return self._last_generation


def check_name(name: str) -> None:
    """Refuse what the service refuses as an object's name ("About Cloud Storage objects")."""
    if not 1 <= len(name) <= NAME_BYTES or len(name.encode()) > NAME_BYTES:
        raise ApiError(400, f"The name of an object must have 1 to {NAME_BYTES} bytes in UTF-8.")
    if "\r" in name or "\n" in name:
        raise ApiError(400, "The name of an object must not contain line breaks.")
    if name in (".", "..") or name.startswith(".well-known/acme-challenge/"):
        raise ApiError(400, f"Disallowed object name: {name!r}")


def check_bucket(bucket: Bucket, conditions: Conditions, reading: bool = False) -> None:
    """Apply a bucket's metageneration conditions."""
    if conditions.metageneration is not None and conditions.metageneration != bucket.metageneration:
        raise _condition_failed()
    if conditions.not_metageneration is not None and conditions.not_metageneration == bucket.metageneration:
        raise _condition_failed(304 if reading else 412)


def successor(prefix: str) -> str:
    """The smallest string above everything that begins with ``prefix``."""
    while prefix and prefix[-1] == "\U0010ffff":
        prefix = prefix[:-1]
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\U0010ffff" * (NAME_BYTES + 1)


def _merge(properties: Mapping[str, Any], changes: Mapping[str, Any]) -> Json:
    """A patch as JSON merge patch has it: null removes, and metadata is patched key by key."""
    merged = dict(properties)
    for key, value in changes.items():
        if key == "metadata" and isinstance(value, dict):
            value = _merge(merged.get("metadata") or {}, {k: v if v is None else str(v) for k, v in value.items()})
            value = value or None
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


# ---- resources -----------------------------------------------------------------------------------------------------


def _link(stored: StoredObject, base: str, root: str) -> str:
    return f"{base}{root}/b/{stored.bucket}/o/{quote(stored.name, safe='')}"


def etag(stored: StoredObject) -> str:
    """Changes with every generation and metageneration."""
    return base64.b64encode(f"{stored.generation}/{stored.metageneration}".encode()).decode()


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
    """The object as the API shows it; with a mask only what it selects is computed."""
    if mask is None or "*" in mask:
        mask = dict.fromkeys(_OBJECT)
    resource = {}
    for key, sub in mask.items():
        compute = _OBJECT.get(key)
        value = compute(stored, base) if compute is not None else None
        if value is not None:
            resource[key] = value if sub is None else pick(value, sub)
    return resource


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
    """Recognises Cloud Storage requests and answers them from `Buckets`."""

    def __init__(self, buckets: Buckets) -> None:
        self.buckets = buckets

    def find(self, request: Request) -> Operation | None:
        """The operation that the request asks for, or None when its path is not one of Cloud Storage's."""
        path = request.path
        if path.startswith("/storage/v1/b"):
            return self._json(request, path[13:])
        if path.startswith("/upload/storage/v1/b/"):
            return self._upload(request, path[21:])
        if path.startswith("/download/storage/v1/b/"):
            parts = path[23:].split("/")
            if len(parts) == 3 and parts[1] == "o" and request.method in ("GET", "HEAD"):
                return self._download(request, decode_segment(parts[0]), decode_segment(parts[2]))
            return None
        # Media by its public path ("Request endpoints", XML API): the only call of that API that is known here.
        bucket, slash, name = path[1:].partition("/")
        if slash and name and request.method in ("GET", "HEAD") and bucket in self.buckets.buckets:
            return self._download(request, bucket, decode_segment(name))
        return None

    def _json(self, request: Request, rest: str) -> Operation | None:
        method = request.method
        if not rest or rest == "/":
            if method == "POST":
                return Operation("storage.buckets.insert", partial(self._bucket_insert, request))
            if method == "GET":
                return Operation(
                    "storage.buckets.list", partial(self._bucket_list, request), project=request.one("project") or ""
                )
            return None
        parts = [decode_segment(part) for part in rest[1:].split("/")]
        bucket = parts[0]
        if len(parts) == 1:
            return self._bucket_call(request, bucket)
        if parts[1] != "o":
            return None
        if len(parts) == 2:
            if method != "GET":
                return None
            return Operation("storage.objects.list", partial(self._list, request, bucket), ((bucket, ""),))
        name = parts[2]
        if len(parts) == 3:
            return self._object_call(request, bucket, name)
        if method == "POST" and len(parts) == 4 and parts[3] == "compose":
            return Operation(
                "storage.objects.compose", partial(self._compose, request, bucket, name), ((bucket, name),)
            )
        if method == "POST" and len(parts) == 8 and parts[4] == "b" and parts[6] == "o":
            targets = ((bucket, name), (parts[5], parts[7]))
            if parts[3] == "copyTo":
                return Operation("storage.objects.copy", partial(self._copy, request, *targets), targets)
            if parts[3] == "rewriteTo":
                return Operation("storage.objects.rewrite", partial(self._rewrite, request, *targets), targets)
        return None

    def _bucket_call(self, request: Request, bucket: str) -> Operation | None:
        known: dict[str, tuple[str, Callable[[], Reply]]] = {
            "GET": ("get", partial(self._bucket_get, request, bucket)),
            "PATCH": ("patch", partial(self._bucket_change, request, bucket, False)),
            "PUT": ("update", partial(self._bucket_change, request, bucket, True)),
            "DELETE": ("delete", partial(self._bucket_delete, request, bucket)),
        }
        if request.method not in known:
            return None
        verb, run = known[request.method]
        return Operation(f"storage.buckets.{verb}", run, ((bucket, ""),))

    def _object_call(self, request: Request, bucket: str, name: str) -> Operation | None:
        targets = ((bucket, name),)
        match request.method:
            case "DELETE":
                return Operation("storage.objects.delete", partial(self._delete, request, bucket, name), targets)
            case "GET" | "HEAD" if request.one("alt") == "media":
                return self._download(request, bucket, name)
            case "GET":
                return Operation("storage.objects.get", partial(self._get, request, bucket, name), targets)
            case "PATCH":
                run = partial(self._change, request, bucket, name, False)
                return Operation("storage.objects.patch", run, targets)
            case "PUT":
                run = partial(self._change, request, bucket, name, True)
                return Operation("storage.objects.update", run, targets)
        return None

    # buckets

    def _bucket_insert(self, request: Request) -> Reply:
        body = request.json()
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
        limit = _limit(request)
        body: Json = {"kind": "storage#buckets"}
        if names:
            body["items"] = [bucket_resource(self.buckets.buckets[name], request.base) for name in names[:limit]]
        if len(names) > limit:
            body["nextPageToken"] = _token(names[limit])
        return Reply(200, pick(body, _fields(request)))

    def _bucket_get(self, request: Request, name: str) -> Reply:
        bucket = self.buckets.bucket(name)
        check_bucket(bucket, Conditions.of(request), reading=True)
        return Reply(200, pick(bucket_resource(bucket, request.base), _fields(request)))

    def _bucket_change(self, request: Request, name: str, whole: bool) -> Reply:
        bucket = self.buckets.bucket(name)
        check_bucket(bucket, Conditions.of(request))
        changes = {key: value for key, value in request.json().items() if key != "name"}
        bucket.properties = _merge({} if whole else bucket.properties, changes)
        bucket.metageneration += 1
        bucket.updated = self.buckets.clock.millis()
        return Reply(200, pick(bucket_resource(bucket, request.base), _fields(request)))

    def _bucket_delete(self, request: Request, name: str) -> Reply:
        self.buckets.delete_bucket(name, Conditions.of(request))
        return Reply(204)

    # objects

    def _list(self, request: Request, bucket: str) -> Reply:
        for name in ("versions", "softDeleted"):
            if request.flag(name):
                raise ApiError(501, f"The stand-in does not know {name}.")
        if request.one("matchGlob"):
            raise ApiError(501, "The stand-in does not know matchGlob.")
        mask = _fields(request, LIST_FIELDS)
        prefix = request.one("prefix") or ""
        page = self.buckets.page(
            bucket,
            prefix=prefix,
            delimiter=request.one("delimiter") or "",
            start=max(request.one("startOffset") or "", _page_start(request)),
            end=request.one("endOffset"),
            limit=_limit(request),
            trailing=request.flag("includeTrailingDelimiter"),
        )
        body: Json = {"kind": "storage#objects"}
        item_mask = below(mask, "items")
        if page.objects and item_mask != {}:
            body["items"] = [object_resource(stored, request.base, item_mask) for stored in page.objects]
        if page.prefixes:
            body["prefixes"] = page.prefixes
        if page.next_start is not None:
            body["nextPageToken"] = _token(page.next_start)
        if mask is not None and "*" not in mask:
            body = {key: value for key, value in body.items() if key in mask}
        return Reply(200, body)

    def _get(self, request: Request, bucket: str, name: str) -> Reply:
        stored = self.buckets.get(bucket, name, request.number("generation"), Conditions.of(request))
        return _object_reply(request, stored)

    def _change(self, request: Request, bucket: str, name: str, whole: bool) -> Reply:
        conditions, generation = Conditions.of(request), request.number("generation")
        return _object_reply(
            request, self.buckets.change(bucket, name, generation, conditions, request.json(), whole=whole)
        )

    def _delete(self, request: Request, bucket: str, name: str) -> Reply:
        self.buckets.delete(bucket, name, request.number("generation"), Conditions.of(request))
        return Reply(204)

    def _copy(self, request: Request, source: tuple[str, str], target: tuple[str, str]) -> Reply:
        mask = _fields(request, OBJECT_FIELDS)
        stored = self._source(request, source)
        copied = self.buckets.copy(stored, *target, Conditions.of(request), request.json())
        return Reply(200, object_resource(copied, request.base, mask))

    def _source(self, request: Request, source: tuple[str, str]) -> StoredObject:
        return self.buckets.source(*source, request.number("sourceGeneration"), Conditions.of(request, "ifSource"))

    def _rewrite(self, request: Request, source: tuple[str, str], target: tuple[str, str]) -> Reply:
        """Copy in as many calls as the control API asks for ("Objects: rewrite").

        A token stands for one source generation and one destination; with anything else it is refused.
        """
        mask = _fields(request, REWRITE_FIELDS)
        stored = self._source(request, source)
        conditions = Conditions.of(request)
        self.buckets.bucket(target[0])
        check_name(target[1])
        conditions.check(self.buckets.bucket(target[0]).live(target[1]))
        identity = (source, target, stored.generation)
        token, calls = request.one("rewriteToken"), 1
        if token is not None:
            known, before = self.buckets.rewrites.pop(token, (None, 0))
            if known != identity:
                raise ApiError(400, "The rewriteToken does not belong to this rewrite.", "invalidParameter")
            calls = before + 1
        size, needed = len(stored.content.data), self.buckets.rewrite_calls
        body: Json = {"kind": "storage#rewriteResponse", "objectSize": str(size)}
        if calls < needed:
            token = base64.urlsafe_b64encode(f"{stored.generation}/{calls}/{target}".encode()).decode()
            self.buckets.rewrites[token] = (identity, calls)
            body |= {"done": False, "totalBytesRewritten": str(size * calls // needed), "rewriteToken": token}
        else:
            copied = self.buckets.copy(stored, *target, conditions, request.json())
            resource = object_resource(copied, request.base)
            body |= {"done": True, "totalBytesRewritten": str(size), "resource": resource}
        return Reply(200, pick(body, mask))

    def _compose(self, request: Request, bucket: str, name: str) -> Reply:
        return _object_reply(request, self.buckets.compose(bucket, name, request.json(), Conditions.of(request)))

    def _download(self, request: Request, bucket: str, name: str) -> Operation:
        return Operation(
            "storage.objects.get", partial(self._media, request, bucket, name), ((bucket, name),), batchable=False
        )

    def _media(self, request: Request, bucket: str, name: str) -> Reply:
        """The object's bytes, or a range of them, with the headers that clients check them by."""
        stored = self.buckets.get(bucket, name, request.number("generation"), Conditions.of(request))
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
        parts = rest.split("/")
        if len(parts) != 2 or parts[1] != "o":
            return None
        bucket, upload = decode_segment(parts[0]), request.one("upload_id")
        if upload is not None:
            known = self.buckets.uploads.get(upload)
            targets = ((bucket, known.name if known else ""),)
            if request.method == "DELETE":
                return Operation("storage.uploads.delete", partial(self._cancel, upload), targets, batchable=False)
            return Operation("storage.uploads.put", partial(self._chunk, request, upload), targets, batchable=False)
        if request.method != "POST":
            return None
        kinds = {"media": self._simple, "multipart": self._multipart, "resumable": self._start}
        kind = kinds.get(request.one("uploadType") or "")
        if kind is None:
            raise ApiError(400, "uploadType must be media, multipart or resumable.", "invalidParameter")
        run, name = kind(request, bucket)
        return Operation("storage.objects.insert", run, ((bucket, name),), batchable=False)

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
            identity = f"{bucket}/{name}/{len(self.buckets.uploads)}/{self.buckets.clock.now()}"
            upload = hashlib.sha256(identity.encode()).hexdigest()
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

    Raises:
        ApiError: 400, when the type has no boundary or the body does not hold it.
    """
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    if found is None:
        raise ApiError(400, "The multipart body has no boundary.", "badContent")
    pieces = (b"\n" + body).split(b"\n--" + found[1].encode())
    if len(pieces) < 2:
        raise ApiError(400, "The multipart body does not hold its boundary.", "badContent")
    parts = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            break
        # Between the boundary and the headers there is just the line's end; before the next boundary its line break.
        piece = piece[piece.find(b"\n") + 1 :].removesuffix(b"\r")
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
    resource = object_resource(stored, request.base, _fields(request, OBJECT_FIELDS))
    return Reply(200, resource, {"ETag": etag(stored)})


def _fields(request: Request, known: Mapping[str, Any] | None = None) -> Mask | None:
    text = request.one("fields")
    if not text:
        return None
    mask = parse_fields(text)
    if known is not None:
        check_fields(mask, known)
    return mask


def _limit(request: Request) -> int:
    wanted = request.number("maxResults")
    if wanted is not None and wanted < 1:
        raise ApiError(400, "maxResults must be positive.", "invalidParameter")
    return min(wanted or PAGE, PAGE)


def _token(start: str) -> str:
    return base64.urlsafe_b64encode(start.encode()).decode()


def _page_start(request: Request) -> str:
    try:
        return base64.urlsafe_b64decode(request.one("pageToken") or "").decode()
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
    properties = _merge({}, {key: value for key, value in resource.items() if key in WRITABLE})
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
