"""Copies, rewrites and composed objects in the stand-in Cloud Storage are as in the service."""

import asyncio

import pytest
from gcloud.aio.storage import Storage
from google.api_core.exceptions import BadRequest, NotFound, PreconditionFailed


class TestCopies:
    @pytest.fixture
    def source(self, bucket):
        blob = bucket.blob("source")
        blob.metadata, blob.cache_control = {"k": "v"}, "no-store"
        blob.upload_from_string(b"content", content_type="text/plain")
        return blob

    def test_a_copy_carries_bytes_and_metadata_over(self, gcs, bucket, source):
        target = gcs.create_bucket("trigger")
        bucket.copy_blob(source, target, "a/b")
        copy = target.get_blob("a/b")
        assert copy.download_as_bytes() == b"content"
        assert (copy.metadata, copy.content_type, copy.cache_control) == ({"k": "v"}, "text/plain", "no-store")
        assert (copy.md5_hash, copy.crc32c, copy.metageneration) == (source.md5_hash, source.crc32c, 1)
        assert copy.generation > source.generation

    def test_a_copy_with_a_body_takes_its_metadata_from_the_body(self, http, bucket, source):
        path = "/storage/v1/b/tasks/o/source/copyTo/b/tasks/o/copy"
        http.post(path, json={"metadata": {"own": "1"}, "contentType": "text/own"})
        copy = bucket.get_blob("copy")
        assert (copy.metadata, copy.content_type, copy.cache_control) == ({"own": "1"}, "text/own", None)

    def test_a_body_that_sets_nothing_counts_as_none(self, http, bucket, source):
        http.post("/storage/v1/b/tasks/o/source/copyTo/b/tasks/o/copy", json={"name": "copy"})
        assert bucket.get_blob("copy").metadata == {"k": "v"}

    def test_only_the_selected_fields_of_a_copy_are_shown(self, http, bucket, source):
        answer = http.post("/storage/v1/b/tasks/o/source/copyTo/b/tasks/o/copy?fields=generation")
        assert answer.json() == {"generation": str(bucket.get_blob("copy").generation)}

    def test_a_copy_over_what_is_there_can_be_refused(self, bucket, source):
        bucket.blob("copy").upload_from_string(b"first")
        with pytest.raises(PreconditionFailed):
            bucket.copy_blob(source, bucket, "copy", if_generation_match=0)
        assert bucket.blob("copy").download_as_bytes() == b"first"

    def test_a_copy_of_a_missing_object_is_not_found(self, bucket):
        with pytest.raises(NotFound):
            bucket.copy_blob(bucket.blob("missing"), bucket, "copy")

    def test_a_copy_into_a_missing_bucket_is_not_found(self, gcs, bucket, source):
        with pytest.raises(NotFound):
            bucket.copy_blob(source, gcs.bucket("missing"), "copy")

    @pytest.mark.parametrize(
        ("condition", "holds"),
        [
            ("if_source_generation_match", True),
            ("if_source_generation_match", False),
            ("if_source_generation_not_match", True),
            ("if_source_generation_not_match", False),
            ("if_source_metageneration_match", True),
            ("if_source_metageneration_match", False),
            ("if_source_metageneration_not_match", True),
            ("if_source_metageneration_not_match", False),
        ],
    )
    def test_a_copy_obeys_conditions_on_its_source(self, bucket, source, condition, holds):
        current = source.metageneration if "meta" in condition else source.generation
        value = current if holds != ("not" in condition) else current + 1
        if holds:
            assert bucket.copy_blob(source, bucket, "copy", **{condition: value}).size == 7
        else:
            with pytest.raises(PreconditionFailed):
                bucket.copy_blob(source, bucket, "copy", **{condition: value})

    def test_only_the_live_generation_can_be_copied(self, bucket, source):
        assert bucket.copy_blob(source, bucket, "copy", source_generation=source.generation).size == 7
        with pytest.raises(NotFound):
            bucket.copy_blob(source, bucket, "copy", source_generation=1)

    def test_an_object_copied_onto_itself_is_a_new_generation(self, bucket, source):
        before = source.generation
        bucket.copy_blob(source, bucket, "source", if_generation_match=before)
        assert bucket.get_blob("source").generation > before


