"""The stand-in Cloud Storage keeps what is held or retained as the service does."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from google.api_core.exceptions import BadRequest, Forbidden, MethodNotImplemented, PreconditionFailed


def reason(refused):
    # Of uploads the client keeps the whole answer, in its message.
    text = re.search(r'"reason": ?"(\w+)"', refused.value.message)
    return text[1] if text else refused.value.errors[0]["reason"]


def ways_to_lose(bucket, name):
    """Everything that would delete or overwrite the object."""
    bucket.blob("source").upload_from_string("s")
    source = bucket.blob("source")
    return [
        lambda: bucket.delete_blob(name),
        lambda: bucket.blob(name).upload_from_string("y"),
        lambda: bucket.copy_blob(source, bucket, name),
        lambda: bucket.blob(name).rewrite(source),
        lambda: bucket.blob(name).compose([source]),
    ]


class TestHolds:
    @pytest.mark.parametrize(("hold", "words"), [("temporary", "Temporary hold"), ("event_based", "Event-Based hold")])
    def test_a_held_object_stays_as_it_is(self, bucket, hold, words):
        blob = bucket.blob("a")
        blob.upload_from_string("x")
        setattr(blob, f"{hold}_hold", True)
        blob.patch()
        for lose in ways_to_lose(bucket, "a"):
            with pytest.raises(Forbidden, match=f"'tasks/a' is under active {words}") as refused:
                lose()
            assert reason(refused) == "objectUnderActiveHold"
        assert bucket.blob("a").download_as_bytes() == b"x"

    def test_a_hold_can_be_set_and_released(self, bucket):
        blob = bucket.blob("a")
        blob.upload_from_string("x")
        blob.temporary_hold = True
        blob.patch()
        with pytest.raises(Forbidden):
            bucket.delete_blob("a")
        blob.temporary_hold = False
        blob.patch()
        bucket.delete_blob("a")

    def test_seeded_objects_can_be_held(self, control, gcs):
        control.seed_objects("tasks", [{"name": "a", "temporaryHold": True}, {"name": "b", "eventBasedHold": True}])
        for blob in gcs.list_blobs("tasks"):
            with pytest.raises(Forbidden):
                blob.delete()
        assert [(blob.temporary_hold, blob.event_based_hold) for blob in gcs.list_blobs("tasks")] == [
            (True, None),
            (None, True),
        ]

    def test_a_held_object_can_be_patched(self, control, gcs):
        control.seed_objects("tasks", [{"name": "a", "temporaryHold": True}])
        blob = gcs.bucket("tasks").blob("a")
        blob.metadata = {"k": "v"}
        blob.patch()
        assert gcs.bucket("tasks").get_blob("a").metadata == {"k": "v"}

    def test_a_condition_is_looked_at_first(self, control, gcs):
        control.seed_objects("tasks", [{"name": "a", "temporaryHold": True}])
        with pytest.raises(PreconditionFailed):
            gcs.bucket("tasks").delete_blob("a", if_generation_match=1)

    def test_a_copy_is_not_held(self, control, gcs):
        control.seed_objects("tasks", [{"name": "a", "temporaryHold": True, "metadata": {"k": "v"}}])
        bucket = gcs.bucket("tasks")
        bucket.copy_blob(bucket.blob("a"), bucket, "b")
        assert bucket.get_blob("b").metadata == {"k": "v"}
        bucket.delete_blob("b")

    def test_new_objects_can_be_held_by_default(self, http, bucket):
        bucket.default_event_based_hold = True
        bucket.patch()
        bucket.blob("a").upload_from_string("x")
        http.post("/storage/v1/b/tasks/o/a/copyTo/b/tasks/o/b", json={"eventBasedHold": False})
        bucket.delete_blob("b")
        with pytest.raises(Forbidden):
            bucket.delete_blob("a")

    def test_a_held_live_object_in_a_versioned_bucket_is_not_known(self, control, bucket):
        bucket.versioning_enabled = True
        bucket.patch()
        control.seed_objects("tasks", [{"name": "a", "temporaryHold": True}])
        with pytest.raises(MethodNotImplemented):
            bucket.delete_blob("a", retry=None)

    def test_a_hold_is_true_or_false(self, http, control, bucket):
        control.seed_objects("tasks", ["a"])
        assert http.patch("/storage/v1/b/tasks/o/a", json={"temporaryHold": "yes"}).status_code == 400
        with pytest.raises(ValueError, match="true or false"):
            control.seed_objects("tasks", [{"name": "b", "temporaryHold": "yes"}])

    def test_a_held_object_fails_alone_in_a_batch(self, control, gcs):
        control.seed_objects("tasks", [{"name": "a", "temporaryHold": True}, "b"])
        with gcs.batch(raise_exception=False) as batch:
            gcs.bucket("tasks").delete_blob("a")
            gcs.bucket("tasks").delete_blob("b")
        assert [response.status_code for response in batch._responses] == [403, 204]


class TestRetentionPolicy:
    @pytest.fixture
    def retained(self, bucket):
        bucket.retention_period = 3600
        bucket.patch()
        bucket.blob("a").upload_from_string("x")
        return bucket

    def test_it_shows_its_period_and_since_when(self, http, retained):
        policy = http.get("/storage/v1/b/tasks?fields=retentionPolicy").json()["retentionPolicy"]
        assert (policy["retentionPeriod"], policy["effectiveTime"][-1]) == ("3600", "Z")

    def test_an_object_stays_for_its_time(self, control, retained):
        for lose in ways_to_lose(retained, "a"):
            with pytest.raises(Forbidden, match="'tasks/a' is subject to bucket's retention policy") as refused:
                lose()
            assert reason(refused) == "retentionPolicyNotMet"
        control.advance(3600)
        retained.delete_blob("a")

    def test_it_shows_when_its_time_is_over(self, http, retained):
        blob = retained.get_blob("a")
        assert blob.retention_expiration_time - blob.time_created == timedelta(hours=1)
        answer = http.get("/storage/v1/b/tasks/o?fields=items(name,retentionExpirationTime)").json()
        assert set(answer["items"][0]) == {"name", "retentionExpirationTime"}

    def test_objects_that_were_there_before_are_retained_too(self, bucket):
        bucket.blob("a").upload_from_string("x")
        bucket.retention_period = 3600
        bucket.patch()
        with pytest.raises(Forbidden):
            bucket.delete_blob("a")
        bucket.retention_period = None
        bucket.patch()
        bucket.delete_blob("a")

    def test_a_released_event_starts_the_time(self, control, retained):
        blob = retained.get_blob("a")
        blob.event_based_hold = True
        blob.patch()
        control.advance(7200)
        assert retained.get_blob("a").retention_expiration_time is None
        blob.event_based_hold = False
        blob.patch()
        with pytest.raises(Forbidden) as refused:
            retained.delete_blob("a")
        assert reason(refused) == "retentionPolicyNotMet"
        control.advance(3600)
        retained.delete_blob("a")

    def test_with_versioning_the_live_object_can_become_noncurrent(self, retained):
        retained.versioning_enabled = True
        retained.patch()
        generation = retained.get_blob("a").generation
        retained.delete_blob("a")
        with pytest.raises(Forbidden):
            retained.delete_blob("a", generation=generation)

    @pytest.mark.parametrize("period", [0, -5, "long"])
    def test_a_bad_period_is_refused(self, http, bucket, period):
        answer = http.patch("/storage/v1/b/tasks", json={"retentionPolicy": {"retentionPeriod": period}})
        assert answer.status_code == 400


class TestObjectRetention:
    @pytest.fixture
    def retaining(self, gcs):
        return gcs.create_bucket("tasks", enable_object_retention=True)

    def retain(self, bucket, mode, *, hours=1, **more):
        blob = bucket.blob("a")
        blob.retention.mode = mode
        blob.retention.retain_until_time = datetime(2040, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
        blob.patch(**more)

    @pytest.fixture
    def blob(self, retaining):
        retaining.blob("a").upload_from_string("x")
        return retaining.blob("a")

    def test_an_object_stays_for_its_own_time(self, control, retaining, blob):
        assert retaining.object_retention_mode == "Enabled"
        self.retain(retaining, "Unlocked")
        shown = retaining.get_blob("a")
        assert shown.retention_expiration_time == shown.retention.retain_until_time
        with pytest.raises(Forbidden) as refused:
            retaining.delete_blob("a")
        assert reason(refused) == "retentionPolicyNotMet"
        control.set_clock(datetime(2040, 1, 2, tzinfo=UTC).timestamp())
        retaining.delete_blob("a")

    def test_it_can_only_be_extended(self, retaining, blob):
        self.retain(retaining, "Unlocked")
        self.retain(retaining, "Unlocked", hours=2)
        with pytest.raises(Forbidden):
            self.retain(retaining, "Unlocked", hours=1)

    def test_an_unlocked_one_can_be_overridden(self, retaining, blob):
        self.retain(retaining, "Unlocked")
        self.retain(retaining, "Locked", hours=0, override_unlocked_retention=True)
        with pytest.raises(Forbidden):
            self.retain(retaining, "Locked", hours=-1, override_unlocked_retention=True)

    def test_a_bucket_must_allow_it(self, bucket):
        bucket.blob("a").upload_from_string("x")
        with pytest.raises(BadRequest):
            self.retain(bucket, "Unlocked")

    @pytest.mark.parametrize(
        "body",
        [
            {"retention": {"mode": "Open", "retainUntilTime": "2040-01-01T00:00:00Z"}},
            {"retention": {"mode": "Locked", "retainUntilTime": "2040-01-01T00:00:00"}},
            {"retention": {"mode": "Locked"}},
            {"retention": 5},
            {"retention": {"mode": "Locked", "retainUntilTime": "2040-01-01T00:00:00Z"}, "eventBasedHold": True},
        ],
    )
    def test_what_makes_no_sense_is_refused(self, http, retaining, blob, body):
        assert http.patch("/storage/v1/b/tasks/o/a", json=body).status_code == 400
