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
import random
import signal
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests
from google.api_core.exceptions import Conflict, GoogleAPIError, NotFound, PreconditionFailed, from_http_response
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Blob, Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.names import TraceName, WindowName

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

TRACE_LABEL = "bqtail-trace"
"""Label of a job that has a trace: others do not count (docs/protocol.md, "Configuration document", the limits)."""

_KINDS = {"load": "load", "reload": "load", "copy": "copy", "query": "query", "export": "extract"}
_OTHER_ACTIONS = {"delete", "insert", "notify"}
_FIRST_EVENT_ID = 1_000_000_000_000_000
_PATIENTLY = Retry(initial=0.1, maximum=2.0, timeout=30.0)
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class BqTailSettings:
    """What a BqTail is deployed with.

    :param task_url: task folder, ``gs://bucket/folder`` (``AsyncTaskURL``).
    :param trigger_bucket: bucket that it watches.
    :param project: project of the jobs of destinations that name none.
    :param location: location of all jobs; empty: none is given, and the region in trace names is empty.
    :param data_prefix: where data files land in the trigger bucket; below it, a folder per destination.
    :param window_s: length of a batch window in seconds; 0: no batching.
    :param unbatched: destinations without batching.
    :param post_job_prefix: where traces arrive in the trigger bucket.
    :param batch_prefix: where windows arrive in the trigger bucket.
    :param chain: actions whose jobs have a trace, in order.
    :param then: actions after the last of them, each once: jobs without a trace, ``delete`` (of the loaded data files),
        ``insert`` (of one streamed row) and ``notify`` (one message).
    :param on_failure: actions after a failed job.
    :param pending_ms: least and most milliseconds for which a job is PENDING; ``None``: as BigQuery has it.
    :param running_ms: least and most milliseconds for which it is RUNNING; ``None``: as BigQuery has it.
    :param failing: share of the jobs with a trace that end in an error, 0 to 1.
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
    post_job_prefix: str = "/_bqjob_/"
    batch_prefix: str = "/_batch_/"
    chain: tuple[str, ...] = ("load", "copy", "query")
    then: tuple[str, ...] = ("query", "delete", "insert", "notify")
    on_failure: tuple[str, ...] = ("notify",)
    pending_ms: tuple[int, int] | None = None
    running_ms: tuple[int, int] | None = None
    failing: float = 0.0
    seed: int = 0
    delay_s: float = 0.0
    workers: int = 1

    def __post_init__(self) -> None:
        kinds = [_KINDS.get(action) for action in (*self.chain, *self.then, *self.on_failure)]
        if not self.chain or kinds[0] != "load" or kinds.count("load") > 1:
            raise ValueError(f"chain is {self.chain!r}: it begins with load or reload, which come nowhere else")
        unknown = {*self.chain} - _KINDS.keys() | {*self.then, *self.on_failure} - _KINDS.keys() - _OTHER_ACTIONS
        if unknown:
            raise ValueError(f"unknown actions {sorted(unknown)}: jobs are {sorted(_KINDS)}, the rest {_OTHER_ACTIONS}")
        if len({*self.then}) < len(self.then):
            raise ValueError(f"then is {self.then!r}: a row or message sent twice could not be told from a fault")

    @classmethod
    def for_dispatcher(cls, config: DispatchConfig, **more: Any) -> BqTailSettings:
        """The settings of the BqTail that a dispatcher with this configuration serves.

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
            **more,
        )


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file that landed in the trigger bucket, and with it one event.

    :param event_id: ID of the storage event.
    :param dest: destination table.
    :param name: the object's name in the trigger bucket.
    :param time: when it landed, by the storage server's clock.
    :param window: name of its batch window; ``None`` without batching.
    """

    event_id: str
    dest: str
    name: str
    time: datetime
    window: str | None


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job as it was submitted to BigQuery.

    :param kind: ``load``, ``copy``, ``query`` or ``extract``.
    :param chain: event ID of its chain.
    :param traced: whether it has a trace.
    :param accepted: ``False`` when BigQuery refused the ID as one that it knew already.
    """

    project: str
    location: str
    job_id: str
    kind: str
    chain: str
    traced: bool
    accepted: bool


