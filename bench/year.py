"""A year with 100 daily schedules in virtual time: 36,500 fires in four zones, each of which runs an agent. No Ray."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from flock_ray import CronTrigger, TimerTick
from flock_ray.testing import VirtualFlock, run_virtual

SCHEDULES = 100
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata")
DAY_S = 86_400


async def _live(days: int) -> tuple[int, float]:
    """Return how often an agent was run, and the CPU seconds that it took."""
    runs = 0

    def count(tick: TimerTick) -> None:
        nonlocal runs
        runs += 1

    async with VirtualFlock(shards=2) as flock:
        flock.agent("counter").runs(count)
        for number in range(SCHEDULES):
            cron = f"{number % 60} {number % 24} * * *"
            flock.schedule("counter", trigger=CronTrigger(cron, tz=ZONES[number % 4]), name=f"s{number}")
        await flock.start()
        started = time.process_time()
        await asyncio.sleep(days * DAY_S)
        return runs, time.process_time() - started


def run(*, quick: bool) -> dict[str, Any]:
    """Let a year pass, or a month."""
    days = 30 if quick else 365
    runs, seconds = run_virtual(_live(days))
    if runs != SCHEDULES * days:
        raise RuntimeError(f"{runs} runs in {days} days of {SCHEDULES} daily schedules")
    return {"days": days, "runs": runs, "year_s": seconds * 365 / days}
