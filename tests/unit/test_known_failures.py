"""The tests that docs/reliability.md names for each known failure are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = (ROOT / "docs" / "reliability.md").read_text().partition("\n## Known failures\n")[2]
ROWS = [row for row in TABLES.splitlines() if re.match(r"\| \d+ \|", row)]


def defined(body, within=""):
    """The names of functions, of those in a class with the class before them."""
    for each in body:
        if isinstance(each, ast.FunctionDef):
            yield f"{within}{each.name}"
        elif isinstance(each, ast.ClassDef):
            yield from defined(each.body, f"{each.name}::")


def test_the_failures_are_numbered_one_after_the_other():
    assert len(ROWS) > 50
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_failure_names_tests_and_they_exist(row):
    cell = row.split("|")[4].strip()
    named = re.findall(r"`([\w/]+\.py)::([\w:]+)`", cell)
    assert len(named) == len(cell.split("<br>"))
    for path, name in named:
        assert name in defined(ast.parse((ROOT / "tests" / path).read_text()).body)
