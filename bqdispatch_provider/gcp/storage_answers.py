"""Answers of Cloud Storage as values: what came of a call, and the objects that it returned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.exceptions import GoogleAuthError, TransportError

from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.targets import CREATED
from bqdispatch_provider.gcp.errors import is_rate_limit
from bqdispatch_provider.gcp.gcs_batch import ApiCall, Body
from bqdispatch_provider.names import MAX_MESSAGE_CHARS, in_one_line, in_words

LOST_STATUSES = frozenset({0, 408, 500, 502, 503, 504})
"""Statuses of calls that may have been carried out; 0 means no answer."""

_MAX_GENERATION_DIGITS = 19
"""A generation is a 64-bit number."""

_LIST_PATH = re.compile(r"/b/[^/]+/o")
_METHOD_AND_URL = re.compile(r"^[A-Z]+ https?://\S+: ")


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a call.

    :param status: of HTTP; 0 when there was no answer.
    :param body: the answer's JSON: the object that was written.
    :param message: what the service said.
    :param still_there: True if an object that was to be deleted still exists, whatever the service said.
    """

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    still_there: bool = False

    @classmethod
    def of_answer(cls, call: ApiCall, status: int, body: Body) -> Result:
        """Read one answer of a batch.

        :param call: that it answers.
        :param status: of HTTP.
        """
        if status < 300:
            wrong = unexpected_form(call, body)
            return cls(502, message=wrong) if wrong else cls(status, body)
        error = body.get("error")
        if not isinstance(error, dict):  # a proxy's
            error = {"message": error}
        given, message = error.get("errors"), error.get("message")
        errors = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
        limited = status == 403 and is_rate_limit(errors)
        said = message[:MAX_MESSAGE_CHARS] if isinstance(message, str) else ""
        return cls(429 if limited else status, message=said)

    @classmethod
    def of_error(cls, error: Exception) -> Result:
        """Read what a single call has raised.

        :param error: one of :data:`~bqdispatch_provider.gcp.errors.GOOGLE_ERRORS`.
        """
        if isinstance(error, RetryError) and isinstance(error.cause, Exception):
            error = error.cause
        if isinstance(error, GoogleAPICallError):
            # As in a batch, whose answers name no URL.
            message = _METHOD_AND_URL.sub("", error.message or type(error).__name__)
            return cls(int(error.code or 0), message=message[:MAX_MESSAGE_CHARS])
        if isinstance(error, GoogleAuthError) and not isinstance(error, TransportError):
            return cls(401, message=in_words(error))  # the credentials have become invalid
        return cls(0, message=in_words(error))

    @property
    def generation(self) -> int:
        """The generation of the object that was written; 0 when none was."""
        return int(self.body.get("generation") or 0)

    @property
    def ok(self) -> bool:
        """True if the call was carried out."""
        return 200 <= self.status < 300

    @property
    def overtaken(self) -> bool:
        """True if somebody else may have been sooner: the object is gone (404), or a precondition failed (412).

        It proves nothing by itself: a first try of the same call, whose answer was lost, may have been the sooner one.
        What follows, call by call, is a table in :mod:`bqdispatch_provider.delivery`.
        """
        return self.status in (404, 412) and not self.still_there

    @property
    def gone(self) -> bool:
        """True if the object that was to be deleted does not exist any more, in any generation."""
        return self.ok or (self.overtaken and self.status == 404)

    @property
    def failed(self) -> bool:
        """True if the call failed otherwise. It includes lost answers: the call may have been carried out."""
        return not self.ok and not self.overtaken

    @property
    def lost(self) -> bool:
        """True if the call may have been carried out: there was no answer, or the service failed."""
        return self.status in LOST_STATUSES

    def __str__(self) -> str:
        return in_one_line(f"{self.status or 'no answer'} {self.message}".strip())


def unexpected_form(call: ApiCall, body: Body) -> str:
    """Check that an answer has what the call asked for; otherwise it proves nothing, whoever has sent it.

    :returns: what is wrong; empty when nothing is.
    """
    fields = call.query.get("fields", "generation,timeCreated")
    if "error" in body:  # no resource of Cloud Storage has such a field
        fits = False
    elif call.method == "DELETE":
        fits = not body
    elif _LIST_PATH.fullmatch(call.path):
        items = body.get("items", [])
        fits = isinstance(items, list) and all(_is_object(each, fields) for each in items)
    elif "/o/" in call.path and "generation" in fields:
        fits = _is_generation(body.get("generation")) and ("timeCreated" in body or "timeCreated" not in fields)
    else:
        fits = True
    return "" if fits else f"the answer has an unexpected form: {_beginning(body)}"


def _is_object(item: Any, fields: str) -> bool:
    """Tell whether an item of a list is an object of the bucket, with what was asked for."""
    return (
        isinstance(item, dict)
        and isinstance(item.get("name"), str)
        and ("generation" not in fields or _is_generation(item.get("generation")))
        and ("timeCreated" not in fields or isinstance(item.get("timeCreated"), str))
    )


def _is_generation(value: Any) -> bool:
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    return len(text) <= _MAX_GENERATION_DIGITS and text.isdecimal()


def _beginning(body: Body) -> str:
    try:
        return str(body)[:100]
    except (RecursionError, ValueError):
        return "it is nested too deeply, or a number has too many digits"


def stored_object(item: Mapping[str, Any], skip: int = 0) -> StoredObject:
    """Read an object's resource (Cloud Storage, "Objects").

    :param skip: number of characters at the beginning of the name to leave out: the folder's.
    """
    return StoredObject(
        item["name"][skip:],
        int(item["generation"]),
        datetime.fromisoformat(item["timeCreated"]),
        item.get("crc32c", ""),
        int(item.get("size", 0)),
        item.get("metadata") or {},
    )


def task_object(item: Mapping[str, Any], skip: int, now: datetime | None = None) -> StoredObject:
    """Read the resource of an object of the task folder, which keeps its age when it gets a new generation.

    :param skip: as :func:`stored_object` takes it.
    :param now: the server's time, to find out what a retention policy protects; ``None``: leave that out.
    """
    stored = stored_object(item, skip)
    stored = replace(stored, created=stored.noted(CREATED)) if stored.in_doubt else stored
    held = _held(item, now) if now is not None else ""
    return replace(stored, protected_by=held) if held else stored


def _held(item: Mapping[str, Any], now: datetime) -> str:
    for hold in ("temporaryHold", "eventBasedHold"):
        if item.get(hold):
            return f"a hold ({hold})"
    until = item.get("retentionExpirationTime")
    return f"a retention policy until {until}" if until and datetime.fromisoformat(until) > now else ""
