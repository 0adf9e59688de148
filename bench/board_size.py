"""Does a full board slow down, and what does it weigh: the chain on boards up to 200,000 artifacts."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from bench.chain_types import add_chain
from bench.flock_chain import ARTIFACTS_PER_ITEM, check_finished, drive
from bench.machine import median
from bench.processes import memory_by_role
from flock_ray import Flock

BATCH = 100
BLOCK_ITEMS = 500
"""2,000 artifacts: small beside the board, large beside one batch."""
SMALL, LARGE = 1_000, 100_000


async def _block_cost_us(flock: Flock) -> float:
    """Return microseconds per artifact of three blocks in a row, their median."""
    costs = []
    for _ in range(3):
        seconds, workflows = await drive(flock, BLOCK_ITEMS, BATCH)
        costs.append(seconds / (BLOCK_ITEMS * ARTIFACTS_PER_ITEM) * 1e6)
    await check_finished(flock, workflows, BLOCK_ITEMS, BATCH)
    return median(costs)


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


async def _measure(*, quick: bool) -> dict[str, Any]:
    points = [SMALL, LARGE // 10] if quick else [SMALL, LARGE // 10, LARGE // 4, LARGE // 2, LARGE]
    curve: dict[str, float] = {}
    async with Flock(shards=1) as flock:
        add_chain(flock)
        await _warm(flock)
        memory = {str(SMALL): _memory()}
        board = SMALL
        for point in points:
            await _fill(flock, point - board)
            curve[str(point)] = await _block_cost_us(flock)
            board = max(point, board) + 3 * BLOCK_ITEMS * ARTIFACTS_PER_ITEM
        memory[str(board)] = _memory()
        largest = points[-1]
        await _fill(flock, largest)
        memory[str(board + largest)] = _memory()
    before, first, second = memory.values()
    per_100k = {
        role: {
            "first": _growth(before, first, role, board - SMALL),
            "second": _growth(first, second, role, largest),
        }
        for role in second
    }
    return {
        "us_per_artifact": curve,
        "artifacts": largest,
        # The smallest cost so far, not the first: a slow warm-up would hide growth.
        "ratio": curve[str(largest)] / min(curve.values()),
        "memory_bytes": memory,
        "growth_bytes_per_100k": per_100k,
    }


def _growth(before: dict[str, int], after: dict[str, int], role: str, artifacts: int) -> int:
    return round((after.get(role, 0) - before.get(role, 0)) / artifacts * 100_000)


def run(*, quick: bool) -> dict[str, Any]:
    """Measure the board on a cluster of its own."""
    return asyncio.run(_measure(quick=quick))
