"""What a log tells: one line for each event, what waits and why, and only what has changed."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.events import Event
from bqdispatch_provider.core.log_lines import ChangeLogger, event_line, summary_line, throttle_lines
from bqdispatch_provider.core.model import Outcome
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.names import TraceName, WindowName

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
CONFIG = DispatchConfig.from_dict(
    {
        "ProjectID": "p",
        "AsyncTaskURL": "gs://ops/t",
        "JournalURL": "gs://ops/j",
        "ErrorURL": "gs://ops/e",
        "MaxConcurrentJobs": 3,
    }
)


def event(name, **more):
    return Event(name, 1, NOW, **more)


def test_a_trace_tells_of_its_job_and_where_it_went():
    trace = TraceName("p", "US", "acme:sales.orders", "17", 1, "load")
    told = event_line(event(trace.name, ended=NOW - timedelta(seconds=2.3)), "gs://t/_bqjob_/x.json", NOW)
    assert told == (
        "load of acme:sales.orders (job acme_sales_orders--17_00001_load--dispatch in US) done 2 s ago: "
        "dispatched to gs://t/_bqjob_/x.json"
    )


def test_a_failed_job_tells_why():
    trace = TraceName("p", None, "ds.t", "17", 1, "query")
    told = event_line(event(trace.name, location="EU", ended=NOW, error="invalidQuery"), "gs://t/x", NOW)
    assert "in EU) failed (invalidQuery) 0 s ago: dispatched" in told


def test_a_job_whose_end_is_not_known_is_told_all_the_same():
    assert event_line(event(TraceName(None, None, "ds.t", "17", 1, "copy").name), "gs://t/x", NOW) == (
        "copy of ds.t (job ds_t--17_00001_copy--dispatch): dispatched to gs://t/x"
    )


@pytest.mark.parametrize(
    ("ago", "told"), [(12, "12 s"), (3600, "60 minutes"), (7200, "2 hours"), (86_189_820, "998 days"), (-5, "0 s")]
)
def test_a_window_tells_for_how_long_it_was_due(ago, told):
    window = WindowName("ds.t", "77", NOW - timedelta(seconds=ago))
    assert event_line(event(window.name), "gs://t/x", NOW) == f"batch of ds.t due for {told}: fired to gs://t/x"


def test_a_look_tells_of_others_only_where_there_are_some():
    assert summary_line(Report(listed=1), 1) == "1 object in the task folder: 1 to dispatch"
    report = Report(listed=3)
    assert summary_line(report, 3) == "3 objects in the task folder: 3 to dispatch"
    report.outcomes[Outcome.PENDING] = 2
    assert summary_line(report, 1) == "3 objects in the task folder: 1 to dispatch, 2 pending"


def test_a_name_stays_in_its_line():
    trace = TraceName("p", "US", "ds.t\n2026 ERROR all is lost\x1b[2J", "17", 1, "load")
    told = event_line(event(trace.name), f"gs://t/{trace.name}", NOW)
    assert told.isprintable()


def test_a_project_at_its_limit_tells_what_takes_the_places():
    report = Report()
    report.counts["p"]["Throttled"].update(LoadJobs=5, BatchJobs=2)
    report.counts["p"]["Running"].update(LoadJobs=3)
    report.counts["q"]["Running"].update(LoadJobs=1)
    assert list(throttle_lines(report, CONFIG)) == [
        "project p has reached MaxConcurrentJobs (3): 2 BatchJobs and 5 LoadJobs waiting, 3 LoadJobs running"
    ]


def test_each_limit_is_told_with_what_it_counts():
    report = Report()
    config = replace(CONFIG, max_concurrent_sql=2)
    report.counts["p"]["Throttled"].update(LoadJobs=5, QueryJobs=1)
    report.counts["p"]["Running"].update(LoadJobs=3, QueryJobs=1)
    report.counts["p"]["Dispatched"].update(QueryJobs=1, CopyJobs=0)
    assert list(throttle_lines(report, config)) == [
        "project p has reached MaxConcurrentSQL (2): 1 QueryJobs waiting, 1 QueryJobs running, 1 QueryJobs just "
        "dispatched",
        "project p has reached MaxConcurrentJobs (3): 5 LoadJobs waiting, 3 LoadJobs running",
    ]


def test_windows_that_are_not_due_take_no_slot():
    report = Report()
    report.counts["p"]["Throttled"].update(LoadJobs=2)
    report.counts["p"]["Running"].update(LoadJobs=3)
    report.counts["p"]["Pending"].update(BatchJobs=20)
    assert list(throttle_lines(report, CONFIG)) == [
        "project p has reached MaxConcurrentJobs (3): 2 LoadJobs waiting, 3 LoadJobs running"
    ]


@pytest.mark.parametrize(
    ("number", "said"), [(11, "1 more project has reached a limit"), (30, "20 more projects have reached a limit")]
)
def test_of_many_projects_at_a_limit_the_number_is_told(number, said):
    report = Report()
    for each in range(number):
        report.counts[f"p{each}"]["Throttled"].update(LoadJobs=1)
    told = list(throttle_lines(report, CONFIG))
    assert (len(told), told[-1]) == (11, said)


def test_what_has_not_changed_is_not_told_again(caplog):
    caplog.set_level(logging.INFO)
    change_logger = ChangeLogger(logging.getLogger("test"))
    for lines in (["one"], ["one"], ["one", "two"], ["one"]):
        change_logger.log_if_changed(lines)
    assert [record.message for record in caplog.records] == ["one", "one", "two", "one"]
