"""The stand-in refuses what its caller lacks the permission for, as the services do."""

import pytest
from google.api_core.exceptions import Forbidden, PreconditionFailed

JOBS = "/bigquery/v2/projects/p/jobs"
OBJECTS = "storage.objects."


@pytest.fixture
def bucket(control, gcs):
    control.seed_objects("tasks", ["a", "b", "ops/a"])
    control.seed_objects("other", ["a"])
    return gcs.bucket("tasks")


def refused(call):
    with pytest.raises(Forbidden) as error:
        call()
    return error.value


class TestStorage:
    def test_a_refusal_is_in_googles_words(self, control, bucket):
        control.refuse("storage.objects.delete", bucket="tasks")
        error = refused(lambda: bucket.delete_blob("a"))
        message = (
            "standin@example.com does not have storage.objects.delete access to the Google Cloud Storage object."
            " Permission 'storage.objects.delete' denied on resource (or it may not exist)."
        )
        assert error.errors == [{"message": message, "domain": "global", "reason": "forbidden"}]
        assert bucket.get_blob("a") is not None

    @pytest.mark.parametrize(
        ("permission", "calls"),
        [
            (f"{OBJECTS}get", "get download public copy rewrite compose copy_over rewrite_over compose_over"),
            (
                f"{OBJECTS}create",
                "insert resumable copy rewrite compose over copy_over rewrite_over compose_over restore",
            ),
            (f"{OBJECTS}delete", "delete over copy_over rewrite_over compose_over"),
            (f"{OBJECTS}list", "list"),
            (f"{OBJECTS}update", "patch"),
            (f"{OBJECTS}restore", "restore"),
            ("storage.buckets.get", "bucket"),
            ("storage.buckets.update", "bucket_patch"),
            ("storage.buckets.delete", "bucket_delete"),
            ("storage.buckets.create", "bucket_insert"),
            ("storage.buckets.list", "bucket_list"),
        ],
    )
    def test_every_method_needs_what_is_documented(self, control, http, bucket, permission, calls):
        root, upload = "/storage/v1/b/tasks", "/upload/storage/v1/b/tasks/o"
        source = {"sourceObjects": [{"name": "a"}]}
        ways = {
            "get": ("GET", f"{root}/o/a"),
            "download": ("GET", f"/download{root}/o/a?alt=media"),
            "public": ("GET", "/tasks/a"),
            "list": ("GET", f"{root}/o"),
            "patch": ("PATCH", f"{root}/o/a", {}),
            "insert": ("POST", f"{upload}?uploadType=media&name=new1"),
            "resumable": ("POST", f"{upload}?uploadType=resumable&name=new2"),
            "copy": ("POST", f"{root}/o/a/copyTo/b/tasks/o/new3"),
            "rewrite": ("POST", f"{root}/o/a/rewriteTo/b/tasks/o/new4"),
            "compose": ("POST", f"{root}/o/new5/compose", source),
            "over": ("POST", f"{upload}?uploadType=media&name=b"),
            "copy_over": ("POST", f"{root}/o/a/copyTo/b/tasks/o/b"),
            "rewrite_over": ("POST", f"{root}/o/a/rewriteTo/b/tasks/o/b"),
            "compose_over": ("POST", f"{root}/o/b/compose", source),
            "restore": ("POST", f"{root}/o/gone/restore?generation=1"),
            "delete": ("DELETE", f"{root}/o/b"),
            "bucket": ("GET", root),
            "bucket_patch": ("PATCH", root, {}),
            "bucket_insert": ("POST", "/storage/v1/b?project=p", {"name": "fresh"}),
            "bucket_list": ("GET", "/storage/v1/b?project=p"),
            "bucket_delete": ("DELETE", root),
        }
        control.refuse(permission)
        refused = {
            name
            for name, (method, path, *body) in ways.items()
            if http.request(method, path, json=body[0] if body else None).status_code == 403
        }
        assert refused == set(calls.split())

    def test_only_the_named_bucket_is_concerned(self, control, gcs, bucket):
        control.refuse("storage.objects.delete", bucket="tasks")
        gcs.bucket("other").delete_blob("a")
        refused(lambda: bucket.delete_blob("a"))

    def test_a_copy_needs_one_thing_at_each_end(self, control, gcs, bucket):
        other = gcs.bucket("other")
        control.refuse("storage.objects.get", bucket="other")
        control.refuse("storage.objects.create", bucket="tasks")
        assert bucket.copy_blob(bucket.blob("a"), other, "b").name == "b"
        refused(lambda: other.copy_blob(other.blob("a"), other, "c"))
        refused(lambda: bucket.copy_blob(bucket.blob("a"), bucket, "c"))

    def test_a_write_without_delete_succeeds_where_nothing_is(self, control, bucket):
        control.refuse("storage.objects.delete", bucket="tasks")
        bucket.blob("new").upload_from_string("x", if_generation_match=0)
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").upload_from_string("x", if_generation_match=0)
        refused(lambda: bucket.blob("a").upload_from_string("x"))

    def test_a_prefix_narrows_a_refusal(self, control, gcs, bucket):
        control.refuse("storage.objects.get", bucket="tasks", prefix="ops/")
        assert bucket.get_blob("a") is not None
        refused(lambda: bucket.get_blob("ops/a"))
        refused(lambda: bucket.blob("all").compose([bucket.blob("a"), bucket.blob("ops/a")]))

    def test_parts_of_a_batch_are_refused_alone(self, control, gcs, bucket):
        control.refuse("storage.objects.delete", prefix="ops/")
        with gcs.batch(raise_exception=False) as batch:
            bucket.delete_blob("a")
            bucket.delete_blob("ops/a")
        assert [response.status_code for response in batch._responses] == [204, 403]

    def test_all_can_be_allowed_again(self, control, bucket):
        control.refuse("storage.objects.get")
        assert control.refusals() == [
            {"permission": "storage.objects.get", "bucket": None, "prefix": None, "project": None}
        ]
        control.allow_all()
        assert control.refusals() == []
        assert bucket.get_blob("a") is not None

    def test_a_reset_allows_all(self, control, gcs):
        control.refuse("storage.objects.get")
        control.reset()
        assert control.refusals() == []


