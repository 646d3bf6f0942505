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
