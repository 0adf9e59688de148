"""Stores in memory: what accepted artifacts live in when no persistence is given, and the model of the others.

`MemoryDisk` stands for the outside system: it outlives the shards that write to it, so tests and the
simulator kill a shard and open the same disk again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from flock_ray.core.rows import (
    ERASED,
    SHARD,
    ActivationRow,
    ArtifactQuery,
    Loaded,
    SettledPlace,
    Snapshot,
    StoreBatch,
    Summary,
    WorkflowRow,
    visibility_kind,
)
from flock_ray.core.wire import Envelope
from flock_ray.errors import ConfigurationError, StaleEpochError, StoreCorruptError


@dataclass
class MemoryDisk:
    """What one shard has stored."""

    epoch: int = 0
    owner: str = ""
    last_lsn: int = 0
    frames: dict[int, bytes] = field(default_factory=dict)
    writers: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Epoch and frame of the batches that a writer may repeat: those not truncated, and the last one."""
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    artifacts: dict[int, Envelope] = field(default_factory=dict)
    """By feed position, ascending."""
    positions: dict[bytes, int] = field(default_factory=dict)
    ended: dict[bytes, ActivationRow] = field(default_factory=dict)
    flows: dict[tuple[int, str], WorkflowRow] = field(default_factory=dict)
    last_seq: int = 0


