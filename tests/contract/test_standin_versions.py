"""The stand-in Cloud Storage keeps noncurrent and soft-deleted versions as the service does."""

import time
from datetime import timedelta

import pytest
from google.api_core.exceptions import BadRequest, Conflict, MethodNotImplemented, NotFound, PreconditionFailed

WEEK = 7 * 86_400


def shown(blobs):
    return [(blob.name, blob.generation) for blob in blobs]


def write(bucket, name, text="x"):
    blob = bucket.blob(name)
    blob.upload_from_string(text)
    return blob.generation


@pytest.fixture
def versioned(gcs):
    bucket = gcs.bucket("tasks")
    bucket.versioning_enabled = True
    return gcs.create_bucket(bucket)


def soft_deleted(bucket, **more):
    return bucket.client.list_blobs(bucket, soft_deleted=True, **more)


class TestVersioning:
    def test_it_can_be_switched_on_and_off(self, gcs, bucket):
        bucket.versioning_enabled = True
        bucket.patch()
        assert gcs.get_bucket("tasks").versioning_enabled
        first, second = write(bucket, "a"), write(bucket, "a")
        bucket.versioning_enabled = False
        bucket.patch()
        third = write(bucket, "a")
        assert second not in (first, third)
        assert shown(bucket.list_blobs(versions=True)) == [("a", first), ("a", third)]

    def test_it_is_shown_by_a_mask(self, http, versioned):
        answer = http.get("/storage/v1/b/tasks?fields=versioning,name").json()
        assert answer == {"versioning": {"enabled": True}, "name": "tasks"}

    def test_an_overwrite_keeps_the_old_version(self, http, control, versioned):
        old = write(versioned, "a", "old")
        control.advance(60)
        new = write(versioned, "a", "new")
        blob = versioned.get_blob("a", generation=old)
        assert blob.download_as_bytes() == b"old"
        assert blob.updated >= blob.time_created
        assert versioned.get_blob("a").generation == new
        items = http.get("/storage/v1/b/tasks/o?versions=true&fields=items(generation,timeDeleted)").json()["items"]
        assert [(item["generation"], "timeDeleted" in item) for item in items] == [(str(old), True), (str(new), False)]

    @pytest.mark.parametrize("way", ["delete", "copy", "rewrite", "compose", "seed"])
    def test_every_way_to_replace_an_object_keeps_it(self, control, versioned, way):
        write(versioned, "source", "s")
        old = write(versioned, "a", "old")
        if way == "delete":
            versioned.delete_blob("a")
        elif way == "copy":
            versioned.copy_blob(versioned.blob("source"), versioned, "a")
        elif way == "rewrite":
            versioned.blob("a").rewrite(versioned.blob("source"))
        elif way == "compose":
            versioned.blob("a").compose([versioned.blob("source")])
        else:
            control.seed_objects("tasks", ["a"])
        assert versioned.blob("a", generation=old).download_as_bytes() == b"old"

    def test_a_deleted_object_is_listed_among_the_versions_only(self, versioned):
        generation = write(versioned, "a")
        versioned.delete_blob("a")
        assert shown(versioned.list_blobs()) == []
        assert shown(versioned.list_blobs(versions=True)) == [("a", generation)]
        assert versioned.get_blob("a") is None
        with pytest.raises(NotFound):
            versioned.delete_blob("a")

    def test_a_named_version_is_deleted_for_good(self, versioned):
        old, new = write(versioned, "a"), write(versioned, "a")
        versioned.delete_blob("a", generation=old)
        assert shown(versioned.list_blobs(versions=True)) == [("a", new)]
        versioned.delete_blob("a", generation=new)
        assert shown(versioned.list_blobs(versions=True)) == []

    def test_an_old_version_can_be_copied_back(self, versioned):
        old = write(versioned, "a", "old")
        write(versioned, "a", "new")
        versioned.copy_blob(versioned.blob("a"), versioned, "a", source_generation=old)
        assert versioned.blob("a").download_as_bytes() == b"old"
        assert len(list(versioned.list_blobs(versions=True))) == 3

    def test_an_old_version_can_be_rewritten_and_composed(self, versioned):
        old = write(versioned, "a", "old")
        write(versioned, "a", "new")
        versioned.blob("b").rewrite(versioned.blob("a", generation=old))
        versioned.blob("c").compose([versioned.blob("a", generation=old), versioned.blob("a")])
        assert versioned.blob("b").download_as_bytes() == b"old"
        assert versioned.blob("c").download_as_bytes() == b"oldnew"

    def test_conditions_look_at_the_live_object(self, versioned):
        write(versioned, "a")
        versioned.delete_blob("a")
        write(versioned, "a", "again")
        with pytest.raises(PreconditionFailed):
            versioned.blob("a").upload_from_string("x", if_generation_match=0)

    def test_the_metadata_of_an_old_version_can_be_patched(self, versioned):
        old = write(versioned, "a")
        write(versioned, "a")
        blob = versioned.blob("a", generation=old)
        blob.metadata = {"k": "v"}
        blob.patch()
        assert versioned.get_blob("a", generation=old).metadata == {"k": "v"}
        assert versioned.get_blob("a").metadata is None

    @pytest.mark.parametrize("size", [1, 2, 3, 10])
    def test_versions_are_listed_by_name_and_generation_in_pages(self, control, versioned, size):
        first = control.seed_objects("tasks", ["b", "a", "d/x", "c"])
        second = control.seed_objects("tasks", ["a", "d/x"])
        versioned.delete_blob("c")
        b, a, x, c = first
        expected = [("a", a), ("a", second[0]), ("b", b), ("c", c), ("d/x", x), ("d/x", second[1])]
        assert shown(versioned.list_blobs(versions=True, page_size=size)) == expected

    def test_a_folder_of_old_versions_is_rolled_up(self, control, versioned):
        control.seed_objects("tasks", ["d/x", "e", "d/x"])
        versioned.delete_blob("d/x")
        found = versioned.list_blobs(versions=True, delimiter="/")
        assert ([name for name, _ in shown(found)], found.prefixes) == (["e"], {"d/"})
        assert len(list(versioned.list_blobs(versions=True, prefix="d/"))) == 2

    def test_a_list_of_versions_does_not_show_a_live_object_twice(self, control, versioned):
        control.seed_objects("tasks", ["a", "b"])
        pages = versioned.list_blobs(versions=True, page_size=1).pages
        first = shown(next(pages))
        versioned.delete_blob("a")
        assert [*first, *(entry for page in pages for entry in shown(page))] == shown(
            versioned.list_blobs(versions=True)
        )

    def test_a_bucket_with_old_versions_cannot_be_deleted(self, gcs, versioned):
        write(versioned, "a")
        versioned.delete_blob("a")
        with pytest.raises(Conflict):
            versioned.delete()
        versioned.delete(force=True)
        assert gcs.lookup_bucket("tasks") is None

    def test_folders_own_objects_among_versions_are_not_known(self, gcs, versioned):
        with pytest.raises(MethodNotImplemented):
            list(gcs.list_blobs("tasks", versions=True, include_trailing_delimiter=True, retry=None))

    @pytest.mark.parametrize("token", ["x", "LTEvYQ=="])
    def test_a_bad_page_token_is_refused(self, http, versioned, token):
        assert http.get("/storage/v1/b/tasks/o", params={"pageToken": token}).status_code == 400


