"""Commands in the background: all their processes are found, and none is left behind."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

import psutil

POLL_S = 0.1
_STOP_S = 20.0
"""For so long processes may end by themselves before they are killed."""


class Sessions:
    """Commands, each started in a session of its own.

    The commands start no session themselves. So a process belongs to them if its session does, also when the process
    that started it has ended.
    """

    def __init__(self) -> None:
        self._leaders: dict[int, subprocess.Popen[bytes]] = {}
        self.seen: set[psutil.Process] = set()
        """Every process that was found, also those that have ended."""

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log_file: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a command.

        :param command: program and arguments.
        :param environment: its environment variables.
        :param log_file: takes what it prints.
        :returns: its process.
        """
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._leaders[process.pid] = process
        return process

    def running(self) -> set[psutil.Process]:
        """Find the processes that have not ended, and remember them in :attr:`seen`."""
        ended = {session for session, leader in self._leaders.items() if leader.poll() is not None}
        running: set[psutil.Process] = set()
        in_use: set[int] = set()
        for pid in psutil.pids():
            with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
                session = os.getsid(pid)
                if session not in self._leaders:
                    continue
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    running.add(process)
                in_use.add(session)
        for session in ended - in_use:
            del self._leaders[session]  # the system may give its number to another
        self.seen |= running
        return running

    def stop(self) -> None:
        """Ask every process to end, kill those that do not, and wait until all are gone.

        A process that is started meanwhile is asked as well.
        """
        for ask, patience_s in ((psutil.Process.terminate, _STOP_S), (psutil.Process.kill, math.inf)):
            until = time.monotonic() + patience_s
            asked: set[psutil.Process] = set()
            while (running := self.running()) and time.monotonic() < until:
                for process in running - asked:
                    with suppress(psutil.NoSuchProcess):
                        ask(process)
                asked |= running
                time.sleep(POLL_S)
