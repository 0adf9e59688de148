"""Batch: 25 readings a call, and the rest when nothing more comes for a second."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import BatchSpec, Flock, flock_type


@flock_type
class Reading(BaseModel):
    celsius: float


@flock_type
class Summary(BaseModel):
    count: int
    mean: float


def summarise(readings: list[Reading]) -> Summary:
    return Summary(count=len(readings), mean=sum(r.celsius for r in readings) / len(readings))


async def main() -> None:
    async with Flock() as flock:
        (
            flock.agent("statistician")
            .consumes(Reading, batch=BatchSpec(size=25, timeout=timedelta(seconds=1)))
            .publishes(Summary)
            .runs(summarise)
        )
        await flock.publish_many([Reading(celsius=20 + n % 5) for n in range(60)])
        await flock.run_until_idle(timeout=60, include_timers=True)

        for summary in await flock.store.get_by_type(Summary):
            print(f"{summary.count} readings, mean {summary.mean:.1f}")


if __name__ == "__main__":
    asyncio.run(main())
