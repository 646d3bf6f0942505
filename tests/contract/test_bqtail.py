"""The stand-in BqTail keeps its side of docs/protocol.md, and its account tells what became of every event."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from io import StringIO

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client
from rich.console import Console
from waiting import wait_until

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.names import TraceName, WindowName
from bqdispatch_provider.testing import bqtail as module
from bqdispatch_provider.testing.bqtail import TRACE_LABEL, BqTailSettings, StandInBqTail

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
ONE_WINDOW = 60
TASKS, TRIGGER = "dispatch", "xx_bqtail"
CHAIN_JOBS = {"copy with a trace": 1, "load with a trace": 1, "query with a trace": 1, "query without a trace": 1}


@pytest.fixture
def control(control):
    control.set_clock(NOON + 5)
    for bucket in (TASKS, TRIGGER):
        control.seed_objects(bucket, [])
    return control


@pytest.fixture
def storage(standin):
    return Client(project="xx", credentials=AnonymousCredentials(), client_options={"api_endpoint": standin.url})


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def deploy(standin, control, storage, session):
    """A new BqTail and the dispatcher's part in it, to be played by hand."""

    def deploy(**settings):
        settings = BqTailSettings(f"gs://{TASKS}/Tasks/", TRIGGER, "xx", **settings)
        return StandInBqTail(storage, session, standin.url, settings), DispatcherByHand(storage)

    return deploy


class DispatcherByHand:
    def __init__(self, storage):
        self.tasks, self.trigger = storage.bucket(TASKS), storage.bucket(TRIGGER)

    def waiting(self, ending=""):
        return [b.name.removeprefix("Tasks/") for b in self.tasks.list_blobs() if b.name.endswith(ending)]

    def arrived(self):
        return [b.name for b in self.trigger.list_blobs() if not b.name.startswith("data/")]

    def read(self, name):
        return self.tasks.blob(f"Tasks/{name}").download_as_bytes()

    def copy(self, name, target):
        self.tasks.copy_blob(self.tasks.blob(f"Tasks/{name}"), self.trigger, target)

    def drop(self, name):
        self.tasks.delete_blob(f"Tasks/{name}")

    def fire(self, name):
        self.copy(name, f"_batch_/{name}")

    def move(self, name):
        self.copy(name, f"_bqjob_/2026-03-01_12/{name}.json")
        self.drop(name)

    def move_all_until_done(self, bqtail):
        """Move every trace as it appears, until none is left."""
        while traces := self.waiting("--dispatch"):
            for trace in traces:
                self.move(trace)
            bqtail.step()


def only(items):
    (item,) = items
    return item


def why(account):
    return only(account.problems).why


# Exactly once


