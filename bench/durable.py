"""Ours on each backend: the same chain as in memory, single publishes, and the floors of the same run."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.chain_types import add_chain
from bench.distance import away
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
AWAY_MS = 1.0
"""Round trip to a server in another place of one region, or a commit on a disk of a cloud."""
FLOORS: dict[str, Any] = {"sqlite": sqlite_floor, "postgres": postgres_floor, "redis": redis_floor}


@contextlib.contextmanager
def opened(backend: str, away_ms: float = 0.0) -> Iterator[tuple[Any, Any]]:
    """Start the backend; gives its persistence (None: in memory) and where a floor may write.

    Args:
        backend: `memory`, `sqlite`, `postgres` or `redis`.
        away_ms: How long a message to a server and its answer are under way; 0: it is on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="flock-bench-") as folder:
        if backend == "memory":
            yield None, None
        elif backend == "sqlite":
            yield SQLitePersistence(folder), Path(folder, "floor.db")
        elif backend == "postgres":
            postgres = PostgresServer()  # fsync and synchronous_commit on: the defaults
            try:
                postgres.start()
                with _at(postgres.url(), postgres.port, away_ms) as url:
                    yield PostgresPersistence(url), url
            finally:
                postgres.remove()
        else:
            redis = RedisServer(Path(folder), {"appendonly": "yes", "appendfsync": "everysec"})
            redis.start()
            try:
                with _at(redis.url, redis.port, away_ms) as url:
                    yield RedisPersistence(url), url
            finally:
                redis.stop()


@contextlib.contextmanager
def _at(url: str, port: int, away_ms: float) -> Iterator[str]:
    if not away_ms:
        yield url
        return
    with away(port, away_ms) as other:
        yield url.replace(f":{port}", f":{other}")


async def _publish_ms(flock: Flock, samples: int) -> dict[str, float]:
    """Time publishes of a type that nobody consumes, one after the other."""
    from bench.chain_types import D
    from bench.workload import TEXT

    return await _times_ms(lambda n: flock.publish(D(n=n, text=TEXT)), samples)


async def _call_ms(flock: Flock, samples: int) -> dict[str, float]:
    """Time calls of the shard that do nothing there: what Ray takes of a publish."""
    board = await flock._ready_board()
    return await _times_ms(lambda _: board.shard(0).table(), samples)


async def _times_ms(call: Callable[[int], Awaitable[Any]], samples: int) -> dict[str, float]:
    times = []
    for n in range(samples):
        started = time.perf_counter()
        await call(n)
        times.append((time.perf_counter() - started) * 1000)
    return dict(msgspec.to_builtins(percentiles(times)))


async def _measure_away(backend: str, *, quick: bool) -> dict[str, Any]:
    """One publish at a time to a server that is a network away, beside its floor there."""
    samples = QUICK_SINGLES if quick else SINGLES
    with opened(backend, AWAY_MS) as (persistence, place):
        async with Flock(persistence=persistence, no_output=True) as flock:
            add_chain(flock)
            await flock.start()
            await _publish_ms(flock, 20)
            single = await _publish_ms(flock, samples)
        return {"publish_ms": single, "floor": await FLOORS[backend](place, quick=True), "away_ms": AWAY_MS}


async def _measure(backend: str, *, quick: bool) -> dict[str, Any]:
    count = QUICK_ITEMS if quick else ITEMS
    samples = QUICK_SINGLES if quick else SINGLES
    with opened(backend) as (persistence, place):
        shards = 1 if persistence is None else SHARDS
        async with Flock(persistence=persistence, shards=shards, no_output=True) as flock:
            add_chain(flock)
            await drive(flock, 1_000, 100)
            rate = await measure_rate(flock, count, BATCH, shards)
            call = await _call_ms(flock, samples)
            single = await _publish_ms(flock, samples)
            chain = await latency_ms(flock, samples, idle=True)
        floor = await FLOORS[backend](place, quick=quick) if backend in FLOORS else {}
    away_ms = await _measure_away(backend, quick=quick) if backend in ("postgres", "redis") else {}
    return {
        "backend": backend,
        "items": count,
        "shards": shards,
        **rate,
        "call_ms": call,
        "publish_ms": single,
        "away": away_ms,
        "chain_ms": chain,
        "floor": floor,
    }


def run(*, quick: bool, backend: str) -> dict[str, Any]:
    """Measure one backend on a cluster of its own."""
    return asyncio.run(_measure(backend, quick=quick))
