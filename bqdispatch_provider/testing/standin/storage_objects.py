"""The rules of Cloud Storage for reading, writing and deleting objects, independent of HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bqdispatch_provider.testing.standin.api import ApiError, Json
from bqdispatch_provider.testing.standin.clock import Clock
from bqdispatch_provider.testing.standin.permissions import Permissions
from bqdispatch_provider.testing.standin.storage_buckets import Buckets, merge
from bqdispatch_provider.testing.standin.storage_conditions import NO_CONDITIONS, Conditions
from bqdispatch_provider.testing.standin.storage_listing import Listing, Page
from bqdispatch_provider.testing.standin.storage_model import MAX_OBJECT_NAME_BYTES, Bucket, Content, StoredObject
from bqdispatch_provider.testing.standin.storage_policies import (
    check_deletable,
    check_protection,
    check_retention_change,
    unprotected,
)

MAX_COMPOSE_SOURCES: Final = 32
"""Maximum number of sources in a call ("Composite objects")."""
_SEED_FIELDS: Final = ("contentType", "eventBasedHold", "metadata", "temporaryHold")
SEED_KEYS: Final = frozenset(("name", "content", "timeCreated", *_SEED_FIELDS))
"""Keys of an object to seed."""
WRITABLE_FIELDS: Final = frozenset(
    (
        *("cacheControl", "contentDisposition", "contentEncoding", "contentLanguage", "contentType"),
        *("customTime", "eventBasedHold", "metadata", "retention", "storageClass", "temporaryHold"),
    )
)
"""Fields of an object's resource that callers may set ("Objects" resource representation)."""


