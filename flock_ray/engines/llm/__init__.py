"""The engine that asks a language model: prompt, structured answer, tools, repairs."""

from __future__ import annotations

from flock_ray.engines.llm.engine import LiteLLMEngine

__all__ = ["LiteLLMEngine"]
