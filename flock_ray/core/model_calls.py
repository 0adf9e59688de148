"""What one call to a language model was and cost, as it is journaled with the activation that made it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

__all__ = ["MAX_CALLS", "ModelCall", "merged"]

MAX_CALLS = 200
"""Most records of calls that one attempt keeps apart; the rest is added up per model."""


class ModelCall(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One call, or several that were added up; never a secret, and text only when it was asked for."""

    model: str
    """The model that answered; the one that was asked when none did."""
    asked: str = ""
    """The model that was asked; empty when it is the one that answered."""
    source: str = "provider"
    """provider, cache or cassette."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Of the input tokens, those that the provider had cached."""
    cost_usd: float | None = None
    """None: the price of the model is not known."""
    latency_us: int = 0
    first_token_us: int = 0
    """0 when the answer was not streamed."""
    finish_reason: str = ""
    request_hash: str = ""
    tries: int = 1
    started_us: int = 0
    """Wall clock, in microseconds since the Unix epoch."""
    error_type: str = ""
    """Class of the error that ended the call; empty when it was answered."""
    count: int = 1
    """How many calls this stands for."""
    tenant: str = ""
    prompt: str = ""
    """JSON of the messages, redacted; empty unless `capture="full"`."""
    answer: str = ""
    """Text of the answer, redacted; empty unless `capture="full"`."""

    @property
    def provider(self) -> str:
        """What is before the first slash of the model's name; openai when there is none."""
        head, slash, _ = self.model.partition("/")
        return head if slash else "openai"


def merged(calls: Iterable[ModelCall]) -> list[ModelCall]:
    """Add calls up, one record per (model, source, error, tenant), and one more of those whose price is not known.

    Texts, hashes and times of the single calls are lost.
    """
    sums: dict[tuple[str, str, str, str, bool], ModelCall] = {}
    for call in calls:
        key = (call.model, call.source, call.error_type, call.tenant, call.cost_usd is None)
        known = sums.get(key)
        if known is None:
            sums[key] = msgspec.structs.replace(call, request_hash="", prompt="", answer="", first_token_us=0)
            continue
        sums[key] = msgspec.structs.replace(
            known,
            input_tokens=known.input_tokens + call.input_tokens,
            output_tokens=known.output_tokens + call.output_tokens,
            cached_tokens=known.cached_tokens + call.cached_tokens,
            cost_usd=None if call.cost_usd is None else (known.cost_usd or 0.0) + call.cost_usd,
            latency_us=known.latency_us + call.latency_us,
            tries=known.tries + call.tries,
            count=known.count + call.count,
        )
    return list(sums.values())
