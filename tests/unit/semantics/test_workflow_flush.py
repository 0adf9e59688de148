"""Partial batches of one workflow can be run without those of the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import BatchSpec, flock_type
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual


@flock_type(name="flush.Item")
class Item(BaseModel):
    n: int


def declared(seen: list[list[int]], scope: Any, **options: Any) -> VirtualFlock:
    flock = VirtualFlock(**options)
    flock.agent("a").consumes(Item, batch=BatchSpec(size=10), scope=scope).runs(
        lambda items: seen.append([item.n for item in items])
    )
    return flock


@pytest.mark.parametrize("shards", [1, 4])
def test_only_the_batch_of_the_workflow_runs(shards: int) -> None:
    async def main() -> None:
        seen: list[list[int]] = []
        async with declared(seen, "workflow", shards=shards) as flock:
            for n in range(6):
                await flock.publish(Item(n=n), correlation_id=f"w{n % 3}")
            await flock.run_until_idle()
            assert await flock.flush_batches("w1") == 1
            await flock.run_until_idle()
            assert seen == [[1, 4]] and await flock.flush_batches("w1") == 0
            assert [(await flock.workflow_status(f"w{n}")).waiting for n in range(3)] == [2, 0, 2]
            assert await flock.flush_batches() == 2
            await flock.run_until_idle()
            assert sorted(seen) == [[0, 3], [1, 4], [2, 5]]

    run_virtual(main())


def test_a_batch_with_inputs_of_others_is_left() -> None:
    async def main() -> None:
        seen: list[list[int]] = []
        async with declared(seen, "board") as flock:
            one = await flock.publish(Item(n=1), correlation_id="w1")
            await flock.run_until_idle()
            assert await flock.flush_batches(one) == 1
            await flock.publish(Item(n=1), correlation_id="w1")
            await flock.publish(Item(n=2), correlation_id="w2")
            await flock.run_until_idle()
            assert await flock.flush_batches("w1") == 0
            assert seen == [[1]]

    run_virtual(main())


def test_a_flush_of_a_workflow_is_replayed_after_a_crash() -> None:
    async def main() -> None:
        seen: list[list[int]] = []
        keep = MemoryPersistence()
        first = declared(seen, "workflow", persistence=keep)
        await first.publish(Item(n=1), correlation_id="w1")
        await first.publish(Item(n=2), correlation_id="w2")
        await first.run_until_idle()
        assert await first.flush_batches("w1") == 1
        await first.run_until_idle()
        assert first.local is not None
        await first.local.close()  # without a snapshot
        await asyncio.sleep(0)

        again: list[list[int]] = []
        second = declared(again, "workflow", persistence=keep)
        await second.run_until_idle()
        assert (await second.workflow_status("w1")).waiting == 0
        assert (await second.workflow_status("w2")).waiting == 1
        assert await second.flush_batches("w1") == 0 and seen == [[1]] and again == []
        await second.shutdown(flush_batches=False)

    run_virtual(main())
