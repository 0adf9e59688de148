"""Connections to MCP servers as the SDK wants them: two streams of messages.

Imports the SDK: only for workers that use a server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import anyio
import httpx2
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from flock_ray.mcp.parameters import (
    HttpParameters,
    ServerParameters,
    SseServerParameters,
    StdioServerParameters,
    StreamableHttpServerParameters,
    revealed,
)
from flock_ray.mcp.process import MAX_MESSAGE_BYTES, ServerProcess

__all__ = ["Diagnosis", "open_transport"]

Streams = tuple[Any, Any]


class Diagnosis:
    """What a transport learned about why it does not work; the SDK's errors leave it out."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.status: int | None = None
        """The last HTTP status from 400."""
        self.process: ServerProcess | None = None
        self.error: Exception | None = None
        """What ended the connection, if it did not end by itself."""


@contextlib.asynccontextmanager
async def open_transport(
    params: ServerParameters, diagnosis: Diagnosis, on_end: Callable[[], None]
) -> AsyncIterator[Streams]:
    """Connect to a server, without saying hello.

    Args:
        params: How to reach it.
        diagnosis: Filled in while the connection is open.
        on_end: Called when the server will send nothing more.

    Raises:
        OSError: It can't be started.
        httpx2.HTTPError: It can't be reached; over WebSocket an OSError or a WebSocketException.
    """
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(params, StdioServerParameters):
            read, write = await stack.enter_async_context(_stdio(params, diagnosis))
        elif isinstance(params, SseServerParameters):
            transport = sse_client(
                params.url, timeout=float(params.timeout), sse_read_timeout=float(params.sse_read_timeout),  # type: ignore[arg-type]  # seconds: a validator made them
                httpx_client_factory=_Factory(params, diagnosis),
            )  # fmt: skip
            read, write = await stack.enter_async_context(transport)
        elif isinstance(params, StreamableHttpServerParameters):
            client = await stack.enter_async_context(_http_client(params, diagnosis))
            streams = streamable_http_client(
                params.url, http_client=client, terminate_on_close=params.terminate_on_close,
                max_sse_event_size=MAX_MESSAGE_BYTES,
            )  # fmt: skip
            read, write = await stack.enter_async_context(streams)
        else:
            from flock_ray.mcp.websocket import websocket_client

            read, write = await stack.enter_async_context(websocket_client(params, diagnosis))
        yield _Watched(read, on_end), write


class _Watched:
    """A stream of messages that tells when it ends."""

    def __init__(self, stream: Any, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    @property
    def last_context(self) -> Any:
        """What the SDK's own streams carry beside a message."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        try:
            return await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._on_end()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> _Watched:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


# --- HTTP -----------------------------------------------------------------------------------------


class _Limited(httpx2.AsyncByteStream):
    """The body of a response, up to a limit."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._encoding = encoding

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._encoding not in ("", "identity"):
            # It was asked not to: a small compressed answer may be a huge one.
            raise httpx2.StreamError(f"an answer with the encoding {self._encoding!r}")
        seen = 0
        async with contextlib.aclosing(self._stream.__aiter__()) as chunks:
            async for chunk in chunks:
                seen += len(chunk)
                if seen > MAX_MESSAGE_BYTES:
                    raise httpx2.StreamError(f"an answer of more than {MAX_MESSAGE_BYTES} bytes")
                yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _http_client(params: HttpParameters, diagnosis: Diagnosis) -> httpx2.AsyncClient:
    async def check(response: httpx2.Response) -> None:
        if response.status_code >= 400:
            diagnosis.status = response.status_code
        # Event streams go on for as long as the connection; their events have limits of their own.
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            response.stream = _Limited(response.stream, response.headers.get("content-encoding", ""))

    return httpx2.AsyncClient(
        headers={**revealed(params.headers), "Accept-Encoding": "identity"},
        auth=params.auth,
        timeout=httpx2.Timeout(_s(params.timeout), read=_s(params.sse_read_timeout)),
        event_hooks={"response": [check]},
    )


class _Factory:
    """Makes the client of the SSE transport, which wants to choose headers and times itself."""

    def __init__(self, params: HttpParameters, diagnosis: Diagnosis) -> None:
        self._params = params
        self._diagnosis = diagnosis

    def __call__(
        self,
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return _http_client(self._params, self._diagnosis)


def _s(seconds: Any) -> float:
    return float(seconds)


# --- stdio ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _stdio(params: StdioServerParameters, diagnosis: Diagnosis) -> AsyncIterator[Streams]:
    """Start a program and talk to it in lines of JSON.

    Not the SDK's client: that one keeps a line of any length, leaves grandchildren behind when this process is
    killed, and needs a child watcher, which not every event loop policy has.
    """
    process = await ServerProcess.start(params)
    diagnosis.process = process
    to_session, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, from_session = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(_receive(process, params, to_session)),
        asyncio.create_task(_send(process, params, from_session, to_session)),
    ]
    try:
        yield read, write
    finally:
        write.close()
        read.close()
        await process.stop()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for stream in (to_session, from_session):
            stream.close()


async def _receive(
    process: ServerProcess,
    params: StdioServerParameters,
    to_session: MemoryObjectSendStream[SessionMessage | Exception],
) -> None:
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        async with to_session:
            try:
                while line := await process.reader.readline():
                    text = line.decode(params.encoding, params.encoding_error_handler).strip()
                    if text:
                        await to_session.send(_message(text))
            except UnicodeError:
                process.fault = f"it sent bytes that are no {params.encoding}"
            except ValueError:  # of readline
                process.fault = f"it sent a message of more than {MAX_MESSAGE_BYTES} bytes"


def _message(text: str) -> SessionMessage | Exception:
    try:
        return SessionMessage(mcp_types.jsonrpc_message_adapter.validate_json(text, by_name=False))
    except ValueError:
        # Programs print to stdout by mistake. The text is not passed on: it may be anything.
        return ValueError("a line that is not a message")


async def _send(
    process: ServerProcess,
    params: StdioServerParameters,
    from_session: MemoryObjectReceiveStream[SessionMessage],
    to_session: MemoryObjectSendStream[SessionMessage | Exception],
) -> None:
    writer = process.writer
    try:
        async with from_session:
            async for item in from_session:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True) + "\n"
                if writer is None:
                    return
                writer.write(text.encode(params.encoding, params.encoding_error_handler))
                await writer.drain()
    except (OSError, ValueError):
        # It takes nothing more: whoever waits for an answer hears that the connection has ended.
        to_session.close()
