"""A stand-in Google Cloud, emptied before each test, and the real clients that are pointed at it."""

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery, storage


@pytest.fixture
def standin(cloud):
    with cloud.control as control:
        control.reset()
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
    client = storage.Client(project="p", credentials=AnonymousCredentials())
    yield client
    client.close()


@pytest.fixture
def bucket(gcs):
    return gcs.create_bucket("tasks")


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
