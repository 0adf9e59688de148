"""How often a publisher has to wait for the store: once, but for what has left memory."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from flock_ray.adapters.memory import MemoryPersistence, MemoryStore
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Order

TRIP_S = 1.0


class Distant(MemoryPersistence):
    """A place to which every call takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def store(self, board: str, shard: int, slots: Collection[int]) -> Any:
        return DistantStore(super().store(board, shard, slots), self.calls)


class DistantStore:
    def __init__(self, inner: MemoryStore, calls: list[str]) -> None:
        self.mode = inner.mode
        self._inner, self._calls = inner, calls

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            self._calls.append(name)
            await asyncio.sleep(TRIP_S)
            return await getattr(self._inner, name)(*args)

        return call


@pytest.mark.parametrize(
    ("options", "calls", "trips"),
    [
        ({}, ["append"], 1),
        ({"correlation_id": "new"}, ["workflows", "append"], 2),
        ({"idempotency_key": "new"}, ["append", "get", "workflows"], 2),
    ],
)
def test_a_publisher_waits_for_few_round_trips(options: dict[str, Any], calls: list[str], trips: int) -> None:
    async def main() -> None:
        # Given a board that has more than fits into memory
        place = Distant()
        async with VirtualFlock(persistence=place, max_artifacts=1000) as flock:
            for _ in range(3):
                await asyncio.gather(*(flock.publish(Order(n=n)) for n in range(500)))
            await asyncio.sleep(60)
            place.calls.clear()

            # When one artifact is published
            began = asyncio.get_running_loop().time()
            await flock.publish(Order(n=99), **options)

            # Then it waits for the append, and for one look if it may be known already
            assert asyncio.get_running_loop().time() - began == pytest.approx(trips * TRIP_S, abs=0.01)
            assert sorted(place.calls) == sorted(calls)

    run_virtual(main())
