"""What the stand-in services share: requests, replies, errors, the clock and partial responses."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, TypeVar
from urllib.parse import unquote_plus, unquote_to_bytes

Json = dict[str, Any]
Query = dict[str, list[str]]
Mask = dict[str, "Mask | None"]
"""A parsed ``fields`` parameter; None stands for everything below a name."""
T = TypeVar("T")
C = TypeVar("C")

PAGE: Final = 1000
"""Most entries in one page of any list ("Objects: list" and "Method: jobs.list", maxResults)."""

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
"""The ``reason`` that goes with a status, from "HTTP status and error codes for JSON"."""


class ApiError(Exception):
    """A call that is answered with an error status instead of a result.

    :param status: HTTP status.
    :param message: what is wrong, for people.
    :param reason: what is wrong, for programs; the usual word for the status when left out.
    """

    def __init__(self, status: int, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason or REASONS.get(status, "unknown")

    def reply(self) -> Reply:
        """The error as Google writes it: code, message, and one entry with domain and reason."""
        if self.status == 304:
            return Reply(304)
        entry = {"message": self.message, "domain": "global", "reason": self.reason}
        return Reply(self.status, {"error": {"code": self.status, "message": self.message, "errors": [entry]}})


@dataclass(slots=True)
class Request:
    """One call, from its own HTTP request or from a part of a batch.

    :param method: HTTP method.
    :param path: as sent: still percent-encoded, without host and query.
    :param query: decoded values by parameter.
    :param headers: case-insensitive, or with lower-case names.
    :param body: as sent.
    :param base: scheme and host under which the client knows this server, for links in resources.
    :param gone: tells whether the client has hung up, for calls that wait.
    """

    method: str
    path: str
    query: Query
    headers: Mapping[str, str]
    body: bytes
    base: str
    gone: Callable[[], bool] = lambda: False

    def one(self, name: str) -> str | None:
        """The parameter's value, or ``None`` when it is absent."""
        values = self.query.get(name)
        return values[0] if values else None

    def number(self, name: str) -> int | None:
        """The parameter as an integer, or None when it is absent; anything else is a 400."""
        values = self.query.get(name)
        if not values:
            return None
        try:
            return int(values[0])
        except ValueError:
            raise ApiError(400, f"Invalid value for {name}: {values[0]!r}.", "invalidParameter") from None

    def flag(self, name: str) -> bool:
        """Whether the parameter is given as true."""
        return (self.one(name) or "").lower() == "true"

    def fields(self, known: Mapping[str, Any] | None = None) -> Mask | None:
        """The parameter ``fields``, or None when it is absent.

        :param known: the names that may be selected, as in :func:`check_fields`; any when left out.
        :raises ApiError: 400, when others are selected, or the parameter cannot be read.
        """
        text = self.one("fields")
        if not text:
            return None
        mask = parse_fields(text)
        if known is not None:
            check_fields(mask, known)
        return mask

    def limit(self) -> int:
        """How many entries a page of a list may have; 400 when the caller wants less than one."""
        wanted = self.number("maxResults")
        if wanted is not None and wanted < 1:
            raise ApiError(400, "maxResults must be positive.", "invalidParameter")
        return min(wanted or PAGE, PAGE)

    def json(self) -> Json:
        """The body as a JSON object; an absent body is an empty one."""
        return parse_json(self.body)


@dataclass(slots=True)
class Reply:
    """An answer before it is put into HTTP or into a part of a batch.

    :param status: HTTP status.
    :param body: a document to be sent as JSON, or bytes as they are.
    :param headers: what is to be sent beside date, length and the type of a JSON document.
    """

    status: int = 200
    body: Json | bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def payload(self) -> bytes:
        """The body as it goes over the wire."""
        if self.body is None:
            return b""
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body, separators=(",", ":")).encode()


@dataclass(slots=True)
class Operation:
    """A call that was recognised: what it is called, what it touches, and how to do it.

    :param call: the API's own name for the method, such as ``storage.objects.copy``.
    :param run: does it.
    :param targets: bucket and object (or nothing and job ID) of everything that the call names.
    :param project: the project that the call names; empty: none.
    :param batchable: whether it may be part of a batch.
    """

    call: str
    run: Callable[[], Reply | Awaitable[Reply]]
    targets: tuple[tuple[str, str], ...] = (("", ""),)
    project: str = ""
    batchable: bool = True


class Clock:
    """The stand-in's time: real time plus an offset that tests move."""

    def __init__(self) -> None:
        self._offset = 0.0

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time() + self._offset

    def millis(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.now() * 1000)

    def set(self, now: float) -> None:
        """Make it another time from here on.

        :param now: in seconds since the epoch.
        """
        self._offset = now - time.time()

    def set_real(self) -> None:
        """Back to real time."""
        self._offset = 0.0

    def advance(self, seconds: float) -> None:
        """Move the time.

        :param seconds: by how much; back when negative.
        """
        self._offset += seconds

    def http_date(self) -> str:
        """The value of a ``Date`` header, in whole seconds."""
        return _http_date(int(self.now()))


@lru_cache(maxsize=4)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


