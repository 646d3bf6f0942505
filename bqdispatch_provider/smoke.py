"""``bqdispatch smoke``: whether a set-up works, found out by looking, and by dispatching an event of its own.

The trial is harmless. Its trace and its window lie in a folder of their own inside the task folder, which dispatchers
take for bookkeeping, and they are delivered into that folder too: in the trigger bucket any object is an event to
BqTail, and the account could not delete it there. The rights on the trigger bucket are tried by calls that change
nothing. No job is submitted: the trace is of a finished one in BigQuery's list.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import islice

import requests
from google.cloud.storage import Client

from bqdispatch_provider.bucket_settings import cannot_be_checked
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.courtesy import SAME_NAME_S
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.jobs import REFUSED
from bqdispatch_provider.model import JobKey, Trace
from bqdispatch_provider.names import TraceName, WindowName, counted, in_words
from bqdispatch_provider.storage import (
    BATCH_SIZE,
    FOLDER_VERBS,
    STORAGE_ERRORS,
    TRIGGER_VERBS,
    Result,
    TaskStore,
    on_objects,
    place,
)

log = logging.getLogger(__name__)

FOLDER = "bqdispatch-smoke"
"""Folder in the task folder where all trials lie."""

PATIENCE = 60.0
"""Seconds for which the trial's events are waited for; an object is left alone until it is 3 s old."""

UNCONSUMED = timedelta(minutes=15)
"""A delivered object that is older was not taken by BqTail, whose functions live for nine minutes at most."""

_ABANDONED = timedelta(hours=1)
_JOBS, _JOBS_SINCE = 5_000, timedelta(days=30)
"""How many of a project's jobs are looked through, and from when on."""


class Verdict(StrEnum):
    """What a check came to; a set-up that has only warnings works."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    LEFT_OUT = "not checked"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table.

    :param what: was checked.
    :param where: it was checked: a URL, a bucket, a project.
    :param said: what was found; when something is wrong, what to do as well.
    """

    what: str
    where: str
    verdict: Verdict
    said: str


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder, the key of the configuration that names it, and what the account has to be allowed there."""

    what: str
    url: str
    key: str
    verbs: Sequence[str]
    role: str


class _Trial(DispatchConfig):
    """A configuration whose trigger bucket is the task folder's own, which is refused where BqTail listens."""

    def for_project(self, _: str | None) -> _Trial:
        return self


