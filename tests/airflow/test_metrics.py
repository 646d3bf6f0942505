"""What reaches a StatsD server, and that docs/metrics.md lists it."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from airflow_stats import use_statsd
from statsd_listener import StatsdListener

from bqdispatch_provider import metrics
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.metrics import Metrics

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|timer) \| ([\w, ]*) ?\|", re.MULTILINE)
KINDS = {"c": "counter", "g": "gauge", "ms": "timer"}
CONNECTION = "airflow.bqdispatch.bqdispatch_default."


@pytest.fixture
def statsd(monkeypatch):
    """A StatsD server, and Airflow's Stats as a task has it that runs beside one."""
    from bqdispatch_provider.compat import Stats

    listener = StatsdListener()
    for name, value in listener.environment.items():
        monkeypatch.setenv(name, value)
    use_statsd(monkeypatch, Stats)
    yield listener
    listener.close()


def listed():
    return {
        name: (kind, [part.strip() for part in by.split(",") if part.strip()])
        for name, kind, by in ROW.findall(DOCUMENT)
    }


def values(sent):
    return {name.removeprefix(CONNECTION): value for name, value, _ in sent}


def test_all_that_is_sent_is_listed_and_all_that_is_listed_is_sent(world, run, statsd):
    for action in ("load", "query"):
        world.trace(action)
        world.trace(action, state="RUNNING")
        world.trace(action, state="PENDING")
    oldest = world.control.now() - 120
    world.trace(state="RUNNING", age=120)
    world.window()
    world.trace(state=None)
    run("bqdispatch", "bqdispatch.py")
    sent = statsd.ours()
    found = {}
    for name, _, kind in sent:
        assert name.startswith(CONNECTION)
        metric, *labels = name.removeprefix(CONNECTION).split(".")
        kinds_of_labels = ["reason"] if metric == "waiting" else ["project", "lane"]
        found.setdefault(metric, (KINDS[kind], kinds_of_labels[: len(labels)]))
    # Counters that are 0 are not sent.
    assert found.keys() | {"errors", "quarantined"} == listed().keys()
    assert found.items() <= listed().items()
    said = values(sent)
    assert said["dispatched.p.sql"] == said["dispatched.p.jobs"] == said["dispatched.p.windows"] == 1
    assert said["running.p.sql"] == said["pending.p.sql"] == 1
    assert (said["running.p.jobs"], said["waiting.job_running"] >= 1) == (2, True)
    assert (said["not_found.p"], said["cycles"], said["throttled.p.jobs"]) == (1, 1, 0)
    assert 115 < said["oldest_event"] <= world.control.now() - oldest
    assert len([name for name, _, _ in sent if name.endswith(".lag")]) == 2


def test_what_a_limit_holds_back_and_what_goes_wrong_is_counted(world, connect, run, statsd):
    connect(MaxConcurrentJobs=2)
    world.traces(3)
    window = world.window(content='{"ProjectID": "q"}')
    run("bqdispatch", "bqdispatch.py")
    assert values(statsd.ours())["throttled.p.jobs"] == 1
    world.delete(window)
    world.put(window)
    world.control.add_fault("storage.objects.insert", "status", status=403, name="*performance.json")
    run("bqdispatch", "bqdispatch.py")
    said = values(statsd.ours())
    assert (said["quarantined"], said["errors"]) == (1, 1)
    assert "performance_written" not in said


@pytest.mark.parametrize("dag", ["alone", "alone_deferred"])
def test_a_dispatcher_alone_counts_what_it_does_wherever_it_runs(world, run, statsd, dag):
    world.traces(3)
    run(dag)
    sent = statsd.ours()
    assert (values(sent)["dispatched.p.jobs"], values(sent)["cycles"]) == (3, 1)
    assert len([name for name, _, _ in sent if name.endswith(".lag")]) == 3


