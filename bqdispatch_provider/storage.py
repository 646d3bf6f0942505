"""The task store: the only room that talks to Cloud Storage.

Copies, deletes and claims travel in batch calls, each with generation preconditions; every call's own answer comes
back as a :class:`Result`, and it is the caller who decides what a refused precondition, or a lost answer, means.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from io import BytesIO
from itertools import islice
from typing import Any
from urllib.parse import quote

import requests
from google.api_core.exceptions import (
    BadGateway,
    GoogleAPICallError,
    GoogleAPIError,
    NotFound,
    PreconditionFailed,
    RetryError,
)
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.storage import Bucket, Client
from google.cloud.storage.retry import DEFAULT_RETRY

from bqdispatch_provider.batches import Body, Call, NotInParts, alone, together
from bqdispatch_provider.bucket_settings import FIELDS, BucketSettings
from bqdispatch_provider.courtesy import Courtesy, NameRest, Pace, too_many
from bqdispatch_provider.emulators import STORAGE, emulator
from bqdispatch_provider.model import CREATED, StoredObject
from bqdispatch_provider.names import UNLISTED, in_one_line, in_words
from bqdispatch_provider.refusals import means_too_many
from bqdispatch_provider.threads import Threads

# The client would read each bucket's metadata in the background to decorate OpenTelemetry's traces: a request more, and
# storage.buckets.get, which nothing here needs.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

log = logging.getLogger(__name__)

BATCH_SIZE = 100
"""Calls in a batch request at most (Cloud Storage, "Batch requests")."""

STORAGE_ERRORS = (GoogleAPIError, GoogleAuthError, requests.RequestException)
"""What a call to Cloud Storage may raise, once all patience is over."""


def _passes(error: Exception) -> bool:
    """Whether an error is worth another try: the library does not know that one of the 403s means too many calls."""
    errors = getattr(error, "errors", None) or _said_in(getattr(error, "response", None))
    return means_too_many(errors) or bool(DEFAULT_RETRY._predicate(error))


def _said_in(response: requests.Response | None) -> Sequence[Mapping[str, Any]]:
    """The reasons in an answer, which the library does not read where content was asked for."""
    try:
        errors = response.json()["error"]["errors"] if response is not None else []
        return [each for each in errors if isinstance(each, dict)]
    except (ValueError, KeyError, TypeError):
        return []


_TIMEOUT = (5.0, 30.0)
_RETRY = DEFAULT_RETRY.with_predicate(_passes).with_timeout(30.0)
_LOST = frozenset({0, 408, 500, 502, 503, 504})
_RETRIED = _LOST | {429}
_PATIENCE = 30.0
_REFUSALS = (GoogleAPICallError, GoogleAuthError, requests.RequestException)
_JSON = "application/json"
_PAGE = 1000
_WRITTEN = "generation,crc32c,size"
_FIELDS = "name,generation,timeCreated,crc32c,size,metadata"
_HOLDS = "temporaryHold,eventBasedHold,retentionExpirationTime"
_ANY_RATE, _LEAST_WRITES = 1_000_000, 500
"""Writes a second in a bucket: where there is no ceiling, and however many are refused; a new bucket takes 1,000."""

_KEPT_NONCURRENT = timedelta(days=1)
"""Lifecycle rules, which may delete noncurrent versions, count in days."""

_LIST = re.compile(r"/b/[^/]+/o")
_ADDRESS = re.compile(r"^[A-Z]+ https?://\S+: ")
_NO_OBJECT = "bqdispatch-may-delete"
"""No object has this name."""

_MOST_PAGES = 10
"""Pages of what is in transit: more than any limit lets through."""

FOLDER_VERBS = ("list", "get", "create", "delete")
TRIGGER_VERBS = ("create", "get", "list")
"""What the account has to be allowed on objects of a folder that it keeps, and of the trigger bucket."""

Stamp = tuple[str, int, str, int, Mapping[str, str]]
"""An object to write beside another: the source's name and generation, the name to write, the generation that it
replaces (0: none), and its metadata."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one call came to.

    :param status: HTTP status; 0 when there was no answer.
    :param body: the answer's JSON: the object that was written.
    :param message: what the service said.
    :param standing: whether an object that was to be deleted is there still, whatever the service said.
    """

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    standing: bool = False

    @property
    def generation(self) -> int:
        """Of the object that was written; 0 when none was."""
        return int(self.body.get("generation") or 0)

    @property
    def ok(self) -> bool:
        """Whether the call was carried out."""
        return 200 <= self.status < 300

    @property
    def doubtful(self) -> bool:
        """Tell whether a precondition failed or the object was not there: both ends have to be looked at again.

        Of a delete: whether somebody else has deleted the object, or written another one.
        """
        return self.status in (404, 412) and not self.standing

    @property
    def lost(self) -> bool:
        """Whether nobody knows if the call was carried out: there was no answer, or the service failed on it."""
        return self.status in _LOST

    def __str__(self) -> str:
        return in_one_line(f"{self.status or 'no answer'} {self.message}".strip())


class _TooBusy(Exception):
    """Some calls are to be tried again."""


class TaskStore:
    """The task folder, and the trigger bucket into which its objects go.

    :param client: of google-cloud-storage; used from several threads.
    :param task_url: the task folder, ``gs://bucket/folder``.
    :param trigger_bucket: name of the bucket that BqTail watches.
    :param most_writes: objects written or deleted a second at most, in each bucket; 0: as fast as it goes.
    """

    def __init__(self, client: Client, task_url: str, trigger_bucket: str, most_writes: int = 0) -> None:
        self._client = client
        self._tasks, self._folder = place(client, task_url)
        self._trigger = client.bucket(trigger_bucket)
        self._batches = True
        self._courtesy = Courtesy()
        self._paces: defaultdict[str, Pace] = defaultdict(lambda: Pace(most_writes or _ANY_RATE, _LEAST_WRITES))
        self._names: NameRest[str] = NameRest()
        self._settings: Mapping[str, Any] | None = None
        self._lists_soft_deleted = True
        self._clock: tuple[float, float] | None = None
        client._http.hooks["response"].append(self._note_time)

    def close(self) -> None:
        """Take back what was attached to the client."""
        hooks = self._client._http.hooks["response"]
        if self._note_time in hooks:
            hooks.remove(self._note_time)

    def _note_time(self, response: requests.Response, *_: Any, **__: Any) -> None:
        try:
            date = parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (KeyError, ValueError):
            return
        self._clock = (date, time.monotonic())

    def now(self) -> datetime:
        """The storage server's time by its last answer, to a second and never ahead; asks when there was none yet."""
        if self._clock is None:
            next(iter(self._client.list_blobs(self._tasks, max_results=1, fields="items(name)", retry=_RETRY)), None)
        date, noted = self._clock or (time.time(), time.monotonic())
        return datetime.fromtimestamp(date + time.monotonic() - noted, UTC)

    def task_url(self, name: str) -> str:
        """The URL of an object of the task folder."""
        return f"gs://{self._tasks.name}/{self._folder}{name}"

    def listing(self, under: str = "") -> tuple[datetime, list[StoredObject]]:
        """Everything in the task folder, and the server's time when the listing began: one request per 1,000 objects.

        What is kept for memory sorts behind all else, and is left out.

        :param under: a folder in it; by default all.
        :raises google.api_core.exceptions.GoogleAPICallError: when the folder cannot be listed.
        """
        query = {"endOffset": f"{self._folder}{UNLISTED}"}
        if self._folder or under:
            query["prefix"] = f"{self._folder}{under}"
        began: datetime | None = None
        found: list[StoredObject] = []
        skip = len(self._folder)
        for page in self._pages(self._tasks, {**query, "fields": f"items({_FIELDS},{_HOLDS}),nextPageToken"}):
            began = began or self.now()
            items = (item for item in page.get("items", ()) if not item["name"].startswith(UNLISTED, skip))
            found.extend(_task(item, skip, began) for item in items)
        return began or self.now(), found

    def in_transit(self, under: str) -> list[StoredObject]:
        """List what lies in a folder of the trigger bucket, not consumed: one request per 1,000 objects, ten at most.

        :param under: the folder, with a slash behind it, which the names that are given are without.
        :raises google.api_core.exceptions.GoogleAPICallError: when the folder cannot be listed.
        """
        query = {"prefix": under, "fields": "items(name,generation,timeCreated),nextPageToken"}
        return [
            _stored(item, len(under))
            for page in islice(self._pages(self._trigger, query), _MOST_PAGES)
            for item in page.get("items", ())
        ]

    def entries(self, folders: Sequence[str]) -> list[list[StoredObject] | Result]:
        """What the ledger holds in folders of the task folder; a :class:`Result` where that cannot be told.

        :param folders: any number of them; a hundred take one request.
        """
        fields = "items(name,generation,timeCreated),nextPageToken"
        asked = [{"prefix": f"{self._folder}{each}", "fields": fields, "maxResults": _PAGE} for each in folders]
        found: list[list[StoredObject] | Result] = []
        for start in range(0, len(asked), BATCH_SIZE):
            found += self._listed(self._tasks, asked[start : start + BATCH_SIZE], len(self._folder))
        return found

    def oldest(self, under: str, until: str, after: str = "") -> list[StoredObject]:
        """The first objects of a folder of the task folder by their names: one request, at most 1,000 objects.

        :param under: the folder.
        :param until: no name from here on.
        :param after: only names behind this one.
        :raises google.api_core.exceptions.GoogleAPICallError: when the folder cannot be listed.
        """
        query = {
            "prefix": f"{self._folder}{under}",
            "endOffset": f"{self._folder}{until}",
            "fields": "items(name,generation,timeCreated),nextPageToken",
        }
        if after:
            query["startOffset"] = f"{self._folder}{after}\0"
        page = next(self._pages(self._tasks, query))
        return [_stored(item, len(self._folder)) for item in page.get("items", ())]

    def _listed(self, bucket: Bucket, asked: Sequence[dict[str, Any]], skip: int) -> list[list[StoredObject] | Result]:
        """Carry out lists side by side, all of their pages."""
        found: list[list[StoredObject] | Result] = [[] for _ in asked]
        left = list(range(len(asked)))
        while left:
            calls = [Call("GET", f"{bucket.path}/o", asked[each]) for each in left]
            going_on: list[int] = []
            for index, result in zip(left, self._run(calls), strict=True):
                before = found[index]
                if not result.ok or isinstance(before, Result):
                    found[index] = result
                    continue
                before.extend(_stored(item, skip) for item in result.body.get("items", ()))
                if result.body.get("nextPageToken"):
                    asked[index]["pageToken"] = result.body["nextPageToken"]
                    going_on.append(index)
            left = going_on
        return found

    def _pages(self, bucket: Bucket, query: Body) -> Iterator[Body]:
        """The pages of a list of objects ("Objects: list"); from the second on, the next is on its way already."""

        def fetch(token: str = "") -> Body:
            asked = {"maxResults": _PAGE, **query, **({"pageToken": token} if token else {})}
            answer: Body = _RETRY(_told)(self._client, Call("GET", f"{bucket.path}/o", asked))
            return answer

        page = fetch()
        yield page
        if not page.get("nextPageToken"):
            return
        with Threads(1, "bqdispatch-list") as ahead:
            following: Future[Body] | None = ahead.submit(fetch, page["nextPageToken"])
            while following is not None:
                page = following.result()
                token = page.get("nextPageToken")
                following = ahead.submit(fetch, token) if token else None
                yield page

    def look(self, name: str) -> StoredObject | None:
        """The object of the task folder as it is now; ``None`` when it is not there."""
        item = _look(self._tasks, f"{self._folder}{name}")
        return None if item is None else _task(item, len(self._folder))

    def look_at_target(self, name: str, to: str | None = None) -> StoredObject | None:
        """The object that a copy would make, as it is now; ``None`` when it is not there.

        :param to: URL of the folder that was copied to; by default the trigger bucket.
        """
        bucket, prefix = self._target(to)
        item = _look(bucket, f"{prefix}{name}")
        return None if item is None else _stored(item, len(prefix))

    def copy(self, copies: Sequence[tuple[str, int, str]], to: str | None = None) -> list[Result]:
        """Copy exact generations of the task folder's objects, each only onto a name that is free.

        Into the trigger bucket a copy whose answer is lost is not made again: it may be there, and consumed already.

        :param copies: name below the task folder, its generation, and the target's name; at most 100.
        :param to: URL of the folder to copy to; by default the trigger bucket.
        """
        calls = [self._copy_call(*each, to) for each in copies]
        return self._run(calls, self._target(to)[0], _RETRIED if to is not None else _RETRIED - _LOST)

    def copy_with(self, name: str, generation: int, target: str, to: str, metadata: Mapping[str, str]) -> Result:
        """Copy one exact generation of the task folder's objects onto a name that is free, with metadata of its own.

        :param target: the copy's name.
        :param to: URL of the folder to copy to.
        """
        body = {"metadata": dict(metadata), "contentType": _JSON}
        (result,) = self._run([self._copy_call(name, generation, target, to, body)], self._target(to)[0])
        return result

    def _copy_call(self, name: str, generation: int, target: str, to: str | None, body: Body | None = None) -> Call:
        bucket, prefix = self._target(to)
        source, copy = self._path(name), f"{bucket.path}/o/{quote(f'{prefix}{target}', safe='')}"
        # No sourceGeneration: on a versioned bucket it would copy what another dispatcher has deleted already.
        query = {"ifGenerationMatch": 0, "ifSourceGenerationMatch": generation, "fields": _WRITTEN}
        return Call("POST", f"{source}/copyTo{copy}", query, body, f"{source}/rewriteTo{copy}")

    def _path(self, name: str) -> str:
        """Of an object of the task folder, below the API's version."""
        return f"{self._tasks.path}/o/{quote(f'{self._folder}{name}', safe='')}"

    def _target(self, to: str | None) -> tuple[Bucket, str]:
        return (self._trigger, "") if to is None else place(self._client, to)

    def versions(self, names: Sequence[str]) -> list[list[StoredObject] | Result]:
        """What lies, or has lain, in the trigger bucket under names that begin so; a :class:`Result` where that cannot
        be told.

        Live and noncurrent versions are looked at before soft-deleted ones: what is deleted meanwhile is then seen
        twice and not never (Cloud Storage, "Objects: list", ``versions`` and ``softDeleted``).

        :param names: at most 100.
        """
        found: list[list[StoredObject] | Result] = [[] for _ in names]
        for which in ("versions", "softDeleted"):
            fields = f"items({_FIELDS}),nextPageToken"
            asked: list[dict[str, Any]] = [{"prefix": name, which: "true", "fields": fields} for name in names]
            for index, listed in enumerate(self._listed(self._trigger, asked, 0)):
                before = found[index]
                if isinstance(listed, Result) and which == "softDeleted" and listed.status in (400, 412, 501):
                    self._lists_soft_deleted = False
                elif isinstance(listed, Result) or isinstance(before, Result):
                    found[index] = listed if isinstance(listed, Result) else before
                else:
                    before.extend(listed)
        return found

    def keeps_deleted(self, since: datetime) -> bool:
        """Whether all that was deleted from the trigger bucket since a moment is still to be seen by :meth:`versions`.

        It is not where the bucket neither soft-deletes nor keeps versions, nor where the account may not tell
        (``storage.buckets.get``).
        """
        if self._settings is None:
            try:
                call = Call("GET", self._trigger.path, {"fields": "softDeletePolicy,versioning,updated"})
                self._settings = _RETRY(alone)(self._client, call, _TIMEOUT)
            except GoogleAPICallError as error:
                said = in_words(error)
                log.warning("It cannot be told whether bucket %r keeps what was deleted: %s", self._trigger.name, said)
                self._settings = {}
        age = self.now() - since
        policy = self._settings.get("softDeletePolicy") or {}
        seconds = int(policy.get("retentionDurationSeconds") or 0)
        if seconds and age < timedelta(seconds=seconds) and self._lists_soft_deleted:
            return datetime.fromisoformat(policy.get("effectiveTime") or "1970-01-01T00:00:00Z") <= since
        if not (self._settings.get("versioning") or {}).get("enabled") or age >= _KEPT_NONCURRENT:
            return False
        # Since when it is on is told nowhere: surely since the last change of the bucket's settings.
        return datetime.fromisoformat(self._settings.get("updated") or "9999-01-01T00:00:00Z") <= since

    def settings(self) -> dict[str, BucketSettings | Result]:
        """Return the settings of the task bucket and of the trigger bucket, or a :class:`Result` where they cannot be
        read (``storage.buckets.get``).
        """
        names = dict.fromkeys([self._tasks.name, self._trigger.name])
        calls = [Call("GET", self._client.bucket(name).path, {"fields": FIELDS}) for name in names]
        return {
            name: BucketSettings(name, result.body) if result.ok else result
            for name, result in zip(names, self._run(calls), strict=True)
        }

    def lacking(self) -> list[str]:
        """The permissions that the account needs to dispatch and has not, in words; empty when it has all.

        Both buckets are asked about in one batch, so that an endpoint which does not carry out batches is known for one
        before anything is written.
        """
        needed = {self._tasks.name: FOLDER_VERBS, self._trigger.name: TRIGGER_VERBS}
        lacking: list[str] = []
        for bucket, found in self.ungranted({name: map(on_objects, verbs) for name, verbs in needed.items()}).items():
            if isinstance(found, Result):
                # An emulator need not know the call; a bucket that is not there is told by the move itself.
                log.debug("The permissions on bucket %r cannot be asked for: %s", bucket, found)
            else:
                lacking += [f"{each} on bucket {bucket!r}" for each in found]
        return lacking

    def ungranted(self, needed: Mapping[str, Iterable[str]]) -> dict[str, list[str] | Result]:
        """By bucket the permissions that the account has not, or a :class:`Result` where that cannot be told.

        (Cloud Storage, "Buckets: testIamPermissions", which needs no permission itself.) What a condition of IAM
        forbids in one folder of a bucket is not to be seen here; see :meth:`tried`.

        :param needed: by bucket the permissions to ask about.
        """
        asked = {name: list(permissions) for name, permissions in needed.items()}
        calls = [
            Call("GET", f"{self._client.bucket(name).path}/iam/testPermissions", {"permissions": permissions})
            for name, permissions in asked.items()
        ]
        return {
            name: [each for each in permissions if each not in result.body.get("permissions", ())]
            if result.ok
            else result
            for (name, permissions), result in zip(asked.items(), self._run(calls), strict=True)
        }

    def tried(self, url: str, verbs: Iterable[str]) -> dict[str, Result]:
        """By verb what a call comes to that needs ``storage.objects.<verb>``, and changes nothing.

        What is read or deleted is an object that is not there (404), and what is written is to take the place of a
        generation that never was (412).

        :param url: of an object in the folder in question; there must be none of that name.
        """
        bucket, name = place(self._client, url, folder=False)
        path = f"{bucket.path}/o/{quote(name, safe='')}"
        calls = {
            "list": Call("GET", f"{bucket.path}/o", {"prefix": name, "maxResults": 1, "fields": "kind"}),
            "get": Call("GET", path, {"fields": "kind"}),
            "delete": Call("DELETE", path, {}),
        }
        return {verb: self._run([calls[verb]])[0] if verb in calls else _create(bucket, name) for verb in verbs}

    def delete(self, objects: Sequence[tuple[str, int]]) -> list[Result]:
        """Delete exactly these generations of the task folder's objects.

        What is said to be gone is looked at: were it there still, it would be dispatched again.

        :param objects: name below the task folder and generation; at most 100.
        """
        results = self._run(
            [Call("DELETE", self._path(name), {"ifGenerationMatch": generation}) for name, generation in objects],
            self._tasks,
        )
        doubtful = [index for index, result in enumerate(results) if result.doubtful]
        if doubtful:
            looks = [Call("GET", self._path(objects[index][0]), {"fields": "generation"}) for index in doubtful]
            for index, look in zip(doubtful, self._run(looks), strict=True):
                if look.ok and look.generation == objects[index][1]:
                    said = f"{results[index].message}; but it is there still"
                elif not look.ok and look.status != 404:
                    said = f"{results[index].message}; and it cannot be looked at: {look}"
                else:
                    continue
                results[index] = replace(results[index], message=said, standing=True)
        return results

    def delete_nothing(self, folders: Sequence[str]) -> list[Result]:
        """Delete what is not there: 404 to whoever may delete in a folder, 403 to others.

        :param folders: below the task folder, each with a slash behind it; any number of them.
        """
        calls = [Call("DELETE", self._path(f"{folder}{_NO_OBJECT}"), {}) for folder in folders]
        chunks = (calls[start : start + BATCH_SIZE] for start in range(0, len(calls), BATCH_SIZE))
        return [result for chunk in chunks for result in self._run(chunk)]

    def stamp(self, stamps: Sequence[Stamp]) -> list[Result]:
        """Write objects beside others, with their content and metadata of their own.

        They are composed of the one object, since a compose carries metadata in a batch call and an overwrite needs no
        ``storage.objects.update``.

        :param stamps: at most 100; a source of generation 0 is taken as it is.
        """
        return self._run([self._stamp_call(*each) for each in stamps], self._tasks)

    def _stamp_call(self, name: str, generation: int, target: str, replaces: int, metadata: Mapping[str, str]) -> Call:
        source: dict[str, Any] = {"name": f"{self._folder}{name}"}
        if generation:
            source["objectPreconditions"] = {"ifGenerationMatch": generation}
        body = {"sourceObjects": [source], "destination": {"metadata": dict(metadata), "contentType": _JSON}}
        return Call("POST", f"{self._path(target)}/compose", {"ifGenerationMatch": replaces, "fields": _WRITTEN}, body)

    def _run(self, calls: Sequence[Call], into: Bucket | None = None, retried: Set[int] = _RETRIED) -> list[Result]:
        """Carry out calls, again and again those that came to a status that passes, until patience is over.

        :param into: the bucket that they write to; ``None``: they only read.
        :param retried: the statuses that pass.
        """
        if len(calls) > BATCH_SIZE:
            raise ValueError(f"{len(calls)} calls in one batch; Cloud Storage takes {BATCH_SIZE}")
        results = [Result(0)] * len(calls)
        left = list(range(len(calls)))
        names: NameRest[int] = NameRest()

        def attempt() -> None:
            due = names.due(left)
            self._courtesy.wait()
            pace = None if into is None else self._paces[into.name]
            if pace is not None:
                pace.take(len(due))
            for index, result in zip(due, self._once([calls[index] for index in due]), strict=True):
                results[index] = result
            refused = [index for index in due if results[index].status == 429]
            busy = sum(results[index].status == 503 for index in due)
            if too_many(len(refused), len(calls)):
                busy += len(refused)
            else:
                names.rest(refused)
            self._courtesy.note(busy=2 * busy > len(due))
            if pace is not None:
                pace.note(len(due), busy)
            left[:] = [index for index in left if results[index].status in retried]
            if left:
                log.debug("%d of %d calls to Cloud Storage go again: %s", len(left), len(calls), results[left[0]])
                raise _TooBusy

        again = Retry(if_exception_type(_TooBusy), initial=0.2, maximum=8.0, multiplier=2.0, timeout=_PATIENCE)
        with suppress(_TooBusy, RetryError):
            again(attempt)()
        return results

    def _once(self, calls: Sequence[Call]) -> list[Result]:
        if self._batches and len(calls) > 1:
            try:
                answers = together(self._client, calls, _TIMEOUT)
            except NotInParts as error:
                log.warning("Cloud Storage gave no whole answer to a batch, going on with single calls: %s", error)
                self._batches = False
                return [Result(0, message=f"the batch's answer is not whole: {error}")] * len(calls)
            except _REFUSALS as error:
                refusal = _failure(error)
                if refusal.status not in (404, 501):
                    return [refusal] * len(calls)
            else:
                # A copy that is too large for one call goes on by rewrites (Cloud Storage, "Objects: copy").
                return [
                    self._alone(call) if call.rewrite and status == 413 else _result(call, status, body)
                    for call, (status, body) in zip(calls, answers, strict=True)
                ]
            log.info("Cloud Storage takes no batch calls here: going on with single ones")
            self._batches = False
        return [self._alone(call) for call in calls]

    def _alone(self, call: Call) -> Result:
        try:
            return Result(200, _told(self._client, call))
        except _REFUSALS as error:
            return _failure(error)

    def read(self, url: str, at_most: float = math.inf) -> bytes:
        """The content of an object.

        :param at_most: as :func:`read_object` takes it.
        :raises google.api_core.exceptions.NotFound: when it is not there.
        :raises ValueError: when it is larger.
        """
        return read_object(url, self._client, at_most)

    def write_json(self, url: str, document: Any, *, replaces: int | None = None) -> int:
        """Write a JSON document, and give its generation; wait before a name that was just changed here.

        :param replaces: the generation that it is to take the place of, 0 for none; another one that is there stays as
            it is, which is a failed precondition; by default whatever is there is replaced.
        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be written.
        """
        return self.write(url, json.dumps(document, indent=1, ensure_ascii=False), replaces=replaces)

    def write(self, url: str, content: str | bytes, *, replaces: int | None = None) -> int:
        """Write an object, and give its generation.

        :param replaces: as :meth:`write_json` takes it.
        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be written.
        """
        bucket, name = place(self._client, url, folder=False)
        blob = bucket.blob(name)
        upload = _RETRY(blob.upload_from_string)
        self._names.due([url])
        try:
            upload(content, content_type=_JSON, if_generation_match=replaces, timeout=_TIMEOUT, retry=None)
            generation = int(blob.generation)
        except (ValueError, TypeError, AttributeError) as error:  # which is how the library takes another form
            raise BadGateway(f"the answer to writing {url!r} is of another form: {in_words(error)}") from error
        self._names.rest([url])
        return generation

    def create(self, url: str, content: bytes, metadata: Mapping[str, str]) -> bool:
        """Write an object with metadata where there is none; tells whether it was written.

        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be written.
        """
        bucket, name = place(self._client, url, folder=False)
        blob = bucket.blob(name)
        blob.metadata = dict(metadata)
        upload = _RETRY(blob.upload_from_string)
        try:
            upload(content, content_type=_JSON, if_generation_match=0, timeout=_TIMEOUT, retry=None)
        except PreconditionFailed:
            there = _look(bucket, name)  # one's own is the answer to a first try that was lost
            return there is not None and dict(there.get("metadata") or {}) == dict(metadata)
        return True

    def claim(self, url: str, document: Mapping[str, Any], every: timedelta) -> int | None:
        """Write a JSON document unless one was written there a short while ago: of many who try, one succeeds.

        :param document: differs from what anybody else writes there.
        :param every: how long the one that is there lets no other be written, by the server's clock.
        :returns: the generation; ``None`` when it was not written.
        """
        bucket, name = place(self._client, url, folder=False)
        there = _look(bucket, name)
        if there and self.now() - datetime.fromisoformat(there["timeCreated"]) < every:
            return None
        try:
            return self.write_json(url, document, replaces=int(there["generation"]) if there else 0)
        except PreconditionFailed:
            # Another one was quicker, or the answer to an earlier try was lost.
            there = _look(bucket, name)
            return int(there["generation"]) if there and json.loads(self.read(url)) == document else None

    def age(self, url: str) -> timedelta | None:
        """How long ago an object was written, by the server's clock; ``None`` when it is not there."""
        there = _look(*place(self._client, url, folder=False))
        return None if there is None else self.now() - datetime.fromisoformat(there["timeCreated"])

    def names(self, url: str) -> Iterator[str]:
        """The URLs of the objects in a folder."""
        bucket, prefix = place(self._client, url)
        for page in self._pages(bucket, {"prefix": prefix, "fields": "items(name),nextPageToken"}):
            yield from (f"gs://{bucket.name}/{item['name']}" for item in page.get("items", ()))

    def remove(self, url: str, generation: int | None = None) -> None:
        """Delete an object that this project wrote; one that is gone is fine. Wait if it was written just now.

        :param generation: delete this one alone, and let another one be.
        """
        bucket, name = place(self._client, url, folder=False)
        self._names.due([url])
        try:
            bucket.delete_blob(name, if_generation_match=generation, timeout=_TIMEOUT, retry=_RETRY)
        except (NotFound, PreconditionFailed):
            log.debug("%s is gone already", url)


