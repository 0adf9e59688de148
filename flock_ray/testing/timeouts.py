"""Limits of runs on the one event loop of a test: what `actors.executor` does in a process with threads."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from flock_ray.actors.threads import Run, Setup
from flock_ray.core import wire

__all__ = ["LimitedRuns"]


class LimitedRuns:
    """The runs of agents with a limit, and when each showed a sign of life last."""

    def __init__(self) -> None:
        """Start with none."""
        self._runs: dict[tuple[bytes, int], Run] = {}

    def heartbeat(self, task: wire.Task) -> None:
        """Take a sign of life of a run."""
        run = self._runs.get((task.id, task.attempt))
        if run is not None:
            run.active = asyncio.get_running_loop().time()

    async def within(
        self, task: wire.Task, running: Coroutine[Any, Any, wire.Completion], setup: Setup
    ) -> wire.Completion:
        """Await a run; past one of its limits it is cancelled, and its failure is returned."""
        if setup.timeout_s is None and setup.idle_s is None:
            return await running
        loop = asyncio.get_running_loop()
        run = self._runs[task.id, task.attempt] = Run((task.id, task.attempt), 0, task)
        run.started, run.setup = loop.time(), setup
        made = loop.create_task(running)
        try:
            while not made.done() and not run.is_over(loop.time()):
                await asyncio.wait([made], timeout=run.left_s(loop.time()))
            if made.done():
                return made.result()
            await _ended(made)
            return run.timed_out()
        finally:
            del self._runs[task.id, task.attempt]
            if not made.done():
                await _ended(made)


async def _ended(made: asyncio.Task[Any]) -> None:
    made.cancel()
    await asyncio.wait([made])
