"""All threads that call a host wait once it is too busy, longer each time, and no more once it answers."""

from contextlib import closing

import pytest
from world import FOLDER, TASKS, TRIGGER

from bqdispatch_provider.gcp import rate_limit
from bqdispatch_provider.gcp.storage import TaskStore


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0
        slept = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.slept += seconds
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    monkeypatch.setattr(rate_limit.random, "uniform", lambda least, most: most)
    return clock


def told(host, clock, times):
    for _ in range(times):
        host.wait()
        host.record(busy=True)
    host.wait()
    return clock.slept


def test_nobody_waits_for_a_host_that_answers(clock):
    host = rate_limit.SharedBackoff()
    host.record(busy=False)
    host.wait()
    assert clock.slept == 0


def test_all_wait_for_a_busy_host_twice_as_long_each_time(clock):
    assert told(rate_limit.SharedBackoff(), clock, 4) == pytest.approx(0.2 + 0.4 + 0.8 + 1.6)


def test_the_wait_has_a_limit(clock):
    host = rate_limit.SharedBackoff()
    told(host, clock, 20)
    before = clock.slept
    host.record(busy=True)
    host.wait()
    assert clock.slept - before == 8.0


def test_those_who_are_told_at_the_same_time_count_once(clock):
    host = rate_limit.SharedBackoff()
    for _ in range(8):
        host.record(busy=True)
    host.wait()
    assert clock.slept == pytest.approx(0.2)


def test_an_answer_ends_it(clock):
    host = rate_limit.SharedBackoff()
    told(host, clock, 5)
    host.record(busy=False)
    before = clock.slept
    assert told(host, clock, 1) - before == pytest.approx(0.2)


TOO_MANY = [{"status": 429}, {"status": 403, "reason": "rateLimitExceeded"}]


@pytest.fixture
def noted(monkeypatch):
    """What hosts are noted to be, busy or not."""
    noted = []
    monkeypatch.setattr(rate_limit.SharedBackoff, "record", lambda self, *, busy: noted.append(busy))
    return noted


@pytest.mark.parametrize("fault", [{"status": 503}, *TOO_MANY])
def test_bigquery_is_waited_for(world, noted, fault):
    world.traces(20, state="RUNNING")
    world.control.add_fault("bigquery.jobs.list", "status", times=1, **fault)
    world.cycle()
    assert noted.count(True) == 1


def deletes(world, number):
    """The statuses of so many deletes in one batch."""
    names = [f"{n}" for n in range(number)]
    generations = world.put(*names)
    with closing(TaskStore(world.client, f"gs://{TASKS}/{FOLDER}", TRIGGER)) as store:
        return [result.status for result in store.delete(list(zip(names, generations, strict=True)))]


@pytest.mark.parametrize(("fault", "calls"), [({"status": 503}, 1), *((fault, 20) for fault in TOO_MANY)])
def test_storage_is_waited_for(world, noted, fault, calls):
    world.control.add_fault("storage.objects.delete", "status", times=calls, **fault)
    assert {*deletes(world, calls)} <= {200, 204}
    assert noted.count(True) == 1


@pytest.mark.parametrize("calls", [1, 20, 100])
@pytest.mark.parametrize("fault", TOO_MANY)
def test_storage_is_not_waited_for_because_one_name_was_changed_too_often(world, monkeypatch, noted, fault, calls):
    slower = []
    monkeypatch.setattr(rate_limit.AdaptiveRateLimiter, "record", lambda self, calls, refused: slower.append(refused))
    world.control.add_fault("storage.objects.delete", "status", times=1, **fault)
    assert {*deletes(world, calls)} <= {200, 204}
    assert noted.count(True) == 0
    assert slower == [0, 0]


@pytest.mark.parametrize(
    ("refused", "calls", "many"),
    [(0, 100, False), (1, 100, False), (5, 100, False), (6, 100, True), (1, 1, False), (1, 2, False), (2, 3, True)],
)
def test_a_few_refusals_in_a_batch_are_about_names_and_many_about_the_bucket(refused, calls, many):
    assert rate_limit.too_many(refused, calls) is many


