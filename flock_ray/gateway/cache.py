"""Answers kept in memory for equal requests that allow it; exact, and bounded."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec

from flock_ray.model import ModelReply, Usage

__all__ = ["ResponseCache"]


class _Entry(NamedTuple):
    reply: ModelReply
    stored_s: float
    size: int


class ResponseCache:
    """The least recently used answers go first. Times are seconds of a clock that never goes back."""

    def __init__(self, *, max_entries: int = 10_000, max_chars: int = 64 * 1024 * 1024) -> None:
        """Start empty.

        Args:
            max_entries: Most answers.
            max_chars: Most characters of text and arguments of all answers together.
        """
        self._max_entries = max_entries
        self._max_chars = max_chars
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._chars = 0

    def __len__(self) -> int:
        """Return how many answers there are."""
        return len(self._entries)

    def get(self, key: str, now: float, ttl_s: float) -> ModelReply | None:
        """Return the answer to an equal request that is not older than `ttl_s`; it used and costs nothing."""
        entry = self._entries.get(key)
        if entry is None or now - entry.stored_s > ttl_s:
            return None
        self._entries.move_to_end(key)
        return msgspec.structs.replace(
            entry.reply, source="cache", usage=Usage(cost_usd=0.0), latency_s=0.0, first_token_s=None, tries=0
        )

    def put(self, key: str, reply: ModelReply, now: float) -> None:
        """Keep an answer; one that did not end well, or is larger than the cache, is not kept."""
        if reply.finish_reason not in ("stop", "tool_calls") or reply.refusal:
            return
        size = len(reply.text) + sum(len(call.arguments) for call in reply.tool_calls) + 500
        if size > self._max_chars:
            return
        self._drop(key)
        self._entries[key] = _Entry(reply, now, size)
        self._chars += size
        while len(self._entries) > self._max_entries or self._chars > self._max_chars:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._chars -= entry.size
