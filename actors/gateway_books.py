"""What a gateway remembers of calls: for shards that ask about lost attempts, and of calls that are no run's."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

from flock_ray.actors.spending import CallsOf
from flock_ray.core.model_calls import MAX_CALLS, ModelCall, merged
from flock_ray.core.spending import LostAttempt
from flock_ray.model import Caller

__all__ = ["CallBook"]

MAX_REMEMBERED = 20_000
"""Calls of runs, some hundred bytes each; the oldest runs are forgotten."""
MAX_UNOWNED = 5_000
"""Calls of publishers that wait to be told; past it they are added up."""

_Key = tuple[str, int]
"""Activation as 32 hexadecimal digits, and attempt."""


class CallBook:
    """Calls by attempt; also those that a result brings along: nobody tells which results were committed."""

    def __init__(self, *, most: int = MAX_REMEMBERED) -> None:
        """Start empty; `most` calls are remembered."""
        self._most = most
        self._calls: OrderedDict[_Key, list[ModelCall]] = OrderedDict()
        self._num = 0
        self._running: dict[_Key, set[asyncio.Task[None]]] = {}
        self._unowned: dict[tuple[str, str], list[ModelCall]] = {}
        self._num_unowned = 0

    def begin(self, caller: Caller, task: asyncio.Task[None]) -> None:
        """Note that a call runs."""
        if caller.activation:
            self._running.setdefault((caller.activation, caller.attempt), set()).add(task)

    def end(self, caller: Caller, task: asyncio.Task[None]) -> None:
        """Note that it does not any more."""
        key = (caller.activation, caller.attempt)
        tasks = self._running.get(key)
        if tasks is not None:
            tasks.discard(task)
            if not tasks:
                del self._running[key]

    def note(self, caller: Caller, call: ModelCall) -> None:
        """Remember a call that was answered, or failed."""
        if not caller.activation:
            kept = self._unowned.setdefault((caller.agent, caller.workflow), [])
            kept.append(call)
            self._num_unowned += 1
            if self._num_unowned > MAX_UNOWNED:
                self._unowned = {key: merged(calls) for key, calls in self._unowned.items()}
                self._num_unowned = sum(map(len, self._unowned.values()))
            return
        key = (caller.activation, caller.attempt)
        self._calls.setdefault(key, []).append(call)
        self._calls.move_to_end(key)
        self._num += 1
        while self._num > self._most and len(self._calls) > 1:
            self._num -= len(self._calls.popitem(last=False)[1])

    async def of(self, lost: Iterable[LostAttempt]) -> list[CallsOf]:
        """End what runs for lost attempts, and return what they have asked; each call is returned once."""
        attempts = {(one.activation.hex(), one.attempt): one for one in lost}
        running = [task for key in attempts for task in self._running.get(key, ())]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        found = []
        for key, one in attempts.items():
            calls = self._calls.pop(key, None)
            if calls:
                self._num -= len(calls)
                kept = calls if len(calls) <= MAX_CALLS else merged(calls)
                found.append(
                    CallsOf(one.slot, one.agent, one.workflow, tuple(kept), one.activation, one.attempt)
                )
        return found

    def take_unowned(self) -> list[tuple[str, str, tuple[ModelCall, ...]]]:
        """Take (agent, workflow, calls) of calls that were made for no run."""
        taken, self._unowned, self._num_unowned = self._unowned, {}, 0
        return [(agent, workflow, tuple(merged(calls))) for (agent, workflow), calls in taken.items()]
