"""A command of which one stream is a terminal."""

import os
import pty
import subprocess
import tempfile
from contextlib import suppress


def on_a_terminal(command, stream="stderr", **environment):
    """Run it to its end; gives its exit code, what the terminal has shown, and what the other stream carried."""
    parent, child = pty.openpty()
    with tempfile.TemporaryFile() as other:
        streams = {"stdout": other, "stderr": other, stream: child}
        with subprocess.Popen(command, **streams, env={**os.environ, "TERM": "xterm", **environment}) as process:
            os.close(child)
            shown = b""
            with suppress(OSError):  # the terminal's end
                while chunk := os.read(parent, 65536):
                    shown += chunk
        os.close(parent)
        other.seek(0)
        return process.returncode, shown, other.read()