class TestRewrites:
    def test_a_small_object_is_rewritten_in_one_call(self, bucket):
        bucket.blob("a").upload_from_string(b"content", content_type="text/x")
        assert bucket.blob("b").rewrite(bucket.blob("a")) == (None, 7, 7)
        assert bucket.get_blob("b").content_type == "text/x"

    def test_a_slow_rewrite_takes_several_calls(self, control, bucket):
        control.set_rewrite_calls(3)
        bucket.blob("a").upload_from_string(b"0123456789")
        target, source = bucket.blob("b"), bucket.blob("a")
        token, written, size = target.rewrite(source)
        assert (written, size, bucket.get_blob("b")) == (3, 10, None)
        token, written, _ = target.rewrite(source, token=token)
        assert (written, bucket.get_blob("b")) == (6, None)
        assert target.rewrite(source, token=token) == (None, 10, 10)
        assert bucket.blob("b").download_as_bytes() == b"0123456789"

    def test_a_token_is_good_for_its_own_rewrite_only(self, control, bucket):
        control.set_rewrite_calls(2)
        bucket.blob("a").upload_from_string(b"x")
        token, _, _ = bucket.blob("b").rewrite(bucket.blob("a"))
        with pytest.raises(BadRequest):
            bucket.blob("c").rewrite(bucket.blob("a"), token=token)

    def test_a_rewrite_of_what_has_changed_meanwhile_is_refused(self, control, bucket):
        control.set_rewrite_calls(2)
        bucket.blob("a").upload_from_string(b"x")
        token, _, _ = bucket.blob("b").rewrite(bucket.blob("a"))
        bucket.blob("a").upload_from_string(b"y")
        with pytest.raises(BadRequest):
            bucket.blob("b").rewrite(bucket.blob("a"), token=token)

    def test_a_rewrite_obeys_conditions_at_both_ends(self, bucket):
        bucket.blob("a").upload_from_string(b"x")
        with pytest.raises(PreconditionFailed):
            bucket.blob("b").rewrite(bucket.blob("a"), if_source_generation_match=1)
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").rewrite(bucket.blob("a"), if_generation_match=0)

    def test_the_asynchronous_client_goes_on_until_a_rewrite_is_done(self, standin, control, bucket):
        control.set_rewrite_calls(4)
        bucket.blob("a").upload_from_string(b"x", content_type="text/x")

        async def scenario():
            async with Storage(api_root=standin.url) as client:
                return await client.copy("tasks", "a", "tasks", new_name="b/c")

        assert asyncio.run(scenario())["done"] is True
        assert control.calls()["storage.objects.rewrite"] == 4
        assert bucket.get_blob("b/c").content_type == "text/x"


class TestCompose:
    @pytest.fixture
    def parts(self, bucket):
        blobs = [bucket.blob(name) for name in "abc"]
        for blob in blobs:
            blob.upload_from_string(blob.name * 2)
        return blobs

    def test_sources_are_put_together_in_order(self, bucket, parts):
        target = bucket.blob("all")
        target.content_type, target.metadata = "text/x", {"k": "v"}
        target.compose([parts[2], parts[0], parts[2]])
        stored = bucket.get_blob("all")
        assert stored.download_as_bytes() == b"ccaacc"
        assert (stored.content_type, stored.metadata, stored.component_count) == ("text/x", {"k": "v"}, 3)

    def test_a_composed_object_has_no_md5(self, bucket, parts):
        bucket.blob("all").compose(parts)
        stored = bucket.get_blob("all")
        assert (stored.md5_hash, bool(stored.crc32c)) == (None, True)

    def test_an_object_can_be_appended_to_itself(self, bucket, parts):
        parts[0].compose(parts, if_generation_match=parts[0].generation)
        assert bucket.blob("a").download_as_bytes() == b"aabbcc"

    def test_32_sources_are_the_most(self, bucket, parts):
        bucket.blob("all").compose([parts[0]] * 32)
        with pytest.raises(BadRequest):
            bucket.blob("all").compose([parts[0]] * 33)

    def test_no_source_is_too_few(self, http, bucket):
        assert http.post("/storage/v1/b/tasks/o/all/compose", json={"sourceObjects": []}).status_code == 400

    def test_an_overwrite_can_be_refused(self, bucket, parts):
        with pytest.raises(PreconditionFailed):
            parts[0].compose(parts[1:], if_generation_match=0)

    def test_a_source_must_have_the_generation_that_is_asked_for(self, bucket, parts):
        wanted = [parts[0].generation, 1]
        with pytest.raises(PreconditionFailed):
            bucket.blob("all").compose(parts[:2], if_source_generation_match=wanted)
        parts[1] = bucket.blob("b", generation=1)
        with pytest.raises(NotFound):
            bucket.blob("all").compose(parts)

    def test_a_missing_source_is_not_found(self, bucket, parts):
        with pytest.raises(NotFound):
            bucket.blob("all").compose([bucket.blob("missing")])

    def test_the_asynchronous_client_can_compose(self, standin, bucket, parts):
        async def scenario():
            async with Storage(api_root=standin.url) as client:
                return await client.compose("tasks", "all", ["a", "b"], content_type="text/x")

        assert asyncio.run(scenario())["size"] == "4"
