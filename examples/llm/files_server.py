"""An MCP server for files, over stdio: it lists and reads what is below the roots that its client names.

Started by `examples.llm.files`; any MCP client can use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from mcp.server.mcpserver import ListRoots, MCPServer, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ListRootsResult

MAX_READ = 20_000

server = MCPServer("files", log_level="ERROR")


async def ask_roots() -> ListRoots:
    return ListRoots()


Roots = Annotated[ListRootsResult, Resolve(ask_roots)]


def allowed(path: str, roots: ListRootsResult) -> Path:
    """Return a path below one of the roots, however it is written."""
    folders = [Path(unquote(urlsplit(str(root.uri)).path)).resolve() for root in roots.roots]
    for folder in folders:
        wanted = (folder / path).resolve()
        if wanted == folder or folder in wanted.parents:
            return wanted
    raise ToolError(f"{path} is outside of the directories that you may see")


@server.tool()
async def list_directory(path: str, roots: Roots) -> list[str]:
    """List a directory, "." for the first; directories end in a slash."""
    folder = allowed(path, roots)
    return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())


@server.tool()
async def read_file(path: str, roots: Roots) -> str:
    """Read a text file, with line numbers."""
    lines = allowed(path, roots).read_text()[:MAX_READ].splitlines()
    return "\n".join(f"{number}: {line}" for number, line in enumerate(lines, 1))


@server.tool()
async def delete_file(path: str, roots: Roots) -> str:
    """Delete a file."""
    allowed(path, roots).unlink()
    return f"deleted {path}"


if __name__ == "__main__":
    server.run("stdio")
