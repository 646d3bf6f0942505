"""Calls of Google's services without a client library, and retries."""

from __future__ import annotations

from typing import Any

import requests
from google.api_core.exceptions import GoogleAPIError, RetryError, ServerError, from_http_response
from google.api_core.retry import Retry, if_exception_type

CALL_ERRORS = (GoogleAPIError, requests.RequestException)
"""Errors of a call, by a client library or not."""

RETRY = Retry(initial=0.1, maximum=2.0, timeout=30.0)
RETRY_UNLESS_RATE_LIMITED = Retry(
    if_exception_type(ServerError, requests.ConnectionError, requests.Timeout), initial=0.1, maximum=2.0, timeout=30.0
)
_TIMEOUT_S = 60


def call(session: requests.Session, method: str, url: str, **arguments: Any) -> requests.Response:
    """Send a request, and retry it after transient errors.

    :param session: session with credentials.
    :param method: HTTP method.
    :param url: URL of the resource.
    :param arguments: other arguments of ``session.request``.
    :returns: the successful answer.
    :raises GoogleAPIError: for an error that is not transient, or after all retries.
    """

    def once() -> requests.Response:
        response = session.request(method, url, timeout=_TIMEOUT_S, **arguments)
        if not response.ok:
            raise from_http_response(response)
        return response

    answer: requests.Response = RETRY(once)()
    return answer


def is_worth_a_retry(error: Exception) -> bool:
    """Return ``True`` if BqTail tries again after an error that its own retries did not resolve.

    BqTail reads the text of the error: it recognizes lost connections and exceeded rates, but not the status.

    :param error: the error.
    """
    cause = error.cause if isinstance(error, RetryError) else error
    reasons = [each.get("reason") for each in getattr(cause, "errors", ())]
    return not isinstance(cause, GoogleAPIError) or "rateLimitExceeded" in reasons
