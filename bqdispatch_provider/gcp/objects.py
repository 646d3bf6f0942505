"""Objects by their URLs, in any bucket: the journal, the bodies of events, the configuration document."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any

from google.api_core.exceptions import BadGateway, GoogleAPIError, NotFound, PreconditionFailed
from google.cloud.storage import Blob, Client

from bqdispatch_provider.core.sizes import MAX_ALERT_BYTES
from bqdispatch_provider.gcp import gcs_batch
from bqdispatch_provider.gcp.clients import client_of
from bqdispatch_provider.gcp.rate_limit import NameCooldown
from bqdispatch_provider.gcp.storage_calls import StorageCalls, retried, split_folder_url, split_url
from bqdispatch_provider.names import in_words

log = logging.getLogger(__name__)

JSON = "application/json"


class ObjectTooLarge(GoogleAPIError, ValueError):  # type: ignore[misc]  # the library has no types
    """An object that is larger than any honest one of its kind.

    It can be caught as what a refused call raises, and as what unreadable content raises: it concerns one object.

    :param url: of the object.
    :param max_bytes: bytes that it may have.
    """

    def __init__(self, url: str, max_bytes: int) -> None:
        super().__init__(
            f"it is larger than {max_bytes:,} bytes, the limit for its kind: see who wrote {url!r}, and move it away"
        )


class ObjectStore:
    """Objects that are read, written and deleted one by one.

    :param calls: by the client in question.
    """

    def __init__(self, calls: StorageCalls) -> None:
        self.calls = calls
        self._cooldown: NameCooldown[str] = NameCooldown()

    def now(self) -> datetime:
        """Return the storage server's time by its last answer, to a second and never ahead."""
        return self.calls.now()

    def read(self, url: str, max_bytes: int, size: int = 0) -> bytes:
        """Return the content of an object.

        :param max_bytes: as :func:`read_object` takes it (:mod:`~bqdispatch_provider.core.sizes`).
        :param size: as a listing gave it; a larger object is not asked for. 0, the default: unknown.
        :raises google.api_core.exceptions.NotFound: when it does not exist.
        :raises ObjectTooLarge: when it is larger.
        """
        if size > max_bytes:
            raise ObjectTooLarge(url, max_bytes)
        return read_object(url, self.calls.client, max_bytes)

    def write_json(self, url: str, document: Any, *, replaces: int | None = None, indent: int | None = 1) -> int:
        """Write a JSON document.

        :param replaces: as :meth:`write` takes it.
        :param indent: spaces by which each level is indented; ``None`` writes one line, in a third of the time.
        :returns: the generation.
        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be written.
        """
        return self.write(url, json.dumps(document, indent=indent, ensure_ascii=False).encode(), replaces=replaces)

    def write(
        self,
        url: str,
        content: str | bytes,
        *,
        replaces: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Write an object; wait first if its name was changed here less than a second ago.

        :param replaces: the generation that it replaces, 0 for none. If there is another one, it stays, and
            ``PreconditionFailed`` is raised. By default whatever exists is replaced.
        :param metadata: of the object; by default it has none.
        :returns: the generation.
        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be written.
        """
        blob = _blob(self.calls.client, url)
        if metadata:
            blob.metadata = dict(metadata)
        self._cooldown.wait_for_some([url])
        try:
            retried(blob.upload_from_string)(
                content, content_type=JSON, if_generation_match=replaces, timeout=gcs_batch.TIMEOUT_S, retry=None
            )
            generation = int(blob.generation)
        except (ValueError, TypeError, AttributeError) as error:  # the library cannot read the answer
            raise BadGateway(f"the answer to writing {url!r} has an unexpected form: {in_words(error)}") from error
        self._cooldown.start([url])
        return generation

    def wait_for_name(self, url: str) -> None:
        """Wait until :meth:`write` would not have to."""
        self._cooldown.wait_for_some([url])

    def create(self, url: str, content: bytes, metadata: Mapping[str, str]) -> bool:
        """Write an object with metadata unless there is one.

        :returns: True if it was written.
        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be written.
        """
        try:
            self.write(url, content, replaces=0, metadata=metadata)
        except PreconditionFailed:
            existing = self.calls.get(*split_url(url))  # it is ours if the answer to a first try was lost
            return existing is not None and dict(existing.get("metadata") or {}) == dict(metadata)
        return True

    def write_if_older_than(self, url: str, document: Mapping[str, Any], age: timedelta) -> int | None:
        """Write a JSON document unless there is a younger one. If several try at the same time, one succeeds.

        :param document: differs from what anyone else writes there.
        :param age: of the existing document, by the server's clock.
        :returns: the generation; ``None`` if it was not written.
        """
        existing = self.calls.get(*split_url(url))
        if existing and self._age(existing) < age:
            return None
        try:
            return self.write_json(url, document, replaces=int(existing["generation"]) if existing else 0)
        except PreconditionFailed:
            # Someone else was quicker, or the answer to an earlier try was lost.
            existing = self.calls.get(*split_url(url))
            return int(existing["generation"]) if existing and self._holds(url, document) else None

    def _holds(self, url: str, document: Mapping[str, Any]) -> bool:
        """Tell whether an object holds a document; anybody may have written it."""
        try:
            return bool(json.loads(self.read(url, MAX_ALERT_BYTES)) == document)
        except (ValueError, RecursionError):
            return False

    def age(self, url: str) -> timedelta | None:
        """Return how long ago an object was written, by the server's clock; ``None`` if it does not exist."""
        existing = self.calls.get(*split_url(url))
        return None if existing is None else self._age(existing)

    def generation(self, url: str) -> int | None:
        """Return the generation of an object; ``None`` if it does not exist."""
        existing = self.calls.get(*split_url(url))
        return None if existing is None else int(existing["generation"])

    def _age(self, resource: Mapping[str, Any]) -> timedelta:
        return self.now() - datetime.fromisoformat(resource["timeCreated"])

    def list_urls(self, url: str, *, subfolders: bool = True) -> Iterator[str]:
        """List the URLs of the objects in a folder.

        :param subfolders: True to list those in its subfolders, too.
        """
        return (each for each, _, _ in self.list_created(url, subfolders=subfolders))

    def list_created(self, url: str, *, subfolders: bool = True) -> Iterator[tuple[str, datetime, int]]:
        """List the URLs of the objects in a folder, each with when its generation was created, and that generation.

        :param subfolders: as :meth:`list_urls` takes it.
        """
        bucket, prefix = split_folder_url(url)
        query = {"prefix": prefix, "fields": "items(name,timeCreated,generation),nextPageToken"}
        if not subfolders:
            query["delimiter"] = "/"
        for page in self.calls.pages(bucket, query):
            for item in page.get("items", ()):
                created = datetime.fromisoformat(item["timeCreated"])
                yield f"gs://{bucket}/{item['name']}", created, int(item["generation"])

    def remove(self, url: str, generation: int | None = None) -> None:
        """Delete an object if it exists; wait first if its name was changed here less than a second ago.

        :param generation: delete no other one; by default any.
        """
        delete = retried(_blob(self.calls.client, url).delete)
        self._cooldown.wait_for_some([url])
        try:
            delete(if_generation_match=generation, timeout=gcs_batch.TIMEOUT_S, retry=None)
        except (NotFound, PreconditionFailed):
            log.debug("%s does not exist any more", url)


def created_at(url: str, client: Client) -> datetime | None:
    """Return when the object at a ``gs://`` URL was written (aware); ``None`` if it does not exist.

    :raises google.api_core.exceptions.GoogleAPICallError: when that cannot be told.
    """
    blob = _blob(client, url)
    try:
        retried(blob.reload)(timeout=gcs_batch.TIMEOUT_S, retry=None)
    except NotFound:
        return None
    written: datetime | None = blob.time_created
    return written


def _blob(client: Client, url: str) -> Blob:
    bucket, name = split_url(url)
    return client.bucket(bucket).blob(name)


class _LimitedBuffer(BytesIO):
    """A buffer that raises an error when it is given more than so many bytes."""

    def __init__(self, url: str, max_bytes: int) -> None:
        super().__init__()
        self._url, self._max_bytes = url, max_bytes

    def write(self, part: Any) -> int:
        if self.tell() + len(part) > self._max_bytes:
            raise ObjectTooLarge(self._url, self._max_bytes)
        return super().write(part)


def read_object(url: str, client: Client | None, max_bytes: int) -> bytes:
    """Return the content of the object at a ``gs://`` URL.

    :param client: ``None`` for one with the environment's credentials.
    :param max_bytes: most bytes that it may have, unpacked if it is stored as gzip.
    :raises ObjectTooLarge: when it has more; the rest is not read.
    """
    blob = _blob(client or client_of(None), url)

    def download() -> bytes:
        buffer = _LimitedBuffer(url, max_bytes)
        blob.download_to_file(buffer, timeout=gcs_batch.TIMEOUT_S, retry=None, checksum="crc32c")
        return buffer.getvalue()

    # Not the library's own retries: older ones know nothing but statuses when content is sent or fetched.
    # crc32c: a claim is composed and has no MD5, and older libraries log two lines about each of those.
    return retried(download)()
