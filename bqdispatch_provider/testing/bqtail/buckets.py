"""A BqTail's buckets: task folder, trigger bucket, and journal."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime

import requests
from google.api_core.exceptions import NotFound
from google.cloud.storage import Blob, Bucket, Client

from bqdispatch_provider.testing.bqtail.bodies import TraceBody, UnreadableBodyError, WindowBody
from bqdispatch_provider.testing.bqtail.calls import RETRY, call
from bqdispatch_provider.testing.bqtail.settings import BqTailSettings
from bqdispatch_provider.testing.bqtail.whereabouts import Places

_LISTED = "items(name,generation,timeCreated,updated),nextPageToken"


class Buckets:
    """The buckets of a BqTail.

    :param client: client of Cloud Storage.
    :param session: session with credentials, if Cloud Storage needs them.
    :param settings: settings of the BqTail.
    """

    def __init__(self, client: Client, session: requests.Session, settings: BqTailSettings) -> None:
        self._client = client
        self._session = session
        bucket, folder = split_url(settings.task_url)
        self._folder = f"{folder.strip('/')}/" if folder.strip("/") else ""
        self._tasks = client.bucket(bucket)
        self.task_url = f"gs://{bucket}/{self._folder}"
        self.journal_url = (settings.journal_url or f"gs://{bucket}/BqTail/Journal").rstrip("/")
        self.rules_url = f"gs://{bucket}/BqTail/Rules"
        self.trigger = client.bucket(settings.trigger_bucket)
        self.batch_prefix = settings.batch_prefix.lstrip("/")
        self.post_job_prefix = settings.post_job_prefix.lstrip("/")

    def task(self, name: str) -> Blob:
        """Return the blob of a path in the task folder, without a call.

        :param name: path below the task folder.
        """
        return self._tasks.blob(self._folder + name)

    def uri(self, name: str) -> str:
        """Return the URI of an object in the trigger bucket.

        :param name: the object's name.
        """
        return f"gs://{self.trigger.name}/{name}"

    def objects(self, bucket: Bucket | str, prefix: str, delimiter: str | None = None) -> Iterator[Blob]:
        """List objects with name, generation and times.

        :param bucket: bucket, or its name.
        :param prefix: prefix of the names.
        :param delimiter: leave out names with it after the prefix; ``None``: leave out none.
        """
        yield from self._client.list_blobs(bucket, prefix=prefix, delimiter=delimiter, fields=_LISTED)

    def arrived(self) -> list[Blob]:
        """Return the objects that a dispatcher has delivered."""
        return [
            blob for prefix in (self.batch_prefix, self.post_job_prefix) for blob in self.objects(self.trigger, prefix)
        ]

    def exists(self, uri: str) -> bool:
        """Return ``True`` if an object exists.

        :param uri: URI of the object.
        """
        bucket, name = split_url(uri)
        return bool(self._client.bucket(bucket).blob(name).exists())

    def copy(self, uri: str, target: str) -> None:
        """Copy an object.

        :param uri: URI of the object.
        :param target: URI of the copy.
        """
        (bucket, name), (to_bucket, to_name) = split_url(uri), split_url(target)
        source = self._client.bucket(bucket)
        source.copy_blob(source.blob(name), self._client.bucket(to_bucket), to_name, retry=RETRY)

    def delete(self, uris: Iterable[str]) -> None:
        """Delete objects, and ignore missing ones.

        :param uris: URIs of the objects.
        """
        for bucket, names in itertools.groupby(sorted(map(split_url, uris)), key=lambda each: each[0]):
            self._client.bucket(bucket).delete_blobs(
                [name for _, name in names], on_error=lambda blob: None, retry=RETRY
            )

    def places(self) -> Places:
        """Return the places of all windows and traces."""
        # List in the direction in which objects move, so that no moving object is missed.
        task_folder = frozenset(
            blob.name.removeprefix(self._folder) for blob in self.objects(self._tasks, self._folder)
        )
        arrived = {}
        for prefix, body in ((self.batch_prefix, WindowBody), (self.post_job_prefix, TraceBody)):
            for blob in self.objects(self.trigger, prefix):
                with suppress(UnreadableBodyError, NotFound):
                    arrived[body.from_json(blob.download_as_bytes()).name] = blob.name
        return Places(task_folder, arrived)

    def server_time(self) -> float:
        """Return the storage server's time in seconds since the epoch. The client does not show ``Date`` headers."""
        url = f"{self._client._connection.API_BASE_URL}/storage/v1/b/{self.trigger.name}"
        answer = call(self._session, "GET", url, params={"fields": "name"})
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()


def split_url(url: str) -> tuple[str, str]:
    """Return bucket and name of a ``gs://`` URL.

    :param url: the URL.
    """
    bucket, _, name = url.removeprefix("gs://").partition("/")
    return bucket, name
