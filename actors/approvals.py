"""Approvals of one shard: pages of what waits for people, and their decisions."""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Any

from flock_ray.core import wire
from flock_ray.core.approval_orders import (
    MAX_PAGE,
    ApprovalAnswer,
    ApprovalOrder,
    ApprovalRow,
    decode_query,
    encode,
)

if TYPE_CHECKING:
    from flock_ray.core.shard import ShardCore

__all__ = ["ShardApprovals", "approved_postings", "approved_workflows"]

CHUNK = 5_000
"""Cases looked at between two looks at the event loop."""

MAX_LOOKUP = 1_000


class ShardApprovals:
    """The part of `Shard` that knows approvals."""

    core: ShardCore

    async def _durable(self) -> None:
        raise NotImplementedError  # ShardReaders'

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    def _refusal(self) -> wire.PublishReply | None:
        raise NotImplementedError  # Shard's

    async def approvals(self, query: bytes) -> bytes:
        """Return msgpack of `ApprovalRow`s: the oldest open cases that an `ApprovalQuery` selects."""
        await self._durable()
        asked = decode_query(query)
        limit = max(1, min(asked.limit, MAX_PAGE))
        oldest: list[ApprovalRow] = []
        found: list[ApprovalRow] = []
        for number, row in enumerate(self.core.approval_rows(asked), 1):
            if row is not None:
                found.append(row)
            if number % CHUNK == 0:
                oldest, found = heapq.nsmallest(limit, oldest + found, key=_place), []
                await asyncio.sleep(0)
        return encode(heapq.nsmallest(limit, oldest + found, key=_place))

    async def find_approvals(self, ids: list[bytes]) -> bytes:
        """Return msgpack of the `ApprovalRow`s of those that are open here."""
        await self._durable()
        rows = [self.core.find_approval(key) for key in ids[:MAX_LOOKUP]]
        return encode([row for row in rows if row is not None])

    async def decide_approval(self, blob: bytes) -> bytes:
        """Take an `ApprovalOrder`; answers with an `ApprovalAnswer` once the journal has what it did."""
        refusal = self._refusal()
        if refusal is not None and refusal.status != "busy":
            return encode(ApprovalAnswer(refusal.status))
        answer: bytes = await self._enqueue("approval", blob, len(blob))
        return answer

    async def shadow_counts(self) -> bytes:
        """Return msgpack of `ShadowRow`s: what people would have said."""
        await self._durable()
        return encode(list(self.core.shadow_rows()))

    def _apply_approval(self, order: ApprovalOrder, now_us: int) -> bytes:
        return encode(self.core.decide_approval(order, now_us))


def approved_postings(order: ApprovalOrder) -> list[wire.Posting]:
    """Return what a decision publishes."""
    return [] if order.edited is None else [order.edited]


def approved_workflows(core: ShardCore, order: ApprovalOrder) -> set[str]:
    """Return the workflow that a decision is about; that of a case for which nothing waits may have left memory."""
    slot = core.slots.get(order.slot)
    case = None if slot is None else slot.approvals.get(order.case)
    return set() if case is None or not case.correlation_id else {case.correlation_id}


def _place(row: ApprovalRow) -> tuple[int, bytes]:
    return row.place
