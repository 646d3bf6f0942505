"""What the dispatcher relies on in the task store, on every Cloud Storage that can be had."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import SimpleNamespace

import pytest
from backends import FAKE_GCS_SERVER, WITHOUT_BATCHES
from google.api_core.exceptions import Forbidden, NotFound

from bqdispatch_provider.core.targets import CLAIMED, LEDGER, OWNER, UNLISTED
from bqdispatch_provider.gcp import objects, rate_limit
from bqdispatch_provider.gcp.gcs_batch import BATCH_SIZE
from bqdispatch_provider.gcp.permissions import missing_permissions
from bqdispatch_provider.testing.standin import clock

IGNORED = "does it regardless: generation preconditions are read on uploads alone"
LACKS = {
    "batch calls": {WITHOUT_BATCHES: "is told to answer them with 404"},
    "copy onto a free name only": {FAKE_GCS_SERVER: IGNORED},
    "copy of exactly a generation": {FAKE_GCS_SERVER: IGNORED},
    "delete of exactly a generation": {FAKE_GCS_SERVER: IGNORED},
    "compose onto a free name only": {FAKE_GCS_SERVER: IGNORED},
    "compose onto exactly a generation": {FAKE_GCS_SERVER: IGNORED},
    "compose of exactly a generation": {FAKE_GCS_SERVER: IGNORED},
    "compose of a gone object is not found": {FAKE_GCS_SERVER: "answers 500, which looks as if it might pass"},
    "offsets apply to the objects below a prefix": {FAKE_GCS_SERVER: "compares the prefix itself with them"},
    "versions": {FAKE_GCS_SERVER: "keeps none in memory"},
    "a default event-based hold": {FAKE_GCS_SERVER: "takes it and forgets it"},
    "a retention policy": {FAKE_GCS_SERVER: "takes it and forgets it"},
    "selection of a bucket's fields": {FAKE_GCS_SERVER: "tells all that it knows"},
    "lifecycle rules": {FAKE_GCS_SERVER: "takes them and forgets them"},
    "one change a second for each name": {FAKE_GCS_SERVER: "changes a name as often as it is told to"},
}
"""Feature -> back end -> what it does instead (of fake-gcs-server, release 1.56.1).

