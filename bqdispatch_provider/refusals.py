"""What a service, or a proxy before it, has refused: an error, whatever the form of the answer."""

from __future__ import annotations

import requests
from google.api_core.exceptions import GoogleAPICallError, from_http_response, from_http_status


def refused(response: requests.Response) -> GoogleAPICallError:
    """The error that an answer means; the library's own reading raises another where a proxy has answered."""
    try:
        error: GoogleAPICallError = from_http_response(response)
    except (AttributeError, TypeError):
        error = from_http_status(response.status_code, response.text[:200], response=response)
    return error
