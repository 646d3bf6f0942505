"""The task store: the task folder, whose objects are listed, delivered, marked and deleted.

Copies, deletes and claims travel in batches, each call with generation preconditions of its own. What a failed
precondition or a lost answer means is decided by the caller, as a table in ``delivery`` says. Only ``delete`` decides a
part of it: it looks up an object that is said to be gone. One that still exists in this generation, or cannot be looked
up, counts as refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from google.cloud.storage import Client

from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.targets import UNLISTED
from bqdispatch_provider.gcp.bucket_settings import FIELDS, BucketSettings
from bqdispatch_provider.gcp.gcs_batch import ApiCall, Body
from bqdispatch_provider.gcp.objects import JSON, ObjectStore
from bqdispatch_provider.gcp.storage_answers import LOST_STATUSES, Result, stored_object, task_object
from bqdispatch_provider.gcp.storage_calls import (
    PAGE_SIZE,
    RETRIED_STATUSES,
    StorageCalls,
    object_path,
    split_folder_url,
)
from bqdispatch_provider.gcp.trigger_bucket import TriggerBucket

_WRITTEN_FIELDS = "generation,crc32c,size"
_FIELDS = "name,generation,timeCreated,crc32c,size,metadata"
_SHORT_FIELDS = "items(name,generation,timeCreated),nextPageToken"
_HOLD_FIELDS = "temporaryHold,eventBasedHold,retentionExpirationTime"
_UNUSED_NAME = "bqdispatch-may-delete"
"""No object has this name."""

ComposeRequest = tuple[str, int, str, int, Mapping[str, str]]
"""An object to write beside another: the source's name and generation (or :data:`ANY_GENERATION`), the name to write,
the generation that it replaces (or :data:`NEW`), and its metadata."""

ANY_GENERATION = 0
"""Stands for the generation of a source, whichever it is."""

NEW = 0
"""Stands for the generation of an object that must not exist yet."""


class TaskStore(ObjectStore):
    """The task folder, and the trigger bucket to which its objects are delivered.

    :param client: of google-cloud-storage; used from several threads.
    :param task_url: the task folder, ``gs://bucket/folder/``.
    :param trigger_bucket: name of the bucket that BqTail watches.
    :param max_writes_per_s: most objects that are written or deleted a second, in each bucket; 0: no limit.
    """

    def __init__(self, client: Client, task_url: str, trigger_bucket: str, max_writes_per_s: int = 0) -> None:
        self.task_bucket, self._folder = split_folder_url(task_url)
        self.trigger_bucket = trigger_bucket
        super().__init__(StorageCalls(client, self.task_bucket, max_writes_per_s))
        self.trigger = TriggerBucket(trigger_bucket, self.calls)

    def close(self) -> None:
        """Detach from the client."""
        self.calls.close()

    def task_url(self, name: str) -> str:
        """Return the URL of an object of the task folder.

        :param name: below the task folder.
        """
        return f"gs://{self.task_bucket}/{self._folder}{name}"

    def listing(self, under: str = "", enough: float = math.inf) -> tuple[datetime, list[StoredObject]]:
        """List the task folder: one request per 1,000 objects.

        The ledger is left out: its names sort behind all others.

        :param under: a folder in it; by default all of it.
        :param enough: the list ends once it has as many objects; by default it is whole.
        :returns: the server's time when the listing began, and the objects.
        :raises google.api_core.exceptions.GoogleAPICallError: when the folder cannot be listed.
        """
        query = {"endOffset": f"{self._folder}{UNLISTED}"}
        if self._folder or under:
            query["prefix"] = f"{self._folder}{under}"
        query["fields"] = f"items({_FIELDS},{_HOLD_FIELDS}),nextPageToken"
        began: datetime | None = None
        found: list[StoredObject] = []
        skip = len(self._folder)
        for page in self.calls.pages(self.task_bucket, query):
            began = began or self.now()
            items = (item for item in page.get("items", ()) if not item["name"].startswith(UNLISTED, skip))
            found.extend(task_object(item, skip, began) for item in items)
            if len(found) >= enough:
                break
        return began or self.now(), found

    def list_folders(self, folders: Sequence[str]) -> list[list[StoredObject] | Result]:
        """List several folders of the task folder: one request for a hundred of them.

        :param folders: below the task folder.
        :returns: the objects of each folder, or the refusal.
        """
        more = {"fields": _SHORT_FIELDS, "maxResults": PAGE_SIZE}
        queries = [{"prefix": f"{self._folder}{each}", **more} for each in folders]
        return self.calls.lists(self.task_bucket, queries, len(self._folder))

    def list_first(self, under: str, until: str, after: str = "") -> tuple[list[StoredObject], bool]:
        """List the first objects of a folder of the task folder, by name: one request, at most 1,000 objects.

        :param under: the folder.
        :param until: name before which the list ends.
        :param after: name behind which it begins; by default at the folder's first.
        :returns: the objects, and True if others follow.
        :raises google.api_core.exceptions.GoogleAPICallError: when the folder cannot be listed.
        """
        query = {"prefix": f"{self._folder}{under}", "endOffset": f"{self._folder}{until}", "fields": _SHORT_FIELDS}
        if after:
            query["startOffset"] = f"{self._folder}{after}\0"
        page = next(self.calls.pages(self.task_bucket, query))
        listed = [stored_object(item, len(self._folder)) for item in page.get("items", ())]
        return listed, "nextPageToken" in page

    def get(self, name: str) -> StoredObject | None:
        """Return an object of the task folder as it is now; ``None`` if it does not exist."""
        item = self.calls.get(self.task_bucket, f"{self._folder}{name}")
        return None if item is None else task_object(item, len(self._folder))

    def get_target(self, name: str, to: str | None = None) -> StoredObject | None:
        """Return the target of a copy as it is now; ``None`` if it does not exist.

        :param to: URL of the folder that was copied to; by default the trigger bucket.
        """
        bucket, prefix = self._target(to)
        item = self.calls.get(bucket, f"{prefix}{name}")
        return None if item is None else stored_object(item, len(prefix))

    def copy(self, copies: Sequence[tuple[str, int, str]], to: str | None = None) -> list[Result]:
        """Copy exact generations of objects of the task folder, each unless its target exists.

        A copy into the trigger bucket whose answer is lost is not retried: BqTail may have consumed it already.

        :param copies: name below the task folder, its generation, and the target's name; at most 100.
        :param to: URL of the folder to copy to; by default the trigger bucket.
        """
        calls = [self._copy_call(*each, to) for each in copies]
        retried = RETRIED_STATUSES if to is not None else RETRIED_STATUSES - LOST_STATUSES
        return self.calls.run(calls, self._target(to)[0], retried)

    def copy_with_metadata(
        self, name: str, generation: int, target: str, to: str, metadata: Mapping[str, str]
    ) -> Result:
        """Copy an exact generation of an object of the task folder, with new metadata, unless the target exists.

        :param target: the copy's name.
        :param to: URL of the folder to copy to.
        """
        body = {"metadata": dict(metadata), "contentType": JSON}
        (result,) = self.calls.run([self._copy_call(name, generation, target, to, body)], self._target(to)[0])
        return result

    def _copy_call(self, name: str, generation: int, target: str, to: str | None, body: Body | None = None) -> ApiCall:
        bucket, prefix = self._target(to)
        source, copy = self._path(name), object_path(bucket, f"{prefix}{target}")
        # No sourceGeneration: on a versioned bucket it would copy what another dispatcher has deleted already.
        query = {"ifGenerationMatch": 0, "ifSourceGenerationMatch": generation, "fields": _WRITTEN_FIELDS}
        return ApiCall("POST", f"{source}/copyTo{copy}", query, body, f"{source}/rewriteTo{copy}")

    def _path(self, name: str) -> str:
        return object_path(self.task_bucket, f"{self._folder}{name}")

    def _target(self, to: str | None) -> tuple[str, str]:
        return (self.trigger_bucket, "") if to is None else split_folder_url(to)

    def settings(self) -> dict[str, BucketSettings | Result]:
        """Read the settings of the task bucket and of the trigger bucket (``storage.buckets.get``).

        :returns: by name of the bucket its settings, or the refusal.
        """
        names = dict.fromkeys([self.task_bucket, self.trigger_bucket])
        calls = [ApiCall("GET", f"/b/{name}", {"fields": FIELDS}) for name in names]
        return {
            name: BucketSettings(name, result.body) if result.ok else result
            for name, result in zip(names, self.calls.run(calls), strict=True)
        }

    def delete(self, objects: Sequence[tuple[str, int]]) -> list[Result]:
        """Delete exact generations of objects of the task folder.

        An object that is said to be gone is looked up: if it still existed, it would be dispatched again.

        :param objects: name below the task folder and generation; a hundred take one request.
        """
        results = self.calls.run_many(
            [ApiCall("DELETE", self._path(name), {"ifGenerationMatch": generation}) for name, generation in objects],
            self.task_bucket,
        )
        gone = [index for index, result in enumerate(results) if result.overtaken]
        lookups = [ApiCall("GET", self._path(objects[index][0]), {"fields": "generation"}) for index in gone]
        for index, lookup in zip(gone, self.calls.run_many(lookups), strict=True):
            if lookup.ok and lookup.generation == objects[index][1]:
                message = f"{results[index].message}; but it still exists"
            elif not lookup.ok and lookup.status != 404:
                message = f"{results[index].message}; and it cannot be looked up: {lookup}"
            else:
                continue
            results[index] = replace(results[index], message=message, still_there=True)
        return results

    def delete_nothing(self, folders: Sequence[str]) -> list[Result]:
        """Delete an object that does not exist: 404 means that the account may delete in a folder, 403 that it may not.

        :param folders: below the task folder, each ends with a slash.
        """
        calls = [ApiCall("DELETE", self._path(f"{folder}{_UNUSED_NAME}"), {}) for folder in folders]
        return self.calls.run_many(calls)

    def compose_with_metadata(self, requests: Sequence[ComposeRequest]) -> list[Result]:
        """Write objects with the content of others, and new metadata.

        Each is composed of the one object: a compose carries metadata in a batch, and an overwrite needs no
        ``storage.objects.update``.

        :param requests: a hundred take one batch request.
        """
        return self.calls.run_many([self._compose_call(*each) for each in requests], self.task_bucket)

    def _compose_call(
        self, name: str, generation: int, target: str, replaces: int, metadata: Mapping[str, str]
    ) -> ApiCall:
        source: dict[str, Any] = {"name": f"{self._folder}{name}"}
        if generation:
            source["objectPreconditions"] = {"ifGenerationMatch": generation}
        body = {"sourceObjects": [source], "destination": {"metadata": dict(metadata), "contentType": JSON}}
        query = {"ifGenerationMatch": replaces, "fields": _WRITTEN_FIELDS}
        return ApiCall("POST", f"{self._path(target)}/compose", query, body)
