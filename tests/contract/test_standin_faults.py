"""Faults, rate limits and latency of the stand-in are as a test sets them."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from answers import statuses
from google.api_core.exceptions import BadGateway, Forbidden, ServiceUnavailable
from waiting import wait_until

JOBS = "/bigquery/v2/projects/p/jobs"

MINUTE = 60
"""More than a busy machine takes for a call or two."""

LATENCY_MS = 4321

LONG_MS = 600_000
"""So long that a test which waits for its end fails."""


class TestLimits:
    def test_as_many_writes_a_second_as_are_allowed_go_through_in_each_bucket(self, control, gcs, http):
        for bucket in ("a", "b"):
            control.seed_objects(f"tasks-{bucket}", [f"{n}" for n in range(20)])
        control.set_limits(writes=10)
        control.reset_counters()
        for bucket in ("a", "b"):
            batch = gcs.batch(raise_exception=False)
            with batch:
                for n in range(20):
                    gcs.bucket(f"tasks-{bucket}").delete_blob(f"{n}")
            answers = [response.status_code for response in batch._responses]
            assert answers.count(204) in range(10, 20) and answers.count(429) == 20 - answers.count(204)
        control.advance(1)
        gcs.bucket("tasks-a").blob("x").upload_from_string(b"x")
        assert sum(control.refused().values()) == control.refused()["storage.objects.delete"] > 0

    def test_a_look_at_jobs_too_many_is_refused_in_words_of_bigquery(self, control, http):
        control.set_limits(jobs=2)
        answers = [http.get(JOBS) for _ in range(20)]
        assert [answer.status_code for answer in answers[:2]] == [200, 200]
        refused = answers[-1].json()["error"]
        assert (answers[-1].status_code, refused["errors"][0]["reason"]) == (403, "rateLimitExceeded")
        control.set_limits()
        assert http.get(JOBS).status_code == 200

    def test_requests_are_counted_by_method(self, control, gcs, http):
        control.seed_objects("tasks", ["a"])
        with gcs.batch():
            gcs.bucket("tasks").delete_blob("a")
        http.get(JOBS)
        http.get("/nothing/of/the/kind")
        assert control.requests_by_method() == {"storage.batch": 1, "bigquery.jobs.list": 1, "unknown": 1}


class Waits(list):
    """Waits of requests that are under way, and whether they are over."""

    over = False


class TestLatency:
    @pytest.fixture
    def waits(self, monkeypatch):
        waits, sleep = Waits(), asyncio.sleep

        async def wait(seconds, *more):
            if seconds != LATENCY_MS / 1000:
                await sleep(seconds, *more)
                return
            waits.append(seconds)
            while not waits.over:
                await sleep(0.01)

        monkeypatch.setattr("bqdispatch_provider.testing.standin.server.asyncio.sleep", wait)
        return waits

    def test_concurrent_requests_overlap(self, control, http, waits):
        control.set_latency(LATENCY_MS)
        with ThreadPoolExecutor(20) as pool:
            answers = [pool.submit(http.get, JOBS) for _ in range(20)]
            try:
                wait_until(lambda: len(waits) == 20, "all wait at one time")
            finally:
                waits.over = True
        assert [answer.result().status_code for answer in answers] == [200] * 20

    def test_a_batch_waits_once(self, control, gcs, waits):
        control.seed_objects("tasks", [f"{n}" for n in range(100)])
        control.set_latency(LATENCY_MS)
        waits.over = True
        with gcs.batch():
            for n in range(100):
                gcs.bucket("tasks").delete_blob(f"{n}")
        assert len(waits) == 1

    def test_the_control_api_has_none(self, control):
        control.set_latency(60_000)
        assert control.now() > 0


class TestFaults:
    @pytest.fixture
    def bucket(self, control, gcs):
        control.seed_objects("tasks", ["a", "b"])
        return gcs.bucket("tasks")

    def test_a_call_can_be_answered_with_an_error(self, control, http, bucket):
        control.add_fault("storage.objects.get", "status", status=429, reason="rateLimitExceeded")
        answer = http.get("/storage/v1/b/tasks/o/a")
        assert (answer.status_code, answer.json()["error"]["errors"][0]["reason"]) == (429, "rateLimitExceeded")

    def test_an_error_is_a_503_when_nothing_else_is_said(self, control, bucket):
        control.add_fault("storage.objects.delete", "status")
        with pytest.raises(ServiceUnavailable):
            bucket.delete_blob("a", retry=None)

    def test_a_fault_strikes_as_often_as_it_says(self, control, bucket):
        control.add_fault("storage.objects.get", "status", status=403, times=2)
        for _ in range(2):
            with pytest.raises(Forbidden):
                bucket.get_blob("a")
        assert bucket.get_blob("a") is not None
        assert control.faults()[0]["times"] == 0

    def test_a_fault_strikes_only_what_its_globs_match(self, control, http, bucket):
        control.add_fault("storage.objects.*", "status", bucket="ta*", name="b*")
        control.add_fault("bigquery.*", "status", project="q")
        assert http.get("/storage/v1/b/tasks/o/a").status_code == 200
        assert http.get("/storage/v1/b/tasks/o/b").status_code == 503
        assert http.get("/storage/v1/b/tasks/o").status_code == 200
        assert http.get(JOBS).status_code == 200
        assert http.get(JOBS.replace("/p/", "/q/")).status_code == 503

    def test_a_copy_is_matched_by_its_destination_too(self, control, bucket):
        control.add_fault("storage.objects.copy", "status", bucket="tasks", name="copy*")
        with pytest.raises(ServiceUnavailable):
            bucket.copy_blob(bucket.blob("a"), bucket, "copy", retry=None)
        assert bucket.copy_blob(bucket.blob("a"), bucket, "other").name == "other"

    def test_a_job_is_matched_by_its_id(self, control, http):
        control.seed_jobs([{"project": "p", "jobId": "a"}, {"project": "p", "jobId": "b"}])
        control.add_fault("bigquery.jobs.get", "status", name="b")
        assert [http.get(f"{JOBS}/{name}").status_code for name in "ab"] == [200, 503]

    def test_the_effect_can_come_before_the_error(self, control, http, bucket):
        control.add_fault("storage.objects.delete", "status", status=502, after=True)
        with pytest.raises(BadGateway):
            bucket.delete_blob("a", retry=None)
        assert bucket.get_blob("a") is None

    def test_a_connection_can_be_closed_before_the_effect(self, control, http, bucket):
        control.add_fault("storage.objects.delete", "reset", times=1)
        with pytest.raises(requests.ConnectionError):
            http.delete("/storage/v1/b/tasks/o/a")
        assert bucket.get_blob("a") is not None

    def test_a_connection_can_be_closed_after_the_effect(self, control, http, bucket):
        control.add_fault("storage.objects.delete", "reset", times=1, after=True)
        with pytest.raises(requests.ConnectionError):
            http.delete("/storage/v1/b/tasks/o/a")
        assert bucket.get_blob("a") is None

    def test_a_connection_can_be_closed_in_the_midst_of_an_answer(self, control, http, bucket):
        control.add_fault("storage.objects.*", "cut", times=2)
        with pytest.raises(requests.exceptions.RequestException):
            http.get("/storage/v1/b/tasks/o/a").json()
        with pytest.raises(requests.exceptions.RequestException):
            http.delete("/storage/v1/b/tasks/o/a").raise_for_status()
        assert bucket.get_blob("a") is None

    @pytest.mark.parametrize(("text", "kind"), [("<html>", "text/html"), ('{"odd": 1}', "application/json")])
    def test_a_call_can_be_answered_with_any_text(self, control, http, bucket, text, kind):
        control.add_fault("storage.objects.get", "text", text=text, status=200, times=1)
        answer = http.get("/storage/v1/b/tasks/o/a")
        assert (answer.status_code, answer.text, answer.headers["Content-Type"].partition(";")[0]) == (200, text, kind)
        assert http.get("/storage/v1/b/tasks/o/a").json()["name"] == "a"

    def test_a_call_can_be_slow_while_others_are_not(self, control, http, bucket):
        control.add_fault("storage.objects.get", "slow", name="a", ms=LONG_MS)
        with ThreadPoolExecutor(1) as aside:
            slow = aside.submit(http.get, "/storage/v1/b/tasks/o/a")
            wait_until(lambda: control.calls().get("storage.objects.get"))
            assert requests.get(f"{http.url}/storage/v1/b/tasks/o/b", timeout=MINUTE).ok
            assert not slow.done()
            control.clear_faults()
            assert slow.result().ok

    def test_a_call_is_late_by_as_much_as_is_said(self, control, http, bucket):
        control.add_fault("storage.objects.get", "slow", ms=200)
        started = time.monotonic()
        assert http.get("/storage/v1/b/tasks/o/a").ok
        assert time.monotonic() - started >= 0.2

    def test_a_slow_call_can_have_its_effect_at_once(self, control, http, bucket):
        control.add_fault("storage.objects.delete", "slow", ms=LONG_MS, after=True)
        with ThreadPoolExecutor(1) as aside:
            slow = aside.submit(http.delete, "/storage/v1/b/tasks/o/a")
            wait_until(lambda: bucket.get_blob("a") is None)
            assert not slow.done()
            control.clear_faults()
            assert slow.result().status_code == 204

    def test_a_part_of_a_batch_can_fail_alone(self, control, gcs, bucket):
        control.add_fault("storage.objects.delete", "status", name="a")
        with gcs.batch(raise_exception=False) as batch:
            bucket.delete_blob("a")
            bucket.delete_blob("b")
        assert statuses(batch) == [503, 204]

    def test_a_reset_in_a_batch_loses_the_whole_answer(self, control, gcs, bucket):
        control.add_fault("storage.objects.delete", "reset", name="b")
        with pytest.raises(requests.ConnectionError), gcs.batch():
            bucket.delete_blob("a")
            bucket.delete_blob("b")
        assert (bucket.get_blob("a"), bucket.get_blob("b") is None) == (None, False)

    def test_a_whole_batch_can_be_refused(self, control, gcs, bucket):
        control.add_fault("storage.batch", "status")
        with pytest.raises(ServiceUnavailable), gcs.batch():
            bucket.delete_blob("a")
        assert bucket.get_blob("a") is not None

    def test_the_answer_to_a_whole_batch_can_be_lost(self, control, gcs, bucket):
        control.add_fault("storage.batch", "reset", after=True)
        with pytest.raises(requests.ConnectionError), gcs.batch():
            bucket.delete_blob("a")
            bucket.delete_blob("b")
        assert list(bucket.list_blobs()) == []

    def test_chance_follows_its_seed(self, control, http, bucket):
        control.add_fault("storage.objects.get", "status", probability=0.5)

        def outcomes(seed):
            control.seed_faults(seed)
            return [http.get("/storage/v1/b/tasks/o/a").status_code for _ in range(40)]

        first = outcomes(1)
        assert outcomes(1) == first != outcomes(2)
        assert set(first) == {200, 503}

    def test_they_can_be_lifted(self, control, bucket):
        control.add_fault("*", "status")
        control.clear_faults()
        assert control.faults() == []
        assert bucket.get_blob("a") is not None

    def test_they_do_not_touch_the_control_api(self, control):
        control.add_fault("*", "reset")
        assert len(control.faults()) == 1

    @pytest.mark.parametrize(
        "fault",
        [
            {"call": "x", "kind": "explode"},
            {"kind": "status"},
            {"call": "x", "kind": "status", "status": 200},
            {"call": "x", "kind": "status", "probability": 2},
            {"call": "x", "kind": "status", "times": "often"},
            {"call": "x", "kind": "status", "name": 5},
            {"call": "x", "kind": "status", "colour": "red"},
        ],
    )
    def test_a_fault_that_makes_no_sense_is_refused(self, http, control, fault):
        assert http.post("/_control/faults", json={"faults": [fault]}).status_code == 400
        assert control.faults() == []
