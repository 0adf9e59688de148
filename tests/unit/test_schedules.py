"""Schedules as a program declares and sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel

from flock_ray import Context, Flock, SQLitePersistence, TimerTick, Until, flock_type
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual
from flock_ray.triggers import CronTrigger, DailyTrigger, IntervalTrigger, OnceTrigger

HOUR = timedelta(hours=1)
DAY_S = 86_400


@flock_type(name="ScheduleTestRequest")
class Request(BaseModel):
    text: str = ""
    number: int = 0


@flock_type(name="ScheduleTestReport")
class Report(BaseModel):
    about: str


def answered(request: Request) -> Report:
    return Report(about=f"{request.text} {request.number}")


def wrong(value: object) -> Any:
    return value


async def published(flock: Flock, cls: type[BaseModel]) -> list[Any]:
    return list(await flock.store.get_by_type(cls))


def virtually(work: Coroutine[Any, Any, None]) -> None:
    run_virtual(work)


# -- what an agent declares ----------------------------------------------------------------------


def test_an_agent_runs_every_so_often_with_ticks_as_its_input() -> None:
    seen: list[tuple[str, int | None, datetime | None, TimerTick]] = []

    def report(ctx: Context, tick: TimerTick) -> Report:
        seen.append((ctx.trigger_type, ctx.timer_iteration, ctx.fire_time, tick))
        return Report(about=tick.timer_name)

    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            flock.agent("reporter").publishes(Report).runs(report).schedule(every=HOUR, max_repeats=3)
            begin = datetime.fromtimestamp(asyncio.get_running_loop().time(), UTC)
            await flock.start()
            await asyncio.sleep(DAY_S)
            assert [(kind, number) for kind, number, _, _ in seen] == [
                ("timer", 0),
                ("timer", 1),
                ("timer", 2),
            ]
            first = seen[0][2]
            assert first is not None and first >= begin
            assert [fire for _, _, fire, _ in seen] == [first, first + HOUR, first + 2 * HOUR]
            assert seen[2][3].schedule_spec == {"interval_s": 3600.0, "max_repeats": 3}
            assert [r.about for r in await published(flock, Report)] == ["reporter"] * 3
            ticks = await published(flock, TimerTick)
            assert [tick.iteration for tick in ticks] == [0, 1, 2]

    virtually(main())


def test_only_its_own_agent_gets_a_tick() -> None:
    runs: list[str] = []

    def note(name: str) -> Any:
        def run(tick: TimerTick) -> None:
            runs.append(f"{name} {tick.timer_name}")

        return run

    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("a").runs(note("a")).schedule(every=HOUR, max_repeats=1)
            flock.agent("b").runs(note("b")).schedule(every=HOUR, max_repeats=1)
            flock.agent("eager").consumes(TimerTick).runs(note("eager"))
            await flock.start()
            await asyncio.sleep(60)

    virtually(main())
    assert sorted(runs) == ["a a", "b b"]


def test_an_agent_may_run_by_the_clock_and_by_artifacts() -> None:
    def report(cause: Request | TimerTick) -> Report:
        return Report(about=type(cause).__name__)

    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Request).publishes(Report).runs(report).schedule(
                at=datetime(2100, 1, 1, tzinfo=UTC)
            )
            await flock.publish(Request())
            await flock.run_until_idle(include_timers=True)  # a schedule holds up nobody
            assert [r.about for r in await published(flock, Report)] == ["Request"]
            await asyncio.sleep(80 * 366 * DAY_S)
            assert [r.about for r in await published(flock, Report)] == ["Request", "TimerTick"]

    virtually(main())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"every": HOUR, "at": time(9)}, "exactly one"),
        ({"every": timedelta(0)}, "above zero"),
        ({"every": timedelta(seconds=-1)}, "above zero"),
        ({"cron": "often"}, "five fields"),
        ({"cron": "0 0 31 2 *"}, "never due"),
        ({"at": datetime(2030, 1, 1)}, "time zone"),
        ({"every": HOUR, "max_repeats": 0}, "whole number"),
        ({"every": HOUR, "after": timedelta(-1)}, "from zero up"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    builder = Flock().agent("a")

    with pytest.raises(ConfigurationError, match=message):
        builder.schedule(**arguments)

    assert builder.definition.schedules == ()


def test_a_function_that_takes_no_tick_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="TimerTick"):
        Flock().agent("a").consumes(Request).runs(answered).schedule(every=HOUR)


def test_an_agent_has_one_schedule_of_its_own() -> None:
    builder = Flock().agent("a").schedule(every=HOUR)

    with pytest.raises(ConfigurationError, match="already"):
        builder.schedule(every=HOUR)


# -- what a flock declares -----------------------------------------------------------------------


def test_a_model_is_published_by_the_clock_of_a_zone() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            flock.agent("reporter").consumes(Request).publishes(Report).runs(answered)
            name = flock.schedule(
                agent="reporter",
                trigger=CronTrigger("0 9 * * 1-5", tz="Europe/Berlin"),
                publish=Request(text="daily"),
            )
            assert name == "reporter"
            await flock.start()
            await asyncio.sleep(14 * DAY_S)
            fires = [tick.fire_time for tick in await published(flock, TimerTick)]
            local = [fire.astimezone(ZoneInfo("Europe/Berlin")) for fire in fires]
            assert len(local) == 10
            assert {(at.hour, at.minute) for at in local} == {(9, 0)}
            assert {at.isoweekday() for at in local} == {1, 2, 3, 4, 5}
            assert [r.about for r in await published(flock, Report)] == ["daily 0"] * 10

    virtually(main())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_makes_what_is_published(is_async: bool) -> None:
    def request(ctx: Context) -> Request | None:
        assert ctx.fire_time is not None
        return Request(number=ctx.timer_iteration or 0) if ctx.timer_iteration != 1 else None

    async def request_async(ctx: Context) -> Request | None:
        return request(ctx)

    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.schedule(
                trigger=IntervalTrigger(HOUR),
                publish=request_async if is_async else request,
                max_repeats=3,
                name="r",
            )
            await flock.start()
            await asyncio.sleep(DAY_S)
            assert [r.number for r in await published(flock, Request)] == [0, 2]
            assert [agent.name for agent in flock.agents] == ["schedule-r"]
            assert flock.check() == [f for f in flock.check() if f.level == "info"]

    virtually(main())


def no_hint(ctx: Any):  # type: ignore[no-untyped-def]  # the point of it
    return Request()


def two_arguments(ctx: Any, tick: Any) -> Request:
    return Request()


EVERY = IntervalTrigger(HOUR)
NEW_YEAR = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trigger": EVERY}, "say what happens"),
        ({"trigger": "0 9 * * *", "agent": "a"}, "CronTrigger"),
        ({"trigger": IntervalTrigger, "agent": "a"}, "CronTrigger"),
        ({"trigger": EVERY, "agent": "nobody"}, "no agent 'nobody'"),
        ({"trigger": EVERY, "publish": Request}, "give a model"),
        ({"trigger": EVERY, "publish": no_hint}, "annotate its return"),
        ({"trigger": EVERY, "publish": two_arguments}, "function of the context"),
        ({"trigger": EVERY, "publish": lambda ctx: Request()}, "give name="),
        ({"trigger": EVERY, "publish": Request(), "misfire": "often"}, "choose one of"),
        ({"trigger": EVERY, "publish": Request(), "max_repeats": 0}, "whole number"),
        ({"trigger": EVERY, "publish": Request(), "jitter": -HOUR}, "duration"),
        ({"trigger": EVERY, "publish": Request(), "start": datetime(2030, 1, 1)}, "time zone"),
        ({"trigger": EVERY, "publish": Request(), "start": NEW_YEAR, "end": NEW_YEAR - HOUR}, "swap"),
        ({"trigger": EVERY, "publish": Request(), "name": "a/b"}, "without '/'"),
        ({"trigger": EVERY, "agent": "a", "name": "taken"}, "already"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    flock = Flock()
    flock.agent("a").runs(lambda tick: None)
    flock.schedule(trigger=EVERY, publish=Request(), name="taken")
    before = len(flock.agents)

    with pytest.raises(ConfigurationError, match=message):
        flock.schedule(**arguments)

    assert len(flock.agents) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CronTrigger("0 9 * *"), "five fields"),
        (lambda: CronTrigger("0 9 * * *", tz="Mars"), "no time zone 'Mars'"),
        (lambda: CronTrigger("0 9 * * *", tz=wrong(3)), "name of a time zone"),
        (lambda: IntervalTrigger(timedelta(0)), "above zero"),
        (lambda: IntervalTrigger(wrong(60)), "above zero"),
        (lambda: DailyTrigger(wrong("9:00")), "give a time"),
        (lambda: DailyTrigger(time(9, tzinfo=UTC), tz="UTC"), "one of them"),
        (lambda: OnceTrigger(datetime(2030, 1, 1)), "time zone"),
    ],
)
def test_triggers_are_checked_when_they_are_made(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_daily_time_takes_its_zone_along() -> None:
    assert DailyTrigger(time(9, tzinfo=ZoneInfo("Asia/Tokyo"))) == DailyTrigger(time(9), tz="Asia/Tokyo")
    assert DailyTrigger(time(9, tzinfo=UTC)) == DailyTrigger(time(9))


@pytest.mark.parametrize("consumes", [None, Report])
def test_an_agent_that_would_not_get_what_is_published_is_refused(consumes: type[BaseModel] | None) -> None:
    async def main() -> None:
        flock = VirtualFlock()
        if consumes is not None:
            flock.agent("reporter").consumes(consumes).runs(lambda x: None)
        flock.schedule(agent="reporter", trigger=EVERY, publish=Request())
        with pytest.raises(ConfigurationError, match="no agent" if consumes is None else "does not consume"):
            await flock.start()
        await flock.shutdown()

    virtually(main())


# -- what one does with them ---------------------------------------------------------------------


def test_schedules_are_listed_paused_resumed_triggered_and_removed() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            flock.schedule(trigger=EVERY, publish=Request(), name="hourly")
            flock.schedule(trigger=DailyTrigger(time(9)), publish=Request(), name="daily")
            assert [view.name for view in await flock.schedules.list()] == ["daily", "hourly"]
            await asyncio.sleep(1)
            view = await flock.schedules.get("hourly")
            assert (view.agent, view.iteration, view.paused, view.listens) == (
                "schedule-hourly",
                1,
                False,
                True,
            )
            assert view.next_fire is not None and view.next_fire - (view.last_fire or NEW_YEAR) == HOUR

            await flock.schedules.pause("hourly", by="ann")
            await asyncio.sleep(5 * 3600)
            view = await flock.schedules.get("hourly")
            assert (view.iteration, view.paused, view.paused_by) == (1, True, "ann")
            await flock.schedules.trigger("hourly")
            await flock.run_until_idle()
            assert len(await published(flock, Request)) == 2
            await asyncio.sleep(1800)
            await flock.schedules.resume("hourly")
            await asyncio.sleep(1800)
            assert (await flock.schedules.get("hourly")).iteration == 2

            await flock.schedules.remove("hourly")
            flock.agent("another").consumes(Request).runs(lambda request: None)
            await asyncio.sleep(5 * 3600)
            await flock.start()  # a deploy does not bring it back
            assert [view.name for view in await flock.schedules.list()] == ["daily"]
            for action in (flock.schedules.get, flock.schedules.pause, flock.schedules.trigger):
                with pytest.raises(ConfigurationError, match=r"no schedule 'hourly'.* daily"):
                    await action("hourly")

    virtually(main())


def test_fires_are_events() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.schedule(trigger=EVERY, publish=Request(), name="hourly", max_repeats=2)
            await flock.start()
            await asyncio.sleep(DAY_S)
            found = []
            async for event in flock.events("schedule"):
                found.append((event.kind, event.detail))
                if event.kind == "schedule.ended":
                    break
            assert found[1:] == [
                ("schedule.fired", "hourly: number 0"),
                ("schedule.fired", "hourly: number 1"),
                ("schedule.ended", "hourly: it fired 2 times"),
            ]

    virtually(main())


def test_a_schedule_goes_on_after_a_restart(tmp_path: Path) -> None:
    def declared() -> VirtualFlock:
        flock = VirtualFlock(persistence=SQLitePersistence(tmp_path), namespace="kept")
        flock.schedule(trigger=IntervalTrigger(24 * HOUR), publish=Request(), name="daily")
        return flock

    async def main() -> None:
        found = []
        for turn in range(2):
            async with declared() as flock:
                if not turn:
                    await flock.run_until(Until.artifact_count(Request).at_least(1), timeout=30)
                await flock.run_until_idle()
                found.append(await flock.schedules.get("daily"))
                assert len(await published(flock, Request)) == 1
        assert found[0] == found[1]
        assert found[0].iteration == 1

    asyncio.run(main())  # in real time: virtual time would run on while the disk is busy


def test_what_a_halted_board_missed_is_up_to_each_schedule() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.schedule(trigger=EVERY, publish=Request(text="skip"), name="skipping")
            flock.schedule(trigger=EVERY, publish=Request(text="once"), name="once", misfire="fire_once")
            flock.schedule(trigger=EVERY, publish=Request(text="all"), name="all", misfire="catch_up")
            await flock.start()
            await asyncio.sleep(60)
            await flock.halt()
            await asyncio.sleep(5.5 * 3600)
            assert len(await published(flock, TimerTick)) == 3
            await flock.resume()
            await asyncio.sleep(60)
            texts = [request.text for request in await published(flock, Request)]
            assert {text: texts.count(text) for text in texts} == {"skip": 1, "once": 2, "all": 6}
            views = {view.name: (view.iteration, view.missed) for view in await flock.schedules.list()}
            assert views == {"skipping": (1, 5), "once": (2, 4), "all": (6, 0)}

    virtually(main())


def test_a_year_with_a_hundred_schedules() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            counts: dict[str, int] = {}

            def count(tick: TimerTick) -> None:
                counts[tick.timer_name] = counts.get(tick.timer_name, 0) + 1

            flock.agent("counter").runs(count)
            zones = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]
            for number in range(100):
                zone = zones[number % 4]
                cron = f"{number % 60} 9 * * *" if number < 10 else f"{number % 60} 9 * * {number % 7}"
                flock.schedule("counter", trigger=CronTrigger(cron, tz=zone), name=f"s{number}")
            await flock.start()
            await asyncio.sleep(364 * DAY_S)
            assert len(counts) == 100
            assert [counts[f"s{number}"] for number in range(10)] == [364] * 10
            assert {counts[f"s{number}"] for number in range(10, 100)} == {52}

    virtually(main())
