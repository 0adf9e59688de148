"""`consumes(where=, reevaluate=)`: predicates of the time, asked again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Flock, PrivateVisibility, flock_type, now
from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DAY_S = 86_400


@flock_type(name="ReevaluateTestDocument")
class Document(BaseModel):
    name: str
    created_at: datetime


@flock_type(name="ReevaluateTestAlert")
class Alert(BaseModel):
    name: str
    at: datetime


def stale(document: Document) -> bool:
    return now() - document.created_at > 30 * DAY


def alert(document: Document) -> Alert:
    return Alert(name=document.name, at=now())


def declare(flock: Flock, **more: Any) -> None:
    options = {"where": stale, "reevaluate": DAY, **more}
    flock.agent("checker").consumes(Document, **options).publishes(Alert).runs(alert)


async def alerts(flock: Flock) -> list[Alert]:
    return list(await flock.store.get_by_type(Alert))


def test_now_is_virtual_where_time_is() -> None:
    async def main() -> None:
        begin = now()
        assert begin == datetime(2026, 1, 1, tzinfo=UTC)
        await asyncio.sleep(40 * DAY_S)
        assert now() - begin == 40 * DAY
        async with VirtualFlock() as flock:  # a board that is opened later has the same time
            artifact = await flock.publish(Document(name="a", created_at=now()))
            assert timedelta(0) <= now() - artifact.created_at < timedelta(seconds=1)

    run_virtual(main())
    assert abs(now() - datetime.now(UTC)) < timedelta(minutes=5)


def test_a_document_becomes_stale_by_waiting_alone_and_is_reported_once() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            declare(flock)
            begin = now()
            await flock.publish(Document(name="new", created_at=now()))
            await flock.publish(Document(name="old", created_at=now() - 40 * DAY))
            await flock.run_until_idle(include_timers=True)  # what may match later holds up nobody
            assert [a.name for a in await alerts(flock)] == ["old"]
            await asyncio.sleep(30 * DAY_S)
            assert [a.name for a in await alerts(flock)] == ["old"]
            await asyncio.sleep(2 * DAY_S)
            assert sorted(a.name for a in await alerts(flock)) == ["new", "old"]
            (late,) = [a for a in await alerts(flock) if a.name == "new"]
            assert 30 * DAY < late.at - begin <= 31 * DAY + timedelta(seconds=1)
            await asyncio.sleep(100 * DAY_S)
            assert len(await alerts(flock)) == 2

    run_virtual(main())


def test_without_reevaluate_it_is_asked_once_and_check_says_so() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, reevaluate=None)
            await flock.publish(Document(name="new", created_at=now()))
            await asyncio.sleep(40 * DAY_S)
            assert await alerts(flock) == []
            found = [f for f in flock.check() if f.code == "ClockWithoutReevaluate"]
            assert [(f.level, f.agent) for f in found] == [("warning", "checker")]
            assert "now" in found[0].message and "reevaluate=" in found[0].fix
            flock.agent("asking").consumes(Document, where=stale, reevaluate=DAY).runs(lambda d: None)
            assert len([f for f in flock.check() if f.code == "ClockWithoutReevaluate"]) == 1

    run_virtual(main())


def test_why_says_when_it_is_asked_again() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            artifact = await flock.publish(Document(name="new", created_at=now()))
            (answer,) = (await flock.why(artifact)).answers
            assert (answer.state, answer.matched) == ("candidate", False)
            assert answer.detail.startswith("asked again at 2026-01-0")
            notes = (await flock.why("checker")).notes
            assert "checker/ReevaluateTestDocument: 1 artifacts may match later" in notes
            status = await flock.workflow_status(artifact.correlation_id or "")
            assert not (status.open or status.waiting or status.delayed)

    run_virtual(main())


def test_nobody_is_asked_about_what_it_may_not_see() -> None:
    asked: list[str] = []

    def spy(document: Document) -> bool:
        asked.append(document.name)
        return False

    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, where=spy)
            only = PrivateVisibility(agents=frozenset({"somebody"}))
            await flock.publish(Document(name="secret", created_at=now()), visibility=only)
            await flock.publish(Document(name="public", created_at=now()))
            await asyncio.sleep(3 * DAY_S)

    run_virtual(main())
    assert set(asked) == {"public"}
    assert len(asked) == 4  # when it was published, and once a day


def test_a_predicate_that_raises_refuses_the_artifact_for_good() -> None:
    asked: list[str] = []

    def fragile(document: Document) -> bool:
        asked.append(document.name)
        return 1 // (3 - len(asked)) > 5

    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, where=fragile)
            await flock.publish(Document(name="a", created_at=now()))
            await asyncio.sleep(10 * DAY_S)
            refused = [e async for e in _events(flock, "match.refused")]
            assert len(refused) == 1 and "ZeroDivisionError" in refused[0].detail

    run_virtual(main())
    assert len(asked) == 3


async def _events(flock: Flock, kind: str) -> AsyncIterator[Any]:
    for blob in await (await flock._ready_board()).each("event_list", 0, [kind], None, 100, 0):
        from flock_ray.board import _events as decode

        for event in decode(blob[0]):
            yield event


def test_candidates_outlive_the_board_and_the_memory_of_it() -> None:
    persistence = MemoryPersistence()  # no disk: virtual time would run on while it is busy

    async def main() -> None:
        for run in range(3):
            flock = VirtualFlock(persistence=persistence)
            declare(flock)
            async with flock:
                if not run:
                    for number in range(5):
                        await flock.publish(Document(name=f"{number}", created_at=now() + number * DAY))
                await asyncio.sleep(12 * DAY_S)
                if run < 2:
                    assert await alerts(flock) == []
                else:
                    assert sorted(a.name for a in await alerts(flock)) == ["0", "1", "2", "3", "4"]

    run_virtual(main())


def test_a_memory_board_that_forgets_an_artifact_says_that_it_is_asked_no_more() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            await flock.start()
            assert flock.local is not None and flock.local.shards[0] is not None
            flock.local.shards[0].core._max_artifacts = 2  # less than a setting can be
            for number in range(4):
                await flock.publish(Document(name=f"{number}", created_at=now()))
            await asyncio.sleep(2 * DAY_S)
            gone = [e async for e in _events(flock, "candidate.gone")]
            assert sum(len(event.artifact_ids) for event in gone) == 2
            await asyncio.sleep(29.5 * DAY_S)
            matched = [e async for e in _events(flock, "candidate.matched")]
            assert 1 <= sum(len(event.artifact_ids) for event in matched) <= 2

    run_virtual(main())


def test_a_gate_takes_what_matches_later() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("batch").consumes(
                Document, where=stale, reevaluate=HOUR, batch={"size": 2}
            ).publishes(Alert).runs(
                lambda documents: Alert(name="+".join(d.name for d in documents), at=now())
            )
            await flock.publish(Document(name="a", created_at=now()))
            await flock.publish(Document(name="b", created_at=now() + DAY))
            await asyncio.sleep(33 * DAY_S)
            assert [a.name for a in await alerts(flock)] == ["a+b"]

    run_virtual(main())


def test_an_agent_that_was_run_on_an_artifact_by_hand_is_not_run_on_it_again() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock)
            made = await flock.arun(flock.get_agent("checker"), Document(name="a", created_at=now()))
            assert len(made) == 1
            await asyncio.sleep(40 * DAY_S)
            assert len(await alerts(flock)) == 1

    run_virtual(main())


def test_an_agent_that_took_an_artifact_by_another_subscription_is_not_asked_again() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            checker = flock.agent("checker").consumes(Document, where=stale, reevaluate=DAY)
            checker.consumes(Document, name="any").publishes(Alert).runs(alert)
            await flock.publish(Document(name="a", created_at=now()))
            await asyncio.sleep(40 * DAY_S)
            assert len(await alerts(flock)) == 1

    run_virtual(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reevaluate": DAY}, "give where="),
        ({"reevaluate": 60, "where": stale}, "timedelta"),
        ({"reevaluate": timedelta(0), "where": stale}, "timedelta"),
        ({"reevaluate": 800 * DAY, "where": stale}, "a year"),
        ({"reevaluate": DAY, "where": stale, "mode": "direct"}, "direct"),
        ({"reevaluate": DAY, "where": stale, "delivery": "exclusive"}, "decided once"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    builder = Flock().agent("a")

    with pytest.raises(ConfigurationError, match=message):
        builder.consumes(Document, **options)

    assert builder.definition.subscriptions == []
