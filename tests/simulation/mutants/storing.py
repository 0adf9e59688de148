"""Stores that do not keep their word."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from unittest import mock

from flock_ray.actors.keeping import Rotation
from flock_ray.adapters.memory import MemoryStore
from flock_ray.core.rows import SHARD, Snapshot, StoreBatch


def skip_the_epoch_check() -> AbstractContextManager[object]:
    """Whoever asks may write."""
    return mock.patch.object(MemoryStore, "_check_epoch", return_value=None)


def skip_the_epoch_check_of_snapshots() -> AbstractContextManager[object]:
    """A zombie may still replace snapshots."""

    async def save(self: MemoryStore, snapshots: Sequence[Snapshot]) -> None:
        for snapshot in snapshots:
            known = self.disk.snapshots.get(snapshot.slot)
            if known is None or known.lsn <= snapshot.lsn:
                self.disk.snapshots[snapshot.slot] = snapshot

    return mock.patch.object(MemoryStore, "save_snapshots", save)


def older_snapshots_overwrite_newer_ones() -> AbstractContextManager[object]:
    """What arrives last stays."""

    async def save(self: MemoryStore, snapshots: Sequence[Snapshot]) -> None:
        self._check_epoch()
        self.disk.snapshots.update((snapshot.slot, snapshot) for snapshot in snapshots)

    return mock.patch.object(MemoryStore, "save_snapshots", save)


def truncate_too_far() -> AbstractContextManager[object]:
    """Take the end of a rotation for its beginning: slots that were snapshotted in between lose records."""

    async def finish(self: Rotation, lsn: int, data: bytes) -> None:
        lsn = self._store.disk.last_lsn  # type: ignore[attr-defined]  # the simulator's store
        await self._store.save_snapshots([Snapshot(SHARD, lsn, data)])
        await self._store.truncate(lsn)
        self._saving = False

    return mock.patch.object(Rotation, "_finish", finish)


def truncate_before_the_snapshot() -> AbstractContextManager[object]:
    """Drop frames of which the shard's own snapshot does not speak yet."""

    async def finish(self: Rotation, lsn: int, data: bytes) -> None:
        await self._store.truncate(lsn)
        await self._store.save_snapshots([Snapshot(SHARD, lsn, data)])
        self._saving = False

    return mock.patch.object(Rotation, "_finish", finish)


def forget_recent_ids() -> AbstractContextManager[object]:
    """After a recovery, nothing is known of what was published just before."""

    async def recent(self: MemoryStore, limit: int) -> Collection[bytes]:
        return []

    return mock.patch.object(MemoryStore, "recent_ids", recent)


def lose_workflow_rows() -> AbstractContextManager[object]:
    """Rows of workflows are written only when something was published."""
    append = MemoryStore.append

    async def forgetful(self: MemoryStore, batch: StoreBatch) -> None:
        if not batch.artifacts:
            batch.workflows = []
        await append(self, batch)

    return mock.patch.object(MemoryStore, "append", forgetful)


ALL = (
    skip_the_epoch_check,
    skip_the_epoch_check_of_snapshots,
    older_snapshots_overwrite_newer_ones,
    truncate_too_far,
    truncate_before_the_snapshot,
    forget_recent_ids,
    lose_workflow_rows,
)
