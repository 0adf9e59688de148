"""The tool servers of a worker: `Services.tool_servers`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flock_ray.engines.notes import note
from flock_ray.engines.tools import Tool
from flock_ray.errors import ConfigurationError
from flock_ray.mcp.loop import LoopThread
from flock_ray.mcp.names import tool_names
from flock_ray.mcp.trouble import ServerUnreachableError

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.mcp.connection import Connection, ServerTool
    from flock_ray.mcp.declaring import McpUse

__all__ = ["McpHub"]

UNREACHABLE = "mcp.unreachable"
MISSING = "mcp.missing"
LOG = "mcp.log"

CLOSE_S = 10.0
"""Seconds that `close` waits; a server that does not end politely takes 6."""

MAX_NAMED = 10
"""Tools that one note names."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What one server has for one agent."""

    use: McpUse
    connection: Connection | None
    tools: Sequence[ServerTool]
    trouble: str = ""
    missing: Sequence[str] = ()
    """Whitelisted names that the server does not have."""


class McpHub:
    """Connects to servers when runs need them; one connection per server and roots, for all runs of the process.

    Costs nothing before the first run of an agent with servers: neither a thread nor the SDK.
    """

    def __init__(self) -> None:
        """Connect to nothing yet."""
        self._thread = LoopThread("flock-mcp")
        self._connections: dict[bytes, Connection] = {}
        """On the thread's loop only."""

    @property
    def is_running(self) -> bool:
        """Whether any agent has used it, and it was not closed."""
        return self._thread.is_running

    async def tools(self, agent: AgentDefinition) -> list[Tool]:
        """Return the tools of the agent's servers, by server and name.

        A server that can't be reached is left out, with an event `mcp.unreachable`; so is a whitelisted tool
        that its server does not have, with `mcp.missing`.

        Raises:
            ConfigurationError: The MCP SDK is not installed here.
        """
        uses = [u for u in agent.mcp_servers if u.server is not None and u.server.has_tools]
        if not uses:
            return []
        if find_spec("mcp") is None:
            raise ConfigurationError(
                f"Agent {agent.name!r} uses MCP servers, and the MCP SDK is not installed on this worker: "
                "pip install 'flock-ray[mcp]' there."
            )
        tools: list[Tool] = []
        for found in await self._thread.run(self._find(uses)):
            tools += self._usable(found)
        return tools

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """End all connections and servers; blocks until they have ended. Safe to repeat.

        Args:
            timeout_s: At most so many seconds; servers that still run then end with this process.
        """
        self._thread.stop(self._end(), timeout_s)

    def _usable(self, found: _Found) -> list[Tool]:
        name = found.use.name
        if found.trouble:
            note(UNREACHABLE, f"{name}: {found.trouble}")
        if found.missing:
            listed = ", ".join(sorted(found.missing)[:MAX_NAMED])
            note(MISSING, f"{name} has no tool {listed}")
        connection = found.connection
        if connection is None:
            return []
        names = tool_names(name, [tool.name for tool in found.tools])
        return [
            Tool(
                name=names[tool.name],
                description=tool.description,
                parameters=tool.parameters,
                call=self._caller(connection, tool.name),
                # The connection's own limit comes first: it can say more than that time is up.
                timeout_s=connection.server.read_timeout_s + connection.server.connect_timeout_s,
            )
            for tool in found.tools
            if _allowed(found.use, tool.name)
        ]

    def _caller(self, connection: Connection, tool: str) -> Callable[[dict[str, Any]], Awaitable[str]]:
        async def call(arguments: dict[str, Any]) -> str:
            answer, logs = await self._thread.run(connection.call(tool, arguments))
            for line in logs:
                note(LOG, line)
            return answer

        return call

    # --- on the thread's loop -------------------------------------------------------------------

    async def _find(self, uses: Sequence[McpUse]) -> list[_Found]:
        return list(await asyncio.gather(*(self._found(use) for use in uses)))

    async def _found(self, use: McpUse) -> _Found:
        connection = self._connection(use)
        try:
            tools = await connection.tools()
        except ServerUnreachableError as error:
            return _Found(use, None, (), trouble=str(error))
        missing = (use.tool_whitelist or frozenset()) - {tool.name for tool in tools}
        return _Found(use, connection, tools, missing=tuple(missing))

    def _connection(self, use: McpUse) -> Connection:
        server = use.server
        assert server is not None
        roots = server.mount_points if use.roots is None else use.roots
        key = server.digest() + repr(roots).encode("utf-8", "surrogatepass")
        connection = self._connections.get(key)
        if connection is None:
            _quiet()
            # Only now: this imports the SDK.
            from flock_ray.mcp.connection import Connection

            connection = self._connections[key] = Connection(server, roots)
        return connection

    async def _end(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections.values()))
        self._connections.clear()


def _allowed(use: McpUse, tool: str) -> bool:
    lists = (use.tool_whitelist, use.server.tool_whitelist if use.server is not None else None)
    return all(names is None or tool in names for names in lists)


def _quiet() -> None:
    """Keep the SDK from logging what runs hear anyway, and URLs and session ids with it."""
    for name in ("client", "httpx2", *(f"mcp.{part}" for part in ("client", "shared"))):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