def client_of(project: str | None, credentials: Any = None) -> Client:
    """Make a client, for the stand-in that ``STORAGE_EMULATOR_HOST`` names where it is set.

    :param project: by default that of the credentials.
    :param credentials: by default those of the environment; a stand-in is given none.
    """
    more: dict[str, Any] = {"project": project} if project else {}
    if host := emulator(STORAGE):
        # The library takes the variable's value as it is.
        more["client_options"] = {"api_endpoint": host}
        credentials = AnonymousCredentials()
    return Client(**more, credentials=credentials)


def place(client: Client, url: str, *, folder: bool = True) -> tuple[Bucket, str]:
    """The bucket of a ``gs://`` URL, and the path in it; a folder's path ends with a slash, or is empty."""
    bucket, _, path = url.removeprefix("gs://").partition("/")
    return client.bucket(bucket), f"{path.strip('/')}/" if folder and path.strip("/") else path


def on_objects(verb: str) -> str:
    """The permission to do something with objects."""
    return f"storage.objects.{verb}"


def _create(bucket: Bucket, name: str) -> Result:
    """What it comes to, to write over a generation that never was."""
    try:
        bucket.blob(name).upload_from_string(b"", if_generation_match=1, timeout=_TIMEOUT, retry=_RETRY)
    except _REFUSALS as error:
        return _failure(error)
    return Result(200)


