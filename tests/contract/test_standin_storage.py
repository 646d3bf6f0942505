"""The stand-in Cloud Storage behaves towards real clients as the service does."""

import asyncio
import base64
import gzip
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from urllib.parse import quote

import aiohttp
import pytest
from gcloud.aio.storage import Storage
from google.api_core.exceptions import (
    BadRequest,
    Conflict,
    MethodNotImplemented,
    NotFound,
    PreconditionFailed,
    RequestRangeNotSatisfiable,
)
from google.api_core.retry import Retry
from google.cloud.storage.exceptions import DataCorruption

KIB_256 = 256 * 1024
AT_ONCE = Retry(initial=0.001, maximum=0.002)
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


def statuses(batch):
    return [response.status_code for response in batch._responses]


def names(blobs):
    return [blob.name for blob in blobs]


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


class TestUploads:
    @pytest.mark.parametrize("content", [b"", b"x", b"\r\n", b"\n\n--\r\n--x\r\n\r\n", bytes(range(256)) * 40])
    def test_what_was_uploaded_comes_back_byte_for_byte(self, bucket, content):
        bucket.blob("a").upload_from_string(content, content_type="text/x-test")
        blob = bucket.get_blob("a")
        assert (blob.download_as_bytes(), blob.size, blob.content_type) == (content, len(content), "text/x-test")

    def test_metadata_comes_with_a_multipart_upload(self, bucket):
        blob = bucket.blob("a")
        blob.metadata, blob.cache_control = {"key": "välue"}, "no-store"
        blob.upload_from_string(b"x")
        stored = bucket.get_blob("a")
        assert (stored.metadata, stored.cache_control) == ({"key": "välue"}, "no-store")

    def test_a_simple_upload_takes_the_bytes_as_they_are(self, http, bucket):
        answer = http.post(
            "/upload/storage/v1/b/tasks/o?uploadType=media&name=a%2Fb",
            data=b"--x\r\n",
            headers={"Content-Type": "text/plain"},
        )
        assert answer.json()["name"] == "a/b"
        assert bucket.blob("a/b").download_as_bytes() == b"--x\r\n"

    def test_an_upload_without_a_name_is_refused(self, http, bucket):
        assert http.post("/upload/storage/v1/b/tasks/o?uploadType=media", data=b"x").status_code == 400

    def test_an_upload_of_an_unknown_type_is_refused(self, http, bucket):
        assert http.post("/upload/storage/v1/b/tasks/o?uploadType=other&name=a", data=b"x").status_code == 400

    def test_a_large_upload_goes_through_in_chunks(self, control, bucket):
        content = bytes(range(256)) * 4 * 1024 * 9 + b"end"
        blob = bucket.blob("large", chunk_size=8 * KIB_256)
        blob.upload_from_file(io.BytesIO(content), content_type="text/plain")
        assert bucket.blob("large").download_as_bytes() == content
        assert control.calls()["storage.uploads.put"] == 5

    def test_an_upload_of_unknown_size_goes_through_in_chunks(self, bucket):
        with bucket.blob("stream").open("wb", chunk_size=KIB_256) as stream:
            for _ in range(5):
                stream.write(b"y" * 200_000)
        assert bucket.blob("stream").download_as_bytes() == b"y" * 1_000_000

    def test_an_upload_whose_last_chunk_is_a_whole_one_is_complete(self, bucket):
        content = b"x" * 2 * KIB_256
        bucket.blob("even", chunk_size=KIB_256).upload_from_file(io.BytesIO(content), size=len(content))
        assert bucket.get_blob("even").size == len(content)

    def test_an_empty_file_goes_through_the_resumable_way_too(self, http, bucket):
        url = self.start(http)
        assert self.put(http, url, b"", "*/0").json()["size"] == "0"

    def test_a_client_recovers_when_the_answer_to_a_chunk_is_lost(self, control, bucket):
        content = bytes(range(256)) * 4096
        control.add_fault("storage.uploads.put", "status", status=503, after=True, times=1)
        blob = bucket.blob("large", chunk_size=KIB_256)
        blob.upload_from_file(io.BytesIO(content), size=len(content), retry=AT_ONCE)
        assert bucket.blob("large").download_as_bytes() == content

    def start(self, http, **headers):
        answer = http.post(
            "/upload/storage/v1/b/tasks/o?uploadType=resumable&name=a", json={"contentType": "text/x"}, headers=headers
        )
        return answer.headers["Location"]

    def put(self, http, url, data, span):
        return http.put(url, data=data, headers={"Content-Range": f"bytes {span}"})

    def test_a_resumable_upload_tells_how_far_it_has_come(self, http, bucket):
        url = self.start(http)
        assert "Range" not in self.put(http, url, b"", "*/*").headers
        first = self.put(http, url, b"x" * KIB_256, f"0-{KIB_256 - 1}/*")
        asked = self.put(http, url, b"", "*/*")
        assert (first.status_code, asked.status_code) == (308, 308)
        assert first.headers["Range"] == asked.headers["Range"] == f"bytes=0-{KIB_256 - 1}"

    def test_an_object_exists_only_after_the_last_chunk(self, http, bucket):
        url = self.start(http)
        self.put(http, url, b"x" * KIB_256, f"0-{KIB_256 - 1}/{KIB_256 + 1}")
        assert bucket.get_blob("a") is None
        assert self.put(http, url, b"x", f"{KIB_256}-{KIB_256}/{KIB_256 + 1}").json()["contentType"] == "text/x"
        assert bucket.get_blob("a").size == KIB_256 + 1

    def test_of_a_chunk_only_whole_256_kib_are_kept(self, http, bucket):
        url = self.start(http)
        assert self.put(http, url, b"x" * (KIB_256 + 5), f"0-{KIB_256 + 4}/*").headers["Range"] == (
            f"bytes=0-{KIB_256 - 1}"
        )

    def test_a_chunk_may_be_sent_again(self, http, bucket):
        url = self.start(http)
        self.put(http, url, b"x" * KIB_256, f"0-{KIB_256 - 1}/*")
        self.put(http, url, b"x" * KIB_256 + b"y", f"0-{KIB_256}/{KIB_256 + 1}")
        assert bucket.blob("a").download_as_bytes() == b"x" * KIB_256 + b"y"

    def test_a_chunk_that_leaves_a_gap_is_refused(self, http, bucket):
        assert self.put(http, self.start(http), b"x", "5-5/6").status_code == 400

    def test_a_finished_upload_answers_with_its_object_again(self, http, bucket):
        url = self.start(http)
        first, again = self.put(http, url, b"x", "0-0/1"), self.put(http, url, b"", "*/1")
        assert first.json()["generation"] == again.json()["generation"]
        assert again.status_code == 200

    def test_a_cancelled_upload_is_gone(self, http, bucket):
        url = self.start(http)
        assert http.delete(url).status_code == 499
        assert self.put(http, url, b"x", "0-0/1").status_code == 404

    def test_a_resumable_upload_obeys_its_condition_at_the_end_too(self, http, bucket):
        path = "/upload/storage/v1/b/tasks/o?uploadType=resumable&name=a&ifGenerationMatch=0"
        url = http.post(path).headers["Location"]
        bucket.blob("a").upload_from_string(b"winner")
        assert http.put(url, data=b"late").status_code == 412
        assert http.post(path).status_code == 412

    def test_bytes_that_do_not_match_their_checksum_are_refused(self, http, bucket):
        wrong = {"X-Goog-Hash": "md5=" + base64.b64encode(hashlib.md5(b"y").digest()).decode()}
        path = "/upload/storage/v1/b/tasks/o?uploadType=media&name=a"
        assert http.post(path, data=b"x", headers=wrong).status_code == 400
        assert bucket.get_blob("a") is None

    @pytest.mark.parametrize("checksum", ["md5", "crc32c", "auto"])
    def test_the_client_agrees_on_checksums(self, bucket, checksum):
        bucket.blob("a").upload_from_string(b"content", checksum=checksum)
        assert bucket.blob("a").download_as_bytes(checksum=checksum) == b"content"


