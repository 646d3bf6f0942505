"""The response document: it survives being written and read, and what adds up adds up."""

import json
from collections import Counter
from copy import deepcopy
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.core.model import Outcome
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.names import in_one_line

GAUGES = ("Running", "Pending", "Throttled")
COUNTERS = ["QueryJobs", "LoadJobs", "CopyJobs", "OtherJobs", "BatchJobs"]
PROJECTS = st.sampled_from(["p", "q", "example.com:legacy"])
NUMBERS = st.integers(0, 5)
WORDS = st.text(max_size=3)
NAMES = st.dictionaries(WORDS, WORDS, max_size=2)
TIMES = st.integers(0, 10**12).map(lambda ms: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms))


COUNTED = st.tuples(PROJECTS, st.sampled_from([*GAUGES, "Dispatched"]), st.sampled_from(COUNTERS))


@st.composite
def reports(draw, looked=None):
    outcomes = Counter(draw(st.dictionaries(st.sampled_from(Outcome), NUMBERS)))
    report = Report(
        started=draw(TIMES if looked else st.none() | TIMES),
        seen=draw(TIMES if looked else st.none() | TIMES),
        time_taken_ms=draw(NUMBERS),
        cycles=draw(st.integers(1, 3)),
        listed=outcomes.total(),
        outcomes=outcomes,
        jobs=draw(st.dictionaries(WORDS, NAMES, max_size=2)),
        batched=draw(NAMES),
        quarantined=draw(NAMES),
        unknown=draw(NAMES),
        errors=draw(st.lists(WORDS.map(in_one_line), max_size=2, unique=True)),
        traces=Counter(draw(st.dictionaries(PROJECTS, NUMBERS))),
        not_found=Counter(draw(st.dictionaries(PROJECTS, NUMBERS))),
        get_count=draw(NUMBERS),
        list_ms=draw(NUMBERS),
    )
    for project, gauge, counter in draw(st.lists(COUNTED, max_size=8)):
        report.regions[project] = "US"
        report.counts[project][gauge][counter] += 1
    return report


def total(report, gauge):
    return sum((+counts[gauge] for counts in deepcopy(report.counts).values()), Counter())


@given(reports())
def test_a_document_is_read_as_it_was_written(report):
    document = report.to_dict()
    there = Report.from_dict(json.loads(json.dumps(document)))
    assert there.to_dict() == document
    assert (there.ok, there.dispatched, there.summary()) == (report.ok, report.dispatched, report.summary())


@given(reports())
def test_a_document_is_a_copy_of_its_own(report):
    before = deepcopy(report.to_dict())
    read = Report.from_dict(report.to_dict())
    read.add_part(Report(jobs={"new": {}}, errors=["new"], unknown={"new": ""}))
    assert report.to_dict() == before


@given(st.lists(reports(), min_size=1, max_size=3))
def test_parts_of_one_cycle_add_up_in_any_order(parts):
    forwards, backwards = Report(), Report()
    for part in deepcopy(parts):
        forwards.add_part(part)
    for part in reversed(deepcopy(parts)):
        backwards.add_part(part)
    for merged in (forwards, backwards):
        assert merged.outcomes.total() == merged.listed == sum(part.listed for part in parts)
        assert merged.cycles == max(part.cycles for part in parts)
        assert merged.get_count == sum(part.get_count for part in parts)
        assert set(merged.errors) == {error for part in parts for error in part.errors}
        for gauge in (*GAUGES, "Dispatched"):
            assert total(merged, gauge) == sum((total(part, gauge) for part in parts), Counter())
    assert forwards.performance() == backwards.performance()


@given(st.lists(reports(looked=True), min_size=1, max_size=3))
def test_deeds_of_a_run_add_up_and_gauges_are_the_last_cycles(cycles):
    run, last = deepcopy(cycles[0]), cycles[-1]
    for later in deepcopy(cycles[1:]):
        run.add_cycle(later)
    assert run.outcomes.total() == run.listed
    assert run.started == min(each.started for each in cycles)
    assert run.seen == last.seen
    assert run.cycles == sum(each.cycles for each in cycles)
    assert total(run, "Dispatched") == sum((total(each, "Dispatched") for each in cycles), Counter())
    for gauge in GAUGES:
        assert total(run, gauge) == total(last, gauge)
    for outcome in Outcome:
        of = cycles if outcome in (Outcome.DISPATCHED, Outcome.QUARANTINED) else [last]
        assert run.outcomes[outcome] == sum(each.outcomes[outcome] for each in of)
    assert (run.unknown, run.traces, run.not_found) == (last.unknown, last.traces, last.not_found)
    for each in cycles:
        assert run.jobs.keys() >= each.jobs.keys()
        assert run.batched.keys() >= each.batched.keys()
        assert run.quarantined.keys() >= each.quarantined.keys()


@given(reports(looked=True))
def test_a_cycle_that_saw_nothing_changes_no_number(run):
    before = deepcopy(run)
    blind = Report(cycles=1, errors=["the folder cannot be listed"])
    run.add_cycle(blind)
    assert (run.outcomes, run.listed, run.performance()) == (before.outcomes, before.listed, before.performance())
    assert (run.cycles, run.errors[-1]) == (before.cycles + 1, "the folder cannot be listed")


@given(st.lists(reports(), min_size=2, max_size=2))
def test_a_summary_names_no_event(parts):
    report = Report()
    for part in parts:
        report.add_part(part)
    assert not {"Jobs", "Batched", "Unknown", "Quarantined", "Errors"} & report.summary().keys()
    assert sum(report.summary()["Outcomes"].values()) == report.summary()["Listed"]


@given(st.text())
def test_an_error_is_one_harmless_line_and_the_same_once(text):
    report = Report()
    report.add_error(text)
    report.add_error(text)
    report.add_part(Report(errors=[text]))
    (said,) = report.errors
    assert said.isprintable()
    if text.isprintable():
        assert said == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(reports().map(Report.to_dict), st.data())
def test_what_is_no_document_is_a_value_error(document, data):
    broken = deepcopy(document)
    key = data.draw(st.sampled_from(sorted(broken)))
    broken[key] = data.draw(JSON)
    try:
        Report.from_dict(broken)
    except ValueError as error:
        assert str(error).startswith("not a response document"), error


@pytest.mark.parametrize("document", [None, [], "x", {}, {"Performance": []}])
def test_something_else_is_no_document(document):
    with pytest.raises(ValueError, match="not a response document"):
        Report.from_dict(document)
