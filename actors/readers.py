"""Reading a shard: streams, counts, status and waits. Every wait is a long call that the shard answers."""

from __future__ import annotations

import asyncio
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.actors.searching import MAX_PAGE_BYTES, ShardSearch
from flock_ray.core.index import CountQuery
from flock_ray.core.rows import ArtifactQuery
from flock_ray.core.status import WorkflowPart, artifact_fate, stored_fate, stored_part, workflow_part
from flock_ray.core.wire import Envelope

if TYPE_CHECKING:
    from flock_ray.actors.keeping import Keeper
    from flock_ray.core.shard import ShardCore

MAX_READ = 1000
"""Most artifacts or events one read returns."""

FIRST_PAGE = 64
"""Artifacts that are read from the store before it is known how large they are."""

_encode = msgspec.msgpack.Encoder().encode


class ShardReaders(ShardSearch):
    """The reading half of `Shard`: nothing here changes the board.

    With a store, nothing is shown before it is durable: a crash could take it back.
    """

    core: ShardCore
    _keeper: Keeper | None
    index: int
    num_appends: int
    num_records: int
    num_messages: int

    def __init__(self) -> None:
        """Start without readers."""
        super().__init__()
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._workflow_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._changed: asyncio.Future[None] | None = None
        self._heads = (0, 0)

    async def ready(self) -> None:
        """Wait until the shard has recovered; raises when it can't."""
        raise NotImplementedError  # Shard's

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    async def _durable(self) -> None:
        """Wait until what is applied now is in the store."""
        await self.ready()
        if self._keeper is not None and self._keeper.pending:
            await self._enqueue("sync", None, 0)

    def _notify(self) -> None:
        """Wake whoever waits for what the last batch brought about."""
        core = self.core
        if core.quiet:
            quiet, core.quiet = core.quiet, []
            if self._workflow_waiters:
                for workflow in quiet:
                    if not workflow.open:
                        self._release(self._workflow_waiters.pop(workflow.id, []))
        if self._idle_waiters and core.idle:
            waiters, self._idle_waiters = self._idle_waiters, []
            self._release(waiters)
        heads = (core.index.head, core.events.head)
        if heads != self._heads:
            self._heads = heads
            if self._changed is not None:
                self._release([self._changed])
                self._changed = None

    @staticmethod
    def _release(waiters: list[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _next_change(self) -> asyncio.Future[None]:
        """Return what is done as soon as anything is new: take it before looking, or a change is missed."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    async def wait_quiet(self, workflow: str | None, wait_s: float) -> tuple[bool, int]:
        """Wait until nothing is open here, of one workflow or (None) of all.

        Returns:
            Whether it is so, or the time is over, and the shard's activity counter: when two rounds over
            all shards give the same counters, nothing happened in between.
        """
        core = self.core
        await self._durable()
        if not self._is_quiet(workflow) and wait_s > 0:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters = (
                self._idle_waiters if workflow is None else self._workflow_waiters.setdefault(workflow, [])
            )
            waiters.append(waiter)
            await asyncio.wait([waiter], timeout=wait_s)
            if not waiter.done() and waiter in waiters:
                waiters.remove(waiter)
        return self._is_quiet(workflow), core.activity

    def _is_quiet(self, workflow: str | None) -> bool:
        if workflow is None:
            return self.core.idle
        slots = self.core.slots.values()
        return all(s.workflows[workflow].open == 0 for s in slots if workflow in s.workflows)

    async def timers(self) -> int:
        """Return how many things here wait for a time: delayed matches, gates with a deadline, approvals."""
        gates = (g for s in self.core.slots.values() for keys in s.gates.values() for g in keys.values())
        fan_ins = (f for s in self.core.slots.values() for some in s.fan_ins.values() for f in some.values())
        timed = sum(1 for g in gates if g.deadline_us) + sum(1 for f in fan_ins if f.deadline_us)
        cases = sum(not c.ask.terms.shadow for s in self.core.slots.values() for c in s.approvals.values())
        return sum(len(s.delayed) for s in self.core.slots.values()) + timed + cases

    async def read(
        self, after: int, type_name: str | None, workflow: str | None, limit: int, wait_s: float
    ) -> tuple[bytes, int, bool]:
        """Return artifacts behind a position, waiting for the first one.

        Returns:
            msgpack of a list of envelopes, the position to go on from, and whether artifacts between
            `after` and the first one may have been evicted unread.
        """
        blob, positions, position, gap = await self.read_at(after, type_name, workflow, limit, wait_s)
        return blob, positions[-1] if positions else position, gap

    async def read_at(
        self, after: int, type_name: str | None, workflow: str | None, limit: int, wait_s: float
    ) -> tuple[bytes, list[int], int, bool]:
        """Do what `read` does, and also return the position of each artifact."""
        limit = min(limit, MAX_READ)
        await self.ready()
        index = self.core.index
        while True:
            change, head = self._next_change(), self._head()
            gap = self._keeper is None and after > 0 and index.evicted_after(after, type_name)
            found = await self._find(after, type_name, workflow, limit)
            if found:
                return (
                    _encode([envelope for _, envelope in found]),
                    [seq for seq, _ in found],
                    found[-1][0],
                    gap,
                )
            after = max(after, head)  # not the head of now: what came while the store read was not looked at
            if wait_s <= 0 or not await _comes(change, wait_s):
                return _encode([]), [], after, gap

    def _head(self) -> int:
        """Position of the newest artifact that may be shown."""
        return self.core.index.head if self._keeper is None else self._keeper.head

    async def _find(
        self, after: int, type_name: str | None, workflow: str | None, limit: int
    ) -> list[tuple[int, Envelope]]:
        """Read from memory, or from the store where memory does not reach back so far."""
        index = self.core.index
        if self._keeper is not None and after < index.floor:
            query = ArtifactQuery(() if type_name is None else (type_name,), correlation_id=workflow)
            return await self._read_stored(self._keeper, query, after, limit)
        seqs = None if workflow is None else self._seqs_of(workflow)
        head = self._head()
        found = index.read(after, type_name=type_name, seqs=seqs)
        return list(islice(takewhile(lambda entry: entry[0] <= head, found), limit))

    async def _read_stored(
        self, keeper: Keeper, query: ArtifactQuery, after: int, limit: int
    ) -> list[tuple[int, Envelope]]:
        """Read from the store until there is enough for one reply; large payloads come in small pages."""
        found: list[tuple[int, Envelope]] = []
        total, page = 0, FIRST_PAGE
        while len(found) < limit and total < MAX_PAGE_BYTES:
            asked = min(page, limit - len(found))
            part = await keeper.store.read(query, found[-1][0] if found else after, asked)
            found += part
            total += sum(len(envelope.payload) for _, envelope in part)
            if len(part) < asked:
                break
            page *= 4
        return found

    def _seqs_of(self, workflow: str) -> list[int]:
        parts = [s.workflows[workflow].seqs for s in self.core.slots.values() if workflow in s.workflows]
        return parts[0] if len(parts) == 1 else sorted(seq for part in parts for seq in part)

    async def event_list(
        self, after: int, kinds: list[str], workflow: str | None, limit: int, wait_s: float
    ) -> tuple[bytes, int]:
        """Return events behind a position, waiting for the first one: msgpack of a list, and the new position."""
        while True:
            change = self._next_change()
            found, position = self.core.events.read(
                after, min(limit, MAX_READ), kinds=frozenset(kinds), correlation_id=workflow
            )
            if found or wait_s <= 0:
                return _encode(
                    [msgspec.structs.replace(event, shard=self.index) for event in found]
                ), position
            after = max(after, position)
            if not await _comes(change, wait_s):
                return _encode([]), after

    async def counts(self, queries: bytes, known: list[int] | None, wait_s: float) -> list[int]:
        """Count artifacts; with `known`, answer as soon as a count differs from it or the time is over."""
        wanted = msgspec.msgpack.decode(queries, type=list[CountQuery])
        while True:
            change = self._next_change()
            await self._durable()
            now = [await self._count(query) for query in wanted]
            if known is None or now != known or wait_s <= 0 or not await _comes(change, wait_s):
                return now

    async def _count(self, query: CountQuery) -> int:
        index = self.core.index
        if self._keeper is not None and index.floor and not index.counts(query):
            # Between two batches: nothing is accepted while the store counts.
            await self._enqueue("count", query, 0)
        if query.correlation_id is None:
            return index.count(query)
        return index.count(query, self._seqs_of(query.correlation_id))

    async def get(self, ids: list[bytes]) -> bytes:
        """Return msgpack of the artifacts found, in any order."""
        return _encode(await self._get(ids))

    async def _get(self, ids: list[bytes]) -> list[Envelope]:
        await self.ready()
        index, head = self.core.index, self._head()
        found = [e for key in ids if index.ids.get(key, 0) <= head and (e := index.get(key)) is not None]
        if self._keeper is not None and index.floor:
            missing = [key for key in ids if key not in index.ids]
            found += [e for _, e in await self._keeper.store.get(missing)] if missing else []
        return found

    async def status(self, workflow: str) -> bytes | None:
        """Return msgpack of a `WorkflowPart`; None when the workflow is unknown here."""
        await self._durable()
        part: WorkflowPart | None = workflow_part(self.core, workflow)
        if self._keeper is not None and self.core.index.floor:
            rows = await self._keeper.store.workflows([workflow])
            part = stored_part(self.core, part, rows)
        return None if part is None else _encode(part)

    async def usage(self, workflow: str | None) -> bytes:
        """Return msgpack of the `UsageRow`s of a workflow, or of everything by the hour."""
        await self._durable()
        slots = self.core.slots.values()
        if workflow is None:
            return _encode([row for slot in slots for row in slot.usage.values()])
        here = [found for slot in slots if (found := slot.workflows.get(workflow)) is not None]
        rows = [row for found in here for row in found.usage or ()]
        if self._keeper is not None and self.core.index.floor:
            known = {found.slot for found in here}
            stored = await self._keeper.store.workflows([workflow])
            rows += [row for found in stored if found.slot not in known for row in found.usage]
        return _encode(rows)

    async def fate(self, artifact_id: bytes) -> bytes:
        """Return msgpack of an `ArtifactFate`."""
        await self._durable()
        fate = artifact_fate(self.core, artifact_id)
        if self._keeper is not None and self.core.index.floor:
            found = await self._get([artifact_id])
            ended = await self._keeper.store.consumptions([artifact_id])
            made = await self._get([key for row in ended for key in row.outputs])
            fate = stored_fate(fate, found[0] if found else None, made)
        return _encode(fate)

    async def stats(self) -> dict[str, Any]:
        """Return sizes and counters of the shard, for tests, benches and metrics."""
        await self.ready()
        core = self.core
        return {
            "artifacts": len(core.index),
            "types": core.index.types(),
            "open": core.num_open,
            "active": core.num_active,
            "outbox": core.num_outbox,
            "activity": core.activity,
            "ready": {name: queue.count for name, queue in core.dispatch.ready.items() if queue.count},
            "epoch": 0 if self._keeper is None else self._keeper.epoch,
            "replayed": 0 if self._keeper is None else self._keeper.replayed,
            "store": "memory" if self._keeper is None else self._keeper.store.mode,
            "workflows": sum(len(s.workflows) for s in core.slots.values()),
            "gates": sum(len(keys) for s in core.slots.values() for keys in s.gates.values()),
            "candidates": core.candidates_by_subscription(),
            "table_version": core.table.version,
            "events": core.events.head,
            "appends": self.num_appends,
            "records": self.num_records,
            "messages": self.num_messages,
        }


async def _comes(change: asyncio.Future[None], wait_s: float) -> bool:
    """Wait for a change; False when the time is over."""
    done, _ = await asyncio.wait([change], timeout=wait_s)
    return bool(done)
