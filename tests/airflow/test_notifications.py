"""What Slack is told, how often, and that nothing of the token goes anywhere else."""

import base64
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator
from google.api_core.exceptions import Forbidden
from slack import StandInSlack
from world import JOURNAL, TASKS

from bqdispatch_provider import notifications
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.factory import dispatch_dag
from bqdispatch_provider.gcp.storage import TaskStore
from bqdispatch_provider.journal import RunJournal, run_journal_paths
from bqdispatch_provider.notifications import BqDispatchNotifier
from bqdispatch_provider.operators import DispatchOperator

TOKEN = "xoxb-to-be-kept-secret"
SECRET_URL = f"gs://{JOURNAL}/secrets/slack.json.enc"
CREDENTIALS = {"URL": SECRET_URL, "Key": "ring/key"}


@pytest.fixture
def slack(world, connect, monkeypatch):
    """A Slack whose token lies encrypted where the configuration says."""
    from airflow.providers.google.cloud.hooks.kms import CloudKMSHook

    stand_in = StandInSlack()
    monkeypatch.setattr(notifications, "SLACK", stand_in.url)
    monkeypatch.setattr(CloudKMSHook, "get_conn", lambda _: stand_in.kms_client())
    connect(SlackCredentials=CREDENTIALS, Region="europe-west1")
    put_secret(world, stand_in.encrypted(json.dumps({"Token": TOKEN}).encode()))
    yield stand_in
    stand_in.close()


def put_secret(world, content):
    world.control.advance(1)  # a name takes one change a second, and older clients do not retry
    world.client.bucket(JOURNAL).blob("secrets/slack.json.enc").upload_from_string(content)


def break_copies(world, name):
    for call in ("storage.objects.copy", "storage.objects.rewrite"):
        world.control.add_fault(call, "status", status=403, name=f"*{name}")


def tell(run, dag_id="tells"):
    done = run(dag_id, "notifying.py")
    assert done.state == "success"
    return done


def test_errors_quarantines_and_stuck_windows_are_told(world, connect, run, slack):
    connect(SlackCredentials=CREDENTIALS, Region="europe-west1", MaxConcurrentJobs=1)
    twin = world.window("q:ds.twin")
    tell(run)
    assert slack.messages == []
    world.delete(twin)
    world.put(twin)
    world.trace(state="RUNNING")
    world.window("ds.late", due=20 * 60)
    world.window("ds.in_time", due=10 * 60)
    break_copies(world, world.trace("query"))
    done = tell(run)
    (message,) = slack.messages
    assert message["channel"] == "#data-ops"
    header, *lines = message["text"].splitlines()
    assert f"tells.report, run {done.run_id}" in header
    kinds = re.findall(r"^• ([\w ]+):", "\n".join(lines), re.MULTILINE)
    assert kinds == ["error", "quarantined", "stuck window"]
    assert ("ds.late" in message["text"], "ds.in_time" in message["text"]) == (True, False)
    assert slack.tokens == [TOKEN]


def test_a_stuck_window_of_an_idle_run_is_told_by_the_dags_callback(world, slack):
    """Of a run without a task that succeeded, Airflow 3.3 tells no more than this (``produce_dag_callback``)."""
    name = world.window("ds.late", due=20 * 60)
    BqDispatchNotifier("#data-ops")({"dag": dispatch_dag(), "run_id": "r", "reason": "success"})
    (message,) = slack.messages
    assert message["text"].startswith("BqTail dispatch: bqdispatch, run r")
    assert ("stuck window" in message["text"], name in message["text"]) == (True, True)


