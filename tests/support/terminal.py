"""Commands with a terminal as one of their streams."""

import fcntl
import os
import pty
import signal
import subprocess
import tempfile
import termios
import threading
from contextlib import suppress

from waiting import PATIENCE_S


def on_a_terminal(command, stream="stderr", press=None, **environment):
    """Run a command. Return its exit code, the output on the terminal, and the output on the other stream.

    :param press: keys that are pressed once a text is shown, by the text; each is pressed once.
    """
    press = dict(press or {})
    parent, child = pty.openpty()
    with tempfile.TemporaryFile() as other:
        streams = {"stdout": other, "stderr": other, stream: child}
        if press:  # the terminal's keys reach only whom it controls
            streams |= {"stdin": child, "start_new_session": True, "preexec_fn": _be_controlled}
        with subprocess.Popen(command, **streams, env={**os.environ, "TERM": "xterm", **environment}) as process:
            os.close(child)
            killer = threading.Timer(PATIENCE_S, process.kill)  # what waits for a key would never end
            killer.start()
            shown = b""
            with suppress(OSError):  # the terminal's end
                while chunk := os.read(parent, 65536):
                    shown += chunk
                    for text in [text for text in press if text in shown]:
                        os.write(parent, press.pop(text))
        killer.cancel()
        os.close(parent)
        other.seek(0)
        return process.returncode, shown, other.read()


def _be_controlled():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it
