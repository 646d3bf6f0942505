"""What a bucket holds: objects and their versions, and the order in which they are listed; knows nothing of HTTP."""

from __future__ import annotations

import base64
import hashlib
import struct
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush, merge
from itertools import dropwhile
from typing import Final, Generic, TypeVar

import google_crc32c

from bqdispatch_provider.testing.standin_api import PAGE, ApiError, Json, Request

NAME_BYTES: Final = 1024
"""Longest object name in UTF-8 ("About Cloud Storage objects", naming requirements)."""

CHANGE_MILLIS: Final = 1000
"""How long a name cannot be changed again after a change ("Quotas & limits", writes to the same object name)."""

Version = tuple[str, int]
"""Name and generation."""
K = TypeVar("K", str, Version)


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

    :param home: the bucket that holds it.
    :param name: the object's name.
    :param content: its bytes.
    :param generation: grows with every object that is written anywhere.
    :param created: when this generation was written, in milliseconds since the epoch.
    :param updated: when its metadata was last changed, in milliseconds since the epoch.
    :param properties: what callers set: the names in ``WRITABLE``.
    :param metageneration: counts the changes of its metadata, from 1.
    :param components: how many parts it was composed of; such an object has no MD5. ``None``: it was not composed.
    :param released: when its event-based hold was last released, in milliseconds since the epoch.
    :param noncurrent: when it stopped being live in a bucket with versioning, in milliseconds since the epoch.
    :param soft_deleted: when it was soft-deleted, in milliseconds since the epoch.
    :param hard_delete: when it will be gone for good, in milliseconds since the epoch.
    """

    home: Bucket
    name: str
    content: Content
    generation: int
    created: int
    updated: int
    properties: Json
    metageneration: int = 1
    components: int | None = None
    released: int | None = None
    noncurrent: int | None = None
    soft_deleted: int | None = None
    hard_delete: int | None = None

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.home.name

    @property
    def version(self) -> Version:
        """Its place among all versions of all names."""
        return self.name, self.generation


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
            raise condition_failed()
        if self.metageneration is not None and self.metageneration != metageneration:
            raise condition_failed()
        if self.not_generation is not None and (live is None or self.not_generation == generation):
            raise condition_failed(304 if reading else 412)
        if self.not_metageneration is not None and (live is None or self.not_metageneration == metageneration):
            raise condition_failed(304 if reading else 412)


NO_CONDITIONS: Final = Conditions()


def condition_failed(status: int = 412) -> ApiError:
    """The error of a precondition that does not hold."""
    return ApiError(status, "At least one of the pre-conditions you specified did not hold.", "conditionNotMet")


class Index(Generic[K]):
    """Objects by a key, and their keys in order.

    :attr:`entries` is to be read only; :meth:`put` and :meth:`remove` keep the order along with it.
    """

    _FEW_CHANGES = 200
    """Up to this many changes between two lists are put into the sorted keys one by one."""

    def __init__(self) -> None:
        self.entries: dict[K, StoredObject] = {}
        self._sorted: list[K] = []
        self._added: set[K] = set()
        self._removed: set[K] = set()

    def put(self, key: K, stored: StoredObject) -> None:
        """Keep it under that key, instead of what was there."""
        if key not in self.entries:
            if key in self._removed:
                self._removed.remove(key)
            else:
                self._added.add(key)
        self.entries[key] = stored

    def remove(self, key: K) -> None:
        """Leave nothing under that key."""
        del self.entries[key]
        if key in self._added:
            self._added.remove(key)
        else:
            self._removed.add(key)

    def keys(self) -> list[K]:
        """All keys, sorted; code points sort as UTF-8 does, which is the service's order.

        Brought up to date only here, so that seeding many objects costs one sort.
        """
        if len(self._added) + len(self._removed) > self._FEW_CHANGES:
            # What is left and what is new are two sorted runs, which a sort only has to merge.
            self._sorted = [key for key in self._sorted if key not in self._removed] + sorted(self._added)
            self._sorted.sort()
        else:
            for key in self._removed:
                del self._sorted[bisect_left(self._sorted, key)]
            for key in self._added:
                insort(self._sorted, key)
        self._added.clear()
        self._removed.clear()
        return self._sorted

    def between(self, first: K, end: K | None) -> Iterator[StoredObject]:
        """What is kept under the keys from the first up to the end (exclusive; ``None``: all the rest), in order."""
        keys = self.keys()
        stop = bisect_left(keys, end) if end is not None else len(keys)
        for at in range(bisect_left(keys, first), stop):
            yield self.entries[keys[at]]


class Bucket:
    """A bucket: its properties, its live objects, and what it keeps of others.

    The indexes are to be read only: the methods move objects between them.

    :param name: the bucket's name.
    :param project: the project that it was created in.
    :param properties: what its creator set.
    :param now: the time, in milliseconds since the epoch.
    """

    def __init__(self, name: str, project: str, properties: Json, now: int) -> None:
        self.name = name
        self.project = project
        self.properties = properties
        self.created = self.updated = now
        self.metageneration = 1
        self.current: Index[str] = Index()
        self.noncurrent: Index[Version] = Index()
        self.soft_deleted: Index[Version] = Index()
        self._ends: list[tuple[int, Version]] = []
        self._changed: dict[str, int] = {}

    @property
    def versioned(self) -> bool:
        """Whether what stops being live is kept as a noncurrent version ("Object Versioning")."""
        return bool((self.properties.get("versioning") or {}).get("enabled"))

    @property
    def soft_delete_ms(self) -> int:
        """How long what is deleted for good is kept, in milliseconds; 0: not at all ("Soft delete")."""
        return int((self.properties.get("softDeletePolicy") or {}).get("retentionDurationSeconds") or 0) * 1000

    @property
    def retention_ms(self) -> int:
        """How long objects must be kept after they were created, in milliseconds ("Bucket Lock")."""
        return int((self.properties.get("retentionPolicy") or {}).get("retentionPeriod") or 0) * 1000

    def live(self, name: str) -> StoredObject | None:
        """The object's live generation."""
        return self.current.entries.get(name)

    def find(self, name: str, generation: int | None) -> StoredObject | None:
        """That generation of the object, live or noncurrent; the live one when no generation is given."""
        stored = self.live(name)
        if generation is None or (stored is not None and stored.generation == generation):
            return stored
        return self.noncurrent.entries.get((name, generation))

    def changed(self, name: str, at: int, now: int) -> None:
        """Note a change of a name.

        :param name: the object's name.
        :param at: when it was changed, in milliseconds since the epoch.
        :param now: the time, in milliseconds since the epoch.
        """
        # The oldest notes come first, so keeping only the last second's costs next to nothing a change.
        while self._changed and not _recent(self._changed[oldest := next(iter(self._changed))], now):
            del self._changed[oldest]
        self._changed.pop(name, None)
        if _recent(at, now):
            self._changed[name] = at

    def changed_recently(self, name: str, now: int) -> bool:
        """Whether the name was changed so short a while ago that the service refuses another change."""
        at = self._changed.get(name)
        return at is not None and _recent(at, now)

    def put(self, stored: StoredObject, now: int) -> None:
        """Make it the live generation of its name."""
        live = self.live(stored.name)
        if live is not None:
            self._retire(live, now)
        self.current.put(stored.name, stored)

    def remove(self, stored: StoredObject, now: int, *, for_good: bool) -> None:
        """Delete it.

        :param stored: a live or noncurrent generation of this bucket.
        :param now: the time, in milliseconds since the epoch.
        :param for_good: whether versioning does not keep it; soft delete does all the same.
        """
        if stored.noncurrent is not None:
            self.noncurrent.remove(stored.version)
            self._bury(stored, now)
            return
        self.current.remove(stored.name)
        if for_good:
            self._bury(stored, now)
        else:
            self._retire(stored, now)

    def _retire(self, stored: StoredObject, now: int) -> None:
        """Keep what was live as far as the bucket keeps such things."""
        if not self.versioned:
            self._bury(stored, now)
            return
        stored.noncurrent = now
        self.noncurrent.put(stored.version, stored)

    def _bury(self, stored: StoredObject, now: int) -> None:
        self.forget(now)
        if self.soft_delete_ms:
            stored.soft_deleted, stored.hard_delete = now, now + self.soft_delete_ms
            self.soft_deleted.put(stored.version, stored)
            heappush(self._ends, (stored.hard_delete, stored.version))

    def forget(self, now: int) -> None:
        """Drop what soft delete has kept for as long as it had to."""
        while self._ends and self._ends[0][0] <= now:
            self.soft_deleted.remove(heappop(self._ends)[1])


