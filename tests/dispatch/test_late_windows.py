"""Windows that return, and firings that load nothing: decided by what was loaded, or named until somebody acts."""

import json
import shlex
import threading
import zlib
from contextlib import contextmanager
from datetime import timedelta

import pytest
from test_move import put_target, target
from waiting import PATIENCE_S
from world import TASKS, TRIGGER

from bqdispatch_provider.commands.cli import main
from bqdispatch_provider.commands.replay import Decisions
from bqdispatch_provider.core.events import Event, Load, Share
from bqdispatch_provider.core.model import Lane
from bqdispatch_provider.delivery.quarantine import ReplayError
from bqdispatch_provider.gcp import job_calls
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.names import WindowName
from bqdispatch_provider.view.suggested_commands import commands_in

A, B, C = (f"gs://{TRIGGER}/data/{each}" for each in "abc")


class Rule:
    """A rule that batches the files of ``ds.t``, as BqTail sees it: events, loads, and what lies in the task folder.

    :param many: whether a window has many folders.
    """

    def __init__(self, world, many):
        self.world, self.many = world, many
        self.name = WindowName.parse(f"ds.t_{zlib.crc32(b'ds.t')}_{int(world.control.now()) - 60}.win").name
        self.event = 0

    def arrive(self, uri, age=20):
        """The storage event of a file; its event ID, where it made the window."""
        lies_there = self.world.blob(self.name) is not None
        self.event += 1
        self.world.client.bucket(TRIGGER).blob(uri.removeprefix(f"gs://{TRIGGER}/")).upload_from_string("{}")
        if not lies_there:
            body = {
                "Source": {"URL": uri},
                "EventID": f"e{self.event}",
                "ProcessURL": f"gs://j/Running/e{self.event}.run",
            }
            self.world.put(self.name, age=age, content=json.dumps(body))
        if self.many:
            self.locate(uri.rpartition("/")[0], age)
        return None if lies_there else f"e{self.event}"

    def locate(self, folder, age=20):
        self.world.put(self.location(folder), age=age, content=folder)

    def location(self, folder):
        return f"{self.name[:-4]}/{zlib.crc32(folder.encode())}.loc"

    def take(self):
        """BqTail consumes what was fired, and says for which event that was."""
        (fired,) = self.world.names(TRIGGER, "_batch_/")
        event = json.loads(self.world.blob(fired, TRIGGER).download_as_bytes())["EventID"]
        self.world.delete(fired, TRIGGER)
        return event

    def load(self, event, *uris, state="DONE", error=None, step=1, action="load", dest="ds_t"):
        job = f"{dest}--{event}_{step:05}_{action}--dispatch"
        self.world.control.seed_jobs(
            [
                {
                    "project": "p",
                    "location": "US",
                    "jobId": job,
                    "type": "load",
                    "creationTime": self.world.control.now() - 1,
                    "sourceUris": list(uris),
                    **({} if state == "DONE" else {"runningMs": 10**9}),
                    **({"error": error} if error else {}),
                }
            ]
        )

    def fired(self, *uris, **more):
        """The first firing, of the file of its first folder, and its load."""
        self.arrive(f"{A}/1.json")
        assert self.world.cycle().dispatched == 1
        event = self.take()
        if uris:
            self.load(event, *uris, **more)
        self.world.control.advance(200)
        self.world.cycle()
        assert self.world.blob(self.name) is None
        return event

    def finished(self):
        """BqTail removes the location objects that a load has used."""
        for name in self.world.names():
            if name.endswith(".loc"):
                self.world.delete(name)


@pytest.fixture(params=[False, True], ids=["one folder", "many folders"])
def rule(world, request):
    return Rule(world, request.param)


@pytest.fixture
def one(world):
    return Rule(world, many=False)


@pytest.fixture
def many(world):
    return Rule(world, many=True)


def test_a_window_of_many_folders_is_removed_before_it_is_fired(world, many):
    many.arrive(f"{A}/1.json")
    assert world.cycle().dispatched == 1
    assert world.names() == [many.location(A)]


def test_the_late_event_of_a_loaded_file_is_counted_and_loads_nothing(world, rule):
    rule.fired(f"{A}/1.json")
    rule.finished()
    rule.arrive(f"{A}/1.json")
    report = world.cycle()
    assert (report.dispatched, report.late, report.errors) == (0, 1, [])
    assert report.to_dict()["Late"] == 1
    assert world.names() == []
    assert world.names(TRIGGER, "_batch_/") == []


def test_each_late_window_is_counted_once_by_whoever_deletes_it(world, rule):
    rule.fired(f"{A}/1.json")
    rule.finished()
    rule.arrive(f"{A}/1.json")
    world.control.add_fault("storage.objects.delete", "status", status=403, name="*.win")
    report = world.cycle()
    assert (report.late, len(report.errors)) == (0, 1)
    world.control.clear_faults()
    with world.dispatcher() as one, world.dispatcher() as other:
        plans = [each.look().plan.cleanup for each in (one, other)]
        assert [one.clean_up(plans[0]).late, other.clean_up(plans[1]).late] == [1, 0]


