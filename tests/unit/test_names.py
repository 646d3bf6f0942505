"""Names: every row that the Go implementation printed, and what its rows do not show."""

import contextlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from called import calls_of, patterns_in
from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.core.listing import StoredObject, classify
from bqdispatch_provider.core.targets import (
    INTENTS,
    LEDGER,
    MAX_OBJECT_NAME_BYTES,
    UNDECIDED,
    UNLISTED,
    LedgerName,
    ledger_entry_name,
    shortened,
    split_undecided_name,
    undecided_name,
)
from bqdispatch_provider.names import TableName, TraceName, WindowName, _parse_trace, as_job_id, is_bookkeeping

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
        ("proj:a:b:c:/ds.t--1_00001_load--x", {"project": "a:b:c", "region": None}),
        ("proj:_:US/ds.t--1_00001_load--x", {"project": "_"}),
        ("----1--1_00001_load--x", {"dest": "----1", "event_id": "1"}),
        ("ds.t----_00001_load--x", {"dest": "ds.t-", "event_id": "-"}),
        ("ds.t--a--_00001_load--x", {"dest": "ds.t", "event_id": "a--"}),
        ("ds.t--_-_00001_load--x", {"dest": "ds.t", "event_id": "_-"}),
        ("ds.t--1_00001_load--.json", {"mode": ".json", "suffix": ""}),
        ("ds.t--1_00001_load--x.json.json", {"mode": "x.json", "suffix": ".json"}),
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
        "ds.t--_00001_load--dispatch",
        "ds.t--1_00001_--dispatch",
        "ds.t--1_00001_lo-ad--dispatch",
        "ds.t--1_00001_load---dispatch",
        "ds.t--1_00001_load--",
        "ds.t--1_00001_load--dis-patch",
        "ds.t--1_²0001_load--dispatch",
        "proj:p:US",
        "proj:/ds.t--1_00001_load--dispatch",
        "xproj:p:US/ds.t--1_00001_load--dispatch",
    ],
)
def test_what_is_no_trace_is_refused(name):
    with pytest.raises(ValueError, match="is not a trace"):
        TraceName.parse(name)


@pytest.mark.parametrize(
    "name",
    [
        "ds.t_1_999999999999.win",
        "d/ds.t_1_17.win",
        "ds.t_1_017.win",
        "ds.t_1_1.wis",
        "ds.t__17.win",
        "_1_17.win",
        "ds.t_1_.win",
        "ds.t_1_00.win",
        "ds.t_1_٣.win",
        "ds.t_1_1000000000000.win",
    ],
)
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
    UNDECIDED,
    LEDGER,
    ".claim",
    ".fired",
    ".gone-00000",
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
    with contextlib.suppress(ValueError):
        entry = LedgerName.parse(text)
        assert text.endswith(f"/{entry.window}.{entry.generation}.{entry.what}")
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
    kinds = [listing.traces, listing.windows, listing.orphan_sentinels, listing.intents, listing.undecided]
    kinds += [range(listing.ignored), listing.unknown]
    assert sum(map(len, kinds)) == len(listing) == 1
    for trace in listing.traces:
        assert (trace.name.name, name.endswith((".win", ".wis")), is_bookkeeping(name)) == (name, False, False)
    for wait in listing.unknown.values():
        assert repr(name) in wait.said or repr(f"{name[:-4]}.win") in wait.said


