"""Services that refuse what comes too fast: all gets through all the same, and few calls are made in vain."""

from world import TRIGGER


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


def test_a_ceiling_of_ones_own_is_kept_and_nothing_is_refused(world):
    names = world.traces(1500)
    world.control.set_limits(writes=1000)
    world.control.reset_counters()
    assert world.cycle(MaxWritesPerSecond=600).dispatched == len(names)
    assert world.control.refused() == {}


def test_no_more_jobs_are_looked_up_than_bigquery_allows(world):
    for project in range(60):
        world.traces(5, project=f"p{project}", region="EU")
    world.control.set_limits(jobs=100)
    world.control.reset_counters()
    assert world.cycle().dispatched == 300
    assert world.control.calls()["bigquery.jobs.get"] >= 300
    assert world.control.refused() == {}
