"""A DAG that is scheduled by a table's asset, in a real Airflow."""

from runs import has_ended, put_files, returned, trigger


def started(live, dag_id):
    """The runs of a DAG that its table has started and that have ended well, as paths."""
    runs = live.get(f"dags/{dag_id}/dagRuns", state="success")["dag_runs"]
    assert {run["run_type"] for run in runs} <= {"asset_triggered"}
    return [f"dags/{dag_id}/dagRuns/{run['dag_run_id']}" for run in runs]


def test_a_dag_starts_when_the_job_that_wrote_its_table_was_dispatched(live, world, bqtail, unpaused, wait_until):
    with unpaused("after_summary"), unpaused("bqdispatch"):
        put_files(bqtail, "ds.f")
        wait_until(lambda: started(live, "after_summary"), "the table's DAG has run")
    extra = returned(live, started(live, "after_summary")[-1], "use")[0]
    assert extra["action"] == "query"  # the load before it wrote a transient table
    assert extra["job_id"].startswith(f"ds_f--{extra['event_id']}_0000{extra['step']}_query--")
    assert (extra["project"], bool(extra["location"]), bool(extra["end_time"])) == ("p", True, True)


def test_of_a_load_and_the_copy_that_follows_only_the_copy_starts_it(live, world, bqtail, unpaused, wait_until):
    with unpaused("after_orders"), unpaused("dispatch_tables"):
        for action in ("load", "copy"):
            world.trace(action, dest="ds.orders", writes={"load": "temp.orders_{event}"}.get(action))
            run = trigger(live, "dispatch_tables", action)
            wait_until(lambda run=run: has_ended(live, run), "it is dispatched")
            assert returned(live, run, "dispatch")["Outcomes"]["dispatched"] == 1
        wait_until(lambda: started(live, "after_orders"), "the table's DAG has run")
    (run,) = started(live, "after_orders")
    assert [extra["action"] for extra in returned(live, run, "use")] == ["copy"]
