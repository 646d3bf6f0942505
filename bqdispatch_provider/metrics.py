"""Metrics of a dispatcher, sent through Airflow's Stats. docs/metrics.md lists them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from datetime import datetime, timedelta
from itertools import islice
from math import ceil
from typing import Any

from bqdispatch_provider.compat import Stats, conf
from bqdispatch_provider.core.model import Lane, Outcome, Reason
from bqdispatch_provider.core.report import Report, by_lane, lags

log = logging.getLogger(__name__)

MAX_LAGS = 1000
"""Lags sent for one report. If there are more, this is a sample at even distances, with the longest lag."""

_GAUGES = ("Running", "Pending", "Throttled")
_UNSAFE_CHARS = re.compile(r"[^A-Za-z0-9_-]")
_MAX_LABEL_CHARS = 60


class Metrics:
    """Sender of a report's metrics. If a report grows from cycle to cycle, only what is new is sent.

    Connection, project and lane are tags if Airflow's backend has tags (OpenTelemetry, Datadog, StatsD in Influx's
    form). Plain StatsD has none, so there they are parts of the name.

    :param conn_id: ID of the connection, which distinguishes set-ups.
    """

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        self._tagged = any(
            conf.getboolean("metrics", each, fallback=False)
            for each in ("otel_on", "statsd_datadog_enabled", "statsd_influxdb_enabled")
        )
        self._sent: Counter[tuple[str, ...]] = Counter()
        self._lags = 0
        self._balanced: datetime | None = None
        self._time_taken_ms = 0

    def send(self, report: Report) -> None:
        """Send what is new in a report. A failure is logged, and never raised.

        :param report: a whole report, of observations and outcomes.
        """
        try:
            self._send(report)
        except Exception:
            log.warning("Could not send metrics", exc_info=True)

    def _send(self, report: Report) -> None:
        if cycles := report.cycles - self._sent["cycles",]:
            taken_ms = max(report.time_taken_ms - self._time_taken_ms, 0)  # the clock has whole seconds
            self._timing("cycle_time", timedelta(milliseconds=taken_ms / cycles))
        self._time_taken_ms = report.time_taken_ms
        self._counters(report)
        if (seen := report.seen) is not None:
            self._gauges(report, seen)
        if report.performance_written is not None and report.performance_written != self._balanced:
            self._balanced = report.performance_written
            self._gauge("performance_written", report.performance_written.timestamp())

    def _counters(self, report: Report) -> None:
        self._incr("cycles", report.cycles)
        self._incr("errors", len(report.errors))
        self._incr("quarantined", report.outcomes[Outcome.QUARANTINED])
        for project, counts in report.counts.items():
            for lane, number in by_lane(counts.get("Dispatched", {})).items():
                self._incr("dispatched", number, project, lane)
        new = sorted(lags(islice(report.jobs.values(), self._lags, None)))
        self._lags = len(report.jobs)
        for lag in _sample(new):
            self._timing("lag", timedelta(seconds=lag))

    def _gauges(self, report: Report, seen: datetime) -> None:
        self._gauge("oldest_event", (seen - report.oldest).total_seconds() if report.oldest else 0.0)
        self._gauge("unknown", report.outcomes[Outcome.UNKNOWN])
        waiting = report.waits_by_reason()
        # A gauge keeps its value, also that of an earlier process: a reason for which nothing waits is set to 0.
        for reason in Reason:
            self._gauge("waiting", waiting[reason], reason=str(reason))
        # A gauge keeps its last value, so a project whose last trace has gone is set to 0.
        for project in sorted({*report.traces, *report.counts}):
            self._gauge("not_found", report.not_found[project], project)
            for gauge in _GAUGES:
                numbers = by_lane(report.counts.get(project, {}).get(gauge, {}))
                for lane in Lane:
                    if lane is not Lane.WINDOWS or gauge != "Running":
                        self._gauge(gauge.lower(), numbers[lane], project, lane)

    def _incr(self, what: str, total: int, *labels: str) -> None:
        new = total - self._sent[what, *labels]
        self._sent[what, *labels] = total
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
    """Return a project or a connection's ID, which is untrusted text, as a label that every backend accepts."""
    label = _UNSAFE_CHARS.sub("_", text)
    if len(label) <= _MAX_LABEL_CHARS:
        return label
    return f"{label[: _MAX_LABEL_CHARS - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _sample(lags: list[float]) -> list[float]:
    step = max(ceil(len(lags) / MAX_LAGS), 1)
    return lags[::-1][::step]
