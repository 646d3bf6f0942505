"""Every package that the code imports is declared in pyproject.toml, in the extra of those who need it."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bqdispatch_provider"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

LOCKS = ("requirements", "lowest")

DISTRIBUTIONS = {
    "aiohttp": "aiohttp",
    "airflow": "apache-airflow",
    "airflow.providers.common.compat": "apache-airflow-providers-common-compat",
    "airflow.providers.google": "apache-airflow-providers-google",
    "airflow.providers.openlineage": "apache-airflow-providers-openlineage",
    "airflow.providers.slack": "apache-airflow-providers-slack",
    "google.api_core": "google-api-core",
    "google.auth": "google-auth",
    "google.cloud.storage": "google-cloud-storage",
    "google_crc32c": "google-crc32c",
    "requests": "requests",
    "rich": "rich",
    # Airflow itself requires these, in versions that fit it.
    **dict.fromkeys(("asgiref", "attr", "fastapi", "flask_appbuilder", "flask_babel"), "apache-airflow"),
    **dict.fromkeys(("sqlalchemy", "wtforms"), "apache-airflow"),
}
"""Distribution of each import; the longest name applies."""


def imports(source):
    """Return the full names of what a module imports from other distributions, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] not in {*sys.stdlib_module_names, PACKAGE.name}}


def distribution(name):
    """Return the distribution of an import.

    :raises LookupError: if the import is new; then declare its distribution, and add it to ``DISTRIBUTIONS``.
    """
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    known = next((DISTRIBUTIONS[prefix] for prefix in prefixes if prefix in DISTRIBUTIONS), None)
    if known is None:
        raise LookupError(f"{name} is of no distribution that is declared")
    return known


def declared(*extras):
    optional = [each for extra in extras for each in PROJECT["optional-dependencies"][extra]]
    return {re.match(r"[A-Za-z0-9._-]+", each)[0] for each in [*PROJECT["dependencies"], *optional]}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_import_is_declared(file):
    extras = ("testing",) if PACKAGE / "testing" in file.parents else ("slack", "openlineage")
    assert {distribution(name) for name in imports(file.read_text())} <= declared(*extras)


def test_what_only_the_stand_ins_import_is_in_the_extra_testing_alone():
    files = [file.read_text() for file in (PACKAGE / "testing").rglob("*.py")]
    needed = {distribution(name) for source in files for name in imports(source)}
    assert declared("testing") - declared() == needed - declared()


def test_imports_are_found_wherever_they_stand():
    source = "def f():\n    from google.cloud.storage import Client\n    import aiohttp.web, json"
    assert {distribution(name) for name in imports(source)} == {"google-cloud-storage", "aiohttp"}


def test_an_import_of_an_unknown_distribution_is_noticed():
    with pytest.raises(LookupError, match="numpy"):
        distribution("numpy.array")


def test_make_builds_this_project_with_what_is_locked():
    """Otherwise a build in isolation would download the newest hatchling, without a hash."""
    installs = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if re.search(r"--editable|\(UV\) build", line)
    ]
    assert len(installs) == 3
    locked = ("--no-build-isolation", "--build-constraint .ci/requirements.lock --require-hashes")
    assert all(any(option in line for option in locked) for line in installs)
    assert all(re.search(r"^hatchling==", (ROOT / ".ci" / f"{name}.lock").read_text(), re.MULTILINE) for name in LOCKS)
    # Without it, hatchling needs another package to install a folder.
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["dev-mode-dirs"] == ["."]
