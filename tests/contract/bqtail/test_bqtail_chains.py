"""A chain of the stand-in BqTail runs exactly once, and its account tells whatever is doubled or missing."""

from by_hand import TRIGGER, UNTIL_LISTED, only, why

from bqdispatch_provider.names import TraceName

CHAIN_JOBS = {"copy with a trace": 1, "load with a trace": 1, "query with a trace": 1, "query without a trace": 1}


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
