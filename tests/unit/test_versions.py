"""Differences between versions of Airflow stand in one module; each has its lock file, and a row in the docs."""

import ast
import re
from pathlib import Path

import matrix
import pytest

PACKAGE = Path(__file__).parents[2] / "bqdispatch_provider"
ASKING = {"hasattr", "ImportError", "ModuleNotFoundError", "version_compat", "importlib.metadata"}


def asked(source):
    """By which names a module finds out what is installed."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(each.name for each in node.names)}
            names |= {f"{node.module}.{each.name}" for each in node.names}
        elif isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    versions = {name for name in names if name.startswith("AIRFLOW_V")} | {"airflow.__version__"}
    return sorted(names & (ASKING | versions))


@pytest.mark.parametrize(
    "file",
    [file for file in PACKAGE.rglob("*.py") if file.name != "compat.py"],
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_no_module_but_one_asks_what_is_installed(file):
    assert asked(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import airflow.sdk\nexcept ImportError:\n    pass",
        "hasattr(connection, 'aextra_dejson')",
        "from airflow import __version__",
        "import airflow\nairflow.__version__",
        "from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS",
    ],
)
def test_asking_is_noticed(source):
    assert asked(source)


def test_the_one_module_does():
    assert asked((PACKAGE / "compat.py").read_text())


@pytest.mark.parametrize("airflow", matrix.OLDER)
def test_a_lock_file_has_its_airflow_and_composers_google_provider(airflow):
    lock = matrix.lock_of(airflow)
    assert matrix.locked("apache-airflow", lock) == airflow
    assert matrix.locked(matrix.GOOGLE, lock) == matrix.COMPOSERS_GOOGLE


def test_the_pages_versions_are_those_of_the_lock_files():
    page = (PACKAGE.parent / "docs" / "versions.md").read_text()
    rows = re.search("<!-- matrix -->\n(.*)<!-- /matrix -->", page, re.DOTALL)[1].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [(airflow, google) for airflow, google, *_ in cells] == [
        (each.airflow, each.google) for each in matrix.matrix()
    ]
    assert all(int(passed) > 0 and int(failed) == 0 for _, _, passed, failed, _ in cells)
