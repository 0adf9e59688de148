"""How long a shard takes to come back, by live artifacts and by the age of the board. No Ray: the shard's own parts."""

from __future__ import annotations

import asyncio
import gc
import time
from statistics import median
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
TURNS = 5
RATE_TURNS = 41
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


async def _open(persistence: Any, board: str) -> tuple[ShardCore, Keeper, float]:
    """Bring a shard back; returns how long it took too."""
    core = ShardCore(OWNED, max_artifacts=10_000, durable=True)
    keeper = Keeper(core, persistence.store(board, 0, OWNED), snapshot_bytes=ShardSettings().snapshot_bytes)
    started = time.perf_counter()
    await keeper.recover()
    return core, keeper, time.perf_counter() - started


async def _fill(persistence: Any, board: str, count: int, *, waits: bool) -> None:
    """Publish through a shard's core and keeper, as its loop does."""
    await persistence.prepare(board, 1)
    core, keeper, _ = await _open(persistence, board)
    core.install(TABLE, 1)
    await _publish(core, keeper, range(count), waits=waits)
    await keeper.close()


async def _publish(core: ShardCore, keeper: Keeper, numbers: range, *, waits: bool = False) -> None:
    tasks: set[asyncio.Task[None]] = set()
    for start in range(numbers.start, numbers.stop, BATCH):
        for n in range(start, min(start + BATCH, numbers.stop)):
            core.publish(_posting(n, waits=waits), start + 1)
        await keeper.append(start + 1)
        keeper.step(lambda work: tasks.add(asyncio.ensure_future(work)), lambda: None)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)


async def _recover(persistence: Any, board: str) -> dict[str, Any]:
    core, keeper, seconds = await _open(persistence, board)
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
        pages[f"{name}_page_ms"] = median(times)
    await keeper.close()
    return {"recovery_s": seconds, "replayed": keeper.replayed, "waiting": live, **pages}


async def _in_turns(persistence: Any, sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Recover boards of several sizes, and publish to them, in turns: whatever else the machine does hits all alike."""
    found: dict[str, list[dict[str, Any]]] = {board: [] for board in sizes}
    for _ in range(TURNS):
        for board in sizes:
            found[board].append(await _recover(persistence, board))
    out = {
        board: {key: median([f[key] for f in rounds]) for key in rounds[0]} for board, rounds in found.items()
    }
    opened = {board: await _open(persistence, board) for board in sizes}
    rates: dict[str, list[float]] = {board: [] for board in sizes}
    for turn in range(RATE_TURNS):
        for board, (core, keeper, _) in opened.items():
            first = sizes[board] + turn * BATCH
            began = time.perf_counter()
            await _publish(core, keeper, range(first, first + BATCH))
            rates[board].append(BATCH / (time.perf_counter() - began))
    for board, (_, keeper, _) in opened.items():
        out[board]["publish_per_s"] = median(rates[board])
        await keeper.close()
    return out


async def _measure(backend: str, *, quick: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"backend": backend}
    with opened(backend) as (persistence, _):
        for kind, sizes in (QUICK_SIZES if quick else SIZES).items():
            boards = {f"{kind}-{size}": size for size in sizes if size <= 100_000 or backend == "postgres"}
            for board, size in boards.items():
                await _fill(persistence, board, size, waits=kind == "live")
            if kind == "live":
                out |= {board: await _recover(persistence, board) for board in boards}
            else:
                out |= await _in_turns(persistence, boards)
    return out


def run(*, quick: bool, backend: str) -> dict[str, Any]:
    """Measure one backend in this process, which collects garbage as seldom as a shard's."""
    gc.set_threshold(*SHARD_GC_THRESHOLDS)
    return asyncio.run(_measure(backend, quick=quick))
