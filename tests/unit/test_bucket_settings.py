"""Which settings of a bucket get in a dispatcher's way, and which do not."""

from datetime import UTC, datetime

import pytest

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.gcp.bucket_settings import BucketSettings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CONFIG = DispatchConfig.from_dict(
    {
        "ProjectID": "p",
        "AsyncTaskURL": "gs://ops/BqDispatch/Tasks/",
        "JournalURL": "gs://journal/journal",
        "ErrorURL": "gs://journal/errors",
    }
).for_project("p")
RETAINED = {"retentionPolicy": {"retentionPeriod": "60"}}
HELD = {"defaultEventBasedHold": True}


def rule(action="Delete", **condition):
    return {"lifecycle": {"rule": [{"action": {"type": action}, "condition": condition}]}}


def found(bucket, **resource):
    return BucketSettings(bucket, resource).problems(CONFIG, NOW)


@pytest.mark.parametrize("bucket", ["ops", CONFIG.trigger_bucket])
@pytest.mark.parametrize("resource", [{}, {"retentionPolicy": {}, "lifecycle": {}}, {"lifecycle": {"rule": []}}])
def test_a_bucket_without_such_settings_is_fine(bucket, resource):
    assert found(bucket, **resource) == []


@pytest.mark.parametrize("resource", [RETAINED, HELD, rule(age=0)])
def test_another_bucket_may_have_them(resource):
    assert found("data", **resource) == []


def test_a_retention_policy_is_in_the_way_of_both():
    (said,) = found("ops", **RETAINED)
    assert "bucket 'ops' has a retention policy of 0:01:00" in said
    assert "`gcloud storage buckets update gs://ops --clear-retention-period`" in said
    (said,) = found(CONFIG.trigger_bucket, **RETAINED)
    assert "BqTail cannot delete what it has consumed" in said


def test_a_locked_policy_cannot_be_removed():
    (said,) = found("ops", retentionPolicy={"retentionPeriod": "60", "isLocked": True})
    assert "--clear-retention-period" not in said
    assert "or move AsyncTaskURL to another bucket" in said


def test_with_versioning_a_retained_object_can_be_deleted():
    assert found("ops", **RETAINED, versioning={"enabled": True}) == []


@pytest.mark.parametrize("versioned", [False, True])
def test_a_default_hold_is_in_the_way_of_both(versioned):
    for bucket in ("ops", CONFIG.trigger_bucket):
        (said,) = found(bucket, **HELD, versioning={"enabled": versioned})
        assert f"gcloud storage buckets update gs://{bucket} --no-default-event-based-hold" in said


EARLY = [
    {"age": 0},
    {"age": 7},
    {"age": "7"},
    {"age": 3, "isLive": True},
    {"age": 3, "matchesPrefix": ["data/", "BqDispatch/"]},
    {"age": 3, "matchesPrefix": ["BqDispatch/Tasks/~ledger/"]},
    {"age": 3, "matchesPrefix": ["BqDispatch/Tasks/proj:p:US/"]},
    {"age": 3, "matchesSuffix": [".win"]},
    {"age": 3, "matchesSuffix": ["fired"]},
    {"age": 3, "matchesSuffix": ["_load--dispatch"]},
    {"age": 3, "matchesSuffix": [".aside"]},
    {"age": 3, "matchesSuffix": ["gone-00003"]},
    {"age": 3, "matchesSuffix": [".win.1700000000000042"]},
    {"age": 3, "matchesSuffix": ["7"]},
    {"age": 3, "matchesStorageClass": ["STANDARD", "NEARLINE"]},
    {"createdBefore": "2026-03-02"},
]
HARMLESS = [
    {"age": 8},
    {"age": 3, "isLive": False},
    {"numNewerVersions": 1},
    {"daysSinceNoncurrentTime": 0},
    {"noncurrentTimeBefore": "2030-01-01"},
    {"age": 3, "matchesPrefix": ["BqDispatch/Tasks2/", "data/"]},
    {"age": 3, "matchesSuffix": [".csv", ".mp3"]},
    {"age": 3, "matchesStorageClass": ["NEARLINE"]},
    {"createdBefore": "2026-03-01"},
    {"daysSinceCustomTime": 0},
    {"customTimeBefore": "2030-01-01"},
]


