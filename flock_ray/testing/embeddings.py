"""Embeddings through a gateway that lives in this very event loop: cassettes answer at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.model import Model, ModelReply, ModelRequest

__all__ = ["InlineEmbeddings"]


class InlineEmbeddings:
    """Asks a model that answers without waiting for anything."""

    def __init__(self, model: Model) -> None:
        """Ask this model."""
        self._model = model

    def ask(self, requests: Sequence[ModelRequest]) -> list[ModelReply]:
        """Return the answers, in order; see `Embeddings`.

        Raises:
            ConfigurationError: The model waits for something: here nothing else can run meanwhile.
        """
        return [self._one(request) for request in requests]

    def _one(self, request: ModelRequest) -> ModelReply:
        asking = self._model.complete(request)
        try:
            asking.send(None)
        except StopIteration as done:
            reply: ModelReply = done.value
            return reply
        asking.close()
        raise ConfigurationError(
            "In virtual time embeddings come from a cassette, or from an embedder that needs no gateway. "
            'Give VirtualFlock(cassette=..., cassette_mode="replay").'
        )
