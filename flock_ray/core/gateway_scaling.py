"""Which gateway a call goes to, and when there should be another one. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["CALLS_PER_GATEWAY", "home_of", "pick"]

CALLS_PER_GATEWAY = 1000
"""Open calls of a gateway past which the next one is started; a gateway's CPU is used up at some hundreds a second."""


def home_of(key: str, num_gateways: int) -> int:
    """Return the one gateway that keeps a limit: the same on every worker, by rendezvous hashing."""
    return max(range(num_gateways), key=lambda index: _weight(key, index))


def pick(open_calls: Sequence[int], most: int) -> int:
    """Choose a gateway for a call that may go anywhere.

    Args:
        open_calls: Of the gateways in use, in order of their numbers.
        most: How many there may be.

    Returns:
        The number of one in use, or of the next one when all are full and there may be more.
    """
    for index, calls in enumerate(open_calls):
        if calls < CALLS_PER_GATEWAY:
            return index  # the first with room: the others come to rest, and end
    if len(open_calls) < most:
        return len(open_calls)
    return min(range(len(open_calls)), key=lambda index: open_calls[index])


def _weight(key: str, index: int) -> bytes:
    return hashlib.blake2b(f"{index}:{key}".encode(), digest_size=8).digest()
