"""The stand-in Cloud Storage changes an object's name once a second, as the service does."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import requests
from google.api_core.exceptions import Forbidden, NotFound, PreconditionFailed, TooManyRequests, from_http_response
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client
from google.cloud.storage.exceptions import InvalidResponse

from bqdispatch_provider.testing.standin import StandIn, StandInControl, clock


def patch(bucket, name):
    blob = bucket.blob(name)
    blob.metadata = {"k": "v"}
    blob.patch(retry=None)


CHANGES = {
    "overwrite": lambda bucket: bucket.blob("a").upload_from_string("y", retry=None),
    "resumable upload": lambda bucket: resumable(bucket, "a"),
    "metadata": lambda bucket: patch(bucket, "a"),
    "delete": lambda bucket: bucket.delete_blob("a", retry=None),
    "copy": lambda bucket: bucket.copy_blob(bucket.blob("source"), bucket, "a", retry=None),
    "rewrite": lambda bucket: bucket.blob("a").rewrite(bucket.blob("source"), retry=None),
    "compose": lambda bucket: bucket.blob("a").compose([bucket.blob("source")], retry=None),
}


def resumable(bucket, name):
    try:
        with bucket.blob(name, chunk_size=256 * 1024).open("w", retry=None, ignore_flush=True) as opened:
            opened.write("y")
    except InvalidResponse as error:  # which the client does not turn into its usual exception here
        raise from_http_response(error.response) from error


@pytest.fixture(autouse=True)
def a_clock_that_stands(standin, monkeypatch):
    """Whether a second has passed must not depend on the machine."""
    now = time.time()
    monkeypatch.setattr(clock, "time", SimpleNamespace(time=lambda: now))


@pytest.fixture
def source(control, bucket):
    control.seed_objects("tasks", [{"name": "source", "timeCreated": control.now() - 60}])
    return bucket


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("first", ["created", *(each for each in CHANGES if each != "delete")])
def test_a_name_is_not_changed_again_within_a_second(control, source, first, change):
    if first == "created":
        source.blob("a").upload_from_string("x")
    else:
        control.seed_objects("tasks", [{"name": "a", "timeCreated": control.now() - 60}])
        CHANGES[first](source)
    before = source.get_blob("a")
    control.advance(0.9)
    with pytest.raises(TooManyRequests) as refused:
        CHANGES[change](source)
    assert "The object tasks/a exceeded the rate limit for object mutation operations" in refused.value.message
    assert "rateLimitExceeded" in f"{refused.value.message} {refused.value.errors}"
    after = source.get_blob("a")
    assert (after.generation, after.metageneration) == (before.generation, before.metageneration)
    control.advance(0.1)
    CHANGES[change](source)


@pytest.mark.parametrize("again", ["overwrite", "copy", "rewrite", "compose"])
def test_a_deleted_name_is_not_created_again_within_a_second(control, source, again):
    control.seed_objects("tasks", [{"name": "a", "timeCreated": control.now() - 60}])
    source.delete_blob("a")
    with pytest.raises(TooManyRequests):
        CHANGES[again](source)
    assert source.get_blob("a") is None
    control.advance(1)
    CHANGES[again](source)


def test_a_second_begins_with_each_change(control, bucket):
    for _ in range(3):
        bucket.blob("a").upload_from_string("x")
        control.advance(1)
    bucket.blob("a").upload_from_string("x")
    control.advance(0.9)
    with pytest.raises(TooManyRequests):
        bucket.delete_blob("a", retry=None)


def test_what_is_refused_does_not_begin_another_second(control, bucket):
    bucket.blob("a").upload_from_string("x")
    control.advance(0.6)
    with pytest.raises(TooManyRequests):
        bucket.delete_blob("a", retry=None)
    control.advance(0.4)
    bucket.delete_blob("a", retry=None)


def test_another_name_and_the_same_in_another_bucket_are_free(gcs, bucket):
    for name in ("a", "b", "a/b"):
        bucket.blob(name).upload_from_string("x", retry=None)
    gcs.create_bucket("others").blob("a").upload_from_string("x", retry=None)


def test_reading_and_being_copied_from_changes_nothing(bucket):
    bucket.blob("a").upload_from_string("x")
    bucket.blob("a").download_as_bytes()
    bucket.copy_blob(bucket.blob("a"), bucket, "b")
    bucket.blob("c").compose([bucket.blob("a")])
    assert bucket.get_blob("a").metageneration == 1


def test_what_would_be_refused_anyway_is_refused_for_that(control, bucket):
    bucket.blob("a").upload_from_string("x")
    with pytest.raises(PreconditionFailed):
        bucket.blob("a").upload_from_string("y", if_generation_match=0)
    with pytest.raises(NotFound):
        bucket.delete_blob("b")
    control.seed_objects("tasks", [{"name": "held", "temporaryHold": True}])
    with pytest.raises(Forbidden):
        bucket.delete_blob("held")


def test_seeded_objects_count_as_changed_when_they_were_created(control, bucket):
    now = control.now()
    control.seed_objects("tasks", ["new", {"name": "old", "timeCreated": now - 1}])
    bucket.delete_blob("old", retry=None)
    with pytest.raises(TooManyRequests):
        bucket.delete_blob("new", retry=None)
    bucket.blob("other").upload_from_string("x")
    control.seed_objects("tasks", [{"name": "other", "timeCreated": now - 60}])
    bucket.delete_blob("other", retry=None)


def test_noncurrent_versions_have_their_objects_name(control, bucket):
    bucket.versioning_enabled = True
    bucket.patch()
    bucket.blob("a").upload_from_string("x")
    first = bucket.get_blob("a").generation
    control.advance(1)
    bucket.blob("a").upload_from_string("y")
    with pytest.raises(TooManyRequests):
        bucket.delete_blob("a", generation=first, retry=None)
    control.advance(1)
    bucket.delete_blob("a", generation=first, retry=None)


def test_a_clock_that_is_moved_back_refuses_nothing(control, bucket):
    control.advance(3600)
    bucket.blob("a").upload_from_string("x")
    control.advance(-3600)
    bucket.delete_blob("a", retry=None)


def test_one_name_is_refused_alone_in_a_batch_and_counted(control, gcs, source):
    old = control.now() - 60
    control.seed_objects("tasks", [{"name": name, "timeCreated": old} for name in ("a", "b")])
    patch(source, "a")
    control.reset_counters()
    with gcs.batch(raise_exception=False) as batch:
        source.delete_blob("a")
        source.delete_blob("b")
    assert [response.status_code for response in batch._responses] == [429, 204]
    assert batch._responses[0].json()["error"]["errors"][0]["reason"] == "rateLimitExceeded"
    assert control.refused() == {"storage.objects.delete": 1}


def test_only_the_last_seconds_changes_are_remembered(standin, control, bucket):
    control.seed_objects("tasks", [f"{n}" for n in range(5000)])
    control.seed_objects("tasks", [{"name": f"old{n}", "timeCreated": 1} for n in range(5000)])
    remembered = standin.state.buckets.bucket("tasks")._changed
    assert len(remembered) == 5000
    control.advance(1)
    bucket.blob("a").upload_from_string("x")
    assert list(remembered) == ["a"]


def test_the_limit_can_be_switched_off_until_the_next_reset(control, gcs, bucket):
    control.set_name_limit(False)
    for _ in range(3):
        bucket.blob("a").upload_from_string("x")
    control.set_name_limit(True)
    with pytest.raises(TooManyRequests):
        bucket.delete_blob("a", retry=None)
    control.set_name_limit(False)
    control.reset()
    gcs.create_bucket("tasks")
    bucket.blob("a").upload_from_string("x")
    with pytest.raises(TooManyRequests):
        bucket.delete_blob("a", retry=None)
    with pytest.raises(ValueError, match="true or false"):
        control.set_name_limit("yes")


def changed_twice(url):
    client = Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})
    bucket = client.create_bucket("tasks")
    bucket.blob("a").upload_from_string("x")
    bucket.delete_blob("a", retry=None)


def test_a_stand_in_may_be_started_without_it():
    with StandIn(name_limit=False) as standin:
        changed_twice(standin.url)
        with standin.control as control:
            control.set_name_limit(True)
            control.reset()
        changed_twice(standin.url)


def deleted_at_once(url, control):
    control.seed_objects("tasks", ["a"])
    return requests.delete(f"{url}/storage/v1/b/tasks/o/a", timeout=10).status_code


@pytest.mark.parametrize(("option", "refused"), [([], True), (["--no-name-limit"], False)])
def test_the_command_line_switches_it_off(option, refused):
    command = [sys.executable, "-m", "bqdispatch_provider.testing.standin", *option]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        try:
            with StandInControl(url) as control:
                answers = {deleted_at_once(url, control) for _ in range(20)}
        finally:
            process.terminate()
    assert answers == {204} if not refused else 429 in answers
