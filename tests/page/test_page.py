"""The page in Airflow: who may see it, what it says, and what it costs."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client
from shown import state
from waiting import HELD_MS, PATIENCE_S, wait_until
from world import World

from bqdispatch_provider.core.history import Figures, Hour, RunLabel, span_of
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.plans import Quarantine
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.delivery.quarantine import note_of
from bqdispatch_provider.view.journal_reader import JournalReader
from bqdispatch_provider.view.overview import overview

ROUTES = ("/", "/api/setups", "/api/state?setup=bqdispatch_default", "/static/0123/page.css", "/static/0123/page.js")
STATIC = Path(__file__).parents[2] / "bqdispatch_provider" / "page" / "static"


@pytest.fixture
def dispatch(world, connect, known_dags):
    """Lets a run dispatch; Airflow knows its DAG."""

    def run(dag_id="bqdispatch", setup="default", **more):
        known_dags(dag_id)
        connect(setup, **more)
        with world.dispatcher(**more) as dispatcher:
            url = f"gs://journal/journal/runs/{dag_id}.json"
            report = dispatcher.run(0, label=RunLabel(dag_id, url))
            dispatcher.store.write_json(url, report.to_dict())
        return report

    return run


@pytest.mark.parametrize("path", ROUTES)
def test_nobody_sees_anything_without_a_login(client, path):
    someone = client()
    del someone.headers["Authorization"]
    assert someone.get(path).status_code == 401


@pytest.mark.parametrize("path", ROUTES)
def test_nobody_sees_anything_with_a_wrong_token(client, path):
    someone = client()
    someone.headers["Authorization"] += "x"
    assert someone.get(path).status_code in (401, 403)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc"])
def test_there_is_no_list_of_routes(client, path):
    assert client().get(path).status_code == 404


def test_a_browser_is_logged_in_by_airflows_cookie(client, token):
    someone = client()
    del someone.headers["Authorization"]
    someone.cookies.set("_token", token("bqdispatch"))
    assert someone.get("/").status_code == 200


def test_the_page_names_its_files_by_their_content_and_they_are_kept(client):
    page = client().get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    kinds = {".css": "text/css", ".js": "text/javascript"}
    for name, kind in ((file.name, kinds[file.suffix]) for file in STATIC.iterdir() if file.suffix in kinds):
        (path,) = [each.split('"')[0] for each in page.text.split('"static/')[1:] if each.split('"')[0].endswith(name)]
        file = client().get(f"/static/{path}")
        assert file.content == (STATIC / name).read_bytes()
        assert file.headers["Content-Type"].startswith(kind)
        assert "immutable" in file.headers["Cache-Control"]


@pytest.mark.parametrize("path", ["/static/x/page.css", "/static/x/..%2fapp.py", "/static/../app.py"])
def test_no_other_file_is_served(client, path):
    assert client().get(path).status_code == 404


def test_nothing_is_fetched_from_outside():
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text


TEXTS = ("text", "dim", "link", "ok", "warning", "error")
LINES = ("grey", "first", "second", "third", "fourth")


@pytest.mark.parametrize("theme", [":root", ':root[data-theme="dark"]'])
def test_what_is_written_and_drawn_can_be_told_from_its_ground(theme):
    """By the contrasts of WCAG 2.2: 4.5 for text, 3 for lines and bars."""
    css = (STATIC / "page.css").read_text()
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", css.partition(f"{theme} {{")[2].partition("}")[0]))
    backs = [name for name in colours if name.endswith("-back")]
    for name in TEXTS:
        for ground in ("page", "card", "soft", *backs):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in LINES:
        assert contrast(colours[name], colours["card"]) >= 3, name
    assert {*re.findall(r" color: var\(--([a-z-]+)\)", css)} <= {*TEXTS, *LINES, "page", "card"} - {"grey"}


def contrast(one, other):
    """Return the contrast of two colours."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_whoever_may_read_a_dag_of_the_history_sees_its_set_up(world, client, dispatch):
    world.trace("load")
    dispatch("loads")
    (setup,) = client("loads").get("/api/setups").json()["setups"]
    assert (setup["id"], setup["name"], setup["dags"]) == ("bqdispatch_default", "default", ["loads"])
    assert setup["health"]["level"] == "ok"


