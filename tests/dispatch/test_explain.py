"""Ten situations in which an event waits: explain, status and the report give the same reason and the next step."""

import json
import shlex
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from situations import LATER, SITUATIONS, late_twin, name_of, not_permitted, refused

from bqdispatch_provider.commands.cli import main
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.history import Figures, Hour, NewFigures
from bqdispatch_provider.core.model import Reason
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.core.waits import Wait
from bqdispatch_provider.cycle.history import hour_url
from bqdispatch_provider.page.series import last_hour
from bqdispatch_provider.view.advice import ADVICE
from bqdispatch_provider.view.explanation import Explainer
from bqdispatch_provider.view.health import health_of, silent_after
from bqdispatch_provider.view.journal_reader import JournalReader
from bqdispatch_provider.view.overview import overview
from bqdispatch_provider.view.report_explanation import ReportExplainer
from bqdispatch_provider.view.suggested_commands import commands_in, replay_command

pytestmark = pytest.mark.usefixtures("no_logs")


@pytest.fixture
def config(config):
    """Writes the configuration, and gives its path as a command takes it."""
    return lambda **more: str(config(**more))


EXACT_STEPS = {
    "throttled": "raise MaxConcurrentJobs in the configuration",
    "without_region": "If BigQuery still does not know it at 20",
    "unknown": "and can be put back. To look for it yourself: `bq show --job --location=US p:",
    "claimed": "another takes it up after three minutes.",
    "running": "look at the job: `bq show --job --location=US p:",
    "pending": "look at the job: `bq show --job --location=US p:",
    "held": "`gcloud storage objects update {url} --no-temporary-hold`",
    "refused": "If a permission may be missing, `bqdispatch smoke --config {config}` tries all that are needed.",
    "no_answer": "Give the account that dispatches a role with this permission",
    "not_permitted": "Give the account that dispatches a role with this permission",
    "late_twin": "See in ds.t which of its files were loaded. All: delete it, by `gcloud storage rm {url}`. Otherwise "
    "fire it, by `bqdispatch replay --config {config} {url}`: ",
}
"""Words of the next step of situations in which more is known than the reason."""


@pytest.mark.parametrize(("situation", "reason"), SITUATIONS, ids=name_of)
def test_the_reason_and_the_next_step_are_the_same_everywhere(world, config, capsys, situation, reason):
    name, more = situation(world)
    path = config(**more)
    assert main(["explain", "--json", "--config", path, name]) == 0
    (explained,) = json.loads(capsys.readouterr().out)
    assert explained["State"] == f"waits: {reason}"
    exact = EXACT_STEPS.get(situation.__name__, ADVICE[reason].next_step)
    assert exact.format(url=shlex.quote(explained["URL"]), config=f"file://{path}") in explained["Next"]
    assert ADVICE[reason].meaning in explained["Details"]
    main(["status", "--json", "--config", path])
    waiting = {each["name"]: each for each in json.loads(capsys.readouterr().out)["waiting"]}
    if reason is not Reason.NOT_DUE:  # it waits since its end, which has not come
        assert (waiting[name]["reason"], waiting[name]["next_step"]) == (str(reason), explained["Next"])
        assert world.cycle(**more).to_dict()["Waiting"][name]["Reason"] == reason


def test_who_holds_the_slots_of_a_limit_is_named(world, config, capsys):
    holder = world.trace(state="RUNNING", age=LATER + 60)
    name = world.trace(age=LATER)
    main(["explain", "--config", config(MaxConcurrentJobs=1), name])
    said = capsys.readouterr().out
    assert f"MaxConcurrentJobs of project p is 1. Its slots are held by the job of {holder}." in said


def test_events_whose_jobs_are_not_seen_yet_hold_their_slots(world, config, capsys):
    world.traces(2)
    world.cycle(MaxConcurrentJobs=2)
    name = world.trace(age=LATER)
    path = config(MaxConcurrentJobs=2)
    main(["status", "--json", "--config", path])
    (use,) = json.loads(capsys.readouterr().out)["limits"]
    assert (use["taken"], use["limit"], use["waiting"]) == (2, 2, 1)
    main(["explain", "--config", path, name])
    assert "or were dispatched and whose jobs are not seen yet" in capsys.readouterr().out
    report = Report.from_dict(world.cycle(MaxConcurrentJobs=2).to_dict())
    assert report.slots == {"p": {"MaxConcurrentJobs": 2}}
    explained = ReportExplainer(report, world.config(MaxConcurrentJobs=2)).explain(report.waits[name])
    assert "held by jobs or events that the report does not name" in " ".join(explained.details)


