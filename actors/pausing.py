"""Pausing a shard: the calls of its host."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from flock_ray.core.shard import ShardCore

_encode = msgspec.msgpack.Encoder().encode


class ShardPausing:
    """The pausing half of `Shard`."""

    core: ShardCore

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    async def _durable(self) -> None:
        raise NotImplementedError  # ShardReaders'

    async def pause(self, kind: str, name: str, on: bool, by: str, reason: str) -> str:
        """Pause or resume something on this shard; answers `ok` or `full` once it is in the journal."""
        answer: str = await self._enqueue("pause", (kind, name, on, by, reason), 0)
        return answer

    async def pauses(self) -> bytes:
        """Return everything that is paused here: a msgpack list of `core.pauses.Pause`."""
        await self._durable()
        return _encode(list(self.core.pauses.by_place.values()))

    def _apply_pause(self, subject: tuple[str, str, bool, str, str], now_us: int) -> str:
        kind, name, on, by, reason = subject
        return self.core.pause(kind, name, on=on, by=by, reason=reason, now_us=now_us)
