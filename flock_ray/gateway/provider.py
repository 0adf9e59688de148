"""The port behind which a provider's library stands, and what one call through it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from flock_ray.core.model_limits import Observed
from flock_ray.gateway.settings import ModelSettings
from flock_ray.model import ModelReply, ModelRequest

__all__ = ["Answer", "Provider"]


class Answer(NamedTuple):
    """What a provider answered, and what it told about limits."""

    reply: ModelReply
    requests: Observed = Observed()
    tokens: Observed = Observed()


class Provider(Protocol):
    """Makes single calls: no limits, no retries, no fallbacks."""

    async def call(
        self, request: ModelRequest, settings: ModelSettings, on_text: Callable[[str], None] | None
    ) -> Answer:
        """Make one call within the request's connect, first-token and idle timeouts.

        Cancelled, it closes the connection.

        Raises:
            ModelError: The call failed; its class says how.
        """
        ...
