"""What a service, or a proxy before it, has refused: an error, whatever the form of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import requests
from google.api_core.exceptions import GoogleAPICallError, from_http_response, from_http_status


def refused(response: requests.Response) -> GoogleAPICallError:
    """The error that an answer means; the library's own reading raises another where a proxy has answered."""
    try:
        error: GoogleAPICallError = from_http_response(response)
    except (AttributeError, TypeError):
        error = from_http_status(response.status_code, response.text[:200], response=response)
    return error


def means_too_many(errors: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a refusal, whatever its status, says that there were too many calls, which passes.

    Both services answer a 403 for it, too: ``rateLimitExceeded``, ``userRateLimitExceeded``, ``jobRateLimitExceeded``
    (Cloud Storage, "Status and error codes"; BigQuery, "Error messages").

    :param errors: the reasons that the service gave.
    """
    return any(str(each.get("reason", "")).endswith("ateLimitExceeded") for each in errors)
