"""The tests that docs/reliability.md and docs/runs.md name for each row of a table are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = (ROOT / "docs" / "reliability.md").read_text().partition("\n## Known failures\n")[2]
FAILURES = [row for row in TABLES.splitlines() if re.match(r"\| \d+ \|", row)]
RUNS = [row for row in (ROOT / "docs" / "runs.md").read_text().splitlines() if "**" in row]


def defined(body, within=""):
    """The names of functions, of those in a class with the class before them."""
    for each in body:
        if isinstance(each, ast.FunctionDef):
            yield f"{within}{each.name}"
        elif isinstance(each, ast.ClassDef):
            yield from defined(each.body, f"{each.name}::")


def test_the_failures_are_numbered_one_after_the_other():
    assert len(FAILURES) > 50
    assert [int(row.split("|")[1]) for row in FAILURES] == list(range(1, len(FAILURES) + 1))


@pytest.mark.parametrize("row", FAILURES + RUNS, ids=lambda row: row.split("|")[1].strip())
def test_every_row_names_tests_and_they_exist(row):
    cell = row.split("|")[-2].strip()
    named = re.findall(r"`([\w/]+\.py)::([\w:]+)`", cell)
    assert len(named) == len(cell.split("<br>"))
    for path, name in named:
        assert name in defined(ast.parse((ROOT / "tests" / path).read_text()).body)