def test_a_name_rests_for_a_second_while_the_others_go_on(clock):
    names = rate_limit.NameCooldown()
    assert names.wait_for_some([0, 1, 2]) == [0, 1, 2]
    names.start([1])
    assert (names.wait_for_some([0, 1]), clock.slept) == ([0], 0)
    clock.now += 0.25
    assert names.wait_for_some([1]) == [1]
    assert clock.slept == pytest.approx(0.75)


def test_names_that_rest_until_different_times_go_on_one_after_the_other(clock):
    names = rate_limit.NameCooldown()
    names.start([0])
    clock.now += 0.5
    names.start([1])
    assert names.wait_for_some([0, 1]) == [0]
    assert clock.slept == pytest.approx(0.5)
    assert names.wait_for_some([1]) == [1]
    assert clock.slept == pytest.approx(1.0)


def test_only_names_that_rest_are_remembered(clock):
    names = rate_limit.NameCooldown()
    for number in range(100):
        names.start([number])
        clock.now += 0.5
    assert len(names._until) == 2


def test_no_calls_are_due_at_once(clock):
    names = rate_limit.NameCooldown()
    names.start([])
    assert (names.wait_for_some([]), clock.slept) == ([], 0)


class Service:
    """Takes so many calls a second, and a second's worth at once."""

    def __init__(self, clock, per_second):
        self.clock, self.per_second = clock, per_second
        self.at, self.left = clock.now, float(per_second)
        self.taken = self.refused = 0

    def answer(self, calls):
        self.left = min(self.per_second, self.left + (self.clock.now - self.at) * self.per_second)
        self.at = self.clock.now
        refused = max(0, calls - int(self.left))
        self.left -= calls - refused
        self.taken += calls - refused
        self.refused += refused
        return refused


def write(limiter, service, number, at_once=100):
    while service.taken < number:
        calls = min(at_once, number - service.taken)
        limiter.acquire(calls)
        limiter.record(calls, service.answer(calls))


def test_a_pace_is_never_faster_than_its_ceiling(clock):
    limiter, service = rate_limit.AdaptiveRateLimiter(5000, 500), Service(clock, 10**9)
    began = clock.now
    write(limiter, service, 50_000)
    assert clock.now - began == pytest.approx(50_000 / 5000, rel=0.01)


@pytest.mark.parametrize("per_second", [700, 1000, 3000])
def test_a_pace_comes_close_to_what_a_service_takes_with_few_refusals(clock, per_second):
    limiter, service = rate_limit.AdaptiveRateLimiter(5000, 500), Service(clock, per_second)
    began = clock.now
    write(limiter, service, 60 * per_second)
    assert service.taken / (clock.now - began) > 0.9 * per_second
    assert service.refused < 0.05 * service.taken


def test_a_pace_grows_again_once_the_service_takes_more(clock):
    limiter, service = rate_limit.AdaptiveRateLimiter(5000, 500), Service(clock, 1000)
    write(limiter, service, 20_000)
    assert limiter.rate < 1200
    service.per_second = 10**9
    write(limiter, service, 200_000)
    assert limiter.rate == pytest.approx(5000, rel=0.01)


def test_a_pace_that_was_idle_for_days_is_as_fast_as_its_ceiling(clock):
    limiter = rate_limit.AdaptiveRateLimiter(5000, 500)
    limiter.record(100, 100)
    clock.now += 10 * 24 * 3600
    limiter.acquire(1)
    assert limiter.rate == 5000


def test_a_pace_goes_on_slowly_where_all_is_refused(clock):
    limiter = rate_limit.AdaptiveRateLimiter(5000, 500)
    for _ in range(100):
        limiter.acquire(100)
        limiter.record(100, 100)
    assert limiter.rate >= 500
    assert rate_limit.AdaptiveRateLimiter(50, 500).rate == 50


def test_calls_of_a_project_that_fail_at_one_time_pause_it_once(clock):
    projects = rate_limit.ProjectBackoff()
    for _ in range(9):
        projects.record("p", "refused")
    clock.sleep(2.5)
    assert projects.paused("p") == ""
    projects.record("p", "refused")
    clock.sleep(2.5)
    assert projects.paused("p") == "refused"
