"""Roadmap, "Human-in-the-Loop Approval Patterns": a trade that two people have to approve, as printed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from flock_ray import ApprovalRejected, ApprovalSpec, ApprovalTimeout, Flock, flock_type
from flock_ray.core.registry import type_registry
from flock_ray.testing import VirtualFlock, run_virtual


class Signal(BaseModel):
    symbol: str


class TradeOrder(BaseModel):
    symbol: str
    amount: float


class Trade(BaseModel):
    symbol: str


def declare(flock: Flock) -> tuple[Any, Any]:
    # Human approval gates
    @flock_type
    class ApprovalRequest(BaseModel):
        artifact: TradeOrder
        requires_approval: bool = True

    trader = flock.agent("trader").publishes(
        TradeOrder,
        approval=ApprovalSpec(
            timeout=timedelta(minutes=5),
            approvers=["risk_manager", "compliance_officer"],
            quorum=2,  # Both must approve
            on_timeout=ApprovalTimeout.REJECT
        )
    )  # fmt: skip
    return trader, ApprovalRequest


def trading(flock: Flock) -> Any:
    trader, request = declare(flock)
    trader.consumes(Signal).runs(lambda signal: TradeOrder(symbol=signal.symbol, amount=1e6))
    flock.agent("exchange").consumes(TradeOrder).publishes(Trade).runs(lambda o: Trade(symbol=o.symbol))
    return request


def test_both_have_to_approve_before_anybody_gets_the_order() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            request = trading(flock)
            await flock.publish(Signal(symbol="ACME"))
            await flock.run_until_idle()
            assert await flock.store.get_by_type(TradeOrder) == []
            [shown] = await flock.store.get_by_type(request)
            assert shown == request(artifact=TradeOrder(symbol="ACME", amount=1e6))

            [waiting] = await flock.approvals.pending()
            await flock.approvals.approve(waiting, by="risk_manager")
            await flock.run_until_idle()
            assert await flock.store.get_by_type(TradeOrder) == []

            await flock.approvals.approve(waiting, by="compliance_officer")
            await flock.run_until_idle()
            assert await flock.store.get_by_type(TradeOrder) == [TradeOrder(symbol="ACME", amount=1e6)]
            assert await flock.store.get_by_type(Trade) == [Trade(symbol="ACME")]

    with type_registry.isolated():
        run_virtual(main())


def test_after_five_minutes_the_order_is_rejected() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            trading(flock)
            await flock.publish(Signal(symbol="ACME"))
            await flock.run_until_idle()
            [waiting] = await flock.approvals.pending()
            await flock.approvals.approve(waiting, by="risk_manager")
            await asyncio.sleep(301)
            await flock.run_until_idle()

            assert await flock.store.get_by_type(TradeOrder) == []
            assert await flock.approvals.pending() == []
            [rejected] = await flock.store.get_by_type(ApprovalRejected)
            assert (rejected.artifact_id, rejected.outcome) == (str(waiting.id), "expired")

    with type_registry.isolated():
        run_virtual(main())
