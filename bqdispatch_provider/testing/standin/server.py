"""The HTTP server: it finds the call of a request, applies faults and limits, and sends the answer."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from aiohttp import web

from bqdispatch_provider.testing.standin.api import ApiError, Operation, Reply, Request, split_target
from bqdispatch_provider.testing.standin.batch import PHRASES, batch_parts, batch_reply
from bqdispatch_provider.testing.standin.control_api import PREFIX, Control
from bqdispatch_provider.testing.standin.state import State

log = logging.getLogger(__name__)


class ConnectionLost(Exception):
    """A fault that closes the connection.

    :param reply: answer of which the first half is sent before; ``None``: nothing is sent.
    """

    def __init__(self, reply: Reply | None = None) -> None:
        super().__init__()
        self.reply = reply


class Server:
    """The HTTP server.

    :param state: state of the stand-in.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.control = Control(state)

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer an HTTP request.

        :param http: the request.
        """
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
        """Send the first half of an answer."""
        payload = reply.payload()
        whole = self._response(reply)
        half = web.StreamResponse(status=reply.status, headers={**whole.headers, "Content-Length": str(len(payload))})
        await half.prepare(http)
        await half.write(payload[: len(payload) // 2])

    def _response(self, reply: Reply) -> web.Response:
        headers = {"Date": self.state.clock.http_date(), "Server": "bqdispatch-standin", **reply.headers}
        if reply.body is not None:
            headers.setdefault("Content-Type", "application/json; charset=UTF-8")
        reason = PHRASES.get(reply.status, "Unknown")
        return web.Response(status=reply.status, reason=reason, body=reply.payload(), headers=headers)

    async def _answer(self, request: Request) -> Reply:
        if request.path.startswith(PREFIX):
            return self.control.answer(request)
        if (request.method, request.path) == ("GET", "/"):
            return self.control.index(request.base)
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
        raise ApiError(404, f"The stand-in does not support {request.method} {request.path}.")

    async def _perform(self, operation: Operation) -> Reply:
        """Count a call and execute it, unless a limit or a fault prevents it."""
        self.state.calls[operation.call] += 1
        try:
            self.state.limits.check(operation)
        except ApiError:
            self.state.refused[operation.call] += 1
            raise
        done: Reply | None = None
        for fault in self.state.faults.apply(operation) if self.state.faults.rules else ():
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
            self.state.permissions.require_for(operation.call, operation.targets)
            reply = operation.run()
            reply = reply if isinstance(reply, Reply) else await reply
        except ApiError as error:
            reply = error.reply()
        if reply.status == 429:
            self.state.refused[operation.call] += 1
        return reply

    async def _batch(self, request: Request) -> Reply:
        """Execute the calls of a batch one after the other. Each has an answer of its own."""
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
