"""The stand-in's control API does what a test asks of it, and says what is wrong with what it does not understand."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import requests

from bqdispatch_provider.testing.standin import StandIn, StandInControl

JOBS = "/bigquery/v2/projects/p/jobs"
MINUTE = 60
"""More than a busy machine takes for a call or two."""
LONG_MS = 600_000
"""So long that a test which waits for its end fails."""


class TestSeeds:
    def test_seeded_objects_are_as_they_were_described(self, control, gcs):
        generations = control.seed_objects(
            "tasks",
            [
                "bare",
                {
                    "name": "full",
                    "content": "tëxt",
                    "contentType": "text/x",
                    "metadata": {"k": "v"},
                    "timeCreated": 1_700_000_000.25,
                },
            ],
        )
        bare, full = gcs.list_blobs("tasks")
        assert [bare.generation, full.generation] == generations
        assert (bare.size, full.download_as_bytes().decode()) == (0, "tëxt")
        assert (full.content_type, full.metadata) == ("text/x", {"k": "v"})
        assert full.time_created.timestamp() == 1_700_000_000.25

    def test_a_seed_replaces_what_is_there(self, control, gcs):
        (first,) = control.seed_objects("tasks", ["a"])
        (second,) = control.seed_objects("tasks", [{"name": "a", "content": "new"}])
        assert second > first
        assert gcs.bucket("tasks").blob("a").download_as_bytes() == b"new"

    def test_100000_objects_are_seeded_by_one_call(self, control):
        assert len(control.seed_objects("tasks", [f"{n}" for n in range(100_000)])) == 100_000

    def test_a_bad_object_leaves_nothing_of_its_seed_behind(self, control, gcs):
        with pytest.raises(ValueError, match="line breaks"):
            control.seed_objects("tasks", ["good", "ba\nd"])
        assert gcs.lookup_bucket("tasks") is None

    def test_a_seed_adds_to_a_bucket_that_is_empty(self, control, gcs):
        gcs.create_bucket("tasks", location="EU")
        control.seed_objects("tasks", ["a"])
        assert gcs.get_bucket("tasks").location == "EU"

    def test_a_bad_job_leaves_nothing_of_its_seed_behind(self, control, http):
        with pytest.raises(ValueError, match="type"):
            control.seed_jobs([{"project": "p", "jobId": "a"}, {"project": "p", "jobId": "b", "type": "nap"}])
        assert http.get(JOBS).json()["jobs"] == []

    def test_a_job_cannot_be_seeded_twice(self, control):
        control.seed_jobs([{"project": "p", "jobId": "a"}])
        with pytest.raises(ValueError, match="exists"):
            control.seed_jobs([{"project": "p", "jobId": "a"}])


class TestClock:
    def test_it_shows_real_time_at_first(self, control):
        assert abs(control.now() - time.time()) < MINUTE

    def test_it_can_be_set_and_goes_on_from_there(self, control):
        assert 0 <= control.set_clock(1000) - 1000 < MINUTE
        first = control.now()
        assert first <= control.now() < first + MINUTE

    def test_it_can_be_moved_both_ways(self, control):
        start = control.now()
        assert 3600 <= control.advance(3600) - start < 3600 + MINUTE
        assert -3600 <= control.advance(-7200) - start < -3600 + MINUTE

    def test_it_rules_the_times_of_objects(self, control, gcs):
        control.set_clock(1_600_000_000)
        control.seed_objects("tasks", ["a"])
        created = next(iter(gcs.list_blobs("tasks"))).time_created.timestamp()
        assert 1_600_000_000 <= created <= control.now()


class TestCounters:
    def test_every_call_and_request_is_counted(self, control, gcs, http):
        bucket = gcs.create_bucket("tasks")
        bucket.blob("a").upload_from_string(b"x")
        list(gcs.list_blobs("tasks"))
        http.get(JOBS)
        assert control.requests() == 4
        assert control.calls() == {
            "storage.buckets.insert": 1,
            "storage.objects.insert": 1,
            "storage.objects.list": 1,
            "bigquery.jobs.list": 1,
        }

    def test_a_batch_is_one_request_and_each_of_its_parts_a_call(self, control, gcs):
        control.seed_objects("tasks", ["a", "b"])
        with gcs.batch():
            gcs.bucket("tasks").delete_blob("a")
            gcs.bucket("tasks").delete_blob("b")
        assert (control.requests(), control.calls()) == (1, {"storage.batch": 1, "storage.objects.delete": 2})

    def test_they_can_be_set_back(self, control, http):
        http.get(JOBS)
        control.reset_counters()
        assert (control.requests(), control.calls()) == (0, {})


class TestPeaks:
    @pytest.fixture
    def seed(self, control):
        control.set_clock(10_000)

        def seed(*spans, **more):
            """One job for each span of (first second, last second)."""
            control.seed_jobs(
                {
                    "project": "p",
                    "jobId": f"{more.get('type', 'load')}-{len(more)}-{number}",
                    "creationTime": first,
                    "pendingMs": (last - first) * 500,
                    "runningMs": (last - first) * 500,
                    **more,
                }
                for number, (first, last) in enumerate(spans)
            )

        return seed

    def test_the_most_jobs_at_one_time_are_counted(self, control, seed):
        seed((0, 10), (5, 15), (9, 20), (16, 20))
        assert control.peaks()["p"]["load"] == 3

    def test_jobs_that_follow_each_other_do_not_overlap(self, control, seed):
        seed((0, 10), (10, 20), (20, 30))
        assert control.peaks()["p"]["load"] == 1

    def test_a_job_that_is_done_at_once_is_never_active(self, control, seed):
        seed((5, 5), (5, 5))
        assert control.peaks() == {}

    def test_types_add_up_to_groups(self, control, seed):
        seed((0, 10))
        seed((5, 15), type="copy")
        seed((6, 15), (20, 25), type="extract")
        seed((0, 5), (1, 5), type="query")
        assert control.peaks()["p"] == {"load": 1, "copy": 1, "extract": 1, "query": 2, "sql": 2, "jobs": 3}

    def test_projects_are_counted_apart(self, control, seed):
        seed((0, 10))
        seed((0, 10), (0, 10), project="q")
        peaks = control.peaks()
        assert (peaks["p"]["load"], peaks["q"]["load"]) == (1, 2)

    def test_the_future_does_not_count(self, control, seed):
        seed((9_000, 30_000), (20_000, 30_000), (21_000, 30_000))
        assert control.peaks()["p"]["load"] == 1
        control.set_clock(40_000)
        assert control.peaks()["p"]["load"] == 3

    def test_jobs_without_a_label_can_be_left_out(self, control, seed):
        seed((0, 10), (0, 10))
        seed((0, 10), labels={"trace": "yes"})
        assert control.peaks(label="trace")["p"]["load"] == 1

    def test_a_cancelled_job_is_active_until_then(self, control, seed, http):
        seed((9_000, 50_000))
        http.post(f"{JOBS}/load-0-0/cancel")
        control.set_clock(20_000)
        seed((15_000, 50_000), labels={})
        assert control.peaks()["p"]["load"] == 1


class TestBadInput:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("objects", {"objects": []}),
            ("objects", {"bucket": "tasks", "objects": ["a"]}),
            ("objects", {"bucket": "tasks", "objects": [{}]}),
            ("objects", {"bucket": "Bad Bucket", "objects": []}),
            ("objects", {"bucket": "tasks", "objects": [{"name": "a", "timeCreated": "noon"}]}),
            ("objects", {"bucket": "tasks", "objects": [{"name": "a", "metadata": "k=v"}]}),
            ("objects", {"bucket": "tasks", "objects": [{"name": "a", "time": 5}]}),
            ("jobs", {}),
            ("jobs", {"jobs": [{"project": "p", "jobId": "a", "running": 5}]}),
            ("jobs", {"jobs": [{"project": "p"}]}),
            ("jobs", {"jobs": [{"project": "p", "jobId": "a", "runningMs": "long"}]}),
            ("jobs", {"jobs": [{"project": "p", "jobId": "a", "labels": 5}]}),
            ("clock", {"now": "noon"}),
            ("clock", {"now": 1, "advance": 1}),
            ("clock", {"nowadays": 1}),
            ("latency", {}),
            ("latency", {"ms": -1}),
            ("rewrite-calls", {"n": 0}),
            ("job-defaults", {"pendingMs": -1}),
            ("faults/seed", {"seed": "lucky"}),
            ("faults", {"faults": "all"}),
        ],
    )
    def test_it_is_refused_with_a_message(self, http, path, body):
        answer = http.post(f"/_control/{path}", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]

    def test_an_unknown_control_is_not_found(self, http):
        assert http.post("/_control/nonsense").status_code == 404
        assert http.delete("/_control/clock").status_code == 405

    def test_the_client_passes_the_message_on(self, control):
        with pytest.raises(ValueError, match="ms must be at least 0"):
            control.set_latency(-1)


class TestIndex:
    def test_its_address_describes_the_stand_in_and_how_to_seed_it(self, http, standin):
        answer = http.get("/")
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert answer.text.startswith("Stand-in Google Cloud")
        assert f'StandInControl("{standin.url}")' in answer.text
        assert f"STORAGE_EMULATOR_HOST={standin.url} BIGQUERY_EMULATOR_HOST={standin.url}" in answer.text
        assert max(map(len, answer.text.splitlines())) <= 120

    def test_each_method_of_the_control_api_is_named(self, http):
        named = set(re.findall(r"^  (\w+) +/_control/(\S+) ", http.get("/").text, re.MULTILINE))
        assert {("POST", "objects"), ("POST", "jobs"), ("GET", "clock"), ("DELETE", "faults")} <= named
        assert all(http.request(method, f"/_control/{path}").status_code in (200, 400) for method, path in named)

    def test_its_examples_seed(self, http, control, gcs):
        text = http.get("/").text
        command = re.search(r"^  curl (\S+) --json '(.*)'$", text, re.MULTILINE)
        assert requests.post(command[1], data=command[2], timeout=MINUTE).status_code == 200
        (python,) = re.findall(r"^  (from .*?)\n\nor by HTTP", text, re.MULTILINE | re.DOTALL)
        exec(textwrap.dedent(f"  {python}"))
        assert [(blob.name, blob.size) for blob in gcs.list_blobs("my-bucket")] == [("empty", 0), ("full", 4)]
        assert http.get("/bigquery/v2/projects/my-project/jobs/my-job").json()["status"]["state"] == "DONE"

    def test_it_is_no_call(self, http, control):
        control.add_fault("*", "reset")
        http.get("/")
        assert (control.requests(), control.calls()) == (0, {})


class TestReset:
    def test_it_empties_everything(self, control, gcs, http):
        control.seed_objects("tasks", ["a"])
        control.seed_jobs([{"project": "p", "jobId": "a"}])
        control.add_fault("*", "slow", ms=1)
        control.set_clock(1000)
        control.set_latency(1)
        control.set_job_defaults(1000, 1000)
        control.set_rewrite_calls(5)
        http.get(JOBS)
        control.reset()
        assert (control.calls(), control.faults(), control.peaks()) == ({}, [], {})
        assert abs(control.now() - time.time()) < MINUTE
        assert gcs.lookup_bucket("tasks") is None
        assert http.get(JOBS).json()["jobs"] == []
        assert http.post(JOBS, json={"configuration": {"load": {}}}).json()["status"]["state"] == "DONE"

    def test_generations_go_on_growing(self, control):
        (before,) = control.seed_objects("tasks", ["a"])
        control.reset()
        assert control.seed_objects("tasks", ["a"])[0] > before


class TestServing:
    def test_nothing_listens_after_the_context(self):
        with StandIn() as standin:
            url = standin.url
            threads = set(threading.enumerate())
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=5)
        assert len([thread for thread in threads if not thread.is_alive()]) == 1

    def test_several_can_run_side_by_side(self):
        with StandIn() as one, StandIn() as other, one.control as first, other.control as second:
            first.seed_objects("tasks", ["a"])
            assert requests.get(f"{other.url}/storage/v1/b/tasks", timeout=5).status_code == 404
            assert second.calls() != first.calls()

    def test_a_taken_port_is_an_error(self, standin):
        with pytest.raises(OSError), StandIn(int(standin.url.rsplit(":", 1)[1])):
            pass

    def test_a_slow_call_does_not_hold_up_its_end(self):
        with StandIn() as standin, standin.control as control:
            control.add_fault("*", "slow", ms=LONG_MS)
            with pytest.raises(requests.Timeout):
                requests.get(standin.url + JOBS, timeout=0.1)
            started = time.monotonic()
        assert time.monotonic() - started < LONG_MS / 1000

    @pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
    def test_the_command_prints_its_address_and_ends_when_told(self, ending):
        command = [sys.executable, "-m", "bqdispatch_provider.testing.standin", "--port", "0", "--latency-ms", "1"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                url = process.stdout.readline().strip()
                assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
                with StandInControl(url) as control:
                    assert control.now() > 0
                process.send_signal(ending)
                assert process.wait(MINUTE) == 0
            finally:
                process.kill()
