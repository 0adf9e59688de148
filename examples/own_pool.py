"""A pool of its own: processes for one heavy agent, from zero to two and back."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import Flock, flock_type


@flock_type
class Range(BaseModel):
    start: int
    stop: int


@flock_type
class PrimeCount(BaseModel):
    primes: int
    pid: int


def count_primes(work: Range) -> PrimeCount:
    def is_prime(n: int) -> bool:
        return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))

    return PrimeCount(primes=sum(map(is_prime, range(work.start, work.stop))), pid=os.getpid())


async def main() -> None:
    async with Flock() as flock:
        (
            flock.agent("primes")
            .consumes(Range)
            .publishes(PrimeCount)
            .runs(count_primes)
            .pool(min=0, max=2, num_cpus=0.5, idle_timeout=timedelta(seconds=2))
        )
        step = 5_000
        await flock.publish_many([Range(start=n, stop=n + step) for n in range(0, 20 * step, step)])
        await flock.run_until_idle(timeout=120)
        counts = await flock.store.get_by_type(PrimeCount)
        processes = len({c.pid for c in counts})
        print(sum(c.primes for c in counts), "primes below 100000, counted by", processes, "process(es)")


if __name__ == "__main__":
    asyncio.run(main())
