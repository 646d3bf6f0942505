"""`bqdispatch smoke` finds what is wrong with a set-up, names it, and leaves nothing behind."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from terminal import on_a_terminal
from waiting import HELD_MS, PATIENCE_S, wait_until
from world import FOLDER, JOURNAL, TASKS, TRIGGER, World

from bqdispatch_provider.commands import smoke, trial
from bqdispatch_provider.commands.checks import CheckResult
from bqdispatch_provider.commands.job_checks import trace_name_of
from bqdispatch_provider.commands.pools import LocalPools, expected_pools, pool_problems
from bqdispatch_provider.commands.smoke import check_set_up
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.core.model import JobKey
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.testing.standin.storage_conditions import Conditions

BIN = Path(sys.executable).parent
ERRORS = "errors"
QUIET = {"ErrorURL": f"gs://{ERRORS}/errors"}


@pytest.fixture
def look(world):
    """Runs all checks of a set-up; the stand-in's time flies while the trial waits for its objects to be old enough."""
    world.session.post(f"{world.url}/storage/v1/b?project=p", json={"name": ERRORS}).raise_for_status()

    def run(breaks=lambda _: None, pools=None, bqtail=None, others=None, url=None, **more):
        flown = []

        def go_on():
            if not flown:
                flown.append(world.control.advance(5))
            return True

        config = replace(world.config(**{**QUIET, **more}).for_project("p"), url=url)
        wanted = expected_pools(config)
        problems = pool_problems(wanted if pools is None else pools, wanted)
        bqtail = None if bqtail is None else world.config(**{**QUIET, **bqtail})
        before = [world.names(bucket) for bucket in (TASKS, JOURNAL, ERRORS)]
        breaks(world)
        with_whom = {"bqtail": bqtail, "others": others, "go_on": go_on}
        checks = list(check_set_up(config, world.client, world.session, problems, **with_whom))
        world.control.allow_all()
        assert [world.names(bucket) for bucket in (TASKS, JOURNAL, ERRORS)] == before
        return checks

    return run


def findings(checks, result=CheckResult.FAILED):
    return {check.what: check.finding for check in checks if check.result is result}


def test_a_whole_set_up_passes_and_both_events_arrive(world, look, intents_stay_young):
    world.trace()
    checks = look(MaxConcurrentSQL=1, MaxConcurrentJobs=1, bqtail={})
    assert findings(checks) == {}
    assert findings(checks, CheckResult.WARNING) == {}
    passed = findings(checks, CheckResult.OK)
    assert passed["a trace"] == "arrived of job 'ds_t--1001_00001_load--dispatch' in US"
    assert passed["a window"] == "arrived"
    copies, window, claim_and_fired, written_down, completed = 2, 1, 2, 2, 2
    assert passed["clean-up"] == f"removed {copies + window + claim_and_fired + written_down + completed} objects"
    assert "PostJobPrefix of both" in passed


def test_the_trigger_bucket_sees_nothing_of_it_and_no_job_is_submitted(world, look):
    world.trace()
    world.control.reset_counters()
    assert findings(look()) == {}
    assert world.deleted(TRIGGER) == world.names(TRIGGER) == []
    assert "bigquery.jobs.insert" not in world.control.calls()


def test_the_roles_are_enough(world, look):
    """What README's table lacks is refused: deleting in the trigger bucket, and reading the settings of the others."""
    world.trace()
    for bucket in (TASKS, JOURNAL, ERRORS):
        for permission in ("storage.buckets.get", "storage.objects.update"):
            world.control.refuse(permission, bucket=bucket)
    for permission in ("storage.objects.delete", "storage.objects.update"):
        world.control.refuse(permission, bucket=TRIGGER)
    assert findings(look()) == {}


def refused(permission, **where):
    return lambda world: world.control.refuse(permission, **where)


def without_trigger_bucket(world):
    world.client.bucket(TRIGGER).delete()


