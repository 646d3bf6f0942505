"""Names: every row that the Go implementation printed, and what its rows do not show."""

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.names import TraceName, WindowName, is_bookkeeping

ROWS = [json.loads(line) for line in (Path(__file__).parent / "bqtail_names.jsonl").read_text().splitlines()]


def rows(what):
    return pytest.mark.parametrize("row", [pytest.param(r, id=r["name"]) for r in ROWS if r["what"] == what])


@rows("trace")
def test_trace_is_read_as_go_wrote_it(row):
    trace = TraceName.parse(row["name"])
    for field in ("project", "region", "dest", "event_id", "step", "action", "mode", "job_id", "name"):
        assert getattr(trace, field) == row[field], field


@rows("trace")
def test_trace_is_written_as_go_wrote_it(row):
    fields = {f: row[f] for f in ("project", "region", "dest", "event_id", "step", "action", "mode")}
    assert TraceName(**fields).name == row["name"]
    assert TraceName(**fields).job_id == row["job_id"]


@rows("trace")
def test_json_ending_changes_neither_fields_nor_job(row):
    trace = TraceName.parse(row["name"] + ".json")
    assert (trace.mode, trace.job_id, trace.name) == (row["mode"], row["job_id"], row["name"] + ".json")


@rows("window")
def test_window_is_read_as_go_wrote_it(row):
    window = WindowName.parse(row["name"])
    assert window.end == datetime.fromtimestamp(row["end"], UTC)
    for field in ("dest", "hash", "dest_project", "sentinel", "name"):
        assert getattr(window, field) == row[field], field


@rows("window")
def test_window_is_written_as_go_wrote_it(row):
    window = WindowName(row["dest"], row["hash"], datetime.fromtimestamp(row["end"], UTC))
    assert (window.name, window.sentinel) == (row["name"], row["sentinel"])


@rows("malformed_window")
def test_malformed_window_is_refused_by_name(row):
    with pytest.raises(ValueError, match="is not a batch window"):
        WindowName.parse(row["name"])
    assert not is_bookkeeping(row["name"])


@rows("bookkeeping")
def test_bookkeeping_is_no_trace_and_no_window(row):
    assert is_bookkeeping(row["name"])
    for kind in (TraceName, WindowName):
        with pytest.raises(ValueError):
            kind.parse(row["name"])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ds.t---12_00001_load--dispatch", {"dest": "ds.t-", "event_id": "12"}),
        ("ds.a--b--12_3_00001_load--dispatch", {"dest": "ds.a--b", "event_id": "12_3"}),
        ("proj:p:EU/ds.json_events--1_00001_load--dispatch", {"job_id": "ds_json_events--1_00001_load--dispatch"}),
        ("proj:example.com:p:EU/ds.t--1_00001_load--x", {"project": "example.com:p", "region": "EU", "mode": "x"}),
        ("proj:p:/ds.t--1_00001_copy--dispatch.json", {"project": "p", "region": None, "suffix": ".json"}),
    ],
)
def test_trace_is_read_from_the_right(name, fields):
    trace = TraceName.parse(name)
    assert {f: getattr(trace, f) for f in fields} == fields
    assert trace.name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "proj:p/ds.t--1_00001_load--dispatch",
        "proj::US/ds.t--1_00001_load--dispatch",
        "proj:..:US/ds.t--1_00001_load--dispatch",
        "other/ds.t--1_00001_load--dispatch",
        "proj:p:US/deeper/ds.t--1_00001_load--dispatch",
        "ds.t--1_0001_load--dispatch",
        "ds.t--1_٠٠٠٠١_load--dispatch",
        "ds.t--1_00001_load",
        "--1_00001_load--dispatch",
    ],
)
def test_what_is_no_trace_is_refused(name):
    with pytest.raises(ValueError, match="is not a trace"):
        TraceName.parse(name)


@pytest.mark.parametrize("name", ["ds.t_1_999999999999.win", "d/ds.t_1_17.win", "ds.t_1_017.win", "ds.t_1_1.wis"])
def test_what_is_no_window_is_refused(name):
    with pytest.raises(ValueError, match="is not a batch window"):
        WindowName.parse(name)


def test_only_the_ending_becomes_a_sentinel():
    assert WindowName.parse("ds.windows_1_17.win").sentinel == "ds.windows_1_17.wis"


@given(st.text())
def test_any_text_is_a_name_or_a_value_error(text):
    for kind in (TraceName, WindowName):
        with contextlib.suppress(ValueError):
            assert kind.parse(text).name == text
    is_bookkeeping(text)


PLAIN = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1)
WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1)


@given(
    st.none() | PLAIN, st.none() | WORD, PLAIN, WORD, st.integers(0, 99_998), WORD, WORD, st.sampled_from(["", ".json"])
)
def test_trace_names_parse_back_to_their_fields(project, region, dest, event_id, step, action, mode, suffix):
    project = f"{project}x" if project else None
    trace = TraceName(project, region if project else None, dest, event_id, step, action, mode, suffix)
    assert TraceName.parse(trace.name) == trace


@given(PLAIN, st.text("0123456789", min_size=1), st.integers(0, 4_000_000_000))
def test_window_names_parse_back_to_their_fields(dest, hash_, end):
    window = WindowName(dest, hash_, datetime.fromtimestamp(end, UTC))
    assert WindowName.parse(window.name) == window
