"""The figures of docs/performance.md are those of the benchmarks' own table, as one command wrote both."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def between_marks(page):
    return re.search("<!-- bench -->\n(.*)<!-- /bench -->", (ROOT / page).read_text(), re.DOTALL)[1].splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


SHORT = [cells(line) for line in between_marks("docs/performance.md") if line.startswith("|")][2:]
WHOLE = {(row[0], row[1]): row for row in map(cells, between_marks("benchmarks/README.md")) if len(row) > 3}


def test_there_are_figures():
    assert len(SHORT) >= 6


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row[0])
def test_the_pages_figures_are_those_of_the_benchmarks(row):
    work, seconds, requests = row
    whole = WHOLE[work, "30 ms"]
    assert whole[2].startswith(f"{seconds} (")
    assert whole[5].startswith(f"{requests}:")


def test_what_is_said_beside_them_is_the_same():
    def said(page):
        return [line for line in between_marks(page) if line.startswith("- ")]

    assert said("docs/performance.md") == said("benchmarks/README.md") != []
