"""Roadmap, "Time-Based Scheduling": the cron schedule, as printed."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from flock_ray import CronTrigger, Flock, flock_type
from flock_ray.testing import VirtualFlock, run_virtual


@flock_type(name="roadmap.ReportRequest")
class ReportRequest(BaseModel):
    report_type: str


@flock_type(name="roadmap.DailyReport")
class DailyReport(BaseModel):
    text: str


def declare(flock: Flock) -> None:
    flock.schedule(
        agent="daily_reporter",
        trigger=CronTrigger("0 9 * * *"),  # Daily at 9 AM
        publish=ReportRequest(report_type="daily_summary")
    )  # fmt: skip


def test_a_report_is_requested_daily_at_nine() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            flock.agent("daily_reporter").consumes(ReportRequest).publishes(DailyReport).runs(
                lambda request: DailyReport(text=request.report_type)
            )
            await flock.start()
            await asyncio.sleep(3 * 86_400)

            requests = [a for a in await flock.store.list() if a.type == "roadmap.ReportRequest"]
            assert [(a.created_at.hour, a.created_at.minute) for a in requests] == [(9, 0)] * 3
            assert await flock.store.get_by_type(DailyReport) == [DailyReport(text="daily_summary")] * 3

    run_virtual(main())
