"""The connection: its forms, what a test of it says, and what it keeps to itself."""

import asyncio
import json
import logging
from contextlib import closing
from datetime import UTC, datetime
from io import BytesIO
from itertools import combinations
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import requests
from google.api_core.exceptions import Forbidden
from world import FOLDER, JOURNAL, TASKS

from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.config_source import MAX_DOCUMENT_BYTES
from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.provider_info import get_provider_info


@pytest.fixture
def hook(connect):
    return BqDispatchHook()


def finding(extra, connect):
    connect(extra)
    with pytest.raises(ConfigError) as raised:
        BqDispatchHook().get_config()
    assert len(raised.value.findings) == 1
    return str(raised.value)


def test_the_documents_keys_may_be_the_extra_itself(world, hook):
    assert hook.get_config().async_task_url == f"gs://{TASKS}/{FOLDER}"


@pytest.mark.parametrize("form", [dict, json.dumps])
def test_the_document_may_be_an_object_or_a_string(world, connect, form):
    connect({"config": form(world.document(MaxConcurrentSQL=7))})
    assert BqDispatchHook().get_config().max_concurrent_sql == 7


def test_the_hooks_conn_is_a_client_of_cloud_storage(world, hook):
    world.trace()
    with closing(hook.get_conn()) as client:
        assert [blob.name for blob in client.list_blobs(TASKS)] == [f"{FOLDER}{name}" for name in world.names()]


def test_the_document_may_lie_in_a_file_of_a_folder_that_is_named(world, connect, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(world.document(MaxConcurrentSQL=7)))
    connect({"config_url": (tmp_path / "config.json").as_uri()})
    monkeypatch.setenv("BQDISPATCH_FILE_ROOTS", f"/nowhere:{tmp_path}:")
    assert BqDispatchHook().get_config().max_concurrent_sql == 7


@pytest.mark.parametrize("roots", [None, "", ":", "/nowhere"])
def test_any_other_file_is_refused(world, connect, tmp_path, monkeypatch, roots):
    (tmp_path / "config.json").write_text(json.dumps(world.document()))
    monkeypatch.delenv("BQDISPATCH_FILE_ROOTS", raising=False)
    if roots is not None:
        monkeypatch.setenv("BQDISPATCH_FILE_ROOTS", roots)
    for file in (tmp_path / "config.json", Path("/etc/passwd"), Path("/proc/self/environ")):
        assert "BQDISPATCH_FILE_ROOTS" in finding({"config_url": file.as_uri()}, connect)


def test_a_document_in_a_bucket_has_a_mebibyte_at_most(world, connect):
    blob = world.client.bucket(JOURNAL).blob("config.json")
    connect({"config_url": f"gs://{JOURNAL}/config.json"})
    document = json.dumps(world.document())
    blob.upload_from_string(document.ljust(MAX_DOCUMENT_BYTES))
    assert BqDispatchHook().get_config().project_id == "p"
    world.control.advance(1)  # a name takes one change a second, and older clients do not retry
    blob.upload_from_string(document.ljust(MAX_DOCUMENT_BYTES + 1))
    works, said = BqDispatchHook().test_connection()
    assert (works, "it is larger than 1,048,576 bytes" in said) == (False, True)


def test_the_document_may_lie_in_a_bucket(world, connect):
    world.client.bucket(JOURNAL).blob("config.json").upload_from_string(json.dumps(world.document(MaxConcurrentSQL=7)))
    connect({"config_url": f"gs://{JOURNAL}/config.json"})
    assert BqDispatchHook().get_config().max_concurrent_sql == 7


def test_fields_that_a_form_leaves_empty_are_not_there(world, connect):
    connect({"config": json.dumps(world.document()), "config_url": "", "variables": "", "gcp_conn_id": None})
    assert BqDispatchHook().get_config().project_id == "p"


def test_given_variables_go_before_the_connections(world, connect):
    config = world.document(JournalURL="gs://${one}/${two}")
    connect({"config": config, "variables": '{"one": "mine", "two": "mine"}'})
    assert BqDispatchHook().get_config({"two": "given"}).journal_url == "gs://mine/given/"


def test_variables_that_are_no_dict_are_one_clear_message(world, connect):
    connect({"config": world.document()})
    with pytest.raises(ConfigError, match=r"the argument variables is 'x'; expected a dict"):
        BqDispatchHook().get_config("x")


