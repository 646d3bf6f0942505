"""Multipart bodies: the calls of a batch, or metadata and media of an upload."""

from __future__ import annotations

import re

from bqdispatch_provider.testing.standin.api import ApiError


def split_multipart(body: bytes, content_type: str) -> list[tuple[dict[str, str], bytes]]:
    """Split a multipart body. A parser for e-mails would change line ends, and take longer for a part than its call.

    :param body: body as sent.
    :param content_type: value of its ``Content-Type``.
    :returns: headers (with lower-case names) and content of each part, byte for byte.
    :raises ApiError: 400 if the type has no boundary, or the body does not have it.
    """
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)
    pieces = (b"\n" + body).split(b"\n--" + boundary[1].encode()) if boundary else []
    if len(pieces) < 2:
        raise ApiError(400, "The body is not multipart, or does not have its boundary.", "badContent")
    if pieces[-1].startswith(b"--"):
        pieces.pop()
    return [_split_part(piece) for piece in pieces[1:]]


def _split_part(piece: bytes) -> tuple[dict[str, str], bytes]:
    # The line of the boundary ends before the headers; the line break before the next boundary belongs to it.
    _, _, part = piece.removesuffix(b"\r").partition(b"\n")
    end = re.search(rb"(?:^|\r?\n)\r?\n", part)
    head, content = (part[: end.start()], part[end.end() :]) if end else (part, b"")
    lines = (line.partition(":") for line in head.decode("latin-1").splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in lines}, content
