"""Quarantine: only what BigQuery is proven not to know goes there, nothing is lost on the way, and all comes back."""

import json
from datetime import UTC, datetime

import pytest
from google.api_core.exceptions import Forbidden, GoogleAPICallError
from world import FOLDER, JOURNAL, TASKS, TRIGGER

from bqdispatch_provider.core.targets import REPLAY, REPLAYED, SINCE
from bqdispatch_provider.delivery.quarantine import QuarantineStore, ReplayError
from bqdispatch_provider.delivery.quarantine_notes import NoteCache
from bqdispatch_provider.gcp.storage_answers import Result
from bqdispatch_provider.names import TraceName

DAY = 86_400.0
OLD = DAY + 60


def outcomes(world, **more):
    return world.cycle(**more).to_dict()["Outcomes"]


def in_quarantine(world):
    """What lies in quarantine, without its day."""
    return [name.split("/", 2)[2] for name in world.names(JOURNAL, "errors/")]


def store(world, **more):
    return QuarantineStore(world.client, world.config(**more).for_project("p"))


def replay(world, **more):
    with store(world, **more) as quarantine:
        return [quarantine.put_back(each) for each in quarantine.listing()]


def quarantined_window(world, dest="ds.t"):
    """A window in quarantine, of which nobody knows whether it was delivered; gives its name."""
    name = world.window(dest, content="second")
    world.claim(name, ago=200)
    world.control.refuse("storage.buckets.get", bucket=TRIGGER)
    assert outcomes(world, OnDoubt="quarantine")["quarantined"] == 1
    return name


# ---- evidence ----------------------------------------------------------------------------------------------------


def test_a_trace_whose_job_is_unknown_for_a_day_is_set_aside_with_a_note(world, clock_stands_still):
    name = world.trace(state=None, age=OLD, content='{"a": 1}')
    generation = int(world.blob(name).generation)
    since = datetime.fromtimestamp(world.control.now() - OLD, UTC)
    document = world.cycle().to_dict()
    assert (document["Status"], document["Outcomes"]) == ("ok", {"quarantined": 1})
    reason = document["Quarantined"][world.url_of(name)]
    assert world.names() == []
    kept, note = world.names(JOURNAL, "errors/")
    assert kept == f"errors/{since:%Y-%m-%d}/{name}.{generation}"
    assert note == f"{kept}.json"
    assert world.blob(kept, JOURNAL).download_as_bytes() == b'{"a": 1}'
    told = json.loads(world.blob(note, JOURNAL).download_as_bytes())
    assert (told["URL"], told["Generation"], told["Reason"]) == (world.url_of(name), generation, reason)
    assert abs((datetime.fromisoformat(told["Since"]) - since).total_seconds()) < 5
    assert datetime.fromisoformat(told["SetAside"]).timestamp() == pytest.approx(world.control.now(), abs=10)
    assert told["Asked"]["ID"].startswith("ds_t--")


@pytest.mark.parametrize("number", [1, 30])
@pytest.mark.parametrize(
    ("status", "reason", "outcome"),
    [
        (404, None, "quarantined"),
        (404, "somethingElse", "not_found"),
        (400, "invalid", "not_found"),
        (403, "accessDenied", "error"),
        (403, "rateLimitExceeded", "error"),
        (429, None, "error"),
        (503, None, "error"),
    ],
)
def test_only_a_404_is_evidence(world, asked_once, number, status, reason, outcome):
    names = world.traces(number, state=None, age=OLD)
    if (status, reason) != (404, None):
        world.control.add_fault("bigquery.jobs.get", "status", status=status, **({"reason": reason} if reason else {}))
    assert outcomes(world) == {outcome: number}
    assert world.names() == ([] if outcome == "quarantined" else sorted(names))


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("status", [403, 404, 400])
def test_a_project_whose_jobs_cannot_be_listed_proves_nothing(world, root, status):
    """A project that is gone answers 404 to every look-up, of whichever job."""
    name = world.trace(state=None, age=OLD, root=root)
    world.control.add_fault("bigquery.jobs.list", "status", status=status)
    assert outcomes(world).keys() <= {"not_found", "error"}
    assert world.names() == [name]


