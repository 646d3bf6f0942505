"""HTTP sessions for Google's services, whose credentials no stand-in sees."""

from __future__ import annotations

from typing import Any

import requests
from google.auth.transport.requests import AuthorizedSession

from bqdispatch_provider.emulators import is_emulated


def session_of(credentials: Any) -> requests.Session:
    """Make a session for every service that is called without a client of its own (BigQuery, Pub/Sub).

    :param credentials: of the environment or of a connection; ``None``: anonymous.
    """
    if credentials is None:
        return requests.Session()
    session: requests.Session = _ServiceSession(credentials)
    return session


class _ServiceSession(AuthorizedSession):  # type: ignore[misc]  # google-auth has no types
    """Adds credentials to what goes to a service itself, and none to what goes to a stand-in."""

    def request(self, method: str, url: str, *arguments: Any, **more: Any) -> requests.Response:
        if is_emulated(url):
            return requests.Session.request(self, method, url, *arguments, **more)
        answer: requests.Response = super().request(method, url, *arguments, **more)
        return answer
