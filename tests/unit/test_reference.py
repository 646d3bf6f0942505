"""The tables of the reference in docs/ name what the code has, with its defaults."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_keys import KEYS
from bqdispatch_provider.config_source import FILE_ROOTS
from bqdispatch_provider.core.connection import CONFIG_KEYS, OTHER_KEYS
from bqdispatch_provider.core.model import Outcome
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.gcp.emulators import BIGQUERY, PUBSUB, STORAGE

DOCS = Path(__file__).parents[2] / "docs"
NOT_LITERAL = {"ProjectID", "TriggerBucket", "SlackCredentials"}
"""Keys whose default is not ``None`` in the end, or none that one could write: the page describes it."""


def rows(page, heading):
    """Return the rows of the tables below a heading, each as its cells."""
    text = (DOCS / page).read_text().partition(f"# {heading}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in cells if row[0].startswith("`")]


def named(row):
    """Return what the first cell of a row names."""
    return re.findall(r"`([^`]+)`", row[0])


def test_every_outcome_is_explained():
    assert [name for row in rows("outcomes.md", "Outcomes") for name in named(row)] == [str(each) for each in Outcome]


def test_every_key_of_the_configuration_is_explained():
    assert {name for row in rows("configuration.md", "Keys") for name in named(row)} == KEYS.keys()


@pytest.mark.parametrize("row", rows("configuration.md", "Keys"), ids=lambda row: row[0])
def test_a_key_has_the_default_that_the_page_says(row):
    defaults = {each.name: each.default for each in fields(DispatchConfig)}
    keys = named(row)
    for key, said in zip(keys, row[2].split(", ") if len(keys) > 1 else [row[2]], strict=True):
        default = defaults[KEYS[key][0]]
        if key not in NOT_LITERAL:
            assert said.partition(":")[0].strip(" `") == ("required" if default is MISSING else str(default)), key


def test_every_key_of_a_connections_extra_is_explained():
    explained = {name for row in rows("configuration.md", "Where the document lies") for name in named(row)}
    assert explained == {*CONFIG_KEYS, *OTHER_KEYS}


def test_every_variable_is_explained():
    explained = {name for row in rows("configuration.md", "Environment variables") for name in named(row)}
    slots = {SetUp().variable(f"{lane}_SLOTS") for lane in ("SQL", "JOBS")}
    assert explained == {*slots, SetUp().variable("SCHEDULE"), FILE_ROOTS, STORAGE, BIGQUERY, PUBSUB}
