"""A newsroom: three reporters write at the same time, and the terminal shows them writing.

Every agent has a panel of its own while it speaks. Where there is no terminal, as in a pipe, lines come instead,
each with its agent's name.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

from pydantic import BaseModel, Field

from examples.llm.stage import CASSETTES, MODEL, on, perform
from flock_ray import Flock, WorkflowError, flock_type
from flock_ray.gateway.gateway import Gateway
from flock_ray.gateway.settings import GatewayPlan
from flock_ray.model import ModelReply, ModelRequest
from flock_ray.testing import VirtualFlock

DESKS = {"business": "money and jobs", "science": "what is known and what is not", "sports": "who wins"}


@flock_type
class Lead(BaseModel):
    """Something that may be news."""

    text: str


@flock_type
class Story(BaseModel):
    desk: str
    headline: str = Field(max_length=80)
    text: str = Field(max_length=600)


def declare(flock: Flock) -> None:
    for desk, angle in DESKS.items():
        (
            flock.agent(desk)
            .description(
                f"Writes for the {desk} desk, which asks for {angle}: a headline and three sentences."
            )
            .consumes(Lead)
            .publishes(Story)
        )


async def play(flock: Flock) -> None:
    declare(flock)
    async with flock.print_stream():
        lead = await flock.publish(Lead(text="The city builds a velodrome on the old airfield."))
        await flock.run_until_idle(timeout=300)
    stories = [
        a.payload for a in await flock.store.list(correlation_id=lead.correlation_id) if a.type == "Story"
    ]
    for story in sorted(stories, key=lambda story: str(story["desk"])):
        print(f"{story['desk']}: {story['headline']}")
    for error in await flock.store.get_by_type(WorkflowError):
        print(error.error_type, error.error_message)


class Typist:
    """Gives the answers of a cassette word by word, as fast as models write."""

    def __init__(self) -> None:
        self._gateway = Gateway(GatewayPlan(cassette=str(CASSETTES / "newsroom"), cassette_mode="replay"))

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelReply:
        reply = await self._gateway.complete(request)
        if on_text is not None:
            for word in reply.text.split(" "):
                on_text(f"{word} ")
                await asyncio.sleep(0.05)
        return reply


async def rehearse() -> None:
    await on(VirtualFlock(MODEL, language_model=Typist()), play)


if __name__ == "__main__":
    if os.environ.get("FLOCK_MODEL") or not sys.stdout.isatty():
        perform(play, "newsroom")
    else:
        asyncio.run(rehearse())