class TestDownloads:
    @pytest.mark.parametrize(("start", "end", "expected"), [(2, 4, b"234"), (7, None, b"789"), (8, 99, b"89")])
    def test_a_range_can_be_read(self, bucket, start, end, expected):
        bucket.blob("a").upload_from_string(b"0123456789")
        assert bucket.blob("a").download_as_bytes(start=start, end=end) == expected

    def test_the_last_bytes_can_be_read(self, bucket):
        bucket.blob("a").upload_from_string(b"0123456789")
        assert bucket.blob("a").download_as_bytes(start=-3) == b"789"

    def test_a_range_behind_the_end_cannot_be_read(self, bucket):
        bucket.blob("a").upload_from_string(b"0123456789")
        with pytest.raises(RequestRangeNotSatisfiable):
            bucket.blob("a").download_as_bytes(start=10)

    def test_a_download_in_chunks_is_put_together(self, control, bucket):
        content = b"0123456789" * 60_000
        bucket.blob("a").upload_from_string(content)
        assert bucket.blob("a", chunk_size=KIB_256).download_as_bytes() == content
        assert control.calls()["storage.objects.get"] == 3

    def test_a_download_follows_the_media_link(self, bucket):
        bucket.blob("a b").upload_from_string(b"x")
        blob = bucket.get_blob("a b")
        assert blob.media_link.endswith(f"a%20b?generation={blob.generation}&alt=media")
        assert blob.download_as_bytes() == b"x"

    def test_only_the_live_generation_can_be_downloaded(self, bucket):
        bucket.blob("a").upload_from_string(b"old")
        old = bucket.get_blob("a").generation
        bucket.blob("a").upload_from_string(b"new")
        with pytest.raises(NotFound):
            bucket.blob("a", generation=old).download_as_bytes()

    def test_a_download_of_another_generation_is_refused(self, bucket):
        bucket.blob("a").upload_from_string(b"x")
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").download_as_bytes(if_generation_match=1)

    def test_bytes_that_were_damaged_under_way_are_noticed(self, standin, bucket):
        bucket.blob("a").upload_from_string(b"x")
        stored = standin.state.buckets.bucket("tasks").live("a")
        assert stored.content.crc32c
        stored.content.data = b"y"
        with pytest.raises(DataCorruption):
            bucket.blob("a").download_as_bytes()

    def test_media_can_be_read_by_public_path(self, http, bucket):
        bucket.blob("a/b c").upload_from_string(b"x", content_type="text/plain")
        assert http.get("/tasks/a/b%20c").content == b"x"

    def test_media_headers_can_be_read_without_the_media(self, http, bucket):
        bucket.blob("a").upload_from_string(b"xyz")
        answer = http.head("/tasks/a")
        assert (answer.content, answer.headers["Content-Length"]) == (b"", "3")
        assert answer.headers["X-Goog-Generation"] == str(bucket.get_blob("a").generation)

    def test_compressed_media_is_unpacked_for_who_cannot_read_it(self, http, bucket):
        blob = bucket.blob("a")
        blob.content_encoding = "gzip"
        blob.upload_from_string(gzip.compress(b"text"))
        path = "/storage/v1/b/tasks/o/a?alt=media"
        plain = http.get(path, headers={"Accept-Encoding": "identity"})
        packed = http.get(path, headers={"Accept-Encoding": "gzip"}, stream=True)
        assert (plain.content, "Content-Encoding" in plain.headers) == (b"text", False)
        assert gzip.decompress(packed.raw.read(decode_content=False)) == b"text"


