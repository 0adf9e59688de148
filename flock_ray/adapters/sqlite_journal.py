"""What the writer of a SQLite shard does, each function one transaction.

Fencing: `BEGIN IMMEDIATE` takes the file's only write lock, and the epoch is read behind it. So of an
old writer's transaction and the `acquire` that fences it one comes first: either the batch is committed
before `acquire` gets the lock, and the new writer loads it, or the old writer reads the new epoch and
is refused. The lock dies with its process; a process that is stopped while it holds it keeps others out
(StoreUnavailableError), so everything is encoded before the lock is taken.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Sequence
from typing import Any

from flock_ray.adapters.audit_trail import erasure_fact, removal_fact
from flock_ray.adapters.sqlite_append import check_epoch, transaction
from flock_ray.adapters.sqlite_audit import add_facts, make_tables
from flock_ray.adapters.sqlite_files import ShardFile
from flock_ray.adapters.sqlite_rows import (
    artifact_crc,
    decode_artifact,
    decode_row,
    frame_crc,
    id_hash,
    snapshot_crc,
    text_hash,
)
from flock_ray.adapters.sqlite_schema import ARTIFACT, OF_WORKFLOW, RUN_OF_INPUT, RUN_OF_WORKFLOW, WORKFLOW
from flock_ray.core.rows import ERASED, SHARD, ActivationRow, Loaded, Snapshot

FOUND = "eras e CROSS JOIN postings p ON p.era = e.era AND p.hash = ? AND p.what = ?"
"""Whatever a hash leads to; compare what is there."""


_WRITER = (
    "CREATE TABLE IF NOT EXISTS writer (id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER, owner TEXT)"
)
"""Who took the newest epoch; a version that does not know this table leaves an older epoch there."""


def acquire(connection: sqlite3.Connection, owner: str, *, audited: bool = False) -> int:
    """Take the next epoch; makes the tables of the audit log where one is kept for the first time."""
    with transaction(connection):
        if audited:
            make_tables(connection)
        connection.execute("UPDATE journal SET epoch = epoch + 1")
        (epoch,) = connection.execute("SELECT epoch FROM journal").fetchone()
        connection.execute(_WRITER)
        connection.execute("INSERT OR REPLACE INTO writer VALUES (1, ?, ?)", (epoch, owner))
    return int(epoch)


def owner(connection: sqlite3.Connection) -> str:
    """Return what the newest writer has said of itself; empty when it has said nothing."""
    with transaction(connection, write=False):
        if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'writer'").fetchone()[0]:
            return ""
        row = connection.execute(
            "SELECT w.owner FROM writer w CROSS JOIN journal j ON j.epoch = w.epoch"
        ).fetchone()
    return "" if row is None else str(row[0])


def load(connection: sqlite3.Connection, file: ShardFile, epoch: int | None) -> Loaded:
    """Read and check snapshots and frames; without an epoch as an onlooker."""
    with transaction(connection, write=False):
        if epoch is not None:
            check_epoch(connection, epoch)
        last_lsn, last_seq = connection.execute("SELECT last_lsn, last_seq FROM journal").fetchone()
        (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM artifacts").fetchone()
        snapshots = connection.execute("SELECT slot, lsn, crc, data FROM snapshots ORDER BY slot").fetchall()
        frames = connection.execute("SELECT lsn, epoch, crc, data FROM frames ORDER BY lsn").fetchall()
    if newest > last_seq:
        raise file.damaged(f"table journal: feed position {newest} lies behind the last one, {last_seq}")
    for slot, lsn, crc, data in snapshots:
        if snapshot_crc(slot, lsn, data) != crc:
            raise file.damaged(f"table snapshots: slot {slot} (lsn {lsn}) does not fit its checksum")
    for lsn, writer, crc, data in frames:
        if frame_crc(lsn, writer, data) != crc:
            raise file.damaged(f"table frames: lsn {lsn} does not fit its checksum")
    _check_gaps(
        file, next((row[1] for row in snapshots if row[0] == SHARD), 0), [f[0] for f in frames], last_lsn
    )
    return Loaded(
        [Snapshot(slot, lsn, data) for slot, lsn, _, data in snapshots],
        [(lsn, data) for lsn, _, _, data in frames],
        last_lsn,
        last_seq,
    )


def _check_gaps(file: ShardFile, covered: int, lsns: list[int], last_lsn: int) -> None:
    needed = range(min([covered + 1, *lsns[:1]]), last_lsn + 1)
    if covered <= last_lsn and lsns == list(needed):
        return
    missing = sorted(set(needed) - set(lsns))
    what = f"lsn {missing[0]} is missing" if missing else f"lsn {max(covered, *lsns)} was never appended"
    raise file.damaged(f"table frames: {what} (snapshot: {covered}, last: {last_lsn})")


def save_snapshots(
    connection: sqlite3.Connection, epoch: int, snapshots: Sequence[Snapshot], *, wipe: bool = False
) -> None:
    """Replace snapshots, but none by an older one; `wipe` overwrites what that frees."""
    if wipe:
        connection.execute("PRAGMA secure_delete = ON")
    rows = [(s.slot, s.lsn, snapshot_crc(s.slot, s.lsn, s.data), s.data) for s in snapshots]
    with transaction(connection):
        check_epoch(connection, epoch)
        connection.executemany(
            "INSERT INTO snapshots VALUES (?, ?, ?, ?) ON CONFLICT (slot) DO UPDATE"
            " SET lsn = excluded.lsn, crc = excluded.crc, data = excluded.data WHERE lsn <= excluded.lsn",
            rows,
        )


def truncate(connection: sqlite3.Connection, epoch: int, lsn: int, *, wipe: bool = False) -> None:
    """Drop frames; `wipe` overwrites what that frees, and empties the write-ahead log."""
    if wipe:
        connection.execute("PRAGMA secure_delete = ON")
    with transaction(connection):
        check_epoch(connection, epoch)
        connection.execute("DELETE FROM frames WHERE lsn <= ?", (lsn,))
    if wipe:
        empty_log(connection)


def remove_workflows(
    connection: sqlite3.Connection,
    file: ShardFile,
    epoch: int,
    workflows: Sequence[tuple[int, str]],
    *,
    audited: bool = False,
) -> int:
    """Delete settled workflows; return how many artifacts went."""
    with transaction(connection):
        check_epoch(connection, epoch)
        gone = [(slot, name, _remove_workflow(connection, file, slot, name)) for slot, name in workflows]
        removed = [(slot, name, count) for slot, name, count in gone if count is not None]
        if audited:
            at_us = now_us()
            add_facts(
                connection, file, [removal_fact(at_us, name, slot, count) for slot, name, count in removed]
            )
    return sum(count for *_, count in removed)


def newest(connection: sqlite3.Connection, slot: int, name: str) -> tuple[int, int | None] | None:
    """Return the number of a workflow's row that counts, and since when it is settled (None: it is not)."""
    row: tuple[int, int | None] | None = connection.execute(
        f"SELECT w.number, w.settled_us FROM {FOUND} CROSS JOIN workflows w"
        " ON w.number = p.number AND w.id = ? AND w.slot = ? ORDER BY e.era DESC, p.number DESC LIMIT 1",
        (text_hash(name), WORKFLOW, name, slot),
    ).fetchone()
    return row


