"""How much goes into one message between actors."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

MAX_MESSAGE_BYTES = 400_000
"""A message costs about a millisecond whatever is in it, so batches are large; but a worker should
begin on the first part of a long queue while the rest travels (measured with bench/)."""

ENVELOPE_BYTES = 180
"""Roughly what an envelope takes on the wire beside its payload."""


def parts(items: list[T], payload_bytes: list[int]) -> list[list[T]]:
    """Split items into messages of at most `MAX_MESSAGE_BYTES`, or one item where that is larger.

    Args:
        items: In order; at least one.
        payload_bytes: Of each item.
    """
    if sum(payload_bytes) + len(items) * ENVELOPE_BYTES <= MAX_MESSAGE_BYTES:
        return [items]
    out: list[list[T]] = [[]]
    total = 0
    for item, size in zip(items, payload_bytes, strict=True):
        size += ENVELOPE_BYTES
        if out[-1] and total + size > MAX_MESSAGE_BYTES:
            out.append([])
            total = 0
        out[-1].append(item)
        total += size
    return out
