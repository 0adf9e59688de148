"""`flock.usage()`: what language models were used for, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from flock_ray.core.usage import DAY_US, HOUR_US, UsageRow, added
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.board import Board

__all__ = ["ModelUsage", "read_usage"]

_decode = msgspec.msgpack.Decoder(list[UsageRow]).decode


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """The calls of one agent to one model."""

    agent: str
    model: str
    source: str
    """provider, cache (costs nothing) or cassette (what it cost when it was recorded)."""
    tenant: str
    calls: int
    failed: int
    """Of the calls, those that ended with an error."""
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    """Of the input tokens, those that the provider had cached."""
    cost_usd: float
    unpriced: int
    """Answered calls whose price is not known: they are missing in the cost."""
    tries: int
    """HTTP requests, about: a call that was tried again counts each."""
    mean_latency_s: float
    day: date | None = None
    """UTC day; None: of all days, or (with `by_day`) of days so long ago that they are no longer told apart."""


async def read_usage(
    board: Board,
    *,
    workflow: str | None = None,
    agent: str | None = None,
    model: str | None = None,
    tenant: str | None = None,
    since: datetime | timedelta | None = None,
    by_day: bool = False,
) -> list[ModelUsage]:
    """Add up what the shards know; see `Flock.usage`."""
    if workflow is not None and since is not None:
        raise ConfigurationError("usage() takes workflow= or since=, not both: a workflow is one whole.")
    if workflow is not None and by_day:
        raise ConfigurationError("usage() takes workflow= or by_day=, not both: a workflow is one whole.")
    from_us = 0 if since is None else _from_us(since, board.clock.now_us())
    rows: list[UsageRow] = []
    for blob in await board.each("usage", workflow):
        rows += [
            msgspec.structs.replace(row, from_us=row.from_us - row.from_us % DAY_US if by_day else 0)
            for row in _decode(blob)
            if row.from_us >= from_us
            and (agent is None or row.agent == agent)
            and (model is None or row.model == model)
            and (tenant is None or row.tenant == tenant)
        ]
    return [
        ModelUsage(
            row.agent, row.model, row.source, row.tenant, row.calls, row.failed, row.input_tokens, row.output_tokens,
            row.cached_tokens, row.cost_usd, row.unpriced, row.tries, row.latency_us / max(row.calls, 1) / 1e6,
            datetime.fromtimestamp(row.from_us / 1e6, UTC).date() if row.from_us else None,
        )
        for row in added(rows)
    ]  # fmt: skip


def _from_us(since: datetime | timedelta, now_us: int) -> int:
    if isinstance(since, timedelta):
        at = now_us - int(since.total_seconds() * 1e6)
    else:
        aware = since if since.tzinfo is not None else since.replace(tzinfo=UTC)
        at = int(aware.timestamp() * 1e6)
    return at - at % HOUR_US
