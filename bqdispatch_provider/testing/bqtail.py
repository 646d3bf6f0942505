"""A stand-in BqTail: the other side of docs/protocol.md, with an account of what became of every event.

It puts data files into the trigger bucket, opens windows, writes traces, submits BigQuery jobs and consumes what a
dispatcher delivers, all by the services' ordinary APIs. Whoever dispatches for it can then ask: did every file get
loaded, and did each row and message go out, exactly once?
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import posixpath
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from google.api_core.exceptions import (
    Conflict,
    GoogleAPIError,
    NotFound,
    PreconditionFailed,
    RetryError,
    ServerError,
    TooManyRequests,
    from_http_response,
)
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Blob, Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.testing.bqtail_account import (
    Account,
    ChainAccount,
    Counters,
    DataFile,
    Ledger,
    Places,
    Problem,
    SubmittedJob,
    whereabouts,
)
from bqdispatch_provider.testing.bqtail_bodies import (
    KINDS,
    OTHER_ACTIONS,
    Document,
    Process,
    Rule,
    TraceBody,
    UnreadableBodyError,
    WindowBody,
    load_action,
    location_name,
    submitted,
)

__all__ = [
    "TRACE_LABEL",
    "Account",
    "BqTailSettings",
    "ChainAccount",
    "Counters",
    "DataFile",
    "Problem",
    "Rule",
    "StandInBqTail",
    "SubmittedJob",
    "main",
]

log = logging.getLogger(__name__)

TRACE_LABEL = "bqtail-trace"
"""Label of a job that has a trace: others do not count (docs/protocol.md, "Configuration document", the limits)."""

LISTING_DELAY_S = 7
"""Seconds after a window's end before which BqTail does not list its files."""

MAX_TRIES = 4
"""Tries after which BqTail moves a delivered trace out of the way."""

REPLAYED = ("backendError", "internalError")
"""Reasons of a failed load for which BqTail loads the same files again, as the chain of another event."""

_LISTED = "items(name,generation,timeCreated,updated),nextPageToken"
_PATIENTLY = Retry(initial=0.1, maximum=2.0, timeout=30.0)
_ON_A_FAULT = Retry(
    if_exception_type(ServerError, requests.ConnectionError, requests.Timeout), initial=0.1, maximum=2.0, timeout=30.0
)
_SAME_NAME_S = 1.0
"""Seconds between two changes of one object name (Cloud Storage, "Quotas & limits")."""
_TIMEOUT_S = 60
_TOLD_EVERY = 10