def astray(world):
    world.jobs(["ds_t--77_00001_load--dispatch"], location="EU")


def unconsumed(world):
    created = world.control.now() - 3600
    world.control.seed_objects(TRIGGER, [{"name": "_bqjob_/2026-01-01_00/x.json", "timeCreated": created}])


def gone_project(world):
    world.control.add_fault("bigquery.jobs.list", "status", status=404, reason="notFound")


LOAD = {"trigger bucket, traces", "trigger bucket, windows"}
BROKEN = {
    "task folder not listed": (refused("storage.objects.list", bucket=TASKS), {"task folder"}, "objects.list"),
    "task folder not read": (refused("storage.objects.get", bucket=TASKS), {"task folder"}, "objects.get"),
    "task folder not written": (refused("storage.objects.create", bucket=TASKS), {"task folder"}, "objects.create"),
    "task folder not emptied": (refused("storage.objects.delete", bucket=TASKS), {"task folder"}, "objects.delete"),
    "a condition on the task folder": (
        refused("storage.objects.delete", bucket=TASKS, prefix=FOLDER),
        {"task folder"},
        "storage.objects.delete is refused in this folder",
    ),
    "trigger bucket not written": (refused("storage.objects.create", bucket=TRIGGER), LOAD, "objects.create"),
    "trigger bucket not read": (refused("storage.objects.get", bucket=TRIGGER), LOAD, "objects.get"),
    "trigger bucket not listed": (refused("storage.objects.list", bucket=TRIGGER), LOAD, "objects.list"),
    "a condition on the trigger bucket": (
        refused("storage.objects.create", bucket=TRIGGER, prefix="_batch_/"),
        {"trigger bucket, windows"},
        "storage.objects.create is refused in this folder",
    ),
    "settings of the trigger bucket": (
        refused("storage.buckets.get", bucket=TRIGGER),
        {"what was consumed"},
        "storage.buckets.get is missing",
    ),
    "no trigger bucket": (without_trigger_bucket, LOAD, f"bucket '{TRIGGER}' does not exist"),
    "journal not written": (refused("storage.objects.create", bucket=JOURNAL), {"journal"}, "objects.create"),
    "journal not overwritten": (refused("storage.objects.delete", bucket=JOURNAL), {"journal"}, "objects.delete"),
    "errors not written": (refused("storage.objects.create", bucket=ERRORS), {"errors"}, "objects.create"),
    "jobs not listed": (refused("bigquery.jobs.list"), {"jobs"}, "bigquery.jobs.list is missing"),
    "jobs of others": (refused("bigquery.jobs.listAll"), {"jobs"}, "bigquery.jobs.listAll is missing"),
    "jobs not looked up": (refused("bigquery.jobs.get"), {"jobs"}, "bigquery.jobs.get is missing"),
    "another project": (gone_project, {"jobs"}, "see that ProjectID is right"),
    "wrong location": (astray, {"location"}, "move these traces into the folder proj:p:EU/"),
    "nobody consumes": (unconsumed, {"BqTail consumes"}, "BqTail has not consumed 1 object"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_set_up_is_found_and_named(world, look, broken):
    world.trace()
    world.put("proj:p:US/ds.t--77_00001_load--dispatch")
    breaks, what, said = BROKEN[broken]
    found = findings(look(breaks))
    assert found.keys() == what
    assert said in next(found[each] for each in sorted(what))


def folders_of_the_console(world):
    created = world.control.now() - 3600
    folders = ("_bqjob_/", "_bqjob_/2026-01-01_00/", "_batch_/")
    world.control.seed_objects(TRIGGER, [{"name": name, "timeCreated": created} for name in folders])


def test_a_folder_that_somebody_has_made_there_waits_for_nobody(world, look):
    world.trace()
    assert findings(look(folders_of_the_console)) == {}


@pytest.mark.parametrize("minutes", [9, 11])
def test_what_bqtail_has_not_consumed_is_found_when_each_run_says_so(world, look, minutes):
    world.trace()
    created = world.control.now() - minutes * 60
    found = findings(
        look(lambda world: world.control.seed_objects(TRIGGER, [{"name": "_batch_/x", "timeCreated": created}]))
    )
    assert ("BqTail consumes" in found) is (minutes == 11)


@pytest.mark.parametrize(
    ("key", "theirs"),
    [
        ("PostJobPrefix", "/_jobs_/"),
        ("BatchPrefix", "/_windows_/"),
        ("TriggerBucket", "another_bqtail"),
        ("AsyncTaskURL", "gs://ops/Other/Tasks"),
    ],
)
def test_what_differs_from_bqtails_configuration_is_named(world, look, key, theirs):
    """By the command of docs/permissions.md."""
    world.trace()
    found = findings(look(bqtail={key: theirs}))
    assert found.keys() == {f"{key} of both"}
    assert theirs in found[f"{key} of both"]


def test_a_project_that_is_not_bqtails_is_named(world, look):
    """The limits and the evidence of loads go by it."""
    world.trace()
    found = findings(look(bqtail={"ProjectID": "another", "TriggerBucket": "p_bqtail"}, TriggerBucket="p_bqtail"))
    assert found == {"ProjectID of both": "is 'p' here and 'another' there: give the same in both"}


def test_a_project_that_bqtails_configuration_does_not_name_is_not_compared(world, look):
    """BqTail takes its function's own then, which nothing tells here."""
    world.trace()
    checks = look(bqtail={"ProjectID": ""})
    assert findings(checks) == {}
    assert "'p'" in findings(checks, CheckResult.NOT_CHECKED)["ProjectID of both"]


DOCUMENT = f"gs://{JOURNAL}/config/dispatch.json"


def test_a_document_that_the_account_may_replace_is_a_warning(world, look):
    world.trace()
    checks = look(url=DOCUMENT)
    assert findings(checks) == {}
    (said,) = findings(checks, CheckResult.WARNING).values()
    assert "may replace the document" in said
    assert "roles/storage.objectViewer" in said


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_a_document_that_the_account_may_not_replace_is_as_it_should_be(world, look, verb):
    """An overwrite needs both; a condition of IAM may forbid it where the bucket allows it."""
    world.trace()
    checks = look(refused(f"storage.objects.{verb}", bucket=JOURNAL, prefix="config/"), url=DOCUMENT)
    assert findings(checks, CheckResult.WARNING) == {}
    assert f"storage.objects.{verb} is refused" in findings(checks, CheckResult.OK)["configuration document"]


@pytest.fixture
def document(world):
    blob = world.client.bucket(JOURNAL).blob("config/dispatch.json")
    blob.upload_from_string("{}")
    return blob


def test_the_document_is_not_touched(world, look, document):
    world.trace()
    generation = document.generation
    look(url=DOCUMENT)
    document.reload()
    assert document.generation == generation


def test_a_service_that_ignores_preconditions_cannot_lose_the_document(world, look, document, monkeypatch):
    """As fake-gcs-server: it deletes whatever generation there is."""
    world.trace()
    check = Conditions.check

    def only_of_missing_objects(conditions, live, reading=False):
        if live is None:
            check(conditions, live, reading)

    def ignoring(world):
        world.control.refuse("storage.objects.delete", bucket=TASKS)  # no trial
        monkeypatch.setattr(Conditions, "check", only_of_missing_objects)

    generation = document.generation
    checks = look(ignoring, url=DOCUMENT)
    document.reload()
    assert document.generation == generation
    assert "ignores preconditions" in findings(checks, CheckResult.NOT_CHECKED)["configuration document"]


def test_rights_for_exactly_the_document_are_a_warning(world, look, document):
    """A condition of IAM may name one object: beside it everything is refused."""
    world.trace()

    def beside(world):
        for verb in ("insert", "delete"):
            where = {"bucket": JOURNAL, "name": "config/dispatch.json.*"}
            world.control.add_fault(f"storage.objects.{verb}", "status", status=403, **where)

    checks = look(beside, url=DOCUMENT)
    assert "may replace the document" in findings(checks, CheckResult.WARNING)["configuration document"]


@pytest.mark.parametrize("verb", ["insert", "delete"])
def test_a_document_that_alone_is_protected_is_as_it_should_be(world, look, document, verb):
    world.trace()

    def on_it(world):
        fault = {"status": 403, "bucket": JOURNAL, "name": "config/dispatch.json"}
        world.control.add_fault(f"storage.objects.{verb}", "status", **fault)

    checks = look(on_it, url=DOCUMENT)
    assert "is refused" in findings(checks, CheckResult.OK)["configuration document"]


def test_a_document_of_which_no_call_is_answered_is_not_checked(world, look):
    world.trace()
    world.control.add_fault("storage.objects.delete", "status", status=400, bucket=JOURNAL, name="config/*")
    checks = look(url=DOCUMENT)
    assert "try again later" in findings(checks, CheckResult.NOT_CHECKED)["configuration document"]


def test_a_document_on_this_machine_is_whose_machine_it_is(world, look):
    world.trace()
    for url in (None, "file:///etc/dispatch.json"):
        assert "configuration document" not in {check.what for check in look(url=url)}


def others(world, **folders):
    """Connections of other set-ups, by their task folders."""
    own = {"JournalURL": "gs://ops/Journal", "ErrorURL": "gs://ops/Errors"}
    return {name: world.config(AsyncTaskURL=folder, **own) for name, folder in folders.items()}


def test_another_set_up_that_shares_events_of_the_task_folder_is_refused(world, look):
    world.trace()
    shared = {
        "same": f"gs://{TASKS}/{FOLDER}".rstrip("/"),
        "same_too": f"gs://{TASKS}/{FOLDER}",
        "inside": f"gs://{TASKS}/{FOLDER}proj:p:US/",
        "around": f"gs://{TASKS}/{FOLDER.partition('/')[0]}/",
    }
    beside = {"beside": f"gs://{TASKS}/{FOLDER.rstrip('/')}2", "elsewhere": f"gs://{TASKS}2/{FOLDER}"}
    invalid = ConfigError(["AsyncTaskURL is missing", "ErrorURL is missing"], "connection 'invalid'")
    broken = {"broken": ValueError("two\nlines"), "invalid": invalid}
    checks = look(others=others(world, **shared, **beside) | broken)
    wrong = {check.where: check.finding for check in checks if check.result is CheckResult.FAILED}
    assert wrong.keys() == {f"connection {name}" for name in shared}
    for name, folder in shared.items():
        said = wrong[f"connection {name}"]
        assert folder.rstrip("/") in said
        assert "give each set-up a task folder of its own, none inside another's, or delete one" in said
        assert "--setup" in said
    left_out = {check.where: check.finding for check in checks if check.result is CheckResult.NOT_CHECKED}
    assert left_out == {
        "connection broken": "not compared, since its configuration is unknown: ValueError: two\\nlines",
        "connection invalid": "not compared, since its configuration is unknown: the configuration of connection "
        "'invalid' is invalid: AsyncTaskURL is missing; ErrorURL is missing",
    }


@pytest.mark.parametrize("key", ["JournalURL", "ErrorURL"])
@pytest.mark.parametrize("below", ["", "/", "/acme/"])
def test_another_set_up_that_shares_the_journal_or_the_errors_is_a_warning(world, look, key, below):
    world.trace()
    own = world.document(**QUIET)[key].rstrip("/")
    more = {"AsyncTaskURL": "gs://ops/x", "JournalURL": "gs://ops/Journal", "ErrorURL": "gs://ops/Errors"}
    checks = look(others={"acme": world.config(**{**more, key: own + below})})
    assert findings(checks) == {}
    (said,) = findings(checks, CheckResult.WARNING).values()
    assert f"{key} '{(own + below).rstrip('/')}/'" in said
    assert "of its own" in said


@pytest.mark.parametrize("key", ["JournalURL", "ErrorURL"])
def test_a_task_folder_with_what_another_set_up_writes_is_refused(world, look, key):
    """Its objects there would be taken for events."""
    world.trace()
    more = {"AsyncTaskURL": "gs://ops/x", "JournalURL": "gs://ops/Journal", "ErrorURL": "gs://ops/Errors"}
    mine = world.document()["AsyncTaskURL"]
    checks = look(others={"acme": world.config(**{**more, key: f"{mine}x"})})
    assert f"{key} '{mine}x/', and this set-up the AsyncTaskURL '{mine}'" in findings(checks)["other set-ups"]
    own = {"JournalURL": "gs://ops/x/Journal", "ErrorURL": "gs://ops/x/Errors"}[key]
    checks = look(others={"acme": world.config(**more)}, **{**QUIET, key: own})
    assert "has the AsyncTaskURL 'gs://ops/x/'" in findings(checks)["other set-ups"]
    assert "no other connection" not in str(checks)


def test_the_quarantine_of_one_set_up_in_the_journal_of_another_is_a_warning(world, look):
    world.trace()
    more = {"AsyncTaskURL": "gs://ops/x", "JournalURL": "gs://ops/Journal", "ErrorURL": f"gs://{JOURNAL}/journal/x"}
    checks = look(others={"acme": world.config(**more)})
    assert findings(checks) == {}
    assert "give each a folder of its own" in findings(checks, CheckResult.WARNING)["other set-ups"]


def test_a_set_up_that_is_alone_in_its_task_folder_passes(world, look):
    world.trace()
    beside = others(world, beside="gs://ops/x")
    assert "no other connection" in findings(look(others=beside), CheckResult.OK)["other set-ups"]
    assert findings(look(others="no Airflow"), CheckResult.NOT_CHECKED)["other set-ups"] == "no Airflow"


def test_missing_pools_and_pools_of_other_sizes_are_named(world, look):
    world.trace()
    checks = look(pools={"bqdispatch_jobs": {"slots": 4, "include_deferred": True}}, MaxConcurrentJobs=3)
    wrong = {check.where: check.finding for check in checks if check.result is CheckResult.FAILED}
    assert wrong.keys() == {"bqdispatch_sql", "bqdispatch_jobs"}
    assert "is missing" in wrong["bqdispatch_sql"]
    assert "has 4 slots; expected 3" in wrong["bqdispatch_jobs"]


@pytest.fixture
def pools_of_acme(world, monkeypatch):
    """Return what is wrong with the pools of the set-up acme."""
    pools = {"bqdispatch_acme_sql": {"slots": -1, "include_deferred": True}}
    monkeypatch.setattr(smoke, "has_airflow", lambda: True)
    monkeypatch.setattr(LocalPools, "read", lambda _: pools)
    return lambda **limits: smoke._pool_problems(world.config(**limits), SetUp("acme"))


def test_what_is_wrong_with_a_pool_says_how_to_set_it(pools_of_acme):
    problems = pools_of_acme(MaxConcurrentJobs=3)
    assert problems["bqdispatch_acme_sql"] == ""
    assert problems["bqdispatch_acme_jobs"].endswith(": `bqdispatch pools --setup acme --import` sets it")


def test_a_misspelt_limit_fails_as_in_the_test_of_a_connection(world, look):
    world.trace()
    (said,) = findings(look(MaxConcurentSQL=4)).values()
    assert said == "MaxConcurentSQL is no key of the configuration and is ignored; did you mean MaxConcurrentSQL?"


def test_a_task_that_takes_more_slots_than_its_limit_says_which_variable_to_lower(pools_of_acme, monkeypatch):
    """No import would help; and a pool that shrinks first would take no task any more."""
    monkeypatch.setenv("BQDISPATCH_ACME_SQL_SLOTS", "9")
    assert pools_of_acme()["bqdispatch_acme_sql"] == ""
    assert pools_of_acme(MaxConcurrentSQL=3)["bqdispatch_acme_sql"] == (
        "gets 3 slots by its limit, and a task takes 9, so the task never runs: lower BQDISPATCH_ACME_SQL_SLOTS to 3, "
        "here and where DAG files are parsed; has -1 slots; expected 3 slots: "
        "`bqdispatch pools --setup acme --import` sets it"
    )


def test_a_pool_without_deferred_tasks_is_named(world, look):
    world.trace()
    pools = expected_pools(world.config())
    checks = look(pools={**pools, "bqdispatch_jobs": {"slots": -1, "include_deferred": False}})
    found = {check.where: check.finding for check in checks if check.result is CheckResult.FAILED}
    assert found.keys() == {"bqdispatch_jobs"}
    assert "does not count deferred tasks" in found["bqdispatch_jobs"]


def test_a_bucket_that_keeps_nothing_is_a_warning(cloud, world, look):
    world.control.reset()
    World(cloud.url, world.control, keeping={})
    world.session.post(f"{world.url}/storage/v1/b?project=p", json={"name": ERRORS})
    world.trace()
    checks = look()
    assert findings(checks) == {}
    assert "--soft-delete-duration" in findings(checks, CheckResult.WARNING)["what was consumed"]


def patched(world, bucket, **settings):
    world.session.patch(f"{world.url}/storage/v1/b/{bucket}", json=settings).raise_for_status()


RULE = {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 0}}]}


