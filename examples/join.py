"""Join: orders and payments meet by order number, whatever workflow they came in."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import Flock, JoinSpec, flock_type


@flock_type
class Order(BaseModel):
    number: int
    amount: float


@flock_type
class Payment(BaseModel):
    order: int
    amount: float


@flock_type
class Shipment(BaseModel):
    number: int


def order_number(fact: Order | Payment) -> int:
    return fact.number if isinstance(fact, Order) else fact.order


def ship(order: Order, payment: Payment) -> Shipment | None:
    return Shipment(number=order.number) if payment.amount >= order.amount else None


async def main() -> None:
    async with Flock(shards=2) as flock:
        (
            flock.agent("shipping")
            .consumes(Order, Payment, join=JoinSpec(by=order_number, within=timedelta(days=3)))
            .publishes(Shipment)
            .runs(ship)
        )
        await flock.publish_many([Order(number=n, amount=10.0 * n) for n in (1, 2, 3)])
        await flock.publish_many([Payment(order=3, amount=30.0), Payment(order=1, amount=10.0)])
        await flock.run_until_idle(timeout=60)

        shipped = sorted(s.number for s in await flock.store.get_by_type(Shipment))
        print("shipped:", shipped)


if __name__ == "__main__":
    asyncio.run(main())
