"""Carries requests to an `Application` by aiohttp: connections, slow senders, an orderly end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

from aiohttp import web

from distsgd.serving.application import Application, Head
from distsgd.serving.bodies import Refused

__all__ = ["serve"]

_BACKLOG = 512
_IDLE = 75.0
"""Seconds that a connection may rest between two requests."""

_LAST = 2.0
"""Seconds for the answers of open requests to be sent, when the server ends."""

_LINGER = 5.0
"""Seconds in which the rest of a body that was refused is read and dropped, so that its sender
gets to read the answer."""


async def serve(application: Application, listener: socket.socket, stop: asyncio.Event) -> None:
    """Answer requests until ``stop`` is set, and then those that have come.

    Args:
        application: what answers.
        listener: a socket that listens; closed at the end.
        stop: set to end.
    """
    connections = _Connections(application)
    loop = asyncio.get_running_loop()
    application.start()
    accepting = await loop.create_server(connections.new, sock=listener, backlog=_BACKLOG)
    try:
        await stop.wait()
        application.stop()
        accepting.close()
        await connections.end()
    finally:
        accepting.close()
        await application.close()


class _Connections:
    """All connections, and the requests that they bring."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self._http = web.Server(
            self._answer, access_log=None, keepalive_timeout=_IDLE, lingering_time=_LINGER,
            auto_decompress=False,
        )  # fmt: skip
        self.open: dict[web.RequestHandler, _Connection] = {}
        self._ending: asyncio.Event | None = None

    def new(self) -> asyncio.Protocol:
        """The protocol of a connection that is being accepted."""
        if len(self.open) >= self.application.limits.connections:
            return _Refusing(self.application.limits.connections)
        return _Connection(self, self._http())

    async def end(self) -> None:
        """Wait for open requests, and close all connections."""
        self._ending = asyncio.Event()
        await asyncio.sleep(0)  # what has come is heard now
        for http, connection in list(self.open.items()):
            if not connection.busy:
                http.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.application.limits.stop):
                while any(connection.busy for connection in self.open.values()):
                    self._ending.clear()
                    await self._ending.wait()
        self._http.pre_shutdown()
        await self._http.shutdown(_LAST)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self.open.get(request.protocol)
        if connection is not None:
            connection.request_begins()
        headers = {name.lower(): value for name, value in request.headers.items()}
        head = Head(request.method, request.path, request.query, headers)
        found = await self.application.answer(head, lambda: _body(request))
        response = web.Response(
            status=found.status, body=found.body,
            headers={**found.headers, "Content-Type": found.content_type, "Server": "distsgd"},
        )  # fmt: skip
        closes = "Connection" in found.headers or self._ending is not None
        if closes:
            response.force_close()
        if connection is not None:
            connection.request_ends(closes)
        self.changed()
        return response

    def changed(self) -> None:
        """A connection may be busy no more."""
        if self._ending is not None:
            self._ending.set()


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused(415, "compressed bodies are not taken", "Leave out Content-Encoding")
    if request.headers.get("Expect", "").lower() == "100-continue":
        writer: Any = request.writer
        await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.output_size = 0
    try:
        async for piece in request.content.iter_any():
            yield piece
    except TimeoutError:
        raise
    except (web.RequestPayloadError, OSError):
        raise Refused(400, "the body is incomplete", "The connection has ended") from None


class _Connection(asyncio.Protocol):
    """Passes everything to aiohttp, and gives the head of a request limited time to arrive."""

    def __init__(self, all_: _Connections, http: web.RequestHandler) -> None:
        self._all, self._http = all_, http
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._in_request = self._closing = False

    @property
    def busy(self) -> bool:
        """Whether a request has begun to arrive that is not answered."""
        return self._in_request or self._heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._all.open[self._http] = self
        self._all.application.metrics.connections(1)
        self._http.connection_made(transport)
        self._await_head()

    def connection_lost(self, error: Exception | None) -> None:
        self._cancel()
        if self._all.open.pop(self._http, None) is not None:
            self._all.application.metrics.connections(-1)
            self._all.changed()
        self._http.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if not self._in_request:
            self._heard = True
            if self._timer is None and not self._closing:
                self._await_head()
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        return self._http.eof_received()  # type: ignore[func-returns-value]

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def request_begins(self) -> None:
        """A whole head has arrived."""
        self._cancel()
        self._in_request = True

    def request_ends(self, closing: bool) -> None:
        """It is answered."""
        self._in_request, self._heard, self._closing = False, False, closing

    def _await_head(self) -> None:
        limits = self._all.application.limits
        self._timer = asyncio.get_running_loop().call_later(limits.seconds, self._too_slow)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._transport is None or self._in_request:
            return
        if self._heard:
            seconds = self._all.application.limits.seconds
            problem = f"the head of the request did not arrive within {seconds:g} s"
            self._transport.write(_raw(408, "Request Timeout", problem, "Send it faster"))
            self._all.application.metrics.request("other", 408, seconds)
        self._transport.close()


class _Refusing(asyncio.Protocol):
    """A connection beyond the limit: it is answered with 503, and closed."""

    def __init__(self, most: int) -> None:
        self._most = most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        problem = f"{self._most} connections are open, and no more are taken"
        connection = cast(asyncio.Transport, transport)
        connection.write(_raw(503, "Service Unavailable", problem, "Try again in a second"))
        connection.close()


def _raw(status: int, reason: str, problem: str, hint: str) -> bytes:
    """A whole answer, for where aiohttp does not write one."""
    body = json.dumps({"error": problem, "hint": hint}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\nRetry-After: 1\r\n\r\n"
    )
    return head.encode() + body
