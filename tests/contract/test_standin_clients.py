"""Other clients can talk to the stand-in Cloud Storage: an asynchronous one, and plain HTTP."""

import asyncio
import json
from datetime import UTC, datetime
from urllib.parse import quote

import aiohttp
import pytest
from gcloud.aio.storage import Storage


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