@dataclass(frozen=True, slots=True)
class BqTailSettings:
    """What a BqTail is deployed with.

    :param task_url: task folder, ``gs://bucket/folder`` (``AsyncTaskURL``).
    :param trigger_bucket: bucket that it watches.
    :param project: project of the jobs where neither a rule nor its balancer names one, whatever the destination says.
    :param location: location of all jobs; empty: none is given, and the region in trace names is empty.
    :param data_prefix: where data files land in the trigger bucket; below it, a folder per destination.
    :param window_s: length of a batch window in seconds; 0: no batching.
    :param unbatched: destinations without batching.
    :param rules: by destination, how its files are ingested; without an entry as :class:`Rule` has it.
    :param post_job_prefix: where traces arrive in the trigger bucket.
    :param batch_prefix: where windows arrive in the trigger bucket.
    :param journal_url: where it keeps its journal; beside the task folder when left out.
    :param chain: actions whose jobs have a trace, in order.
    :param then: actions after the last of them, each once: jobs without a trace, ``delete`` (of the loaded data files),
        ``insert`` (of one streamed row), and ``notify`` or ``call`` (one message).
    :param on_failure: actions after a failed copy, query or export. After a failed load none are run.
    :param pending_ms: least and most milliseconds for which a job is PENDING; ``None``: as BigQuery has it.
    :param running_ms: least and most milliseconds for which it is RUNNING; ``None``: as BigQuery has it.
    :param failing: share of the jobs with a trace that end in an error, 0 to 1.
    :param failing_by: the reason of that error.
    :param seed: the same seed gives the same job the same durations and the same end.
    :param delay_s: seconds between seeing an object in the trigger bucket and handling it.
    :param workers: how many objects are handled at one time.
    :raises ValueError: when an action is unknown or misplaced.
    """

    task_url: str
    trigger_bucket: str
    project: str
    location: str = "US"
    data_prefix: str = "data/"
    window_s: int = 60
    unbatched: frozenset[str] = frozenset()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    post_job_prefix: str = "/_bqjob_/"
    batch_prefix: str = "/_batch_/"
    journal_url: str = ""
    chain: tuple[str, ...] = ("load", "copy", "query")
    then: tuple[str, ...] = ("query", "delete", "insert", "notify")
    on_failure: tuple[str, ...] = ("notify",)
    pending_ms: tuple[int, int] | None = None
    running_ms: tuple[int, int] | None = None
    failing: float = 0.0
    failing_by: str = "invalid"
    seed: int = 0
    delay_s: float = 0.0
    workers: int = 1

    def __post_init__(self) -> None:
        for rule in (Rule(), *self.rules.values()):
            _check_steps(*self.steps(rule))

    def steps(self, rule: Rule) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return a rule's chain, the actions after it, and those after a failed job.

        :param rule: the rule.
        """
        chain = self.chain if rule.chain is None else rule.chain
        then = self.then if rule.then is None else rule.then
        return chain, then, self.on_failure if rule.on_failure is None else rule.on_failure

    @classmethod
    def for_dispatcher(cls, config: DispatchConfig, **more: Any) -> BqTailSettings:
        """Return the settings of the BqTail that a dispatcher with this configuration serves.

        :param config: the dispatcher's configuration.
        :param more: settings that a dispatcher does not know.
        :raises ConfigError: when the configuration names no project.
        """
        known = config.for_project(None)
        return cls(
            task_url=known.async_task_url,
            trigger_bucket=str(known.trigger_bucket),
            project=str(known.project_id),
            post_job_prefix=known.post_job_prefix,
            batch_prefix=known.batch_prefix,
            journal_url=known.journal_url,
            **more,
        )


def _check_steps(chain: Sequence[str], then: Sequence[str], on_failure: Sequence[str]) -> None:
    kinds = [KINDS.get(action) for action in (*chain, *then, *on_failure)]
    if not chain or kinds[0] != "load" or kinds.count("load") > 1:
        raise ValueError(f"chain is {chain!r}: it begins with load or reload, which come nowhere else")
    unknown = {*chain} - KINDS.keys() | {*then, *on_failure} - KINDS.keys() - OTHER_ACTIONS
    if unknown:
        raise ValueError(
            f"unknown actions {sorted(unknown)}: jobs are {sorted(KINDS)}, the rest {sorted(OTHER_ACTIONS)}"
        )
    if len({*then}) < len(then):
        raise ValueError(f"then is {then!r}: a row or message sent twice could not be told from a fault")


class StandInBqTail:
    """A BqTail that is driven from outside, because emulators send no storage events and it looks for itself.

    :meth:`put_file`, :meth:`deliver` and :meth:`late_event` are the events of data files, :meth:`step` and :meth:`run`
    consume what a dispatcher delivers, :meth:`account` tells what became of it all (docs/protocol.md, "The flow").

    :param storage_client: client for both buckets.
    :param session: session for BigQuery, with credentials where they are needed.
    :param bigquery_url: scheme and host of BigQuery.
    :param settings: what it is deployed with.
    """

    def __init__(
        self, storage_client: Client, session: requests.Session, bigquery_url: str, settings: BqTailSettings
    ) -> None:
        self.settings = settings
        self._client = storage_client
        self._session = session
        self._bigquery = f"{bigquery_url.rstrip('/')}/bigquery/v2/projects"
        task_bucket, _, folder = settings.task_url.removeprefix("gs://").partition("/")
        self._task_bucket = storage_client.bucket(task_bucket)
        self._folder = f"{folder.strip('/')}/" if folder.strip("/") else ""
        self._task_url = f"gs://{task_bucket}/{self._folder}"
        self._journal_url = (settings.journal_url or f"gs://{task_bucket}/BqTail/Journal").rstrip("/")
        self._trigger = storage_client.bucket(settings.trigger_bucket)
        self._data_prefix = settings.data_prefix.lstrip("/")
        self._batch_prefix = settings.batch_prefix.lstrip("/")
        self._post_job_prefix = settings.post_job_prefix.lstrip("/")
        self._ledger = Ledger()
        self._stepping = threading.Lock()
        # What was acted on but could not be deleted: acting on it again would be a fault of ours, not the dispatcher's.
        self._acted: set[tuple[str, int]] = set()
        self._too_soon: dict[tuple[str, int], float] = {}
        """When what was acted on may be deleted, by the monotonic clock: a name is changed once a second."""
        self._tries: Counter[tuple[str, int]] = Counter()
        self._held: list[tuple[float, DataFile]] = []
        self._corrupt: set[str] = set()
        self._unknown_rules: Counter[str] = Counter()

    def put_file(
        self,
        dest: str,
        rows: int = 1,
        *,
        folder: str = "",
        event_delay: float | None = 0.0,
        corrupt: bool = False,
    ) -> DataFile:
        """A data file lands: its batch window is opened, if nobody has yet, or without batching its load job submitted.

        :param dest: destination table, ``[project(:|.)]dataset.table``, perhaps with a ``$partition``.
        :param rows: number of rows in the file.
        :param folder: folder of the file, below that of its destination.
        :param event_delay: seconds by the storage server's clock after which its event comes, with a :meth:`step`;
            ``None``: not before :meth:`deliver` or :meth:`late_event`.
        :param corrupt: whether a load of it fails: BqTail then moves it away and loads the others again.
        """
        event_id = self._ledger.new_event_id()
        blob = self._trigger.blob(posixpath.join(f"{self._data_prefix}{dest}", folder, f"{event_id}.json"))
        blob.upload_from_string("".join(f'{{"event": "{event_id}", "row": {i}}}\n' for i in range(rows)))
        uri = self._uri(blob.name)
        window = self._window(event_id, dest, uri, blob.updated)
        location = location_name(window.name, window.process.folder) if window and self._rule(dest).multi_path else None
        file = DataFile(event_id, dest, blob.name, blob.updated, window.name if window else None, location)
        self._ledger.landed(file, uri)
        if corrupt:
            self._corrupt.add(uri)
        if event_delay == 0:
            self._ledger.heard_of(uri, late=False)
            self._deliver_event(file, event_id)
        else:
            due = float("inf") if event_delay is None else file.time.timestamp() + event_delay
            self._held.append((due, file))
        return file

    def deliver(self, file: DataFile) -> None:
        """The storage event of a file comes now, with the ID that it always had: held back, or sent again.

        :param file: the file.
        """
        self._late_event(file, file.event_id)

    def late_event(self, file: DataFile) -> None:
        """The storage event of a file comes late: the one that was held back, or another, with an ID of its own.

        The window that still lies there makes it harmless, as does a file that is gone; otherwise the same window is
        opened again, or without batching the file is loaded again (docs/protocol.md, "Late events").

        :param file: the file.
        """
        held = any(file is each for _, each in self._held)
        self._late_event(file, file.event_id if held else self._ledger.new_event_id(late=True))

    def forget_rule(self, dest: str, firings: int = 1) -> None:
        """Make BqTail drop windows that are fired: its rules are out of date.

        :param dest: destination of the windows.
        :param firings: how many of them find no rule.
        """
        self._unknown_rules[dest] += firings

    def step(self, *, patient: bool = True) -> int:
        """Look at the trigger bucket once and handle all that has arrived there, and events that are due.

        :param patient: whether to wait until what was handled may be deleted, a second after it came; otherwise a later
            step deletes it, and nothing that comes meanwhile has to wait for that.
        :returns: how many objects and events were handled; those that have to wait are not counted.
        """
        with self._stepping:
            events = self._deliver_due_events()
            arrived = [
                blob
                for prefix in (self._batch_prefix, self._post_job_prefix)
                for blob in self._client.list_blobs(self._trigger, prefix=prefix, fields=_LISTED)
            ]
            if not arrived:
                return events
            time.sleep(self.settings.delay_s)
            with ThreadPoolExecutor(self.settings.workers) as pool:
                return events + sum(pool.map(lambda blob: self._handle(blob, patient), arrived))

    def run(self, stop_event: threading.Event, interval: float = 0.2) -> None:
        """Step until told to stop.

        :param stop_event: set it to end this call, after the step that is under way.
        :param interval: seconds between two steps.
        """
        while not stop_event.is_set():
            try:
                self.step(patient=False)
            except (GoogleAPIError, requests.RequestException) as error:
                self._ledger.failed_call(f"list of the trigger bucket: {error}")
            stop_event.wait(interval)

    def counters(self) -> Counters:
        """Return how far things are; cheap enough to ask every second."""
        return self._ledger.counters()

    def account(self) -> Account:
        """Return what became of every event; looks at both buckets and at BigQuery to say where missing ones stand."""
        for trace in self._ledger.loads_in_question():
            status = self._job_status(trace)
            if status.get("state") == "DONE":
                self._ledger.load_ended(trace, failed="errorResult" in status)
        account, missing = self._ledger.account()
        account = replace(account, peaks=self._peaks())
        if not missing:
            return account
        places, job_state = self._places(), _once_for_each_job(self._job_in_words)
        found = (Problem(m.file.event_id, m.file.name, "missing", whereabouts(m, places, job_state)) for m in missing)
        return replace(account, problems=(*account.problems, *found))

    # Events

    def _rule(self, dest: str) -> Rule:
        return self.settings.rules.get(dest, _RULE)

    def _process(self, event_id: str, dest: str, source: str, at: datetime) -> Process:
        return Process(
            event_id, dest, source, at, self._project(dest, event_id), self._journal_url, self._rule_url(dest)
        )

    def _rule_url(self, dest: str) -> str:
        return f"gs://{self._task_bucket.name}/BqTail/Rules/{dest}.json"

    def _project(self, dest: str, event_id: str) -> str | None:
        """Return what a body says of the project: nothing where a transient table lies in that of the configuration."""
        rule = self._rule(dest)
        if rule.balancer:
            return random.Random(f"{self.settings.seed}:{event_id}").choice(rule.balancer)
        chain, _, _ = self.settings.steps(rule)
        if rule.transient_project or (rule.transient_dataset and len(chain) > 1):
            return rule.transient_project
        return self.settings.project

    def _window(self, event_id: str, dest: str, source: str, at: datetime) -> WindowBody | None:
        length = self.settings.window_s
        if not length or dest in self.settings.unbatched:
            return None
        start = int(at.timestamp()) // length * length
        process = self._process(event_id, dest, source, at)
        return WindowBody.of(process, self._task_url, start, start + length, self._rule(dest).multi_path)

    def _late_event(self, file: DataFile, event_id: str) -> None:
        self._held = [(due, each) for due, each in self._held if each is not file]
        self._ledger.heard_of(self._uri(file.name), late=True)
        if self._trigger.blob(file.name).exists():
            self._deliver_event(file, event_id)

    def _deliver_due_events(self) -> int:
        if all(due == float("inf") for due, _ in self._held):
            return 0
        now = self._server_time()
        files = [file for due, file in self._held if due <= now]
        for file in files:
            self.deliver(file)
        return len(files)

    def _deliver_event(self, file: DataFile, event_id: str) -> None:
        uri = self._uri(file.name)
        window = self._window(event_id, file.dest, uri, file.time)
        if window is None:
            self._start_chain(self._process(event_id, file.dest, uri, file.time), (uri,))
            return
        blob = self._task_bucket.blob(self._folder + window.name)
        try:
            _ON_A_FAULT(blob.upload_from_string)(
                window.to_json(), content_type="application/json", if_generation_match=0, retry=None
            )
            self._ledger.opened(window)
        except (PreconditionFailed, TooManyRequests):
            log.debug("%s is taken to be there", window.name)
        if self._rule(file.dest).multi_path:
            self._tell_folder(window)

    def _tell_folder(self, window: WindowBody) -> None:
        folder = window.process.folder
        blob = self._task_bucket.blob(self._folder + location_name(window.name, folder))
        try:
            _ON_A_FAULT(blob.upload_from_string)(folder, if_generation_match=0, retry=None)
        except (GoogleAPIError, requests.RequestException) as error:
            log.debug("%s is not written, which BqTail does not mind: %s", blob.name, error)

    # Deliveries

    def _handle(self, blob: Blob, patient: bool) -> bool:
        """Act on an object, then delete it; ``False`` when it is left for a later step."""
        key = (blob.name, blob.generation)
        if time.monotonic() < self._too_soon.get(key, 0.0):
            return False
        if key not in self._acted:
            try:
                body = self._read(blob)
                if body is None or not self._act(blob.name, body):
                    return False
            except (GoogleAPIError, requests.RequestException) as error:
                if not self._give_up(blob, error):
                    return False
            self._acted.add(key)
        try:
            try:
                self._delete_delivered(blob)
            except TooManyRequests:
                if not patient:
                    self._too_soon[key] = time.monotonic() + _SAME_NAME_S
                    return False
                # It was delivered less than a second ago. Once it may go, so may all others that this step has listed.
                time.sleep(_SAME_NAME_S)
                self._delete_delivered(blob)
            self._acted.discard(key)
            self._too_soon.pop(key, None)
        except (GoogleAPIError, requests.RequestException) as error:
            log.warning("%s is deleted in the next step: %s", blob.name, error)
            self._ledger.failed_call(f"{blob.name}: {error}")
            return False
        return True

    def _delete_delivered(self, blob: Blob) -> None:
        # Exactly this generation: what was put in its place meanwhile is to be consumed too. It is a condition and not
        # the generation to delete, by which a bucket with versioning would keep nothing.
        with suppress(NotFound, PreconditionFailed):
            self._trigger.delete_blob(blob.name, if_generation_match=blob.generation, retry=_ON_A_FAULT)

    def _give_up(self, blob: Blob, error: Exception) -> bool:
        """Return whether an object is done with although it failed: at once, or after its last retry."""
        if _is_worth_a_retry(error):
            log.warning("%s is left for the next step: %s", blob.name, error)
            self._ledger.failed_call(f"{blob.name}: {error}")
            key = (blob.name, blob.generation)
            self._tries[key] += 1
            if blob.name.startswith(self._batch_prefix) or self._tries[key] < MAX_TRIES:
                return False
            aside = f"{self._journal_url}/retry/data/{self._ledger.new_event_id()}/{blob.name}"
            self._copy(self._trigger.name, blob.name, aside)
        self._ledger.dropped(f"{blob.name}: {error}")
        return True

    @staticmethod
    def _read(blob: Blob) -> bytes | None:
        """Return the body as it was listed; ``None`` when it is gone or replaced."""
        try:
            return bytes(blob.download_as_bytes(if_generation_match=blob.generation))
        except (NotFound, PreconditionFailed):
            return None

    def _act(self, name: str, body: bytes) -> bool:
        """Do what an object asks for, by its body and prefix alone, never by the rest of its name; False: wait."""
        try:
            if name.startswith(self._batch_prefix):
                return self._load_window(WindowBody.from_json(body))
            return self._run_post_actions(TraceBody.from_json(body), name)
        except UnreadableBodyError as error:
            log.warning("%s cannot be read: %s", name, error)
            self._ledger.could_not_read(f"{name}: {error}")
            return True

    def _load_window(self, window: WindowBody) -> bool:
        if self._unknown_rules[window.dest] > 0:
            self._unknown_rules[window.dest] -= 1
            self._ledger.dropped(f"window {window.name}: rule was empty for {window.process.rule_url}")
        elif self._server_time() < window.end + LISTING_DELAY_S:
            return False
        else:
            try:
                self._load_files(window)
            except GoogleAPIError as error:
                if _is_worth_a_retry(error):
                    raise
                self._ledger.dropped(f"window {window.name}: {error}")
        self._ledger.window_arrived(window)
        return True

    def _load_files(self, window: WindowBody) -> None:
        folders, locations = {window.process.folder}, []
        if self._rule(window.dest).multi_path:
            bucket, beside = _split(window.url.removesuffix(".win"))
            for blob in self._client.list_blobs(bucket, prefix=f"{beside}/", delimiter="/", fields=_LISTED):
                if blob.name.endswith(".loc"):
                    folders.add(blob.download_as_bytes().decode())
                    locations.append(f"gs://{bucket}/{blob.name}")
        sources = [
            f"gs://{bucket}/{blob.name}"
            for bucket, folder in map(_split, sorted(folders))
            for blob in self._client.list_blobs(bucket, prefix=f"{folder}/", delimiter="/", fields=_LISTED)
            if window.start <= blob.updated.timestamp() < window.end
        ]
        if sources:
            self._start_chain(window.process, sources, locations)

    def _start_chain(self, process: Process, sources: Sequence[str], locations: Sequence[str] = ()) -> None:
        rule = self._rule(process.dest)
        self._submit(load_action(process, rule, self.settings.steps(rule), sources, locations))

    def _run_post_actions(self, trace: TraceBody, arrived_as: str) -> bool:
        status = self._job_status(trace)
        failure = status.get("errorResult")
        if not status:
            self._ledger.dropped(f"{arrived_as}: BigQuery knows no job {trace.job_id}")
        elif status.get("state") != "DONE":
            self._ledger.arrived_early(arrived_as)
            return False
        elif failure and trace.is_load:
            self._ledger.load_ended(trace, failed=True)
            self._recover(trace, failure.get("reason"))
        elif failure:
            text = f"{trace.action} job {trace.job_id} failed: {failure.get('message') or failure.get('reason')}"
            self._run_actions(trace, trace.on_failure, text, failed=True)
        else:
            self._ledger.load_ended(trace, failed=False)
            self._run_actions(trace, trace.on_success, f"{trace.dest} is loaded")
        self._ledger.trace_arrived(trace)
        return True

    def _recover(self, trace: TraceBody, reason: str | None) -> None:
        """Load again without the files that are corrupt, or all under another ID when BigQuery itself had failed.

        Otherwise the chain ends, and the files stay where they are.
        """
        if reason in REPLAYED:
            self._submit(trace.replay(self._ledger.new_event_id()))
            return
        corrupt = [uri for uri in trace.sources if uri in self._corrupt]
        for uri in corrupt:
            bucket, name = _split(uri)
            with suppress(NotFound):
                self._copy(bucket, name, f"{self._journal_url}/corrupted/{name}")
                self._delete([uri])
            self._ledger.set_aside(uri)
        left = [uri for uri in trace.sources if uri not in corrupt and self._exists(uri)]
        if corrupt and left:
            self._submit(trace.reload(left))
        else:
            self._ledger.finished(trace, failed=True)

    def _run_actions(self, trace: TraceBody, actions: Iterable[Document], message: str, failed: bool = False) -> None:
        goes_on = False
        for action in actions:
            what = action["Action"]
            if what in KINDS:
                goes_on |= self._submit(action)
            elif what == "delete":
                self._delete(action["Request"]["URLs"])
            elif what == "insert":
                self._ledger.streamed_row(trace)
            elif what in ("notify", "call"):
                self._ledger.sent_message(trace, message)
        if not goes_on:
            self._ledger.finished(trace, failed)

    # Cloud Storage

    def _uri(self, name: str) -> str:
        return f"gs://{self.settings.trigger_bucket}/{name}"

    def _exists(self, uri: str) -> bool:
        bucket, name = _split(uri)
        return bool(self._client.bucket(bucket).blob(name).exists())

    def _copy(self, bucket: str, name: str, target: str) -> None:
        to_bucket, to_name = _split(target)
        source = self._client.bucket(bucket)
        source.copy_blob(source.blob(name), self._client.bucket(to_bucket), to_name, retry=_PATIENTLY)

    def _delete(self, urls: Iterable[str]) -> None:
        for bucket, names in itertools.groupby(sorted(map(_split, urls)), key=lambda each: each[0]):
            self._client.bucket(bucket).delete_blobs(
                [name for _, name in names], on_error=lambda blob: None, retry=_PATIENTLY
            )

    def _places(self) -> Places:
        # In the direction in which objects move: the other way round, one on its way would be seen nowhere.
        listed = self._client.list_blobs(self._task_bucket, prefix=self._folder, fields=_LISTED)
        task_folder = frozenset(blob.name.removeprefix(self._folder) for blob in listed)
        arrived = {}
        for prefix, body in ((self._batch_prefix, WindowBody), (self._post_job_prefix, TraceBody)):
            for blob in self._client.list_blobs(self._trigger, prefix=prefix, fields=_LISTED):
                with suppress(UnreadableBodyError, NotFound):
                    arrived[body.from_json(blob.download_as_bytes()).name] = blob.name
        return Places(task_folder, arrived)

    # BigQuery

    def _submit(self, action: Document) -> bool:
        """Write the trace, *then* submit its job, so that no job can end unseen (docs/protocol.md, "Timing").

        :returns: whether it has a trace, and the chain goes on with it.
        """
        trace = submitted(action, self.settings.project, self._location_of(action))
        if trace.is_traced:
            blob = self._task_bucket.blob(self._folder + trace.name)
            _PATIENTLY(blob.upload_from_string)(trace.to_json(), content_type="application/json", retry=None)
            self._ledger.wrote_trace(trace)
        labels = self._schedule(trace.job_id, trace.is_traced)
        if self._corrupt.intersection(trace.sources):
            labels["standin-error"] = "invalid"
        job = trace.document["Job"]
        job = {**job, "configuration": {**job["configuration"], "labels": labels}}
        try:
            self._call("POST", self._jobs_url(trace.project), json=job)
            refused = False
        except Conflict:
            refused = True  # BqTail takes this for success: so a second delivery runs the chain on
        self._ledger.submitted(trace, refused)
        return trace.is_traced

    def _location_of(self, action: Document) -> str:
        """Return where a job runs: where its destination lies, and nowhere in particular when it has none."""
        kind, rule = KINDS[action["Action"]], self._rule(action["Meta"]["DestTable"])
        if kind == "extract" or (kind == "query" and "Dest" not in action["Request"]):
            return ""
        if kind == "load" and rule.transient_location:
            return rule.transient_location
        return self.settings.location

    def _schedule(self, job_id: str, traced: bool) -> dict[str, str]:
        """Return labels that tell the stand-in Google how the job goes; another BigQuery takes no notice."""
        chance = random.Random(f"{self.settings.seed}:{job_id}")
        ranges = {"standin-pending-ms": self.settings.pending_ms, "standin-running-ms": self.settings.running_ms}
        labels = {label: str(chance.randint(*limits)) for label, limits in ranges.items() if limits is not None}
        if traced:
            labels[TRACE_LABEL] = "1"
            if chance.random() < self.settings.failing:
                labels["standin-error"] = self.settings.failing_by
        return labels

    def _job_status(self, trace: TraceBody) -> dict[str, Any]:
        """Return the status as BigQuery tells it; empty when it knows no such job."""
        url = f"{self._jobs_url(trace.project)}/{quote(trace.job_id, safe='')}"
        where = {"location": trace.location} if trace.location else {}
        try:
            return dict(self._call("GET", url, params=where).json().get("status", {}))
        except NotFound:
            return {}

    def _job_in_words(self, trace: TraceBody) -> str:
        status = self._job_status(trace)
        state = f"is {status['state']}" if status else "is unknown to BigQuery"
        return f"its job {state}{' with an error' if 'errorResult' in status else ''}"

    def _peaks(self) -> dict[str, dict[str, int]]:
        """Return by project the most jobs with a trace that were active at one time; empty where none can be listed."""
        traced = {(project, job_id): kind for (project, _, job_id), kind in self._ledger.traced_jobs().items()}
        peaks: dict[str, dict[str, int]] = {}
        for project in sorted({project for project, _ in traced}):
            edges: dict[str, list[tuple[int, int]]] = {each: [] for each in (*_GROUPS, "jobs", "sql")}
            try:
                for job in self._list_jobs(project):
                    kind = traced.get((project, job["jobReference"]["jobId"]))
                    begin, end = (int(job["statistics"].get(at, 0)) for at in ("creationTime", "endTime"))
                    if kind and begin != end:
                        for each in (kind, _GROUPS[kind]):
                            # At the same instant an end (-1) sorts before a beginning (+1): they do not overlap.
                            edges[each] += [(begin, 1), (end or sys.maxsize, -1)]
            except (GoogleAPIError, KeyError, ValueError) as error:
                log.warning("The jobs of %s cannot be listed: %s", project, error)
                continue
            peaks[project] = {
                each: max(itertools.accumulate((step for _, step in sorted(steps)), initial=0))
                for each, steps in edges.items()
            }
        return peaks

    def _list_jobs(self, project: str) -> Iterator[Document]:
        fields = "nextPageToken,jobs(jobReference/jobId,statistics(creationTime,endTime))"
        asked = {"allUsers": "true", "maxResults": "1000", "fields": fields}
        while True:
            page = self._call("GET", self._jobs_url(project), params=asked).json()
            yield from page.get("jobs", ())
            if "nextPageToken" not in page:
                return
            asked["pageToken"] = page["nextPageToken"]

    def _jobs_url(self, project: str) -> str:
        return f"{self._bigquery}/{quote(project, safe='')}/jobs"

    def _server_time(self) -> float:
        """Seconds since the epoch by the storage server; asked by hand, as the client shows no ``Date`` header."""
        url = f"{self._client._connection.API_BASE_URL}/storage/v1/b/{self.settings.trigger_bucket}"
        return parsedate_to_datetime(self._call("GET", url, params={"fields": "name"}).headers["Date"]).timestamp()

    def _call(self, method: str, url: str, **arguments: Any) -> requests.Response:
        """Return a good answer; retry a passing failure, and raise any other as the Google clients do."""

        def once() -> requests.Response:
            response = self._session.request(method, url, timeout=_TIMEOUT_S, **arguments)
            if not response.ok:
                raise from_http_response(response)
            return response

        answer: requests.Response = _PATIENTLY(once)()
        return answer


_RULE = Rule()
_GROUPS = {"load": "jobs", "copy": "jobs", "extract": "jobs", "query": "sql"}


def _split(url: str) -> tuple[str, str]:
    """Return bucket and name of a ``gs://`` URL."""
    bucket, _, name = url.removeprefix("gs://").partition("/")
    return bucket, name


