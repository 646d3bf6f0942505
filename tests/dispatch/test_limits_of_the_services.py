"""Services that refuse what comes too fast: all gets through all the same, and few calls are made in vain."""

import time

from world import TASKS, TRIGGER

from bqdispatch_provider.gcp.job_calls import MAX_CALLS_PER_S


def test_a_bucket_that_takes_a_thousand_writes_a_second_gets_all_with_few_refusals(world):
    names = world.traces(4000)
    world.control.set_limits(writes=1000)
    world.control.reset_counters()
    began = world.control.now()
    report = world.cycle()
    took = world.control.now() - began
    assert report.to_dict()["Outcomes"] == {"dispatched": 4000}
    assert report.errors == []
    assert len(world.names(TRIGGER)) == len(names)
    assert world.names() == []
    assert took > 2.5  # a second's worth at once, then a thousand a second: it was the bucket that set the pace
    assert sum(world.control.refused().values()) < 0.25 * 2 * len(names)


def test_a_ceiling_of_ones_own_is_kept(world):
    """By the times for which the calls are meant: on a busy machine some come later, and then all at once."""
    names = world.traces(1500)
    world.control.reset_counters()
    with world.dispatcher(MaxWritesPerSecond=600) as dispatcher:
        began = time.monotonic()
        assert dispatcher.cycle().dispatched == len(names)
        for bucket, writes in ((TRIGGER, "storage.objects.copy"), (TASKS, "storage.objects.delete")):
            assert world.control.calls()[writes] >= len(names)
            assert dispatcher.store.calls._limiters[bucket]._next - began >= len(names) / 600


def test_no_more_jobs_are_looked_up_than_bigquery_allows(world):
    for project in range(60):
        world.traces(5, project=f"p{project}", region="EU")
    world.control.reset_counters()
    with world.dispatcher() as dispatcher:
        began = time.monotonic()
        assert dispatcher.cycle().dispatched == 300
        asked = world.control.calls()["bigquery.jobs.get"]
        assert asked >= 300
        assert dispatcher.board.calls._limiter._next - began >= asked / MAX_CALLS_PER_S
    assert MAX_CALLS_PER_S <= 100  # BigQuery, "Quotas and limits": API requests a second, user and method
