"""The way back of undecided windows, and of folders whose files were never loaded.

Whoever replays a window decides that it is fired, whatever is known of its earlier firings. What is known still
prevents harm: nothing is fired while a load may still come, or for a file that was loaded. If one folder of the window
was loaded and another was not, it is fired for the other. But if its file was not loaded and others of the file's
folder were, BqTail lists that folder: what still lies there is loaded again (docs/protocol.md, "Late events").
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bqdispatch_provider.core.listing import StoredObject
from bqdispatch_provider.core.model import Key, Reason
from bqdispatch_provider.core.sizes import MAX_WINDOW_BYTES
from bqdispatch_provider.core.targets import REASON, REPLAYED, UNDECIDED, check_undecided_name, split_undecided_name
from bqdispatch_provider.delivery.evidence import LoadEvidence, gone_steps, loaded_files
from bqdispatch_provider.delivery.quarantine import QuarantinedObject, QuarantineStore, ReplayError
from bqdispatch_provider.delivery.window_body import content_for, folder_of, parse_document
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.names import WindowName
from bqdispatch_provider.view.advice import ADVICE

_OTHER_FOLDER = "for another folder"
"""In place of the marker's generation in a window that is put back, and whose own file waits for another replay."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """A window that waits for a decision, or a folder whose files were not loaded.

    :param url: URL of the object that says so, in the task folder.
    :param window: name of the window.
    :param marker: that object: in ``undecided/``, or a ``.loc`` object.
    :param reason: why it waits.
    """

    url: str
    window: str
    marker: StoredObject
    reason: str

    @property
    def is_folder(self) -> bool:
        """True for a folder, False for a window."""
        return self.marker.name.endswith(".loc")


class Decisions:
    """Everything that waits for a decision in a task folder.

    :param dispatcher: of the task folder.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._store = dispatcher.store
        self._dispatcher = dispatcher

    def listing(self) -> list[Undecided]:
        """List the windows that wait, oldest first.

        :raises google.api_core.exceptions.GoogleAPIError: if they cannot be listed.
        """
        _, objects = self._store.listing(UNDECIDED)
        found = [self._undecided(each) for each in sorted(objects, key=lambda each: (each.created, each.name))]
        return [each for each in found if each is not None]

    def _undecided(self, marker: StoredObject) -> Undecided | None:
        try:
            check_undecided_name(marker.name)
            name = WindowName.parse(split_undecided_name(marker.name)[0]).name
        except ValueError:
            return None
        reason = marker.metadata.get(REASON, "it could not be decided on")
        return Undecided(self._store.task_url(marker.name), name, marker, reason)

    def check_name(self, url: str) -> None:
        """Check that a URL may be that of an undecided window.

        :raises ReplayError: if it lies among them, and has another name.
        """
        name = url.removeprefix(self._store.task_url(""))
        if name != url and name.startswith(UNDECIDED):
            try:
                check_undecided_name(name)
            except ValueError as error:
                raise ReplayError(f"{error}. {ADVICE[Reason.UNKNOWN_NAME].next_step}") from error

    def missed(self, url: str) -> Undecided | None:
        """Return the folder that a ``.loc`` object names; ``None`` if there is no such object.

        :param url: URL of the object, ``<window without .win>/<hash>.loc`` in the task folder.
        :raises google.api_core.exceptions.GoogleAPIError: if it cannot be looked up.
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
        marker = self._store.get(name)
        return None if marker is None else Undecided(url, window, marker, "its folder was not loaded")

    def put_back(self, quarantine: QuarantineStore, quarantined: QuarantinedObject) -> str:
        """Put a quarantined object back; a window only if nothing has loaded its file meanwhile.

        :param quarantine: holds the object.
        :param quarantined: the object.
        :returns: what was done, in words.
        :raises ReplayError: if it was not put back, since a load of it may still come or its file was loaded.
        :raises google.api_core.exceptions.GoogleAPIError: if it cannot be looked up.
        """
        if quarantined.name.endswith(".win") and quarantined.object is not None:
            evidence, _ = self._evidence(quarantined.name, quarantined.url)
            source = _source(
                parse_document(self._store.read(quarantined.url, MAX_WINDOW_BYTES, quarantined.object.size))
            )
            if source in loaded_files(evidence.values()):
                raise ReplayError(f"{quarantined.url!r} stays in quarantine, since {source!r} was loaded: delete it")
        return quarantine.put_back(quarantined)

    def fire(self, undecided: Undecided) -> str:
        """Put a window back, so that the next cycle fires it.

        :param undecided: the window, or a folder of it.
        :returns: what was done, in words.
        :raises ReplayError: if it was not put back.
        :raises google.api_core.exceptions.GoogleAPIError: if it cannot be looked up.
        """
        url = self._store.task_url(undecided.window)
        live = self._store.get(undecided.window)
        if live is not None and live.metadata.get(REPLAYED) == str(undecided.marker.generation):
            return self._finish(undecided, f"{url!r} is back")
        if live is not None:
            raise ReplayError(f"{undecided.url!r} waits: {url!r} exists; try again once it has been fired")
        evidence, locations = self._evidence(undecided.window, undecided.url)
        return self._fire(undecided, evidence, locations)

    def _evidence(self, window: str, url: str) -> tuple[dict[Key, LoadEvidence], tuple[StoredObject, ...]]:
        """Return what the loads of a window's firings tell, by the firing, and its ``.loc`` objects.

        :param url: names for a message what is to be put back.
        :raises ReplayError: if a load may still come.
        """
        listing = self._dispatcher.folder.listing()
        firings, unreadable = self._dispatcher.ledger.look((), listing.now, names=[window])
        if unreadable:
            raise ReplayError(next(iter(unreadable.values())))
        evidence = self._dispatcher.evidence.of_window(window, firings.get(window, {}), listing)
        self._dispatcher.ledger.record((key, f"gone-{step:05}") for key, step in gone_steps(evidence))
        if waits_for := next((each.waits_for for each in evidence.values() if each.waits_for), ""):
            raise ReplayError(f"{url!r} waits, try again later: {waits_for}")
        return evidence, listing.orphan_locations.get(window, ())

    def _fire(
        self, undecided: Undecided, evidence: Mapping[Key, LoadEvidence], locations: tuple[StoredObject, ...]
    ) -> str:
        url = self._store.task_url(undecided.window)
        loaded = loaded_files(evidence.values())
        folders = {folder_of(uri) for uri in loaded}
        named = self._dispatcher.evidence.folders_in(locations)
        stale = [key for key, folder in named.items() if folder in folders]
        missed = sorted({folder for folder in named.values() if folder not in folders})
        content = self._content(undecided, list(evidence))
        document = parse_document(content)
        source = _source(document)
        if undecided.is_folder and not missed:
            self._delete(stale)
            return f"the folder that {undecided.url!r} names was loaded: nothing was fired"
        if source and source in loaded and not missed:
            self._delete(stale)
            return self._finish(undecided, f"{source!r} was loaded: {undecided.url!r} was deleted, nothing was fired")
        self._delete(stale)
        own_waits = bool(missed) and not undecided.is_folder and folder_of(source) in folders and source not in loaded
        if missed and (undecided.is_folder or folder_of(source) in folders):
            if document is None:
                raise ReplayError(f"{undecided.url!r} is no JSON object, so it cannot be fired for another folder")
            # BqTail lists the folder of the source; the file itself need not exist.
            content = content_for(document, f"{missed[0]}/{source.rpartition('/')[2]}", str(time.time_ns() // 1000))
        metadata = {REPLAYED: _OTHER_FOLDER if own_waits else str(undecided.marker.generation)}
        if not self._store.create(url, content, metadata):
            raise ReplayError(f"{undecided.url!r} waits: {url!r} exists now; try again once it has been fired")
        done = f"{url!r} is back, and will be fired" + (f" for {missed[0]!r}" if missed else "")
        if own_waits:  # nobody else would load that file
            return f"{done}; once that is done, replay {undecided.url!r} again for {source!r}"
        return done if undecided.is_folder else self._finish(undecided, done)

    def _content(self, undecided: Undecided, firings: Sequence[Key]) -> bytes:
        if not undecided.is_folder:
            return self._store.read(undecided.url, MAX_WINDOW_BYTES, undecided.marker.size)
        if not firings:
            raise ReplayError(f"{undecided.url!r} cannot be fired: the ledger knows nothing of its window any more")
        return self._dispatcher.ledger.body(firings[-1])

    def _finish(self, undecided: Undecided, done: str) -> str:
        self._store.remove(undecided.url, undecided.marker.generation)
        return done

    def _delete(self, locations: list[Key]) -> None:
        """Delete ``.loc`` objects of loaded folders, so that BqTail does not list these folders again."""
        for (name, _), result in zip(locations, self._store.delete(locations), strict=True):
            if result.failed:
                url = self._store.task_url(name)
                raise ReplayError(f"{url!r} names a loaded folder and was not deleted: {result}")


def _source(document: Mapping[str, Any] | None) -> str:
    """Return the URL of the file that a window's content names; empty if it names none."""
    source = (document or {}).get("Source")
    url = source.get("URL") if isinstance(source, dict) else ""
    return url if isinstance(url, str) else ""