@pytest.mark.parametrize("region", ["EU", "asia-east1"])
def test_a_job_that_is_at_another_place_than_its_trace_says_is_not_unknown(world, region):
    """Only US and EU can be looked at without a location, so elsewhere the trace's word is all there is."""
    name = world.trace(state=None, age=OLD)
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location=region)
    assert outcomes(world) == ({"not_found": 1} if region == "EU" else {"quarantined": 1})
    assert world.names() == ([name] if region == "EU" else [])


def test_a_root_trace_needs_a_list_that_covers_it_as_well(world):
    world.trace(state=None, age=OLD, root=True)
    world.control.reset_counters()
    assert outcomes(world) == {"quarantined": 1}
    calls = world.control.calls()
    assert (calls["bigquery.jobs.list"], calls["bigquery.jobs.get"]) == (1, 1)


def test_a_root_trace_that_was_written_again_finds_the_job_of_its_first_writing(world):
    world.trace(state=None, age=OLD, root=True)
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location="asia-east1", age=OLD + DAY - 60)
    assert outcomes(world) == {"dispatched": 1}


def test_a_list_without_a_location_that_could_not_be_reached_proves_nothing(world):
    world.trace(state=None, age=OLD, root=True)
    with world.dispatcher() as dispatcher:
        ask = dispatcher.board.calls.ask
        dispatcher.board.calls.ask = lambda path, query: {**ask(path, query), "unreachable": ["asia-east1"]}
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"not_found": 1}
        dispatcher.board.calls.ask = ask
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"quarantined": 1}


def test_a_list_of_many_pages_is_read_to_its_end(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.job_calls.PAGE_SIZE", 10)
    world.trace(state=None, age=OLD, root=True)
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location="asia-east1", age=OLD)
    world.jobs([f"other-{n}" for n in range(35)], age=3600)
    assert outcomes(world) == {"dispatched": 1}


