"""The account of the stand-in BqTail can be read, also that of its process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from io import StringIO

import pytest
from by_hand import TASKS, TRIGGER, UNTIL_LISTED, DispatcherByHand, only
from rich.console import Console
from waiting import wait_until


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

    def process(*options, stderr=subprocess.DEVNULL):
        command = [
            sys.executable,
            "-m",
            "bqdispatch_provider.testing.bqtail",
            "--config",
            str(config),
            "--every",
            "0",
            "--settle",
            "0",
        ]
        hosts = {"STORAGE_EMULATOR_HOST": standin.url, "BIGQUERY_EMULATOR_HOST": standin.url}
        started.append(
            subprocess.Popen([*command, *options], env={**os.environ, **hosts}, stdout=subprocess.PIPE, stderr=stderr)
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


def test_the_process_lets_no_file_come_while_so_many_are_on_their_way(process, storage, tmp_path):
    hand = DispatcherByHand(storage)
    with (tmp_path / "log").open("wb") as log:
        feeding = process("--window-s", "0", "--dest", "ds.t", "--max-unfinished", "2", "--events", "3", stderr=log)
        wait_until(lambda: len(hand.waiting("--dispatch")) == 2, "two events wait")
        assert served(feeding, hand)["finished"] == 3
    *_, last = (tmp_path / "log").read_text().splitlines()
    assert last.endswith("3 of 3 files finished; 0 wait for their load, 0 are in a chain of jobs")


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
