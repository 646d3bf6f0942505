"""Objects and their versions in a bucket, independent of HTTP."""

from __future__ import annotations

import base64
import hashlib
import struct
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import Final, Generic, TypeVar

import google_crc32c

from bqdispatch_provider.testing.standin.api import Json

MAX_OBJECT_NAME_BYTES: Final = 1024
"""Maximum length of an object name in UTF-8 ("About Cloud Storage objects", naming requirements)."""
SAME_NAME_INTERVAL_MS: Final = 1000
"""Minimum interval between two changes of an object name ("Quotas & limits", writes to the same object name)."""
Version = tuple[str, int]
"""Name and generation."""
K = TypeVar("K", str, Version)


class Content:
    """The bytes of an object and their checksums, which all copies share.

    :param data: the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data

    @cached_property
    def md5(self) -> str:
        """MD5 digest in Base64, as in ``md5Hash``."""
        return base64.b64encode(hashlib.md5(self.data, usedforsecurity=False).digest()).decode()

    @cached_property
    def crc32c(self) -> str:
        """Big-endian CRC32C in Base64, as in ``crc32c``."""
        return base64.b64encode(struct.pack(">I", google_crc32c.value(self.data))).decode()


@dataclass(slots=True)
class StoredObject:
    """A generation of an object. All times are in milliseconds since the epoch.

    :param home: bucket that holds it.
    :param name: name of the object.
    :param content: bytes of the object.
    :param generation: number that grows with every object written in any bucket.
    :param created_ms: creation time of this generation.
    :param updated_ms: time of the last change of its metadata.
    :param properties: fields of the resource that callers set, see ``WRITABLE_FIELDS``.
    :param metageneration: number of its metadata, which starts at 1 and grows with every change.
    :param components: number of composed parts; ``None``: not composed. A composed object has no MD5.
    :param released_ms: time of the last release of its event-based hold; ``None``: never.
    :param noncurrent_ms: time when it became noncurrent; ``None``: it never did.
    :param soft_deleted_ms: time of its soft deletion; ``None``: not soft-deleted.
    :param hard_delete_ms: time when a soft-deleted object is removed.
    """

    home: Bucket
    name: str
    content: Content
    generation: int
    created_ms: int
    updated_ms: int
    properties: Json
    metageneration: int = 1
    components: int | None = None
    released_ms: int | None = None
    noncurrent_ms: int | None = None
    soft_deleted_ms: int | None = None
    hard_delete_ms: int | None = None

    @property
    def bucket(self) -> str:
        """Name of the bucket that holds it."""
        return self.home.name

    @property
    def version(self) -> Version:
        """Name and generation."""
        return self.name, self.generation


class Index(Generic[K]):
    """Objects by key, in the order of the keys.

    :attr:`entries` is read-only for callers; :meth:`put` and :meth:`remove` change it.
    """

    _MAX_SINGLE_CHANGES = 200
    """Maximum number of changes between two lists that are applied one by one; more are sorted together."""

    def __init__(self) -> None:
        self.entries: dict[K, StoredObject] = {}
        self._sorted: list[K] = []
        self._changed: set[K] = set()
        """Keys that are either in ``entries`` or in ``_sorted``, and not in both."""

    def put(self, key: K, stored: StoredObject) -> None:
        """Set the object of a key.

        :param key: the key.
        :param stored: the object.
        """
        if key not in self.entries:
            self._changed ^= {key}
        self.entries[key] = stored

    def remove(self, key: K) -> None:
        """Remove a key.

        :param key: the key, which must be there.
        """
        del self.entries[key]
        self._changed ^= {key}

    def keys(self) -> list[K]:
        """Return all keys, sorted by code points, which is the service's order, that of UTF-8.

        Changes are sorted in only here, so that seeding many objects costs one sort.
        """
        if len(self._changed) > self._MAX_SINGLE_CHANGES:
            # The remaining and the new keys are two sorted runs, which a sort merges in linear time.
            remaining = [key for key in self._sorted if key not in self._changed]
            self._sorted = sorted(remaining + sorted(self._changed & self.entries.keys()))
        else:
            for key in self._changed:
                if key in self.entries:
                    insort(self._sorted, key)
                else:
                    del self._sorted[bisect_left(self._sorted, key)]
        self._changed.clear()
        return self._sorted

    def between(self, first: K, end: K | None) -> Iterator[StoredObject]:
        """Yield the objects of a range of keys, in order.

        :param first: first key (inclusive).
        :param end: last key (exclusive); ``None``: no limit.
        """
        keys = self.keys()
        stop = bisect_left(keys, end) if end is not None else len(keys)
        for position in range(bisect_left(keys, first), stop):
            yield self.entries[keys[position]]


class Bucket:
    """A bucket with its live, noncurrent and soft-deleted objects.

    The indexes are read-only for callers; the methods move objects between them.

    :param name: name of the bucket.
    :param project: project of the bucket.
    :param properties: fields of the resource that its creator set.
    :param now: time in milliseconds since the epoch.
    """

    def __init__(self, name: str, project: str, properties: Json, now: int) -> None:
        self.name = name
        self.project = project
        self.properties = properties
        self.created_ms = self.updated_ms = now
        self.metageneration = 1
        self.current: Index[str] = Index()
        self.noncurrent: Index[Version] = Index()
        self.soft_deleted: Index[Version] = Index()
        self._ends: list[tuple[int, Version]] = []
        self._changed: dict[str, int] = {}

    @property
    def versioned(self) -> bool:
        """``True`` if the bucket keeps noncurrent versions ("Object Versioning")."""
        return bool((self.properties.get("versioning") or {}).get("enabled"))

    @property
    def soft_delete_ms(self) -> int:
        """Retention time of soft-deleted objects in milliseconds; 0: no soft delete ("Soft delete")."""
        return int((self.properties.get("softDeletePolicy") or {}).get("retentionDurationSeconds") or 0) * 1000

    @property
    def retention_ms(self) -> int:
        """Minimum retention time of objects in milliseconds ("Bucket Lock")."""
        return int((self.properties.get("retentionPolicy") or {}).get("retentionPeriod") or 0) * 1000

    def live(self, name: str) -> StoredObject | None:
        """Return the live generation of an object, ``None`` if there is none.

        :param name: name of the object.
        """
        return self.current.entries.get(name)

    def find(self, name: str, generation: int | None) -> StoredObject | None:
        """Return a live or noncurrent generation of an object, ``None`` if there is none.

        :param name: name of the object.
        :param generation: the generation; ``None``: the live one.
        """
        stored = self.live(name)
        if generation is None or (stored is not None and stored.generation == generation):
            return stored
        return self.noncurrent.entries.get((name, generation))

    def record_change(self, name: str, at: int, now: int) -> None:
        """Record a change of an object name, for the rate limit of changes.

        :param name: name of the object.
        :param at: time of the change in milliseconds since the epoch.
        :param now: time in milliseconds since the epoch.
        """
        # The oldest changes come first, so removing all that are more than a second old is cheap.
        while self._changed and not _recent(self._changed[oldest := next(iter(self._changed))], now):
            del self._changed[oldest]
        self._changed.pop(name, None)
        if _recent(at, now):
            self._changed[name] = at

    def is_rate_limited(self, name: str, now: int) -> bool:
        """Return ``True`` if the last change of an object name is less than a second ago.

        :param name: name of the object.
        :param now: time in milliseconds since the epoch.
        """
        at = self._changed.get(name)
        return at is not None and _recent(at, now)

    def put(self, stored: StoredObject, now: int) -> None:
        """Set the live generation of an object, and keep the previous one as the bucket's policies say.

        :param stored: the generation.
        :param now: time in milliseconds since the epoch.
        """
        live = self.live(stored.name)
        if live is not None:
            self._retire(live, now)
        self.current.put(stored.name, stored)

    def remove(self, stored: StoredObject, now: int, *, permanently: bool) -> None:
        """Delete a generation of an object.

        :param stored: a live or noncurrent generation of this bucket.
        :param now: time in milliseconds since the epoch.
        :param permanently: ``True``: do not keep a live generation as noncurrent. Soft delete keeps it all the same.
        """
        if stored.noncurrent_ms is None:
            self.current.remove(stored.name)
        else:
            self.noncurrent.remove(stored.version)
        self._retire(stored, now, permanently=permanently or stored.noncurrent_ms is not None)

    def _retire(self, stored: StoredObject, now: int, *, permanently: bool = False) -> None:
        """Keep a generation as noncurrent if the bucket has versioning, otherwise as its soft delete policy says."""
        if self.versioned and not permanently:
            stored.noncurrent_ms = now
            self.noncurrent.put(stored.version, stored)
            return
        self.remove_expired(now)
        if self.soft_delete_ms:
            stored.soft_deleted_ms, stored.hard_delete_ms = now, now + self.soft_delete_ms
            self.soft_deleted.put(stored.version, stored)
            heappush(self._ends, (stored.hard_delete_ms, stored.version))

    def remove_expired(self, now: int) -> None:
        """Remove soft-deleted objects whose retention time is over.

        :param now: time in milliseconds since the epoch.
        """
        while self._ends and self._ends[0][0] <= now:
            self.soft_deleted.remove(heappop(self._ends)[1])


def _recent(at: int, now: int) -> bool:
    # A change in the future was recorded before a test moved the clock back.
    return 0 <= now - at < SAME_NAME_INTERVAL_MS
