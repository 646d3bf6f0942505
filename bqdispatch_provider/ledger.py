"""The ledger of fired windows: which window was claimed, fired, and taken by BqTail without a load that was seen.

Rules: docs/protocol.md, section "The ledger of fired windows". Entries are created once and removed by age. They lie in
a folder for each minute in which windows end, which no look lists but for the windows that it does not know yet.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from datetime import datetime

from bqdispatch_provider.model import OWNER, REPLAY, REPLAYED, Firing, Firings, Key, StoredObject, Window
from bqdispatch_provider.names import LEDGER, LedgerName, WindowName
from bqdispatch_provider.planning import KEEP_ENTRY, due, entry_name
from bqdispatch_provider.storage import BATCH_SIZE, Result, Stamp, TaskStore

log = logging.getLogger(__name__)


class Ledger:
    """The ledger of one task folder, and what this dispatcher has read in it.

    :param store: the task folder.
    :param task_url: its URL.
    :param owner: which dispatcher this is.
    """

    def __init__(self, store: TaskStore, task_url: str, owner: str) -> None:
        self._store = store
        self._task_url = task_url
        self._owner = owner
        self.used = False
        """Whether windows are fired here, so that there may be old entries."""
        self._fired: dict[Key, Firing] = {}
        self._new: set[Key] = set()
        """Windows of whose name nobody had fired one when they were seen first. Whoever claims one now is found out by
        the claim itself."""

    def look(
        self, windows: Iterable[Window], now: datetime, keys: Collection[Key] = (), names: Iterable[str] = ()
    ) -> tuple[dict[str, Firings], dict[str, str]]:
        """Tell what was done with windows: one request for a hundred minutes, and none for what is known.

        To be called after the task folder was listed: whatever was there then, and had been claimed before, is found.

        :param windows: in the task folder.
        :param now: the storage server's time of the listing.
        :param keys: names and generations of windows that need not be there.
        :param names: names of windows that need not be there, of which every firing is asked for.
        :returns: by the name of a window its firings, and the names of those whose firings cannot be read, with the
            reason.
        """
        found: dict[str, Firings] = {}
        unknown = {*names, *(name for name, generation in keys if (name, generation) not in self._fired)}
        for name, generation in keys:
            if name not in unknown:
                found[name] = {**found.get(name, {}), generation: self._fired[name, generation]}
        present: set[Key] = set()
        for window in windows:
            present.add(window.key)
            if window.sentinel is not None or REPLAY in window.object.metadata:
                continue
            if not due(window, now):
                self._new.add(window.key)  # it cannot have been fired, and so not have returned
            elif window.key in self._fired:
                name = window.object.name
                found[name] = {**found.get(name, {}), window.object.generation: self._fired[window.key]}
            elif window.key not in self._new:
                unknown.add(window.object.name)
        kept = present.union(keys)
        self._fired = {key: firing for key, firing in self._fired.items() if key in kept}
        self._new &= present
        listed, hidden = self._read(unknown)
        found.update(listed)
        for name, generation in kept:
            if name in unknown and name not in hidden:
                firing = found.get(name, {}).get(generation)
                if firing is not None and firing.fired is not None:
                    self._fired[name, generation] = firing
                elif not found.get(name) and (name, generation) in present:
                    self._new.add((name, generation))
        return found, hidden

    def _read(self, names: Collection[str]) -> tuple[dict[str, Firings], dict[str, str]]:
        minutes: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name in names:
            entry = entry_name(name, 1, "claim", self._task_url)
            minutes[LedgerName.folder(WindowName.parse(name).end)][LedgerName.parse(entry).window] = name
        found: dict[str, Firings] = {}
        hidden: dict[str, str] = {}
        folders = list(minutes)
        for folder, listed in zip(folders, self._store.entries(folders) if folders else (), strict=True):
            if isinstance(listed, Result):
                said = f"the ledger {self._store.task_url(folder)!r} cannot be listed: {listed}"
                hidden.update(dict.fromkeys(minutes[folder].values(), said))
                continue
            for window, firings in _firings(listed).items():
                if window in minutes[folder]:
                    found[minutes[folder][window]] = firings
        return found, hidden

    def forget(self, keys: Iterable[Key]) -> None:
        """Read anew what was done with windows: this dispatcher has tried to fire them, and has not."""
        self._new.difference_update(keys)

    def remember(self, keys: Iterable[Key]) -> None:
        """Note what this dispatcher has fired."""
        now = self._store.now()
        for key in keys:
            self.used = True
            self._fired[key] = Firing(now, now)

    def body(self, key: Key) -> bytes:
        """The content of a window that was claimed, which may be gone itself.

        :raises google.api_core.exceptions.NotFound: when the ledger knows nothing of it.
        """
        return self._store.read(self._store.task_url(self._entry(key, "claim")))

    def was_replayed(self, key: Key) -> bool:
        """Tell whether a window that was claimed had been put back from quarantine.

        :raises google.api_core.exceptions.GoogleAPIError: when that cannot be told.
        """
        claim = self._store.look(self._entry(key, "claim"))
        return claim is not None and REPLAYED in claim.metadata

    def note(self, entries: Iterable[tuple[Key, str]]) -> None:
        """Note what was found out of windows that were claimed.

        Where that fails it is noted by a later look: it makes somebody wait, and nothing else.

        :param entries: name and generation of the window, and what is to be noted.
        """
        stamps: list[Stamp] = [
            (self._entry(key, "claim"), 0, self._entry(key, what), 0, {OWNER: self._owner}) for key, what in entries
        ]
        for start in range(0, len(stamps), BATCH_SIZE):
            chunk = stamps[start : start + BATCH_SIZE]
            for stamp, result in zip(chunk, self._store.stamp(chunk), strict=True):
                if not result.ok and not result.doubtful:
                    log.warning("%r cannot be noted: %s", self._store.task_url(stamp[2]), result)

    def _entry(self, key: Key, what: str) -> str:
        return entry_name(*key, what, self._task_url)

    def clean_up(self, now: datetime, present: Collection[str], threads: Executor, after: str = "") -> str:
        """Delete old entries, at most a thousand: one list, and a batch for each hundred.

        A window that was claimed and not fired, or that lies there, is not forgotten.

        :param now: the storage server's time.
        :param present: names of windows that lie in the task folder.
        :param threads: where entries are deleted side by side.
        :param after: only entries behind this name; by default from the oldest on.
        :returns: the name behind which to go on; empty when there are no more.
        :raises google.api_core.exceptions.GoogleAPIError: when they cannot be listed.
        """
        listed = self._store.oldest(LEDGER, LedgerName.folder(now - KEEP_ENTRY), after)
        kept = {LedgerName.parse(self._entry((name, 1), "claim")).window for name in present}
        firings = _firings(listed)
        old: list[list[Key]] = [[], []]
        for entry in listed:
            with suppress(ValueError):
                name = LedgerName.parse(entry.name)
                firing = firings[name.window][name.generation]
                if firing.fired and name.window not in kept and now - entry.created > KEEP_ENTRY:
                    old[name.what != "claim"].append((entry.name, entry.generation))
        # A claim that is left alone would seem to be of a window that was never fired.
        for entries in old:
            chunks = [entries[start : start + BATCH_SIZE] for start in range(0, len(entries), BATCH_SIZE)]
            list(threads.map(self._store.delete, chunks))
        return listed[-1].name if listed else ""


def _firings(entries: Iterable[StoredObject]) -> Mapping[str, dict[int, Firing]]:
    """The firings that entries tell of, by the name of their window and its generation."""
    read: defaultdict[str, defaultdict[int, dict[str, datetime]]] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        try:
            name = LedgerName.parse(entry.name)
        except ValueError as error:
            log.warning("%s", error)
            continue
        read[name.window][name.generation][name.what] = entry.created
    return {
        window: {generation: _firing(said) for generation, said in generations.items()}
        for window, generations in read.items()
    }


def _firing(said: Mapping[str, datetime]) -> Firing:
    gone = {int(what.removeprefix("gone-")): at for what, at in said.items() if what.startswith("gone-")}
    return Firing(said.get("claim") or min(said.values()), said.get("fired"), gone, "aside" in said)