class TestMetadata:
    def test_an_object_shows_what_it_is(self, http, control, bucket):
        control.set_clock(1_700_000_000)
        bucket.blob("a/b").upload_from_string(b"hello", content_type="text/plain")
        shown = http.get("/storage/v1/b/tasks/o/a%2Fb").json()
        assert shown == {
            "kind": "storage#object",
            "id": f"tasks/a/b/{shown['generation']}",
            "selfLink": f"{http.url}/storage/v1/b/tasks/o/a%2Fb",
            "mediaLink": f"{http.url}/download/storage/v1/b/tasks/o/a%2Fb?generation={shown['generation']}&alt=media",
            "name": "a/b",
            "bucket": "tasks",
            "generation": shown["generation"],
            "metageneration": "1",
            "size": "5",
            "md5Hash": "XUFAKrxLKna5cZ2REBfFkg==",
            "crc32c": "mnG7TA==",
            "etag": shown["etag"],
            "contentType": "text/plain",
            "storageClass": "STANDARD",
            "timeCreated": shown["timeCreated"],
            "timeFinalized": shown["timeCreated"],
            "timeStorageClassUpdated": shown["timeCreated"],
            "updated": shown["timeCreated"],
        }
        assert shown["timeCreated"].startswith("2023-11-14T22:13:20.")

    def test_a_generation_is_about_the_microsecond_of_its_creation(self, control, bucket):
        now = control.set_clock(2_000_000_000)
        bucket.blob("a").upload_from_string(b"x")
        assert 0 <= bucket.get_blob("a").generation - now * 1_000_000 < 60_000_000

    def test_generations_grow_even_when_the_clock_goes_back(self, control, bucket):
        blob = bucket.blob("a")
        blob.upload_from_string(b"x")
        first = blob.generation
        control.advance(-3600)
        blob.upload_from_string(b"x")
        assert blob.generation > first

    def test_a_missing_object_is_not_found(self, bucket):
        assert bucket.get_blob("missing") is None

    def test_an_error_has_googles_form(self, http, bucket):
        answer = http.get("/storage/v1/b/tasks/o/missing")
        message = "No such object: tasks/missing"
        entry = {"message": message, "domain": "global", "reason": "notFound"}
        assert answer.status_code == 404
        assert answer.json() == {"error": {"code": 404, "message": message, "errors": [entry]}}

    def test_only_the_selected_fields_are_shown(self, http, bucket):
        blob = bucket.blob("a")
        blob.metadata = {"x": "1", "y": "2"}
        blob.upload_from_string(b"x")
        answer = http.get("/storage/v1/b/tasks/o/a?fields=name,metadata/x")
        assert answer.json() == {"name": "a", "metadata": {"x": "1"}}

    @pytest.mark.parametrize("fields", ["nonsense", "name,", "name(", "items(name)", "(name)", "name)"])
    def test_a_selection_of_what_does_not_exist_is_refused(self, http, bucket, fields):
        bucket.blob("a").upload_from_string(b"x")
        assert http.get("/storage/v1/b/tasks/o/a", params={"fields": fields}).status_code == 400

    def test_a_patch_merges_metadata_key_by_key(self, bucket):
        blob = bucket.blob("a")
        blob.metadata = {"keep": "1", "drop": "2"}
        blob.upload_from_string(b"x")
        blob = bucket.blob("a")
        blob.metadata = {"drop": None, "new": "3"}
        blob.patch()
        assert bucket.get_blob("a").metadata == {"keep": "1", "new": "3"}

    def test_a_patch_keeps_the_generation_and_raises_the_metageneration(self, control, bucket):
        blob = bucket.blob("a")
        blob.upload_from_string(b"x")
        created, generation = blob.time_created, blob.generation
        control.advance(60)
        blob.content_type = "text/other"
        blob.patch()
        blob.reload()
        assert (blob.generation, blob.metageneration, blob.time_created) == (generation, 2, created)
        assert (blob.updated - created).total_seconds() >= 60

    def test_an_update_replaces_all_metadata(self, bucket):
        blob = bucket.blob("a")
        blob.metadata, blob.cache_control = {"old": "1"}, "no-store"
        blob.upload_from_string(b"x", content_type="text/plain")
        fresh = bucket.blob("a")
        fresh.metadata = {"new": "2"}
        fresh.update()
        stored = bucket.get_blob("a")
        assert (stored.metadata, stored.cache_control, stored.content_type) == ({"new": "2"}, None, None)

    @pytest.mark.parametrize("condition", ["if_generation_match", "if_metageneration_match"])
    def test_a_patch_whose_condition_does_not_hold_changes_nothing(self, bucket, condition):
        bucket.blob("a").upload_from_string(b"x")
        blob = bucket.blob("a")
        blob.metadata = {"k": "v"}
        with pytest.raises(PreconditionFailed):
            blob.patch(**{condition: 7})
        assert bucket.get_blob("a").metadata is None

    def test_a_patch_of_a_copy_leaves_the_source_alone(self, bucket):
        source = bucket.blob("a")
        source.metadata = {"k": "v"}
        source.upload_from_string(b"x")
        copy = bucket.copy_blob(source, bucket, "b")
        copy.metadata = {"k": "changed"}
        copy.patch()
        assert bucket.get_blob("a").metadata == {"k": "v"}