class _Bounded(BytesIO):
    """Takes so many bytes, and refuses what comes behind."""

    def __init__(self, at_most: float) -> None:
        super().__init__()
        self._at_most = at_most

    def write(self, part: Any) -> int:
        if self.tell() + len(part) > self._at_most:
            raise ValueError(f"it is larger than {self._at_most:,} bytes")
        return super().write(part)


def read_object(url: str, client: Client | None = None, at_most: float = math.inf) -> bytes:
    """The content of the object at a ``gs://`` URL.

    :param client: by default one with the environment's credentials.
    :param at_most: bytes that it may have, unpacked where it is stored as gzip; by default any number.
    :raises ValueError: when it has more; the rest is not read.
    """
    bucket, name = place(client or client_of(None), url, folder=False)

    def download() -> bytes:
        into = _Bounded(at_most)
        bucket.blob(name).download_to_file(into, timeout=_TIMEOUT, retry=None, checksum="crc32c")
        return into.getvalue()

    # Not by the library's own retries: the older of them know nothing but statuses where content is sent or asked for.
    # A claim, which is composed, has no MD5, and older libraries tell so in two lines for each.
    content: bytes = _RETRY(download)()
    return content


def _stored(item: Mapping[str, Any], skip: int = 0) -> StoredObject:
    """An object by its resource (Cloud Storage, "Objects")."""
    return StoredObject(
        item["name"][skip:],
        int(item["generation"]),
        datetime.fromisoformat(item["timeCreated"]),
        item.get("crc32c", ""),
        int(item.get("size", 0)),
        item.get("metadata") or {},
    )


