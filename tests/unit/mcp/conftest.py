from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from mcp.client._memory import InMemoryTransport
from mcp.server.mcpserver import MCPServer

from flock_ray.mcp import McpServer, StdioServerParameters, connection
from flock_ray.mcp.transports import Diagnosis, _Watched


class Wire:
    """Stands for the way to a server of this process: tests break it and look at it."""

    def __init__(self, server: MCPServer) -> None:
        self.server = server
        self.opened = 0
        self.open_now = 0
        self.broken: Exception | None = None
        """What connecting raises."""
        self._cut = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open(
        self, params: Any, diagnosis: Diagnosis, on_end: Callable[[], None]
    ) -> AsyncIterator[tuple[Any, Any]]:
        self.opened += 1
        if self.broken is not None:
            raise self.broken
        transport = InMemoryTransport(self.server)
        async with transport as (read, write):
            self.open_now += 1
            try:
                yield _Watched(_Cuttable(read, self._cut), on_end), write
            finally:
                self.open_now -= 1

    def cut(self) -> None:
        """End all connections as a dying server does."""
        self._cut.set()
        self._cut = asyncio.Event()


class _Cuttable:
    """A stream that ends when somebody says so."""

    def __init__(self, stream: Any, cut: asyncio.Event) -> None:
        self._stream = stream
        self._cut = cut

    async def receive(self) -> Any:
        waiting = [asyncio.ensure_future(self._stream.receive()), asyncio.ensure_future(self._cut.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self._cut.is_set():
                raise anyio.EndOfStream
            return await waiting[0]
        finally:
            for task in waiting:
                task.cancel()

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Let connections reach a server of this process."""
    made = Wire(MCPServer("wired", log_level="ERROR"))
    monkeypatch.setattr(connection, "open_transport", made.open)
    return made


def server_named(name: str = "fs", **options: Any) -> McpServer:
    return McpServer(name, **{"params": StdioServerParameters(command="unused"), **options})