class TestLists:
    def test_a_prefix_selects(self, control, gcs):
        control.seed_objects("tasks", ["a", "p/", "p/a", "p/b", "pa", "q"])
        assert names(gcs.list_blobs("tasks", prefix="p/")) == ["p/", "p/a", "p/b"]

    def test_a_delimiter_rolls_folders_up(self, control, gcs):
        control.seed_objects("tasks", ["a", "d/a", "d/b/c", "e/", "f"])
        found = gcs.list_blobs("tasks", delimiter="/")
        assert names(found) == ["a", "f"]
        assert found.prefixes == {"d/", "e/"}

    def test_a_delimiter_counts_from_the_prefix_on(self, control, gcs):
        control.seed_objects("tasks", ["d/a", "d/b/c", "d/b/d", "d/e"])
        found = gcs.list_blobs("tasks", prefix="d/", delimiter="/")
        assert names(found) == ["d/a", "d/e"]
        assert found.prefixes == {"d/b/"}

    def test_a_folders_own_object_is_listed_when_asked_for(self, control, gcs):
        control.seed_objects("tasks", ["d/", "d/a"])
        found = gcs.list_blobs("tasks", delimiter="/", include_trailing_delimiter=True)
        assert (names(found), found.prefixes) == (["d/"], {"d/"})

    def test_offsets_cut_the_list(self, control, gcs):
        control.seed_objects("tasks", list("abcdef"))
        assert names(gcs.list_blobs("tasks", start_offset="b", end_offset="e")) == ["b", "c", "d"]

    def test_a_page_has_at_most_1000_entries(self, http, control):
        control.seed_objects("tasks", [f"{n:04d}" for n in range(1500)])
        first = http.get("/storage/v1/b/tasks/o?maxResults=5000").json()
        rest = http.get("/storage/v1/b/tasks/o", params={"pageToken": first["nextPageToken"]}).json()
        assert (len(first["items"]), len(rest["items"]), "nextPageToken" in rest) == (1000, 500, False)

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
    @pytest.mark.parametrize("delimiter", [None, "/"])
    def test_pages_leave_nothing_out_and_show_nothing_twice(self, control, gcs, size, delimiter):
        control.seed_objects("tasks", ["a", "b/1", "b/2", "c", "d/1"])
        pages = list(gcs.list_blobs("tasks", page_size=size, delimiter=delimiter).pages)
        seen = [blob.name for page in pages for blob in page] + [name for page in pages for name in page.prefixes]
        assert sorted(seen) == (["a", "b/", "c", "d/"] if delimiter else ["a", "b/1", "b/2", "c", "d/1"])
        assert all(page.num_items + len(page.prefixes) <= size for page in pages)

    def test_a_list_goes_on_after_its_place_was_deleted(self, control, gcs, bucket):
        control.seed_objects("tasks", list("abcdef"))
        pages = gcs.list_blobs("tasks", page_size=2).pages
        first = names(next(pages))
        for name in "bcd":
            bucket.delete_blob(name)
        assert first + [name for page in pages for name in names(page)] == ["a", "b", "e", "f"]

    def test_a_list_shows_what_was_written_between_its_pages(self, control, gcs):
        control.seed_objects("tasks", ["a", "b", "d", "d/1"])
        pages = gcs.list_blobs("tasks", page_size=2).pages
        first = names(next(pages))
        control.seed_objects("tasks", ["c", "aa"])
        assert first + [name for page in pages for name in names(page)] == ["a", "b", "c", "d", "d/1"]

    def test_a_list_goes_on_after_any_folder(self, control, gcs):
        folders = ["a\ud7ff", "b\U0010ffff", "c"]
        control.seed_objects("tasks", [f"{folder}x" for folder in folders])
        pages = [set(page.prefixes) for page in gcs.list_blobs("tasks", page_size=1, delimiter="x").pages]
        assert pages == [{f"{folder}x"} for folder in folders]

    @pytest.mark.parametrize("many", [3, 500])
    def test_a_list_shows_what_was_just_written_and_not_what_was_just_deleted(self, control, gcs, bucket, many):
        control.seed_objects("tasks", [f"a{n:03d}" for n in range(many)])
        assert len(names(gcs.list_blobs("tasks"))) == many
        control.seed_objects("tasks", [f"b{n:03d}" for n in range(many)])
        bucket.delete_blob("a001")
        bucket.delete_blob("b001")
        bucket.delete_blob("a002")
        control.seed_objects("tasks", ["a002"])
        expected = [f"{x}{n:03d}" for x in "ab" for n in range(many) if n != 1]
        assert names(gcs.list_blobs("tasks")) == expected

    def test_a_selection_reaches_into_the_items(self, http, control):
        control.seed_objects("tasks", [{"name": "a", "metadata": {"x": "1", "y": "2"}}, {"name": "b"}])
        fields = "items(name,size,metadata/x),nextPageToken"
        answer = http.get("/storage/v1/b/tasks/o", params={"fields": fields, "maxResults": 1}).json()
        assert answer["items"] == [{"name": "a", "size": "0", "metadata": {"x": "1"}}]
        assert set(answer) == {"items", "nextPageToken"}

    def test_a_selection_without_items_shows_none(self, http, control):
        control.seed_objects("tasks", ["a", "d/b"])
        answer = http.get("/storage/v1/b/tasks/o?fields=prefixes,nextPageToken&delimiter=/").json()
        assert answer == {"prefixes": ["d/"]}

    def test_a_selection_of_an_unknown_item_field_is_refused(self, http, bucket):
        assert http.get("/storage/v1/b/tasks/o?fields=items(name,nonsense)").status_code == 400

    def test_an_empty_list_has_no_items(self, http, bucket):
        assert http.get("/storage/v1/b/tasks/o").json() == {"kind": "storage#objects"}

    @pytest.mark.parametrize("query", ["pageToken=%21", "maxResults=x", "maxResults=-1"])
    def test_a_bad_parameter_is_refused(self, http, bucket, query):
        assert http.get(f"/storage/v1/b/tasks/o?{query}").status_code == 400

    def test_all_versions_are_the_live_ones_where_there_is_no_versioning(self, control, gcs):
        control.seed_objects("tasks", ["a", "a"])
        assert names(gcs.list_blobs("tasks", versions=True)) == ["a"]

    def test_what_the_standin_cannot_list_is_refused_instead_of_ignored(self, gcs, bucket):
        with pytest.raises(MethodNotImplemented):
            list(gcs.list_blobs("tasks", match_glob="*", retry=None))


