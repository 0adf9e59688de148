"""A shard's core with the journal that a host would keep for it, and what a recovery makes of that."""

from __future__ import annotations

from collections.abc import Iterable

from flock_ray.core.changes import workflow_row
from flock_ray.core.ids import owned_slots
from flock_ray.core.records import Record, encode_frame
from flock_ray.core.recovery import Recovery, snapshot_shard, snapshot_slot
from flock_ray.core.rows import SHARD, Loaded, Snapshot, WorkflowRow
from flock_ray.core.shard import ShardCore


class Journaled:
    """One shard."""

    def __init__(self, index: int, num_shards: int) -> None:
        self.index = index
        self.epoch = 1
        self.lsn = 0
        self.frames: list[tuple[int, bytes]] = []
        self.snapshots: dict[int, Snapshot] = {}
        self._owned = owned_slots(index, num_shards)
        self.core = ShardCore(self._owned, durable=True)

    def append(self, now_us: int) -> tuple[list[Record], list[WorkflowRow]]:
        """Put what was accepted into the journal; returns it, with the rows of the workflows that it changed."""
        core, changes = self.core, self.core.changes
        assert changes is not None
        records, rows = core.records, [workflow_row(workflow) for workflow in changes.touched.values()]
        if records:
            self.lsn += 1
            frame = encode_frame(now_us, changes.heads, records, lambda e: e.slot in core.slots)
            self.frames.append((self.lsn, frame))
        core.records = []
        changes.clear()
        return records, rows

    def snapshot(self, slots: Iterable[int]) -> None:
        """Save some slots; every frame stays, as others need them."""
        for index in slots:
            self.snapshots[index] = Snapshot(index, self.lsn, snapshot_slot(self.core, index))

    def rotate(self) -> None:
        """Save everything, and cut the journal."""
        self.snapshot(self.core.slots)
        self.snapshots[SHARD] = Snapshot(SHARD, self.lsn, snapshot_shard(self.core))
        self.frames = []

    def rebuilt(self) -> ShardCore:
        """Return what a recovery makes of snapshots and frames."""
        core = ShardCore(self._owned, durable=True)
        self.epoch += 1
        loaded = Loaded(list(self.snapshots.values()), self.frames, self.lsn, self.core.index.head)
        Recovery(loaded).rebuild(core, self.epoch)
        return core
