"""A schedule: a report every second, three times, and one more by hand. Crashes and restarts would not repeat any."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import Context, Flock, IntervalTrigger, Until, flock_type


@flock_type
class ReportRequest(BaseModel):
    number: int


@flock_type
class Report(BaseModel):
    title: str


def request(ctx: Context) -> ReportRequest:
    return ReportRequest(number=ctx.timer_iteration or 0)


def write(request: ReportRequest) -> Report:
    return Report(title=f"report {request.number}")


async def main() -> None:
    async with Flock() as flock:
        flock.agent("reporter").consumes(ReportRequest).publishes(Report).runs(write)
        flock.schedule(
            agent="reporter",
            trigger=IntervalTrigger(timedelta(seconds=1)),
            publish=request,
            max_repeats=3,
            misfire="catch_up",
        )
        await flock.run_until(Until.artifact_count(Report).at_least(3), timeout=60)
        await flock.schedules.trigger("reporter", by="ann")
        await flock.run_until(Until.artifact_count(Report).at_least(4), timeout=60)

        reports = await flock.store.get_by_type(Report)
        print("published:", ", ".join(sorted(report.title for report in reports)))
        for view in await flock.schedules.list():
            print(f"{view.name}: {view.iteration} fires by itself, over: {view.next_fire is None}")


if __name__ == "__main__":
    asyncio.run(main())
