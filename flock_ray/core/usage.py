"""What calls to language models used, added up per workflow and per hour; part of the durable state of a slot."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from flock_ray.core.model_calls import ModelCall

__all__ = ["DAY_US", "HOUR_US", "Key", "UsageRow", "added", "book", "rows_of"]

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
MAX_ROWS = 2000
"""Rows of a slot past which old hours become days, and old days one row at time 0."""

OTHERS = "(others)"
"""Stands for tenants that are no longer told apart in a full book."""


class UsageRow(msgspec.Struct, array_like=True, frozen=True):
    """The calls of one agent to one model in one period."""

    agent: str
    model: str
    source: str = "provider"
    """provider, cache or cassette."""
    tenant: str = ""
    from_us: int = 0
    """Begin of the period, in microseconds since the Unix epoch; 0: everything before the next rows."""
    calls: int = 0
    failed: int = 0
    """Of the calls, those that ended with an error."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    """Answered calls whose price is not known: they are missing in the cost."""
    tries: int = 0
    latency_us: int = 0

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What makes rows the same row."""
        return (self.agent, self.model, self.source, self.tenant, self.from_us)


Key = tuple[str, str, str, str, int]


def rows_of(agent: str, calls: Iterable[ModelCall], from_us: int) -> list[UsageRow]:
    """Return the calls of one attempt as rows, some with the same key."""
    return [
        UsageRow(
            agent, call.model, call.source, call.tenant, from_us, call.count, call.count if call.error_type else 0,
            call.input_tokens, call.output_tokens, call.cached_tokens, call.cost_usd or 0.0,
            call.count if call.cost_usd is None and not call.error_type else 0, call.tries, call.latency_us,
        )
        for call in calls
    ]  # fmt: skip


def book(known: dict[Key, UsageRow], rows: Iterable[UsageRow]) -> None:
    """Add rows to a book, which stays bounded."""
    for row in rows:
        before = known.get(row.key)
        known[row.key] = row if before is None else _sum(before, row)
    for period in (DAY_US, 0):
        if len(known) > MAX_ROWS:
            coarser = added(_coarser(added(known.values()), period))
            known.clear()
            known.update((row.key, row) for row in coarser)
    if len(known) > MAX_ROWS:
        # Too many names: of the older half, tenants are added up. Half at a time, so that it is rarely done.
        ordered = added(known.values())
        half = len(ordered) // 2
        older = [msgspec.structs.replace(row, tenant=OTHERS, from_us=0) for row in ordered[:half]]
        known.clear()
        known.update((row.key, row) for row in added([*older, *ordered[half:]]))


def added(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """Add up rows of the same key; in order of time, then of names."""
    sums: dict[Key, UsageRow] = {}
    for row in rows:
        known = sums.get(row.key)
        sums[row.key] = row if known is None else _sum(known, row)
    return sorted(sums.values(), key=lambda row: (row.from_us, *row.key))


def _sum(one: UsageRow, two: UsageRow) -> UsageRow:
    return UsageRow(
        *one.key, one.calls + two.calls, one.failed + two.failed, one.input_tokens + two.input_tokens,
        one.output_tokens + two.output_tokens, one.cached_tokens + two.cached_tokens, one.cost_usd + two.cost_usd,
        one.unpriced + two.unpriced, one.tries + two.tries, one.latency_us + two.latency_us,
    )  # fmt: skip


def _coarser(rows: list[UsageRow], period_us: int) -> list[UsageRow]:
    """Move the older half of rows to longer periods."""
    half = len(rows) // 2
    old = [
        msgspec.structs.replace(row, from_us=row.from_us - row.from_us % period_us if period_us else 0)
        for row in rows[:half]
    ]
    return [*old, *rows[half:]]
