"""Servers over WebSocket, against one that is written with the SDK's server and the `websockets` package."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

import anyio
import mcp_types
import pytest
from mcp.shared.message import SessionMessage
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from flock_ray.mcp import WebsocketServerParameters
from flock_ray.mcp.trouble import ToolFailedError
from tests.integration.mcp.conftest import Client
from tests.mcp_server import build

Connect = Callable[..., Client]


async def speak(socket: ServerConnection, hangs_up_at: str | None = None) -> None:
    """Serve one client, as the SDK 1 did; up to the first message with a text in it."""
    mcp = build()._lowlevel_server
    to_server, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, from_server = anyio.create_memory_object_stream[SessionMessage](0)

    async def receive() -> None:
        async with to_server:
            with contextlib.suppress(ConnectionClosed, anyio.BrokenResourceError):
                async for frame in socket:
                    if hangs_up_at is not None and hangs_up_at in str(frame):
                        await socket.close(1011, "that was it")
                        break
                    message = mcp_types.jsonrpc_message_adapter.validate_json(frame, by_name=False)
                    await to_server.send(SessionMessage(message))

    async def send() -> None:
        with contextlib.suppress(ConnectionClosed, anyio.ClosedResourceError):
            async for item in from_server:
                await socket.send(item.message.model_dump_json(by_alias=True, exclude_unset=True))

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(receive())
            group.create_task(send())
            await mcp.run(read, write, mcp.create_initialization_options())
            write.close()
    finally:
        for stream in (to_server, read, write, from_server):
            stream.close()


@contextlib.asynccontextmanager
async def listening(port: int = 0, handler: Any = speak, **options: Any) -> AsyncIterator[tuple[Server, int]]:
    async with serve(handler, "127.0.0.1", port, subprotocols=["mcp"], **options) as server:  # type: ignore[list-item]
        yield server, next(iter(server.sockets)).getsockname()[1]


def at(port: int, query: str = "") -> WebsocketServerParameters:
    return WebsocketServerParameters(url=f"ws://127.0.0.1:{port}/mcp{query}")


async def test_a_server_over_websocket_answers_many_at_once(connect: Connect) -> None:
    async with listening() as (server, port):
        client = connect(at(port))

        sums = await asyncio.gather(*(client.call("add", a=i, b=1) for i in range(20)))

        assert [str(i + 1) for i in range(20)] == sums
        assert 1 == len(server.connections)
        await asyncio.to_thread(client._hub.close)


async def test_a_refused_token_is_one_sentence_without_it(connect: Connect) -> None:
    def guard(connection: ServerConnection, request: Any) -> Any:
        if not request.path.endswith("token=right"):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no")
        return None

    async with listening(process_request=guard) as (_, port):
        wrong = connect(at(port, "?token=a-wrong-secret"), max_retries=0)
        right = connect(at(port, "?token=right"))

        assert {} == await wrong.tools()
        assert "3" == await right.call("add", a=1, b=2)
        await asyncio.to_thread(right._hub.close)

    [(kind, text)] = wrong.notes
    assert "mcp.unreachable" == kind
    assert f"ws://127.0.0.1:{port}/mcp refuses the credentials (HTTP 401)" in text
    assert "a-wrong-secret" not in text


async def test_a_server_that_hangs_up_fails_the_call_and_is_used_again(connect: Connect) -> None:
    lives: list[int] = []

    async def moody(socket: ServerConnection) -> None:
        lives.append(1)
        await speak(socket, hangs_up_at='"seconds"' if len(lives) == 1 else None)

    async with listening(handler=moody) as (_, port):
        client = connect(at(port))
        with pytest.raises(ToolFailedError, match=r"lost during the call.*that was it"):
            await client.call("wait", seconds=600)

        assert "3" == await client.call("add", a=1, b=2)
        assert 2 == len(lives)
        await asyncio.to_thread(client._hub.close)


async def test_what_is_no_message_is_skipped_and_nobody_there_is_one_sentence(connect: Connect) -> None:
    async def babbling(socket: ServerConnection) -> None:
        await socket.send("hello, this is no message")
        await speak(socket)

    async with listening(handler=babbling) as (_, port):
        client = connect(at(port))
        assert "3" == await client.call("add", a=1, b=2)
    gone = connect(at(port), max_retries=0)

    assert {} == await gone.tools()
    assert [("mcp.unreachable", f"t: nobody answers at ws://127.0.0.1:{port}/mcp")] == gone.notes