class TestSoftDeletePolicy:
    def test_a_new_policy_takes_effect_now(self, control, gcs, bucket):
        now = control.set_clock(2_000_000_000)
        bucket.soft_delete_policy.retention_duration_seconds = WEEK
        bucket.patch()
        policy = gcs.get_bucket("tasks").soft_delete_policy
        assert policy.retention_duration_seconds == WEEK
        assert abs(policy.effective_time.timestamp() - now) < 60

    def test_a_created_bucket_has_one_only_when_asked(self, http, soft, gcs):
        gcs.create_bucket("plain")
        assert http.get("/storage/v1/b/plain?fields=softDeletePolicy").json() == {}
        policy = http.get("/storage/v1/b/tasks?fields=softDeletePolicy").json()["softDeletePolicy"]
        assert policy["retentionDurationSeconds"] == str(WEEK)
        assert policy["effectiveTime"].endswith("Z")

    @pytest.mark.parametrize("seconds", [1, WEEK - 1, 90 * 86_400 + 1, -1])
    def test_a_duration_out_of_range_is_refused(self, bucket, seconds):
        bucket.soft_delete_policy.retention_duration_seconds = seconds
        with pytest.raises(BadRequest):
            bucket.patch()

    @pytest.mark.parametrize(
        "body",
        [
            {"softDeletePolicy": {"retentionDurationSeconds": "long"}},
            {"softDeletePolicy": {}},
            {"softDeletePolicy": 5},
            {"versioning": {"enabled": "yes"}},
            {"versioning": True},
        ],
    )
    def test_what_is_no_policy_is_refused(self, http, bucket, body):
        assert http.patch("/storage/v1/b/tasks", json=body).status_code == 400

    def test_it_can_be_switched_off(self, control, gcs, soft):
        write(soft, "a")
        soft.delete_blob("a")
        soft.soft_delete_policy.retention_duration_seconds = 0
        soft.patch()
        write(soft, "b")
        soft.delete_blob("b")
        assert [blob.name for blob in soft_deleted(soft)] == ["a"]
        control.advance(WEEK)
        with pytest.raises(BadRequest):
            list(soft_deleted(soft))


