"""Buckets and objects in memory, and the rules of Cloud Storage about them; knows nothing of HTTP."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import google_crc32c

from bqdispatch_provider.testing.standin_api import PAGE, ApiError, Clock, Json, Request

COMPOSE_SOURCES: Final = 32
"""Most sources of one call ("Composite objects")."""
NAME_BYTES: Final = 1024
"""Longest object name in UTF-8 ("About Cloud Storage objects", naming requirements)."""

SEED: Final = frozenset(("name", "content", "contentType", "metadata", "timeCreated"))
"""What may be said of an object that is seeded."""

WRITABLE: Final = frozenset(
    (
        *("cacheControl", "contentDisposition", "contentEncoding", "contentLanguage", "contentType"),
        *("customTime", "eventBasedHold", "metadata", "retention", "storageClass", "temporaryHold"),
    )
)
"""What of an object's resource a caller may set ("Objects" resource representation)."""


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
    """One generation of an object.

    :param bucket: the bucket's name.
    :param name: the object's name.
    :param content: its bytes.
    :param generation: grows with every object that is written anywhere.
    :param created: when this generation was written, in milliseconds since the epoch.
    :param updated: when its metadata was last changed, in milliseconds since the epoch.
    :param properties: what callers set: the names in ``WRITABLE``.
    :param metageneration: counts the changes of its metadata, from 1.
    :param components: how many parts it was composed of; such an object has no MD5. ``None``: it was not composed.
    """

    bucket: str
    name: str
    content: Content
    generation: int
    created: int
    updated: int
    properties: Json
    metageneration: int = 1
    components: int | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """The preconditions of a call on one object ("Request preconditions"); ``None``: not asked for.

    :param generation: the live generation, 0 for "no live object".
    :param not_generation: what the live generation must not be.
    :param metageneration: the live object's metageneration.
    :param not_metageneration: what that must not be.
    """

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None

    @classmethod
    def of(cls, request: Request, prefix: str = "if") -> Conditions:
        """Those that a request's parameters give.

        :param request: the call.
        :param prefix: what the parameters' names begin with: ``if``, or ``ifSource`` for the object to copy from.
        """
        if not request.query:
            return NO_CONDITIONS
        return cls(
            request.number(f"{prefix}GenerationMatch"),
            request.number(f"{prefix}GenerationNotMatch"),
            request.number(f"{prefix}MetagenerationMatch"),
            request.number(f"{prefix}MetagenerationNotMatch"),
        )

    def check(self, live: StoredObject | None, reading: bool = False) -> None:
        """Refuse the call unless the live object meets all of them.

        A condition on what is not there fails, save for generation 0, which stands for "no live object".

        :param live: the live object; ``None`` when there is none.
        :param reading: whether the call reads it: then a not-match condition that fails is a 304.
        :raises ApiError: 412, or 304.
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
    """A bucket: its properties and its live objects, listed in the order of their names.

    :attr:`objects` is to be read only; :meth:`put` and :meth:`remove` keep the order along with it.

    :param name: the bucket's name.
    :param project: the project that it was created in.
    :param properties: what its creator set.
    :param now: the time, in milliseconds since the epoch.
    """

    _FEW_CHANGES = 200
    """Up to this many changes between two lists are put into the sorted names one by one."""

    def __init__(self, name: str, project: str, properties: Json, now: int) -> None:
        self.name = name
        self.project = project
        self.properties = properties
        self.created = self.updated = now
        self.metageneration = 1
        self.objects: dict[str, StoredObject] = {}
        self._sorted: list[str] = []
        self._added: set[str] = set()
        self._removed: set[str] = set()

    def live(self, name: str) -> StoredObject | None:
        """The object's live generation."""
        return self.objects.get(name)

    def put(self, stored: StoredObject) -> None:
        """Make it the live generation of its name."""
        name = stored.name
        if name not in self.objects:
            if name in self._removed:
                self._removed.remove(name)
            else:
                self._added.add(name)
        self.objects[name] = stored

    def remove(self, name: str) -> None:
        """Leave nothing live under that name."""
        del self.objects[name]
        if name in self._added:
            self._added.remove(name)
        else:
            self._removed.add(name)

    def names(self) -> list[str]:
        """All names, sorted; code points sort as UTF-8 does, which is the service's order.

        Brought up to date only here, so that seeding many objects costs one sort.
        """
        if len(self._added) + len(self._removed) > self._FEW_CHANGES:
            self._sorted = sorted(self.objects)
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
    """One page of a list.

    :param objects: in the order of their names.
    :param prefixes: what names were rolled up into.
    :param next_start: the smallest name that the next page may hold: just above the last entry, so that nothing new is
        left out. ``None``: this page is the last.
    """

    objects: list[StoredObject] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_start: str | None = None


