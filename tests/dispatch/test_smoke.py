"""`bqdispatch smoke` finds what is wrong with a set-up, names it, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from terminal import on_a_terminal
from waiting import HELD_MS, PATIENCE_S, wait_until
from world import FOLDER, JOURNAL, TASKS, TRIGGER, World

from bqdispatch_provider import smoke
from bqdispatch_provider.pools import compared, pools_of
from bqdispatch_provider.smoke import Smoke, Verdict

BIN = Path(sys.executable).parent
ERRORS = "errors"
QUIET = {"ErrorURL": f"gs://{ERRORS}/errors"}


@pytest.fixture
def look(world):
    """Runs all checks of a set-up; the stand-in's time flies while the trial waits for its objects to be old enough."""
    world.session.post(f"{world.url}/storage/v1/b?project=p", json={"name": ERRORS}).raise_for_status()

    def run(breaks=lambda _: None, pools=None, bqtail=None, takes=1, others=None, url=None, **more):
        flown = []

        def go_on():
            if not flown:
                flown.append(world.control.advance(5))
            return True

        config = replace(world.config(**{**QUIET, **more}).for_project("p"), url=url)
        wanted = pools_of(config)
        compared_pools = compared(wanted if pools is None else pools, wanted, {"bqdispatch_sql": takes})
        bqtail = None if bqtail is None else world.config(**{**QUIET, **bqtail})
        before = [world.names(bucket) for bucket in (TASKS, JOURNAL, ERRORS)]
        breaks(world)
        smoke_ = Smoke(config, world.client, world.session, compared_pools, bqtail=bqtail, others=others, go_on=go_on)
        checks = list(smoke_.checks())
        world.control.allow_all()
        assert [world.names(bucket) for bucket in (TASKS, JOURNAL, ERRORS)] == before
        return checks

    return run


def findings(checks, verdict=Verdict.FAILED):
    return {check.what: check.said for check in checks if check.verdict is verdict}


