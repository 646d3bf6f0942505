"""The README's demo, as a user starts and stops it: with a real Airflow, and with processes that pretend to be one."""

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "demo", "--port", "0"]
PRETENDED = [sys.executable, Path(__file__).parent / "pretended/run_demo.py"]
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
MOMENTS = [*(("db", number) for number in SIGNALS), ("standalone", "SIGINT"), ("pools", "SIGTERM")]
"""A command of Airflow's, and what comes when it starts, or while it runs."""


@pytest.fixture
def start(tmp_path):
    """Starts the demo in a session of its own; whatever a test does, nothing of it is left."""
    started = []

    def start_demo(*arguments):
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        demo = psutil.Popen(
            [*DEMO, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "stderr").open("wb"),
            start_new_session=True,
            text=True,
        )
        started.append(demo)
        return demo

    yield start_demo
    for demo in started:
        if demo.poll() is None:
            for process in [*demo.children(recursive=True), demo]:
                process.kill()
            demo.wait()
        demo.stdout.close()


def logs(folder):
    return "\n".join(path.read_text()[-4000:] for path in [folder / "stderr", *folder.rglob("airflow.log")])


def test_sixty_events_go_through_exactly_once_within_the_limits(start, tmp_path):
    """Begin as README.md does: `make demo`."""
    shown, _ = (demo := start("--once")).communicate(timeout=4 * PATIENCE_S)
    assert demo.returncode == 0, shown[-4000:] + logs(tmp_path)
    assert "every event exactly once" in shown
    assert "60 of 60 files finished" in (tmp_path / "stderr").read_text()
    assert "limit 5" in shown
    assert "limit 3" in shown
    assert '"Batched": {"gs://' in shown
    assert list(tmp_path.glob("bqdispatch-demo-*")) == []


def is_left(process):
    """Whether a process has not ended; one that nobody has asked for its exit code has."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def is_served(folder):
    return "Open http://127.0.0.1:" in (folder / "stderr").read_text()


def test_ctrl_c_leaves_nothing_behind(start, tmp_path):
    demo = start()
    wait_until(lambda: demo.poll() is not None or is_served(tmp_path), "Airflow is there")
    wait_until(lambda: demo.poll() is not None or len(demo.children(recursive=True)) > 4, "its parts are, too")
    assert demo.poll() is None, logs(tmp_path)
    family = demo.children(recursive=True)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 130
    assert [process for process in family if is_left(process)] == []
    assert list(tmp_path.glob("bqdispatch-demo-*")) == []


def test_ctrl_c_ends_make_without_an_error(tmp_path):
    """As in a terminal, Ctrl-C reaches make, too."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execvpe("make", ["make", "demo"], {**os.environ, "TMPDIR": str(tmp_path)})
    said = b""
    while b"Starting" not in said:
        said += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    with suppress(OSError):  # the terminal's other end is closed
        while more := os.read(terminal, 4096):
            said += more
    os.close(terminal)
    os.waitpid(pid, 0)
    assert b"nothing is left running" in said
    assert b"Error" not in said
    assert list(tmp_path.glob("bqdispatch-demo-*")) == []


def test_a_closed_window_while_airflow_is_starting_leaves_nothing_behind(start, tmp_path):
    demo = start()
    wait_until(lambda: demo.poll() is not None or demo.children(recursive=True), "a command of Airflow's runs")
    assert demo.poll() is None, logs(tmp_path)
    family = demo.children(recursive=True)
    demo.send_signal(signal.SIGHUP)
    demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 130
    assert [process for process in family if is_left(process)] == []
    assert list(tmp_path.glob("bqdispatch-demo-*")) == []


