"""The roadmap's circuit breaker, as its text has it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.testing import VirtualFlock, run_virtual


@flock_type(name="roadmap.Ping")
class Ping(BaseModel):
    n: int


@flock_type(name="roadmap.Pong")
class Pong(BaseModel):
    n: int


def test_cascading_failures_recover_by_themselves() -> None:
    async def main() -> tuple[list[float], list[str], int]:
        down, starts = True, list[float]()

        def service(ping: Ping) -> Pong:
            starts.append(asyncio.get_running_loop().time())
            if down:
                raise ConnectionError("down")
            return Pong(n=ping.n)

        async with VirtualFlock() as flock:
            # Circuit breaker per agent (not just global)
            agent = flock.agent("flaky_service").circuit_breaker(
                failure_threshold=5, recovery_timeout=timedelta(minutes=1), half_open_attempts=3
            )
            agent.consumes(Ping).publishes(Pong).runs(service)

            await flock.publish_many([Ping(n=n) for n in range(5)])
            await asyncio.sleep(1)
            await flock.publish_many([Ping(n=n) for n in range(5, 20)])
            await asyncio.sleep(50)
            while_open = len(starts)
            down = False
            await flock.run_until_idle(timeout=timedelta(minutes=5))

            states = []
            async for event in flock.events("breaker"):
                states.append(event.kind.removeprefix("breaker."))
                if event.kind == "breaker.closed":
                    break
            assert 5 == while_open
            return starts[5:], states, await flock.store.count(Pong)

    starts, states, answered = run_virtual(main())
    assert ["opened", "half_open", "closed"] == states
    assert 15 == answered  # the inputs that waited: none was lost, none failed
    assert 60 <= min(starts)
