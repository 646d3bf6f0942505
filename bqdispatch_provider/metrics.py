"""Metrics through Airflow's Stats: what was dispatched, what waits, how fast it goes (docs/metrics.md lists them)."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from math import ceil
from typing import Any

from bqdispatch_provider.compat import Stats, conf
from bqdispatch_provider.model import BATCH_JOBS, Lane, Outcome, Reason
from bqdispatch_provider.report import Report

log = logging.getLogger(__name__)

MOST_LAGS = 1000
"""Lags that are sent of one report; of more, as many at even distances, the longest among them."""

_GAUGES = ("Running", "Pending", "Throttled")
_AWKWARD = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST = 60


class Metrics:
    """Sends what reports tell; of a report that grows from cycle to cycle, only what is new.

    Where Airflow's backend carries tags (OpenTelemetry, Datadog, StatsD in Influx's form), connection, project and lane
    are tags. Plain StatsD drops them, so there they are parts of the name.

    :param conn_id: ID of the connection, which tells set-ups apart.
    """

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        self._tagged = any(
            conf.getboolean("metrics", each, fallback=False)
            for each in ("otel_on", "statsd_datadog_enabled", "statsd_influxdb_enabled")
        )
        self._told: Counter[tuple[str, ...]] = Counter()
        self._reasons: set[Reason] = set()
        """For which something has waited: what waits no more is 0."""

        self._lags = 0
        self._balanced: datetime | None = None
        self._time_taken = 0

    def send(self, report: Report) -> None:
        """Send what a report tells that was not sent before; that this fails is a line in the log.

        :param report: a whole one: what was seen, and what became of it.
        """
        try:
            self._send(report)
        except Exception:
            log.warning("Metrics could not be sent", exc_info=True)

    def _send(self, report: Report) -> None:
        if cycles := report.cycles - self._told["cycles",]:
            taken = max(report.time_taken_ms - self._time_taken, 0)  # by a clock that tells seconds
            self._timing("cycle_time", timedelta(milliseconds=taken / cycles))
        self._time_taken = report.time_taken_ms
        self._counters(report)
        if report.started is not None:
            self._gauges(report, report.started)
        if report.balanced is not None and report.balanced != self._balanced:
            self._balanced = report.balanced
            self._gauge("performance_written", report.balanced.timestamp())

    def _counters(self, report: Report) -> None:
        self._incr("cycles", report.cycles)
        self._incr("errors", len(report.errors))
        self._incr("quarantined", report.outcomes[Outcome.QUARANTINED])
        for project, counts in report.counts.items():
            for lane, number in _by_lane(counts.get("Dispatched", {})).items():
                self._incr("dispatched", number, project, lane)
        jobs = list(islice(report.jobs.values(), self._lags, None))
        self._lags = len(report.jobs)
        for lag in _some(sorted(_lags(jobs))):
            self._timing("lag", timedelta(seconds=lag))

    def _gauges(self, report: Report, started: datetime) -> None:
        self._gauge("oldest_trace", (started - report.oldest).total_seconds() if report.oldest else 0.0)
        self._gauge("unknown", report.outcomes[Outcome.UNKNOWN])
        waiting = report.waiting()
        self._reasons |= waiting.keys()
        for reason in sorted(self._reasons):
            self._gauge("waiting", waiting[reason], reason=str(reason))
        # A gauge keeps its last value: of a project, that is 0, in the report in which its last trace goes.
        for project in sorted({*report.traces, *report.counts}):
            self._gauge("not_found", report.not_found[project], project)
            for gauge in _GAUGES:
                numbers = _by_lane(report.counts.get(project, {}).get(gauge, {}))
                for lane in Lane:
                    if lane is not Lane.WINDOWS or gauge != "Running":
                        self._gauge(gauge.lower(), numbers[lane], project, lane)

    def _incr(self, what: str, total: int, *labels: str) -> None:
        new = total - self._told[what, *labels]
        self._told[what, *labels] = total
        if new > 0:
            Stats.incr(self._name(what, labels), new, **self._tags(labels))

    def _gauge(self, what: str, value: float, *labels: str, reason: str = "") -> None:
        tags = self._tags(labels)
        if reason and self._tagged:
            tags["tags"]["reason"] = _label(reason)
        elif reason:
            labels = (*labels, reason)
        Stats.gauge(self._name(what, labels), value, **tags)

    def _timing(self, what: str, time: timedelta) -> None:
        Stats.timing(self._name(what, ()), time, **self._tags(()))

    def _name(self, what: str, labels: tuple[str, ...]) -> str:
        if self._tagged:
            return f"bqdispatch.{what}"
        return ".".join(["bqdispatch", _label(self._conn_id), what, *map(_label, labels)])

    def _tags(self, labels: tuple[str, ...]) -> dict[str, Any]:
        if not self._tagged:
            return {}
        named = dict(zip(("project", "lane"), labels, strict=False))
        return {"tags": {"connection": _label(self._conn_id), **{tag: _label(each) for tag, each in named.items()}}}


def _label(text: str) -> str:
    """A project, or a connection's ID, as any backend takes it: untrusted text."""
    label = _AWKWARD.sub("_", text)
    if len(label) <= _LONGEST:
        return label
    return f"{label[: _LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _by_lane(counters: Any) -> Counter[Lane]:
    """Numbers per lane, from those of the response document's counters."""
    lanes = {"QueryJobs": Lane.SQL, BATCH_JOBS: Lane.WINDOWS}
    numbers: Counter[Lane] = Counter()
    for counter, number in counters.items():
        numbers[lanes.get(counter, Lane.JOBS)] += number
    return numbers


def _lags(jobs: list[dict[str, str]]) -> Iterator[float]:
    """Seconds from a job's end until its trace was known to be dispatched; both clocks are Google's."""
    for job in jobs:
        if "EndTime" in job and "DispatchTime" in job:
            lag = datetime.fromisoformat(job["DispatchTime"]) - datetime.fromisoformat(job["EndTime"])
            yield max(lag.total_seconds(), 0.0)


def _some(lags: list[float]) -> list[float]:
    step = max(ceil(len(lags) / MOST_LAGS), 1)
    return lags[::-1][::step]
