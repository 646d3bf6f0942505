"""Tables and examples of README and docs are what the code does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bqdispatch_provider import config_keys
from bqdispatch_provider.commands.cli import DESCRIPTIONS
from bqdispatch_provider.view.advice import ADVICE

ROOT = Path(__file__).parents[2]
PAGES = {path.stem: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
EXAMPLES = [code for page in PAGES.values() for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]


def test_the_configuration_table_has_every_key():
    table = PAGES["configuration"].partition("## Where")[0]
    named = set(re.findall(r"`([A-Z]\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if "|" in row)))
    assert named == set(config_keys.KEYS)


@pytest.fixture
def run_example(run, dags_folder):
    """Runs an example as if its code lay in the DAG folder."""

    def run_it(dag_id):
        (code,) = [code for code in EXAMPLES if f'DAG("{dag_id}"' in code or f'DAG(\n    "{dag_id}"' in code]
        (dags_folder / "readme.py").write_text(code)
        return run(dag_id, file="readme.py")

    return run_it


def test_the_example_waits_for_one_table(world, run_example):
    """The example of README.md."""
    name = world.trace(dest="acme-shop.sales.returns")
    assert run_example("after_orders").state == "success"
    assert world.names() == [name]


def test_every_example_has_a_row():
    folder = ROOT / "dags" / "examples"
    assert set(re.findall(r"^\| \[`(\w+\.py)`\]\(\.\./dags/examples/\1\) \|", PAGES["own_dags"], re.MULTILINE)) == {
        file.name for file in folder.glob("*.py")
    }


def test_the_example_dispatches_each_share_in_a_task_of_its_own(world, run_example):
    """The example of docs/own_dags.md."""
    world.traces(3, "query")
    world.trace("load")
    assert run_example("my_dispatch").state == "success"
    assert len(world.names()) == 1


def test_the_example_starts_when_a_table_is_loaded(run_example):
    """The example of docs/assets.md."""
    assert run_example("after_each_load").state == "success"


def test_the_examples_of_tests_pass(database, dags_folder, tmp_path):
    """Those of docs/testing.md, with the DAG of docs/own_dags.md."""
    (dag,) = [code for code in EXAMPLES if 'DAG(\n    "my_dispatch"' in code]
    (dags_folder / "readme.py").write_text(dag)
    tests = re.findall(r"```python\n(.*?)```", PAGES["testing"], re.DOTALL)
    (tmp_path / "test_mine.py").write_text("\n\n".join(tests))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quiet", tmp_path]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize(("script", "pictures"), [("draw_dag.py", ["dag"]), ("draw_flow.py", ["flow", "rooms"])])
def test_the_pictures_show_the_dag_and_the_rooms_as_they_are(script, pictures):
    drawn = [ROOT / "docs" / f"{name}.svg" for name in pictures]
    before = [picture.read_text() for picture in drawn]
    subprocess.run([sys.executable, ROOT / "docs" / script], check=True, capture_output=True)
    assert [picture.read_text() for picture in drawn] == before


def test_the_readme_is_one_page():
    assert len(PAGES["README"].split()) <= 1200


def test_airflow_is_installed_with_its_version_and_its_constraints():
    lines = "\n".join(PAGES.values()).replace("\\\n", " ").splitlines()
    installing = [line for line in lines if re.search(r"pip install (?!.*--no-deps).*\bdist/", line)]
    assert len(installing) > 2
    constraints = re.compile(r"\bapache-airflow==.* --constraint (constraints-3\.11|\.ci/older)\.txt")
    assert all(constraints.search(line) for line in installing)


def test_the_page_on_versions_says_which_airflow_has_no_page_of_ours():
    assert re.search(r"Airflow 3\.1\.0\b[^.]* shows no \[page\]\(page\.md\)", PAGES["versions"])


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\w+)\.md\)", PAGES["index"]))
    assert linked == PAGES.keys() - {"README", "index"}


def anchors(page):
    """Return what can be linked to in a page: headings as GitHub names them, and what says its own ID."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    named = [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
    return {*named, *re.findall(r'<a id="([^"]+)">', page)}


LINKING = [
    page
    for pattern in ("*.md", "docs/*.md", "deploy/**/*.md", "benchmarks/*.md", "tests/model/*.md")
    for page in sorted(ROOT.glob(pattern))
]


def links(page):
    """Return what a page links to, or shows."""
    text = page.read_text()
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<(?:img|source)[^>]* src(?:set)?="([^"]+)"', text)


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page):
    dead = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there.read_text())):
            dead.append(target)
    assert dead == []


def test_every_picture_is_shown():
    shown = {(page.parent / target).resolve() for page in LINKING for target in links(page) if ":" not in target}
    assert {*(ROOT / "docs").glob("*.svg"), *(ROOT / "docs" / "pictures").iterdir()} <= shown


def test_the_reasons_have_the_words_of_the_terminal():
    table = re.search("<!-- reasons -->\n(.*)<!-- /reasons -->", PAGES["troubleshooting"], re.DOTALL)[1]
    rows = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in table.splitlines()[2:]]
    assert rows == [(f"`{reason}`", advice.meaning, advice.next_step) for reason, advice in ADVICE.items()]


def test_each_command_is_on_its_page():
    page = PAGES["commands"]
    assert set(re.findall(r"^\| `bqdispatch ([\w -]+?)` \|", page, re.MULTILINE)) == {
        f"deploy {name}" if name in ("composer", "rights") else name for name in DESCRIPTIONS
    }
