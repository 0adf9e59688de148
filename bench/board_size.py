"""Does a full board slow down, and what does it weigh: the chain on boards up to 200,000 artifacts."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, TypedDict

from bench.chain_types import add_chain
from bench.flock_chain import ARTIFACTS_PER_ITEM, check_finished, drive
from bench.processes import CpuMeter, memory_by_role
from flock_ray import Flock

BATCH = 100
BLOCK_ITEMS = 500
"""2,000 artifacts: small beside the board, large beside one batch."""
BLOCKS = 5
SMALL, LARGE = 1_000, 100_000


class Cost(TypedDict):
    """Microseconds for one artifact."""

    wall_us: float
    """Of the quickest block: others on the machine only ever add."""
    cpu_us: float
    """Of all processes together."""


async def _block_cost(flock: Flock) -> Cost:
    """Measure some blocks in a row."""
    artifacts = BLOCK_ITEMS * ARTIFACTS_PER_ITEM
    meter = CpuMeter()
    times = []
    for _ in range(BLOCKS):
        seconds, workflows = await drive(flock, BLOCK_ITEMS, BATCH)
        times.append(seconds)
    cpu = sum(meter.microseconds_per(artifacts * BLOCKS).values())
    await check_finished(flock, workflows, BLOCK_ITEMS, BATCH)
    return {"wall_us": min(times) / artifacts * 1e6, "cpu_us": cpu}


async def _fill(flock: Flock, artifacts: int) -> None:
    if artifacts > 0:
        await drive(flock, artifacts // ARTIFACTS_PER_ITEM, BATCH)


def _memory() -> dict[str, int]:
    gc.collect()
    return memory_by_role()


async def _warm(flock: Flock) -> None:
    """Bring pools and connections up with the first 1,000 artifacts, in small steps."""
    for _ in range(5):
        await drive(flock, SMALL // ARTIFACTS_PER_ITEM // 5, 10)


async def _curve(flock: Flock, points: list[int]) -> tuple[dict[str, Cost], int]:
    """Fill the board to each point and measure there; return the costs and the artifacts published."""
    costs: dict[str, Cost] = {}
    board = SMALL
    for point in points:
        await _fill(flock, point - board)
        costs[str(point)] = await _block_cost(flock)
        board = max(point, board) + BLOCKS * BLOCK_ITEMS * ARTIFACTS_PER_ITEM
    return costs, board


def _growth(before: dict[str, int], after: dict[str, int], artifacts: int) -> dict[str, int]:
    """Return bytes per 100,000 artifacts by role."""
    return {
        role: round((after.get(role, 0) - before.get(role, 0)) / artifacts * 100_000)
        for role in before.keys() | after.keys()
    }


async def _measure(*, quick: bool) -> dict[str, Any]:
    points = [SMALL, LARGE // 10] if quick else [SMALL, LARGE // 10, LARGE // 4, LARGE // 2, LARGE]
    largest = points[-1]
    retained = largest + largest // 5
    async with Flock(shards=1, max_artifacts=retained) as flock:
        add_chain(flock)
        await _warm(flock)
        empty = _memory()
        curve, board = await _curve(flock, points)
        full = _memory()
        # Well past the limit first: tables and the allocator grow a last time while they begin to forget.
        await _fill(flock, retained + largest - board)
        settled = _memory()
        await _fill(flock, largest)
        beyond = _memory()
        past = await _block_cost(flock)
    return {
        "per_artifact": curve,
        "per_artifact_past_retention": past,
        "artifacts": largest,
        "retained": retained,
        # The smallest cost so far, not the first: a slow warm-up would hide growth.
        "ratio": curve[str(largest)]["wall_us"] / min(cost["wall_us"] for cost in curve.values()),
        "cpu_ratio": curve[str(largest)]["cpu_us"] / min(cost["cpu_us"] for cost in curve.values()),
        "memory_bytes": {"empty": empty, "full": full, "at_retention": settled, "past_retention": beyond},
        "growth_bytes_per_100k": {
            "below_retention": _growth(empty, full, board - SMALL),
            "past_retention": _growth(settled, beyond, largest),
        },
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Measure the board on a cluster of its own."""
    return asyncio.run(_measure(quick=quick))
