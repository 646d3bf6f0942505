"""Calls of Cloud Storage: retried, in batches if the endpoint supports them, within the rate limit of each bucket."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from google.api_core.exceptions import BadGateway, NotFound, RetryError
from google.api_core.retry import Retry, if_exception_type
from google.cloud.storage import Client
from google.cloud.storage.retry import DEFAULT_RETRY

from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS, is_retryable
from bqdispatch_provider.gcp.gcs_batch import BATCH_SIZE, ApiCall, BatchNotSupported, Body, send, send_batch
from bqdispatch_provider.gcp.rate_limit import AdaptiveRateLimiter, NameCooldown, SharedBackoff, too_many
from bqdispatch_provider.gcp.storage_answers import LOST_STATUSES, Result, stored_object, unexpected_form
from bqdispatch_provider.gcp.threads import Threads

F = TypeVar("F", bound=Callable[..., Any])
log = logging.getLogger(__name__)

RETRIED_STATUSES = LOST_STATUSES | {429}

RETRY_FOR_S = 30.0
RETRY = DEFAULT_RETRY.with_predicate(is_retryable).with_timeout(RETRY_FOR_S)
"""Retries of single calls, uploads and downloads; those of :meth:`StorageCalls.run` are its own."""

PAGE_SIZE = 1000

MAX_DATE_CHARS = 64
"""Of a ``Date`` header, which has 29 (RFC 9110)."""

_UNLIMITED_WRITES, _MIN_WRITES = 1_000_000, 500
"""Writes a second in a bucket: without a limit, and however many are refused. A new bucket takes 1,000."""


def split_url(url: str) -> tuple[str, str]:
    """Split an object's ``gs://`` URL into the bucket and the object's name."""
    bucket, _, name = url.removeprefix("gs://").partition("/")
    return bucket, name


def split_folder_url(url: str) -> tuple[str, str]:
    """Split a folder's ``gs://`` URL into the bucket and the folder, which ends with a slash, or is empty."""
    bucket, name = split_url(url)
    return bucket, f"{name.strip('/')}/" if name.strip("/") else ""


def object_path(bucket: str, name: str) -> str:
    """Return the path of an object below the API's version."""
    return f"/b/{bucket}/o/{quote(name, safe='')}"


def retried(function: F) -> F:
    """Make a function that retries what is worth it."""
    again: F = RETRY(function)
    return again


class _SomeLeft(Exception):
    """Some calls are retried."""


