"""Where the examples of this folder run: on a real model, or as a rehearsal."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from flock_ray import Flock
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual


def perform(play: Callable[[Flock], Awaitable[None]], script: Mapping[str, Any]) -> None:
    """Run `play` on a flock with the model that is configured, or with scripted answers by agent."""
    if os.environ.get("FLOCK_MODEL"):
        asyncio.run(_on(Flock(), play))
    else:
        print("a rehearsal: answers are written down; set FLOCK_MODEL for a real one")
        run_virtual(_on(VirtualFlock(language_model=ScriptedModel(script)), play))


async def _on(flock: Flock, play: Callable[[Flock], Awaitable[None]]) -> None:
    async with flock:
        await play(flock)
