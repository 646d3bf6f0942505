"""The stand-in BqTail opens and loads windows as docs/protocol.md says."""

import json
from dataclasses import replace

import pytest
from by_hand import NOON, ONE_WINDOW, TRIGGER, UNTIL_LISTED, only, why

from bqdispatch_provider.names import TraceName, WindowName
from bqdispatch_provider.testing.bqtail import Rule, calls


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


def test_an_event_that_is_held_back_comes_when_it_is_due(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t", event_delay=30)
    assert bqtail.step() == 0 and hand.waiting() == []
    assert why(bqtail.account()).endswith("its storage event has not arrived")
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
    monkeypatch.setattr(calls, "RETRY", calls.RETRY.with_timeout(0.2))
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
