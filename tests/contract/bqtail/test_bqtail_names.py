"""Names, folders and prefixes of the stand-in BqTail are those of docs/protocol.md, or of its settings."""

import json

import pytest
from by_hand import TASKS, TRIGGER, UNTIL_LISTED, only, traces_of_a_chain

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.names import TraceName, WindowName
from bqdispatch_provider.testing.bqtail import BqTailSettings, Rule, StandInBqTail


@pytest.mark.parametrize(
    "dest",
    [
        "ds.t",
        "ds.t$20260301",
        "ds.fact--orders",
        "ds.t_1-",
        "p-1:ds.t",
        "p-1.ds.json_events$2026",
        "example.com:legacy:ds.t",
        "example.com:legacy.ds.windows",
    ],
)
@pytest.mark.parametrize("location", ["US", "europe-west1", ""])
@pytest.mark.parametrize("project", [None, "example.com:other"])
def test_destinations_of_every_form_go_through(deploy, control, dest, location, project):
    bqtail, hand = deploy(location=location, rules={dest: Rule(transient_project=project)})
    file = bqtail.put_file(dest)
    assert WindowName.parse(file.window).dest == dest
    control.advance(UNTIL_LISTED)
    hand.fire(file.window)
    bqtail.step()
    trace = TraceName.parse(only(hand.waiting("--dispatch")))
    assert (trace.project, trace.region, trace.dest) == (project or "xx", location or None, dest)
    job = bqtail.account().jobs[0]
    assert (job.project, job.location, job.job_id) == (project or "xx", location, trace.job_id)
    hand.move_all_until_done(bqtail)
    assert bqtail.account().ok


def test_locations_change_from_step_to_step(deploy):
    rule = Rule(transient_location="europe-west1", transient_project="other")
    bqtail, hand = deploy(window_s=0, rules={"p:ds.t": rule})
    assert traces_of_a_chain(bqtail, hand, "p:ds.t") == [
        "proj:other:europe-west1/p:ds.t--ID_00001_load--dispatch",
        "proj:other:US/p:ds.t--ID_00002_copy--dispatch",
        "proj:other:US/p:ds.t--ID_00003_query--dispatch",
    ]
    assert bqtail.account().ok


def test_exports_and_queries_that_change_rows_have_no_location(deploy):
    bqtail, hand = deploy(window_s=0, rules={"ds.t": Rule(dml=True, chain=("load", "query", "export"))})
    assert traces_of_a_chain(bqtail, hand, "ds.t") == [
        "proj:xx:US/ds.t--ID_00001_load--dispatch",
        "proj:xx:/ds.t--ID_00002_query--dispatch",
        "proj:xx:/ds.t--ID_00003_export--dispatch",
    ]
    assert bqtail.account().ok


def test_jobs_without_a_trace_are_named_as_those_that_have_one(deploy):
    bqtail, hand = deploy(window_s=0, chain=("load",), then=("query",))
    traces_of_a_chain(bqtail, hand, "ds.t")
    jobs = bqtail.account().jobs
    assert [job.traced for job in jobs] == [True, False]
    assert all(job.job_id.endswith("--dispatch") for job in jobs)


def test_a_transient_load_is_named_after_its_destination_and_writes_another_table(deploy, session, standin):
    bqtail, hand = deploy(window_s=0)
    file = bqtail.put_file("ds.t")
    load = json.loads(hand.read(only(hand.waiting())))
    assert load["Meta"]["DestTable"] == "ds.t"
    written = {"projectId": "xx", "datasetId": "temp", "tableId": f"t_{file.event_id}"}
    assert load["Job"]["configuration"]["load"]["destinationTable"] == written
    hand.move(only(hand.waiting()))
    bqtail.step()
    copy = json.loads(hand.read(only(hand.waiting())))["Job"]["configuration"]["copy"]
    assert copy["sourceTable"] == written
    assert copy["destinationTable"] == {"projectId": "xx", "datasetId": "ds", "tableId": "t"}


def test_bodies_count_and_names_do_not(deploy, control):
    bqtail, hand = deploy()
    file = bqtail.put_file("ds.t")
    control.advance(UNTIL_LISTED)
    hand.copy(file.window, "_batch_/any")
    bqtail.step()
    number = 0
    while traces := hand.waiting("--dispatch"):
        hand.copy(only(traces), f"_bqjob_/a/b/{number}")
        hand.drop(only(traces))
        bqtail.step()
        number += 1
    assert number == 3 and bqtail.account().ok


def test_prefixes_and_folders_are_settings(standin, control, storage, session):
    config = DispatchConfig.from_dict(
        {
            "ProjectID": "xx",
            "AsyncTaskURL": f"gs://{TASKS}",
            "JournalURL": "gs://ops/journal/",
            "ErrorURL": "gs://ops/errors/",
            "TriggerBucket": TRIGGER,
            "PostJobPrefix": "/_done_/",
        }
    )
    settings = BqTailSettings.for_dispatcher(config, window_s=0, chain=("load",), data_prefix="in/")
    bqtail = StandInBqTail(storage, session, standin.url, settings)
    file = bqtail.put_file("ds.t")
    assert file.name.startswith("in/ds.t/")
    tasks, trigger = storage.bucket(TASKS), storage.bucket(TRIGGER)
    trace = only(tasks.list_blobs())
    tasks.copy_blob(trace, trigger, f"_done_/{trace.name}")
    assert bqtail.step() == 1 and bqtail.account().ok


@pytest.mark.parametrize(
    "wrong",
    [
        {"chain": ()},
        {"chain": ("copy",)},
        {"chain": ("load", "reload")},
        {"then": ("notify", "notify")},
        {"then": ("shout",)},
        {"rules": {"ds.t": Rule(chain=("query",))}},
    ],
)
def test_settings_that_make_no_chain_are_refused(wrong):
    with pytest.raises(ValueError, match=r"chain is|then is|unknown actions"):
        BqTailSettings("gs://t", "b", "p", **wrong)
