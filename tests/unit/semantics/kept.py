"""A persistence in memory with retention that remembers the audit log's decisions, and ways to end a board."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest

from flock_ray.adapters.memory import MemoryDisk, MemoryPersistence, MemoryStore
from flock_ray.core.retention import Retention
from flock_ray.core.rows import Decision, StoreBatch
from flock_ray.testing import VirtualFlock


class KeptStore(MemoryStore):
    def __init__(self, disk: MemoryDisk, kept: Kept) -> None:
        super().__init__(disk)
        self.kept = kept

    async def append(self, batch: StoreBatch) -> None:
        await super().append(batch)
        self.kept.decisions += batch.decisions

    async def remove_workflows(self, workflows: Sequence[tuple[int, str]]) -> int:
        if self.kept.stuck:
            await asyncio.Event().wait()
        return await super().remove_workflows(workflows)


class Kept(MemoryPersistence):
    """What is on the disk outlives the boards that are opened on it."""

    def __init__(self, retention: Retention | None = None) -> None:
        super().__init__()
        self.retention = retention or Retention()
        self.decisions: list[Decision] = []
        self.stuck = False
        """Removals never come to an end."""

    def store(self, board: str, shard: int, slots: Collection[int]) -> KeptStore:
        return KeptStore(self.boards[board][shard], self)

    def disks(self) -> list[MemoryDisk]:
        return [disk for disks in self.boards.values() for disk in disks.values()]

    def stored(self) -> set[str]:
        """Workflows that have artifacts on the disk."""
        return {envelope.correlation_id for disk in self.disks() for envelope in disk.artifacts.values()}

    def kinds(self) -> list[tuple[str, str]]:
        return [(decision.kind, decision.subject) for decision in self.decisions]

    def bytes(self) -> bytes:
        """Everything that is on the disk, as one text to search in."""
        parts: list[bytes] = []
        for disk in self.disks():
            parts += disk.frames.values()
            parts += [frame for _, frame in disk.writers.values()]
            parts += [snapshot.data for snapshot in disk.snapshots.values()]
            parts += [envelope.payload for envelope in disk.artifacts.values()]
        return b"\n".join(parts)


async def kill(flock: VirtualFlock) -> None:
    """End a board at once: what is not durable is gone."""
    await flock.shutdown(flush_batches=False)


async def seen_events(flock: VirtualFlock, *kinds: str) -> list[tuple[str, str]]:
    """Return (kind, workflow) of the events so far."""
    found: list[tuple[str, str]] = []

    async def collect() -> None:
        async for event in flock.events(*kinds):
            found.append((event.kind, event.correlation_id))

    reader = asyncio.ensure_future(collect())
    await asyncio.sleep(0.001)
    reader.cancel()
    return found


async def inline(function: Callable[..., Any], *args: Any) -> Any:
    """Instead of a thread: virtual time does not wait for threads."""
    return function(*args)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "to_thread", inline)