@pytest.mark.parametrize("dags", [(), ("other",), ("bqdispatch",), ("no_such_dag",)])
def test_whoever_may_read_no_dag_of_the_history_sees_nothing_of_the_set_up(client, dispatch, known_dags, dags):
    dispatch("loads")
    known_dags("other", "bqdispatch")
    assert client(*dags, "-").get("/api/setups").json() == {"setups": []}
    refused = client(*dags, "-").get("/api/state", params={"setup": "bqdispatch_default"})
    unknown = client(*dags, "-").get("/api/state", params={"setup": "bqdispatch_unknown"})
    assert (refused.status_code, refused.json()) == (unknown.status_code, unknown.json())
    assert refused.status_code == 404


def test_nobody_is_told_that_there_is_no_set_up_before_it_is_known_who_may_see_it(
    world, client, dispatch, known_dags, monkeypatch
):
    monkeypatch.setattr("bqdispatch_provider.page.watcher.FIRST_WAIT_S", 0.0)
    dispatch("loads")
    known_dags("other")
    asked = [(path, {"setup": f"bqdispatch_{name}"}) for path in ("setups", "state") for name in ("default", "unknown")]
    world.control.add_fault("storage.objects.*", "slow", ms=HELD_MS)
    try:
        for path, query in asked:
            answers = [client(dag).get(f"/api/{path}", params=query) for dag in ("loads", "other")]
            assert [each.status_code for each in answers] == [503, 503]
            assert len({each.text for each in answers}) == 1
            assert "for the first time" in answers[0].json()["detail"]
    finally:
        world.control.clear_faults()
    wait_until(lambda: client("loads").get("/api/setups").status_code == 200, "the journal has been read")
    assert state(client("loads"))["dags"] == ["loads"]
    wait_until(lambda: client("other").get("/api/setups").json() == {"setups": []}, "the week has been read")
    assert client("other").get("/api/state", params={"setup": "bqdispatch_default"}).status_code == 404


def test_readers_of_a_dag_of_last_week_see_the_set_up_while_it_is_read_again(
    world, client, dispatch, known_dags, monkeypatch
):
    monkeypatch.setattr("bqdispatch_provider.page.watcher.KEPT_S", 0.0)
    dispatch("loads")
    at = datetime.fromtimestamp(world.control.now(), UTC) - timedelta(days=3)
    hour = Hour()
    hour.add(at, Figures(seen=at), "exports")
    url = f"gs://journal/journal/history/{at:%Y-%m-%d/%H}.json"
    with world.dispatcher() as dispatcher:
        dispatcher.store.write_json(url, hour.to_dict())
    dags = ("exports", "loads")
    known_dags(*dags)
    assert client("exports").get("/api/setups").json()["setups"], "the first reading is waited for"
    assert [state(client(*dags))["dags"] for _ in range(20)] == [["exports", "loads"]] * 20


def test_a_dag_that_does_not_exist_grants_nothing_even_if_the_history_names_it(world, client, connect):
    connect()
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=RunLabel("deleted_dag"))
    assert client("deleted_dag").get("/api/setups").json() == {"setups": []}


def test_two_set_ups_are_seen_by_their_own_readers(world, client, dispatch):
    dispatch("loads")
    dispatch("exports", "exports", JournalURL="gs://journal/exports")

    def seen_by(*dags):
        return [each["name"] for each in client(*dags).get("/api/setups").json()["setups"]]

    assert seen_by("loads") == ["default"]
    assert seen_by("exports") == ["exports"]
    assert seen_by("loads", "exports") == ["default", "exports"]


