"""What leaves a shard: tasks for workers, forwards for other shards, reports for the router."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from itertools import islice
from typing import TYPE_CHECKING, Any

from flock_ray.actors.texts import is_heard
from flock_ray.core import wire
from flock_ray.core.messages import parts
from flock_ray.ports import Clock, PeerGoneError, Peers

if TYPE_CHECKING:
    from flock_ray.actors.limits import ShardSettings
    from flock_ray.core.shard import ShardCore

logger = logging.getLogger(__name__)

CANCEL_WAIT_S = 2.0
"""Longest wait for a worker to take an order to stop something."""

CANCEL_TRIES = 3


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
    _read_texts_s: float | None

    def __init__(self) -> None:
        """Start with nothing on its way."""
        super().__init__()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_us = 0
        self._sending: set[int] = set()
        self._outgoing: dict[int, dict[tuple[int, int, int], wire.Forward]] = {}
        """By shard: outbox entries that are in the journal. Others must not leave: a crash would undo them here."""
        self._handing: dict[str, set[asyncio.Future[None]]] = {}
        """By worker: batches on their way to it."""
        self._stopping: dict[str, asyncio.Future[None]] = {}
        """By worker: the last order to stop something, until it has it."""
        self._reported: dict[str, int] = {}
        self._report_timer: asyncio.TimerHandle | None = None

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        raise NotImplementedError  # Shard's

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    # -- effects -------------------------------------------------------------------------------

    def _dispatch(self, now_us: int) -> None:
        core, heard = self.core, is_heard(self._read_texts_s)
        for worker, tasks in core.dispatch.take(now_us, core.table.version).items():
            for part in parts(tasks, [_payload_bytes(task) for task in tasks]):
                self.num_messages += 1
                arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._handing.setdefault(worker, set()).add(arrived)
                batch = wire.RunBatch(self.index, part, core.table.version, heard)
                self._spawn(self._hand_over(worker, batch, self._stopping.get(worker), arrived))

    async def _hand_over(
        self,
        worker: str,
        batch: wire.RunBatch,
        after: asyncio.Future[None] | None,
        arrived: asyncio.Future[None],
    ) -> None:
        try:
            if after is not None:
                await asyncio.wait([after])
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
        finally:
            arrived.set_result(None)
            on_way = self._handing[worker]
            on_way.discard(arrived)
            if not on_way:
                del self._handing[worker]
        if not taken:
            await self._enqueue("returned", batch, 0)

    def _send_cancels(self) -> None:
        cancels, self.core.cancels = self.core.cancels, []
        by_worker: dict[str, list[bytes]] = {}
        for worker, activation in cancels:
            by_worker.setdefault(worker, []).append(activation)
        for worker, ids in by_worker.items():
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            first = set(self._handing.get(worker, ()))
            if worker in self._stopping:
                first.add(self._stopping[worker])
            self._stopping[worker] = done
            self._spawn(self._cancel_at(worker, ids, first, done))

    async def _cancel_at(
        self, worker: str, ids: list[bytes], first: set[asyncio.Future[None]], done: asyncio.Future[None]
    ) -> None:
        """Stop activations on a worker: after what was sent to it, before what is sent to it next.

        Actors don't keep the order of calls: an order that came too early would stop nothing, one that came too
        late would stop the next attempt.
        """
        try:
            if first:
                await asyncio.wait(first, timeout=CANCEL_WAIT_S)
            for _ in range(CANCEL_TRIES):
                try:
                    await asyncio.wait_for(self._peers.worker(worker).cancel(ids), CANCEL_WAIT_S)
                    return
                except PeerGoneError as gone:
                    if gone.final:
                        return  # there is nothing left to stop
                except TimeoutError:
                    pass  # it may be cut off: its permits run out, and late results are refused
                await asyncio.sleep(0.1)
        finally:
            done.set_result(None)
            if self._stopping.get(worker) is done:
                del self._stopping[worker]

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
        running, wanted = dispatch.running(), self.core.wanted(self._clock.now_us())
        demand = [
            wire.AgentDemand(
                name, wanted.get(name, 0), running.get(name, 0), self.core.oldest_wanted_us(name)
            )
            for name in sorted(running.keys() | wanted.keys())
        ]
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
        reported, wanted = self._reported, self.core.wanted(self._clock.now_us())
        for name in reported.keys() | wanted.keys():
            before, now = reported.get(name, 0), wanted.get(name, 0)
            if now > 2 * before or 2 * now < before:
                return True
        return False

    def _on_report_timer(self) -> None:
        self._report_timer = None
        if not self._closed and self._demand_changed():
            self._reported = self.core.wanted(self._clock.now_us())
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
