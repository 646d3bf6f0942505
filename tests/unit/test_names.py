"""Names: every row that the Go implementation printed, and what its rows do not show."""

import contextlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.model import StoredObject
from bqdispatch_provider.names import INTENTS, TraceName, WindowName, as_job_id, is_bookkeeping
from bqdispatch_provider.planning import classify

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


PIECES = ["proj:", "p", ":", "US", "/", "--", "-", "_", ".", "00001", "load", "dispatch", ".json", "17", ".win", ".wis"]
PIECES += [
    "ds.t",
    "$2024",
    ".grp",
    ".cnt",
    ".loc",
    "\n",
    "é",
    "\U0001f600",
    "\ud800",
    "%2F",
    "../",
    "\x00",
    "٣",
    INTENTS,
]
NAMES = st.lists(st.sampled_from(PIECES), max_size=20).map("".join) | st.text()
PLAIN = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1)
WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1)
EVENTS = WORD | st.from_regex(r"[0-9]{1,16}(_[0-9]{1,4})?", fullmatch=True)
PROJECTS = st.none() | PLAIN.map(lambda text: f"{text}x") | st.just("example.com:legacy")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@st.composite
def traces(draw):
    project = draw(PROJECTS)
    return TraceName(
        project,
        draw(st.none() | WORD | st.just("US")) if project else None,
        draw(
            PLAIN | st.sampled_from(["ds.a--b", "p:ds.t-", "ds.t--1_00001_load--dispatch", "ds.json_events$20240101"])
        ),
        draw(EVENTS),
        draw(st.integers(0, 99_998)),
        draw(WORD | st.sampled_from(["load", "reload", "copy", "query", "export"])),
        draw(WORD | st.just("dispatch")),
        draw(st.sampled_from(["", ".json"])),
    )


WINDOWS = st.builds(
    WindowName,
    PLAIN | st.sampled_from(["ds.windows", "a_1_17.win", "example.com:legacy.ds.t"]),
    st.text("0123456789", min_size=1),
    st.integers(0, 253_402_300_799).map(lambda end: datetime.fromtimestamp(end, UTC)),
)


@given(NAMES)
def test_any_text_is_a_name_or_a_value_error(text):
    for kind in (TraceName, WindowName):
        with contextlib.suppress(ValueError):
            assert kind.parse(text).name == text
    is_bookkeeping(text)


@given(traces())
def test_trace_names_parse_back_to_their_fields(trace):
    assert TraceName.parse(trace.name) == trace
    assert TraceName.parse(trace.name).job_id == TraceName.parse(trace.name.removesuffix(".json")).job_id


@given(WINDOWS)
def test_window_names_parse_back_to_their_fields(window):
    assert WindowName.parse(window.name) == window
    assert window.sentinel.endswith(".wis")
    assert window.sentinel[:-4] == window.name[:-4]


@given(WINDOWS, st.none() | WORD.map(lambda word: f"example.com:{word}") | WORD, st.sampled_from(".:"))
def test_a_windows_project_is_what_precedes_dataset_and_table(window, project, between):
    made = WindowName(f"{project}{between}ds.t" if project else "ds.t", window.hash, window.end)
    assert WindowName.parse(made.name).dest_project == project


@given(NAMES)
def test_any_text_has_a_job_id_without_separators(text):
    made = as_job_id(text)
    assert not set("/$:.") & set(made)
    assert as_job_id(made) == made


@given(NAMES | traces().map(lambda trace: trace.name) | WINDOWS.map(lambda window: window.name))
def test_every_name_is_of_exactly_one_kind(name):
    listing = classify([StoredObject(name, 1, NOW)], "p", NOW)
    kinds = [listing.traces, listing.windows, listing.orphans, listing.intents, range(listing.ignored), listing.unknown]
    assert sum(map(len, kinds)) == len(listing) == 1
    for trace in listing.traces:
        assert (trace.name.name, name.endswith((".win", ".wis")), is_bookkeeping(name)) == (name, False, False)
    for reason in listing.unknown.values():
        assert repr(name) in reason or repr(f"{name[:-4]}.win") in reason


@pytest.mark.parametrize("piece", ["--", "a", ":", "--1_00001_a", "_00001_", "proj:", "_1_17", "."])
def test_no_name_takes_long_to_read(piece):
    began = time.process_time()
    for name in ((piece * 1024)[:1024], f"proj:{(piece * 1024)[:1000]}/x", f"{(piece * 1024)[:1020]}.win"):
        for kind in (TraceName, WindowName):
            with contextlib.suppress(ValueError):
                kind.parse(name)
    assert time.process_time() - began < 1
