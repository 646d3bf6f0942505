"""Errors of Google's services: what a call may raise, what a refusal means, and what is worth a retry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from google.api_core.exceptions import (
    GoogleAPICallError,
    GoogleAPIError,
    TooManyRequests,
    from_http_response,
    from_http_status,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage.retry import DEFAULT_RETRY

MAX_REFUSAL_BYTES = 64 * 1024
"""Google's refusals are much smaller. The library would read a larger one whole, and guess how it is encoded."""

GOOGLE_ERRORS = (GoogleAPIError, GoogleAuthError, requests.RequestException)
"""Errors that a call raises once all retries have failed."""


def error_from_response(response: requests.Response) -> GoogleAPICallError:
    """Return the error that a refusal means, also when a proxy has refused, whose answer the library cannot read.

    A 403 that reports a rate limit becomes the 429 that it is.

    :param response: with another status than 2xx.
    """
    if len(response.content) <= MAX_REFUSAL_BYTES:
        try:
            error: GoogleAPICallError = from_http_response(response)
            # Whatever the status: reasons in another form are for nobody to read.
            if is_rate_limit(error.errors) and error.code == 403:
                return TooManyRequests(error.message, error.errors, error.details, response)
            return error
        except (AttributeError, TypeError, RecursionError):
            pass
    said = response.content[:200].decode(errors="replace")
    return from_http_status(response.status_code, said, response=response)


def is_rate_limit(errors: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a refusal, whatever its status, reports a rate limit: a retry may succeed.

    Both services use 403 for it, too: ``rateLimitExceeded``, ``userRateLimitExceeded``, ``jobRateLimitExceeded``
    (Cloud Storage, "Status and error codes"; BigQuery, "Error messages").

    :param errors: the reasons that the service gave.
    """
    reasons = (each.get("reason") for each in errors)
    return any(isinstance(reason, str) and reason.endswith("ateLimitExceeded") for reason in reasons)


def is_retryable(error: Exception) -> bool:
    """Return whether a call to Cloud Storage is worth a retry.

    :param error: of a call, an upload or a download. The library reads the reasons of calls alone, and does not know
        the 403 that reports a rate limit.
    """
    errors = getattr(error, "errors", None) or _reasons_in(getattr(error, "response", None))
    return is_rate_limit(errors) or bool(DEFAULT_RETRY._predicate(error))


def _reasons_in(response: requests.Response | None) -> Sequence[Mapping[str, Any]]:
    try:
        if response is None or len(response.content) > MAX_REFUSAL_BYTES:
            return []
        return [each for each in json.loads(response.content)["error"]["errors"] if isinstance(each, dict)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