@pytest.mark.parametrize(
    ("bucket", "settings", "what", "said"),
    [
        (TASKS, {"lifecycle": RULE}, "task", "deletes objects below gs://ops/BqDispatch/Tasks/ at once"),
        (TRIGGER, {"lifecycle": RULE}, "trigger", "may be deleted before BqTail consumes them"),
        (TRIGGER, {"retentionPolicy": {"retentionPeriod": "60"}}, "trigger", "BqTail cannot delete what it has"),
        (TRIGGER, {"defaultEventBasedHold": True}, "trigger", "--no-default-event-based-hold"),
    ],
)
def test_settings_of_a_bucket_that_are_in_the_way_are_named(world, look, bucket, settings, what, said):
    world.trace()
    found = findings(look(lambda world: patched(world, bucket, **settings)))
    assert found.keys() == {f"settings of the {what} bucket"}
    assert said in found[f"settings of the {what} bucket"]


@pytest.mark.parametrize("settings", [{"retentionPolicy": {"retentionPeriod": "60"}}, {"defaultEventBasedHold": True}])
def test_a_task_bucket_that_keeps_what_is_deleted_is_named_and_nothing_is_put_into_it(world, look, settings):
    world.trace()
    checks = look(lambda world: patched(world, TASKS, **settings))
    found = findings(checks)
    assert found.keys() == {"settings of the task bucket"}
    assert "dispatched events cannot be deleted" in found["settings of the task bucket"]
    assert "from which objects can be deleted" in findings(checks, CheckResult.NOT_CHECKED)["trial"]


