"""What the dispatcher relies on in the job board; which calls that takes is in tests/dispatch/test_job_calls.py.

Only the stand-in keeps this contract here: no emulator of BigQuery can be had from a package registry.
"""

from datetime import UTC, datetime, timedelta

import pytest
import requests
from google.api_core.exceptions import Forbidden, NotFound

from bqdispatch_provider.core.listing import StoredObject, Trace
from bqdispatch_provider.core.model import Job
from bqdispatch_provider.gcp.jobs import JobBoard
from bqdispatch_provider.names import TraceName

LOOKED_UP, LISTED = 3, 30
STATES = {"DONE": {}, "RUNNING": {"runningMs": 10**9}, "PENDING": {"pendingMs": 10**9}}


class BigQuery:
    """Traces and jobs, and a board that looks at them."""

    def __init__(self, session, control):
        self.control = control
        self.board = JobBoard(session)
        self._events = 0

    def traces(self, number, project="p", region="US", dest="ds.t", age=60.0):
        created, traces = datetime.now(UTC) - timedelta(seconds=age), []
        for _ in range(number):
            self._events += 1
            name = TraceName(project, region, dest, str(self._events), 1, "load")
            traces.append(Trace(StoredObject(name.name, 1, created), name, project))
        return traces

    def jobs(self, traces, state="DONE", location=None, **more):
        """The jobs that traces wait for; they were created with them."""
        self.control.seed_jobs(
            {
                "project": trace.project,
                "location": location or trace.name.region or "US",
                "jobId": trace.name.job_id,
                "creationTime": trace.object.created.timestamp(),
                **STATES[state],
                **more,
            }
            for trace in traces
        )

    def look(self, traces):
        return self.board.look(traces)


@pytest.fixture
def bigquery(standin, control, monkeypatch):
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", standin.url)
    with requests.Session() as session:
        yield BigQuery(session, control)


by_either = pytest.mark.parametrize("number", [LOOKED_UP, LISTED], ids=["looked up", "listed"])


@by_either
@pytest.mark.parametrize("state", STATES)
def test_a_jobs_state_and_location_are_told(bigquery, number, state):
    traces = bigquery.traces(number, region="EU")
    bigquery.jobs(traces, state)
    states = bigquery.look(traces)
    assert {key: (job.location, job.state) for key, job in states.jobs.items()} == {
        trace.job: ("EU", state) for trace in traces
    }
    assert states.errors == {}
    assert states.got == (number if number == LOOKED_UP else 0)


@by_either
def test_a_job_that_failed_is_done_and_tells_the_reason(bigquery, number):
    traces = bigquery.traces(number)
    bigquery.jobs(traces, error="invalid")
    assert {(job.state, job.error) for job in bigquery.look(traces).jobs.values()} == {("DONE", "invalid")}


@by_either
def test_when_a_job_ended_is_told_and_nothing_of_one_that_runs(bigquery, number):
    traces = bigquery.traces(number)
    bigquery.jobs(traces, pendingMs=1000, runningMs=2000)
    jobs = bigquery.look(traces).jobs.values()
    assert {round((job.ended - traces[0].object.created).total_seconds()) for job in jobs} == {3}
    running = bigquery.traces(number, region="EU")
    bigquery.jobs(running, "RUNNING", "EU")
    assert {job.ended for job in bigquery.look(running).jobs.values()} == {None}


@by_either
def test_a_job_that_is_not_known_is_neither_seen_nor_an_error(bigquery, number):
    traces = bigquery.traces(number)
    bigquery.jobs(traces[1:])
    states = bigquery.look(traces)
    assert states.jobs.keys() == {trace.job for trace in traces[1:]}
    assert states.errors == {}


@by_either
def test_jobs_that_another_account_submitted_are_seen(bigquery, number):
    traces = bigquery.traces(number)
    bigquery.jobs(traces, userEmail="bqtail@example.com")
    states = bigquery.look(traces)
    assert states.jobs.keys() == {trace.job for trace in traces}
    assert states.got == (number if number == LOOKED_UP else 0)


@by_either
@pytest.mark.parametrize("location", ["US", "EU", "europe-west1"])
def test_a_job_without_a_region_is_found_wherever_it_ran(bigquery, number, location):
    traces = bigquery.traces(number, region=None)
    bigquery.jobs(traces, "RUNNING", location)
    assert bigquery.look(traces).jobs == {trace.job: Job(location, "RUNNING") for trace in traces}


@by_either
def test_a_job_outside_us_and_eu_is_found_by_its_traces_region(bigquery, number):
    traces = bigquery.traces(number, region="asia-northeast1")
    bigquery.jobs(traces)
    jobs = bigquery.look(traces).jobs
    assert {key: (job.location, job.state) for key, job in jobs.items()} == {
        trace.job: ("asia-northeast1", "DONE") for trace in traces
    }


@by_either
def test_a_job_is_found_by_its_region_in_other_letters(bigquery, number):
    traces = bigquery.traces(number, region="us")
    bigquery.jobs(traces, "RUNNING", "US")
    assert {job.state for job in bigquery.look(traces).jobs.values()} == {"RUNNING"}


@by_either
def test_jobs_of_one_id_are_told_apart_by_project_and_location(bigquery, number):
    name = {"dest": "ds.t", "event_id": "999999", "step": 1, "action": "load"}
    wanted = {("p", "US"): "DONE", ("p", "EU"): "RUNNING", ("q", "US"): "PENDING"}
    traces = {}
    for (project, region), state in wanted.items():
        of_one_id = TraceName(project, region, **name)
        traces[state] = Trace(StoredObject(of_one_id.name, 1, datetime.now(UTC)), of_one_id, project)
        bigquery.jobs([traces[state]], state)
    more = [trace for project in "pq" for trace in bigquery.traces(number, project)]
    bigquery.jobs(more)
    states = bigquery.look([*traces.values(), *more])
    assert {state: states.jobs[trace.job].state for state, trace in traces.items()} == {s: s for s in STATES}


