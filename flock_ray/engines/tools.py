"""A tool: something that a model may call, whether a function of the agent or of an MCP server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Tool"]


@dataclass(frozen=True, slots=True)
class Tool:
    """What a model is told of a tool, and how to call it."""

    name: str
    """At most 64 letters, digits, `_` and `-`, unique among the tools of a call."""
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments: an object."""
    call: Callable[[dict[str, Any]], Awaitable[Any]]
    """Called with arguments that are a JSON object and not checked yet; what it raises the model is told."""
    timeout_s: float | None = 60.0
    """Limit of one call in seconds; None: only the agent's own."""
