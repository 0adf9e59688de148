"""A board that is closed, or dies, and is opened again on what it stored."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import BatchSpec, JoinSpec, Until, When, flock_type
from flock_ray.adapters.memory import MemoryStore
from flock_ray.core.rows import StoreBatch
from flock_ray.errors import (
    ConfigurationError,
    StaleEpochError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual


@flock_type(name="recovery.Left")
class Left(BaseModel):
    n: int = 0


@flock_type(name="recovery.Right")
class Right(BaseModel):
    n: int = 0


@flock_type(name="recovery.Both")
class Both(BaseModel):
    n: int = 0


Declare = Callable[[VirtualFlock], Any]


@contextlib.asynccontextmanager
async def opened(kept: MemoryPersistence, declare: Declare, **options: Any) -> AsyncIterator[VirtualFlock]:
    """A flock whose process dies at the end: nothing is flushed or said goodbye to."""
    flock = VirtualFlock(persistence=kept, **options)
    declare(flock)
    await flock.start()
    yield flock
    assert flock.local is not None
    flock._opened.board.let_go()  # type: ignore[union-attr]  # it was opened
    await flock.local.close()


def gate(flock: VirtualFlock) -> None:
    flock.agent("both").consumes(Left, Right).publishes(Both).runs(
        lambda left, right: Both(n=left.n + right.n)
    )


def join(flock: VirtualFlock) -> None:
    spec = JoinSpec(by=lambda x: x.n, within=timedelta(minutes=5))
    flock.agent("both").consumes(Left, Right, join=spec).publishes(Both).runs(
        lambda left, right: Both(n=left.n)
    )


def batch(flock: VirtualFlock) -> None:
    spec = BatchSpec(size=2)
    flock.agent("both").consumes(Left, batch=spec).publishes(Both).runs(lambda lefts: Both(n=len(lefts)))


def condition(flock: VirtualFlock) -> None:
    flock.agent("both").consumes(Left, activation=When.correlation(Right).exists()).publishes(Both).runs(
        lambda left: Both(n=left.n)
    )


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("declare", "second"), [(gate, Right), (join, Right), (batch, Left), (condition, Right)]
)
def test_what_waits_for_something_else_still_does_after_a_restart(
    declare: Declare, second: type[BaseModel], shards: int
) -> None:
    async def scenario() -> list[Both]:
        kept = MemoryPersistence()
        async with opened(kept, declare, shards=shards) as flock:
            await flock.publish(Left(n=1), correlation_id="w")
            await flock.run_until_idle()
            assert await flock.store.count(Both) == 0
        async with opened(kept, declare) as flock:
            await flock.publish(second(n=1), correlation_id="w")
            await flock.run_until_idle()
            return await flock.store.get_by_type(Both)

    assert len(run_virtual(scenario())) == 1


def test_a_window_ends_at_its_time_although_the_board_was_away() -> None:
    async def scenario() -> list[str]:
        kept = MemoryPersistence()
        async with opened(kept, join) as flock:
            await flock.publish(Left(n=1), correlation_id="w")
        async with opened(kept, join) as flock:
            await asyncio.sleep(301)
            status = await flock.workflow_status("w")
            assert status.state == "completed"
            return [e.kind async for e in _events(flock)]

    assert "gate.expired" in run_virtual(scenario())


async def _events(flock: VirtualFlock) -> AsyncIterator[Any]:
    board = await flock._ready_board()
    stream = board.event_stream({}, kinds=[], workflow=None)
    with contextlib.suppress(TimeoutError):
        while True:
            yield await asyncio.wait_for(anext(stream), 1)


def test_delays_go_on() -> None:
    async def scenario() -> tuple[int, int]:
        kept = MemoryPersistence()

        def declare(flock: VirtualFlock) -> None:
            flock.agent("one").consumes(Left).publishes(Both).runs(lambda left: Both(n=left.n))

        async with opened(kept, declare) as flock:
            await flock.publish(Left(n=1), delay=timedelta(days=30))
        async with opened(kept, declare) as flock:
            await asyncio.sleep(29 * 86400)
            before = await flock.store.count(Both)
            await asyncio.sleep(2 * 86400)
            return before, await flock.store.count(Both)

    assert run_virtual(scenario()) == (0, 1)


def test_work_that_was_running_runs_again_and_counts_once() -> None:
    runs: list[int] = []

    async def scenario() -> list[Both]:
        kept = MemoryPersistence()

        def declare(flock: VirtualFlock) -> None:
            async def slow(left: Left) -> Both:
                runs.append(left.n)
                await asyncio.sleep(10)
                return Both(n=left.n)

            flock.agent("slow").consumes(Left).publishes(Both).runs(slow)

        async with opened(kept, declare) as flock:
            await flock.publish_many([Left(n=1), Left(n=2)])
            await asyncio.sleep(5)
        async with opened(kept, declare) as flock:
            await flock.run_until_idle()
            return await flock.store.get_by_type(Both)

    assert sorted(b.n for b in run_virtual(scenario())) == [1, 2]
    assert sorted(runs) == [1, 1, 2, 2]


def work(flock: VirtualFlock) -> None:
    flock.agent("one").consumes(Left).publishes(Both).runs(lambda left: Both(n=left.n))


def test_what_has_left_memory_is_answered_from_the_store() -> None:
    async def scenario() -> None:
        kept = MemoryPersistence()
        async with opened(kept, work, shards=2) as flock:
            first = await flock.publish(Left(n=1), correlation_id="w")
            await flock.publish_many([Left(n=n) for n in range(2, 30)])
            await flock.run_until_idle()
        async with opened(kept, work) as flock:
            assert flock.local is not None
            assert sum(len(shard.core.index) for shard in flock.local.shards if shard) == 0
            # by id, type, workflow, count, condition, status, stream and reason
            again = await flock.store.get(first.id)
            assert again == first
            assert await flock.store.count(Both) == 29
            assert len(await flock.store.get_by_type(Both)) == 29
            assert [a.type for a in await flock.store.list(correlation_id="w")] == [
                "recovery.Left",
                "recovery.Both",
            ]
            assert await flock.run_until(Until.artifact_count(Both).at_least(29), timeout=1)
            assert (await flock.workflow_status("w")).artifact_count == 2
            seen = [artifact async for artifact in _first(flock, 58)]
            assert len({a.id for a in seen}) == 58
            assert "recovery.Both" in str(await flock.why(first))
            # and counts go on from there
            await flock.publish(Left(n=99), correlation_id="w")
            await flock.run_until_idle()
            assert await flock.store.count(Both) == 30
            assert (await flock.workflow_status("w")).artifact_count == 4

    run_virtual(scenario())


async def _first(flock: VirtualFlock, count: int) -> AsyncIterator[Any]:
    stream = flock.stream()
    for _ in range(count):
        yield await asyncio.wait_for(anext(stream), 10)


def test_a_repeated_publish_finds_what_was_published_before_the_restart() -> None:
    async def scenario() -> None:
        kept = MemoryPersistence()
        async with opened(kept, work) as flock:
            first = await flock.publish(Left(n=1), idempotency_key="k")
            await flock.run_until_idle()
        async with opened(kept, work) as flock:
            again = await flock.publish(Left(n=2), idempotency_key="k")
            await flock.run_until_idle()
            assert (again.id, again.payload) == (first.id, {"n": 1})
            assert await flock.store.count(Both) == 1

    run_virtual(scenario())


def test_a_cancelled_workflow_stays_cancelled() -> None:
    async def scenario() -> int:
        kept = MemoryPersistence()
        async with opened(kept, work) as flock:
            await flock.publish(Left(n=1), correlation_id="w")
            await flock.run_until_idle()
            await flock.cancel("w")
        async with opened(kept, work) as flock:
            await flock.publish(Left(n=2), correlation_id="w")
            await flock.run_until_idle()
            return await flock.store.count(Both)

    assert run_virtual(scenario()) == 1


def test_open_work_of_an_agent_that_nobody_deploys_waits_for_it() -> None:
    async def scenario() -> tuple[int, int]:
        kept = MemoryPersistence()

        def slow(flock: VirtualFlock) -> None:
            async def run(left: Left) -> Both:
                await asyncio.sleep(100)
                return Both(n=left.n)

            flock.agent("one").consumes(Left).publishes(Both).runs(run)

        async with opened(kept, slow) as flock:
            await flock.publish(Left(n=1))
        async with opened(
            kept, lambda flock: flock.agent("other").consumes(Both).runs(lambda b: None)
        ) as flock:
            await asyncio.sleep(100)
            before = await flock.store.count(Both)
            slow(flock)
            await flock.start()
            await flock.run_until_idle()
            return before, await flock.store.count(Both)

    assert run_virtual(scenario()) == (0, 1)


def test_a_board_opened_elsewhere_stops_this_one() -> None:
    async def scenario() -> None:
        kept = MemoryPersistence()
        async with opened(kept, work) as first:
            await first.publish(Left(n=1))
            async with opened(kept, work) as second:
                await second.publish(Left(n=2))
                with pytest.raises(StaleEpochError):
                    await first.publish(Left(n=3))
                await second.run_until_idle()
                assert await second.store.count(Left) == 2

    run_virtual(scenario())


def test_another_number_of_shards_is_refused() -> None:
    async def scenario() -> None:
        kept = MemoryPersistence()
        async with opened(kept, work, shards=2):
            pass
        with pytest.raises(ConfigurationError, match="2 shards, not 3"):
            await VirtualFlock(persistence=kept, shards=3).start()

    run_virtual(scenario())


def test_a_damaged_journal_is_refused_and_left_alone() -> None:
    async def scenario() -> None:
        kept = MemoryPersistence()
        async with opened(kept, work) as flock:
            await flock.publish(Left(n=1))
        (disk,) = kept.boards["default"].values()
        lsn = max(disk.frames)
        disk.frames[lsn] = damaged = disk.frames[lsn][:-3]
        broken = VirtualFlock(persistence=kept)
        with pytest.raises(StoreCorruptError):
            await broken.publish(Left(n=2))
        assert disk.frames[lsn] == damaged

    run_virtual(scenario())


class FlakyPersistence(MemoryPersistence):
    """A store that can be switched off."""

    away = False

    def store(self, board: str, shard: int, slots: Any) -> MemoryStore:
        made = super().store(board, shard, slots)
        append = made.append

        async def maybe(batch: StoreBatch) -> None:
            if self.away:
                raise StoreUnavailableError
            await append(batch)

        made.append = maybe  # type: ignore[method-assign]  # that is the point
        return made


def test_while_the_store_is_away_publishers_are_told_and_results_are_kept() -> None:
    async def scenario() -> None:
        kept = FlakyPersistence()

        def slow(flock: VirtualFlock) -> None:
            async def run(left: Left) -> Both:
                await asyncio.sleep(5)
                return Both(n=left.n)

            flock.agent("one").consumes(Left).publishes(Both).runs(run)

        async with opened(kept, slow, publish_timeout=timedelta(seconds=3)) as flock:
            # Given an agent at work when the store goes away
            await flock.publish(Left(n=1))
            await asyncio.sleep(1)
            kept.away = True
            # Then publishers wait no longer than they said
            for _ in range(2):
                with pytest.raises(StoreUnavailableError):
                    await flock.publish(Left(n=2), idempotency_key="second")
            # When it is back after the agent has finished
            await asyncio.sleep(10)
            kept.away = False
            await flock.publish(Left(n=2), idempotency_key="second")
            await flock.run_until_idle()
            # Then nothing is missing and nothing is there twice
            assert sorted(b.n for b in await flock.store.get_by_type(Both)) == [1, 2]
            assert await flock.store.count(Left) == 2

    run_virtual(scenario())


def test_a_defect_in_a_batch_stops_the_shard_and_says_so() -> None:
    async def scenario() -> None:
        async with opened(MemoryPersistence(), work) as flock:
            assert flock.local is not None
            shard: Any = flock.local.shards[0]

            def tick(now_us: int) -> None:
                raise ZeroDivisionError("a defect")

            shard.core.tick, shard.core.next_timer_us = tick, lambda: 1
            for _ in range(2):
                with pytest.raises(StoreError, match="ZeroDivisionError: a defect"):
                    await flock.publish(Left(n=1))

    run_virtual(scenario())


def test_timers_go_on_when_the_wall_clock_goes_back() -> None:
    async def scenario() -> int:
        async with opened(MemoryPersistence(), work) as flock:
            assert flock.local is not None
            shard: Any = flock.local.shards[0]
            await flock.publish(Left(n=1), delay=timedelta(seconds=5))
            now_us = shard._clock.now_us

            class Behind:
                def now_us(self) -> int:
                    return int(now_us()) - 3_600_000_000

            shard._clock = Behind()
            await asyncio.sleep(10)
            return await flock.store.count(Both)

    assert run_virtual(scenario()) == 1


def test_a_stream_shows_what_becomes_durable_while_the_store_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It went on from where the feed ended when the store had answered: what came meanwhile was skipped for good.
    read = MemoryStore.read

    async def slow(self: MemoryStore, *question: Any) -> Any:
        found = await read(self, *question)
        await asyncio.sleep(1)
        return found

    kept = MemoryPersistence()

    async def scenario() -> list[int]:
        async with VirtualFlock(persistence=kept) as flock:
            await flock.publish(Left(n=1), correlation_id="earlier")
        monkeypatch.setattr(MemoryStore, "read", slow)
        async with VirtualFlock(persistence=kept) as flock:
            await flock.start()

            async def first() -> int:
                async for artifact in flock.stream("wanted"):
                    return int(artifact.payload["n"])  # type: ignore[union-attr]  # no gap on a durable board
                return 0

            reader = asyncio.ensure_future(first())
            await asyncio.sleep(0.5)
            await flock.publish(Left(n=2), correlation_id="wanted")
            async with asyncio.timeout(5):
                return [await reader]

    assert [2] == run_virtual(scenario())
