"""The audit log in PostgreSQL: its columns, and how it is verified."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from flock_ray.adapters import postgres_sql as sql
from flock_ray.adapters.audit_trail import ENTRIES_PER_READ, AuditReport, chain_name, check_chain
from flock_ray.adapters.postgres_connections import Address, Connection, close_connection
from flock_ray.adapters.postgres_errors import DRIVER_ERRORS, store_error
from flock_ray.core.audit import AuditEntry, AuditFact, AuditHead, AuditProblem
from flock_ray.errors import ConfigurationError


def audit_columns(entries: Sequence[AuditEntry]) -> list[list[Any]]:
    """Return the columns of table `audit`, in the order of the statements."""
    return [
        [entry.number for entry in entries],
        [entry.fact.at_us for entry in entries],
        [entry.fact.kind for entry in entries],
        [entry.fact.subject for entry in entries],
        [entry.fact.actor for entry in entries],
        [entry.fact.detail for entry in entries],
        [entry.hash for entry in entries],
    ]


async def verify_audit(
    address: Address, schema: str, board: str, *, noted: Mapping[int, AuditHead] | None = None
) -> AuditReport:
    """Verify the audit log of a board; it may be in use meanwhile.

    Finds entries that were changed, removed (the newest ones too), added or reordered. Whoever can change tables
    and rewrites a chain with its recorded end is only found with `noted`.

    Args:
        address: The server.
        schema: Quoted name of the schema.
        board: Name of the board.
        noted: Heads by shard that an earlier report gave, kept where nobody of the database can change them.

    Raises:
        ConfigurationError: There is no such board.
        StoreUnavailableError: The server does not answer; retryable.
    """
    connection: Connection | None = None
    try:
        connection = await address.connect()
        return await _verify(connection, schema, board, noted or {})
    except DRIVER_ERRORS as error:
        raise store_error(error, address.place) from None
    finally:
        if connection is not None:
            await close_connection(connection, address.timeout)


async def _verify(
    connection: Connection, schema: str, board: str, noted: Mapping[int, AuditHead]
) -> AuditReport:
    rows = await connection.fetch(sql.AUDIT_HEADS.replace("{schema}", schema), board)
    if not rows:
        raise ConfigurationError(
            f"There is no board {board!r} in schema {schema}: correct its name, or schema=."
        )
    report = AuditReport(board)
    found = {row["shard"]: row for row in rows}
    beyond = sql.AUDIT_BEYOND.replace("{schema}", schema)
    for shard in range(rows[0]["num_shards"]):
        row = found.get(shard)
        if row is None:
            report.problems.append(
                (shard, AuditProblem(0, f"The row of shard {shard} in table shards is missing."))
            )
            continue
        head = report.heads[shard] = AuditHead(row["audit_count"], row["audit_hash"])
        pages = _pages(connection, schema, row["id"], head)
        added = await connection.fetchval(beyond, row["id"])
        report.problems.extend(await check_chain(chain_name(board, shard), head, noted, shard, pages, added))
    return report


async def _pages(
    connection: Connection, schema: str, shard_id: int, head: AuditHead
) -> AsyncIterator[list[AuditEntry]]:
    """Read a chain up to its head, in short statements: a long one would keep old versions of busy rows alive."""
    number = -(2**63)
    statement = sql.AUDIT_ENTRIES.replace("{schema}", schema)
    while rows := await connection.fetch(statement, shard_id, number, head.count, ENTRIES_PER_READ):
        entries = [AuditEntry(row[0], AuditFact(*row[1:6]), row[6]) for row in rows]
        number = entries[-1].number
        yield entries
