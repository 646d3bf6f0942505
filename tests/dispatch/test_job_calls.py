"""The job board: which calls it takes to know how the jobs of traces stand (what it answers: tests/contract)."""

import json
import threading
from types import SimpleNamespace

import pytest
from waiting import HELD_MS, PATIENCE_S, wait_until
from world import FOLDER, TASKS

from bqdispatch_provider.gcp import job_calls
from bqdispatch_provider.gcp.job_search import PARALLEL_CALLS
from bqdispatch_provider.gcp.rate_limit import AdaptiveRateLimiter, ProjectBackoff


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
def test_what_passes_is_asked_again(world, monkeypatch, number, fault):
    # Which failures are retried, and not for how long: a machine with much to do takes seconds for a call.
    monkeypatch.setattr(job_calls, "RETRY_FAILURES", job_calls.RETRY_FAILURES.with_timeout(PATIENCE_S))
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
    ask = board.calls.ask

    def asked(path, query):
        answer = ask(path, query)
        change(path, answer)
        return answer

    board.calls.ask = asked


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
    assert "its state is 'None'" in error


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
    assert f"trace {name!r} has waited since 2" in error
    assert "project 'p', location 'US': not found" in error


@pytest.mark.parametrize("text", ["[]", "null", '"x"'])
def test_an_answer_that_is_no_object_is_an_error_of_its_project(world, text, asked_once):
    world.trace(project="q")
    world.trace()
    with world.dispatcher() as dispatcher:
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


@pytest.mark.parametrize(
    ("text", "outcome"), [('{"error": {"code": 503, "message": "try again"}}', "error"), ('{"jobs": 7}', "not_found")]
)
def test_what_is_no_list_of_jobs_proves_nothing(world, text, outcome, asked_once):
    """A proxy may answer with the status 200, which is no empty list either."""
    name = world.trace(state=None, root=True, age=2 * 24 * 3600)
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location="asia-northeast1", age=2 * 24 * 3600)
    world.control.add_fault("bigquery.jobs.list", "text", status=200, text=text)
    with world.dispatcher() as dispatcher:
        document = dispatcher.cycle().to_dict()
        assert (document["Status"], document["Outcomes"]) == ("error", {outcome: 1})
        assert "'p'" in document["Error"]
        world.control.clear_faults()
        assert list(dispatcher.cycle().jobs) == [world.url_of(name)]


# ---- traces whose names do not say where their jobs are ----------------------------------------------------------


def said(world, location, project="p", job_id=None):
    """The content of the next trace, as BqTail writes it: it names its job, and where that is."""
    job_id = job_id or f"ds_t--{world._event + 1}_00001_load--dispatch"
    return json.dumps({"Job": {"jobReference": {"projectId": project, "location": location, "jobId": job_id}}})


def test_a_job_is_where_its_traces_content_says(world):
    """Also when the trace was written again long after its job was submitted."""
    world.trace(state=None, root=True, content=said(world, "asia-northeast1"))
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location="asia-northeast1", age=12 * 60)
    world.control.reset_counters()
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 1}
    assert (calls(world, "get"), calls(world, "list")) == (1, 0)


def test_the_content_of_a_trace_is_read_once_however_long_its_job_runs(world):
    world.trace(region="", state=None, root=True, content=said(world, "asia-northeast1"))
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], "RUNNING", location="asia-northeast1")
    with world.dispatcher() as dispatcher:
        dispatcher.look()
        world.control.reset_counters()
        assert sum(dispatcher.look().report.to_dict()["Running"].values()) == 1
    counted = world.control.calls()
    assert (counted["bigquery.jobs.get"], counted.get("storage.objects.get")) == (1, None)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"Job": null}',
        '{"Job": {"jobReference": {"projectId": 1, "location": "EU", "jobId": "x"}}}',
        "[" * 50_000,
    ],
)
def test_content_that_does_not_say_where_a_job_is_leaves_the_list(world, content):
    world.trace(state=None, root=True, content=content)
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location="asia-northeast1")
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 1}


def test_content_is_believed_of_its_own_job_alone(world):
    world.jobs(["somebody_elses"])
    world.trace(state=None, root=True, content=said(world, "US", job_id="somebody_elses"))
    assert world.cycle().to_dict()["Outcomes"] == {"not_found": 1}


def test_a_project_that_only_the_content_of_a_trace_names_is_no_reason_to_give_up_that_of_the_folder(world):
    bad = world.trace(root=True, content=said(world, "US", "secret"))
    good = world.trace()
    world.control.refuse("bigquery.jobs.get", project="secret")
    document = world.cycle().to_dict()
    assert list(document["Jobs"]) == [world.url_of(good)]
    assert repr(bad) in document["Error"]


