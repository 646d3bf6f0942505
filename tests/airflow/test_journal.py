"""Where the tasks of a run leave their parts: names are untrusted, and no two tasks may meet in one."""

from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from world import JOURNAL

from bqdispatch_provider.journal import Part, RunJournal
from bqdispatch_provider.model import Lane, Outcome, Tidy
from bqdispatch_provider.report import Report

AT = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)
ROOT = f"gs://{JOURNAL}/journal/runs/2026-03-01"


@pytest.fixture
def dispatcher(world):
    with world.dispatcher() as dispatcher:
        yield dispatcher


def journal_of(dispatcher, task_id="t", map_index=-1, run_id="r", dag_id="d", **context):
    ti = SimpleNamespace(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index)
    return RunJournal(dispatcher, {"ti": ti, "dag_run": SimpleNamespace(run_after=AT), **context})


def test_a_part_lies_under_its_day_dag_run_and_task(dispatcher):
    assert journal_of(dispatcher).own_url == f"{ROOT}/d/r/t.json"
    assert journal_of(dispatcher).document_url == f"{ROOT}/d/r.json"


def test_the_day_is_the_logical_date_where_there_is_one(dispatcher):
    journal = journal_of(dispatcher, logical_date=datetime(2025, 1, 2, tzinfo=UTC))
    assert "/runs/2025-01-02/" in journal.own_url


def test_a_mapped_task_and_one_with_its_number_do_not_meet(dispatcher):
    urls = {journal_of(dispatcher, "t", 1).own_url, journal_of(dispatcher, "t-1").own_url}
    assert len(urls) == 2


@pytest.mark.parametrize("run_id", ["a/b", "a%2Fb", "a/../b", "a?b#c", "a\nb", "manual__2026-03-01T00:00:00+00:00"])
def test_a_run_id_is_one_part_of_the_path_whatever_is_in_it(dispatcher, run_id):
    url = journal_of(dispatcher, run_id=run_id).own_url
    assert url.removeprefix(ROOT).count("/") == 3
    assert not set("\n?#") & set(url)


def test_different_run_ids_have_different_places(dispatcher):
    ids = ["a/b", "a%2Fb", "x" * 249 + "1", "x" * 300 + "1", "x" * 300 + "2", "é" * 250]
    assert len({journal_of(dispatcher, run_id=run_id).own_url for run_id in ids}) == len(ids)


def test_the_longest_ids_fit_in_an_objects_name(dispatcher):
    journal = journal_of(dispatcher, task_id="é" * 250, run_id="é" * 250, dag_id="é" * 250)
    journal.write_part(Part(Report()))
    assert len(journal.parts()) == 1


def test_a_part_is_read_as_it_was_written(dispatcher):
    part = Part(Report(listed=3), {Lane.SQL: 2}, Tidy(stale=(("w", 7),)))
    journal_of(dispatcher, "t", 4).write_part(part)
    ((read,),) = journal_of(dispatcher).parts().values()
    assert (read.report.listed, dict(read.lanes), read.tidy) == (3, {Lane.SQL: 2}, part.tidy)


def test_parts_of_a_mapped_task_stand_under_its_id(dispatcher):
    for index in range(3):
        journal_of(dispatcher, "t", index).write_part(Part(Report()))
    assert {task: len(parts) for task, parts in journal_of(dispatcher).parts().items()} == {"t": 3}


def test_the_parts_of_a_run_are_its_own(dispatcher):
    journal_of(dispatcher, run_id="r").write_part(Part(Report()))
    journal_of(dispatcher, run_id="r2").write_part(Part(Report()))
    other = journal_of(dispatcher, run_id="r2")
    other.remove_parts(other.parts()["t"])
    assert other.parts() == {}
    assert len(journal_of(dispatcher, run_id="r").parts()) == 1


def test_a_sensors_part_removes_what_other_tasks_have_left(dispatcher):
    for task, tidy in (("dispatch", None), ("other_sensor", Tidy())):
        journal_of(dispatcher, task).write_part(Part(Report(), tidy=tidy))
    journal_of(dispatcher, "sensor").write_part(Part(Report(), tidy=Tidy()))
    assert sorted(journal_of(dispatcher).parts()) == ["other_sensor", "sensor"]


def test_a_later_try_adds_what_an_earlier_one_has_dispatched():
    earlier = Report(outcomes=Counter({Outcome.DISPATCHED: 3, Outcome.ERROR: 2}), batched={"w": ""}, errors=["not yet"])
    later = Report(outcomes=Counter({Outcome.IGNORED: 2, Outcome.PENDING: 2, Outcome.DISPATCHED: 1}), batched={"v": ""})
    merged = Part(later, {Lane.WINDOWS: 5}).after(Part(earlier, {Lane.WINDOWS: 5})).report
    assert +merged.outcomes == {Outcome.DISPATCHED: 4, Outcome.PENDING: 1}
    assert (sorted(merged.batched), merged.errors) == (["v", "w"], [])


def test_a_try_with_other_shares_is_no_earlier_one():
    part = Part(Report(), {Lane.SQL: 1})
    assert part.after(Part(Report(outcomes=Counter({Outcome.DISPATCHED: 2})), {Lane.SQL: 2})) is part


def test_something_else_among_the_parts_is_named(world, dispatcher):
    world.client.bucket(JOURNAL).blob("journal/runs/2026-03-01/d/r/notes.txt").upload_from_string("notes")
    with pytest.raises(ValueError, match=r"d/r/notes\.txt' is no part of a run"):
        journal_of(dispatcher).parts()