Tests that need such a feature must fail there: one that passes shows that the line can go.
"""

ODD_NAMES = [
    "proj:example.com:p:US/q:ds.t$20260101--1_00001_load--dispatch",
    "a b+c%2Fd?e#f&g=h",
    "ü/日本",
    "x/copyTo/b/y/o/z",
    "x/rewriteTo/b/y/o/z",
    "x/compose",
    "x/acl",
    "a//b",
    "folder/",
    "'\"<>[]*\\;:@,!~|^`{}",
    "n" * 900,
]


def needs(feature):
    return pytest.mark.needs(feature)


@pytest.fixture
def store(request, storage, monkeypatch):
    for mark in request.node.iter_markers("needs"):
        if instead := LACKS[mark.args[0]].get(storage.kind):
            reason = f"{storage.kind} lacks {mark.args[0]!r}: {instead}"
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError))
    with storage.store() as store:
        missing_permissions(store)  # which a dispatcher asks first, and learns by it what the back end takes
        # What is refused for good by an answer that looks as if it might pass is not waited for.
        monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 0.1)
        yield store


def test_every_lack_is_shown_by_a_test():
    marks = [mark for each in globals().values() for mark in getattr(each, "pytestmark", ())]
    assert {mark.args[0] for mark in marks if mark.name == "needs"} == set(LACKS)


def only(items):
    (item,) = items
    return item


def statuses(results):
    return [result.status for result in results]


MINUTE = f"{LEDGER}2023-11-14_22-13/"


def entry(window, what="claim"):
    return f"{MINUTE}{window}.7.{what}"


def claim(window, generation, replaces=0, **metadata):
    return (window, generation, entry(window), replaces, metadata)


# Listing


def test_a_listing_tells_generation_creation_content_and_metadata(storage, store):
    generation = storage.put("a", "123456789", metadata={"k": "ü"})
    listed = only(store.listing()[1])
    assert (listed.name, listed.generation) == ("a", generation)
    assert (listed.crc32c, listed.size, dict(listed.metadata)) == ("4waSgw==", 9, {"k": "ü"})
    assert abs(listed.created - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.fixture
def no_time_passes(monkeypatch):
    """However slow the machine is, no time has passed since an answer."""
    clock_here = SimpleNamespace(monotonic=lambda: 0.0, time=time.time)
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.time", clock_here)


def test_a_listing_is_dated_by_the_servers_clock(storage, store, no_time_passes):
    storage.put("a")
    storage.answers.clear()
    began, _ = store.listing()
    assert began == parsedate_to_datetime(storage.answers[0].headers["Date"])


def test_the_servers_clock_is_asked_for_where_nothing_was_said_yet(storage, no_time_passes):
    with storage.store() as store:
        storage.answers.clear()
        said = store.now()
    assert said == parsedate_to_datetime(only(storage.answers).headers["Date"])


def test_a_listing_holds_the_folder_alone(storage, store):
    for name in ("a", "x/b"):
        storage.put(name)
    for name in ("BqDispatch/Tasks", "BqDispatch/Tasks2/a", "a"):
        storage.put(name, bucket=storage.tasks)
    assert [each.name for each in store.listing()[1]] == ["a", "x/b"]


def test_a_folder_may_be_a_whole_bucket(storage, store):
    generation = storage.put("a", bucket=storage.tasks)
    with storage.store("") as whole:
        assert only(whole.listing()[1]).name == "a"
        assert only(whole.copy([("a", generation, "t")])).ok
        assert only(whole.delete([("a", generation)])).ok
    assert storage.names(storage.tasks) == []


def test_a_listing_goes_on_over_pages(storage, store):
    storage.put("a")
    more = [("a", store.get("a").generation, f"{n:04d}", 0, {}) for n in range(1001)]
    for start in range(0, len(more), BATCH_SIZE):
        assert all(result.ok for result in store.compose_with_metadata(more[start : start + BATCH_SIZE]))
    storage.answers.clear()
    assert [each.name for each in store.listing()[1]] == [*(f"{n:04d}" for n in range(1001)), "a"]
    assert len(storage.answers) == 2


def test_an_empty_folder_is_listed_and_a_missing_bucket_is_not(storage, store):
    assert store.listing()[1] == []
    storage.client.bucket(storage.tasks).delete()
    with pytest.raises(NotFound):
        store.listing()


def test_a_look_tells_what_the_listing_tells(storage, store):
    storage.put("a", "x", metadata={"k": "v"})
    assert store.get("a") == only(store.listing()[1])
    assert store.get("b") is None


# Listing between names, as `Objects: list` has it


BETWEEN = {
    "all": ({}, ["a", "b/1", "b/2", "b/3", "c", "~l/1", "~l/2"], []),
    "from a name on": ({"start": "b/2"}, ["b/2", "b/3", "c", "~l/1", "~l/2"], []),
    "up to a name": ({"end": "b/2"}, ["a", "b/1"], []),
    "without what is behind a character": ({"end": "~"}, ["a", "b/1", "b/2", "b/3", "c"], []),
    "both": ({"start": "b/1", "end": "b/3"}, ["b/1", "b/2"], []),
    "the name itself and nothing more": ({"start": "c", "end": "c\0"}, ["c"], []),
    "an end before the start": ({"start": "c", "end": "b"}, [], []),
    "an end that is the start": ({"start": "b/1", "end": "b/1"}, [], []),
    "names that are not there": ({"start": "a0", "end": "b/20"}, ["b/1", "b/2"], []),
    "an end before the prefix": ({"under": "b/", "end": "b"}, [], []),
    "a start behind the prefix": ({"under": "b/", "start": "c"}, [], []),
    "below a prefix": ({"under": "b/", "start": "a", "end": "b/3"}, ["b/1", "b/2"], []),
    "rolled up": ({"end": "~", "delimiter": "/"}, ["a", "c"], ["b/"]),
    "to the middle of what is rolled up": ({"end": "b/2", "delimiter": "/"}, ["a"], ["b/"]),
    "from behind what is rolled up": ({"start": "b/4", "delimiter": "/"}, ["c"], ["~l/"]),
}


ROLLED_UP_BETWEEN = {
    "from the middle of what is rolled up": ({"start": "b/3", "delimiter": "/"}, ["c"], ["b/", "~l/"]),
    "to before what is rolled up": ({"end": "b/1", "delimiter": "/"}, ["a"], []),
}


@pytest.fixture
def between(storage):
    """Names and rolled-up names of a list, below the task folder."""

    def between(under="", start=None, end=None, **more):
        listed = storage.client.list_blobs(
            storage.tasks,
            prefix=f"{storage.folder}{under}",
            start_offset=None if start is None else f"{storage.folder}{start}",
            end_offset=None if end is None else f"{storage.folder}{end}",
            **more,
        )
        names = [blob.name.removeprefix(storage.folder) for blob in listed]
        return names, sorted(prefix.removeprefix(storage.folder) for prefix in listed.prefixes)

    return between


@pytest.mark.parametrize("size", [None, 1, 2])
@pytest.mark.parametrize("case", BETWEEN)
def test_a_list_goes_from_a_name_to_before_another(storage, store, between, case, size):
    list_between(storage, between, *BETWEEN[case], size)


@needs("offsets apply to the objects below a prefix")
@pytest.mark.parametrize("size", [None, 1, 2])
@pytest.mark.parametrize("case", ROLLED_UP_BETWEEN)
def test_a_list_rolls_up_what_lies_from_a_name_to_before_another(storage, store, between, case, size):
    list_between(storage, between, *ROLLED_UP_BETWEEN[case], size)


def list_between(storage, between, asked, names, prefixes, size):
    for name in ("a", "b/1", "b/2", "b/3", "c", "~l/1", "~l/2"):
        storage.put(name)
    storage.put("BqDispatch/Tasks2/a", bucket=storage.tasks)
    assert between(page_size=size, **asked) == (names, prefixes)


@needs("versions")
@pytest.mark.parametrize("size", [None, 1, 2])
def test_a_list_of_versions_goes_from_a_name_to_before_another(storage, store, between, size):
    bucket = storage.client.bucket(storage.tasks)
    bucket.versioning_enabled = True
    bucket.patch()
    for name in "abca":
        storage.put(name)
    storage.put("b")
    assert between(versions=True, page_size=size) == (["a", "a", "b", "b", "c"], [])
    assert between(versions=True, page_size=size, start="b") == (["b", "b", "c"], [])
    assert between(versions=True, page_size=size, end="b") == (["a", "a"], [])
    assert between(versions=True, page_size=size, start="a\0", end="c") == (["b", "b"], [])


# What a bucket says of itself


@needs("a retention policy")
def test_a_bucket_tells_its_retention_policy_and_keeps_to_it(storage, store):
    bucket = storage.client.bucket(storage.tasks)
    bucket.retention_period = 60
    bucket.patch()
    generation, source = storage.put("a"), storage.put("b")
    assert settings(storage, "retentionPolicy").get("retentionPolicy", {}).get("retentionPeriod") == "60"
    assert statuses(store.delete([("a", generation)])) == [403]
    assert statuses(store.compose_with_metadata([("b", source, "a", generation, {})])) == [403]
    with pytest.raises(Forbidden):
        bucket.blob(f"{storage.folder}a").rewrite(bucket.blob(f"{storage.folder}b"))
    assert store.get("a").generation == generation


@needs("a default event-based hold")
def test_a_bucket_tells_its_default_hold_and_keeps_to_it(storage, store):
    bucket = storage.client.bucket(storage.tasks)
    bucket.default_event_based_hold = True
    bucket.patch()
    generation = storage.put("a")
    assert settings(storage, "defaultEventBasedHold") == {"defaultEventBasedHold": True}
    assert statuses(store.delete([("a", generation)])) == [403]


@needs("lifecycle rules")
def test_a_bucket_tells_its_lifecycle_rules(storage, store):
    bucket = storage.client.bucket(storage.tasks)
    bucket.add_lifecycle_delete_rule(age=3, matches_prefix=["BqDispatch/"])
    bucket.patch()
    rule = {"action": {"type": "Delete"}, "condition": {"age": 3, "matchesPrefix": ["BqDispatch/"]}}
    assert settings(storage, "lifecycle") == {"lifecycle": {"rule": [rule]}}


def settings(storage, fields):
    return storage.client._connection.api_request("GET", f"/b/{storage.tasks}", query_params={"fields": fields})


@needs("selection of a bucket's fields")
def test_of_a_buckets_settings_only_those_are_told_that_are_asked_for_and_there(storage, store):
    asked = "retentionPolicy,defaultEventBasedHold,lifecycle,softDeletePolicy,versioning"
    told = settings(storage, asked)
    assert told.keys() <= {*asked.split(",")}
    for name in ("retentionPolicy", "lifecycle"):
        assert not told.get(name)


# Copies


def test_a_copy_has_the_content_and_leaves_its_source(storage, store):
    generation = storage.put("a", '{"a": 1}')
    copied = only(store.copy([("a", generation, "_bqjob_/h/a.json")]))
    there = store.get_target("_bqjob_/h/a.json")
    assert copied.ok and copied.generation == there.generation
    assert there.name == "_bqjob_/h/a.json" and there.same_content(store.get("a"))
    assert storage.content("_bqjob_/h/a.json", storage.trigger) == '{"a": 1}'


def test_a_copy_may_go_to_another_folder(storage, store):
    generation, errors = storage.put("a", "x"), f"gs://{storage.journal}/errors"
    assert only(store.copy([("a", generation, "day/a")], errors)).ok
    assert store.get_target("day/a", errors).name == "day/a"
    assert storage.names(storage.journal) == ["errors/day/a"]
    assert store.get_target("day/a") is None


@needs("copy onto a free name only")
def test_a_copy_leaves_what_lies_at_its_target(storage, store):
    generation = storage.put("a", "new")
    storage.put("t", "old", storage.trigger)
    refused = only(store.copy([("a", generation, "t")]))
    assert (refused.status, refused.overtaken) == (412, True)
    assert storage.content("t", storage.trigger) == "old"


@needs("copy of exactly a generation")
def test_an_object_that_was_written_again_is_not_copied(storage, store):
    generation = storage.put("a", "old")
    storage.put("a", "new")
    assert statuses(store.copy([("a", generation, "t")])) == [412]
    assert storage.names(storage.trigger) == []


def test_an_object_that_is_gone_is_not_copied(storage, store):
    generation = storage.put("a")
    store.delete([("a", generation)])
    gone = only(store.copy([("a", generation, "t")]))
    assert (gone.status, gone.overtaken) == (404, True)
    assert storage.names(storage.trigger) == []


def test_a_target_bucket_that_is_missing_leaves_the_source(storage, store):
    generation = storage.put("a", "x")
    assert statuses(store.copy([("a", generation, "t")], f"gs://{storage.trigger}-missing")) == [404]
    assert storage.content("a") == "x"


# Deletes


def test_a_delete_takes_one_object(storage, store):
    generation = storage.put("a")
    storage.put("b", "x")
    assert only(store.delete([("a", generation)])).ok
    assert (store.get("a"), storage.content("b")) == (None, "x")


@needs("delete of exactly a generation")
def test_an_object_that_was_written_again_is_not_deleted(storage, store):
    generation = storage.put("a", "old")
    storage.put("a", "new")
    assert statuses(store.delete([("a", generation)])) == [412]
    assert storage.content("a") == "new"


def test_a_delete_of_what_is_gone_is_not_found(storage, store):
    generation = storage.put("a")
    store.delete([("a", generation)])
    gone = only(store.delete([("a", generation)]))
    assert (gone.status, gone.overtaken) == (404, True)


# Stamps


def test_a_stamp_has_the_content_of_its_object_and_metadata_of_its_own(storage, store):
    generation = storage.put("a.win", "123456789", metadata={"not": "this"})
    metadata = {OWNER: "me", CLAIMED: "1767323045.000001", "other": "ü"}
    stamped = only(store.compose_with_metadata([claim("a.win", generation, **metadata)]))
    there = store.get(entry("a.win"))
    assert stamped.ok and stamped.generation == there.generation
    assert there.metadata == metadata and there.crc32c == "4waSgw=="
    assert storage.content(entry("a.win")) == "123456789"
    assert store.get("a.win").generation == generation


def test_a_stamp_replaces_a_given_generation_and_all_of_its_metadata(storage, store):
    generation = storage.put("a.win")
    first = only(store.compose_with_metadata([claim("a.win", generation, k="1", owner="me")]))
    storage.rest()
    second = only(store.compose_with_metadata([claim("a.win", generation, first.generation, k="2")]))
    there = store.get(entry("a.win"))
    assert first.generation < second.generation == there.generation
    assert there.metadata == {"k": "2"}


@needs("compose onto a free name only")
def test_only_the_first_of_two_claims_succeeds(storage, store):
    generation = storage.put("a.win")
    assert statuses(store.compose_with_metadata([claim("a.win", generation, owner="first")])) == [200]
    assert statuses(store.compose_with_metadata([claim("a.win", generation, owner="second")])) == [412]
    assert store.get(entry("a.win")).metadata == {"owner": "first"}


@needs("compose onto exactly a generation")
def test_only_the_first_of_two_that_take_a_claim_over_succeeds(storage, store):
    """Each composes it onto itself, also where the window is gone."""
    generation = storage.put("a.win", "123456789")
    claimed = only(store.compose_with_metadata([claim("a.win", generation, owner="gone")])).generation
    store.delete([("a.win", generation)])
    storage.rest()
    over = [(entry("a.win"), claimed, entry("a.win"), claimed, {"owner": owner}) for owner in ("first", "second")]
    assert statuses(store.compose_with_metadata(over[:1])) == [200]
    assert statuses(store.compose_with_metadata(over[1:])) == [412]
    there = store.get(entry("a.win"))
    assert there.metadata == {"owner": "first"} and there.crc32c == "4waSgw=="


@needs("copy of exactly a generation")
@needs("compose onto exactly a generation")
def test_a_claim_that_was_taken_over_is_not_copied_by_its_former_owner(storage, store):
    generation = storage.put("a.win")
    claimed = only(store.compose_with_metadata([claim("a.win", generation, owner="former")])).generation
    storage.rest()
    assert only(store.compose_with_metadata([(entry("a.win"), claimed, entry("a.win"), claimed, {"owner": "next"})])).ok
    assert statuses(store.copy([(entry("a.win"), claimed, "_batch_/a.win")])) == [412]
    assert storage.names(storage.trigger) == []


def test_a_claim_is_noted_as_fired_in_whatever_generation_it_is(storage, store):
    generation = storage.put("a.win", "123456789")
    only(store.compose_with_metadata([claim("a.win", generation, owner="me")]))
    fired = only(store.compose_with_metadata([(entry("a.win"), 0, entry("a.win", "fired"), 0, {"owner": "me"})]))
    assert fired.ok and store.get(entry("a.win", "fired")).crc32c == "4waSgw=="


@needs("compose of exactly a generation")
def test_an_object_that_was_written_again_is_not_stamped(storage, store):
    generation = storage.put("a.win", "old")
    storage.put("a.win", "new")
    assert statuses(store.compose_with_metadata([claim("a.win", generation)])) == [412]
    assert store.get(entry("a.win")) is None


def test_an_object_that_is_gone_leaves_no_stamp(storage, store):
    generation = storage.put("a.win")
    store.delete([("a.win", generation)])
    assert not only(store.compose_with_metadata([claim("a.win", generation)])).ok
    assert store.get(entry("a.win")) is None


@needs("compose of a gone object is not found")
def test_a_stamp_of_what_is_gone_is_not_found(storage, store):
    generation = storage.put("a.win")
    store.delete([("a.win", generation)])
    assert statuses(store.compose_with_metadata([claim("a.win", generation)])) == [404]


# The ledger


def test_a_listing_leaves_the_ledger_out_and_holds_all_that_sorts_before_it(storage, store):
    for name in ("a.win", "intents/x", "undecided/a.win.7", "zz.win", entry("a.win"), f"{LEDGER}x"):
        storage.put(name)
    assert [each.name for each in store.listing()[1]] == ["a.win", "intents/x", "undecided/a.win.7", "zz.win"]
    assert [each.name for each in store.listing("intents/")[1]] == ["intents/x"]


def test_a_whole_bucket_is_listed_without_the_ledger_too(storage, store):
    storage.put("a", bucket=storage.tasks)
    storage.put(f"{LEDGER}x", bucket=storage.tasks)
    with storage.store("") as whole:
        assert [each.name for each in whole.listing()[1]] == ["a"]
        (entries,) = whole.list_folders([LEDGER])
        assert [each.name for each in entries] == [f"{LEDGER}x"]


def test_minutes_of_the_ledger_are_listed_each_by_itself_and_to_the_end(storage, store):
    generation = storage.put("a.win")
    minutes = [f"{LEDGER}2023-11-14_22-{n:02}/" for n in range(3)]
    many = [("a.win", generation, f"{minutes[1]}{n:04}.7.claim", 0, {}) for n in range(1001)]
    few = [("a.win", generation, f"{minutes[2]}a.7.fired", 0, {})]
    for start in range(0, len(many), BATCH_SIZE):
        assert all(result.ok for result in store.compose_with_metadata(many[start : start + BATCH_SIZE]))
    fired = only(store.compose_with_metadata(few))
    none, all_of_them, one = store.list_folders(minutes)
    assert none == []
    assert [each.name for each in all_of_them] == [name for _, _, name, _, _ in many]
    assert (only(one).name, only(one).generation) == (few[0][2], fired.generation)
    assert abs(only(one).created - datetime.now(UTC)) < timedelta(minutes=1)


@needs("batch calls")
def test_a_hundred_minutes_of_the_ledger_are_one_request(storage, store):
    storage.answers.clear()
    assert store.list_folders([f"{LEDGER}{n:03}/" for n in range(100)]) == [[]] * 100
    assert len(storage.answers) == 1


def test_the_oldest_entries_are_listed_up_to_a_minute(storage, store):
    storage.put("a.win")
    for minute in ("2023-11-14_22-13", "2023-11-14_22-14", "2023-11-14_22-15"):
        storage.put(f"{LEDGER}{minute}/a.7.claim")
    listed, more = store.list_first(LEDGER, f"{LEDGER}2023-11-14_22-15/")
    assert not more
    assert [each.name for each in listed] == [f"{LEDGER}2023-11-14_22-{n}/a.7.claim" for n in (13, 14)]


# Many at once


@needs("batch calls")
@pytest.mark.parametrize("act", ["copy", "delete", "compose_with_metadata"])
def test_a_hundred_calls_are_one_request(storage, store, act):
    generations = {f"{n}.win": storage.put(f"{n}.win") for n in range(BATCH_SIZE)}
    calls = {
        "copy": [(name, generation, name) for name, generation in generations.items()],
        "delete": list(generations.items()),
        "compose_with_metadata": [claim(name, generation, k="v") for name, generation in generations.items()],
    }[act]
    storage.answers.clear()
    results = getattr(store, act)(calls)
    assert (len(results), len(storage.answers)) == (BATCH_SIZE, 1)


def test_each_of_a_hundred_copies_and_deletes_has_its_own_answer(storage, store):
    generations = {f"{n}": storage.put(f"{n}", f"content {n}") for n in range(BATCH_SIZE)}
    gone = [(name, generation) for name, generation in generations.items() if int(name) % 7 == 3]
    assert all(result.ok for result in store.delete(gone))
    copied = store.copy([(name, generation, f"t/{name}") for name, generation in generations.items()])
    expected = [404 if each in gone else 200 for each in generations.items()]
    assert statuses(copied) == expected
    for name, result in zip(generations, copied, strict=True):
        if result.ok:
            there = store.get_target(f"t/{name}")
            assert there.generation == result.generation and there.same_content(store.get(name))
    deleted = store.delete(list(generations.items()))
    assert [result.status if not result.ok else 200 for result in deleted] == expected
    assert store.listing()[1] == []
    assert len(storage.names(storage.trigger)) == expected.count(200)


def test_each_of_a_hundred_stamps_has_its_own_metadata(storage, store):
    generations = {f"{n}.win": storage.put(f"{n}.win") for n in range(BATCH_SIZE)}
    stamps = [claim(name, generation, of=name) for name, generation in generations.items()]
    results = store.compose_with_metadata(stamps)
    (entries,) = store.list_folders([MINUTE])
    there = {each.name: each.generation for each in entries}
    assert [there[target] for _, _, target, _, _ in stamps] == [result.generation for result in results]
    assert [store.get(target).metadata for _, _, target, _, _ in stamps] == [{"of": name} for name in generations]


@needs("copy onto a free name only")
@needs("copy of exactly a generation")
def test_refused_preconditions_keep_none_of_the_others_from_going(storage, store):
    copies = [(f"{n}", storage.put(f"{n}", "new"), f"{n}") for n in range(BATCH_SIZE)]
    storage.put("5", "old", storage.trigger)
    storage.put("50", "written again")
    results = store.copy(copies)
    assert [n for n, result in enumerate(results) if result.status == 412] == [5, 50]
    assert sum(result.ok for result in results) == BATCH_SIZE - 2
    assert storage.content("5", storage.trigger) == "old"
    assert storage.content("50", storage.trigger) is None


def test_no_calls_have_no_answers(store):
    assert (store.copy([]), store.delete([]), store.compose_with_metadata([])) == ([], [], [])


def test_more_calls_than_a_batch_takes_are_refused_before_any_is_made(storage, store):
    generation = storage.put("a")
    with pytest.raises(ValueError, match="101 calls"):
        store.copy([("a", generation, f"t/{n}") for n in range(BATCH_SIZE + 1)])
    assert storage.names(storage.trigger) == []


# Names


@needs("one change a second for each name")
def test_a_name_that_was_just_changed_waits_for_its_second_and_no_other_does(storage, store, monkeypatch):
    now, waits = time.time(), []
    monkeypatch.setattr(clock, "time", SimpleNamespace(time=lambda: now))  # however slow this machine is
    monkeypatch.setattr("bqdispatch_provider.gcp.storage_calls.RETRY_FOR_S", 30.0)
    objects = [(f"{n}", storage.put(f"{n}")) for n in range(20)]
    objects[3] = ("3", only(store.compose_with_metadata([("4", objects[4][1], "3", objects[3][1], {})])).generation)

    def sleep(seconds):
        if seconds > 0.5:  # not to keep the pace
            waits.append((seconds, storage.names(storage.tasks)))
            storage.rest()

    monkeypatch.setattr(rate_limit, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    assert all(result.ok for result in store.delete(objects))
    assert [left for _, left in waits] == [["BqDispatch/Tasks/3"]]
    assert all(seconds <= 1.0 for seconds, _ in waits)
    assert storage.names(storage.tasks) == []


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_odd_names_are_taken_as_they_are(storage, store, together):
    generations = {name: storage.put(name, name) for name in ODD_NAMES}
    listed = {name for name in ODD_NAMES if name < UNLISTED}
    assert {each.name: each.generation for each in store.listing()[1]} == {name: generations[name] for name in listed}
    assert all(store.get(name).generation == generation for name, generation in generations.items())

    def call(act, calls):
        return act(calls) if together else [only(act([each])) for each in calls]

    stamps = [(name, generation, f"{name}.again", 0, {"of": "x"}) for name, generation in generations.items()]
    assert all(result.ok for result in call(store.compose_with_metadata, stamps))
    assert all(store.get(f"{name}.again").metadata == {"of": "x"} for name in generations)
    copies = [(name, generation, f"_bqjob_/{name}.json") for name, generation in generations.items()]
    assert all(result.ok for result in call(store.copy, copies))
    assert [
        store.read(f"gs://{storage.trigger}/_bqjob_/{name}.json", 1000).decode() for name in generations
    ] == ODD_NAMES
    assert all(store.get_target(f"_bqjob_/{name}.json") for name in generations)
    assert all(result.ok for result in call(store.delete, list(generations.items())))
    assert {each.name for each in store.listing()[1]} == {f"{name}.again" for name in listed}
    assert all(store.get(f"{name}.again") for name in ODD_NAMES)


# The journal


def test_documents_are_written_over_read_named_and_removed(storage, store):
    folder = f"gs://{storage.journal}/journal"
    store.write_json(f"{folder}/performance.json", {"a": 1})
    store.write_json(f"{folder}/performance.json", {"ü": [1, None]})
    storage.put("journal2/x", bucket=storage.journal)
    assert store.read(f"{folder}/performance.json", 1000).decode() == '{\n "ü": [\n  1,\n  null\n ]\n}'
    assert list(store.list_urls(folder)) == [f"{folder}/performance.json"]
    storage.put("journal/runs/x", bucket=storage.journal)
    assert list(store.list_urls(folder)) == [f"{folder}/performance.json", f"{folder}/runs/x"]
    assert list(store.list_urls(folder, subfolders=False)) == [f"{folder}/performance.json"]
    store.remove(f"{folder}/performance.json")
    store.remove(f"{folder}/runs/x")
    assert list(store.list_urls(folder)) == []
    store.remove(f"{folder}/performance.json")


@pytest.mark.parametrize("again", ["written", "removed"])
def test_a_document_that_was_just_written_is_changed_again_without_a_refusal(storage, store, monkeypatch, again):
    url, waits = f"gs://{storage.journal}/journal/performance.json", []

    def sleep(seconds):
        waits.append(seconds)
        storage.rest()

    monkeypatch.setattr(rate_limit, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    store.write_json(url, {"a": 1})
    store.write_json(f"{url}.other", {"a": 1})
    assert waits == []
    storage.answers.clear()
    if again == "written":
        store.write_json(url, {"a": 2})
    else:
        store.remove(url)
    assert {answer.status_code for answer in storage.answers} <= {200, 204}
    assert len(waits) <= 1  # none where this machine took more than a second


def test_of_what_is_larger_than_allowed_no_more_than_a_piece_is_read(storage, store, monkeypatch):
    url, read = f"gs://{storage.journal}/x", []
    store.write(url, b"x" * 3_000_000)
    write = objects._LimitedBuffer.write
    monkeypatch.setattr(objects._LimitedBuffer, "write", lambda to, part: read.append(len(part)) or write(to, part))
    with pytest.raises(objects.ObjectTooLarge, match=f"it is larger than 1,000 bytes, .* see who wrote '{url}'"):
        store.read(url, 1000)
    assert sum(read) <= 1000 + 64 * 1024
    assert len(store.read(url, 3_000_000)) == 3_000_000


def test_what_is_known_to_be_larger_is_not_asked_for(storage, store):
    url = f"gs://{storage.journal}/x"
    store.write(url, b"x" * 1001)
    storage.answers.clear()
    with pytest.raises(objects.ObjectTooLarge):
        store.read(url, 1000, 1001)
    assert storage.answers == []


def test_reading_what_is_not_there_is_not_found(storage, store):
    with pytest.raises(NotFound):
        store.read(f"gs://{storage.journal}/performance.json", 1000)