@dataclass(frozen=True, slots=True)
class ChainAccount:
    """What became of one chain.

    :param event_id: event that began it.
    :param files: URIs that its accepted load jobs read.
    :param rows: how often its row was streamed; BigQuery does not deduplicate them.
    :param messages: what it sent.
    :param finished: how often it ran to an end.
    :param failed: whether that end was a failed job.
    """

    event_id: str
    dest: str
    files: tuple[str, ...]
    rows: int
    messages: tuple[str, ...]
    finished: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """An event that did not go through exactly once: ``kind`` is ``missing`` or ``doubled``, ``why`` a sentence."""

    event_id: str
    file: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: event {self.event_id} ({self.file}): {self.why}"


@dataclass(frozen=True, slots=True)
class Counters:
    """Figures for a live table. The first four count events, the rest count objects taken out of the trigger bucket.

    :param waiting: events whose file no job has loaded yet.
    :param running: events in a chain that has not finished.
    :param finished: events in a finished chain.
    :param batches: windows that arrived under the batch prefix.
    :param dispatched: traces that arrived under the post job prefix.
    :param consumed: both of them, and what could not be read.
    """

    events: int
    waiting: int
    running: int
    finished: int
    batches: int
    dispatched: int
    consumed: int


@dataclass(frozen=True, slots=True)
class Account:
    """What became of every event ever put in: ``events`` is the sum of ``finished``, ``missing`` and ``doubled``.

    :param late_events: storage events that came again; they are not counted in ``events``.
    :param finished: events in exactly one finished chain, loaded once, each row and message sent once at most.
    :param failed: those of them whose chain was ended by a failed job.
    :param loads: by URI of a data file, how many accepted load jobs read it.
    :param problems: a sentence for each missing or doubled event.
    :param unreadable: objects that were consumed although their body meant nothing.
    :param early: traces that arrived before their job was done; they are left until it is.
    :param errors: calls that failed; what they were for is tried again in the next step.
    """

    events: int
    late_events: int
    finished: int
    missing: int
    doubled: int
    failed: int
    loads: Mapping[str, int]
    chains: tuple[ChainAccount, ...]
    jobs: tuple[SubmittedJob, ...]
    problems: tuple[Problem, ...]
    unreadable: tuple[str, ...]
    early: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every event went through exactly once."""
        return not self.problems

    @property
    def rows(self) -> int:
        """Streamed rows of all chains."""
        return sum(chain.rows for chain in self.chains)

    @property
    def messages(self) -> int:
        """Messages of all chains."""
        return sum(len(chain.messages) for chain in self.chains)

    def job_counts(self) -> dict[str, int]:
        """How many jobs of each kind were accepted with and without a trace, and how many IDs were refused."""
        words = {True: "with a trace", False: "without a trace"}
        return dict(
            sorted(Counter(f"{j.kind} {words[j.traced]}" if j.accepted else "refused" for j in self.jobs).items())
        )

    def to_dict(self, details: bool = True) -> dict[str, Any]:
        """The account as a JSON document.

        :param details: with every load, chain and job; otherwise with their numbers only.
        """
        document = {"ok": self.ok, **asdict(self), "rows": self.rows, "messages": self.messages}
        document["job_counts"] = self.job_counts()
        if not details:
            document |= {"loads": sum(self.loads.values()), "chains": len(self.chains), "jobs": len(self.jobs)}
        return document

    def table(self) -> Table:
        """The account as a table for a terminal."""
        from rich.table import Table  # noqa: PLC0415 - most users never print one

        table = Table("what", "number", title="every event exactly once" if self.ok else "not every event exactly once")
        for what, number in self._figures().items():
            table.add_row(what, f"{number:,}")
        for problem in self.problems:
            table.add_row(f"[red]{problem.kind}[/red] {problem.event_id}", problem.why)
        return table

    def _figures(self) -> dict[str, int]:
        return {
            "events": self.events,
            "finished": self.finished,
            "of them with a failed job": self.failed,
            "missing": self.missing,
            "doubled": self.doubled,
            "late events": self.late_events,
            "chains": len(self.chains),
            "rows": self.rows,
            "messages": self.messages,
            **{f"jobs: {what}": number for what, number in self.job_counts().items()},
            "unreadable": len(self.unreadable),
            "early traces": len(self.early),
            "failed calls": len(self.errors),
        }

    def __str__(self) -> str:
        figures = ", ".join(f"{number:,} {what}" for what, number in self._figures().items() if number)
        return "\n".join([figures or "no events", *(f"  {problem}" for problem in self.problems)])


class StandInBqTail:
    """A BqTail that is driven from outside, because emulators send no storage events and it looks for itself.

    :meth:`put_file` and :meth:`late_event` are the events of data files, :meth:`step` and :meth:`run` consume what a
    dispatcher delivers, :meth:`account` tells what became of it all (docs/protocol.md, "The flow").

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
        self._trigger = storage_client.bucket(settings.trigger_bucket)
        self._data_prefix = settings.data_prefix.lstrip("/")
        self._batch_prefix = settings.batch_prefix.lstrip("/")
        self._post_job_prefix = settings.post_job_prefix.lstrip("/")
        self._ledger = _Ledger()
        self._stepping = threading.Lock()
        # What was acted on but could not be deleted: acting on it again would be a fault of ours, not the dispatcher's.
        self._acted: set[tuple[str, int]] = set()

    def put_file(self, dest: str, rows: int = 1) -> DataFile:
        """A data file lands: its batch window is opened, if nobody has yet, or without batching its load job submitted.

        :param dest: destination table, ``[project(:|.)]dataset.table``, perhaps with a ``$partition``.
        :param rows: number of rows in the file.
        """
        event_id = self._ledger.new_event_id()
        blob = self._trigger.blob(f"{self._data_prefix}{dest}/{event_id}.json")
        blob.upload_from_string("".join(f'{{"event": "{event_id}", "row": {i}}}\n' for i in range(rows)))
        window = self._window(event_id, dest, blob.time_created) if self._is_batched(dest) else None
        file = DataFile(event_id, dest, blob.name, blob.time_created, window.name if window else None)
        self._ledger.landed(file, self._uri(file.name))
        self._deliver_event(file, event_id, window)
        return file

    def late_event(self, file: DataFile) -> None:
        """The storage event of a file comes once more, late and with an ID of its own.

        The window that still lies there makes it harmless; otherwise the same window is opened again. Without batching,
        a file that still lies there is loaded again (docs/protocol.md, "Timing").
        """
        event_id = self._ledger.new_event_id()
        self._ledger.came_late()
        window = self._window(event_id, file.dest, file.time) if file.window else None
        if window or self._trigger.blob(file.name).exists():
            self._deliver_event(file, event_id, window)

    def step(self) -> int:
        """Look at the trigger bucket once and handle all that has arrived there.

        :return: how many objects were handled; those that have to wait are not counted.
        """
        with self._stepping:
            arrived = [
                blob
                for prefix in (self._batch_prefix, self._post_job_prefix)
                for blob in self._client.list_blobs(self._trigger, prefix=prefix, fields=_LISTED)
            ]
            if not arrived:
                return 0
            time.sleep(self.settings.delay_s)
            with ThreadPoolExecutor(self.settings.workers) as pool:
                return sum(pool.map(self._handle, arrived))

    def run(self, stop_event: threading.Event, interval: float = 0.2) -> None:
        """Step until told to stop.

        :param stop_event: set it to end this call, after the step that is under way.
        :param interval: seconds between two steps.
        """
        while not stop_event.is_set():
            try:
                self.step()
            except (GoogleAPIError, requests.RequestException) as error:
                self._ledger.failed_call(f"list of the trigger bucket: {error}")
            stop_event.wait(interval)

    def counters(self) -> Counters:
        """How far things are; cheap enough to ask every second."""
        return self._ledger.counters()

    def account(self) -> Account:
        """What became of every event; looks at both buckets and at BigQuery to say where the missing ones stand."""
        account, missing = self._ledger.account()
        if not missing:
            return account
        places, job_state = self._places(), cache(self._job_in_words)
        found = (Problem(m.file.event_id, m.file.name, "missing", _where(m, places, job_state)) for m in missing)
        return replace(account, problems=(*account.problems, *found))

    # Windows and traces

    def _is_batched(self, dest: str) -> bool:
        return self.settings.window_s > 0 and dest not in self.settings.unbatched

    def _window(self, event_id: str, dest: str, at: datetime) -> _Window:
        length = self.settings.window_s
        start = int(at.timestamp()) // length * length
        return _Window(event_id, dest, start, start + length, self._uri(f"{self._data_prefix}{dest}/"))

    def _deliver_event(self, file: DataFile, event_id: str, window: _Window | None) -> None:
        if window is None:
            self._start_chain(event_id, file.dest, (self._uri(file.name),))
            return
        blob = self._task_bucket.blob(self._folder + window.name)
        try:
            blob.upload_from_string(window.to_json(), content_type="application/json", if_generation_match=0)
        except PreconditionFailed:
            return  # another file opened it
        self._ledger.opened(window)

    def _handle(self, blob: Blob) -> bool:
        """Act on an object, then delete it; False when it is left for a later step."""
        key = (blob.name, blob.generation)
        try:
            if key not in self._acted:
                body = self._read(blob)
                if body is None or not self._act(blob.name, body):
                    return False
                self._acted.add(key)
            # Exactly this generation: what was put in its place meanwhile is to be consumed too.
            with suppress(NotFound, PreconditionFailed):
                blob.delete(if_generation_match=blob.generation)
            self._acted.discard(key)
        except (GoogleAPIError, requests.RequestException) as error:
            log.warning("%s is left for the next step: %s", blob.name, error)
            self._ledger.failed_call(f"{blob.name}: {error}")
            return False
        return True

    @staticmethod
    def _read(blob: Blob) -> bytes | None:
        """The body as it was listed; ``None`` when it is gone or replaced."""
        try:
            return bytes(blob.download_as_bytes(if_generation_match=blob.generation))
        except (NotFound, PreconditionFailed):
            return None

    def _act(self, name: str, body: bytes) -> bool:
        """Do what an object asks for, by its body and prefix alone, never by the rest of its name; False: wait."""
        try:
            if name.startswith(self._batch_prefix):
                return self._load_window(_Window.from_json(body))
            return self._run_post_actions(_Trace.from_json(body), name)
        except _UnreadableError as error:
            log.warning("%s cannot be read: %s", name, error)
            self._ledger.could_not_read(f"{name}: {error}")
            return True

    def _load_window(self, window: _Window) -> bool:
        if self._server_time() < window.end:
            return False
        listed = self._client.list_blobs(self._trigger, prefix=f"{self._data_prefix}{window.dest}/", fields=_LISTED)
        sources = tuple(self._uri(b.name) for b in listed if window.start <= b.time_created.timestamp() < window.end)
        if sources:
            self._start_chain(window.event_id, window.dest, sources)
        self._ledger.window_arrived(window)
        return True

    def _start_chain(self, event_id: str, dest: str, sources: tuple[str, ...]) -> None:
        first, *chain = self.settings.chain
        project = _split(dest)[0] or self.settings.project
        self._submit_traced(
            _Trace(
                event_id=event_id,
                dest=dest,
                step=1,
                action=first,
                project=project,
                location=self.settings.location,
                sources=sources,
                chain=tuple(chain),
                then=self.settings.then,
                on_failure=self.settings.on_failure,
            )
        )

    def _run_post_actions(self, trace: _Trace, arrived_as: str) -> bool:
        status = self._job_status(trace)
        if status.get("state") != "DONE":
            self._ledger.arrived_early(arrived_as)
            return False
        failure = status.get("errorResult")
        if failure:
            text = f"{trace.action} job {trace.name.job_id} failed: {failure.get('message') or failure.get('reason')}"
            self._finish(trace, trace.on_failure, text, failed=True)
        elif trace.chain:
            self._submit_traced(trace.next())
        else:
            self._finish(trace, trace.then, f"{trace.dest} is loaded")
        self._ledger.trace_arrived(trace)
        return True

    def _finish(self, trace: _Trace, actions: Iterable[str], message: str, failed: bool = False) -> None:
        for action in actions:
            if action == "delete":
                prefix = self._uri("")
                names = [source.removeprefix(prefix) for source in trace.sources]
                self._trigger.delete_blobs(names, on_error=lambda blob: None, retry=_PATIENTLY)
            elif action == "insert":
                self._ledger.streamed_row(trace)
            elif action == "notify":
                self._ledger.sent_message(trace, message)
            else:
                self._submit(trace.next(action), traced=False)
        self._ledger.finished(trace, failed)

    def _uri(self, name: str) -> str:
        return f"gs://{self.settings.trigger_bucket}/{name}"

    # BigQuery

    def _submit_traced(self, trace: _Trace) -> None:
        """Write the trace, *then* submit its job, so that no job can end unseen (docs/protocol.md, "Timing")."""
        blob = self._task_bucket.blob(self._folder + trace.name.name)
        blob.upload_from_string(trace.to_json(), content_type="application/json")
        self._ledger.wrote_trace(trace)
        self._submit(trace, traced=True)

    def _submit(self, trace: _Trace, traced: bool) -> None:
        name = trace.name if traced else trace.last_name
        reference = {"projectId": trace.project, "jobId": name.job_id}
        if trace.location:
            reference["location"] = trace.location
        labels = self._schedule(name.job_id, traced)
        job = {"jobReference": reference, "configuration": {**trace.configuration(), "labels": labels}}
        try:
            _PATIENTLY(self._call)("POST", self._jobs_url(trace.project), json=job)
            refused = False
        except Conflict:
            refused = True  # BqTail takes this for success: so a second delivery runs the chain on
        self._ledger.submitted(trace, name.job_id, traced, refused)

    def _schedule(self, job_id: str, traced: bool) -> dict[str, str]:
        """Labels that tell the stand-in Google how the job goes; another BigQuery takes no notice."""
        chance = random.Random(f"{self.settings.seed}:{job_id}")
        ranges = {"standin-pending-ms": self.settings.pending_ms, "standin-running-ms": self.settings.running_ms}
        labels = {label: str(chance.randint(*limits)) for label, limits in ranges.items() if limits is not None}
        if traced:
            labels[TRACE_LABEL] = "1"
            if chance.random() < self.settings.failing:
                labels["standin-error"] = "invalid"
        return labels

    def _job_status(self, trace: _Trace) -> dict[str, Any]:
        params = {"location": trace.location} if trace.location else {}
        try:
            url = f"{self._jobs_url(trace.project)}/{quote(trace.name.job_id, safe='')}"
            job = _PATIENTLY(self._call)("GET", url, params=params).json()
        except NotFound:
            return {}
        return dict(job.get("status", {}))

    def _jobs_url(self, project: str) -> str:
        return f"{self._bigquery}/{quote(project, safe='')}/jobs"

    def _call(self, method: str, url: str, **arguments: Any) -> requests.Response:
        response = self._session.request(method, url, timeout=_TIMEOUT_S, **arguments)
        if not response.ok:
            raise from_http_response(response)
        return response

    def _server_time(self) -> float:
        """Seconds since the epoch by the storage server; asked by hand, as the client shows no ``Date`` header."""
        url = f"{self._client.api_endpoint}/storage/v1/b/{self.settings.trigger_bucket}"
        response = _PATIENTLY(self._call)("GET", url, params={"fields": "name"})
        return parsedate_to_datetime(response.headers["Date"]).timestamp()

    def _places(self) -> _Places:
        # In the direction in which objects move: the other way round, one on its way would be seen nowhere.
        listed = self._client.list_blobs(self._task_bucket, prefix=self._folder, fields=_LISTED)
        task_folder = frozenset(blob.name.removeprefix(self._folder) for blob in listed)
        arrived = {}
        for prefix, body in ((self._batch_prefix, _Window), (self._post_job_prefix, _Trace)):
            for blob in self._client.list_blobs(self._trigger, prefix=prefix, fields=_LISTED):
                with suppress(_UnreadableError, NotFound):
                    arrived[body.from_json(blob.download_as_bytes()).key] = blob.name
        return _Places(task_folder, arrived)

    def _job_in_words(self, trace: _Trace) -> str:
        status = self._job_status(trace)
        state = f"is {status['state']}" if status else "is unknown to BigQuery"
        return f"its job {state}{' with an error' if 'errorResult' in status else ''}"