def test_each_claimed_late_window_is_counted_once(world, rule, given_up):
    given_up(f"{A}/1.json", f"{A}/2.json")
    world.control.advance(300)
    with world.dispatcher() as one, world.dispatcher() as other:
        plans = [each.look().plan.cleanup for each in (one, other)]
        assert [one.clean_up(plans[0]).late, other.clean_up(plans[1]).late] == [1, 0]


def test_a_late_file_of_a_new_folder_is_loaded_and_no_folder_twice(world, many):
    many.fired(f"{A}/1.json")
    many.finished()
    many.locate(A)  # a late event of the known folder, whose window was dropped
    assert many.arrive(f"{B}/2.json")
    assert world.cycle().dispatched == 1
    assert world.names() == [many.location(B)]
    assert many.take() == "e2"


@pytest.mark.parametrize("stray", ["", "note.txt", "sub/9.loc"])
def test_what_names_no_folder_holds_no_window_back(world, many, stray):
    """The console makes an object of a folder's name, for instance."""
    many.fired(f"{A}/1.json")
    many.finished()
    world.put(f"{many.name[:-4]}/{stray}")
    many.arrive(f"{B}/2.json")
    assert world.cycle().dispatched == 1


def test_an_object_of_another_form_in_the_ledger_holds_a_returned_window_back_and_no_other(world, many):
    many.fired(f"{A}/1.json")
    many.finished()
    many.locate(A)  # a late event of the known folder, whose window was dropped
    many.arrive(f"{B}/2.json")
    other = world.window("ds.other")
    minute, _, _ = world.ledger(many.name)["fired"].name.rpartition("/")
    odd = f"{minute}/{many.name}.0"
    world.client.bucket(TASKS).blob(odd).upload_from_string("")
    report = world.cycle()
    assert (report.dispatched, len(report.errors)) == (1, 1)
    assert f"window {many.name!r}" in report.errors[0]
    assert f"'gs://{TASKS}/{odd}'" in report.errors[0]
    assert world.names() == sorted([many.location(A), many.location(B), many.name, other])
    world.client.bucket(TASKS).delete_blob(odd)
    assert world.cycle().dispatched == 1
    assert f"_batch_/{many.name}" in world.names(TRIGGER)


def test_no_location_is_deleted_once_the_ledger_holds_an_object_of_another_form(world, many):
    many.fired(f"{A}/1.json")
    many.finished()
    many.locate(A)
    many.arrive(f"{B}/2.json")
    odd = f"{world.ledger(many.name)['fired'].name}-v2"
    with world.dispatcher() as dispatcher:
        shares = dispatcher.look().plan.shares()
        assert [event.stale_locations for share in shares for event in share.events if event.stale_locations]
        world.client.bucket(TASKS).blob(odd).upload_from_string("")
        (error,) = dispatcher.dispatch(shares).errors
    assert many.name in error
    assert f"'gs://{TASKS}/{odd}'" in error
    assert world.names() == sorted([many.location(A), many.location(B), many.name])


def test_it_waits_while_the_first_load_runs(world, rule):
    rule.fired(f"{A}/1.json", state="RUNNING")
    rule.arrive(f"{C}/3.json")
    assert world.cycle().to_dict()["Outcomes"]["pending"] == 1
    assert world.names(TRIGGER, "_batch_/") == []


def test_it_is_fired_if_bqtail_dropped_the_first_firing(world, rule):
    rule.fired()
    rule.arrive(f"{A}/1.json")
    for minutes in (0, 5, 4):
        world.control.advance(60 * minutes)
        assert world.cycle().dispatched == 0
    world.control.advance(90)
    assert world.cycle().dispatched == 1
    assert rule.take() == "e2"


def test_it_is_fired_if_the_first_load_has_failed_for_good(world, rule):
    rule.fired(f"{A}/1.json", error="invalid")
    rule.arrive(f"{A}/1.json")
    assert world.cycle().dispatched == 0
    world.control.advance(630)
    assert world.cycle().dispatched == 1


def test_a_failed_load_whose_trace_waits_may_be_followed_by_another(world, rule):
    event = rule.fired(f"{A}/1.json", f"{A}/0.json", error="invalid")
    rule.arrive(f"{A}/1.json")
    world.put(f"proj:p:US/ds.t--{event}_00001_load--dispatch", age=250)  # before the load, as BqTail does
    with world.dispatcher() as dispatcher:
        for _ in range(3):
            assert not dispatcher.look().plan.events["windows"]
            world.control.advance(700)
    world.cycle()
    (trace,) = world.names(TRIGGER, "_bqjob_/")
    world.control.advance(700)
    assert world.cycle().dispatched == 0, "BqTail has not consumed the trace"
    world.delete(trace, TRIGGER)
    assert world.cycle().dispatched == 0
    rule.load(event, f"{A}/1.json", step=3, action="reload")
    world.control.advance(700)
    report = world.cycle()
    assert (report.dispatched, report.late) == (0, 1)


def waits_until_the_trace_is_consumed(world):
    """Show that a returned window waits for the trace of a failed load, and is fired then."""
    for _ in range(2):
        world.control.advance(700)
        assert world.cycle().dispatched == 0, "BqTail has not consumed the trace"
    world.consume()
    world.cycle()
    world.control.advance(700)
    assert world.cycle().dispatched == 1


