"""The content of a window: JSON that BqTail has written.

A dispatcher reads only three things of it: the project in which the load will run, the storage event, by which the
load's job ID is known, and the file of that event. Where a folder was missed by a firing, a window is written with the
content of that firing, with another file and another event ID, since BqTail takes a repeated job ID for a load that is
done, and loads nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bqdispatch_provider.core import documents
from bqdispatch_provider.core.events import Load
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.sizes import MAX_ID_CHARS


@dataclass(frozen=True, slots=True)
class WindowBody:
    """The content of a window, as far as a dispatcher reads it.

    :param load: where the window's load runs, and how it is known.
    :param source: URL of the file whose storage event made the window; empty if the content does not name it.
    """

    load: Load
    source: str = ""

    @classmethod
    def parse(cls, content: bytes, project: str) -> WindowBody:
        """Read the content of a window; content that is no JSON object names nothing.

        :param content: as it is stored.
        :param project: project of loads for which the content names none.
        """
        try:
            document = documents.loads(content)
            source = document.get("Source") or {}
            event_id, url = document.get("EventID"), source.get("URL")
            named = document.get("ProjectID")
        except (ValueError, AttributeError, RecursionError):
            return cls(Load(project))
        return cls(Load(_id(named) or project, _id(event_id)), _text(url))


def _id(value: object) -> str:
    """Return a value if it may be a project or an event ID; empty otherwise. It goes into intents and job IDs."""
    text = _text(value)
    return text if len(text) <= MAX_ID_CHARS else ""


def _text(value: object) -> str:
    """Return a value if it is text that can be sent to a service; empty otherwise."""
    return value if isinstance(value, str) and value == value.encode(errors="ignore").decode() else ""


def content_for(document: Mapping[str, Any], source: str, event_id: str) -> bytes:
    """Return the content of a window for another file.

    :param document: content of an earlier firing of the window.
    :param source: URL of the file; BqTail lists its folder.
    :param event_id: a new storage event; BqTail loads nothing for a repeated one.
    """
    former, known = str(document.get("EventID", "")), document.get("Source")
    changed = {**document, "Source": {**(known if isinstance(known, dict) else {}), "URL": source}, "EventID": event_id}
    for key in ("ProcessURL", "DoneProcessURL"):
        if former and isinstance(changed.get(key), str):
            changed[key] = changed[key].replace(former, event_id)
    return json.dumps(changed, separators=(",", ":")).encode()


def parse_document(content: bytes) -> dict[str, Any] | None:
    """Return the content of a window as JSON; ``None`` if it is no JSON object.

    :param content: as it is stored.
    """
    try:
        document = documents.loads(content)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def event_id_for(location: Key) -> str:
    """Return the event ID of a window that is recreated for a missed folder.

    It follows from the ``.loc`` object, so that all dispatchers write the same window.

    :param location: name and generation of that object.
    """
    return str(int(hashlib.sha256(repr(location).encode()).hexdigest()[:13], 16))


def folder_of(uri: str) -> str:
    """Return the URL of the folder of a file.

    :param uri: URI of the file.
    """
    return uri.rpartition("/")[0]
