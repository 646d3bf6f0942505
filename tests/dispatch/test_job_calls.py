"""The job board: which calls it takes to know how the jobs of traces stand (what it answers: tests/contract)."""

import pytest


def look(world, **more):
    with world.dispatcher(**more) as dispatcher:
        return dispatcher.look()


def calls(world, method):
    return world.control.calls().get(f"bigquery.jobs.{method}", 0)


def test_a_handful_of_traces_is_looked_up_one_by_one(world):
    world.traces(5, state="RUNNING")
    world.control.reset_counters()
    assert look(world).report.get_count == 5
    assert (calls(world, "get"), calls(world, "list")) == (5, 0)


def test_many_traces_take_one_list(world):
    world.traces(50, state="RUNNING")
    world.control.reset_counters()
    look(world)
    assert (calls(world, "get"), calls(world, "list")) == (0, 1)


def test_the_list_reaches_back_to_the_oldest_trace(world):
    world.traces(5, age=8 * 3600)
    world.traces(5, age=60)
    world.control.reset_counters()
    assert look(world).plan.outcomes == {}
    assert (calls(world, "get"), calls(world, "list")) == (0, 1)


def test_an_old_straggler_is_looked_up_instead_of_listing_all_that_came_since(world):
    world.traces(1, age=20 * 3600)
    world.traces(10, age=60)
    world.jobs([f"other-{n}" for n in range(4000)], age=3600)
    world.control.reset_counters()
    assert look(world).report.get_count == 1
    assert (calls(world, "get"), calls(world, "list")) == (1, 1)


def test_traces_without_a_job_do_not_cost_a_call_each(world):
    world.traces(300, state=None)
    world.control.reset_counters()
    assert sum(look(world).plan.not_found.values()) == 300
    assert calls(world, "get") <= 100


@pytest.mark.parametrize("number", [3, 30])
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 429},
        {"kind": "status", "status": 403, "reason": "rateLimitExceeded"},
        {"kind": "reset"},
    ],
)
def test_what_passes_is_asked_again(world, number, fault):
    world.traces(number)
    world.control.add_fault("bigquery.jobs.*", times=2, **fault)
    assert look(world).report.ok


@pytest.mark.parametrize("reason", ["accessDenied", "quotaExceeded"])
def test_what_does_not_pass_is_asked_once(world, reason):
    world.traces(30)
    world.control.add_fault("bigquery.jobs.*", "status", status=403, reason=reason)
    world.control.reset_counters()
    report = look(world).report
    assert len(report.errors) == 1
    assert calls(world, "list") == 1


@pytest.mark.parametrize("reason", ["userRateLimitExceeded", "jobRateLimitExceeded"])
def test_too_many_calls_pass_by_whatever_name(world, reason):
    world.traces(3)
    world.control.add_fault("bigquery.jobs.*", "status", times=2, status=403, reason=reason)
    assert look(world).report.ok


ODD_LISTS = {
    "a job without statistics": [{"state": "RUNNING", "jobReference": {"jobId": "x", "location": "US"}}],
    "a job without a reference": [{"state": "DONE"}],
    "a reference that is none": [{"state": "DONE", "jobReference": "x"}],
    "a job that is none": ["x", None],
    "an odd time": [{"state": "DONE", "jobReference": {"jobId": "x"}, "statistics": {"endTime": "soon"}}],
    "jobs that are none": None,
}


def answers(board, change):
    """Let BigQuery answer otherwise."""
    ask = board._ask

    def asked(path, query):
        answer = ask(path, query)
        change(path, answer)
        return answer

    board._ask = asked


@pytest.mark.parametrize("odd", ODD_LISTS.values(), ids=ODD_LISTS)
@pytest.mark.parametrize("number", [3, 30])
def test_an_odd_job_in_a_list_is_passed_over(world, odd, number):
    world.traces(number)
    world.trace(state=None, root=True)  # makes a list

    def change(path, answer):
        if path.endswith("/jobs"):
            answer["jobs"] = None if odd is None else [*odd, *answer["jobs"]]

    with world.dispatcher() as dispatcher:
        answers(dispatcher.board, change)
        document = dispatcher.cycle().to_dict()
    assert (document["Outcomes"]["dispatched"], document["Status"]) == (number, "ok")


@pytest.mark.parametrize("number", [3, 30])
def test_the_state_of_a_job_is_read_wherever_it_stands(world, number):
    """``jobs.list`` has it twice, and an emulator may have it once."""
    world.traces(number)

    def change(path, answer):
        for job in answer.get("jobs", ()):
            job["status"] = {"state": job.pop("state")}

    with world.dispatcher() as dispatcher:
        answers(dispatcher.board, change)
        assert dispatcher.cycle().dispatched == number


@pytest.mark.parametrize("number", [3, 30])
def test_a_trace_whose_job_cannot_be_read_waits_and_counts_as_active_and_is_named(world, number):
    bad, *_ = names = world.traces(number)
    other = world.trace(project="q")

    def change(path, answer):
        for job in answer.get("jobs", [answer]):
            if bad.rpartition("/")[2] in f"{path} {job['jobReference'].get('jobId')}".replace("ds_t", "ds.t"):
                job.pop("state", None)
                job.pop("status", None)

    with world.dispatcher(MaxConcurrentJobs=2) as dispatcher:
        answers(dispatcher.board, change)
        document = dispatcher.cycle().to_dict()
    assert document["Outcomes"]["dispatched"] == 2
    assert other not in world.names()
    assert bad in world.names()
    assert len(world.names()) == len(names) - 1
    (error,) = document["Errors"]
    assert repr(bad) in error
    assert "its state is None" in error


def test_a_job_that_may_not_be_asked_for_is_named_and_keeps_nothing_else_back(world):
    bad, _ = world.traces(2, age=120)
    refused = world._event - 1
    world.control.add_fault("bigquery.jobs.get", "status", status=400, name=f"*--{refused}_*")
    document = world.cycle(MaxConcurrentJobs=1).to_dict()
    assert world.names() == [bad]
    (error,) = document["Errors"]
    assert repr(bad) in error
    assert "400" in error


def test_a_trace_that_stays_undecided_is_named_with_since_when_and_what_was_asked(world):
    name = world.trace(state=None, age=200 * 24 * 3600)
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"not_found": 1}
    (error,) = document["Errors"]
    assert f"{name!r} waits since 2" in error
    assert "project 'p', location 'US': not found" in error


@pytest.mark.parametrize("text", ["[]", "null", '"x"'])
def test_an_answer_that_is_no_object_is_an_error_of_its_project(world, text, monkeypatch):
    world.trace(project="q")
    world.trace()
    with world.dispatcher() as dispatcher:
        monkeypatch.setattr("bqdispatch_provider.jobs._RETRY", lambda asked: asked)
        get = dispatcher.session.get

        def answered(url, **more):
            answer = get(url, **more)
            if "/projects/q/" in url:
                answer._content = text.encode()
            return answer

        dispatcher.session.get = answered
        document = dispatcher.cycle().to_dict()
    assert document["Outcomes"] == {"dispatched": 1, "error": 1}
    assert "project 'q'" in document["Errors"][0]
