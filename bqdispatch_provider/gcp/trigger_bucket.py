"""The bucket that BqTail watches: deliveries that wait there, and what proves those that were consumed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from google.api_core.exceptions import GoogleAPICallError, GoogleAPIError, Unauthorized

from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.gcp.gcs_batch import ApiCall
from bqdispatch_provider.gcp.storage_answers import Result, stored_object
from bqdispatch_provider.gcp.storage_calls import StorageCalls, retried
from bqdispatch_provider.names import in_words

log = logging.getLogger(__name__)

_NONCURRENT_KEPT_FOR = timedelta(days=1)
"""Lifecycle rules, which may delete noncurrent versions, count in days."""

_MAX_TRANSIT_PAGES = 100
"""Pages of 1,000 deliveries that are listed. BqTail does not work if there are more."""


class TriggerBucket:
    """The trigger bucket. Nothing is ever deleted or overwritten there.

    :param bucket: its name.
    :param calls: by the client in question.
    """

    def __init__(self, bucket: str, calls: StorageCalls) -> None:
        self._bucket, self._calls = bucket, calls
        self._settings: Mapping[str, Any] | None = None
        self.refusal: Result | None = None
        """Why the account may not read the settings, once :meth:`settings` has asked; ``None`` if it may."""

        self._lists_soft_deleted = True

    def in_transit(self, prefix: str) -> list[StoredObject]:
        """List the deliveries of a prefix that BqTail has not consumed: one request per 1,000 objects.

        :param prefix: a folder with its slash, or what names begin with.
        :returns: the objects, with names behind the prefix.
        :raises google.api_core.exceptions.GoogleAPIError: when they cannot be listed, or are too many.
        """
        return [each for page, _ in self._in_transit(prefix) for each in page]

    def older_than(self, prefix: str, moment: datetime) -> tuple[list[StoredObject], bool]:
        """List deliveries that BqTail has not consumed since a moment, as far as the first page that has some.

        Traces lie by the hour of their creation, so that is the first page of all if BqTail consumes nothing.

        :param prefix: a folder with its slash.
        :param moment: the time (aware).
        :returns: the objects, with names behind the prefix, and whether there may be more.
        :raises google.api_core.exceptions.GoogleAPIError: when they cannot be listed, or there are too many others.
        """
        for page, has_next in self._in_transit(prefix):
            if old := [each for each in page if each.created < moment]:
                return old, has_next
        return [], False

    def _in_transit(self, prefix: str) -> Iterator[tuple[list[StoredObject], bool]]:
        """Yield the deliveries page by page, each with whether another page follows.

        An object that stands for a folder, as the console makes them, is no delivery.
        """
        query = {"prefix": prefix, "fields": "items(name,generation,timeCreated),nextPageToken"}
        for number, page in enumerate(self._calls.pages(self._bucket, query)):
            if number == _MAX_TRANSIT_PAGES:  # the young ones, which count, may lie behind
                raise GoogleAPIError(f"more than {1000 * number:,} objects lie there that BqTail has not consumed")
            items = (item for item in page.get("items", ()) if not item["name"].endswith("/"))
            yield [stored_object(item, len(prefix)) for item in items], "nextPageToken" in page

    def versions(self, prefixes: Sequence[str]) -> list[list[StoredObject] | Result]:
        """List all versions of objects: live, noncurrent and soft-deleted ones.

        Soft-deleted versions are listed last. So one that is deleted meanwhile is seen twice, and not never
        (Cloud Storage, "Objects: list", ``versions`` and ``softDeleted``).

        :param prefixes: of the names; at most 100.
        :returns: by prefix the versions, or the refusal.
        """

        def listed(which: str) -> list[list[StoredObject] | Result]:
            fields = "items(name,generation,timeCreated,crc32c,size,metadata),nextPageToken"
            queries = [{"prefix": each, which: "true", "fields": fields} for each in prefixes]
            return self._calls.lists(self._bucket, queries, 0)

        found: list[list[StoredObject] | Result] = []
        for live, deleted in zip(listed("versions"), listed("softDeleted"), strict=True):
            if isinstance(deleted, Result) and deleted.status in (400, 412, 501):
                self._lists_soft_deleted = False
                found.append(live)
            elif isinstance(deleted, Result) or isinstance(live, Result):
                found.append(deleted if isinstance(deleted, Result) else live)
            else:
                found.append([*live, *deleted])
        return found

    def settings(self) -> Mapping[str, Any]:
        """Return for how long the bucket keeps what is deleted, read once; nothing if the account may not read it.

        :raises google.api_core.exceptions.GoogleAPIError: when that cannot be told now.
        """
        if self._settings is None:
            try:
                call = ApiCall("GET", f"/b/{self._bucket}", {"fields": "softDeletePolicy,versioning,updated"})
                self._settings = retried(self._calls.send)(call)
            except Unauthorized:  # the credentials have become invalid: no answer about the bucket
                raise
            except GoogleAPICallError as error:
                log.warning(
                    "Settings of bucket %r cannot be read; assuming that it does not keep what was deleted: %s",
                    self._bucket,
                    in_words(error),
                )
                self._settings, self.refusal = {}, Result.of_error(error)
        return self._settings

    def keeps_deleted(self, since: datetime) -> bool:
        """Return whether :meth:`versions` still lists everything that was deleted since a moment.

        False if the bucket has neither soft delete nor versioning, or the account may not read its settings
        (``storage.buckets.get``).

        :raises google.api_core.exceptions.GoogleAPIError: as :meth:`settings` does.
        """
        settings = self.settings()
        age = self._calls.now() - since
        policy = settings.get("softDeletePolicy") or {}
        seconds = int(policy.get("retentionDurationSeconds") or 0)
        if seconds and age < timedelta(seconds=seconds) and self._lists_soft_deleted:
            return datetime.fromisoformat(policy.get("effectiveTime") or "1970-01-01T00:00:00Z") <= since
        if not (settings.get("versioning") or {}).get("enabled") or age >= _NONCURRENT_KEPT_FOR:
            return False
        # No field says since when it is on: at the latest since the last change of the bucket's settings.
        return datetime.fromisoformat(settings.get("updated") or "9999-01-01T00:00:00Z") <= since
