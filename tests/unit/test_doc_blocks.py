"""Each block of code in README.md, docs/ and the other pages is run by a test, or says what no test has.

A new block is red here until it is in :data:`RUN`, or stands below a comment of :data:`NEEDS`, or is ``text``.
"""

import ast
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bqdispatch_provider.commands.cli import _parser

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "deploy/**/*.md", "benchmarks/README.md")
NEEDS = (
    "needs a cloud",
    "needs a network",
    "needs a Prometheus",
    "needs an Alertmanager",
    "needs a fresh clone",
)
"""Wordings of the comment right above a block that no test runs."""

OUTPUT = "text"
SITE = "tests/release/test_site.py::test_the_reference_is_made_from_the_docstrings"
COMMANDS, EXAMPLES = "tests/airflow/test_commands.py", "tests/airflow/test_readme.py"
POOLS = "tests/airflow/test_pools.py::test_pools_are_made_and_changed_and_compared"
SMOKE = "tests/dispatch/test_smoke.py"
GRAFANA = "tests/grafana/test_grafana.py"
DEPLOY = (
    "$ bqdispatch deploy composer --environment ops --location europe-west1 --config gs://acme-config/dispatch.json"
)
RUN = {
    "README.md": {
        "$ git clone": "tests/live/test_demo.py::test_sixty_events_go_through_exactly_once_within_the_limits",
        "$ make dist": "tests/release/test_wheel.py::test_the_sample_dag_runs_from_the_wheel_alone",
        "$ mkdir": f"{COMMANDS}::test_the_dag_is_copied_where_airflow_looks_for_it",
        "$ airflow connections": f"{COMMANDS}::test_airflow_is_set_up_by_the_commands_of_the_readme",
        "$ bqdispatch pools": POOLS,
        "$ bqdispatch smoke": f"{SMOKE}::test_the_command_prints_one_line_a_check_and_exits_with_zero",
        "$ airflow dags unpause": f"{COMMANDS}::test_airflow_is_set_up_by_the_commands_of_the_readme",
        "from datetime": f"{EXAMPLES}::test_the_example_waits_for_one_table",
    },
    "CONTRIBUTING.md": {"$ .venv/bin/pytest": "tests/unit/test_doc_blocks.py::test_a_test_that_is_named_is_there"},
    "docs/assets.md": {"from datetime": f"{EXAMPLES}::test_the_example_starts_when_a_table_is_loaded"},
    "docs/commands.md": {
        "$ airflow connections": f"{COMMANDS}::test_the_document_of_a_connection_goes_into_a_file",
    },
    "docs/compose.md": {
        "$ docker compose up": "tests/compose/test_default.py::test_the_readme_has_the_commands_that_were_run_here",
        "$ docker compose --profile celery": (
            "tests/compose/test_celery.py::test_the_readme_has_the_command_that_was_run_here"
        ),
    },
    "docs/configuration.md": {'{"ProjectID"': "tests/unit/test_config.py::test_the_document_of_the_page_is_valid"},
    "docs/dag.md": {'"""Airflow\'s DAG': f"{COMMANDS}::test_the_file_of_another_way_makes_a_dag_of_its_own"},
    "docs/grafana.md": {
        "[metrics]": f"{COMMANDS}::test_airflow_knows_the_settings_that_send_metrics",
        "$ statsd_exporter": f"{GRAFANA}::test_what_a_dispatcher_sends_arrives_with_its_labels",
        "global:": f"{GRAFANA}::test_the_documented_configuration_is_valid",
    },
    "docs/index.md": {":hidden:": SITE},
    "docs/limits.md": {"$ bqdispatch pools": POOLS},
    "docs/migration.md": {
        "{": "tests/dispatch/test_migration.py::test_the_go_services_document_is_read_as_it_is",
        "$ bqdispatch check-idle": (
            "tests/dispatch/test_migration.py::test_the_command_exits_with_one_until_it_is_idle"
        ),
    },
    "docs/operators.md": {".. automodule::": SITE},
    "docs/own_dags.md": {
        "from datetime": f"{EXAMPLES}::test_the_example_dispatches_each_share_in_a_task_of_its_own",
        "detect = BqDispatchSensor.partial": (
            "tests/airflow/test_mapping.py::"
            "test_a_mapped_sensor_that_finds_nothing_keeps_nobody_from_what_another_has_found"
        ),
    },
    "docs/permissions.md": {
        "$ bqdispatch smoke": f"{SMOKE}::test_what_differs_from_bqtails_configuration_is_named",
    },
    "docs/protocol.md": {'{"Status"': f"{COMMANDS}::test_the_example_of_a_response_is_one"},
    "docs/push.md": {'{"config_url"': f"{COMMANDS}::test_a_connection_takes_the_subscription"},
    "docs/quarantine.md": {
        "$ bqdispatch replay": (
            "tests/dispatch/test_explain.py::test_the_command_that_puts_an_object_back_has_the_variables_of_the_document"
        ),
    },
    "docs/setups.md": {
        '"""Airflow\'s DAG': f"{COMMANDS}::test_a_file_of_three_lines_makes_the_dag_of_a_set_up",
        "$ bqdispatch pools": "tests/airflow/test_pools.py::test_the_pools_of_a_set_up_have_its_name",
    },
    "docs/slack.md": {'"""Airflow\'s DAG': f"{COMMANDS}::test_the_dag_takes_the_notifier"},
    "docs/testing.md": {
        "import json": f"{EXAMPLES}::test_the_examples_of_tests_pass",
        "from bqdispatch_provider": f"{EXAMPLES}::test_the_examples_of_tests_pass",
        "$ curl": f"{COMMANDS}::test_a_bucket_is_made_in_the_stand_in",
    },
    "docs/troubleshooting.md": {
        "$ bqdispatch explain": "tests/dispatch/test_explain.py::test_an_event_is_found_by_whatever_names_it",
    },
    "docs/upgrade.md": {"$ airflow dags delete": f"{COMMANDS}::test_the_uninstalled_leave_nothing_in_airflow"},
    "deploy/composer/README.md": {
        f"{DEPLOY}\n": "tests/deploy/test_composer.py::test_everything_is_in_place_afterwards",
        f"{DEPLOY} \\\n": ("tests/deploy/test_given_wheel.py::test_a_wheel_on_a_server_is_downloaded_and_deployed"),
        f"{DEPLOY} --dry-run\n": ("tests/deploy/test_composer.py::test_the_dry_run_for_2_11_is_what_the_readme_shows"),
        f"{DEPLOY} --dry-run --impersonation-chain": (
            "tests/deploy/test_composer.py::test_the_dry_run_for_3_is_what_the_readme_shows"
        ),
    },
}
"""The test that runs a block, or what the block shows, by page and by the beginning of the block."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    :param page: the page, below the top of the repository.
    :param above: the last line above it.
    """

    page: str
    line: int
    language: str
    text: str
    above: str

    @property
    def tests(self):
        """The tests that the table names for it."""
        return [test for start, test in RUN.get(self.page, {}).items() if self.text.startswith(start)]

    @property
    def need(self):
        """The thing that no test has, as it says; empty if it says nothing."""
        found = re.fullmatch(r"<!-- (.*) -->", self.above)
        return found[1] if found and found[1] in NEEDS else ""


