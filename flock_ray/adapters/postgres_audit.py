"""The audit log in PostgreSQL: what is logged, and how it is verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flock_ray.adapters import postgres_sql as sql
from flock_ray.adapters.postgres_connections import Address, Connection, close_connection
from flock_ray.adapters.postgres_errors import DRIVER_ERRORS, store_error
from flock_ray.adapters.postgres_rows import column_text
from flock_ray.core.audit import AuditEntry, AuditFact, AuditHead, AuditProblem, ChainVerifier
from flock_ray.core.rows import StoreBatch
from flock_ray.errors import ConfigurationError

_ENTRIES_PER_READ = 5_000


def chain_name(board: str, shard: int) -> str:
    """Return the name of a shard's chain: no entry fits into the chain of another shard or board."""
    return f"{board}/{shard}"


def _fact(at_us: int, kind: str, subject: str, actor: str = "", detail: str = "") -> AuditFact:
    """Make a fact of texts that are hashed as they are stored."""
    return AuditFact(at_us, column_text(kind), column_text(subject), column_text(actor), column_text(detail))


def batch_facts(batch: StoreBatch) -> list[AuditFact]:
    """Return what a batch adds: one fact per artifact from outside, ended activation and decision."""
    facts = [
        _fact(batch.at_us, "artifact.published", e.id.hex(), e.produced_by, f"{e.type} in {e.correlation_id}")
        for _, e in batch.artifacts
        if e.activation_id is None
    ]
    facts += [
        _fact(row.ended_us, f"activation.{row.status}", row.id.hex(), row.agent, row.error_type)
        for row in batch.activations
    ]
    facts += [_fact(d.at_us, d.kind, d.subject, d.actor, d.detail) for d in batch.decisions]
    return facts


def erasure_fact(at_us: int, artifact: bytes) -> AuditFact:
    """Return the fact that a payload was erased."""
    return _fact(at_us, "artifact.erased", artifact.hex())


def removal_fact(at_us: int, workflow: str, slot: int, artifacts: int) -> AuditFact:
    """Return the fact that a settled workflow was removed."""
    return _fact(at_us, "workflow.removed", workflow, "", f"slot {slot}, {artifacts} artifacts")


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


@dataclass(frozen=True)
class AuditReport:
    """What a verification found."""

    board: str
    heads: dict[int, AuditHead] = field(default_factory=dict)
    """Where each shard's chain ends. Note them elsewhere, and give them to the next verification."""
    problems: list[tuple[int, AuditProblem]] = field(default_factory=list)
    """(shard, problem); empty when nothing was changed."""

    @property
    def entries(self) -> int:
        """Entries that the chains should have."""
        return sum(head.count for head in self.heads.values())

    @property
    def sound(self) -> bool:
        """True when every chain is as it was written."""
        return not self.problems


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
    for shard in range(rows[0]["num_shards"]):
        row = found.get(shard)
        if row is None:
            report.problems.append(
                (shard, AuditProblem(0, f"The row of shard {shard} in table shards is missing."))
            )
            continue
        head = report.heads[shard] = AuditHead(row["audit_count"], row["audit_hash"])
        chain = ChainVerifier(chain_name(board, shard))
        problems = await _verify_chain(
            connection, schema, row["id"], chain, head, noted.get(shard, AuditHead())
        )
        report.problems.extend((shard, problem) for problem in problems)
    return report


async def _verify_chain(
    connection: Connection,
    schema: str,
    shard_id: int,
    chain: ChainVerifier,
    head: AuditHead,
    noted: AuditHead,
) -> list[AuditProblem]:
    """Read a chain up to its head, in short statements: a long one would keep old versions of busy rows alive."""
    problems: list[AuditProblem] = []
    number = -(2**63)
    seen = noted.count == 0
    statement = sql.AUDIT_ENTRIES.replace("{schema}", schema)
    while rows := await connection.fetch(statement, shard_id, number, head.count, _ENTRIES_PER_READ):
        entries = [AuditEntry(row[0], AuditFact(*row[1:6]), row[6]) for row in rows]
        number = entries[-1].number
        seen = seen or any(entry.number == noted.count and entry.hash == noted.hash for entry in entries)
        problems += chain.check(entries)
    problems += chain.finish(head)
    added = await connection.fetchval(sql.AUDIT_BEYOND.replace("{schema}", schema), shard_id)
    if added is not None:
        problems.append(AuditProblem(added, f"Entry {added} is behind the recorded end: it was added."))
    if not seen:
        text = f"Entry {noted.count} is not the one that was noted: the chain was rewritten or cut."
        problems.append(AuditProblem(noted.count, text))
    return problems
