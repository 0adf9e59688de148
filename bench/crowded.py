"""When there is too much: a tenant beside another one's backlog, a publisher that never stops, and calls given up."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from bench.machine import Percentiles, percentiles
from bench.processes import pss_bytes, roles
from flock_ray import Flock, ModelSettings, flock_type
from flock_ray.errors import BackpressureError

RUN_S = 0.02
"""What a run of the shared agent takes: it waits, as for a model."""
CONCURRENCY = 10
ASKED_PER_S = 30.0
"""Of the quiet tenant: 6 % of what the agent can do."""
FLOOD_CONCURRENCY = 4
FLOOD_OPEN = 5_000
TIMEOUT_S = 300.0
CALLS = 50


@flock_type(name="bench.Ask")
class Ask(BaseModel):
    n: int


@flock_type(name="bench.Told")
class Told(BaseModel):
    n: int


@flock_type(name="bench.Drop")
class Drop(BaseModel):
    n: int
    text: str = "x" * 500


async def work(ask: Ask) -> Told:
    await asyncio.sleep(RUN_S)
    return Told(n=ask.n)


async def swallow(drop: Drop) -> None:
    await asyncio.sleep(RUN_S)


# -- tenants -------------------------------------------------------------------------------------


async def latency_ms(flock: Flock, seconds: float) -> Percentiles:
    """Ask as the quiet tenant, at a steady rate whatever comes back, and time the answers."""
    times: list[float] = []

    async def ask(n: int) -> None:
        began = time.perf_counter()
        await flock.wait(await flock.publish(Ask(n=n), tenant="quiet"), timeout=TIMEOUT_S)
        times.append((time.perf_counter() - began) * 1000)

    loop, asked = asyncio.get_running_loop(), []
    begin = loop.time()
    for n in range(int(seconds * ASKED_PER_S)):
        await asyncio.sleep(max(0.0, begin + n / ASKED_PER_S - loop.time()))
        asked.append(asyncio.ensure_future(ask(n)))
    await asyncio.gather(*asked)
    return percentiles(times)


async def tenants(*, quick: bool) -> dict[str, Any]:
    """Measure a tenant's latency alone, and while all of another one's backlog waits."""
    backlog, seconds = (3_000, 3.0) if quick else (10_000, 8.0)
    async with Flock(shards=1, max_artifacts=100_000) as flock:
        flock.agent("desk").consumes(Ask).publishes(Told).runs(work).max_concurrency(CONCURRENCY)
        await flock.publish_many([Ask(n=n) for n in range(200)], tenant="quiet")
        await flock.run_until_idle(timeout=TIMEOUT_S)
        alone = await latency_ms(flock, seconds)
        loud = await flock.publish_many([Ask(n=n) for n in range(backlog)], tenant="loud")
        beside = await latency_ms(flock, seconds)
        left = (await flock.workflow_status(loud[0])).open
        await flock.cancel(loud[0])
    if not left:
        raise RuntimeError(
            f"the backlog of {backlog:,} was done before the quiet tenant was: nothing was measured"
        )
    return {
        "backlog": backlog, "backlog_left": left, "alone_p99_ms": alone["p99"], "alone_p50_ms": alone["p50"],
        "beside_p99_ms": beside["p99"], "beside_p50_ms": beside["p50"],
    }  # fmt: skip


# -- a publisher that never stops ----------------------------------------------------------------


def board_bytes() -> dict[str, int]:
    """Return the memory of the board's processes and of this one, by role."""
    found: dict[str, int] = {}
    for pid, role in roles().items():
        if role in ("driver", "RayShard", "RayRouter", "RayWorker") or pid == os.getpid():
            found[role] = found.get(role, 0) + pss_bytes(pid)
    return found


async def flood(*, quick: bool) -> dict[str, Any]:
    """Publish ten times what the agent can do, and look at the memory of everything."""
    seconds = 15.0 if quick else 60.0
    capacity = FLOOD_CONCURRENCY / RUN_S
    batch = 100
    async with Flock(
        shards=1, max_open=FLOOD_OPEN, max_artifacts=FLOOD_OPEN, publish_timeout=timedelta(milliseconds=1)
    ) as flock:
        flock.agent("sink").consumes(Drop).runs(swallow).max_concurrency(FLOOD_CONCURRENCY)
        loop = asyncio.get_running_loop()
        begin, sent, refused = loop.time(), 0, 0
        samples: list[tuple[float, dict[str, int]]] = []
        full_at: float | None = None
        while (now := loop.time() - begin) < seconds:
            try:
                await flock.publish_many([Drop(n=n) for n in range(batch)])
                sent += batch
            except BackpressureError:
                refused += batch
                full_at = now if full_at is None else full_at
            if not samples or now - samples[-1][0] > seconds / 15:
                samples.append((now, await asyncio.to_thread(board_bytes)))
            await asyncio.sleep(max(0.0, begin + (sent + refused) / (10 * capacity) - loop.time()))
        samples.append((seconds, await asyncio.to_thread(board_bytes)))
        await flock.halt(by="bench")  # what is left need not be done
    if full_at is None:
        raise RuntimeError("the board was never full: nothing was measured")
    full = [sum(sizes.values()) for at, sizes in samples if at > max(full_at, seconds / 3)]
    return {
        "seconds": seconds, "offered_per_s": (sent + refused) / seconds, "capacity_per_s": capacity,
        "accepted": sent, "refused": refused, "full_at_s": full_at,
        "full_bytes": full[0], "end_bytes": full[-1], "most_bytes": max(full), "by_role": samples[-1][1],
        "samples": [(round(at, 1), sum(sizes.values())) for at, sizes in samples],
    }  # fmt: skip


# -- calls that are given up ---------------------------------------------------------------------


async def cancelled_calls() -> dict[str, Any]:
    """Cancel a workflow whose runs wait for a model; time until its server sees the connections go."""
    from tests import llm_answers as answers
    from tests.llm_server import LLMServer

    async with LLMServer() as server:
        server.on(lambda _: True, answers.silent())
        models = {"openai/*": ModelSettings(api_key=server.key, api_base=server.url)}
        async with Flock("openai/gpt-4.1-mini", models=models, no_output=True) as flock:
            flock.agent("asker").description("Copies.").consumes(Ask).publishes(Told).max_concurrency(CALLS)
            await flock.publish_many([Ask(n=n) for n in range(CALLS)], correlation_id="w")
            await server.until(lambda s: s.open == CALLS, timeout_s=120)
            began = time.perf_counter()
            await flock.cancel("w")
            returned_s = time.perf_counter() - began
            await server.until(lambda s: s.num_cancelled == CALLS, timeout_s=60)
            return {"calls": CALLS, "cancel_s": returned_s, "dropped_s": time.perf_counter() - began}


async def _measure(*, quick: bool) -> dict[str, Any]:
    return {
        "tenants": await tenants(quick=quick),
        "flood": await flood(quick=quick),
        "cancel": await cancelled_calls(),
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Measure on clusters of its own."""
    return asyncio.run(_measure(quick=quick))
