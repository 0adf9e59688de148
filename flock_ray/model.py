"""The Model port: what one call to a language model is, whoever carries it out.

Engines build a `ModelRequest` and hand it to a `Model`: the gateway of the board, a replay of
recorded calls, or a fake of a test. Nothing here imports a provider's library.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from flock_ray.core.budgets import Charge

__all__ = [
    "Caller",
    "Embedder",
    "Model",
    "ModelReply",
    "ModelRequest",
    "Timeouts",
    "ToolCall",
    "Usage",
    "packed",
    "unpacked",
]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf a call is made: for limits, fairness and usage. No part of what is asked."""

    workflow: str = ""
    agent: str = ""
    activation: str = ""
    """The activation's id, 32 hexadecimal digits."""
    attempt: int = 1
    tenant: str = ""
    charges: tuple[Charge, ...] = ()
    """Accounts that pay for the call; empty: it is in no budget."""
    degraded: bool = False
    """Budgets have sent the call to this model, in place of the one that was asked."""


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long a call may take, in seconds; None: no limit."""

    connect_s: float | None = 10.0
    first_token_s: float | None = 120.0
    """From the request to the first token of a streamed answer; any other value than this has the answer streamed."""
    idle_s: float | None = 60.0
    """Between two pieces of a streamed answer; any other value than this has the answer streamed."""
    total_s: float | None = 600.0
    """All tries of one call together, waiting for limits included."""


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call: what is asked of which model."""

    model: str
    """As litellm names it, for example `openai/gpt-4.1-mini`."""
    messages: list[dict[str, Any]] = []
    """OpenAI's chat form; content may be text or parts (text, image_url, file)."""
    embed: list[str] = []
    """Texts of which vectors are wanted: then there are no messages, and the reply has `vectors` in place of a text."""
    tools: list[dict[str, Any]] = []
    """OpenAI's function tools."""
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    """`{"type": "json_schema", "json_schema": {...}}`, `{"type": "json_object"}`, or None for free text."""
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] = []
    seed: int | None = None
    extra: dict[str, Any] = {}
    """More parameters of the provider, handed through; part of what is asked."""
    fallbacks: list[str] = []
    """Models to try in turn when this one is unavailable, rate limited or too slow."""
    timeouts: Timeouts = Timeouts()
    cache_ttl_s: float | None = None
    """How long an equal request may be answered from the cache, in seconds; None: never."""
    caller: Caller = Caller()


class ToolCall(msgspec.Struct, frozen=True):
    """A function that the model wants called."""

    id: str
    name: str
    arguments: str
    """JSON as the model wrote it: it need not be valid."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a call used."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Of the input tokens, those that the provider had cached."""
    cost_usd: float | None = None
    """None: the price of the model is not known."""


class ModelReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one call."""

    text: str = ""
    tool_calls: list[ToolCall] = []
    finish_reason: str = "stop"
    """stop, length, tool_calls or content_filter."""
    refusal: str = ""
    """What the model said when it refused; empty when it did not."""
    model: str = ""
    """The model that answered: a fallback, if it is not the one that was asked."""
    usage: Usage = Usage()
    latency_s: float = 0.0
    first_token_s: float | None = None
    """From the request to the first token; None when the answer was not streamed."""
    tries: int = 1
    source: str = "provider"
    """provider, cache or cassette."""
    request_hash: str = ""
    """Of the canonical request, without caller and timeouts."""
    vectors: list[bytes] = []
    """One for each text of `embed`: numbers of 4 bytes, see `unpacked`."""


def packed(vector: Sequence[float]) -> bytes:
    """Return a vector as floating-point numbers of 4 bytes, little-endian.

    Raises:
        OverflowError: A number is too large for that.
    """
    return struct.pack(f"<{len(vector)}f", *vector)


def unpacked(data: bytes) -> list[float]:
    """Return the vector again."""
    return list(struct.unpack(f"<{len(data) // 4}f", data))


class Model(Protocol):
    """Answers requests. Implementations may be called concurrently from one event loop."""

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelReply:
        """Answer one request; cancelling the call cancels the request to the provider.

        Args:
            request: What is asked.
            on_text: Called with every piece of text as it comes, on the caller's event loop; None: the
                answer need not be streamed. After a failed try the text starts again: it is then called
                with "" first.

        Raises:
            ModelError: The provider failed or refuses the request; `retryable` says whether to repeat it.
            RateLimitError: The provider, or our own limit for it, refuses calls for now; retryable.
            ModelTimeoutError: One of the timeouts has passed; retryable.
        """
        ...


class Embedder(Protocol):
    """Turns texts into vectors of length 1, whose dot product is their similarity."""

    @property
    def name(self) -> str:
        """Name of the model: vectors of different names are not comparable."""
        ...

    def embed(self, texts: list[str]) -> Sequence[Sequence[float]]:
        """Return one vector per text, in order. Blocks: call it in a thread.

        Raises:
            ModelError: The model can't be reached or fails; `retryable` says whether to repeat it.
        """
        ...
