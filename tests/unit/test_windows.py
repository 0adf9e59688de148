"""Sliding windows: when they fire, what they carry, and what their agents see; and schedules fired for the past."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from flock_ray import (
    Context,
    Flock,
    IntervalTrigger,
    PrivateVisibility,
    SlidingWindowTrigger,
    TimerTick,
    flock_type,
    now,
)
from flock_ray.context_provider import RecentContextProvider, WindowContextProvider
from flock_ray.errors import ConfigurationError
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual

QUARTER, HOUR = timedelta(minutes=15), timedelta(hours=1)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
Seen = dict[tuple[datetime, datetime], list[int]]


@flock_type(name="WindowTestSale")
class Sale(BaseModel):
    n: int


@flock_type(name="WindowTestRequest")
class AnalysisRequest(BaseModel):
    model_config = ConfigDict(frozen=True)

    kind: str
    window_start: datetime | None = None
    window_end: str = ""


@flock_type(name="WindowTestTrend")
class Trend(BaseModel):
    seen: list[int]


def numbers(ctx: Context) -> list[int]:
    return [a.payload["n"] for a in ctx.artifacts if a.type == "WindowTestSale"]


def a_second_later(main: Coroutine[Any, Any, None]) -> None:
    """Run a test that begins just after a whole hour: at one, its window would be fired at once."""

    async def wait() -> None:
        await asyncio.sleep(1)
        await main

    run_virtual(wait())


async def sell(flock: Flock, count: int, every_s: float) -> None:
    for n in range(count):
        await flock.publish(Sale(n=n))
        await asyncio.sleep(every_s)


def test_what_is_published_carries_the_window_and_its_agent_sees_exactly_that() -> None:
    seen: Seen = {}

    def analyse(ctx: Context, request: AnalysisRequest) -> Trend:
        assert request.window_start is not None
        end = datetime.fromisoformat(request.window_end)
        seen[request.window_start, end] = numbers(ctx)
        assert all(request.window_start <= a.created_at < end for a in ctx.artifacts)
        assert "TimerTick" not in {a.type for a in ctx.artifacts}
        return Trend(seen=numbers(ctx))

    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            flock.schedule(
                agent="trend_analyzer",
                trigger=SlidingWindowTrigger(window=HOUR, slide=QUARTER),
                publish=AnalysisRequest(kind="trend"),
            )
            flock.agent("trend_analyzer").consumes(AnalysisRequest).publishes(Trend).runs(analyse)
            await asyncio.sleep(100)
            await sell(flock, 50, 300)  # one at 100 s, and every five minutes

    run_virtual(main())
    assert len(seen) == 16
    assert sorted(seen) == [(BEGIN + n * QUARTER - HOUR, BEGIN + n * QUARTER) for n in range(1, 17)]
    for start, end in seen:
        offsets = [(BEGIN + timedelta(seconds=100 + 300 * n), n) for n in range(50)]
        assert seen[start, end] == [n for at, n in offsets if start <= at < end]


def test_an_agent_without_publish_gets_the_window_with_its_tick() -> None:
    found: list[Any] = []

    def look(ctx: Context, tick: TimerTick) -> None:
        found.append((ctx.trigger_type, ctx.timer_iteration, ctx.fire_time, ctx.window, numbers(ctx)))
        assert tick.window == ctx.window
        assert tick.schedule_spec == {"window_s": 900.0, "slide_s": 900.0}

    async def main() -> None:
        async with VirtualFlock() as flock:
            looker = flock.agent("looker").runs(look)
            flock.schedule(looker, trigger=SlidingWindowTrigger(QUARTER, QUARTER))
            await asyncio.sleep(1)
            await sell(flock, 3, 600)

    run_virtual(main())
    first, second = BEGIN + QUARTER, BEGIN + 2 * QUARTER
    assert found == [
        ("timer", 0, first, (BEGIN, first), [0, 1]),
        ("timer", 1, second, (first, second), [2]),
    ]


def test_a_function_makes_what_is_published_of_the_window() -> None:
    def request(ctx: Context) -> Trend:
        assert ctx.window is not None
        return Trend(seen=[int((bound - BEGIN).total_seconds()) for bound in ctx.window])

    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.schedule(
                trigger=SlidingWindowTrigger(HOUR, QUARTER), publish=request, name="w", max_repeats=2
            )
            await flock.start()
            await asyncio.sleep(7200)
            assert [t.seen for t in await flock.store.get_by_type(Trend)] == [[-2700, 900], [-1800, 1800]]

    a_second_later(main())


def test_what_the_agent_may_not_see_is_in_no_window() -> None:
    seen: list[list[int]] = []

    def look(ctx: Context, request: AnalysisRequest) -> None:
        seen.append(numbers(ctx))

    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.schedule(
                "looker", trigger=SlidingWindowTrigger(HOUR, HOUR), publish=AnalysisRequest(kind="")
            )
            flock.agent("looker").consumes(AnalysisRequest).runs(look)
            for n, who in enumerate(("looker", "somebody", "looker")):
                await flock.publish(Sale(n=n), visibility=PrivateVisibility(agents=frozenset({who})))
            await asyncio.sleep(4000)

    a_second_later(main())
    assert [sorted(window) for window in seen] == [[0, 2]]


def test_an_agent_with_a_provider_of_its_own_keeps_it_and_may_choose_what_of_the_window_it_sees() -> None:
    seen: dict[str, list[str]] = {}

    def look(name: str) -> Any:
        def run(ctx: Context, request: AnalysisRequest) -> None:
            seen[name] = [a.type for a in ctx.artifacts]

        return run

    async def main() -> None:
        async with VirtualFlock(context_provider=RecentContextProvider(limit=1)) as flock:
            trigger = SlidingWindowTrigger(HOUR, HOUR)
            flock.schedule("own", trigger=trigger, publish=AnalysisRequest(kind=""))
            own = flock.agent("own").consumes(AnalysisRequest).runs(look("own"))
            own.with_context(RecentContextProvider(limit=2))
            other = flock.agent("other").consumes(AnalysisRequest).runs(look("other"))
            other.with_context(WindowContextProvider({"WindowTestSale"}))
            await flock.publish_many([Sale(n=1), Sale(n=2), Trend(seen=[])])
            await asyncio.sleep(4000)

    run_virtual(main())
    assert len(seen["own"]) == 2
    assert seen["other"] == ["WindowTestSale", "WindowTestSale"]


def test_runs_without_a_window_see_what_they_saw_before() -> None:
    seen: list[int] = []

    def look(ctx: Context, request: AnalysisRequest) -> None:
        seen.append(len(ctx.artifacts))

    async def main() -> None:
        for provider in (None, RecentContextProvider(limit=2)):
            async with VirtualFlock(context_provider=provider) as flock:
                flock.schedule(
                    "a", trigger=SlidingWindowTrigger(HOUR, HOUR), publish=AnalysisRequest(kind="")
                )
                flock.agent("a").consumes(AnalysisRequest).runs(look)
                await flock.publish_many([Sale(n=n) for n in range(3)])
                await flock.publish(AnalysisRequest(kind="by hand"))
                await flock.run_until_idle()

    a_second_later(main())
    assert seen == [0, 2]


def test_a_window_may_wait_for_what_is_on_its_way() -> None:
    fired: list[tuple[datetime, datetime | None]] = []

    def look(ctx: Context, tick: TimerTick) -> None:
        fired.append((now(), ctx.fire_time))

    async def main() -> None:
        async with VirtualFlock() as flock:
            trigger = SlidingWindowTrigger(HOUR, HOUR, lag=timedelta(seconds=30))
            flock.schedule(flock.agent("looker").runs(look), trigger=trigger)
            await flock.start()
            await asyncio.sleep(2.5 * 3600)

    a_second_later(main())
    late = timedelta(seconds=30)
    assert [(at - (fire or BEGIN) - late < timedelta(seconds=1), fire) for at, fire in fired] == [
        (True, BEGIN + HOUR),
        (True, BEGIN + 2 * HOUR),
    ]


@flock_type(name="WindowTestWrong")
class Wrong(BaseModel):
    window_start: int = 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda flock: SlidingWindowTrigger(timedelta(0), HOUR), "window"),
        (lambda flock: SlidingWindowTrigger(HOUR, -HOUR), "slide"),
        (lambda flock: SlidingWindowTrigger(HOUR, HOUR, lag=-HOUR), "lag"),
        (lambda flock: flock.schedule(trigger=SlidingWindowTrigger(HOUR, HOUR), publish=Wrong()), "datetime"),
        (lambda flock: WindowContextProvider("WindowTestSale"), "set of strings"),
        (lambda flock: WindowContextProvider(limit=0), "whole number"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(Flock())


# -- backfill ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", [IntervalTrigger(HOUR), SlidingWindowTrigger(2 * HOUR, HOUR)])
def test_a_past_range_fires_each_time_once(trigger: Any) -> None:
    fires: list[datetime | None] = []
    windows: list[Any] = []

    def note(ctx: Context, tick: TimerTick) -> None:
        fires.append(ctx.fire_time)
        windows.append(ctx.window)

    async def main() -> None:
        kept = MemoryPersistence()
        for turn in range(2):
            flock = VirtualFlock(persistence=kept, shards=2)
            flock.schedule(flock.agent("a").runs(note), trigger=trigger, name="s")
            async with flock:
                if not turn:
                    await asyncio.sleep(10 * 3600 + 60)
                    assert len(fires) == (11 if isinstance(trigger, IntervalTrigger) else 10)
                    fires.clear()
                start = BEGIN - 10 * HOUR
                count = await flock.schedules.backfill("s", start, BEGIN - 7 * HOUR, by="ann")
                again = await flock.schedules.backfill("s", start, BEGIN - 5 * HOUR)
                await flock.run_until_idle()
                assert (count, again) == ((3, 2) if not turn else (0, 0))
                assert (await flock.schedules.get("s")).iteration in (10, 11)

    a_second_later(main())
    offset = min(fire for fire in fires if fire is not None) - (BEGIN - 10 * HOUR)
    assert timedelta(0) <= offset < timedelta(minutes=1)
    assert sorted(fire for fire in fires if fire is not None) == [
        BEGIN - n * HOUR + offset for n in range(10, 5, -1)
    ]
    if isinstance(trigger, SlidingWindowTrigger):
        assert max(windows[-5:]) == (BEGIN - 8 * HOUR, BEGIN - 6 * HOUR)


def test_a_window_that_ends_just_when_it_is_declared_is_fired() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.schedule(trigger=SlidingWindowTrigger(HOUR, HOUR), publish=Sale(n=1), name="s", start=BEGIN)
            await flock.start()
            await asyncio.sleep(60)
            assert (await flock.schedules.get("s")).last_fire == BEGIN

    run_virtual(main())


def test_what_is_not_over_yet_is_not_backfilled() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.schedule(trigger=SlidingWindowTrigger(HOUR, HOUR), publish=Sale(n=1), name="s")
            await flock.start()
            await asyncio.sleep(90 * 60)
            assert await flock.schedules.backfill("s", BEGIN, BEGIN + 100 * HOUR) == 2
            assert await flock.schedules.backfill("s", BEGIN + 50 * HOUR, BEGIN + 100 * HOUR) == 0
            await asyncio.sleep(3600)
            assert await flock.schedules.backfill("s", BEGIN, BEGIN + 100 * HOUR) == 1
            await flock.run_until_idle()
            assert await flock.store.count(Sale) == 5

    a_second_later(main())


def test_a_window_of_the_past_is_seen_as_it_was() -> None:
    seen: Seen = {}

    def look(ctx: Context, request: AnalysisRequest) -> None:
        assert request.window_start is not None
        seen[request.window_start, datetime.fromisoformat(request.window_end)] = numbers(ctx)

    async def main() -> None:
        async with VirtualFlock() as flock:
            await asyncio.sleep(60)
            await sell(flock, 6, 1200)
            flock.schedule(
                "a", trigger=SlidingWindowTrigger(HOUR, HOUR), publish=AnalysisRequest(kind=""), name="s"
            )
            flock.agent("a").consumes(AnalysisRequest).runs(look)
            assert await flock.schedules.backfill("s", BEGIN + HOUR, BEGIN + 2 * HOUR) == 1
            await flock.run_until_idle()

    run_virtual(main())
    assert seen == {(BEGIN, BEGIN + HOUR): [0, 1, 2]}


def test_a_schedule_that_is_declared_with_another_trigger_can_be_backfilled_anew() -> None:
    async def main() -> None:
        kept = MemoryPersistence()
        counts = []
        for every in (HOUR, HOUR, QUARTER):
            flock = VirtualFlock(persistence=kept)
            flock.schedule(trigger=SlidingWindowTrigger(HOUR, every), publish=Sale(n=1), name="s")
            async with flock:
                counts.append(await flock.schedules.backfill("s", BEGIN - HOUR, BEGIN))
                await flock.run_until_idle()
                total = await flock.store.count(Sale)
        assert counts == [1, 0, 4]
        assert total == 5

    a_second_later(main())


@pytest.mark.parametrize(
    ("name", "start", "end", "message"),
    [
        ("nobody", BEGIN - HOUR, BEGIN, "no schedule"),
        ("s", BEGIN, BEGIN - HOUR, "swap"),
        ("s", datetime(2025, 1, 1), BEGIN, "time zone"),
        ("s", BEGIN - 400 * timedelta(days=1), BEGIN, "in parts"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(
    name: str, start: datetime, end: datetime, message: str
) -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.schedule(trigger=SlidingWindowTrigger(HOUR, HOUR), publish=Sale(n=1), name="s")
            with pytest.raises(ConfigurationError, match=message):
                await flock.schedules.backfill(name, start, end)
            await flock.run_until_idle()
            assert await flock.store.count(Sale) == 0

    a_second_later(main())
