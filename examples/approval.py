"""Approval: a trade that two people have to approve. Type `ann yes`, `bob no too risky`, or `ann edit 900`."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import Approval, ApprovalRejected, ApprovalSpec, Flock, flock_type
from flock_ray.errors import FlockError

PEOPLE = {"ann": ["risk_manager"], "bob": ["compliance_officer"], "cleo": ["risk_manager"], "eve": []}


@flock_type
class Signal(BaseModel):
    symbol: str
    amount: float


@flock_type
class TradeOrder(BaseModel):
    symbol: str
    amount: float


@flock_type
class Execution(BaseModel):
    text: str


def trade(signal: Signal) -> TradeOrder:
    return TradeOrder(symbol=signal.symbol, amount=signal.amount)


def execute(order: TradeOrder) -> Execution:
    return Execution(text=f"bought {order.symbol} for {order.amount:,.0f}")


def sorry(rejected: ApprovalRejected) -> Execution:
    return Execution(text=f"not bought: {rejected.outcome} {rejected.reason}".rstrip())


async def decide(flock: Flock, waiting: Approval, line: str) -> Approval:
    """Do what somebody has typed."""
    who, what, *rest = [*line.split(), ""]
    comment = " ".join(rest).strip()
    if what == "yes":
        return await flock.approvals.approve(waiting, by=who, comment=comment)
    if what == "no":
        return await flock.approvals.reject(waiting, by=who, comment=comment)
    if what == "edit" and waiting.artifact is not None:
        return await flock.approvals.edit(waiting, {**waiting.artifact, "amount": float(comment)}, by=who)
    print("Type a name and yes, no, or edit with an amount.")
    return waiting


async def main() -> None:
    async with Flock(principals=PEOPLE) as flock:
        flock.agent("trader").consumes(Signal).publishes(
            TradeOrder,
            approval=ApprovalSpec(
                approvers=["risk_manager", "compliance_officer"],
                quorum=2,
                timeout=timedelta(minutes=5),
                allow_edit=True,
                when=lambda order: order.amount > 1000,
                summary=lambda order: f"buy {order.symbol} for {order.amount:,.0f}",
            ),
        ).runs(trade)
        flock.agent("exchange").consumes(TradeOrder).publishes(Execution).runs(execute)
        flock.agent("desk").consumes(ApprovalRejected).publishes(Execution).runs(sorry)

        await flock.publish_many([Signal(symbol="SMALL", amount=500), Signal(symbol="ACME", amount=250_000)])
        await flock.run_until_idle(timeout=60)
        print("at once:", *(e.text for e in await flock.store.get_by_type(Execution)))

        [waiting] = await flock.approvals.pending()
        print(f"waiting: {waiting.summary}; {waiting.quorum} of {', '.join(waiting.approvers)}")
        while waiting.state == "pending":
            line = await asyncio.to_thread(sys.stdin.readline)
            if not line:
                break
            try:
                waiting = await decide(flock, waiting, line)
            except FlockError as error:
                print(f"{type(error).__name__}: {error}")
                continue
            yes = ", ".join(waiting.approved_by) or "nobody"
            print(f"{waiting.state}: {waiting.artifact}, approved by {yes}")

        await flock.run_until_idle(timeout=60)
        print("in the end:", [e.text for e in await flock.store.get_by_type(Execution)][-1])


if __name__ == "__main__":
    asyncio.run(main())
