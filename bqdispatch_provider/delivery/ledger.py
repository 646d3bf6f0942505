"""The ledger of fired windows: which windows were claimed and fired, and what BqTail did with them.

Each entry is an object about one generation of a window (docs/protocol.md, "The ledger of fired windows"). It is
deleted after eight days:

- ``claim``: a dispatcher has claimed the window. It is rewritten only to fence it, or to take it over.
- ``fired``: the claim was copied into the trigger bucket, or is not to be copied any more: the window was quarantined
  in doubt, was dropped, or became undecided.
- ``gone-<step>``: no object was left from which BqTail could start another load of this firing. If no load has come ten
  minutes after the entry's creation, the firing is over; without any load it was dropped. ``<step>`` is the step of its
  last load (a number in the job ID), 0 without one. A load of a later step makes the entry void.
- ``aside``: the window became undecided, since BqTail has dropped the firing, or since the window had returned and
  nothing proves what was loaded. Somebody has to decide.

Entries lie in ``~ledger/``, in a folder for each minute in which windows end. A listing of the task folder leaves
``~ledger/`` out; only the minutes of due windows that this process does not know yet are listed. So what was fired in
eight days costs nothing.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor
from datetime import datetime

from bqdispatch_provider.core.listing import StoredObject, Window
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.sizes import MAX_WINDOW_BYTES
from bqdispatch_provider.core.targets import (
    LEDGER,
    OWNER,
    REPLAYED,
    LedgerName,
    ledger_entries_prefix,
    ledger_entry_name,
)
from bqdispatch_provider.core.windows import ENTRY_RETENTION, Firing, Firings, WindowState, state_of
from bqdispatch_provider.delivery.moves import first_claimed
from bqdispatch_provider.gcp.gcs_batch import BATCH_SIZE
from bqdispatch_provider.gcp.storage import ANY_GENERATION, NEW, ComposeRequest, TaskStore
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.names import WindowName

log = logging.getLogger(__name__)

_DELETED_IN_STEP = {"claim": 0, "fired": 2}
"""The order in which the entries of a firing are deleted, by their kinds; others are deleted in between."""


class Ledger:
    """The ledger of one task folder, and what this process remembers of it.

    :param store: the task folder.
    :param task_url: URL of the task folder.
    :param owner: ID of this dispatcher.
    """

    def __init__(self, store: TaskStore, task_url: str, owner: str) -> None:
        self._store = store
        self._task_url = task_url
        self._owner = owner
        self.used = False
        """True once this process has seen that windows are fired in this task folder; only then it looks for old
        entries."""

        self._fired: dict[Key, Firing] = {}
        self._remembered: frozenset[Key] = frozenset()
        """Windows whose firings the last look took from memory."""

        self._unfired: set[Key] = set()
        """Windows whose name had no firing when they were first seen. If another dispatcher claims one later, this one
        learns it when its own claim fails."""

    def look(
        self, windows: Iterable[Window], now: datetime, keys: Collection[Key] = (), names: Iterable[str] = ()
    ) -> tuple[dict[str, Firings], dict[str, str]]:
        """Return the firings of windows: one request for a hundred minutes, and none for what is known.

        Call it after the task folder was listed: then it finds the claims of all windows in that listing.

        :param windows: windows in the task folder.
        :param now: the storage server's time of the listing.
        :param keys: names and generations of windows that may be gone.
        :param names: names of windows that may be gone; all firings of these are returned.
        :returns: the firings by the name of their window, and the reasons why those of other windows cannot be read.
        """
        windows = list(windows)
        unknown = {*names, *(name for name, generation in keys if (name, generation) not in self._fired)}
        known = [key for key in keys if key[0] not in unknown]
        for key in self._in_question(windows, now):
            if key in self._fired:
                known.append(key)
            elif key not in self._unfired:
                unknown.add(key[0])
        found: dict[str, Firings] = {}
        self._remembered = frozenset(known)
        for name, generation in known:
            found[name] = {**found.get(name, {}), generation: self._fired[name, generation]}
        present = {window.key for window in windows}
        kept = present.union(keys)
        self._fired = {key: firing for key, firing in self._fired.items() if key in kept}
        self._unfired &= present
        read, unreadable = self._read(unknown)
        found.update(read)
        self._learn([key for key in kept if key[0] in unknown - unreadable.keys()], present, found)
        return found, unreadable

    def _in_question(self, windows: Iterable[Window], now: datetime) -> Iterator[Key]:
        """Yield the windows that may have been fired, or may have returned."""
        for window in windows:
            state = state_of(window, {}, now)
            if state is WindowState.READY:
                yield window.key
            elif state is WindowState.NOT_DUE:
                self._unfired.add(window.key)  # it was not fired, and has not returned

    def _learn(self, keys: Iterable[Key], present: Set[Key], found: Mapping[str, Firings]) -> None:
        """Remember what was read about windows."""
        for name, generation in keys:
            firing = found.get(name, {}).get(generation)
            if firing is not None and firing.fired is not None:
                self._fired[name, generation] = firing
            elif not found.get(name) and (name, generation) in present:
                self._unfired.add((name, generation))

    def _read(self, names: Collection[str]) -> tuple[dict[str, Firings], dict[str, str]]:
        """Read the firings of windows; return them, and why those of other windows cannot be read."""
        minutes: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name in names:
            minutes[LedgerName.folder(WindowName.parse(name).end)][self._name_in_entries(name)] = name
        found: dict[str, Firings] = {}
        unreadable: dict[str, str] = {}
        folders = list(minutes)
        for folder, listed in zip(folders, self._store.list_folders(folders), strict=True):
            if isinstance(listed, Result):
                reason = f"the ledger {self._store.task_url(folder)!r} cannot be listed: {listed}"
                unreadable.update(dict.fromkeys(minutes[folder].values(), reason))
                continue
            firings, reasons = firings_in(listed, minutes[folder], self._store.task_url)
            found.update((minutes[folder][window], each) for window, each in firings.items())
            unreadable.update((minutes[folder][window], reason) for window, reason in reasons.items())
        return found, unreadable

    def forget(self, keys: Iterable[Key]) -> None:
        """Ask the ledger again about windows that this dispatcher failed to fire: another may have claimed them.

        :param keys: of the windows.
        """
        self._unfired.difference_update(keys)

    def remember(self, keys: Iterable[Key]) -> None:
        """Remember that this dispatcher has fired windows.

        :param keys: of the windows.
        """
        now = self._store.now()
        for key in keys:
            self.used = True
            self._fired[key] = Firing(now, now)

    def body(self, key: Key) -> bytes:
        """Return the content of a claimed window, which may be gone itself.

        :param key: of the window.
        :raises google.api_core.exceptions.NotFound: if the window was not claimed.
        """
        return self._store.read(self._store.task_url(self._entry(key, "claim")), MAX_WINDOW_BYTES)

    def first_claimed(self, key: Key) -> datetime | None:
        """Return when a window was claimed first, though its claim may have been taken over; ``None`` without a claim.

        :param key: of the window.
        :raises google.api_core.exceptions.GoogleAPIError: if its claim cannot be looked up.
        """
        claim = self._store.get(self._entry(key, "claim"))
        return None if claim is None else first_claimed(claim)

    def was_replayed(self, key: Key) -> bool:
        """Return whether a claimed window had been put back from quarantine.

        :param key: of the window.
        :raises google.api_core.exceptions.GoogleAPIError: if its claim cannot be looked up.
        """
        claim = self._store.get(self._entry(key, "claim"))
        return claim is not None and REPLAYED in claim.metadata

    def record(self, entries: Iterable[tuple[Key, str]]) -> set[Key]:
        """Write entries about claimed windows.

        A later look writes what failed. Until then the event waits; without ``fired``, its claim may be taken over.

        :param entries: the key of each window, and the kind of the entry: ``fired``, ``gone-<step>`` or ``aside``.
        :returns: the windows of which an entry was written that did not exist.
        """
        entries = list(entries)
        requests: list[ComposeRequest] = [
            (self._entry(key, "claim"), ANY_GENERATION, self._entry(key, kind), NEW, {OWNER: self._owner})
            for key, kind in entries
        ]
        results = self._store.compose_with_metadata(requests)
        for request, result in zip(requests, results, strict=True):
            if result.failed:
                log.warning("Ledger entry %r was not written: %s", self._store.task_url(request[2]), result)
        return {key for (key, _), result in zip(entries, results, strict=True) if result.ok}

    def _entry(self, key: Key, kind: str) -> str:
        return ledger_entry_name(*key, kind, self._task_url)

    def latest(self, keys: Iterable[Key]) -> tuple[dict[str, Firings], set[str]]:
        """Read again the firings that the last :meth:`look` took from memory; others may have recorded more.

        A hundred windows take one request.

        :param keys: names and generations of the windows.
        :returns: the firings by the name of the window, only of those that were taken from memory; and the names of
            windows whose firings cannot be read now.
        """
        names = sorted({key[0] for key in self._remembered.intersection(keys)})
        prefixes = [ledger_entries_prefix(name, self._task_url) for name in names]
        found: dict[str, Firings] = {}
        unreadable: set[str] = set()
        for name, listed in zip(names, self._store.list_folders(prefixes) if names else (), strict=True):
            window = self._name_in_entries(name)
            firings, reasons = firings_in(() if isinstance(listed, Result) else listed, [window], self._store.task_url)
            if isinstance(listed, Result) or reasons:
                unreadable.add(name)
            else:
                found[name] = firings.get(window, {})
        return found, unreadable

    def _name_in_entries(self, window: str) -> str:
        """Return the name of a window as entries have it: a long one is shortened."""
        return LedgerName.parse(self._entry((window, 1), "claim")).window

    def delete_old_entries(self, now: datetime, present: Collection[str], threads: Executor, after: str = "") -> str:
        """Delete old entries, at most 1,000: one list, and a batch for each hundred.

        Entries of a window stay while it exists in the task folder, or was claimed and not fired. A crash may leave
        some entries of a firing. The claim goes first, since a claim alone would look like that of a window that was
        never fired. ``fired`` goes last, since the other entries could not be understood without either.

        :param now: the storage server's time.
        :param present: names of windows in the task folder.
        :param threads: delete entries side by side.
        :param after: name of the last entry of the former page; by default the oldest entries are deleted.
        :returns: name of the last entry of this page; empty after the last page.
        :raises google.api_core.exceptions.GoogleAPIError: if the entries cannot be listed.
        """
        page, more = self._store.list_first(LEDGER, LedgerName.folder(now - ENTRY_RETENTION), after)
        by_firing, others = _by_firing(page)
        for other in others:
            _log_stranger(other)
        last = page[-1].name if more else ""
        if more and len(by_firing) > 1:  # the last firing may go on behind this page: the next page begins with it
            _, entries = by_firing.popitem()
            last = page[page.index(next(iter(entries.values()))) - 1].name
        kept = {self._name_in_entries(name) for name in present}
        old = {
            firing: entries
            for firing, entries in by_firing.items()
            if ("fired" in entries or "claim" not in entries)
            and firing[0] not in kept
            and all(now - entry.created > ENTRY_RETENTION for entry in entries.values())
        }
        for step in range(3):
            firing_of = {
                entry.key: firing
                for firing, entries in old.items()
                for kind, entry in entries.items()
                if _DELETED_IN_STEP.get(kind, 1) == step
            }
            for key, result in self._delete(list(firing_of), threads):
                if not result.gone:
                    old.pop(firing_of[key], None)
        return last

    def _delete(self, entries: Sequence[Key], threads: Executor) -> list[tuple[Key, Result]]:
        """Delete entries side by side; return them with the answers."""
        chunks = [entries[start : start + BATCH_SIZE] for start in range(0, len(entries), BATCH_SIZE)]
        results = [result for each in threads.map(self._store.delete, chunks) for result in each]
        failed = [result for result in results if result.failed]
        if failed:
            log.warning("Old ledger entries not deleted: %d; retrying later: %s", len(failed), failed[0])
        return list(zip(entries, results, strict=True))


def firings_in(
    entries: Iterable[StoredObject], windows: Collection[str], url: Callable[[str], str]
) -> tuple[dict[str, Firings], dict[str, str]]:
    """Return the firings of windows that entries tell of, and why those of other windows cannot be read.

    A window's firings cannot be read if an object is named like an entry about it and is none: a newer dispatcher may
    have written it. Nor can they if an entry tells of a firing whose ``claim`` and ``fired`` are both missing.

    :param entries: objects in the ledger; those about no such window are skipped.
    :param windows: names of windows as entries have them: a long one is shortened.
    :param url: returns the URL of an object, for the reasons.
    :returns: the firings by generation, and the reasons, both by the name of the window.
    """
    firings: defaultdict[str, dict[int, Firing]] = defaultdict(dict)
    unreadable: dict[str, str] = {}
    by_firing, others = _by_firing(entries)
    for other in others:
        about = [window for window in windows if other.partition("/")[2].partition("/")[2].startswith(f"{window}.")]
        if about:
            unreadable[max(about, key=len)] = (
                f"{url(other)!r} is named like an entry of the ledger and cannot be read as one, so whether the window "
                "was fired is unknown: upgrade this dispatcher, or delete that object once it is known what it means"
            )
        else:
            _log_stranger(other)
    for (window, generation), by_kind in by_firing.items():
        if window not in windows:
            continue
        if not by_kind.keys() & {"claim", "fired"}:
            unreadable[window] = (
                f"{url(next(iter(by_kind.values())).name)!r} tells of a firing whose entries 'claim' and 'fired' are "
                "missing, so whether the window was fired is unknown: delete that object once it is known what it "
                "means, and the window, too, if its files were loaded"
            )
        firings[window][generation] = _firing({kind: entry.created for kind, entry in by_kind.items()})
    return {window: found for window, found in firings.items() if window not in unreadable}, unreadable


def _by_firing(entries: Iterable[StoredObject]) -> tuple[dict[Key, dict[str, StoredObject]], list[str]]:
    """Return entries by the name of their window, as entries have it, and its generation, then by their kind.

    :returns: the entries, and the names of the objects that are none.
    """
    found: defaultdict[Key, dict[str, StoredObject]] = defaultdict(dict)
    others: list[str] = []
    for entry in entries:
        try:
            name = LedgerName.parse(entry.name)
        except ValueError:
            others.append(entry.name)
            continue
        if name.is_of_window:
            found[name.window, name.generation][name.what] = entry
        else:
            others.append(entry.name)
    return found, others


def _log_stranger(name: str) -> None:
    """Log that an object in the ledger is no entry, and about no window that was asked for."""
    log.warning("%r in the ledger is not an entry; skipping it", name)


def _firing(created: Mapping[str, datetime]) -> Firing:
    """Return a firing by the times at which its entries were created."""
    gone_at = {int(kind.removeprefix("gone-")): at for kind, at in created.items() if kind.startswith("gone-")}
    return Firing(created.get("claim") or min(created.values()), created.get("fired"), gone_at, "aside" in created)
