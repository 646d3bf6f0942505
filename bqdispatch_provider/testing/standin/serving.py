"""Ways to run the stand-in: in a thread, and as the command ``bqdispatch-standin``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import threading
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from bqdispatch_provider.testing.standin.control_client import StandInControl
from bqdispatch_provider.testing.standin.server import Server
from bqdispatch_provider.testing.standin.state import State

_LOOPBACK: Final = "127.0.0.1"
_MAX_LINE_BYTES: Final = 64 * 1024
"""Enough for two percent-encoded names of 1,024 bytes, which exceed the default of aiohttp."""


class StandIn:
    """A context manager that runs a stand-in Google Cloud in a thread.

    :param port: port to listen on, on this machine alone; a free one by default.
    :param name_limit: ``True``: refuse a second change of an object name within a second, as the service does.
    """

    url: str
    """Address of the stand-in, the value for ``STORAGE_EMULATOR_HOST`` and ``BIGQUERY_EMULATOR_HOST``."""

    def __init__(self, port: int = 0, *, name_limit: bool = True) -> None:
        self._port = port
        self.state = State(name_limit=name_limit)

    def __enter__(self) -> StandIn:
        sock, self.url = _bind(_LOOPBACK, self._port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bqdispatch-standin", daemon=True)
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(_serve(self.state, sock), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(_stop(self._runner), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def control(self) -> StandInControl:
        """A new client of the stand-in's control API."""
        return StandInControl(self.url)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stand-in until SIGTERM or SIGINT, and print its address once it answers.

    :param arguments: options, see ``--help``; those of the process by default.
    :returns: exit code 0.
    """
    parser = argparse.ArgumentParser(prog="bqdispatch-standin", description="Serve a stand-in Google Cloud.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    parser.add_argument("--host", default=_LOOPBACK, help="address to listen on (default: %(default)s)")
    parser.add_argument("--latency-ms", type=float, default=0, help="delay of the answer to every request")
    parser.add_argument(
        "--no-name-limit",
        dest="name_limit",
        action="store_false",
        help="allow more than one change of an object name per second",
    )
    options = parser.parse_args(arguments)
    try:
        sock, url = _bind(options.host, options.port)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: cannot listen on {options.host}:{options.port}: {error}\n")
    state = State(options.latency_ms, name_limit=options.name_limit)
    asyncio.run(_serve_until_stopped(state, sock, url))
    return 0


async def _serve_until_stopped(state: State, sock: socket.socket, url: str) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    runner = await _serve(state, sock)
    print(url, flush=True)
    await stopped.wait()
    await _stop(runner)


async def _serve(state: State, sock: socket.socket) -> web.ServerRunner:
    """Start to answer on a bound socket. The caller cleans up the runner."""
    server = web.Server(
        Server(state).handle,
        access_log=None,
        # Objects are stored as sent, compressed or not.
        auto_decompress=False,
        max_line_size=_MAX_LINE_BYTES,
        max_field_size=_MAX_LINE_BYTES,
        lingering_time=0,
    )
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, sock, backlog=1024).start()
    return runner


async def _stop(runner: web.ServerRunner) -> None:
    """Stop to answer, and cancel calls whose clients no longer wait."""
    await runner.cleanup()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def _bind(host: str, port: int) -> tuple[socket.socket, str]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    shown = f"[{host}]" if ":" in host else host
    return sock, f"http://{shown}:{sock.getsockname()[1]}"