_BODY_TYPES = {"str": str, "int": int, "tuple[str, ...]": list}
_LISTED = "items(name,generation,timeCreated),nextPageToken"


class _UnreadableError(ValueError):
    """A body that is no JSON, or not what BqTail wrote."""


@dataclass(frozen=True, slots=True)
class _Window:
    """The body of a batch window, which only BqTail reads; times in Unix seconds."""

    event_id: str
    dest: str
    start: int
    end: int
    source_prefix: str

    @property
    def name(self) -> str:
        digest = str(zlib.crc32(self.source_prefix.encode()))
        return WindowName(self.dest, digest, datetime.fromtimestamp(self.end, UTC)).name

    @property
    def key(self) -> str:
        return self.name

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, body: bytes) -> _Window:
        return cls(**_document(body, cls))


@dataclass(frozen=True, slots=True)
class _Trace:
    """The body of a trace: the job, and the actions on its success and failure.

    :param chain: jobs with a trace that come next.
    :param then: what comes after the last of them.
    :param on_failure: what comes instead when this job fails.
    """

    event_id: str
    dest: str
    step: int
    action: str
    project: str
    location: str
    sources: tuple[str, ...]
    chain: tuple[str, ...]
    then: tuple[str, ...]
    on_failure: tuple[str, ...]

    @property
    def name(self) -> TraceName:
        return TraceName(self.project, self.location or None, self.dest, self.event_id, self.step % 99999, self.action)

    @property
    def last_name(self) -> TraceName:
        """For a job without a trace: in the same form, so that a second try meets the same ID."""
        return TraceName(self.project, None, self.dest, self.event_id, self.step % 99999, self.action, "tail")

    @property
    def key(self) -> str:
        return self.name.name

    def next(self, action: str | None = None) -> _Trace:
        """The next step: of the chain, or ``action`` after its end."""
        chosen, rest = (action, ()) if action else (self.chain[0], self.chain[1:])
        return replace(self, step=self.step + 1, action=chosen, chain=rest)

    def configuration(self) -> dict[str, Any]:
        """The job's configuration as BigQuery takes it."""
        project, dataset, table = _split(self.dest)
        dest = {"projectId": project or self.project, "datasetId": dataset, "tableId": table}
        kind = _KINDS[self.action]
        details: dict[str, Any] = {
            "load": {
                "sourceUris": list(self.sources),
                "destinationTable": dest,
                "sourceFormat": "NEWLINE_DELIMITED_JSON",
            },
            "copy": {"sourceTable": dest, "destinationTable": {**dest, "tableId": f"{table.partition('$')[0]}_copy"}},
            "query": {"query": "SELECT 1", "useLegacySql": False},
            "extract": {"sourceTable": dest, "destinationUris": [f"gs://{dataset}/{self.event_id}-*.json"]},
        }
        return {kind: details[kind]}

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, body: bytes) -> _Trace:
        return cls(**_document(body, cls))


