"""What every store's audit log has in common: which facts are logged, and how a chain is verified."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from flock_ray.core.audit import AuditEntry, AuditFact, AuditHead, AuditProblem, ChainVerifier
from flock_ray.core.rows import StoreBatch

ENTRIES_PER_READ = 5_000

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(AuditFact).decode

UNREADABLE = AuditFact(0, "unreadable", "")
"""Stands for what can't be decoded: its hash fits nowhere."""


def chain_name(board: str, shard: int) -> str:
    """Return the name of a shard's chain: no entry fits into the chain of another shard or board."""
    return f"{board}/{shard}"


def batch_facts(batch: StoreBatch, text: Callable[[str], str] = str) -> list[AuditFact]:
    """Return what a batch adds: one fact per artifact from outside, ended activation and decision.

    Args:
        batch: What is appended.
        text: Makes of a text what the store keeps of it: that is hashed.
    """
    facts = [
        AuditFact(
            batch.at_us, "artifact.published", e.id.hex(), text(e.produced_by),
            text(f"{e.type} in {e.correlation_id}"),
        )
        for _, e in batch.artifacts
        if e.activation_id is None
    ]  # fmt: skip
    facts += [
        AuditFact(
            row.ended_us, f"activation.{row.status}", row.id.hex(), text(row.agent), text(row.error_type)
        )
        for row in batch.activations
    ]
    facts += [
        AuditFact(d.at_us, text(d.kind), text(d.subject), text(d.actor), text(d.detail))
        for d in batch.decisions
    ]
    return facts


def erasure_fact(at_us: int, artifact: bytes) -> AuditFact:
    """Return the fact that a payload was erased."""
    return AuditFact(at_us, "artifact.erased", artifact.hex())


def removal_fact(at_us: int, workflow: str, slot: int, artifacts: int) -> AuditFact:
    """Return the fact that a settled workflow was removed; `workflow` as the store keeps it."""
    return AuditFact(at_us, "workflow.removed", workflow, "", f"slot {slot}, {artifacts} artifacts")


def pack_fact(fact: AuditFact) -> bytes:
    """Encode a fact for a store without columns."""
    return _encode(fact)


def unpack_entry(number: int, data: object, hash_: object) -> AuditEntry:
    """Restore an entry of a store without columns; one that can't be read is one that was changed."""
    try:
        fact = _decode(data) if isinstance(data, bytes) else UNREADABLE
    except msgspec.DecodeError:
        fact = UNREADABLE
    return AuditEntry(number, fact, hash_ if isinstance(hash_, bytes) else b"")


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


async def check_chain(
    chain: str,
    head: AuditHead,
    noted: Mapping[int, AuditHead],
    shard: int,
    pages: AsyncIterable[Sequence[AuditEntry]],
    added: int | None = None,
) -> list[tuple[int, AuditProblem]]:
    """Verify the entries of one shard, page by page.

    Args:
        chain: Its name.
        head: Where it ends, as the store has recorded it.
        noted: Heads by shard of an earlier report; empty without one.
        shard: Which shard.
        pages: Its entries up to the head, by number.
        added: Number of the first entry that the store has behind the head; None: there is none.
    """
    verifier, note = ChainVerifier(chain), noted.get(shard, AuditHead())
    problems: list[AuditProblem] = []
    seen = note.count == 0
    async for entries in pages:
        seen = seen or any(entry.number == note.count and entry.hash == note.hash for entry in entries)
        problems += verifier.check(entries)
    problems += verifier.finish(head)
    if added is not None:
        problems.append(AuditProblem(added, f"Entry {added} is behind the recorded end: it was added."))
    if not seen:
        text = f"Entry {note.count} is not the one that was noted: the chain was rewritten or cut."
        problems.append(AuditProblem(note.count, text))
    return [(shard, problem) for problem in problems]