class TestConditions:
    def test_generation_0_means_that_nothing_is_there(self, bucket):
        bucket.blob("a").upload_from_string(b"x", if_generation_match=0)
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").upload_from_string(b"y", if_generation_match=0)
        assert bucket.blob("a").download_as_bytes() == b"x"

    def test_an_overwrite_of_the_expected_generation_succeeds_once(self, bucket):
        blob = bucket.blob("a")
        blob.upload_from_string(b"x")
        seen = blob.generation
        bucket.blob("a").upload_from_string(b"y", if_generation_match=seen)
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").upload_from_string(b"z", if_generation_match=seen)

    @pytest.mark.parametrize(
        "condition", ["ifGenerationMatch", "ifGenerationNotMatch", "ifMetagenerationMatch", "ifMetagenerationNotMatch"]
    )
    def test_a_write_with_a_condition_on_what_is_not_there_is_refused(self, http, bucket, condition):
        path = f"/upload/storage/v1/b/tasks/o?uploadType=media&name=a&{condition}=5"
        answer = http.post(path, data=b"x")
        assert (answer.status_code, answer.json()["error"]["errors"][0]["reason"]) == (412, "conditionNotMet")

    def test_a_write_over_exactly_what_it_must_not_match_is_refused(self, http, bucket):
        blob = bucket.blob("a")
        blob.upload_from_string(b"x")
        path = "/upload/storage/v1/b/tasks/o?uploadType=media&name=a"
        assert http.post(f"{path}&ifGenerationNotMatch={blob.generation}", data=b"y").status_code == 412
        assert http.post(f"{path}&ifMetagenerationNotMatch=1", data=b"y").status_code == 412
        assert http.post(f"{path}&ifMetagenerationNotMatch=2", data=b"y").status_code == 200

    def test_not_generation_0_means_that_something_must_be_there(self, bucket):
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").upload_from_string(b"x", if_generation_not_match=0)
        bucket.blob("a").upload_from_string(b"x")
        bucket.blob("a").upload_from_string(b"y", if_generation_not_match=0)

    @pytest.mark.parametrize("media", ["", "&alt=media"])
    def test_a_read_of_what_the_reader_has_is_not_modified(self, http, bucket, media):
        blob = bucket.blob("a")
        blob.upload_from_string(b"x")
        answer = http.get(f"/storage/v1/b/tasks/o/a?ifGenerationNotMatch={blob.generation}{media}")
        assert (answer.status_code, answer.content) == (304, b"")
        assert http.get(f"/storage/v1/b/tasks/o/a?ifMetagenerationNotMatch=1{media}").status_code == 304
        assert http.get(f"/storage/v1/b/tasks/o/a?ifGenerationNotMatch=1{media}").status_code == 200

    def test_a_read_of_another_generation_is_refused(self, http, bucket):
        bucket.blob("a").upload_from_string(b"x")
        assert http.get("/storage/v1/b/tasks/o/a?ifGenerationMatch=1").status_code == 412
        assert http.get("/storage/v1/b/tasks/o/a?ifMetagenerationMatch=2").status_code == 412
        assert http.get("/storage/v1/b/tasks/o/a?ifMetagenerationMatch=1").status_code == 200

    def test_a_condition_that_is_no_number_is_refused(self, http, bucket):
        assert http.get("/storage/v1/b/tasks/o/a?ifGenerationMatch=x").status_code == 400

    def test_only_one_of_many_racing_creators_wins(self, bucket):
        def create(number):
            try:
                bucket.blob("a").upload_from_string(str(number), if_generation_match=0)
            except PreconditionFailed:
                return None
            return number

        with ThreadPoolExecutor(16) as pool:
            winners = [number for number in pool.map(create, range(16)) if number is not None]
        assert len(winners) == 1
        assert bucket.blob("a").download_as_bytes() == str(winners[0]).encode()

    def test_only_one_of_many_racing_copies_wins(self, standin, bucket):
        bucket.blob("a").upload_from_string(b"x")
        path = f"{standin.url}/storage/v1/b/tasks/o/a/copyTo/b/tasks/o/b?ifGenerationMatch=0"

        async def copy(session):
            async with session.post(path) as answer:
                return answer.status

        async def race():
            async with aiohttp.ClientSession() as session:
                return await asyncio.gather(*(copy(session) for _ in range(50)))

        assert sorted(asyncio.run(race())) == [200] + [412] * 49

    def test_only_one_of_many_racing_deletes_wins(self, bucket):
        blob = bucket.blob("a")
        blob.upload_from_string(b"x")

        def delete(_):
            try:
                bucket.delete_blob("a", if_generation_match=blob.generation)
            except NotFound:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(delete, range(8))) == 1