def test_content_that_cannot_be_read_now_is_read_by_a_later_look(world):
    name = world.trace(state=None, root=True, content=said(world, "asia-northeast1"))
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location="asia-northeast1", age=20 * 60)
    world.control.add_fault("storage.objects.get", "status", status=403, bucket=TASKS, name=f"{FOLDER}{name}")
    with world.dispatcher() as dispatcher:
        document = dispatcher.cycle().to_dict()
        assert document["Outcomes"] == {"not_found": 1}
        assert f"trace {name!r} has waited since" in document["Error"]
        assert "its content, which may say where that job is, cannot be read: Forbidden: 403" in document["Error"]
        world.control.clear_faults()
        assert dispatcher.cycle().to_dict()["Outcomes"] == {"dispatched": 1}


def test_content_that_cannot_be_read_is_no_error_of_a_trace_whose_job_is_found_or_that_is_gone(world, monkeypatch):
    found = world.trace(root=True)
    world.control.refuse("storage.objects.get", bucket=TASKS, prefix=f"{FOLDER}{found}")
    gone = world.trace(state=None, root=True)
    with world.dispatcher() as dispatcher:
        board_look = dispatcher.board.look

        def look_late(*given):
            world.delete(gone)
            return board_look(*given)

        monkeypatch.setattr(dispatcher.board, "look", look_late)
        assert dispatcher.look().report.errors == []


def pages_of(world, monkeypatch, number, since=3600):
    """Fill so many pages with jobs of others, evenly since a while ago."""
    monkeypatch.setattr("bqdispatch_provider.gcp.job_calls.PAGE_SIZE", 10)
    for n in range(10 * number):
        world.jobs([f"other-{number}-{n}"], age=since * (n + 0.5) / (10 * number))


