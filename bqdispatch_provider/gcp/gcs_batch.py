"""Calls of Cloud Storage's JSON API as plain values, one by one or up to a hundred in one request.

The client library's own batches build and read each part as an e-mail message, which takes three quarters of the time
that a move takes. They send no ``Content-ID`` either: nothing else says for sure which call an answer belongs to.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import requests
from google.api_core.exceptions import BadGateway
from google.cloud.storage import Client

from bqdispatch_provider.gcp.errors import error_from_response

Body = Mapping[str, Any]

BATCH_SIZE = 100
"""Most calls in a batch request (Cloud Storage, "Batch requests")."""

TIMEOUT_S = (5.0, 30.0)
"""To connect, and between two parts of an answer."""

_MAX_ID_DIGITS = len(str(BATCH_SIZE))
_MAX_TYPE_CHARS = 1000
"""Of a Content-Type; its boundary has 70 at most (RFC 2046)."""

_MAX_STATUS_LINE_BYTES = 100


class BatchNotSupported(Exception):
    """A batch whose answer lacks the answers to some calls: the endpoint does not carry out batches."""


@dataclass(frozen=True, slots=True)
class ApiCall:
    """A call.

    :param method: of HTTP.
    :param path: below the API's version; names in it are quoted.
    :param query: its parameters; one that is a list is given several times.
    :param body: the JSON that is sent; ``None``: none.
    :param rewrite: path of a rewrite to the same target, which can be continued; empty unless the call is a copy.
    """

    method: str
    path: str
    query: Body
    body: Body | None = None
    rewrite: str = ""


def send(client: Client, call: ApiCall) -> Body:
    """Carry out one call, once; a copy takes several requests if it is large.

    A rewrite that is not done leaves nothing visible (Cloud Storage, "Objects: rewrite").

    :returns: the answer.
    :raises google.api_core.exceptions.GoogleAPICallError: when it is refused.
    """
    if not call.rewrite:
        return _send_once(client, call)
    query = {**call.query, "fields": f"done,rewriteToken,resource({call.query['fields']})"}
    while True:
        answer = _send_once(client, ApiCall(call.method, call.rewrite, query, call.body))
        try:
            if answer["done"]:
                resource: Body = answer["resource"]
                return resource
            query["rewriteToken"] = answer["rewriteToken"]
        except KeyError as error:
            raise BadGateway(f"the answer to a rewrite lacks {error}") from error


def _send_once(client: Client, call: ApiCall) -> Body:
    url = client._connection.build_api_url(path=call.path, query_params=dict(call.query))
    data = None if call.body is None else json.dumps(call.body)
    response = _request(client, call.method, url, data, "application/json")
    # Not the response's own text: to guess how it is encoded takes long, and nothing but UTF-8 is JSON.
    try:
        answer = json.loads(response.content) if response.content else {}
    except (ValueError, RecursionError) as error:
        raise BadGateway(f"the answer is not JSON: {response.content[:100]!r}") from error
    if not isinstance(answer, dict | None):
        raise BadGateway(f"the answer is not a JSON object: {response.content[:100]!r}")
    return answer or {}


def send_batch(client: Client, calls: Sequence[ApiCall]) -> list[tuple[int, Body]]:
    """Carry out calls in one request, once (Cloud Storage, "Batch requests").

    :param calls: at most :data:`BATCH_SIZE`.
    :returns: the status and the answer of each call.
    :raises google.api_core.exceptions.GoogleAPICallError: when the request is refused as a whole.
    :raises BatchNotSupported: when the answers to some calls are missing.
    """
    connection = client._connection
    boundary = uuid.uuid4().hex
    version = connection.API_VERSION
    parts = [_part(number, call, f"/storage/{version}{call.path}") for number, call in enumerate(calls)]
    body = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts) + f"--{boundary}--\r\n"
    url = f"{connection.API_BASE_URL}/batch/storage/{version}"
    response = _request(client, "POST", url, body.encode(), f'multipart/mixed; boundary="{boundary}"')
    return _answers(response.headers.get("content-type", ""), response.content, len(calls))


def _request(client: Client, method: str, url: str, data: str | bytes | None, content_type: str) -> requests.Response:
    connection = client._connection
    response: requests.Response = connection._make_request(
        method, url, data=data, content_type=content_type, timeout=TIMEOUT_S
    )
    if not 200 <= response.status_code < 300:
        raise error_from_response(response)
    return response


def _part(number: int, call: ApiCall, path: str) -> str:
    body = "" if call.body is None else json.dumps(call.body)
    head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return (
        f"Content-Type: application/http\r\nContent-ID: <{number}>\r\n\r\n"
        f"{call.method} {path}?{urlencode(call.query, doseq=True)} HTTP/1.1\r\n{head}\r\n{body}"
    )


def _answers(content_type: str, content: bytes, number: int) -> list[tuple[int, Body]]:
    # Anybody may be in between, so headers are split at fixed separators and never matched with patterns: a pattern
    # with two wildcards takes time that grows with the square of a header's length.
    boundary = _boundary(content_type)
    if not boundary:
        raise BatchNotSupported(f"an answer of type {content_type[:100]!r}")
    answers: dict[int, tuple[int, Body]] = {}
    # Bodies are JSON, to which ends of lines do not matter.
    text = b"\n" + content.replace(b"\r\n", b"\n")
    for position, piece in enumerate(text.split(b"\n--" + boundary.encode(), number + 1)[1:]):
        outer, _, inner = piece.partition(b"\n\n")
        status = _status(inner)
        if status is None:  # what follows the last part
            continue
        content_id = _content_id(outer)
        named = position if content_id is None else content_id
        if named not in range(number):
            raise BatchNotSupported(f"an answer to none of {number} calls")
        answers[named] = status, _json(inner.partition(b"\n\n")[2].strip())
    if len(answers) != number:
        raise BatchNotSupported(f"{len(answers)} answers to {number} calls")
    return [answers[each] for each in range(number)]


def _boundary(content_type: str) -> str:
    """Return the line that stands between the parts of an answer; empty if it has no parts."""
    kind, *parameters = content_type[:_MAX_TYPE_CHARS].split(";")
    if kind.strip().lower() == "multipart/mixed":
        for each in parameters:
            name, _, value = each.partition("=")
            if name.strip().lower() == "boundary":
                return value.strip().strip('"')
    return ""


def _status(part: bytes) -> int | None:
    """Return the status of an answer; ``None`` if it begins with no status line."""
    version, _, rest = part.lstrip()[:_MAX_STATUS_LINE_BYTES].partition(b" ")
    return int(rest[:3]) if version.startswith(b"HTTP/") and len(rest[:3]) == 3 and rest[:3].isdigit() else None


def _content_id(head: bytes) -> int | None:
    """Return the number at the end of the ``Content-ID``; ``None`` without one, and -1 if no call has such a number."""
    for line in head.split(b"\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-id":
            value = value.strip().removesuffix(b">")
            digits = value[len(value.rstrip(b"0123456789")) :]
            return int(digits) if 0 < len(digits) <= _MAX_ID_DIGITS else -1 if digits else None
    return None


def _json(body: bytes) -> Body:
    try:
        answer = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        answer = ()
    if answer is None:
        return {}
    # A proxy may refuse a call in another form than JSON.
    return answer if isinstance(answer, dict) else {"error": {"message": body[:200].decode(errors="replace")}}