def _remove_workflow(connection: sqlite3.Connection, file: ShardFile, slot: int, name: str) -> int | None:
    """Return how many artifacts went; None: there is no such workflow, or it is not settled."""
    row = newest(connection, slot, name)
    if row is None or row[1] is None:
        return None

    def rows_of(table: str, key: str, what: int, columns: str) -> list[tuple[Any, ...]]:
        owner = "id" if what == WORKFLOW else "correlation_id"
        return connection.execute(
            f"SELECT p.*, {columns} FROM {FOUND} CROSS JOIN {table} w"
            f" ON w.{key} = p.number AND w.{owner} = ? AND w.slot = ?",
            (text_hash(name), what, name, slot),
        ).fetchall()

    artifacts = rows_of("artifacts", "seq", OF_WORKFLOW, "w.seq, w.meta, w.payload, w.crc")
    runs = rows_of("activations", "number", RUN_OF_WORKFLOW, "w.data, w.crc")
    flows = rows_of("workflows", "number", WORKFLOW, "w.number")
    postings = [row[:4] for row in (*artifacts, *runs, *flows)]
    tags: list[tuple[str, int]] = []
    # The postings of a row are all of one era.
    for era, _, _, seq, *row_ in artifacts:
        envelope = decode_artifact(file, *row_)
        postings.append((era, id_hash(envelope.id), ARTIFACT, seq))
        tags += [(tag, seq) for tag in envelope.tags]
    for era, _, _, number, data, crc in runs:
        inputs = decode_row(file, ActivationRow, data, crc).inputs
        postings += [(era, id_hash(key), RUN_OF_INPUT, number) for key in inputs]
    many = connection.executemany
    many("DELETE FROM tags WHERE tag = ? AND seq = ?", tags)
    many("DELETE FROM postings WHERE era = ? AND hash = ? AND what = ? AND number = ?", postings)
    many("DELETE FROM artifacts WHERE seq = ?", [(found[3],) for found in artifacts])
    many("DELETE FROM activations WHERE number = ?", [(found[3],) for found in runs])
    many("DELETE FROM workflows WHERE number = ?", [(found[3],) for found in flows])
    return len(artifacts)


def erase(
    connection: sqlite3.Connection,
    file: ShardFile,
    epoch: int,
    ids: Collection[bytes],
    *,
    audited: bool = False,
) -> int:
    """Overwrite payloads, in the file's free space and its write-ahead log too; return how many there were.

    Frames and snapshots that hold copies go later: wipe them.
    """
    connection.execute("PRAGMA secure_delete = ON")
    with transaction(connection):
        check_epoch(connection, epoch)
        found = [
            (key, *row)
            for key in dict.fromkeys(ids)
            if (row := find(connection, key, "w.seq, w.meta")) is not None
        ]
        connection.executemany(
            "UPDATE artifacts SET payload = ?, crc = ? WHERE seq = ?",
            [(ERASED, artifact_crc(meta, ERASED), seq) for _, seq, meta in found],
        )
        if audited:
            at_us = now_us()
            add_facts(connection, file, [erasure_fact(at_us, key) for key, *_ in found])
    empty_log(connection)
    return len(found)


def empty_log(connection: sqlite3.Connection) -> None:
    """Copy the write-ahead log into the file and empty it: it holds pages as they were."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def now_us() -> int:
    """Return wall time in microseconds."""
    return time.time_ns() // 1000


def find(connection: sqlite3.Connection, key: bytes, columns: str) -> tuple[Any, ...] | None:
    """Return columns of the artifact with an id; None: there is none."""
    row: tuple[Any, ...] | None = connection.execute(
        f"SELECT {columns} FROM {FOUND} CROSS JOIN artifacts w ON w.seq = p.number AND w.id = ?"
        " ORDER BY e.era DESC LIMIT 1",
        (id_hash(key), ARTIFACT, key),
    ).fetchone()
    return row