def test_a_connection_without_a_configuration_says_what_it_expects(connect):
    said = finding({"gcp_conn_id": "google_cloud_default"}, connect)
    assert "connection 'bqdispatch_default'" in said
    assert "holds no configuration; expected exactly one of config" in said


def test_a_connection_with_two_configurations_names_both(world, connect):
    said = finding({"config_url": "gs://b/c.json", "AsyncTaskURL": "gs://b/t"}, connect)
    assert "config_url and the key AsyncTaskURL" in said


def test_a_document_that_is_no_json_is_told(connect):
    assert "config is no JSON" in finding({"config": "{"}, connect)


def test_the_connection_is_named_once_whatever_is_found(connect):
    connect({"config": {"AsyncTaskURL": "ops"}})
    with pytest.raises(ConfigError) as raised:
        BqDispatchHook().get_config()
    assert len(raised.value.findings) == 3
    said = str(raised.value)
    assert said.startswith("the configuration of connection 'bqdispatch_default' is invalid:\n  - ")
    assert said.count("connection") == 1


def test_the_uri_of_a_connection_may_carry_the_documents_keys(world, monkeypatch):
    keys = urlencode(world.document(MaxConcurrentSQL=7))
    monkeypatch.setenv("AIRFLOW_CONN_BQDISPATCH_DEFAULT", f"bqdispatch://?{keys}")
    assert BqDispatchHook().get_config().max_concurrent_sql == 7


def test_a_field_may_be_called_as_older_forms_had_it(world, connect):
    older = {"config": json.dumps(world.document(MaxConcurrentSQL=7)), "config_url": ""}
    connect({f"extra__bqdispatch__{key}": value for key, value in older.items()})
    assert BqDispatchHook().get_config().max_concurrent_sql == 7


def test_of_a_field_that_is_there_twice_the_newer_form_counts(world, connect):
    newer, older = ({"config": world.document(MaxConcurrentSQL=limit)} for limit in (7, 9))
    connect({**newer, **{f"extra__bqdispatch__{key}": value for key, value in older.items()}})
    assert BqDispatchHook().get_config().max_concurrent_sql == 7


def test_a_misspelt_limit_fails_the_connections_test(world, connect):
    connect(world.document(MaxConcurentSQL=7))
    works, said = BqDispatchHook().test_connection()
    assert not works
    assert "MaxConcurentSQL is no key of the configuration and is ignored; did you mean MaxConcurrentSQL?" in said


def test_a_connection_that_works_says_what_was_read(world, hook):
    world.trace(project="q")
    works, said = hook.test_connection()
    assert works
    assert "the jobs of p, q can be read" in said


def test_a_connection_test_names_each_missing_permission_at_once(world, hook):
    world.control.add_fault("storage.objects.list", "status", bucket=JOURNAL, status=403)
    world.control.add_fault("storage.objects.get", "status", bucket="p_bqtail", status=403)
    world.control.add_fault("bigquery.jobs.list", "status", project="p", status=403)
    works, said = hook.test_connection()
    assert not works
    assert f"storage.objects.list on bucket {JOURNAL} is missing" in said
    assert "storage.objects.get on bucket p_bqtail is missing" in said
    assert "bigquery.jobs.list, or bigquery.jobs.listAll, on project p is missing" in said
    assert said.count(" is missing") == 3


def test_a_connection_test_names_a_bucket_that_is_not_there(world, connect):
    connect(world.document(AsyncTaskURL="gs://nowhere/tasks"))
    works, said = BqDispatchHook().test_connection()
    assert (works, "bucket nowhere does not exist" in said) == (False, True)


def test_a_connection_test_names_settings_of_buckets_that_are_in_the_way(world, hook):
    bucket = world.client.get_bucket(TASKS)
    bucket.retention_period = 60
    bucket.patch()
    trigger = world.client.get_bucket("p_bqtail")
    trigger.default_event_based_hold = True
    trigger.patch()
    works, said = hook.test_connection()
    assert not works
    assert f"bucket '{TASKS}' has a retention policy" in said
    assert "bucket 'p_bqtail' has a default event-based hold" in said
    assert said.count("has a ") == 2


