"""An object that is larger than any honest one is named, and is not read; all others go on."""

import json
from collections import Counter
from datetime import timedelta

import pytest
from world import JOURNAL

from bqdispatch_provider.commands.replay import Decisions, ReplayError
from bqdispatch_provider.core import sizes
from bqdispatch_provider.delivery.quarantine import QuarantineStore
from bqdispatch_provider.gcp import objects
from bqdispatch_provider.names import TraceName

CHUNK = 64 * 1024

SURROGATE = "\ud800"
FIRING = {"window": "ds.t_7_1700000000.win", "generation": 1, "project": "p", "event": "1", "many": False}


@pytest.fixture
def read(monkeypatch):
    """Count the bytes that were read of each object."""
    bytes_ = Counter()
    write = objects._LimitedBuffer.write

    def counted(to, part):
        bytes_[to._url] += len(part)
        return write(to, part)

    monkeypatch.setattr(objects._LimitedBuffer, "write", counted)
    return bytes_


def large(bytes_, **document):
    return json.dumps({**document, "Filler": "x" * bytes_})


def test_the_job_of_an_oversized_trace_is_looked_for_in_the_list(world, read):
    (name,) = world.traces(1, region="", content="[" * (sizes.MAX_TRACE_BYTES + 1))
    good = world.trace(region="", content="{}")
    with world.dispatcher() as dispatcher:
        report = dispatcher.cycle()
        assert report.to_dict()["Outcomes"] == {"dispatched": 2}
        (error,) = report.errors
        assert f"trace {name!r} was not read: it is larger than 8,388,608 bytes" in error
        assert f"see who wrote {world.url_of(name)!r}" in error
        assert dispatcher.cycle().errors == []
    assert list(read) == [world.url_of(good)]


def test_an_oversized_window_waits_under_a_limit_while_the_others_are_fired(world, read):
    bad = world.window("ds.bad", content=large(sizes.MAX_WINDOW_BYTES, EventID="1"))
    good = world.window("ds.good")
    report = world.cycle(MaxConcurrentJobs=5)
    assert list(report.batched) == [world.url_of(good)]
    (error,) = report.errors
    assert bad in error
    assert "it is larger than 262,144 bytes" in error
    assert world.url_of(bad) not in read


def test_without_a_limit_an_oversized_window_is_fired_unread(world, read):
    name = world.window(content=large(sizes.MAX_WINDOW_BYTES))
    assert list(world.cycle().batched) == [world.url_of(name)]
    assert not read


def test_of_an_oversized_claim_no_more_than_the_bound_is_read(world, read):
    name = world.window(due=1100, content=large(1_000_000, EventID="1"))
    world.claim(name, 1000)
    firing = {**FIRING, "window": name, "generation": world.blob(name).generation, "project": "", "event": ""}
    content = json.dumps({"version": 1, "owner": "gone", "firings": [firing]})
    world.put("intents/gone-000001-windows.json", age=1000, content=content)
    world.delete(name)
    good = world.window("ds.good")
    report = world.cycle(MaxConcurrentJobs=5)
    assert list(report.batched) == [world.url_of(good)]
    assert [each for each in report.errors if name in each and "it is larger than 262,144 bytes" in each]
    assert max(read.values()) <= sizes.MAX_WINDOW_BYTES + CHUNK


def test_an_oversized_intent_is_named_and_not_read(world, read):
    world.put(name := "intents/other-000001.json", age=100, content=large(sizes.MAX_INTENT_BYTES))
    older, younger = world.trace(age=200), world.trace(age=50)
    report = world.cycle()
    (error,) = report.errors
    assert world.url_of(name) in error
    assert "it is larger than 16,777,216 bytes" in error
    assert list(report.jobs) == [world.url_of(younger)]
    assert older in world.names()
    assert not read


@pytest.mark.parametrize("key", ["ProjectID", "EventID"])
def test_an_intent_holds_no_more_of_a_window_than_an_honest_one_says(world, read, key):
    """Otherwise a window could make its dispatcher write an intent that nobody can read."""
    world.window(content=json.dumps({"EventID": "1", key: "x" * 200_000}))
    assert world.cycle(MaxConcurrentJobs=5).dispatched == 1
    (intent,) = [name for name in world.intents() if name.endswith("-windows.json")]
    assert world.blob(intent).size < 1000


def test_an_oversized_location_holds_up_its_window_alone(world, read):
    bad = f"ds.bad_7_{int(world.control.now()) - 1000}.win"
    location = f"{bad.removesuffix('.win')}/1.loc"
    world.put(bad, age=900, content='{"EventID": "1", "Source": {"URL": "gs://x/y/z"}}')
    assert world.cycle().dispatched == 1
    world.consume()
    world.control.advance(1000)
    world.delete(bad) if world.blob(bad) else None
    world.put(bad, age=700, content='{"EventID": "2", "Source": {"URL": "gs://x/y/z"}}')
    world.put(location, age=700, content="gs://x/" + "y" * sizes.MAX_LOCATION_BYTES)
    good = world.window("ds.good")
    with world.dispatcher() as dispatcher:
        for _ in range(3):
            report = dispatcher.cycle()
            world.control.advance(700)
    assert world.url_of(good) not in map(world.url_of, world.names())
    assert world.url_of(location) not in read
    assert [each for each in report.errors if location in each and "larger than 8,192 bytes" in each], report.errors


