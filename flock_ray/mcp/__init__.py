"""MCP: tools of other programs for agents with a language model.

Declaring (`flock.add_mcp`, `agent.with_mcps`) needs nothing installed; workers need the extra `flock-ray[mcp]`.
The SDK is imported by the first run that uses a server, in that worker only: it takes 1.2 s and 40 MB.
"""

from __future__ import annotations

from flock_ray.mcp.declaring import McpServer, MCPServerConfig, McpUse
from flock_ray.mcp.parameters import (
    ServerParameters,
    SseServerParameters,
    StdioServerParameters,
    StreamableHttpServerParameters,
    WebsocketServerParameters,
)

__all__ = [
    "MCPServerConfig",
    "McpServer",
    "McpUse",
    "ServerParameters",
    "SseServerParameters",
    "StdioServerParameters",
    "StreamableHttpServerParameters",
    "WebsocketServerParameters",
]