@by_either
def test_a_job_of_another_location_is_not_taken_for_the_one_that_is_looked_for(bigquery, number):
    traces = bigquery.traces(number, region="EU")
    bigquery.jobs(traces, location="US")
    assert bigquery.look(traces).jobs == {}


@by_either
def test_a_project_id_with_a_colon_is_asked_for_as_it_is(bigquery, number):
    traces = bigquery.traces(number, "example.com:legacy", dest="example.com:legacy:ds.t")
    bigquery.jobs(traces)
    assert bigquery.look(traces).jobs.keys() == {trace.job for trace in traces}


@by_either
@pytest.mark.parametrize("reason", ["accessDenied", "quotaExceeded"])
def test_a_project_that_refuses_is_named_and_the_others_are_seen(bigquery, number, reason):
    traces = {project: bigquery.traces(number, project) for project in ("closed", "open", "other")}
    for each in traces.values():
        bigquery.jobs(each)
    bigquery.control.add_fault("bigquery.jobs.*", "status", status=403, reason=reason, project="closed")
    states = bigquery.look([trace for each in traces.values() for trace in each])
    assert states.jobs.keys() == {trace.job for trace in [*traces["open"], *traces["other"]]}
    assert states.errors.keys() == {"closed"} and states.errors["closed"].startswith("Forbidden")


def test_a_list_that_is_not_found_is_an_error_of_its_project_and_no_word_about_jobs(bigquery):
    traces = bigquery.traces(LISTED)
    bigquery.control.add_fault("bigquery.jobs.list", "status", status=404, reason="notFound")
    states = bigquery.look(traces)
    assert (states.jobs, states.errors.keys()) == ({}, {"p"})


@by_either
def test_what_a_proxy_answers_is_an_error_of_the_project(bigquery, number, monkeypatch):
    answer = requests.Response()
    answer.status_code, answer._content, answer.url = 407, b'{"error": "who are you?"}', "http://proxy"
    answer.request = requests.Request("GET", "http://proxy").prepare()
    monkeypatch.setattr(bigquery.board.calls._session, "get", lambda *_, **__: answer)
    states = bigquery.look(bigquery.traces(number))
    assert states.jobs == {} and "who are you?" in states.errors["p"]


def test_a_list_goes_on_over_pages(bigquery):
    traces = bigquery.traces(2500)
    bigquery.jobs(traces)
    assert bigquery.look(traces).jobs.keys() == {trace.job for trace in traces}


def test_many_jobs_are_listed_side_by_side_and_found_whenever_they_were_submitted(bigquery):
    traces = [trace for age in range(3000, 0, -1) for trace in bigquery.traces(1, age=age)]
    for each in range(0, 3000, 500):
        bigquery.jobs(traces[each : each + 500])
    late = [trace for age in range(2000, 500, -300) for trace in bigquery.traces(1, age=age)]
    for trace, delay in zip(late, (-250, 0, 3, 60, 400), strict=True):
        bigquery.jobs([trace], creationTime=(trace.object.created + timedelta(seconds=delay)).timestamp())
    states = bigquery.look([*traces, *late])
    assert states.jobs.keys() == {trace.job for trace in [*traces, *late]}
    assert bigquery.control.calls()["bigquery.jobs.list"] <= 8


def test_what_is_done_is_not_asked_for_again(bigquery):
    done, running = bigquery.traces(LISTED), bigquery.traces(1)
    bigquery.jobs(done)
    bigquery.jobs(running, "RUNNING")
    first = bigquery.look([*done, *running])
    bigquery.control.reset_counters()
    assert bigquery.look([*done, *running]).jobs == first.jobs
    assert bigquery.control.calls() == {"bigquery.jobs.get": 1}


def test_recent_jobs_are_everybodys_since_a_moment(bigquery):
    old, mine, theirs = (bigquery.traces(1, age=age) for age in (600, 60, 30))
    for traces in (old, mine):
        bigquery.jobs(traces)
    bigquery.jobs(theirs, userEmail="bqtail@example.com")
    recent, refused, _ = bigquery.board.recent({"p": datetime.now(UTC) - timedelta(minutes=5)})
    assert (recent.keys(), refused) == ({trace.name.job_id for trace in [*mine, *theirs]}, {})


def test_recent_jobs_tell_their_creation_unless_they_are_done(bigquery):
    done, running = bigquery.traces(1), bigquery.traces(1, age=30)
    bigquery.jobs(done)
    bigquery.jobs(running, "RUNNING")
    recent, _, _ = bigquery.board.recent({"p": datetime.now(UTC) - timedelta(minutes=5)})
    since = recent.pop(running[0].name.job_id)
    assert abs(since - running[0].object.created) < timedelta(seconds=5)
    assert recent == {done[0].name.job_id: None}


@pytest.mark.parametrize(
    "ask",
    [lambda board: board.calls.list_one("p"), lambda board: list(board.calls.created_since("p", datetime.now(UTC)))],
)
@pytest.mark.parametrize("refusal", [(403, "accessDenied", Forbidden), (404, "notFound", NotFound)])
def test_a_list_that_is_refused_is_raised_as_what_it_is(bigquery, ask, refusal):
    status, reason, error = refusal
    ask(bigquery.board)
    bigquery.control.add_fault("bigquery.jobs.list", "status", status=status, reason=reason)
    with pytest.raises(error):
        ask(bigquery.board)
