"""All buckets, and the rules of Cloud Storage about what may be done with their objects; knows nothing of HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bqdispatch_provider.testing.standin_api import ApiError, Clock, Json
from bqdispatch_provider.testing.standin_objects import (
    NAME_BYTES,
    NO_CONDITIONS,
    Bucket,
    Conditions,
    Content,
    Listing,
    Page,
    StoredObject,
    condition_failed,
)
from bqdispatch_provider.testing.standin_permissions import Permissions
from bqdispatch_provider.testing.standin_policies import (
    check_may_go,
    check_protection,
    check_retention_change,
    settings,
    unprotected,
)

COMPOSE_SOURCES: Final = 32
"""Most sources of one call ("Composite objects")."""

_SEED_PROPERTIES: Final = ("contentType", "eventBasedHold", "metadata", "temporaryHold")
SEED: Final = frozenset(("name", "content", "timeCreated", *_SEED_PROPERTIES))
"""What may be said of an object that is seeded."""

WRITABLE: Final = frozenset(
    (
        *("cacheControl", "contentDisposition", "contentEncoding", "contentLanguage", "contentType"),
        *("customTime", "eventBasedHold", "metadata", "retention", "storageClass", "temporaryHold"),
    )
)
"""What of an object's resource a caller may set ("Objects" resource representation)."""


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
    """All buckets, and what may be done with their objects. Raises :class:`ApiError` for what the service refuses.

    :param clock: the time.
    :param permissions: what the caller lacks; asked only where what is needed depends on what there is.
    :param name_limit: whether a name can be changed only once a second, as it is in the service.
    """

    def __init__(self, clock: Clock, permissions: Permissions, *, name_limit: bool = True) -> None:
        self.clock = clock
        self.permissions = permissions
        self.name_limit = name_limit
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
        now = self.clock.millis()
        bucket = self.buckets[name] = Bucket(name, project, settings(properties or {}, now), now)
        return bucket

    def change_bucket(self, name: str, conditions: Conditions, body: Json, *, whole: bool) -> Bucket:
        """New properties of a bucket.

        :param name: the bucket's name.
        :param conditions: what it has to meet.
        :param body: the properties; null removes.
        :param whole: whether what the body does not name is removed too.
        """
        bucket, now = self.bucket(name), self.clock.millis()
        check_bucket(bucket, conditions)
        bucket.properties = merge({} if whole else bucket.properties, settings(body, now))
        bucket.metageneration += 1
        bucket.updated = now
        return bucket

    def delete_bucket(self, name: str, conditions: Conditions) -> None:
        """Remove a bucket that is empty, save for soft-deleted objects."""
        bucket = self.bucket(name)
        check_bucket(bucket, conditions)
        if bucket.current.entries or bucket.noncurrent.entries:
            raise ApiError(409, "The bucket you tried to delete is not empty.")
        del self.buckets[name]

    def get(
        self, bucket: str, name: str, generation: int | None, conditions: Conditions, *, reading: bool = False
    ) -> StoredObject:
        """The live object, or the noncurrent version that is asked for.

        :param bucket: the bucket's name.
        :param name: the object's name.
        :param generation: the generation that is meant; the live one when ``None``.
        :param conditions: what it has to meet.
        :param reading: whether it is read for its own sake, not to be changed or copied.
        :raises ApiError: 404, 412 or 304.
        """
        stored = self.bucket(bucket).find(name, generation)
        if stored is None:
            raise _no_object(bucket, name, generation)
        conditions.check(stored, reading)
        return stored

    def soft_deleted(self, bucket: str, name: str, generation: int | None) -> StoredObject:
        """A soft-deleted version."""
        home = self.bucket(bucket)
        if generation is None:
            raise ApiError(400, "A soft-deleted object is known by its generation only.", "required")
        home.forget(self.clock.millis())
        stored = home.soft_deleted.entries.get((name, generation))
        if stored is None:
            raise _no_object(bucket, name, generation)
        return stored

    def restore(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> StoredObject:
        """A soft-deleted version as a new live generation ("Objects: restore"); it stays soft-deleted itself.

        :param bucket: the bucket's name.
        :param name: the object's name.
        :param generation: the soft-deleted version's.
        :param conditions: what the live object of that name has to meet.
        """
        self._check_soft_delete(self.bucket(bucket))
        old = self.soft_deleted(bucket, name, generation)
        return self.insert(bucket, name, old.content, old.properties, conditions, components=old.components)

    def _check_soft_delete(self, home: Bucket) -> None:
        # "Soft delete policy is required to set this option"; what an earlier policy keeps can still be reached.
        home.forget(self.clock.millis())
        if not home.soft_delete_ms and not home.soft_deleted.entries:
            raise ApiError(400, f"The bucket {home.name} has no soft delete policy.", "invalid")

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
        :param properties: not to be changed by the caller afterwards.
        :param conditions: what the live object has to meet.
        :param components: how many parts it was composed of; ``None``: it was not composed.
        """
        home = self.bucket(bucket)
        live = home.live(name)
        if live is None:
            check_name(name)
        conditions.check(live)
        if home.properties.get("defaultEventBasedHold"):
            properties = {"eventBasedHold": True, **properties}
        check_protection(home, properties)
        now = self.clock.millis()
        if live is not None:
            self.permissions.require("storage.objects.delete", bucket, name)
            check_may_go(live, now, for_good=False)
        self._change_name(home, name, now)
        stored = StoredObject(home, name, content, self._generation(), now, now, properties, components=components)
        home.put(stored, now)
        return stored

    def change(
        self,
        bucket: str,
        name: str,
        generation: int | None,
        conditions: Conditions,
        body: Json,
        *,
        whole: bool,
        override_retention: bool = False,
    ) -> StoredObject:
        """New metadata under the same generation.

        :param bucket: the bucket's name.
        :param name: the object's name.
        :param generation: the generation that is meant; any when ``None``.
        :param conditions: what it has to meet.
        :param body: the metadata; null removes.
        :param whole: whether what the body does not name is removed too.
        :param override_retention: whether a retention that is not locked may be taken back.
        """
        stored, now = self.get(bucket, name, generation, conditions), self.clock.millis()
        # Replaced, never changed in place: copies share the old dictionary.
        properties = merge({} if whole else stored.properties, writable(body))
        check_protection(stored.home, properties)
        check_retention_change(stored.properties, properties, override=override_retention)
        released = stored.released
        if stored.properties.get("eventBasedHold") and not properties.get("eventBasedHold"):
            released = now
        self._change_name(stored.home, stored.name, now)
        stored.released = released
        stored.properties = properties
        stored.metageneration += 1
        stored.updated = now
        return stored

    def delete(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> None:
        """Delete the live generation, or for good the one that is named."""
        stored, now = self.get(bucket, name, generation, conditions), self.clock.millis()
        check_may_go(stored, now, for_good=generation is not None)
        self._change_name(stored.home, stored.name, now)
        stored.home.remove(stored, now, for_good=generation is not None)

    def copy(self, source: StoredObject, bucket: str, name: str, conditions: Conditions, body: Json) -> StoredObject:
        """The source's bytes as a new generation elsewhere.

        :param source: the object to copy.
        :param bucket: the destination's bucket.
        :param name: the destination's name.
        :param conditions: what the live object at the destination has to meet.
        :param body: the destination's resource; what it sets replaces all of the source's metadata. One that sets
            nothing (clients send empty ones, or just the name) counts as none, and the metadata is carried over, save
            for what protects the source.
        """
        wanted = writable(body)
        properties = merge({}, wanted) if wanted else unprotected(source.properties)
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
            self.permissions.require("storage.objects.get", bucket, entry["name"])
            wanted = (entry.get("objectPreconditions") or {}).get("ifGenerationMatch")
            condition = Conditions(generation=int(wanted)) if wanted is not None else NO_CONDITIONS
            generation = int(entry["generation"]) if entry.get("generation") is not None else None
            parts.append(self.get(bucket, entry["name"], generation, condition))
        properties = merge({}, writable(body.get("destination") or {}))
        content = Content(b"".join(part.content.data for part in parts))
        count = sum(part.components or 1 for part in parts)
        return self.insert(bucket, name, content, properties, conditions, components=count)

    def page(self, bucket: str, listing: Listing) -> Page:
        """A page of a list of the bucket's objects."""
        home = self.bucket(bucket)
        if listing.soft_deleted:
            self._check_soft_delete(home)
        return listing.page(home)

    def seed(self, bucket: str, objects: Iterable[Json]) -> list[int]:
        """Many objects at once, and the bucket when it is missing: all of them, or none when one is wrong.

        They take the place of what is there, held or not; the bucket keeps that as its properties say.

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
            if not all(isinstance(entry.get(key, False), bool) for key in ("temporaryHold", "eventBasedHold")):
                raise ApiError(400, f"The holds of {name!r} are true or false.")
            check_name(name)
            properties = {key: entry[key] for key in _SEED_PROPERTIES if entry.get(key) is not None}
            prepared.append((name, Content(str(entry.get("content") or "").encode()), int(created * 1000), properties))
        home = self.buckets[bucket] if bucket in self.buckets else self.create_bucket(bucket, "standin")
        generations, millis = [], int(now * 1000)
        for name, content, created, properties in prepared:
            stored = StoredObject(home, name, content, self._generation(), created, created, properties)
            home.put(stored, millis)
            home.changed(name, created, millis)
            generations.append(stored.generation)
        return generations

    def _change_name(self, home: Bucket, name: str, now: int) -> None:
        """Note a change of a name, or refuse it: last of all checks, for what is refused changes nothing."""
        if self.name_limit and home.changed_recently(name, now):
            operations = "object mutation operations (create, update, and delete)"
            message = f"The object {home.name}/{name} exceeded the rate limit for {operations}."
            raise ApiError(429, f"{message} Please reduce your request rate.", "rateLimitExceeded")
        home.changed(name, now, now)

    def _generation(self) -> int:
        self._last_generation = max(self._last_generation + 1, int(self.clock.now() * 1_000_000))
        return self._last_generation


def _no_object(bucket: str, name: str, generation: int | None) -> ApiError:
    return ApiError(404, f"No such object: {bucket}/{name}{'' if generation is None else f'#{generation}'}")


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
        raise condition_failed()
    if conditions.not_metageneration is not None and conditions.not_metageneration == bucket.metageneration:
        raise condition_failed(304 if reading else 412)


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