class TestDeletes:
    def test_a_deleted_object_is_gone(self, bucket):
        bucket.blob("a").upload_from_string(b"x")
        bucket.delete_blob("a")
        assert bucket.get_blob("a") is None

    def test_a_missing_object_cannot_be_deleted(self, bucket):
        with pytest.raises(NotFound):
            bucket.delete_blob("a")
        with pytest.raises(NotFound):
            bucket.delete_blob("a", if_generation_match=5)

    def test_another_generation_is_not_deleted(self, bucket):
        bucket.blob("a").upload_from_string(b"x")
        with pytest.raises(PreconditionFailed):
            bucket.delete_blob("a", if_generation_match=5)
        with pytest.raises(NotFound):
            bucket.delete_blob("a", generation=5)
        assert bucket.get_blob("a") is not None

    def test_exactly_the_named_generation_is_deleted(self, bucket):
        blob = bucket.blob("a")
        blob.upload_from_string(b"x")
        bucket.delete_blob("a", generation=blob.generation)
        assert bucket.get_blob("a") is None


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


class TestBatches:
    def raw(self, http, body, boundary="x"):
        headers = {"Content-Type": f'multipart/mixed; boundary="{boundary}"'}
        return http.post("/batch/storage/v1", data=body, headers=headers)

    def part(self, line, headers="", body=""):
        return f"--x\r\nContent-Type: application/http\r\n{headers}\r\n{line}\r\n\r\n{body}\r\n"

    def test_100_calls_go_through_in_one_request(self, gcs, control, bucket):
        seeded = control.seed_objects("tasks", [f"{n:03d}" for n in range(100)])
        control.reset_counters()
        with gcs.batch(raise_exception=False) as batch:
            for n, generation in enumerate(seeded):
                source = bucket.blob(f"{n:03d}")
                bucket.copy_blob(
                    source, bucket, f"copy/{n:03d}", if_generation_match=0, if_source_generation_match=generation
                )
        assert statuses(batch) == [200] * 100
        assert control.requests() == 1
        assert control.calls() == {"storage.batch": 1, "storage.objects.copy": 100}

    def test_more_than_100_calls_are_refused(self, gcs, control, bucket):
        control.seed_objects("tasks", [f"{n:03d}" for n in range(101)])
        with pytest.raises(BadRequest), gcs.batch():
            for n in range(101):
                bucket.delete_blob(f"{n:03d}")
        assert len(names(bucket.list_blobs())) == 101

    def test_every_part_has_its_own_answer(self, gcs, bucket):
        bucket.blob("a").upload_from_string(b"x")
        bucket.blob("b").upload_from_string(b"x")
        with gcs.batch(raise_exception=False) as batch:
            bucket.copy_blob(bucket.blob("a"), bucket, "b", if_generation_match=0)
            bucket.copy_blob(bucket.blob("missing"), bucket, "c")
            bucket.copy_blob(bucket.blob("a"), bucket, "d")
            bucket.delete_blob("a")
            bucket.delete_blob("a")
        assert statuses(batch) == [412, 404, 200, 204, 404]
        assert batch._responses[0].json()["error"]["errors"][0]["reason"] == "conditionNotMet"
        assert batch._responses[2].json()["name"] == "d"

    def test_metadata_can_be_patched_in_a_batch(self, gcs, bucket):
        bucket.blob("a").upload_from_string(b"x")
        with gcs.batch():
            blob = bucket.blob("a")
            blob.metadata = {"k": "vä"}
            blob.patch(if_metageneration_match=1)
        assert bucket.get_blob("a").metadata == {"k": "vä"}

    def test_a_part_is_answered_under_its_own_id(self, http, bucket):
        line = "GET /storage/v1/b/tasks HTTP/1.1"
        body = self.part(line, "Content-ID: <abc+1>\r\n") + self.part(line) + "--x--"
        answer = self.raw(http, body)
        assert answer.headers["Content-Type"].startswith("multipart/mixed; boundary=")
        assert answer.text.count("Content-ID: <response-abc+1>") == 1
        assert answer.text.count("HTTP/1.1 200 OK") == 2

    def test_absolute_urls_and_plain_line_ends_are_understood(self, http, bucket):
        body = self.part(f"GET {http.url}/storage/v1/b/tasks HTTP/1.1") + "--x--"
        assert "HTTP/1.1 200 OK" in self.raw(http, body.replace("\r\n", "\n")).text

    def test_media_cannot_be_part_of_a_batch(self, http, bucket):
        bucket.blob("a").upload_from_string(b"x")
        body = self.part("GET /storage/v1/b/tasks/o/a?alt=media HTTP/1.1")
        body += self.part("POST /upload/storage/v1/b/tasks/o?uploadType=media&name=b HTTP/1.1", body="x")
        assert self.raw(http, body + "--x--").text.count("HTTP/1.1 400 Bad Request") == 2
        assert names(bucket.list_blobs()) == ["a"]

    def test_an_unknown_call_in_a_batch_is_not_found(self, http):
        assert "HTTP/1.1 404 Not Found" in self.raw(http, self.part("GET /nonsense HTTP/1.1") + "--x--").text

    def test_a_list_can_be_part_of_a_batch(self, http, control):
        control.seed_objects("tasks", ["a"])
        text = self.raw(http, self.part("GET /storage/v1/b/tasks/o?fields=items/name HTTP/1.1") + "--x--").text
        assert '{"items":[{"name":"a"}]}' in text

    @pytest.mark.parametrize("body", ["", "nonsense", "--x--", "--x\r\nContent-Type: application/http\r\n\r\n--x--"])
    def test_what_is_not_a_batch_is_refused(self, http, body):
        assert self.raw(http, body).status_code == 400

    def test_a_batch_without_a_boundary_is_refused(self, http):
        assert http.post("/batch/storage/v1", json={}).status_code == 400


