"""What became of windows that were fired: the evidence by which a window that has returned is judged.

BqTail makes a window anew when a storage event comes after the window was removed. Its file was usually loaded by the
first firing; it was not where that was dropped, has failed, or did not list the file's folder. Nothing is assumed: the
loads of the earlier firings tell (docs/protocol.md, "Late events").
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from google.api_core.exceptions import NotFound

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.jobs import REFUSED, JobBoard, LoadJob
from bqdispatch_provider.ledger import Ledger
from bqdispatch_provider.model import Event, Firing, Firings, Key, Lane, Late, Listing, Load, StoredObject, Verdict
from bqdispatch_provider.names import UNDECIDED, TraceName, WindowName, as_job_id, in_words
from bqdispatch_provider.planning import GONE_FOR, other_target, target_of
from bqdispatch_provider.storage import STORAGE_ERRORS, TaskStore

log = logging.getLogger(__name__)

AT_ONCE = 50
"""Windows that are judged in a cycle at most; the others wait for the next."""

_TRACE_BEFORE = timedelta(minutes=1)
"""BqTail writes a load's trace so long before it submits the load, at most."""


@dataclass(frozen=True, slots=True)
class Body:
    """What the content of a window says, as far as anybody has to know it.

    :param load: where its load runs, and how it is known.
    :param source: URL of the file whose event made the window; empty where the content does not say.
    """

    load: Load
    source: str = ""

    @classmethod
    def parse(cls, content: bytes, project: str) -> Body:
        """Read a window's content; what is no JSON says nothing.

        :param project: of BqTail's configuration, in which loads run that name none.
        """
        try:
            document = json.loads(content)
            source = document.get("Source") or {}
            event, url = document.get("EventID"), source.get("URL")
            named = document.get("ProjectID")
        except (ValueError, AttributeError, RecursionError):
            return cls(Load(project))
        return cls(Load(_text(named) or project, _text(event)), _text(url))


def _text(value: object) -> str:
    """Return text that a service can be asked for; empty where the value is something else."""
    return value if isinstance(value, str) and value == value.encode(errors="ignore").decode() else ""


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one firing.

    :param waits: what has to be waited for; empty when all is over.
    :param loaded: URIs of the files that it has loaded.
    :param tried: URIs of files that it was to load, and has not.
    :param unknown: why that cannot be told; empty when it can.
    :param gone: step of the last load that was seen, where it is seen now that nothing is on its way any more.
    """

    waits: str = ""
    loaded: frozenset[str] = frozenset()
    tried: frozenset[str] = frozenset()
    unknown: str = ""
    gone: int | None = None


def judge(source: str, locations: Mapping[Key, str], fates: Iterable[Fate]) -> Verdict:  # noqa: PLR0911
    """Decide on a window that has returned.

    :param source: URL of the file whose late event made it anew; empty where its content does not say.
    :param locations: what lies beside it and names folders that firing it lists too, with their URLs.
    :param fates: of all earlier firings of its name.
    """
    fates = list(fates)
    for fate in fates:
        if fate.waits:
            return Verdict(Late.WAIT, fate.waits)
    for fate in fates:
        if fate.unknown:
            return Verdict(Late.UNDECIDED, fate.unknown)
    loaded = frozenset[str]().union(*(fate.loaded for fate in fates))
    if not loaded:
        return Verdict(Late.FIRE, "no earlier firing has loaded anything", (), tuple(locations))
    if not source:
        return Verdict(Late.UNDECIDED, "its content does not say which file has come late")
    folders = {folder_of(uri) for uri in loaded}
    stale = tuple(key for key, folder in locations.items() if folder in folders)
    new = sorted(folder for folder in locations.values() if folder not in folders)
    if folder_of(source) not in folders:
        beside = tuple(key for key in locations if key not in stale)
        return Verdict(Late.FIRE, f"no earlier firing has loaded from {folder_of(source)!r}", stale, beside)
    if new:
        return Verdict(
            Late.UNDECIDED,
            f"{folder_of(source)!r} was loaded and {new[0]!r} was not, and firing it would load from both",
        )
    if source in loaded:
        return Verdict(Late.DROP, f"{source!r} was loaded", stale)
    return Verdict(
        Late.UNDECIDED,
        f"{source!r} was not loaded, and other files of its folder were: firing it could load them twice",
    )


def for_file(document: Mapping[str, Any], source: str, event_id: str) -> bytes:
    """Return a window's content for another file, with an event of its own: a repeated one would load nothing.

    :param document: content of the window, as an earlier firing of it had it.
    :param source: URL of the file. BqTail lists the folder in which it lies.
    :param event_id: of the new event.
    """
    former, known = str(document.get("EventID", "")), document.get("Source")
    changed = {**document, "Source": {**(known if isinstance(known, dict) else {}), "URL": source}, "EventID": event_id}
    for key in ("ProcessURL", "DoneProcessURL"):
        if former and isinstance(changed.get(key), str):
            changed[key] = changed[key].replace(former, event_id)
    return json.dumps(changed, separators=(",", ":")).encode()


def document_of(content: bytes) -> dict[str, Any] | None:
    """Read a window's content; ``None`` when it is no JSON object.

    :param content: as it is stored.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _event_id(key: Key) -> str:
    """Return an event ID that follows from a location object, so that all who make its window anew write the same."""
    return str(int(hashlib.sha256(repr(key).encode()).hexdigest()[:13], 16))