@pytest.mark.parametrize(
    ("run_id", "logical_date"),
    [
        ("scheduled__2026-01-02T00:00:00+00:00", datetime(2026, 1, 2, tzinfo=UTC)),
        ("scheduled__2026-01-02T00:00:00+00:00", datetime(2026, 1, 1, tzinfo=UTC)),  # the start of its data interval
        ("asset_triggered__2026-01-02T01:30:00.123456+02:00_x7Gh", datetime(2026, 1, 1, 23, 30, tzinfo=UTC)),
        ("manual__2026-01-02T10:00:00", datetime(2026, 1, 2, 10, tzinfo=UTC)),
        ("manual__2026-99-02T10:00:00", datetime.now(UTC)),
        ("mine", datetime.now(UTC)),
        ("mine", datetime.now(UTC) - timedelta(days=1)),
    ],
)
def test_what_an_idle_runs_document_says_is_told_by_the_dags_callback_which_has_no_date(
    world, slack, run_id, logical_date
):
    dag = dispatch_dag()
    journal_of_run = run_journal_paths({"dag": dag, "run_id": run_id, "logical_date": logical_date})
    with world.dispatcher() as dispatcher:
        for path in journal_of_run:
            report = Report(errors=["the account may not list gs://tasks"])
            RunJournal(dispatcher.store, dispatcher.config, f"{path}detect").write_document(report, 0)
    BqDispatchNotifier("#data-ops")({"dag": dag, "run_id": run_id, "reason": "success"})
    (message,) = slack.messages
    assert "the account may not list gs://tasks" in message["text"]


def test_a_cause_is_told_once_an_hour_whichever_task_meets_it(world, run, slack):
    began = world.control.now()
    break_copies(world, world.trace())
    tell(run)
    tell(run, "tells_alone")
    break_copies(world, world.trace())  # the same but for the numbers in its name
    tell(run)
    assert len(slack.messages) == 1
    break_copies(world, world.trace(dest="ds.another"))
    tell(run)
    assert len(slack.messages) == 2
    assert "ds.another" in slack.messages[1]["text"]
    assert "ds.t-" not in slack.messages[1]["text"]
    world.control.set_clock(began + 3000)  # the runs so far took minutes on a slow machine
    tell(run)
    assert len(slack.messages) == 2
    world.control.advance(3600)
    tell(run)
    assert len(slack.messages) == 3


def test_what_was_told_is_asked_for_once_however_many_windows_it_holds_for(world, connect, run, slack, monkeypatch):
    connect(SlackCredentials=CREDENTIALS, Region="europe-west1", MaxConcurrentJobs=1)
    world.trace(state="RUNNING")
    for minutes in (20, 21, 22):
        world.window("ds.late", due=minutes * 60)
    tell(run)
    assert len(slack.messages) == 1
    asked, age = [], TaskStore.age

    def counted(store, url):
        asked.append(url)
        return age(store, url)

    monkeypatch.setattr(TaskStore, "age", counted)
    tell(run)
    assert len(slack.messages) == 1
    assert len([url for url in asked if "/notified/" in url]) == 1


def test_of_many_who_claim_a_cause_one_tells_it(world):
    with world.dispatcher() as dispatcher, ThreadPoolExecutor(8) as many:
        url = f"gs://{JOURNAL}/journal/notified/x.json"
        for _ in range(3):
            world.control.advance(7200)
            write = partial(dispatcher.store.write_if_older_than, url, age=timedelta(hours=1))
            written = list(many.map(lambda n, write=write: write({"Owner": n}), range(8)))
            assert len([each for each in written if each is not None]) == 1


def test_a_claim_whose_answer_was_lost_is_ones_own(world):
    url = f"gs://{JOURNAL}/journal/notified/x.json"
    world.control.add_fault("storage.objects.insert", "reset", times=1, after=True)
    with world.dispatcher() as dispatcher:
        assert dispatcher.store.write_if_older_than(url, {"Owner": "me"}, timedelta(hours=1))
        assert dispatcher.store.write_if_older_than(url, {"Owner": "you"}, timedelta(hours=1)) is None


def test_a_failed_task_without_a_document_is_told(world, run, slack):
    assert run("tells_that_it_failed", "notifying.py").state == "failed"
    (message,) = slack.messages
    assert "• failed: the task tells_that_it_failed.dispatch has failed" in message["text"]
    # `dag.test()` of Airflow 3.1 keeps the reason to itself, which a task's own process does not.
    assert any(reason in message["text"] for reason in ("shares is 'everything'", "its log says why"))


