"""Upstream's names for its engine and adapters, for code that moves over."""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any, ClassVar

from flock_ray.engines.llm.engine import Adapter, LiteLLMEngine

__all__ = ["BAMLAdapter", "ChatAdapter", "DSPyEngine", "JSONAdapter", "TwoStepAdapter", "XMLAdapter"]

_NOTHING = "nothing: agents print nothing by themselves"
_MAPPED = {
    "max_completion_tokens": "max_tokens",
    "max_retries": "max_repairs",
    "enable_cache": "cache_ttl=timedelta(days=1)",
    "no_output": _NOTHING,
    "stream_vertical_overflow": _NOTHING,
    "status_output_field": _NOTHING,
    "theme": _NOTHING,
    "adapter": "adapter='auto', 'json_schema', 'json_object' or 'prompt'",
}


class ChatAdapter:
    """Upstream's adapter: asks in the prompt alone. `adapter="prompt"` is the same."""

    mode: ClassVar[Adapter] = "prompt"

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Take whatever upstream's took; it changes nothing here."""


class XMLAdapter(ChatAdapter):
    """Upstream's adapter for XML; here the prompt asks for JSON."""


class BAMLAdapter(ChatAdapter):
    """Upstream's adapter for BAML; here the prompt asks for JSON by its schema."""


class TwoStepAdapter(ChatAdapter):
    """Upstream's adapter that has a second model extract the answer; here wrong answers are repaired."""


class JSONAdapter(ChatAdapter):
    """Upstream's adapter for structured output. `adapter="auto"` is the same."""

    mode: ClassVar[Adapter] = "auto"


class DSPyEngine(LiteLLMEngine):
    """Upstream's engine under its old name: a `LiteLLMEngine` that takes upstream's parameters."""

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """Make the engine, with a DeprecationWarning that says what each parameter is called now."""
        given = [f"{name} -> {_MAPPED[name]}" for name in _MAPPED if name in settings]
        warnings.warn(
            "DSPyEngine is LiteLLMEngine now"
            + (f" ({'; '.join(given)})" if given else "")
            + ". model, instructions, temperature, max_tokens, max_tool_calls, stream and lm_kwargs have the same "
            "names.",
            DeprecationWarning,
            stacklevel=2,
        )
        if settings.pop("enable_cache", False):
            settings.setdefault("cache_ttl", timedelta(days=1))
        tokens = settings.pop("max_completion_tokens", None)
        if tokens is not None:
            settings["max_tokens"] = tokens
        if settings.get("max_retries"):
            settings.setdefault("max_repairs", settings["max_retries"])
        for name in ("max_retries", "stream_vertical_overflow", "status_output_field", "theme"):
            settings.pop(name, None)
        adapter = settings.pop("adapter", None)
        if isinstance(adapter, str):
            settings["adapter"] = adapter
        elif adapter is not None:
            settings["adapter"] = getattr(adapter, "mode", "prompt")
        super().__init__(model, **settings)
