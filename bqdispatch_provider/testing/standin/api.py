"""The requests, replies and errors that the stand-in services share."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote_plus, unquote_to_bytes

Json = dict[str, Any]


Query = dict[str, list[str]]


MAX_PAGE_ENTRIES: Final = 1000
"""Maximum number of entries in a page of any list ("Objects: list" and "Method: jobs.list", maxResults)."""


REASONS = {
    400: "invalid",
    401: "authError",
    403: "forbidden",
    404: "notFound",
    408: "uploadBrokenConnection",
    409: "conflict",
    412: "conditionNotMet",
    413: "uploadTooLarge",
    416: "requestedRangeNotSatisfiable",
    429: "rateLimitExceeded",
    500: "internalError",
    501: "notImplemented",
    502: "badGateway",
    503: "backendError",
    504: "gatewayTimeout",
}
"""``reason`` of an error by its HTTP status ("HTTP status and error codes for JSON")."""


_NAME_POSITIONS = (0, 2, 5, 7)


@dataclass(slots=True)
class Request:
    """A call, from an HTTP request of its own or from a part of a batch.

    :param method: HTTP method.
    :param path: path as sent: percent-encoded, without host and query.
    :param query: decoded values by parameter.
    :param headers: headers, case-insensitive or with lower-case names.
    :param body: body as sent.
    :param base: scheme and host of the stand-in as the client knows it, for links in resources.
    :param gone: returns whether the client has closed the connection; for calls that wait.
    """

    method: str
    path: str
    query: Query
    headers: Mapping[str, str]
    body: bytes
    base: str
    gone: Callable[[], bool] = lambda: False

    def one(self, name: str) -> str | None:
        """Return the value of a parameter.

        :param name: name of the parameter.
        :returns: the first value, ``None`` if the parameter is missing.
        """
        values = self.query.get(name)
        return values[0] if values else None

    def number(self, name: str) -> int | None:
        """Return a parameter as an integer.

        :param name: name of the parameter.
        :returns: the integer, ``None`` if the parameter is missing.
        :raises ApiError: 400 if the value is not an integer.
        """
        values = self.query.get(name)
        if not values:
            return None
        try:
            return int(values[0])
        except ValueError:
            raise ApiError(400, f"Invalid value for {name}: {values[0]!r}.", "invalidParameter") from None

    def flag(self, name: str) -> bool:
        """Return ``True`` if a parameter is set to ``true``.

        :param name: name of the parameter.
        """
        return (self.one(name) or "").lower() == "true"

    def limit(self) -> int:
        """Return the maximum number of entries in a page of a list.

        :raises ApiError: 400 if the caller asks for less than one.
        """
        wanted = self.number("maxResults")
        if wanted is not None and wanted < 1:
            raise ApiError(400, "maxResults must be positive.", "invalidParameter")
        return min(wanted or MAX_PAGE_ENTRIES, MAX_PAGE_ENTRIES)

    def page_token(self) -> str:
        """Return the text that :func:`encode` has put into ``pageToken``, empty if the parameter is missing.

        :raises ApiError: 400 if the token is invalid.
        """
        try:
            token = base64.b64decode(self.one("pageToken") or "", altchars=b"-_", validate=True)
            return token.decode(errors="surrogatepass")
        except ValueError:
            raise ApiError(400, "Invalid pageToken.", "invalidParameter") from None

    def json(self) -> Json:
        """Return the body as a JSON object, an empty one if there is no body.

        :raises ApiError: 400 if the body is anything else.
        """
        return parse_json(self.body)


@dataclass(slots=True)
class Reply:
    """An answer, independent of whether it is sent by HTTP or as a part of a batch.

    :param status: HTTP status.
    :param body: document to send as JSON, or bytes to send unchanged; ``None``: no body.
    :param headers: headers to send in addition to ``Date``, ``Content-Length`` and the type of a JSON document.
    """

    status: int = 200
    body: Json | bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def payload(self) -> bytes:
        """Return the body as bytes."""
        if self.body is None:
            return b""
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body, separators=(",", ":")).encode()


class ApiError(Exception):
    """An error that is the answer to a call.

    :param status: HTTP status.
    :param message: description of the error for people.
    :param reason: keyword of the error for programs; the usual one of the status by default.
    """

    def __init__(self, status: int, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason or REASONS.get(status, "unknown")

    def reply(self) -> Reply:
        """Return the error as Google writes it: code, message, and one entry with domain and reason."""
        if self.status == 304:
            return Reply(304)
        entry = {"message": self.message, "domain": "global", "reason": self.reason}
        return Reply(self.status, {"error": {"code": self.status, "message": self.message, "errors": [entry]}})


@dataclass(slots=True)
class Operation:
    """A call that a service has recognized.

    :param call: name of the API method, such as ``storage.objects.copy``.
    :param run: executes the call.
    :param targets: bucket and object of everything that the call names; for a job, an empty string and its ID.
    :param project: project that the call names; empty: none.
    :param batchable: ``True`` if the call is allowed in a batch.
    """

    call: str
    run: Callable[[], Reply | Awaitable[Reply]]
    targets: tuple[tuple[str, str], ...] = (("", ""),)
    project: str = ""
    batchable: bool = True


def parse_json(body: bytes) -> Json:
    """Return the JSON object in a body, an empty one for an empty body.

    :param body: the body.
    :raises ApiError: 400 if the body is anything else.
    """
    if not body.strip():
        return {}
    try:
        value = json.loads(body)
    except ValueError:
        raise ApiError(400, "Parse Error: the body is not JSON.", "parseError") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", "parseError")
    return value


def decode_segment(segment: str) -> str:
    """Decode a percent-encoded segment of a path.

    :param segment: the segment.
    :raises ApiError: 400 if it is not UTF-8.
    """
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeError:
        raise ApiError(400, "A name in the path is not UTF-8.") from None


def split_path(path: str) -> tuple[str, list[str]]:
    """Split a path into its shape and the names in it.

    Names have the same positions in all paths of the services: ``*/o/*/copyTo/b/*/o/*``, ``*/jobs/*/cancel``.

    :param path: path below the root of the service, percent-encoded.
    :returns: the path with stars instead of names, and the decoded names.
    """
    if not path:
        return "", []
    parts = path.split("/")
    names = [decode_segment(parts[place]) for place in _NAME_POSITIONS if place < len(parts)]
    return "/".join(["*" if place in _NAME_POSITIONS else part for place, part in enumerate(parts)]), names


def split_target(target: str) -> tuple[str, Query]:
    """Split a request target into path and parameters.

    The libraries' URL classes normalize ``%2F`` and ``..``, which are valid in object names.

    :param target: target as sent, absolute or relative.
    :returns: the path, still percent-encoded, and the decoded values by parameter.
    """
    if target.startswith(("http://", "https://")):
        slash = target.find("/", 8)
        target = target[slash:] if slash >= 0 else "/"
    path, _, text = target.partition("?")
    query: Query = {}
    if text:
        for pair in text.split("&"):
            name, _, value = pair.partition("=")
            if "%" in value or "+" in value:
                value = unquote_plus(value)
            query.setdefault(unquote_plus(name) if "%" in name else name, []).append(value)
    return path, query


def encode(text: str) -> str:
    """Return a text as a token or an ETag.

    :param text: the text. It may be one that has no UTF-8, such as the start of the page after a prefix.
    """
    return base64.urlsafe_b64encode(text.encode(errors="surrogatepass")).decode()
