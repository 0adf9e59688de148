"""Dead letters: what fails for good is put aside with all that is known, edited by hand and run again."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import DeadLetterQueue, Flock, flock_type
from flock_ray.core.retries import FixedDelay


@flock_type
class Invoice(BaseModel):
    number: int
    currency: str


@flock_type
class Booking(BaseModel):
    number: int
    cents: int


RATES = {"EUR": 100, "USD": 92}


def book(invoice: Invoice) -> Booking:
    if invoice.currency not in RATES:
        raise LookupError(f"no rate for {invoice.currency!r}")
    return Booking(number=invoice.number, cents=RATES[invoice.currency])


async def main() -> None:
    async with Flock() as flock:
        flock.agent("accountant").consumes(Invoice).publishes(Booking).runs(book).retry(
            FixedDelay(timedelta(milliseconds=50)),
            on=[LookupError],
            max_attempts=2,
            dead_letter=DeadLetterQueue("unbooked"),
        )
        await flock.publish_many(
            [Invoice(number=n, currency=c) for n, c in enumerate(("EUR", "USD", "EURO", "USD"))]
        )
        await flock.run_until_idle(timeout=60, include_timers=True)
        print("booked:", sorted(b.number for b in await flock.store.get_by_type(Booking)))

        for letter in await flock.dead_letters.list(queue="unbooked"):
            details = await flock.dead_letters.get(letter.id)
            print(
                f"{letter.agent} failed {len(details.letter.attempts)} times: {details.letter.error_message}"
            )
            [invoice] = details.models()
            assert isinstance(invoice, Invoice)
            corrected = invoice.model_copy(update={"currency": "EUR"})
            await flock.dead_letters.edit(letter.id, corrected, by="ann")
            await flock.dead_letters.redrive(letter.id, by="ann")

        await flock.run_until_idle(timeout=60)
        print("booked:", sorted(b.number for b in await flock.store.get_by_type(Booking)))
        done = (await flock.dead_letters.get(letter.id)).history
        print("history:", ", ".join(f"{action.action} by {action.by}" for action in done))


if __name__ == "__main__":
    asyncio.run(main())
