"""The documentation site is built without a warning, has a search, and fetches nothing from outside."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site():
    subprocess.run(["make", "-s", "docs"], cwd=ROOT, check=True)
    return ROOT / ".work" / "site"


@pytest.fixture
def gather():
    """The function that gathers pages, and its settings."""
    return runpy.run_path(str(ROOT / "docs" / "site.py"))["gather"]


def test_a_link_to_a_missing_file_is_an_error(gather, monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "conf.py").touch()
    (tmp_path / "docs" / "page.md").write_text("See [there](../there.yaml).\n")
    monkeypatch.setitem(gather.__globals__, "ROOT", tmp_path)
    monkeypatch.setitem(gather.__globals__, "ELSEWHERE", {})
    with pytest.raises(FileNotFoundError, match=r"docs/page.md links to ../there.yaml, which is missing"):
        gather(tmp_path / "site")
    (tmp_path / "there.yaml").touch()
    gather(tmp_path / "site")
    assert "(path:files/there.yaml)" in (tmp_path / "site" / "page.md").read_text()


def test_each_page_is_gathered(gather, tmp_path):
    gather(tmp_path)
    assert len(list(tmp_path.glob("*.md"))) == len(list((ROOT / "docs").glob("*.md"))) + len(
        gather.__globals__["ELSEWHERE"]
    )


@pytest.mark.parametrize(
    ("page", "picture"), [("readme", "airflow"), ("page", "airflow"), ("page", "waits"), ("page", "charts")]
)
def test_a_picture_is_shown_in_light_and_in_dark(gather, tmp_path, page, picture):
    """By the classes that furo has for one theme alone, whichever theme a reader chooses there."""
    gather(tmp_path)
    text = (tmp_path / f"{page}.md").read_text()
    assert "<picture>" not in text
    for theme in ("light", "dark"):
        assert f"```{{image}} pictures/{picture}-{theme}.png\n:class: only-{theme}\n:alt: " in text
        assert (tmp_path / "pictures" / f"{picture}-{theme}.png").is_file()


def test_each_page_is_there(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"readme", "contributing", "composer", "benchmarks"}
    assert pages <= {path.stem for path in site.glob("*.html")}


def test_there_is_a_search(site):
    index = (site / "searchindex.js").read_text()
    assert "quarantin" in index and "undecid" in index


def test_the_reference_is_made_from_the_docstrings(site):
    """By the blocks of docs/operators.md; those of docs/index.md are the site's order."""
    page = (site / "operators.html").read_text()
    for name in ("BqDispatchSensor", "DispatchOperator", "BqDispatchDoneSensor", "StandInControl", "dispatch_dag"):
        assert f"{name}" in page


def test_nothing_is_fetched_from_outside(site):
    fetched = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]+"')
    for page in site.glob("*.html"):
        assert fetched.findall(page.read_text()) == [], page


def test_types_of_other_packages_are_links(site):
    page = (site / "operators.html").read_text()
    for there in (
        "airflow.sdk.Context",
        "airflow.triggers.base.TriggerEvent",
        "google.api_core.exceptions.GoogleAPIError",
    ):
        assert re.search(rf'href="https://[^"]*#{re.escape(there)}"', page), there