@pytest.fixture
def run_in_pool(dispatch):
    """Lets the last run of a DAG have a task in a pool."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    def run(dag_id, pool):
        with create_session() as session:
            run = {"dag_id": dag_id, "run_id": "r", "run_type": "manual", "run_after": datetime.now(UTC)}
            session.execute(DagRun.__table__.insert().values(**run))
            task = {"task_id": "dispatch_jobs", "dag_id": dag_id, "run_id": "r", "pool": pool}
            session.execute(TaskInstance.__table__.insert().values(**task))

    return run


@pytest.mark.parametrize(("pool", "level"), [("default_pool", "ok"), ("bqdispatch_jobs", "warning")])
def test_a_pool_that_is_missing_is_a_problem_if_a_task_uses_it(client, dispatch, run_in_pool, pool, level):
    dispatch(MaxConcurrentJobs=5)
    run_in_pool("bqdispatch", pool)
    found = state(client())
    (use,) = found["overview"]["limits"]
    assert (found["overview"]["health"]["level"], bool(use["pool_problem"])) == (level, level == "warning")
    assert (use["pool"], use["pool_slots"]) == ("bqdispatch_jobs", None)


def test_how_dispatching_goes(world, client, dispatch, run_in_pool):
    world.traces(3, "query")
    world.trace("load")
    world.trace("load", state="RUNNING", age=7200)
    window = world.window()
    dispatch(MaxConcurrentJobs=5)
    run_in_pool("bqdispatch", "bqdispatch_jobs")
    found = state(client())
    health = found["overview"]["health"]
    assert (health["level"], health["sentence"]) == (
        "warning",
        "There is no pool bqdispatch_jobs: tasks in it never run.",
    )
    assert health["next_step"] == "Make it with `bqdispatch pools --import`."
    assert found["figures"]["dispatched"] == {"sql": 3, "jobs": 1, "windows": 1}
    assert found["overview"]["lanes"]["jobs"]["running"] == 1
    assert found["figures"]["lags"] == 4
    assert sum(sum(point["dispatched"].values()) for point in found["series"]) == 5, window
    (waiting,) = found["overview"]["waiting"]
    assert (waiting["reason"], waiting["console"], waiting["job"]) == (Reason.JOB_RUNNING, "", "")
    assert waiting["meaning"]
    assert waiting["next_step"]


@pytest.mark.parametrize(("span", "points"), [("hour", 12), ("day", 48), ("week", 56)])
def test_the_figures_of_a_range(world, client, dispatch, span, points):
    world.traces(2, "query")
    dispatch()
    found = state(client(), range=span)
    assert len(found["series"]) == points
    assert found["figures"]["dispatched"]["sql"] == 2
    assert found["series"][-1]["seen"] or found["series"][-2]["seen"]


def test_no_other_range_is_shown(client):
    assert client().get("/api/state", params={"setup": "x", "range": "year"}).status_code == 422


def test_one_project_alone(world, client, dispatch):
    world.trace("query", project="one")
    world.traces(2, "query", project="two")
    dispatch()
    assert state(client())["overview"]["projects"] == ["one", "two"]
    assert state(client(), project="two")["figures"]["dispatched"]["sql"] == 2
    assert state(client(), project="three")["figures"]["dispatched"]["sql"] == 0
    assert [state(client(), project=each)["figures"]["lags"] for each in ("one", "two", "three")] == [1, 2, 0]
    assert state(client())["figures"]["lags"] == 3


def test_a_project_whose_figures_may_be_left_out_says_so(world, client, dispatch):
    at = datetime.fromtimestamp(world.control.now(), UTC) - timedelta(hours=2)
    hour = Hour()
    hour.add(at, Figures(seen=at, projects={f"p-{number}": Figures(Counter(sql=1)) for number in range(20)}))
    name = f"journal/history/{at:%Y-%m-%d/%H}.json"
    world.control.seed_objects("journal", [{"name": name, "content": json.dumps(hour.to_dict())}])
    dispatch()

    def problems(**query):
        return ["may be too low" in each for each in state(client(), **query)["overview"]["problems"]]

    assert problems(range="day", project="other") == [True]
    assert problems(range="day", project="p-3") == problems(range="day") == problems(project="other") == []


def test_the_events_of_a_project_are_chosen_before_the_oldest_are(world, client, dispatch):
    world.traces(60, state="RUNNING", project="one", age=7200)
    world.traces(3, state="RUNNING", project="two", age=600)
    dispatch()
    two, one = (state(client(), project=each)["overview"] for each in ("two", "one"))
    assert (len(two["waiting"]), two["reasons"]) == (3, {"job running": 3})
    assert (len(one["waiting"]), one["reasons"]) == (50, {"job running": 60})
    assert state(client())["overview"]["reasons"] == {"job running": 63}


def test_waits_that_the_report_only_counts_are_told_of_with_each_project():
    now = datetime.now(UTC)
    report = Report(started=now, unnamed_waits=Counter({Reason.JOB_RUNNING: 7}))
    names = ["proj:two:US/ds.t--1_00001_load--dispatch", "ds.t--2_00001_load--dispatch", "two:ds.t_77_1.win"]
    names += ["ds.t_77_1.win", "undecided/two.ds.t_77_1.win.7"]
    report.waits = {name: Wait(name, Reason.UNDECIDED, now - timedelta(hours=1)) for name in names}
    config = World.config()

    def seen(project):
        found = overview(report, config, now, Figures(), project=project)
        return {each.name for each in found.waiting}, found.unnamed

    assert seen("two") == ({names[0], names[2], names[4]}, 7)
    assert seen("p") == ({names[1], names[3]}, 7)
    assert seen("") == ({*names}, 0)


def test_health_is_that_of_all_projects_whichever_is_shown():
    now = datetime.now(UTC)
    name = "proj:two:US/ds.t--1_00001_load--dispatch"
    report = Report(started=now, waits={name: Wait(name, Reason.JOB_RUNNING, now - timedelta(hours=1))})
    one = Figures(Counter(jobs=3), seen=now)
    hour = Figures(Counter(jobs=8), seen=now, projects={"one": one})
    shown = [overview(report, World.config(), now, hour, project=project).health for project in ("", "one")]
    assert shown[0] == shown[1]
    assert "8 events dispatched in the last hour, 1 waiting" in shown[0].sentence


def test_the_last_hour_is_summed_up_once_however_many_projects_there_are(server):
    from bqdispatch_provider.page.database import Database
    from bqdispatch_provider.page.series import Range, Selection
    from bqdispatch_provider.page.state import SetUpState
    from bqdispatch_provider.page.watcher import SetUpReading

    now = datetime.now(UTC)

    def looks(projects):
        figures = Figures(seen=now)
        for project in range(projects):
            figures.projects[f"project-{project}"] = Figures(Counter(jobs=2), seen=now)
        hours = CountedHours({now.replace(minute=0, second=0, microsecond=0): Hour(spans={span_of(now): figures})})
        reading = SetUpReading(now, now, World.config(), hours=hours, report=Report(started=now), is_history_known=True)
        seen = SetUpState("bqdispatch_default", Database(), None)._make(reading, Selection(Range.HOUR, "project-0"))
        assert len(seen["overview"]["projects"]) == projects
        assert seen["overview"]["lanes"]["jobs"]["dispatched"] == 2
        return hours.looks

    assert looks(20) == looks(1)


class CountedHours(dict):
    """Hours of the history that count how often somebody goes through them."""

    looks = 0

    def values(self):
        self.looks += 1
        return super().values()

    def items(self):
        self.looks += 1
        return super().items()


def test_pages_of_the_console_are_linked_where_there_is_one(world, client, dispatch, monkeypatch):
    world.trace("load", state="RUNNING", age=7200)
    dispatch()
    state(client())
    for variable in ("STORAGE_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST"):
        monkeypatch.delenv(variable)
    time.sleep(2.1)
    (waiting,) = state(client())["overview"]["waiting"]
    assert waiting["console"].startswith("https://console.cloud.google.com/storage/browser/_details/ops/BqDispatch")
    assert waiting["job"].startswith("https://console.cloud.google.com/bigquery?project=p&ws=")


def test_a_pool_that_does_not_mirror_its_limit_is_marked(world, client, dispatch):
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    world.trace("load", state="RUNNING", age=7200)
    with create_session() as session:
        session.merge(Pool(pool="bqdispatch_jobs", slots=2, description="", include_deferred=True))
    try:
        dispatch(MaxConcurrentJobs=5)
        (use,) = state(client())["overview"]["limits"]
        assert (use["limit"], use["taken"], use["pool_slots"]) == (5, 1, 2)
        assert "The pool bqdispatch_jobs has 2 slots; MaxConcurrentJobs is 5" in use["pool_problem"]
    finally:
        with create_session() as session:
            session.query(Pool).filter(Pool.pool == "bqdispatch_jobs").delete()


def test_a_limit_of_which_nothing_is_taken_shows_its_pool(world, client, dispatch):
    dispatch(MaxConcurrentSQL=3)
    (use,) = state(client())["overview"]["limits"]
    assert (use["project"], use["key"], use["limit"], use["taken"]) == ("each project", "MaxConcurrentSQL", 3, 0)
    assert (use["pool"], use["pool_slots"]) == ("bqdispatch_sql", None)


def test_what_is_in_quarantine_with_the_command_that_puts_it_back(world, client, dispatch):
    name = "proj:p:US/ds.t--x_00001_load--dispatch.json"
    world.put(name, age=100_000)
    dispatch()
    (held,) = state(client())["overview"]["quarantine"]
    assert held["reason"]
    assert held["command"].startswith("bqdispatch replay ")


def quarantine(world, number):
    """Put objects into quarantine, oldest first; gives their names."""
    names = [f"proj:p:US/ds.t--{each:04}_00001_load--dispatch.json" for each in range(number)]
    objects = []
    for each, name in enumerate(names):
        since = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=each)
        note = note_of(Quarantine(name, 7, since, f"reason {each}"), world.url_of(name), since)
        path = f"errors/2020-01-01/{name}.7"
        objects += [{"name": path, "content": "{}"}, {"name": f"{path}.json", "content": json.dumps(note)}]
    world.control.seed_objects("journal", objects)
    return names


def test_hundreds_in_quarantine_cost_a_look_no_more_than_are_shown(world, client, dispatch, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.view.journal_reader.KEPT_S", 0.0)
    names = quarantine(world, 300)
    dispatch()
    reader = JournalReader(world.client, World.config(), max_notes=50)

    def requests():
        world.control.reset_counters()
        held = reader.quarantine()
        return held, sum(world.control.calls().values())

    (held, first), (again, second) = requests(), requests()
    assert again == held
    assert [name in each.url for name, each in zip(names, held, strict=False)] == [True] * 300
    assert (first, second) == (51, 1), "one list, and each note that is shown once"
    assert [each.reason for each in held[:50]] == [f"reason {each}" for each in range(50)]
    found = state(client())
    assert (found["quarantined"], len(found["overview"]["quarantine"])) == (300, 50)
    assert [each["reason"] for each in found["overview"]["quarantine"]] == [f"reason {each}" for each in range(50)]


class Counted(requests.Session):
    """Counts its requests."""

    number = 0

    def request(self, *args, **more):
        self.number += 1
        return super().request(*args, **more)


def test_a_quarantine_is_listed_in_part_if_it_is_large(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.view.journal_reader.MAX_LISTED", 1000, raising=False)
    quarantine(world, 1200)
    session = Counted()  # threads of pages that other tests have opened may still read
    anonymous = {"credentials": AnonymousCredentials(), "client_options": {"api_endpoint": world.url}}
    reader = JournalReader(Client("p", _http=session, **anonymous), World.config(), max_notes=5)
    held = reader.quarantine()
    assert (len(held), session.number) == (500, 1 + 5), "one page, and five notes"
    assert "More than 500 objects are in quarantine" in reader.problems["quarantine"]


def test_the_last_run_of_each_dag_is_shown_to_those_who_may_read_its_runs(world, client, dispatch):
    dispatch("loads")
    found = state(client("loads"))
    assert [(each["dag"], each["run"], each["paused"]) for each in found["runs"]] == [("loads", None, False)]


def test_a_name_is_text(world, client, dispatch):
    name = world.trace("load", dest="ds.<script>alert(1)<_script>", state="RUNNING", age=7200)
    dispatch()
    answer = client().get("/api/state", params={"setup": "bqdispatch_default"})
    assert answer.headers["Content-Type"] == "application/json"
    (waiting,) = state(client())["overview"]["waiting"]
    assert waiting["name"] == name
    assert "<script>" not in client().get("/").text


def test_an_empty_journal_says_what_to_do(world, client, connect, known_dags):
    connect()
    known_dags("bqdispatch")
    found = state(client())
    assert found["overview"]["health"]["sentence"] == "No run has been seen yet."
    assert "Switch the DAG on" in found["overview"]["health"]["next_step"]
    assert found["dags"] == ["bqdispatch"]


def test_a_silence_of_hours_is_one_though_no_response_document_tells_when_it_began(world, client, connect, known_dags):
    connect()
    known_dags("bqdispatch")
    at = datetime.fromtimestamp(world.control.now(), UTC) - timedelta(hours=3)
    hour = Hour()
    hour.add(at, Figures(seen=at), "bqdispatch")
    hour_name = f"journal/history/{at:%Y-%m-%d/%H}.json"
    world.control.seed_objects("journal", [{"name": hour_name, "content": json.dumps(hour.to_dict())}])
    health = state(client())["overview"]["health"]
    assert (health["level"], health["sentence"]) == ("error", "Nobody has dispatched for 3 hours.")


@pytest.mark.parametrize(
    ("age", "level", "said"),
    [
        (3600, "error", "Nobody has dispatched for 60 minutes."),
        (60, "unknown", "0 events dispatched in the last hour; what waits is not known"),
    ],
)
def test_a_dispatcher_that_leaves_no_history_is_seen_by_its_performance(
    world, client, connect, known_dags, age, level, said
):
    """As the Go dispatcher, and a single cycle of the command line."""
    connect()
    known_dags("bqdispatch")
    world.performance(age)
    health = state(client())["overview"]["health"]
    assert health["level"] == level
    assert health["sentence"].startswith(said)


def test_a_journal_that_cannot_be_read_says_what_is_missing_and_shows_nothing_else(world, client, dispatch):
    world.put("proj:p:US/ds.t--x_00001_load--dispatch.json", age=100_000)
    dispatch()
    world.control.refuse("storage.objects.get", bucket="journal")
    found = state(client())
    assert any("The history cannot be read" in each for each in found["overview"]["problems"])
    assert found["whole"] is None
    assert found["overview"]["quarantine"] == []


def test_what_was_read_last_is_shown_while_the_journal_cannot_be_read(world, client, dispatch, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.page.watcher.KEPT_S", 0.1)
    monkeypatch.setattr("bqdispatch_provider.view.journal_reader.KEPT_S", 0.05)
    monkeypatch.setattr("bqdispatch_provider.view.health.SILENT_AFTER", timedelta())
    world.traces(3, "query")
    dispatch()
    before = state(client())
    world.control.refuse("storage.objects.get", bucket="journal")

    def unreadable():
        found = client().get("/api/state", params={"setup": "bqdispatch_default"}).json()
        return found if any("The history cannot be read" in each for each in found["overview"]["problems"]) else None

    after = wait_until(unreadable, "the page says that the journal cannot be read")
    assert after["figures"]["dispatched"] == before["figures"]["dispatched"]
    assert after["whole"] < after["read"]
    assert after["overview"]["health"]["sentence"].startswith("Nothing is known of the last ")
    assert "The history cannot be read" in after["overview"]["health"]["next_step"]


def seed_hour(world, ago, content=None):
    """Put an hour into the history in which seven queries were dispatched, or something else."""
    at = datetime.fromtimestamp(world.control.now(), UTC) - ago
    hour = Hour()
    hour.add(at, Figures(Counter(sql=7), seen=at), "bqdispatch")
    content = json.dumps(hour.to_dict()) if content is None else content
    name = f"journal/history/{at:%Y-%m-%d/%H}.json"
    world.control.seed_objects("journal", [{"name": name, "content": content}])


def test_a_quarantine_that_cannot_be_listed_is_not_taken_for_empty_and_the_week_is_read(world, client, dispatch):
    seed_hour(world, timedelta(days=3))
    dispatch()
    world.control.refuse("storage.objects.list", bucket="journal")
    found = state(client(), range="week")
    assert ["The quarantine cannot be listed" in each for each in found["overview"]["problems"]] == [True]
    assert found["figures"]["dispatched"]["sql"] == 7
    assert (found["quarantined"], found["overview"]["quarantine"], found["unread"]) == (None, [], False)


def test_an_hour_that_cannot_be_read_is_told_and_the_others_are_shown(world, client, dispatch):
    seed_hour(world, timedelta(days=3))
    seed_hour(world, timedelta(hours=5), "no JSON")
    dispatch()
    found = state(client(), range="week")
    assert ["1 hour of the history cannot be read" in each for each in found["overview"]["problems"]] == [True]
    assert found["figures"]["dispatched"]["sql"] == 7


@pytest.mark.parametrize("extra", [{}, {"AsyncTaskURL": "nonsense"}])
def test_a_connection_that_cannot_be_used_says_why(client, connect, known_dags, extra):
    connect(document=extra)
    known_dags("bqdispatch")
    found = state(client())
    assert found["overview"]["health"]["level"] == "unknown"
    assert "'bqdispatch_default'" in found["overview"]["health"]["sentence"]


@pytest.mark.parametrize("dag_id", ["bqdispatch", "bqdispatch_deferred", "bqdispatch_events", "bqdispatch_on_events"])
def test_readers_of_its_own_dags_are_told_why_a_set_up_cannot_be_read(
    world, client, connect, known_dags, caplog, dag_id
):
    connect()
    known_dags(dag_id)
    world.control.refuse("storage.objects.get", bucket="journal")
    caplog.set_level("WARNING", "bqdispatch_provider.page.watcher")
    for _ in range(2):
        assert "The history cannot be read: Forbidden: 403" in state(client(dag_id))["overview"]["problems"][0]
    assert [each.getMessage().startswith("Page of the connection 'bqdispatch_default'") for each in caplog.records] == [
        True
    ]


def test_the_usual_connection_is_tried_though_it_is_found_nowhere(client, known_dags):
    """A secrets backend does not list what it has."""
    known_dags("bqdispatch")
    assert "'bqdispatch_default' cannot be used" in state(client())["overview"]["health"]["sentence"]


def test_google_that_hangs_holds_up_no_page(world, client, dispatch, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.page.watcher.FIRST_WAIT_S", 0.5)
    monkeypatch.setattr("bqdispatch_provider.page.watcher.SLOW_S", PATIENCE_S)
    dispatch()
    someone = client()
    someone.get("/")
    world.control.add_fault("storage.objects.*", "slow", ms=HELD_MS)
    try:
        first = someone.get("/api/state", params={"setup": "bqdispatch_default"}).json()
        assert "read for the first time" in first["overview"]["problems"][0]
        assert first["overview"]["health"]["next_step"] == "The page asks again in a moment."
        monkeypatch.setattr("bqdispatch_provider.page.watcher.SLOW_S", 0.0)

        def is_slow():
            later = someone.get("/api/state", params={"setup": "bqdispatch_default"}).json()
            said = later["overview"]["problems"][0]
            return said.startswith("Cloud Storage has not answered for") and "nothing has been read yet" in said

        wait_until(is_slow, "the page says that Cloud Storage does not answer")
    finally:
        world.control.clear_faults()
    assert state(someone)["overview"]["health"]["level"] == "ok"


def test_a_week_and_a_hundred_thousand_events_cost_one_look_in_ten_seconds_and_a_short_answer(
    world, server, client, connect, known_dags, token
):
    connect()
    known_dags("bqdispatch")
    now = datetime.fromtimestamp(world.control.now(), UTC)
    seed_week(world, now)
    someone = client()
    assert state(someone, range="week")["figures"]["dispatched"]["jobs"] > 10_000
    world.control.reset_counters()
    took, statuses = asyncio.run(crowd(server, token("bqdispatch"), 200))
    assert set(statuses) == {200}
    calls = Counter(world.control.calls())
    looks = 1 + int(sum(took) > 0 and max(took) // 10)
    assert calls.total() <= 8 * (looks + 1), calls
    answer = someone.get("/api/state", params={"setup": "bqdispatch_default", "range": "week"})
    assert len(answer.content) < 300_000
    found = answer.json()
    assert sum(found["overview"]["reasons"].values()) == 100_000
    assert len(found["overview"]["waiting"]) == 50


def seed_week(world, now):
    """Put a week of history into the journal, and the document of a run that left 100,000 events waiting."""
    figures = Figures(seen=now, lags=Counter({3: 10, 8: 2}))
    for project in [f"project-{number}" for number in range(20)]:
        figures.projects[project] = Figures(Counter(jobs=5, sql=5), seen=now, states={"Running": Counter(jobs=2)})
        figures.add(Figures(Counter(jobs=5, sql=5)))
    figures.states = {"Running": Counter(jobs=40), "Throttled": Counter(jobs=100_000)}
    begin = now.replace(minute=0, second=0, microsecond=0)
    objects = []
    for number in range(170):
        at = begin - timedelta(hours=number)
        hour = Hour(dags={"bqdispatch"}, document="gs://journal/journal/runs/large.json")
        for minute in range(0, 60, 5):
            hour.add(at + timedelta(minutes=minute), figures)
        objects.append({"name": f"journal/history/{at:%Y-%m-%d/%H}.json", "content": json.dumps(hour.to_dict())})
    report = Report(started=now)
    names = [f"proj:p:US/ds.t--{number}_00001_load--dispatch.json" for number in range(100_000)]
    report.waits = {name: Wait(name, Reason.LIMIT, now - timedelta(hours=1)) for name in names}
    objects.append({"name": "journal/runs/large.json", "content": json.dumps(report.to_dict())})
    world.control.seed_objects("journal", objects)


async def crowd(server, token, number):
    """Ask for the page's state many times at once; gives how long each took, and the statuses."""
    import httpx

    transport = httpx.ASGITransport(server)
    headers = {"Authorization": f"Bearer {token}"}

    async def ask(client, span):
        began = time.monotonic()
        answer = await client.get("/bqdispatch/api/state", params={"setup": "bqdispatch_default", "range": span})
        return time.monotonic() - began, answer.status_code

    async with httpx.AsyncClient(
        transport=transport, base_url="http://testserver", headers=headers, timeout=60
    ) as client:
        answers = await asyncio.gather(*(ask(client, ("hour", "day", "week")[each % 3]) for each in range(number)))
    return zip(*answers, strict=True)


