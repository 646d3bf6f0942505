"""Where the tasks of a run leave their parts: names are untrusted, and no two tasks may meet in one."""

from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from google.api_core.exceptions import PreconditionFailed
from world import JOURNAL

from bqdispatch_provider.core.events import Event, Share
from bqdispatch_provider.core.model import Lane
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.journal import Checkpoint, RunJournal

AT = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)
ROOT = f"gs://{JOURNAL}/journal/runs/2026-03-01"


@pytest.fixture
def dispatcher(world):
    with world.dispatcher() as dispatcher:
        yield dispatcher


def journal_of(dispatcher, task_id="t", map_index=-1, run_id="r", dag_id="d", **context):
    ti = SimpleNamespace(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index)
    run = {"dag": SimpleNamespace(dag_id=dag_id), "run_id": run_id, "dag_run": SimpleNamespace(run_after=AT)}
    return RunJournal(dispatcher.store, dispatcher.config, {"ti": ti, **run, **context})


def test_a_part_lies_under_its_day_dag_run_and_task(dispatcher):
    assert journal_of(dispatcher).task_url == f"{ROOT}/d/r/t.json"
    assert journal_of(dispatcher).document_url == f"{ROOT}/d/r.json"


def test_the_day_is_the_logical_date_where_there_is_one(dispatcher):
    journal = journal_of(dispatcher, logical_date=datetime(2025, 1, 2, tzinfo=UTC))
    assert "/runs/2025-01-02/" in journal.task_url


def test_a_mapped_task_and_one_with_its_number_do_not_meet(dispatcher):
    urls = {journal_of(dispatcher, "t", 1).task_url, journal_of(dispatcher, "t-1").task_url}
    assert len(urls) == 2


@pytest.mark.parametrize("run_id", ["a/b", "a%2Fb", "a/../b", "a?b#c", "a\nb", "manual__2026-03-01T00:00:00+00:00"])
def test_a_run_id_is_one_part_of_the_path_whatever_is_in_it(dispatcher, run_id):
    url = journal_of(dispatcher, run_id=run_id).task_url
    assert url.removeprefix(ROOT).count("/") == 3
    assert not set("\n?#") & set(url)


def test_different_run_ids_have_different_places(dispatcher):
    ids = ["a/b", "a%2Fb", "x" * 249 + "1", "x" * 300 + "1", "x" * 300 + "2", "é" * 250]
    assert len({journal_of(dispatcher, run_id=run_id).task_url for run_id in ids}) == len(ids)


def left_in(journal):
    return {part.task: part for part in journal.task_reports()}


def test_the_longest_ids_fit_in_an_objects_name(dispatcher):
    journal = journal_of(dispatcher, task_id="é" * 250, run_id="é" * 250, dag_id="é" * 250)
    journal.write_document(Report(), 0, journal.task_url)
    assert len(journal.task_reports()) == 1


def test_what_a_task_has_left_is_read_as_it_was_written(dispatcher):
    journal = journal_of(dispatcher, "t", 4)
    journal.write_document(Report(listed=3), 0, journal.task_url)
    checkpoint = Checkpoint(journal.process, AT, 2, Counter(Cycles=7), Report(listed=2), ())
    journal.write_checkpoint(checkpoint)
    part = left_in(journal_of(dispatcher))["t~4"]
    assert (part.report.listed, part.checkpoints) == (3, (checkpoint,))


def test_what_a_sensor_has_found_is_read_in_the_same_run_alone(dispatcher):
    share = Share(Lane.SQL, AT, (Event("ds.t--1_00001_query--dispatch", 1, AT),))
    url = journal_of(dispatcher, "detect").write_shares([share])
    assert journal_of(dispatcher, "dispatch").read_shares(url) == [share]
    assert journal_of(dispatcher, "dispatch").read_shares(url.replace("detect", "gone")) is None
    with pytest.raises(ValueError, match="is not in the journal of this run"):
        journal_of(dispatcher, run_id="r2").read_shares(url)
    assert list(left_in(journal_of(dispatcher))["detect"].generations) == [url]


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"lane": "sql"}]', "nothing", "[" * 100_000])
def test_what_is_no_share_is_refused(world, dispatcher, content):
    url = journal_of(dispatcher, "detect").write_shares([])
    world.control.advance(1)
    world.client.bucket(JOURNAL).blob(url.removeprefix(f"gs://{JOURNAL}/")).upload_from_string(content)
    with pytest.raises(ValueError, match="is damaged"):
        journal_of(dispatcher).read_shares(url)


@pytest.mark.parametrize("content", ["[]", "{}", '{"Began": 1e400}', "nothing", "[" * 100_000])
def test_what_says_nothing_of_what_is_under_way_is_named(world, dispatcher, content):
    world.client.bucket(JOURNAL).blob("journal/runs/2026-03-01/d/r/t@0.underway").upload_from_string(content)
    for read in (journal_of(dispatcher).task_reports, journal_of(dispatcher).own_report):
        with pytest.raises(ValueError, match=r"d/r/t@0\.underway' is damaged or something else; remove"):
            read()


def test_parts_of_a_mapped_task_have_its_number(dispatcher):
    for index in range(3):
        journal = journal_of(dispatcher, "t", index)
        journal.write_document(Report(), 0, journal.task_url)
    assert left_in(journal).keys() == {"t~0", "t~1", "t~2"}


def test_the_parts_of_a_run_are_its_own(dispatcher):
    first, other = journal_of(dispatcher, run_id="r"), journal_of(dispatcher, run_id="r2")
    for journal in (first, other):
        journal.write_document(Report(), 0, journal.task_url)
    first.remove(first.task_reports(), with_shares=True)
    assert (len(first.task_reports()), len(other.task_reports())) == (0, 1)


def test_what_a_task_writes_again_is_news_and_is_not_removed(dispatcher):
    journal, run = journal_of(dispatcher), Report()
    generation = 0
    for cycles in (1, 2):
        written = Report(cycles=cycles)
        written.continue_with(journal.process, Report(cycles=cycles))
        (before,) = journal.task_reports() or [None]
        generation = journal.write_document(written, generation, journal.task_url)
        (part,) = journal.task_reports()
        assert not part.is_merged(run)
        run.merge(part.report)
        assert part.is_merged(run)
    journal.remove([before], with_shares=True)
    assert journal.task_reports() == [part]
    journal.write_checkpoint(Checkpoint(journal.process, AT, 1, Counter(Cycles=2), Report(), ()))
    assert journal.own_report().is_merged(run)
    journal.write_checkpoint(Checkpoint(journal.process, AT, 1, Counter(Cycles=3), Report(), ()))
    assert not journal.own_report().is_merged(run)


def test_a_document_that_somebody_else_has_replaced_is_not_overwritten(dispatcher):
    journal = journal_of(dispatcher)
    generation = journal.write_document(Report(), 0, journal.task_url)
    journal.write_document(Report(listed=1), generation, journal.task_url)
    with pytest.raises(PreconditionFailed):
        journal.write_document(Report(listed=2), generation, journal.task_url)


def test_something_else_among_the_parts_is_named(world, dispatcher):
    world.client.bucket(JOURNAL).blob("journal/runs/2026-03-01/d/r/notes.txt").upload_from_string("notes")
    with pytest.raises(ValueError, match=r"d/r/notes\.txt' does not belong in the journal of a run"):
        journal_of(dispatcher).task_reports()
    assert journal_of(dispatcher).own_report().generations == {}, "no task of the run is kept from dispatching"
