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
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
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
    TooManyRequests,
    from_http_response,
)
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Blob, Client
from google.cloud.storage.retry import DEFAULT_RETRY

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
from bqdispatch_provider.testing.bqtail_bodies import KINDS, TraceBody, UnreadableBodyError, WindowBody, split_dest

__all__ = [
    "TRACE_LABEL",
    "Account",
    "BqTailSettings",
    "ChainAccount",
    "Counters",
    "DataFile",
    "Problem",
    "StandInBqTail",
    "SubmittedJob",
    "main",
]

log = logging.getLogger(__name__)

TRACE_LABEL = "bqtail-trace"
"""Label of a job that has a trace: others do not count (docs/protocol.md, "Configuration document", the limits)."""

_OTHER_ACTIONS = {"delete", "insert", "notify"}
_LISTED = "items(name,generation,timeCreated),nextPageToken"
_PATIENTLY = Retry(initial=0.1, maximum=2.0, timeout=30.0)
_UNLESS_TOO_SOON = DEFAULT_RETRY.with_predicate(
    lambda error: not isinstance(error, TooManyRequests) and DEFAULT_RETRY._predicate(error)
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
        kinds = [KINDS.get(action) for action in (*self.chain, *self.then, *self.on_failure)]
        if not self.chain or kinds[0] != "load" or kinds.count("load") > 1:
            raise ValueError(f"chain is {self.chain!r}: it begins with load or reload, which come nowhere else")
        unknown = {*self.chain} - KINDS.keys() | {*self.then, *self.on_failure} - KINDS.keys() - _OTHER_ACTIONS
        if unknown:
            raise ValueError(f"unknown actions {sorted(unknown)}: jobs are {sorted(KINDS)}, the rest {_OTHER_ACTIONS}")
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
        self._ledger = Ledger()
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
        event_id = self._ledger.new_event_id(late=True)
        window = self._window(event_id, file.dest, file.time) if file.window else None
        if window or self._trigger.blob(file.name).exists():
            self._deliver_event(file, event_id, window)

    def step(self) -> int:
        """Look at the trigger bucket once and handle all that has arrived there.

        :returns: how many objects were handled; those that have to wait are not counted.
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
        found = (Problem(m.file.event_id, m.file.name, "missing", whereabouts(m, places, job_state)) for m in missing)
        return replace(account, problems=(*account.problems, *found))

    # Events

    def _is_batched(self, dest: str) -> bool:
        return self.settings.window_s > 0 and dest not in self.settings.unbatched

    def _window(self, event_id: str, dest: str, at: datetime) -> WindowBody:
        length = self.settings.window_s
        start = int(at.timestamp()) // length * length
        return WindowBody(event_id, dest, start, start + length, self._uri(f"{self._data_prefix}{dest}/"))

    def _deliver_event(self, file: DataFile, event_id: str, window: WindowBody | None) -> None:
        if window is None:
            self._start_chain(event_id, file.dest, (self._uri(file.name),))
            return
        blob = self._task_bucket.blob(self._folder + window.name)
        try:
            blob.upload_from_string(window.to_json(), content_type="application/json", if_generation_match=0)
        except PreconditionFailed:
            return  # another file opened it
        self._ledger.opened(window)

    # Deliveries

    def _handle(self, blob: Blob) -> bool:
        """Act on an object, then delete it; ``False`` when it is left for a later step."""
        key = (blob.name, blob.generation)
        try:
            if key not in self._acted:
                body = self._read(blob)
                if body is None or not self._act(blob.name, body):
                    return False
                self._acted.add(key)
            try:
                self._delete(blob)
            except TooManyRequests:
                # It was delivered less than a second ago. Once it may go, so may all others that this step has listed.
                time.sleep(_SAME_NAME_S)
                self._delete(blob)
            self._acted.discard(key)
        except (GoogleAPIError, requests.RequestException) as error:
            log.warning("%s is left for the next step: %s", blob.name, error)
            self._ledger.failed_call(f"{blob.name}: {error}")
            return False
        return True

    def _delete(self, blob: Blob) -> None:
        # Exactly this generation: what was put in its place meanwhile is to be consumed too. It is a condition and not
        # the generation to delete, by which a bucket with versioning would keep nothing.
        with suppress(NotFound, PreconditionFailed):
            self._trigger.delete_blob(blob.name, if_generation_match=blob.generation, retry=_UNLESS_TOO_SOON)

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
                return self._load_window(WindowBody.from_json(body))
            return self._run_post_actions(TraceBody.from_json(body), name)
        except UnreadableBodyError as error:
            log.warning("%s cannot be read: %s", name, error)
            self._ledger.could_not_read(f"{name}: {error}")
            return True

    def _load_window(self, window: WindowBody) -> bool:
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
        project = split_dest(dest)[0] or self.settings.project
        self._submit_traced(
            TraceBody(
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

    def _run_post_actions(self, trace: TraceBody, arrived_as: str) -> bool:
        status = self._job_status(trace)
        if status.get("state") != "DONE":
            self._ledger.arrived_early(arrived_as)
            return False
        failure = status.get("errorResult")
        if failure:
            text = f"{trace.action} job {trace.job_id()} failed: {failure.get('message') or failure.get('reason')}"
            self._finish(trace, trace.on_failure, text, failed=True)
        elif trace.chain:
            self._submit_traced(trace.next())
        else:
            self._finish(trace, trace.then, f"{trace.dest} is loaded")
        self._ledger.trace_arrived(trace)
        return True

    def _finish(self, trace: TraceBody, actions: Iterable[str], message: str, failed: bool = False) -> None:
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

    def _submit_traced(self, trace: TraceBody) -> None:
        """Write the trace, *then* submit its job, so that no job can end unseen (docs/protocol.md, "Timing")."""
        blob = self._task_bucket.blob(self._folder + trace.name)
        blob.upload_from_string(trace.to_json(), content_type="application/json")
        self._ledger.wrote_trace(trace)
        self._submit(trace, traced=True)

    def _submit(self, trace: TraceBody, traced: bool) -> None:
        job_id = trace.job_id(traced)
        reference = {"projectId": trace.project, "jobId": job_id, **_location(trace)}
        labels = self._schedule(job_id, traced)
        job = {"jobReference": reference, "configuration": {**trace.configuration(), "labels": labels}}
        try:
            self._call("POST", self._jobs_url(trace), json=job)
            refused = False
        except Conflict:
            refused = True  # BqTail takes this for success: so a second delivery runs the chain on
        self._ledger.submitted(trace, traced, refused)

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

    def _job_status(self, trace: TraceBody) -> dict[str, Any]:
        """As BigQuery tells it; empty when it knows no such job."""
        url = f"{self._jobs_url(trace)}/{quote(trace.job_id(), safe='')}"
        try:
            return dict(self._call("GET", url, params=_location(trace)).json().get("status", {}))
        except NotFound:
            return {}

    def _job_in_words(self, trace: TraceBody) -> str:
        status = self._job_status(trace)
        state = f"is {status['state']}" if status else "is unknown to BigQuery"
        return f"its job {state}{' with an error' if 'errorResult' in status else ''}"

    def _jobs_url(self, trace: TraceBody) -> str:
        return f"{self._bigquery}/{quote(trace.project, safe='')}/jobs"

    def _server_time(self) -> float:
        """Seconds since the epoch by the storage server; asked by hand, as the client shows no ``Date`` header."""
        url = f"{self._client._connection.API_BASE_URL}/storage/v1/b/{self.settings.trigger_bucket}"
        return parsedate_to_datetime(self._call("GET", url, params={"fields": "name"}).headers["Date"]).timestamp()

    def _call(self, method: str, url: str, **arguments: Any) -> requests.Response:
        """A good answer; a passing failure is tried again, any other is raised as the Google clients raise it."""

        def once() -> requests.Response:
            response = self._session.request(method, url, timeout=_TIMEOUT_S, **arguments)
            if not response.ok:
                raise from_http_response(response)
            return response

        answer: requests.Response = _PATIENTLY(once)()
        return answer


def _location(trace: TraceBody) -> dict[str, str]:
    return {"location": trace.location} if trace.location else {}


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