def test_the_slack_providers_connection_is_used_where_it_is_named(world, connect, run, slack, monkeypatch):
    connect()
    connection = {"conn_type": "slack", "password": "xoxb-another", "extra": {"base_url": slack.url}}
    monkeypatch.setenv("AIRFLOW_CONN_SLACK_OPS", json.dumps(connection))
    break_copies(world, world.trace())
    tell(run, "tells_by_a_connection")
    assert (len(slack.messages), slack.tokens) == (1, ["xoxb-another"])


def test_a_base64_ciphertext_will_do(world, run, slack):
    put_secret(world, base64.b64encode(slack.encrypted(json.dumps({"Token": f"{TOKEN}\n"}).encode())))
    break_copies(world, world.trace())
    tell(run)
    assert slack.tokens == [TOKEN]


def test_a_slack_that_refuses_fails_no_task_and_is_told_again(world, run, slack):
    slack.answer = {"ok": False, "error": "channel_not_found"}
    break_copies(world, world.trace())
    tell(run)
    assert slack.messages == []
    slack.answer = {"ok": True}
    tell(run)
    assert len(slack.messages) == 1


def test_an_alert_whose_process_was_killed_before_slack_had_it_is_told_later(world, slack, monkeypatch):
    monkeypatch.setattr(notifications, "CLAIM_EXPIRES_AFTER", timedelta(minutes=10))  # for a slow machine
    world.window("ds.late", due=20 * 60)

    def killed(*_):
        monkeypatch.setattr(TaskStore, "remove", lambda *_: None)  # as nobody removes anything then
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(BqDispatchNotifier, "_post", killed)
        with pytest.raises(SystemExit):
            BqDispatchNotifier("#x").notify(idle_run())
    BqDispatchNotifier("#x").notify(idle_run())
    assert slack.messages == []
    world.control.advance(601)
    BqDispatchNotifier("#x").notify(idle_run())
    assert len(slack.messages) == 1
    world.control.advance(601)
    BqDispatchNotifier("#x").notify(idle_run())
    assert len(slack.messages) == 1


def test_alerts_whose_claims_cannot_be_removed_are_told_a_minute_later_and_slacks_answer_is_in_the_log(
    world, slack, capfd, caplog
):
    for dest in ("ds.late", "ds.later"):
        world.window(dest, due=20 * 60)
    slack.answer = {"ok": False, "error": "channel_not_found"}
    world.control.add_fault("storage.objects.delete", "status", bucket=JOURNAL, status=403)
    BqDispatchNotifier("#x").notify(idle_run())
    assert "channel_not_found" in "".join([*capfd.readouterr(), caplog.text])
    slack.answer = {"ok": True}
    world.control.advance(61)
    BqDispatchNotifier("#x").notify(idle_run())
    (message,) = slack.messages
    assert ("ds.late_" in message["text"], "ds.later_" in message["text"]) == (True, True)


def test_an_alert_whose_note_cannot_be_written_is_told_again(world, slack, monkeypatch, capfd, caplog):
    world.window("ds.late", due=20 * 60)
    write = TaskStore.write_json

    def refuse_notes(store, url, document, **more):
        if url.endswith(".json"):
            raise Forbidden("no")
        return write(store, url, document, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TaskStore, "write_json", refuse_notes)
        BqDispatchNotifier("#x").notify(idle_run())
    said = "".join([*capfd.readouterr(), caplog.text])
    assert ("so it is told again: Forbidden: 403 no" in said, "Could not post" in said) == (True, False)
    world.control.advance(61)
    BqDispatchNotifier("#x").notify(idle_run())
    assert len(slack.messages) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"ok": False, "error": "ratelimited"}, "'ratelimited': if that does not pass, check that the token"),
        ([{"ok": True}], "Slack answered with '[{\"ok\": true}]'; expected a JSON object"),
    ],
)
def test_what_slack_answers_is_in_the_log(world, slack, capfd, caplog, answer, said):
    world.window("ds.late", due=20 * 60)
    slack.answer = answer
    BqDispatchNotifier("#x").notify(idle_run())
    assert said in "".join([*capfd.readouterr(), caplog.text])