def test_settings_that_cannot_be_read_are_not_checked(world, look):
    world.trace()
    checks = look(refused("storage.buckets.get", bucket=TASKS))
    assert findings(checks) == {}
    left_out = findings(checks, CheckResult.NOT_CHECKED)
    assert left_out.keys() == {"settings of the task bucket"}
    assert "needs storage.buckets.get on bucket 'ops'" in left_out["settings of the task bucket"]
    assert "settings of the trigger bucket" in findings(checks, CheckResult.OK)


def test_a_trigger_bucket_that_answers_nothing_is_not_said_to_keep_nothing(world, look):
    """Whoever reads that would change a bucket that may keep what is deleted."""
    world.trace()
    checks = look(lambda world: world.control.add_fault("storage.*", "status", status=403, bucket=TRIGGER))
    unknown = findings(checks, CheckResult.NOT_CHECKED)
    assert unknown["what was consumed"] == (
        "soft delete and versioning of bucket 'p_bqtail' cannot be checked: needs storage.buckets.get on bucket "
        "'p_bqtail'"
    )
    assert unknown.keys() == {"what was consumed", "settings of the trigger bucket", "BqTail consumes"}


def test_settings_that_cannot_be_read_now_are_not_checked(world, look, monkeypatch):
    world.trace()
    monkeypatch.setattr("bqdispatch_provider.gcp.trigger_bucket.retried", lambda call: call)  # for no half a minute
    checks = look(lambda world: world.control.add_fault("storage.buckets.get", "reset", bucket=TRIGGER))
    assert "soft delete and versioning" in findings(checks, CheckResult.NOT_CHECKED)["what was consumed"]


