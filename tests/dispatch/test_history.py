"""The history that runs leave, and how long documents stay in the journal."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from world import World

from bqdispatch_provider.core.history import MAX_PROJECTS, Figures, Hour, NewFigures, RunLabel, span_of
from bqdispatch_provider.core.model import Outcome, Reason
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.cycle.history import HistoryWriter, hour_url

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LABEL = RunLabel("my_dag", "gs://journal/journal/runs/document.json")


def hours(world):
    names = [blob.name for blob in world.client.list_blobs("journal", prefix="journal/history/")]
    found = {}
    for name in names:
        at = datetime.strptime(name.removeprefix("journal/history/"), "%Y-%m-%d/%H.json").replace(tzinfo=UTC)
        found[at] = Hour.from_dict(json.loads(world.client.bucket("journal").blob(name).download_as_bytes()), at)
    return found


def total(world):
    whole = Figures()
    for hour in hours(world).values():
        for figures in hour.spans.values():
            whole.add(figures)
    return whole


def test_a_run_leaves_its_figures(world, clock_stands_still):
    world.traces(3, "query")
    world.trace("load")
    world.trace("load", state="RUNNING")
    world.window()
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=LABEL)
    ((at, hour),) = hours(world).items()
    assert (hour.dags, hour.document) == ({"my_dag"}, LABEL.document_url)
    assert at <= datetime.fromtimestamp(world.control.now(), UTC) < at + timedelta(hours=1)
    figures = total(world)
    assert figures.dispatched == {"sql": 3, "jobs": 1, "windows": 1}
    assert figures.lags.total() == 4
    assert figures.states["Running"] == {"jobs": 1}
    assert figures.projects["p"].dispatched == figures.dispatched
    assert figures.projects["p"].lags == figures.lags


def test_runs_of_one_hour_add_up_in_one_object_and_the_last_look_says_how_things_stand(world):
    world.control.advance(3600 - world.control.now() % 3600)  # so there is an hour before the next document
    for _ in range(3):
        world.trace("load")
        with world.dispatcher() as dispatcher:
            dispatcher.run(0, label=LABEL)
    running = world.trace("load", state="RUNNING")
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=RunLabel("other"))
    assert [hour.dags for hour in hours(world).values()] == [{"my_dag", "other"}]
    assert total(world).dispatched == {"jobs": 3}
    assert total(world).states["Running"] == {"jobs": 1}, running


def test_what_a_run_that_goes_on_has_told_is_not_told_again(world):
    writer, report = HistoryWriter(), Report(started=datetime.now(UTC))
    with world.dispatcher() as dispatcher:
        for number in (1, 3, 3, 7):
            report.counts["p"]["Dispatched"]["LoadJobs"] = number
            writer.write(report, dispatcher.store, dispatcher.config, LABEL)
    assert total(world).dispatched == {"jobs": 7}


def test_each_project_has_the_figures_that_the_sum_has(world):
    """The page shows one project, or all; what is of no project is in the sum alone."""
    config = World.config()
    name = "proj:{}:US/ds.t--{}_00001_query--dispatch".format
    report = Report(started=NOW, waits={each.name: each for each in (wait(name("one", 1)), wait(name("two", 2)))})
    report.waits["one:ds.t_77_1700000000.win"] = wait("one:ds.t_77_1700000000.win")
    report.quarantined[config.async_task_url + name("two", 3)] = "it is odd"
    report.outcomes[Outcome.QUARANTINED] = 1
    for said in (f"{name('one', 1)!r} was not moved: 403", "the jobs of project 'two' cannot be looked up: 403", "odd"):
        report.add_error(said)
    figures = NewFigures().take(report, config)
    numbers = {key: (each.failed, each.quarantined, each.windows_due) for key, each in figures.projects.items()}
    assert numbers == {"one": (1, 0, 1), "two": (1, 1, 0)}
    assert (figures.failed, figures.quarantined, figures.windows_due) == (3, 1, 1)
    assert figures.projects["one"].waiting == {"refused": 2}
    assert figures.waiting == {"refused": 3}


def test_an_error_is_counted_once_whatever_later_looks_tell_of_its_project():
    """Whose it is follows from what waits for it, which comes and goes."""
    new, config, total = NewFigures(), World.config(), Figures()
    report = Report(started=NOW)
    report.add_error("503 backend error")
    for project in ("two", "", "two", "one", ""):
        name = f"proj:{project}:US/ds.t--1_00001_query--dispatch"
        report.waits = {name: Wait(name, Reason.REFUSED, NOW, "503 backend error")} if project else {}
        total.add(new.take(report, config))
    assert total.failed == 1
    assert {each: figures.failed for each, figures in total.projects.items()} == {"two": 1, "one": 0}


def test_projects_in_which_something_happened_have_figures_before_those_that_only_wait():
    figures = Figures(projects={f"p{n}": Figures(waiting=Counter({"job running": 99})) for n in range(MAX_PROJECTS)})
    figures.projects["busy"] = Figures(Counter(sql=1))
    assert "busy" in figures.to_dict()["Projects"]


def test_a_project_of_which_the_last_look_says_nothing_has_nothing_that_waits():
    one, none = Figures(seen=NOW, waiting=Counter(refused=2), windows_due=1), Figures(seen=NOW)
    whole = Figures()
    whole.add(Figures(seen=NOW, projects={"p": one}))
    whole.add(Figures(seen=NOW, projects={"q": none}))
    assert (whole.projects["p"].waiting.total(), whole.projects["p"].windows_due) == (0, 0)


def wait(name):
    return Wait(name, Reason.REFUSED, NOW)


def test_dispatchers_that_write_at_one_time_lose_nothing_of_each_other(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.cycle.history.MAX_TRIES", 100)
    report = Report(started=datetime.now(UTC))
    report.counts["p"]["Dispatched"]["LoadJobs"] = 1
    with world.dispatcher() as dispatcher, ThreadPoolExecutor(4) as threads:
        store, config = dispatcher.store, dispatcher.config
        list(threads.map(lambda _: HistoryWriter().write(report, store, config, LABEL), range(8)))
    assert total(world).dispatched == {"jobs": 8}


def test_a_lost_answer_counts_nothing_twice(world, monkeypatch):
    report = Report(started=datetime.now(UTC))
    report.counts["p"]["Dispatched"]["LoadJobs"] = 1
    world.control.add_fault("storage.objects.insert", "status", status=503, times=1, after=True)
    with world.dispatcher() as dispatcher:
        HistoryWriter().write(report, dispatcher.store, dispatcher.config, LABEL)
    assert total(world).dispatched == {"jobs": 1}


def test_what_cannot_be_written_follows_with_the_next_figures(world):
    writer, report = HistoryWriter(), Report(started=datetime.now(UTC))
    with world.dispatcher() as dispatcher:
        for number, refuses in ((2, True), (5, False)):
            report.counts["p"]["Dispatched"]["LoadJobs"] = number
            if refuses:
                world.control.refuse("storage.objects.create", bucket="journal")
            writer.write(report, dispatcher.store, dispatcher.config, LABEL)
            world.control.allow_all()
    assert total(world).dispatched == {"jobs": 5}


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"Version": 99}', "[" * 10_000])
def test_an_hour_that_cannot_be_read_stays_as_it_is(world, content, caplog):
    world.control.advance(-world.control.now() % 3600 + 60)  # no hour begins meanwhile
    with world.dispatcher() as dispatcher:
        dispatcher.store.now()
        dispatcher.look()
        url = hour_url(dispatcher.config.journal_url, dispatcher.store.now())
        dispatcher.store.write(url, content)
        world.control.advance(2)
        dispatcher.run(0, label=LABEL)
        assert dispatcher.store.read(url, 1_000_000).decode() == content
    assert "The history" in caplog.text


def test_one_cycle_by_hand_leaves_no_history(world):
    """It takes as few requests as can be."""
    world.cycle()
    with world.dispatcher() as dispatcher:
        dispatcher.run(0)
    assert hours(world) == {}


def test_a_week_of_an_hour_each_is_small():
    figures = Figures(waiting={"job running": 1}, projects={f"project-{n}": Figures() for n in range(200)})
    for each in figures.projects.values():
        each.dispatched["jobs"] = 5
    hour = Hour()
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for minute in range(60):
        hour.add(begin + timedelta(minutes=minute), figures, "dag", "document", "ticket")
    assert len(json.dumps(hour.to_dict())) < 50_000
    assert len(hour.to_dict()["Tickets"]) == 10


def test_figures_are_read_as_they_were_written():
    figures = Figures(failed=2, quarantined=1, late=1, seen=datetime(2026, 1, 1, tzinfo=UTC), windows_due=3)
    figures.dispatched["sql"] = 4
    figures.lags.update({0: 1, 17: 2})
    figures.states["Throttled"] = figures.dispatched.copy()
    figures.projects["a:b"] = Figures(failed=1)
    figures.projects["a:b"].dispatched["sql"] = 4
    assert Figures.from_dict(json.loads(json.dumps(figures.to_dict()))) == figures


def test_the_lag_that_a_share_of_the_events_does_not_exceed():
    figures = Figures()
    new = NewFigures()
    report = Report()
    for number in range(100):
        ended = datetime(2026, 1, 1, tzinfo=UTC)
        moved = ended + timedelta(seconds=2 if number < 90 else 50)
        report.jobs[str(number)] = {"EndTime": ended.isoformat(), "DispatchTime": moved.isoformat()}
    figures.add(new.take(report, World.config()))
    assert 1 < figures.lag(0.5) <= 2
    assert 45 < figures.lag(0.95) <= 60
    assert Figures().lag(0.5) is None


def test_a_span_begins_every_five_minutes():
    assert span_of(datetime(2026, 1, 1, 12, 59, 59, 5, tzinfo=UTC)) == datetime(2026, 1, 1, 12, 55, tzinfo=UTC)


def journal(world):
    return [blob.name for blob in world.client.list_blobs("journal", prefix="journal/")]


def seed_days(world, folder, *ages, written=None, name="dag/run.json"):
    """Documents of days that are so old; they were written then, or some days ago."""
    now = world.control.now()
    objects = [
        {
            "name": f"journal/{folder}/{datetime.fromtimestamp(now, UTC) - timedelta(days=age):%Y-%m-%d}/{name}",
            "content": "{}",
            "timeCreated": now - 86_400 * (age if written is None else written),
        }
        for age in ages
    ]
    world.control.seed_objects("journal", objects)
    return [each["name"] for each in objects]


def test_documents_go_when_they_are_older_than_the_configuration_says(world):
    runs, history = seed_days(world, "runs", 0, 29, 31, 400), seed_days(world, "history", 0, 31, name="07.json")
    parts = [seed_days(world, "runs", 31, name=f"dag/run/task~3.{end}")[0] for end in ("json", "underway", "shares")]
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=LABEL)
    assert {*runs[:2], history[0]} == {*journal(world)} & {*runs, *history, *parts}


def test_what_others_keep_below_the_same_names_stays(world):
    """JournalURL may be a bucket that has folders of such names."""
    names = seed_days(world, "runs", 400, name="model.pkl") + seed_days(world, "runs", 400, name="a/b/c/d.json")
    names += seed_days(world, "history", 400, name="part.parquet") + seed_days(world, "history/sales", 400)
    now = world.control.now()
    more = [f"journal/{name}" for name in ("runs/1.json", "runs/0/a/b.json", "runs/", "history/00.json")]
    world.control.seed_objects("journal", [{"name": name, "timeCreated": now - 86_400 * 400} for name in more])
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=LABEL)
    assert {*names, *more} <= {*journal(world)}


def test_a_document_that_was_just_written_stays_however_old_its_run_is(world):
    names = seed_days(world, "runs", 31, 400, written=1)
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=LABEL)
    assert {*names} <= {*journal(world)}


def test_documents_stay_for_ever_where_the_configuration_says_so(world):
    names = seed_days(world, "runs", 400)
    with world.dispatcher(JournalRetentionDays=0) as dispatcher:
        dispatcher.run(0, label=LABEL)
    assert {*names} <= {*journal(world)}


@pytest.mark.parametrize("days", [36_500, 999_999, 10_000_000_000])
def test_documents_stay_however_many_days_the_configuration_says(world, days):
    names = seed_days(world, "runs", 400)
    world.trace()
    with world.dispatcher(JournalRetentionDays=days) as dispatcher:
        assert dispatcher.run(0, label=LABEL).to_dict()["Outcomes"] == {"dispatched": 1}
    assert {*names} <= {*journal(world)}


def test_old_documents_are_looked_for_once_an_hour_whoever_does(world):
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=LABEL)
    names = seed_days(world, "runs", 400)
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=LABEL)
    assert {*names} <= {*journal(world)}
    world.control.advance(3601)
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=LABEL)
    assert not {*names} & {*journal(world)}


def test_a_journal_that_nothing_may_be_deleted_from_costs_a_line_of_the_log(world, caplog):
    seed_days(world, "runs", 400)
    world.control.refuse("storage.objects.delete", bucket="journal")
    with world.dispatcher() as dispatcher:
        assert dispatcher.run(0, label=LABEL).ok
    assert "Old documents below" in caplog.text