def _is_worth_a_retry(error: Exception) -> bool:
    """Return whether BqTail takes an error, after tries of its own, for one that passes.

    It reads the error's text, in which it finds lost connections and exceeded rates, but no status.
    """
    cause = error.cause if isinstance(error, RetryError) else error
    reasons = [each.get("reason") for each in getattr(cause, "errors", ())]
    return not isinstance(cause, GoogleAPIError) or "rateLimitExceeded" in reasons


def _once_for_each_job(tell: Callable[[TraceBody], str]) -> Callable[[TraceBody], str]:
    """Return what tells of a trace's job, asking once for each job.

    :param tell: asks BigQuery.
    """
    traces: dict[str, TraceBody] = {}
    told = cache(lambda name: tell(traces[name]))
    return lambda trace: told(traces.setdefault(trace.name, trace).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Feed events into emulators and print the account.

    ``STORAGE_EMULATOR_HOST`` and ``BIGQUERY_EMULATOR_HOST``, both with a scheme, say where they are; buckets that are
    missing are made. ``SIGUSR1`` ends the feed, and the process ends once all events are through; ``SIGTERM`` and
    ``SIGINT`` end it at once.

    :returns: 0 when every event went through exactly once.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    storage_url, bigquery_url = os.environ.get("STORAGE_EMULATOR_HOST"), os.environ.get("BIGQUERY_EMULATOR_HOST")
    if not storage_url or not bigquery_url:
        raise SystemExit("set STORAGE_EMULATOR_HOST and BIGQUERY_EMULATOR_HOST, both with their scheme")
    config = DispatchConfig.from_json(Path(options.config).read_bytes(), dict(options.var))
    settings = BqTailSettings.for_dispatcher(
        config,
        **{name: getattr(options, name) for name in _OPTIONS},
        unbatched=frozenset(options.direct),
    )
    client = Client(
        project=settings.project,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": storage_url},
    )
    _make_buckets(client, config, settings.trigger_bucket)
    bqtail = StandInBqTail(client, requests.Session(), bigquery_url, settings)

    stop, fed = threading.Event(), threading.Event()

    def end(number: int, _: object) -> None:
        fed.set()
        if number != signal.SIGUSR1:
            stop.set()

    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    stepping = threading.Thread(target=bqtail.run, args=(stop, options.interval))
    stepping.start()
    try:
        _feed(bqtail, [*options.dest, *options.direct], options.events, options.every, fed)
        _drain(bqtail, options.drain, options.settle, stop)
    finally:
        stop.set()
        stepping.join()
    account = bqtail.account()
    print(json.dumps(account.to_dict(details=options.details), indent=2))
    return 0 if account.ok else 1


def _make_buckets(client: Client, config: DispatchConfig, trigger_bucket: str) -> None:
    """Make the buckets that BqTail and its dispatcher use, where they are missing."""
    urls = (config.async_task_url, config.journal_url, config.error_url)
    for bucket in {trigger_bucket, *(url.removeprefix("gs://").partition("/")[0] for url in urls)}:
        with suppress(Conflict):
            client.create_bucket(bucket)


def _feed(bqtail: StandInBqTail, dests: list[str], events: int | None, every: float, fed: threading.Event) -> None:
    for number in itertools.count() if events is None else range(events):
        if fed.is_set():
            return
        bqtail.put_file(dests[number % len(dests)])
        if number % _TOLD_EVERY == 0:
            log.info("%s", bqtail.counters())
        fed.wait(every)


def _drain(bqtail: StandInBqTail, patience: float, settle: float, stop: threading.Event) -> None:
    """Wait until every event is in a finished chain, and a little longer: what arrives twice arrives late."""
    deadline = time.monotonic() + patience
    while not stop.is_set() and time.monotonic() < deadline:
        counters = bqtail.counters()
        log.info("%s", counters)
        if counters.finished == counters.events:
            stop.wait(settle)
            return
        stop.wait(1)


_OPTIONS = ("location", "window_s", "data_prefix", "pending_ms", "running_ms", "failing", "seed", "delay_s", "workers")
"""Options that are settings of the same name."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bqdispatch_provider.testing.bqtail", description=__doc__)
    add = parser.add_argument
    add("--config", required=True, help="the dispatcher's configuration document, a JSON file")
    add("--var", action="append", default=[], type=_pair, metavar="NAME=VALUE", help="variable of that document")
    add("--events", type=int, help="how many data files to put in; without end when left out")
    add("--every", type=float, default=1.0, metavar="SECONDS", help="time between two of them (default: %(default)s)")
    add("--dest", nargs="+", default=["demo.batched"], help="destinations with batching (default: %(default)s)")
    add("--direct", nargs="*", default=["demo.direct"], help="destinations without batching (default: %(default)s)")
    add("--window-s", type=int, default=60, help="length of a window in seconds (default: %(default)s)")
    add("--location", default="US", help="location of all jobs (default: %(default)s)")
    add("--data-prefix", default="data/", help="where data files land (default: %(default)s)")
    add("--pending-ms", type=_range, metavar="LEAST-MOST", help="how long jobs are pending; BigQuery's own by default")
    add("--running-ms", type=_range, metavar="LEAST-MOST", help="how long jobs are running; BigQuery's own by default")
    add("--failing", type=float, default=0.0, help="share of jobs that end in an error (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of durations and errors (default: %(default)s)")
    add("--delay-s", type=float, default=0.0, help="seconds between seeing and handling (default: %(default)s)")
    add("--workers", type=int, default=4, help="objects handled at one time (default: %(default)s)")
    add("--interval", type=float, default=0.2, help="seconds between two looks (default: %(default)s)")
    add("--drain", type=float, default=600, help="most seconds to wait for the last chain (default: %(default)s)")
    add("--settle", type=float, default=5, help="seconds to wait after it for doubles (default: %(default)s)")
    add("--details", action="store_true", help="print every load, chain and job too")
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    return name, value


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    try:
        return int(least), int(most or least)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected LEAST-MOST in milliseconds") from None


if __name__ == "__main__":
    sys.exit(main())
