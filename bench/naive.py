"""The floor: the same chain with one RPC per artifact and hop, and a router actor between: ~190 items/s.

No call awaits downstream work: nested awaits hang an async actor at 1,000 outstanding calls.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import ray

from bench.machine import median
from bench.toy import init_ray
from bench.workload import HOPS, PAYLOAD_BYTES

OUTSTANDING = 100


class NaiveWorker:
    """Runs one artifact and publishes what came out."""

    def __init__(self, shard: Any) -> None:
        self._shard = shard

    async def run(self, hop: int, payload: dict[str, Any]) -> None:
        self._shard.publish.remote(hop + 1, {"n": payload["n"] + 1, "text": payload["text"]})


class NaiveRouter:
    """Sends one artifact to the worker of its agent."""

    def __init__(self) -> None:
        self._workers: list[Any] = []

    async def attach(self, workers: list[Any]) -> None:
        self._workers = workers

    async def route(self, hop: int, payload: dict[str, Any]) -> None:
        self._workers[hop].run.remote(hop, payload)


class NaiveShard:
    """Stores one artifact and tells the router."""

    def __init__(self, router: Any) -> None:
        self._router = router
        self._artifacts: list[dict[str, Any]] = []
        self._done = 0
        self._progress = asyncio.Event()

    async def publish(self, hop: int, payload: dict[str, Any]) -> int:
        self._artifacts.append(payload)
        if hop < HOPS:
            self._router.route.remote(hop, payload)
        else:
            self._done += 1
            self._progress.set()
        return len(self._artifacts)

    async def wait_done(self, total: int) -> None:
        while self._done < total:
            self._progress.clear()
            await self._progress.wait()


def _drive(shard: Any, count: int, total: int) -> float:
    started = time.perf_counter()
    open_calls: deque[Any] = deque()
    for n in range(count):
        open_calls.append(shard.publish.remote(0, {"n": n, "text": "x" * (PAYLOAD_BYTES - 30)}))
        if len(open_calls) > OUTSTANDING:
            ray.get(open_calls.popleft())
    ray.get(shard.wait_done.remote(total), timeout=100)
    return time.perf_counter() - started


def run(*, quick: bool) -> dict[str, Any]:
    """Measure the naive design on a cluster of its own."""
    count = 150 if quick else 500
    actor: Any = ray.remote(num_cpus=0)
    init_ray()
    try:
        router = actor(NaiveRouter).remote()
        shard = actor(NaiveShard).remote(router)
        ray.get(router.attach.remote([actor(NaiveWorker).remote(shard) for _ in range(HOPS)]))
        _drive(shard, 50, 50)
        rates = [count / _drive(shard, count, 50 + count * (rep + 1)) for rep in range(3)]
    finally:
        ray.shutdown()
    return {
        "items": count,
        "items_per_s": median(rates),
        "items_per_s_best": max(rates),
        "items_per_s_all": rates,
    }