def test_traces_that_cannot_be_listed_are_not_said_to_be_none(world, look):
    world.trace()
    checks = look(refused("storage.objects.list", bucket=TASKS))
    assert "the task folder cannot be listed: Forbidden: 403" in findings(checks, CheckResult.NOT_CHECKED)["location"]


def test_without_a_job_it_says_how_to_get_one_and_tries_the_window(world, look):
    world.jobs(["bquxjob_1_2", "scheduled_query"], location="EU")
    world.trace(state="RUNNING")
    checks = look()
    assert findings(checks) == {}
    (check,) = [check for check in checks if check.result is CheckResult.WARNING]
    assert check.what == "a trace"
    assert "no finished job whose ID has BqTail's form found in p;" in check.finding
    program, verb, project, location, job_id, query = shlex.split(check.command)
    assert (program, verb, project, query) == ("bq", "query", "--project_id=p", "SELECT 1")
    assert location in ("--location=EU", "--location=US")
    assert trace_name_of(JobKey("p", location, job_id.removeprefix("--job_id="))) is not None
    assert findings(checks, CheckResult.OK)["a window"] == "arrived"


def test_without_any_job_the_command_has_the_location_of_the_configuration(look):
    (check,) = [check for check in look(Region="europe-west3") if check.result is CheckResult.WARNING]
    assert "--location=europe-west3 " in check.command


