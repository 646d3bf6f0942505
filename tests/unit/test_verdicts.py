"""Late events: which verdict each combination of evidence gives, and what the content of a window says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.core.events import Load
from bqdispatch_provider.core.windows import LateAction
from bqdispatch_provider.delivery.evidence import LoadEvidence
from bqdispatch_provider.delivery.late_windows import judge
from bqdispatch_provider.delivery.window_body import WindowBody, folder_of

A, B, NEW = "gs://data/a", "gs://data/b", "gs://data/new"
LOADED = LoadEvidence(loaded=frozenset({f"{A}/1.csv", f"{A}/2.csv"}))
ALSO = LoadEvidence(loaded=frozenset({f"{B}/1.csv"}))
NOTHING, FAILED = LoadEvidence(), LoadEvidence(not_loaded=frozenset({f"{A}/1.csv"}))
PENDING, LOST = LoadEvidence(waits_for="a load runs"), LoadEvidence(unknown="its content cannot be read")
BESIDE_A, BESIDE_B, BESIDE_NEW = ("s/1.loc", 1), ("s/2.loc", 2), ("s/3.loc", 3)
FOLDERS = {BESIDE_A: A, BESIDE_B: B, BESIDE_NEW: NEW}


def named(*keys):
    return {key: FOLDERS[key] for key in keys}


@pytest.mark.parametrize(
    ("source", "locations", "fates", "late", "reason"),
    [
        # What is not over is waited for, whatever else is known.
        (f"{A}/1.csv", (), [PENDING], LateAction.WAIT, "a load runs"),
        (f"{A}/1.csv", (), [LOADED, PENDING], LateAction.WAIT, "a load runs"),
        ("", (BESIDE_NEW,), [LOST, PENDING], LateAction.WAIT, "a load runs"),
        # What cannot be told is for people.
        (f"{NEW}/1.csv", (), [LOST], LateAction.UNDECIDED, "its content cannot be read"),
        (f"{A}/1.csv", (), [LOADED, LOST], LateAction.UNDECIDED, "its content cannot be read"),
        # Nothing was loaded: there is nothing to load twice.
        (f"{A}/1.csv", (), [NOTHING], LateAction.FIRE, "no earlier firing has loaded anything"),
        (f"{A}/1.csv", (BESIDE_A, BESIDE_NEW), [FAILED], LateAction.FIRE, "no earlier firing has loaded anything"),
        ("", (), [NOTHING, FAILED], LateAction.FIRE, "no earlier firing has loaded anything"),
        # The content says nothing.
        ("", (), [LOADED], LateAction.UNDECIDED, "does not say which file"),
        ("", (BESIDE_NEW,), [LOADED], LateAction.UNDECIDED, "does not say which file"),
        # Another folder.
        (f"{NEW}/1.csv", (), [LOADED], LateAction.FIRE, f"no earlier firing has loaded from {NEW!r}"),
        (f"{NEW}/1.csv", (BESIDE_NEW,), [LOADED, ALSO], LateAction.FIRE, f"has loaded from {NEW!r}"),
        (f"{B}/1.csv", (BESIDE_A, BESIDE_B), [NOTHING, LOADED], LateAction.FIRE, f"has loaded from {B!r}"),
        (f"{A}x/1.csv", (), [LOADED], LateAction.FIRE, f"has loaded from {A + 'x'!r}"),
        (f"{A}/deeper/1.csv", (), [LOADED], LateAction.FIRE, f"has loaded from {A + '/deeper'!r}"),
        # A folder that was loaded, beside one that was not.
        (f"{A}/1.csv", (BESIDE_NEW,), [LOADED], LateAction.UNDECIDED, f"{A!r} was loaded and {NEW!r} was not"),
        (f"{A}/3.csv", (BESIDE_A, BESIDE_NEW), [LOADED], LateAction.UNDECIDED, f"{NEW!r} was not"),
        # The file itself.
        (f"{A}/1.csv", (), [LOADED], LateAction.DROP, f"{A + '/1.csv'!r} was loaded"),
        (f"{A}/1.csv", (BESIDE_A,), [LOADED], LateAction.DROP, f"{A + '/1.csv'!r} was loaded"),
        (f"{B}/1.csv", (BESIDE_A, BESIDE_B), [LOADED, NOTHING, ALSO], LateAction.DROP, "was loaded"),
        # Another file of that folder.
        (f"{A}/3.csv", (), [LOADED], LateAction.UNDECIDED, f"{A + '/3.csv'!r} was not loaded, and other files"),
        (f"{A}/3.csv", (BESIDE_A,), [LOADED], LateAction.UNDECIDED, "could load them twice"),
    ],
)
def test_the_verdict_follows_from_what_was_loaded(source, locations, fates, late, reason):
    verdict = judge(source, named(*locations), fates)
    assert verdict.action is late
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("source", "fates", "stale", "beside"),
    [
        (f"{A}/1.csv", [NOTHING], (), (BESIDE_A, BESIDE_B, BESIDE_NEW)),
        (f"{NEW}/1.csv", [LOADED], (BESIDE_A,), (BESIDE_B, BESIDE_NEW)),
        (f"{NEW}/1.csv", [LOADED, ALSO], (BESIDE_A, BESIDE_B), (BESIDE_NEW,)),
    ],
)
def test_a_window_is_fired_without_the_names_of_folders_that_were_loaded(source, fates, stale, beside):
    """And beside exactly those that were judged: another one that comes meanwhile makes it wait."""
    verdict = judge(source, FOLDERS, fates)
    assert (verdict.action, verdict.stale_locations, verdict.kept_locations) == (LateAction.FIRE, stale, beside)


def test_the_names_of_its_folders_go_with_a_window_whose_files_were_loaded():
    assert judge(f"{A}/1.csv", named(BESIDE_A), [LOADED]).stale_locations == (BESIDE_A,)
    assert judge(f"{A}/1.csv", named(BESIDE_A, BESIDE_B), [LOADED, ALSO]).stale_locations == (BESIDE_A, BESIDE_B)


FILES = st.sampled_from([f"{folder}/{n}.csv" for folder in (A, B, NEW) for n in (1, 2)])
FATES = st.lists(
    st.builds(LoadEvidence, st.sampled_from(["", "", "", "a load runs"]), st.frozensets(FILES, max_size=4))
    | st.sampled_from([LOST, NOTHING]),
    min_size=1,
    max_size=4,
)


@given(FILES | st.just(""), st.sets(st.sampled_from(list(FOLDERS))), FATES)
def test_no_verdict_loses_a_file_or_loads_one_twice(source, locations, fates):
    """What firing it would load: the folder of its own source where nothing names others, else those that are named."""
    verdict = judge(source, named(*locations), fates)
    loaded = frozenset().union(*(fate.loaded for fate in fates))
    folders = {folder_of(uri) for uri in loaded}
    left = {FOLDERS[key] for key in locations if key not in verdict.stale_locations}
    if any(fate.waits_for for fate in fates):
        assert verdict.action is LateAction.WAIT
    elif verdict.action is LateAction.FIRE:
        assert not loaded or folder_of(source) not in folders
        assert not left & folders
        assert {*verdict.stale_locations, *verdict.kept_locations} == locations
    elif verdict.action is LateAction.DROP:
        assert source in loaded
        assert not left
    else:
        assert verdict.action is LateAction.UNDECIDED
        assert verdict.stale_locations == ()
    assert {FOLDERS[key] for key in verdict.stale_locations} <= folders


def test_what_a_window_says():
    body = {"EventID": "4711", "ProjectID": "billed", "Source": {"URL": f"{A}/1.csv"}, "more": [1e400]}
    assert WindowBody.parse(json.dumps(body).encode(), "p") == WindowBody(Load("billed", "4711"), f"{A}/1.csv")
    assert WindowBody.parse(b'{"EventID": "4711"}', "p") == WindowBody(Load("p", "4711"))
    assert WindowBody.parse(b'\xef\xbb\xbf{"EventID": "4711"}', "p") == WindowBody(Load("p", "4711"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"null",
        b"7",
        b'"EventID"',
        b"[]",
        b'[{"EventID": "4711"}]',
        b"{",
        b"\xff\xfe\x00",
        b"\x80{}",
        b"[" * 100_000,
        b'{"Source": ' * 100_000,
        b'{"EventID": ' + b"1" * 5000 + b"}",
        b'{"Source": "x"}',
        b'{"Source": ["URL"]}',
        b'{"Source": 1}',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_what_is_no_document_says_nothing(content):
    assert WindowBody.parse(content, "p") == WindowBody(Load("p"))


NO_TEXT = [None, 0, 7, -1, 1.5, float("nan"), 1e400, True, "", [], ["x"], {"x": 1}, "\ud800"]


@pytest.mark.parametrize("value", NO_TEXT, ids=repr)
def test_what_is_no_text_is_not_said(value):
    """A lone surrogate cannot be asked for: no name and no ID of the services has one."""
    body = {"EventID": value, "ProjectID": value, "Source": {"URL": value}}
    assert WindowBody.parse(json.dumps(body).encode(), "p") == WindowBody(Load("p"))
    rest = {"EventID": "4711", "ProjectID": "billed", "Source": {"URL": "gs://x/y"}}
    for key, said in {
        "EventID": WindowBody(Load("billed"), "gs://x/y"),
        "ProjectID": WindowBody(Load("p", "4711"), "gs://x/y"),
        "Source": WindowBody(Load("billed", "4711")),
    }.items():
        there = {**rest, key: {"URL": value} if key == "Source" else value}
        assert WindowBody.parse(json.dumps(there).encode(), "p") == said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["EventID", "ProjectID", "Source", "URL"]) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.binary() | JSON.map(lambda document: json.dumps(document).encode()))
def test_any_content_gives_text_that_can_be_asked_for(content):
    body = WindowBody.parse(content, "p")
    assert body.load.project
    for text in (body.load.project, body.load.event_id, body.source):
        text.encode()


@pytest.mark.parametrize(
    ("uri", "folder"),
    [("gs://b/f/x", "gs://b/f"), ("gs://b/f/", "gs://b/f"), ("gs://b/x", "gs://b"), ("x", ""), ("", "")],
)
def test_the_folder_of_a_file(uri, folder):
    assert folder_of(uri) == folder