@pytest.mark.parametrize("condition", EARLY)
def test_a_rule_that_deletes_tasks_before_eight_days_is_in_the_way(condition):
    (said,) = found("ops", **rule(**condition))
    assert "deletes objects below gs://ops/BqDispatch/Tasks/" in said
    assert "must be kept for 8 days" in said


@pytest.mark.parametrize("condition", HARMLESS)
def test_a_rule_that_does_not_touch_live_tasks_is_not(condition):
    assert found("ops", **rule(**condition)) == []


def test_a_rule_that_deletes_nothing_is_not_in_the_way():
    assert found("ops", **rule("SetStorageClass", age=0)) == []
    assert found("ops", **rule("AbortIncompleteMultipartUpload", age=0)) == []


def test_a_bucket_of_another_class_is_met_by_rules_for_that_class():
    assert len(found("ops", **rule(age=3, matchesStorageClass=["NEARLINE"]), storageClass="NEARLINE")) == 1


def test_each_rule_says_when_it_deletes():
    assert "at once" in found("ops", **rule(age=0))[0]
    assert "after 1 day (" in found("ops", **rule(age=1))[0]
    assert "after 7 days (" in found("ops", **rule(age=7))[0]
    assert '{"age": 7}' in found("ops", **rule(age=7))[0]


@pytest.mark.parametrize(
    ("condition", "number"),
    [
        ({"age": 0}, 2),
        ({"age": 1}, 0),
        ({"age": 0, "matchesPrefix": ["_batch_/"]}, 1),
        ({"age": 0, "matchesPrefix": ["data/"]}, 0),
        ({"age": 0, "isLive": False}, 0),
    ],
)
def test_a_rule_that_deletes_deliveries_within_a_day_is_in_the_way(condition, number):
    said = found(CONFIG.trigger_bucket, **rule(**condition))
    assert len(said) == number
    assert all("events may be deleted before BqTail consumes them" in each for each in said)


@pytest.mark.parametrize(
    ("condition", "number"),
    [
        ({"daysSinceNoncurrentTime": 0}, 2),
        ({"daysSinceNoncurrentTime": 1}, 0),
        ({"numNewerVersions": 1, "matchesPrefix": ["_bqjob_/"]}, 1),
        ({"isLive": False}, 2),
        ({"age": 1, "isLive": False}, 0),
    ],
)
def test_a_rule_that_deletes_the_proof_of_deliveries_within_a_day_is_in_the_way(condition, number):
    versioned = {"versioning": {"enabled": True}}
    said = found(CONFIG.trigger_bucket, **rule(**condition), **versioned)
    assert len(said) == number
    assert all("they prove what was delivered" in each for each in said)
    soft = {"softDeletePolicy": {"retentionDurationSeconds": "604800"}}
    assert found(CONFIG.trigger_bucket, **rule(**condition), **versioned, **soft) == []


def test_a_folder_may_be_a_whole_bucket():
    folders = {"AsyncTaskURL": "gs://ops", "JournalURL": "gs://journal/journal", "ErrorURL": "gs://journal/errors"}
    config = DispatchConfig.from_dict({"ProjectID": "p", **folders}).for_project("p")
    (said,) = BucketSettings("ops", rule(age=3, matchesPrefix=["any/"])).problems(config, NOW)
    assert "below gs://ops/ after 3 days" in said


@pytest.mark.parametrize(("resource", "keeps"), [(RETAINED, True), (HELD, True), (rule(age=0), False), ({}, False)])
def test_it_tells_whether_objects_cannot_be_deleted(resource, keeps):
    assert BucketSettings("ops", resource).blocks_deletes is keeps
