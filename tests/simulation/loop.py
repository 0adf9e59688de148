"""An event loop with virtual time, in which the seed decides who runs first."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

from flock_ray.testing import VirtualTimeLoop

MAX_STEPS = 400_000
"""Rounds of the loop after which something turns in circles; a long seed takes about 60,000."""


class NumberedTask(asyncio.Task[Any]):
    """Sets keep it by its number: their order does not depend on addresses in memory."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class NumberedFuture(asyncio.Future[Any]):
    """The same for futures."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class SeededLoop(VirtualTimeLoop):
    """Virtual time, and ready callbacks in an order that the seed decides."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._numbers = itertools.count(1)
        self.steps = 0
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> NumberedTask:
        NumberedTask.number = next(self._numbers)
        task = NumberedTask(work, loop=loop, **options)
        task.number = NumberedTask.number
        return task

    def create_future(self) -> NumberedFuture:
        future = NumberedFuture(loop=self)
        future.number = next(self._numbers)
        return future

    def _run_once(self) -> None:
        self.steps += 1
        if self.steps == MAX_STEPS:
            raise RuntimeError(f"turns in circles at virtual second {self.time():.3f}")
        ready = self._ready  # type: ignore[attr-defined]  # asyncio's own queue
        if len(ready) > 1 and self._rng.random() < 0.7:
            shuffled = list(ready)
            self._rng.shuffle(shuffled)
            ready.clear()
            ready.extend(shuffled)
        super()._run_once()  # type: ignore[misc]  # not in typeshed
