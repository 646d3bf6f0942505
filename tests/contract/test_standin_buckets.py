"""Buckets and names of objects in the stand-in Cloud Storage are as in the service."""

import asyncio

import pytest
from answers import names, statuses
from gcloud.aio.storage import Storage
from google.api_core.exceptions import BadRequest, Conflict, NotFound, PreconditionFailed

STRANGE_NAMES = [
    "a/b/c",
    "a//b/",
    "/a",
    "../up",
    "a/../b",
    "./a",
    "100%",
    "%2F",
    "%252F%00",
    "a+b c",
    "a?b=c&d#e",
    "<script>alert('x')</script>",
    'quote"back\\slash',
    "tab\tand\x01control\x7f",
    "ünï/日本/🙂",
    "proj:example.com:legacy:US/example.com:legacy:ds.t$20240101--123_00001_load--dispatch",
    "o/b/copyTo/b/x/o/y",
    "x" * 1024,
    "é" * 512,
]


class TestBuckets:
    def test_a_new_bucket_can_be_read(self, gcs):
        gcs.create_bucket("tasks", location="EU")
        assert gcs.get_bucket("tasks").location == "EU"

    def test_a_taken_name_is_refused(self, gcs, bucket):
        with pytest.raises(Conflict):
            gcs.create_bucket("tasks")

    @pytest.mark.parametrize("name", ["AB", "a b", "a", "-ab", "ab-", "a" * 223])
    def test_a_bad_name_is_refused(self, http, name):
        assert http.post("/storage/v1/b?project=p", json={"name": name}).status_code == 400

    def test_buckets_are_listed_in_pages(self, gcs):
        for name in ("bb1", "aa1", "bb2", "bb3"):
            gcs.create_bucket(name)
        assert names(gcs.list_buckets(prefix="bb", page_size=2)) == ["bb1", "bb2", "bb3"]

    def test_a_bucket_of_another_project_is_not_listed(self, gcs):
        gcs.create_bucket("mine")
        gcs.create_bucket("theirs", project="other")
        assert names(gcs.list_buckets()) == ["mine"]

    def test_a_patch_merges_and_raises_the_metageneration(self, bucket):
        before = bucket.metageneration
        bucket.labels = {"team": "data"}
        bucket.patch()
        bucket.reload()
        assert (bucket.labels, bucket.metageneration) == ({"team": "data"}, before + 1)

    def test_a_patch_of_an_older_metageneration_is_refused(self, bucket):
        bucket.labels = {"team": "data"}
        with pytest.raises(PreconditionFailed):
            bucket.patch(if_metageneration_match=bucket.metageneration + 1)

    def test_an_empty_bucket_can_be_deleted(self, gcs, bucket):
        bucket.delete()
        assert gcs.lookup_bucket("tasks") is None

    def test_a_bucket_with_objects_cannot_be_deleted(self, bucket):
        bucket.blob("a").upload_from_string("x")
        with pytest.raises(Conflict):
            bucket.delete()

    def test_a_bucket_can_be_deleted_with_all_its_objects(self, gcs, bucket):
        bucket.blob("a").upload_from_string("x")
        bucket.delete(force=True)
        assert gcs.lookup_bucket("tasks") is None

    def test_nothing_is_found_in_a_bucket_that_is_missing(self, gcs):
        with pytest.raises(NotFound):
            list(gcs.list_blobs("missing"))

    def test_nothing_can_be_put_into_a_bucket_that_is_missing(self, gcs):
        with pytest.raises(NotFound):
            gcs.bucket("missing").blob("a").upload_from_string("x")


class TestNames:
    @pytest.mark.parametrize("name", STRANGE_NAMES)
    def test_a_strange_name_survives_every_call(self, gcs, bucket, name):
        blob = bucket.blob(name)
        blob.upload_from_string(b"x")
        assert names(gcs.list_blobs("tasks", prefix=name)) == [name]
        assert bucket.get_blob(name).name == name
        assert bucket.blob(name).download_as_bytes() == b"x"
        assert bucket.copy_blob(blob, bucket, "copy").size == 1
        assert bucket.copy_blob(bucket.blob("copy"), bucket, name).name == name
        bucket.delete_blob(name)
        assert names(bucket.list_blobs()) == ["copy"]

    @pytest.mark.parametrize("name", STRANGE_NAMES)
    def test_a_strange_name_survives_a_batch(self, gcs, bucket, name):
        bucket.blob("source").upload_from_string(b"x")
        with gcs.batch(raise_exception=False) as batch:
            bucket.copy_blob(bucket.blob("source"), bucket, name)
        assert statuses(batch) == [200]
        assert sorted(names(bucket.list_blobs())) == sorted(["source", name])
        with gcs.batch(raise_exception=False) as batch:
            bucket.delete_blob(name)
        assert statuses(batch) == [204]

    def test_strange_names_survive_the_asynchronous_client(self, standin, bucket):
        async def scenario():
            async with Storage(api_root=standin.url) as client:
                for name in STRANGE_NAMES:
                    await client.upload("tasks", name, name.encode())
                    assert await client.download("tasks", name) == name.encode()
                listed = await client.list_objects("tasks")
                assert sorted(item["name"] for item in listed["items"]) == sorted(STRANGE_NAMES)
                for name in STRANGE_NAMES:
                    await client.delete("tasks", name)

        asyncio.run(scenario())
        assert names(bucket.list_blobs()) == []

    @pytest.mark.parametrize("name", ["a\nb", "a\rb", "x" * 1025, "é" * 513, ".well-known/acme-challenge/x"])
    def test_a_bad_name_is_refused(self, bucket, name):
        bucket.blob("source").upload_from_string(b"x")
        with pytest.raises(BadRequest):
            bucket.blob(name).upload_from_string(b"x")
        with pytest.raises(BadRequest):
            bucket.copy_blob(bucket.blob("source"), bucket, name)
        with pytest.raises(BadRequest):
            bucket.blob(name).rewrite(bucket.blob("source"))
        with pytest.raises(BadRequest):
            bucket.blob(name).compose([bucket.blob("source")])

    def test_a_name_that_is_not_utf_8_is_refused(self, http, bucket):
        assert http.get("/storage/v1/b/tasks/o/%ff").status_code == 400

    def test_names_are_listed_in_the_order_of_their_utf_8_bytes(self, control, gcs):
        unsorted = ["z", "é", "a/b", "a", "A", "a-b", "🙂", "\uffff"]
        control.seed_objects("tasks", unsorted)
        assert names(gcs.list_blobs("tasks")) == sorted(unsorted, key=str.encode)
