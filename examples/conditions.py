"""Conditions: `When` holds an agent back until its workflow is ripe, `Until` waits from outside."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from flock_ray import Flock, Until, When, flock_type


@flock_type
class Argument(BaseModel):
    side: str
    text: str


@flock_type
class Bell(BaseModel):
    rounds: int


@flock_type
class Verdict(BaseModel):
    rounds: int


def judge(bell: Bell) -> Verdict:
    return Verdict(rounds=bell.rounds)


async def main() -> None:
    async with Flock() as flock:
        enough = When.correlation(Argument).count_at_least(4)
        flock.agent("judge").consumes(Bell, activation=enough).publishes(Verdict).runs(judge)

        with flock.workflow("debate"):
            await flock.publish(Bell(rounds=2))
            for text in ("first", "second"):
                await flock.publish(Argument(side="pro", text=text))
                await flock.publish(Argument(side="contra", text=text))
                print("arguments:", await flock.store.count(Argument))

        done = await flock.run_until(
            Until.exists(Verdict, correlation_id="debate") & ~Until.workflow_error(), timeout=60
        )
        print("verdict:", done, (await flock.workflow_status("debate")).counts)


if __name__ == "__main__":
    asyncio.run(main())
