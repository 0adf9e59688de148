"""Ours: the chain of three function agents through the public API, in memory, beside `bench.toy`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.chain_types import A, D, add_chain
from bench.machine import Percentiles, median, percentiles
from bench.processes import CpuMeter
from bench.workload import (
    BATCHES,
    ITEMS,
    LATENCY_SAMPLES,
    OUTSTANDING,
    QUICK_ITEMS,
    QUICK_LATENCY_SAMPLES,
    REPS,
    TEXT,
)
from flock_ray import Flock

IDLE_TIMEOUT_S = 120.0
ARTIFACTS_PER_ITEM = 4


async def publish_items(flock: Flock, count: int, batch: int, outstanding: int) -> list[str]:
    """Publish `count` items, one workflow per call of `batch`; return the workflows."""
    gate = asyncio.Semaphore(outstanding)

    async def publish(start: int) -> str:
        async with gate:
            items = [A(n=n, text=TEXT) for n in range(start, min(start + batch, count))]
            artifacts = await flock.publish_many(items)
            return str(artifacts[0].correlation_id)

    return await asyncio.gather(*(publish(start) for start in range(0, count, batch)))


async def drive(flock: Flock, count: int, batch: int, *, shards: int = 1) -> tuple[float, list[str]]:
    """Return the seconds from the first publish until the board is idle, and the workflows."""
    started = time.perf_counter()
    workflows = await publish_items(flock, count, batch, OUTSTANDING * shards)
    await flock.run_until_idle(timeout=IDLE_TIMEOUT_S)
    return time.perf_counter() - started, workflows


async def check_finished(flock: Flock, workflows: list[str], count: int, batch: int) -> None:
    """Raise when the chain did not do the work that was timed."""
    total = 0
    for workflow in workflows:
        status = await flock.get_correlation_status(workflow)
        total += status["artifact_count"]
    if total != count * ARTIFACTS_PER_ITEM:
        raise RuntimeError(f"{count} items made {total} artifacts, not {count * ARTIFACTS_PER_ITEM}")
    results = await flock.store.get_by_type(D, correlation_id=workflows[0])
    expected = [n + 3 for n in range(min(batch, count))]
    if sorted(result.n for result in results) != expected:
        raise RuntimeError(f"wrong results in workflow {workflows[0]!r}")


async def latency_ms(flock: Flock, samples: int, *, idle: bool) -> Percentiles:
    """Time single items on an idle board, until the board is idle or until the workflow has ended."""
    times = []
    for n in range(samples):
        started = time.perf_counter()
        artifact = await flock.publish(A(n=n, text=TEXT))
        if idle:
            await flock.run_until_idle(timeout=IDLE_TIMEOUT_S)
        else:
            await flock.wait(str(artifact.correlation_id))
        times.append((time.perf_counter() - started) * 1000)
    return percentiles(times)


async def measure_rate(flock: Flock, count: int, batch: int, shards: int) -> dict[str, Any]:
    """Return items/s and the CPU that each process spent per item."""
    rates = []
    meter = CpuMeter()
    for _ in range(REPS):
        seconds, workflows = await drive(flock, count, batch, shards=shards)
        rates.append(count / seconds)
    cpu = meter.microseconds_per(count * REPS)
    await check_finished(flock, workflows, count, batch)
    return {
        "items_per_s": median(rates),
        "items_per_s_best": max(rates),
        "items_per_s_all": rates,
        "cpu_us_per_item": cpu,
    }


async def _measure(*, quick: bool, shards: int) -> dict[str, Any]:
    count = QUICK_ITEMS if quick else ITEMS
    async with Flock(shards=shards) as flock:
        add_chain(flock)
        await drive(flock, 1_000, 100)
        rates = {str(batch): await measure_rate(flock, count, batch, shards) for batch in BATCHES}
        samples = QUICK_LATENCY_SAMPLES if quick else LATENCY_SAMPLES
        until_idle = await latency_ms(flock, samples, idle=True)
        until_ended = await latency_ms(flock, samples, idle=False)
    return {
        "shards": shards,
        "items": count,
        "batches": rates,
        "latency_ms": until_idle,
        "latency_wait_ms": until_ended,
    }


def run(*, quick: bool, shards: int = 1) -> dict[str, Any]:
    """Measure the chain on a cluster of its own."""
    return asyncio.run(_measure(quick=quick, shards=shards))
