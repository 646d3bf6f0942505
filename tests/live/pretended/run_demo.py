"""The demo over ``airflow`` beside this file, and a signal while a command starts: ``[<command> <signal>]``."""

import signal
import subprocess
import sys
from pathlib import Path

from demo import system as demo
from demo.live import LiveAirflow

command, number = [*sys.argv[1:], None, None][:2]
init = subprocess.Popen.__init__


def start(process, arguments, *more, **options):
    """Come to a signal when the process is there, and its starter does not know it yet."""
    init(process, arguments, *more, **options)
    if arguments[1:2] == [command]:
        signal.raise_signal(signal.Signals[number])


subprocess.Popen.__init__ = start
LiveAirflow._command = staticmethod(lambda: str(Path(__file__).with_name("airflow")))
sys.exit(demo.main(["--port", "0"]))
