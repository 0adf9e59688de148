"""SQLite: boards on the disk of one machine, nothing to install, every accepted batch fsynced.

A board is a folder: `board.db` says how many shards it has, and `shard-0000.db` and so on are the shards,
each a SQLite file in WAL mode with `synchronous=FULL`: a batch is in the file's log, and the log is on the
disk, before its `append` returns. On macOS the connections ask for F_FULLFSYNC, as a plain fsync stops at
the drive's cache there. WAL needs shared memory between the processes: a network file system will not do.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from flock_ray.adapters import sqlite_journal as journal
from flock_ray.adapters.audit_trail import AuditReport
from flock_ray.adapters.sqlite_append import Appender
from flock_ray.adapters.sqlite_audit import verify_files
from flock_ray.adapters.sqlite_board import find_board, prepare_board
from flock_ray.adapters.sqlite_files import Lane, ShardFile, board_folder, in_thread, risks
from flock_ray.adapters.sqlite_queries import Questions
from flock_ray.core.audit import AuditHead
from flock_ray.core.retention import Retention, RetentionPolicy
from flock_ray.core.rows import (
    ActivationRow,
    ArtifactQuery,
    Loaded,
    SettledPlace,
    Snapshot,
    StoreBatch,
    Summary,
    WorkflowRow,
)
from flock_ray.core.wire import Envelope
from flock_ray.errors import ConfigurationError
from flock_ray.ports import ShardStore

__all__ = ["SQLitePersistence", "SQLiteStore"]


class SQLitePersistence:
    """Keeps boards in SQLite files on this machine: what was accepted survives crashes and power loss.

    Every process of a board must run on the machine that has the folder.
    """

    mode = "sqlite"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 5.0,
        enable_audit_log: bool = False,
        ttl: timedelta | None = None,
        retention_policy: RetentionPolicy = RetentionPolicy.KEEP_ALL,
        per_type: Mapping[str, timedelta] | None = None,
        archive: str | None = None,
    ) -> None:
        """Say where; nothing is opened or created yet.

        Args:
            path: A folder, created by `prepare` for its user alone (0700); a relative one counts from here.
            timeout: How long to wait for a lock on a file, in seconds.
            enable_audit_log: Whether every publish from outside, ended activation, decision, erasure and removal
                is written to a hash-chained log in the shard's file. SQLite can't keep whoever may write the
                file from changing it: `verify_audit` finds that.
            ttl: How long workflows that are over are kept; needs another policy than KEEP_ALL.
            retention_policy: What happens to them then.
            per_type: Times by artifact type; see `Retention`.
            archive: Folder or fsspec URL for ARCHIVE_COMPLETED, and for `flock.archive`.

        Raises:
            ConfigurationError: The retention makes no sense.
        """
        self.path = Path(os.path.abspath(path))
        self.timeout = timeout
        self.audited = enable_audit_log
        self.retention = Retention(ttl, retention_policy, per_type or {}, archive)
        """How long workflows that are over are kept; the board applies it."""
        self._warnings: list[str] = []

    def __repr__(self) -> str:
        """Show the settings; there is no secret among them."""
        return f"SQLitePersistence({str(self.path)!r}, timeout={self.timeout!r})"

    async def prepare(self, board: str, num_shards: int | None) -> int:
        """Create a board's files, or check those that are there, and return its number of shards.

        Args:
            board: Name of the board.
            num_shards: What the user asked for; None: what the board has, 1 for a new one.

        Raises:
            ConfigurationError: The folder can't be written, holds what is not ours or is newer, lacks a
                shard, or has another number of shards.
            StoreUnavailableError: Another process holds a lock, or the disk is full; retryable.
        """
        number = await in_thread(lambda: prepare_board(self.path, board, num_shards, self.timeout))
        self._warnings = risks(self.path)
        return number

    async def find(self, board: str) -> int | None:
        """Return the number of shards of a stored board; None when there is none. Creates nothing.

        Raises:
            ConfigurationError: The folder can't be used, or holds what is not ours or is newer.
            StoreUnavailableError: Another process holds a lock; retryable.
        """
        return await in_thread(lambda: find_board(self.path, board, self.timeout))

    def store(self, board: str, shard: int, slots: Collection[int]) -> ShardStore:
        """Return the store of one shard; its file is opened at the first call."""
        file = ShardFile(board, shard, board_folder(self.path, board) / f"shard-{shard:04}.db")
        return SQLiteStore(file, self.timeout, audited=self.audited)

    def warnings(self) -> list[str]:
        """Say what could be lost; empty before `prepare`, and when nothing could."""
        return list(self._warnings)

    async def verify_audit(self, board: str, *, noted: Mapping[int, AuditHead] | None = None) -> AuditReport:
        """Find entries of a board's audit log that were changed, removed, added or reordered; changes nothing.

        Args:
            board: Name of the board; it may be in use meanwhile.
            noted: Heads by shard of an earlier report, kept where nobody who may write the files can change them:
                without them a log that was cut, or written anew as a whole, is not found.

        Raises:
            ConfigurationError: There is no such board.
            StoreUnavailableError: Another process holds a lock; retryable.
        """
        shards = await self.find(board)
        if shards is None:
            raise ConfigurationError(
                f"There is no board {board!r} in {self.path}: correct its name, or the folder."
            )
        return await verify_files(self.path, board, shards, self.timeout, noted or {})


class SQLiteStore:
    """One shard's file: a writer, a reader for ids and a reader for searches, each with its own thread."""

    mode = "sqlite"

    def __init__(self, file: ShardFile, timeout: float, *, audited: bool = False) -> None:
        """Say which file, how long to wait for a lock in seconds, and whether its audit log is kept."""
        self._file = file
        self._audited = audited
        self._wipe = False
        """Something was erased: what is freed from then on may be a copy of it."""
        self._epoch = 0
        self._writer = Lane(file, timeout, write=True)
        self._points = Lane(file, timeout, write=False)
        self._searches = Lane(file, timeout, write=False)
        self._appender = Appender(file, 0)
        self._questions = Questions(file)

    # the journal

    async def acquire(self, owner: str = "") -> int:
        """Become the writer."""
        self._epoch = await self._writer.run(lambda c: journal.acquire(c, owner, audited=self._audited))
        self._appender = Appender(self._file, self._epoch, audited=self._audited)
        return self._epoch

    async def owner(self) -> str:
        """Return who is the writer."""
        return await self._points.run(journal.owner)

    async def load(self) -> Loaded:
        """Return snapshots and frames, checked."""
        return await self._writer.run(lambda c: journal.load(c, self._file, self._epoch))

    async def peek(self) -> Loaded:
        """Return what `load` would, without being the writer."""
        return await self._searches.run(lambda c: journal.load(c, self._file, None))

    async def append(self, batch: StoreBatch) -> None:
        """Make a batch durable."""
        await self._writer.run(lambda c: self._appender.append(c, batch))

    async def save_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        """Replace snapshots."""
        await self._writer.run(lambda c: journal.save_snapshots(c, self._epoch, snapshots, wipe=self._wipe))

    async def truncate(self, lsn: int) -> None:
        """Drop frames."""
        await self._writer.run(lambda c: journal.truncate(c, self._epoch, lsn, wipe=self._wipe))

    async def close(self) -> None:
        """Close the connections and end their threads."""
        for lane in (self._writer, self._points, self._searches):
            await lane.close()

    # the index

    async def bodies(self, ids: Collection[bytes], near: Collection[int] = ()) -> dict[bytes, bytes]:
        """Return payloads by artifact id."""
        return await self._points.run(lambda c: self._questions.bodies(c, ids, near))

    async def get(self, ids: Collection[bytes]) -> list[tuple[int, Envelope]]:
        """Return artifacts by id."""
        return await self._points.run(lambda c: self._questions.get(c, ids))

    async def recent_ids(self, limit: int) -> list[bytes]:
        """Return the newest ids, the oldest of them first."""
        return await self._points.run(lambda c: self._questions.recent_ids(c, limit))

    async def read(self, query: ArtifactQuery, after: int, limit: int) -> list[tuple[int, Envelope]]:
        """Return artifacts by feed position."""
        return await self._searches.run(lambda c: self._questions.read(c, query, after, limit))

    async def page(self, query: ArtifactQuery, limit: int, offset: int) -> list[tuple[int, Envelope]]:
        """Return artifacts by (creation time, id)."""
        return await self._searches.run(lambda c: self._questions.page(c, query, limit, offset))

    async def newest(
        self, query: ArtifactQuery, limit: int, before: tuple[int, bytes] | None = None
    ) -> list[tuple[int, Envelope]]:
        """Return artifacts by (creation time, id), the newest first."""
        return await self._searches.run(lambda c: self._questions.newest(c, query, limit, before))

    async def count(self, query: ArtifactQuery) -> int:
        """Count artifacts."""
        return await self._searches.run(lambda c: self._questions.count(c, query))

    async def summarize(self, query: ArtifactQuery) -> Summary:
        """Count artifacts by several properties."""
        return await self._searches.run(lambda c: self._questions.summarize(c, query))

    async def workflows(self, ids: Collection[str]) -> list[WorkflowRow]:
        """Return workflows by id."""
        return await self._points.run(lambda c: self._questions.workflows(c, ids))

    async def activations(self, workflow: str, limit: int) -> list[ActivationRow]:
        """Return ended activations of a workflow."""
        return await self._points.run(lambda c: self._questions.activations(c, workflow, limit))

    async def consumptions(self, ids: Collection[bytes]) -> list[ActivationRow]:
        """Return ended activations by input."""
        return await self._points.run(lambda c: self._questions.consumptions(c, ids))

    async def settled_before(
        self, before_us: int, limit: int, after: SettledPlace | None = None
    ) -> list[WorkflowRow]:
        """Return settled workflows."""
        return await self._searches.run(lambda c: self._questions.settled_before(c, before_us, limit, after))

    async def remove_workflows(self, workflows: Sequence[tuple[int, str]]) -> int:
        """Delete settled workflows."""
        appender = self._appender

        def remove(connection: sqlite3.Connection) -> int:
            appender.forget()
            return journal.remove_workflows(
                connection, self._file, self._epoch, workflows, audited=self._audited
            )

        return await self._writer.run(remove)

    async def erase(self, ids: Collection[bytes]) -> int:
        """Overwrite payloads for good."""
        self._wipe = True
        return await self._writer.run(
            lambda c: journal.erase(c, self._file, self._epoch, ids, audited=self._audited)
        )
