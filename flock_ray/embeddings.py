"""Where embedders of this process send their requests: through the gateway of the board that they embed for.

An edge says so around everything that may embed. Without one, as in a program that has no board, an embedder
makes its requests itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from flock_ray.model import ModelReply, ModelRequest

__all__ = ["Embeddings", "Here", "embeddings_here", "set_default", "through"]


class Embeddings(Protocol):
    """Carries requests to embed to a gateway. Safe to use from several threads."""

    def ask(self, requests: Sequence[ModelRequest]) -> list[ModelReply]:
        """Return the answers, in order. Blocks.

        Raises:
            ModelError: One failed; `retryable` says whether to repeat it.
        """
        ...


class Here(NamedTuple):
    """What holds for the running code."""

    embeddings: Embeddings | None = None
    agent: str = ""
    """On whose behalf texts are embedded, where no run is: a producer, `external` for publishers."""


_here: ContextVar[Here | None] = ContextVar("flock_ray_embeddings", default=None)
_default: Embeddings | None = None


def set_default(embeddings: Embeddings | None) -> None:
    """Say where everything in this process goes that nothing else was said about: workers have one board."""
    global _default
    _default = embeddings


def embeddings_here() -> Here:
    """Return where requests of the running code go; None: the embedder makes them itself."""
    found = _here.get() or Here()
    return found if found.embeddings is not None else found._replace(embeddings=_default)


@contextlib.contextmanager
def through(embeddings: Embeddings | None, agent: str = "") -> Iterator[None]:
    """Send what is embedded in the block through a gateway; None: where it goes anyway.

    Args:
        embeddings: The way to it.
        agent: On whose behalf.
    """
    token = _here.set(Here(embeddings, agent))
    try:
        yield
    finally:
        _here.reset(token)
