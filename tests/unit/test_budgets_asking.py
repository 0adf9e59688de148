"""Budgets that ask people for more when they are used up."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from flock_ray import ApprovalSpec, ApprovalTimeout, Budget
from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.errors import ConfigurationError, ForbiddenError
from flock_ray.testing import run_virtual
from tests.unit.test_budgets import Metered, Question, ended, flock_of

SPEC = ApprovalSpec(approvers=["cfo", "cto"], timeout=timedelta(hours=8))


def asking(**limits: Any) -> Budget:
    return Budget(**{"usd": 10, "per": "agent", "on_exceeded": "ask", "approval": SPEC, **limits})


async def use_up(flock: Any, count: int = 3) -> Any:
    """Ask so often that not all of it can be paid (5 dollars each, of up to 10), and return what waits."""
    for _ in range(count):
        await flock.publish(Question())
    await asyncio.sleep(120)
    return await flock.approvals.pending()


def test_calls_wait_until_people_have_given_more() -> None:
    async def main() -> None:
        model = Metered()
        async with flock_of(model, budgets=[asking()]) as flock:
            [waiting] = await use_up(flock)
            assert len(model.models) == 1
            assert waiting.artifact_type == "BudgetIncrease"
            assert waiting.artifact == {
                "account": "agent:a0", "unit": "usd", "limit": 10.0, "left": 5.0, "needed": 10.0, "asks_for": 10.0,
                "agent": "a0", "workflow": waiting.artifact["workflow"],
            }  # fmt: skip
            assert waiting.summary == "agent:a0 is used up: 5 of 10 usd are left, a call needs 10"
            done = await flock.approvals.approve(waiting, by="cfo", amount=12)
            assert done.state == "approved"
            await asyncio.sleep(120)
            replies, errors = await ended(flock)
            assert (replies, errors) == (3, [])
            status = await flock.budgets.get("agent:a0")
            assert status is not None and (status.limit_usd, status.spent_usd) == (22, 15)
            # The second time it is used up is another question
            [again] = await use_up(flock)
            assert again.id != waiting.id
            await flock.approvals.approve(again, by="cto")  # as much again as the limit
            status = await flock.budgets.get("agent:a0")
            assert status is not None and status.limit_usd == 44

    run_virtual(main())


def test_a_no_ends_the_waiting() -> None:
    async def main() -> None:
        model = Metered()
        async with flock_of(model, budgets=[asking()]) as flock:
            [waiting] = await use_up(flock)
            with pytest.raises(ForbiddenError):
                await flock.approvals.reject(waiting, by="intern")
            await flock.approvals.reject(waiting, by="cfo", comment="no money")
            await asyncio.sleep(120)
            replies, errors = await ended(flock)
            assert (replies, [e.error_type for e in errors]) == (1, ["BudgetExceededError"] * 2)
            assert await use_up(flock, 1) == []  # nobody is asked again
            assert len((await ended(flock))[1]) == 3
            # Who raises the limit by hand has decided otherwise
            await flock.budgets.add("agent:a0", usd=20)
            await flock.publish(Question())
            assert (await ended(flock))[0] == 2

    run_virtual(main())


@pytest.mark.parametrize(("ending", "replies"), [(ApprovalTimeout.REJECT, 1), (ApprovalTimeout.APPROVE, 3)])
def test_time_decides_when_nobody_does(ending: ApprovalTimeout, replies: int) -> None:
    async def main() -> None:
        spec = ApprovalSpec(approvers=["cfo"], timeout=timedelta(hours=1), on_timeout=ending)
        async with flock_of(Metered(), budgets=[asking(approval=spec)]) as flock:
            await use_up(flock)
            await asyncio.sleep(3 * 3600)
            assert (await ended(flock))[0] == replies

    run_virtual(main())


def test_the_least_that_was_named_is_given_and_counts_are_whole() -> None:
    async def main() -> None:
        spec = ApprovalSpec(approvers=["cfo", "cto"], quorum=2)
        async with flock_of(
            Metered(), budgets=[Budget(calls=1, per="agent", on_exceeded="ask", approval=spec)]
        ) as flock:
            [waiting] = await use_up(flock)
            with pytest.raises(ConfigurationError):
                await flock.approvals.approve(waiting, by="cfo", amount=1.5)
            await flock.approvals.approve(waiting, by="cfo", amount=7)
            await flock.approvals.approve(waiting, by="cto", amount=4)
            status = await flock.budgets.get("agent:a0")
            assert status is not None and status.limit_calls == 5

    run_virtual(main())


def test_a_day_begins_anew_after_a_no() -> None:
    async def main() -> None:
        async with flock_of(Metered(), budgets=[asking(per="day")]) as flock:
            [waiting] = await use_up(flock)
            await flock.approvals.reject(waiting, by="cfo")
            await asyncio.sleep(90_000)
            before = (await ended(flock))[0]
            await flock.publish(Question())
            await asyncio.sleep(60)
            assert (await ended(flock))[0] == before + 1

    run_virtual(main())


def test_many_calls_ask_once_and_a_workflow_may_have_a_budget_that_asks() -> None:
    async def main() -> None:
        async with flock_of(Metered(), agents=3) as flock:
            for _ in range(4):
                await flock.publish(Question(), correlation_id="w", budget=asking(per="workflow"))
            await asyncio.sleep(120)
            [waiting] = await flock.approvals.pending()
            assert waiting.artifact is not None and waiting.artifact["account"] == "workflow:w"
            await flock.approvals.approve(waiting, by="cfo", amount=1000)
            await asyncio.sleep(200)
            assert (await ended(flock))[0] == 12

    run_virtual(main())


def test_a_restart_forgets_neither_the_question_nor_the_answer() -> None:
    kept = MemoryPersistence()

    async def before() -> Any:
        async with flock_of(Metered(), budgets=[asking()], persistence=kept, shards=2) as flock:
            return (await use_up(flock))[0]

    async def after(waiting: Any, answer: str) -> int:
        async with flock_of(Metered(), budgets=[asking()], persistence=kept) as flock:
            await flock.start()
            [known] = await flock.approvals.pending()
            assert (known.id, known.artifact) == (waiting.id, waiting.artifact)
            await flock.approvals.reject(known, by="cfo")
            return 0

    async def later() -> None:
        async with flock_of(Metered(), budgets=[asking()], persistence=kept) as flock:
            await flock.start()
            await asyncio.sleep(200)
            replies, errors = await ended(flock)
            assert (replies, len(errors)) == (1, 2)
            assert await flock.approvals.pending() == []

    waiting = run_virtual(before())
    run_virtual(after(waiting, "reject"))
    run_virtual(later())


def test_an_artifact_has_no_amount() -> None:
    from tests.unit.test_approvals import ONE, asked, declare, virtually

    async def main() -> None:
        from flock_ray.testing import VirtualFlock

        async with VirtualFlock() as flock:
            declare(flock, ONE)
            waiting = await asked(flock)
            with pytest.raises(ConfigurationError, match="for budgets"):
                await flock.approvals.approve(waiting, by="ann", amount=5)

    virtually(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_exceeded": "ask"}, "who decides"),
        ({"approval": SPEC}, "go together"),
        ({"on_exceeded": "ask", "approval": "cfo"}, "ApprovalSpec"),
        ({"on_exceeded": "ask", "approval": ApprovalSpec(shadow=True)}, "leave them out"),
        (
            {"on_exceeded": "ask", "approval": ApprovalSpec(approvers=["a"], allow_edit=True)},
            "leave them out",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Budget(usd=1, **options)
