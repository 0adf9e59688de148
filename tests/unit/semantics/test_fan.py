"""Fan-outs and fan-ins on a board in virtual time, as users declare them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import (
    FanInStrategy,
    FanOutStrategy,
    FixedDelay,
    PrivateVisibility,
    flock_type,
)
from flock_ray.engines.fan import runners
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual
from flock_ray.verifying import verify_board
from tests.unit.semantics.fan_models import (
    All,
    Chunk,
    Data,
    Done,
    Total,
    declare,
    errors,
    events,
    kinds,
    merge,
    run,
    work,
)


def test_results_are_merged_in_the_order_of_the_chunks_whatever_took_longest() -> None:
    async def slow(chunk: Chunk) -> Done:
        await asyncio.sleep(10 - chunk.index)
        return work(chunk)

    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            declare(flock, slow)
            assert await run(flock) == [Total(indexes=list(range(10)), total=45)]

    run_virtual(main())


def test_an_empty_input_has_an_empty_result() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            assert await run(flock, 0) == [Total()]

    run_virtual(main())


def fail_on(*indexes: int) -> Any:
    def fn(chunk: Chunk) -> Done | None:
        if chunk.index in indexes:
            raise ValueError("bad luck")
        return None if chunk.index == 9 else work(chunk)

    return fn


def test_a_failed_and_a_dropped_chunk_fail_the_fan_in_and_are_named() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            declare(flock, fail_on(3))
            assert await run(flock) == []
            found = {error.failed_agent: error for error in await errors(flock)}
            assert set(found) == {"work", "sum"}
            assert found["sum"].error_type == "FanInIncompleteError"
            assert "8 of 10 chunks; missing 3, 9 (1 failed, 1 dropped)" in found["sum"].error_message
            assert await kinds(flock, "fan_in") == ["fan_in.failed"]
            assert (await flock.workflow_status("w")).state != "running"

    run_virtual(main())


@pytest.mark.parametrize("options", [{"on_failure": "partial"}, {"min_fraction": 0.8}])
def test_a_partial_result_knows_what_is_missing(options: dict[str, Any]) -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            declare(flock, fail_on(3), **options)
            assert await run(flock) == [Total(indexes=[0, 1, 2, 4, 5, 6, 7, 8], total=33, missing=[3, 9])]
            assert await kinds(flock, "fan_in") == ["fan_in.partial", "fan_in.fired"]

    run_virtual(main())


def test_a_chunk_that_is_tried_again_is_not_missing() -> None:
    tried: list[int] = []

    def fn(chunk: Chunk) -> Done:
        tried.append(chunk.index)
        if tried.count(chunk.index) < 3:
            raise ConnectionError("not yet")
        return work(chunk)

    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            declare(flock, fn)
            flock.get_agent("work").retry(FixedDelay(timedelta(minutes=1), max_attempts=3))
            assert await run(flock) == [Total(indexes=list(range(10)), total=45)]

    run_virtual(main())


def test_a_redriven_dead_letter_completes_a_fan_in_that_waits() -> None:
    broken = {2, 7}

    def fn(chunk: Chunk) -> Done:
        if chunk.index in broken:
            raise ValueError("bad luck")
        return work(chunk)

    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            declare(flock, fn, on_failure="wait")
            flock.get_agent("work").retry(max_attempts=1, dead_letter="failed")
            assert await run(flock) == []
            assert await kinds(flock, "fan_in") == ["fan_in.waiting"]
            broken.clear()
            await flock.dead_letters.redrive_all(queue="failed")
            await flock.run_until_idle()
            assert await flock.store.get_by_type(Total) == [Total(indexes=list(range(10)), total=45)]

    run_virtual(main())


def test_a_fan_in_that_is_late_takes_what_is_there_and_withdraws_the_rest() -> None:
    ended: list[int] = []

    async def fn(chunk: Chunk) -> Done:
        await asyncio.sleep(3600 if chunk.index == 5 else 1)
        ended.append(chunk.index)
        return work(chunk)

    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            declare(flock, fn, on_failure="partial", timeout=timedelta(seconds=60))
            started = asyncio.get_running_loop().time()
            await flock.publish(Data(items=list(range(10))), correlation_id="w")
            await flock.run_until_idle()
            assert asyncio.get_running_loop().time() - started < 120
            [total] = await flock.store.get_by_type(Total)
            assert total.missing == [5]
            assert sorted(ended) == [0, 1, 2, 3, 4, 6, 7, 8, 9]

    run_virtual(main())


def test_the_first_success_ends_the_others() -> None:
    ended: list[int] = []

    async def fn(chunk: Chunk) -> Done:
        await asyncio.sleep(100 + chunk.index if chunk.index != 2 else 5)
        ended.append(chunk.index)
        return work(chunk)

    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            flock.agent("cut").consumes(Data).fan_out(Chunk, strategy=FanOutStrategy.BY_COUNT, count=4)
            flock.agent("work").consumes(Chunk).publishes(Done).runs(fn).max_concurrency(10)
            flock.agent("first").fan_in(
                Done,
                into=Total,
                strategy=FanInStrategy.FIRST_SUCCESS,
                merge_fn=lambda d: Total(indexes=[d[0].index]),
            )
            assert await run(flock, 8) == [Total(indexes=[2])]
            assert ended == [2]

    run_virtual(main())


def test_what_is_collected_needs_no_function() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("cut").consumes(Data).fan_out(Chunk, chunk_size=2)
            flock.agent("work").consumes(Chunk).publishes(Done).runs(work)
            flock.agent("all").fan_in(Done, into=All, strategy=FanInStrategy.COLLECT)
            await run(flock, 5)
            [found] = await flock.store.get_by_type(All)
            assert [(p.index, p.total) for p in found.parts] == [(0, 1), (1, 5), (2, 4)]

    run_virtual(main())


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9, 10, 28])
def test_a_reduce_is_a_tree_in_order(count: int) -> None:
    calls: list[int] = []

    def leaf(parts: list[Done]) -> Total:
        calls.append(len(parts))
        return Total(indexes=[p.index for p in parts], total=sum(p.total for p in parts))

    def combine(parts: list[Total]) -> Total:
        calls.append(len(parts))
        return Total(indexes=[i for p in parts for i in p.indexes], total=sum(p.total for p in parts))

    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            declare(flock, strategy=FanInStrategy.REDUCE, merge_fn=leaf, combine=combine, width=3)
            assert await run(flock, count) == [Total(indexes=list(range(count)), total=sum(range(count)))]
            assert max(calls) <= 3

    run_virtual(main())


def test_a_reduce_of_one_type_needs_one_function() -> None:
    def add(parts: list[Total]) -> Total:
        return Total(indexes=[i for p in parts for i in p.indexes])

    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            flock.agent("cut").consumes(Data).fan_out(Chunk, chunk_size=1)
            # Not Total itself: the result would be consumed like what it is made of.
            flock.agent("work").consumes(Chunk).publishes(Part).runs(lambda c: Part(indexes=[c.index]))
            flock.agent("sum").fan_in(
                Part, into=Total, strategy=FanInStrategy.REDUCE, merge_fn=add, combine=add, width=4
            )
            assert await run(flock, 21) == [Total(indexes=list(range(21)))]

    run_virtual(main())


@flock_type(name="fan.Part")
class Part(Total):
    pass


@flock_type(name="fan.Leaf")
class Leaf(BaseModel):
    index: int
    items: list[int]


@flock_type(name="fan.LeafDone")
class LeafDone(BaseModel):
    total: int


def test_a_fan_out_within_a_fan_out_is_closed_level_by_level() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=4) as flock:
            flock.agent("cut").consumes(Data).fan_out(Chunk, chunk_size=4)
            flock.agent("cut-again").consumes(Chunk).fan_out(Leaf, chunk_size=1)
            flock.agent("work").consumes(Leaf).publishes(LeafDone).runs(
                lambda leaf: LeafDone(total=sum(leaf.items))
            )
            flock.agent("close-inner").fan_in(
                LeafDone, into=Done, merge_fn=lambda parts: Done(index=0, total=sum(p.total for p in parts))
            )
            flock.agent("close-outer").fan_in(Done, into=Total, merge_fn=merge)
            assert await run(flock, 18) == [Total(indexes=[0] * 5, total=sum(range(18)))]
            totals = [d.total for d in await flock.store.get_by_type(Done)]
            assert sorted(totals) == sorted(sum(range(n, min(n + 4, 18))) for n in range(0, 18, 4))

    run_virtual(main())


@flock_type(name="fan.Left")
class Left(BaseModel):
    index: int


@flock_type(name="fan.Right")
class Right(BaseModel):
    index: int


def test_an_and_inside_a_fan_out_meets_only_what_is_of_the_same_chunk() -> None:
    async def slow(chunk: Chunk) -> Left:
        await asyncio.sleep(10 - chunk.index)
        return Left(index=chunk.index)

    def both(left: Left, right: Right) -> Done:
        assert left.index == right.index
        return Done(index=left.index, total=1)

    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            flock.agent("cut").consumes(Data).fan_out(Chunk, chunk_size=1)
            flock.agent("left").consumes(Chunk).publishes(Left).runs(slow).max_concurrency(20)
            flock.agent("right").consumes(Chunk).publishes(Right).runs(lambda c: Right(index=c.index))
            flock.agent("both").consumes(Left, Right).publishes(Done).runs(both)
            flock.agent("sum").fan_in(Done, into=Total, merge_fn=merge)
            assert await run(flock, 8) == [Total(indexes=list(range(8)), total=8)]

    run_virtual(main())


def test_a_large_split_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "MAX_PART_CHUNKS", 7)

    async def main() -> None:
        async with VirtualFlock(shards=3, persistence=MemoryPersistence()) as flock:
            declare(flock)
            assert await run(flock, 100) == [Total(indexes=list(range(100)), total=sum(range(100)))]
            assert len(await flock.store.get_by_type(Chunk)) == 100

    run_virtual(main())


@pytest.mark.parametrize("count", [0, 5, 23])
def test_a_kept_board_with_fan_outs_is_verified(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "MAX_PART_CHUNKS", 7)
    persistence = MemoryPersistence()

    def add(parts: list[Done] | list[Total]) -> Total:
        return Total(total=sum(part.total for part in parts))

    async def main() -> None:
        async with VirtualFlock(shards=3, persistence=persistence, namespace="default") as flock:
            declare(flock)
            flock.agent("tree").fan_in(
                Done, into=Total, strategy=FanInStrategy.REDUCE, merge_fn=add, combine=add, width=3
            )
            await run(flock, count)
        verdict = await verify_board(persistence, "default")
        assert verdict.violations == []
        assert verdict.artifacts > 2 * count

    run_virtual(main())


def test_a_split_that_fails_on_the_way_fails_the_fan_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "MAX_PART_CHUNKS", 4)

    def split(data: Data) -> Any:
        for index in data.items:
            if index == 9:
                raise ValueError("torn")
            yield Chunk(index=index, items=[index])

    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            flock.agent("cut").consumes(Data).fan_out(Chunk, strategy=FanOutStrategy.CUSTOM, split=split)
            flock.agent("work").consumes(Chunk).publishes(Done).runs(work)
            flock.agent("sum").fan_in(Done, into=Total, merge_fn=merge)
            assert await run(flock, 12) == []
            found = {error.failed_agent: error.error_message for error in await errors(flock)}
            assert "torn" in found["cut"]
            assert "the split failed: ValueError: torn" in found["sum"]

    run_virtual(main())


def test_the_result_goes_where_the_input_was_and_is_seen_by_whom_it_was() -> None:
    seen = PrivateVisibility(agents=frozenset({"cut", "work", "sum"}))

    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            declare(flock)
            await flock.publish(
                Data(items=[1, 2, 3]), partition_key="here", tags=["blue"], visibility=seen, priority=2
            )
            await flock.run_until_idle()
            [artifact] = [a for a in await flock.store.list() if a.type == "fan.Total"]
            assert artifact.partition_key == "here"
            assert artifact.tags == {"blue"}
            assert artifact.visibility == seen
            assert len(artifact.parents) == 3

    run_virtual(main())


def test_a_cancelled_fan_out_stops_everywhere() -> None:
    started: list[int] = []

    async def fn(chunk: Chunk) -> Done:
        started.append(chunk.index)
        await asyncio.sleep(1000)
        return work(chunk)

    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            declare(flock, fn)
            await flock.publish(Data(items=list(range(50))), correlation_id="w")
            await asyncio.sleep(5)
            await flock.cancel("w")
            await flock.run_until_idle()
            assert len(started) < 50
            assert await flock.store.get_by_type(Total) == []
            assert await flock.store.get_by_type(Done) == []

    run_virtual(main())


def test_an_artifact_that_no_fan_out_made_is_told_of() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            await flock.publish(Done(index=0, total=1))
            await flock.run_until_idle()
            [event] = await events(flock, "fan_in.stray")
            assert event.detail == "fan.Done descends from no open fan-out of cut"

    run_virtual(main())


def test_a_merge_that_fails_is_a_dead_letter_that_can_be_redriven() -> None:
    broken = [True]

    def fragile(parts: list[Done]) -> Total:
        if broken:
            raise ValueError("bad luck")
        return Total(indexes=[p.index for p in parts])

    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            declare(flock, merge_fn=fragile)
            flock.get_agent("sum").retry(max_attempts=1, dead_letter="failed")
            assert await run(flock, 4) == []
            broken.clear()
            await flock.dead_letters.redrive_all(queue="failed")
            await flock.run_until_idle()
            assert await flock.store.get_by_type(Total) == [Total(indexes=[0, 1, 2, 3])]

    run_virtual(main())
