"""`EmbeddingService` as upstream has it, over any embedder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flock_ray.config import load_settings
from flock_ray.core.similarity import similarity
from flock_ray.errors import ConfigurationError
from flock_ray.semantic.choose import embedder_of

if TYPE_CHECKING:
    from flock_ray.model import Embedder

__all__ = ["EmbeddingService"]

_instance: EmbeddingService | None = None


class EmbeddingService:
    """Embeds texts and compares them. All methods block while the embedder works: use a thread in async code."""

    def __init__(self, embedder: Embedder | str) -> None:
        """Serve with an embedder; one that is shared with a Flock shares its memory, too.

        Args:
            embedder: As for `Flock(embedder=...)`.
        """
        found = embedder_of(embedder)
        if found is None:
            raise ConfigurationError(
                'EmbeddingService needs an embedder: EmbeddingService("onnx:/path/to/model").'
            )
        self._embedder = found

    @classmethod
    def get_instance(cls) -> EmbeddingService:
        """Return the service of this process, over the embedder that FLOCK_EMBEDDER names.

        Raises:
            ConfigurationError: It names none.
        """
        global _instance
        if _instance is None:
            setting = load_settings().embedder
            if setting is None:
                raise ConfigurationError(
                    "EmbeddingService.get_instance() takes the embedder of FLOCK_EMBEDDER, which is not set: set it, "
                    'or write EmbeddingService("onnx:/path/to/model").'
                )
            _instance = cls(setting)
        return _instance

    def embed(self, text: str) -> list[float]:
        """Return the vector of one text, of length 1.

        Raises:
            ValueError: The text is empty.
            ModelError: The embedder failed.
        """
        return self.embed_batch([text])[0]

    def embed_batch(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text, in order; the same errors as `embed`."""
        if not all(text.strip() for text in texts):
            raise ValueError("An empty text can't be embedded: leave it out.")
        return self._embedder.embed(texts) if texts else []

    def similarity(self, text1: str, text2: str) -> float:
        """Return how similar two texts are, from 0 to 1; the same errors as `embed`."""
        one, other = self.embed_batch([text1, text2])
        return similarity(one, other)

    def get_cache_stats(self) -> dict[str, int | float]:
        """Return hits, misses, total and hit_rate of this process, cache_size in texts, cache_limit in bytes."""
        stats = self._embedder.stats()
        total = stats.hits + stats.misses
        return {
            "hits": stats.hits,
            "misses": stats.misses,
            "total": total,
            "hit_rate": stats.hits / total if total else 0.0,
            "cache_size": stats.entries,
            "cache_limit": stats.max_bytes,
        }
