"""The back ends that keep the task store's contract, or say by name what they lack of it."""

import os
import shutil
import subprocess
import uuid
from contextlib import closing, contextmanager
from pathlib import Path

import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client
from waiting import wait_until

from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.testing.standin import StandInControl
from demo.ports import free_port

STAND_IN, WITHOUT_BATCHES, FAKE_GCS_SERVER = "stand-in", "stand-in without batches", "fake-gcs-server"
STORAGES = (STAND_IN, WITHOUT_BATCHES, FAKE_GCS_SERVER)

BUILT = Path(__file__).parents[2] / ".work/bin/fake-gcs-server"
"""Where `make fake-gcs` builds it; the tests themselves only use it where it is."""


class Storage:
    """A Cloud Storage with three empty buckets of names that no other test uses."""

    def __init__(self, kind, url):
        self.kind, self.url = kind, url
        some = uuid.uuid4().hex[:12]
        self.tasks, self.trigger, self.journal = (f"{each}-{some}" for each in ("ops", "bqtail", "journal"))
        self.folder = "BqDispatch/Tasks/"
        self.client = Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})
        for bucket in (self.tasks, self.trigger, self.journal):
            self.client.create_bucket(bucket)
        self.answers = []
        self.client._http.hooks["response"].append(lambda answer, *_, **__: self.answers.append(answer))

    def store(self, folder=None):
        """A task store of its own; its folder's path ends with a slash, or is empty."""
        url = f"gs://{self.tasks}/{self.folder if folder is None else folder}"
        return closing(TaskStore(self.client, url, self.trigger))

    def put(self, name, content="{}", bucket=None, metadata=None):
        """Write an object, below the task folder when no bucket is named; gives its generation.

        Nobody has to wait before the name can be changed again.
        """
        blob = self.client.bucket(bucket or self.tasks).blob(name if bucket else self.folder + name)
        blob.metadata = metadata
        blob.upload_from_string(content)
        self.rest()
        return blob.generation

    def rest(self):
        """Let the second pass for which a name that was changed cannot be changed again."""
        if self.kind != FAKE_GCS_SERVER:  # which knows no such limit
            with StandInControl(self.url) as control:
                control.advance(1)

    def content(self, name, bucket=None):
        """What an object holds; ``None`` when it is not there."""
        blob = self.client.bucket(bucket or self.tasks).get_blob(name if bucket else self.folder + name)
        return None if blob is None else blob.download_as_text()

    def names(self, bucket):
        return sorted(blob.name for blob in self.client.list_blobs(bucket))


def fake_gcs_server_binary():
    """Where there is one: named by ``FAKE_GCS_SERVER``, built by `make fake-gcs`, or on the PATH; else ``None``."""
    return os.environ.get("FAKE_GCS_SERVER") or (str(BUILT) if BUILT.exists() else shutil.which("fake-gcs-server"))


@contextmanager
def running_fake_gcs_server(binary):
    """Its URL, while it runs; it keeps everything in memory."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with subprocess.Popen([*command, "-external-url", url, "-log-level", "error"]) as server:
        try:
            _wait_for(server, f"{url}/storage/v1/b?project=p")
            yield url
        finally:
            server.terminate()


def _wait_for(server, url):
    wait_until(lambda: server.poll() is not None or _answers(url), f"an answer of {server.args[0]} at {url}")
    if server.poll() is not None:
        raise RuntimeError(f"{server.args[0]} has ended with {server.returncode}")


def _answers(url):
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
