"""`docker compose up` without a profile, from the first start to the last trace of it."""

import json
from datetime import UTC, datetime

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client
from stack import ROOT, Stack

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.testing.bqtail import BqTailSettings, StandInBqTail
from bqdispatch_provider.testing.standin import StandInControl

PROFILES = ((), ("celery",), ("fake-gcs",), ("celery", "fake-gcs"))
ONCE = {"secrets", "init", "celery", "fake-gcs-storage", "gcp"}
EVENTS = 20
HOUR_S = 3600


@pytest.fixture(scope="module")
def stack():
    with Stack() as stack:
        stack.up()
        yield stack


@pytest.mark.parametrize("profiles", PROFILES, ids=lambda profiles: " and ".join(profiles) or "no profile")
def test_the_file_is_valid_with_every_profile(profiles):
    with Stack() as unstarted:
        unstarted.compose(*(word for profile in profiles for word in ("--profile", profile)), "config", "--quiet")


def test_every_service_has_limits_and_those_that_stay_a_health_check():
    with Stack("*") as unstarted:
        services = json.loads(unstarted.compose("config", "--format", "json"))["services"]
    assert {
        name for name, service in services.items() if not (service.get("cpus") and service.get("mem_limit"))
    } == set()
    assert {name for name, service in services.items() if "healthcheck" not in service} == ONCE


def test_the_profile_gcp_has_no_stand_ins():
    with Stack() as unstarted:
        text = unstarted.compose("--env-file", "deploy/compose/gcp.env", "config", "--format", "json")
    services = json.loads(text)["services"]
    assert {name for name, service in services.items() if service.get("scale") == 0} == {"cloud", "bqtail"}
    assert (
        services["scheduler"]["environment"] | {"STORAGE_EMULATOR_HOST": "", "BIGQUERY_EMULATOR_HOST": ""}
        == (services["scheduler"]["environment"])
    )
    assert "gcp" in services["scheduler"]["depends_on"]


def test_every_service_is_healthy(stack):
    states = {each["Service"]: each["Health"] or f"{each['State']} {each['ExitCode']}" for each in stack.services()}
    staying = ("api-server", "bqtail", "cloud", "dag-processor", "postgres", "scheduler", "triggerer")
    assert states == {**dict.fromkeys(staying, "healthy"), "secrets": "exited 0", "init": "exited 0"}


def test_no_port_is_open_beyond_this_machine(stack):
    ports = [port for each in stack.services() for port in each["Publishers"] or () if port["PublishedPort"]]
    assert {port["URL"] for port in ports} == {"127.0.0.1"}
    assert {port["TargetPort"] for port in ports} == {8080, 9023}


def test_the_page_is_there_and_nobody_gets_in_without_the_password(stack):
    assert requests.get(stack.url, timeout=30).ok
    assert requests.get(f"{stack.url}/api/v2/pools", timeout=30).status_code == 401


def test_pools_and_connections_are_there(stack):
    pools = {pool["name"]: pool["slots"] for pool in stack.get("pools")["pools"]}
    assert (pools["bqdispatch_sql"], pools["bqdispatch_jobs"]) == (10, 20)
    connections = {each["connection_id"]: each["conn_type"] for each in stack.get("connections")["connections"]}
    assert connections == {"bqdispatch_default": "bqdispatch", "google_cloud_default": "google_cloud_platform"}


def test_the_profile_gcp_without_settings_says_so_before_anything_is_touched(stack):
    said = stack.compose("--profile", "gcp", "run", "--rm", "--no-deps", "gcp", check=False)
    assert "copy deploy/compose/gcp.env there" in said


def test_every_event_goes_through_once_while_the_scheduler_and_postgresql_restart(stack):
    for service in ("scheduler", "postgres"):
        assert stack.wait_for("a run that is under way", lambda: stack.runs("running"))
        stack.compose("restart", service)
        stack.wait_for_runs(1)
    stack.wait_for(f"{EVENTS} events", lambda: stack.fed() >= EVENTS)
    account = stack.end_the_feed()
    assert account["ok"], account["problems"]
    assert account["events"] == account["finished"] >= EVENTS


def test_one_run_dispatches_twenty_events_that_its_sensor_has_waited_for(stack):
    """The jobs of all events end at one moment, for which the stand-in's clock is moved."""
    config = DispatchConfig.from_url(f"file://{ROOT}/deploy/compose/dispatch.json")
    client = Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": stack.cloud_url})
    lasting = (HOUR_S * 1000, HOUR_S * 1000)
    settings = BqTailSettings.for_dispatcher(
        config, window_s=0, chain=("load",), then=("insert", "notify"), pending_ms=(0, 0), running_ms=lasting
    )
    bqtail = StandInBqTail(client, requests.Session(), stack.cloud_url, settings)
    for _ in range(EVENTS):
        # A table of its own: event IDs begin anew, and the jobs of the first BqTail's events are done.
        bqtail.put_file("sales.refunds")

    def waiting():
        """The run under way when its sensor waits, and has half of its time left."""
        for run in stack.runs("running"):
            age = datetime.now(UTC) - datetime.fromisoformat(run["start_date"])
            if age.total_seconds() < 25 and stack.tasks(run)["detect"]["state"] == "running":
                return run
        return None

    run = stack.wait_for("a sensor that waits", waiting)
    with StandInControl(stack.cloud_url) as control:
        control.advance(HOUR_S)
    stack.wait_for("all events", lambda: bqtail.step() + 1 and bqtail.counters().finished == EVENTS)
    assert bqtail.account().ok
    stack.wait_for("the run's end", lambda: run["dag_run_id"] in {each["dag_run_id"] for each in stack.runs("success")})
    documents = [
        json.loads(blob.download_as_bytes())
        for blob in client.list_blobs("demo-ops", prefix="BqTail/Journal/runs/")
        if blob.name.endswith(f"/{run['dag_run_id']}.json")
    ]
    assert [document["Dispatched"] for document in documents] == [{"LoadJobs": EVENTS}]


def test_down_leaves_nothing(stack):
    assert stack.left()
    stack.compose("down", "--volumes")
    assert stack.left() == []


def test_the_readme_has_the_commands_that_were_run_here(stack):
    """The commands of docs/compose.md."""
    assert stack.commands_of_the_readme()
    assert [command for command in stack.commands_of_the_readme() if command not in stack.commands] == []
