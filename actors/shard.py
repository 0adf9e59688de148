"""The shard: single writer of its slots. Drains its inbox, applies, appends once, then answers and dispatches.

This class is the host of `core.shard`; it knows nothing of Ray, so the virtual board and the
simulator run the very same code.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from flock_ray.actors.approvals import ShardApprovals
from flock_ray.actors.claims import ShardClaims
from flock_ray.actors.fanning import ShardFans
from flock_ray.actors.fencing import ShardFencing, owner_name
from flock_ray.actors.keeping import Keeper
from flock_ray.actors.ledgers import ShardLedgers
from flock_ray.actors.letters import ShardLetters
from flock_ray.actors.limiting import ShardLimits
from flock_ray.actors.limits import ShardSettings
from flock_ray.actors.lookups import ShardLookups
from flock_ray.actors.measuring import ShardMeasuring
from flock_ray.actors.outbound import ShardOutbound
from flock_ray.actors.pausing import ShardPausing
from flock_ray.actors.readers import ShardReaders
from flock_ray.actors.retention import ShardRetention
from flock_ray.actors.schedules import ShardSchedules
from flock_ray.actors.spending import ShardSpending
from flock_ray.actors.texts import ShardTexts
from flock_ray.core import wire
from flock_ray.core.approval_orders import decode_order
from flock_ray.core.letter_index import decode_orders
from flock_ray.core.shard import ShardCore
from flock_ray.erasing import scrub
from flock_ray.errors import FlockError, StoreError
from flock_ray.persistence import RetainedStore
from flock_ray.ports import Clock, PayloadStore, Peers, ShardStore

logger = logging.getLogger(__name__)

SMALL_POSTING_BYTES = 600

_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "publish": wire.decode_publish,
    "complete": wire.decode_complete,
    "forward": wire.decode_forward,
    "letters": decode_orders,
    "approval": decode_order,
}

MAX_BATCH_BYTES = 16 * 1024 * 1024
"""Commands of one micro-batch, so that one append stays small enough for every store."""


class Shard(
    ShardClaims, ShardOutbound, ShardReaders, ShardTexts, ShardRetention, ShardLetters, ShardLedgers, ShardPausing,
    ShardSchedules, ShardLimits, ShardLookups, ShardFencing, ShardFans, ShardSpending,
    ShardApprovals, ShardMeasuring,
):  # fmt: skip
    """One shard of a board."""

    def __init__(
        self,
        index: int,
        num_shards: int,
        owned: list[int],
        *,
        store: ShardStore | RetainedStore | None,
        clock: Clock,
        peers: Peers,
        settings: ShardSettings | None = None,
        payloads: PayloadStore | None = None,
        run_id: str = "",
    ) -> None:
        """Create the shard; `start` sets it to work.

        Args:
            index: Number of the shard, from 0.
            num_shards: Shards of the board.
            owned: Its slots.
            store: Where everything goes before anything is answered, with the retention if there is one;
                None: it lives as long as this object.
            clock: Wall time.
            peers: Finds router, workers and other shards.
            settings: Limits; None for the defaults.
            payloads: Holds large payloads outside this object; None: nothing does, they stay in here.
            run_id: What all processes of one start of the board have in common, and no other start; without it
                nobody is taken for an own predecessor.
        """
        self.index = index
        self._num_shards = num_shards
        self._settings = settings or ShardSettings()
        self._run_id = run_id
        retained = store if isinstance(store, RetainedStore) else None
        if isinstance(store, RetainedStore):
            store = store.inner
        self.core = ShardCore(owned, max_artifacts=self._settings.max_artifacts, durable=store is not None)
        self._payloads = payloads
        if payloads is not None:
            self.core.inline_limit = self._settings.inline_payload_bytes
        self._keeper = (
            None
            if store is None
            else Keeper(
                self.core, store, snapshot_bytes=self._settings.snapshot_bytes, on_down=self._turn_away,
                body_of=self._body_of, owner=owner_name(run_id),
            )
        )  # fmt: skip
        self._clock = clock
        self._peers = peers
        self._agents: dict[str, bytes] | None = None
        """Packages of the table's agents; None until the router brings them: the journal keeps no code."""
        self._inbox: deque[tuple[str, Any, int, asyncio.Future[Any]]] = deque()
        self._inbox_bytes = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.num_appends = self.num_records = self.num_messages = 0
        """Micro-batches, records in them, and messages to workers so far."""
        self._closed = False
        self._retry_after_s = 0.1
        self._read_s: float | None = None
        """Monotonic time at which the clock was read last."""
        self._recovered = asyncio.Event()
        self._failure: FlockError | None = None
        super().__init__()
        self._retainer = None if retained is None else self._make_retainer(retained)

    def start(self) -> None:
        """Begin to work; call once, on the loop that serves the shard. With a store, recovery comes first."""
        self._spawn(self._run())

    async def ready(self) -> None:
        """Wait until the shard has recovered.

        Raises:
            StoreCorruptError: It can't: what is stored can't be read.
            StaleEpochError: Another process is this shard now.
        """
        await self._recovered.wait()
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: FlockError) -> None:
        """Stop for good: every call, open or later, gets the reason."""
        logger.error("shard %d stops: %s", self.index, failure)
        self._failure, self._closed = failure, True
        self._recovered.set()
        if self._keeper is not None:
            self._keeper.fail(failure)
        while self._inbox:
            future = self._inbox.popleft()[3]
            if not future.done():
                future.set_exception(failure)

    async def close(self) -> None:
        """Stop working; what was not answered is not accepted."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        while self._inbox:
            future = self._inbox.popleft()[3]
            if not future.done():
                future.cancel()
        if self._keeper is not None:
            await self._keeper.close()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and self._failure is not None:
            task.exception()  # it failed because the shard did, which has been said

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
        await self.ready()
        return self.core.table.version, self._agents or {}

    async def flush_batches(self, workflow: str | None = None) -> int:
        """Run partial batches now, all or those of one workflow; returns how many."""
        count: int = await self._enqueue("flush", workflow, 0)
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
        if self._failure is not None:
            future.set_exception(self._failure)
            return future
        if kind == "publish" and (refusal := self._refusal()):
            future.set_result(wire.encode(refusal))
            return future
        self._inbox.append((kind, subject, size, future))
        self._inbox_bytes += size
        self._wake.set()
        return future

    def _turn_away(self) -> None:
        """Answer the publishers that wait while the store is away; nothing of theirs was applied."""
        self.core.events.note(
            self._now_us(), "store.unavailable", detail="everything waits until it answers again"
        )
        waiting, self._inbox = self._inbox, deque()
        for entry in waiting:
            kind, _, size, future = entry
            if kind != "publish":
                self._inbox.append(entry)
                continue
            self._inbox_bytes -= size
            if not future.done():
                future.set_result(wire.encode(self._refusal() or wire.PublishReply("unavailable")))

    def _refusal(self) -> wire.PublishReply | None:
        if self._closed:
            return wire.PublishReply("closed")
        if self._keeper is not None and self._keeper.down_since is not None:
            return wire.PublishReply("unavailable", retry_after_s=self._retry_after_s)
        # What waits in the inbox counts as if it were small artifacts that start one activation each.
        full = (
            self.core.num_open + self._inbox_bytes // SMALL_POSTING_BYTES >= self._settings.max_open
            or self._inbox_bytes > self._settings.max_inbox_bytes
        )
        return wire.PublishReply("busy", retry_after_s=self._retry_after_s) if full else None

    # -- the loop ------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            if self._keeper is not None:
                await self._keeper.recover()
                self.texts.begin_at(self.core.events.base)  # a new process: cursors of the old one see a gap
                self.core.events.note(self._now_us(), "shard.recovered", detail=f"epoch {self._keeper.epoch}")
                self._wake.set()
            self._recovered.set()
            self._spawn(self._keep_permits())
            if self._retainer is not None:
                self._spawn(self._retainer.run())
            while not self._closed:
                await self._wake.wait()
                self._wake.clear()
                await self._turn(self._take_box())
        except FlockError as failure:
            self._fail(failure if self._recovered.is_set() else await self._explained(failure))
        except Exception as error:
            logger.exception("shard %d: recovery failed", self.index)
            self._fail(StoreError(f"Shard {self.index} can't recover: {type(error).__name__}: {error}."))

    def broken(self) -> None:
        """Called when the shard has failed by a defect: a host that can start it again on its store does so."""

    def _now_us(self) -> int:
        """Journal time: wall time, or while that is behind, the last one and what a monotonic clock adds to it."""
        core, wall_us, read_s = self.core, self._clock.now_us(), asyncio.get_running_loop().time()
        if wall_us >= core.clock_us:
            core.clock_us = wall_us
        elif self._read_s is not None:
            core.clock_us += round((read_s - self._read_s) * 1e6)
        self._read_s = read_s
        return core.clock_us

    async def _turn(self, taken: list[tuple[str, Any, int, asyncio.Future[Any]]]) -> None:
        """Do one micro-batch; when it fails, everybody in it hears of it, and the shard stops."""
        failure: FlockError
        try:
            return await self._work(taken)
        except FlockError as error:
            failure = await self._explained(error)
        except Exception as error:  # half of it may be applied: only what is stored can be trusted
            logger.exception("shard %d: a micro-batch failed", self.index)
            failure = StoreError(f"Shard {self.index} stopped: {type(error).__name__}: {error}. See its log.")
            self.broken()
        self._give([(future, failure) for *_, future in taken])
        raise failure

    async def _work(self, taken: list[tuple[str, Any, int, asyncio.Future[Any]]]) -> None:
        """Apply what has queued, append it once, and only then answer, send and wake."""
        core, keeper = self.core, self._keeper
        now_us = self._now_us()
        box = await self._do_chores(taken, now_us)
        if keeper is not None:
            await self._look_up(keeper, box, now_us)
            for query in [subject for kind, subject, _, _ in box if kind == "count"]:
                await keeper.start_count(query)
        due = core.next_timer_us()
        if due is not None and due <= now_us:
            await self._offer_candidates(now_us)
            core.tick(now_us)
            core.check_deadlines(now_us)
        answers = [(future, self._answer(kind, subject, now_us)) for kind, subject, _, future in box]
        core.fire_due(now_us)
        core.settle_local_forwards(now_us)
        core.admit(now_us)
        await self._append(now_us)
        self._give(answers)
        self._after_append(now_us)

    @staticmethod
    def _give(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
        for future, answer in answers:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _take_box(self) -> list[tuple[str, Any, int, asyncio.Future[Any]]]:
        """Take from the inbox what fits into one micro-batch, decoded where that is still to do."""
        box: list[tuple[str, Any, int, asyncio.Future[Any]]] = []
        taken = 0
        while self._inbox and taken < MAX_BATCH_BYTES:
            kind, subject, size, future = self._inbox.popleft()
            taken += size
            try:
                decode = _DECODERS.get(kind)
                if decode is not None:
                    subject = decode(subject)
            except Exception as error:  # hostile or of another version: it must not stop the others
                future.set_exception(error)
                continue
            box.append((kind, subject, size, future))
        self._inbox_bytes -= taken
        if self._inbox:
            self._wake.set()
        return box

    def _answer(self, kind: str, subject: Any, now_us: int) -> Any:
        """Apply a command; one that can't even be read must not stop the others."""
        try:
            return self._apply(kind, subject, now_us)
        except Exception as error:
            logger.exception("shard %d: %s failed", self.index, kind)
            self.core.events.note(now_us, "command.failed", detail=f"{kind}: {type(error).__name__}: {error}")
            return error

    async def _append(self, now_us: int) -> None:
        """Make what was accepted durable; while the store is down nothing is answered and nothing is sent."""
        if self.core.records:
            self.num_appends += 1
            self.num_records += len(self.core.records)
            if self._keeper is None:
                self.core.records.clear()
            else:
                await self._keeper.append(now_us)

    def _after_append(self, now_us: int) -> None:
        core = self.core
        if self._keeper is not None:
            self._keeper.step(self._spawn, self._wake.set)
        if core.large or core.index.released:
            self._tidy_payloads()
        if core.cancels:
            self._send_cancels()
        if core.lost_attempts:
            self._ask_what_was_spent()
        self._dispatch(now_us)
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
            new = wire.decode_table(table)
            if self.core.install(new, now_us) or new.version == self.core.table.version:
                self._agents = agents
            return self.core.table.version
        if kind in ("sync", "count"):
            return None
        if kind == "acked":
            for ack in subject:
                self.core.forward_acked(*ack)
            return None
        if kind == "flush":
            core = self.core
            return core.flush_batches(now_us) if subject is None else core.flush_workflow(subject, now_us)
        if kind == "grants":
            return self._apply_grants(subject, now_us)
        if kind == "returned":
            return self.core.handed_back(subject.tasks)
        if kind == "lost":
            return self.core.worker_lost(subject, now_us)
        if kind == "letters":
            return self._apply_letters(subject, now_us)
        if kind == "breaker":
            return self._apply_breaker(subject, now_us)
        if kind in ("reserve", "settle", "set_budget"):
            return self._apply_ledger(kind, subject, now_us)
        if kind == "pause":
            return self._apply_pause(subject, now_us)
        if kind == "spent":
            return self._apply_spent(subject, now_us)
        if kind == "schedule":
            return self._apply_schedule(subject, now_us)
        if kind == "approval":
            return self._apply_approval(subject, now_us)
        return self.core.cancel(subject, now_us)

    def _apply_publish(self, batch: wire.PublishBatch, now_us: int) -> wire.PublishReply:
        version = self.core.table.version
        if batch.table_version != version:
            return wire.PublishReply(
                "stale_table" if batch.table_version < version else "stale_shard", b"", version, 0.05
            )
        self._check_claims(batch.postings)
        publish = self.core.publish
        return wire.PublishReply(
            "ok", bytes([publish(posting, now_us) for posting in batch.postings]), version
        )

    def _apply_complete(self, batch: wire.CompleteBatch, now_us: int) -> wire.CompleteReply:
        version = self.core.table.version
        if batch.table_version != version:
            return wire.CompleteReply(
                "stale_table" if batch.table_version < version else "stale_shard", version, 0.05
            )
        complete = self.core.complete
        for completion in batch.completions:
            self._check_claims(completion.outputs)
        for completion in batch.completions:
            complete(completion, now_us)
        return wire.CompleteReply("ok", version)

    def _apply_forward(self, batch: wire.ForwardBatch, now_us: int) -> wire.ForwardReply:
        if batch.table_version > self.core.table.version:
            return wire.ForwardReply("stale_shard")
        acks = []
        for forward in batch.forwards:
            if self._erased:
                scrub(forward.posting, self._erased)
            if not self.core.forward_in(forward, now_us):
                break
            acks.append((forward.source, forward.target, forward.seq))
        return wire.ForwardReply("ok", acks)

    def _apply_grants(self, blob: bytes, now_us: int) -> None:
        batch = wire.decode_grants(blob)
        for worker in batch.lost:
            self.core.worker_lost(worker, now_us)
        if not self.core.dispatch.grant(batch, now_us):
            return
        self.core.permits_changed()
        if not batch.renews:
            self.core.try_again({worker for grant in batch.grants for worker in grant.workers})
