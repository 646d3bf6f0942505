"""The way back of windows that could not be decided on, and of folders whose files were never loaded.

Whoever replays decides: the window is fired whatever is known of earlier firings. What is known all the same keeps it
from doing harm: nothing is fired while a load may still come, nor for files that were loaded, and where a folder of its
own was loaded it is fired for those that were not (docs/protocol.md, "Late events").
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.late import Fate, document_of, folder_of, for_file
from bqdispatch_provider.model import REASON, REPLAYED, Key, StoredObject
from bqdispatch_provider.names import UNDECIDED, WindowName
from bqdispatch_provider.quarantine import Aside, QuarantineStore, ReplayError


@dataclass(frozen=True, slots=True)
class Undecided:
    """A window that waits for a decision, or a folder whose files were not loaded.

    :param url: of the object that says so, in the task folder.
    :param window: name of the window.
    :param there: that object.
    :param reason: why it waits.
    """

    url: str
    window: str
    there: StoredObject
    reason: str


class Decisions:
    """What waits in a task folder for somebody to decide.

    :param dispatcher: of the task folder.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._store = dispatcher.store
        self._dispatcher = dispatcher

    def listing(self) -> list[Undecided]:
        """The windows that wait, oldest first.

        :raises google.api_core.exceptions.GoogleAPIError: when they cannot be listed.
        """
        _, objects = self._store.listing(UNDECIDED)
        found = [self._undecided(each) for each in sorted(objects, key=lambda each: (each.created, each.name))]
        return [each for each in found if each is not None]

    def _undecided(self, there: StoredObject) -> Undecided | None:
        window, _, generation = there.name.removeprefix(UNDECIDED).rpartition(".")
        try:
            name = WindowName.parse(window).name
        except ValueError:
            return None
        reason = there.metadata.get(REASON, "it could not be decided on")
        return Undecided(self._store.task_url(there.name), name, there, reason) if generation.isdecimal() else None

    def missed(self, url: str) -> Undecided | None:
        """The folder that a location object names; ``None`` where there is no such object.

        :param url: of the object, ``<window without .win>/<hash>.loc`` in the task folder.
        :raises google.api_core.exceptions.GoogleAPIError: when it cannot be looked at.
        """
        folder = self._store.task_url("")
        name = url.removeprefix(folder)
        window = f"{name.rpartition('/')[0]}.win"
        if not url.startswith(folder) or not name.endswith(".loc"):
            return None
        try:
            WindowName.parse(window)
        except ValueError:
            return None
        there = self._store.look(name)
        return None if there is None else Undecided(url, window, there, "its folder was not loaded")

    def put_back(self, quarantine: QuarantineStore, aside: Aside) -> str:
        """Put an object in quarantine back, a window only where nothing has loaded it meanwhile.

        :param quarantine: in which it lies.
        :returns: what was done.
        :raises ReplayError: when it was not put back, since a load of it may still come or its file was loaded.
        :raises google.api_core.exceptions.GoogleAPIError: when it cannot be looked at.
        """
        if aside.name.endswith(".win") and aside.there is not None:
            fates, _, _ = self._fates(aside.name, aside.url)
            source = _source(document_of(self._store.read(aside.url)))
            if any(source in fate.loaded for fate in fates):
                raise ReplayError(f"{aside.url!r} stays, for {source!r} was loaded: delete it")
        return quarantine.put_back(aside)

    def fire(self, undecided: Undecided) -> str:
        """Put a window back so that it is fired, and say what was done.

        :raises ReplayError: when it was not put back, and why.
        :raises google.api_core.exceptions.GoogleAPIError: when it cannot be looked at.
        """
        url = self._store.task_url(undecided.window)
        live = self._store.look(undecided.window)
        if live is not None and live.metadata.get(REPLAYED) == str(undecided.there.generation):
            return self._finish(undecided, f"{url!r} is back")
        if live is not None:
            raise ReplayError(f"{undecided.url!r} waits: {url!r} lies there, try again once it has been fired")
        fates, generations, beside = self._fates(undecided.window, undecided.url)
        return self._fire(undecided, fates, generations, beside)

    def _fates(self, window: str, what: str) -> tuple[list[Fate], list[int], tuple[StoredObject, ...]]:
        """What became of the firings of a window's name, their generations, and what names its folders."""
        listing = self._dispatcher.listing()
        firings, hidden = self._dispatcher.ledger.look((), listing.now, names=[window])
        if hidden:
            raise ReplayError(next(iter(hidden.values())))
        known = firings.get(window, {})
        fates = [self._dispatcher.evidence.fate((window, g), f, listing) for g, f in known.items()]
        self._dispatcher.ledger.note(
            ((window, g), f"gone-{fate.gone:05}") for g, fate in zip(known, fates, strict=True) if fate.gone is not None
        )
        if waits := next((fate.waits for fate in fates if fate.waits), ""):
            raise ReplayError(f"{what!r} waits, try again later: {waits}")
        return fates, list(known), listing.locations.get(window, ())

    def _fire(
        self, undecided: Undecided, fates: list[Fate], generations: list[int], beside: tuple[StoredObject, ...]
    ) -> str:
        url = self._store.task_url(undecided.window)
        loaded = frozenset[str]().union(*(fate.loaded for fate in fates))
        folders = {folder_of(uri) for uri in loaded}
        named = self._dispatcher.evidence.folders(beside)
        stale = [key for key, folder in named.items() if folder in folders]
        new = sorted({folder for folder in named.values() if folder not in folders})
        is_folder = undecided.there.name.endswith(".loc")
        content = self._content(undecided, generations)
        document = document_of(content)
        source = _source(document)
        if is_folder and not new:
            self._delete([*stale])
            return f"the folder that {undecided.url!r} names was loaded: nothing was fired"
        if source and source in loaded and not new:
            self._delete(stale)
            return self._finish(undecided, f"{source!r} was loaded: {undecided.url!r} was removed, and nothing fired")
        self._delete(stale)
        if new and (is_folder or folder_of(source) in folders):
            if document is None:
                raise ReplayError(f"{undecided.url!r} holds no JSON object, so no other folder can be put into it")
            # The names of its files are of no matter: BqTail lists the folder.
            content = for_file(document, f"{new[0]}/{source.rpartition('/')[2]}", str(time.time_ns() // 1000))
        metadata = {REPLAYED: str(undecided.there.generation)}
        if not self._store.create(url, content, metadata):
            raise ReplayError(f"{undecided.url!r} waits: {url!r} lies there now, try again once it has been fired")
        said = f"{url!r} is back, and will be fired" + (f" for {new[0]!r}" if new else "")
        return said if is_folder else self._finish(undecided, said)

    def _content(self, undecided: Undecided, generations: list[int]) -> bytes:
        if not undecided.there.name.endswith(".loc"):
            return self._store.read(undecided.url)
        if not generations:
            raise ReplayError(
                f"{undecided.url!r}: nothing is known of its window any more, so it cannot be fired again"
            )
        return self._dispatcher.ledger.body((undecided.window, generations[-1]))

    def _finish(self, undecided: Undecided, said: str) -> str:
        self._store.remove(undecided.url, undecided.there.generation)
        return said

    def _delete(self, keys: list[Key]) -> None:
        for key, result in zip(keys, self._store.delete(keys) if keys else (), strict=True):
            if not result.ok and not result.doubtful:
                raise ReplayError(
                    f"{self._store.task_url(key[0])!r} names a loaded folder and is not deleted: {result}"
                )


def _source(document: Mapping[str, Any] | None) -> str:
    source = (document or {}).get("Source")
    url = source.get("URL") if isinstance(source, dict) else ""
    return url if isinstance(url, str) else ""
