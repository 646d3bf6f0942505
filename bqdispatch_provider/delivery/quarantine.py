"""Quarantine: objects below ``ErrorURL`` that must not be dispatched, and their way back into the task folder.

Beside each object lies a note that says where it came from and why (docs/protocol.md, "Quarantine"). On its way back an
object carries a mark, ``bqdispatch-replay``, until its copy in quarantine is deleted; no dispatcher takes a marked
object. So a second try goes on where an interrupted one stopped, and nothing is lost or delivered twice.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.api_core.exceptions import NotFound
from google.cloud.storage import Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.plans import Quarantine
from bqdispatch_provider.core.sizes import MAX_NOTE_BYTES
from bqdispatch_provider.core.targets import (
    CREATED,
    OWNER,
    REPLAY,
    REPLAYED,
    SINCE,
    QuarantinePath,
    is_shortened,
    parse_quarantine_path,
)
from bqdispatch_provider.delivery.quarantine_notes import FOREIGN, NOTE_ENDING, Note, NoteCache, parse_note, unreadable
from bqdispatch_provider.gcp.objects import ObjectTooLarge
from bqdispatch_provider.gcp.rate_limit import SAME_NAME_S
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.gcp.threads import Threads
from bqdispatch_provider.names import TraceName, WindowName

log = logging.getLogger(__name__)

_THREADS = 8
_NO_NOTE, _UNREAD = "its note is missing", "its note was not read"


class ReplayError(Exception):
    """An object that was not put back, or only in part; a second try finishes what was begun."""


@dataclass(frozen=True, slots=True)
class QuarantinedObject:
    """An object in quarantine.

    :param path: below ``ErrorURL``.
    :param url: URL in quarantine.
    :param name: path below the task folder from which it came.
    :param generation: its generation in the task folder.
    :param since: its creation in the task folder; the day alone if its note is missing.
    :param reason: why it was quarantined.
    :param object: the object; ``None`` if only its note is left.
    :param has_note: True if its note exists.
    :param is_read: False if its note exists and was not read, so that only its path tells of it.
    """

    path: str
    url: str
    name: str
    generation: int
    since: datetime
    reason: str
    object: StoredObject | None
    has_note: bool
    is_read: bool = True


def note_of(quarantine: Quarantine, url: str, now: datetime) -> dict[str, Any]:
    """Return the note that lies beside an object in quarantine. ``Asked`` has what was looked at to find the reason.

    :param quarantine: the object, and the reason.
    :param url: URL of the object in the task folder.
    :param now: the storage server's time.
    """
    return {
        "URL": url,
        "Generation": quarantine.generation,
        "Reason": quarantine.reason,
        "Since": quarantine.created.astimezone(UTC).isoformat(),
        "SetAside": now.isoformat(timespec="seconds"),
        "Asked": dict(quarantine.asked),
    }


class QuarantineStore:
    """The quarantine of one task folder.

    :param client: a ``google.cloud.storage.Client``.
    :param config: names the task folder and ``ErrorURL``.
    """

    def __init__(self, client: Client, config: DispatchConfig) -> None:
        self._config = config
        self._tasks = TaskStore(client, config.async_task_url, config.trigger_bucket or "")
        # The same calls, with the quarantine as their folder.
        self._quarantine = TaskStore(client, config.error_url, config.trigger_bucket or "")
        self.is_cut = False
        """True if the last list may have ended before all was listed."""

        self._changed_at: dict[str, float] = {}
        """When objects were put back, by the monotonic clock: a name may be changed once a second."""

    def __enter__(self) -> QuarantineStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._tasks.close()
        self._quarantine.close()

    def listing(self, notes: NoteCache | None = None, enough: float = math.inf) -> list[QuarantinedObject]:
        """List the objects that came from this task folder, oldest first; skip all other objects.

        :param notes: cache of notes that were read before. New ones are read into it, at most as many as it wants.
            Without a cache all are read.
        :param enough: objects and notes after which the list ends, the first days first; by default it is whole.
        :returns: the objects. Those whose notes are not read come last, known by their paths alone; they may have come
            from another task folder.
        :raises google.api_core.exceptions.GoogleAPIError: if the quarantine cannot be listed.
        """
        notes = NoteCache() if notes is None else notes
        _, objects = self._quarantine.listing(enough=enough)
        self.is_cut = len(objects) >= enough
        if self.is_cut and not objects[-1].name.endswith(NOTE_ENDING):
            del objects[-1]  # its note would follow
        by_path = {stored.name: stored for stored in objects}
        paths = {name if parse_quarantine_path(name) else name.removesuffix(NOTE_ENDING) for name in by_path}
        parsed = {path: parts for path in sorted(paths) if (parts := parse_quarantine_path(path))}
        keys = {path: by_path[path + NOTE_ENDING].key if path + NOTE_ENDING in by_path else None for path in parsed}
        missing = notes.missing(keys.values())
        with Threads(_THREADS) as threads:
            sizes = [by_path[name].size for name, _ in missing]
            read = dict(zip(missing, threads.map(self._read_note, missing, sizes), strict=True))
        notes.add({key: note for key, note in read.items() if note is not None})
        found = (
            self._object(
                path, parsed[path], by_path.get(path), None if key in read and read[key] is None else key, notes
            )
            for path, key in keys.items()
        )
        return sorted(filter(None, found), key=lambda each: (not each.is_read, each.since, each.path))

    def task_url(self, quarantined: QuarantinedObject) -> str:
        """Return the URL in the task folder to which an object goes back.

        :param quarantined: the object.
        """
        return self._tasks.task_url(quarantined.name)

    def _read_note(self, key: Key, size: int) -> Note | None:
        """Read a note; ``None`` if it is gone.

        :param size: as it was listed.
        """
        path = key[0].removesuffix(NOTE_ENDING)
        try:
            content = self._quarantine.read(self._quarantine.task_url(key[0]), MAX_NOTE_BYTES, size)
        except NotFound:
            return None
        except ObjectTooLarge as error:
            return unreadable(error)
        return parse_note(content, path, self._tasks.task_url(""), self._config.error_url)

    def _object(
        self, path: str, parsed: QuarantinePath, stored: StoredObject | None, key: Key | None, notes: NoteCache
    ) -> QuarantinedObject | None:
        """Return a quarantined object by its path and its note; ``None`` if it is none of this task folder.

        :param key: of its note; ``None`` without one.
        """
        name, since, reason = parsed.name, parsed.day, _NO_NOTE if key is None else _UNREAD
        note = notes.get(key) if key is not None else None
        if note is FOREIGN:
            return None
        if note is not None:
            name = note.url.removeprefix(self._tasks.task_url("")) or name
            since, reason = note.since or since, note.reason
        if not (_is_event(name) or is_shortened(name)):
            return None
        url, is_read = self._quarantine.task_url(path), key is None or note is not None
        return QuarantinedObject(path, url, name, parsed.generation, since, reason, stored, key is not None, is_read)

    def put_back(self, quarantined: QuarantinedObject) -> str:
        """Put an object back into the task folder, then delete it and its note in quarantine.

        It goes back only if its name is free. A window is fired then, whatever is known of earlier firings. A second
        try finishes what an earlier one has begun.

        :param quarantined: the object, as it was listed.
        :returns: what was done, in words.
        :raises ReplayError: if it was not put back, or not completely.
        :raises google.api_core.exceptions.GoogleAPIError: if it cannot be looked up.
        """
        name, url = quarantined.name, self.task_url(quarantined)
        if is_shortened(name) or not _is_event(name):
            raise ReplayError(
                f"{quarantined.url!r} has a shortened name, and {quarantined.reason}: copy it back by hand"
            )
        stored = self._quarantine.get(quarantined.path)
        if stored is not None:
            self._copy_back(quarantined, stored)
        live = self._tasks.get(name)
        if self._is_marked(quarantined, live):
            self._release(quarantined)
            done = f"{url!r} is back"
        elif stored is None and live is not None and live.generation == quarantined.generation:
            return f"{url!r} has not left the task folder yet, so nothing was done"
        elif stored is None and self._quarantine.get(quarantined.path) is not None:
            raise ReplayError(f"{url!r} is being quarantined right now; try again")
        else:
            done = f"{url!r} was put back before"
        self._quarantine.remove(f"{quarantined.url}{NOTE_ENDING}")
        log.info("%s", done)
        return done

    def _copy_back(self, quarantined: QuarantinedObject, stored: StoredObject) -> None:
        """Copy an object back with the mark, and delete it in quarantine."""
        url = self.task_url(quarantined)
        if not quarantined.has_note:
            # Once the object is deleted here, its note is all that a second try finds.
            quarantine = Quarantine(quarantined.name, quarantined.generation, quarantined.since, quarantined.reason)
            note = note_of(quarantine, url, self._quarantine.now())
            self._quarantine.write_json(f"{quarantined.url}{NOTE_ENDING}", note)
        since = min(stored.since, quarantined.since)
        # The mark of a fence is not copied: whoever replays an object in doubt wants it delivered.
        kept = {key: value for key, value in stored.metadata.items() if key not in (CREATED, OWNER)}
        mark = {**kept, REPLAY: str(quarantined.generation), SINCE: f"{since.timestamp():.3f}"}
        copied = self._quarantine.copy_with_metadata(
            quarantined.path, stored.generation, quarantined.name, self._config.async_task_url, mark
        )
        self._changed_at[quarantined.name] = time.monotonic()
        if not copied.ok:
            live = self._tasks.get(quarantined.name)
            # A marked object is from an earlier try, or from this one if its answer was lost.
            if not self._is_marked(quarantined, live):
                taken = live is not None and copied.status == 412
                why = "an object of that name exists there" if taken else f"the copy was refused: {copied}"
                raise ReplayError(f"{quarantined.url!r} cannot be put back as {url!r}: {why}")
        (deleted,) = self._quarantine.delete([(quarantined.path, stored.generation)])
        if not deleted.gone:
            raise self._unfinished(quarantined, f"{quarantined.url!r} was not deleted: {deleted}")

    def _release(self, quarantined: QuarantinedObject) -> None:
        """Remove the mark of an object that is back, so that it is dispatched; a window is fired without a verdict."""
        name = quarantined.name
        live = self._tasks.get(name)
        if live is None or not self._is_marked(quarantined, live):
            return
        if (since := self._changed_at.pop(name, None)) is not None:
            time.sleep(max(since + SAME_NAME_S - time.monotonic(), 0.0))
        metadata = {key: value for key, value in live.metadata.items() if key != REPLAY}
        if name.endswith(".win"):
            metadata[REPLAYED] = str(quarantined.generation)
        (released,) = self._tasks.compose_with_metadata([(name, live.generation, name, live.generation, metadata)])
        if not released.ok and self._is_marked(quarantined, self._tasks.get(name)):
            raise self._unfinished(quarantined, f"its mark was not removed: {released}")

    def _unfinished(self, quarantined: QuarantinedObject, problem: str) -> ReplayError:
        url = self.task_url(quarantined)
        return ReplayError(f"{url!r} is back but not dispatched yet, replay it again: {problem}")

    @staticmethod
    def _is_marked(quarantined: QuarantinedObject, live: StoredObject | None) -> bool:
        return live is not None and live.metadata.get(REPLAY) == str(quarantined.generation)


def _is_event(name: str) -> bool:
    for parse in (WindowName.parse, TraceName.parse):
        try:
            parse(name)
        except ValueError:
            continue
        return True
    return False