def _document(body: bytes, expected: type[_Window] | type[_Trace]) -> dict[str, Any]:
    """The fields of a body; anything but exactly those of ``expected`` is unreadable."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise _UnreadableError(f"no JSON ({error})") from error
    types = {field.name: _BODY_TYPES[str(field.type)] for field in fields(expected)}
    if not isinstance(document, dict) or {name: type(value) for name, value in document.items()} != types:
        raise _UnreadableError(f"expected an object of {', '.join(types)}, as BqTail writes it")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}


def _split(dest: str) -> tuple[str | None, str, str]:
    """Project (if the destination names one), dataset, and table with its partition."""
    project = WindowName(dest, "0", datetime.fromtimestamp(0, UTC)).dest_project
    dataset, _, table = (dest[len(project) + 1 :] if project else dest).partition(".")
    return project, dataset, table


@dataclass(frozen=True, slots=True)
class _Places:
    """Where objects lie: names in the task folder, and by trace or window the names in the trigger bucket."""

    task_folder: frozenset[str]
    arrived: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Missing:
    """An event without a finished chain: its chain's last trace, or what is known of its window."""

    file: DataFile
    trace: _Trace | None
    window_consumed: bool


@dataclass(slots=True)
class _Chain:
    """What the ledger keeps of a chain."""

    dest: str
    files: list[str] = field(default_factory=list)
    rows: int = 0
    messages: list[str] = field(default_factory=list)
    finished: int = 0
    failed: bool = False
    last_trace: _Trace | None = None
    arrivals: Counter[str] = field(default_factory=Counter)
    """How often its window and each trace arrived, in the order in which they first did."""


