"""Uploads and downloads of the stand-in Cloud Storage work with real clients."""

import base64
import gzip
import hashlib
import io

import pytest
from google.api_core.exceptions import NotFound, PreconditionFailed, RequestRangeNotSatisfiable
from google.api_core.retry import Retry
from google.cloud.storage.exceptions import DataCorruption

KIB_256 = 256 * 1024

AT_ONCE = Retry(initial=0.001, maximum=0.002)


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
