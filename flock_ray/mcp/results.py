"""What a server says, as text for a model: bounded, and what is not text as a note."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

__all__ = ["MAX_RESULT_CHARS", "as_text", "one_line", "redacted"]

MAX_RESULT_CHARS = 1_000_000
"""Longest result of one call; the engine may show less of it at a time."""

MAX_LINE_CHARS = 300

MIN_SECRET_CHARS = 4
"""Shorter values are no secrets worth the name, and would take every other word out of a message."""


def as_text(result: Any) -> str:
    """Return what a tool answered, as text.

    Args:
        result: The SDK's `CallToolResult`.
    """
    parts = [_part(block) for block in result.content]
    if result.structured_content is not None and not any(block.type == "text" for block in result.content):
        # Servers repeat it as text; the model needs it once.
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n".join(part for part in parts if part)
    if len(text) > MAX_RESULT_CHARS:
        text = f"{text[:MAX_RESULT_CHARS]}\n[{len(text) - MAX_RESULT_CHARS} more characters were cut]"
    return text


def _part(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type in ("image", "audio"):
        return f"[{block.type}, {block.mime_type}, about {len(block.data) * 3 // 4} bytes: not shown]"
    if block.type == "resource_link":
        return f"[resource {block.name}: {block.uri}]"
    if block.type == "resource":
        inner = block.resource
        if getattr(inner, "text", None) is not None:
            return str(inner.text)
        return f"[resource {inner.uri}, {inner.mime_type or 'binary'}: not shown]"
    return f"[{block.type}: not shown]"


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Return a text without the secrets of a server."""
    # The longest first: a token may be part of a whole header.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= MIN_SECRET_CHARS:
            text = text.replace(secret, "[redacted]")
    return text


def one_line(text: str) -> str:
    """Return a text that fits into an event: one line, printable, not long."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= MAX_LINE_CHARS else f"{line[:MAX_LINE_CHARS]}..."
