"""Tickets find their desk by what they mean; whatever fits nobody goes to the front desk.

Set FLOCK_EMBEDDER for a real embedding model, such as onnx:/path/to/all-MiniLM-L6-v2. Without one a toy
compares words, so that the example runs offline.
"""

from __future__ import annotations

import asyncio
import math
import os
import zlib
from collections.abc import Callable

from pydantic import BaseModel

from flock_ray import Flock, flock_type

DESKS = {
    "billing": "charged money invoice payment refund",
    "tech": "app error crash login problem",
    "sales": "price offer upgrade buy plan",
}
TICKETS = [
    "I was charged twice, please refund the second payment",
    "The app shows an error and then a crash when I try to login",
    "Is there an offer for the larger plan, and what is its price?",
    "Your office plants look lovely",
]


@flock_type
class Ticket(BaseModel):
    text: str


@flock_type
class Assigned(BaseModel):
    desk: str
    text: str


class WordCounter:
    """A toy embedder: texts are similar as far as they share words."""

    name = "toy:words"

    def embed(self, texts: list[str]) -> list[list[float]]:
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        vector = [0.0] * 4096
        for word in {word.strip(".,?!").lower() for word in text.split() if len(word) > 3} or {"?"}:
            vector[zlib.crc32(word.encode()) % len(vector)] += 1.0
        length = math.hypot(*vector)
        return [number / length for number in vector]


def assign(desk: str) -> Callable[[Ticket], Assigned]:
    def assigned(ticket: Ticket) -> Assigned:
        return Assigned(desk=desk, text=ticket.text)

    return assigned


async def main() -> None:
    embedder = None if os.environ.get("FLOCK_EMBEDDER") else WordCounter()
    async with Flock(embedder=embedder) as flock:
        for desk, query in DESKS.items():
            flock.agent(desk).consumes(
                Ticket, semantic_match=query, semantic_threshold=0.25, delivery="exclusive", priority=1
            ).publishes(Assigned).runs(assign(desk))
        # Of the exclusive subscriptions that match, the one of the highest priority gets the ticket.
        flock.agent("front").consumes(Ticket, delivery="exclusive").publishes(Assigned).runs(assign("front"))

        tickets = await flock.publish_many([Ticket(text=text) for text in TICKETS])
        await flock.run_until_idle(timeout=60)

        for assigned in sorted(
            await flock.store.get_by_type(Assigned), key=lambda made: TICKETS.index(made.text)
        ):
            print(f"{assigned.desk}: {assigned.text}")
        print(await flock.why(tickets[0]))


if __name__ == "__main__":
    asyncio.run(main())