class StorageCalls:
    """Calls by one client, from several threads, and the server's clock by their answers.

    Ages and due times are measured by that clock, and not by this machine's.

    :param client: of google-cloud-storage; its answers are watched until :meth:`close`.
    :param bucket: is listed when somebody asks for the time before the first answer.
    :param max_writes_per_s: most objects that are written or deleted a second, in each bucket; 0: no limit.
    """

    def __init__(self, client: Client, bucket: str, max_writes_per_s: int = 0) -> None:
        self.client = client
        self._bucket = bucket
        self._batches = True
        self._backoff = SharedBackoff()
        self._limiters: defaultdict[str, AdaptiveRateLimiter] = defaultdict(
            lambda: AdaptiveRateLimiter(max_writes_per_s or _UNLIMITED_WRITES, _MIN_WRITES)
        )
        self._clock: tuple[float, float] | None = None
        """The date of the last answer, and the monotonic time at which it came."""

        client._http.hooks["response"].append(self._record_date)

    def close(self) -> None:
        """Stop watching the client's answers."""
        hooks = self.client._http.hooks["response"]
        if self._record_date in hooks:
            hooks.remove(self._record_date)

    def _record_date(self, response: requests.Response, *_: Any, **__: Any) -> None:
        # Anybody may be in between: a date may be of any length, or of no year that there is.
        with suppress(KeyError, ValueError, TypeError, IndexError, OverflowError):
            date = parsedate_to_datetime(response.headers["Date"][:MAX_DATE_CHARS])
            self._clock = date.timestamp(), time.monotonic()

    def now(self) -> datetime:
        """Return the server's time, to a second and never ahead.

        As long as the server has not answered it is this machine's, for reports alone: nothing can be listed then.
        """
        if self._clock is None:
            with suppress(*GOOGLE_ERRORS):
                next(self.pages(self._bucket, {"maxResults": 1, "fields": "items(name)"}))
            self._clock = self._clock or (time.time(), time.monotonic())
        date, came = self._clock
        return datetime.fromtimestamp(date + time.monotonic() - came, UTC)

    def run(
        self, calls: Sequence[ApiCall], writes_to: str | None = None, retried: Set[int] = RETRIED_STATUSES
    ) -> list[Result]:
        """Carry out calls, and retry those with certain statuses for up to :data:`RETRY_FOR_S` seconds.

        :param calls: at most :data:`~bqdispatch_provider.gcp.gcs_batch.BATCH_SIZE`.
        :param writes_to: the bucket that they write to; ``None``: they only read.
        :param retried: the statuses.
        :returns: the last answer to each call.
        """
        if not calls:
            return []
        if len(calls) > BATCH_SIZE:
            raise ValueError(f"{len(calls)} calls in one batch; Cloud Storage takes {BATCH_SIZE}")
        results = [Result(0)] * len(calls)
        left = list(range(len(calls)))
        cooldown: NameCooldown[int] = NameCooldown()
        limiter = None if writes_to is None else self._limiters[writes_to]

        def attempt() -> None:
            chosen = cooldown.wait_for_some(left)
            self._backoff.wait()
            if limiter is not None:
                limiter.acquire(len(chosen))
            for index, result in zip(chosen, self._run_once([calls[index] for index in chosen]), strict=True):
                results[index] = result
            refused = [index for index in chosen if results[index].status == 429]
            busy = sum(results[index].status == 503 for index in chosen)
            if too_many(len(refused), len(calls)):
                busy += len(refused)
            else:
                cooldown.start(refused)
            self._backoff.record(busy=2 * busy > len(chosen))
            if limiter is not None:
                limiter.record(len(chosen), busy)
            left[:] = [index for index in left if results[index].status in retried]
            if left:
                log.debug("%d of %d calls to Cloud Storage are retried: %s", len(left), len(calls), results[left[0]])
                raise _SomeLeft

        retry = Retry(if_exception_type(_SomeLeft), initial=0.2, maximum=8.0, multiplier=2.0, timeout=RETRY_FOR_S)
        with suppress(_SomeLeft, RetryError):
            retry(attempt)()
        return results

    def run_many(self, calls: Sequence[ApiCall], writes_to: str | None = None) -> list[Result]:
        """Carry out any number of calls, a batch at a time; see :meth:`run`."""
        batches = (calls[start : start + BATCH_SIZE] for start in range(0, len(calls), BATCH_SIZE))
        return [result for batch in batches for result in self.run(batch, writes_to)]

    def _run_once(self, calls: Sequence[ApiCall]) -> list[Result]:
        if self._batches and len(calls) > 1:
            try:
                answers = send_batch(self.client, calls)
            except BatchNotSupported as error:
                log.warning("Cloud Storage answered only a part of a batch; falling back to single calls: %s", error)
                self._batches = False
                return [Result(0, message=f"the batch's answer is incomplete: {error}")] * len(calls)
            except GOOGLE_ERRORS as error:
                refusal = Result.of_error(error)
                if refusal.status not in (404, 501):
                    return [refusal] * len(calls)
            else:
                # A copy that is too large for one call continues by rewrites (Cloud Storage, "Objects: copy").
                return [
                    self._send(call) if call.rewrite and status == 413 else Result.of_answer(call, status, body)
                    for call, (status, body) in zip(calls, answers, strict=True)
                ]
            log.info("Cloud Storage does not support batches here; falling back to single calls")
            self._batches = False
        return [self._send(call) for call in calls]

    def _send(self, call: ApiCall) -> Result:
        try:
            return Result(200, self.send(call))
        except GOOGLE_ERRORS as error:
            return Result.of_error(error)

    def send(self, call: ApiCall) -> Body:
        """Carry out one call, once.

        :returns: the answer.
        :raises google.api_core.exceptions.GoogleAPICallError: when it is refused, or the answer has an unexpected form.
        """
        body = send(self.client, call)
        if wrong := unexpected_form(call, body):
            raise BadGateway(wrong)
        return body

    def get(self, bucket: str, name: str) -> Body | None:
        """Return an object's resource; ``None`` if it does not exist.

        :raises google.api_core.exceptions.GoogleAPICallError: when that cannot be told.
        """
        try:
            return retried(self.send)(ApiCall("GET", object_path(bucket, name), {}))
        except NotFound:
            return None

    def pages(self, bucket: str, query: Body) -> Iterator[Body]:
        """List objects, page by page ("Objects: list"). From the second page on, the next one is fetched meanwhile.

        :param query: the parameters.
        :raises google.api_core.exceptions.GoogleAPICallError: when they cannot be listed.
        """

        def fetch(token: str | None = None) -> Body:
            asked = {"maxResults": PAGE_SIZE, **query, **({"pageToken": token} if token else {})}
            return retried(self.send)(ApiCall("GET", f"/b/{bucket}/o", asked))

        page = fetch()
        yield page
        with Threads(1, "bqdispatch-list") as ahead:

            def following(page: Body) -> Future[Body] | None:
                token = page.get("nextPageToken")
                return ahead.submit(fetch, token) if token else None

            coming = following(page)
            while coming is not None:
                page = coming.result()
                coming = following(page)
                yield page

    def lists(self, bucket: str, queries: Sequence[Body], skip: int) -> list[list[StoredObject] | Result]:
        """Carry out several lists in batches, all pages of each.

        :param queries: the parameters of each list.
        :param skip: number of characters at the beginning of each name to leave out.
        :returns: the objects of each list, or the refusal.
        """
        found: list[list[StoredObject]] = [[] for _ in queries]
        refused: dict[int, Result] = {}
        left = dict(enumerate(queries))
        while left:
            results = self.run_many([ApiCall("GET", f"/b/{bucket}/o", query) for query in left.values()])
            unfinished: dict[int, Body] = {}
            for (index, query), result in zip(left.items(), results, strict=True):
                if not result.ok:
                    refused[index] = result
                    continue
                found[index].extend(stored_object(item, skip) for item in result.body.get("items", ()))
                if token := result.body.get("nextPageToken"):
                    unfinished[index] = {**query, "pageToken": token}
            left = unfinished
        return [refused.get(index, objects) for index, objects in enumerate(found)]