class TestTestIamPermissions:
    ASKED = ("storage.objects.get", "storage.objects.delete", "storage.objects.list", "storage.buckets.get")

    def test_all_is_granted_at_first(self, bucket):
        assert bucket.test_iam_permissions(list(self.ASKED)) == list(self.ASKED)

    def test_what_is_refused_is_left_out(self, control, gcs, bucket):
        control.refuse("storage.objects.delete", bucket="tasks")
        control.refuse("storage.buckets.get")
        assert bucket.test_iam_permissions(list(self.ASKED)) == ["storage.objects.get", "storage.objects.list"]
        assert "storage.objects.delete" in gcs.bucket("other").test_iam_permissions(list(self.ASKED))

    def test_nothing_may_be_left(self, control, bucket):
        control.refuse("storage.objects.get")
        assert bucket.test_iam_permissions(["storage.objects.get"]) == []

    def test_a_refusal_below_a_prefix_does_not_show(self, control, bucket):
        control.refuse("storage.objects.delete", bucket="tasks", prefix="ops/")
        assert bucket.test_iam_permissions(["storage.objects.delete"]) == ["storage.objects.delete"]

    def test_something_must_be_asked_of_something(self, http, bucket):
        assert http.get("/storage/v1/b/tasks/iam/testPermissions").status_code == 400
        assert http.get("/storage/v1/b/missing/iam/testPermissions?permissions=x").status_code == 404


class TestBigQuery:
    def test_a_refusal_is_in_googles_words(self, control, bq):
        control.seed_jobs([{"project": "p", "jobId": "a"}])
        control.refuse("bigquery.jobs.get", project="p")
        error = refused(lambda: bq.get_job("a", location="US"))
        assert error.errors[0]["reason"] == "accessDenied"
        assert "User does not have bigquery.jobs.get permission in project p" in error.message
        assert [job.job_id for job in bq.list_jobs(all_users=True)] == ["a"]

    def test_jobs_of_all_users_need_more(self, control, bq):
        control.refuse("bigquery.jobs.listAll")
        assert list(bq.list_jobs()) == []
        refused(lambda: list(bq.list_jobs(all_users=True)))
        control.refuse("bigquery.jobs.list")
        refused(lambda: list(bq.list_jobs()))

    def test_only_the_named_project_is_concerned(self, control, http):
        control.refuse("bigquery.jobs.list", project="q")
        assert http.get(JOBS).status_code == 200
        assert http.get(JOBS.replace("/p/", "/q/")).status_code == 403


class TestBadRefusals:
    @pytest.mark.parametrize(
        "refusal",
        [
            {},
            {"permission": "storage.objects.fly"},
            {"permission": "storage.objects.list", "prefix": "a/"},
            {"permission": "storage.objects.get", "project": "p"},
            {"permission": "bigquery.jobs.list", "bucket": "tasks"},
            {"permission": "storage.objects.get", "bucket": 5},
            {"permission": "storage.objects.get", "colour": "red"},
        ],
    )
    def test_what_makes_no_sense_is_refused(self, http, control, refusal):
        assert http.post("/_control/refusals", json=refusal).status_code == 400
        assert control.refusals() == []