@pytest.mark.parametrize("situation", [refused, not_permitted])
def test_what_is_refused_says_how_often_and_with_what_words(world, config, capsys, situation):
    name, _ = situation(world)
    main(["explain", "--config", config(), name])
    said = capsys.readouterr().out
    assert "It has waited for this reason in 5 cycles." in said
    assert "In detail: " in said


@pytest.mark.parametrize("asked", ["name", "url", "job", "event", "table", "short table"])
def test_an_event_is_found_by_whatever_names_it(world, config, capsys, asked):
    """The command of docs/troubleshooting.md."""
    name = world.trace(dest="acme-shop:sales.orders", state="RUNNING", age=LATER)
    (job,) = [trace for trace in world.dispatcher().folder.listing().traces]
    wanted = {
        "name": name,
        "url": world.url_of(name),
        "job": job.name.job_id,
        "event": job.name.event_id,
        "table": "acme-shop.sales.orders",
        "short table": "sales.orders",
    }[asked]
    assert main(["explain", "--config", config(), wanted]) == 0
    assert world.url_of(name) in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["", " ", "gs://ops/BqDispatch/Tasks/"])
def test_the_name_of_nothing_is_refused(world, config, capsys, asked):
    """Objects with odd names would match it."""
    world.trace(dest="$p")
    world.put("undecided/x", "x")
    path = config()
    world.control.reset_counters()
    assert main(["explain", "--config", path, asked]) == 2
    said = capsys.readouterr()
    assert (said.out, "EVENT is empty" in said.err) == ("", True)
    assert sum(world.control.calls().values()) == 0


def test_what_is_ready_is_dispatched_next(world, config, capsys):
    name, window = world.trace(), world.window()
    for each in (name, window):
        assert main(["explain", "--config", config(), each]) == 0
        assert "is dispatched next" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written_before_s", "state", "step"),
    [(60, "becomes undecided next", "somebody has to decide"), (-60, "was fired", '"Old sentinels" in docs/migration')],
    ids=["it has returned", "it was fired"],
)
def test_a_window_beside_a_sentinel_of_the_go_dispatcher(world, config, capsys, written_before_s, state, step):
    name = world.window(due=LATER, age=LATER)
    world.put(name.replace(".win", ".wis"), content=".", age=LATER + written_before_s)
    assert main(["explain", "--json", "--config", config(), name]) == 0
    (explained,) = json.loads(capsys.readouterr().out)
    assert explained["State"] == state
    assert step in explained["Next"]
    assert (world.cycle().outcomes["quarantined"] == 1) is state.startswith("becomes")


def test_a_window_that_is_gone_and_was_not_fired_is_found(world, config, capsys):
    """A dispatcher was killed before it could fire it from its claim."""
    name = world.window(due=LATER, age=LATER)
    world.claim(name, ago=1000)
    firing = {"window": name, "generation": world.blob(name).generation, "project": "", "event": "", "many": True}
    document = {"version": 1, "owner": "killed", "firings": [firing]}
    world.put("intents/killed-000001-windows.json", age=1000, content=json.dumps(document))
    world.delete(name)
    assert main(["explain", "--config", config(), name]) == 0
    said = capsys.readouterr().out
    assert f"waits: {Reason.OVERDUE}" in said
    assert "The window itself is gone" in said


