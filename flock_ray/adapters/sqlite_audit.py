"""The audit log of a SQLite shard: two tables, made when a board first keeps one.

Triggers refuse to change or delete an entry. Whoever may write the file can remove them: then the chain
shows what was changed, and a head that was noted elsewhere shows that it was written anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from flock_ray.adapters.audit_trail import (
    ENTRIES_PER_READ,
    AuditReport,
    chain_name,
    check_chain,
    pack_fact,
    unpack_entry,
)
from flock_ray.adapters.sqlite_files import Lane, ShardFile, board_folder
from flock_ray.core.audit import AuditEntry, AuditFact, AuditHead, extend_chain

# A version that knows nothing of these tables leaves them alone: they need no new format.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS audit (number INTEGER PRIMARY KEY, fact BLOB NOT NULL, hash BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS audit_head"
    " (id INTEGER PRIMARY KEY CHECK (id = 1), count INTEGER NOT NULL, hash BLOB NOT NULL)",
    "INSERT OR IGNORE INTO audit_head VALUES (1, 0, x'')",
    *(
        f"CREATE TRIGGER IF NOT EXISTS audit_refuses_{event} BEFORE {event} ON audit {when}"
        " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for event, when in (
            ("UPDATE", ""),
            ("DELETE", ""),
            ("INSERT", "WHEN EXISTS (SELECT 1 FROM audit WHERE number = NEW.number)"),
        )
    ),
)


def make_tables(connection: sqlite3.Connection) -> None:
    """Make what is missing, inside the open transaction."""
    for statement in _TABLES:
        connection.execute(statement)


def read_head(connection: sqlite3.Connection) -> AuditHead:
    """Return where the chain ends; a board without an audit log has an empty one."""
    found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'audit_head'").fetchone()
    row = connection.execute("SELECT count, hash FROM audit_head").fetchone() if found[0] else None
    return AuditHead() if row is None else AuditHead(*row)


def add_facts(connection: sqlite3.Connection, file: ShardFile, facts: Sequence[AuditFact]) -> None:
    """Append facts to the chain, inside the transaction of what they tell about."""
    if not facts:
        return
    entries, head = extend_chain(chain_name(file.board, file.shard), read_head(connection), facts)
    connection.executemany(
        "INSERT INTO audit VALUES (?, ?, ?)",
        [(entry.number, pack_fact(entry.fact), entry.hash) for entry in entries],
    )
    connection.execute("UPDATE audit_head SET count = ?, hash = ?", (head.count, head.hash))


async def verify_files(
    path: Path, board: str, num_shards: int, timeout: float, noted: Mapping[int, AuditHead]
) -> AuditReport:
    """Verify the audit log of a board; it may be in use meanwhile."""
    report = AuditReport(board)
    for shard in range(num_shards):
        lane = Lane(
            ShardFile(board, shard, board_folder(path, board) / f"shard-{shard:04}.db"), timeout, write=False
        )
        try:
            head = report.heads[shard] = await lane.run(read_head)
            added = await lane.run(_behind)
            pages = _pages(lane, head)
            report.problems.extend(
                await check_chain(chain_name(board, shard), head, noted, shard, pages, added)
            )
        finally:
            await lane.close()
    return report


def _has_entries(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'audit'").fetchone()[0])


def _behind(connection: sqlite3.Connection) -> int | None:
    """Return the number of the first entry behind the recorded end, both as of one moment."""
    if not _has_entries(connection):
        return None
    number: int | None = connection.execute(
        "SELECT min(number) FROM audit WHERE number > (SELECT coalesce(max(count), 0) FROM audit_head)"
    ).fetchone()[0]
    return number


async def _pages(lane: Lane, head: AuditHead) -> AsyncIterator[list[AuditEntry]]:
    """Read a chain up to its head, in short transactions."""
    number = -(2**63)

    def read(connection: sqlite3.Connection) -> list[AuditEntry]:
        if not _has_entries(connection):
            return []
        rows = connection.execute(
            "SELECT number, fact, hash FROM audit WHERE number > ? AND number <= ? ORDER BY number LIMIT ?",
            (number, head.count, ENTRIES_PER_READ),
        )
        return [unpack_entry(*row) for row in rows]

    while entries := await lane.run(read):
        number = entries[-1].number
        yield entries
