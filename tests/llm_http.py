"""A small HTTP/1.1 server on asyncio protocols: tens of thousands of connections, and it sees clients leave."""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024

Handler = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request and the way to answer it."""

    def __init__(self, connection: Connection, method: str, path: str, headers: dict[str, str]) -> None:
        self._connection = connection
        self.method = method
        self.path = path
        self.headers = headers
        self.body = b""
        self.status = 0
        self._chunked = False

    def start(self, status: int, headers: Mapping[str, str], *, length: int | None) -> None:
        """Send the head; `length` None: chunks follow."""
        self.status = status
        self._chunked = length is None
        size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase if status in _KNOWN else 'Odd'}", size]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._connection.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def send(self, data: bytes) -> None:
        """Send a part of the body; waits while the client reads too slowly."""
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._connection.write(data)
        if self._connection.paused is not None:
            await self._connection.paused

    def end(self) -> None:
        """End a body of chunks."""
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")

    def reply(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole JSON response, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.start(status, {"content-type": "application/json", **(headers or {})}, length=len(data))
        self._connection.write(data)

    def cut(self) -> None:
        """Break the connection off: what was written may still arrive."""
        self._connection.cut()


_KNOWN = frozenset(status.value for status in http.HTTPStatus)


class Connection(asyncio.Protocol):
    """One client connection; requests on it are answered one after another."""

    def __init__(self, handler: Handler, connections: set[Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._missing = 0
        self._task: asyncio.Task[None] | None = None
        self.paused: asyncio.Future[None] | None = None
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        self.gone.set()
        self.resume_writing()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.paused = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        paused, self.paused = self.paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._parse()

    def _parse(self) -> None:
        if self._exchange is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEADER_BYTES:
                    self.cut()
                return
            head = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            del self._buffer[: end + 4]
            method, _, rest = head[0].partition(" ")
            fields = (line.partition(":") for line in head[1:])
            headers = {name.strip().lower(): value.strip() for name, _, value in fields}
            self._exchange = Exchange(self, method, rest.partition(" ")[0], headers)
            self._missing = int(headers.get("content-length", 0))
            if "transfer-encoding" in headers or self._missing > MAX_BODY_BYTES:
                self._exchange.reply(411, {"error": {"message": "send a content-length, at most 64 MiB"}})
                self.cut()
                return
        if len(self._buffer) >= self._missing:
            self._exchange.body = bytes(self._buffer[: self._missing])
            del self._buffer[: self._missing]
            exchange, self._exchange = self._exchange, None
            self._task = asyncio.get_running_loop().create_task(self._answer(exchange))

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        except Exception as error:  # a defect of a test's own function: the client hears of it
            if not exchange.status:
                exchange.reply(500, {"error": {"message": f"test server: {type(error).__name__}: {error}"}})
            self.cut()
        self._task = None
        if self._transport is not None and (self._buffer or exchange.headers.get("connection") == "close"):
            if exchange.headers.get("connection") == "close":
                self.cut()
            else:
                self._parse()


async def listen(handler: Handler, connections: set[Connection], *, port: int = 0) -> asyncio.Server:
    """Listen on localhost; port 0 is a free one."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: Connection(handler, connections), "127.0.0.1", port, backlog=16_384
    )
