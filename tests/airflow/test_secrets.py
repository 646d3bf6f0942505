"""Nothing that is secret is written anywhere: no log, XCom, journal, intent, database row or message shows it."""

import json
import logging
import sqlite3
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.exceptions import TaskDeferred
from airflow.providers.common.compat.sdk import DAG
from google.api_core.retry import Retry
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Client
from google.oauth2.credentials import Credentials
from world import JOURNAL, TASKS, TRIGGER

from bqdispatch_provider import hooks
from bqdispatch_provider.core.log_lines import share_summary
from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.journal import RunJournal
from bqdispatch_provider.operators import DispatchOperator, DispatchReportOperator
from bqdispatch_provider.sensors import BqDispatchSensor
from bqdispatch_provider.triggers import BqDispatchTrigger

KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC"
TOKEN = "ya29.a0AfB_byC-access-token"
SLACK = "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcBrzbqgy"
SECRETS = (KEY, TOKEN, SLACK)
KEYFILE = {
    "type": "service_account",
    "project_id": "p",
    "private_key_id": "0",
    "private_key": f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n",
    "client_email": "bqdispatch@p.iam.gserviceaccount.com",
    "client_id": "1",
    "token_uri": "https://oauth2.googleapis.com/token",
}


@pytest.fixture
def secret(world, connect, monkeypatch):
    """A connection whose variables, credentials and Slack object are secret; the services see the access token."""
    credentials = Credentials(TOKEN, expiry=datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1))
    sent = []

    def client_of(*_):
        client = Client(project="p", credentials=credentials, client_options={"api_endpoint": world.url})
        client._http.hooks["response"].append(lambda answer, **_: sent.append(answer.request.headers["Authorization"]))
        return client

    monkeypatch.setattr(hooks, "_client_of", client_of)
    monkeypatch.setattr("bqdispatch_provider.gcp.clients.session_of", lambda _: AuthorizedSession(credentials))
    document = world.document(
        AsyncTaskURL=f"gs://{TASKS}/${{folder}}/Tasks",
        MaxConcurrentSQL=3,
        SlackCredentials={"URL": f"gs://{JOURNAL}/slack.json.enc", "Key": "ring/key"},
    )
    world.client.bucket(JOURNAL).blob("slack.json.enc").upload_from_string(json.dumps({"Token": SLACK}))
    connect({"config": document, "variables": {"folder": "BqDispatch", "token": SLACK, "key": KEY}})
    google = {"conn_type": "google_cloud_platform", "extra": {"keyfile_dict": json.dumps(KEYFILE), "project": "p"}}
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(google))
    return sent


@pytest.fixture
def written(world, database, caplog, capfd):
    """All that has been written so far, by place."""
    caplog.set_level(logging.DEBUG)

    def read():
        out = capfd.readouterr()
        told = {"output": out.out, "errors": out.err, "log": caplog.text}
        formatter = logging.Formatter("%(message)s")
        told["tracebacks"] = "\n".join(formatter.format(record) for record in caplog.records)
        with sqlite3.connect(database) as connection:
            told["database"] = "\n".join(connection.iterdump())
        for bucket in (TASKS, TRIGGER, JOURNAL):
            for blob in world.client.list_blobs(bucket, versions=True):
                if blob.name not in ("slack.json.enc", "string.json", "keys.json"):
                    told[f"{bucket}/{blob.name}"] = f"{blob.name} {blob.metadata} {blob.download_as_bytes().decode()}"
        return told

    return read


def shown(told):
    return [(place, value) for place, text in told.items() for value in SECRETS if value in text]


def context_of(task_id):
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id=task_id, map_index=-1, try_number=1)
    ti.get_task_states = lambda **_: {}
    run = {"dag": SimpleNamespace(dag_id="d"), "run_id": "r", "logical_date": datetime(2026, 1, 1, tzinfo=UTC)}
    return {"ti": ti, **run, "dag_run": SimpleNamespace(get_task_instances=lambda **_: [])}


def direct(operator, **more):
    """What an operator returns or raises, as text."""
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)):
        made = operator(task_id=operator.__name__, **more)
    try:
        return made.execute(context_of(made.task_id))
    except TaskDeferred as deferred:
        return deferred.trigger.serialize()
    except Exception as error:
        return f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"


@pytest.mark.parametrize("dag_id", ["bqdispatch", "deferred", "mapped", "half_broken", "alone", "templated"])
def test_a_whole_run_shows_no_secret(world, secret, run, written, dag_id):
    world.traces(3)
    world.trace("query")
    world.window()
    run(dag_id, "bqdispatch.py" if dag_id == "bqdispatch" else "variants.py", timeout=10)
    assert world.names(TRIGGER)
    assert set(secret) == {f"Bearer {TOKEN}"}
    assert shown(written()) == []


