"""Claims: what an envelope carries in place of a large payload, which is kept outside the shards.

A claim says how long the payload is and what it hashes to. It stands in `Envelope.payload`, so whatever handles
payloads as opaque bytes handles claims too: journals, snapshots, forwards, comparisons. No JSON begins like one.
Where the payload is, a claim does not say: the shard that has the artifact knows.
"""

from __future__ import annotations

import hashlib

import msgspec

MARK = b"\x00"
"""First byte of a claim: no JSON text begins with it."""

_SIZE_BYTES = 8
_DIGEST_BYTES = 32
CLAIM_BYTES = len(MARK) + _SIZE_BYTES + _DIGEST_BYTES


class Claim(msgspec.Struct, frozen=True):
    """Length and SHA-256 of a payload."""

    size: int
    digest: bytes


def is_claim(payload: bytes) -> bool:
    """Say whether a payload is a claim."""
    return payload[:1] == MARK


def claim_for(payload: bytes) -> bytes:
    """Return what stands for a payload; the same for the same bytes, whoever makes it."""
    return MARK + len(payload).to_bytes(_SIZE_BYTES, "big") + hashlib.sha256(payload).digest()


def read_claim(payload: bytes) -> Claim:
    """Return what a claim says.

    Raises:
        ValueError: It is none.
    """
    if len(payload) != CLAIM_BYTES or not is_claim(payload):
        raise ValueError(f"{payload[:CLAIM_BYTES]!r} is no claim")
    return Claim(int.from_bytes(payload[1 : 1 + _SIZE_BYTES], "big"), payload[1 + _SIZE_BYTES :])


def fits(claim: bytes, payload: bytes | memoryview) -> bool:
    """Say whether a payload is the one that a claim stands for."""
    try:
        said = read_claim(claim)
    except ValueError:
        return False
    return said.size == len(payload) and said.digest == hashlib.sha256(payload).digest()


def same_payload(one: bytes, other: bytes) -> bool:
    """Say whether two payloads, each itself or claimed, are the same."""
    if is_claim(one) == is_claim(other):
        return one == other
    return fits(one, other) if is_claim(one) else fits(other, one)


def payload_bytes(payload: bytes) -> int:
    """Return how long a payload is, itself or claimed."""
    if not is_claim(payload):
        return len(payload)
    try:
        return read_claim(payload).size
    except ValueError:
        return len(payload)