def test_a_batched_chain_is_exactly_once(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    hand.fire(only(hand.waiting()))
    control.advance(ONE_WINDOW)
    assert bqtail.step() == 1
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and (account.events, account.finished, account.missing, account.doubled) == (1, 1, 0, 0)
    assert (account.rows, account.messages) == (1, 1)
    assert account.loads == {f"gs://{TRIGGER}/{file.name}": 1}
    assert account.job_counts() == CHAIN_JOBS
    assert hand.arrived() == []


def test_a_direct_chain_is_exactly_once(deploy):
    bqtail, hand = deploy(unbatched=frozenset({"ds.t"}))
    file = bqtail.put_file("ds.t", rows=3)
    assert hand.waiting() == [f"proj:xx:US/ds.t--{file.event_id}_00001_load--dispatch"]
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and account.finished == 1 and account.job_counts() == CHAIN_JOBS


def test_traces_of_a_chain_count_their_steps(deploy):
    bqtail, hand = deploy(window_s=0)
    bqtail.put_file("ds.t")
    steps = []
    while traces := hand.waiting():
        steps.append((TraceName.parse(only(traces)).step, TraceName.parse(only(traces)).action))
        hand.move(only(traces))
        bqtail.step()
    assert steps == [(1, "load"), (2, "copy"), (3, "query")]


def test_loaded_files_are_deleted_at_the_end_of_the_chain(deploy):
    bqtail, hand = deploy(window_s=0)
    file = bqtail.put_file("ds.t")
    assert hand.trigger.blob(file.name).exists()
    hand.move_all_until_done(bqtail)
    assert not hand.trigger.blob(file.name).exists()


# Windows


def test_a_window_is_opened_once_for_several_files(deploy, control):
    bqtail, hand = deploy()
    files = [bqtail.put_file("ds.t") for _ in range(3)]
    window = only(hand.waiting())
    assert {file.window for file in files} == {window}
    assert WindowName.parse(window).end.timestamp() == NOON + ONE_WINDOW
    assert json.loads(hand.read(window))["event_id"] == files[0].event_id
    control.advance(ONE_WINDOW)
    hand.fire(window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and account.finished == 3
    assert only(account.chains).event_id == files[0].event_id
    assert len(only(account.chains).files) == 3


def test_each_window_loads_the_files_of_its_own_time_and_destination(deploy, control):
    bqtail, hand = deploy()
    first, other = bqtail.put_file("ds.t"), bqtail.put_file("ds.t2")
    control.advance(ONE_WINDOW)
    second = bqtail.put_file("ds.t")
    control.advance(ONE_WINDOW)
    for window in hand.waiting(".win"):
        hand.fire(window)
    assert bqtail.step() == 3
    loaded = {chain.event_id: chain.files for chain in bqtail.account().chains}
    assert loaded == {f.event_id: (f"gs://{TRIGGER}/{f.name}",) for f in (first, other, second)}


def test_an_early_fired_window_is_waited_for(deploy, control):
    bqtail, hand = deploy()
    early = bqtail.put_file("ds.t")
    hand.fire(only(hand.waiting()))
    assert bqtail.step() == 0
    assert f"was fired and lies in the trigger bucket as _batch_/{early.window}, not consumed" in why(bqtail.account())
    bqtail.put_file("ds.t")
    control.advance(ONE_WINDOW)
    assert bqtail.step() == 1
    assert len(only(bqtail.account().chains).files) == 2


def test_a_late_event_finds_the_window_there_and_does_nothing(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    before = hand.read(file.window)
    control.advance(ONE_WINDOW)
    bqtail.late_event(file)
    assert hand.waiting() == [file.window] and hand.read(file.window) == before
    assert bqtail.account().late_events == 1


def test_a_late_event_opens_a_window_again_that_is_gone(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(ONE_WINDOW)
    hand.fire(file.window)
    bqtail.step()
    hand.drop(file.window)
    bqtail.late_event(file)
    twin = json.loads(hand.read(file.window))["event_id"]
    assert twin != file.event_id
    hand.fire(file.window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert not account.ok and (account.finished, account.missing, account.doubled) == (0, 0, 1)
    assert list(account.loads.values()) == [2]
    assert why(account) == (
        f"loaded twice, by chains {file.event_id} and {twin}, "
        f"because window {file.window} was opened again by the late event {twin}"
    )


def test_a_late_twin_is_harmless_once_the_files_are_gone(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(ONE_WINDOW)
    hand.fire(file.window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    hand.drop(file.window)
    bqtail.late_event(file)
    hand.fire(file.window)
    assert bqtail.step() == 1
    assert bqtail.account().ok


def test_a_late_event_without_batching_loads_only_what_still_lies_there(deploy):
    bqtail, hand = deploy(window_s=0)
    gone, there = bqtail.put_file("ds.t"), bqtail.put_file("ds.t2")
    hand.trigger.delete_blob(gone.name)
    bqtail.late_event(gone)
    bqtail.late_event(there)
    assert list(bqtail.account().loads.values()) == [1, 2]


# Twice


def test_a_trace_delivered_twice_doubles_row_and_message(deploy):
    bqtail, hand = deploy(window_s=0, chain=("load",))
    file = bqtail.put_file("ds.t")
    trace = only(hand.waiting())
    for hour in ("12", "13"):
        hand.copy(trace, f"_bqjob_/2026-03-01_{hour}/{trace}.json")
        bqtail.step()
    account = bqtail.account()
    assert (account.doubled, account.rows, account.messages) == (1, 2, 2)
    assert account.job_counts() == {"load with a trace": 1, "query without a trace": 1, "refused": 1}
    assert why(account) == (
        f"row streamed twice and message sent twice in chain {file.event_id} because trace {trace} arrived twice"
    )


def test_a_refused_job_id_is_taken_for_success_and_the_chain_runs_on(deploy):
    bqtail, hand = deploy(window_s=0)
    bqtail.put_file("ds.t")
    load = only(hand.waiting())
    body = hand.read(load)
    hand.move_all_until_done(bqtail)
    hand.trigger.blob("_bqjob_/again").upload_from_string(body)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.job_counts() == {**CHAIN_JOBS, "refused": 3}
    assert (account.doubled, account.rows, account.messages) == (1, 2, 2)
    assert f"because trace {load} arrived twice" in why(account)
    assert list(account.loads.values()) == [1]


def test_a_second_delivery_that_changes_nothing_is_no_double(deploy):
    """Both come before the next trace is moved: that is written again over itself, and its job refused."""
    bqtail, hand = deploy(window_s=0)
    bqtail.put_file("ds.t")
    load = only(hand.waiting())
    hand.copy(load, "_bqjob_/other")
    hand.move(load)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    assert bqtail.account().ok and bqtail.account().job_counts()["refused"] == 1


def test_a_window_delivered_twice_is_named_as_the_cause(deploy, control):
    bqtail, hand = deploy(then=("insert",))
    file = bqtail.put_file("ds.t")
    control.advance(ONE_WINDOW)
    for _ in range(2):
        hand.fire(file.window)
        bqtail.step()
        hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert list(account.loads.values()) == [1]  # the second load job met its own ID
    assert why(account) == f"row streamed twice in chain {file.event_id} because window {file.window} arrived twice"


def test_a_load_job_whose_answer_was_lost_counts_as_accepted(deploy, control):
    bqtail, _ = deploy(window_s=0)
    control.add_fault("bigquery.jobs.insert", "status", status=503, times=1, after=True)
    bqtail.put_file("ds.t")
    assert list(bqtail.account().loads.values()) == [1]


# Missing


def test_an_unfired_window_is_said_to_wait(deploy):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    assert why(bqtail.account()) == f"window {file.window} waits unfired in the task folder"
    hand.tasks.blob(f"Tasks/{WindowName.parse(file.window).sentinel}").upload_from_string(".")
    assert why(bqtail.account()).endswith("waits unfired in the task folder, although its sentinel is there")


def test_a_window_deleted_unfired_leaves_its_event_missing(deploy):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    hand.drop(file.window)
    account = bqtail.account()
    assert not account.ok and account.missing == 1
    assert why(account) == (
        f"window {file.window} vanished without a load: it lies neither in the task folder nor in the trigger bucket"
    )


def test_a_waiting_trace_is_named_with_the_state_of_its_job(deploy, control):
    bqtail, hand = deploy(window_s=0, pending_ms=(1000, 1000), running_ms=(10_000, 10_000))
    bqtail.put_file("ds.t")
    trace = only(hand.waiting())
    assert why(bqtail.account()) == f"trace {trace} waits in the task folder; its job is PENDING"
    control.advance(5)
    assert why(bqtail.account()).endswith("its job is RUNNING")
    control.advance(10)
    assert why(bqtail.account()).endswith("its job is DONE")
    hand.move(trace)
    assert f"trace {trace} lies in the trigger bucket as _bqjob_/2026-03-01_12/{trace}.json" in why(bqtail.account())


def test_a_trace_deleted_unmoved_is_said_to_have_vanished(deploy):
    bqtail, hand = deploy(window_s=0)
    bqtail.put_file("ds.t")
    trace = only(hand.waiting())
    hand.drop(trace)
    assert why(bqtail.account()).startswith(f"trace {trace} vanished without being consumed")


def test_an_unreadable_body_is_counted_reported_and_deleted(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(ONE_WINDOW)
    hand.trigger.blob(f"_batch_/{file.window}").upload_from_string(".")
    hand.trigger.blob("_bqjob_/x.json").upload_from_string('{"event_id": 1}')
    assert bqtail.step() == 2
    account = bqtail.account()
    assert hand.arrived() == [] and len(account.unreadable) == 2
    assert account.unreadable[0].startswith(f"_batch_/{file.window}: no JSON")
    assert account.missing == 1


# Jobs


def test_a_failed_job_ends_its_chain_with_a_message(deploy):
    bqtail, hand = deploy(window_s=0, failing=1.0)
    bqtail.put_file("ds.t")
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and (account.finished, account.failed) == (1, 1)
    chain = only(account.chains)
    assert chain.failed and chain.rows == 0
    assert "load job" in only(chain.messages) and "failed" in only(chain.messages)


def test_a_trace_that_arrives_before_its_job_is_done_is_left_and_reported(deploy, control):
    bqtail, hand = deploy(window_s=0, running_ms=(5_000, 5_000))
    bqtail.put_file("ds.t")
    hand.move(only(hand.waiting()))
    assert (bqtail.step(), bqtail.step()) == (0, 0)
    assert len(bqtail.account().early) == 1
    control.advance(10)
    assert bqtail.step() == 1


def test_the_trace_is_there_before_its_job_is_submitted(deploy, session):
    bqtail, hand = deploy(window_s=0)
    seen = []

    def before_it_is_sent(request):
        if request.method == "POST":
            seen.append((json.loads(request.body)["jobReference"]["jobId"], hand.waiting()))
        return request

    session.auth = before_it_is_sent
    bqtail.put_file("ds.t")
    job_id, traces = only(seen)
    assert TraceName.parse(only(traces)).job_id == job_id


def test_only_jobs_with_a_trace_carry_the_label(deploy, control):
    bqtail, hand = deploy(window_s=0, chain=("load",), running_ms=(5_000, 5_000))
    bqtail.put_file("ds.t")
    control.advance(10)
    hand.move_all_until_done(bqtail)
    assert control.peaks()["xx"]["query"] == 1
    assert control.peaks(TRACE_LABEL)["xx"] == {**dict.fromkeys(control.peaks()["xx"], 0), "load": 1, "jobs": 1}


def test_the_same_seed_gives_the_same_jobs(deploy):
    labels = []
    for seed in (1, 1, 2):
        bqtail, _ = deploy(seed=seed, pending_ms=(0, 10_000), running_ms=(0, 60_000), failing=0.5)
        labels.append([bqtail._schedule(f"job{i}", traced=True) for i in range(20)])
    assert labels[0] == labels[1] != labels[2]


def test_a_call_that_fails_is_made_again_in_a_later_step(deploy, control):
    bqtail, hand = deploy(window_s=0)
    bqtail.put_file("ds.t")
    control.add_fault("bigquery.jobs.insert", "status", status=403, times=1)
    hand.move(only(hand.waiting()))
    assert (bqtail.step(), bqtail.step()) == (0, 1)
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and len(account.errors) == 1


def test_what_was_acted_on_and_could_not_be_deleted_is_not_acted_on_again(deploy, control):
    bqtail, hand = deploy(window_s=0, chain=("load",))
    bqtail.put_file("ds.t")
    control.add_fault("storage.objects.delete", "status", status=403, times=1, name="_bqjob_/*")
    hand.move(only(hand.waiting()))
    assert (bqtail.step(), bqtail.step()) == (0, 1)
    assert bqtail.account().ok and hand.arrived() == []


# Names


@pytest.mark.parametrize(
    ("dest", "project"),
    [
        ("ds.t", "xx"),
        ("ds.t$20260301", "xx"),
        ("ds.fact--orders", "xx"),
        ("ds.t_1-", "xx"),
        ("p-1:ds.t", "p-1"),
        ("p-1.ds.json_events$2026", "p-1"),
        ("example.com:legacy:ds.t", "example.com:legacy"),
        ("example.com:legacy.ds.windows", "example.com:legacy"),
    ],
)
@pytest.mark.parametrize("location", ["US", "europe-west1", ""])
def test_destinations_of_every_form_go_through(deploy, control, dest, project, location):
    bqtail, hand = deploy(location=location)
    file = bqtail.put_file(dest)
    assert WindowName.parse(file.window).dest == dest
    control.advance(ONE_WINDOW)
    hand.fire(file.window)
    bqtail.step()
    trace = TraceName.parse(only(hand.waiting("--dispatch")))
    assert (trace.project, trace.region, trace.dest) == (project, location or None, dest)
    job = bqtail.account().jobs[0]
    assert (job.project, job.location, job.job_id) == (project, location, trace.job_id)
    hand.move_all_until_done(bqtail)
    assert bqtail.account().ok


def test_bodies_count_and_names_do_not(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(ONE_WINDOW)
    hand.copy(file.window, "_batch_/any")
    bqtail.step()
    number = 0
    while traces := hand.waiting("--dispatch"):
        hand.copy(only(traces), f"_bqjob_/a/b/{number}")
        hand.drop(only(traces))
        bqtail.step()
        number += 1
    assert number == 3 and bqtail.account().ok


def test_prefixes_and_folders_are_settings(standin, control, storage, session):
    config = DispatchConfig.from_dict(
        {
            "ProjectID": "xx",
            "AsyncTaskURL": f"gs://{TASKS}",
            "JournalURL": "gs://ops/journal/",
            "ErrorURL": "gs://ops/errors/",
            "TriggerBucket": TRIGGER,
            "PostJobPrefix": "/_done_/",
        }
    )
    settings = BqTailSettings.for_dispatcher(config, window_s=0, chain=("load",), data_prefix="in/")
    bqtail = StandInBqTail(storage, session, standin.url, settings)
    file = bqtail.put_file("ds.t")
    assert file.name.startswith("in/ds.t/")
    tasks, trigger = storage.bucket(TASKS), storage.bucket(TRIGGER)
    trace = only(tasks.list_blobs())
    tasks.copy_blob(trace, trigger, f"_done_/{trace.name}")
    assert bqtail.step() == 1 and bqtail.account().ok


@pytest.mark.parametrize(
    "wrong",
    [
        {"chain": ()},
        {"chain": ("copy",)},
        {"chain": ("load", "reload")},
        {"then": ("notify", "notify")},
        {"then": ("call",)},
    ],
)
def test_settings_that_make_no_chain_are_refused(wrong):
    with pytest.raises(ValueError, match=r"chain is|then is|unknown actions"):
        BqTailSettings("gs://t", "b", "p", **wrong)


# The account and the process


def test_counters_follow_the_events(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    counters = bqtail.counters()
    assert (counters.events, counters.waiting, counters.running, counters.finished) == (1, 1, 0, 0)
    control.advance(ONE_WINDOW)
    hand.fire(file.window)
    bqtail.step()
    assert (bqtail.counters().waiting, bqtail.counters().running, bqtail.counters().batches) == (0, 1, 1)
    hand.move_all_until_done(bqtail)
    counters = bqtail.counters()
    assert (counters.running, counters.finished, counters.dispatched, counters.consumed) == (0, 1, 3, 4)


def test_the_account_can_be_read_by_people_and_programs(deploy):
    bqtail, _ = deploy()
    file = bqtail.put_file("ds.t")
    account = bqtail.account()
    assert str(account).splitlines()[1].startswith(f"  missing: event {file.event_id} (")
    assert json.loads(json.dumps(account.to_dict()))["problems"][0]["kind"] == "missing"
    assert account.to_dict(details=False)["loads"] == 0
    console = Console(record=True, width=200, file=StringIO())
    console.print(account.table())
    assert file.window in console.export_text()


def test_many_chains_at_one_time_are_exactly_once(deploy):
    bqtail, hand = deploy(window_s=0, workers=8, failing=0.1)
    for number in range(40):
        bqtail.put_file(f"ds.t{number % 5}")
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and account.finished == 40 and 0 < account.failed < 40


def test_run_steps_until_it_is_told_to_stop(deploy):
    bqtail, hand = deploy(window_s=0, chain=("load",))
    bqtail.put_file("ds.t")
    stop = threading.Event()
    running = threading.Thread(target=bqtail.run, args=(stop, 0.01))
    running.start()
    hand.move(only(hand.waiting()))
    wait_until(lambda: bqtail.counters().finished, "its chain is finished")
    stop.set()
    running.join()
    assert bqtail.account().ok


@pytest.fixture
def process(standin, control, tmp_path):
    """Start it as a process; ends it when the test does not."""
    config = tmp_path / "dispatcher.json"
    places = {key: f"gs://{TASKS}/{key}/" for key in ("JournalURL", "ErrorURL")}
    config.write_text(
        json.dumps({"ProjectID": "xx", "AsyncTaskURL": f"gs://{TASKS}/Tasks", "TriggerBucket": TRIGGER, **places})
    )
    started = []

    def process(*options):
        command = [sys.executable, "-m", module.__name__, "--config", str(config), "--every", "0", "--settle", "0"]
        hosts = {"STORAGE_EMULATOR_HOST": standin.url, "BIGQUERY_EMULATOR_HOST": standin.url}
        started.append(
            subprocess.Popen(
                [*command, *options], env={**os.environ, **hosts}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        )
        return started[-1]

    yield process
    for one in started:
        one.kill()
        one.wait()
        one.stdout.close()


def served(feeding, hand):
    """Move what waits until the process ends; gives its account."""
    while feeding.poll() is None:
        for trace in hand.waiting("--dispatch"):
            hand.move(trace)
        time.sleep(0.05)
    return json.loads(feeding.communicate()[0])


def test_the_process_feeds_events_and_exits_zero_when_all_went_through_once(process, storage):
    hand = DispatcherByHand(storage)
    feeding = process("--events", "4", "--window-s", "0")
    account = served(feeding, hand)
    assert feeding.returncode == 0
    assert (account["ok"], account["events"], account["finished"], account["chains"]) == (True, 4, 4, 4)


def test_the_process_ends_its_feed_on_a_signal_and_waits_for_what_is_on_its_way(process, storage):
    hand = DispatcherByHand(storage)
    feeding = process("--window-s", "0", "--dest", "ds.t")
    wait_until(lambda: len(hand.waiting("--dispatch")) >= 3, "three events wait")
    feeding.send_signal(signal.SIGUSR1)
    account = served(feeding, hand)
    assert feeding.returncode == 0
    assert account["events"] == account["finished"] >= 3


def test_the_process_makes_the_buckets_that_are_missing(process, storage):
    for bucket in (TASKS, TRIGGER):
        storage.bucket(bucket).delete(force=True)
    feeding = process("--every", "60", "--dest", "ds.t")
    wait_until(lambda: storage.lookup_bucket(TASKS) and DispatcherByHand(storage).waiting(".win"), "a window waits")
    feeding.terminate()
    feeding.communicate(timeout=120)
    assert storage.lookup_bucket(TRIGGER) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_cleanly_on_a_signal_and_tells_what_is_missing(process, storage, number):
    hand = DispatcherByHand(storage)
    feeding = process("--every", "60", "--dest", "ds.t")
    wait_until(lambda: hand.waiting(".win"), "a window waits")
    feeding.send_signal(number)
    account = json.loads(feeding.communicate(timeout=120)[0])
    assert feeding.returncode == 1 and account["missing"] == 1
    assert "waits unfired" in account["problems"][0]["why"]
