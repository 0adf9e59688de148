"""MCP over WebSocket: one message of JSON per text frame, with the subprotocol `mcp`.

The SDK had such a client up to version 1; servers that speak it are still about.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from flock_ray.mcp.parameters import WebsocketServerParameters
from flock_ray.mcp.process import MAX_MESSAGE_BYTES

__all__ = ["websocket_client"]

CLOSE_S = 2.0
"""Seconds that a server has to say goodbye."""


@contextlib.asynccontextmanager
async def websocket_client(
    params: WebsocketServerParameters, diagnosis: Any
) -> AsyncIterator[tuple[Any, Any]]:
    """Connect to a server; yields the streams of messages that the SDK wants.

    Args:
        params: How to reach it.
        diagnosis: Its `status` becomes the HTTP status with which a server refuses.

    Raises:
        OSError: Nobody answers.
        WebSocketException: It is no WebSocket server, or refuses.
    """
    try:
        socket = await connect(
            params.url, subprotocols=["mcp"], max_size=MAX_MESSAGE_BYTES, close_timeout=CLOSE_S,  # type: ignore[list-item]  # a NewType of str
            open_timeout=None, compression=None,  # a small compressed message may be a huge one
        )  # fmt: skip
    except InvalidStatus as error:
        diagnosis.status = error.response.status_code
        raise
    to_session, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, from_session = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(_receive(socket, to_session, diagnosis)),
        asyncio.create_task(_send(socket, from_session, to_session)),
    ]
    try:
        yield read, write
    finally:
        write.close()
        read.close()
        with contextlib.suppress(OSError, WebSocketException):
            await socket.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for stream in (to_session, from_session):
            stream.close()


async def _receive(
    socket: ClientConnection, to_session: MemoryObjectSendStream[SessionMessage | Exception], diagnosis: Any
) -> None:
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with to_session:
            try:
                async for frame in socket:
                    await to_session.send(_message(frame))
            except ConnectionClosed as error:
                diagnosis.error = error


def _message(frame: str | bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(mcp_types.jsonrpc_message_adapter.validate_json(frame, by_name=False))
    except ValueError:
        # The text is not passed on: it may be anything.
        return ValueError("a frame that is not a message")


async def _send(
    socket: ClientConnection,
    from_session: MemoryObjectReceiveStream[SessionMessage],
    to_session: MemoryObjectSendStream[SessionMessage | Exception],
) -> None:
    try:
        async with from_session:
            async for item in from_session:
                await socket.send(item.message.model_dump_json(by_alias=True, exclude_unset=True))
    except (OSError, WebSocketException):
        # It takes nothing more: whoever waits for an answer hears that the connection has ended.
        to_session.close()
