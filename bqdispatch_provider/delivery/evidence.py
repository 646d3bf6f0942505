"""Evidence of what became of fired windows: the loads that BqTail submitted for their firings.

The first load of a firing has a job ID that follows from the window's name and the event ID in its content. Loads that
BqTail submits in its place, after a failure, are found, too. Each lists exactly the files that it took. So a load
proves that its window was delivered, and which files are loaded. Without a successful load (there is none, or all have
failed, and BqTail may repeat them) the firing is over only once nothing of it has been on its way for ten minutes,
longer than a function of BqTail can run (docs/protocol.md, "Late events").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from google.api_core.exceptions import NotFound

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event, Load
from bqdispatch_provider.core.listing import Listing, StoredObject
from bqdispatch_provider.core.model import Key, Lane
from bqdispatch_provider.core.sizes import MAX_LOCATION_BYTES, MAX_WINDOW_BYTES
from bqdispatch_provider.core.targets import alternative_target, is_target, quarantine_path, target_of
from bqdispatch_provider.core.windows import CLAIM_TIMEOUT, MAX_FUNCTION_RUNTIME, Firing, Firings
from bqdispatch_provider.delivery.ledger import Ledger
from bqdispatch_provider.delivery.window_body import WindowBody
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.jobs import JobBoard
from bqdispatch_provider.gcp.load_jobs import KnownLoads, LoadJob
from bqdispatch_provider.gcp.objects import ObjectTooLarge
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.names import TraceName, WindowName, as_job_id, in_words

_MAX_SUBMIT_TIME = timedelta(minutes=1)
"""BqTail writes the trace of a load at most this long before it submits the load."""


@dataclass(frozen=True, slots=True)
class LoadEvidence:
    """Evidence of the loads of one firing.

    :param waits_for: what is still to come, in words; empty when the firing is over, or nothing can ever be told.
    :param loaded: URIs of the files that were loaded.
    :param not_loaded: URIs of the files of loads that failed for good.
    :param unknown: why nothing can ever be told, in words; empty otherwise.
    :param gone_step: step of the last load (0 without one), if nothing is on its way and the ledger does not say so
        yet.
    """

    waits_for: str = ""
    loaded: frozenset[str] = frozenset()
    not_loaded: frozenset[str] = frozenset()
    unknown: str = ""
    gone_step: int | None = None


def loaded_files(evidence: Iterable[LoadEvidence]) -> frozenset[str]:
    """Return the URIs of all files that firings have loaded.

    :param evidence: of each firing.
    """
    return frozenset[str]().union(*(each.loaded for each in evidence))


def gone_steps(evidence: Mapping[Key, LoadEvidence]) -> list[tuple[Key, int]]:
    """Return the firings of which nothing is on its way any more, each with the step of its last load, to be recorded.

    :param evidence: by the key of the window.
    """
    return [(key, each.gone_step) for key, each in evidence.items() if each.gone_step is not None]


class Evidence:
    """The evidence about the windows of one task folder; what is over, or unknown, is looked up once.

    :param store: the task folder.
    :param board: looks up jobs.
    :param ledger: holds the claims of fired windows.
    :param config: names BqTail's project, and the trigger bucket.
    :param threads: reads objects side by side.
    """

    def __init__(
        self, store: TaskStore, board: JobBoard, ledger: Ledger, config: DispatchConfig, threads: Executor
    ) -> None:
        self.store = store
        self.ledger = ledger
        self._board = board
        self._config = config
        self._threads = threads
        self.project = config.project_id or ""
        """Project of loads for which the window's content names none."""

        self._retries_url = f"gs://{config.trigger_bucket}/_load_/"
        """BqTail puts a load there that failed and is to be repeated: ``_load_/…/<dest>--<event ID>.run``."""

        self._bodies: dict[Key, WindowBody | ObjectTooLarge] = {}
        self._over: dict[Key, LoadEvidence] = {}
        self._known_loads: defaultdict[Key, KnownLoads] = defaultdict(dict)
        self._job_ids: tuple[Listing | None, Set[str]] = None, frozenset()

    def bodies(
        self, keys: Sequence[Key], *, claimed: bool = False, sizes: Mapping[Key, int] = MappingProxyType({})
    ) -> tuple[dict[Key, WindowBody], dict[Key, str]]:
        """Read the contents of windows, each once.

        :param keys: names and generations of the windows.
        :param claimed: True to read their claims, since the windows may be gone.
        :param sizes: as a listing gave them; what is too large is not asked for. By default they are unknown.
        :returns: the contents, and the reasons why the others cannot be read.
        """

        def read_one(key: Key) -> WindowBody | str:
            return self.body(key, claimed=claimed, size=sizes.get(key, 0))

        read = dict(zip(keys, self._threads.map(read_one, keys), strict=True))
        return (
            {key: body for key, body in read.items() if isinstance(body, WindowBody)},
            {key: body for key, body in read.items() if isinstance(body, str)},
        )

    def keep_only(self, names: Collection[str]) -> None:
        """Forget what is known of all windows but those with these names.

        :param names: names of windows.
        """
        self._bodies = {key: body for key, body in self._bodies.items() if key[0] in names}
        self._over = {key: evidence for key, evidence in self._over.items() if key[0] in names}
        for key in [key for key in self._known_loads if key[0] not in names or key in self._over]:
            del self._known_loads[key]

    def body(self, key: Key, *, claimed: bool, size: int = 0) -> WindowBody | str:
        """Read the content of a window once; return the reason if it cannot be read.

        :param key: name and generation of the window.
        :param claimed: True to read its claim, since the window may be gone.
        :param size: as a listing gave it; 0, the default: unknown.
        """
        try:
            return self._read(key, claimed=claimed, size=size)
        except GOOGLE_ERRORS as error:
            return f"its content cannot be read: {in_words(error)}"

    def _read(self, key: Key, *, claimed: bool, size: int = 0) -> WindowBody:
        body = self._bodies.get(key)
        if body is None:
            try:
                url = self.store.task_url(key[0])
                content = self.ledger.body(key) if claimed else self.store.read(url, MAX_WINDOW_BYTES, size)
                body = WindowBody.parse(content, self.project)
            except ObjectTooLarge as error:
                body = error  # and is not tried again
            self._bodies[key] = body
        if isinstance(body, ObjectTooLarge):
            raise body
        return body

    def folders_in(self, locations: Sequence[StoredObject]) -> dict[Key, str]:
        """Return the URLs of the folders that ``.loc`` objects name; leave out objects that are gone.

        :param locations: the objects, as they were listed.
        """
        folders: dict[Key, str] = {}
        for location, content in zip(locations, self._threads.map(self._content, locations), strict=True):
            if content is not None:
                folders[location.name, location.generation] = content.decode(errors="replace").strip().rstrip("/")
        return folders

    def _content(self, location: StoredObject) -> bytes | None:
        try:
            return self.store.read(self.store.task_url(location.name), MAX_LOCATION_BYTES, location.size)
        except NotFound:
            return None

    def unconsumed(self, keys: Collection[Key], listing: Listing) -> set[Key]:
        """Return which fired windows BqTail has not consumed: one list of what was fired.

        :param keys: of the windows.
        :param listing: of the task folder.
        :raises google.api_core.exceptions.GoogleAPIError: if they cannot be listed.
        """
        prefix = self._config.batch_prefix[1:]
        fired = {f"{prefix}{each.name}" for each in self.store.trigger.in_transit(prefix)}
        return {key for key in keys if not fired.isdisjoint(self._targets(key, listing))}

    def _targets(self, key: Key, listing: Listing) -> tuple[str, str]:
        """Return where a fired window may lie."""
        usual = target_of(Event(*key, listing.now), Lane.WINDOWS, self._config)
        return usual, alternative_target(usual, key[1])

    def is_over(self, key: Key) -> bool:
        """Return whether it is known what became of a firing, so that :meth:`of_firing` makes no request.

        :param key: of the window.
        """
        return key in self._over

    def of_firing(self, key: Key, firing: Firing, listing: Listing, *, is_consumed: bool = False) -> LoadEvidence:
        """Return what the loads of a firing tell.

        :param key: of the window.
        :param firing: what the ledger says.
        :param listing: of the task folder.
        :param is_consumed: True if :meth:`unconsumed` has shown that; by default it is looked up.
        :raises google.api_core.exceptions.GoogleAPIError: if jobs or objects cannot be looked up.
        """
        evidence = self._over.get(key) or self._look_up(key, firing, listing, is_consumed)
        if not evidence.waits_for:
            self._over[key] = evidence
        return evidence

    def of_window(self, window: str, firings: Firings, listing: Listing) -> dict[Key, LoadEvidence]:
        """Return what the loads of several firings of a window tell, by the key of each.

        :param window: its name.
        :param firings: what the ledger says of them.
        :param listing: of the task folder.
        :raises google.api_core.exceptions.GoogleAPIError: if jobs or objects cannot be looked up.
        """
        return {(window, number): self.of_firing((window, number), each, listing) for number, each in firings.items()}

    def _look_up(self, key: Key, firing: Firing, listing: Listing, is_consumed: bool) -> LoadEvidence:
        if firing.fired is None:
            return LoadEvidence("an earlier firing of it is not finished")
        try:
            body = self._read(key, claimed=True)
            why = "" if body.load.event_id else "its content does not say which event made it"
        except (NotFound, ObjectTooLarge) as error:
            why = f"its content cannot be read: {in_words(error)}"
        if why:
            return LoadEvidence(unknown=f"the loads of its firing at {firing.fired:%F %H:%M} UTC are unknown: {why}")
        return self._of_loads(key, body, firing, listing, is_consumed)

    def _of_loads(  # noqa: PLR0911  (one per case)
        self, key: Key, body: WindowBody, firing: Firing, listing: Listing, is_consumed: bool
    ) -> LoadEvidence:
        loads = self._loads(key, body.load, firing, listing.now)
        for load in loads:
            if load.job.state != "DONE":
                return LoadEvidence(f"load {load.job_id!r} of an earlier firing is {load.job.state}")
        if successful := [load.sources for load in loads if not load.job.error]:
            return LoadEvidence(loaded=frozenset[str]().union(*successful))
        # Nothing was loaded. Objects on their way become jobs, never the reverse, so jobs are looked up last, again.
        step = TraceName.parse(loads[-1].job_id).step if loads else 0
        if loads or not is_consumed:
            if waits_for := self._on_its_way(key, body.load, loads[-1] if loads else None, listing):
                return LoadEvidence(waits_for)
            if len(self._loads(key, body.load, firing, listing.now)) != len(loads):
                return LoadEvidence("its load has just been submitted")
        since = firing.gone_at.get(step)
        if since is None:
            return LoadEvidence("BqTail has consumed its earlier firing, and may be about to load it", gone_step=step)
        if listing.now - since <= MAX_FUNCTION_RUNTIME:
            return LoadEvidence(
                f"BqTail has consumed its earlier firing before {since:%H:%M:%S} UTC, and may be about to load it"
            )
        return LoadEvidence(not_loaded=frozenset[str]().union(*(load.sources for load in loads)))

    def _loads(self, key: Key, load: Load, firing: Firing, now: datetime) -> list[LoadJob]:
        dest = WindowName.parse(key[0]).dest
        since = min(firing.claimed, firing.fired or firing.claimed)
        known = self._known_loads[key]
        loads = self._board.loads(load.project, dest, load.event_id, known, since=since, now=now)
        if not loads and (first := self.ledger.first_claimed(key)) is not None and since - first > CLAIM_TIMEOUT:
            # The claim was taken over since: its first owner may have fired the window long before.
            loads = self._board.loads(load.project, dest, load.event_id, known, since=first, now=now)
        return loads

    def _on_its_way(self, key: Key, load: Load, failed: LoadJob | None, listing: Listing) -> str:
        """Return what BqTail has not been given, or has not processed yet, in words; empty if nothing.

        :param failed: the last load, which has failed; ``None`` without a load.
        """
        if failed is None:
            waits = any(self.store.get_target(target) is not None for target in self._targets(key, listing))
            return "BqTail has not consumed its earlier firing yet" if waits else ""
        dest = WindowName.parse(key[0]).dest
        parsed = TraceName.parse(failed.job_id)
        not_dispatched = f"the trace of the failed load {failed.job_id!r} has not been dispatched yet"
        if failed.job_id in self._job_ids_in(listing):
            return not_dispatched
        # The last load may be BqTail's retry of an earlier one. After an internal error that retry has an event ID of
        # its own, which stands only in its job ID.
        event_id = load.event_id if as_job_id(load.event_id) == parsed.event_id else parsed.event_id
        trace = TraceName(load.project, failed.job.location or None, dest, event_id, parsed.step, parsed.action)
        if self.store.get(trace.name) is not None:
            return not_dispatched
        retry = f"{as_job_id(dest)}--{event_id}.run"
        if any(as_job_id(url).endswith(as_job_id(retry)) for url in self.store.list_urls(self._retries_url)):
            return f"BqTail is about to retry the load {failed.job_id!r}"
        # The target's folder is the hour in which the trace was created, perhaps the hour before that of the job.
        times = (failed.created, failed.created - _MAX_SUBMIT_TIME)
        if any(map(self._waits_at, {target_of(Event(trace.name, 0, at), Lane.JOBS, self._config) for at in times})):
            return f"BqTail has not consumed the trace of the failed load {failed.job_id!r} yet"
        return ""

    def _waits_at(self, target: str) -> bool:
        """Return whether a trace waits for BqTail at its target, or at its alternative with the generation."""
        stem = target.rpartition(".")[0]
        return any(is_target(f"{stem}{each.name}", target) for each in self.store.trigger.in_transit(stem))

    def _job_ids_in(self, listing: Listing) -> Set[str]:
        """Return the IDs of the jobs of a listing's traces; they are collected once for many firings."""
        if self._job_ids[0] is not listing:
            self._job_ids = listing, {trace.name.job_id for trace in listing.traces}
        return self._job_ids[1]

    def any_file_in(self, folder: str) -> str | None:
        """Return the URL of a file in a folder; ``None`` if it has none.

        Files of subfolders do not count, since BqTail does not list them for a firing. A folder outside the trigger
        bucket is not listed: an invented name is returned, since BqTail uses nothing of it but the folder.

        :param folder: URL of the folder.
        """
        if not folder.startswith(f"gs://{self._config.trigger_bucket}/"):
            return f"{folder}/late"
        files = self.store.list_urls(f"{folder}/", subfolders=False)
        return next((url for url in files if url != f"{folder}/"), None)

    def source(self, key: Key) -> str:
        """Return the URL of the file whose storage event made a claimed window; empty if unknown.

        :param key: name and generation of the window.
        """
        body = self.body(key, claimed=True)
        return "" if isinstance(body, str) else body.source

    def is_quarantined(self, key: Key) -> bool:
        """Return whether a claimed window lies in quarantine, since its delivery could not be proven.

        :param key: name and generation of the window.
        :raises google.api_core.exceptions.GoogleAPIError: if that cannot be looked up.
        """
        url, claimed = self._config.error_url, self.ledger.first_claimed(key)
        return claimed is not None and self.store.get_target(quarantine_path(claimed, *key, url), url) is not None

    def source_exists(self, key: Key) -> bool:
        """Return whether the file whose storage event made a window still exists; True if that is unknown.

        :param key: name and generation of the window.
        """
        source, prefix = self.source(key), f"gs://{self._config.trigger_bucket}/"
        if not source.startswith(prefix):
            return True
        try:
            return self.store.get_target(source.removeprefix(prefix)) is not None
        except GOOGLE_ERRORS:
            return True
