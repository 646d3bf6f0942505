"""Lists of the objects in a bucket, page by page ("Objects: list")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import dropwhile

from bqdispatch_provider.testing.standin.api import MAX_PAGE_ENTRIES
from bqdispatch_provider.testing.standin.storage_model import MAX_OBJECT_NAME_BYTES, Bucket, StoredObject, Version


@dataclass(slots=True)
class Page:
    """A page of a list.

    :param objects: objects in the order of their names.
    :param prefixes: prefixes that stand for all names with them.
    :param next_start: lowest name and generation of the next page. It is just above the last entry of this page, so
        that the next page also has objects created meanwhile. ``None``: this is the last page.
    """

    objects: list[StoredObject] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_start: Version | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The parameters of a list.

    :param prefix: list only names with this prefix.
    :param delimiter: list names that have it after the prefix as one entry of ``prefixes``; empty: list every name.
    :param start: first name and generation (inclusive).
    :param end: last name (exclusive); ``None``: no limit.
    :param limit: maximum number of entries in a page, objects and prefixes together.
    :param trailing: ``True``: list a name that ends with its first delimiter as an object, too.
    :param versions: ``True``: list noncurrent versions, too.
    :param soft_deleted: ``True``: list soft-deleted versions only.
    """

    prefix: str = ""
    delimiter: str = ""
    start: Version = ("", 0)
    end: str | None = None
    limit: int = MAX_PAGE_ENTRIES
    trailing: bool = False
    versions: bool = False
    soft_deleted: bool = False

    def page(self, bucket: Bucket) -> Page:
        """Return a page of the list, ordered by name and generation.

        :param bucket: the bucket.
        """
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
        # Live objects are indexed by name alone: the first may have been on the previous page.
        rest = dropwhile(lambda stored: stored.version < start, live)
        return merge(rest, bucket.noncurrent.between(start, last), key=lambda stored: stored.version)


def successor(prefix: str) -> str:
    """Return the lowest string above all strings with a prefix.

    :param prefix: the prefix.
    """
    while prefix and prefix[-1] == "\U0010ffff":
        prefix = prefix[:-1]
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\U0010ffff" * (MAX_OBJECT_NAME_BYTES + 1)