def test_what_does_not_arrive_is_named_and_removed(world, look, monkeypatch):
    monkeypatch.setattr(trial, "PATIENCE_S", 0.5)
    world.trace()
    world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden")
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
    checks = look()
    assert findings(checks).keys() == {"a trace", "a window"}
    assert "403" in findings(checks)["a trace"]


def test_what_cannot_be_removed_is_named(world):
    world.trace()
    world.control.add_fault(
        "storage.objects.delete", "status", status=403, reason="forbidden", name=f"*/{trial.FOLDER}/*/_batch_/*"
    )
    config = world.config().for_project("p")
    checks = list(check_set_up(config, world.client, world.session, "none"))
    (left,) = [name for name in world.names() if name.startswith(trial.FOLDER)]
    assert "/_batch_/" in left
    assert f"remove gs://{TASKS}/{FOLDER}{left.partition('/_batch_/')[0]} by hand" in findings(checks)["clean-up"]


def test_a_trial_that_is_broken_off_leaves_nothing_behind(world):
    world.trace()
    before = world.names()

    def broken_off():
        assert len(world.names()) == 3
        raise RuntimeError("broken off")

    checks = check_set_up(world.config().for_project("p"), world.client, world.session, "none", go_on=broken_off)
    with pytest.raises(RuntimeError):
        list(checks)
    assert world.names() == before