def _task(item: Mapping[str, Any], skip: int, now: datetime | None = None) -> StoredObject:
    """An object of the task folder, which stays as old as it was when it was given a new generation.

    :param now: the server's time, to tell what is under a retention policy.
    """
    stored = _stored(item, skip)
    if stored.doubted:
        with suppress(ValueError, OverflowError, OSError):
            stored = replace(stored, created=datetime.fromtimestamp(float(stored.metadata[CREATED]), UTC))
    held = _held(item, now) if now is not None else ""
    return replace(stored, held=held) if held else stored


def _held(item: Mapping[str, Any], now: datetime) -> str:
    for hold in ("temporaryHold", "eventBasedHold"):
        if item.get(hold):
            return f"a hold ({hold})"
    until = item.get("retentionExpirationTime")
    return f"a retention policy until {until}" if until and datetime.fromisoformat(until) > now else ""


def _look(bucket: Bucket, name: str) -> Mapping[str, Any] | None:
    """Return an object's resource; ``None`` when it is not there."""
    try:
        found: Body = _RETRY(_told)(bucket.client, Call("GET", f"{bucket.path}/o/{quote(name, safe='')}", {}))
    except NotFound:
        return None
    return found


def _failure(error: Exception) -> Result:
    if isinstance(error, GoogleAPICallError):
        # As in a batch, where the address is not said.
        said = _ADDRESS.sub("", error.message or type(error).__name__)
        return _refusal(int(error.code or 0), error.errors, said)
    if isinstance(error, GoogleAuthError) and not isinstance(error, TransportError):
        return Result(401, message=in_words(error))  # there are no credentials any more
    return Result(0, message=in_words(error))