CALLS = ["storage.objects.list", "storage.objects.copy", "storage.objects.delete", "storage.objects.insert"]
CALLS += ["storage.objects.get", "storage.objects.compose", "bigquery.jobs.get", "*"]


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("call", CALLS)
def test_a_refused_call_shows_no_secret(world, secret, written, call, status):
    world.traces(2)
    world.window()
    with BqDispatchHook().get_dispatcher() as dispatcher:
        shares = dispatcher.look().plan.shares()
        url = RunJournal(dispatcher.store, dispatcher.config, context_of("detect")).write_shares(shares)
    shares = [share_summary(share, url) for share in shares]
    world.control.add_fault(call, "status", status=status)
    told = {
        "sensor": direct(BqDispatchSensor, timeout=0, soft_fail=False),
        "deferrable": direct(BqDispatchSensor, deferrable=True),
        "operator": direct(DispatchOperator, shares=shares),
        "alone": direct(DispatchOperator, time_to_live=0),
        "report": direct(DispatchReportOperator),
        "connection": BqDispatchHook().test_connection(),
    }
    world.control.clear_faults()
    assert shown({place: str(each) for place, each in told.items()} | written()) == []


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 503}, {"kind": "reset"}])
def test_a_service_that_fails_shows_no_secret(world, secret, written, monkeypatch, fault):
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY", Retry(timeout=0.2))
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.2)
    world.traces(2)
    world.control.add_fault("*", **fault)
    told = {
        "sensor": direct(BqDispatchSensor, timeout=0),
        "report": direct(DispatchReportOperator),
    }
    world.control.clear_faults()
    assert shown({place: str(each) for place, each in told.items()} | written()) == []


def test_an_exception_within_a_cycle_shows_no_secret(world, secret, written, monkeypatch):
    world.traces(2)
    monkeypatch.setattr("bqdispatch_provider.cycle.observation.plan", lambda *_: 1 / 0)
    told = {"alone": str(direct(DispatchOperator, time_to_live=0)), "sensor": str(direct(BqDispatchSensor))}
    assert "ZeroDivisionError" in written()["log"]
    assert "division" in told["sensor"]
    assert shown(told | written()) == []


def test_a_deferred_sensor_hands_no_secret_to_its_trigger(world, secret):
    world.trace(state="RUNNING")
    path, arguments = direct(BqDispatchSensor, deferrable=True)
    assert path.endswith(BqDispatchTrigger.__name__)
    assert shown({"arguments": json.dumps(arguments, default=str)}) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"TriggerBucket": "${token}"},
        {"JournalURL": "${token}"},
        {"ProjectID": "${key}/x"},
        {"OnDoubt": "${token}"},
        {"MaxConcurrentSQL": "${token}"},
        {"BatchPrefix": "${line}"},
        {"SlackCredentials": {"Token": SLACK}},
        {"SlackCredentials": SLACK},
        {"SlackCredentials": {"URL": SLACK, "Key": SLACK}},
        {"AsyncTaskURL": "${missing}"},
    ],
)
def test_a_configuration_that_cannot_be_used_shows_no_secret(world, connect, written, wrong):
    connect({"config": world.document(**wrong), "variables": {"token": SLACK, "key": KEY, "line": f"{SLACK}\n"}})
    works, said = BqDispatchHook().test_connection()
    assert not works
    told = {"test": said, "sensor": str(direct(BqDispatchSensor)), "report": str(direct(DispatchReportOperator))}
    assert shown(told | written()) == []


@pytest.mark.parametrize(
    "extra",
    [
        {"config": f'{{"token": "{SLACK}", }}'},
        {"config_url": "gs://journal/slack.json.enc"},
        {"config_url": "gs://journal/string.json"},
        {"config_url": "gs://journal/keys.json"},
        {"config_url": "file:///tmp/token", "variables": {"token": SLACK}},
        {"config": SLACK},
        {"config": json.dumps(SLACK)},
        {"AsyncTaskURL": "gs://ops/x", "variables": SLACK},
        {"AsyncTaskURL": "gs://ops/x", "config": {"Token": SLACK}},
        {"AsyncTaskURL": "gs://ops/x", "variables": f'["{SLACK}"]'},
    ],
)
def test_an_extra_that_cannot_be_used_shows_no_secret(world, secret, connect, written, extra):
    for name, document in (("string.json", SLACK), ("keys.json", {SLACK: KEY})):
        blob = world.client.bucket(JOURNAL).blob(name)
        blob.upload_from_string(json.dumps(document))
    connect(extra)
    works, said = BqDispatchHook().test_connection()
    assert not works
    assert shown({"test": said, "sensor": str(direct(BqDispatchSensor))} | written()) == []


def test_credentials_that_cannot_be_used_are_not_shown(world, connect, written, monkeypatch):
    google = {"conn_type": "google_cloud_platform", "extra": {"keyfile_dict": json.dumps(KEYFILE), "project": "p"}}
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(google))
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    works, said = BqDispatchHook().test_connection()
    told = {"test": said, "sensor": str(direct(BqDispatchSensor))}
    with suppress(Exception):
        BqDispatchHook().get_config()
    assert not works
    assert shown(told | written()) == []
