"""Data-aware scheduling: which events of which assets come of what was dispatched."""

import os

import pytest
from world import JOURNAL, TASKS

from bqdispatch_provider import assets
from bqdispatch_provider.assets import table_asset
from bqdispatch_provider.factory import dispatch_dag

HAS = {"event_id", "step", "action", "job_id", "project", "location", "end_time"}


def uris(done):
    return sorted(uri for uri, _ in done.asset_events())


def test_each_event_whose_job_went_well_tells_of_its_table(world, run, document):
    trace = world.trace("copy", project="q", region="EU", dest="acme-shop:sales.orders$20240305")
    world.trace("load", dest="ds.t")
    world.window()
    done = run("bqdispatch", "bqdispatch.py")
    events = dict(done.asset_events())
    assert set(events) == {"x-bqtail://acme-shop/sales/orders", "x-bqtail://p/ds/t"}
    assert table_asset("acme-shop.sales.orders").uri in events
    job = document(done)["Jobs"][world.url_of(trace)]
    assert events["x-bqtail://acme-shop/sales/orders"] == {
        "event_id": "1001",
        "step": 1,
        "action": "copy",
        "job_id": job["ID"],
        "project": "q",
        "location": "EU",
        "end_time": job["EndTime"],
    }
    assert set(events["x-bqtail://p/ds/t"]) == HAS


def test_events_of_one_table_are_all_kept(world, run):
    world.traces(20)
    done = run("bqdispatch", "bqdispatch.py")
    assert len({extra["job_id"] for _, extra in done.asset_events()}) == 20


def test_an_event_whose_job_went_badly_tells_of_nothing(world, run, document):
    bad, good = world.trace(state=None), world.trace(dest="ds.good")
    job_id = bad.rpartition("/")[2].replace(".", "_")
    world.jobs([job_id], error="invalid", writes=lambda _: "ds.t")
    done = run("bqdispatch", "bqdispatch.py")
    assert set(document(done)["Jobs"]) == {world.url_of(bad), world.url_of(good)}
    assert uris(done) == ["x-bqtail://p/ds/good"]


def test_a_load_into_a_transient_table_tells_of_nothing_and_the_copy_that_follows_of_its_table(world, run):
    world.trace("load", dest="sales.orders", writes="temp.orders_{event}")
    world.trace("copy", dest="sales.orders")
    (told,) = run("bqdispatch", "bqdispatch.py").asset_events()
    assert (told[0], told[1]["action"]) == ("x-bqtail://p/sales/orders", "copy")


def test_a_job_tells_of_the_table_that_it_has_written_whatever_its_trace_is_called(world, run):
    world.trace("query", dest="sales.orders", writes="q.summary.daily")
    world.trace("query", dest="sales.orders", writes="_0123456789abcdef.anon42")
    world.trace("export", dest="sales.orders")
    assert uris(run("bqdispatch", "bqdispatch.py")) == ["x-bqtail://q/summary/daily"]


@pytest.mark.parametrize("dag", ["strict", "alone"])
def test_events_come_through_an_alias_that_is_called_as_the_connection(world, run, dag):
    world.trace()
    done = run(dag)
    assert (done.state, len(done.asset_events())) == ("success", 1)
    assert done.aliases() == ["bqdispatch_default"]


@pytest.mark.parametrize(("way", "task"), [("minute", "report"), ("deferred", "dispatch")])
def test_the_alias_of_a_set_up_is_called_as_its_connection(database, way, task):
    from airflow.providers.common.compat.sdk import AssetAlias

    assert dispatch_dag("acme", way).get_task(task).outlets == [AssetAlias("bqdispatch_acme")]


@pytest.mark.parametrize(("dag", "told"), [("alone", 2), ("alone_deferred", 2), ("no_assets", 0), ("mapped", 2)])
def test_assets_are_told_of_whichever_way_it_runs(world, run, dag, told):
    world.trace("load")
    world.trace("copy")
    done = run(dag)
    assert done.state == "success"
    assert len(done.asset_events()) == told


def test_the_report_of_another_set_up_takes_nothing_over(world, connect, run, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_BQDISPATCH_ACME", os.environ["AIRFLOW_CONN_BQDISPATCH_DEFAULT"])
    connect(world.document(AsyncTaskURL=f"gs://{TASKS}/other/Tasks", JournalURL=f"gs://{JOURNAL}/other"))
    name = world.trace()
    done = run("of_two_set_ups")
    assert (done.state, len(done.asset_events())) == ("success", 1)
    assert set(world.document_at(done.returned("dispatch_acme")["document"])["Jobs"]) == {world.url_of(name)}
    assert done.returned("dispatch")["document"].startswith(f"gs://{JOURNAL}/other/")


def test_a_second_try_tells_of_what_the_first_has_dispatched(world, run):
    world.traces(3)
    done = run("retried")
    assert (done.state, done.tries("dispatch")) == ("success", 2)
    assert len(done.asset_events()) == 3


def test_a_run_of_its_own_that_failed_for_its_errors_tells_of_all_once_it_succeeds(world, run):
    good, bad = world.traces(2)
    world.control.add_fault("storage.objects.copy", "status", status=403, name=f"*{bad}", times=1)
    done = run("alone_retried_for_errors")
    assert (done.state, done.tries("dispatch")) == ("success", 2)
    assert len(done.asset_events()) == 2
    written = world.document_at(done.returned("dispatch")["document"])
    assert set(written["Jobs"]) == {world.url_of(bad), world.url_of(good)}
    assert written["Outcomes"]["dispatched"] == 2


def test_more_events_than_airflow_writes_in_time_are_told_by_table(world, run, document, monkeypatch):
    monkeypatch.setattr(assets, "_EVENTS_PER_SECOND", 1)
    world.traces(4, dest="ds.many")
    world.traces(2, dest="ds.few")
    done = run("bqdispatch", "bqdispatch.py")
    events = dict(done.asset_events())
    assert {uri: extra["more"] for uri, extra in events.items()} == {
        "x-bqtail://p/ds/many": 3,
        "x-bqtail://p/ds/few": 1,
    }
    assert all(set(extra) > HAS for extra in events.values())
    (url,) = {extra["document"] for extra in events.values()}
    assert world.document_at(url) == document(done)
    assert len(world.document_at(url)["Jobs"]) == 6


def test_any_name_that_a_trace_may_have_becomes_an_asset(world, run):
    names = ["ds.ta ble", "дата.таблица", "example.com:legacy.ds.t", "ds." + "я" * 400, "notable"]
    for name in names:
        world.trace(dest=name)
    done = run("bqdispatch", "bqdispatch.py")
    assert done.state == "success"
    told = uris(done)
    assert len(told) == 4
    assert all(uri.isascii() and len(uri) <= 1500 for uri in told)
    assert "x-bqtail://example.com%3Alegacy/ds/t" in told
    assert table_asset("p." + names[3]).uri in told


def test_a_dag_that_nothing_has_started_finds_nothing_loaded(world, run):
    done = run("after_a_table", "after_a_table.py")
    assert (done.state, done.returned("use")) == ("success", [])


@pytest.mark.parametrize("name", ["acme-shop:sales.orders", "acme-shop.sales.orders$20240305"])
def test_a_table_has_one_asset_however_it_is_written(name):
    assert table_asset(name) == table_asset("acme-shop.sales.orders")


@pytest.mark.parametrize("name", ["sales.orders", "orders", ""])
def test_a_table_without_a_project_is_refused(name):
    with pytest.raises(ValueError, match=r"expected \[?project"):
        table_asset(name)