def _refusal(status: int, errors: Sequence[Mapping[str, Any]], message: str) -> Result:
    """A refused call; the 403 for too many calls passes, unlike the others, so it becomes the 429 that it means."""
    return Result(429 if status == 403 and means_too_many(errors) else status, message=message)


def _odd(call: Call, body: Body) -> str:
    """Say of an answer that it does not tell what was asked for, so that it proves nothing, whoever has sent it.

    :returns: that, in words; empty where it does.
    """
    fields = call.query.get("fields", "generation,timeCreated")
    if call.method == "DELETE":
        fits = not body
    elif _LIST.fullmatch(call.path):
        items = body.get("items", [])
        fits = isinstance(items, list) and all(isinstance(each, dict) and "name" in each for each in items)
    elif "/o/" in call.path and "generation" in fields:
        fits = str(body.get("generation", "")).isdecimal() and ("timeCreated" in body or "timeCreated" not in fields)
    else:
        fits = True
    return "" if fits else f"the answer is of another form: {str(body)[:100]}"


def _told(client: Client, call: Call) -> Body:
    """Carry out one call, and give what it answers.

    :raises google.api_core.exceptions.GoogleAPICallError: when it is refused, or the answer is of another form.
    """
    body = alone(client, call, _TIMEOUT)
    if odd := _odd(call, body):
        raise BadGateway(odd)
    return body


def _result(call: Call, status: int, body: Body) -> Result:
    if status < 300:
        odd = _odd(call, body)
        return Result(502, message=odd) if odd else Result(status, body)
    said = body.get("error")
    if not isinstance(said, dict):  # a proxy's
        said = {"message": str(said or "")}
    errors = [each for each in said.get("errors") or () if isinstance(each, dict)]
    return _refusal(status, errors, str(said.get("message") or ""))