class Smoke:
    """The checks of one set-up.

    :param config: of the set-up, with its project filled in.
    :param client: a ``google.cloud.storage.Client``.
    :param session: a ``requests.Session`` with credentials for BigQuery.
    :param pools: what is wrong with each of Airflow's pools, empty where nothing is, or why that cannot be told.
    :param bqtail: BqTail's own configuration, to compare what the two must have in common; ``None``: not compared.
    :param others: the task folders of Airflow's other connections by their IDs, or why one's cannot be told, or why
        none can; ``None``: not compared.
    :param go_on: asked while the trial's events are waited for.
    """

    def __init__(
        self,
        config: DispatchConfig,
        client: Client,
        session: requests.Session,
        pools: Mapping[str, str] | str,
        *,
        bqtail: DispatchConfig | None = None,
        others: Mapping[str, str | Exception] | str | None = None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self._config = config
        self._client, self._session = client, session
        self._pools, self._bqtail, self._others, self._go_on = pools, bqtail, others, go_on
        self._id = uuid.uuid4().hex[:12]
        self._may_try = False
        self._jobs: dict[str, JobKey | None] = {}

    def checks(self) -> Iterator[Check]:
        """Check one thing after the other; however this ends, what was put into the task folder is gone then."""
        with Dispatcher(self._config, self._client, self._session) as dispatcher:
            yield from self._folders(dispatcher.store)
            yield from self._trigger_bucket(dispatcher.store)
            yield from self._settings(dispatcher.store)
            yield from self._document(dispatcher.store)
            yield from self._consumed()
            yield from self._projects(dispatcher)
        yield from self._common()
        yield from self._alone()
        yield from self._slots()
        yield from self._trials()

    # Cloud Storage

    def _folders(self, store: TaskStore) -> Iterator[Check]:
        config = self._config
        tasks, *others = (
            _Place("task folder", config.async_task_url, "AsyncTaskURL", FOLDER_VERBS, "bqdispatchFolders"),
            _Place("journal", config.journal_url, "JournalURL", FOLDER_VERBS, "bqdispatchFolders"),
            _Place("errors", config.error_url, "ErrorURL", FOLDER_VERBS, "bqdispatchFolders"),
        )
        first = self._rights(store, tasks)
        self._may_try = first.verdict is Verdict.OK
        yield first
        for each in others:
            yield self._rights(store, each)

    def _trigger_bucket(self, store: TaskStore) -> Iterator[Check]:
        bucket, role = self._config.trigger_bucket or "", "bqdispatchTrigger"
        for what, prefix in {"traces": self._config.post_job_prefix, "windows": self._config.batch_prefix}.items():
            url = f"gs://{bucket}{prefix}"
            yield self._rights(store, _Place(f"trigger bucket, {what}", url, "TriggerBucket", TRIGGER_VERBS, role))
        what, where = "what was consumed", f"gs://{bucket}"
        lacking = store.ungranted({bucket: ["storage.buckets.get"]})[bucket]
        doubt = f"an event whose delivery is in doubt is {_doubt(self._config)}"
        if lacking == ["storage.buckets.get"]:
            said = f"storage.buckets.get is missing, without which {doubt}; {_bind(role, bucket)}"
            yield Check(what, where, Verdict.FAILED, said)
        elif isinstance(lacking, Result) and lacking.status == 404:
            yield Check(what, where, Verdict.LEFT_OUT, "there is no such bucket")
        elif store.keeps_deleted(store.now()):
            yield Check(what, where, Verdict.OK, "is kept by the bucket for a while, which proves deliveries")
        else:
            said = f"the bucket keeps nothing that is deleted, so {doubt}: give it soft delete"
            command = f"gcloud storage buckets update gs://{bucket} --soft-delete-duration=7d"
            yield Check(what, where, Verdict.WARNING, f"{said} (`{command}`), or versions")

    def _settings(self, store: TaskStore) -> Iterator[Check]:
        """Check what the buckets do to objects by themselves, before it loses or repeats events."""
        tasks, _ = place(self._client, self._config.async_task_url)
        settings, now = store.settings(), store.now()
        for name, found in settings.items():
            where = f"gs://{name}"
            what = "settings of the task bucket" if name == tasks.name else "settings of the trigger bucket"
            if isinstance(found, Result):
                yield Check(what, where, Verdict.LEFT_OUT, cannot_be_checked(name, found.status, str(found)))
                continue
            findings = found.in_the_way(self._config, now)
            for said in findings:
                yield Check(what, where, Verdict.FAILED, said)
            if name == tasks.name and found.keeps_deleted:
                self._may_try = False  # the trial could not be removed
            if not findings:
                said = "no retention policy, default hold or lifecycle rule is in the way"
                yield Check(what, where, Verdict.OK, said)

    def _rights(self, store: TaskStore, at: _Place) -> Check:
        """The permissions on a folder: by asking for them, and by calls in the folder itself, for conditions of IAM."""
        what, url, bucket = at.what, at.url, at.url.removeprefix("gs://").partition("/")[0]
        asked = store.ungranted({bucket: map(on_objects, at.verbs)})[bucket]
        tried = store.tried(f"{url.rstrip('/')}/{FOLDER}/{self._id}", at.verbs)
        if isinstance(asked, Result) and asked.status == 404 and tried["list"].status == 404:
            return Check(what, url, Verdict.FAILED, f"bucket {bucket!r} does not exist: create it, or correct {at.key}")
        if not isinstance(asked, Result) and asked:
            said = f"{', '.join(asked)} is missing; {_bind(at.role, bucket)}"
            return Check(what, url, Verdict.FAILED, said)
        refused = {on_objects(verb): result for verb, result in tried.items() if result.status in (401, 403)}
        if refused:
            said = f"{', '.join(refused)} is refused in this folder ({next(iter(refused.values()))})"
            why = "look for a condition on the binding, or a deny policy" if not isinstance(asked, Result) else ""
            return Check(what, url, Verdict.FAILED, f"{said}: {why or _bind(at.role, bucket)}")
        odd = [result for result in tried.values() if not result.ok and not result.doubtful]
        if odd:
            return Check(what, url, Verdict.FAILED, f"a call was answered with {odd[0]}: try again later")
        return Check(what, url, Verdict.OK, f"the account may {', '.join(at.verbs)}")

    def _document(self, store: TaskStore) -> Iterator[Check]:
        """Check that the account may not replace its own configuration document: whoever gets hold of it could."""
        what, url = "configuration document", self._config.url or ""
        if not url.startswith("gs://"):
            return
        # At a name beside it: a call that fails to change nothing must not hit the document.
        tried = store.tried(f"{url}.{FOLDER}-{self._id}", ("create", "delete"))
        refused = [on_objects(verb) for verb, result in tried.items() if result.status in (401, 403)]
        odd = [result for result in tried.values() if not result.ok and not result.doubtful]
        if refused:
            yield Check(what, url, Verdict.OK, f"the account may not replace it: {', '.join(refused)} is refused")
        elif odd:
            yield Check(what, url, Verdict.LEFT_OUT, f"a call beside it was answered with {odd[0]}: try again later")
        else:
            said = (
                "the account that dispatches may replace the document, and so change what is dispatched and where to: "
                "put it into a bucket on which the account has storage.objects.get alone, such as with the role "
                "roles/storage.objectViewer, and let people or your deployment write it"
            )
            yield Check(what, url, Verdict.WARNING, said)

    def _consumed(self) -> Iterator[Check]:
        """Whether BqTail takes what is delivered: it deletes what it has consumed."""
        for key, prefix in {
            "PostJobPrefix": self._config.post_job_prefix,
            "BatchPrefix": self._config.batch_prefix,
        }.items():
            url = f"gs://{self._config.trigger_bucket}{prefix}"
            try:
                store = TaskStore(self._client, url, self._config.trigger_bucket or "")
                with closing(store):
                    now, objects = store.listing()
            except STORAGE_ERRORS as error:
                yield Check("BqTail consumes", url, Verdict.LEFT_OUT, f"cannot be listed: {in_words(error)}")
                continue
            old = sorted((each for each in objects if now - each.created > UNCONSUMED), key=lambda each: each.created)
            if old:
                said = (
                    f"{counted(len(old), 'object')} older than {UNCONSUMED.seconds // 60} minutes, the oldest since "
                    f"{old[0].created:%Y-%m-%d %H:%M} UTC ({old[0].name!r}): see that {key} {prefix!r} is BqTail's "
                    "too, and that its function runs without errors"
                )
                yield Check("BqTail consumes", url, Verdict.FAILED, said)
            else:
                yield Check("BqTail consumes", url, Verdict.OK, "nothing waits there for long")

    # BigQuery

    def _projects(self, dispatcher: Dispatcher) -> Iterator[Check]:
        try:
            traces = dispatcher.listing().traces
        except STORAGE_ERRORS as error:
            log.debug("No traces are looked at: %s", in_words(error))
            traces = ()
        board, now = dispatcher.board, dispatcher.store.now()
        for project in dict.fromkeys([self._config.project_id or "", *(trace.project for trace in traces)]):
            try:
                lacking = board.lacking(project)
            except REFUSED as error:
                said = f"its jobs cannot be looked at ({in_words(error)}): see that ProjectID is right"
                yield Check("jobs", project, Verdict.FAILED, said)
                continue
            if lacking:
                said = f"{', '.join(lacking)} is missing; bind the role bqdispatchJobs (deploy/roles) in {project!r}"
                yield Check("jobs", project, Verdict.FAILED, said)
                continue
            yield Check("jobs", project, Verdict.OK, "the account may list and get them")
            mine = [trace for trace in traces if trace.project == project]
            since = min([now - _JOBS_SINCE, *(trace.object.created - timedelta(minutes=5) for trace in mine)])
            try:
                jobs = dict(islice(board.seen(project, since), _JOBS))
            except REFUSED as error:
                yield Check("location", project, Verdict.LEFT_OUT, f"the list broke off: {in_words(error)}")
                continue
            self._jobs[project] = next(
                (key for key, job in jobs.items() if job.state == "DONE" and _as_trace(key)), None
            )
            yield _located(project, mine, jobs)

    # what has to agree

    def _common(self) -> Iterator[Check]:
        if self._bqtail is None:
            return
        ours, theirs = self._config, self._bqtail.for_project(self._config.project_id)
        where = self._bqtail.url or ""
        for key, field in {
            "AsyncTaskURL": "async_task_url",
            "TriggerBucket": "trigger_bucket",
            "PostJobPrefix": "post_job_prefix",
            "BatchPrefix": "batch_prefix",
            "JournalURL": "journal_url",
        }.items():
            mine, other = (str(getattr(config, field)) for config in (ours, theirs))
            if mine.rstrip("/") == other.rstrip("/"):
                yield Check(f"{key} of both", where, Verdict.OK, mine)
            elif key == "JournalURL":
                said = f"is {mine!r} here and {other!r} there: BqTail's balancer reads performance.json in its own"
                yield Check(f"{key} of both", where, Verdict.WARNING, f"{said}, so give the same in both")
            else:
                said = f"is {mine!r} here and {other!r} there: give the same in both configurations"
                yield Check(f"{key} of both", where, Verdict.FAILED, said)

    def _alone(self) -> Iterator[Check]:
        """Check that no other set-up of this Airflow has the same task folder."""
        what, own = "other set-ups", self._config.async_task_url.rstrip("/")
        if self._others is None:
            return
        if isinstance(self._others, str):
            yield Check(what, "Airflow", Verdict.LEFT_OUT, self._others)
            return
        alone = True
        for conn_id, folder in self._others.items():
            where = f"connection {conn_id}"
            if isinstance(folder, Exception):
                yield Check(what, where, Verdict.LEFT_OUT, f"its task folder cannot be told: {in_words(folder)}")
            elif folder.rstrip("/") == own:
                alone = False
                said = (
                    "has this task folder too, so both would dispatch its events, each within limits, pools and a "
                    "journal of its own: give each set-up a task folder of its own, or delete one of the connections; "
                    "if it is this set-up's own, name the set-up by --setup"
                )
                yield Check(what, where, Verdict.FAILED, said)
        if alone:
            yield Check(what, "Airflow", Verdict.OK, "no other connection is known to have this task folder")

    def _slots(self) -> Iterator[Check]:
        if isinstance(self._pools, str):
            yield Check("pools", "Airflow", Verdict.LEFT_OUT, self._pools)
            return
        for name, said in self._pools.items():
            if said:
                yield Check("pool", name, Verdict.FAILED, f"{said}: `bqdispatch pools --import` sets it")
            else:
                yield Check("pool", name, Verdict.OK, "mirrors its limit")

    # the trial

    def _trials(self) -> Iterator[Check]:
        home = f"{self._config.async_task_url.rstrip('/')}/{FOLDER}"
        if not self._may_try:
            said = "needs the permissions on the task folder first, and a task bucket from which objects can be deleted"
            yield Check("trial", home, Verdict.LEFT_OUT, said)
            return
        everything = TaskStore(self._client, home, self._config.trigger_bucket or "")
        with closing(everything):
            cleaned: Check | None = None
            try:
                yield from self._trial(f"{home}/{self._id}")
                cleaned = self._clean(everything, home)
            finally:
                if cleaned is None:
                    log.warning("Clean-up: %s", self._clean(everything, home).said)
            yield cleaned

    def _trial(self, home: str) -> Iterator[Check]:
        """Put a trace and a window into a task folder of their own, and see both arrive."""
        bucket, path = place(self._client, home)
        given = vars(self._config) | {
            "async_task_url": f"{home}/tasks",
            "journal_url": f"{home}/journal",
            "error_url": f"{home}/errors",
            "trigger_bucket": bucket.name,
            "post_job_prefix": f"/{path}_bqjob_/",
            "batch_prefix": f"/{path}_batch_/",
            "max_concurrent_sql": 0,
            "max_concurrent_jobs": 0,
            "max_unknown_job_min": 0,
        }
        with Dispatcher(_Trial(**given), self._client, self._session, go_on=self._go_on) as dispatcher:
            store = dispatcher.store
            window = WindowName("bqdispatch_smoke.window", str(int(self._id, 16)), store.now() - timedelta(minutes=1))
            names = {"window": window.name}
            job = next((key for key in self._jobs.values() if key is not None), None)
            trace = None if job is None else _as_trace(job)
            if trace is None:
                yield Check("a trace", home, Verdict.FAILED, self._how_to_get_a_job())
            else:
                names["trace"] = trace.name
            try:
                for name in names.values():
                    store.write_json(store.task_url(name), {"bqdispatch": "smoke"}, replaces=0)
                said = self._dispatch(dispatcher, set(names.values()))
                arrived = {url.rpartition("/")[2].removesuffix(".json") for url in store.names(f"{home}/_batch_")}
                arrived |= {url.rpartition("/")[2].removesuffix(".json") for url in store.names(f"{home}/_bqjob_")}
            except STORAGE_ERRORS as error:
                arrived, said = set(), in_words(error)
        for kind, name in names.items():
            if name.rpartition("/")[2] in arrived:
                of = f" of job {job.job_id!r} in {job.location}" if kind == "trace" and job else ""
                yield Check(f"a {kind}", f"{home}/tasks", Verdict.OK, f"arrived{of}")
            else:
                said = f"has not arrived ({said}): see `bqdispatch run --once` with -v for what stands in its way"
                yield Check(f"a {kind}", f"{home}/tasks", Verdict.FAILED, said)

    def _dispatch(self, dispatcher: Dispatcher, left: set[str]) -> str:
        """Cycle after cycle until nothing is left; says how the last one went."""
        until = time.monotonic() + PATIENCE
        said = "no cycle was run"
        while left and self._go_on() and time.monotonic() < until:
            report = dispatcher.cycle()
            folder = dispatcher.store.task_url("")
            left -= {url.removeprefix(folder) for url in (*report.jobs, *report.batched)}
            said = "; ".join(report.errors) or report.in_words()
            if left:
                time.sleep(1)
        return said

    def _how_to_get_a_job(self) -> str:
        job_id = f"bqdispatch_smoke--{int(self._id, 16)}_00001_query--dispatch"
        command = f"bq query --project_id={self._config.project_id} --location=… --job_id={job_id} 'SELECT 1'"
        looked = ", ".join(self._jobs) or "no project, see above"
        return f"no finished job with such an ID as BqTail gives was found in {looked}: submit one, `{command}`"

    def _clean(self, store: TaskStore, home: str) -> Check:
        """Remove what this trial has left, and those before it that were killed."""
        try:
            now, objects = store.listing()
            old = [
                (each.name, each.generation)
                for each in objects
                if each.name.startswith(f"{self._id}/") or now - each.created > _ABANDONED
            ]
            # What was delivered a moment ago cannot be deleted before its second is over.
            youngest = min((now - each.created for each in objects), default=_ABANDONED)
            time.sleep(min(max(SAME_NAME_S - youngest.total_seconds(), 0.0), SAME_NAME_S))
            results = [
                result
                for start in range(0, len(old), BATCH_SIZE)
                for result in store.delete(old[start : start + BATCH_SIZE])
            ]
        except STORAGE_ERRORS as error:
            said = f"cannot be emptied ({in_words(error)}): remove {home}/{self._id} by hand"
            return Check("clean-up", home, Verdict.FAILED, said)
        kept = [result for result in results if not result.ok and result.status != 404]
        if kept:
            said = f"{counted(len(kept), 'object')} could not be deleted ({kept[0]}): remove {home}/{self._id} by hand"
            return Check("clean-up", home, Verdict.FAILED, said)
        return Check("clean-up", home, Verdict.OK, f"removed {counted(len(results), 'object')}")


def _bind(role: str, bucket: str) -> str:
    return f"bind the role {role} (deploy/roles) to the account on gs://{bucket}"


def _doubt(config: DispatchConfig) -> str:
    return "delivered again" if config.on_doubt == "deliver" else "quarantined"


def _as_trace(key: JobKey) -> TraceName | None:
    """The trace of a job, if its ID is one that traces have."""
    try:
        name = TraceName.parse(f"proj:{key.project}:{key.location or ''}/{key.job_id}")
    except ValueError:
        return None
    return name if name.job_id == key.job_id else None


def _located(project: str, traces: Iterable[Trace], jobs: Iterable[JobKey]) -> Check:
    """Whether the jobs of waiting traces are where the traces' names say, for elsewhere they are never found."""
    places: dict[str, set[str]] = {}
    for key in jobs:
        places.setdefault(key.job_id, set()).add((key.location or "").lower())
    astray: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    looked = 0
    for trace in traces:
        region, found = trace.name.region, places.get(trace.name.job_id)
        if region is None or found is None:
            continue
        looked += 1
        if region.lower() not in found:
            pair = region, ", ".join(sorted(found))
            astray[pair] += 1
            example.setdefault(pair, trace.object.name)
    if not astray:
        said = (
            f"the jobs of {looked} waiting traces are where their names say" if looked else "no trace waits for a job"
        )
        return Check("location", project, Verdict.OK, said)
    (region, found_in), number = astray.most_common(1)[0]
    said = (
        f"{number} traces name the location {region!r}, but their jobs are in {found_in!r}, where nobody looks "
        f"({example[region, found_in]!r}): correct the location in BqTail's configuration, and move these traces into "
        f"the folder proj:{project}:{found_in.upper() if len(found_in) == 2 else found_in}/"
    )
    return Check("location", project, Verdict.FAILED, said)