def test_what_a_killed_trial_left_is_removed_by_a_later_one(world, look):
    world.trace()
    world.put(f"{trial.FOLDER}/0123/tasks/ds.t_77_1700000000.win", age=7200)
    world.put(f"{trial.FOLDER}/4567/tasks/ds.t_77_1700000000.win", age=60)
    with pytest.raises(AssertionError):  # what was there before is gone
        look()
    assert [name for name in world.names() if name.startswith(trial.FOLDER)] == [
        f"{trial.FOLDER}/4567/tasks/ds.t_77_1700000000.win"
    ]


def test_a_dispatcher_takes_no_trial_for_events(world):
    world.put(
        f"{trial.FOLDER}/0123/tasks/proj:p:US/ds.t--1_00001_load--dispatch",
        f"{trial.FOLDER}/0123/tasks/ds.t_77_1700000000.win",
        f"{trial.FOLDER}/0123/_bqjob_/2026-01-01_00/proj:p:US/ds.t--1_00001_load--dispatch.json",
    )
    assert world.cycle().to_dict()["Outcomes"] == {"ignored": 3}


# the command


@pytest.fixture
def config(world, tmp_path, monkeypatch):
    """A configuration's path, where no Airflow is set up, whatever other tests have left."""
    for variable in [name for name in os.environ if name.startswith("AIRFLOW")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(world.document()))
    return path


