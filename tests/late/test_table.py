"""The command that carries all cells out writes their table into a page, beside what the real BqTail did."""

import importlib.util
import json
from pathlib import Path

import pytest
from cells import KNOWN, LOADED, ONCE, ONE_FOLDER, Cell, Result

CELL = Cell(ONE_FOLDER, KNOWN, 5, True, LOADED)
RESULT = Result(CELL, {"first": ONCE, "known": ONCE}, LOADED, (), "", 30, False)


@pytest.fixture
def late(tmp_path):
    spec = importlib.util.spec_from_file_location("late", Path(__file__).parents[1] / "tools" / "late.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.REAL = tmp_path / "nobody_has_run_the_real_one.jsonl"
    return module


def test_it_writes_between_its_marks_alone(late, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- late -->\nold\n<!-- /late -->\nafter\n")
    late.write(page, "late", late.text([RESULT], [8, 8]))
    table, after = page.read_text().split("<!-- /late -->")
    assert table.startswith("before\n<!-- late -->\n| window |") and after == "\nafter\n"
    assert "1 cells: 1 with each file loaded exactly once, 0 in which" in table
    assert "8 kills between any two calls of them: 0 with a file lost or doubled." in table


def test_a_page_without_marks_is_left_alone(late, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="has no <!-- late -->"):
        late.write(page, "late", "x")
    assert page.read_text() == "nothing"


@pytest.mark.parametrize(("result", "same"), [("once", True), ("named", False)])
def test_what_the_real_bqtail_did_is_told_and_where_the_stand_in_differs(late, tmp_path, monkeypatch, result, same):
    row = {"cell": {"rule": ONE_FOLDER, "late": KNOWN, "delay": 5, "deletes": True, "first": LOADED}}
    (tmp_path / "real.jsonl").write_text(json.dumps({**row, "date": "2026-11-28", "result": result}) + "\n")
    monkeypatch.setattr(late, "REAL", tmp_path / "real.jsonl")
    text = late.text([RESULT], None)
    assert (
        f"1 of these cells were run with the real BqTail, too, from 2026-11-28 to 2026-11-28: {int(same)} came" in text
    )
    assert ("| one folder, known folder, +5 s, deleted, loaded | named | once |" in text) != same


def test_cells_are_carried_out_against_a_cloud_of_their_own(late, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "")
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "")
    results, bad, counts = late.carry_out([CELL], kills=True, every=25)
    assert [result.worst for result in results] == [ONCE]
    assert counts[0] == counts[1] >= 2 and bad == []
