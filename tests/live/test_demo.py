"""The README's demo, as a user starts and stops it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

DEMO = [sys.executable, "-m", "bqdispatch_provider.testing.demo", "--port", "0"]


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
    shown, _ = (demo := start("--once")).communicate(timeout=900)
    assert demo.returncode == 0, shown[-4000:] + logs(tmp_path)
    assert "every event exactly once" in shown
    assert "60 of 60 events finished" in (tmp_path / "stderr").read_text()
    assert "limit 5" in shown
    assert "limit 3" in shown
    assert '"Batched": {"gs://' in shown
    assert list(tmp_path.glob("bqdispatch-demo-*")) == []


def test_ctrl_c_leaves_nothing_behind(start, tmp_path):
    demo = start()
    until = time.monotonic() + 240
    while "Airflow's page: http://127.0.0.1:" not in (tmp_path / "stderr").read_text():
        assert demo.poll() is None, logs(tmp_path)
        assert time.monotonic() < until, logs(tmp_path)
        time.sleep(0.5)
    time.sleep(3)
    family = demo.children(recursive=True)
    assert len(family) > 4
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert list(tmp_path.glob("bqdispatch-demo-*")) == []


def test_a_closed_window_while_airflow_is_starting_leaves_nothing_behind(start, tmp_path):
    demo = start()
    until = time.monotonic() + 120
    while not (family := demo.children(recursive=True)):
        assert demo.poll() is None, logs(tmp_path)
        assert time.monotonic() < until
        time.sleep(0.2)
    demo.send_signal(signal.SIGHUP)
    demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
