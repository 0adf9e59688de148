"""Work and permits that are lost on the way to a worker or back."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from unittest import mock

from flock_ray.actors.outbound import ShardOutbound
from flock_ray.core import wire
from flock_ray.core.activations import ActivationDesk
from flock_ray.core.dispatch import Dispatcher
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Activation, Slot
from flock_ray.ports import PeerGoneError


def leak_a_permit() -> AbstractContextManager[object]:
    """What a worker did not take keeps its permit."""

    def handed_back(self: ShardCore, tasks: list[wire.Task]) -> None:
        for task in tasks:
            activation = self.slots[task.slot].open.get(task.id)
            if (
                activation is not None
                and activation.worker is not None
                and activation.attempt == task.attempt
            ):
                self.dispatch.leases[activation.worker].pop(activation.id, None)
                activation.worker = None
                self.dispatch.push(activation, front=True)

    return mock.patch.object(ShardCore, "handed_back", handed_back)


def leak_permits_of_ended_runs() -> AbstractContextManager[object]:
    """A run that ended keeps its permit."""
    release = Dispatcher.release

    def leak(self: Dispatcher, activation: Activation, run_us: int = 0) -> None:
        holding = activation.holding
        release(self, activation, run_us)
        if holding is not None:
            holding.used += 1

    return mock.patch.object(Dispatcher, "release", leak)


def forget_work_of_a_lost_worker() -> AbstractContextManager[object]:
    """What a dead worker had is not given out again."""

    def worker_lost(self: ShardCore, worker: str, now_us: int) -> int:
        return len(self.dispatch.revoke(worker))

    return mock.patch.object(ShardCore, "worker_lost", worker_lost)


def count_the_unreachable_as_delivered() -> AbstractContextManager[object]:
    """A worker that could not be called will have got its tasks."""

    async def hand_over(
        self: ShardOutbound, worker: str, batch: wire.RunBatch, _: object, arrived: asyncio.Future[None]
    ) -> None:
        try:
            if not await self._peers.worker(worker).run(wire.encode(batch)):
                await self._enqueue("returned", batch, 0)
        except PeerGoneError:
            pass
        finally:
            arrived.set_result(None)
            self._handing[worker].discard(arrived)

    return mock.patch.object(ShardOutbound, "_hand_over", hand_over)


def drop_timers_of_delays() -> AbstractContextManager[object]:
    """Nobody wakes up for a delayed match."""
    add_timer = ActivationDesk._add_timer

    def add(self: ActivationDesk, slot: Slot, due_us: int, kind: str, first: bytes, second: bytes) -> None:
        if kind != "match":
            add_timer(self, slot, due_us, kind, first, second)

    return mock.patch.object(ActivationDesk, "_add_timer", add)


def drop_timers_of_gates() -> AbstractContextManager[object]:
    """Nobody wakes up for a batch or a window."""
    add_timer = ActivationDesk._add_timer

    def add(self: ActivationDesk, slot: Slot, due_us: int, kind: str, first: bytes, second: bytes) -> None:
        if kind != "gate":
            add_timer(self, slot, due_us, kind, first, second)

    return mock.patch.object(ActivationDesk, "_add_timer", add)


ALL = (
    leak_a_permit,
    leak_permits_of_ended_runs,
    forget_work_of_a_lost_worker,
    count_the_unreachable_as_delivered,
    drop_timers_of_delays,
    drop_timers_of_gates,
)