class _Ledger:
    """Everything that happened, behind one lock. Nothing in here talks to a service."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_event_id = _FIRST_EVENT_ID
        self._files: dict[str, DataFile] = {}
        self._loaded_by: dict[str, list[str]] = {}
        self._chains: dict[str, _Chain] = {}
        self._openings: dict[str, list[str]] = {}
        self._windows: Counter[str] = Counter()
        self._jobs: list[SubmittedJob] = []
        self._known_ids: set[tuple[str, str, str]] = set()
        self._traces = 0
        self._late_events = 0
        self._unreadable: list[str] = []
        self._early: dict[str, None] = {}
        self._errors: list[str] = []

    def new_event_id(self) -> str:
        with self._lock:
            self._last_event_id += 7_919  # as in real ones, no ID is its neighbour's plus one
            return str(self._last_event_id)

    def landed(self, file: DataFile, uri: str) -> None:
        with self._lock:
            self._files[uri] = file

    def came_late(self) -> None:
        with self._lock:
            self._late_events += 1

    def opened(self, window: _Window) -> None:
        with self._lock:
            self._openings.setdefault(window.name, []).append(window.event_id)

    def window_arrived(self, window: _Window) -> None:
        with self._lock:
            self._windows[window.name] += 1
            if window.event_id in self._chains:
                self._chains[window.event_id].arrivals[f"window {window.name}"] += 1

    def wrote_trace(self, trace: _Trace) -> None:
        with self._lock:
            self._chain(trace).last_trace = trace

    def trace_arrived(self, trace: _Trace) -> None:
        with self._lock:
            self._traces += 1
            self._chain(trace).arrivals[f"trace {trace.name.name}"] += 1

    def submitted(self, trace: _Trace, job_id: str, traced: bool, refused: bool) -> None:
        with self._lock:
            key = (trace.project, trace.location, job_id)
            # Refused although new to us: an earlier try got through and only its answer was lost.
            accepted = not refused or key not in self._known_ids
            self._known_ids.add(key)
            kind = _KINDS[trace.action]
            self._jobs.append(SubmittedJob(*key, kind, trace.event_id, traced, accepted))
            if accepted and kind == "load":
                self._chain(trace).files.extend(trace.sources)
                for uri in trace.sources:
                    self._loaded_by.setdefault(uri, []).append(trace.event_id)

    def streamed_row(self, trace: _Trace) -> None:
        with self._lock:
            self._chain(trace).rows += 1

    def sent_message(self, trace: _Trace, message: str) -> None:
        with self._lock:
            self._chain(trace).messages.append(message)

    def finished(self, trace: _Trace, failed: bool) -> None:
        with self._lock:
            chain = self._chain(trace)
            chain.finished += 1
            chain.failed = chain.failed or failed

    def could_not_read(self, what: str) -> None:
        with self._lock:
            self._unreadable.append(what)

    def arrived_early(self, name: str) -> None:
        with self._lock:
            self._early[name] = None  # once, however often it is looked at

    def failed_call(self, what: str) -> None:
        with self._lock:
            self._errors.append(what)

    def counters(self) -> Counters:
        with self._lock:
            finished = sum(self._finishes(uri) > 0 for uri in self._files)
            waiting = sum(uri not in self._loaded_by for uri in self._files)
            batches = self._windows.total()
            return Counters(
                events=len(self._files),
                waiting=waiting,
                running=len(self._files) - waiting - finished,
                finished=finished,
                batches=batches,
                dispatched=self._traces,
                consumed=batches + self._traces + len(self._unreadable),
            )

    def account(self) -> tuple[Account, list[_Missing]]:
        """The account with a sentence for what is doubled, and what is missing, of which only a look can tell."""
        with self._lock:
            doubled, missing, failed = [], [], 0
            for uri, file in self._files.items():
                why = self._why_doubled(uri, file)
                if why:
                    doubled.append(Problem(file.event_id, file.name, "doubled", why))
                elif not self._finishes(uri):
                    missing.append(self._missing(uri, file))
                else:
                    failed += self._chains[self._loaded_by[uri][0]].failed
            account = Account(
                events=len(self._files),
                late_events=self._late_events,
                finished=len(self._files) - len(doubled) - len(missing),
                missing=len(missing),
                doubled=len(doubled),
                failed=failed,
                loads={uri: len(self._loaded_by.get(uri, ())) for uri in self._files},
                chains=tuple(
                    ChainAccount(event_id, c.dest, tuple(c.files), c.rows, tuple(c.messages), c.finished, c.failed)
                    for event_id, c in self._chains.items()
                ),
                jobs=tuple(self._jobs),
                problems=tuple(doubled),
                unreadable=tuple(self._unreadable),
                early=tuple(self._early),
                errors=tuple(self._errors),
            )
            return account, missing

    def _chain(self, trace: _Trace) -> _Chain:
        return self._chains.setdefault(trace.event_id, _Chain(trace.dest))

    def _finishes(self, uri: str) -> int:
        return sum(self._chains[chain].finished for chain in self._loaded_by.get(uri, ()))

    def _missing(self, uri: str, file: DataFile) -> _Missing:
        chains = self._loaded_by.get(uri)
        trace = self._chains[chains[0]].last_trace if chains else None
        return _Missing(file, trace, bool(file.window and self._windows[file.window]))

    def _why_doubled(self, uri: str, file: DataFile) -> str:
        chains = self._loaded_by.get(uri, [])
        reasons = []
        if len(chains) > 1:
            reasons.append(f"loaded {_times(len(chains))}, by chains {' and '.join(chains)}")
            again = self._openings.get(file.window or "", [])[1:]
            if again:
                reasons[-1] += (
                    f", because window {file.window} was opened again by the late event {' and '.join(again)}"
                )
        for event_id in dict.fromkeys(chains):
            chain = self._chains[event_id]
            what = [f"row streamed {_times(chain.rows)}"] * (chain.rows > 1)
            what += [f"message sent {_times(len(chain.messages))}"] * (len(chain.messages) > 1)
            if not what and chain.finished > 1:
                what = [f"finished {_times(chain.finished)}"]
            if what:
                cause = next(
                    (f" because {name} arrived {_times(n)}" for name, n in chain.arrivals.items() if n > 1), ""
                )
                reasons.append(f"{' and '.join(what)} in chain {event_id}{cause}")
        return "; ".join(reasons)


def _where(missing: _Missing, places: _Places, job_state: Callable[[_Trace], str]) -> str:
    """Where an event without a finished chain stands, as a sentence."""
    if missing.trace:
        name = missing.trace.key
        if name in places.arrived:
            where = f"lies in the trigger bucket as {places.arrived[name]}, not consumed yet"
        elif name in places.task_folder:
            where = "waits in the task folder"
        else:
            where = "vanished without being consumed: it lies neither in the task folder nor in the trigger bucket"
        return f"trace {name} {where}; {job_state(missing.trace)}"
    name = missing.file.window or ""
    if not name:
        return "no load job was accepted for it"
    if name in places.arrived:
        return f"window {name} was fired and lies in the trigger bucket as {places.arrived[name]}, not consumed yet"
    if missing.window_consumed:
        return f"window {name} was consumed, but no load job took this file"
    if name in places.task_folder:
        sentinel = WindowName.parse(name).sentinel in places.task_folder
        return f"window {name} waits unfired in the task folder{', although its sentinel is there' if sentinel else ''}"
    return f"window {name} vanished without a load: it lies neither in the task folder nor in the trigger bucket"


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"


def main(arguments: Sequence[str] | None = None) -> int:
    """Feed events into emulators and print the account.

    ``STORAGE_EMULATOR_HOST`` and ``BIGQUERY_EMULATOR_HOST``, both with a scheme, say where they are.

    :return: 0 when every event went through exactly once.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    storage_url, bigquery_url = os.environ.get("STORAGE_EMULATOR_HOST"), os.environ.get("BIGQUERY_EMULATOR_HOST")
    if not storage_url or not bigquery_url:
        raise SystemExit("set STORAGE_EMULATOR_HOST and BIGQUERY_EMULATOR_HOST, both with their scheme")
    settings = BqTailSettings.for_dispatcher(
        DispatchConfig.from_json(Path(options.config).read_bytes(), dict(options.var)),
        **{name: getattr(options, name) for name in _OPTIONS},
        unbatched=frozenset(options.direct),
    )
    client = Client(
        project=settings.project,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": storage_url},
    )
    bqtail = StandInBqTail(client, requests.Session(), bigquery_url, settings)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stepping = threading.Thread(target=bqtail.run, args=(stop, options.interval))
    stepping.start()
    try:
        _feed(bqtail, [*options.dest, *options.direct], options.events, options.every, stop)
        _drain(bqtail, options.drain, options.settle, stop)
    finally:
        stop.set()
        stepping.join()
    account = bqtail.account()
    print(json.dumps(account.to_dict(details=options.details), indent=2))
    return 0 if account.ok else 1


def _feed(bqtail: StandInBqTail, dests: list[str], events: int | None, every: float, stop: threading.Event) -> None:
    for number in itertools.count() if events is None else range(events):
        if stop.is_set():
            return
        bqtail.put_file(dests[number % len(dests)])
        stop.wait(every)


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
