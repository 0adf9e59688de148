"""A store over a network of its own: slow, lossy, and late."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from flock_ray.adapters.memory import MemoryStore
from flock_ray.core.rows import ArtifactQuery, Loaded, Snapshot, StoreBatch, WorkflowRow
from flock_ray.core.shard import ShardCore
from flock_ray.core.wire import Envelope
from flock_ray.errors import StaleEpochError, StoreError, StoreUnavailableError
from tests.simulation.disk import SimDisk
from tests.simulation.world import World

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]
_Numbers = dict[tuple[int, int], int]


class SimStore(MemoryStore):
    """What was sent arrives even when its sender is dead, and sometimes when its sender has given it up."""

    def __init__(self, world: World, disk: SimDisk, shard: int) -> None:
        super().__init__(disk)
        self._world = world
        self._disk = disk
        self._shard = shard
        self.core: ShardCore | None = None
        """Who writes here."""

    async def _travel(self, work: Work[T], failing: float, late: float, max_extra_s: float) -> T:
        faults, rng = self._world.faults, self._world.rng
        await asyncio.sleep(faults.max_append_s * rng.random() + max_extra_s * rng.random())
        if rng.random() < failing / 2:
            if rng.random() < late:
                self._world.send(self._arrive_late(work, faults.max_late_s * rng.random()))
            raise StoreUnavailableError("the store is away")
        result = await work()
        await asyncio.sleep(faults.max_append_s * rng.random())
        if rng.random() < failing / 2:
            raise StoreUnavailableError("the store's answer was lost")
        return result

    @staticmethod
    async def _arrive_late(work: Work[Any], delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        with contextlib.suppress(StoreError):
            await work()

    async def _call(self, work: Work[T], *, max_extra_s: float = 0.0) -> T:
        """Ask a question."""
        failing = self._world.faults.failing_read
        return await asyncio.shield(self._world.send(self._travel(work, failing, 0.0, max_extra_s)))

    async def _write(self, work: Work[None], failing: float) -> None:
        faults, rng = self._world.faults, self._world.rng
        if rng.random() < faults.repeated_write:
            self._world.send(self._arrive_late(work, faults.max_late_s * rng.random()))
        await asyncio.shield(self._world.send(self._travel(work, failing, faults.late_write, 0.0)))

    # -- the journal ---------------------------------------------------------------------------

    async def acquire(self, owner: str = "") -> int:
        if self._world.faults.late_acquires > 0:
            self._world.faults.late_acquires -= 1
            self._world.send(self._acquire_late(owner, 3.0 * self._world.rng.random()))
        return await self._call(partial(super().acquire, owner))

    async def _acquire_late(self, owner: str, delay_s: float) -> None:
        """What a process had sent before it died."""
        await asyncio.sleep(delay_s)
        self._disk.epoch += 1
        self._disk.owner = owner
        self._world.trace.note("is fenced by what a dead process had sent", self._shard)

    async def owner(self) -> str:
        return await super().owner()  # no draw: old seeds stay what they are

    async def load(self) -> Loaded:
        loaded = await self._call(super().load, max_extra_s=self._world.faults.max_load_s)
        self._world.trace.note(f"loads everything up to #{loaded.last_lsn}, epoch {self.epoch}", self._shard)
        return loaded

    async def append(self, batch: StoreBatch) -> None:
        assert self.core is not None
        slots = self.core.slots.items()
        sent = {(i, to): n for i, slot in slots for to, n in slot.out_seq.items()}
        received = {(source, i): n for i, slot in slots for source, n in slot.inbox.items()}
        await self._write(partial(self._append, batch, sent, received), self._world.faults.failing_append)

    async def _append(self, batch: StoreBatch, sent: _Numbers, received: _Numbers) -> None:
        disk, new = self._disk, batch.lsn > self._disk.last_lsn
        await super().append(batch)
        if not new:
            return
        self._world.trace.appended(self._shard, batch.lsn, batch.frame)
        if self.epoch != disk.epoch:
            self._world.broken(self._shard, f"G3: epoch {self.epoch} wrote after epoch {disk.epoch} began")
        if batch.at_us < disk.last_at_us:
            self._world.broken(self._shard, f"journal time went back by {disk.last_at_us - batch.at_us} us")
        disk.last_at_us = batch.at_us
        disk.learn(batch.frame)
        disk.sent, disk.received = sent, received

    async def save_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        await self._write(partial(self._save_snapshots, snapshots), self._world.faults.failing_snapshot)

    async def _save_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        with self._fenced("snapshots"):
            await super().save_snapshots(snapshots)
        if snapshots:
            text = ", ".join(str(s.slot) for s in snapshots)
            self._world.trace.note(f"snapshots of slots {text} at #{snapshots[0].lsn}", self._shard)

    async def truncate(self, lsn: int) -> None:
        await self._write(partial(self._truncate, lsn), self._world.faults.failing_snapshot)

    async def _truncate(self, lsn: int) -> None:
        with self._fenced("a truncation"):
            await super().truncate(lsn)
        self._world.trace.note(f"cut up to #{lsn}", self._shard)

    @contextlib.contextmanager
    def _fenced(self, what: str) -> Any:
        """Note that somebody wrote who is not the writer any more."""
        try:
            yield
        except StaleEpochError:
            raise
        if self.epoch != self._disk.epoch:
            text = f"G3: {what} of epoch {self.epoch} came after epoch {self._disk.epoch} began"
            self._world.broken(self._shard, text)

    # -- the index -----------------------------------------------------------------------------

    async def bodies(self, ids: Collection[bytes], near: Collection[int] = ()) -> dict[bytes, bytes]:
        return await self._call(partial(super().bodies, ids))

    async def get(self, ids: Collection[bytes]) -> list[tuple[int, Envelope]]:
        return await self._call(partial(super().get, ids))

    async def recent_ids(self, limit: int) -> list[bytes]:
        return await self._call(partial(super().recent_ids, limit))

    async def read(self, query: ArtifactQuery, after: int, limit: int) -> list[tuple[int, Envelope]]:
        return await self._call(partial(super().read, query, after, limit))

    async def newest(
        self, query: ArtifactQuery, limit: int, before: tuple[int, bytes] | None = None
    ) -> list[tuple[int, Envelope]]:
        return await self._call(partial(super().newest, query, limit, before))

    async def count(self, query: ArtifactQuery) -> int:
        return await self._call(partial(super().count, query))

    async def workflows(self, ids: Collection[str]) -> list[WorkflowRow]:
        return await self._call(partial(super().workflows, ids))