def test_the_trace_of_a_failed_load_waits_under_its_other_name_too(world, one):
    event = one.fired(f"{A}/1.json", error="invalid")
    one.arrive(f"{A}/1.json")
    name = f"proj:p:US/ds.t--{event}_00001_load--dispatch"
    world.put(name, age=250, content="first")  # before the load, as BqTail does
    usual = target(world, name)
    put_target(world, usual, "of another trace")
    assert world.cycle().outcomes["dispatched"] == 1
    assert len(world.names(TRIGGER, "_bqjob_/")) == 2
    world.delete(usual, TRIGGER)
    waits_until_the_trace_is_consumed(world)


def test_a_load_that_began_again_under_another_event_counts(world, rule):
    """BqTail does so after an error of BigQuery's own."""
    rule.fired(f"{A}/1.json", error="backendError")
    rule.load("another", f"{A}/1.json", step=5)
    rule.arrive(f"{A}/1.json")
    assert world.cycle().late == 1


def test_the_trace_of_a_load_that_began_again_under_another_event_is_waited_for(world, one):
    one.fired(f"{A}/1.json", error="backendError")
    one.load("another", f"{A}/1.json", step=5, error="invalid")
    one.arrive(f"{A}/1.json")
    world.put("proj:p:US/ds.t--another_00005_load--dispatch", age=30)
    assert world.cycle().outcomes["dispatched"] == 1
    waits_until_the_trace_is_consumed(world)


def test_a_load_from_before_a_late_take_over_counts(world, one):
    """The claim is created anew by a take-over, long after the window was fired and loaded."""
    one.arrive(f"{A}/1.json")
    with world.dispatcher() as dispatcher:
        copy = dispatcher.store.copy

        def copy_and_die(copies, to=None):
            copy(copies, to)
            raise KeyboardInterrupt

        dispatcher.store.copy = copy_and_die
        with pytest.raises(KeyboardInterrupt):
            dispatcher.cycle()
    one.load(one.take(), f"{A}/1.json")
    for name in world.intents():
        world.delete(name)
    world.control.advance(1200)
    world.cycle()
    assert {"claim", "fired"} <= set(world.ledger(one.name))
    world.control.advance(200)
    world.cycle()
    assert world.blob(one.name) is None
    one.arrive(f"{A}/1.json")
    for _ in range(3):
        assert world.cycle().dispatched == 0
        world.control.advance(700)
    assert world.names() == []


