"""Limits of one shard's agents: what operators look at, and circuit breakers opened and closed by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.core.limit_status import limit_statuses

if TYPE_CHECKING:
    from flock_ray.core.shard import ShardCore

__all__ = ["ShardLimits"]


class ShardLimits:
    """The part of `Shard` that shows limits and takes commands about breakers."""

    core: ShardCore

    async def _durable(self) -> None:
        raise NotImplementedError  # ShardReaders'

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    async def limits(self) -> bytes:
        """Return msgpack of the `LimitStatus` of every agent with limits."""
        await self._durable()
        return msgspec.msgpack.encode(limit_statuses(self.core))

    async def force_breaker(self, agent: str, open_: bool, by: str) -> bool:
        """Open or close a circuit breaker; answered once it is in the journal. False: it is not kept here."""
        found: bool = await self._enqueue("breaker", (agent, open_, by), 0)
        return found

    def _apply_breaker(self, subject: tuple[str, bool, str], now_us: int) -> bool:
        agent, open_, by = subject
        return self.core.force_breaker(agent, open_=open_, by=by, now_us=now_us)
