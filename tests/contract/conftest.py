"""A stand-in Google Cloud, emptied before each test, and the real clients that are pointed at it."""

import pytest
import requests
from backends import (
    FAKE_GCS_SERVER,
    STORAGES,
    WITHOUT_BATCHES,
    Storage,
    fake_gcs_server_binary,
    running_fake_gcs_server,
)
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.storage import Client


@pytest.fixture
def standin(cloud, request):
    """The stand-in, empty; where it is tested itself, a name may be changed as often as a test of another rule does."""
    file = request.path.name
    with cloud.control as control:
        control.reset()
        control.set_name_limit(not file.startswith("test_standin_") or file == "test_standin_name_limit.py")
    return cloud


@pytest.fixture
def control(standin):
    with standin.control as control:
        yield control


@pytest.fixture
def http(standin):
    """Requests to paths of the stand-in: for what no client lets a caller do."""
    with PathSession(standin.url) as session:
        yield session


@pytest.fixture
def gcs(standin, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", standin.url)
    # Otherwise the client reads every bucket that it meets in the background, and no count of requests is certain.
    monkeypatch.setenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    client = Client(project="p", credentials=AnonymousCredentials())
    yield client
    client.close()


@pytest.fixture
def bucket(gcs):
    return gcs.create_bucket("tasks")


@pytest.fixture
def soft(gcs):
    """A bucket with a week of soft delete."""
    bucket = gcs.bucket("tasks")
    bucket.soft_delete_policy.retention_duration_seconds = 7 * 86_400
    return gcs.create_bucket(bucket)


@pytest.fixture
def bq(standin, monkeypatch):
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", standin.url)
    client = bigquery.Client(project="p", credentials=AnonymousCredentials())
    yield client
    client.close()


class PathSession(requests.Session):
    def __init__(self, url):
        super().__init__()
        self.trust_env = False
        self.url = url

    def request(self, method, url, **more):
        return super().request(method, url if url.startswith("http") else self.url + url, **more)


@pytest.fixture(scope="session")
def fake_gcs_server():
    binary = fake_gcs_server_binary()
    if binary is None:
        pytest.skip(f"{FAKE_GCS_SERVER} is not here: `make fake-gcs` builds it, or name one by FAKE_GCS_SERVER")
    with running_fake_gcs_server(binary) as url:
        yield url


@pytest.fixture(params=STORAGES)
def storage(request, monkeypatch):
    """Each Cloud Storage that can be had, one after the other."""
    if request.param == FAKE_GCS_SERVER:
        url = request.getfixturevalue("fake_gcs_server")
    else:
        url = request.getfixturevalue("standin").url
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    storage = Storage(request.param, url)
    if request.param == WITHOUT_BATCHES:
        request.getfixturevalue("control").add_fault("storage.batch", "status", status=404, reason="notFound")
    yield storage
    storage.client.close()