class TestAsynchronousClient:
    def run(self, standin, scenario):
        async def main():
            async with Storage(api_root=standin.url) as client:
                return await scenario(client)

        return asyncio.run(main())

    def test_an_upload_with_metadata_comes_back(self, standin, bucket):
        async def scenario(client):
            await client.upload("tasks", "a", b"x\r\n", metadata={"Content-Type": "text/x", "metadata": {"k": "v"}})
            return await client.download("tasks", "a"), await client.download_metadata("tasks", "a")

        content, metadata = self.run(standin, scenario)
        assert (content, metadata["metadata"]) == (b"x\r\n", {"k": "v"})

    def test_a_resumable_upload_comes_back(self, standin, bucket):
        content = bytes(range(256)) * 1000

        async def scenario(client):
            await client.upload("tasks", "a", content, force_resumable_upload=True)
            return await client.download("tasks", "a")

        assert self.run(standin, scenario) == content

    def test_a_zipped_upload_is_read_unzipped(self, standin, bucket):
        async def scenario(client):
            await client.upload("tasks", "a", b"text" * 100, zipped=True)
            return await client.download("tasks", "a")

        assert self.run(standin, scenario) == b"text" * 100

    def test_metadata_can_be_patched(self, standin, bucket):
        bucket.blob("a").upload_from_string(b"x")

        async def scenario(client):
            return await client.patch_metadata("tasks", "a", {"metadata": {"k": "v"}})

        assert self.run(standin, scenario)["metageneration"] == "2"

    def test_a_condition_that_does_not_hold_is_a_412(self, standin, bucket):
        bucket.blob("a").upload_from_string(b"x")

        async def scenario(client):
            await client.upload("tasks", "a", b"y", parameters={"ifGenerationMatch": "0"})

        with pytest.raises(aiohttp.ClientResponseError) as refused:
            self.run(standin, scenario)
        assert refused.value.status == 412

    def test_a_range_can_be_read(self, standin, bucket):
        bucket.blob("a").upload_from_string(b"0123456789")

        async def scenario(client):
            return await client.download("tasks", "a", headers={"Range": "bytes=2-4"})

        assert self.run(standin, scenario) == b"234"

    def test_lists_are_paged(self, standin, control):
        control.seed_objects("tasks", [f"{n:04d}" for n in range(1200)])

        async def scenario(client):
            first = await client.list_objects("tasks")
            rest = await client.list_objects("tasks", params={"pageToken": first["nextPageToken"]})
            return len(first["items"]), len(rest["items"])

        assert self.run(standin, scenario) == (1000, 200)