@dataclass(slots=True)
class Upload:
    """A resumable upload that has been started.

    :param bucket: the bucket's name.
    :param name: the object's name.
    :param properties: the object's, as they will be.
    :param conditions: checked at the start and again when the object is written.
    :param hashes: a resource with the checksums that the bytes must have.
    :param data: what has come so far.
    :param done: the object, once it is written.
    """

    bucket: str
    name: str
    properties: Json
    conditions: Conditions
    hashes: Mapping[str, Any]
    data: bytearray = field(default_factory=bytearray)
    done: StoredObject | None = None


class Buckets:
    """All buckets, and what may be done with their objects. Raises :class:`ApiError` for what the service refuses."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._last_generation = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything but the last generation, so that generations keep growing."""
        self.buckets: dict[str, Bucket] = {}
        self.uploads: dict[str, Upload] = {}
        self.rewrites: dict[str, tuple[tuple[Any, ...], int]] = {}
        self.rewrite_calls = 1
        """How many calls a rewrite takes; more than one stands for a large object."""

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
        if bucket.objects:
            raise ApiError(409, "The bucket you tried to delete is not empty.")
        del self.buckets[name]

    def get(
        self, bucket: str, name: str, generation: int | None, conditions: Conditions, *, reading: bool = False
    ) -> StoredObject:
        """The live object.

        :param bucket: the bucket's name.
        :param name: the object's name.
        :param generation: the generation that is meant; any when ``None``.
        :param conditions: what it has to meet.
        :param reading: whether it is read for its own sake, not to be changed or copied.
        :raises ApiError: 404, 412 or 304.
        """
        stored = self.bucket(bucket).live(name)
        if stored is None or (generation is not None and generation != stored.generation):
            suffix = "" if generation is None else f"#{generation}"
            raise ApiError(404, f"No such object: {bucket}/{name}{suffix}")
        conditions.check(stored, reading)
        return stored

    def insert(
        self,
        bucket: str,
        name: str,
        content: Content,
        properties: Json,
        conditions: Conditions,
        *,
        components: int | None = None,
    ) -> StoredObject:
        """A new live generation.

        :param bucket: the bucket's name.
        :param name: the object's name.
        :param content: its bytes.
        :param properties: taken over as they are: not shared with the caller afterwards.
        :param conditions: what the live object has to meet.
        :param components: how many parts it was composed of; ``None``: it was not composed.
        """
        home = self.bucket(bucket)
        live = home.live(name)
        if live is None:
            check_name(name)
        conditions.check(live)
        now = self.clock.millis()
        stored = StoredObject(bucket, name, content, self._generation(), now, now, properties, components=components)
        home.put(stored)
        return stored

    def change(
        self, bucket: str, name: str, generation: int | None, conditions: Conditions, body: Json, *, whole: bool
    ) -> StoredObject:
        """New metadata under the same generation.

        :param bucket: the bucket's name.
        :param name: the object's name.
        :param generation: the generation that is meant; any when ``None``.
        :param conditions: what it has to meet.
        :param body: the metadata; null removes.
        :param whole: whether what the body does not name is removed too.
        """
        stored = self.get(bucket, name, generation, conditions)
        # Replaced, never changed in place: copies share the old dictionary.
        stored.properties = merge({} if whole else stored.properties, writable(body))
        stored.metageneration += 1
        stored.updated = self.clock.millis()
        return stored

    def delete(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> None:
        """Remove the live generation."""
        self.get(bucket, name, generation, conditions)
        self.buckets[bucket].remove(name)

    def copy(self, source: StoredObject, bucket: str, name: str, conditions: Conditions, body: Json) -> StoredObject:
        """The source's bytes as a new generation elsewhere.

        :param source: the object to copy.
        :param bucket: the destination's bucket.
        :param name: the destination's name.
        :param conditions: what the live object at the destination has to meet.
        :param body: the destination's resource; what it sets replaces all of the source's metadata. One that sets
            nothing (clients send empty ones, or just the name) counts as none, and the metadata is carried over.
        """
        settings = writable(body)
        properties = merge({}, settings) if settings else source.properties
        return self.insert(bucket, name, source.content, properties, conditions, components=source.components)

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
            parts.append(self.get(bucket, entry["name"], generation, condition))
        properties = merge({}, writable(body.get("destination") or {}))
        content = Content(b"".join(part.content.data for part in parts))
        count = sum(part.components or 1 for part in parts)
        return self.insert(bucket, name, content, properties, conditions, components=count)

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
        """A page of the live objects, in the order of their names.

        :param bucket: the bucket's name.
        :param prefix: what the names begin with.
        :param delimiter: names that hold it after the prefix are rolled up into one entry of ``prefixes``.
        :param start: first name (inclusive).
        :param end: first name that is no longer wanted.
        :param limit: most entries, objects and prefixes together.
        :param trailing: whether a name that ends with its first delimiter is also listed as an object.
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
            page.objects = [home.objects[name] for name in names[at:last]]
            if last < stop:
                page.next_start = names[last - 1] + "\0"
            return page
        after = ""
        while at < stop:
            name = names[at]
            cut = name.find(delimiter, len(prefix))
            if len(page.objects) + len(page.prefixes) >= limit:
                page.next_start = after
                break
            if cut < 0:
                page.objects.append(home.objects[name])
                after = name + "\0"
                at += 1
                continue
            rolled = name[: cut + len(delimiter)]
            page.prefixes.append(rolled)
            if trailing and name == rolled:
                page.objects.append(home.objects[name])
            after = successor(rolled)
            at = bisect_left(names, after, at)
        return page

    def seed(self, bucket: str, objects: Iterable[Json]) -> list[int]:
        """Many objects at once, and the bucket when it is missing: all of them, or none when one is wrong.

        :param bucket: the bucket's name.
        :param objects: what to say of each, with keys in ``SEED``.
        :returns: their generations, in the same order.
        """
        now, prepared = self.clock.now(), []
        for entry in objects:
            name, created = entry.get("name"), entry.get("timeCreated", now)
            if not entry.keys() <= SEED:
                raise ApiError(400, f"An object to seed has {', '.join(sorted(SEED))}, not {', '.join(sorted(entry))}.")
            if not isinstance(name, str) or not isinstance(created, int | float):
                raise ApiError(400, "An object has a name and perhaps a timeCreated in seconds since the epoch.")
            if not isinstance(entry.get("metadata") or {}, dict):
                raise ApiError(400, f"The metadata of {name!r} must be an object.")
            check_name(name)
            properties = {key: entry[key] for key in ("contentType", "metadata") if entry.get(key) is not None}
            content = Content(str(entry.get("content") or "").encode())
            millis = int(created * 1000)
            prepared.append(StoredObject(bucket, name, content, 0, millis, millis, properties))
        home = self.buckets[bucket] if bucket in self.buckets else self.create_bucket(bucket, "standin")
        for stored in prepared:
            stored.generation = self._generation()
            home.put(stored)
        return [stored.generation for stored in prepared]

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


def writable(resource: Json) -> Json:
    """What of an object's resource its caller may set."""
    return {key: value for key, value in resource.items() if key in WRITABLE}


def merge(properties: Mapping[str, Any], changes: Mapping[str, Any]) -> Json:
    """A patch as JSON merge patch has it: null removes, and metadata is patched key by key."""
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
