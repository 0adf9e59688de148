"""Large payloads: a corpus in chunks, made, counted and merged by agents, and the same by plain Ray tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.processes import CpuMeter, roles
from flock_ray import BatchSpec, Flock, flock_type
from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.opening import INLINE_BYTES

CHUNKS, QUICK_CHUNKS = 1_000, 100
CHUNK_BYTES = 1_000_000
SMALLER = 10
"""So many times more chunks, of so many times less bytes: the shards' memory has to stay the same."""
BATCH = 50
TIMEOUT_S = 280.0
_WORDS = ["".join(random.Random(n).choices("abcdefghij", k=3 + n % 9)) for n in range(500)]
_TEXT = " ".join(random.Random(7).choices(_WORDS, k=400_000))


@flock_type(name="bench.ChunkOrder")
class ChunkOrder(BaseModel):
    n: int
    size: int


@flock_type(name="bench.Chunk")
class Chunk(BaseModel):
    n: int
    text: str


@flock_type(name="bench.Words")
class Words(BaseModel):
    counts: dict[str, int]


@flock_type(name="bench.Merged")
class Merged(BaseModel):
    counts: dict[str, int]


def make(n: int, size: int) -> str:
    """Return a chunk of the corpus."""
    start = (n * 7919) % 1_000_000
    return _TEXT[start : start + size]


def count_words(text: str) -> dict[str, int]:
    """Do the work, about 20 ms for 1 MB: count words, and add them up by their first letters."""
    letters: Counter[str] = Counter()
    for word, count in Counter(text.split()).items():
        letters[word[0]] += count
    return letters


def merge(parts: list[dict[str, int]]) -> dict[str, int]:
    """Add counts up."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def declare(flock: Flock, count: int) -> None:
    """Put the three agents on a board."""
    flock.agent("make").consumes(ChunkOrder).publishes(Chunk).runs(_make)
    flock.agent("count").consumes(Chunk).publishes(Words).runs(_count)
    flock.agent("merge").consumes(Words, batch=BatchSpec(size=count)).publishes(Merged).runs(_merge)


def _make(order: ChunkOrder) -> Chunk:
    return Chunk(n=order.n, text=make(order.n, order.size))


def _count(chunk: Chunk) -> Words:
    return Words(counts=count_words(chunk.text))


def _merge(words: list[Words]) -> Merged:
    return Merged(counts=merge([part.counts for part in words]))


@contextlib.contextmanager
def _kept(backend: str) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="flock-bench-large-") as folder:
        yield SQLitePersistence(folder) if backend == "sqlite" else None


def _peak_bytes(role: str) -> int:
    """Return the largest resident memory that any process of a role ever had."""
    peaks = [0]
    for pid, name in roles().items():
        if role in name:
            with contextlib.suppress(OSError):
                fields = Path("/proc", str(pid), "status").read_text()
                peaks.append(int(fields.split("VmHWM:")[1].split()[0]) * 1024)
    return max(peaks)


async def by_agents(backend: str, count: int, size: int) -> dict[str, Any]:
    """Let agents do it; returns seconds, the shard's peak, and the merged counts' sum."""
    with _kept(backend) as persistence:
        async with Flock(shards=1, persistence=persistence, no_output=True) as flock:
            declare(flock, count)
            await flock.start()
            await flock.publish(Words(counts={}))  # a worker is there when the clock starts
            await flock.run_until_idle(timeout=TIMEOUT_S)
            before = _peak_bytes("RayShard")
            meter, began = CpuMeter(), time.perf_counter()
            for start in range(1, count, BATCH):
                orders = [ChunkOrder(n=n, size=size) for n in range(start, min(count, start + BATCH))]
                await flock.publish_many(orders)
            await flock.run_until_idle(timeout=TIMEOUT_S)
            seconds = time.perf_counter() - began
            [merged] = await flock.store.get_by_type(Merged)
            return {
                "seconds": seconds,
                "words": sum(merged.counts.values()),
                "shard_peak_bytes": _peak_bytes("RayShard"),
                "shard_before_bytes": before,
                "cpu_us_per_chunk": meter.microseconds_per(count),
            }


def by_tasks(count: int, size: int) -> dict[str, Any]:
    """Do the same with Ray tasks, which pass the same models."""
    import ray

    make_task: Any = ray.remote(_make)
    count_task: Any = ray.remote(_count)
    ray.get([count_task.remote(make_task.remote(ChunkOrder(n=n, size=size))) for n in range(4)])
    began = time.perf_counter()
    refs = [count_task.remote(make_task.remote(ChunkOrder(n=n, size=size))) for n in range(1, count)]
    merged = _merge(ray.get(refs))
    return {"seconds": time.perf_counter() - began, "words": sum(merged.counts.values())}


async def _measure(backend: str, *, quick: bool) -> dict[str, Any]:
    count = QUICK_CHUNKS if quick else CHUNKS
    if backend == "sqlite":
        return {"chunks": count, "backend": backend, "large": await by_agents(backend, count, CHUNK_BYTES)}
    os.environ.setdefault(
        "RAY_max_direct_call_object_size", str(INLINE_BYTES)
    )  # as a Flock does that starts Ray
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    first = by_tasks(count, CHUNK_BYTES)
    large = await by_agents(backend, count, CHUNK_BYTES)
    tasks = min((first, by_tasks(count, CHUNK_BYTES)), key=lambda one: float(one["seconds"]))
    # Not below what is claimed: it is the memory of claims that is compared.
    small = await by_agents(backend, count * SMALLER, CHUNK_BYTES // SMALLER + 10_000)
    if tasks["words"] != large["words"]:
        raise RuntimeError(f"agents counted {large['words']} words, tasks {tasks['words']}")
    return {"chunks": count, "backend": backend, "tasks": tasks, "large": large, "small": small}


def run(*, quick: bool, backend: str) -> dict[str, Any]:
    """Measure one backend on a cluster of its own."""
    return asyncio.run(_measure(backend, quick=quick))