def blocks_of(page, text):
    """List the blocks of a page, without their indentation."""
    found, opened, fence = [], None, ""
    lines = ["", *text.splitlines()]
    for number, line in enumerate(lines):
        stripped = line.strip()
        if opened is None and (start := re.match(r"(`{3,}|~{3,})(.*)", stripped)):
            opened, fence = number, start[1]
        elif opened is not None and stripped == fence:
            indent = len(lines[opened]) - len(lines[opened].lstrip())
            body = "".join(f"{each[indent:]}\n" for each in lines[opened + 1 : number])
            language = lines[opened].strip().removeprefix(fence).strip()
            found.append(Block(page, opened, language, body, lines[opened - 1].strip()))
            opened = None
    assert opened is None, f"{page}:{opened}: a block without an end"
    return found


BLOCKS = [
    block
    for pattern in PAGES
    for path in sorted(ROOT.glob(pattern))
    for block in blocks_of(str(path.relative_to(ROOT)), path.read_text())
]


def of(*languages):
    """List the blocks in certain languages, as parameters of a test."""
    return [pytest.param(each, id=f"{each.page}:{each.line}") for each in BLOCKS if each.language in languages]


@pytest.mark.parametrize("block", [pytest.param(each, id=f"{each.page}:{each.line}") for each in BLOCKS])
def test_a_block_is_run_or_says_what_it_needs(block):
    reasons = [*block.tests, *filter(None, [block.need]), *([OUTPUT] if block.language == OUTPUT else [])]
    assert len(reasons) == 1, f"{block.page}:{block.line}: not in RUN, nor marked by one of {NEEDS}: {reasons}"


NAMED = [pytest.param(page, test, id=f"{page}: {start[:30]}") for page in RUN for start, test in RUN[page].items()]


@pytest.mark.parametrize(("page", "test"), NAMED)
def test_a_test_of_the_table_is_there_and_names_the_page(page, test):
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    (found,) = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == name]
    assert page in ast.get_docstring(found)


def test_the_table_names_no_block_that_is_gone():
    there = {(each.page, start) for each in BLOCKS for start in RUN.get(each.page, ()) if each.text.startswith(start)}
    assert there == {(page, start) for page, starts in RUN.items() for start in starts}


def commands(program):
    """List the commands of a program, each with its place, as its words."""
    for block in BLOCKS:
        for line in re.findall(r"^\$ (.*)$", block.text.replace("\\\n", " "), re.MULTILINE):
            if line.startswith(f"{program} "):
                yield pytest.param(line, id=f"{block.page}:{block.line}: {line[:40]}")


@pytest.mark.parametrize("line", list(commands("bqdispatch")))
def test_a_command_of_ours_has_options_that_are_there(line):
    words = shlex.split(line, comments=True)
    assert _parser().parse_args(words[1:]).command


@pytest.mark.parametrize("line", list(commands("make")))
def test_a_target_of_make_is_there(line):
    for target in line.split()[1:]:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", list(commands(".venv/bin/pytest")))
def test_a_test_that_is_named_is_there(line):
    """The commands of CONTRIBUTING.md."""
    path, *more = line.split()[1:]
    source = (ROOT / path).read_text()
    assert not more or re.search(rf"\ndef test_\w*{more[1]}", source)


@pytest.mark.parametrize("block", of("python"))
def test_python_compiles(block):
    compile(block.text, f"{block.page}:{block.line}", "exec")


@pytest.mark.parametrize("block", of("json"))
def test_json_is_json(block):
    assert json.loads(block.text)


@pytest.mark.parametrize("block", of("yaml"))
def test_yaml_is_yaml(block):
    assert yaml.safe_load(block.text)
