"""The metrics of a real task in a real Airflow."""

from runs import has_ended, trigger


def test_a_real_task_sends_its_metrics_to_statsd(live, statsd, world, bqtail, unpaused, wait_until):
    world.trace("copy", project="acme-shop")
    statsd.ours()
    with unpaused("dispatch_tables"):
        run = trigger(live, "dispatch_tables", "metrics")
        wait_until(lambda: has_ended(live, run), "it is dispatched")
    sent = statsd.ours()
    assert ("airflow.bqdispatch.bqdispatch_default.dispatched.acme-shop.jobs", 1, "c") in sent
    assert [kind for name, _, kind in sent if name.endswith(".performance_written")]
