"""Batches: many calls in one request ("Sending batch requests")."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Final

from bqdispatch_provider.testing.standin.api import ApiError, Reply, Request, split_target
from bqdispatch_provider.testing.standin.multipart import split_multipart

MAX_BATCH_CALLS: Final = 100
"""Maximum number of calls in a batch."""
PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


def batch_parts(request: Request) -> list[tuple[str, Request]]:
    """Return the calls of a batch with their Content-IDs.

    :param request: request of the batch.
    :raises ApiError: 400 if it is not a batch, or has no call or more than 100.
    """
    parts = split_multipart(request.body, request.headers.get("content-type", ""))
    if not 1 <= len(parts) <= MAX_BATCH_CALLS:
        raise ApiError(400, f"A batch has 1 to {MAX_BATCH_CALLS} calls, not {len(parts)}.", "badRequest")
    return [(headers.get("content-id", ""), _call(content, request.base)) for headers, content in parts]


def _call(content: bytes, base: str) -> Request:
    # Clients mix line ends, which do not matter in JSON. No call that is allowed in a batch reads headers.
    text = content.decode("utf-8", "surrogateescape").replace("\r\n", "\n").lstrip("\n")
    head, _, body = text.partition("\n\n")
    words = head.partition("\n")[0].split(" ")
    if len(words) < 2:
        raise ApiError(400, "A part of the batch has no request line.", "badRequest")
    path, query = split_target(words[1])
    return Request(words[0], path, query, {}, body.encode("utf-8", "surrogateescape"), base)


def batch_reply(replies: list[tuple[str, Reply]], date: str) -> Reply:
    """Return the answer to a batch.

    :param replies: Content-ID (empty: none) and answer of each call, in the order of the calls.
    :param date: value of their ``Date`` headers.
    """
    boundary = f"batch_{uuid.uuid4().hex}"
    pieces: list[bytes] = []
    for identity, reply in replies:
        payload = reply.payload()
        head = f"--{boundary}\r\nContent-Type: application/http\r\n"
        if identity:
            head += f"Content-ID: <response-{identity.strip('<>')}>\r\n"
        head += f"\r\nHTTP/1.1 {reply.status} {PHRASES.get(reply.status, 'Unknown')}\r\nDate: {date}\r\n"
        for name, value in reply.headers.items():
            head += f"{name}: {value}\r\n"
        if payload:
            head += "Content-Type: application/json; charset=UTF-8\r\n"
        pieces.append(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode())
        pieces.append(payload)
        pieces.append(b"\r\n")
    pieces.append(f"--{boundary}--\r\n".encode())
    return Reply(200, b"".join(pieces), {"Content-Type": f"multipart/mixed; boundary={boundary}"})
