"""What a call to a language model may use at most, before it is made."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flock_ray.core.budgets import NUSD, Amount
from flock_ray.gateway.settings import ModelSettings
from flock_ray.model import ModelRequest, Usage

__all__ = [
    "Quote",
    "Tariff",
    "TellsTariffs",
    "cost_of",
    "given_prices",
    "has_files",
    "quote",
    "size_of",
    "tariff_in_table",
]

TOKENS_OF_FRAME = 64
"""What a provider adds to a prompt: roles, separators, the frame around tools."""
_ABOVE = re.compile(r"_above_(\d+)k_tokens")
_TIER = re.compile(r"_(priority|flex|balanced|ultrafast|batches)$")
_OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class Tariff(NamedTuple):
    """What is known of a model; None: it is not known."""

    input_nusd: float | None = None
    """Highest price of an input token, in nano-dollars."""
    output_nusd: float | None = None
    max_input: int | None = None
    max_output: int | None = None


@runtime_checkable
class TellsTariffs(Protocol):
    """A provider that knows prices and windows of its models."""

    async def tariff(self, request: ModelRequest, settings: ModelSettings) -> Tariff:
        """Return what is known of the request's model."""
        ...

    async def prompt_tokens(self, request: ModelRequest) -> int | None:
        """Return how many tokens a prompt has at most, with the model's own tokenizer; None: it is not at hand."""
        ...


class Quote(NamedTuple):
    """The worst case of one try."""

    amount: Amount
    missing: str
    """See `core.budgets.Reserve.missing`."""
    tariff: Tariff

    def used(self, usage: Usage) -> Amount | None:
        """Return what a call used; None: the provider did not say."""
        tokens = usage.input_tokens + usage.output_tokens
        if not tokens:
            return None
        cost = cost_of(usage, self.tariff)
        return None if cost is None and not self.missing else Amount(cost or 0, tokens, 1)


def quote(
    request: ModelRequest, settings: ModelSettings, tariff: Tariff, prompt_tokens: int | None = None
) -> Quote:
    """Return the worst case of a call.

    A prompt has at most one token per byte, and no more than the model takes; an answer what the request allows it,
    or the model can write at all.

    Args:
        request: The call.
        settings: Of its model.
        tariff: What is known of its model.
        prompt_tokens: Length of the prompt as a tokenizer has counted it; None: its bytes are counted.
    """
    if request.embed:  # a vector is no output, and the model's window is that of one text
        tariff = tariff._replace(max_input=None, output_nusd=tariff.output_nusd or 0.0)
    sent = _prompt_bound(request, prompt_tokens, tariff.max_input)
    made = 0 if request.embed else _answer_bound(request, settings, tariff.max_output)
    if sent is None or made is None:
        return Quote(Amount(0, 0, 1), "size", tariff)
    tokens = sent + made
    if tariff.input_nusd is None or tariff.output_nusd is None:
        return Quote(Amount(0, tokens, 1), "price", tariff)
    return Quote(
        Amount(math.ceil(sent * tariff.input_nusd + made * tariff.output_nusd), tokens, 1), "", tariff
    )


def cost_of(usage: Usage, tariff: Tariff) -> int | None:
    """Return what a call cost in nano-dollars, rounded up; None: its price is not known."""
    if usage.cost_usd is not None and math.isfinite(usage.cost_usd):
        return max(0, math.ceil(round(usage.cost_usd * NUSD, 3)))
    if tariff.input_nusd is None or tariff.output_nusd is None:
        return None
    return math.ceil(usage.input_tokens * tariff.input_nusd + usage.output_tokens * tariff.output_nusd)


def given_prices(settings: ModelSettings) -> Tariff:
    """Return the prices that the user has given for a model."""
    sent, made = settings.input_usd_per_mtok, settings.output_usd_per_mtok
    return Tariff(None if sent is None else sent * NUSD / 1e6, None if made is None else made * NUSD / 1e6)


def tariff_in_table(entry: Mapping[str, Any], request: ModelRequest, settings: ModelSettings) -> Tariff:
    """Read an entry of litellm's table: of the prices that a token of this call may have, the highest.

    Args:
        entry: Its row; empty when it has none.
        request: The call: its length, and its service tier, may have prices of their own.
        settings: Prices given there win.
    """
    given = given_prices(settings)
    most_in, most_out = _number(entry.get("max_input_tokens")), _number(entry.get("max_output_tokens"))
    most_out = most_out or _number(entry.get("max_tokens"))
    length = _prompt_bound(request, None, most_in)
    tier = "service_tier" in request.extra or "service_tier" in settings.extra
    sent = _highest(
        entry,
        ("input_cost_per_token", "cache_creation_input_token_cost", "input_cost_per_audio_token"),
        length,
        tier,
    )
    made = _highest(
        entry,
        ("output_cost_per_token", "output_cost_per_reasoning_token", "output_cost_per_audio_token"),
        length,
        tier,
    )
    return Tariff(
        sent if given.input_nusd is None else given.input_nusd,
        made if given.output_nusd is None else given.output_nusd,
        most_in,
        most_out,
    )


def _highest(
    entry: Mapping[str, Any], kinds: tuple[str, ...], length: int | None, tier: bool
) -> float | None:
    if not isinstance(entry.get(kinds[0]), (int, float)):
        return None
    found: list[float] = []
    for name, value in entry.items():
        if not name.startswith(kinds) or not isinstance(value, (int, float)):
            continue
        above = _ABOVE.search(name)
        reached = above is None or length is None or length > int(above[1]) * 1000
        if reached and (tier or not _TIER.search(name)):
            found.append(float(value))
    return max(found) * NUSD


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) and value > 0 else None


def _prompt_bound(request: ModelRequest, counted: int | None, window: int | None) -> int | None:
    bound = counted
    if bound is None and not has_files(request):
        asked = (request.messages, request.tools, request.tool_choice, request.response_format, request.embed)
        bound = size_of(asked)
    if bound is None:
        return window
    bound += TOKENS_OF_FRAME
    return bound if window is None else min(bound, window)


def _answer_bound(request: ModelRequest, settings: ModelSettings, window: int | None) -> int | None:
    found = [request.max_tokens]
    for given in (request.extra, settings.extra):
        found += [given.get(name) for name in _OUTPUT_LIMITS]
    limits = [number for value in found if (number := _number(value)) is not None]
    bound = max(limits) if limits else window
    if bound is None:
        return None
    copies = max([_number(given.get("n")) or 1 for given in (request.extra, settings.extra)])
    return bound * copies


def has_files(request: ModelRequest) -> bool:
    """Say whether there is something whose bytes say nothing about its tokens, such as an image."""
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list) and any(
            not isinstance(part, dict) or part.get("type") not in ("text", None) for part in content
        ):
            return True
    return False


def size_of(value: Any) -> int:
    """Return the length of a value as JSON, in bytes: it has no more tokens than that."""
    return len(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
