from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel

from flock_ray import BatchSpec, flock_type
from flock_ray.adapters.memory import MemoryPersistence, MemoryStore
from flock_ray.core import wire
from flock_ray.core.ids import slot_of
from flock_ray.core.rows import StoreBatch
from flock_ray.testing import VirtualFlock, run_virtual


@flock_type(name="ForwardedIn")
class In(BaseModel):
    n: int


class SlowStore(MemoryStore):
    """Takes a second for every append."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self._log = log

    async def append(self, batch: StoreBatch) -> None:
        await asyncio.sleep(1)
        await super().append(batch)
        if batch.artifacts:
            self._log.append("durable")


def test_other_shards_hear_only_of_what_is_in_the_journal() -> None:
    async def scenario() -> list[str]:
        log: list[str] = []
        async with VirtualFlock(shards=2, persistence=MemoryPersistence()) as flock:
            flock.agent("pairs").consumes(In, batch=BatchSpec(size=9)).runs(lambda items: None)
            await flock.start()
            assert flock.local is not None
            gate = slot_of(flock._definitions()[0].subscriptions[0].id)
            workflow = next(name for name in map(str, range(99)) if slot_of(name) % 2 != gate % 2)
            sender: Any = flock.local.shards[1 - gate % 2]
            receiver: Any = flock.local.shards[gate % 2]
            forward = receiver.forward

            async def slow_forward(blob: bytes) -> Any:
                log.extend(f"forward {f.seq}" for f in wire.decode_forward(blob).forwards)
                await asyncio.sleep(0.5)
                return await forward(blob)

            # Given a shard whose journal is slow, and an input on its way to a gate of another shard
            store = SlowStore(log)
            store.disk, store.epoch = sender._keeper.store.disk, sender._keeper.store.epoch
            sender._keeper.store, receiver.forward = store, slow_forward
            await flock.publish(In(n=1), correlation_id=workflow)
            # When a second input is accepted while the shard waits for the acknowledgement of the first
            await asyncio.sleep(0.2)
            await flock.publish(In(n=2), correlation_id=workflow)
            await asyncio.sleep(5)
        return log

    # Then it is not sent before it is durable: a crash would use its number again for something else
    assert run_virtual(scenario()) == ["durable", "forward 1", "durable", "forward 2"]
