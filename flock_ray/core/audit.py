"""The audit log as a hash chain: each entry's hash covers its content and the hash before it.

Changing, removing or reordering entries breaks the chain at that place. Removing the newest ones
leaves a chain that is sound but short: the head (count and hash), kept elsewhere, shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256

import msgspec

HASH_BYTES = 32
"""Size of a hash: SHA-256."""


class AuditFact(msgspec.Struct, array_like=True, frozen=True):
    """What an entry says: who did what to which thing, and when."""

    at_us: int
    kind: str
    """For example `artifact.published`, `activation.failed`, `workflow.removed`."""
    subject: str
    actor: str = ""
    detail: str = ""


class AuditEntry(msgspec.Struct, array_like=True, frozen=True):
    """A fact at its place in a chain."""

    number: int
    """Counts from 1 without gaps."""
    fact: AuditFact
    hash: bytes


class AuditHead(msgspec.Struct, array_like=True, frozen=True):
    """Where a chain ends: how many entries it has, and the hash of the newest."""

    count: int = 0
    hash: bytes = b""
    """Empty for a chain without entries."""


class AuditProblem(msgspec.Struct, array_like=True, frozen=True):
    """A place at which a chain is not what was written."""

    number: int
    """Of the entry; for one that is missing, the number it should have."""
    text: str
    """One sentence."""


_encode = msgspec.msgpack.Encoder().encode


def entry_hash(chain: str, number: int, fact: AuditFact, previous: bytes) -> bytes:
    """Return the hash of an entry: SHA-256 over the chain's name, the number, the fact and the hash before it."""
    return sha256(_encode((chain, number, fact, previous))).digest()


def extend_chain(
    chain: str, head: AuditHead, facts: Iterable[AuditFact]
) -> tuple[list[AuditEntry], AuditHead]:
    """Append facts to a chain.

    Args:
        chain: Name of the chain, unique among all chains: no entry fits into another one.
        head: Where the chain ends now.
        facts: What to append, in order.

    Returns:
        The new entries, and where the chain ends with them.
    """
    entries: list[AuditEntry] = []
    number, previous = head.count, head.hash
    for fact in facts:
        number += 1
        previous = entry_hash(chain, number, fact, previous)
        entries.append(AuditEntry(number, fact, previous))
    return entries, AuditHead(number, previous)


class ChainVerifier:
    """Checks a chain entry by entry, so that it never has to be in memory as a whole."""

    def __init__(self, chain: str) -> None:
        """Begin before the first entry of a chain."""
        self.head = AuditHead()
        self._chain = chain

    def check(self, entries: Iterable[AuditEntry]) -> Iterator[AuditProblem]:
        """Take the next entries, in the order of their numbers, and yield what is wrong with them.

        After a wrong entry the check goes on from the hash that is stored, so that each damage is told once.
        """
        for entry in entries:
            expected = self.head.count + 1
            if entry.number < expected:
                yield AuditProblem(entry.number, f"Entry {entry.number} is there twice, or out of order.")
                continue
            if entry.number > expected:
                yield _missing(expected, entry.number - 1)
            elif entry.hash != entry_hash(self._chain, entry.number, entry.fact, self.head.hash):
                yield AuditProblem(
                    entry.number, f"Entry {entry.number} was changed, or the one before it was replaced."
                )
            self.head = AuditHead(entry.number, entry.hash)

    def finish(self, head: AuditHead) -> Iterator[AuditProblem]:
        """Compare the end of the chain with the head that was kept elsewhere, and yield what is wrong."""
        if self.head.count < head.count:
            yield _missing(self.head.count + 1, head.count)
        elif self.head.count > head.count:
            first = head.count + 1
            yield AuditProblem(first, f"Entry {first} and later ones were added behind the recorded end.")
        elif self.head.hash != head.hash:
            yield AuditProblem(head.count, f"Entry {head.count} is not the newest one that was written.")


def _missing(first: int, last: int) -> AuditProblem:
    what = f"Entry {first} is" if first == last else f"Entries {first} to {last} are"
    return AuditProblem(first, f"{what} missing.")
