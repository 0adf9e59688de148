"""1,000 activations of one agent that each wait a second, as an LLM call does: at once, on few processes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.chain_types import A, B
from bench.flock_chain import IDLE_TIMEOUT_S
from bench.processes import ActorWatch, memory_by_role
from flock_ray import Flock

SLEEP_S = 1.0


async def nap(a: A) -> B:
    await asyncio.sleep(SLEEP_S)
    return B(n=a.n, text=a.text)


async def _measure(*, quick: bool) -> dict[str, Any]:
    count = 200 if quick else 1_000
    async with Flock(shards=1) as flock:
        flock.agent("napper").consumes(A).publishes(B).runs(nap).max_concurrency(count)
        # The first activation starts a worker: the start is bench.startup's figure.
        await flock.publish(A(n=-1))
        await flock.run_until_idle(timeout=IDLE_TIMEOUT_S)
        with ActorWatch("worker") as watch:
            started = time.perf_counter()
            artifacts = await flock.publish_many([A(n=n) for n in range(count)])
            accepted = time.perf_counter()
            await flock.run_until_idle(timeout=IDLE_TIMEOUT_S)
            ended = time.perf_counter()
        results = await flock.store.get_by_type(B, correlation_id=str(artifacts[0].correlation_id))
        memory = memory_by_role()
    if sorted(result.n for result in results) != list(range(count)):
        raise RuntimeError(f"{count} activations made {len(results)} results")
    return {
        "activations": count,
        "sleep_s": SLEEP_S,
        "seconds": ended - started,
        "accepted_s": accepted - started,
        "worker_processes": watch.peak,
        "memory_bytes": memory,
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Measure slow activations on a cluster of its own."""
    return asyncio.run(_measure(quick=quick))