@pytest.mark.parametrize("more", [{}, {"MaxConcurrentJobs": 5}], ids=["no limit", "limit"])
@pytest.mark.parametrize(
    ("ago_s", "reason", "said"),
    [(5, Reason.IN_HAND, "another one takes it up after"), (100, Reason.IN_DOUBT, "and has not dispatched it")],
)
def test_a_trace_in_the_intent_of_another_dispatcher_waits_for_it(world, config, capsys, ago_s, reason, said, more):
    name, other = world.traces(2, age=LATER)
    document = {"version": 1, "owner": "another", "moves": [[name, world.blob(name).generation]]}
    world.put("intents/another-000001.json", age=ago_s, content=json.dumps(document))
    path = config(**more)
    assert main(["explain", "--json", "--config", path, name]) == 0
    (explained,) = json.loads(capsys.readouterr().out)
    assert explained["State"] == f"waits: {reason}"
    assert "a dispatcher has announced it at " in explained["Details"][-1]
    assert said in explained["Details"][-1]
    main(["explain", "--config", path, other])
    assert f"waits: {Reason.OVERDUE}" in capsys.readouterr().out
    world.put("intents/another-000001.json.done", age=ago_s, content="")
    main(["explain", "--config", path, name])
    assert f"waits: {reason}" not in capsys.readouterr().out


def test_an_intent_that_may_not_be_read_is_told_and_all_else_is_explained(world, config, capsys):
    name = world.trace()
    world.put("intents/another-000001.json", age=5, content="{}")
    world.control.add_fault("storage.objects.get", "status", status=403, name="*another-000001.json")
    assert main(["explain", "--config", config(), name]) == 0
    said = capsys.readouterr()
    assert "the intents cannot be read, so who dispatches what is not known" in said.err
    assert "is dispatched next" in said.out


def test_what_was_delivered_is_found_until_bqtail_takes_it(world, config, capsys):
    name, window = world.trace(), world.window()
    world.cycle()
    for each in (name, window):
        assert main(["explain", "--config", config(), each]) == 0
        assert "was delivered, and BqTail has not consumed it yet" in capsys.readouterr().out
    world.consume()
    assert main(["explain", "--config", config(), name]) == 1
    assert "no event" in capsys.readouterr().err


def test_what_is_in_quarantine_says_why_and_how_it_comes_back(world, config, capsys):
    name = world.trace(state=None, age=90_000)
    world.cycle()
    assert main(["explain", "--config", config(), name]) == 0
    said = capsys.readouterr().out
    assert "is in quarantine" in said
    assert "bqdispatch replay --config" in said


AWKWARD = {"env": "p", "of the journal": "jour", "-$(id) `id`": "n'al", "not asked for": "s3cret"}
"""Variables, with their values."""


def test_the_command_that_puts_an_object_back_has_the_variables_of_the_document(world, config, capsys):
    """The command of docs/quarantine.md."""
    name = world.trace(state=None, age=90_000)
    world.cycle(ErrorURL="gs://journal/n'al")
    path = config(
        ProjectID="${env}", JournalURL="gs://${of the journal}nal/journal", ErrorURL="gs://journal/${-$(id) `id`}"
    )
    given = [f"--var={variable}={value}" for variable, value in AWKWARD.items()]
    assert main(["explain", "--json", "--config", path, *given, name]) == 0
    (explained,) = json.loads(capsys.readouterr().out)
    assert "s3cret" not in explained["Next"]
    command = shlex.split(explained["Next"].removeprefix("Put it back with: "))
    assert set(given[:3]) <= set(command)
    assert world.names() == []
    world.control.advance(1)  # a name is changed once a second
    assert main(command[1:]) == 0
    assert world.names() == [name]


def test_the_command_that_fires_an_undecided_window_has_the_variables_of_the_document(world, config, capsys):
    name, _ = late_twin(world)
    path = config(ProjectID="${env}", JournalURL="gs://${of the journal}nal/journal")
    given = [f"--var={variable}={value}" for variable, value in AWKWARD.items()]
    assert main(["explain", "--json", "--config", path, *given, name]) == 0
    (explained,) = json.loads(capsys.readouterr().out)
    assert "s3cret" not in explained["Next"]
    command = shlex.split(commands_in(explained["Next"])[1])
    assert command[:4] == ["bqdispatch", "replay", "--config", f"file://{path}"]
    assert main(command[1:]) == 0
    assert "is back, and will be fired" in capsys.readouterr().out


