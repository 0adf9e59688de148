"""Roadmap, "Time-Based Scheduling": cron, sliding windows, and the hybrid of events and time, as printed."""

from __future__ import annotations

import asyncio
from datetime import datetime as real_datetime
from datetime import timedelta

import pytest
from pydantic import BaseModel

from flock_ray import Context, CronTrigger, Flock, SlidingWindowTrigger, flock_type, now
from flock_ray.testing import VirtualFlock, run_virtual


@flock_type(name="roadmap.ReportRequest")
class ReportRequest(BaseModel):
    report_type: str


@flock_type(name="roadmap.DailyReport")
class DailyReport(BaseModel):
    text: str


@flock_type(name="roadmap.Document")
class Document(BaseModel):
    created_at: real_datetime


@flock_type(name="roadmap.StaleDocumentAlert")
class StaleDocumentAlert(BaseModel):
    created_at: real_datetime


class datetime(real_datetime):  # the name that the snippet uses, with a clock that is virtual
    @classmethod
    def now(cls, tz: object = None) -> real_datetime:  # type: ignore[override]  # only as the snippet calls it
        return now().replace(tzinfo=None)


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


@flock_type(name="roadmap.Sale")
class Sale(BaseModel):
    amount: int


@flock_type(name="roadmap.AnalysisRequest")
class AnalysisRequest(BaseModel):
    kind: str = "trend"
    window_start: real_datetime | None = None
    window_end: real_datetime | None = None


@flock_type(name="roadmap.Trend")
class Trend(BaseModel):
    hour_from: str
    amounts: list[int]


def declare_trend_analyzer(flock: Flock) -> None:
    flock.schedule(
        agent="trend_analyzer",
        trigger=SlidingWindowTrigger(
            window=timedelta(hours=1),
            slide=timedelta(minutes=15)
        ),
        publish=AnalysisRequest()  # AnalysisRequest(...)
    )  # fmt: skip


def test_a_trend_is_analysed_every_quarter_of_an_hour_over_the_hour_before() -> None:
    def analyse(ctx: Context, request: AnalysisRequest) -> Trend:
        assert request.window_start is not None
        amounts = [a.payload["amount"] for a in ctx.artifacts if a.type == "roadmap.Sale"]
        return Trend(hour_from=f"{request.window_start:%H:%M}", amounts=sorted(amounts))

    async def main() -> None:
        await asyncio.sleep(60)
        async with VirtualFlock() as flock:
            declare_trend_analyzer(flock)
            flock.agent("trend_analyzer").consumes(AnalysisRequest).publishes(Trend).runs(analyse)
            for amount in range(8):
                await flock.publish(Sale(amount=amount))  # at 00:01, and every ten minutes
                await asyncio.sleep(600)
            trends = await flock.store.get_by_type(Trend)
            assert {trend.hour_from: trend.amounts for trend in trends} == {
                "23:15": [0, 1],
                "23:30": [0, 1, 2],
                "23:45": [0, 1, 2, 3, 4],
                "00:00": [0, 1, 2, 3, 4, 5],
                "00:15": [2, 3, 4, 5, 6, 7],
            }

    run_virtual(main())


def declare_stale_checker(flock: Flock) -> None:
    flock.agent("stale_checker").consumes(
        Document,
        where=lambda d: (datetime.now() - d.created_at) > timedelta(days=30)
    ).publishes(StaleDocumentAlert)  # fmt: skip


def alert(document: Document) -> StaleDocumentAlert:
    return StaleDocumentAlert(created_at=document.created_at)


def test_a_stale_document_is_reported_as_printed() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare_stale_checker(flock)
            flock.get_agent("stale_checker").runs(alert)
            old, new = datetime.now() - timedelta(days=31), datetime.now()
            await flock.publish_many([Document(created_at=old), Document(created_at=new)])
            await flock.run_until_idle()
            assert await flock.store.get_by_type(StaleDocumentAlert) == [StaleDocumentAlert(created_at=old)]
            # As printed it is asked once, when the document is published, and `check` says so.
            assert "ClockWithoutReevaluate" in {finding.code for finding in flock.check()}

    run_virtual(main())


@pytest.mark.parametrize("days", [29, 31])
def test_with_reevaluate_a_document_is_reported_when_it_becomes_stale(days: int) -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("stale_checker").consumes(
                Document,
                where=lambda d: (datetime.now() - d.created_at) > timedelta(days=30),
                reevaluate=timedelta(hours=12),
            ).publishes(StaleDocumentAlert).runs(alert)
            await flock.publish(Document(created_at=datetime.now()))
            await asyncio.sleep(days * 86_400)
            assert await flock.store.count(StaleDocumentAlert) == (days > 30)

    run_virtual(main())