@lru_cache(maxsize=64)
def rfc3339(millis: int) -> str:
    """Milliseconds since the epoch as Google writes times, such as ``2024-05-01T10:00:00.000Z``."""
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def parse_json(body: bytes) -> Json:
    """The JSON object in a body; an empty body is an empty object, anything else a 400."""
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
    """One path segment without percent-encoding; what is not UTF-8 is a 400."""
    try:
        return unquote_to_bytes(segment).decode() if "%" in segment or not segment.isascii() else segment
    except UnicodeError:
        raise ApiError(400, "A name in the path is not UTF-8.") from None


def split_path(path: str) -> tuple[str, list[str]]:
    """What a path looks like, with its names replaced by stars, and the names, decoded.

    In all paths of the services names stand in the same places: ``*/o/*/copyTo/b/*/o/*``, ``*/jobs/*/cancel``.
    """
    if not path:
        return "", []
    parts = path.split("/")
    names = [decode_segment(parts[place]) for place in _NAMES if place < len(parts)]
    return "/".join(["*" if place in _NAMES else part for place, part in enumerate(parts)]), names


_NAMES = (0, 2, 5, 7)


def split_target(target: str) -> tuple[str, Query]:
    """Path (as sent) and parameters of a request target, which may be absolute.

    Done by hand: URL classes normalise ``%2F`` and ``..``, which are ordinary parts of object names.
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


_FIELD_TOKENS = re.compile(r"[^,()/\s]+|[,()/]")


@lru_cache(maxsize=256)
def parse_fields(text: str) -> Mask:
    """The selection of a ``fields`` parameter, as under "Partial response": ``a,b(c,d),e/f``.

    :param text: the parameter's value.
    :raises ApiError: 400, when the text does not follow that grammar.
    """
    tokens = deque([*_FIELD_TOKENS.findall(text), ""])
    try:
        mask = _selection(tokens)
        if tokens[0]:
            raise ValueError(tokens[0])
    except ValueError:
        raise ApiError(400, f"Invalid field selection {text}", "invalidParameter") from None
    return mask


def _selection(tokens: deque[str]) -> Mask:
    """Take as many entries as there are, with commas between, from the tokens."""
    mask: Mask = {}
    while True:
        name, sub = _entry(tokens)
        mask[name] = _both(mask[name], sub) if name in mask else sub
        if tokens[0] != ",":
            return mask
        tokens.popleft()


def _entry(tokens: deque[str]) -> tuple[str, Mask | None]:
    """Take ``name``, ``name/entry`` or ``name(selection)`` from the tokens."""
    name = tokens.popleft()
    if name in ",()/":
        raise ValueError(name)
    if tokens[0] == "/":
        tokens.popleft()
        return name, dict([_entry(tokens)])
    if tokens[0] == "(":
        tokens.popleft()
        sub = _selection(tokens)
        if tokens.popleft() != ")":
            raise ValueError(name)
        return name, sub
    return name, None


def _both(one: Mask | None, other: Mask | None) -> Mask | None:
    if one is None or other is None:
        return None
    return {**one, **{name: _both(one[name], sub) if name in one else sub for name, sub in other.items()}}


def check_fields(mask: Mask | None, known: Mapping[str, Any]) -> None:
    """Refuse a selection of names that the resource does not have, as the services do.

    :param mask: the selection.
    :param known: the resource's names, each with its own names below or ``None`` for anything.
    :raises ApiError: 400, when it has other names.
    """
    for name, below in (mask or {}).items():
        if name == "*":
            continue
        if name not in known:
            raise ApiError(400, f"Invalid field selection {name}", "invalidParameter")
        if known[name] is not None:
            check_fields(below, known[name])


def below(mask: Mask | None, name: str) -> Mask | None:
    """What is selected below ``name``: None for everything, an empty mask for nothing."""
    if mask is None:
        return None
    return mask[name] if name in mask else mask.get("*", {})


def pick(value: Any, mask: Mask | None) -> Any:
    """The part of a resource that a selection asks for.

    :param value: a JSON value.
    :param mask: the selection; ``None`` for everything.
    """
    if mask is None:
        return value
    if isinstance(value, list):
        return [pick(item, mask) for item in value]
    if not isinstance(value, dict):
        return value
    if "*" in mask:
        return {name: pick(item, mask.get(name, mask["*"])) for name, item in value.items()}
    return {name: pick(value[name], sub) for name, sub in mask.items() if name in value}


def pick_top(body: Json, mask: Mask | None) -> Json:
    """The part of a list's answer that a selection asks for, when what is in the list is picked already."""
    return body if mask is None or "*" in mask else {name: value for name, value in body.items() if name in mask}


def compute(fields: Mapping[str, Callable[[T, C], Any]], thing: T, context: C, mask: Mask) -> Json:
    """The part of a resource that a selection asks for, computing no more than that.

    :param fields: how each field of the resource comes from thing and context; ``None`` when the thing has none.
    :param thing: what the resource shows.
    :param context: what else its fields depend on.
    :param mask: the selection.
    """
    resource = {}
    for name, sub in mask.items():
        field_of = fields.get(name)
        value = field_of(thing, context) if field_of is not None else None
        if value is not None:
            resource[name] = value if sub is None else pick(value, sub)
    return resource


def boundary_of(content_type: str) -> str | None:
    """What separates the parts of a multipart body, or ``None`` when its type does not say."""
    found = _BOUNDARY.search(content_type)
    return found[1] if found else None


_BOUNDARY = re.compile(r'boundary="?([^";]+)"?')