def test_what_is_quarantined_next_is_put_back_by_the_command_that_is_told(world, config, capsys):
    name = world.trace(state=None, age=90_000)
    assert main(["explain", "--json", "--config", config(), name]) == 0
    (explained,) = json.loads(capsys.readouterr().out)
    assert explained["State"] == "is quarantined next"
    command = shlex.split(explained["Next"].split("`")[1])
    world.cycle()
    assert world.names() == []
    world.control.advance(1)  # a name is changed once a second
    assert main(command[1:]) == 0
    assert world.names() == [name]


def test_the_command_says_what_to_give_for_a_document_within_the_connection(world):
    document = world.document(ProjectID="${env}")
    command = replay_command(DispatchConfig.from_dict(document, {"env": "p", "more": "q"}), "gs://journal/a b")
    assert shlex.split(command, comments=True) == (
        ["bqdispatch", "replay", "--config", "FILE", "--var=env=p", "gs://journal/a b"]
    )
    assert "# FILE: save the configuration document of the connection to a file" in command


def test_status_tells_how_it_goes(world, config, capsys):
    world.performance()
    assert main(["status", "--config", config()]) == 0
    assert "All is well" in capsys.readouterr().out
    world.trace(state=None, age=90_000)
    world.cycle()
    main(["status", "--config", config()])
    said = capsys.readouterr().out
    assert "1 object is in quarantine" in said
    assert "bqdispatch replay" in said


def test_status_counts_what_was_dispatched_in_the_last_hour(world, config, capsys):
    from bqdispatch_provider.core.history import RunLabel

    world.traces(3, "query")
    with world.dispatcher() as dispatcher:
        dispatcher.run(0, label=RunLabel("dag"))
    main(["status", "--json", "--config", config()])
    seen = json.loads(capsys.readouterr().out)
    assert seen["lanes"]["sql"]["dispatched"] == 3
    assert "3 events dispatched in the last hour" in seen["health"]["sentence"]


def test_status_tells_of_windows_that_are_not_due(world, config, capsys):
    names = [world.window(f"ds.t{number}", due=-600 - number) for number in range(3)]
    main(["status", "--config", config()])
    said = " ".join(capsys.readouterr().out.split())
    assert f"3 windows not due: the first is {names[0]}, in 10 minutes. {ADVICE[Reason.NOT_DUE].next_step}" in said


def test_a_window_that_is_not_due_has_not_waited_yet(world, config, capsys):
    name = world.window(due=-600)
    main(["explain", "--config", config(), name])
    assert "since" not in capsys.readouterr().out


def test_a_journal_that_cannot_be_read_hides_no_event(world, config, capsys):
    name = world.trace(state="RUNNING", age=LATER)
    for permission in ("storage.objects.get", "storage.objects.list"):
        world.control.refuse(permission, bucket="journal")
    path = config()
    assert main(["explain", "--config", path, name]) == 0
    shown = capsys.readouterr()
    assert f"waits: {Reason.JOB_RUNNING}" in shown.out
    assert "waiting.json' cannot be read, so what earlier runs were refused is not known" in shown.err
    assert "the quarantine cannot be listed" in shown.err
    main(["status", "--json", "--config", path])
    seen = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in seen["waiting"]] == [name]
    assert "waiting.json' cannot be read" in seen["problems"][0]
    assert seen["quarantine"] is None


def test_status_shows_limits_and_who_takes_their_slots(world, config, capsys):
    world.traces(2, state="RUNNING", age=LATER)
    world.trace(age=LATER)
    main(["status", "--json", "--config", config(MaxConcurrentJobs=2)])
    (use,) = json.loads(capsys.readouterr().out)["limits"]
    assert (use["project"], use["key"], use["limit"], use["taken"], use["waiting"]) == (
        "p",
        "MaxConcurrentJobs",
        2,
        2,
        1,
    )


def test_names_are_untrusted_text(world, config, capsys):
    world.put("proj:p:US/ds.t--\x1b[31mevil_00001_load--dispatch", age=LATER)
    main(["status", "--config", config()])
    assert "\x1b[31mevil" not in capsys.readouterr().out