def test_the_command_prints_one_line_a_check_and_exits_with_zero(world, config):
    """The command of README.md."""
    world.trace()
    command = [BIN / "bqdispatch", "smoke", "--config", config, "--bqtail-config", config]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {len(row) for row in rows} == {4}
    assert {row[0] for row in rows} <= {"ok", "not checked"}
    assert {"a trace", "a window", "clean-up"} <= {row[1] for row in rows if row[0] == "ok"}


def test_a_mistake_in_bqtails_configuration_is_said_to_be_there(config, tmp_path):
    (tmp_path / "bqtail.json").write_text('{"AsyncTaskURL": 5}')
    command = [BIN / "bqdispatch", "smoke", "--config", config, "--bqtail-config", tmp_path / "bqtail.json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"the configuration of BqTail ('{tmp_path}/bqtail.json') is invalid:" in ended.stderr


def test_the_command_shows_a_table_on_a_terminal_and_exits_with_one(world, config):
    world.control.refuse("storage.objects.delete", bucket=TASKS)
    command = [BIN / "bqdispatch", "smoke", "--config", config]
    code, shown, _ = on_a_terminal(command, "stdout", COLUMNS="80")
    assert code == 1
    found = "".join(line.split("│")[-2].strip() for line in shown.decode().splitlines() if line.count("│") > 1)
    assert "storage.objects.delete" in found
    assert "bqdispatchFolders" in found
    assert b"\t" not in shown


def test_a_fresh_project_is_a_warning_with_a_command_to_copy_below_the_table(config):
    code, shown, _ = on_a_terminal([BIN / "bqdispatch", "smoke", "--config", config], "stdout", COLUMNS="80")
    assert code == 0, shown.decode()
    table, _, below = shown.decode().replace("\r", "").rpartition("┘\n")
    assert "warning" in table
    assert "bq query" not in table
    (command,) = [line for line in below.splitlines() if line.startswith("bq ")]
    assert re.fullmatch(
        r"bq query --project_id=\S+ --location=us-central1 --job_id=bqdispatch_smoke--\d+_00001_query--dispatch "
        r"'SELECT 1'",
        command,
    )


def test_a_command_stands_in_its_row_where_no_terminal_is(config):
    command = [BIN / "bqdispatch", "smoke", "--config", config]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    assert {len(row) for row in rows} == {4}
    (finding,) = [row[3] for row in rows if row[0] == "warning" and row[1] == "a trace"]
    assert re.search(r"`bq query .* 'SELECT 1'`$", finding)


def test_a_stop_signal_cleans_up(world, config):
    world.trace()
    before = world.names()
    world.control.add_fault("storage.objects.insert", "slow", name="*.win", ms=HELD_MS, after=True)
    command = [BIN / "bqdispatch", "smoke", "--config", config]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: running.poll() is not None or any(".win" in name for name in world.names()), "its window")
        running.send_signal(signal.SIGTERM)
        assert any("finishing what has begun" in line for line in running.stderr)
        world.control.clear_faults()
        running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert world.names() == before
