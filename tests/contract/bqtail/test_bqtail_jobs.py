"""The stand-in BqTail submits jobs and handles their ends as docs/protocol.md says."""

import json
from dataclasses import replace

import pytest
from by_hand import TRIGGER, UNTIL_LISTED, only

from bqdispatch_provider.names import TraceName
from bqdispatch_provider.testing.bqtail import TRACE_LABEL

SECOND_JOB_FAILS = 3  # a seed


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
        labels.append([bqtail._chains._schedule(f"job{i}", traced=True) for i in range(20)])
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


@pytest.mark.parametrize("workers", [1, 4])
def test_what_was_delivered_less_than_a_second_ago_is_consumed_in_the_same_step(deploy, control, workers):
    bqtail, hand = deploy(window_s=0, chain=("load",), then=(), workers=workers)
    for _ in range(5):
        bqtail.put_file("ds.t")
    control.set_name_limit(True)
    control.advance(2)
    for trace in hand.waiting():
        hand.move(trace)
    assert bqtail.step() == 5
    assert hand.arrived() == []
    assert bqtail.account().ok
    # Only the first of each worker is in the way of the others, and for a second.
    assert control.refused().get("storage.objects.delete", 0) <= workers


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
    control.add_fault("storage.objects.delete", "status", status=429, times=1, name="_bqjob_/*")
    control.add_fault("storage.objects.insert", "status", status=429, times=1, name="*--dispatch")
    bqtail.put_file("ds.t")
    hand.move_all_until_done(bqtail)
    account = bqtail.account()
    assert account.ok and account.errors == () and hand.arrived() == []