class TestSoftDelete:
    def test_a_deleted_object_is_kept_until_its_time_is_over(self, control, soft):
        generation = write(soft, "a")
        soft.delete_blob("a")
        assert shown(soft.list_blobs()) == shown(soft.list_blobs(versions=True)) == []
        (blob,) = soft_deleted(soft)
        assert (blob.name, blob.generation) == ("a", generation)
        assert blob.hard_delete_time - blob.soft_delete_time == timedelta(seconds=WEEK)
        assert abs(blob.soft_delete_time.timestamp() - control.now()) < 60
        control.advance(WEEK - 60)
        assert shown(soft_deleted(soft)) == [("a", generation)]
        control.advance(60)
        assert shown(soft_deleted(soft)) == []
        assert soft.get_blob("a", generation=generation, soft_deleted=True) is None

    def test_an_overwritten_object_is_kept(self, control, soft):
        old = write(soft, "a")
        (seeded,) = control.seed_objects("tasks", ["a"])
        write(soft, "a")
        assert shown(soft_deleted(soft)) == [("a", old), ("a", seeded)]

    def test_a_delete_of_the_named_live_generation_is_kept_too(self, soft):
        generation = write(soft, "a")
        soft.delete_blob("a", generation=generation)
        assert shown(soft_deleted(soft)) == [("a", generation)]

    def test_with_versioning_what_is_deleted_for_good_is_kept(self, soft):
        soft.versioning_enabled = True
        soft.patch()
        old, new = write(soft, "a"), write(soft, "a")
        soft.delete_blob("a")
        assert shown(soft_deleted(soft)) == []
        soft.delete_blob("a", generation=old)
        assert shown(soft_deleted(soft)) == [("a", old)]
        assert shown(soft.list_blobs(versions=True)) == [("a", new)]

    def test_a_soft_deleted_object_shows_its_metadata_and_nothing_else(self, http, soft):
        generation = write(soft, "a")
        soft.delete_blob("a")
        path = "/storage/v1/b/tasks/o/a"
        assert soft.get_blob("a", generation=generation, soft_deleted=True).soft_delete_time
        assert soft.get_blob("a", generation=generation) is None
        assert http.get(f"{path}?softDeleted=true").status_code == 400
        assert http.get(f"{path}?softDeleted=true&generation={generation}&alt=media").status_code == 400
        assert http.get(f"{path}?generation={generation}&alt=media").status_code == 404
        assert http.delete(f"{path}?generation={generation}").status_code == 404
        assert http.patch(f"{path}?generation={generation}", json={}).status_code == 404

    def test_a_live_object_is_not_soft_deleted(self, soft):
        generation = write(soft, "a")
        assert soft.get_blob("a", generation=generation, soft_deleted=True) is None

    @pytest.mark.parametrize("size", [1, 2, 10])
    def test_they_are_listed_with_all_that_selects(self, http, control, soft, size):
        control.seed_objects("tasks", ["a", "d/a", "d/b", "d/b", "e"])
        for name in ("a", "d/a", "d/b", "e"):
            soft.delete_blob(name)
        assert [blob.name for blob in soft_deleted(soft, page_size=size)] == ["a", "d/a", "d/b", "d/b", "e"]
        assert [blob.name for blob in soft_deleted(soft, page_size=size, prefix="d/")] == ["d/a", "d/b", "d/b"]
        rolled = soft_deleted(soft, page_size=size, delimiter="/")
        assert ([blob.name for blob in rolled], rolled.prefixes) == (["a", "e"], {"d/"})
        assert [blob.name for blob in soft_deleted(soft, start_offset="b", end_offset="e")] == ["d/a", "d/b", "d/b"]
        answer = http.get("/storage/v1/b/tasks/o?softDeleted=true&prefix=a&fields=items(name,hardDeleteTime)").json()
        assert [set(item) for item in answer["items"]] == [{"name", "hardDeleteTime"}]

    def test_versions_and_soft_deleted_ones_are_not_listed_together(self, gcs, soft):
        with pytest.raises(BadRequest):
            list(gcs.list_blobs("tasks", versions=True, soft_deleted=True))

    def test_without_a_policy_they_are_not_listed(self, gcs, bucket):
        with pytest.raises(BadRequest):
            list(gcs.list_blobs("tasks", soft_deleted=True))

    def test_a_bucket_with_nothing_but_them_can_be_deleted(self, gcs, soft):
        write(soft, "a")
        soft.delete_blob("a")
        soft.delete()
        assert gcs.lookup_bucket("tasks") is None

    def test_100000_of_them_do_not_slow_others_down(self, control, soft):
        def cpu_of_changes():
            (live,) = control.seed_objects("tasks", ["p42/live"])
            soft.delete_blob("p42/live")
            started = time.process_time()
            for _ in range(20):
                assert ("p42/live", live) in shown(soft_deleted(soft, prefix="p42/live"))
                assert shown(soft.list_blobs(prefix="p42/live")) == []
                write(soft, "p42/other")
                soft.delete_blob("p42/other")
            return time.process_time() - started

        among_none = cpu_of_changes()
        control.seed_objects("tasks", [f"p{n % 100:02d}/{n}" for n in range(100_000)])
        control.seed_objects("tasks", [f"p{n % 100:02d}/{n}" for n in range(100_000)])
        assert len(list(soft_deleted(soft, prefix="p42/"))) == 1000 + 21
        assert cpu_of_changes() < 5 * among_none


