"""Streams of artifacts and events: cursors, waiting, gaps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel

from flock_ray import Artifact, Cursor, Gap, flock_type
from flock_ray.testing import VirtualFlock, run_virtual


@flock_type(name="streaming.Item")
class Item(BaseModel):
    n: int


@flock_type(name="streaming.Other")
class Other(BaseModel):
    n: int


async def take(stream: AsyncIterator[Any], count: int) -> list[Any]:
    found: list[Any] = []
    async for item in stream:
        found.append(item)
        if len(found) == count:
            break
    return found


def numbers(artifacts: list[Any]) -> list[int]:
    return [artifact.payload["n"] for artifact in artifacts]


def test_a_stream_follows_a_type_or_a_workflow_and_waits_for_more() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            of_type = asyncio.ensure_future(take(flock.stream(Item), 3))
            of_workflow = asyncio.ensure_future(take(flock.stream("w"), 2))
            await asyncio.sleep(5)
            await flock.publish_many([Item(n=1), Other(n=2)], correlation_id="w")
            await asyncio.sleep(5)
            await flock.publish(Item(n=3), correlation_id="x")
            await flock.publish(Item(n=4), correlation_id="y")
            assert sorted(numbers(await of_type)) == [1, 3, 4]
            assert numbers(await of_workflow) == [1, 2]

    run_virtual(main())


def test_a_kept_cursor_goes_on_behind_what_was_read() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            await flock.publish_many([Item(n=n) for n in range(5)])
            cursor = Cursor()
            assert numbers(await take(flock.stream(Item, after=cursor), 2)) == [0, 1]
            assert numbers(await take(flock.stream(Item, after=cursor), 3)) == [2, 3, 4]
            fresh = asyncio.ensure_future(take(flock.stream(Item, after=cursor), 1))
            await asyncio.sleep(5)
            await flock.publish(Item(n=5))
            assert numbers(await fresh) == [5]

    run_virtual(main())


def test_a_reader_slower_than_retention_gets_a_gap_and_then_what_is_left() -> None:
    async def main() -> None:
        async with VirtualFlock(max_artifacts=1000) as flock:
            await flock.publish(Item(n=0))
            cursor = Cursor()
            await take(flock.stream(Item, after=cursor), 1)
            await flock.publish_many([Item(n=1)])
            for n in range(2, 1003):
                await flock.publish(Item(n=n))
            assert await flock.store.count(Item) == 1000
            gap, *rest = await take(flock.stream(Item, after=cursor), 4)
            assert isinstance(gap, Gap)
            assert numbers(rest) == [3, 4, 5]
            assert all(isinstance(item, Artifact) for item in rest)

    run_virtual(main())


def test_events_come_by_kind_family_and_workflow_with_a_cursor() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Item).runs(lambda item: 1 / item.n)
            flock.agent("quiet").consumes(Other).runs(lambda other: None)
            await flock.publish_many([Item(n=0)], correlation_id="w")
            await flock.publish(Other(n=1), correlation_id="v")
            await flock.run_until_idle()
            cursor = Cursor()
            (failed,) = await take(flock.events("activation.failed", after=cursor), 1)
            assert (failed.kind, failed.agent, failed.correlation_id) == ("activation.failed", "a", "w")
            assert "ZeroDivisionError" in failed.detail
            (done,) = await take(flock.events("activation", correlation_id="v"), 1)
            assert (done.kind, done.agent) == ("activation.completed", "quiet")
            kinds = [event.kind for event in await take(flock.events(correlation_id="w"), 3)]
            assert set(kinds) == {"artifact.published", "activation.failed"}
            await flock.publish(Item(n=0), correlation_id="again")
            (later,) = await take(flock.events("activation.failed", after=cursor), 1)
            assert later.correlation_id == "again"

    run_virtual(main())


def test_a_reader_slower_than_the_event_log_gets_a_gap_event() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            await flock.publish(Item(n=0))
            assert flock.local is not None
            shard = flock.local.shards[0]
            assert shard is not None
            shard.core.events._limit = 10
            cursor = Cursor()
            await take(flock.events(after=cursor), 1)
            await flock.publish_many([Item(n=n) for n in range(50)])
            gap, following = await take(flock.events(after=cursor), 2)
            assert gap.kind == "gap" and "dropped" in gap.detail
            assert following.kind == "artifact.published"

    run_virtual(main())