def test_where_nothing_but_a_list_can_tell_a_few_pages_are_read_and_none_again(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.job_search.MAX_PAGES", 5)
    pages_of(world, monkeypatch, 3)
    world.trace(state=None, root=True, age=4000)
    with world.dispatcher() as dispatcher:
        dispatcher.look()
        listed = calls(world, "list")
        dispatcher.look()
        assert (listed, calls(world, "list") - listed) == (3, 1)
    pages_of(world, monkeypatch, 30)
    world.control.reset_counters()
    look(world)
    assert calls(world, "list") == 5


def test_a_job_behind_more_pages_than_are_read_is_found_by_a_later_look(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.job_search.MAX_PAGES", 5)
    pages_of(world, monkeypatch, 12)
    world.trace(state=None, root=True, age=4000)
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location="asia-northeast1", age=3900)
    with world.dispatcher() as dispatcher:
        seen = [dispatcher.cycle().to_dict()["Outcomes"] for _ in range(3)]
    assert seen == [{"not_found": 1}, {"not_found": 1}, {"dispatched": 1}]


def test_a_job_is_proven_unknown_by_looks_that_read_a_part_of_the_list_each(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.job_search.MAX_PAGES", 5)
    pages_of(world, monkeypatch, 12, since=25 * 3600)
    world.trace(state=None, root=True, age=3700)
    with world.dispatcher(MaxUnknownJobMin=60) as dispatcher:
        seen = [dispatcher.cycle().to_dict()["Outcomes"] for _ in range(3)]
    assert seen == [{"not_found": 1}, {"not_found": 1}, {"quarantined": 1}]


@pytest.mark.parametrize("forgotten", [150, 1000])
def test_many_jobs_that_bigquery_has_forgotten_make_no_look_read_half_a_year(world, monkeypatch, forgotten):
    """As the Go dispatcher leaves them, which has asked for them for years."""
    day = 24 * 3600
    pages_of(world, monkeypatch, 100, since=170 * day)
    for age in (200, 400):
        world.traces(forgotten // 2, state=None, age=age * day)
    old = [world.trace(age=age * day) for age in (100, 150)]
    new = world.traces(20)
    with world.dispatcher() as dispatcher:
        world.control.reset_counters()
        assert {*map(world.url_of, new)} <= dispatcher.cycle().jobs.keys()
        assert calls(world, "list") < 20
        assert calls(world, "get") <= 100
        monkeypatch.setattr("bqdispatch_provider.gcp.job_search.MAX_LOOKUPS", 500)
        wait_until(lambda: dispatcher.cycle() and not {*old} & {*world.names()}, "the others have their turn")


def test_what_a_list_has_shown_is_looked_up_where_it_was(world):
    world.trace(state=None, root=True)
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], "RUNNING", location="asia-northeast1")
    with world.dispatcher() as dispatcher:
        dispatcher.look()
        world.control.reset_counters()
        assert dispatcher.look().report.get_count == 1
    assert (calls(world, "get"), calls(world, "list")) == (1, 0)


@pytest.mark.parametrize(("pages", "root"), [(40, False), (40, True), (3, False)])
def test_look_ups_side_by_side_are_preferred_to_many_pages_one_after_the_other(world, monkeypatch, pages, root):
    pages_of(world, monkeypatch, pages)
    for _ in range(60):
        world.trace(state="RUNNING", age=3700, root=root, content=said(world, "US"))
    world.control.reset_counters()
    sight = look(world)
    assert sum(sight.report.to_dict()["Running"].values()) == 60
    counted = (calls(world, "get"), calls(world, "list"))
    assert counted == ((60, 1) if pages == 40 else (0, 9))


# ---- projects do not wait for one another ------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    """The project ``slow`` is waited for half a second, and all others as long as it takes."""
    monkeypatch.setattr(ProjectBackoff, "timeout_s", lambda _, project: 0.5 if project == "slow" else PATIENCE_S)


def test_a_project_that_does_not_answer_keeps_no_other_one(world, impatient):
    slow = world.traces(3, project="slow")
    world.control.add_fault("bigquery.*", "slow", project="slow", ms=HELD_MS)
    with world.dispatcher() as dispatcher:
        for _ in range(3):
            good = world.traces(3)
            document = dispatcher.cycle().to_dict()
            assert set(document["Jobs"]) == {world.url_of(name) for name in good}
            assert document["Outcomes"]["error"] == 3
            assert "project 'slow'" in document["Error"]
            assert "no answer yet" in document["Error"]
        assert calls(world, "get") == 3 * 3 + len(slow), "it is asked once"
        world.control.clear_faults()
        wait_until(lambda: dispatcher.cycle() and not world.names(), "the slow project's traces are dispatched")


def test_a_project_that_refuses_is_asked_ever_more_rarely(world, asked_once, monkeypatch):
    seconds = []
    clock = SimpleNamespace(monotonic=lambda: len(seconds), sleep=lambda _: None)
    monkeypatch.setattr("bqdispatch_provider.gcp.rate_limit.time", clock)
    world.traces(1, project="bad")
    world.control.add_fault("bigquery.*", "status", project="bad", status=503)
    with world.dispatcher() as dispatcher:
        for _ in range(30):  # a cycle a second
            seconds.append(1)
            world.trace()
            document = dispatcher.cycle().to_dict()
            assert (document["Outcomes"]["dispatched"], document["Outcomes"]["error"]) == (1, 1)
            assert "503" in document["Error"]
    assert 2 <= calls(world, "get") - 30 < 10


@pytest.mark.parametrize("status", [403, 500])
def test_a_job_that_may_not_be_asked_for_keeps_no_other_job_of_its_project(world, asked_once, monkeypatch, status):
    seconds = []
    clock = SimpleNamespace(monotonic=lambda: len(seconds), sleep=lambda _: None)
    monkeypatch.setattr("bqdispatch_provider.gcp.rate_limit.time", clock)
    bad = world.trace(dest="ds.bad")
    world.control.add_fault("bigquery.jobs.get", "status", name="*bad*", status=status)
    with world.dispatcher() as dispatcher:
        for _ in range(20):  # a cycle a second
            seconds.append(1)
            name = world.trace()
            document = dispatcher.cycle().to_dict()
            assert list(document["Jobs"]) == [world.url_of(name)]
            assert str(status) in document["Error"]
    assert world.names() == [bad]


def test_a_location_that_refuses_every_look_up_is_given_up_for_this_look(world, asked_once):
    world.traces(90, dest="ds.bad")
    world.control.add_fault("bigquery.jobs.list", "text", status=200, text="{}")  # so all are looked up
    world.control.add_fault("bigquery.jobs.get", "status", status=500, name="*bad*")
    good = world.traces(5, dest="ds.good", region="EU")
    world.control.reset_counters()
    report = look(world).report
    assert calls(world, "get") == report.get_count < 3 * PARALLEL_CALLS
    assert "500" in report.to_dict()["Error"]
    with world.dispatcher() as dispatcher:
        assert set(dispatcher.cycle().to_dict()["Jobs"]) == {world.url_of(name) for name in good}


def test_under_a_limit_a_share_waits_for_no_other_project(world, impatient):
    world.traces(2, project="slow")
    good = world.traces(2)
    with world.dispatcher(MaxConcurrentJobs=2) as dispatcher:
        shares = dispatcher.look().plan.shares()
    world.control.add_fault("bigquery.*", "slow", project="slow", ms=HELD_MS)
    with world.dispatcher(MaxConcurrentJobs=2) as dispatcher:
        document = dispatcher.dispatch(shares).to_dict()
    assert set(document["Jobs"]) == {world.url_of(name) for name in good}
    assert document["Outcomes"] == {"dispatched": 2, "throttled": 2}
    assert "project 'slow'" in document["Error"]
    world.control.clear_faults()


def settles(world, dispatcher, outcomes):
    """Run cycles until they come to these outcomes, of all but intents."""

    def is_settled():
        found = dispatcher.cycle().to_dict()["Outcomes"]
        return {key: number for key, number in found.items() if key != "ignored"} == outcomes

    wait_until(is_settled, f"cycles come to {outcomes}")


def test_a_project_that_has_not_answered_once_is_waited_for_again_once_it_answers(world, monkeypatch):
    monkeypatch.setattr("bqdispatch_provider.gcp.rate_limit.ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr("bqdispatch_provider.gcp.rate_limit.ANSWER_TIMEOUT_AFTER_FAILURE_S", 0.05)
    world.traces(3, state="RUNNING")
    world.control.add_fault("bigquery.*", "slow", ms=HELD_MS)
    with world.dispatcher() as dispatcher:
        assert dispatcher.cycle().outcomes["error"] == 3
        monkeypatch.setattr("bqdispatch_provider.gcp.rate_limit.ANSWER_TIMEOUT_S", PATIENCE_S)
        world.control.clear_faults()
        world.control.add_fault("bigquery.*", "slow", ms=200)  # longer than its patience meanwhile
        settles(world, dispatcher, {"running": 3})


def test_a_project_is_waited_for_as_long_as_it_answers(world, monkeypatch):
    """For a process of one cycle loses what it has answered so far."""
    monkeypatch.setattr("bqdispatch_provider.gcp.rate_limit.ANSWER_TIMEOUT_S", 20.0)
    pages_of(world, monkeypatch, 20)
    world.traces(110, age=3700)
    answers, lock, get = [], threading.Lock(), world.session.get

    def get_alone(*given, **more):
        with lock:
            answers.append(get(*given, **more))
            return answers[-1]

    monkeypatch.setattr(world.session, "get", get_alone)
    for module in ("jobs", "job_calls"):  # each answer takes a second
        monkeypatch.setattr(
            f"bqdispatch_provider.gcp.{module}.time", SimpleNamespace(monotonic=lambda: float(len(answers)))
        )
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 110}


def test_many_projects_do_not_take_their_own_pace_for_no_answer(world, monkeypatch):
    """One call waits for its turn, by a clock of its own far longer than a project is waited for."""
    answered, looks, now, first = [], [], [0.0], threading.Lock()
    get = world.session.get

    def count_answers(*given, **more):
        answered.append(get(*given, **more))
        return answered[-1]

    def wait_for_a_turn(*_):
        if first.acquire(blocking=False):
            wait_until(lambda: len(answered) == 13, "all others are answered")
            now[0] = 1000.0
            looks.clear()
            wait_until(lambda: len(looks) > 3, "it is looked whether the project has answered")

    def monotonic():
        looks.append(now[0])
        return now[0]

    monkeypatch.setattr(world.session, "get", count_answers)
    monkeypatch.setattr(AdaptiveRateLimiter, "acquire", wait_for_a_turn)
    for module in ("jobs", "job_calls"):
        monkeypatch.setattr(f"bqdispatch_provider.gcp.{module}.time", SimpleNamespace(monotonic=monotonic))
    for number in range(14):
        world.traces(1, project=f"p{number}")
    with world.dispatcher() as dispatcher:
        assert sum(map(len, dispatcher.look().plan.events.values())) == 14


def test_a_job_whose_place_content_tells_is_not_called_unknown_for_a_list_that_lacks_it(world):
    """Beside others that the list shows."""
    day = 25 * 3600
    for _ in range(6):
        world.trace(root=True, age=day)
    world.trace(state=None, root=True, age=day, content=said(world, "asia-northeast1"))
    world.jobs([f"ds_t--{world._event}_00001_load--dispatch"], location="asia-northeast1", age=day + 1800)
    assert world.cycle().to_dict()["Outcomes"] == {"dispatched": 7}


def test_a_job_that_is_unknown_where_its_traces_content_says_is_set_aside_with_that_place(world):
    world.trace(state=None, root=True, age=25 * 3600, content=said(world, "asia-northeast1"))
    document = world.cycle().to_dict()
    assert document["Outcomes"] == {"quarantined": 1}
    assert "location 'asia-northeast1'" in next(iter(document["Quarantined"].values()))