def test_a_gauge_is_0_in_the_report_in_which_the_last_trace_goes(world, run, statsd):
    name = world.trace(state="RUNNING", age=120)
    run("alone")
    said = values(statsd.ours())
    assert (said["running.p.jobs"], said["waiting.job_running"]) == (1, 1)
    world.control.advance(10)
    world.delete(name)
    world.trace()
    run("alone")
    said = values(statsd.ours())
    assert (said["running.p.jobs"], said["oldest_event"], said["dispatched.p.jobs"]) == (0, 0, 1)
    assert said["waiting.job_running"] == 0


def test_a_report_that_grows_is_told_once(statsd):
    sending, report = Metrics("bqdispatch_default"), Report(cycles=1)
    job = {"EndTime": "2024-01-01T00:00:00.000+00:00", "DispatchTime": "2024-01-01T00:00:03.000+00:00"}
    report.jobs["a"] = dict(job)
    sending.send(report)
    assert [each for each in statsd.ours() if each[0].endswith(("cycles", "lag"))] == [
        (f"{CONNECTION}cycles", 1, "c"),
        (f"{CONNECTION}lag", 3000, "ms"),
    ]
    report.cycles, report.jobs["b"] = 3, {**job, "DispatchTime": "2024-01-01T00:00:04.000+00:00"}
    sending.send(report)
    assert [value for name, value, _ in statsd.ours() if name.endswith(("cycles", "lag"))] == [2, 4000]
    sending.send(report)
    assert [name for name, _, _ in statsd.ours() if name.endswith(("cycles", "lag", "cycle_time"))] == []


def test_the_age_of_the_oldest_event_counts_until_the_last_look(statsd):
    began = datetime(2024, 1, 1, tzinfo=UTC)
    report = Report(cycles=1, started=began, seen=began, oldest=began - timedelta(hours=1))
    later = began + timedelta(minutes=30)
    report.add_cycle(Report(cycles=1, started=later, seen=later, oldest=later - timedelta(minutes=1)))
    Metrics("bqdispatch_default").send(report)
    assert values(statsd.ours())["oldest_event"] == 60


def test_of_many_lags_some_are_sent_the_longest_among_them(statsd, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_LAGS", 10)
    report = Report(cycles=1)
    for minute in range(35):
        report.jobs[str(minute)] = {
            "EndTime": "2024-01-01T00:00:00.000+00:00",
            "DispatchTime": f"2024-01-01T00:{minute:02}:00.000+00:00",
        }
    Metrics("c").send(report)
    lags = [value for name, value, _ in statsd.ours() if name.endswith(".lag")]
    assert (max(lags), len(lags)) == (34 * 60_000, 9)


def test_untrusted_names_are_legal(statsd):
    report = Report(cycles=1, seen=metrics.datetime.fromisoformat("2024-01-01T00:00:00+00:00"))
    for project in ("example.com:legacy", "a|b:1|c\nairflow.x:1|c", "ц" * 3, "p" * 500):
        report.traces[project] = 1
    Metrics("my conn").send(report)
    names = {name for name, _, _ in statsd.ours()}
    assert "airflow.bqdispatch.my_conn.running.example_com_legacy.sql" in names
    assert all(re.fullmatch(r"airflow(\.[\w-]{1,60}){3,5}", name, re.ASCII) for name in names)


def test_where_tags_are_carried_they_hold_what_else_stands_in_the_name(monkeypatch):
    from bqdispatch_provider.compat import Stats

    monkeypatch.setenv("AIRFLOW__METRICS__OTEL_ON", "True")
    sent = {}
    monkeypatch.setattr(Stats, "incr", lambda name, count, tags: sent.setdefault(name, (count, tags)), raising=False)
    for call in ("gauge", "timing"):
        monkeypatch.setattr(Stats, call, lambda *_, **__: None, raising=False)
    report = Report(cycles=1)
    report.count("acme-shop", "Dispatched", "QueryJobs")
    Metrics("bqdispatch_default").send(report)
    tags = {"connection": "bqdispatch_default", "project": "acme-shop", "lane": "sql"}
    assert sent["bqdispatch.dispatched"] == (1, tags)
