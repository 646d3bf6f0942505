"""The stored form of intents: JSON objects in ``intents/`` of the task folder, and how they are read.

The name of an intent tells its kind: ``<owner>-<number>.json`` holds traces that are about to be moved, ``…-left.json``
those that a dispatcher began and did not finish, ``…-windows.json`` firings, ``…-left-windows.json`` firings
that a dispatcher began, and does not withdraw any more. An empty object ``<intent>.done`` beside an intent says that it
is completed. An intent that cannot be read holds back everything older, since it may be about that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bqdispatch_provider.core import documents
from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.windows import OpenFiring
from bqdispatch_provider.names import WindowName, in_one_line

VERSION = 1
"""Version of the form of an intent. Other versions cannot be read."""

LEFT_ENDING = "-left.json"
"""End of the name of an intent whose moves were begun and not finished."""

WINDOWS_ENDING = "-windows.json"
"""End of the name of an intent that holds firings."""

LEFT_WINDOWS_ENDING = f"-left{WINDOWS_ENDING}"
"""End of the name of an intent whose firings were begun. Its dispatcher does not withdraw it any more: it stays until
all of them are closed, or another intent of this kind holds them."""

COMPLETED_ENDING = ".done"
"""End of the name of the object that says that the intent beside it is completed."""

KEEP_COMPLETED_S = 120.0
"""Seconds for which an intent stays if there is a limit, so that dispatchers still see it: from its completion,
or if nobody completes it at least from its creation. A dispatcher whose look is older than this counts the limits again
before it dispatches."""


@dataclass(frozen=True, slots=True)
class Intent:
    """Up to 1,000 events that a dispatcher is, or was, about to dispatch.

    :param object: the object that holds it.
    :param owner: ID of the dispatcher that wrote it.
    :param moves: names and generations of traces.
    :param firings: windows to be fired whose loads are not visible yet.
    :param problem: why it cannot be read; empty otherwise.
    :param invalid: True if it cannot be read although it has this version: no dispatcher has written it.
    """

    object: StoredObject
    owner: str
    moves: frozenset[Key] = frozenset()
    firings: tuple[OpenFiring, ...] = ()
    problem: str = ""
    invalid: bool = False


def open_intents(names: Iterable[str]) -> list[str]:
    """Return the names of intents that are not completed.

    :param names: of everything in ``intents/`` of a task folder.
    """
    present = set(names)
    return sorted(
        name for name in present if not name.endswith(COMPLETED_ENDING) and f"{name}{COMPLETED_ENDING}" not in present
    )


def firings_left(intents: Iterable[Intent]) -> dict[Key, str]:
    """Return for each firing that was left the name of the intent in which it stays: no other one needs to hold it.

    An intent of another kind gives way only to these, since its dispatcher may still withdraw it. Of several, everybody
    keeps the last by name: by times, which differ a little, two dispatchers could each delete what the other one keeps.

    :param intents: those that hold firings.
    """
    left = (intent for intent in intents if intent.object.name.endswith(LEFT_WINDOWS_ENDING))
    in_order = sorted(left, key=lambda intent: intent.object.name)
    return {firing.key: intent.object.name for intent in in_order for firing in intent.firings}


def parse_intent(stored: StoredObject, content: bytes) -> Intent:
    """Read an intent; if it cannot be read, return it with the problem.

    :param stored: the object that holds it.
    :param content: its content.
    """
    is_known = False
    try:
        document = documents.loads(content)
        if document["version"] != VERSION:
            raise ValueError(f"its version is {document['version']!r}; this dispatcher knows {VERSION}")
        is_known = True
        return Intent(
            stored,
            _text(document["owner"]),
            frozenset((_text(name), int(generation)) for name, generation in document.get("moves", ())),
            tuple(parse_firing(firing, stored.created) for firing in document.get("firings", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        problem = in_one_line(f"{type(error).__name__}: {error}")[:200]
        return Intent(stored, "", problem=problem, invalid=is_known)


def parse_firing(document: Mapping[str, Any], since: datetime) -> OpenFiring:
    """Read a firing of an intent.

    :param document: the firing, as :func:`firing_document` wrote it.
    :param since: when the intent was written.
    """
    WindowName.parse(document["window"])
    return OpenFiring(
        _text(document["window"]),
        int(document["generation"]),
        _text(document["project"]),
        _text(document["event"]),
        bool(document["many"]),
        since,
    )


def _text(value: Any) -> str:
    """Return a value if it is text that can be sent to a service; nothing else was ever written.

    :raises ValueError: if it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"a name or an ID is {type(value).__name__}; expected text")
    value.encode()
    return value


def firing_document(event: Event) -> dict[str, Any]:
    """Return the form in which an intent holds a window that is about to be fired.

    :param event: the window.
    """
    return {
        "window": event.name,
        "generation": event.generation,
        "project": event.load.project if event.load else "",
        "event": event.load.event_id if event.load else "",
        "many": event.many_folders,
    }