SHAPES = [
    "--",
    "-",
    "_",
    "a",
    ":",
    ".",
    "$",
    "0",
    "é",
    "\n",
    ".win",
    ".json",
    "proj:",
    "--1_00001_a",
    "_00001_",
    "_1_17",
]
AROUND = [
    ("", ""),
    ("proj:", ""),
    ("proj:", "/x"),
    ("proj:p:", "/ds.t--1_00001_load--dispatch"),
    ("proj:p:US/", ""),
    ("ds.t--1_00001_", ""),
    ("ds.t--1_00001_load--", ""),
    ("ds.t", "--1_00001_load--dispatch"),
    ("ds.t--", "_00001_load--dispatch.json"),
    ("", ".win"),
    ("ds.t_", "_17.win"),
    ("ds.t_1_", ".win"),
    (f"{LEDGER}2026-01-01_00-00/", ""),
    (f"{LEDGER}2026-01-01_00-00/", ".12.claim"),
    (f"{LEDGER}2026-01-01_00-00/x.", ".claim"),
]
READERS = {
    "trace": _parse_trace.__wrapped__,  # what reads a name that was not read before
    "window": WindowName.parse,
    "ledger": LedgerName.parse,
    "table": TableName.parse,
    "project": lambda name: WindowName(name, "1", NOW).dest_project,
    "bookkeeping": is_bookkeeping,
    "job": as_job_id,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_name_of_any_shape_is_read_in_linear_time(read, shape):
    """Each call of a method of ``str`` is linear; so it is enough that their number does not depend on the length.

    A pattern is one call that may take any time, so none is used.
    """
    for before, after in AROUND:
        numbers = set()
        for longest in (512, MAX_OBJECT_NAME_BYTES):
            times = (longest - len((before + after).encode())) // len(shape.encode())
            called, _ = calls_of(read, f"{before}{shape * times}{after}", fails=ValueError)
            assert not patterns_in(called)
            numbers.add(len(called))
        assert len(numbers) == 1
        assert max(numbers) < 60


# The ledger


TASKS = "gs://ops/BqDispatch/Tasks"
WHATS = ["claim", "fired", "aside", "gone-00000", "gone-00012", "gone-99999"]


@pytest.mark.parametrize(
    ("name", "window", "generation", "what"),
    [
        ("~ledger/2023-11-14_22-13/ds.t_7_1700000000.win.12.claim", "ds.t_7_1700000000.win", 12, "claim"),
        ("~ledger/2023-11-14_22-13/ds.t_7_1700000000.win.12.gone-00002", "ds.t_7_1700000000.win", 12, "gone-00002"),
        ("~ledger/x/a.1.fired.2.fired", "a.1.fired", 2, "fired"),
        ("~ledger/x/\n.1.aside", "\n", 1, "aside"),
        ("~ledger/x/a/b.1.claim", "a/b", 1, "claim"),
    ],
)
def test_an_entry_is_read_from_the_right(name, window, generation, what):
    assert LedgerName.parse(name) == LedgerName(window, generation, what)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "~ledger/",
        "~ledger/a.1.claim",
        "~ledger//a.1.claim",
        "~ledger/x/.1.claim",
        "~ledger/x/a.0.claim",
        "~ledger/x/a.01.claim",
        "~ledger/x/a.-1.claim",
        "~ledger/x/a.\u0663.claim",
        "~ledger/x/a.1.claims",
        "~ledger/x/a.1.gone",
        "~ledger/x/a.1.gone-0",
        "~ledger/x/a.1.gone-000000",
        "~ledger/x/a.1.claim\n",
        "ledger/x/a.1.claim",
        " ~ledger/x/a.1.claim",
    ],
)
def test_what_is_no_entry_is_refused(name):
    with pytest.raises(ValueError, match="is not an entry of the ledger") as caught:
        LedgerName.parse(name)
    assert repr(name) in str(caught.value)


def test_windows_of_one_minute_share_a_folder_whatever_the_machine_thinks(monkeypatch):
    with monkeypatch.context() as there:
        there.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        names = {LedgerName.folder(datetime(2026, 1, 1, 23, 59, second, tzinfo=UTC)) for second in range(60)}
    time.tzset()
    assert names == {"~ledger/2026-01-01_23-59/"}


