"""Waiting for conditions: counts are kept by the shards and change the answer, nothing is polled."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.board import Board, first_of
from flock_ray.core.conditions import (
    AnyField,
    Condition,
    Count,
    Custom,
    Idle,
    NoPendingWork,
    WorkflowErrors,
    as_condition,
    evaluate,
    leaves,
)
from flock_ray.core.index import CountQuery
from flock_ray.core.registry import TypeRegistry
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.reading import BoardReading


def seconds(timeout: float | timedelta | None) -> float:
    """Return a timeout in seconds; infinite for None.

    Raises:
        ConfigurationError: It is negative.
    """
    if timeout is None:
        return math.inf
    value = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if value < 0 or math.isnan(value):
        raise ConfigurationError(f"A timeout can't be {value:g} s.")
    return value


class BoardFacts:
    """What is known of the board, for evaluating a condition: counts, idleness and flags."""

    def __init__(
        self, condition: Condition, board: Board, flock: BoardReading, registry: TypeRegistry
    ) -> None:
        """Prepare to learn what a condition asks for."""
        self._board = board
        self._flock = flock
        self._registry = registry
        found = list(dict.fromkeys(leaves(condition)))
        self.queries: dict[Condition, CountQuery] = {leaf: query for leaf in found if (query := _query(leaf))}
        self.needs_idle = any(isinstance(leaf, (Idle, NoPendingWork)) for leaf in found)
        self.fields = [leaf for leaf in found if isinstance(leaf, AnyField)]
        self.customs = [leaf for leaf in found if isinstance(leaf, Custom)]
        self._counts: dict[CountQuery, int] = {}
        self._true: set[Condition] = set()
        self._seen: dict[Condition, dict[int, int]] = {}
        self._idle = False
        self.needs_timers = any(isinstance(leaf, NoPendingWork) for leaf in found)
        self._quiet = False

    async def refresh(self) -> list[list[int]]:
        """Learn everything anew; returns the counts by shard, which `change` waits on."""
        per_shard = await self._per_shard()
        totals = [sum(column) for column in zip(*per_shard, strict=True)]
        self._counts = dict(zip(self.queries.values(), totals, strict=True))
        for leaf in self.fields:
            if leaf not in self._true and await self._look(leaf):
                self._true.add(leaf)
        for custom in self.customs:
            found = bool(await custom.target.evaluate(self._flock))
            (self._true.add if found else self._true.discard)(custom)
        if self.needs_idle:
            self._idle = await self._board.wait_idle(timeout_s=0)
        if self.needs_timers:
            self._quiet = self._idle and not sum(await self._board.each("timers"))
        return per_shard

    def _blob(self) -> bytes:
        return msgspec.msgpack.encode(list(self.queries.values()))

    async def _per_shard(self) -> list[list[int]]:
        return await self._board.each("counts", self._blob(), None, 0) if self.queries else []

    async def news(self, known: list[list[int]], wait_s: float, *, until_idle: bool) -> None:
        """Wait until something may have changed the answer.

        Args:
            known: Counts by shard, from `refresh`.
            wait_s: At most so long.
            until_idle: Also end when the board falls idle.
        """
        board = self._board
        calls: list[asyncio.Future[Any]] = []
        for shard in range(board.num_shards):
            link = board.shard(shard)
            if self.queries:
                calls.append(asyncio.ensure_future(link.counts(self._blob(), known[shard], wait_s)))
            for leaf in self.fields:
                if leaf in self._true:
                    continue  # settled: it is not read on, so it would answer at once for ever
                after = self._seen.get(leaf, {}).get(shard, 0)
                calls.append(
                    asyncio.ensure_future(link.read(after, leaf.type_name, leaf.correlation_id, 1, wait_s))
                )
            if self.customs or (self.needs_idle and not until_idle):
                head = (await link.stats())["events"]
                calls.append(asyncio.ensure_future(link.event_list(head, [], None, 1, wait_s)))
        if until_idle:
            calls.append(asyncio.ensure_future(board.wait_idle(timeout_s=wait_s)))
        if not calls:
            calls.append(
                asyncio.ensure_future(asyncio.sleep(wait_s))
            )  # nothing can change the answer any more
        await first_of(calls, wait_s)

    async def _look(self, leaf: AnyField) -> bool:
        """Test the artifacts of a field's type that were not tested yet."""
        seen = self._seen.setdefault(leaf, {})
        for shard in range(self._board.num_shards):
            while True:
                blob, position, _ = await self._board.shard(shard).read(
                    seen.get(shard, 0), leaf.type_name, leaf.correlation_id, 500, 0
                )
                envelopes = await self._board.whole(_envelopes(blob))
                if not envelopes:
                    break
                seen[shard] = position
                if any(leaf.holds(self._registry.validate(e.type, e.version, e.payload)) for e in envelopes):
                    return True
        return False

    # the Facts protocol of core.conditions

    def count(self, leaf: Count, /) -> int:
        """Return the count that a leaf asks for."""
        return self._counts[self.queries[leaf]]

    def idle(self) -> bool:
        """Return whether the board was idle."""
        return self._idle

    def flag(self, leaf: Condition, /) -> bool:
        """Return what is known of a leaf that is neither a count nor idleness."""
        if isinstance(leaf, NoPendingWork):
            return self._quiet
        if isinstance(leaf, WorkflowErrors):
            return self._counts[self.queries[leaf]] > 0
        return leaf in self._true


def _query(leaf: Condition) -> CountQuery | None:
    if isinstance(leaf, Count):
        return CountQuery(leaf.type_name, leaf.correlation_id, tuple(sorted(leaf.tags)), leaf.produced_by)
    if isinstance(leaf, WorkflowErrors):
        return CountQuery("WorkflowError", leaf.correlation_id)
    return None


def _envelopes(blob: bytes) -> list[Any]:
    from flock_ray.core.wire import Envelope

    return msgspec.msgpack.decode(blob, type=list[Envelope])


async def wait_until(
    flock: BoardReading, board: Board, condition: Any, timeout_s: float, registry: TypeRegistry
) -> bool:
    """Wait for a condition: True when it holds, False at the timeout or when an idle board can't bring it about."""
    wanted = as_condition(condition)
    facts = BoardFacts(wanted, board, flock, registry)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        known = await facts.refresh()
        if evaluate(wanted, facts):
            return True
        left = deadline - loop.time()
        if left <= 0:
            return False
        idle = await board.wait_idle(timeout_s=0)
        if idle and timeout_s == math.inf:
            # What came between the look and the idleness counts.
            await facts.refresh()
            return evaluate(wanted, facts)
        await facts.news(known, min(left, board.long_call_s), until_idle=not idle)
