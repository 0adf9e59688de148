"""Approvals beside everything else that an agent can be: several outputs, contexts, direct runs, retries, checks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import (
    ApprovalRejected,
    ApprovalRequest,
    ApprovalSpec,
    Context,
    FanInStrategy,
    FanOutStrategy,
    Flock,
    WorkflowError,
    flock_type,
)
from flock_ray.context.providers import DefaultContextProvider
from flock_ray.core.registry import type_registry
from flock_ray.testing import VirtualFlock
from tests.unit.test_approvals import ONE, Fill, Idea, Order, asked, declare, virtually


@flock_type(name="ApprovalTestBasket")
class Basket(BaseModel):
    ideas: list[Idea]


@flock_type(name="ApprovalTestShare")
class Share(BaseModel):
    ideas: list[Idea]


ANN = ApprovalSpec(approvers=["ann"])


def test_each_output_of_a_run_waits_by_itself() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            spec = ApprovalSpec(approvers=["ann"], when=lambda order: order.amount > 1)
            flock.agent("trader").consumes(Idea).publishes(Order, fan_out=(1, 5), approval=spec).runs(
                lambda idea: [Order(symbol=f"s{n}", amount=n) for n in range(4)]
            )
            await flock.publish(Idea())
            await flock.run_until_idle()
            assert [o.amount for o in await flock.store.get_by_type(Order)] == [0, 1]
            first, second = sorted(
                await flock.approvals.pending(), key=lambda one: (one.artifact or {})["amount"]
            )
            await flock.approvals.approve(second, by="ann")
            await flock.approvals.reject(first, by="ann")
            await flock.run_until_idle()
            assert sorted(o.amount for o in await flock.store.get_by_type(Order)) == [0, 1, 3]

    virtually(main())


def test_one_type_of_a_run_waits_and_the_other_does_not() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("trader").consumes(Idea).publishes(Order, approval=ANN).publishes(Fill).runs(
                lambda idea: (Order(symbol="x", amount=1), Fill(symbol="x"))
            )
            waiting = await asked(flock)
            assert await flock.store.get_by_type(Fill) == [Fill(symbol="x")]
            await flock.approvals.approve(waiting, by="ann")
            await flock.run_until_idle()
            assert len(await flock.store.get_by_type(Order)) == 1

    virtually(main())


def test_a_context_of_everything_has_nothing_of_what_waits() -> None:
    seen: list[str] = []

    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, ONE)

            def look(ctx: Context, fill: Fill) -> None:
                seen.extend(artifact.type for artifact in ctx.artifacts)

            for name in ("spy", "ann"):
                flock.agent(name).consumes(Fill).with_context(DefaultContextProvider()).runs(look)
            await asked(flock)
            await flock.publish(Fill(symbol="x"))
            await flock.run_until_idle()

    virtually(main())
    assert seen.count("ApprovalRequest") == 1  # ann's
    assert "ApprovalTestOrder" not in seen


def test_an_agent_that_is_invoked_waits_too() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock, ONE)
            made = await flock.invoke("trader", Idea())
            assert [artifact.type for artifact in made] == ["ApprovalRequest"]
            [waiting] = await flock.approvals.pending()
            await flock.approvals.approve(waiting, by="bob")
            await flock.run_until_idle()
            assert filled == ["ACME 5000"]

    virtually(main())


def test_a_run_that_is_tried_again_asks_once() -> None:
    failures = [ConnectionError("away")] * 2

    async def main() -> None:
        async with VirtualFlock() as flock:

            def trade(idea: Idea) -> Order:
                if failures:
                    raise failures.pop()
                return Order(symbol="x", amount=1)

            flock.agent("trader").consumes(Idea).publishes(Order, approval=ANN).retry(max_attempts=3).runs(
                trade
            )
            await flock.publish(Idea())
            await flock.run_until_idle(include_timers=False)
            while not (waiting := await flock.approvals.pending()):
                await flock.run_until_idle(timeout=60)
            assert len(waiting) == 1
            assert await flock.store.get_by_type(WorkflowError) == []

    virtually(main())


def test_a_directed_run_returns_what_was_published() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            declare(flock, ONE)
            assert await flock.arun(flock.get_agent("trader"), Idea()) == []
            assert len(await flock.approvals.pending()) == 1

    virtually(main())


def test_the_check_knows_that_the_board_publishes_these_types() -> None:
    with type_registry.isolated():
        flock = Flock()
        declare(flock, ONE)
        for cls in (ApprovalRequest, ApprovalRejected):
            flock.agent(f"of {cls.__name__}").consumes(cls).runs(lambda one: None)
        found = [finding for finding in map(str, flock.check(published=[Idea])) if "ApprovalRe" in finding]
        assert found == []


@pytest.mark.parametrize("count", [300])
def test_a_page_holds_no_more_than_asked_for(count: int) -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            declare(flock, ONE)
            await flock.publish_many([Idea(symbol=f"{n}") for n in range(count)])
            await flock.run_until_idle()
            seen: list[Any] = []
            while page := await flock.approvals.pending(limit=70, after=seen[-1] if seen else None):
                assert len(page) <= 70
                seen += page
            assert len({one.id for one in seen}) == len(seen) == count

    virtually(main())


def test_what_is_too_large_for_shards_waits_and_is_published_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLOCK_INLINE_PAYLOAD_BYTES", "1024")

    async def main() -> None:
        async with VirtualFlock() as flock:
            filled = declare(flock, ApprovalSpec(approvers=["ann", "bob"], allow_edit=True))
            await flock.publish(Idea(symbol="x" * 5000))
            await flock.run_until_idle()
            [waiting] = await flock.approvals.pending()
            assert waiting.artifact is not None and len(waiting.artifact["symbol"]) == 5000
            edited = await flock.approvals.edit(waiting, Order(symbol="y" * 6000, amount=1), by="bob")
            assert edited.artifact is not None and len(edited.artifact["symbol"]) == 6000
            await flock.approvals.approve(edited, by="ann")
            await flock.run_until_idle()
            assert filled == [f"{'y' * 6000} 1"]

    virtually(main())


def test_a_fan_in_waits_for_chunks_that_wait_for_people() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            flock.agent("splitter").consumes(Basket).fan_out(
                into=Share, strategy=FanOutStrategy.BY_SIZE, chunk_size=1
            )
            flock.agent("trader").consumes(Share).publishes(
                Order, approval=ApprovalSpec(approvers=["ann"], when=lambda order: order.amount > 1)
            ).runs(lambda share: Order(symbol=share.ideas[0].symbol, amount=share.ideas[0].amount))
            flock.agent("collector").fan_in(
                from_type=Order, into=Fill, strategy=FanInStrategy.MERGE, min_fraction=0.1,
                merge_fn=lambda orders: Fill(symbol="".join(o.symbol for o in orders)),
            )  # fmt: skip
            await flock.publish(Basket(ideas=[Idea(symbol=s, amount=n) for n, s in enumerate("abcd")]))
            await asyncio.sleep(60)  # a board with an open fan-out is not idle
            assert await flock.store.get_by_type(Fill) == []
            first, second = sorted(
                await flock.approvals.pending(), key=lambda one: (one.artifact or {})["amount"]
            )
            await flock.approvals.reject(first, by="ann")
            await asyncio.sleep(60)
            assert await flock.store.get_by_type(Fill) == []
            await flock.approvals.approve(second, by="ann")
            await asyncio.sleep(60)
            assert await flock.store.get_by_type(Fill) == [Fill(symbol="abd")]

    virtually(main())
