"""Visibility: who may see what. An agent is only ever given what it is allowed to see."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from flock_ray import Flock, LabelledVisibility, flock_type


@flock_type
class Report(BaseModel):
    text: str


@flock_type
class Memo(BaseModel):
    text: str


def summarise(report: Report) -> Memo:
    return Memo(text=f"summary of {report.text!r}")


async def main() -> None:
    async with Flock() as flock:
        cleared = flock.agent("analyst").labels("clearance:secret").consumes(Report)
        cleared.publishes(Memo).only_for("director").runs(summarise)
        flock.agent("intern").consumes(Report).publishes(Memo).runs(summarise)

        public = await flock.publish(Report(text="the canteen is closed"))
        secret = await flock.publish(
            Report(text="we sell the company"),
            visibility=LabelledVisibility(required_labels=frozenset({"clearance:secret"})),
        )
        await flock.run_until_idle(timeout=60)

        for report in (public, secret):
            readers = [a.produced_by for a in await flock.store.list(correlation_id=report.correlation_id)]
            print(report.payload["text"], "->", sorted(name for name in readers if name != "external"))
        print(await flock.why(secret))


if __name__ == "__main__":
    asyncio.run(main())
