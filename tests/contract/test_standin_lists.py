"""Lists of the stand-in Cloud Storage have pages, prefixes and ranges as in the service."""

import pytest
from answers import names
from google.api_core.exceptions import MethodNotImplemented


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
