"""Shards as the ledgers of a gateway: behind links that lose messages when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from flock_ray.core.budgets import Reserve, Settle
from flock_ray.core.ids import owned_slots
from flock_ray.core.shard import ShardCore
from flock_ray.gateway.budgets import LedgerLink
from flock_ray.ports import PeerGoneError

T = TypeVar("T")

NOW = 1_767_225_600_000_000


class FakeShards:
    """Shards behind links that lose messages when told to."""

    def __init__(self, num: int) -> None:
        self.cores = [ShardCore(owned_slots(index, num)) for index in range(num)]
        self.num = num
        self.away: Callable[[str], str] = lambda method: ""
        """Returns `before` or `after`: where a message of a method gets lost; `broken`: the shard has a defect."""
        self.messages: list[tuple[str, int]] = []
        self.keys = iter(range(10**6))

    def link(self, monotonic: Callable[[], float]) -> LedgerLink:
        """Connect a gateway."""

        async def count() -> int:
            return self.num

        return LedgerLink(
            self.shard, count, monotonic=monotonic, new_key=lambda: next(self.keys).to_bytes(16, "big")
        )

    def shard(self, index: int) -> Any:
        """Return a link."""
        return _Link(self, index)

    def accounts(self) -> dict[str, Any]:
        """Return every account."""
        return {
            name: account
            for core in self.cores
            for slot in core.slots.values()
            for name, account in slot.ledger.accounts.items()
        }


class _Link:
    def __init__(self, shards: FakeShards, index: int) -> None:
        self.shards, self.index = shards, index

    async def reserve(self, blob: bytes) -> bytes:
        asks = msgspec.msgpack.decode(blob, type=list[Reserve])
        core = self.shards.cores[self.index]
        return await self._sent(
            "reserve", len(asks), lambda: msgspec.msgpack.encode([core.reserve(a, NOW) for a in asks])
        )

    async def settle(self, blob: bytes) -> int:
        ends = msgspec.msgpack.decode(blob, type=list[Settle])
        core = self.shards.cores[self.index]
        return await self._sent("settle", len(ends), lambda: sum(core.settle(end, NOW) for end in ends))

    async def _sent(self, method: str, size: int, work: Callable[[], T]) -> T:
        lost = self.shards.away(method)
        await asyncio.sleep(0.001)
        if lost == "broken":
            raise RuntimeError("a defect")
        if lost == "before":
            raise PeerGoneError("away")
        self.shards.messages.append((method, size))
        answer = work()
        await asyncio.sleep(0.001)
        if lost == "after":
            raise PeerGoneError("away")
        return answer