def test_a_journal_is_read_by_one_thread_at_a_time(world, client, dispatch):
    dispatch()
    someone = client()
    threads = [threading.Thread(target=someone.get, args=("/api/setups",)) for _ in range(10)]
    world.control.reset_counters()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state(someone)
    gets = Counter(world.control.calls())
    assert gets.total() < 2 * 200, gets  # a week of hours once, not ten times


def test_airflow_finds_the_plugin_by_its_entry_point(server):
    (ours,) = [each.load() for each in entry_points(group="airflow.plugins") if each.name == "bqdispatch"]
    assert [(view["destination"], view["href"]) for view in ours.external_views] == [
        ("nav", "/bqdispatch/"),
        ("dag", "/bqdispatch/?dag={DAG_ID}"),
    ]
    assert [each["url_prefix"] for each in ours.fastapi_apps] == ["/bqdispatch"]


@pytest.mark.parametrize(
    ("version", "is_there"), [("2.11.0", False), ("3.1.0", False), ("3.1.1", True), ("3.10.0rc1", True)]
)
def test_versions_without_the_page_are_left_alone(version, is_there):
    code = (
        "import sys, airflow; airflow.__version__ = sys.argv[1]\n"
        "from bqdispatch_provider.plugin import BqDispatchPlugin as plugin\n"
        "assert not [name for name in sys.modules if name.startswith('bqdispatch_provider.page')]\n"
        "assert 'fastapi' not in sys.modules\n"
        "print(bool(plugin.fastapi_apps), bool(plugin.external_views))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, version], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == [str(is_there)] * 2
