"""All threads that call a host wait once it is too busy, longer each time, and no more once it answers."""

import pytest

from bqdispatch_provider import courtesy


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
    monkeypatch.setattr(courtesy, "time", clock)
    monkeypatch.setattr(courtesy.random, "uniform", lambda least, most: most)
    return clock


def told(host, clock, times):
    for _ in range(times):
        host.wait()
        host.note(busy=True)
    host.wait()
    return clock.slept


def test_nobody_waits_for_a_host_that_answers(clock):
    host = courtesy.Courtesy()
    host.note(busy=False)
    host.wait()
    assert clock.slept == 0


def test_all_wait_for_a_busy_host_twice_as_long_each_time(clock):
    assert told(courtesy.Courtesy(), clock, 4) == pytest.approx(0.2 + 0.4 + 0.8 + 1.6)


def test_the_wait_has_a_limit(clock):
    host = courtesy.Courtesy()
    told(host, clock, 20)
    before = clock.slept
    host.note(busy=True)
    host.wait()
    assert clock.slept - before == 8.0


def test_those_who_are_told_at_the_same_time_count_once(clock):
    host = courtesy.Courtesy()
    for _ in range(8):
        host.note(busy=True)
    host.wait()
    assert clock.slept == pytest.approx(0.2)


def test_an_answer_ends_it(clock):
    host = courtesy.Courtesy()
    told(host, clock, 5)
    host.note(busy=False)
    before = clock.slept
    assert told(host, clock, 1) - before == pytest.approx(0.2)


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"status": 403, "reason": "rateLimitExceeded"}])
def test_storage_and_bigquery_are_waited_for(world, monkeypatch, fault):
    noted = []
    monkeypatch.setattr(courtesy.Courtesy, "note", lambda self, *, busy: noted.append((self, busy)))
    world.traces(20)
    world.control.add_fault("storage.objects.delete", "status", times=1, **fault)
    world.control.add_fault("bigquery.jobs.list", "status", times=1, **fault)
    world.cycle()
    assert len({host for host, busy in noted if busy}) == 2


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


def write(pace, service, number, at_once=100):
    while service.taken < number:
        calls = min(at_once, number - service.taken)
        pace.take(calls)
        pace.note(calls, service.answer(calls))


def test_a_pace_is_never_faster_than_its_ceiling(clock):
    pace, service = courtesy.Pace(5000, 500), Service(clock, 10**9)
    began = clock.now
    write(pace, service, 50_000)
    assert clock.now - began == pytest.approx(50_000 / 5000, rel=0.01)


@pytest.mark.parametrize("per_second", [700, 1000, 3000])
def test_a_pace_comes_close_to_what_a_service_takes_with_few_refusals(clock, per_second):
    pace, service = courtesy.Pace(5000, 500), Service(clock, per_second)
    began = clock.now
    write(pace, service, 60 * per_second)
    assert service.taken / (clock.now - began) > 0.9 * per_second
    assert service.refused < 0.05 * service.taken


def test_a_pace_grows_again_once_the_service_takes_more(clock):
    pace, service = courtesy.Pace(5000, 500), Service(clock, 1000)
    write(pace, service, 20_000)
    assert pace.rate < 1200
    service.per_second = 10**9
    write(pace, service, 200_000)
    assert pace.rate == pytest.approx(5000, rel=0.01)


def test_a_pace_that_was_idle_for_days_is_as_fast_as_its_ceiling(clock):
    pace = courtesy.Pace(5000, 500)
    pace.note(100, 100)
    clock.now += 10 * 24 * 3600
    pace.take(1)
    assert pace.rate == 5000


def test_a_pace_goes_on_slowly_where_all_is_refused(clock):
    pace = courtesy.Pace(5000, 500)
    for _ in range(100):
        pace.take(100)
        pace.note(100, 100)
    assert pace.rate >= 500
    assert courtesy.Pace(50, 500).rate == 50
