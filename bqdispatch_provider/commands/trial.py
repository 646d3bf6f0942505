"""The trial of ``bqdispatch smoke``: a trace and a window of its own, dispatched, seen to arrive, and removed.

It is harmless. Both events lie in a folder inside the task folder that dispatchers take for bookkeeping. They are
delivered into that folder too: in the trigger bucket, any object is an event to BqTail, and the account could not
delete it there. No job is submitted: the trace is of a finished job of BigQuery.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import timedelta

import requests
from google.cloud.storage import Client

from bqdispatch_provider.commands.checks import Check, CheckResult
from bqdispatch_provider.commands.job_checks import trace_name_of
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.model import JobKey
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.gcp.rate_limit import SAME_NAME_S
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.gcp.storage_calls import split_folder_url
from bqdispatch_provider.names import WindowName, counted, in_words, shell_joined

log = logging.getLogger(__name__)

FOLDER = "bqdispatch-smoke"
"""The folder in the task folder where all trials lie."""

PATIENCE_S = 60.0
"""Time that the trial waits for its events. A dispatcher leaves an object alone until it is 3 s old."""

_MAX_TRIAL_AGE = timedelta(hours=1)
"""Objects of another trial are removed once they are older: it was killed."""


class _TrialConfig(DispatchConfig):
    """A configuration whose trigger bucket is the task bucket, which the usual one refuses."""

    def for_project(self, _: str | None) -> _TrialConfig:
        return self


class Trial:
    """The trial of one set-up.

    :param config: of the set-up, with its project filled in.
    :param client: a ``google.cloud.storage.Client``.
    :param session: a ``requests.Session`` with credentials for BigQuery.
    :param trial_id: hexadecimal digits that no other trial has.
    :param finished: a finished job of each project whose ID has BqTail's form, if it has one.
    :param location: location in which a job may be submitted, if there is no finished one.
    :param go_on: asked while the trial waits for its events.
    """

    def __init__(
        self,
        config: DispatchConfig,
        client: Client,
        session: requests.Session,
        trial_id: str,
        finished: Mapping[str, JobKey | None],
        *,
        location: str,
        go_on: Callable[[], bool],
    ) -> None:
        self._config, self._client, self._session = config, client, session
        self._id, self._finished, self._location, self._go_on = trial_id, finished, location, go_on
        self._trials = f"{config.async_task_url}{FOLDER}"
        self._home = f"{self._trials}/{trial_id}"

    def checks(self) -> Iterator[Check]:
        """Dispatch both events, and yield whether each arrived. However this ends, all objects are removed."""
        with closing(TaskStore(self._client, self._trials, self._config.trigger_bucket or "")) as store:
            cleaned: Check | None = None
            try:
                yield from self._events()
                cleaned = self._clean_up(store)
            finally:
                if cleaned is None:
                    log.warning("Clean-up of the trial: %s", self._clean_up(store).finding)
            yield cleaned

    def _events(self) -> Iterator[Check]:
        """Put a trace and a window into a task folder of their own, dispatch them, and see both arrive."""
        where, arrived = f"{self._home}/tasks", set[str]()
        with Dispatcher(self._trial_config(), self._client, self._session, go_on=self._go_on) as dispatcher:
            store = dispatcher.store
            window = WindowName("bqdispatch_smoke.window", str(int(self._id, 16)), store.now() - timedelta(minutes=1))
            names = {"window": window.name}
            job = next((key for key in self._finished.values() if key is not None), None)
            trace = None if job is None else trace_name_of(job)
            if trace is None:
                yield self._without_job()
            else:
                names["trace"] = trace.name
            try:
                for name in names.values():
                    store.write_json(store.task_url(name), {"bqdispatch": "smoke"}, replaces=0)
                result = self._dispatch(dispatcher, set(names.values()))
                for folder in ("_batch_", "_bqjob_"):
                    urls = store.list_urls(f"{self._home}/{folder}")
                    arrived |= {url.rpartition("/")[2].removesuffix(".json") for url in urls}
            except GOOGLE_ERRORS as error:
                arrived, result = set(), in_words(error)
        for kind, name in names.items():
            if name.rpartition("/")[2] in arrived:
                of = f" of job {job.job_id!r} in {job.location}" if kind == "trace" and job else ""
                yield Check(f"a {kind}", where, CheckResult.OK, f"arrived{of}")
            else:
                finding = f"has not arrived ({result}): `bqdispatch run --once -v` logs what is in its way"
                yield Check(f"a {kind}", where, CheckResult.FAILED, finding)

    def _trial_config(self) -> DispatchConfig:
        bucket, path = split_folder_url(self._home)
        return _TrialConfig(
            **vars(self._config)
            | {
                "async_task_url": f"{self._home}/tasks/",
                "journal_url": f"{self._home}/journal/",
                "error_url": f"{self._home}/errors/",
                "trigger_bucket": bucket,
                "post_job_prefix": f"/{path}_bqjob_/",
                "batch_prefix": f"/{path}_batch_/",
                "max_concurrent_sql": 0,
                "max_concurrent_jobs": 0,
                "max_unknown_job_min": 0,
            }
        )

    def _dispatch(self, dispatcher: Dispatcher, left: set[str]) -> str:
        """Run cycles until the events are dispatched.

        :param left: names of the events.
        :returns: the result of the last cycle.
        """
        deadline = time.monotonic() + PATIENCE_S
        result = "no cycle was run"
        while left and self._go_on() and time.monotonic() < deadline:
            report = dispatcher.cycle()
            folder = dispatcher.store.task_url("")
            left -= {url.removeprefix(folder) for url in (*report.jobs, *report.batched)}
            result = "; ".join(report.errors) or report.in_words()
            if left:
                time.sleep(1)
        return result

    def _without_job(self) -> Check:
        """Return the check of a trace where no job is known that it could be of, as in a project that is new."""
        if not self._finished:
            finding = "a trace needs a finished job, and no project's jobs can be listed: see above"
            return Check("a trace", self._home, CheckResult.NOT_CHECKED, finding)
        job_id = f"bqdispatch_smoke--{int(self._id, 16)}_00001_query--dispatch"
        where = (f"--project_id={self._config.project_id}", f"--location={self._location}")
        command = shell_joined(["bq", "query", *where, f"--job_id={job_id}", "SELECT 1"])
        finding = (
            f"no finished job whose ID has BqTail's form found in {', '.join(self._finished)}; to try a trace too, "
            "submit one"
        )
        return Check("a trace", self._home, CheckResult.WARNING, finding, command)

    def _clean_up(self, store: TaskStore) -> Check:
        """Remove the objects of this trial, and of earlier ones that were killed."""
        by_hand = f"remove {self._home} by hand"
        try:
            now, objects = store.listing()
            old = [
                (each.name, each.generation)
                for each in objects
                if each.name.startswith(f"{self._id}/") or now - each.created > _MAX_TRIAL_AGE
            ]
            # A name can be changed once a second, and something may have been delivered a moment ago.
            youngest = min((now - each.created for each in objects), default=_MAX_TRIAL_AGE)
            time.sleep(min(max(SAME_NAME_S - youngest.total_seconds(), 0.0), SAME_NAME_S))
            results = store.delete(old)
        except GOOGLE_ERRORS as error:
            return Check("clean-up", self._trials, CheckResult.FAILED, f"failed ({in_words(error)}): {by_hand}")
        kept = [result for result in results if not result.ok and result.status != 404]
        if kept:
            finding = f"{counted(len(kept), 'object')} could not be deleted ({kept[0]}): {by_hand}"
            return Check("clean-up", self._trials, CheckResult.FAILED, finding)
        return Check("clean-up", self._trials, CheckResult.OK, f"removed {counted(len(results), 'object')}")