def quarantined(world, note):
    """An object in quarantine, and its note."""
    path = "errors/2026-01-01/ds.t_7_1700000000.win.12"
    world.control.seed_objects(JOURNAL, [{"name": path, "content": "{}"}, {"name": f"{path}.json", "content": note}])


def test_an_oversized_note_is_the_reason_that_is_shown(world, read):
    quarantined(world, large(sizes.MAX_NOTE_BYTES))
    with QuarantineStore(world.client, world.config().for_project("p")) as store:
        (found,) = store.listing()
    assert "its note cannot be read" in found.reason
    assert "it is larger than 262,144 bytes" in found.reason
    assert not read


def test_a_deep_note_is_the_reason_that_is_shown(world):
    quarantined(world, "[" * 100_000)
    with QuarantineStore(world.client, world.config().for_project("p")) as store:
        (found,) = store.listing()
    assert "its note cannot be read: ValueError: it is nested too deeply" in found.reason


@pytest.mark.parametrize("content", ["[" * 100_000, large(sizes.MAX_HOUR_BYTES)], ids=["deep", "large"])
def test_an_odd_document_of_the_history_ends_no_run(world, content):
    from bqdispatch_provider.cycle.history import hour_url

    with world.dispatcher() as dispatcher:
        url = hour_url(dispatcher.config.journal_url, dispatcher.store.now())
        dispatcher.store.write(url, content)
    assert world.trace()
    with world.dispatcher() as dispatcher:
        assert dispatcher.run(0).dispatched == 1


@pytest.mark.parametrize(
    "firing",
    [
        {"window": f"ds.{SURROGATE}_7_1700000000.win"},
        {"project": SURROGATE},
        {"event": SURROGATE},
        {"generation": "9" * 5000},
        {"generation": 1e400},
        {"generation": float("nan")},
        {"generation": -(10**30)},
        {"project": [["x"]]},
        {"window": "ds.t_7_" + "9" * 4000 + ".win"},
    ],
    ids=str,
)
def test_an_intent_that_no_dispatcher_wrote_holds_up_no_window(world, firing):
    content = json.dumps({"version": 1, "owner": "x", "firings": [{**FIRING, **firing}]})
    world.put(name := "intents/other-000001-windows.json", age=100, content=content)
    good = world.window("ds.good")
    report = world.cycle(MaxConcurrentJobs=5)
    assert list(report.batched) == [world.url_of(good)]
    assert all(name in each for each in report.errors)


def test_replay_refuses_an_oversized_window(world, read):
    path = "errors/2026-01-01/ds.t_7_1700000000.win.12"
    world.control.seed_objects(JOURNAL, [{"name": path, "content": large(sizes.MAX_WINDOW_BYTES)}])
    with (
        QuarantineStore(world.client, world.config().for_project("p")) as store,
        world.dispatcher() as dispatcher,
        pytest.raises((ReplayError, objects.ObjectTooLarge), match="it is larger than 262,144 bytes"),
    ):
        (found,) = store.listing()
        Decisions(dispatcher).put_back(store, found)
    assert not read


@pytest.mark.parametrize(
    "place",
    [
        {"projectId": SURROGATE},
        {"location": SURROGATE},
        {"projectId": "x" * 100_000},
        {"location": "x" * 100_000},
        {"projectId": ["p"]},
        {"location": 1e400},
    ],
    ids=lambda place: str(place)[:40],
)
def test_a_trace_that_names_no_possible_place_is_looked_for_in_the_list(world, place):
    (name,) = world.traces(1, region="")
    reference = {"projectId": "p", "location": "US", "jobId": TraceName.parse(name).job_id, **place}
    world.put(name, age=60, content=json.dumps({"Job": {"jobReference": reference}}))
    world.trace()
    report = world.cycle()
    assert (report.dispatched, report.errors) == (2, [])


def test_a_document_that_somebody_has_broken_is_not_ours(world):
    """Whoever was quicker may have written anything; then nothing was written here."""
    url = f"gs://{JOURNAL}/journal/x.json"
    with world.dispatcher() as dispatcher:
        store, write = dispatcher.store, dispatcher.store.write_json

        def write_too_late(url, document, **more):
            store.write(url, "[" * 100_000)
            return write(url, document, **more)

        store.write_json = write_too_late
        assert store.write_if_older_than(url, {"a": 1}, timedelta(hours=1)) is None
