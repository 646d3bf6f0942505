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
