"""The README's tables and examples are what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bqdispatch_provider import config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_configuration_table_has_every_key():
    table = README.partition("## Configuration")[2].partition("## Permissions")[0]
    named = set(re.findall(r"`([A-Z]\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if "|" in row)))
    assert named == set(config._KEYS)


@pytest.fixture
def run_example(run, dags_folder):
    """Runs an example as if its code lay in the DAG folder."""

    def run_it(dag_id):
        (code,) = [code for code in EXAMPLES if f'"{dag_id}"' in code]
        (dags_folder / "readme.py").write_text(code)
        return run(dag_id, file="readme.py")

    return run_it


def test_the_example_waits_for_one_table(world, run_example):
    name = world.trace(dest="acme-shop.sales.returns")
    assert run_example("after_orders").state == "success"
    assert world.names() == [name]


def test_every_example_has_a_row():
    folder = ROOT / "dags" / "examples"
    assert set(re.findall(r"^\| \[`(\w+\.py)`\]\(dags/examples/\1\) \|", README, re.MULTILINE)) == {
        file.name for file in folder.glob("*.py")
    }


def test_the_example_dispatches_each_share_in_a_task_of_its_own(world, run_example):
    world.traces(3, "query")
    world.trace("load")
    assert run_example("my_dispatch").state == "success"
    assert len(world.names()) == 1


def test_the_picture_is_the_dag():
    drawn = ROOT / "docs" / "dag.svg"
    before = drawn.read_text()
    subprocess.run([sys.executable, ROOT / "docs" / "draw_dag.py"], check=True, capture_output=True)
    assert drawn.read_text() == before
