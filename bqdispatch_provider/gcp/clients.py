"""Clients and HTTP sessions for Google's services. No stand-in for a service is given credentials."""

from __future__ import annotations

import os
from typing import Any

import google.auth
import requests
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Client
from requests.adapters import HTTPAdapter

from bqdispatch_provider.gcp.emulators import BIGQUERY, STORAGE, emulator, is_emulated

# Otherwise the client reads the metadata of each bucket in the background, to decorate OpenTelemetry's traces. That is
# one more request, and needs storage.buckets.get.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")


def client_of(project: str | None, credentials: Any = None) -> Client:
    """Make a client for Cloud Storage, or for the stand-in that ``STORAGE_EMULATOR_HOST`` names.

    :param project: by default that of the credentials.
    :param credentials: by default those of the environment.
    """
    more: dict[str, Any] = {"project": project} if project else {}
    if host := emulator(STORAGE):
        # The library takes the variable's value as it is.
        more["client_options"] = {"api_endpoint": host}
        credentials = AnonymousCredentials()
    return Client(**more, credentials=credentials)


def session_of(credentials: Any) -> requests.Session:
    """Make a session for the services that are called without a client of their own: BigQuery and Pub/Sub.

    :param credentials: of the environment or of a connection; ``None``: anonymous.
    """
    if credentials is None:
        return requests.Session()
    session: requests.Session = _ServiceSession(credentials)
    return session


def default_session() -> requests.Session:
    """Make a session with the environment's credentials; a plain one if ``BIGQUERY_EMULATOR_HOST`` is set."""
    if emulator(BIGQUERY):
        return requests.Session()
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/bigquery.readonly"])
    return session_of(credentials)


def add_connections(session: requests.Session, number: int) -> None:
    """Let a session keep connections for threads; ``requests`` keeps ten, and throws the others away.

    :param number: of connections.
    """
    for scheme in ("https://", "http://"):
        adapter = session.adapters.get(scheme)
        if type(adapter) is HTTPAdapter and getattr(adapter, "_pool_maxsize", 0) < number:
            session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=number))


class _ServiceSession(AuthorizedSession):  # type: ignore[misc]  # google-auth has no types
    """A session that adds credentials to requests to a service itself, but not to those to a stand-in."""

    def request(self, method: str, url: str, *arguments: Any, **more: Any) -> requests.Response:
        if is_emulated(url):
            return requests.Session.request(self, method, url, *arguments, **more)
        answer: requests.Response = super().request(method, url, *arguments, **more)
        return answer
