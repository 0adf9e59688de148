"""Subscriptions and context by meaning: embedders, their memory, and upstream's `EmbeddingService`.

Importing this loads neither numpy nor onnxruntime nor an HTTP client: an embedder does at its first text.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flock_ray.core.similarity import TextPredicate
from flock_ray.semantic.choose import embedder_of
from flock_ray.semantic.onnx import OnnxEmbedder
from flock_ray.semantic.openai import OpenAIEmbedder
from flock_ray.semantic.remembering import RememberingEmbedder
from flock_ray.semantic.service import EmbeddingService

if TYPE_CHECKING:
    from flock_ray.context_provider import SemanticContextProvider

    SEMANTIC_AVAILABLE: bool

__all__ = [
    "SEMANTIC_AVAILABLE",
    "EmbeddingService",
    "OnnxEmbedder",
    "OpenAIEmbedder",
    "RememberingEmbedder",
    "SemanticContextProvider",
    "TextPredicate",
    "embedder_of",
]


def __getattr__(name: str) -> Any:
    """Find upstream's names that are made elsewhere, or that look at what is installed."""
    if name == "SEMANTIC_AVAILABLE":
        # Of local models: `OpenAIEmbedder` needs none of these.
        return all(find_spec(module) is not None for module in ("numpy", "onnxruntime", "tokenizers"))
    if name == "SemanticContextProvider":
        from flock_ray.context_provider import SemanticContextProvider

        return SemanticContextProvider
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