class Objects:
    """The objects of all buckets. Its methods raise :class:`ApiError` wherever the service refuses a call.

    :param buckets: the buckets.
    :param clock: clock of the stand-in.
    :param permissions: permissions of the caller, for those that a call needs only if certain objects exist.
    :param name_limit: ``True``: refuse a second change of an object name within a second, as the service does.
    """

    def __init__(self, buckets: Buckets, clock: Clock, permissions: Permissions, *, name_limit: bool = True) -> None:
        self._buckets = buckets
        self._clock = clock
        self._permissions = permissions
        self.name_limit = name_limit
        self._last_generation = 0

    def get(
        self, bucket: str, name: str, generation: int | None, conditions: Conditions, *, reading: bool = False
    ) -> StoredObject:
        """Return a live or noncurrent generation of an object.

        :param bucket: name of the bucket.
        :param name: name of the object.
        :param generation: the generation; ``None``: the live one.
        :param conditions: preconditions.
        :param reading: ``True`` if the call reads the object, and neither changes nor copies it.
        :raises ApiError: 404, 412 or 304.
        """
        stored = self._buckets.bucket(bucket).find(name, generation)
        if stored is None:
            raise _not_found(bucket, name, generation)
        conditions.check(stored, reading)
        return stored

    def soft_deleted(self, bucket: str, name: str, generation: int | None) -> StoredObject:
        """Return a soft-deleted generation of an object.

        :param bucket: name of the bucket.
        :param name: name of the object.
        :param generation: the generation.
        :raises ApiError: 404, or 400 if no generation is given.
        """
        home = self._buckets.bucket(bucket)
        if generation is None:
            raise ApiError(400, "A call on a soft-deleted object needs its generation.", "required")
        home.remove_expired(self._clock.millis())
        stored = home.soft_deleted.entries.get((name, generation))
        if stored is None:
            raise _not_found(bucket, name, generation)
        return stored

    def restore(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> StoredObject:
        """Copy a soft-deleted generation to a new live one ("Objects: restore"). The old one stays soft-deleted.

        :param bucket: name of the bucket.
        :param name: name of the object.
        :param generation: the soft-deleted generation.
        :param conditions: preconditions on the live object with this name.
        :returns: the new generation.
        :raises ApiError: 400, 404, or as :meth:`insert`.
        """
        self._check_soft_delete(self._buckets.bucket(bucket))
        old = self.soft_deleted(bucket, name, generation)
        return self.insert(bucket, name, old.content, old.properties, conditions, components=old.components)

    def _check_soft_delete(self, home: Bucket) -> None:
        # "Soft delete policy is required to set this option"; objects that an earlier policy keeps can still be read.
        home.remove_expired(self._clock.millis())
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
        """Write a new live generation of an object.

        :param bucket: name of the bucket.
        :param name: name of the object.
        :param content: bytes of the object.
        :param properties: fields of its resource. The caller must not change the dictionary afterwards.
        :param conditions: preconditions on the live object.
        :param components: number of composed parts; ``None``: not composed.
        :returns: the new generation.
        :raises ApiError: 400, 404, 412, 403 if the live object must not be overwritten, 429 for a rate limit.
        """
        home = self._buckets.bucket(bucket)
        live = home.live(name)
        if live is None:
            check_name(name)
        conditions.check(live)
        if home.properties.get("defaultEventBasedHold"):
            properties = {"eventBasedHold": True, **properties}
        check_protection(home, properties)
        now = self._clock.millis()
        if live is not None:
            self._permissions.require("storage.objects.delete", bucket, name)
            check_deletable(live, now, permanently=False)
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
        """Change the metadata of an object; its generation stays the same.

        :param bucket: name of the bucket.
        :param name: name of the object.
        :param generation: the generation; ``None``: the live one.
        :param conditions: preconditions.
        :param body: new values by field; ``None`` removes a field.
        :param whole: ``True``: remove all other fields.
        :param override_retention: ``True``: allow to shorten or remove an unlocked retention.
        :returns: the changed object.
        :raises ApiError: 400, 403, 404, 412, or 429 for a rate limit.
        """
        stored, now = self.get(bucket, name, generation, conditions), self._clock.millis()
        # Replace the dictionary instead of changing it: copies share the old one.
        properties = merge({} if whole else stored.properties, writable(body))
        check_protection(stored.home, properties)
        check_retention_change(stored.properties, properties, override=override_retention)
        released_ms = stored.released_ms
        if stored.properties.get("eventBasedHold") and not properties.get("eventBasedHold"):
            released_ms = now
        self._change_name(stored.home, stored.name, now)
        stored.released_ms = released_ms
        stored.properties = properties
        stored.metageneration += 1
        stored.updated_ms = now
        return stored

    def delete(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> None:
        """Delete an object.

        :param bucket: name of the bucket.
        :param name: name of the object.
        :param generation: generation to delete permanently; ``None``: the live one, which versioning keeps.
        :param conditions: preconditions.
        :raises ApiError: 403, 404, 412, or 429 for a rate limit.
        """
        stored, now = self.get(bucket, name, generation, conditions), self._clock.millis()
        check_deletable(stored, now, permanently=generation is not None)
        self._change_name(stored.home, stored.name, now)
        stored.home.remove(stored, now, permanently=generation is not None)

    def copy(self, source: StoredObject, bucket: str, name: str, conditions: Conditions, body: Json) -> StoredObject:
        """Copy an object.

        :param source: the object to copy.
        :param bucket: name of the destination's bucket.
        :param name: name of the destination.
        :param conditions: preconditions on the live object at the destination.
        :param body: resource of the destination. If it sets any field, it replaces all metadata of the source;
            otherwise the copy has the metadata of the source, except holds and retention.
        :returns: the copy.
        :raises ApiError: as :meth:`insert`.
        """
        wanted = writable(body)
        properties = merge({}, wanted) if wanted else unprotected(source.properties)
        return self.insert(bucket, name, source.content, properties, conditions, components=source.components)

    def compose(self, bucket: str, name: str, body: Json, conditions: Conditions) -> StoredObject:
        """Compose an object from 1 to 32 others in the same bucket ("Objects: compose").

        :param bucket: name of the bucket.
        :param name: name of the new object.
        :param body: sources, their preconditions, and fields of the new object.
        :param conditions: preconditions on the live object with the new name.
        :returns: the new object.
        :raises ApiError: 400, 404 or 412 for a source, or as :meth:`insert`.
        """
        self._buckets.bucket(bucket)
        sources = body.get("sourceObjects") or []
        if not isinstance(sources, list) or not 1 <= len(sources) <= MAX_COMPOSE_SOURCES:
            raise ApiError(400, f"The number of source components must be 1 to {MAX_COMPOSE_SOURCES}.")
        parts = []
        for entry in sources:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise ApiError(400, "Every source object needs a name.")
            self._permissions.require("storage.objects.get", bucket, entry["name"])
            wanted = (entry.get("objectPreconditions") or {}).get("ifGenerationMatch")
            condition = Conditions(generation=int(wanted)) if wanted is not None else NO_CONDITIONS
            generation = int(entry["generation"]) if entry.get("generation") is not None else None
            parts.append(self.get(bucket, entry["name"], generation, condition))
        properties = merge({}, writable(body.get("destination") or {}))
        content = Content(b"".join(part.content.data for part in parts))
        count = sum(part.components or 1 for part in parts)
        return self.insert(bucket, name, content, properties, conditions, components=count)

    def page(self, bucket: str, listing: Listing) -> Page:
        """Return a page of a list of objects.

        :param bucket: name of the bucket.
        :param listing: parameters of the list.
        :raises ApiError: 404, or 400 if soft-deleted objects are asked for and the bucket has no policy for them.
        """
        home = self._buckets.bucket(bucket)
        if listing.soft_deleted:
            self._check_soft_delete(home)
        return listing.page(home)

    def seed(self, bucket: str, objects: Iterable[Json]) -> list[int]:
        """Create the objects that a test describes: all of them, or none if one is invalid.

        They replace live objects, even held ones, and the bucket keeps these as its policies say. A missing bucket is
        created.

        :param bucket: name of the bucket.
        :param objects: objects with the keys in ``SEED_KEYS``.
        :returns: their generations, in the same order.
        :raises ApiError: 400 if a description is invalid.
        """
        now = self._clock.now()
        prepared = [_seed(entry, now) for entry in objects]
        home = self._buckets.by_name.get(bucket) or self._buckets.create(bucket, "standin")
        generations, millis = [], int(now * 1000)
        for name, content, created, properties in prepared:
            stored = StoredObject(home, name, content, self._generation(), created, created, properties)
            home.put(stored, millis)
            home.record_change(name, created, millis)
            generations.append(stored.generation)
        return generations

    def _change_name(self, home: Bucket, name: str, now: int) -> None:
        """Record a change of an object name, or refuse it. The last check of a call: a refused call changes nothing."""
        if self.name_limit and home.is_rate_limited(name, now):
            operations = "object mutation operations (create, update, and delete)"
            message = f"The object {home.name}/{name} exceeded the rate limit for {operations}."
            raise ApiError(429, f"{message} Please reduce your request rate.", "rateLimitExceeded")
        home.record_change(name, now, now)

    def _generation(self) -> int:
        self._last_generation = max(self._last_generation + 1, int(self._clock.now() * 1_000_000))
        return self._last_generation


def _seed(entry: Json, now: float) -> tuple[str, Content, int, Json]:
    """Return name, content, creation time in milliseconds, and fields of an object to seed."""
    name, created = entry.get("name"), entry.get("timeCreated", now)
    if not entry.keys() <= SEED_KEYS:
        raise ApiError(400, f"An object to seed has {', '.join(sorted(SEED_KEYS))}, not {', '.join(sorted(entry))}.")
    if not isinstance(name, str) or not isinstance(created, int | float):
        raise ApiError(400, "An object to seed needs a name; its timeCreated is a number of seconds since the epoch.")
    if not isinstance(entry.get("metadata") or {}, dict):
        raise ApiError(400, f"The metadata of {name!r} must be an object.")
    if not all(isinstance(entry.get(key, False), bool) for key in ("temporaryHold", "eventBasedHold")):
        raise ApiError(400, f"The holds of {name!r} must be true or false.")
    check_name(name)
    properties = {key: entry[key] for key in _SEED_FIELDS if entry.get(key) is not None}
    return name, Content(str(entry.get("content") or "").encode()), int(created * 1000), properties


def _not_found(bucket: str, name: str, generation: int | None) -> ApiError:
    return ApiError(404, f"No such object: {bucket}/{name}{'' if generation is None else f'#{generation}'}")


def check_name(name: str) -> None:
    """Refuse an invalid object name ("About Cloud Storage objects").

    :param name: the name.
    :raises ApiError: 400 if the name is invalid.
    """
    if not 1 <= len(name) <= MAX_OBJECT_NAME_BYTES or len(name.encode()) > MAX_OBJECT_NAME_BYTES:
        raise ApiError(400, f"The name of an object must have 1 to {MAX_OBJECT_NAME_BYTES} bytes in UTF-8.")
    if "\r" in name or "\n" in name:
        raise ApiError(400, "The name of an object must not contain line breaks.")
    if name in (".", "..") or name.startswith(".well-known/acme-challenge/"):
        raise ApiError(400, f"Disallowed object name: {name!r}")


def writable(resource: Json) -> Json:
    """Return the fields of a resource that its caller may set.

    :param resource: resource of an object.
    """
    return {key: value for key, value in resource.items() if key in WRITABLE_FIELDS}
