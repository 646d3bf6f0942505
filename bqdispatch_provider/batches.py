"""Calls of Cloud Storage's JSON API as plain values, and many of them in one request.

The client library's own batches build and read each part as an e-mail message, which takes three quarters of the time
that a move takes; and they send no ``Content-ID``, by which alone an answer surely belongs to its call.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from google.api_core.exceptions import BadGateway
from google.cloud.storage import Client

from bqdispatch_provider.refusals import refused

Body = Mapping[str, Any]

_BOUNDARY = re.compile(r"multipart/mixed\b.*?\bboundary=\"?([^\";]+)", re.IGNORECASE)
_ID = re.compile(rb"^content-id:.*?(\d+)>?\s*$", re.IGNORECASE | re.MULTILINE)
_STATUS = re.compile(rb"\s*HTTP/\S+ (\d{3})")


class NotInParts(Exception):
    """An endpoint answered a batch, but not each call in it: it does not carry out batches."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    :param method: of HTTP.
    :param path: below the API's version; names in it are quoted.
    :param query: its parameters; one that is a list is given several times.
    :param body: the JSON that is sent.
    :param rewrite: of a copy, the path of a rewrite to the same target, which can be gone on with.
    """

    method: str
    path: str
    query: Body
    body: Body | None = None
    rewrite: str = ""


def alone(client: Client, call: Call, timeout: tuple[float, float]) -> Body:
    """Carry out one call, and give what it answers; a copy by as many calls as it takes.

    A rewrite that is not done has copied nothing yet that one can see (Cloud Storage, "Objects: rewrite").

    :raises google.api_core.exceptions.GoogleAPICallError: when it is refused.
    """
    if not call.rewrite:
        return _ask(client, call, timeout)
    query = {**call.query, "fields": f"done,rewriteToken,resource({call.query['fields']})"}
    while True:
        answer = _ask(client, Call(call.method, call.rewrite, query, call.body), timeout)
        if answer["done"]:
            resource: Body = answer["resource"]
            return resource
        query["rewriteToken"] = answer["rewriteToken"]


def _ask(client: Client, call: Call, timeout: tuple[float, float]) -> Body:
    connection = client._connection
    response = connection._make_request(
        call.method,
        connection.build_api_url(path=call.path, query_params=dict(call.query)),
        data=None if call.body is None else json.dumps(call.body),
        content_type="application/json",
        timeout=timeout,
    )
    if not 200 <= response.status_code < 300:
        raise refused(response)
    try:
        answer = response.json() if response.content else {}
    except ValueError as error:
        raise BadGateway(f"the answer is no JSON: {response.text[:100]!r}") from error
    if not isinstance(answer, dict | None):
        raise BadGateway(f"the answer is no object of JSON: {response.text[:100]!r}")
    return answer or {}


def together(client: Client, calls: Sequence[Call], timeout: tuple[float, float]) -> list[tuple[int, Body]]:
    """Carry out calls in one request: each one's status, and what it answers (Cloud Storage, "Batch requests").

    :param calls: at most 100.
    :raises google.api_core.exceptions.GoogleAPICallError: when the request is refused as a whole.
    :raises NotInParts: when there is no answer to some of the calls.
    """
    connection = client._connection
    boundary = uuid.uuid4().hex
    version = connection.API_VERSION
    parts = [_part(number, call, f"/storage/{version}{call.path}") for number, call in enumerate(calls)]
    body = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts) + f"--{boundary}--\r\n"
    response = connection._make_request(
        "POST",
        f"{connection.API_BASE_URL}/batch/storage/{version}",
        data=body.encode(),
        content_type=f'multipart/mixed; boundary="{boundary}"',
        timeout=timeout,
    )
    if not 200 <= response.status_code < 300:
        raise refused(response)
    return _answers(response.headers.get("content-type", ""), response.content, len(calls))


def _part(number: int, call: Call, path: str) -> str:
    body = "" if call.body is None else json.dumps(call.body)
    head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return (
        f"Content-Type: application/http\r\nContent-ID: <{number}>\r\n\r\n"
        f"{call.method} {path}?{urlencode(call.query, doseq=True)} HTTP/1.1\r\n{head}\r\n{body}"
    )


def _answers(content_type: str, content: bytes, number: int) -> list[tuple[int, Body]]:
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise NotInParts(f"an answer of type {content_type!r}")
    answers: dict[int, tuple[int, Body]] = {}
    # Bodies are JSON, to which ends of lines do not matter.
    text = b"\n" + content.replace(b"\r\n", b"\n")
    for position, piece in enumerate(text.split(b"\n--" + boundary[1].encode())[1:]):
        outer, _, inner = piece.partition(b"\n\n")
        status = _STATUS.match(inner)
        if status is None:  # what follows the last part
            continue
        named = _ID.search(outer)
        body = inner.partition(b"\n\n")[2].strip()
        answers[int(named[1]) if named else position] = int(status[1]), _json(body)
    if answers.keys() != set(range(number)):
        raise NotInParts(f"{len(answers)} answers to {number} calls")
    return [answers[each] for each in range(number)]


def _json(body: bytes) -> Body:
    try:
        said = json.loads(body) if body else {}
    except ValueError:
        said = ()
    if said is None:
        return {}
    # Not every proxy that refuses a call does so in JSON.
    return said if isinstance(said, dict) else {"error": {"message": body[:200].decode(errors="replace")}}
