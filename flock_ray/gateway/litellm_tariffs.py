"""What litellm's table knows of a model, for the budgets: highest prices, windows, and lengths of prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from flock_ray.gateway.quotes import Tariff, has_files, size_of, tariff_in_table
from flock_ray.gateway.settings import ModelSettings, full_name, provider_of
from flock_ray.model import ModelRequest

__all__ = ["LitellmTariffs"]

EXACT = frozenset({"openai", "azure"})
"""Providers whose tokenizer litellm has; of all others the bytes are counted."""
LOCAL = frozenset({"ollama", "ollama_chat"})
"""Providers that cost nothing."""
THREAD_CHARS = 20_000
"""Counting the tokens of longer prompts takes milliseconds: not on the loop."""


def table_entry(litellm: Any, model: str) -> Mapping[str, Any]:
    """Return what litellm's table has of a model; empty when it is not there.

    Never `get_model_info`: it asks servers of some providers, blocking the loop, and says 0 for prices that are not
    in the table.
    """
    if provider_of(model) in LOCAL:
        return {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
    full = full_name(model)
    entry = litellm.model_cost.get(full) or litellm.model_cost.get(full.partition("/")[2])
    return entry if isinstance(entry, Mapping) else {}


class LitellmTariffs:
    """The part of `LitellmProvider` that knows prices before a call is made."""

    _entries: dict[str, Mapping[str, Any]] | None = None

    async def warm_up(self) -> None:
        """Import litellm."""
        raise NotImplementedError  # LitellmProvider's

    def _litellm(self) -> Any:
        raise NotImplementedError  # LitellmProvider's

    async def tariff(self, request: ModelRequest, settings: ModelSettings) -> Tariff:
        """Return what is known of the request's model."""
        await self.warm_up()
        if self._entries is None or len(self._entries) > 1000:
            self._entries = {}
        entry = self._entries.get(request.model)
        if entry is None:
            entry = self._entries[request.model] = table_entry(self._litellm(), request.model)
        return tariff_in_table(entry, request, settings)

    async def prompt_tokens(self, request: ModelRequest) -> int | None:
        """Return how many tokens a prompt has at most; None: there is no tokenizer at hand for it."""
        if provider_of(request.model) not in EXACT or has_files(request) or request.embed:
            return None
        await self.warm_up()
        size = size_of(request.messages)
        try:
            if size > THREAD_CHARS:
                counted = await asyncio.to_thread(self._count, request)
            else:
                counted = self._count(request)
        except Exception:  # a message that it can't read: its bytes are counted then
            return None
        # What frames tools and schemas is not documented: they count for their bytes.
        rest = size_of((request.tools, request.tool_choice, request.response_format))
        return min(counted + counted // 20, size) + rest

    def _count(self, request: ModelRequest) -> int:
        return int(self._litellm().token_counter(model=full_name(request.model), messages=request.messages))