def test_what_the_cap_of_look_ups_leaves_out_is_not_set_aside_but_comes_in_turn(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.job_search.MAX_LOOKUPS", 20)
    world.traces(50, state=None, age=OLD)
    assert outcomes(world) == {"quarantined": 20, "not_found": 30}
    assert outcomes(world) == {"quarantined": 20, "not_found": 10}
    assert outcomes(world) == {"quarantined": 10}


def test_look_ups_that_never_prove_anything_do_not_keep_the_others_from_being_looked_up(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.job_search.MAX_LOOKUPS", 10)
    world.traces(20, state=None, age=200 * DAY)
    world.traces(2, state=None, age=OLD)
    with world.dispatcher() as dispatcher:
        for _ in range(60):
            document = dispatcher.cycle().to_dict()
            if document["Outcomes"] == {"not_found": 20}:
                return
    raise AssertionError(document["Outcomes"])


def test_zero_minutes_never_quarantine(world):
    world.traces(3, state=None, age=100 * DAY)
    world.control.reset_counters()
    assert outcomes(world, MaxUnknownJobMin=0) == {"not_found": 3}
    assert world.control.calls()["bigquery.jobs.get"] == 3


# ---- into quarantine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["storage.objects.insert", "storage.objects.copy", "storage.objects.*"])
def test_a_place_that_refuses_leaves_the_object_where_it_is(world, call):
    names = world.traces(3, state=None, age=OLD)
    world.control.add_fault(call, "status", status=403, reason="forbidden", bucket=JOURNAL)
    document = world.cycle().to_dict()
    assert (document["Status"], document["Outcomes"], document["Quarantined"]) == ("error", {"error": 3}, {})
    assert all(any(world.url_of(name) in error for error in document["Errors"]) for name in names)
    assert world.names() == sorted(names)
    world.control.clear_faults()
    assert outcomes(world) == {"quarantined": 3}


def test_a_trace_that_was_set_aside_and_not_deleted_is_not_taken_for_delivered_once_its_job_is_known(world):
    name = world.trace(state=None, age=OLD)
    with world.dispatcher() as dispatcher:
        world.control.add_fault("storage.objects.delete", "status", status=403, name=f"*{name}")
        assert dispatcher.cycle().outcomes["error"] == 1
        world.control.clear_faults()
        world.jobs([TraceName.parse(name).job_id])
        report = dispatcher.cycle()
    assert report.outcomes == {"quarantined": 1}
    assert world.names() == world.names(TRIGGER) == []
    assert len(in_quarantine(world)) == 2


class Crash(BaseException):
    """A process that ends."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["write_json", "copy", "delete"])
def test_a_crash_while_setting_aside_loses_nothing_and_a_second_try_finds_the_first(world, step, after):
    name = world.trace(state=None, age=OLD, content="body")
    with world.dispatcher() as dispatcher:
        cleanup = dispatcher.look().plan.cleanup
        real = getattr(dispatcher.store, step)

        def crash(*arguments, **named):
            if after:
                real(*arguments, **named)
            raise Crash

        setattr(dispatcher.store, step, crash)
        with pytest.raises(Crash):
            dispatcher.clean_up(cleanup)
    kept = [each for each in in_quarantine(world) if not each.endswith(".json")]
    assert name in world.names() or len(kept) == 1
    if kept:
        assert len(in_quarantine(world)) == 2
    left = outcomes(world)
    assert left.get("quarantined", 0) == (0 if step == "delete" and after else 1)
    assert name not in world.names()
    (kept, note) = in_quarantine(world)
    assert note == f"{kept}.json"
    assert json.loads(world.blob(world.names(JOURNAL, "errors/")[1], JOURNAL).download_as_bytes())["Reason"]
    assert world.blob(world.names(JOURNAL, "errors/")[0], JOURNAL).download_as_bytes() == b"body"


@pytest.mark.parametrize(
    "dest", ["ds.<b>&t", "ds.%2F..%2F", "ds.tä\t\x01\x1b[31m", "..--", "ds.x'\"?#[]*", "ds.t.json"]
)
def test_names_are_untrusted_text(world, dest):
    name = f"proj:p:US/{dest}--1_00001_load--dispatch"
    world.put(name, age=OLD, content="body")
    with world.dispatcher() as dispatcher:
        dispatcher.board.calls.look_up = found_nothing
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"quarantined": 1}
    with store(world) as quarantine:
        (found,) = quarantine.listing()
    assert found.name == name
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])
    assert world.blob(name).download_as_bytes() == b"body"


def found_nothing(key):
    from google.api_core.exceptions import NotFound

    return NotFound("Not found: Job", errors=[{"reason": "notFound"}])


def test_the_note_of_a_first_try_stays_as_it_is(world):
    world.trace(state=None, age=OLD)
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
    assert outcomes(world) == {"error": 1}
    (note,) = world.names(JOURNAL, "errors/")
    generation = world.blob(note, JOURNAL).generation
    world.control.clear_faults()
    assert outcomes(world) == {"quarantined": 1}
    assert world.blob(note, JOURNAL).generation == generation


@pytest.mark.parametrize("letter", ["x", "ä"])
def test_a_name_too_long_for_quarantine_is_cut_and_the_note_holds_it_whole(world, letter):
    def long(event):
        tail = f"--{event}_00001_load--dispatch"
        room = 1024 - len((FOLDER + "proj:p:US/ds." + tail).encode())
        return f"proj:p:US/ds.{letter * (room // len(letter.encode()))}{tail}"

    names = [long(n) for n in (1, 2)]
    world.put(*names, age=OLD, content="body")
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"quarantined": 2}, document["Errors"]
    assert len(in_quarantine(world)) == 4
    for name in names:
        assert "too long" in document["Quarantined"][world.url_of(name)]
    with store(world) as quarantine:
        assert {each.name for each in quarantine.listing()} == set(names)
    replay(world)
    assert (world.names(), in_quarantine(world)) == (sorted(names), [])


@pytest.mark.parametrize(("dest", "mode"), [(970, 8), (500, 478)])
def test_a_cut_name_without_its_note_is_left_and_said(world, dest, mode):
    """Also where what is left of it would do for a name."""
    name = f"proj:p:US/ds.{'x' * dest}--1_00001_load--{'d' * mode}"
    world.put(name, age=OLD)
    assert outcomes(world) == {"quarantined": 1}
    kept, note = world.names(JOURNAL, "errors/")
    world.delete(note, JOURNAL)
    with pytest.raises(ReplayError, match="shortened"):
        replay(world)
    assert world.names(JOURNAL, "errors/") == [kept]


# ---- the way back ------------------------------------------------------------------------------------------------


def test_a_trace_goes_back_and_waits_another_day(world):
    name = world.trace(state=None, age=OLD, content="body")
    first = world.blob(name).time_created.timestamp()
    world.cycle()
    (said,) = replay(world)
    assert world.url_of(name) in said
    assert (world.names(), in_quarantine(world)) == ([name], [])
    back = world.blob(name)
    assert back.download_as_bytes() == b"body"
    assert REPLAY not in back.metadata
    assert float(back.metadata[SINCE]) == pytest.approx(first, abs=0.01)
    world.control.advance(60)
    assert outcomes(world) == {"not_found": 1}
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"])
    assert outcomes(world) == {"dispatched": 1}


def test_a_root_trace_that_came_back_finds_its_old_job_anywhere(world):
    world.trace(state=None, age=OLD, root=True)
    assert outcomes(world) == {"quarantined": 1}
    replay(world)
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location="asia-east1", age=OLD)
    world.control.advance(OLD)
    assert outcomes(world) == {"dispatched": 1}


def test_what_goes_into_quarantine_again_remembers_its_first_writing(world):
    name = world.trace(state=None, age=OLD)
    first = world.blob(name).time_created.timestamp()
    for _ in range(2):
        assert outcomes(world) == {"quarantined": 1}
        replay(world)
        assert float(world.blob(name).metadata[SINCE]) == pytest.approx(first, abs=0.01)
        world.control.advance(OLD)


def test_a_window_goes_back_and_is_fired_whatever_is_known_of_earlier_firings(world):
    name = quarantined_window(world)
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])
    assert REPLAYED in world.blob(name).metadata
    world.control.advance(10)
    assert outcomes(world)["dispatched"] == 1
    assert world.blob(f"_batch_/{name}", TRIGGER).download_as_bytes() == b"second"
    assert "dispatched" not in outcomes(world)


def test_a_live_object_of_that_name_is_neither_overwritten_nor_fired_again(world):
    name = quarantined_window(world)
    world.put(name, content="third", age=10)
    with pytest.raises(ReplayError, match="an object of that name exists there"):
        replay(world)
    assert world.blob(name).download_as_bytes() == b"third"
    assert len(in_quarantine(world)) == 2


def test_a_live_trace_of_that_name_is_not_overwritten(world):
    name = world.trace(state=None, age=OLD)
    world.cycle()
    world.put(name, content="new")
    with pytest.raises(ReplayError, match="an object of that name exists there"):
        replay(world)
    assert world.blob(name).download_as_bytes() == b"new"
    assert len(in_quarantine(world)) == 2


STEPS = ["_quarantine.copy_with_metadata", "_quarantine.delete", "_tasks.compose_with_metadata", "_quarantine.remove"]


def interrupted(world, step, failure, after):
    """A replay that ends at a step, before it or after it."""
    room, _, method = step.partition(".")
    with store(world) as quarantine:
        (found,) = quarantine.listing()
        real = getattr(getattr(quarantine, room), method)

        def fail(*arguments, **named):
            result = real(*arguments, **named) if after else None
            if isinstance(failure, BaseException):
                raise failure
            return failure if result is None or not after else result

        setattr(getattr(quarantine, room), method, fail)
        with pytest.raises((Crash, ReplayError, GoogleAPICallError)):
            quarantine.put_back(found)


@pytest.mark.parametrize("cycle_between", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["trace", "window"])
def test_a_crash_at_any_step_of_the_way_back_loses_nothing_and_doubles_nothing(world, kind, step, after, cycle_between):
    if kind == "window":
        name = quarantined_window(world)
    else:
        name = world.trace(state=None, age=OLD, content="second")
        world.cycle()
        world.jobs([f"ds_t--{world._event}_00001_load--dispatch"])
    interrupted(world, step, Crash(), after)
    delivered = 0
    if cycle_between:
        world.control.advance(5)
        world.cycle()
        delivered = len(world.names(TRIGGER))
        # Only once the mark is off may it go: then nothing is left in quarantine that could go again.
        armed = step == "_quarantine.remove" or (step == "_tasks.compose_with_metadata" and after)
        assert delivered == (1 if armed else 0)
        world.control.advance(4000)
    assert name in world.names() or len(in_quarantine(world)) == 2 or delivered
    replay(world)
    assert in_quarantine(world) == []
    world.control.advance(5)
    world.cycle()
    assert len(world.names(TRIGGER)) == 1
    assert world.blob(world.names(TRIGGER)[0], TRIGGER).download_as_bytes() == b"second"
    world.cycle()
    assert len(world.names(TRIGGER)) == 1


@pytest.mark.parametrize("step", ["_quarantine.delete", "_tasks.compose_with_metadata"])
def test_a_refused_step_is_said_and_finished_by_trying_again(world, step):
    name = quarantined_window(world)
    interrupted(world, step, [Result(403, message="no")], after=False)
    assert outcomes(world)["pending"] == 1
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])


def test_a_copy_that_is_refused_leaves_everything(world):
    world.trace(state=None, age=OLD)
    world.cycle()
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
    with pytest.raises(ReplayError, match="403"):
        replay(world)
    assert (world.names(), len(in_quarantine(world))) == ([], 2)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["rewrite", "delete", "compose"])
def test_a_passing_fault_does_not_stop_the_way_back(world, call, after):
    name = quarantined_window(world)
    world.control.add_fault(f"storage.objects.{call}", "status", status=503, times=2, after=after)
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])
    assert REPLAY not in world.blob(name).metadata


@pytest.mark.parametrize("status", [404, 412])
@pytest.mark.parametrize("call", ["delete", "compose"])
def test_what_is_said_to_be_gone_and_is_not_keeps_its_note_until_it_is_put_back(world, call, status):
    name = quarantined_window(world)
    held = in_quarantine(world)
    world.control.add_fault(f"storage.objects.{call}", "status", status=status)
    with pytest.raises(ReplayError, match="is back but not dispatched yet, replay it again"):
        replay(world)
    note = [each for each in held if each.endswith(".json")]
    assert set(note) <= set(in_quarantine(world))
    world.control.clear_faults()
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])
    assert REPLAY not in world.blob(name).metadata


def test_an_object_whose_note_is_gone_goes_back(world):
    name = world.trace(state=None, age=OLD, content="body")
    world.cycle()
    world.delete(world.names(JOURNAL, "errors/")[1], JOURNAL)
    with store(world) as quarantine:
        (found,) = quarantine.listing()
    assert "missing" in found.reason
    assert (found.name, found.since.date()) == (name, datetime.fromtimestamp(world.control.now() - OLD, UTC).date())
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])


@pytest.mark.parametrize(
    "note",
    [
        "{",
        "[]",
        '{"URL": 1}',
        '{"URL": "gs://ops/BqDispatch/Tasks/ds.t--9_00001_load--dispatch", "Since": "2026-01-01", "Reason": "x"}',
    ],
)
def test_an_unreadable_note_keeps_nothing_from_going_back(world, note):
    name = world.trace(state=None, age=OLD)
    world.cycle()
    world.control.advance(1)
    world.client.bucket(JOURNAL).blob(world.names(JOURNAL, "errors/")[1]).upload_from_string(note)
    world.control.advance(1)
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])


def test_a_note_alone_is_removed_once_its_object_has_left(world):
    world.trace(state=None, age=OLD)
    world.cycle()
    world.delete(world.names(JOURNAL, "errors/")[0], JOURNAL)
    (said,) = replay(world)
    assert "before" in said
    assert (world.names(), in_quarantine(world)) == ([], [])


def test_a_note_alone_stays_while_its_object_is_still_in_the_task_folder(world):
    name = world.trace(state=None, age=OLD)
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
    assert outcomes(world) == {"error": 1}
    (said,) = replay(world)
    assert "has not left" in said
    assert (world.names(), len(in_quarantine(world))) == ([name], 1)


def test_an_object_that_is_set_aside_after_it_was_listed_goes_back(world):
    name = world.trace(state=None, age=OLD)
    world.control.add_fault("storage.objects.rewrite", "status", status=403, reason="forbidden")
    world.cycle()
    world.control.clear_faults()
    with store(world) as quarantine:
        (found,) = quarantine.listing()
        assert outcomes(world) == {"quarantined": 1}
        quarantine.put_back(found)
    assert (world.names(), in_quarantine(world)) == ([name], [])


def test_a_crash_with_an_object_whose_note_was_gone_is_finished_too(world):
    name = world.trace(state=None, age=OLD)
    world.cycle()
    world.delete(world.names(JOURNAL, "errors/")[1], JOURNAL)
    interrupted(world, "_quarantine.delete", Crash(), after=True)
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])
    assert REPLAY not in world.blob(name).metadata


def test_two_replays_at_once_put_each_back_once(world):
    from concurrent.futures import ThreadPoolExecutor

    name = quarantined_window(world)

    def once(_):
        try:
            return replay(world)
        except ReplayError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(once, range(4)))
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])
    assert REPLAY not in world.blob(name).metadata


def test_other_objects_and_those_of_other_folders_are_passed_over(world):
    world.trace(state=None, age=OLD)
    world.cycle(AsyncTaskURL=f"gs://{TASKS}/{FOLDER}")
    bucket = world.client.bucket(JOURNAL)
    for name in ("ds/2026-01-01/1.err", "2026-01-01/notes.1", "9999-99-99/ds.t--1_00001_load--dispatch.5", "x.json"):
        bucket.blob(f"errors/{name}").upload_from_string("x")
    with store(world) as quarantine:
        assert len(quarantine.listing()) == 1
    with store(world, AsyncTaskURL=f"gs://{TASKS}/Other") as quarantine:
        assert quarantine.listing() == []


def test_a_note_that_cannot_be_removed_is_an_error_and_nothing_goes_twice(world):
    name = world.trace(state=None, age=OLD)
    world.cycle()
    world.control.add_fault("storage.objects.delete", "status", status=403, reason="forbidden", name="*.json")
    with pytest.raises(Forbidden):
        replay(world)
    assert world.names() == [name]
    world.control.clear_faults()
    replay(world)
    assert (world.names(), in_quarantine(world)) == ([name], [])


# ---- what was read before ----------------------------------------------------------------------------------------


def set_aside(world, number, **more):
    """Set aside some traces, oldest first; gives their names."""
    names = [world.trace(state=None, age=OLD + 100 * (number - each)) for each in range(number)]
    assert outcomes(world, **more)["quarantined"] == number
    return names


def reads(world, listing):
    """Return the names that a listing gives, those whose notes were read, and the reads that it costs."""
    world.control.reset_counters()
    found = listing()
    names = [each.name for each in found]
    return names, [each.name for each in found if each.is_read], world.control.calls().get("storage.objects.get", 0)


def test_a_note_that_was_read_is_not_read_again(world):
    names, notes = set_aside(world, 3), NoteCache()
    with store(world) as quarantine:
        assert reads(world, lambda: quarantine.listing(notes)) == (names, names, 3)
        assert reads(world, lambda: quarantine.listing(notes)) == (names, names, 0)
        quarantine.put_back(quarantine.listing(notes)[0])
        more = set_aside(world, 1)
        assert reads(world, lambda: quarantine.listing(notes)) == (names[1:] + more, names[1:] + more, 1)
    assert len(notes) == 3, "the note that is gone is forgotten"


def test_only_so_many_notes_are_read_as_are_wanted_the_oldest_first(world):
    names, notes = set_aside(world, 9), NoteCache(wanted=4)
    with store(world) as quarantine:
        assert reads(world, lambda: quarantine.listing(notes)) == (names, names[:4], 4)
        assert reads(world, lambda: quarantine.listing(notes)) == (names, names[:4], 0)
        assert {each.reason for each in quarantine.listing(notes)[4:]} == {"its note was not read"}
        quarantine.put_back(quarantine.listing(notes)[1])
        assert reads(world, lambda: quarantine.listing(notes)) == (names[:1] + names[2:], [names[0], *names[2:5]], 1)


def test_notes_of_another_task_folder_take_no_place(world):
    for number in range(3):
        world.control.seed_objects(
            JOURNAL,
            [
                {"name": f"errors/2020-01-0{number + 1}/ds.t--{number}_00001_load--dispatch.7", "content": "{}"},
                {
                    "name": f"errors/2020-01-0{number + 1}/ds.t--{number}_00001_load--dispatch.7.json",
                    "content": json.dumps({"URL": "gs://others/tasks/x", "Since": "2020-01-01T00:00:00Z"}),
                },
            ],
        )
    names, notes = set_aside(world, 2), NoteCache(wanted=2)
    with store(world) as quarantine:
        for _ in range(4):
            found = reads(world, lambda: quarantine.listing(notes))
            assert found[2] <= 2
        assert found == (names, names, 0)


def quarantined_with(world, **more):
    """Return what a listing says of an object whose note somebody has forged."""
    world.trace(state=None, age=OLD)
    world.cycle()
    world.control.advance(1)
    note = world.names(JOURNAL, "errors/")[1]
    forged = world.document_at(f"gs://{JOURNAL}/{note}") | more
    world.client.bucket(JOURNAL).blob(note).upload_from_string(json.dumps(forged))
    with store(world) as quarantine:
        (found,) = quarantine.listing()
    return found


@pytest.mark.parametrize("reason", ["broken \ud800", float("inf"), "x" * 200_000])
def test_the_reason_of_a_forged_note_can_be_written_and_shown(world, reason):
    assert len(json.dumps(quarantined_with(world, Reason=reason).reason, ensure_ascii=False).encode()) < 5000


def test_a_note_about_a_long_name_is_said_in_few_words(world):
    assert len(quarantined_with(world, URL=world.url_of("x" * 200_000)).reason) < 5000


def test_a_note_that_could_not_be_read_is_read_again(world):
    names, notes = set_aside(world, 1), NoteCache()
    with store(world) as quarantine:
        world.control.refuse("storage.objects.get", bucket=JOURNAL)
        with pytest.raises(Forbidden):
            quarantine.listing(notes)
        world.control.allow_all()
        assert reads(world, lambda: quarantine.listing(notes)) == (names, names, 1)
