"""What goes wrong with MCP servers, in one sentence each. Secrets are taken out by whoever shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flock_ray.errors import safe_error_text
from flock_ray.mcp.parameters import StdioServerParameters, place

if TYPE_CHECKING:
    from flock_ray.mcp.declaring import McpServer
    from flock_ray.mcp.transports import Diagnosis

__all__ = ["ServerUnreachableError", "ToolFailedError", "why"]


class ServerUnreachableError(Exception):
    """A server can't be used for now; the message says why."""


class ToolFailedError(Exception):
    """A call of a tool failed; the message is for the model."""


def why(error: BaseException, server: McpServer, diagnosis: Diagnosis) -> str:
    """Say why a server can't be used.

    Args:
        error: What connecting, listing or calling raised.
        server: Which one.
        diagnosis: What its transport saw.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    params = server.params
    kind, text = safe_error_text(error)
    if isinstance(params, StdioServerParameters):
        if isinstance(error, OSError) and diagnosis.process is None:
            return text
        if isinstance(error, TimeoutError):
            return f"{params.command!r} did not answer within {server.connect_timeout_s:g} s"
        if diagnosis.process is not None and _is_closed(error):
            return diagnosis.process.last_words()
        return text
    where = place(params)
    if diagnosis.status in (401, 403):
        return f"{where} refuses the credentials (HTTP {diagnosis.status}): check headers= or auth="
    if diagnosis.status is not None:
        return f"{where} answers with HTTP status {diagnosis.status}"
    if kind in ("ConnectError", "ConnectTimeout", "ConnectionRefusedError", "gaierror"):
        return f"nobody answers at {where}"
    if isinstance(error, TimeoutError) or kind.endswith("Timeout"):
        return f"{where} did not answer in time"
    return f"{where}: {text}"


def _is_closed(error: BaseException) -> bool:
    text = safe_error_text(error)[1]
    return "closed" in text.lower() or isinstance(error, (ConnectionError, EOFError))
