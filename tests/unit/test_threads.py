"""A signal handler may ask for a stop whatever it interrupts."""

import subprocess
import sys

FLOOD = """
import os, signal, threading
from bqdispatch_provider.gcp.threads import StopRequest

stop = StopRequest()
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
for number in NUMBERS:
    signal.signal(number, lambda *_: stop.make())


def flood():
    for _ in range(1000):
        for number in NUMBERS:
            os.kill(os.getpid(), number)


flooding = threading.Thread(target=flood)
flooding.start()
while flooding.is_alive():
    stop._event.wait(0.001)
print(stop.is_made, stop.wait(3600))
"""


def test_signals_that_come_while_one_waits_or_handles_another_stop_nothing_for_ever():
    """With ``threading.Event.set`` in the handlers this hangs within a second."""
    ended = subprocess.run([sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    assert ended.stdout.split() == ["True", "True"]
