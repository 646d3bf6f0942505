"""Partial responses: the fields of a resource that the parameter ``fields`` selects."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from bqdispatch_provider.testing.standin.api import ApiError, Json, Request

Mask = dict[str, "Mask | None"]
"""A parsed ``fields`` parameter; ``None`` selects everything below a name."""
T = TypeVar("T")
C = TypeVar("C")
_FIELD_TOKENS = re.compile(r"[^,()/\s]+|[,()/]")


def fields_of(request: Request, known: Mapping[str, Any] | None = None) -> Mask | None:
    """Return the selection that a call asks for.

    :param request: the call.
    :param known: names that the resource has, as in :func:`check_fields`; any name by default.
    :returns: the selection, ``None`` if the parameter is missing.
    :raises ApiError: 400 if the parameter is invalid or selects another name.
    """
    text = request.one("fields")
    if not text:
        return None
    mask = parse_fields(text)
    if known is not None:
        check_fields(mask, known)
    return mask


@lru_cache(maxsize=256)
def parse_fields(text: str) -> Mask:
    """Parse the value of a ``fields`` parameter, such as ``a,b(c,d),e/f`` ("Partial response").

    :param text: value of the parameter.
    :raises ApiError: 400 if the value does not follow that grammar.
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
    """Take all entries, separated by commas, from the tokens."""
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
    """Refuse a selection of names that the resource does not have.

    :param mask: the selection.
    :param known: names of the resource, each with the names below it; ``None``: any name is valid below it.
    :raises ApiError: 400 if the selection has another name.
    """
    for name, below in (mask or {}).items():
        if name == "*":
            continue
        if name not in known:
            raise ApiError(400, f"Invalid field selection {name}", "invalidParameter")
        if known[name] is not None:
            check_fields(below, known[name])


def below(mask: Mask | None, name: str) -> Mask | None:
    """Return the part of a selection below a name.

    :param mask: the selection.
    :param name: the name.
    :returns: ``None`` for everything, an empty selection for nothing.
    """
    if mask is None:
        return None
    return mask[name] if name in mask else mask.get("*", {})


def pick(value: Any, mask: Mask | None) -> Any:
    """Return the selected part of a resource.

    :param value: the resource, or a part of it.
    :param mask: the selection; ``None``: everything.
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
    """Return the selected part of a list's answer whose entries have been reduced already.

    :param body: the answer.
    :param mask: the selection; ``None``: everything.
    """
    return body if mask is None or "*" in mask else {name: value for name, value in body.items() if name in mask}


def compute(fields: Mapping[str, Callable[[T, C], Any]], thing: T, context: C, mask: Mask) -> Json:
    """Compute the selected fields of a resource, and no other.

    :param fields: functions that compute each field from thing and context; a field that is ``None`` is left out.
    :param thing: object or job that the resource shows.
    :param context: whatever else the fields depend on.
    :param mask: the selection.
    """
    resource = {}
    for name, sub in mask.items():
        field_of = fields.get(name)
        value = field_of(thing, context) if field_of is not None else None
        if value is not None:
            resource[name] = value if sub is None else pick(value, sub)
    return resource