def test_each_reason_has_its_words():
    assert ADVICE.keys() == set(Reason)
    assert all(each.meaning and each.next_step for each in ADVICE.values())


def test_an_explanation_is_pure(world):
    """It asks for nothing beyond one look."""
    name = world.trace(state="RUNNING", age=LATER)
    with world.dispatcher() as dispatcher:
        seen = dispatcher.look()
        before = world.control.requests()
        explainer = Explainer(seen.snapshot, dispatcher.config)
        assert [each.name for each in explainer.find(name)] == [name]
        assert world.control.requests() == before


def test_a_name_in_a_suggested_command_is_one_word_to_a_shell(world, config, capsys, tmp_path):
    """Whoever writes into the task folder chooses names, and somebody else pastes the command."""
    name = "proj:p:US/ds.t'$(touch${IFS}owned)'; touch owned #--1_00001_load--dispatch"
    world.put(name, age=90_000)
    world.cycle()
    for command in (["explain", name], ["status"]):
        main([*command, "--json", "--config", config()])
    said = capsys.readouterr().out
    (replay,) = {each["command"] for each in json.loads(said[said.rindex("\n{") :])["quarantine"]}
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {replay}"], cwd=tmp_path, capture_output=True, text=True)
    assert words.stdout.splitlines()[-1].endswith("--1_00001_load--dispatch." + replay.rpartition(".")[2].strip("'"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("url", ["gs://secrets/x.json", "gs://", "gs://journal/journal/runs-of-others/x.json"])
def test_a_forged_history_has_nothing_else_read(world, url, caplog):
    world.client.bucket("secrets").create()
    world.client.bucket("secrets").blob("x.json").upload_from_string('{"Outcomes": {"TOP-SECRET": 1}}')
    with world.dispatcher() as dispatcher:
        dispatcher.look()
        now = dispatcher.store.now()
        hour = Hour(document=url)
        dispatcher.store.write_json(hour_url(dispatcher.config.journal_url, now), hour.to_dict())
        reader = JournalReader(world.client, dispatcher.config)
        assert reader.report(now) is None
    assert "TOP-SECRET" not in str(reader.problems)


def test_one_hour_that_cannot_be_read_is_told_whatever_is_read_after_it(world):
    with world.dispatcher() as dispatcher:
        config, now = dispatcher.config, dispatcher.store.now()
        dispatcher.store.write(hour_url(config.journal_url, now - timedelta(hours=20)), "no JSON")
    reader = JournalReader(world.client, config)
    for _ in range(2):
        reader.hours(now - timedelta(hours=24), now)
        assert "cannot be read" in reader.problems["history"]
    reader.hours(now - timedelta(hours=1), now)
    assert "cannot be read" in reader.problems["history"]
    assert not reader.history_error


def test_an_hour_that_was_read_before_its_end_is_read_again(world, monkeypatch):
    """Somebody has closed the page in the middle of it, and comes back in the evening."""
    monkeypatch.setattr("bqdispatch_provider.view.journal_reader.KEPT_S", 0)
    noon, day = datetime(2026, 1, 1, 12, tzinfo=UTC), timedelta(days=1)
    written, reader = Hour(), JournalReader(world.client, world.config())
    with world.dispatcher() as dispatcher:
        for minute, later in ((10, timedelta(minutes=20)), (40, timedelta(hours=9))):
            written.add(noon + timedelta(minutes=minute), Figures(failed=1))
            dispatcher.store.write_json(hour_url(dispatcher.config.journal_url, noon), written.to_dict())
            world.control.advance(1)  # a name is changed once a second
            spans = reader.spans(noon + later - day, noon + later)
    assert sum(figures.failed for figures in spans.values()) == 2
    before = world.control.requests()
    assert reader.spans(noon + later - day, noon + later) == spans
    read = world.control.requests() - before
    assert read == 2, "the hour that goes on, and the one before it"


@pytest.mark.parametrize("second", [0, 1, 299])
def test_the_last_hour_is_the_same_to_status_and_to_the_page(world, second):
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    now, reader = noon + timedelta(seconds=second), JournalReader(world.client, world.config())
    with world.dispatcher() as dispatcher:
        for begin in (noon - timedelta(hours=1), noon):
            hour = Hour()
            for minute in range(0, 60, 5):
                hour.add(begin + timedelta(minutes=minute), Figures(failed=1))
            dispatcher.store.write_json(hour_url(dispatcher.config.journal_url, begin), hour.to_dict())
    spans = reader.spans(now - timedelta(hours=1), now)
    of_status = sum(figures.failed for at, figures in spans.items() if at <= now)
    assert of_status == last_hour(reader.hours(now - timedelta(hours=1), now), now).failed == 12


@pytest.mark.parametrize(("looked_s", "level"), [(10, "ok"), (400, "error")])
def test_a_run_that_goes_on_for_long_is_no_silence(world, looked_s, level):
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    report = Report(started=now - timedelta(minutes=9), seen=now - timedelta(seconds=looked_s))
    hour = Figures(seen=now - timedelta(seconds=looked_s))
    found = overview(report, world.config(), now, hour, ())
    assert found.health.level == level
    assert found.seen == hour.seen


@pytest.mark.parametrize("report", [None, Report(started=datetime(2026, 1, 1, 11, 30, tzinfo=UTC))])
def test_a_report_that_says_nothing_of_the_last_look_is_no_good_news(world, report):
    """As a run of the command line leaves none; or the last one is of another run, long ago."""
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    found = overview(report, world.config(), now, Figures(seen=now - timedelta(seconds=30)), ())
    assert (found.health.level, found.is_current) == ("unknown", False)
    assert "what waits is not known" in found.health.sentence
    assert "bqdispatch status" in found.health.next_step


@pytest.mark.parametrize(
    ("gap_min", "silence_min", "level"), [(1, 6, "ok"), (5, 7, "ok"), (5, 9, "error"), (60, 61, "ok")]
)
def test_a_silence_is_longer_than_the_usual_gap_between_two_looks(gap_min, silence_min, level):
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    seen = now - timedelta(minutes=silence_min)
    every = timedelta(minutes=max(gap_min, 5))  # the history has one look of five minutes
    outage = timedelta(hours=9)
    looks = [seen - number * every - (outage if number > 20 else timedelta()) for number in range(60)]
    health = health_of(Report(started=seen, seen=seen), now, seen, Figures(), silence=silent_after(looks))
    assert health.level == level


@pytest.mark.parametrize(
    ("reason", "where"), [(Reason.JOB_RUNNING, "the errors"), (Reason.REFUSED, '"What waits, and why"')]
)
def test_the_health_of_errors_says_where_more_is_told(reason, where):
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    waits = {"x": Wait("x", reason, now - timedelta(hours=1))}
    report = Report(started=now, seen=now, errors=["the quarantine is full"], waits=waits)
    assert health_of(report, now, now, Figures()).next_step == f"See {where} below."


def test_a_journal_that_cannot_be_read_is_no_silence():
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    seen = now - timedelta(minutes=12)
    health = health_of(Report(started=seen), now, seen, Figures(), history_error="The history cannot be read: 403")
    assert (health.level, health.sentence) == ("unknown", "Nothing is known of the last 12 minutes.")
    assert health.next_step == "The history cannot be read: 403"


def test_a_run_of_the_command_line_is_no_good_news_on_the_page(world):
    name = world.trace(state="RUNNING", age=LATER)
    with world.dispatcher() as dispatcher:
        dispatcher.run(1.0, wait=lambda _: None)
        now, reader = dispatcher.store.now(), JournalReader(world.client, dispatcher.config)
    hour = Figures()
    for figures in reader.spans(now - timedelta(hours=1), now).values():
        hour.add(figures)
    assert hour.seen is not None, name
    assert overview(reader.report(now), world.config(), now, hour).health.level == "unknown"


def test_a_history_says_when_a_long_run_looked_last(world):
    first, later = (datetime(2026, 1, 1, 12, minute, tzinfo=UTC) for minute in (0, 9))
    report = Report(started=first, seen=first, cycles=1)
    report.add_cycle(Report(started=later, seen=later, cycles=1))
    assert (report.started, report.seen) == (first, later)
    assert NewFigures().take(report, world.config()).seen == later
