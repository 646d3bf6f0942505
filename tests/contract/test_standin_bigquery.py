"""The stand-in BigQuery's jobs behave towards real clients as the service's do."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from gcloud.aio.bigquery import Job as AsyncJob
from google.api_core.exceptions import BadRequest, Conflict, NotFound
from google.cloud import bigquery

JOBS = "/bigquery/v2/projects/p/jobs"


@pytest.fixture
def seed(control):
    def seed(*jobs):
        control.seed_jobs([{"project": "p", **job} for job in jobs])

    return seed


def load(bq, job_id=None, location=None, **labels):
    return bq.load_table_from_uri(
        "gs://data/x",
        "p.ds.t",
        job_id=job_id,
        location=location,
        job_config=bigquery.LoadJobConfig(
            labels={name.replace("_", "-"): str(value) for name, value in labels.items()}
        ),
    )


def ids(answer):
    return [job["jobReference"]["jobId"] for job in answer.json().get("jobs", [])]


class TestInserts:
    def test_a_load_job_is_done_at_once_when_nothing_else_is_said(self, bq):
        job = load(bq, "a")
        assert (job.result().state, job.location, job.user_email) == ("DONE", "US", "standin@example.com")

    def test_every_kind_of_job_can_be_inserted(self, bq):
        jobs = [
            load(bq),
            bq.copy_table("p.ds.t", "p.ds.u"),
            bq.extract_table("p.ds.t", "gs://data/y"),
            bq.query("SELECT 1", api_method="INSERT"),
        ]
        for job in jobs:
            job.result()
        assert [bq.get_job(job.job_id).job_type for job in jobs] == ["load", "copy", "extract", "query"]

    def test_a_job_without_an_id_gets_one(self, http):
        answer = http.post(JOBS, json={"configuration": {"load": {}}}).json()
        assert answer["jobReference"]["jobId"].startswith("job_")

    def test_an_id_can_be_used_once(self, http):
        body = {"configuration": {"load": {}}, "jobReference": {"projectId": "p", "jobId": "a"}}
        assert http.post(JOBS, json=body).status_code == 200
        again = http.post(JOBS, json=body)
        assert (again.status_code, again.json()["error"]["errors"][0]["reason"]) == (409, "duplicate")

    def test_the_client_sees_a_used_id_as_a_conflict(self, bq):
        load(bq, "a")
        with pytest.raises(Conflict):
            load(bq, "a")

    def test_an_id_can_be_used_again_in_another_location_or_project(self, bq):
        load(bq, "a")
        load(bq, "a", location="EU")
        bq.copy_table("p.ds.t", "p.ds.u", job_id="a", project="q")

    def test_only_one_of_many_racing_inserts_of_an_id_wins(self, http):
        body = {"configuration": {"load": {}}, "jobReference": {"jobId": "a"}}
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: http.post(JOBS, json=body).status_code, range(8)))
        assert sorted(statuses) == [200] + [409] * 7

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"configuration": {}},
            {"configuration": {"load": {}, "copy": {}}},
            {"configuration": {"load": {}}, "jobReference": {"jobId": "a b"}},
            {"configuration": {"load": {}}, "jobReference": {"jobId": "x" * 1025}},
            {"configuration": {"load": {}}, "jobReference": {"projectId": "other"}},
            {"configuration": {"load": {}, "labels": {"standin-running-ms": "soon"}}},
        ],
    )
    def test_a_job_that_makes_no_sense_is_refused(self, http, body):
        assert http.post(JOBS, json=body).status_code == 400


class TestStates:
    def test_a_job_goes_from_pending_over_running_to_done(self, bq, control):
        start = control.set_clock(1_700_000_000)
        job = load(bq, standin_pending_ms=60_000, standin_running_ms=60_000)
        seen = [job.state]
        for moment in (start + 70, start + 130):
            control.set_clock(moment)
            job.reload()
            seen.append(job.state)
        assert seen == ["PENDING", "RUNNING", "DONE"]

    def test_times_appear_with_the_states(self, http, control, seed):
        control.set_clock(1000)
        seed({"jobId": "a", "creationTime": 1000, "pendingMs": 10_000, "runningMs": 20_000})

        def statistics():
            return http.get(f"{JOBS}/a").json()["statistics"]

        assert statistics() == {"creationTime": "1000000"}
        control.set_clock(1015)
        assert statistics() == {"creationTime": "1000000", "startTime": "1010000"}
        control.set_clock(1030)
        assert statistics() == {
            "creationTime": "1000000",
            "startTime": "1010000",
            "endTime": "1030000",
            "load": {},
        }

    def test_a_failed_job_tells_why_once_it_is_done(self, bq, control):
        job = load(bq, standin_running_ms=60_000, standin_error="invalid")
        assert (job.state, job.error_result) == ("RUNNING", None)
        control.advance(61)
        with pytest.raises(BadRequest):
            job.result()
        assert job.error_result["reason"] == "invalid"
        assert job.errors == [job.error_result]

    def test_the_default_schedule_holds_for_jobs_that_say_nothing(self, bq, control):
        control.set_job_defaults(pending_ms=60_000, running_ms=1000)
        assert load(bq).state == "PENDING"
        assert load(bq, standin_pending_ms=0, standin_running_ms=0).state == "DONE"

    def test_a_running_job_can_be_cancelled(self, bq):
        job = load(bq, standin_running_ms=60_000)
        job.cancel()
        assert (job.state, job.error_result["reason"]) == ("DONE", "stopped")

    def test_a_pending_job_can_be_cancelled(self, bq):
        job = load(bq, standin_pending_ms=60_000)
        job.cancel()
        assert (job.state, job.error_result["reason"]) == ("DONE", "stopped")

    def test_a_finished_job_stays_as_it_was_when_it_is_cancelled(self, bq):
        job = load(bq)
        job.cancel()
        assert (job.state, job.error_result) == ("DONE", None)

    def test_a_query_ends_with_an_empty_result(self, bq):
        assert list(bq.query("SELECT 1", api_method="INSERT").result()) == []


class TestGets:
    def test_a_job_shows_what_it_is(self, http, control, seed):
        control.set_clock(1000)
        seed({"jobId": "a", "location": "EU", "type": "query", "creationTime": 1000, "error": "backendError"})
        error = {"reason": "backendError", "message": "The stand-in was asked to fail this job: backendError"}
        shown = http.get(f"{JOBS}/a?location=EU").json()
        assert shown == {
            "kind": "bigquery#job",
            "etag": shown["etag"],
            "id": "p:EU.a",
            "selfLink": f"{http.url}{JOBS}/a?location=EU",
            "user_email": "standin@example.com",
            "configuration": {"jobType": "QUERY", "query": {}},
            "jobReference": {"projectId": "p", "jobId": "a", "location": "EU"},
            "statistics": {"creationTime": "1000000", "startTime": "1000000", "endTime": "1000000", "query": {}},
            "status": {"state": "DONE", "errorResult": error, "errors": [error]},
        }

    def test_only_the_selected_fields_are_shown(self, http, seed):
        seed({"jobId": "a"})
        assert http.get(f"{JOBS}/a?fields=status/state,id").json() == {"status": {"state": "DONE"}, "id": "p:US.a"}

    def test_a_selection_of_what_does_not_exist_is_refused(self, http, seed):
        seed({"jobId": "a"})
        assert http.get(f"{JOBS}/a?fields=nonsense").status_code == 400

    def test_a_job_is_not_found_in_a_wrong_location(self, bq, seed):
        seed({"jobId": "a", "location": "EU"})
        with pytest.raises(NotFound):
            bq.get_job("a", location="US")

    @pytest.mark.parametrize(("location", "status"), [("US", 200), ("EU", 200), ("europe-west1", 404)])
    def test_without_a_location_only_us_and_eu_are_looked_at(self, http, seed, location, status):
        seed({"jobId": "a", "location": location})
        assert http.get(f"{JOBS}/a").status_code == status
        assert http.get(f"{JOBS}/a?location={location}").status_code == 200

    def test_a_location_may_be_written_in_small_letters(self, http, seed):
        seed({"jobId": "a", "location": "EU"})
        assert http.get(f"{JOBS}/a?location=eu").status_code == 200

    def test_a_missing_job_is_not_found(self, http):
        answer = http.get(f"{JOBS}/a?location=US")
        assert (answer.status_code, answer.json()["error"]["errors"][0]["reason"]) == (404, "notFound")

    @pytest.mark.parametrize("encode", [str, lambda project: quote(project, safe="")])
    def test_a_project_may_have_a_colon_and_dots(self, http, control, encode):
        control.seed_jobs([{"project": "example.com:legacy", "jobId": "a"}])
        path = f"/bigquery/v2/projects/{encode('example.com:legacy')}/jobs"
        assert http.get(f"{path}/a").json()["id"] == "example.com:legacy:US.a"
        assert ids(http.get(f"{path}?allUsers=true")) == ["a"]

    def test_the_prefix_may_be_left_out(self, http, seed):
        seed({"jobId": "a"})
        assert http.get("/projects/p/jobs/a").json()["id"] == "p:US.a"


class TestLists:
    def test_the_newest_job_comes_first(self, http, seed):
        seed(*({"jobId": name, "creationTime": moment} for name, moment in (("b", 20), ("c", 30), ("a", 10))))
        assert ids(http.get(JOBS)) == ["c", "b", "a"]

    def test_the_client_reads_the_list(self, bq):
        for name in "ab":
            load(bq, name)
        assert [job.job_id for job in bq.list_jobs()] == ["b", "a"]

    def test_jobs_of_other_projects_are_not_listed(self, http, control, seed):
        seed({"jobId": "a"})
        control.seed_jobs([{"project": "q", "jobId": "b"}])
        assert ids(http.get(f"{JOBS}?allUsers=true")) == ["a"]

    def test_a_project_without_jobs_has_an_empty_list(self, http):
        assert http.get(JOBS).json()["jobs"] == []

    def test_only_the_callers_jobs_are_listed_unless_all_are_asked_for(self, http, seed):
        seed({"jobId": "mine"}, {"jobId": "theirs", "userEmail": "other@example.com"})
        assert ids(http.get(JOBS)) == ["mine"]
        assert sorted(ids(http.get(f"{JOBS}?allUsers=true"))) == ["mine", "theirs"]

    def test_several_states_can_be_asked_for(self, http, seed):
        seed(
            {"jobId": "pending", "pendingMs": 60_000},
            {"jobId": "running", "runningMs": 60_000},
            {"jobId": "done"},
        )
        assert ids(http.get(f"{JOBS}?stateFilter=running")) == ["running"]
        assert sorted(ids(http.get(f"{JOBS}?stateFilter=pending&stateFilter=done"))) == ["done", "pending"]

    def test_an_unknown_state_is_refused(self, http):
        assert http.get(f"{JOBS}?stateFilter=asleep").status_code == 400

    def test_creation_bounds_are_inclusive(self, http, seed):
        seed(*({"jobId": f"j{n}", "creationTime": n} for n in range(10, 15)))
        found = http.get(f"{JOBS}?minCreationTime=11000&maxCreationTime=13000")
        assert ids(found) == ["j13", "j12", "j11"]

    def test_the_client_can_bound_the_creation_time(self, bq, seed):
        seed(*({"jobId": f"j{n}", "creationTime": n} for n in range(10, 15)))
        found = bq.list_jobs(
            min_creation_time=datetime.fromtimestamp(11, UTC), max_creation_time=datetime.fromtimestamp(12, UTC)
        )
        assert [job.job_id for job in found] == ["j12", "j11"]

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
    def test_pages_leave_nothing_out_and_show_nothing_twice(self, bq, seed, size):
        seed(*({"jobId": f"j{n}", "creationTime": n // 2} for n in range(5)))
        pages = [[job.job_id for job in page] for page in bq.list_jobs(page_size=size).pages]
        assert [name for page in pages for name in page] == ["j4", "j3", "j2", "j1", "j0"]
        assert all(len(page) <= size for page in pages)

    def test_a_page_token_holds_while_jobs_are_added(self, http, seed):
        seed(*({"jobId": f"j{n}", "creationTime": n} for n in range(4)))
        first = http.get(f"{JOBS}?maxResults=2")
        seed({"jobId": "new"})
        rest = http.get(f"{JOBS}?maxResults=2&pageToken={first.json()['nextPageToken']}")
        assert ids(first) + ids(rest) == ["j3", "j2", "j1", "j0"]

    def test_a_page_has_at_most_1000_jobs(self, http, seed):
        seed(*({"jobId": f"j{n}", "creationTime": n} for n in range(1001)))
        answer = http.get(f"{JOBS}?maxResults=5000")
        assert (len(ids(answer)), "nextPageToken" in answer.json()) == (1000, True)

    @pytest.mark.parametrize("query", ["pageToken=nonsense", "maxResults=0", "minCreationTime=x"])
    def test_a_bad_parameter_is_refused(self, http, query):
        assert http.get(f"{JOBS}?{query}").status_code == 400

    def test_an_item_has_its_state_beside_its_status(self, http, control, seed):
        control.set_clock(1000)
        seed({"jobId": "a", "creationTime": 1000, "error": "invalid"})
        error = {"reason": "invalid", "message": "The stand-in was asked to fail this job: invalid"}
        assert http.get(JOBS).json()["jobs"] == [
            {
                "kind": "bigquery#job",
                "id": "p:US.a",
                "jobReference": {"projectId": "p", "jobId": "a", "location": "US"},
                "state": "DONE",
                "errorResult": error,
                "statistics": {"creationTime": "1000000", "startTime": "1000000", "endTime": "1000000", "load": {}},
                "status": {"state": "DONE", "errorResult": error, "errors": [error]},
                "user_email": "standin@example.com",
            }
        ]

    def test_the_sources_of_loads_are_told_as_they_were_submitted(self, bq, http, seed):
        sources = ["gs://data/a b/ü.json", "gs://data/%2F*.json"]
        job = bq.load_table_from_uri(sources, "p.ds.t", job_id="submitted")
        seed({"jobId": "seeded", "sourceUris": sources[1:]}, {"jobId": "none"}, {"jobId": "query", "type": "query"})
        assert bq.get_job("submitted", location=job.location).source_uris == sources
        assert bq.get_job("seeded").source_uris == sources[1:]
        # The client lists with projection=full.
        listed = {each.job_id: getattr(each, "source_uris", None) for each in bq.list_jobs()}
        assert listed == {"submitted": sources, "seeded": sources[1:], "none": None, "query": None}
        fields = "configuration(load(sourceUris))"
        got = http.get(f"{JOBS}/submitted", params={"fields": fields}).json()
        assert got == {"configuration": {"load": {"sourceUris": sources}}}
        query = {"projection": "full", "fields": f"jobs(jobReference/jobId,{fields})"}
        items = {each["jobReference"]["jobId"]: each for each in http.get(JOBS, params=query).json()["jobs"]}
        assert items["submitted"]["configuration"] == {"load": {"sourceUris": sources}}
        assert items["seeded"]["configuration"] == {"load": {"sourceUris": sources[1:]}}
        assert items["none"]["configuration"] == {"load": {}}
        assert items["query"]["configuration"] == {}

    @pytest.mark.parametrize("more", [{"sourceUris": "gs://data/x"}, {"sourceUris": [1]}])
    def test_sources_that_make_no_sense_are_refused(self, seed, more):
        with pytest.raises(ValueError, match="sourceUris"):
            seed({"jobId": "a", **more})
        with pytest.raises(ValueError, match="sourceUris"):
            seed({"jobId": "a", "type": "query", "sourceUris": ["gs://data/x"]})

    def test_the_configuration_is_shown_in_full_projection_only(self, http, seed):
        seed({"jobId": "a", "labels": {"team": "data"}})
        full = http.get(f"{JOBS}?projection=full").json()["jobs"][0]
        assert full["configuration"] == {"jobType": "LOAD", "load": {}, "labels": {"team": "data"}}
        assert "configuration" not in http.get(f"{JOBS}?projection=minimal").json()["jobs"][0]

    def test_only_the_selected_fields_are_shown(self, http, seed):
        seed({"jobId": "a", "location": "EU"}, {"jobId": "b", "error": "invalid"})
        fields = "jobs(jobReference(jobId,location),state,errorResult/reason),nextPageToken"
        assert http.get(JOBS, params={"fields": fields}).json() == {
            "jobs": [
                {
                    "jobReference": {"jobId": "b", "location": "US"},
                    "state": "DONE",
                    "errorResult": {"reason": "invalid"},
                },
                {"jobReference": {"jobId": "a", "location": "EU"}, "state": "DONE"},
            ]
        }

    def test_a_selection_of_what_does_not_exist_is_refused(self, http):
        assert http.get(f"{JOBS}?fields=jobs(nonsense)").status_code == 400


class TestAsynchronousClient:
    def test_a_job_can_be_inserted_read_and_cancelled(self, standin, monkeypatch):
        # This client adds scheme and prefix by itself.
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", standin.url.removeprefix("http://"))

        async def scenario():
            async with AsyncJob("a", project="p", location="EU") as job:
                await job.insert(
                    {
                        "jobReference": {"projectId": "p", "jobId": "a", "location": "EU"},
                        "configuration": {"load": {}, "labels": {"standin-running-ms": "60000"}},
                    }
                )
                before = await job.get_job()
                await job.cancel()
                return before, await job.get_job()

        before, after = asyncio.run(scenario())
        assert before["status"] == {"state": "RUNNING"}
        assert after["status"]["errorResult"]["reason"] == "stopped"
