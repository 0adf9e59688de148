"""An MCP server for tests, written with the SDK. Over stdio: `python tests/mcp_server.py [option...]`.

Options: `stubborn` ignores the end of stdin and SIGTERM, and has a child of its own; `chatty` prints to stdout;
`broken` ends at once with a message; `silent` never answers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import Any

from mcp.server.mcpserver import Context, Image, MCPServer


def build(name: str = "tests") -> MCPServer:
    server = MCPServer(name, log_level="ERROR")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    def pid() -> str:
        """Say which process this is."""
        return str(os.getpid())

    @server.tool()
    def environment() -> dict[str, str]:
        """Return the environment."""
        return dict(os.environ)

    @server.tool()
    def fail(reason: str) -> str:
        """Fail."""
        raise ValueError(reason)

    @server.tool()
    async def wait(seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return "waited"

    @server.tool()
    def die() -> str:
        """End the server without an answer."""
        print("something terrible happened", file=sys.stderr, flush=True)
        os._exit(3)

    @server.tool()
    def much(characters: int) -> str:
        """Return a long text."""
        return "x" * characters

    @server.tool(name="odd.name/with:things")
    def odd() -> str:
        """Have a name that models refuse."""
        return "odd"

    @server.tool()
    def picture() -> Image:
        """Return an image."""
        return Image(data=b"\x89PNG....", format="png")

    @server.tool()
    async def complain(ctx: Context[Any], text: str) -> str:
        """Log a warning."""
        await ctx.warning(text)
        return "complained"

    @server.tool()
    async def grow(ctx: Context[Any], name: str) -> str:
        """Get one more tool."""

        def grown() -> str:
            """Be new."""
            return "grown"

        server.add_tool(grown, name=name)
        await ctx.notify_tools_changed()
        await ctx.session.send_tool_list_changed()
        return "there is more"

    return server


def main(options: set[str]) -> None:
    if "broken" in options:
        sys.exit("the token sk-very-secret-token is wrong")
    if "silent" in options:
        time.sleep(600)
    if "stubborn" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"child {child.pid}", file=sys.stderr, flush=True)
    if "chatty" in options:
        print("hello, this is no message", flush=True)
    build().run("stdio")
    if "stubborn" in options:
        time.sleep(600)


if __name__ == "__main__":
    main(set(sys.argv[1:]))
