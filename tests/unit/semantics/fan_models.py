"""Data that is cut, worked on and put together again, and a board that does so."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from pydantic import BaseModel

from flock_ray import Gathered, WorkflowError, flock_type
from flock_ray.testing import VirtualFlock


@flock_type(name="fan.Data")
class Data(BaseModel):
    items: list[int]


@flock_type(name="fan.Chunk")
class Chunk(BaseModel):
    index: int
    items: list[int]


@flock_type(name="fan.Done")
class Done(BaseModel):
    index: int
    total: int


@flock_type(name="fan.Total")
class Total(BaseModel):
    indexes: list[int] = []
    total: int = 0
    missing: list[int] = []


@flock_type(name="fan.All")
class All(BaseModel):
    parts: list[Done] = []


def merge(parts: list[Done], about: Gathered) -> Total:
    return Total(
        indexes=[p.index for p in parts], total=sum(p.total for p in parts), missing=list(about.missing)
    )


def work(chunk: Chunk) -> Done:
    return Done(index=chunk.index, total=sum(chunk.items))


def declare(flock: VirtualFlock, fn: Any = work, *, size: int = 1, **options: Any) -> None:
    flock.agent("cut").consumes(Data).fan_out(Chunk, chunk_size=size)
    flock.agent("work").consumes(Chunk).publishes(Done).runs(fn).max_concurrency(4)
    flock.agent("sum").fan_in(Done, into=Total, **{"merge_fn": merge, **options})


async def run(flock: VirtualFlock, count: int = 10) -> list[Total]:
    await flock.publish(Data(items=list(range(count))), correlation_id="w")
    await flock.run_until_idle()
    return await flock.store.get_by_type(Total)


async def errors(flock: VirtualFlock) -> list[WorkflowError]:
    return await flock.store.get_by_type(WorkflowError)


async def events(flock: VirtualFlock, *family: str) -> list[Any]:
    """What happened, in order of time."""
    found = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            async for event in flock.events(*family):
                found.append(event)
    return sorted(found, key=lambda event: event.at)


async def kinds(flock: VirtualFlock, family: str) -> list[str]:
    return [event.kind for event in await events(flock, family)]
