"""Where the examples of this folder run: on a real model, or on a cassette, without one.

A cassette is a folder of answers that were recorded, one readable file for each request. To record your own:

    FLOCK_MODEL=openai/gpt-4.1-mini FLOCK_CASSETTE=examples/llm/cassettes/debate FLOCK_CASSETTE_MODE=record \
        python -m examples.llm.debate
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from flock_ray import Flock
from flock_ray.testing import VirtualFlock, run_virtual

MODEL = "openai/gpt-4.1-mini"
"""The model whose answers are on the cassettes."""
EMBEDDER = "openai/text-embedding-3-small"
"""The one whose vectors are."""
CASSETTES = Path(__file__).with_name("cassettes")

Play = Callable[[Flock], Awaitable[None]]


def perform(play: Play, cassette: str) -> None:
    """Run `play` on a flock with the model that is configured, or on a cassette in virtual time."""
    if os.environ.get("FLOCK_MODEL"):
        embedder = os.environ.get("FLOCK_EMBEDDER", EMBEDDER)
        asyncio.run(on(Flock(embedder=embedder), play))
    else:
        print("recorded answers; set FLOCK_MODEL for a real model")
        flock = VirtualFlock(MODEL, embedder=EMBEDDER, cassette=CASSETTES / cassette, cassette_mode="replay")
        run_virtual(on(flock, play))


async def on(flock: Flock, play: Play) -> None:
    """Run `play` on a flock, and close it."""
    async with flock:
        await play(flock)
