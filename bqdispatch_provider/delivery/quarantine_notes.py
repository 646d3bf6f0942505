"""Notes beside objects in quarantine: where each came from, and why (docs/protocol.md, "Quarantine")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from bqdispatch_provider.core import documents
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.targets import parse_quarantine_path, quarantine_path

NOTE_ENDING = ".json"
"""End of the name of a note, after the name of its object."""

MAX_REASON_LENGTH = 4096
"""Characters of a reason that are shown: a reason of ours names an object or two."""


@dataclass(frozen=True, slots=True)
class Note:
    """A note.

    :param url: the object's URL in the task folder; empty if the note cannot be read.
    :param since: creation of the object there (aware); ``None`` if the note cannot be read.
    :param reason: why the object was quarantined, or why the note cannot be read.
    """

    url: str = ""
    since: datetime | None = None
    reason: str = ""


FOREIGN = Note()
"""Stands for each note about an object of another task folder."""


def parse_note(content: bytes, path: str, folder_url: str, error_url: str) -> Note:
    """Read a note.

    :param content: of the note.
    :param path: path of its object below ``ErrorURL``.
    :param folder_url: URL of the task folder.
    :param error_url: ``ErrorURL``.
    """
    try:
        note = documents.parse(content)
        url = note["URL"]
        if not url.startswith(folder_url):
            return FOREIGN
        name = url.removeprefix(folder_url)
        created = datetime.fromisoformat(note["Since"]).astimezone(UTC)
        parsed = parse_quarantine_path(path)
        if parsed is None or quarantine_path(created, name, parsed.generation, error_url) != path:
            raise ValueError(f"it is about {name!r}")
        return Note(url, created, str(note["Reason"])[:MAX_REASON_LENGTH])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return unreadable(error)


def unreadable(error: Exception) -> Note:
    """Return what stands for a note that cannot be read.

    :param error: why it cannot be read.
    """
    return Note(reason=f"its note cannot be read: {type(error).__name__}: {error}"[:MAX_REASON_LENGTH])


class NoteCache:
    """Notes that were read before. A note never changes, so one is known by its name and generation.

    :param wanted: how many objects of the task folder have their notes read, the oldest first; by default all.
    """

    def __init__(self, wanted: int | None = None) -> None:
        self._wanted = wanted
        self._notes: dict[Key, Note] = {}

    def __len__(self) -> int:
        return len(self._notes)

    def get(self, key: Key) -> Note | None:
        """Return a note; ``None`` if it was not read."""
        return self._notes.get(key)

    def add(self, notes: Mapping[Key, Note]) -> None:
        """Keep notes."""
        self._notes |= notes

    def missing(self, keys: Iterable[Key | None]) -> list[Key]:
        """Return the notes to read, and forget those that are gone.

        :param keys: of all notes, in the order in which they are wanted; ``None`` for an object without one.
        """
        keys = list(keys)
        self._notes = {key: self._notes[key] for key in keys if key is not None and key in self._notes}
        missing: list[Key] = []
        counted = 0
        for key in keys:
            if self._wanted is not None and counted >= self._wanted:
                break
            note = self._notes.get(key) if key is not None else None
            counted += note is not FOREIGN
            if key is not None and note is None:
                missing.append(key)
        return missing