def test_a_whole_set_up_passes_and_both_events_arrive(world, look, intents_stay_young):
    world.trace()
    checks = look(MaxConcurrentSQL=1, MaxConcurrentJobs=1, bqtail={})
    assert findings(checks) == {}
    assert findings(checks, Verdict.WARNING) == {}
    passed = findings(checks, Verdict.OK)
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
    "jobs not listed": (refused("bigquery.jobs.list"), {"jobs", "a trace"}, "bigquery.jobs.list is missing"),
    "jobs of others": (refused("bigquery.jobs.listAll"), {"jobs", "a trace"}, "bigquery.jobs.listAll is missing"),
    "jobs not looked up": (refused("bigquery.jobs.get"), {"jobs", "a trace"}, "bigquery.jobs.get is missing"),
    "another project": (gone_project, {"jobs", "a trace"}, "see that ProjectID is right"),
    "wrong location": (astray, {"location"}, "move these traces into the folder proj:p:EU/"),
    "nobody consumes": (unconsumed, {"BqTail consumes"}, "see that PostJobPrefix '/_bqjob_/' is BqTail's too"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_set_up_is_found_and_named(world, look, broken):
    world.trace()
    world.put("proj:p:US/ds.t--77_00001_load--dispatch")
    breaks, what, said = BROKEN[broken]
    found = findings(look(breaks))
    assert found.keys() == what
    assert said in next(found[each] for each in sorted(what) if each != "a trace")


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
    world.trace()
    found = findings(look(bqtail={key: theirs}))
    assert found.keys() == {f"{key} of both"}
    assert theirs in found[f"{key} of both"]


DOCUMENT = f"gs://{JOURNAL}/config/dispatch.json"


def test_a_document_that_the_account_may_replace_is_a_warning(world, look):
    world.trace()
    checks = look(url=DOCUMENT)
    assert findings(checks) == {}
    (said,) = findings(checks, Verdict.WARNING).values()
    assert "may replace the document" in said
    assert "roles/storage.objectViewer" in said


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_a_document_that_the_account_may_not_replace_is_as_it_should_be(world, look, verb):
    """An overwrite needs both; a condition of IAM may forbid it where the bucket allows it."""
    world.trace()
    checks = look(refused(f"storage.objects.{verb}", bucket=JOURNAL, prefix="config/"), url=DOCUMENT)
    assert findings(checks, Verdict.WARNING) == {}
    assert f"storage.objects.{verb} is refused" in findings(checks, Verdict.OK)["configuration document"]


def test_the_document_is_not_touched(world, look):
    world.trace()
    blob = world.client.bucket(JOURNAL).blob("config/dispatch.json")
    blob.upload_from_string("{}")
    generation = blob.generation
    look(url=DOCUMENT)
    blob.reload()
    assert blob.generation == generation


def test_a_document_beside_which_no_call_is_answered_is_not_checked(world, look):
    world.trace()
    world.control.add_fault("storage.objects.delete", "status", status=400, bucket=JOURNAL, name="config/*")
    checks = look(url=DOCUMENT)
    assert "try again later" in findings(checks, Verdict.LEFT_OUT)["configuration document"]


def test_a_document_on_this_machine_is_whose_machine_it_is(world, look):
    world.trace()
    for url in (None, "file:///etc/dispatch.json"):
        assert "configuration document" not in {check.what for check in look(url=url)}


def test_another_set_up_with_the_same_task_folder_is_refused(world, look):
    world.trace()
    others = {
        "same": f"gs://{TASKS}/{FOLDER}".rstrip("/"),
        "same_too": f"gs://{TASKS}/{FOLDER}/",
        "beside": f"gs://{TASKS}/{FOLDER.rstrip('/')}2",
        "inside": f"gs://{TASKS}/{FOLDER}x",
        "broken": ValueError("two\nlines"),
    }
    checks = look(others=others)
    wrong = {check.where: check.said for check in checks if check.verdict is Verdict.FAILED}
    assert wrong.keys() == {"connection same", "connection same_too"}
    for said in wrong.values():
        assert "give each set-up a task folder of its own, or delete one of the connections" in said
        assert "--setup" in said
    left_out = {check.where: check.said for check in checks if check.verdict is Verdict.LEFT_OUT}
    assert left_out == {"connection broken": "its task folder cannot be told: ValueError: two\\nlines"}


def test_a_set_up_that_is_alone_in_its_task_folder_passes(world, look):
    world.trace()
    assert "no other connection" in findings(look(others={"beside": "gs://ops/x"}), Verdict.OK)["other set-ups"]
    assert findings(look(others="no Airflow"), Verdict.LEFT_OUT)["other set-ups"] == "no Airflow"


def test_missing_pools_and_pools_of_other_sizes_are_named(world, look):
    world.trace()
    checks = look(pools={"bqdispatch_jobs": {"slots": 4, "include_deferred": True}}, MaxConcurrentJobs=3)
    wrong = {check.where: check.said for check in checks if check.verdict is Verdict.FAILED}
    assert wrong.keys() == {"bqdispatch_sql", "bqdispatch_jobs"}
    assert "is missing" in wrong["bqdispatch_sql"]
    assert "has 4 slots; expected 3" in wrong["bqdispatch_jobs"]
    assert all("bqdispatch pools --import" in said for said in wrong.values())


def test_a_task_that_takes_more_slots_than_its_pool_has_and_a_pool_without_deferred_tasks_are_named(world, look):
    world.trace()
    pools = {
        "bqdispatch_sql": {"slots": 5, "include_deferred": True},
        "bqdispatch_jobs": {"slots": -1, "include_deferred": False},
    }
    checks = look(pools=pools, takes=10, MaxConcurrentSQL=5)
    found = {check.where: check.said for check in checks if check.verdict is Verdict.FAILED}
    assert "has 5 slots, and a task takes 10, so it never runs" in found["bqdispatch_sql"]
    assert "does not count deferred tasks" in found["bqdispatch_jobs"]
    assert findings(look(pools=pools_of(world.config()), takes=10)) == {}


def test_a_bucket_that_keeps_nothing_is_a_warning(cloud, world, look):
    world.control.reset()
    World(cloud.url, world.control, keeping={})
    world.session.post(f"{world.url}/storage/v1/b?project=p", json={"name": ERRORS})
    world.trace()
    checks = look()
    assert findings(checks) == {}
    assert "--soft-delete-duration" in findings(checks, Verdict.WARNING)["what was consumed"]


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
    assert "from which objects can be deleted" in findings(checks, Verdict.LEFT_OUT)["trial"]


def test_settings_that_cannot_be_read_are_not_checked(world, look):
    world.trace()
    checks = look(refused("storage.buckets.get", bucket=TASKS))
    assert findings(checks) == {}
    left_out = findings(checks, Verdict.LEFT_OUT)
    assert left_out.keys() == {"settings of the task bucket"}
    assert "needs storage.buckets.get on bucket 'ops'" in left_out["settings of the task bucket"]
    assert "settings of the trigger bucket" in findings(checks, Verdict.OK)


def test_without_a_job_it_says_how_to_get_one_and_tries_the_window(world, look):
    world.jobs(["bquxjob_1_2", "scheduled_query"])
    world.trace(state="RUNNING")
    checks = look()
    assert findings(checks).keys() == {"a trace"}
    assert "bq query --project_id=p" in findings(checks)["a trace"]
    assert findings(checks, Verdict.OK)["a window"] == "arrived"


def test_what_does_not_arrive_is_named_and_removed(world, look, monkeypatch):
    monkeypatch.setattr(smoke, "PATIENCE", 0.5)
    world.trace()
    world.control.add_fault("storage.objects.copy", "status", status=403, reason="forbidden")
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
    checks = look()
    assert findings(checks).keys() == {"a trace", "a window"}
    assert "403" in findings(checks)["a trace"]


def test_what_cannot_be_removed_is_named(world):
    world.trace()
    world.control.add_fault(
        "storage.objects.delete", "status", status=403, reason="forbidden", name=f"*/{smoke.FOLDER}/*/_batch_/*"
    )
    config = world.config().for_project("p")
    checks = list(Smoke(config, world.client, world.session, "none").checks())
    (left,) = [name for name in world.names() if name.startswith(smoke.FOLDER)]
    assert "/_batch_/" in left
    assert f"remove gs://{TASKS}/{FOLDER}{left.partition('/_batch_/')[0]} by hand" in findings(checks)["clean-up"]


def test_a_trial_that_is_broken_off_leaves_nothing_behind(world):
    world.trace()
    before = world.names()

    def broken_off():
        assert len(world.names()) == 3
        raise RuntimeError("broken off")

    smoke_ = Smoke(world.config().for_project("p"), world.client, world.session, "none", go_on=broken_off)
    with pytest.raises(RuntimeError):
        list(smoke_.checks())
    assert world.names() == before


def test_what_a_killed_trial_left_is_removed_by_a_later_one(world, look):
    world.trace()
    world.put(f"{smoke.FOLDER}/0123/tasks/ds.t_77_1700000000.win", age=7200)
    world.put(f"{smoke.FOLDER}/4567/tasks/ds.t_77_1700000000.win", age=60)
    with pytest.raises(AssertionError):  # what was there before is gone
        look()
    assert [name for name in world.names() if name.startswith(smoke.FOLDER)] == [
        f"{smoke.FOLDER}/4567/tasks/ds.t_77_1700000000.win"
    ]


def test_a_dispatcher_takes_no_trial_for_events(world):
    world.put(
        f"{smoke.FOLDER}/0123/tasks/proj:p:US/ds.t--1_00001_load--dispatch",
        f"{smoke.FOLDER}/0123/tasks/ds.t_77_1700000000.win",
        f"{smoke.FOLDER}/0123/_bqjob_/2026-01-01_00/proj:p:US/ds.t--1_00001_load--dispatch.json",
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
    world.trace()
    command = [BIN / "bqdispatch", "smoke", "--config", config, "--bqtail-config", config]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {len(row) for row in rows} == {4}
    assert {row[0] for row in rows} <= {"ok", "not checked"}
    assert {"a trace", "a window", "clean-up"} <= {row[1] for row in rows if row[0] == "ok"}


def test_the_command_shows_a_table_on_a_terminal_and_exits_with_one(world, config):
    world.control.refuse("storage.objects.delete", bucket=TASKS)
    command = [BIN / "bqdispatch", "smoke", "--config", config]
    code, shown, _ = on_a_terminal(command, "stdout", COLUMNS="160")
    assert code == 1
    assert b"storage.objects.delete" in shown
    assert b"bqdispatchFolders" in shown
    assert b"\t" not in shown


def test_a_stop_signal_cleans_up(world, config):
    world.trace()
    before = world.names()
    world.control.add_fault("storage.objects.insert", "slow", name="*.win", ms=HELD_MS, after=True)
    command = [BIN / "bqdispatch", "smoke", "--config", config]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: running.poll() is not None or any(".win" in name for name in world.names()), "its window")
        running.send_signal(signal.SIGTERM)
        assert any("what was begun is finished" in line for line in running.stderr)
        world.control.clear_faults()
        running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert world.names() == before