@given(st.tuples(st.integers(0, 253_402_300_799), st.integers(0, 253_402_300_799)))
def test_minutes_sort_as_time_does(ends):
    first, second = (datetime.fromtimestamp(end, UTC) for end in sorted(ends))
    assert LedgerName.folder(first) <= LedgerName.folder(second)


def test_a_look_lists_all_but_the_ledger():
    """It ends before ``~``, behind which no name of BqTail's sorts: those begin with a project or a dataset."""
    assert LEDGER.startswith(UNLISTED)
    for name in (INTENTS, UNDECIDED, "proj:z:US/z.z--1_00001_load--dispatch", "zz.zz_9_1.win"):
        assert name < UNLISTED


LONG = st.builds(
    lambda piece, times, end: WindowName(
        f"ds.{(piece * times).encode()[: 1024 - len(f'ds._7_{end}.win')].decode(errors='ignore')}x"[: 1024 - 20],
        "7",
        datetime.fromtimestamp(end, UTC),
    ),
    st.sampled_from(["a", "\u00e9", "\u65e5\u672c", "\U0001f600", ".win", ".1.claim", "\n", "~"]),
    st.integers(1, 1024),
    st.integers(0, 2**36),
).filter(lambda window: len(window.name.encode()) <= MAX_OBJECT_NAME_BYTES)
FOLDERS = st.sampled_from(["gs://b", "gs://b/", TASKS, f"{TASKS}/", "gs://b/\u00e9/x//", f"gs://b/{'f' * 300}"])
GENERATIONS = st.integers(1, 2**63 - 1)


def in_bucket(url, name):
    """As the bucket has it, where the folder is below the task folder's URL."""
    folder = url.removeprefix("gs://").partition("/")[2].strip("/")
    return f"{folder}/{name}" if folder else name


@given(
    LONG | WINDOWS.filter(lambda each: len(each.name.encode()) <= 1024), GENERATIONS, st.sampled_from(WHATS), FOLDERS
)
def test_an_entry_has_room_for_every_window_and_parses_back(window, generation, what, url):
    name = ledger_entry_name(window.name, generation, what, url)
    assert name.startswith(LedgerName.folder(window.end))
    assert len(in_bucket(url, name).encode()) <= MAX_OBJECT_NAME_BYTES
    parsed = LedgerName.parse(name)
    assert (parsed.generation, parsed.what) == (generation, what)
    if len(window.name.encode()) < 600:
        assert parsed.window == window.name


@given(LONG, FOLDERS, st.sampled_from(WHATS))
def test_entries_of_one_window_go_by_one_name_and_of_another_by_another(window, url, what):
    """So they are found together, however long the name is: by whatever is said, and by whatever generation."""
    told = {
        LedgerName.parse(ledger_entry_name(window.name, generation, each, url)).window
        for generation in (1, 2**40, 2**63 - 1)
        for each in WHATS
    }
    assert len(told) == 1
    other = WindowName(f"{window.dest[:-1]}{'y' if window.dest[-1] != 'y' else 'z'}", window.hash, window.end)
    assert ledger_entry_name(window.name, 1, what, url) != ledger_entry_name(other.name, 1, what, url)


@given(LONG, GENERATIONS, FOLDERS)
def test_a_window_that_waits_for_a_decision_has_room_for_every_name(window, generation, url):
    name = undecided_name(window.name, generation, url)
    assert len(in_bucket(url, name).encode()) <= MAX_OBJECT_NAME_BYTES
    assert name.startswith(UNDECIDED)
    shown, number = split_undecided_name(name)
    assert number == str(generation)
    if len(window.name.encode()) < 600:
        assert shown == window.name


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 100))
def test_a_name_is_cut_to_fit_and_stays_apart_from_others(name, room):
    made = shortened(name, room)
    assert len(made.encode()) <= max(room, 17)
    if len(name.encode()) <= room:
        assert made == name
    else:
        assert made != name
        assert made != shortened(f"{name}x", room)
        assert name.startswith(made[:-17])
