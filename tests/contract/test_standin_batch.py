"""Batches of the stand-in Cloud Storage answer each call by itself."""

import pytest
from answers import names, statuses
from google.api_core.exceptions import BadRequest


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


class TestListsInABatch:
    def test_the_client_can_ask_for_many_lists_at_once(self, gcs, control, soft):
        control.seed_objects("tasks", ["a/1", "a/2", "b/1"])
        soft.delete_blob("b/1")
        asked = [
            {"prefix": "a/"},
            {"prefix": "b/"},
            {"softDeleted": "true", "fields": "items(name)"},
            {"maxResults": 1},
        ]
        control.reset_counters()
        with gcs.batch(raise_exception=False) as batch:
            for query in asked:
                gcs._get_resource(f"{soft.path}/o", query_params=query)
        answers = [response.json() for response in batch._responses]
        assert [[item["name"] for item in answer.get("items", [])] for answer in answers] == [
            ["a/1", "a/2"],
            [],
            ["b/1"],
            ["a/1"],
        ]
        assert "nextPageToken" in answers[3]
        assert (control.requests(), control.calls()["storage.objects.list"]) == (1, 4)

    def test_a_list_of_a_missing_bucket_fails_alone(self, gcs, soft):
        with gcs.batch(raise_exception=False) as batch:
            gcs._get_resource("/b/missing/o", query_params={"prefix": "a/"})
            gcs._get_resource("/b/tasks/o", query_params={"prefix": "a b/é"})
        assert [response.status_code for response in batch._responses] == [404, 200]
