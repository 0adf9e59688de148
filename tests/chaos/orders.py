"""A workload with every kind of waiting, and what must have come of it in the end."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from flock_ray import BatchSpec, Flock, JoinSpec, WorkflowError, flock_type


@flock_type(name="chaos.Order")
class Order(BaseModel):
    n: int


@flock_type(name="chaos.Payment")
class Payment(BaseModel):
    n: int


@flock_type(name="chaos.Packing")
class Packing(BaseModel):
    n: int


@flock_type(name="chaos.Shipment")
class Shipment(BaseModel):
    n: int
    pid: int


@flock_type(name="chaos.Claim")
class Claim(BaseModel):
    n: int


@flock_type(name="chaos.Settled")
class Settled(BaseModel):
    n: int


@flock_type(name="chaos.Truck")
class Truck(BaseModel):
    numbers: list[int]


def pay(order: Order) -> Payment:
    time.sleep(0.002)
    return Payment(n=order.n)


async def pack(order: Order) -> Packing:
    return Packing(n=order.n)


def ship(payment: Payment, packing: Packing) -> Shipment:
    assert payment.n == packing.n
    return Shipment(n=payment.n, pid=os.getpid())


def load(shipments: list[Shipment]) -> Truck:
    return Truck(numbers=[shipment.n for shipment in shipments])


def settle(claim: Claim, shipment: Shipment) -> Settled:
    assert claim.n == shipment.n
    return Settled(n=claim.n)


def declare(flock: Flock) -> None:
    """An AND gate in the workflow, a join and a batch across workflows."""
    flock.agent("pay").consumes(Order).publishes(Payment).max_concurrency(4).max_crashes(100).runs(pay)
    flock.agent("pack").consumes(Order).publishes(Packing).max_crashes(100).runs(pack)
    flock.agent("ship").consumes(Payment, Packing).publishes(Shipment).max_crashes(100).runs(ship)
    flock.agent("load").consumes(Shipment, batch=BatchSpec(size=10)).publishes(Truck).max_crashes(100).runs(
        load
    )
    join = JoinSpec(by=lambda item: item.n, within=timedelta(hours=1))
    flock.agent("settle").consumes(Claim, Shipment, join=join).publishes(Settled).max_crashes(100).runs(
        settle
    )


async def publish_orders(flock: Flock, numbers: range, *, at_once: int = 1) -> None:
    """Each order is a workflow of its own, and so is each claim; safe to repeat."""
    waiting = iter(numbers)

    async def publish() -> None:
        for n in waiting:
            await flock.publish(Order(n=n), correlation_id=f"order-{n}", idempotency_key=f"order-{n}")
            await flock.publish(Claim(n=n), correlation_id=f"claim-{n}", idempotency_key=f"claim-{n}")

    await asyncio.gather(*(publish() for _ in range(at_once)))


async def check_orders(flock: Flock, numbers: range) -> None:
    """Exactly what an undisturbed run gives: nothing lost, nothing twice."""
    errors = [error.error_message for error in await flock.store.get_by_type(WorkflowError)]
    assert errors == []
    expected = Counter(numbers)
    kinds: tuple[Any, ...] = (Order, Payment, Packing, Shipment, Claim, Settled)
    for kind in kinds:
        found = Counter(item.n for item in await flock.store.get_by_type(kind))
        assert found == expected, f"{kind.__name__}: {found - expected} too many, {expected - found} missing"
        assert await flock.store.count(kind) == len(numbers)
    trucks = await flock.store.get_by_type(Truck)
    assert Counter(n for truck in trucks for n in truck.numbers) == expected
