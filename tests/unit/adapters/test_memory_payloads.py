from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from flock_ray.adapters.memory_payloads import MemoryPayloads
from flock_ray.core.claims import claim_for
from flock_ray.errors import BackpressureError
from tests.payload_contract import PayloadContract, Process


class MemoryProcess:
    def __init__(self) -> None:
        self.store = MemoryPayloads()
        self.handles: list[Any] = []
        self.offered: Any = None

    async def offer(self, payloads: Sequence[bytes]) -> Any:
        self.offered = await self.store.offer(payloads)
        return self.offered

    async def adopt(self, offer: Any, claims: Sequence[bytes]) -> None:
        self.handles = await self.store.adopt(offer, claims)

    async def keep(self, payloads: Sequence[bytes]) -> None:
        self.handles = await self.store.keep(payloads)

    async def open(self) -> list[bytes | None]:
        return await MemoryPayloads().open(self.handles, 30.0)

    async def drop(self) -> None:
        self.handles = []

    async def kill(self) -> None:
        self.store.die()
        self.offered = None


class TestMemoryPayloads(PayloadContract):
    @pytest.fixture(autouse=True)
    def _processes(self) -> None:
        self.made: list[MemoryProcess] = []

    @pytest.fixture
    def start(self) -> Callable[[], Awaitable[Process]]:
        async def start() -> Process:
            self.made.append(MemoryProcess())
            return self.made[-1]

        return start

    @pytest.fixture
    def used_bytes(self) -> Callable[[], int]:
        return lambda: sum(process.store.num_bytes for process in self.made)


async def test_there_is_no_more_room_than_there_is() -> None:
    store = MemoryPayloads(max_bytes=10)
    handles = await store.keep([b"x" * 6])
    with pytest.raises(BackpressureError):
        await store.keep([b"x" * 5])
    with pytest.raises(BackpressureError):
        await store.adopt(await MemoryPayloads().offer([b"x" * 5]), [claim_for(b"x" * 5)])
    handles.clear()
    await store.keep([b"x" * 5])
