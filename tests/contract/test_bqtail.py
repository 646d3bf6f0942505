"""The stand-in BqTail keeps its side of docs/protocol.md, and its account tells what became of every event."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
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
from bqdispatch_provider.testing.bqtail import TRACE_LABEL, BqTailSettings, Rule, StandInBqTail

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
ONE_WINDOW = 60
UNTIL_LISTED = ONE_WINDOW + 7  # BqTail lists no sooner, however soon a window is fired
TASKS, TRIGGER = "dispatch", "xx_bqtail"
SECOND_JOB_FAILS = 3  # a seed
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
    control.advance(UNTIL_LISTED)
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
    assert json.loads(hand.read(window))["EventID"] == files[0].event_id
    control.advance(UNTIL_LISTED)
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
    control.advance(UNTIL_LISTED)
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
    assert bqtail.step() == 0
    control.advance(UNTIL_LISTED - ONE_WINDOW)
    assert bqtail.step() == 1
    assert len(only(bqtail.account().chains).files) == 2


def test_a_late_event_finds_the_window_there_and_does_nothing(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    before = hand.read(file.window)
    control.advance(UNTIL_LISTED)
    bqtail.late_event(file)
    assert hand.waiting() == [file.window] and hand.read(file.window) == before
    assert bqtail.account().late_events == 1


def test_a_late_event_opens_a_window_again_that_is_gone(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(UNTIL_LISTED)
    hand.fire(file.window)
    bqtail.step()
    hand.drop(file.window)
    bqtail.late_event(file)
    twin = json.loads(hand.read(file.window))["EventID"]
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


def test_a_late_event_of_a_file_that_is_gone_opens_nothing(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(UNTIL_LISTED)
    hand.fire(file.window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    hand.drop(file.window)
    bqtail.late_event(file)
    assert hand.waiting() == [] and bqtail.account().ok


def test_a_late_twin_is_harmless_once_the_other_files_are_gone(deploy, control):
    bqtail, hand = deploy()
    first, held = bqtail.put_file("ds.t"), bqtail.put_file("ds.t", event_delay=None)
    control.advance(UNTIL_LISTED)
    hand.fire(first.window)
    bqtail.step()
    bqtail.deliver(held)
    hand.move_all_until_done(bqtail)
    hand.fire(first.window)
    assert bqtail.step() == 1
    assert bqtail.account().ok


def test_a_late_event_without_batching_loads_only_what_still_lies_there(deploy):
    bqtail, hand = deploy(window_s=0)
    gone, there = bqtail.put_file("ds.t"), bqtail.put_file("ds.t2")
    hand.trigger.delete_blob(gone.name)
    bqtail.late_event(gone)
    bqtail.late_event(there)
    assert list(bqtail.account().loads.values()) == [1, 2]


# Many folders


def test_a_window_of_many_folders_knows_them_by_their_locations(deploy, control):
    bqtail, hand = deploy(rules={"ds.t": Rule(multi_path=True)})
    files = [bqtail.put_file("ds.t", folder=folder) for folder in ("a", "b", "a", "deep/c")]
    window = only({file.window for file in files})
    locations = {file.location for file in files}
    assert len(locations) == 3 and set(hand.waiting()) == {window, *locations}
    assert {hand.read(name).decode() for name in locations} == {
        f"gs://{TRIGGER}/data/ds.t/{folder}" for folder in ("a", "b", "deep/c")
    }
    control.advance(UNTIL_LISTED)
    hand.fire(window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and len(only(account.chains).files) == 4
    assert hand.waiting() == [window]


def test_a_late_event_of_a_new_folder_that_finds_the_window_writes_its_location_only(deploy, control):
    bqtail, hand = deploy(rules={"ds.t": Rule(multi_path=True, then=("notify",))})
    first, late = (
        bqtail.put_file("ds.t", folder="a"),
        bqtail.put_file("ds.t", folder="b", event_delay=None),
    )
    control.advance(UNTIL_LISTED)
    hand.fire(first.window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    before = hand.read(first.window)
    bqtail.deliver(late)
    assert set(hand.waiting()) == {first.window, late.location} and hand.read(first.window) == before
    account = bqtail.account()
    assert (account.finished, account.missing, account.late_files) == (1, 1, 1)
    assert why(account).endswith(f"no load job took this file; {late.location} still names its folder")


def test_a_late_event_of_a_new_folder_opens_a_window_that_is_gone_and_loads_its_own_files_only(deploy, control):
    bqtail, hand = deploy(rules={"ds.t": Rule(multi_path=True, then=("notify",))})
    first = bqtail.put_file("ds.t", folder="a")
    late = [bqtail.put_file("ds.t", folder="b", event_delay=None) for _ in range(2)]
    control.advance(UNTIL_LISTED)
    hand.fire(first.window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    hand.drop(first.window)
    control.advance(3600)
    bqtail.late_event(late[1])
    assert json.loads(hand.read(first.window))["EventID"] == late[1].event_id
    hand.fire(first.window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    assert bqtail.account().finished == 3 and list(bqtail.account().loads.values()) == [1, 1, 1]


def test_folders_have_windows_of_their_own_without_many_folders_to_one(deploy):
    bqtail, hand = deploy()
    files = [bqtail.put_file("ds.t", folder=folder) for folder in ("a", "b", "")]
    assert set(hand.waiting()) == {file.window for file in files} and len(hand.waiting()) == 3


def test_a_window_with_one_folder_leaves_the_folders_below_it_alone(deploy, control):
    bqtail, hand = deploy()
    files = [bqtail.put_file("ds.t", folder=folder) for folder in ("", "below")]
    control.advance(UNTIL_LISTED)
    hand.fire(files[0].window)
    bqtail.step()
    assert list(bqtail.account().loads.values()) == [1, 0]


def test_a_location_that_cannot_be_written_is_not_missed(deploy, control):
    bqtail, hand = deploy(rules={"ds.t": Rule(multi_path=True)})
    control.add_fault("storage.objects.insert", "status", status=429, times=1, name="*.loc")
    file = bqtail.put_file("ds.t", folder="a")
    assert hand.waiting() == [file.window]


def test_a_refusal_for_being_too_fast_is_taken_for_a_window_that_is_there(deploy, control):
    bqtail, hand = deploy(rules={"ds.t": Rule(multi_path=True)})
    control.add_fault("storage.objects.insert", "status", status=429, times=1, name="*.win")
    file = bqtail.put_file("ds.t", folder="a")
    assert hand.waiting() == [file.location]


def test_a_location_that_goes_while_it_is_read_drops_the_firing(deploy, control):
    bqtail, hand = deploy(rules={"ds.t": Rule(multi_path=True)})
    file = bqtail.put_file("ds.t", folder="a")
    control.advance(UNTIL_LISTED)
    hand.fire(file.window)
    control.add_fault("storage.objects.get", "status", status=404, times=1, name="*.loc")
    assert bqtail.step() == 1
    assert f"window {file.window}" in only(bqtail.account().dropped)


# Events and firings


def test_an_event_that_is_held_back_comes_when_it_is_due(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t", event_delay=30)
    assert bqtail.step() == 0 and hand.waiting() == []
    assert why(bqtail.account()).endswith("its storage event has not come")
    control.advance(31)
    assert bqtail.step() == 1 and hand.waiting() == [file.window]
    account = bqtail.account()
    assert (account.late_files, account.late_events) == (1, 0)


def test_an_event_that_is_sent_again_has_the_same_id_and_loads_nothing_new(deploy, control):
    bqtail, hand = deploy(then=("notify",), chain=("load",))
    file = bqtail.put_file("ds.t")
    for _ in range(2):
        control.advance(UNTIL_LISTED)
        hand.fire(file.window)
        bqtail.step()
        hand.drop(file.window)
        bqtail.deliver(file)
    assert json.loads(hand.read(file.window))["EventID"] == file.event_id
    assert list(bqtail.account().loads.values()) == [1]
    assert bqtail.account().job_counts()["refused"] == 1


def test_a_window_whose_rule_is_unknown_is_dropped_without_loading(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    bqtail.forget_rule("ds.t")
    hand.fire(file.window)
    assert bqtail.step() == 1 and hand.arrived() == []
    account = bqtail.account()
    assert "rule was empty" in only(account.dropped) and account.job_counts() == {}
    control.advance(UNTIL_LISTED)
    hand.fire(file.window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    assert bqtail.account().ok


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
def test_a_window_whose_load_cannot_be_submitted_is_dropped_and_leaves_its_trace(deploy, control, status, monkeypatch):
    monkeypatch.setattr(module, "_PATIENTLY", module._PATIENTLY.with_timeout(0.2))
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(UNTIL_LISTED)
    control.add_fault("bigquery.jobs.insert", "status", status=status)
    hand.fire(file.window)
    assert bqtail.step() == 1 and hand.arrived() == []
    assert len(hand.waiting("_load--dispatch")) == 1
    assert f"window {file.window}" in only(bqtail.account().dropped) and bqtail.account().missing == 1


def test_a_window_whose_load_was_refused_for_being_too_fast_waits(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(UNTIL_LISTED)
    control.add_fault("bigquery.jobs.insert", "status", status=403, reason="rateLimitExceeded", times=5)
    hand.fire(file.window)
    assert [bqtail.step() for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    assert bqtail.account().dropped == ()


def test_a_file_whose_load_failed_and_which_is_loaded_later_is_loaded_once(deploy, control):
    bqtail, hand = deploy(then=("notify",), chain=("load",))
    file = bqtail.put_file("ds.t")
    failing, bqtail.settings = bqtail.settings, replace(bqtail.settings, failing=1.0)
    control.advance(UNTIL_LISTED)
    hand.fire(file.window)
    bqtail.step()
    bqtail.settings = failing
    hand.drop(file.window)
    bqtail.late_event(file)
    hand.fire(file.window)
    bqtail.step()
    account = bqtail.account()  # which asks BigQuery about a load that nobody has told of yet
    assert list(account.loads.values()) == [1] and account.doubled == 0
    hand.move_all_until_done(bqtail)
    assert bqtail.account().ok and bqtail.account().failed == 0


@pytest.mark.parametrize("rule", [Rule(transient_project="other"), Rule(balancer=("one", "two")), Rule()])
def test_a_load_runs_where_the_windows_body_says(deploy, control, rule):
    bqtail, hand = deploy(rules={"p:ds.t": rule})
    file = bqtail.put_file("p:ds.t")
    project = json.loads(hand.read(file.window)).get("ProjectID")
    assert project in ({rule.transient_project, *rule.balancer} - {None} or {None})
    control.advance(UNTIL_LISTED)
    hand.fire(file.window)
    bqtail.step()
    hand.move_all_until_done(bqtail)
    assert {job.project for job in bqtail.account().jobs} == {project or "xx"}


def test_a_balancer_spreads_its_events(deploy):
    bqtail, hand = deploy(window_s=0, rules={"ds.t": Rule(balancer=("one", "two"))})
    for _ in range(20):
        bqtail.put_file("ds.t")
    assert {TraceName.parse(name).project for name in hand.waiting()} == {"one", "two"}


def test_peaks_are_those_of_the_project_that_a_load_runs_in(deploy, control):
    rules = {"ds.t": Rule(transient_project="other"), "ds.u": Rule(chain=("load",))}
    bqtail, hand = deploy(window_s=0, rules=rules, running_ms=(5_000, 5_000))
    for dest in ("ds.t", "ds.t", "ds.u"):
        bqtail.put_file(dest)
    peaks = bqtail.account().peaks
    assert {project: each["load"] for project, each in peaks.items()} == {"other": 2, "xx": 1}
    control.advance(10)
    hand.move_all_until_done(bqtail)
    assert bqtail.account().peaks["xx"] == {"load": 1, "copy": 0, "extract": 0, "query": 0, "jobs": 1, "sql": 0}


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
    control.advance(UNTIL_LISTED)
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
    bqtail, _ = deploy()
    file = bqtail.put_file("ds.t")
    assert why(bqtail.account()) == f"window {file.window} waits unfired in the task folder"


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
    control.advance(UNTIL_LISTED)
    hand.trigger.blob(f"_batch_/{file.window}").upload_from_string(".")
    hand.trigger.blob("_bqjob_/x.json").upload_from_string('{"event_id": 1}')
    assert bqtail.step() == 2
    account = bqtail.account()
    assert hand.arrived() == [] and len(account.unreadable) == 2
    assert account.unreadable[0].startswith(f"_batch_/{file.window}: no JSON")
    assert account.missing == 1


# Jobs


def test_a_failed_copy_or_query_ends_its_chain_with_a_message(deploy):
    bqtail, hand = deploy(window_s=0, failing=0.5, seed=SECOND_JOB_FAILS)
    bqtail.put_file("ds.t")
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and (account.finished, account.failed) == (1, 1)
    chain = only(account.chains)
    assert chain.failed and chain.rows == 0
    assert "copy job" in only(chain.messages) and "failed" in only(chain.messages)


def test_after_a_failed_load_no_action_is_run_and_its_files_stay(deploy):
    bqtail, hand = deploy(window_s=0, failing=1.0)
    file = bqtail.put_file("ds.t")
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and (account.finished, account.failed, account.messages) == (1, 1, 0)
    assert list(account.loads.values()) == [0]
    assert hand.trigger.blob(file.name).exists() and account.job_counts() == {"load with a trace": 1}


def test_corrupt_files_are_moved_away_and_the_others_loaded_again(deploy, control):
    bqtail, hand = deploy()
    good, bad = bqtail.put_file("ds.t"), bqtail.put_file("ds.t", corrupt=True)
    control.advance(UNTIL_LISTED)
    hand.fire(good.window)
    bqtail.step()
    hand.move(only(hand.waiting("_load--dispatch")))
    bqtail.step()
    reload = TraceName.parse(only(hand.waiting("--dispatch")))
    assert (reload.event_id, reload.step, reload.action) == (good.event_id, 3, "reload")
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and (account.finished, account.failed) == (2, 1)
    assert account.loads == {f"gs://{TRIGGER}/{good.name}": 1, f"gs://{TRIGGER}/{bad.name}": 0}
    assert account.job_counts()["load with a trace"] == 2
    assert not hand.trigger.blob(bad.name).exists()
    assert hand.tasks.blob(f"BqTail/Journal/corrupted/{bad.name}").exists()


def test_a_load_that_bigquery_failed_is_submitted_again_under_another_id(deploy):
    bqtail, hand = deploy(window_s=0, failing=1.0, failing_by="backendError")
    file = bqtail.put_file("ds.t")
    written = json.loads(hand.read(only(hand.waiting())))["Job"]["configuration"]["load"]["destinationTable"]
    bqtail.settings = replace(bqtail.settings, failing=0.0)
    hand.move(only(hand.waiting()))
    bqtail.step()
    again = only(hand.waiting())
    name = TraceName.parse(again)
    assert (name.event_id != file.event_id, name.step > 5, name.action) == (True, True, "load")
    assert json.loads(hand.read(again))["Job"]["configuration"]["load"]["destinationTable"] == written
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and list(account.loads.values()) == [1] and account.failed == 0
    assert [job.chain for job in account.jobs] == [file.event_id, *[name.event_id] * 4]


def test_without_other_files_a_corrupt_one_is_not_loaded_again(deploy):
    bqtail, hand = deploy(window_s=0)
    bqtail.put_file("ds.t", corrupt=True)
    hand.move_all_until_done(bqtail)
    assert bqtail.account().ok and bqtail.account().job_counts() == {"load with a trace": 1}


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
    control.add_fault("bigquery.jobs.insert", "status", status=403, reason="rateLimitExceeded", times=1)
    hand.move(only(hand.waiting()))
    assert (bqtail.step(), bqtail.step()) == (0, 1)
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and len(account.errors) == 1


def test_after_an_error_that_is_not_worth_a_retry_the_object_is_deleted_at_once(deploy, control):
    bqtail, hand = deploy(window_s=0)
    bqtail.put_file("ds.t")
    control.add_fault("bigquery.jobs.insert", "status", status=403, times=1)
    hand.move(only(hand.waiting()))
    assert bqtail.step() == 1 and hand.arrived() == []
    account = bqtail.account()
    assert account.missing == 1 and "_bqjob_/" in only(account.dropped)


def test_after_its_last_retry_a_trace_is_moved_out_of_the_way(deploy, control):
    bqtail, hand = deploy(window_s=0)
    bqtail.put_file("ds.t")
    control.add_fault("bigquery.jobs.insert", "status", status=403, reason="rateLimitExceeded", times=4)
    name = only(hand.waiting())
    hand.move(name)
    assert [bqtail.step() for _ in range(4)] == [0, 0, 0, 1]
    assert hand.arrived() == []
    aside = only(b.name for b in hand.tasks.list_blobs(prefix="BqTail/Journal/retry/data/"))
    assert aside.endswith(f"/_bqjob_/2026-03-01_12/{name}.json")


def test_a_trace_whose_job_is_unknown_is_dropped(deploy, control):
    bqtail, hand = deploy(window_s=0, chain=("load",))
    control.add_fault("bigquery.jobs.insert", "status", status=409, reason="duplicate", times=1)
    bqtail.put_file("ds.t")
    hand.move(only(hand.waiting()))
    assert bqtail.step() == 1
    assert "BigQuery knows no job" in only(bqtail.account().dropped)


def test_what_was_acted_on_and_could_not_be_deleted_is_not_acted_on_again(deploy, control):
    bqtail, hand = deploy(window_s=0, chain=("load",))
    bqtail.put_file("ds.t")
    control.add_fault("storage.objects.delete", "status", status=403, times=1, name="_bqjob_/*")
    hand.move(only(hand.waiting()))
    assert (bqtail.step(), bqtail.step()) == (0, 1)
    assert bqtail.account().ok and hand.arrived() == []


def test_a_name_that_was_changed_a_moment_ago_is_changed_again_later(deploy, control):
    bqtail, hand = deploy(window_s=0, chain=("load",))
    bqtail.put_file("ds.t")
    control.add_fault("storage.objects.delete", "status", status=429, times=2, name="_bqjob_/*")
    control.add_fault("storage.objects.insert", "status", status=429, times=1, name="*--dispatch")
    bqtail.put_file("ds.t")
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and account.errors == () and hand.arrived() == []


# Names


@pytest.mark.parametrize(
    "dest",
    [
        "ds.t",
        "ds.t$20260301",
        "ds.fact--orders",
        "ds.t_1-",
        "p-1:ds.t",
        "p-1.ds.json_events$2026",
        "example.com:legacy:ds.t",
        "example.com:legacy.ds.windows",
    ],
)
@pytest.mark.parametrize("location", ["US", "europe-west1", ""])
@pytest.mark.parametrize("project", [None, "example.com:other"])
def test_destinations_of_every_form_go_through(deploy, control, dest, location, project):
    bqtail, hand = deploy(location=location, rules={dest: Rule(transient_project=project)})
    file = bqtail.put_file(dest)
    assert WindowName.parse(file.window).dest == dest
    control.advance(UNTIL_LISTED)
    hand.fire(file.window)
    bqtail.step()
    trace = TraceName.parse(only(hand.waiting("--dispatch")))
    assert (trace.project, trace.region, trace.dest) == (project or "xx", location or None, dest)
    job = bqtail.account().jobs[0]
    assert (job.project, job.location, job.job_id) == (project or "xx", location, trace.job_id)
    hand.move_all_until_done(bqtail)
    assert bqtail.account().ok


def traces_of_a_chain(bqtail, hand, dest):
    bqtail.put_file(dest)
    names = []
    while traces := hand.waiting("--dispatch"):
        names += traces
        hand.move(only(traces))
        bqtail.step()
    return [name.replace(only(bqtail.account().chains).event_id, "ID") for name in names]


def test_locations_change_from_step_to_step(deploy):
    rule = Rule(transient_location="europe-west1", transient_project="other")
    bqtail, hand = deploy(window_s=0, rules={"p:ds.t": rule})
    assert traces_of_a_chain(bqtail, hand, "p:ds.t") == [
        "proj:other:europe-west1/p:ds.t--ID_00001_load--dispatch",
        "proj:other:US/p:ds.t--ID_00002_copy--dispatch",
        "proj:other:US/p:ds.t--ID_00003_query--dispatch",
    ]
    assert bqtail.account().ok


def test_exports_and_queries_that_change_rows_have_no_location(deploy):
    bqtail, hand = deploy(window_s=0, rules={"ds.t": Rule(dml=True, chain=("load", "query", "export"))})
    assert traces_of_a_chain(bqtail, hand, "ds.t") == [
        "proj:xx:US/ds.t--ID_00001_load--dispatch",
        "proj:xx:/ds.t--ID_00002_query--dispatch",
        "proj:xx:/ds.t--ID_00003_export--dispatch",
    ]
    assert bqtail.account().ok


def test_jobs_without_a_trace_are_named_as_those_that_have_one(deploy):
    bqtail, hand = deploy(window_s=0, chain=("load",), then=("query",))
    traces_of_a_chain(bqtail, hand, "ds.t")
    jobs = bqtail.account().jobs
    assert [job.traced for job in jobs] == [True, False]
    assert all(job.job_id.endswith("--dispatch") for job in jobs)


def test_a_transient_load_is_named_after_its_destination_and_writes_another_table(deploy, session, standin):
    bqtail, hand = deploy(window_s=0)
    file = bqtail.put_file("ds.t")
    load = json.loads(hand.read(only(hand.waiting())))
    assert load["Meta"]["DestTable"] == "ds.t"
    written = {"projectId": "xx", "datasetId": "temp", "tableId": f"t_{file.event_id}"}
    assert load["Job"]["configuration"]["load"]["destinationTable"] == written
    hand.move(only(hand.waiting()))
    bqtail.step()
    copy = json.loads(hand.read(only(hand.waiting())))["Job"]["configuration"]["copy"]
    assert copy["sourceTable"] == written
    assert copy["destinationTable"] == {"projectId": "xx", "datasetId": "ds", "tableId": "t"}


def test_bodies_count_and_names_do_not(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(UNTIL_LISTED)
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
        {"then": ("shout",)},
        {"rules": {"ds.t": Rule(chain=("query",))}},
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
    control.advance(UNTIL_LISTED)
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
    while len(hand.waiting("--dispatch")) < 3:
        time.sleep(0.05)
    feeding.send_signal(signal.SIGUSR1)
    account = served(feeding, hand)
    assert feeding.returncode == 0
    assert account["events"] == account["finished"] >= 3


def test_the_process_makes_the_buckets_that_are_missing(process, storage):
    for bucket in (TASKS, TRIGGER):
        storage.bucket(bucket).delete(force=True)
    feeding = process("--every", "60", "--dest", "ds.t")
    while not (storage.lookup_bucket(TASKS) and DispatcherByHand(storage).waiting(".win")):
        time.sleep(0.05)
    feeding.terminate()
    feeding.communicate(timeout=120)
    assert storage.lookup_bucket(TRIGGER) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_cleanly_on_a_signal_and_tells_what_is_missing(process, storage, number):
    hand = DispatcherByHand(storage)
    feeding = process("--every", "60", "--dest", "ds.t")
    while not hand.waiting(".win"):
        time.sleep(0.05)
    feeding.send_signal(number)
    account = json.loads(feeding.communicate(timeout=120)[0])
    assert feeding.returncode == 1 and account["missing"] == 1
    assert "waits unfired" in account["problems"][0]["why"]
