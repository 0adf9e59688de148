"""Runs and workflows that are not done in time, in virtual time and through the death of the board."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from flock_ray import DeadlineMissed, Flock, PrivateVisibility, flock_type, now
from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.core.events import Event
from flock_ray.core.retries import FixedDelay
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@flock_type(name="DeadlineTestJob")
class Job(BaseModel):
    s: float = 0.0
    """How long it takes."""


@flock_type(name="DeadlineTestResult")
class Result(BaseModel):
    s: float


async def work(job: Job) -> Result:
    await asyncio.sleep(job.s)
    return Result(s=job.s)


async def events(flock: Flock, *kinds: str) -> list[Event]:
    blobs = await (await flock._ready_board()).each("event_list", 0, list(kinds), None, 10_000, 0)
    return [event for blob in blobs for event in msgspec.msgpack.decode(blob[0], type=list[Event])]


def collect(flock: Flock) -> list[DeadlineMissed]:
    missed: list[DeadlineMissed] = []
    flock.agent("watch").consumes(DeadlineMissed).runs(missed.append)
    return missed


def test_a_run_that_is_not_done_in_time_is_said_to_be_late_once() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            flock.agent("worker").consumes(Job).publishes(Result).runs(work).deadline(MINUTE)
            missed = collect(flock)
            begin = now()
            late = await flock.publish(Job(s=300))
            await flock.publish(Job(s=30))
            await asyncio.sleep(600)
            [event] = await events(flock, "deadline.missed")
            assert (event.agent, event.correlation_id) == ("worker", late.correlation_id)
            assert event.artifact_ids == (late.id.bytes,)
            [one] = missed
            assert (one.kind, one.agent, one.correlation_id) == ("run", "worker", late.correlation_id)
            assert MINUTE <= one.due - begin <= MINUTE + timedelta(seconds=1)
            assert one.missed_at - one.due < timedelta(seconds=1)
            assert await flock.store.count(Result) == 2  # nothing was stopped

    run_virtual(main())


def test_waiting_and_retries_count() -> None:
    attempts = 0

    def flaky(job: Job) -> Result:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionError
        return Result(s=0)

    async def main() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("worker").consumes(Job).publishes(Result).runs(flaky).deadline(MINUTE)
            agent.retry(FixedDelay(timedelta(seconds=40)), max_attempts=3)
            await flock.publish(Job())
            await flock.run_until_idle(include_timers=True)
            assert len(await events(flock, "deadline.missed")) == 1
            assert await flock.store.count(Result) == 1

    run_virtual(main())


def test_an_agent_with_limits_has_deadlines_in_its_home_slot() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=4) as flock:
            flock.agent("worker").consumes(Job).publishes(Result).runs(work).deadline(MINUTE).concurrency(1)
            await flock.publish_many([Job(s=25) for _ in range(4)])
            await flock.run_until_idle(include_timers=True)
            assert len(await events(flock, "deadline.missed")) == 2

    run_virtual(main())


def test_without_a_consumer_there_is_only_the_event() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("worker").consumes(Job).publishes(Result).runs(work).deadline(MINUTE)
            await flock.publish(Job(s=300), deadline=MINUTE)
            await flock.run_until_idle()
            await asyncio.sleep(600)
            assert [e.kind for e in await events(flock, "deadline", "workflow.late")] == [
                "deadline.missed",
                "workflow.late",
            ]
            assert await flock.store.count(DeadlineMissed) == 0

    run_virtual(main())


def test_a_workflow_that_is_not_done_in_time_is_said_to_be_late_once() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            flock.agent("worker").consumes(Job).publishes(Result).runs(work)
            missed = collect(flock)
            with flock.workflow("slow", deadline=HOUR):
                await flock.publish(Job(s=7200))
            await flock.publish(Job(s=30), correlation_id="fast", deadline=HOUR)
            await asyncio.sleep(3 * 3600)
            [event] = await events(flock, "workflow.late")
            assert event.correlation_id == "slow" and "1 open" in event.detail
            assert [(m.kind, m.correlation_id, m.open) for m in missed] == [("workflow", "slow", 1)]

    run_virtual(main())


def test_what_waits_or_is_due_later_is_not_done() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("pair").consumes(Job, Result).runs(lambda job, result: None)
            flock.agent("later").consumes(Result).runs(lambda result: None)
            await flock.publish(Job(), correlation_id="waits", deadline=HOUR)
            await flock.publish(Result(s=1), correlation_id="delayed", delay=2 * HOUR, deadline=HOUR)
            await asyncio.sleep(4 * 3600)
            late = {e.correlation_id: e.detail for e in await events(flock, "workflow.late")}
            assert late.keys() == {"waits", "delayed"}
            assert "1 waiting" in late["waits"] and "2 delayed" in late["delayed"]

    run_virtual(main())


def test_the_soonest_deadline_of_a_workflow_counts_and_a_met_one_is_over() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("worker").consumes(Job).publishes(Result).runs(work)
            begin = now()
            with flock.workflow("w", deadline=2 * HOUR):
                await flock.publish(Job(s=7200))
                await flock.publish(Job(s=1), deadline=HOUR)
                await flock.publish(Job(s=1), correlation_id="other")  # is no part of it
            await flock.publish(Job(s=1), correlation_id="met", deadline=HOUR)
            await asyncio.sleep(60)
            await flock.publish(Job(s=7200), correlation_id="met")
            await asyncio.sleep(4 * 3600)
            [event] = await events(flock, "workflow.late")
            assert event.correlation_id == "w"
            assert timedelta(0) <= now() - begin - 4 * HOUR - MINUTE < MINUTE
            assert event.at_us // 3_600_000_000 - int(begin.timestamp() // 3600) == 1

    run_virtual(main())


def test_a_cancelled_workflow_misses_nothing() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("worker").consumes(Job).publishes(Result).runs(work).deadline(2 * HOUR)
            await flock.publish(Job(s=7200), correlation_id="w", deadline=HOUR)
            await flock.cancel("w")
            await asyncio.sleep(4 * 3600)
            assert await events(flock, "workflow.late", "deadline.missed") == []

    run_virtual(main())


@pytest.mark.parametrize("shards", [1, 3])
def test_a_deadline_that_passes_while_the_board_is_dead_is_missed_once(shards: int) -> None:
    kept = MemoryPersistence()
    missed: list[DeadlineMissed] = []

    def declared(seconds: float) -> VirtualFlock:
        flock = VirtualFlock(persistence=kept, shards=shards)

        async def slowly(job: Job) -> Result:
            await asyncio.sleep(seconds)
            return Result(s=job.s)

        flock.agent("worker").consumes(Job).publishes(Result).runs(slowly).deadline(MINUTE)
        flock.agent("watch").consumes(DeadlineMissed).runs(missed.append)
        return flock

    async def main() -> None:
        seen: list[Any] = []
        for wait in (30, 120, 1):  # the deadline of both passes between the first and the second
            async with declared(10_000 if wait != 1 else 0.1) as flock:
                if wait == 30:
                    await flock.publish(Job(), correlation_id="w", deadline=MINUTE)
                await asyncio.sleep(wait)
                if wait == 1:
                    await flock.run_until_idle()
                    assert await flock.store.count(Result) == 1
                seen += await events(flock, "workflow.late", "deadline.missed")
            await asyncio.sleep(60)
        assert sorted(e.kind for e in seen) == ["deadline.missed", "workflow.late"]
        assert sorted(m.kind for m in missed) == ["run", "workflow"]

    run_virtual(main())


def test_a_missed_deadline_is_seen_by_no_more_than_its_inputs() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("worker").consumes(Job).publishes(Result).runs(work).deadline(MINUTE)
            missed = collect(flock)
            only = PrivateVisibility(agents=frozenset({"worker"}))
            await flock.publish(Job(s=300), visibility=only, deadline=MINUTE)
            await asyncio.sleep(600)
            assert missed == []
            found = [a for a in await flock.store.list() if a.type == "DeadlineMissed"]
            assert [a.visibility for a in found] == [only, only]

    run_virtual(main())


def test_a_new_deadline_holds_for_what_is_open() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("worker").consumes(Job).publishes(Result).runs(work)
            await flock.publish(Job(s=7200))
            await asyncio.sleep(60)
            agent.deadline(HOUR)
            await flock.start()
            await asyncio.sleep(7200)
            assert len(await events(flock, "deadline.missed")) == 1

    run_virtual(main())


def test_what_was_done_in_time_is_forgotten() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("worker").consumes(Job).runs(lambda job: None).deadline(100 * HOUR)
            for _ in range(5):
                await flock.publish_many([Job() for _ in range(1000)])
                await flock.run_until_idle()
            assert flock.local is not None and flock.local.shards[0] is not None
            assert len(flock.local.shards[0].core._due) <= 2100

    run_virtual(main())


@pytest.mark.parametrize("limit", [timedelta(0), -MINUTE, 60, timedelta(days=10_000)])
def test_what_is_no_deadline_is_refused(limit: Any) -> None:
    async def main() -> None:
        flock = VirtualFlock()
        with pytest.raises(ConfigurationError, match="deadline"):
            flock.agent("a").deadline(limit)
        with pytest.raises(ConfigurationError, match="deadline"), flock.workflow("w", deadline=limit):
            pass
        if limit:
            with pytest.raises(ConfigurationError, match="deadline"):
                await flock.publish(Job(), deadline=limit)
        await flock.shutdown()

    run_virtual(main())
