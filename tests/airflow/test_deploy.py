"""What `bqdispatch deploy composer` has Airflow do is what Airflow takes, in each version."""

import re
import shlex
from pathlib import Path

README = Path(__file__).parents[2] / "deploy" / "composer" / "README.md"


def test_airflow_takes_the_commands_of_the_dry_run(database):
    from airflow.cli.cli_parser import get_parser

    parser = get_parser()
    run = re.findall(r"^gcloud composer environments run \S+ (.*)$", README.read_text(), re.MULTILINE)
    commands = [[word for word in shlex.split(line) if word != "--"] for line in run]
    # gcloud takes its own options away.
    commands = [[word for word in command if not word.startswith(("--location", "--project"))] for command in commands]
    pools = [vars(parser.parse_args(command)) for command in commands if command[:2] == ["pools", "set"]]
    assert [(pool["pool"], pool["slots"], pool["include_deferred"]) for pool in pools] == [
        ("bqdispatch_sql", 40, True),
        ("bqdispatch_jobs", -1, True),
        ("bqdispatch_sql", 60, True),
        ("bqdispatch_jobs", -1, True),
    ]
    assert [command for command in commands if command[:2] != ["pools", "set"]] == [["version"], ["version"]]


def test_airflow_takes_the_command_that_sets_a_pool_by_hand(database):
    from airflow.cli.cli_parser import get_parser

    shown = re.search(
        r"^\$ gcloud composer environments run .*? (pools set) -- (.*)$", README.read_text(), re.MULTILINE
    )
    pool = vars(get_parser().parse_args([*shown[1].split(), *shlex.split(shown[2])]))
    assert (pool["pool"], pool["slots"], pool["include_deferred"]) == ("bqdispatch_sql", 40, True)


def test_airflow_reads_the_connection_of_the_dry_run(database, monkeypatch):
    from bqdispatch_provider.hooks import BqDispatchHook

    connection = re.search(r"AIRFLOW_CONN_BQDISPATCH_DEFAULT=([^|]*)\|", README.read_text())[1]
    monkeypatch.setenv("AIRFLOW_CONN_BQDISPATCH_DEFAULT", connection)
    assert BqDispatchHook().extra.values == {"config_url": "gs://acme-config/dispatch.json"}