class Pretended:
    """The demo over processes that pretend to be Airflow's, in a session of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.noted = folder / "noted"
        self.noted.mkdir()
        self.demo = None

    def says(self, command, **does):
        """Let a command of Airflow's stay until it is asked to end, or what else it does."""
        (self.noted / f"{command}.json").write_text(json.dumps(does))

    def start(self, *arguments, stderr=None):
        with (self.folder / "stderr").open("wb") as file:
            self.demo = psutil.Popen(
                [*PRETENDED, *arguments],
                env={**os.environ, "TMPDIR": str(self.folder), "PRETENDED": str(self.noted), "TERM": "xterm"},
                stdin=stderr,
                stdout=file if stderr is None else stderr,
                stderr=file if stderr is None else stderr,
                start_new_session=True,
            )
        return self.demo

    def processes(self):
        """All that were ever started, and what they pretended to be."""
        return {int(file.stem): file.read_text() for file in self.noted.glob("*.pid")}

    def wait_for(self, command):
        wait_until(lambda: self.demo.poll() is not None or command in self.processes().values(), f"{command} runs")

    def left(self):
        """What runs, also what has not noted itself yet: all have the same environment."""
        return [process for process in psutil.process_iter() if is_left(process) and self.is_mine(process)]

    def is_mine(self, process):
        with suppress(psutil.Error):
            return process.environ().get("PRETENDED") == str(self.noted)
        return False

    def end(self):
        if self.demo and self.demo.poll() is None:
            self.demo.kill()
            self.demo.wait()
        for process in self.left():
            process.kill()

    def folders(self):
        return list(self.folder.glob("bqdispatch-demo-*"))


@pytest.fixture
def pretended(tmp_path):
    pretended = Pretended(tmp_path)
    yield pretended
    pretended.end()


def check_ended(pretended, code=130):
    """The demo has ended, after all else."""
    ended = pretended.demo.wait(PATIENCE_S)
    said = (pretended.folder / "stderr").read_text()
    assert (ended, pretended.left()) == (code, []), said
    assert len(pretended.folders()) == (code != 130), "the logs are kept where something went wrong"
    return said


@pytest.mark.parametrize(("command", "number"), MOMENTS)
def test_no_signal_comes_between_a_command_of_airflow_and_who_has_started_it(pretended, command, number):
    pretended.says(command)
    pretended.says("standalone")
    pretended.start(command, number)
    check_ended(pretended)


@pytest.mark.parametrize(("command", "number"), MOMENTS)
def test_a_signal_while_a_command_of_airflow_runs_ends_all_of_them(pretended, command, number):
    pretended.says(command)
    pretended.says("standalone")
    pretended.start()
    pretended.wait_for(command)
    pretended.demo.send_signal(signal.Signals[number])
    check_ended(pretended)


def test_a_process_that_begins_while_the_others_end_is_not_left_behind(pretended):
    pretended.says("standalone", leaves_another=True)
    pretended.start()
    pretended.wait_for("standalone")
    pretended.demo.send_signal(signal.SIGTERM)
    check_ended(pretended)
    assert "another" in pretended.processes().values()


def test_a_second_signal_does_not_cut_the_end_short(pretended):
    pretended.says("standalone", wait_for="released")
    pretended.start()
    pretended.wait_for("standalone")
    for number in SIGNALS:
        pretended.demo.send_signal(signal.Signals[number])
        wait_until((pretended.noted / "standalone.asked").exists, "it is asked to end")
    (pretended.noted / "released").touch()
    check_ended(pretended)


def test_a_start_that_fails_leaves_nothing_but_its_logs(pretended):
    pretended.says("standalone")
    pretended.says("pools", exit=3)
    pretended.start()
    assert "`airflow pools import" in check_ended(pretended, code=1)


def test_a_terminal_that_is_gone_keeps_nobody_from_ending_it_all(pretended):
    """What it says then, it says to nobody: writing fails."""
    pretended.says("standalone")
    parent, child = pty.openpty()
    pretended.start(stderr=child)
    os.close(child)
    pretended.wait_for("standalone")
    os.close(parent)
    pretended.demo.send_signal(signal.SIGHUP)  # it has no controlling terminal, whose end would send it
    check_ended(pretended)
