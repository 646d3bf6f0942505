"""Deliveries: the windows and traces that a dispatcher puts into the trigger bucket."""

from __future__ import annotations

import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed, TooManyRequests
from google.cloud.storage import Blob

from bqdispatch_provider.testing.bqtail.bodies import TraceBody, UnreadableBodyError, WindowBody
from bqdispatch_provider.testing.bqtail.buckets import Buckets, split_url
from bqdispatch_provider.testing.bqtail.calls import CALL_ERRORS, RETRY_UNLESS_RATE_LIMITED, is_worth_a_retry
from bqdispatch_provider.testing.bqtail.chains import Chains
from bqdispatch_provider.testing.bqtail.ledger import Ledger

LISTING_DELAY_S = 7
"""Minimum time from the end of a window until BqTail lists its files."""

MAX_TRIES = 4
"""Number of failed tries after which BqTail moves a trace away."""

_SAME_NAME_INTERVAL_S = 1.0
"""Minimum interval between two changes of an object name (Cloud Storage, "Quotas & limits")."""

log = logging.getLogger(__name__)


class Deliveries:
    """The deliveries to a BqTail.

    :param buckets: buckets of the BqTail.
    :param chains: its chains.
    :param ledger: its ledger.
    """

    def __init__(self, buckets: Buckets, chains: Chains, ledger: Ledger) -> None:
        self._buckets = buckets
        self._chains = chains
        self._ledger = ledger
        # Objects that were handled and not deleted yet. To handle them again would be a fault of BqTail.
        self._handled: set[tuple[str, int]] = set()
        self._deletable_at: dict[tuple[str, int], float] = {}
        """Times by the monotonic clock at which handled objects can be deleted: a name can be changed once a second."""
        self._tries: Counter[tuple[str, int]] = Counter()
        self.unknown_rules: Counter[str] = Counter()
        """Number of windows to drop by destination."""

    def consume(self, patient: bool) -> int:
        """Handle all objects that have arrived in the trigger bucket.

        :param patient: ``True``: wait until handled objects can be deleted.
        :returns: number of consumed objects.
        """
        arrived = self._buckets.arrived()
        if not arrived:
            return 0
        time.sleep(self._chains.settings.delay_s)
        with ThreadPoolExecutor(self._chains.settings.workers) as pool:
            return sum(pool.map(lambda blob: self._handle(blob, patient), arrived))

    def act(self, name: str, body: bytes) -> bool:
        """Act on an object.

        :param name: name of the object; only its prefix matters.
        :param body: content of the object.
        :returns: ``False`` if the object has to wait.
        """
        try:
            if name.startswith(self._buckets.batch_prefix):
                return self._load_window(WindowBody.from_json(body))
            return self._chains.resume(TraceBody.from_json(body), name)
        except UnreadableBodyError as error:
            log.warning("Cannot read %s: %s", name, error)
            self._ledger.unreadable.append(f"{name}: {error}")
            return True

    def _handle(self, blob: Blob, patient: bool) -> bool:
        """Handle an object, then delete it. Return ``False`` if it is left for a later step."""
        key = (blob.name, blob.generation)
        if time.monotonic() < self._deletable_at.get(key, 0.0):
            return False
        if key not in self._handled:
            try:
                body = self._read(blob)
                if body is None or not self.act(blob.name, body):
                    return False
            except CALL_ERRORS as error:
                if not self._give_up(blob, error):
                    return False
            self._handled.add(key)
        try:
            return self._delete(blob, patient)
        except CALL_ERRORS as error:
            log.warning("Cannot delete %s, try again in the next step: %s", blob.name, error)
            self._ledger.errors.append(f"{blob.name}: {error}")
            return False

    @staticmethod
    def _read(blob: Blob) -> bytes | None:
        """Return the body of the listed generation, ``None`` if it is gone or replaced."""
        try:
            return bytes(blob.download_as_bytes(if_generation_match=blob.generation))
        except (NotFound, PreconditionFailed):
            return None

    def _give_up(self, blob: Blob, error: Exception) -> bool:
        """Return ``True`` if an object that failed is not tried again."""
        if is_worth_a_retry(error):
            log.warning("Cannot handle %s, try again in the next step: %s", blob.name, error)
            self._ledger.errors.append(f"{blob.name}: {error}")
            key = (blob.name, blob.generation)
            self._tries[key] += 1
            if blob.name.startswith(self._buckets.batch_prefix) or self._tries[key] < MAX_TRIES:
                return False
            aside = f"{self._buckets.journal_url}/retry/data/{self._ledger.new_event_id()}/{blob.name}"
            self._buckets.copy(self._buckets.uri(blob.name), aside)
        self._ledger.dropped.append(f"{blob.name}: {error}")
        return True

    def _delete(self, blob: Blob, patient: bool) -> bool:
        """Delete a handled object. Return ``False`` if it arrived less than a second ago and nobody waits."""
        key = (blob.name, blob.generation)
        try:
            self._delete_delivered(blob)
        except TooManyRequests:
            if not patient:
                self._deletable_at[key] = time.monotonic() + _SAME_NAME_INTERVAL_S
                return False
            # Then all other objects of this step can be deleted, too.
            time.sleep(_SAME_NAME_INTERVAL_S)
            self._delete_delivered(blob)
        self._handled.discard(key)
        self._deletable_at.pop(key, None)
        return True

    def _delete_delivered(self, blob: Blob) -> None:
        # Only this generation: an object that replaced it has to be consumed, too. With a condition instead of the
        # generation to delete, a bucket with versioning keeps the object.
        with suppress(NotFound, PreconditionFailed):
            self._buckets.trigger.delete_blob(
                blob.name, if_generation_match=blob.generation, retry=RETRY_UNLESS_RATE_LIMITED
            )

    def _load_window(self, window: WindowBody) -> bool:
        if self.unknown_rules[window.process.dest] > 0:
            self.unknown_rules[window.process.dest] -= 1
            self._ledger.dropped.append(f"window {window.name}: rule was empty for {window.process.rule_url}")
        elif self._buckets.server_time() < window.end + LISTING_DELAY_S:
            return False
        else:
            try:
                self._load_files(window)
            except GoogleAPIError as error:
                if is_worth_a_retry(error):
                    raise
                self._ledger.dropped.append(f"window {window.name}: {error}")
        self._ledger.window_consumed(window)
        return True

    def _load_files(self, window: WindowBody) -> None:
        folders, locations = {window.process.folder}, []
        if self._chains.settings.rule(window.process.dest).multi_path:
            bucket, beside = split_url(window.url.removesuffix(".win"))
            for blob in self._buckets.objects(bucket, f"{beside}/", delimiter="/"):
                if blob.name.endswith(".loc"):
                    folders.add(blob.download_as_bytes().decode())
                    locations.append(f"gs://{bucket}/{blob.name}")
        sources = [
            f"gs://{bucket}/{blob.name}"
            for bucket, folder in map(split_url, sorted(folders))
            for blob in self._buckets.objects(bucket, f"{folder}/", delimiter="/")
            if window.start <= blob.updated.timestamp() < window.end
        ]
        if sources:
            self._chains.start(window.process, sources, locations)