class MemoryStore:
    """A `ShardStore` on a `MemoryDisk`; scans, so it is for tests and small boards."""

    mode = "memory"

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        """Open a disk; None is a new one."""
        self.disk = disk or MemoryDisk()
        self.epoch = 0

    def _check_epoch(self) -> None:
        if not self.epoch or self.epoch != self.disk.epoch:
            raise StaleEpochError

    # the journal

    async def acquire(self, owner: str = "") -> int:
        """Become the writer."""
        self.disk.epoch += 1
        self.disk.owner = owner
        self.epoch = self.disk.epoch
        return self.epoch

    async def owner(self) -> str:
        """Return who is the writer."""
        return self.disk.owner

    async def load(self) -> Loaded:
        """Return snapshots and frames."""
        self._check_epoch()
        return await self.peek()

    async def peek(self) -> Loaded:
        """Return snapshots and frames, whoever asks."""
        disk = self.disk
        covered = disk.snapshots[SHARD].lsn if SHARD in disk.snapshots else 0
        if missing := set(range(covered + 1, disk.last_lsn + 1)) - disk.frames.keys():
            raise StoreCorruptError(f"Batch {min(missing)} is missing.")
        return Loaded(
            list(disk.snapshots.values()), sorted(disk.frames.items()), disk.last_lsn, disk.last_seq
        )

    async def append(self, batch: StoreBatch) -> None:
        """Keep a batch."""
        self._check_epoch()
        disk = self.disk
        if disk.writers.get(batch.lsn) == (self.epoch, batch.frame):
            return
        if batch.lsn != disk.last_lsn + 1:
            raise StoreCorruptError(f"Batch {batch.lsn} does not follow batch {disk.last_lsn}.")
        disk.frames[batch.lsn] = batch.frame
        disk.writers[batch.lsn] = self.epoch, batch.frame
        disk.last_lsn = batch.lsn
        for seq, envelope in batch.artifacts:
            disk.artifacts[seq] = envelope
            disk.positions[envelope.id] = disk.last_seq = seq
        disk.ended.update((row.id, row) for row in batch.activations)
        disk.flows.update(((row.slot, row.id), row) for row in batch.workflows)

    async def save_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        """Keep snapshots."""
        self._check_epoch()
        for snapshot in snapshots:
            known = self.disk.snapshots.get(snapshot.slot)
            if known is None or known.lsn <= snapshot.lsn:
                self.disk.snapshots[snapshot.slot] = snapshot

    async def truncate(self, lsn: int) -> None:
        """Drop frames."""
        self._check_epoch()
        for key in [key for key in self.disk.frames if key <= lsn]:
            del self.disk.frames[key]
            if key < self.disk.last_lsn:
                del self.disk.writers[key]

    async def close(self) -> None:
        """Nothing to let go of."""

    # the index

    def _select(self, query: ArtifactQuery, after: int = 0) -> Iterator[tuple[int, Envelope]]:
        return ((s, e) for s, e in self.disk.artifacts.items() if s > after and query.selects(e))

    async def bodies(self, ids: Collection[bytes], near: Collection[int] = ()) -> dict[bytes, bytes]:
        """Return payloads."""
        return {envelope.id: envelope.payload for _, envelope in await self.get(ids)}

    async def get(self, ids: Collection[bytes]) -> list[tuple[int, Envelope]]:
        """Return artifacts by id."""
        seqs = [self.disk.positions[key] for key in dict.fromkeys(ids) if key in self.disk.positions]
        return [(seq, self.disk.artifacts[seq]) for seq in seqs]

    async def recent_ids(self, limit: int) -> list[bytes]:
        """Return the newest ids."""
        return [envelope.id for envelope in self.disk.artifacts.values()][-limit:]

    async def read(self, query: ArtifactQuery, after: int, limit: int) -> list[tuple[int, Envelope]]:
        """Return artifacts by position."""
        return [entry for entry, _ in zip(self._select(query, after), range(limit), strict=False)]

    async def page(self, query: ArtifactQuery, limit: int, offset: int) -> list[tuple[int, Envelope]]:
        """Return artifacts by (creation, id)."""
        found = sorted(self._select(query), key=lambda entry: (entry[1].created_us, entry[1].id))
        return found[offset : offset + limit if limit else None]

    async def newest(
        self, query: ArtifactQuery, limit: int, before: tuple[int, bytes] | None = None
    ) -> list[tuple[int, Envelope]]:
        """Return artifacts by (creation, id), the newest first."""
        found = sorted(
            self._select(query), key=lambda entry: (entry[1].created_us, entry[1].id), reverse=True
        )
        return [entry for entry in found if before is None or (entry[1].created_us, entry[1].id) < before][
            :limit
        ]

    async def count(self, query: ArtifactQuery) -> int:
        """Count artifacts."""
        return sum(1 for _ in self._select(query))

    async def summarize(self, query: ArtifactQuery) -> Summary:
        """Count artifacts by several properties."""
        found = [envelope for _, envelope in self._select(query)]
        times = [envelope.created_us for envelope in found]
        return Summary(
            len(found),
            dict(Counter(e.type for e in found)),
            dict(Counter(e.produced_by for e in found)),
            dict(Counter(visibility_kind(e.visibility) for e in found)),
            dict(Counter(tag for e in found for tag in e.tags)),
            min(times, default=0),
            max(times, default=0),
        )

    async def workflows(self, ids: Collection[str]) -> list[WorkflowRow]:
        """Return workflows by id."""
        return [row for row in self.disk.flows.values() if row.id in ids]

    async def activations(self, workflow: str, limit: int) -> list[ActivationRow]:
        """Return ended activations."""
        return [row for row in self.disk.ended.values() if row.correlation_id == workflow][:limit]

    async def consumptions(self, ids: Collection[bytes]) -> list[ActivationRow]:
        """Return activations by input."""
        return [row for row in self.disk.ended.values() if not set(ids).isdisjoint(row.inputs)]

    async def settled_before(
        self, before_us: int, limit: int, after: SettledPlace | None = None
    ) -> list[WorkflowRow]:
        """Return settled workflows."""
        rows = [row for row in self.disk.flows.values() if row.settled and row.updated_us < before_us]
        if after is not None:
            rows = [row for row in rows if row.place > after]
        return sorted(rows, key=lambda row: row.place)[:limit]

    async def remove_workflows(self, workflows: Sequence[tuple[int, str]]) -> int:
        """Delete settled workflows."""
        self._check_epoch()
        disk = self.disk
        keys = {key for key in workflows if key in disk.flows and disk.flows[key].settled}
        gone = [s for s, e in disk.artifacts.items() if (e.slot, e.correlation_id) in keys]
        for seq in gone:
            del disk.positions[disk.artifacts.pop(seq).id]
        disk.ended = {k: r for k, r in disk.ended.items() if (r.slot, r.correlation_id) not in keys}
        for key in keys:
            del disk.flows[key]
        return len(gone)

    async def erase(self, ids: Collection[bytes]) -> int:
        """Forget payloads."""
        self._check_epoch()
        found = await self.get(ids)
        for seq, envelope in found:
            self.disk.artifacts[seq] = msgspec.structs.replace(envelope, payload=ERASED)
        return len(found)


class MemoryPersistence:
    """A `Persistence` that keeps boards in this object: for tests that close a board and open it again."""

    mode = "memory"

    def __init__(self) -> None:
        """Start without boards."""
        self.boards: dict[str, dict[int, MemoryDisk]] = {}

    async def prepare(self, board: str, num_shards: int | None) -> int:
        """Create a board, or find the one that is there.

        Raises:
            ConfigurationError: It has another number of shards.
        """
        known = self.boards.get(board)
        if known is None:
            known = self.boards[board] = {shard: MemoryDisk() for shard in range(num_shards or 1)}
        if num_shards not in (None, len(known)):
            raise ConfigurationError(f"The board {board!r} has {len(known)} shards, not {num_shards}.")
        return len(known)

    async def find(self, board: str) -> int | None:
        """Return the number of shards of a board."""
        known = self.boards.get(board)
        return None if known is None else len(known)

    def store(self, board: str, shard: int, slots: Collection[int]) -> MemoryStore:
        """Open the store of a shard."""
        return MemoryStore(self.boards[board][shard])

    def warnings(self) -> list[str]:
        """Nothing here outlives the process, and everybody knows."""
        return []
