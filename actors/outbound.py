"""What leaves a shard: tasks for workers, forwards for other shards, reports for the router."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from itertools import islice
from typing import TYPE_CHECKING, Any

from flock_ray.core import wire
from flock_ray.core.messages import parts
from flock_ray.ports import Clock, PeerGoneError, Peers

if TYPE_CHECKING:
    from flock_ray.actors.limits import ShardSettings
    from flock_ray.core.shard import ShardCore

logger = logging.getLogger(__name__)


class ShardOutbound:
    """The sending half of `Shard`: acts on what is durable, and reports what came of it to the inbox."""

    core: ShardCore
    index: int
    num_messages: int
    _num_shards: int
    _peers: Peers
    _clock: Clock
    _settings: ShardSettings
    _wake: asyncio.Event
    _closed: bool
    _agents: dict[str, bytes] | None

    def __init__(self) -> None:
        """Start with nothing on its way."""
        super().__init__()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_us = 0
        self._sending: set[int] = set()
        self._outgoing: dict[int, dict[tuple[int, int, int], wire.Forward]] = {}
        """By shard: outbox entries that are in the journal. Others must not leave: a crash would undo them here."""
        self._reported: dict[str, int] = {}
        self._report_timer: asyncio.TimerHandle | None = None

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        raise NotImplementedError  # Shard's

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    # -- effects -------------------------------------------------------------------------------

    def _dispatch(self, now_us: int) -> None:
        core = self.core
        for worker, tasks in core.dispatch.take(now_us, core.table.version).items():
            for part in parts(tasks, [_payload_bytes(task) for task in tasks]):
                self.num_messages += 1
                self._spawn(self._hand_over(worker, wire.RunBatch(self.index, part, core.table.version)))

    async def _hand_over(self, worker: str, batch: wire.RunBatch) -> None:
        try:
            taken = await self._peers.worker(worker).run(wire.encode(batch))
        except Exception as error:
            if isinstance(error, PeerGoneError) and not error.final:
                # It may run them or not; the router finds out whether it is dead. No crash is counted.
                await asyncio.sleep(0.1)
                await self._enqueue("returned", batch, 0)
                return
            if not isinstance(error, PeerGoneError):
                logger.exception("shard %d: worker %s refused tasks", self.index, worker)
            await self._enqueue("lost", worker, 0)
            return
        if not taken:
            await self._enqueue("returned", batch, 0)

    def _send_cancels(self) -> None:
        cancels, self.core.cancels = self.core.cancels, []
        by_worker: dict[str, list[bytes]] = {}
        for worker, activation in cancels:
            by_worker.setdefault(worker, []).append(activation)
        for worker, ids in by_worker.items():
            self._spawn(self._cancel_at(worker, ids))

    async def _cancel_at(self, worker: str, ids: list[bytes]) -> None:
        with contextlib.suppress(PeerGoneError):  # then there is nothing left to stop
            await self._peers.worker(worker).cancel(ids)

    def _send_forwards(self) -> None:
        forwards, self.core.remote_forwards = self.core.remote_forwards, []
        for forward in forwards:
            shard = forward.target % self._num_shards
            key = (forward.source, forward.target, forward.seq)
            self._outgoing.setdefault(shard, {})[key] = forward
            if shard not in self._sending:
                self._sending.add(shard)
                self._spawn(self._forward_to(shard))

    async def _forward_to(self, shard: int) -> None:
        """Send what is for one shard until it has all: one batch at a time keeps the order."""
        outgoing = self._outgoing[shard]
        try:
            while pending := list(islice(outgoing.values(), 1000)):
                batch = wire.ForwardBatch(self.index, pending, self.core.table.version)
                try:
                    reply = wire.decode_forward_reply(
                        await self._peers.shard(shard).forward(wire.encode(batch))
                    )
                except PeerGoneError:
                    reply = wire.ForwardReply("closed")
                if reply.status == "ok" and reply.acks:
                    for ack in reply.acks:
                        outgoing.pop(ack, None)
                    await self._enqueue("acked", reply.acks, 0)
                else:
                    await asyncio.sleep(0.05)
        finally:
            self._sending.discard(shard)

    def _set_timer(self, now_us: int) -> None:
        due = self.core.next_timer_us()
        if due is None or (self._timer is not None and self._timer_at_us <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_us = due
        self._timer = asyncio.get_running_loop().call_later(max(0, due - now_us) / 1e6, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._wake.set()

    # -- permits -------------------------------------------------------------------------------

    def _make_report(self) -> wire.ShardReport:
        dispatch = self.core.dispatch
        running = dispatch.running()
        demand = [
            wire.AgentDemand(name, queue.count, running.pop(name, 0), queue.oldest_us() or 0)
            for name, queue in dispatch.ready.items()
            if queue.count or name in running
        ]
        demand += [wire.AgentDemand(name, 0, count) for name, count in running.items()]
        return wire.ShardReport(
            self.index,
            self.core.table.version,
            self._clock.now_us(),
            demand,
            tuple(sorted(dispatch.workers())),
            dispatch.grant_seq,
            self._agents is not None,
        )

    def _report_demand(self) -> None:
        """Tell the router when work starts or stops to wait, or much more or less of it does; throttled."""
        if self._report_timer is None and self._demand_changed():
            delay = self._settings.report_every_s
            self._report_timer = asyncio.get_running_loop().call_later(delay, self._on_report_timer)

    def _demand_changed(self) -> bool:
        reported = self._reported
        for name, queue in self.core.dispatch.ready.items():
            before, now = reported.get(name, 0), queue.count
            if now > 2 * before or 2 * now < before:
                return True
        return False

    def _on_report_timer(self) -> None:
        self._report_timer = None
        if not self._closed and self._demand_changed():
            self._reported = {name: queue.count for name, queue in self.core.dispatch.ready.items()}
            self._spawn(self._tell_demand())

    async def _tell_demand(self) -> None:
        with contextlib.suppress(PeerGoneError):  # the next exchange carries the same report
            await self._peers.router().demand(wire.encode(self._make_report()))

    async def _keep_permits(self) -> None:
        """Hold one long call to the router, which answers with permits; its end is how they arrive."""
        while not self._closed:
            try:
                blob = await self._peers.router().exchange(wire.encode(self._make_report()))
            except PeerGoneError:
                self.core.dispatch.forget_grants()
                await asyncio.sleep(0.1)
                continue
            await self._enqueue("grants", blob, 0)


def _payload_bytes(task: wire.Task) -> int:
    inputs = task.inputs
    return len(inputs[0].payload) if len(inputs) == 1 else sum(len(e.payload) for e in inputs)
