"""A stand-in Google Cloud in one process: Cloud Storage, BigQuery jobs and Pub/Sub as far as a dispatcher uses them.

:class:`StandIn` serves it from a thread, :func:`main` from the command line, and :class:`StandInControl` is how a test
talks to either.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlencode

import requests
from aiohttp import web

from bqdispatch_provider.testing.standin_api import ApiError, Json, Operation, Reply, Request, boundary_of, split_target
from bqdispatch_provider.testing.standin_control import PREFIX, Control, State

__all__ = ["StandIn", "StandInControl", "main"]

BATCH_CALLS: Final = 100
"""Most calls in one batch ("Sending batch requests")."""
_LINE_LIMIT: Final = 64 * 1024
"""Two names of 1,024 bytes, percent-encoded, are longer than what HTTP servers take by default."""
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}

log = logging.getLogger(__name__)


class ConnectionLost(Exception):
    """The connection is to be closed without an answer.

    :param reply: an answer of which half is sent.
    """

    def __init__(self, reply: Reply | None = None) -> None:
        super().__init__()
        self.reply = reply


class Server:
    """HTTP over a :class:`State`.

    :param state: what it answers from.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.control = Control(state)

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        path, query = split_target(http.raw_path)
        body = await http.content.read() if http.body_exists else b""
        base = f"http://{http.headers.get('Host', http.host)}"

        def gone() -> bool:
            return http.transport is None or http.transport.is_closing()

        request = Request(http.method, path, query, http.headers, body, base, gone)
        try:
            reply = await self._answer(request)
        except ConnectionLost as lost:
            if lost.reply is not None:
                await self._begin(http, lost.reply)
            if http.transport is not None:
                http.transport.abort()
            reply = Reply(503)
        except ApiError as error:
            reply = error.reply()
        except Exception as error:
            log.exception("The stand-in failed on %s %s", http.method, http.raw_path)
            reply = ApiError(500, f"The stand-in failed: {error!r}").reply()
        return self._response(reply)

    async def _begin(self, http: web.BaseRequest, reply: Reply) -> None:
        """Send half of an answer."""
        payload = reply.payload()
        whole = self._response(reply)
        half = web.StreamResponse(status=reply.status, headers={**whole.headers, "Content-Length": str(len(payload))})
        await half.prepare(http)
        await half.write(payload[: len(payload) // 2])

    def _response(self, reply: Reply) -> web.Response:
        headers = {"Date": self.state.clock.http_date(), "Server": "bqdispatch-standin", **reply.headers}
        if reply.body is not None:
            headers.setdefault("Content-Type", "application/json; charset=UTF-8")
        reason = _PHRASES.get(reply.status, "Unknown")
        return web.Response(status=reply.status, reason=reason, body=reply.payload(), headers=headers)

    async def _answer(self, request: Request) -> Reply:
        if request.path.startswith(PREFIX):
            return self.control.answer(request)
        if self.state.latency_ms:
            await asyncio.sleep(self.state.latency_ms / 1000)
        try:
            operation = self._find(request)
        except ApiError:
            self.state.requests["unknown"] += 1
            raise
        self.state.requests[operation.call] += 1
        return await self._perform(operation)

    def _find(self, request: Request) -> Operation:
        if request.path in ("/batch/storage/v1", "/batch") and request.method == "POST":
            return Operation("storage.batch", partial(self._batch, request), batchable=False)
        for service in self.state.services:
            operation = service.find(request)
            if operation is not None:
                return operation
        raise ApiError(404, f"The stand-in knows no {request.method} {request.path}.")

    async def _perform(self, operation: Operation) -> Reply:
        """Count and do the call, unless a fault is in its way."""
        self.state.calls[operation.call] += 1
        try:
            self.state.limits.check(operation)
        except ApiError:
            self.state.refused[operation.call] += 1
            raise
        done: Reply | None = None
        for fault in self.state.faults.strike(operation) if self.state.faults.rules else ():
            if fault.after and done is None:
                done = await self._run(operation)
            if fault.kind == "slow":
                await self.state.faults.delay(fault)
            elif fault.kind == "reset":
                raise ConnectionLost
            elif fault.kind == "cut":
                reply = await self._run(operation) if done is None else done
                raise ConnectionLost(reply if reply.payload() else None)
            elif fault.kind == "text":
                kind = "application/json" if fault.text[:1] in ("{", "[", '"') else "text/html"
                return Reply(fault.status, fault.text.encode(), {"Content-Type": f"{kind}; charset=UTF-8"})
            else:
                return ApiError(fault.status, "The stand-in was asked to fail this call.", fault.reason).reply()
        return await self._run(operation) if done is None else done

    async def _run(self, operation: Operation) -> Reply:
        try:
            reply = operation.run()
            reply = reply if isinstance(reply, Reply) else await reply
        except ApiError as error:
            reply = error.reply()
        if reply.status == 429:
            self.state.refused[operation.call] += 1
        return reply

    async def _batch(self, request: Request) -> Reply:
        """Do the calls of a batch, one after the other; each has an answer of its own."""
        replies: list[tuple[str, Reply]] = []
        for identity, part in batch_parts(request):
            try:
                operation = self._find(part)
                if not operation.batchable:
                    raise ApiError(400, f"{operation.call} cannot be part of a batch.", "badRequest")
                reply = await self._perform(operation)
            except ApiError as error:
                reply = error.reply()
            replies.append((identity, reply))
        return batch_reply(replies, self.state.clock.http_date())


def batch_parts(request: Request) -> list[tuple[str, Request]]:
    """The calls of a batch with their Content-IDs ("Sending batch requests").

    Split by hand, for a mail parser takes longer for a part than the call in it. Line ends are made alike first:
    clients mix them, and the bodies inside are JSON, to which they do not matter.

    :param request: the batch request.
    :raises ApiError: 400, when it is not a batch, or holds no call or more than 100.
    """
    boundary = boundary_of(request.headers.get("content-type", ""))
    if boundary is None:
        raise ApiError(400, "A batch is multipart/mixed with a boundary.", "badRequest")
    text = "\n" + request.body.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    pieces = text.split(f"\n--{boundary}")[1:]
    if pieces and pieces[-1].startswith("--"):
        pieces.pop()
    if not 1 <= len(pieces) <= BATCH_CALLS:
        raise ApiError(400, f"A batch holds 1 to {BATCH_CALLS} calls, not {len(pieces)}.", "badRequest")
    return [_batch_part(piece, request.base) for piece in pieces]


def _batch_part(piece: str, base: str) -> tuple[str, Request]:
    outer, _, inner = piece.partition("\n\n")
    identity = ""
    if "content-id" in outer.lower():
        lines = (line.partition(":") for line in outer.split("\n"))
        identity = next((value.strip() for name, _, value in lines if name.lower() == "content-id"), "")
    head, _, body = inner.lstrip("\n").partition("\n\n")
    words = head.partition("\n")[0].split(" ")
    if len(words) < 2:
        raise ApiError(400, "A part of the batch has no request line.", "badRequest")
    path, query = split_target(words[1])
    # No call that may stand in a batch looks at headers.
    return identity, Request(words[0], path, query, {}, body.encode("utf-8", "surrogateescape"), base)


def batch_reply(replies: list[tuple[str, Reply]], date: str) -> Reply:
    """The answers of a batch's parts as one multipart/mixed answer.

    :param replies: Content-ID (empty: none) and answer of each call, in the order of the calls.
    :param date: the value of their ``Date`` headers.
    """
    boundary = f"batch_{uuid.uuid4().hex}"
    pieces: list[bytes] = []
    for identity, reply in replies:
        payload = reply.payload()
        head = f"--{boundary}\r\nContent-Type: application/http\r\n"
        if identity:
            head += f"Content-ID: <response-{identity.strip('<>')}>\r\n"
        head += f"\r\nHTTP/1.1 {reply.status} {_PHRASES.get(reply.status, 'Unknown')}\r\nDate: {date}\r\n"
        for name, value in reply.headers.items():
            head += f"{name}: {value}\r\n"
        if payload:
            head += "Content-Type: application/json; charset=UTF-8\r\n"
        pieces.append(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode())
        pieces.append(payload)
        pieces.append(b"\r\n")
    pieces.append(f"--{boundary}--\r\n".encode())
    return Reply(200, b"".join(pieces), {"Content-Type": f"multipart/mixed; boundary={boundary}"})


async def _serve(state: State, sock: socket.socket) -> web.ServerRunner:
    """Start answering on a bound socket; the caller cleans the runner up."""
    server = web.Server(
        Server(state).handle,
        access_log=None,
        # Bodies are stored as they were sent, compressed or not.
        auto_decompress=False,
        max_line_size=_LINE_LIMIT,
        max_field_size=_LINE_LIMIT,
        lingering_time=0,
    )
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, sock, backlog=1024).start()
    return runner


async def _stop(runner: web.ServerRunner) -> None:
    """Stop answering, also those calls whose clients have given up waiting."""
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


class StandIn:
    """A stand-in Google Cloud that is served from a thread of its own while the context is open.

    Point clients at ``url``: it is the value for ``STORAGE_EMULATOR_HOST`` and ``BIGQUERY_EMULATOR_HOST``.

    :param port: where to listen; a free port when left out.
    :param host: the address to listen on.
    :param latency_ms: how much later every HTTP request is answered, in milliseconds.
    :param name_limit: whether an object's name can be changed only once a second, as in the service.
    """

    url: str

    def __init__(
        self, port: int = 0, *, host: str = "127.0.0.1", latency_ms: float = 0, name_limit: bool = True
    ) -> None:
        self._address = host, port
        self.state = State(latency_ms, name_limit=name_limit)

    def __enter__(self) -> StandIn:
        sock, self.url = _bind(*self._address)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bqdispatch-standin", daemon=True)
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(_serve(self.state, sock), self._loop).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(_stop(self._runner), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def control(self) -> StandInControl:
        """A new client of its control API."""
        return StandInControl(self.url)


class StandInControl:
    """The control API of a stand-in, wherever it runs.

    Every method may raise :class:`ValueError`: with what the stand-in says about a call that it refuses.

    :param url: the stand-in's address, such as ``http://127.0.0.1:8080``.
    """

    def __init__(self, url: str) -> None:
        self._root = url.rstrip("/") + PREFIX
        self._session = requests.Session()
        # Proxies and netrc files of the environment have no say in what goes to a stand-in.
        self._session.trust_env = False

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def __enter__(self) -> StandInControl:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def seed_objects(self, bucket: str, objects: Iterable[str | Mapping[str, Any]]) -> list[int]:
        """Create objects, and the bucket when it is missing.

        :param bucket: the bucket's name.
        :param objects: names, or ``{"name", "content"?, "contentType"?, "metadata"?, "timeCreated"?, "temporaryHold"?,
            "eventBasedHold"?}`` with the time in seconds since the epoch. They take the place of what is there, which a
            bucket with versioning or soft delete keeps.
        :returns: their generations, in the same order.
        """
        entries = [{"name": entry} if isinstance(entry, str) else dict(entry) for entry in objects]
        answer = self._call("POST", "objects", {"bucket": bucket, "objects": entries})
        return [int(generation) for generation in answer["generations"]]

    def seed_jobs(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Create jobs.

        :param jobs: ``{"project", "jobId", "location"?, "type"?, "pendingMs"?, "runningMs"?, "error"?, "creationTime"?,
            "userEmail"?, "labels"?, "sourceUris"?}``; location US and type load when left out, the time in seconds of
            the epoch.
        """
        self._call("POST", "jobs", {"jobs": [dict(job) for job in jobs]})

    def set_job_defaults(self, pending_ms: int = 0, running_ms: int = 0) -> None:
        """Say how long jobs take that say nothing of it themselves.

        :param pending_ms: how long they are PENDING, in milliseconds.
        :param running_ms: how long they are RUNNING, in milliseconds.
        """
        self._call("POST", "job-defaults", {"pendingMs": pending_ms, "runningMs": running_ms})

    def now(self) -> float:
        """The stand-in's time, in seconds since the epoch."""
        return float(self._call("GET", "clock")["now"])

    def set_clock(self, now: float) -> float:
        """Set the clock; time goes on from there.

        :param now: the time, in seconds since the epoch.
        :returns: the new time, in seconds since the epoch.
        """
        return float(self._call("POST", "clock", {"now": now})["now"])

    def advance(self, seconds: float) -> float:
        """Move the clock.

        :param seconds: by how much; back when negative.
        :returns: the new time, in seconds since the epoch.
        """
        return float(self._call("POST", "clock", {"advance": seconds})["now"])

    def requests(self) -> int:
        """How many HTTP requests came in since the last reset; a batch is one."""
        return sum(self.requests_by_method().values())

    def requests_by_method(self) -> dict[str, int]:
        """How many HTTP requests came in since the last reset, by method; a batch is one, ``storage.batch``."""
        return dict(self._call("GET", "counters")["requests"])

    def calls(self) -> dict[str, int]:
        """How often each method was called since the last reset; every part of a batch is a call."""
        return dict(self._call("GET", "counters")["calls"])

    def refused(self) -> dict[str, int]:
        """How many calls of each method were too many since the last reset, for :meth:`set_limits` or for one name."""
        return dict(self._call("GET", "counters")["refused"])

    def reset_counters(self) -> None:
        """Count from zero."""
        self._call("POST", "counters/reset")

    def set_latency(self, ms: float) -> None:
        """Answer every HTTP request late.

        :param ms: how much later, in milliseconds.
        """
        self._call("POST", "latency", {"ms": ms})

    def set_limits(self, writes: float = 0, jobs: float = 0) -> None:
        """Refuse calls that come too fast, as the services do.

        :param writes: objects written or deleted a second in each bucket (429 ``rateLimitExceeded``); 0: no limit.
        :param jobs: calls of ``jobs.get``, and of ``jobs.list``, a second (403 ``rateLimitExceeded``); 0: no limit.
        """
        self._call("POST", "limits", {"writes": writes, "jobs": jobs})

    def set_name_limit(self, on: bool) -> None:
        """Enforce the service's limit of one change a second for each object name, or do not.

        :param on: whether a name that was created, overwritten, patched or deleted less than a second ago by the
            stand-in's clock can be changed again only after that (429 ``rateLimitExceeded``).
        """
        self._call("POST", "name-limit", {"on": on})

    def add_fault(self, call: str, kind: str, **more: Any) -> None:
        """Break calls.

        :param call: the method's name or a glob, such as ``storage.objects.*``; ``storage.batch`` for whole batches.
        :param kind: ``status`` (answer with an error), ``reset`` (close the connection), ``cut`` (close it in the midst
            of the answer), ``slow`` (answer late), ``text`` (answer with some text).
        :param more: ``project``, ``bucket``, ``name`` (globs), ``status``, ``reason``, ``text``, ``ms``,
            ``probability``, ``times``, ``after``: see :class:`~bqdispatch_provider.testing.standin_control.Fault`.
        """
        self._call("POST", "faults", {"faults": [{"call": call, "kind": kind, **more}]})

    def faults(self) -> list[Json]:
        """The rules in force, with the ``times`` that each has left."""
        return list(self._call("GET", "faults")["faults"])

    def clear_faults(self) -> None:
        """Break nothing any more; calls that a ``slow`` fault holds up are answered at once."""
        self._call("DELETE", "faults")

    def seed_faults(self, seed: int) -> None:
        """Start the random numbers behind ``probability`` again.

        :param seed: the same seed gives the same numbers; 0 at the start and after a reset.
        """
        self._call("POST", "faults/seed", {"seed": seed})

    def refuse(
        self, permission: str, *, bucket: str | None = None, prefix: str | None = None, project: str | None = None
    ) -> None:
        """Answer 403 to calls that need a permission.

        :param permission: its name: one that Cloud Storage's methods need, or ``bigquery.jobs.get``, ``.list`` or
            ``.listAll`` (lists for ``allUsers``).
        :param bucket: on which bucket; on all when left out.
        :param prefix: only on objects whose names begin with it; the bucket's own test still shows it as granted.
        :param project: for BigQuery: in which project; in all when left out.
        """
        where = {"bucket": bucket, "prefix": prefix, "project": project}
        given = {name: value for name, value in where.items() if value is not None}
        self._call("POST", "refusals", {"permission": permission, **given})

    def refusals(self) -> list[Json]:
        """What is refused."""
        return list(self._call("GET", "refusals")["refusals"])

    def allow_all(self) -> None:
        """Refuse no permission any more."""
        self._call("DELETE", "refusals")

    def set_rewrite_calls(self, n: int) -> None:
        """Let rewrites take several calls, as those of large objects do.

        :param n: how many calls each takes from now on; 1 at the start and after a reset.
        """
        self._call("POST", "rewrite-calls", {"n": n})

    def peaks(self, label: str | None = None) -> dict[str, dict[str, int]]:
        """For every project the most jobs that were PENDING or RUNNING at one time, up to now.

        :param label: leave out jobs that do not carry a label of this name.
        :returns: project to counts by type (``load``, ``copy``, ``query``, ``extract``) and group (``sql``, ``jobs``).
        """
        query = f"?{urlencode({'label': label})}" if label is not None else ""
        return dict(self._call("GET", f"peaks{query}")["peaks"])

    def set_log_sink(self, topic: str) -> None:
        """Publish a message for each job that is done from now on, as a log sink does (docs/push.md).

        :param topic: ``projects/<project>/topics/<topic>``, which must be there; empty: no more.
        """
        self._call("POST", "log-sink", {"topic": topic})

    def reset(self) -> None:
        """Empty everything: buckets, jobs, faults, refusals, counters; clock, latency, name limit are as at first."""
        self._call("POST", "reset")

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        response = self._session.request(method, self._root + path, json=body)
        answer: Json = response.json()
        if response.status_code != 200:
            raise ValueError(f"{method} {path}: {answer['error']['message']}")
        return answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a stand-in until SIGTERM or SIGINT; prints its address once it answers.

    :param arguments: options, see ``--help``; those of the process when left out.
    :returns: 0.
    """
    parser = argparse.ArgumentParser(prog="bqdispatch-standin", description="Serve a stand-in Google Cloud.")
    parser.add_argument("--port", type=int, default=0, help="where to listen (default: a free port)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--latency-ms", type=float, default=0, help="answer every request this much later")
    parser.add_argument(
        "--no-name-limit",
        dest="name_limit",
        action="store_false",
        help="let an object's name be changed more than once a second",
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


if __name__ == "__main__":
    raise SystemExit(main())
