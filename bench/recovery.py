"""How long a shard takes to come back, by live artifacts and by the age of the board. No Ray: the shard's own parts."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

from bench.durable import opened
from flock_ray.actors.keeping import Keeper
from flock_ray.actors.limits import ShardSettings
from flock_ray.actors.processes import SHARD_GC_THRESHOLDS
from flock_ray.core import wire
from flock_ray.core.ids import derive_id, slot_of
from flock_ray.core.rows import ArtifactQuery
from flock_ray.core.shard import ShardCore

SIZES = {"live": (1_000, 100_000), "settled": (10_000, 1_000_000)}
QUICK_SIZES = {"live": (200, 2_000), "settled": (200, 2_000)}
BATCH = 1_000
OWNED = range(256)
BODY = b'{"n": 1, "text": "' + b"x" * 280 + b'"}'
WAITS = wire.SubscriptionSpec("gate", "agent", ("Waits", "Never"), "and")
TABLE = wire.TableSpec(1, (wire.AgentInfo("agent"),), (WAITS,))


def _posting(n: int, *, waits: bool) -> wire.Posting:
    name = f"workflow-{n}" if waits else f"workflow-{n // 10}"
    envelope = wire.Envelope(
        derive_id(b"bench", str(n).encode()), "Waits" if waits else f"Type{n % 50}", 1, BODY, name, slot_of(name),
        "external", 1_700_000_000_000_000 + n, (f"tag{n % 100}",),
    )  # fmt: skip
    return wire.Posting(envelope, (wire.Match("gate"),) if waits else ())


async def _fill(persistence: Any, board: str, count: int, *, waits: bool) -> dict[str, Any]:
    """Publish through a shard's core and keeper, as its loop does; returns the rate of the last tenth."""
    await persistence.prepare(board, 1)
    core = ShardCore(OWNED, max_artifacts=10_000, durable=True)
    keeper = Keeper(core, persistence.store(board, 0, OWNED), snapshot_bytes=ShardSettings().snapshot_bytes)
    await keeper.recover()
    core.install(TABLE, 1)
    tasks: set[asyncio.Task[None]] = set()
    last, since = time.perf_counter(), 0
    for start in range(0, count, BATCH):
        if since < start <= count - count // 10 < start + BATCH:
            last, since = time.perf_counter(), start
        for n in range(start, min(start + BATCH, count)):
            core.publish(_posting(n, waits=waits), start + 1)
        await keeper.append(start + 1)
        keeper.step(lambda work: tasks.add(asyncio.ensure_future(work)), lambda: None)
        await asyncio.sleep(0)
    rate = (count - since) / (time.perf_counter() - last)
    await asyncio.gather(*tasks)
    await keeper.close()
    return {"publish_per_s": rate}


async def _recover(persistence: Any, board: str) -> dict[str, Any]:
    core = ShardCore(OWNED, max_artifacts=10_000, durable=True)
    keeper = Keeper(core, persistence.store(board, 0, OWNED), snapshot_bytes=ShardSettings().snapshot_bytes)
    started = time.perf_counter()
    await keeper.recover()
    seconds = time.perf_counter() - started
    live = sum(
        gate.opened_us >= 0
        for s in core.slots.values()
        for keys in s.gates.values()
        for gate in keys.values()
    )
    queries = {
        "type": ArtifactQuery(types=("Type7",)),
        "workflow": ArtifactQuery(correlation_id="workflow-5"),
        "tag": ArtifactQuery(tags=("tag33",)),
    }
    pages = {}
    for name, query in queries.items():
        times = []
        for _ in range(15):
            began = time.perf_counter()
            await keeper.store.page(query, 50, 0)
            times.append((time.perf_counter() - began) * 1000)
        pages[f"{name}_page_ms"] = sorted(times)[len(times) // 2]
    await keeper.close()
    return {"recovery_s": seconds, "replayed": keeper.replayed, "waiting": live, **pages}


async def _measure(backend: str, *, quick: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"backend": backend}
    with opened(backend) as (persistence, _):
        for kind, sizes in (QUICK_SIZES if quick else SIZES).items():
            for size in sizes:
                if size > 100_000 and backend != "postgres":
                    continue
                board = f"{kind}-{size}"
                filled = await _fill(persistence, board, size, waits=kind == "live")
                out[board] = {**filled, **await _recover(persistence, board)}
    return out


def run(*, quick: bool, backend: str) -> dict[str, Any]:
    """Measure one backend in this process, which collects garbage as seldom as a shard's."""
    gc.set_threshold(*SHARD_GC_THRESHOLDS)
    return asyncio.run(_measure(backend, quick=quick))