@dataclass(slots=True)
class Page:
    """One page of a list.

    :param objects: in the order of their names.
    :param prefixes: what names were rolled up into.
    :param next_start: the smallest name and generation that the next page may hold: just above the last entry, so that
        nothing new is left out. ``None``: this page is the last.
    """

    objects: list[StoredObject] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_start: Version | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list is to show.

    :param prefix: what the names begin with.
    :param delimiter: names that hold it after the prefix are rolled up into one entry of ``prefixes``.
    :param start: first name and generation (inclusive).
    :param end: first name that is no longer wanted; ``None``: no such end.
    :param limit: most entries of a page, objects and prefixes together.
    :param trailing: whether a name that ends with its first delimiter is also listed as an object.
    :param versions: whether noncurrent versions are listed too.
    :param soft_deleted: whether soft-deleted versions are listed, and only they.
    """

    prefix: str = ""
    delimiter: str = ""
    start: Version = ("", 0)
    end: str | None = None
    limit: int = PAGE
    trailing: bool = False
    versions: bool = False
    soft_deleted: bool = False

    def page(self, bucket: Bucket) -> Page:
        """A page of it, in the order of names, and of generations below the same name."""
        start = max(self.start, (self.prefix, 0))
        end = min(filter(None, (self.end, successor(self.prefix) if self.prefix else None)), default=None)
        entries = self._entries(bucket, start, end)
        page, after = Page(), start
        while (stored := next(entries, None)) is not None:
            if len(page.objects) + len(page.prefixes) >= self.limit:
                page.next_start = after
                break
            name = stored.name
            cut = name.find(self.delimiter, len(self.prefix)) if self.delimiter else -1
            if cut < 0:
                page.objects.append(stored)
                after = (name, stored.generation + 1) if self.versions or self.soft_deleted else (name + "\0", 0)
                continue
            rolled = name[: cut + len(self.delimiter)]
            page.prefixes.append(rolled)
            if self.trailing and name == rolled:
                page.objects.append(stored)
            after = (successor(rolled), 0)
            entries = self._entries(bucket, after, end)
        return page

    def _entries(self, bucket: Bucket, start: Version, end: str | None) -> Iterator[StoredObject]:
        last = (end, 0) if end is not None else None
        if self.soft_deleted:
            return bucket.soft_deleted.between(start, last)
        live = bucket.current.between(start[0], end)
        if not self.versions:
            return live
        # The live generation is known by its name alone, and may have been on the page before.
        rest = dropwhile(lambda stored: stored.version < start, live)
        return merge(rest, bucket.noncurrent.between(start, last), key=lambda stored: stored.version)


def _recent(at: int, now: int) -> bool:
    # What lies ahead was noted before somebody moved the clock back.
    return 0 <= now - at < CHANGE_MILLIS


def successor(prefix: str) -> str:
    """The smallest string above everything that begins with ``prefix``."""
    while prefix and prefix[-1] == "\U0010ffff":
        prefix = prefix[:-1]
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\U0010ffff" * (NAME_BYTES + 1)
