"""How much goes into one message between actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

MAX_MESSAGE_BYTES = 400000
"""Ray sends arguments up to 100 KB inline; larger ones go through the object store, which costs the
raylet 10-40 us per item (measured)."""

ENVELOPE_BYTES = 250
"""Roughly what an envelope takes on the wire beside its payload."""


def parts(items: list[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Split items into messages of at most `MAX_MESSAGE_BYTES`, or one item where that is larger.

    Args:
        items: In order; at least one.
        size: Estimates the bytes of an item.
    """
    part: list[T] = []
    total = 0
    for item in items:
        length = size(item)
        if part and total + length > MAX_MESSAGE_BYTES:
            yield part
            part, total = [], 0
        part.append(item)
        total += length
    if part:
        yield part