class TestHttp:
    def test_the_date_is_that_of_the_standins_clock(self, http, control, bucket):
        control.set_clock(datetime(2030, 5, 1, 12, 0, 0, 500_000, tzinfo=UTC).timestamp())
        dates = {
            http.get(path).headers["Date"]
            for path in ("/storage/v1/b/tasks", "/storage/v1/b/missing", "/nonsense", "/bigquery/v2/projects/p/jobs")
        }
        assert dates <= {f"Wed, 01 May 2030 12:00:0{n} GMT" for n in range(3)}

    def test_an_unknown_path_is_not_found(self, http):
        assert http.get("/storage/v1/nonsense").status_code == 404
        assert http.get("/storage/v1/bucket").status_code == 404

    def test_a_body_that_is_not_json_is_refused(self, http, bucket):
        bucket.blob("a").upload_from_string(b"x")
        assert http.patch("/storage/v1/b/tasks/o/a", data=b"{").status_code == 400
        assert http.patch("/storage/v1/b/tasks/o/a", data=b"[]").status_code == 400

    def test_two_names_of_1024_bytes_fit_into_one_path(self, http, control):
        name = "日" * 341
        control.seed_objects("tasks", [name])
        target = quote("本" * 341, safe="")
        answer = http.post(f"/storage/v1/b/tasks/o/{quote(name, safe='')}/copyTo/b/tasks/o/{target}")
        assert json.loads(answer.content)["name"] == "本" * 341
