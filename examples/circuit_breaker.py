"""A circuit breaker: while a service is down its inputs wait on the board; when it is back, nothing was lost."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from flock_ray import Flock, flock_type

DOWN = Path(tempfile.mkdtemp()) / "down"
"""The payment service is down as long as this file is there."""


@flock_type
class Invoice(BaseModel):
    number: int


@flock_type
class Receipt(BaseModel):
    invoice: int


def charge(invoice: Invoice) -> Receipt:
    if DOWN.exists():
        raise ConnectionError("the payment service is down")
    return Receipt(invoice=invoice.number)


async def main() -> None:
    DOWN.touch()
    async with Flock() as flock:
        biller = flock.agent("biller").consumes(Invoice).publishes(Receipt).runs(charge)
        biller.circuit_breaker(
            failure_threshold=3, recovery_timeout=timedelta(seconds=2), half_open_attempts=2
        ).concurrency(1).rate_limit(100, per=timedelta(seconds=1))

        await flock.publish_many([Invoice(number=number) for number in range(1, 11)])
        async for event in flock.events("breaker"):
            print(event.kind, event.detail)
            if event.kind == "breaker.opened":
                view = await flock.breakers.get("biller")
                print("waiting:", view.waiting)
                DOWN.unlink()
            if event.kind == "breaker.closed":
                break

        await flock.run_until_idle(timeout=60)
        print("charged:", await flock.store.count(Receipt))

        # By hand, such as before the service moves: inputs wait until it is closed again.
        await flock.breakers.open("biller", by="anna: new server")
        await flock.publish(Invoice(number=11))
        print(await flock.breakers.get("biller"))
        await flock.breakers.close("biller", by="anna")
        await flock.run_until_idle(timeout=60)
        print("charged:", await flock.store.count(Receipt))


if __name__ == "__main__":
    asyncio.run(main())
