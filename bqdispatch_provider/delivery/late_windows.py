"""Late windows: windows that return after they were fired, and folders that a firing missed.

BqTail recreates a window when the storage event of one of its files comes after the window was deleted. Usually the
first firing has loaded that file, and firing the window again would load it twice; sometimes it is the file's only
chance. So each returned window is judged by what the loads of the earlier firings took (docs/protocol.md, "Late
events").
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence

from bqdispatch_provider.core.listing import Listing, StoredObject
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.sizes import MAX_WINDOW_BYTES
from bqdispatch_provider.core.targets import split_undecided_name
from bqdispatch_provider.core.windows import Firings, LateAction, Verdict
from bqdispatch_provider.delivery.evidence import Evidence, LoadEvidence, gone_steps, loaded_files
from bqdispatch_provider.delivery.window_body import (
    WindowBody,
    content_for,
    event_id_for,
    folder_of,
    parse_document,
)
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.job_search import PARALLEL_CALLS
from bqdispatch_provider.gcp.threads import map_in_threads
from bqdispatch_provider.names import WindowName, in_words, shell_quoted

log = logging.getLogger(__name__)

MAX_JUDGED = 50
"""Windows that are judged in a cycle, side by side; the others wait for the next one."""


def judge(source: str, locations: Mapping[Key, str], evidence: Iterable[LoadEvidence]) -> Verdict:  # noqa: PLR0911
    """Decide on a window that has returned.

    :param source: URL of the file whose late event recreated it; empty if its content does not name it.
    :param locations: the ``.loc`` objects beside it, and the URLs of the folders that they name.
    :param evidence: of each earlier firing of its name.
    """
    evidence = list(evidence)
    for each in evidence:
        if each.waits_for:
            return Verdict(LateAction.WAIT, each.waits_for)
    for each in evidence:
        if each.unknown:
            return Verdict(LateAction.UNDECIDED, each.unknown)
    loaded = loaded_files(evidence)
    if not loaded:
        return Verdict(LateAction.FIRE, "no earlier firing has loaded anything", (), tuple(locations))
    if not source:
        return Verdict(LateAction.UNDECIDED, "its content does not say which file has come late")
    folders = {folder_of(uri) for uri in loaded}
    stale = tuple(key for key, folder in locations.items() if folder in folders)
    missed = sorted(folder for folder in locations.values() if folder not in folders)
    if folder_of(source) not in folders:
        kept = tuple(key for key in locations if key not in stale)
        return Verdict(LateAction.FIRE, f"no earlier firing has loaded from {folder_of(source)!r}", stale, kept)
    if missed:
        return Verdict(
            LateAction.UNDECIDED,
            f"{folder_of(source)!r} was loaded and {missed[0]!r} was not, and firing it would load from both",
        )
    if source in loaded:
        return Verdict(LateAction.DROP, f"{source!r} was loaded", stale)
    return Verdict(
        LateAction.UNDECIDED,
        f"{source!r} was not loaded, and other files of its folder were: firing it could load them twice",
    )


class LateWindows:
    """The late windows that one look at a task folder finds.

    :param evidence: what became of fired windows.
    :param listing: of the task folder.
    :param firings: what the ledger says, by the name of the window.
    :param unreadable: by the name of other windows, why the ledger cannot be read.
    """

    def __init__(
        self, evidence: Evidence, listing: Listing, firings: Mapping[str, Firings], unreadable: Mapping[str, str]
    ) -> None:
        self._evidence = evidence
        self._store = evidence.store
        self._listing = listing
        self._firings, self._unreadable = firings, unreadable
        self.verdicts: dict[Key, Verdict] = {}
        """Verdicts on returned windows, by the key of the window."""

        self.gone: list[tuple[Key, int]] = []
        """Firings of which nothing is on its way any more, each with the step of its last load, to be recorded."""

        self.stale: list[Key] = []
        """``.loc`` objects and undecided windows that nobody needs any more."""

        self.missed: list[tuple[str, bytes]] = []
        """Windows to recreate for a folder that their firing missed, with their content."""

        self.findings: list[str] = []
        """Sentences for the report, about what somebody has to act on."""

    def judge(self, windows: Mapping[Key, Sequence[StoredObject]]) -> None:
        """Judge windows that have returned.

        :param windows: by their key, the ``.loc`` objects beside them.
        """

        def is_judged(key: Key) -> bool:
            try:
                self.verdicts[key] = self._verdict(key, windows[key])
            except GOOGLE_ERRORS as error:
                waits = f"window {key[0]!r} has returned and waits, since its earlier loads cannot be looked up"
                self.findings.append(f"{waits}: {in_words(error)}")
                self.verdicts[key] = Verdict(LateAction.WAIT, waits)
                return False
            return True

        # In another order each time, since those whose loads run for hours would keep the others waiting.
        left, free = random.sample(list(windows), len(windows)), MAX_JUDGED
        while left and free:
            # One that cannot be looked up, since a project does not answer, takes no other's place.
            asked, left = left[:free], left[free:]
            free -= sum(map_in_threads(is_judged, asked, PARALLEL_CALLS))

    def _verdict(self, key: Key, locations: Sequence[StoredObject]) -> Verdict:
        window, generation = key
        firings = self._firings.get(window, {})
        earlier = {number: firing for number, firing in firings.items() if number != generation}
        evidence = self._evidence.of_window(window, earlier, self._listing)
        self.gone += gone_steps(evidence)
        if any(each.waits_for for each in evidence.values()):
            return judge("", {}, evidence.values())
        if generation in firings and self._evidence.ledger.was_replayed(key):
            kept = tuple(location.key for location in locations)
            return Verdict(LateAction.FIRE, "somebody has put it back", (), kept)
        body = self._evidence.body(key, claimed=generation in firings)
        if isinstance(body, str):
            return Verdict(LateAction.WAIT, body)
        return judge(body.source, self._evidence.folders_in(locations), evidence.values())

    def check_orphan_locations(self, windows: Iterable[str]) -> None:
        """Check ``.loc`` objects whose window is gone.

        Objects of loaded folders are stale, and nobody else deletes them. For a missed folder the window is recreated,
        as BqTail would have done had the folder's event come a moment later. But if any firing of the window has loaded
        nothing, BqTail might drop it again, so the folder is only named in the report. BqTail itself reports a folder
        whose load failed.

        :param windows: names of the windows.
        """
        map_in_threads(self._check_locations, windows, PARALLEL_CALLS)

    def _check_locations(self, window: str) -> None:
        """Check the ``.loc`` objects of one window that is gone."""
        url = self._store.task_url(WindowName.parse(window).locations)
        if window in self._unreadable:
            self.findings.append(f"the files of the folders named in {url!r} wait: {self._unreadable[window]}")
        elif not self._firings.get(window):
            self.findings.append(
                f"the files of the folders named in {url!r} wait: window {window!r} is missing, and the "
                "ledger knows no firing of it in the last eight days. Write these files again, or delete those "
                "objects if the files are loaded"
            )
        else:
            try:
                self._check_folders(window, self._firings[window])
            except GOOGLE_ERRORS as error:
                self.findings.append(f"the loads of window {window!r} cannot be looked up: {in_words(error)}")

    def _check_folders(self, window: str, firings: Firings) -> None:
        """Check the folders named beside a window that was fired and is gone."""
        evidence = self._evidence.of_window(window, firings, self._listing)
        self.gone += gone_steps(evidence)
        if any(each.waits_for for each in evidence.values()):
            return
        if unknown := next((each.unknown for each in evidence.values() if each.unknown), ""):
            url = self._store.task_url(WindowName.parse(window).locations)
            self.findings.append(
                f"the files of the folders named in {url!r} wait: {unknown}. Write these files again, or delete those "
                "objects if the files are loaded"
            )
            return
        loaded = set(map(folder_of, loaded_files(evidence.values())))
        not_loaded = {folder_of(uri) for each in evidence.values() for uri in each.not_loaded}
        missed: dict[Key, str] = {}
        for key, folder in self._evidence.folders_in(self._listing.orphan_locations[window]).items():
            if folder in loaded or (file := self._evidence.any_file_in(folder)) is None:
                self.stale.append(key)
            elif folder not in not_loaded:  # BqTail reports failed loads itself, and may load the files again
                missed[key] = file
        document, has_loaded_all = None, all(each.loaded for each in evidence.values())
        if missed and has_loaded_all:
            document = parse_document(self._evidence.ledger.body((window, max(firings))))
        if document is not None:
            first = min(missed)  # one window is enough: BqTail reads all .loc objects beside it
            self.missed.append((window, content_for(document, missed[first], event_id_for(first))))
            return
        # Where a firing was dropped, their event may well have been in time.
        late, dropped = f"their event came after window {window!r} was fired", f"no load of window {window!r} took them"
        why = late if has_loaded_all else dropped
        self.findings += [
            f"the files of {folder_of(file)!r} were not loaded: {why}. "
            f"To fire it for them, give `bqdispatch replay` its URL: {shell_quoted(self._store.task_url(key[0]))}"
            for key, file in missed.items()
        ]

    def find_settled(self) -> None:
        """Find undecided windows that need no decision any more.

        Other firings of the name have loaded the file that made the window, and some of each folder named beside it.
        """
        known = [each for each in self._listing.undecided if split_undecided_name(each.name)[0] in self._firings]
        map_in_threads(self._check_undecided, known, PARALLEL_CALLS)

    def _check_undecided(self, marker: StoredObject) -> None:
        window, generation = split_undecided_name(marker.name)
        others = {number: firing for number, firing in self._firings[window].items() if str(number) != generation}
        try:
            evidence = self._evidence.of_window(window, others, self._listing).values()
            if not evidence or any(each.waits_for for each in evidence):
                return
            content = self._store.read(self._store.task_url(marker.name), MAX_WINDOW_BYTES, marker.size)
            source = WindowBody.parse(content, self._evidence.project).source
            loaded = loaded_files(evidence)
            named = self._evidence.folders_in(self._listing.orphan_locations.get(window, ()))
            if source in loaded and set(map(folder_of, loaded)).issuperset(named.values()):
                self.stale.append(marker.key)
        except GOOGLE_ERRORS as error:
            log.warning("The loads of undecided window %r cannot be looked up: %s", marker.name, in_words(error))