@pytest.mark.parametrize(
    "wrong",
    [
        {"channel": ""},
        {"channel": None},
        {"channel": ["#x"]},
        {"variables": "x"},
        *({"stuck_after": each} for each in ("soon", None, float("nan"), -1, timedelta(minutes=-1), 1e30)),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_file_is_read(wrong):
    """Later it would keep every alert from Slack, and a line of a log would be all that tells so."""
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} is "):
        BqDispatchNotifier(**{"channel": "#x", **wrong})


@pytest.mark.parametrize("stuck_after", [30, "30", timedelta(minutes=30)])
def test_how_long_a_window_may_wait_is_a_number_of_minutes_or_a_timedelta(world, slack, stuck_after):
    world.window("ds.late", due=40 * 60)
    world.window("ds.in_time", due=20 * 60)
    BqDispatchNotifier("#x", stuck_after=stuck_after).notify(idle_run())
    (message,) = slack.messages
    assert ("ds.late" in message["text"], "ds.in_time" in message["text"]) == (True, False)


def test_a_message_is_never_so_long_that_slack_would_cut_it(world, slack):
    """Slack cuts the text of a message at 40,000 characters (its API, "chat.postMessage")."""
    for number in range(notifications.MAX_ALERTS + 5):
        world.window(f"ds.{chr(97 + number)}{'&' * 700}", due=20 * 60)
    BqDispatchNotifier("#x").notify(idle_run())
    (message,) = slack.messages
    assert message["text"].count("stuck window") == notifications.MAX_ALERTS
    assert len(message["text"]) < 40_000
    assert not re.search(r"&(?!amp;)", message["text"])


def test_an_alert_that_was_not_posted_since_a_look_failed_is_told_again(world, slack):
    run = {"dag": SimpleNamespace(dag_id="d"), "run_id": "r", "logical_date": datetime.now(UTC), "reason": "timed_out"}
    world.control.add_fault("storage.objects.list", "status", bucket=TASKS, status=403)
    BqDispatchNotifier("#x").notify(run)
    assert slack.messages == []
    world.control.clear_faults()
    BqDispatchNotifier("#x").notify(run)
    (message,) = slack.messages
    assert "a run of the DAG d has failed: timed_out" in message["text"]


def idle_run():
    return {"dag": SimpleNamespace(dag_id="d"), "run_id": "r", "logical_date": datetime.now(UTC), "reason": "success"}


@pytest.fixture
def only_acme(slack, monkeypatch):
    """A set-up `acme`, and no connection of the set-up without a name."""
    monkeypatch.setenv("AIRFLOW_CONN_BQDISPATCH_ACME", os.environ["AIRFLOW_CONN_BQDISPATCH_DEFAULT"])
    monkeypatch.delenv("AIRFLOW_CONN_BQDISPATCH_DEFAULT")


def test_a_task_of_a_set_up_tells_by_its_own_connection(world, run, slack, only_acme):
    break_copies(world, world.trace())
    tell(run, "tells_of_acme")
    assert len(slack.messages) == 1


@pytest.mark.parametrize(
    "ended_last",
    [None, BaseOperator(task_id="other"), DispatchOperator(task_id="other", bqdispatch_conn_id="bqdispatch_missing")],
)
def test_a_dag_of_a_set_up_tells_by_its_first_tasks_connection(slack, only_acme, ended_last):
    """Airflow gives a DAG's callback one of the run's tasks: the last one in the database, or the last to end."""
    dag = dispatch_dag("acme")
    run = {"dag": dag, "run_id": "r", "logical_date": datetime.now(UTC), "reason": "timed_out"}
    if ended_last:
        run["ti"] = SimpleNamespace(task=ended_last, task_id="other")
    BqDispatchNotifier("#x").notify(run)
    (message,) = slack.messages
    assert "a run of the DAG bqdispatch_acme has failed: timed_out" in message["text"]


def test_a_dags_tasks_may_have_their_connection_by_a_template(slack, only_acme):
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
        DispatchOperator(task_id="dispatch", bqdispatch_conn_id="bqdispatch_{{ run_id }}")
    run = {"dag": dag, "run_id": "acme", "logical_date": datetime.now(UTC), "reason": "timed_out"}
    BqDispatchNotifier("#x").notify(run)
    assert len(slack.messages) == 1


def test_a_dags_mapped_tasks_tell_by_their_connection(slack, only_acme):
    """By that of another set-up its alerts would go to strangers."""
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
        task = DispatchOperator.partial(
            task_id="dispatch", bqdispatch_conn_id="bqdispatch_{{ run_id }}", variables={"a": "{{ run_id }}"}
        )
        task.expand(only=[{"projects": "a"}, {"projects": "b"}])
    run = {"dag": dag, "run_id": "acme", "logical_date": datetime.now(UTC), "reason": "timed_out"}
    BqDispatchNotifier("#x").notify(run)
    assert len(slack.messages) == 1


@pytest.mark.parametrize(("run_id", "given"), [("secrets", None), ("other", {"folder": "secrets"})])
def test_a_notifier_that_is_given_no_variables_has_those_of_the_tasks(slack, connect, run_id, given):
    url = SECRET_URL.replace("/secrets/", "/${folder}/")
    connect(SlackCredentials={**CREDENTIALS, "URL": url}, Region="europe-west1")
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
        DispatchOperator(task_id="dispatch", variables={"folder": "{{ run_id }}"})
    run = {"dag": dag, "run_id": run_id, "logical_date": datetime.now(UTC), "reason": "timed_out"}
    BqDispatchNotifier("#x", variables=given).notify(run)
    assert len(slack.messages) == 1


@pytest.mark.parametrize(
    "broken",
    [
        json.dumps({"Token": f"{TOKEN}\nx"}),
        json.dumps({"Token": [TOKEN]}),
        json.dumps({"Token": None}),
        f"{{{TOKEN}",
        json.dumps([TOKEN]),
    ],
)
def test_the_token_is_nowhere_but_in_slack(world, run, slack, capfd, caplog, broken):
    put_secret(world, slack.encrypted(broken.encode()))
    break_copies(world, world.trace())
    done = tell(run)
    slack.answer = {"ok": False, "error": "invalid_auth"}
    put_secret(world, slack.encrypted(json.dumps({"Token": TOKEN}).encode()))
    tell(run)
    slack.answer = {"ok": True}
    tell(run)
    assert len(slack.messages) == 1
    written = [world.blob(name, JOURNAL).download_as_bytes().decode() for name in world.names(JOURNAL, "journal/")]
    told = [*capfd.readouterr(), caplog.text, *written, repr(vars(BqDispatchNotifier("#x"))), str(slack.messages)]
    assert not [text for text in told if TOKEN in text]
    assert TOKEN not in str(done.returned("report"))


def test_what_is_too_large_for_a_token_is_not_read_to_its_end(world, run, slack, capfd, caplog):
    put_secret(world, bytes(notifications._MAX_TOKEN_BYTES + 1))
    break_copies(world, world.trace())
    tell(run)
    assert "is no encrypted token: it is larger than 131,072 bytes" in caplog.text + "".join(capfd.readouterr())
    assert slack.messages == []


def test_without_any_token_the_task_goes_on(world, connect, run, slack):
    connect()
    break_copies(world, world.trace())
    tell(run)
    assert (slack.messages, slack.tokens) == ([], [])
    assert world.names(JOURNAL, "journal/notified/") == []


def test_without_the_slack_provider_its_connection_is_no_way(world, run, slack, monkeypatch, capfd, caplog):
    monkeypatch.setitem(sys.modules, "airflow.providers.slack.hooks.slack", None)
    break_copies(world, world.trace())
    tell(run, "tells_by_a_connection")
    assert slack.messages == []
    assert "the Slack provider is not installed" in "".join([*capfd.readouterr(), caplog.text])


def test_names_call_nobody_and_link_nowhere(world, run, slack):
    break_copies(world, world.trace(dest="ds.<!channel> @here *big* <http:x|y>&`"))
    tell(run)
    (message,) = slack.messages
    assert (message["parse"], message["link_names"]) == ("none", False)
    assert message["mrkdwn"] is False
    assert "ds.&lt;!channel&gt; @here *big* &lt;http:x|y&gt;&amp;`" in message["text"]
    assert not {"<", ">"} & set(message["text"])
