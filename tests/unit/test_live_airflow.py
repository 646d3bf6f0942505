"""The tests' and the demo's Airflow, without starting one: how its components are called."""

import subprocess
from pathlib import Path

import pytest

from demo.live import LiveAirflow


@pytest.fixture
def airflow(tmp_path):
    class Echo(LiveAirflow):
        @staticmethod
        def _command():
            return str(tmp_path / "a folder" / "airflow")

    command = Path(Echo._command())
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    (tmp_path / "home").mkdir()
    live = Echo(tmp_path / "home", tmp_path, {}, {})
    live._write_launcher()
    return lambda *words: subprocess.check_output(["airflow", *words], env=live.environment, text=True).split()


@pytest.mark.parametrize("component", ["scheduler", "triggerer"])
def test_what_would_serve_logs_to_everybody_is_told_not_to(airflow, component):
    assert airflow(component) == [component, "--skip-serve-logs"]


@pytest.mark.parametrize("command", [["api-server"], ["dag-processor"], ["pools", "import", "pools.json"]])
def test_every_other_command_is_what_it_was(airflow, command):
    assert airflow(*command) == command
