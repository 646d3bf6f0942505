"""Imports go one way: from Airflow's files and the commands down to names and configuration."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "bqdispatch_provider"
FLOORS = (
    ("names", "config", "config_errors", "config_keys", "config_source", "compat"),
    ("core",),
    ("gcp",),
    ("delivery",),
    ("cycle",),
    ("view",),
    ("dispatcher",),
    ("journal", "remaining", "runs"),
)
"""From the bottom; whatever is not named is on top: Airflow's files, the page, the commands, the stand-ins."""

ALLOWED = {("config_source", "gcp.objects")}
"""``DispatchConfig.from_url`` reads ``gs://``, and imports the client only then."""

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(path):
    """Return which of our modules a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    ours = {name.removeprefix("bqdispatch_provider.") for name in found if name.startswith("bqdispatch_provider.")}
    return {name for name in ours if name in MODULES}


def floor_of(module):
    room = module.partition(".")[0]
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_what_is_above_it(module):
    above = {
        other
        for other in imported(MODULES[module])
        if floor_of(other) > floor_of(module) and (module, other) not in ALLOWED
    }
    assert above == set()


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_stand_ins(module):
    if not module.startswith("testing"):
        assert not {other for other in imported(MODULES[module]) if other.startswith("testing")}


@pytest.mark.parametrize("module", [module for module in MODULES if floor_of(module) < len(FLOORS) - 1])
def test_what_dispatches_knows_no_airflow(module):
    if module != "compat":
        tree = ast.parse(MODULES[module].read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names if name.split(".")[0] == "airflow" or name == "bqdispatch_provider.compat"}


def test_an_import_from_above_is_seen():
    """:func:`imported` finds what modules import: the dispatcher imports what it is made of."""
    assert {"core.plans", "cycle.observation", "gcp.jobs", "config"} <= imported(MODULES["dispatcher"])
