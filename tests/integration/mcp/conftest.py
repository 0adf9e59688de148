from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from flock_ray.core.definition import AgentDefinition
from flock_ray.engines.notes import noting
from flock_ray.engines.outputs import Note
from flock_ray.engines.tools import Tool
from flock_ray.mcp import McpServer, McpUse, ServerParameters, StdioServerParameters
from flock_ray.mcp.hub import McpHub

SCRIPT = Path(__file__).parents[2] / "mcp_server.py"


def program(*options: str, **more: Any) -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=[str(SCRIPT), *options], **more)


class Client:
    """What an agent with one server sees."""

    def __init__(self, hub: McpHub, server: McpServer) -> None:
        self.notes: list[Note] = []
        self._hub = hub
        self._agent = AgentDefinition("helper", mcp_servers=(McpUse(server.name, server=server),))

    async def tools(self) -> dict[str, Tool]:
        with noting(self.notes):
            return {tool.name: tool for tool in await self._hub.tools(self._agent)}

    async def call(self, name: str, /, **arguments: Any) -> str:
        with noting(self.notes):
            return str(await (await self.tools())[f"t__{name}"].call(arguments))


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Client]]:
    """Use servers through one hub, as the agents of a worker do."""
    hub = McpHub()

    def make(params: ServerParameters, **options: Any) -> Client:
        return Client(hub, McpServer("t", params, **options))

    yield make
    await asyncio.to_thread(hub.close)


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[int]:
    """Serve an ASGI app on localhost, and stop it; the value is its port."""
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", port))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


async def gone(pid: int, within_s: float = 20.0) -> bool:
    """Wait until a process is gone, or only a zombie nobody reaps."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not is_alive(pid):
            return True
        await asyncio.sleep(0.05)
    return False


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    found = [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]
    return [pid for child in found for pid in (child, *children(child))]
