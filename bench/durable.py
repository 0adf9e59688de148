"""Ours on each backend: the same chain as in memory, single publishes, and the floors of the same run."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.chain_types import add_chain
from bench.flock_chain import drive, latency_ms, measure_rate
from bench.floors import postgres_floor, redis_floor, sqlite_floor
from bench.machine import percentiles
from bench.workload import ITEMS, QUICK_ITEMS
from flock_ray import Flock
from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.adapters.redis import RedisPersistence
from flock_ray.adapters.sqlite import SQLitePersistence
from tests.redis_server import RedisServer
from tests.servers import PostgresServer

BATCH = 500
SHARDS = 2
"""Of durable boards: while one shard waits for its store another one works."""
SINGLES, QUICK_SINGLES = 200, 40


@contextlib.contextmanager
def opened(backend: str) -> Iterator[tuple[Any, Any]]:
    """Start the backend; gives its persistence (None: in memory) and where a floor may write."""
    with tempfile.TemporaryDirectory(prefix="flock-bench-") as folder:
        if backend == "memory":
            yield None, None
        elif backend == "sqlite":
            yield SQLitePersistence(folder), Path(folder, "floor.db")
        elif backend == "postgres":
            postgres = PostgresServer()  # fsync and synchronous_commit on: the defaults
            try:
                postgres.start()
                yield PostgresPersistence(postgres.url()), postgres.url()
            finally:
                postgres.remove()
        else:
            redis = RedisServer(Path(folder), {"appendonly": "yes", "appendfsync": "everysec"})
            redis.start()
            try:
                yield RedisPersistence(redis.url), redis.url
            finally:
                redis.stop()


async def _publish_ms(flock: Flock, samples: int) -> dict[str, float]:
    """Time publishes of a type that nobody consumes, one after the other."""
    from bench.chain_types import D
    from bench.workload import TEXT

    times = []
    for n in range(samples):
        started = time.perf_counter()
        await flock.publish(D(n=n, text=TEXT))
        times.append((time.perf_counter() - started) * 1000)
    return dict(msgspec.to_builtins(percentiles(times)))


async def _measure(backend: str, *, quick: bool) -> dict[str, Any]:
    count = QUICK_ITEMS if quick else ITEMS
    samples = QUICK_SINGLES if quick else SINGLES
    floors: dict[str, Any] = {"sqlite": sqlite_floor, "postgres": postgres_floor, "redis": redis_floor}
    with opened(backend) as (persistence, place):
        shards = 1 if persistence is None else SHARDS
        async with Flock(persistence=persistence, shards=shards, no_output=True) as flock:
            add_chain(flock)
            await drive(flock, 1_000, 100)
            rate = await measure_rate(flock, count, BATCH, shards)
            single = await _publish_ms(flock, samples)
            chain = await latency_ms(flock, samples, idle=True)
        floor = await floors[backend](place, quick=quick) if backend in floors else {}
    return {
        "backend": backend,
        "items": count,
        "shards": shards,
        **rate,
        "publish_ms": single,
        "chain_ms": chain,
        "floor": floor,
    }


def run(*, quick: bool, backend: str) -> dict[str, Any]:
    """Measure one backend on a cluster of its own."""
    return asyncio.run(_measure(backend, quick=quick))
