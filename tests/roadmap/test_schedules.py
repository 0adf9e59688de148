"""Roadmap, "Time-Based Scheduling": the cron schedule and the hybrid of events and time, as printed."""

from __future__ import annotations

import asyncio
from datetime import datetime as real_datetime
from datetime import timedelta

import pytest
from pydantic import BaseModel

from flock_ray import CronTrigger, Flock, flock_type, now
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
