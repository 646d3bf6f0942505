"""Commands where the environment has no credentials for Google Cloud: one message, whatever the command needs first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
COMMANDS = [
    *(["run", "--once"], ["smoke"], ["check-idle"], ["replay"], ["status"], ["explain", "x"]),
]
NO_BIGQUERY = [each for each in COMMANDS if each != ["check-idle"]]
"""Commands that need credentials for BigQuery, too."""


@pytest.fixture
def command(world, tmp_path):
    """Runs a command as somebody who has never logged in."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(world.document()))

    def run(arguments, given=config, **environment):
        nobody = {"HOME": str(tmp_path), "NO_GCE_CHECK": "True", "GOOGLE_APPLICATION_CREDENTIALS": ""}
        command = [BIN / "bqdispatch", *arguments, "--config", given]
        environment = os.environ | nobody | environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def assert_one_message(ended, said):
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 2, ended.stderr


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_command_without_credentials_says_so(command, arguments):
    nowhere = {"STORAGE_EMULATOR_HOST": "", "BIGQUERY_EMULATOR_HOST": ""}
    assert_one_message(command(arguments, **nowhere), "no Google Cloud credentials found: ")
    read = command(arguments, given="gs://acme-config/dispatch.json", **nowhere)
    assert_one_message(read, "the document at 'gs://acme-config/dispatch.json' cannot be read: DefaultCredentialsError")


@pytest.mark.parametrize("arguments", NO_BIGQUERY, ids=" ".join)
def test_a_command_without_credentials_for_bigquery_alone_says_so(command, arguments):
    """Storage has a stand-in, which needs none."""
    assert_one_message(command(arguments, BIGQUERY_EMULATOR_HOST=""), "no Google Cloud credentials found: ")