def folder_of(uri: str) -> str:
    """Return the URL of the folder of a file."""
    return uri.rpartition("/")[0]


@dataclass
class Judged:
    """What was found out of windows that have returned, or were fired.

    :param verdicts: by the key of the window.
    :param gone: firings of which it was seen first now that nothing is on its way, and the step of the last load.
    :param stale: location objects that nobody needs, by name and generation.
    :param missed: windows to be made anew for a folder that their firing has missed, with their content.
    :param findings: what somebody has to act on, one sentence each.
    """

    verdicts: dict[Key, Verdict] = field(default_factory=dict)
    gone: list[tuple[Key, int]] = field(default_factory=list)
    stale: list[Key] = field(default_factory=list)
    missed: list[tuple[str, bytes]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


class Evidence:
    """What can be found out of fired windows.

    :param store: the task folder.
    :param board: how jobs stand.
    :param ledger: what was fired.
    :param config: names the project of BqTail, and the trigger bucket's folders.
    :param threads: where objects are read side by side.
    """

    def __init__(
        self, store: TaskStore, board: JobBoard, ledger: Ledger, config: DispatchConfig, threads: Executor
    ) -> None:
        self._store = store
        self._board = board
        self._ledger = ledger
        self._config = config
        self._threads = threads
        self.project = config.project_id or ""
        """In which loads run whose windows name none."""
        self._again_url = f"gs://{config.trigger_bucket}/_load_"
        self._bodies: dict[Key, Body] = {}
        self._fates: dict[Key, Fate] = {}

    def bodies(self, keys: Sequence[Key], *, claimed: bool = False) -> tuple[dict[Key, Body], dict[Key, str]]:
        """Read what windows say, each once.

        :param keys: names and generations of windows.
        :param claimed: whether they are read from the ledger, since they may be gone.
        :returns: what they say, and of those that could not be read the reason.
        """
        read = dict(zip(keys, self._threads.map(lambda key: self._read(key, claimed=claimed), keys), strict=True))
        return (
            {key: body for key, body in read.items() if isinstance(body, Body)},
            {key: body for key, body in read.items() if isinstance(body, str)},
        )

    def keep(self, names: Collection[str]) -> None:
        """Forget what was found out of windows, but of those names."""
        self._bodies = {key: body for key, body in self._bodies.items() if key[0] in names}
        self._fates = {key: fate for key, fate in self._fates.items() if key[0] in names}

    def _read(self, key: Key, *, claimed: bool) -> Body | str:
        if key not in self._bodies:
            try:
                content = self._ledger.body(key) if claimed else self._store.read(self._store.task_url(key[0]))
            except STORAGE_ERRORS as error:
                return f"its content cannot be read: {in_words(error)}"
            self._bodies[key] = Body.parse(content, self._config.project_id or "")
        return self._bodies[key]

    def judge(
        self, windows: Mapping[Key, Sequence[StoredObject]], listing: Listing, firings: Mapping[str, Firings]
    ) -> Judged:
        """Judge windows that have returned.

        :param windows: by their key, what names their folders.
        :param listing: of the task folder.
        :param firings: what the ledger says of them, by name.
        """
        found = Judged()
        chosen = list(windows)[:AT_ONCE]
        for key in chosen:
            try:
                found.verdicts[key] = self._verdict(key, windows[key], listing, firings.get(key[0], {}), found)
            except (*STORAGE_ERRORS, *REFUSED) as error:
                waits = f"window {key[0]!r} has returned and waits, since what became of the first cannot be told"
                found.findings.append(f"{waits}: {in_words(error)}")
                found.verdicts[key] = Verdict(Late.WAIT, waits)
        return found

    def _verdict(
        self, key: Key, beside: Sequence[StoredObject], listing: Listing, firings: Firings, found: Judged
    ) -> Verdict:
        name, generation = key
        fates: list[Fate] = []
        for earlier, firing in firings.items():
            if earlier != generation:
                fates.append(fate := self.fate((name, earlier), firing, listing))
                if fate.gone is not None:
                    found.gone.append(((name, earlier), fate.gone))
        if any(fate.waits for fate in fates):
            return judge("", {}, fates)
        if generation in firings and self._ledger.was_replayed(key):
            return Verdict(Late.FIRE, "somebody has put it back", (), tuple((e.name, e.generation) for e in beside))
        body = self._read(key, claimed=generation in firings)
        if isinstance(body, str):
            return Verdict(Late.WAIT, body)
        return judge(body.source, self.folders(beside), fates)

    def folders(self, locations: Sequence[StoredObject]) -> dict[Key, str]:
        """What location objects name; one that is gone names nothing."""
        folders: dict[Key, str] = {}
        urls = [self._store.task_url(each.name) for each in locations]
        for each, content in zip(locations, self._threads.map(self._content, urls), strict=True):
            if content is not None:
                folders[each.name, each.generation] = content.decode(errors="replace").strip().rstrip("/")
        return folders

    def _content(self, url: str) -> bytes | None:
        try:
            return self._store.read(url)
        except NotFound:
            return None

    def fate(self, key: Key, firing: Firing, listing: Listing) -> Fate:
        """Tell what became of a firing.

        :param key: of the window.
        :param firing: what the ledger says of it.
        :param listing: of the task folder.
        :raises google.api_core.exceptions.GoogleAPICallError: when that cannot be told.
        """
        if key not in self._fates:
            fate = self._find_out(key, firing, listing)
            if fate.waits:
                return fate
            self._fates[key] = fate  # what is over stays so
        return self._fates[key]

    def _find_out(self, key: Key, firing: Firing, listing: Listing) -> Fate:  # noqa: PLR0911  (one per case)
        if firing.fired is None:
            return Fate("an earlier firing of it has not come to its end")
        body = self._read(key, claimed=True)
        if isinstance(body, str) or not body.load.event_id:
            why = body if isinstance(body, str) else "its content does not say by which event"
            return Fate(unknown=f"what was fired at {firing.fired:%Y-%m-%d %H:%M} UTC is not known: {why}")
        loads = self._loads(key, body.load, firing, listing.now)
        for load in loads:
            if load.job.state != "DONE":
                return Fate(f"load {load.job_id!r} of its first firing is {load.job.state}")
        if good := [load.sources for load in loads if not load.job.error]:
            return Fate(loaded=frozenset[str]().union(*good))
        # Nothing was loaded. What is still on its way moves from here to the jobs: so these are asked again at last.
        step = TraceName.parse(loads[-1].job_id).step if loads else 0
        if waits := self._on_its_way(key, body.load, loads[-1] if loads else None, listing):
            return Fate(waits)
        if len(self._loads(key, body.load, firing, listing.now)) != len(loads):
            return Fate("its load has just been submitted")
        since = firing.gone.get(step)
        if since is None:
            return Fate("BqTail has taken it, and may be about to load it", gone=step)
        if listing.now - since <= GONE_FOR:
            return Fate(f"BqTail has taken it before {since:%H:%M:%S} UTC, and may be about to load it")
        return Fate(tried=frozenset[str]().union(*(each.sources for each in loads)))

    def _loads(self, key: Key, load: Load, firing: Firing, now: datetime) -> list[LoadJob]:
        dest = WindowName.parse(key[0]).dest
        return self._board.loads(load.project, dest, load.event_id, firing.claimed, now)

    def _on_its_way(self, key: Key, load: Load, failed: LoadJob | None, listing: Listing) -> str:
        """Tell what BqTail is still to be given, or has not taken yet; empty: nothing."""
        if failed is None:
            event = Event(*key, listing.now)
            targets = [target_of(event, Lane.WINDOWS, self._config)]
            targets.append(other_target(targets[0], key[1]))
            what = "the window that was fired before has not been taken yet"
        else:
            if any(trace.name.job_id == failed.job_id for trace in listing.traces):
                return f"the trace of the failed load {failed.job_id!r} has not been dispatched yet"
            name = WindowName.parse(key[0]).dest
            parsed = TraceName.parse(failed.job_id)
            trace = TraceName(
                load.project, failed.job.location or None, name, load.event_id, parsed.step, parsed.action
            )
            if self._store.look(trace.name) is not None:
                return f"the trace of the failed load {failed.job_id!r} has not been dispatched yet"
            times = (failed.created, failed.created - _TRACE_BEFORE)
            events = [Event(trace.name, 0, created) for created in times]
            targets = list(dict.fromkeys(target_of(event, Lane.JOBS, self._config) for event in events))
            again = f"{as_job_id(name)}--{load.event_id}.run"
            if any(as_job_id(each).endswith(as_job_id(again)) for each in self._store.names(self._again_url)):
                return f"the load {failed.job_id!r} is about to begin again"
            what = f"the trace of the failed load {failed.job_id!r} has not been taken yet"
        return what if any(self._store.look_at_target(target) is not None for target in targets) else ""

    def orphans(self, listing: Listing, firings: Mapping[str, Firings]) -> Judged:
        """Look at what names folders of windows that are gone.

        What names a folder that was loaded is stale, and nobody else removes it. For a folder that was not, its window
        is made anew, as BqTail would have made it had the folder's event come a moment later; it is named where not
        all was loaded that was fired, since BqTail would drop that window again.

        :param listing: of the task folder.
        :param firings: what the ledger says of these windows, by name.
        """
        found = Judged()
        for window, beside in listing.locations.items():
            known = firings.get(window)
            if not known:
                found.findings.append(
                    f"the files of the folders that {self._store.task_url(WindowName.parse(window).locations)!r} names "
                    f"wait: window {window!r} is not there and was not fired by this dispatcher. Write these files "
                    "again, or delete those objects if the files are loaded"
                )
                continue
            try:
                fates = [self.fate((window, generation), firing, listing) for generation, firing in known.items()]
                for (_, generation), fate in zip(((window, g) for g in known), fates, strict=True):
                    if fate.gone is not None:
                        found.gone.append(((window, generation), fate.gone))
                if any(fate.waits or fate.unknown for fate in fates):
                    continue
                folders = {folder_of(uri) for fate in fates for uri in fate.loaded}
                tried = {folder_of(uri) for fate in fates for uri in fate.tried}
                new: dict[Key, str] = {}
                for key, folder in self.folders(beside).items():
                    if folder in folders or (file := self._file_in(folder)) is None:
                        found.stale.append(key)
                    elif folder not in tried:  # of those that were, BqTail tells itself, and may load them once more
                        new[key] = file
                body = None
                if new and all(fate.loaded for fate in fates):
                    body = document_of(self._ledger.body((window, max(known))))
                if body is not None:
                    key = min(new)  # firing it lists the others, too
                    found.missed.append((window, for_file(body, new[key], _event_id(key))))
                else:
                    found.findings += [
                        f"the files of {folder_of(file)!r} were not loaded: their event came when window {window!r} "
                        f"had been fired. `bqdispatch replay {self._store.task_url(key[0])}` fires it for them"
                        for key, file in new.items()
                    ]
            except (*STORAGE_ERRORS, *REFUSED) as error:
                found.findings.append(f"whether the folders of window {window!r} were loaded: {in_words(error)}")
        return found

    def settled(self, listing: Listing, firings: Mapping[str, Firings]) -> list[Key]:
        """The windows that wait for a decision although a later firing has loaded all that they are about.

        :param listing: of the task folder.
        :param firings: what the ledger says of these windows, by name.
        :returns: what lies under ``undecided/``, by name and generation.
        """
        found: list[Key] = []
        for marker in listing.undecided:
            window, _, generation = marker.name.removeprefix(UNDECIDED).rpartition(".")
            others = {g: firing for g, firing in firings.get(window, {}).items() if str(g) != generation}
            try:
                fates = [self.fate((window, g), firing, listing) for g, firing in others.items()]
                if not fates or any(fate.waits for fate in fates):
                    continue
                body = Body.parse(self._store.read(self._store.task_url(marker.name)), self._config.project_id or "")
                loaded = frozenset[str]().union(*(fate.loaded for fate in fates))
                folders = {folder_of(uri) for uri in loaded}
                named = self.folders(listing.locations.get(window, ()))
                if body.source in loaded and folders.issuperset(named.values()):
                    found.append((marker.name, marker.generation))
            except (*STORAGE_ERRORS, *REFUSED) as error:
                log.warning("Whether %r is settled cannot be told: %s", marker.name, in_words(error))
        return found

    def _file_in(self, folder: str) -> str | None:
        """Find a file of a folder; of one that lies elsewhere than in the trigger bucket, any name will do.

        :returns: its URL; ``None`` when the folder is empty.
        """
        if not folder.startswith(f"gs://{self._config.trigger_bucket}/"):
            return f"{folder}/late"
        return next((url for url in self._store.names(f"{folder}/") if url != f"{folder}/"), None)

    def source(self, key: Key) -> str:
        """The URL of the file whose event made a window that was claimed; empty where that cannot be told."""
        body = self._read(key, claimed=True)
        return "" if isinstance(body, str) else body.source

    def source_is_there(self, key: Key) -> bool:
        """Tell whether the file whose event made a window is still there; where that cannot be told, it is."""
        source, prefix = self.source(key), f"gs://{self._config.trigger_bucket}/"
        if not source.startswith(prefix):
            return True
        try:
            return self._store.look_at_target(source.removeprefix(prefix)) is not None
        except STORAGE_ERRORS:
            return True