def test_a_connection_test_says_what_it_cannot_check(world, hook):
    world.control.refuse("storage.buckets.get", bucket=TASKS)
    works, said = hook.test_connection()
    assert works
    assert f"lifecycle rules of bucket '{TASKS}' cannot be checked: needs storage.buckets.get" in said
    assert said.count("cannot be checked") == 1


def test_a_connection_test_tells_of_a_bad_configuration(connect):
    connect({"config": {}})
    works, said = BqDispatchHook().test_connection()
    assert not works
    assert "AsyncTaskURL is missing" in said


def test_a_connection_test_is_one_harmless_line_whatever_projects_are_named(world, hook):
    world.trace(project="\x1b[2J\u202eq")
    works, said = hook.test_connection()
    assert works
    assert said.isprintable()
    world.control.refuse("bigquery.jobs.list", project="\x1b[2J\u202eq")
    works, said = hook.test_connection()
    assert not works
    assert "bigquery.jobs.list" in said
    assert said.isprintable()


def test_the_google_connections_credentials_and_project_are_used(world, connect, monkeypatch):
    connect({key: value for key, value in world.document().items() if key != "ProjectID"})
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    with BqDispatchHook().get_dispatcher() as dispatcher:
        assert dispatcher.config.project_id == "p"
        assert dispatcher.config.trigger_bucket == "p_bqtail"


def test_calls_are_counted_for_the_quota_project_on_any_google_provider(world, connect, monkeypatch):
    from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    from google.oauth2.credentials import Credentials

    connect({"config": world.document(), "quota_project_id": "counted"})
    for variable in ("BIGQUERY_EMULATOR_HOST", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps({"conn_type": "google_cloud_platform"}))
    monkeypatch.setattr(GoogleBaseHook, "get_credentials_and_project_id", lambda _: (Credentials("token"), "p"))
    headers = {}
    BqDispatchHook().get_conn()._credentials.apply(headers)
    assert headers["x-goog-user-project"] == "counted"


AUTHORITY = {"authorization", "x-goog-user-project"}
HOSTS = {
    "STORAGE_EMULATOR_HOST": "storage.googleapis.com",
    "BIGQUERY_EMULATOR_HOST": "bigquery.googleapis.com",
    "PUBSUB_EMULATOR_HOST": "pubsub.googleapis.com",
}


@pytest.mark.parametrize("emulated", [each for number in range(4) for each in combinations(HOSTS, number)])
def test_no_stand_in_sees_credentials_and_every_service_does(world, connect, monkeypatch, emulated):
    from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    from google.oauth2.credentials import Credentials

    connect({"config": world.document(), "subscription": "projects/p/subscriptions/jobs"})
    hosts = {variable: f"stand-in-{variable[:3].lower()}.test:1" for variable in emulated}
    for variable in HOSTS:
        monkeypatch.setenv(variable, hosts.get(variable, ""))
    credentials = Credentials("token", quota_project_id="counted")
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps({"conn_type": "google_cloud_platform"}))
    monkeypatch.setattr(GoogleBaseHook, "get_credentials_and_project_id", lambda _: (credentials, "p"))
    sent = []

    def send(_, request, **more):
        sent.append((urlsplit(request.url).netloc, {each for each in AUTHORITY if each in request.headers}))
        return answer_to(request, 403, b'{"error": {"code": 403, "message": "no"}}')

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    works, said = BqDispatchHook().test_connection()
    assert (works, said.count(" is missing (403 ")) == (False, 6)
    assert {host for host, _ in sent} == {hosts.get(variable, host) for variable, host in HOSTS.items()}
    for host, headers in sent:
        assert headers == (set() if host in hosts.values() else AUTHORITY), host


def answer_to(request, status, body):
    answer = requests.Response()
    answer.status_code, answer.request, answer.url, answer.raw = status, request, request.url, BytesIO(body)
    answer.headers["Content-Type"] = "application/json"
    return answer


