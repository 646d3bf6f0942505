"""Sends a report each half second through Airflow's Stats, as a dispatcher does, with every metric of docs/metrics.md.

Run as a process of its own, with the environment of a StatsD server. It goes on until it is ended.
"""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from airflow_stats import use_statsd

from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.report import Report

CONNECTION, SHOP, DATA = "bqdispatch_default", "acme-shop", "acme-data"
RUNNING, PENDING, THROTTLED, NOT_FOUND, UNKNOWN, OLDEST_S = 2, 1, 7, 4, 5, 90


def report_after(cycles):
    """Return a report in which something of every kind has happened in each cycle."""
    started = datetime.now(UTC)
    ended = started - timedelta(seconds=3)
    dispatched = dict.fromkeys(("QueryJobs", "LoadJobs", "BatchJobs"), cycles)
    shop = {"Running": {"QueryJobs": RUNNING}, "Pending": {"QueryJobs": PENDING}, "Throttled": {"QueryJobs": THROTTLED}}
    data = {gauge: {} for gauge in (*shop, "Dispatched")}
    document = {
        "Started": started.isoformat(),
        "Seen": started.isoformat(),
        "Oldest": (started - timedelta(seconds=OLDEST_S)).isoformat(),
        "Cycles": cycles,
        "TimeTakenMs": 1500 * cycles,
        "Listed": 0,
        "GetCount": 0,
        "ListTime": 0,
        "Errors": [f"error {number}" for number in range(cycles)],
        "Outcomes": {"quarantined": cycles, "unknown": UNKNOWN},
        "Jobs": {
            str(number): {"EndTime": ended.isoformat(), "DispatchTime": started.isoformat()} for number in range(cycles)
        },
        "Batched": {},
        "Quarantined": {},
        "Unknown": {},
        "WaitingCount": dict.fromkeys(map(str, Reason), 1),
        "Performance": {
            SHOP: {"Region": "EU", "Count": 1, "NoFound": 0, **shop, "Dispatched": dispatched},
            DATA: {"Region": "EU", "Count": 1, "NoFound": NOT_FOUND, **data},
        },
    }
    return replace(Report.from_dict(document), performance_written=started)


def main():
    """Send the same numbers again and again; only counters grow."""
    from bqdispatch_provider.compat import Stats  # the tests that read the numbers have no Airflow of their own
    from bqdispatch_provider.metrics import Metrics

    with pytest.MonkeyPatch.context() as patch:
        use_statsd(patch, Stats)
        metrics, cycles = Metrics(CONNECTION), 0
        while True:
            cycles += 1
            metrics.send(report_after(cycles))
            time.sleep(0.5)


if __name__ == "__main__":
    main()