def test_windows_whose_loads_run_for_hours_keep_no_others_waiting(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.delivery.late_windows.MAX_JUDGED", 1)
    rules = [Rule(world, many=False) for _ in range(3)]
    for number, rule in enumerate(rules):
        rule.name = rule.name.replace("ds.t_", f"ds.t{number}_")
        rule.arrive(f"{A}/{number}.json")
    assert world.cycle().dispatched == 3
    for number, fired in enumerate(world.names(TRIGGER, "_batch_/")):
        event = json.loads(world.blob(fired, TRIGGER).download_as_bytes())["EventID"]
        world.delete(fired, TRIGGER)
        state = "DONE" if number == 2 else "RUNNING"
        rules[number].load(event, f"{A}/{number}.json", state=state, dest=f"ds_t{number}")
    world.control.advance(200)
    world.cycle()
    for number, rule in enumerate(rules):
        rule.arrive(f"{A}/{number}.json")
    assert any(world.cycle().late for _ in range(60))


def test_returned_windows_are_judged_side_by_side(world):
    rules = [Rule(world, many=False) for _ in range(2)]
    for number, rule in enumerate(rules):
        rule.name = rule.name.replace("ds.t_", f"ds.t{number}_")
        rule.arrive(f"{A}/{number}.json")
    assert world.cycle().dispatched == 2
    for fired in world.names(TRIGGER, "_batch_/"):
        event = json.loads(world.blob(fired, TRIGGER).download_as_bytes())["EventID"]
        world.delete(fired, TRIGGER)
        number = fired.partition("ds.t")[2][0]
        rules[0].load(event, f"{A}/{number}.json", dest=f"ds_t{number}")
    world.control.advance(200)
    world.cycle()
    for number, rule in enumerate(rules):
        rule.arrive(f"{A}/{number}.json")
    both = threading.Barrier(2)
    with world.dispatcher() as dispatcher:
        loads = dispatcher.board.loads

        def loads_of_both(*args, **more):
            both.wait(PATIENCE_S)
            return loads(*args, **more)

        dispatcher.board.loads = loads_of_both
        assert dispatcher.cycle().late == 2


def test_what_cannot_be_decided_is_an_error_of_every_report_until_it_is_replayed(world, many):
    many.fired(f"{A}/1.json")
    many.finished()
    many.locate(B)
    many.arrive(f"{A}/1.json")
    report = world.cycle()
    assert "was loaded and" in report.quarantined[world.url_of(many.name)]
    assert report.outcomes["quarantined"] == 1
    (marker,) = [name for name in world.names() if name.startswith("undecided/")]
    for _ in range(2):
        document = world.cycle().to_dict()
        assert document["Status"] == "error"
        assert marker in document["Error"]
        assert "bqdispatch replay" in document["Error"]
    assert world.names(TRIGGER, "_batch_/") == []
    with world.dispatcher() as dispatcher:
        decisions = Decisions(dispatcher)
        (found,) = decisions.listing()
        said = decisions.fire(found)
    assert B in said
    assert world.names() == sorted([many.location(B), many.name])
    world.control.advance(5)
    report = world.cycle()
    assert (report.dispatched, report.errors) == (1, [])
    (fired,) = world.names(TRIGGER, "_batch_/")
    body = json.loads(world.blob(fired, TRIGGER).download_as_bytes())
    assert body["Source"]["URL"] == f"{B}/1.json"
    assert body["EventID"].isdecimal()
    assert body["ProcessURL"] == f"gs://j/Running/{body['EventID']}.run"


def explained(world, capsys, config, event):
    main(["explain", "--json", "--config", str(config()), event])
    (found,) = json.loads(capsys.readouterr().out)
    return found


def test_a_returned_window_of_a_loaded_file_is_explained_before_it_is_deleted(world, rule, config, capsys):
    rule.fired(f"{A}/1.json")
    rule.finished()
    rule.arrive(f"{A}/1.json")
    found = explained(world, capsys, config, rule.name)
    assert found["State"] == "is deleted next"
    assert f"It has returned, and '{A}/1.json' was loaded." in found["Details"]


def test_the_command_for_a_window_that_becomes_undecided_fires_it(world, many, config, capsys):
    many.fired(f"{A}/1.json")
    many.finished()
    many.locate(B)
    many.arrive(f"{A}/1.json")
    found = explained(world, capsys, config, many.name)
    assert found["State"] == "becomes undecided next"
    world.cycle()
    (marker,) = [name for name in world.names() if name.startswith("undecided/")]
    assert f"Once it waits as {marker}, somebody has to decide." in found["Next"]
    assert main(shlex.split(commands_in(found["Next"])[1])[1:]) == 0
    assert "is back, and will be fired" in capsys.readouterr().out


def test_a_replay_waits_while_a_load_may_come_and_leaves_out_what_was_loaded(world, one):
    one.fired(f"{A}/0.json", f"{A}/1.json")
    one.arrive(f"{A}/late.json")
    world.cycle()
    (marker,) = world.names()
    assert marker.startswith("undecided/")
    with world.dispatcher() as dispatcher:
        decisions = Decisions(dispatcher)
        (found,) = decisions.listing()
        assert "other files of its folder were" in found.reason
        assert "will be fired" in decisions.fire(found)
        assert decisions.listing() == []
        assert "is back" in decisions.fire(found), "a second try finds the first"
    world.control.advance(5)
    assert world.cycle().dispatched == 1


def test_a_file_that_was_not_loaded_is_replayed_after_the_missed_folder_beside_it(world, many):
    many.fired(f"{A}/0.json", f"{A}/1.json")
    many.finished()
    many.locate(B)
    many.arrive(f"{A}/late.json")
    world.cycle()
    fired = []
    for loaded in ([f"{B}/1.json"], [f"{A}/late.json"]):
        with world.dispatcher() as dispatcher:
            decisions = Decisions(dispatcher)
            (found,) = decisions.listing()
            decisions.fire(found)
            if not fired:
                with pytest.raises(ReplayError, match="try again once it has been fired"):
                    decisions.fire(found)
        world.control.advance(5)
        assert world.cycle().dispatched == 1
        (name,) = world.names(TRIGGER, "_batch_/")
        fired.append(json.loads(world.blob(name, TRIGGER).download_as_bytes())["Source"]["URL"].rpartition("/")[0])
        many.load(many.take(), *loaded)
        many.finished()
        world.control.advance(700)
        world.cycle()
    assert fired == [B, A]
    with world.dispatcher() as dispatcher:
        assert Decisions(dispatcher).listing() == []


def test_a_replay_is_refused_while_another_window_of_that_name_lies_there(world, one):
    one.fired(f"{A}/0.json", f"{A}/1.json")
    one.arrive(f"{A}/late.json")
    world.cycle()
    one.arrive(f"{A}/later.json")
    with world.dispatcher() as dispatcher:
        decisions = Decisions(dispatcher)
        with pytest.raises(ReplayError, match="exists"):
            decisions.fire(decisions.listing()[0])


def test_a_firing_that_bqtail_dropped_is_set_aside_and_replayed(world, rule):
    event = rule.fired()
    for minutes in (1, 11):
        world.control.advance(60 * minutes)
        report = world.cycle()
    assert "BqTail has submitted no load" in report.quarantined[world.url_of(rule.name)]
    with world.dispatcher() as dispatcher:
        decisions = Decisions(dispatcher)
        (found,) = decisions.listing()
        decisions.fire(found)
    world.control.advance(5)
    assert world.cycle().dispatched == 1
    assert rule.take() == event
    rule.load(event, f"{A}/1.json")
    world.control.advance(300)
    world.cycle()
    assert world.cycle().errors == []


def test_a_share_that_was_fired_long_ago_leaves_the_claim_as_it_is(world, rule):
    rule.arrive(f"{A}/1.json")
    with world.dispatcher() as dispatcher:
        shares = dispatcher.look().plan.shares()
    assert world.cycle().dispatched == 1
    rule.load(rule.take(), f"{A}/1.json")
    claim = world.ledger(rule.name)["claim"].generation
    world.control.advance(600)
    with world.dispatcher() as late:
        assert late.dispatch(shares).outcomes == {"ignored": 1}
    assert world.ledger(rule.name)["claim"].generation == claim
    rule.finished()
    world.cycle()
    rule.arrive(f"{A}/1.json")
    assert world.cycle().late == 1


def test_a_project_that_does_not_answer_is_not_asked_for_the_load_of_each_firing(world, monkeypatch):
    monkeypatch.setattr(job_calls, "RETRY_FAILURES", job_calls.RETRY_FAILURES.with_timeout(0.01))
    for number in range(12):
        world.window(f"ds.t{number}", content=json.dumps({"EventID": f"{number}"}))
    with world.dispatcher(MaxConcurrentJobs=20) as dispatcher:
        assert dispatcher.cycle().dispatched == 12
        for name in world.names(TRIGGER, "_batch_/"):
            world.delete(name, TRIGGER)
        world.control.advance(60)
        world.control.add_fault("bigquery.*", "status", status=503)
        world.control.reset_counters()
        dispatcher.cycle()
        assert world.control.calls()["bigquery.jobs.list"] < 12
        world.control.clear_faults()


@pytest.mark.parametrize("limit", [0, 5])
def test_a_firing_that_bqtail_never_takes_does_not_make_a_look_longer_each_day(world, one, monkeypatch, limit):
    monkeypatch.setattr("bqdispatch_provider.gcp.job_calls.PAGE_SIZE", 10)
    one.arrive(f"{A}/1.json")
    assert world.cycle(MaxConcurrentJobs=limit).dispatched == 1
    for day in range(3):
        world.control.advance(24 * 3600)
        world.jobs([f"other-{day}-{number}" for number in range(50)], age=1)
        world.control.reset_counters()
        world.cycle(MaxConcurrentJobs=limit)
        assert world.control.calls().get("bigquery.jobs.list", 0) <= 1
    event = one.take()
    one.load(event, f"{A}/1.json")
    for _ in range(2):
        world.control.advance(100)
        world.cycle(MaxConcurrentJobs=limit)
    assert not world.intents()


@pytest.mark.parametrize("limit", [0, 5])
def test_a_load_beside_a_window_that_stays_is_looked_for_until_jobs_are_listed(world, one, monkeypatch, limit):
    monkeypatch.setattr("bqdispatch_provider.delivery.visible_loads.LIST_INTERVAL_S", 0)
    event = one.arrive(f"{A}/1.json")
    with world.dispatcher(MaxConcurrentJobs=limit) as dispatcher:
        assert dispatcher.cycle().dispatched == 1
        one.load(event, f"{A}/1.json")
        world.control.advance(700)
        world.control.add_fault("bigquery.jobs.list", "status", status=403)
        dispatcher.cycle()
        world.control.clear_faults()
        dispatcher.cycle()
    assert world.names(TRIGGER, "_batch_/")
    assert not world.intents()


@contextmanager
def ledger_is_not_listed(dispatcher):
    """Refuse lists of the ledger."""
    listed = dispatcher.store.list_folders
    dispatcher.store.list_folders = lambda folders: [Result(503, message="no")] * len(folders)
    yield
    dispatcher.store.list_folders = listed


@pytest.mark.parametrize("same_process", [True, False])
def test_a_firing_counts_and_is_not_forgotten_while_its_ledger_cannot_be_listed(world, rule, same_process):
    rule.arrive(f"{A}/1.json")
    with world.dispatcher(MaxConcurrentJobs=1) as first, world.dispatcher(MaxConcurrentJobs=1) as second:
        assert first.cycle().dispatched == 1
        rule.take()
        dispatcher = first if same_process else second
        for minutes in (4, 5):
            world.control.advance(60 * minutes)
            with ledger_is_not_listed(dispatcher):
                dispatcher.cycle()
            world.control.advance(1)
            other = world.window(f"ds.other{minutes}")
            assert dispatcher.cycle().dispatched == 0  # the limit is reached
            world.delete(other)
        told = []
        for _ in range(3):
            world.control.advance(60 * 11)
            told += dispatcher.cycle().quarantined
    assert told == [world.url_of(rule.name)]


def test_folders_are_not_said_to_be_without_a_firing_while_the_ledger_cannot_be_listed(world, many, missed):
    missed(f"{A}/1.json")
    with world.dispatcher() as dispatcher, ledger_is_not_listed(dispatcher):
        errors = dispatcher.cycle().errors
    assert not any("knows no firing" in error for error in errors)
    assert any("cannot be listed" in error for error in errors)


def test_the_dispatcher_that_fired_it_sets_a_dropped_firing_aside_once(world, rule):
    rule.arrive(f"{A}/1.json")
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        assert dispatcher.cycle().dispatched == 1
        rule.take()
        told = []
        for minutes in (1, 1, 11, 1, 1):
            world.control.advance(60 * minutes)
            told += dispatcher.cycle().quarantined
        assert told == [world.url_of(rule.name)]
        assert [name for name in world.names() if name.startswith("undecided/")] != []
        world.window("ds.other")
        world.control.advance(5)
        assert dispatcher.cycle().dispatched == 1  # its slot is free


def test_what_a_later_firing_has_loaded_waits_for_no_decision(world, rule):
    rule.fired()
    for minutes in (1, 11):
        world.control.advance(60 * minutes)
        world.cycle()
    assert world.cycle().errors
    event = rule.arrive(f"{A}/1.json")
    assert world.cycle().dispatched == 1
    assert rule.take() == event
    rule.load(event, f"{A}/1.json")
    rule.finished()
    world.control.advance(60)
    world.cycle()
    world.control.advance(5)
    assert world.cycle().errors == []
    assert [name for name in world.names() if name.startswith("undecided/")] == []


def test_a_dropped_firing_is_named_if_the_window_that_came_back_has_loaded_another_folder(world, many):
    """Where the name of its folder was never written, nobody else loads that."""
    many.fired()
    world.delete(many.location(A))
    event = many.arrive(f"{B}/2.json")
    for minutes in (0, 11, 0):
        world.control.advance(60 * minutes)
        world.cycle()
    assert many.take() == event
    many.load(event, f"{B}/2.json")
    many.finished()
    for minutes in (2, 1):
        world.control.advance(60 * minutes)
        report = world.cycle()
    assert any("BqTail has submitted no load" in error for error in report.errors)


def test_a_load_without_files_is_no_dropped_firing(world, rule):
    event = rule.fired()
    rule.load(event)
    rule.finished()
    for minutes in (1, 11, 11):
        world.control.advance(60 * minutes)
        assert world.cycle().errors == []


def test_a_window_that_was_put_back_and_whose_dispatcher_died_is_fired_all_the_same(world, many):
    many.fired(f"{A}/1.json")
    many.finished()
    many.locate(B)
    many.arrive(f"{A}/1.json")
    world.cycle()
    with world.dispatcher() as dispatcher:
        decisions = Decisions(dispatcher)
        decisions.fire(decisions.listing()[0])
    world.control.advance(5)
    with world.dispatcher() as dispatcher:
        dispatcher.store.copy = lambda copies, to=None: [Result(403, message="no")] * len(copies)
        dispatcher.cycle()
    assert world.blob(many.name) is None, "it is removed before it is fired"
    world.control.advance(200)
    assert world.cycle().dispatched == 1


@pytest.fixture
def given_up(world, rule):
    """A window that somebody has claimed since nothing was loaded, and not fired; then its first firing loads files."""

    def given_up(*uris):
        event = rule.fired()
        for minutes in (1, 11):
            world.control.advance(60 * minutes)
            world.cycle()
        (marker,) = [name for name in world.names() if name.startswith("undecided/")]
        world.delete(marker)
        rule.finished()
        rule.arrive(f"{A}/2.json")
        with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:

            def die(copies, to=None):
                raise KeyboardInterrupt

            dispatcher.store.copy = die
            with pytest.raises(KeyboardInterrupt):
                dispatcher.cycle()
        assert world.names(TRIGGER, "_batch_/") == []
        rule.load(event, *uris)
        rule.finished()

    return given_up


def leaves_nothing_behind(world):
    """All slots of a limit are free, and no report has an error."""
    for minutes in (5, 11, 5, 1):
        world.control.advance(60 * minutes)
        report = world.cycle(MaxConcurrentJobs=1)
    assert (report.errors, report.slots) == ([], {})
    assert [name for name in world.names() if not name.startswith("intents/")] == []


def test_a_claimed_window_whose_file_was_loaded_meanwhile_holds_nothing_back(world, rule, given_up):
    given_up(f"{A}/1.json", f"{A}/2.json")
    world.control.advance(300)
    assert world.cycle(MaxConcurrentJobs=1).late == 1
    leaves_nothing_behind(world)


def test_a_claimed_window_that_became_undecided_holds_nothing_back_once_it_is_replayed(world, rule, given_up):
    given_up(f"{A}/1.json")
    world.control.advance(300)
    assert list(world.cycle(MaxConcurrentJobs=1).quarantined) == [world.url_of(rule.name)]
    for minutes in (1, 11):
        world.control.advance(60 * minutes)
        (error,) = world.cycle(MaxConcurrentJobs=1).errors
    assert "undecided/" in error
    with world.dispatcher() as dispatcher:
        decisions = Decisions(dispatcher)
        (found,) = decisions.listing()
        decisions.fire(found)
    world.control.advance(5)
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 1
    rule.load(rule.take(), f"{A}/2.json")
    leaves_nothing_behind(world)


def test_an_open_firing_of_no_project_counts_where_its_load_runs_once_there_is_a_limit(world):
    world.window("ds.a", content=json.dumps({"ProjectID": "other", "EventID": "1"}))
    assert world.cycle().dispatched == 1
    world.window("ds.b", content=json.dumps({"ProjectID": "other", "EventID": "2"}))
    assert world.cycle(MaxConcurrentJobs=1).dispatched == 0


def test_a_share_planned_elsewhere_counts_what_somebody_has_begun_to_fire(world):
    begun = world.window("ds.a", due=300, content=json.dumps({"EventID": "1"}))
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        dispatcher.store.copy = lambda copies, to=None: (_ for _ in ()).throw(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            dispatcher.cycle()
    world.control.advance(200)
    fresh = world.window("ds.b", content=json.dumps({"EventID": "2"}))
    blob = world.blob(fresh)
    event = Event(fresh, int(blob.generation), blob.time_created, load=Load("p", "2"))
    with world.dispatcher(MaxConcurrentJobs=1) as dispatcher:
        shares = dispatcher.look().plan.shares()
        assert [event.name for share in shares for event in share.events] == [begun]
        report = dispatcher.dispatch([Share(Lane.WINDOWS, shares[0].planned - timedelta(seconds=1), (event,))])
        assert report.outcomes == {"throttled": 1}


def test_a_firing_without_files_is_no_error(world, rule):
    rule.fired()
    world.client.bucket(TRIGGER).delete_blob("data/a/1.json")
    for minutes in (1, 11, 1):
        world.control.advance(60 * minutes)
        assert world.cycle().errors == []
    assert [name for name in world.intents() if not name.endswith(".done")] == []


@pytest.fixture
def missed(world, many):
    """A folder whose event has found its window, and has named the folder when the firing had been listed.

    Or BqTail has taken a 429 on creating the window for "it is there", and has written nothing but the folder's name.
    """

    def miss(*uris):
        many.fired(*uris)
        many.finished()
        many.locate(B, age=700)
        world.client.bucket(TRIGGER).blob("data/b/2.json").upload_from_string("{}")
        world.control.advance(700)

    return miss


def test_a_folder_beside_a_firing_of_which_nothing_is_known_is_named(world, many, missed):
    missed(f"{A}/1.json")
    (claim,) = [each.name for each in world.client.list_blobs(TASKS) if each.name.endswith(".claim")]
    world.client.bucket(TASKS).delete_blob(claim)
    (error,) = world.cycle().errors
    assert f"named in '{world.url_of(many.location(B)).rpartition('/')[0]}/' wait" in error
    assert "are unknown" in error


def test_the_window_of_a_missed_folder_is_made_anew_and_fired_once(world, many, missed):
    missed(f"{A}/1.json")
    with world.dispatcher() as dispatcher, world.dispatcher() as other:
        assert (dispatcher.cycle().errors, other.cycle().errors) == ([], [])
        body = json.loads(world.blob(many.name).download_as_bytes())
        event = body["EventID"]
        assert (body["Source"], body["ProcessURL"]) == ({"URL": f"{B}/2.json"}, f"gs://j/Running/{event}.run")
        assert event.isdecimal()
        world.control.advance(20)
        assert dispatcher.cycle().dispatched + other.cycle().dispatched == 1
        assert many.take() == event
        many.load(event, f"{B}/2.json")
        many.finished()
        for _ in range(3):
            world.control.advance(700)
            assert dispatcher.cycle().errors == []
    assert (world.names(), world.names(TRIGGER, "_batch_/")) == ([], [])


def test_the_file_of_a_subfolder_makes_no_window_anew(world, many, missed):
    """BqTail lists a folder without its subfolders."""
    missed(f"{A}/1.json")
    world.client.bucket(TRIGGER).blob("data/b/1/0.json").upload_from_string("{}")
    assert world.cycle().errors == []
    assert json.loads(world.blob(many.name).download_as_bytes())["Source"]["URL"] == f"{B}/2.json"


def test_the_name_of_a_folder_that_holds_but_subfolders_is_stale(world, many, missed):
    missed(f"{A}/1.json")
    world.delete("data/b/2.json", TRIGGER)
    world.client.bucket(TRIGGER).blob("data/b/1/0.json").upload_from_string("{}")
    assert world.cycle().errors == []
    assert world.names() == []


def test_a_folder_that_was_named_a_moment_ago_is_no_error_beside_one_that_is_checked(world, missed):
    """Its window is being fired, or was a moment ago: the next check has what became of it."""
    missed(f"{A}/1.json")
    world.put(f"ds.other_7_{int(world.control.now()) - 60}/1.loc", age=60, content=B)
    assert world.cycle().errors == []


def test_a_window_that_cannot_be_made_anew_is_named(world, many, missed):
    missed(f"{A}/1.json")
    world.control.refuse("storage.objects.create", bucket=TASKS)
    assert any("cannot be restored" in error for error in world.cycle().errors)
    assert world.names() == [many.location(B)]


def test_a_missed_folder_whose_window_comes_back_by_itself_is_fired_as_any(world, many, missed):
    missed(f"{A}/1.json")
    event = many.arrive(f"{B}/2.json")
    assert world.cycle().dispatched == 1
    assert many.take() == event


def test_a_folder_beside_a_firing_that_bqtail_has_dropped_is_named_once_a_run_and_replayed(world, many, missed):
    """It would drop a window that is made anew, too."""
    missed()
    world.cycle()
    world.control.advance(700)
    world.cycle()
    world.control.advance(700)
    with world.dispatcher() as dispatcher:
        url = world.url_of(many.location(B))
        (error,) = (error for error in dispatcher.cycle().errors if B in error and url in error)
        assert "no load of window" in error, "its event may have come in time"
        assert not any(B in error for error in dispatcher.cycle().errors)
        decisions = Decisions(dispatcher)
        assert B in decisions.fire(decisions.missed(url))
    world.control.advance(5)
    assert world.cycle().dispatched == 1


def test_a_name_of_a_loaded_folder_that_nobody_removes_goes(world, many):
    many.fired(f"{A}/1.json")
    many.finished()
    many.locate(A, age=700)
    world.control.advance(700)
    assert world.cycle().errors == []
    assert world.names() == []


def test_the_name_of_a_folder_whose_load_has_failed_stays_for_the_next_firing(world, many):
    many.fired(f"{A}/1.json", error="invalid")
    world.control.advance(700)
    world.cycle()
    world.control.advance(700)
    assert world.cycle().errors == []
    assert world.names() == [many.location(A)]
    assert many.arrive(f"{B}/2.json")
    assert world.cycle().dispatched == 1
    assert world.names() == sorted([many.location(A), many.location(B)])


@pytest.mark.parametrize("content", ["no JSON", "[1]", "{}", "[" * 100_000, '{"EventID": 1e400}', ""])
def test_a_window_whose_content_says_nothing_is_fired_and_judged_as_undecided(world, content):
    name = world.window(content=content)
    assert world.cycle(MaxConcurrentJobs=5).dispatched == 1
    world.control.advance(200)
    world.cycle()
    world.put(name, content=content, age=10)
    report = world.cycle(MaxConcurrentJobs=5)
    assert report.dispatched == 0
    assert "does not say" in report.quarantined[world.url_of(name)]


def test_a_returned_window_waits_while_jobs_cannot_be_asked_for(world, asked_once, rule):
    rule.fired(f"{A}/1.json")
    rule.arrive(f"{A}/1.json")
    world.control.add_fault("bigquery.*", "status", status=503)
    document = world.cycle().to_dict()
    assert document["Outcomes"]["pending"] == 1
    assert "has returned and waits" in document["Error"]
    world.control.clear_faults()
    assert world.cycle().late == 1


@pytest.mark.parametrize("answer", [{"unreachable": ["US"]}, {"jobs": "none"}])
def test_a_list_that_is_not_whole_proves_no_load_missing(world, rule, answer):
    """BigQuery names a location as unreachable, or the answer has another form."""
    rule.fired(f"{A}/1.json")
    rule.finished()
    rule.arrive(f"{A}/1.json")
    with world.dispatcher() as dispatcher:
        ask = dispatcher.board.calls.ask
        dispatcher.board.calls.ask = lambda path, query: answer
        for _ in range(3):
            report = dispatcher.cycle()
            assert report.dispatched == 0
            assert "in every location" in report.errors[0]
            world.control.advance(700)
        dispatcher.board.calls.ask = ask
        assert dispatcher.cycle().late == 1


@pytest.mark.parametrize("status", [403, 503])
def test_a_returned_window_waits_while_its_claim_cannot_be_read(world, asked_once, rule, status):
    rule.fired(f"{A}/1.json")
    rule.arrive(f"{A}/1.json")
    world.control.add_fault("storage.objects.get", "status", status=status, name="*.claim")
    document = world.cycle().to_dict()
    assert document["Outcomes"]["pending"] == 1
    assert "has returned and waits" in document["Error"]
    world.control.clear_faults()
    assert world.cycle().late == 1


def test_a_returned_window_whose_claim_is_gone_is_undecided(world, rule):
    rule.fired(f"{A}/1.json")
    rule.arrive(f"{A}/1.json")
    (claim,) = [each.name for each in world.client.list_blobs(TASKS) if each.name.endswith(".claim")]
    world.client.bucket(TASKS).delete_blob(claim)
    report = world.cycle()
    assert "are unknown" in report.quarantined[world.url_of(rule.name)]


def test_fourteen_windows_whose_loads_run_elsewhere_never_pass_the_limit(world):
    for n in range(14):
        world.window(f"ds.t{n}", content=json.dumps({"ProjectID": "other-proj", "EventID": f"e{n}"}))
    fired = 0
    for _ in range(20):
        world.cycle(MaxConcurrentJobs=2)
        there = world.names(TRIGGER, "_batch_/")
        fired += len(there)
        assert len(there) <= 2
        for name in there:
            event = json.loads(world.blob(name, TRIGGER).download_as_bytes())["EventID"]
            world.delete(name, TRIGGER)
            dest = WindowName.parse(name.removeprefix("_batch_/")).dest.replace(".", "_")
            world.jobs([f"{dest}--{event}_00001_load--dispatch"], project="other-proj", age=0)
    assert fired == 14


def test_a_bucket_that_keeps_what_it_was_given_for_a_minute_fires_each_window_once(world):
    """A retention policy forbids to overwrite and to delete: nothing of a firing is overwritten.

    What a dispatcher wrote itself stays as long, and then goes.
    """
    name = world.window(due=200)
    trace = world.trace(age=200)
    world.session.patch(f"{world.url}/storage/v1/b/{TASKS}", json={"retentionPolicy": {"retentionPeriod": "60"}})
    world.control.reset_counters()
    delivered, left = [], []
    for _ in range(6):
        report = world.cycle()
        delivered += world.names(TRIGGER)
        left.append({each.partition(".")[2] for each in world.intents()})
        for each in world.names(TRIGGER):
            world.delete(each, TRIGGER)
        world.control.advance(30)
    assert sorted(delivered) == sorted({*delivered})
    assert len(delivered) == 2
    assert report.errors == []
    assert trace not in world.names()
    assert name in delivered[0] + delivered[1]
    assert sorted(world.ledger(name)) == ["claim", "fired"]
    assert left[:2] == [{"json", "json.done"}] * 2
    assert world.intents() == []
    assert "storage.buckets.get" not in world.control.calls()
