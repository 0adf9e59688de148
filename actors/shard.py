"""The shard: single writer of its slots. Drains its inbox, applies, appends once, then answers and dispatches.

This class is the host of `core.shard`; it knows nothing of Ray, so the virtual board and the
simulator run the very same code.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import islice
from typing import Any

from flock_ray.actors.readers import ShardReaders
from flock_ray.core import wire
from flock_ray.core.messages import parts
from flock_ray.core.shard import ShardCore
from flock_ray.errors import StoreUnavailableError
from flock_ray.ports import Clock, Journal, PeerGoneError, Peers

logger = logging.getLogger(__name__)


SMALL_POSTING_BYTES = 600


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """Limits of one shard."""

    max_artifacts: int | None = None
    """Artifacts kept in memory; None: no limit."""
    max_open: int = 200_000
    """Open activations past which publishers are told to wait."""
    max_inbox_bytes: int = 256 * 1024 * 1024
    """Bytes of commands waiting past which publishers are told to wait."""
    report_every_s: float = 0.02
    """Shortest time between two reports of demand to the router."""


class Shard(ShardReaders):
    """One shard of a board."""

    def __init__(
        self,
        index: int,
        num_shards: int,
        owned: list[int],
        *,
        journal: Journal,
        clock: Clock,
        peers: Peers,
        settings: ShardSettings | None = None,
    ) -> None:
        """Create the shard; `start` sets it to work.

        Args:
            index: Number of the shard, from 0.
            num_shards: Shards of the board.
            owned: Its slots.
            journal: Where records go before anything is answered.
            clock: Wall time.
            peers: Finds router, workers and other shards.
            settings: Limits; None for the defaults.
        """
        self.index = index
        self._num_shards = num_shards
        self._settings = settings or ShardSettings()
        self.core = ShardCore(owned, max_artifacts=self._settings.max_artifacts)
        self._journal = journal
        self._clock = clock
        self._peers = peers
        self._agents: dict[str, bytes] = {}
        self._inbox: deque[tuple[str, Any, asyncio.Future[Any]]] = deque()
        self._inbox_bytes = 0
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_us = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sending: set[int] = set()
        self._outgoing: dict[int, dict[tuple[int, int, int], wire.Forward]] = {}
        """By shard: outbox entries that are in the journal. Others must not leave: a crash would undo them here."""
        self.num_appends = self.num_records = self.num_messages = 0
        """Micro-batches, records in them, and messages to workers so far."""
        self._closed = False
        self._reported: dict[str, int] = {}
        self._report_timer: asyncio.TimerHandle | None = None
        self._retry_after_s = 0.1
        super().__init__()

    def start(self) -> None:
        """Begin to work; call once, on the loop that serves the shard."""
        self._spawn(self._run())
        self._spawn(self._keep_permits())

    async def close(self) -> None:
        """Stop working; what was not answered is not accepted."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        while self._inbox:
            _, _, future = self._inbox.popleft()
            if not future.done():
                future.cancel()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- calls from edges, workers, other shards and the router --------------------------------

    async def publish(self, blob: bytes) -> bytes:
        """Take a PublishBatch; answers with a PublishReply once its artifacts are in the journal."""
        reply: bytes = await self._enqueue("publish", blob, len(blob))
        return reply

    async def complete(self, blob: bytes) -> bytes:
        """Take a CompleteBatch; answers with a CompleteReply once it is in the journal."""
        reply: bytes = await self._enqueue("complete", blob, len(blob))
        return reply

    async def forward(self, blob: bytes) -> bytes:
        """Take a ForwardBatch from another shard; answers with what is now in the journal."""
        reply: bytes = await self._enqueue("forward", blob, len(blob))
        return reply

    async def install(self, table: bytes, agents: dict[str, bytes]) -> int:
        """Take a version of the subscription table; answers with the version in force."""
        version: int = await self._enqueue("install", (table, agents), len(table))
        return version

    async def table(self) -> tuple[int, dict[str, bytes]]:
        """Return the version in force and the definitions of all agents."""
        return self.core.table.version, self._agents

    async def flush_batches(self) -> int:
        """Run partial batches now; returns how many."""
        count: int = await self._enqueue("flush", None, 0)
        return count

    async def cancel(self, workflow: str) -> int:
        """Cancel a workflow; returns how many of its activations were open here."""
        count: int = await self._enqueue("cancel", workflow, 0)
        return count

    async def note(self, kind: str, agent: str, detail: str) -> None:
        """Put something that happened elsewhere on the board into this shard's event log."""
        self.core.events.note(self._clock.now_us(), kind, agent=agent, detail=detail)
        self._wake.set()

    async def report(self) -> bytes:
        """Return a ShardReport."""
        return wire.encode(self._make_report())

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if kind == "publish" and (refusal := self._refusal()):
            future.set_result(wire.encode(refusal))
            return future
        self._inbox.append((kind, subject, future))
        self._inbox_bytes += size
        self._wake.set()
        return future

    def _refusal(self) -> wire.PublishReply | None:
        if self._closed:
            return wire.PublishReply("closed")
        # What waits in the inbox counts as if it were small artifacts that start one activation each.
        full = (
            self.core.num_open + self._inbox_bytes // SMALL_POSTING_BYTES >= self._settings.max_open
            or self._inbox_bytes > self._settings.max_inbox_bytes
        )
        return wire.PublishReply("busy", retry_after_s=self._retry_after_s) if full else None

    # -- the loop ------------------------------------------------------------------------------

    async def _run(self) -> None:
        core = self.core
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            box, self._inbox = self._inbox, deque()
            self._inbox_bytes = 0
            now_us = self._clock.now_us()
            due = core.next_timer_us()
            if due is not None and due <= now_us:
                core.tick(now_us)
            answers = [(future, self._answer(kind, subject, now_us)) for kind, subject, future in box]
            core.settle_local_forwards(now_us)
            await self._append()
            for future, answer in answers:
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
            self._after_append(now_us)

    def _answer(self, kind: str, subject: Any, now_us: int) -> Any:
        """Apply a command; one that can't even be read must not stop the others."""
        try:
            return self._apply(kind, subject, now_us)
        except Exception as error:
            logger.exception("shard %d: %s failed", self.index, kind)
            self.core.events.note(now_us, "command.failed", detail=f"{kind}: {type(error).__name__}: {error}")
            return error

    async def _append(self) -> None:
        """Append what was accepted; while the store is down nothing is answered and nothing is sent."""
        while self.core.records:
            records, self.core.records = self.core.records, []
            self.num_appends += 1
            self.num_records += len(records)
            delay_s = 0.05
            while True:
                try:
                    await self._journal.append(records)
                    break
                except StoreUnavailableError:
                    await asyncio.sleep(delay_s)
                    delay_s = min(2.0, delay_s * 2)

    def _after_append(self, now_us: int) -> None:
        core = self.core
        self._dispatch(now_us)
        if core.cancels:
            self._send_cancels()
        if core.remote_forwards:
            self._send_forwards()
        self._notify()
        self._set_timer(now_us)
        self._report_demand()

    def _apply(self, kind: str, subject: Any, now_us: int) -> Any:
        if kind == "publish":
            return wire.encode(self._apply_publish(subject, now_us))
        if kind == "complete":
            return wire.encode(self._apply_complete(subject, now_us))
        if kind == "forward":
            return wire.encode(self._apply_forward(subject, now_us))
        if kind == "install":
            table, agents = subject
            if self.core.install(wire.decode_table(table), now_us):
                self._agents = agents
            return self.core.table.version
        if kind == "flush":
            return self.core.flush_batches(now_us)
        if kind == "grants":
            return self._apply_grants(subject, now_us)
        if kind == "returned":
            return self.core.handed_back(subject.tasks)
        if kind == "lost":
            return self.core.worker_lost(subject, now_us)
        return self.core.cancel(subject, now_us)

    def _apply_publish(self, blob: bytes, now_us: int) -> wire.PublishReply:
        batch = wire.decode_publish(blob)
        version = self.core.table.version
        if batch.table_version != version:
            return wire.PublishReply(
                "stale_table" if batch.table_version < version else "stale_shard", b"", version, 0.05
            )
        publish = self.core.publish
        return wire.PublishReply(
            "ok", bytes([publish(posting, now_us) for posting in batch.postings]), version
        )

    def _apply_complete(self, blob: bytes, now_us: int) -> wire.CompleteReply:
        batch = wire.decode_complete(blob)
        version = self.core.table.version
        if batch.table_version != version:
            return wire.CompleteReply(
                "stale_table" if batch.table_version < version else "stale_shard", version, 0.05
            )
        complete = self.core.complete
        for completion in batch.completions:
            complete(completion, now_us)
        return wire.CompleteReply("ok", version)

    def _apply_forward(self, blob: bytes, now_us: int) -> wire.ForwardReply:
        batch = wire.decode_forward(blob)
        if batch.table_version > self.core.table.version:
            return wire.ForwardReply("stale_shard")
        acks = []
        for forward in batch.forwards:
            if not self.core.forward_in(forward, now_us):
                break
            acks.append((forward.source, forward.target, forward.seq))
        return wire.ForwardReply("ok", acks)

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
                        self.core.forward_acked(*ack)
                    self._wake.set()
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

    def _apply_grants(self, blob: bytes, now_us: int) -> None:
        batch = wire.decode_grants(blob)
        for worker in batch.lost:
            self.core.worker_lost(worker, now_us)
        self.core.dispatch.grant(batch, now_us)


def _payload_bytes(task: wire.Task) -> int:
    inputs = task.inputs
    return len(inputs[0].payload) if len(inputs) == 1 else sum(len(e.payload) for e in inputs)
