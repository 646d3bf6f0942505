"""Chains: a load job, the jobs after it, and the actions at its end."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime

from google.api_core.exceptions import NotFound

from bqdispatch_provider.testing.bqtail.actions import load_action, trace_of
from bqdispatch_provider.testing.bqtail.bigquery import BigQuery
from bqdispatch_provider.testing.bqtail.bodies import KINDS, Document, Process, TraceBody
from bqdispatch_provider.testing.bqtail.buckets import Buckets, split_url
from bqdispatch_provider.testing.bqtail.calls import RETRY
from bqdispatch_provider.testing.bqtail.ledger import Ledger
from bqdispatch_provider.testing.bqtail.settings import BqTailSettings

TRACE_LABEL = "bqtail-trace"
"""Label of jobs with a trace, the only ones that count for limits (docs/protocol.md, "Configuration document")."""

RETRIED_REASONS = ("backendError", "internalError")
"""Errors of a load job after which BqTail loads the same files again, in the chain of another event."""


class Chains:
    """The chains of a BqTail.

    :param settings: settings of the BqTail.
    :param buckets: its buckets.
    :param bigquery: its client of BigQuery.
    :param ledger: its ledger.
    """

    def __init__(self, settings: BqTailSettings, buckets: Buckets, bigquery: BigQuery, ledger: Ledger) -> None:
        self.settings = settings
        self._buckets = buckets
        self._bigquery = bigquery
        self._ledger = ledger
        self.corrupt: set[str] = set()
        """URIs of the data files that BigQuery cannot load."""

    def process(self, event_id: str, dest: str, source: str, time: datetime) -> Process:
        """Return the part that all bodies of an event have in common.

        :param event_id: ID of the event.
        :param dest: destination table.
        :param source: URI of its data file.
        :param time: time of the file's last update.
        """
        rule_url = f"{self._buckets.rules_url}/{dest}.json"
        project = self._project(dest, event_id)
        return Process(event_id, dest, source, time, project, self._buckets.journal_url, rule_url)

    def start(self, process: Process, sources: Sequence[str], locations: Sequence[str] = ()) -> None:
        """Submit the load job that starts a chain.

        :param process: the event that starts it.
        :param sources: URIs of the files to load.
        :param locations: URLs of the ``.loc`` objects that name the files' folders.
        """
        rule = self.settings.rule(process.dest)
        self._submit(load_action(process, rule, self.settings.steps(rule), sources, locations))

    def resume(self, trace: TraceBody, object_name: str) -> bool:
        """Run the actions after a job.

        :param trace: trace of the job.
        :param object_name: name of the trace in the trigger bucket.
        :returns: ``False`` if the job is not done yet.
        """
        status = self._bigquery.status(trace)
        failure = status.get("errorResult")
        if not status:
            self._ledger.dropped.append(f"{object_name}: BigQuery knows no job {trace.job_id}")
        elif status.get("state") != "DONE":
            self._ledger.early[object_name] = None
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
        self._ledger.trace_consumed(trace)
        return True

    def _project(self, dest: str, event_id: str) -> str | None:
        """Return the project in the bodies: ``None`` for a transient table in the project of the configuration."""
        rule = self.settings.rule(dest)
        if rule.balancer:
            return random.Random(f"{self.settings.seed}:{event_id}").choice(rule.balancer)
        chain, _, _ = self.settings.steps(rule)
        if rule.transient_project or (rule.transient_dataset and len(chain) > 1):
            return rule.transient_project
        return self.settings.project

    def _recover(self, trace: TraceBody, reason: str | None) -> None:
        """Load again after a failed load job.

        After an error of BigQuery, load all files under another event ID. Otherwise move the corrupt files away and
        load the others. Without corrupt files the chain ends, and the files stay.
        """
        if reason in RETRIED_REASONS:
            self._submit(trace.replay(self._ledger.new_event_id()))
            return
        corrupt = [uri for uri in trace.sources if uri in self.corrupt]
        for uri in corrupt:
            _, name = split_url(uri)
            with suppress(NotFound):
                self._buckets.copy(uri, f"{self._buckets.journal_url}/corrupted/{name}")
                self._buckets.delete([uri])
            self._ledger.moved_away.add(uri)
        left = [uri for uri in trace.sources if uri not in corrupt and self._buckets.exists(uri)]
        if corrupt and left:
            self._submit(trace.reload(left))
        else:
            self._ledger.chain_finished(trace, failed=True)

    def _run_actions(self, trace: TraceBody, actions: Iterable[Document], message: str, failed: bool = False) -> None:
        goes_on = False
        for action in actions:
            what = action["Action"]
            if what in KINDS:
                goes_on |= self._submit(action)
            elif what == "delete":
                self._buckets.delete(action["Request"]["URLs"])
            elif what == "insert":
                self._ledger.row_streamed(trace)
            elif what in ("notify", "call"):
                self._ledger.message_sent(trace, message)
        if not goes_on:
            self._ledger.chain_finished(trace, failed)

    def _submit(self, action: Document) -> bool:
        """Write the trace, then submit its job, so that every job has its trace when it ends ("Timing").

        :returns: ``True`` if the job has a trace, so that the chain goes on after it.
        """
        trace = trace_of(action, self.settings.project, self._location_of(action))
        if trace.is_traced:
            blob = self._buckets.task(trace.name)
            RETRY(blob.upload_from_string)(trace.to_json(), content_type="application/json", retry=None)
            self._ledger.trace_written(trace)
        labels = self._schedule(trace.job_id, trace.is_traced)
        if self.corrupt.intersection(trace.sources):
            labels["standin-error"] = "invalid"
        job = trace.document["Job"]
        job = {**job, "configuration": {**job["configuration"], "labels": labels}}
        # BqTail takes a refused ID for success, so a second delivery of a trace runs the rest of the chain again.
        accepted = self._bigquery.submit(trace.project, job)
        self._ledger.job_submitted(trace, refused=not accepted)
        return trace.is_traced

    def _location_of(self, action: Document) -> str:
        """Return the location of a job: that of its destination table, empty if it has none."""
        kind, rule = KINDS[action["Action"]], self.settings.rule(action["Meta"]["DestTable"])
        if kind == "extract" or (kind == "query" and "Dest" not in action["Request"]):
            return ""
        if kind == "load" and rule.transient_location:
            return rule.transient_location
        return self.settings.location

    def _schedule(self, job_id: str, traced: bool) -> dict[str, str]:
        """Return labels that set schedule and outcome of a job in the stand-in BigQuery; a real one ignores them."""
        settings = self.settings
        chance = random.Random(f"{settings.seed}:{job_id}")
        ranges = {"standin-pending-ms": settings.pending_ms, "standin-running-ms": settings.running_ms}
        labels = {label: str(chance.randint(*limits)) for label, limits in ranges.items() if limits is not None}
        if traced:
            labels[TRACE_LABEL] = "1"
            if chance.random() < settings.failing:
                labels["standin-error"] = settings.failing_by
        return labels
