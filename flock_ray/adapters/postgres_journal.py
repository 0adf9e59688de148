"""The journal of one shard in PostgreSQL: the writing half of its store.

Fencing: the row of the shard in table `shards` holds the epoch. Every write takes the lock of that
row and compares the epoch in one statement; under READ COMMITTED a statement that waited for the
lock compares the newest committed version. So either a write commits before the next `acquire`,
whose `load` then finds it, or it finds the new epoch and writes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import TypeVar

import asyncpg

from flock_ray.adapters import postgres_sql as sql
from flock_ray.adapters.audit_trail import batch_facts, chain_name, erasure_fact, removal_fact
from flock_ray.adapters.postgres_audit import audit_columns
from flock_ray.adapters.postgres_connections import Address, Connection, Connections
from flock_ray.adapters.postgres_rows import (
    activation_columns,
    artifact_columns,
    body_crc,
    column_key,
    column_text,
    damaged,
    frame_crc,
    key_text,
    snapshot_crc,
    tag_column,
    workflow_columns,
)
from flock_ray.core.audit import AuditFact, AuditHead, extend_chain
from flock_ray.core.rows import ERASED, SHARD, Loaded, Snapshot, StoreBatch
from flock_ray.errors import StaleEpochError, StoreCorruptError

T = TypeVar("T")

_FRAMES_PER_READ = 100
_SNAPSHOTS_PER_READ = 32


class PostgresJournal:
    """The `Journal` of one shard, and the writes of its index. Connects at the first call."""

    mode = "postgres"

    def __init__(
        self,
        address: Address,
        schema: str,
        board: str,
        shard: int,
        *,
        pool_size: int = 4,
        audited: bool = False,
    ) -> None:
        """Stand for a shard of a board.

        Args:
            address: The server.
            schema: Quoted name of the schema.
            board: Name of the board; `prepare` must have made it.
            shard: Its number.
            pool_size: Most connections, at least 2.
            audited: Whether every decision goes into the audit log as well.
        """
        self._connections = Connections(address, pool_size)
        self._schema = schema
        self._board = board
        self._shard = shard
        self._where = f"{address.place}, schema {schema}, board {board!r}, shard {shard}"
        self._audited = audited
        self._shard_id: int | None = None
        self._epoch = 0
        self._head = AuditHead()
        self._statements: dict[str, str] = {}

    def _sql(self, template: str) -> str:
        statement = self._statements.get(template)
        if statement is None:
            statement = self._statements[template] = template.replace("{schema}", self._schema)
        return statement

    async def _id(self, connection: Connection) -> int:
        if self._shard_id is None:
            self._shard_id = await connection.fetchval(self._sql(sql.FIND_SHARD), self._board, self._shard)
            if self._shard_id is None:
                raise StoreCorruptError(
                    f"{self._where} does not exist. Call prepare() first, or restore a backup."
                )
        return self._shard_id

    async def acquire(self, owner: str = "") -> int:
        """Become the writer of the shard and fence whoever was; returns the new epoch.

        Raises:
            StoreUnavailableError: The server does not answer; retryable.
            StoreCorruptError: The board or its tables are not there.
        """
        async with self._connections.write() as connection:
            shard_id = await self._id(connection)
            row = await connection.fetchrow(self._sql(sql.ACQUIRE), shard_id, column_text(owner))
            if row is None:
                raise self._deleted()
        self._epoch, self._head = row[0], AuditHead(row[1], row[2])
        return self._epoch

    async def owner(self) -> str:
        """Return what the newest writer has said of itself; empty when it has said nothing.

        Raises:
            StoreUnavailableError: The server does not answer; retryable.
        """
        async with self._connections.read() as connection:
            found: str | None = await connection.fetchval(self._sql(sql.OWNER), await self._id(connection))
        return found or ""

    async def load(self) -> Loaded:
        """Return the snapshots, and the frames behind them.

        Raises:
            StoreUnavailableError: The server does not answer; retryable.
            StaleEpochError: Another writer has acquired the shard.
            StoreCorruptError: A checksum does not fit or a frame is missing; says which.
        """
        async with self._connections.write() as connection:
            shard_id = await self._id(connection)
            loaded = await self._read(connection, await self._own_state(connection, shard_id))
            # Who acquired meanwhile may have truncated what was being read.
            await self._own_state(connection, shard_id)
        return loaded

    async def peek(self) -> Loaded:
        """Return what `load` would, as of one moment, without being the writer; changes and fences nothing.

        Raises:
            StoreUnavailableError: The server does not answer; retryable.
            StoreCorruptError: As for `load`.
        """
        async with self._connections.read() as connection:
            shard_id = await self._id(connection)
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                state = await connection.fetchrow(self._sql(sql.STATE), shard_id)
                if state is None:
                    raise self._deleted()
                return await self._read(connection, state)

    async def _read(self, connection: Connection, state: asyncpg.Record) -> Loaded:
        truncated, last_lsn = state["truncated_lsn"], state["last_lsn"]
        frames = await self._frames(connection, state["id"], truncated, last_lsn)
        snapshots = await self._snapshots(connection, state["id"])
        base = next((snapshot.lsn for snapshot in snapshots if snapshot.slot == SHARD), 0)
        if base < truncated:
            raise StoreCorruptError(
                f"{self._where}: table journal begins at lsn {truncated + 1}, but table snapshots holds slot {SHARD} "
                f"of lsn {base}. Restore it from a backup; nothing was changed."
            )
        return Loaded(snapshots, frames, last_lsn, state["last_seq"])

    def _deleted(self) -> StoreCorruptError:
        return StoreCorruptError(f"{self._where} was deleted. Restore it from a backup.")

    async def _own_state(self, connection: Connection, shard_id: int) -> asyncpg.Record:
        row = await connection.fetchrow(self._sql(sql.STATE), shard_id)
        if row is None or not self._epoch or row["epoch"] != self._epoch:
            raise StaleEpochError
        return row

    async def _frames(
        self, connection: Connection, shard_id: int, truncated: int, last_lsn: int
    ) -> list[tuple[int, bytes]]:
        frames: list[tuple[int, bytes]] = []
        reached = truncated
        while rows := await connection.fetch(self._sql(sql.FRAMES), shard_id, reached, _FRAMES_PER_READ):
            for lsn, frame, crc in rows:
                if lsn != reached + 1:
                    raise self._missing_frame(reached + 1)
                if frame_crc(lsn, frame) != crc:
                    raise damaged(f"{self._where}, table journal, lsn {lsn},")
                frames.append((lsn, frame))
                reached = lsn
        if reached != last_lsn:
            raise self._missing_frame(min(reached, last_lsn) + 1)
        return frames

    def _missing_frame(self, lsn: int) -> StoreCorruptError:
        return StoreCorruptError(
            f"{self._where}: table journal and the recorded end do not fit at lsn {lsn}: a row is missing or foreign. "
            "Restore it from a backup; nothing was changed."
        )

    async def _snapshots(self, connection: Connection, shard_id: int) -> list[Snapshot]:
        snapshots: list[Snapshot] = []
        slot = SHARD - 1
        while rows := await connection.fetch(self._sql(sql.SNAPSHOTS), shard_id, slot, _SNAPSHOTS_PER_READ):
            for slot, lsn, data, crc in rows:
                snapshots.append(Snapshot(slot, lsn, data))
                if snapshot_crc(snapshots[-1]) != crc:
                    raise damaged(f"{self._where}, table snapshots, slot {slot}, lsn {lsn},")
        return snapshots

    async def append(self, batch: StoreBatch) -> None:
        """Make a batch durable with one statement, all or nothing; one that is there already is left as it is.

        Raises:
            StoreUnavailableError: It may be written or not; append the same batch again.
            StaleEpochError: Another writer has acquired the shard; nothing was written.
            StoreCorruptError: The number is not the next one; nothing was written.
        """
        parts, columns = _rows(batch)
        facts = batch_facts(batch, column_text) if self._audited else []
        async with self._connections.write() as connection:
            shard_id = await self._id(connection)
            # A second round only when an earlier call, whose answer was lost, has moved the audit log.
            while not await self._try_append(connection, shard_id, batch, parts, columns, facts):
                if not await self._must_append(connection, shard_id, batch):
                    break

    async def _try_append(
        self,
        connection: Connection,
        shard_id: int,
        batch: StoreBatch,
        parts: tuple[str, ...],
        columns: list[list[object]],
        facts: list[AuditFact],
    ) -> bool:
        if not self._epoch:
            raise StaleEpochError
        entries, head = extend_chain(chain_name(self._board, self._shard), self._head, facts)
        written = await connection.fetchval(
            self._sql(sql.append_statement((*parts, "audit") if entries else parts)),
            shard_id,
            self._epoch,
            batch.lsn,
            batch.frame,
            frame_crc(batch.lsn, batch.frame),
            max((seq for seq, _ in batch.artifacts), default=0),
            self._head.count,
            head.count,
            head.hash,
            *columns,
            *(audit_columns(entries) if entries else ()),
        )
        if written:
            self._head = head
        return bool(written)

    async def _must_append(self, connection: Connection, shard_id: int, batch: StoreBatch) -> bool:
        """Find out why a batch was not written: False when it is there, True when only the audit log had moved."""
        state = await self._own_state(connection, shard_id)
        epoch_lsn, last_lsn = state["epoch_lsn"], state["last_lsn"]
        head = AuditHead(state["audit_count"], state["audit_hash"])
        moved, self._head = head != self._head, head
        if batch.lsn == last_lsn + 1 and moved:
            return True
        crc = frame_crc(batch.lsn, batch.frame)
        if epoch_lsn < batch.lsn < last_lsn:
            stored = await connection.fetchval(self._sql(sql.FIND_FRAME), shard_id, batch.lsn)
            if stored == crc or (stored is None and batch.lsn <= state["truncated_lsn"]):
                return False
        elif epoch_lsn < batch.lsn == last_lsn and crc == state["last_crc"]:
            return False
        raise StoreCorruptError(
            f"{self._where}: batch {batch.lsn} does not follow, or is not, batch {last_lsn} that is stored. Start the "
            "shard again, so that it loads what is stored; nothing was written."
        )

    async def save_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        """Replace the snapshots of these slots; one older than what is stored is ignored.

        Raises:
            StoreUnavailableError: Saved or not; save them again.
            StaleEpochError: Another writer has acquired the shard; nothing was written.
        """
        ordered = sorted(snapshots, key=lambda snapshot: snapshot.lsn)
        newest = list({snapshot.slot: snapshot for snapshot in ordered}.values())
        await self._write(
            sql.SAVE_SNAPSHOTS,
            [snapshot.slot for snapshot in newest],
            [snapshot.lsn for snapshot in newest],
            [snapshot.data for snapshot in newest],
            [snapshot_crc(snapshot) for snapshot in newest],
        )

    async def truncate(self, lsn: int) -> None:
        """Drop the frames up to and including `lsn`; rows stay.

        Raises:
            StoreUnavailableError: Dropped or not; repeating is safe.
            StaleEpochError: Another writer has acquired the shard; nothing was dropped.
        """
        await self._write(sql.TRUNCATE, lsn)

    async def _write(self, template: str, *values: object) -> None:
        async with self._connections.write() as connection:
            shard_id = await self._id(connection)
            if not self._epoch or not await connection.fetchval(
                self._sql(template), shard_id, self._epoch, *values
            ):
                raise StaleEpochError

    async def remove_workflows(self, workflows: Sequence[tuple[int, str]]) -> int:
        """Delete settled workflows, given by (slot, id), with artifacts and activations; returns how many artifacts.

        Raises:
            StoreUnavailableError: Deleted or not; repeating is safe.
            StaleEpochError: Another writer has acquired the shard; nothing was deleted.
        """
        keys = sorted({(slot, column_key(id_)) for slot, id_ in workflows})

        async def remove(connection: Connection, shard_id: int) -> tuple[int, list[AuditFact]]:
            rows = await connection.fetch(
                self._sql(sql.REMOVE_WORKFLOWS),
                shard_id,
                [slot for slot, _ in keys],
                [id_ for _, id_ in keys],
            )
            at_us = await self._now_us(connection)
            facts = [
                removal_fact(at_us, column_text(key_text(id_)), slot, artifacts)
                for id_, slot, artifacts in rows
            ]
            return sum(row[2] for row in rows), facts

        return await self._audited_write(remove)

    async def erase(self, ids: Collection[bytes]) -> int:
        """Replace payloads by `ERASED`; envelopes stay. Returns how many artifacts there were.

        Raises:
            StoreUnavailableError: Erased or not; repeating is safe.
            StaleEpochError: Another writer has acquired the shard; nothing was erased.
        """
        known = sorted(set(ids))

        async def erase(connection: Connection, shard_id: int) -> tuple[int, list[AuditFact]]:
            crcs = [body_crc(id_, ERASED) for id_ in known]
            rows = await connection.fetch(self._sql(sql.ERASE), shard_id, known, crcs, ERASED)
            at_us = await self._now_us(connection)
            return len(rows), [erasure_fact(at_us, row[0]) for row in rows]

        return await self._audited_write(erase)

    async def _now_us(self, connection: Connection) -> int:
        now: int = await connection.fetchval("SELECT (extract(epoch FROM now()) * 1000000)::bigint")
        return now

    async def _audited_write(
        self, write: Callable[[Connection, int], Awaitable[tuple[T, list[AuditFact]]]]
    ) -> T:
        """Run a write and log its facts in one transaction, as the writer of the shard."""
        async with self._connections.write() as connection:
            shard_id = await self._id(connection)
            async with connection.transaction():
                row = await connection.fetchrow(self._sql(sql.LOCK_WRITER), shard_id, self._epoch)
                if row is None or not self._epoch:
                    raise StaleEpochError
                result, facts = await write(connection, shard_id)
                head = AuditHead(row[0], row[1])
                if self._audited and facts:
                    head = await self._log(connection, shard_id, head, facts)
            self._head = head
        return result

    async def _log(
        self, connection: Connection, shard_id: int, head: AuditHead, facts: Iterable[AuditFact]
    ) -> AuditHead:
        entries, head = extend_chain(chain_name(self._board, self._shard), head, facts)
        await connection.execute(
            self._sql(sql.AUDIT), shard_id, head.count, head.hash, *audit_columns(entries)
        )
        return head

    async def close(self) -> None:
        """Let go of the connections; safe to repeat."""
        await self._connections.close()


def _rows(batch: StoreBatch) -> tuple[tuple[str, ...], list[list[object]]]:
    """Return which kinds of rows a batch has, and their columns."""
    parts: list[str] = []
    columns: list[list[object]] = []
    if batch.artifacts:
        columns += artifact_columns(batch.artifacts)
        if any(envelope.tags for _, envelope in batch.artifacts):
            parts.append("tagged artifacts")
            columns.append([*tag_column(batch.artifacts)])
        else:
            parts.append("artifacts")
    if batch.activations:
        parts.append("activations")
        columns += activation_columns(batch.activations)
    if batch.workflows:
        parts.append("workflows")
        columns += workflow_columns(batch.workflows)
    return tuple(parts), columns