class TestRestore:
    @pytest.fixture
    def deleted(self, soft):
        blob = soft.blob("a")
        blob.metadata = {"k": "v"}
        blob.upload_from_string(b"content", content_type="text/x")
        soft.delete_blob("a")
        return blob.generation

    def test_it_makes_a_new_live_generation_of_the_same_content(self, control, soft, deleted):
        control.advance(60)
        before = control.now()
        restored = soft.restore_blob("a", generation=deleted)
        assert restored.generation > deleted
        blob = soft.get_blob("a")
        assert (blob.generation, blob.metageneration, blob.soft_delete_time) == (restored.generation, 1, None)
        assert (blob.metadata, blob.content_type) == ({"k": "v"}, "text/x")
        assert blob.download_as_bytes() == b"content"
        assert before - 1 <= blob.time_created.timestamp() <= control.now()

    def test_the_soft_deleted_version_stays(self, soft, deleted):
        restored = [soft.restore_blob("a", generation=deleted).generation for _ in range(2)]
        assert shown(soft_deleted(soft)) == [("a", deleted), ("a", restored[0])]
        assert soft.get_blob("a").generation == restored[1]

    def test_it_obeys_its_condition(self, soft, deleted):
        live = write(soft, "a")
        with pytest.raises(PreconditionFailed):
            soft.restore_blob("a", generation=deleted, if_generation_match=0)
        assert soft.restore_blob("a", generation=deleted, if_generation_match=live).generation > live

    def test_what_is_not_soft_deleted_is_not_found(self, control, soft, deleted):
        live = write(soft, "b")
        for name, generation in (("b", live), ("a", 1), ("missing", deleted)):
            with pytest.raises(NotFound):
                soft.restore_blob(name, generation=generation)
        control.advance(WEEK)
        with pytest.raises(NotFound):
            soft.restore_blob("a", generation=deleted)

    def test_a_generation_must_be_named(self, soft, deleted):
        with pytest.raises(BadRequest):
            soft.restore_blob("a")

    def test_a_bucket_without_a_policy_restores_nothing(self, bucket):
        with pytest.raises(BadRequest):
            bucket.restore_blob("a", generation=5)

    def test_access_controls_are_not_known(self, soft, deleted):
        with pytest.raises(MethodNotImplemented):
            soft.restore_blob("a", generation=deleted, copy_source_acl=True, retry=None)

    def test_it_can_be_part_of_a_batch(self, gcs, soft, deleted):
        with gcs.batch(raise_exception=False) as batch:
            soft.restore_blob("a", generation=deleted)
        assert [response.status_code for response in batch._responses] == [200]
        assert soft.get_blob("a") is not None
