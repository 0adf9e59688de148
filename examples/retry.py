"""Retries: a service that is down at first, a server that says when to come back, and a bug that stays one."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import Context, ExponentialBackoff, Flock, RateLimitError, WorkflowError, flock_type


@flock_type
class Parcel(BaseModel):
    address: str


@flock_type
class Label(BaseModel):
    text: str


def label(ctx: Context, parcel: Parcel) -> Label:
    if parcel.address == "nowhere":
        raise ValueError("no such address")
    if ctx.attempt == 1:
        raise ConnectionError("the printer does not answer")
    if ctx.attempt == 2:
        raise RateLimitError("one label at a time", retry_after_s=0.5)
    return Label(text=f"{parcel.address}, at attempt {ctx.attempt}")


async def main() -> None:
    async with Flock() as flock:
        flock.agent("printer").consumes(Parcel).publishes(Label).runs(label).retry(
            ExponentialBackoff(initial_delay=timedelta(milliseconds=100), max_attempts=5),
            on=[RateLimitError, ConnectionError],
        )
        await flock.publish_many([Parcel(address="Main Street 1"), Parcel(address="nowhere")])
        await flock.run_until_idle(timeout=60, include_timers=True)
        for made in await flock.store.get_by_type(Label):
            print("label:", made.text)
        for error in await flock.store.get_by_type(WorkflowError):
            print("failed:", error.error_message)


if __name__ == "__main__":
    asyncio.run(main())
