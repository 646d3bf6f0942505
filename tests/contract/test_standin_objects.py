"""Metadata, preconditions and deletions in the stand-in Cloud Storage are as in the service."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from google.api_core.exceptions import NotFound, PreconditionFailed


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
