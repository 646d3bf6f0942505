"""Documents that dispatchers leave for each other, read as if anybody had written them."""

from __future__ import annotations

import gc
import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

_MAX_NUMBER = 2**53
"""Larger ones are no counts, and not the same to every reader of JSON."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(content: str | bytes, **how: Any) -> Any:
    """Return what JSON says that anybody may have written, as :func:`json.loads` does.

    No garbage is collected meanwhile. Deep inside nested content, just before the parser gives up, the finalizers of
    others' objects would fail.

    :param content: JSON.
    :param how: passed on.
    :raises ValueError: when it is no JSON.
    :raises RecursionError: when it is nested too deeply.
    """
    with _collector_paused:
        return json.loads(content, **how)


class _CollectorPaused:
    """A pause of the garbage collector, which several threads may make at the same time."""

    def __init__(self) -> None:
        self._lock, self._number, self._was_enabled = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            self._number += 1
            if self._number == 1:
                self._was_enabled = gc.isenabled()
                gc.disable()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._number -= 1
            if not self._number and self._was_enabled:
                gc.enable()


_collector_paused = _CollectorPaused()


def parse(content: bytes) -> Any:
    """Return a JSON document.

    :raises ValueError: when it is broken or nested too deeply, or holds what nobody can write again: a number that is
        not finite, or a lone surrogate.
    """
    try:
        document = loads(content, parse_constant=_refuse, parse_float=_finite)
        if _SURROGATE.search(content):
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        pass
    else:
        return document
    raise ValueError("it is nested too deeply")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return number


def number(value: Any) -> int:
    """Return a count.

    :raises ValueError: when it is something else, or too large to be one.
    """
    if type(value) is not int or abs(value) > _MAX_NUMBER:
        raise ValueError(f"expected a whole number, found a {type(value).__name__}")
    return value


def numbers(value: Any) -> Counter[str]:
    """Return counts by their names.

    :raises ValueError: when it is something else.
    """
    return Counter({name: number(each) for name, each in _object(value).items()})


def text(value: Any) -> str:
    """Return text.

    :raises ValueError: when it is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected text, found a {type(value).__name__}")
    return value


def texts(value: Any) -> dict[str, str]:
    """Return texts by their names.

    :raises ValueError: when it is something else.
    """
    return {name: text(each) for name, each in _object(value).items()}


def list_of_texts(value: Any) -> list[str]:
    """Return a list of texts.

    :raises ValueError: when it is something else.
    """
    if not isinstance(value, list):
        raise ValueError(f"expected a list, found a {type(value).__name__}")
    return [text(each) for each in value]


def objects_of_texts(value: Any) -> dict[str, dict[str, str]]:
    """Return objects by their names, which hold texts.

    :raises ValueError: when it is something else.
    """
    return {name: texts(each) for name, each in _object(value).items()}


def moment(value: Any) -> datetime | None:
    """Return a time (UTC); ``None`` for an empty one.

    :raises ValueError: when it is something else.
    """
    if not value:
        return None
    at = datetime.fromisoformat(text(value))
    if at.tzinfo is None:
        raise ValueError("a time has no time zone")
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a time is out of range") from error


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object, found a {type(value).__name__}")
    return value