def test_each_set_up_with_an_impersonation_chain_acts_as_its_own_account(world, monkeypatch):
    """And so gets what that account may, whatever its document names."""
    from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    from google.oauth2.credentials import Credentials

    def credentials(hook):
        return Credentials(hook.impersonation_chain[-1]), "p"

    for variable in ("BIGQUERY_EMULATOR_HOST", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps({"conn_type": "google_cloud_platform"}))
    monkeypatch.setattr(GoogleBaseHook, "get_credentials_and_project_id", credentials)
    sent = []

    def refused(session, request, **_):
        sent.append((request.url, request.headers["authorization"]))
        answer = requests.Response()
        answer.status_code, answer.request, answer._content = 403, request, b"{}"
        return answer

    monkeypatch.setattr(requests.Session, "send", refused)
    for tenant in ("acme", "other"):
        # The document of one names the task folder of the other.
        extra = {"config": world.document(AsyncTaskURL="gs://of-other/Tasks"), "impersonation_chain": f"{tenant}@x"}
        connection = {
            "conn_type": "bqdispatch",
            "extra": {**extra, "subscription": "projects/p/subscriptions/finished"},
        }
        monkeypatch.setenv(f"AIRFLOW_CONN_BQDISPATCH_{tenant.upper()}", json.dumps(connection))
        hook = BqDispatchHook(f"bqdispatch_{tenant}")
        with hook.get_dispatcher() as dispatcher:
            subscription = hook.get_subscription(dispatcher.session)
            assert "of-other" in dispatcher.cycle().errors[0]
            dispatcher.board.active(["p"], datetime.now(UTC))
            with pytest.raises(Forbidden):
                subscription.test_permissions(["pubsub.subscriptions.consume"])
        services = {url.split("/")[2].partition(".")[0] for url, _ in sent}
        assert services == {"storage", "bigquery", "pubsub"}
        assert {token for _, token in sent} == {f"Bearer {tenant}@x"}
        sent.clear()


def test_a_resolved_hook_asks_airflow_for_nothing_more(world, connect, monkeypatch):
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    hook = asyncio.run(BqDispatchHook.resolved("bqdispatch_default"))
    monkeypatch.delenv("AIRFLOW_CONN_BQDISPATCH_DEFAULT")
    monkeypatch.delenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT")
    with hook.get_dispatcher() as dispatcher:
        assert dispatcher.look().plan.listed == 0


def test_variables_stay_out_of_repr_and_logs(world, connect, caplog):
    connect({"config": world.document(), "variables": {"token": "hush-hush"}})
    with caplog.at_level(logging.DEBUG):
        hook = BqDispatchHook()
        config = hook.get_config()
    assert "hush-hush" not in f"{hook!r} {config!r} {caplog.text}"


def test_what_a_dispatcher_used_is_closed_with_it(world, hook, monkeypatch):
    closed = []
    monkeypatch.setattr(requests.Session, "close", lambda session: closed.append(session))
    with hook.get_dispatcher() as dispatcher:
        used = [dispatcher._client._http, dispatcher.session]
        assert not any(session in closed for session in used)
    assert all(session in closed for session in used)


def test_what_a_dispatcher_would_use_is_closed_when_there_is_none(world, connect, monkeypatch):
    closed = []
    monkeypatch.setattr(requests.Session, "close", lambda session: closed.append(session))
    connect({"config": {}})
    with pytest.raises(ConfigError), BqDispatchHook().get_dispatcher():
        pass
    assert len(closed) > 0


def test_both_forms_hide_the_same_fields():
    (connection,) = get_provider_info()["connection-types"]
    behaviour = connection["ui-field-behaviour"]
    assert behaviour["hidden-fields"] == BqDispatchHook.get_ui_field_behaviour()["hidden_fields"]


def test_a_subscription_is_tried_with_the_connection_and_named_in_full(world, connect, monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", world.url)
    connect({"config": world.document(), "subscription": "projects/p/subscriptions/jobs"})
    works, said = BqDispatchHook().test_connection()
    assert (works, "subscription projects/p/subscriptions/jobs does not exist" in said) == (False, True)
    for path, body in (("topics/jobs", {}), ("subscriptions/jobs", {"topic": "projects/p/topics/jobs"})):
        requests.put(f"{world.url}/v1/projects/p/{path}", json=body, timeout=10).raise_for_status()
    assert BqDispatchHook().test_connection()[0]
    connect({"config": world.document(), "subscription": "jobs"})
    assert "expected projects/<project>/subscriptions/<subscription>" in BqDispatchHook().test_connection()[1]
