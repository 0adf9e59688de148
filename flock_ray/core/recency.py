"""How new the artifacts up to a position can be, for boards without a store: where a walk from the newest may end.

The feed is in the order of acceptance, which is nearly the order of creation, but not quite: clocks differ, and a
publisher may say when something was made. One number per block of positions is enough to stop exactly.
"""

from __future__ import annotations

from itertools import islice

from flock_ray.core.index import BoardIndex

__all__ = ["Recency"]

BLOCK = 256
"""Positions that share a bound."""


class Recency:
    """Latest creation time among the artifacts up to a position. Publishing pays nothing: a question catches up."""

    __slots__ = ("_index", "_latest", "_seen")

    def __init__(self, index: BoardIndex) -> None:
        """Look at a shard's artifacts; nothing is read yet."""
        self._index = index
        self._seen = 0
        self._latest: list[int] = []
        """Per block, the latest creation time in it and in all before; those that left since are in it, too."""

    def catch_up(self, limit: int) -> bool:
        """Read at most so many artifacts that are new; True when none is left."""
        latest = self._latest
        count = 0
        for seq, envelope in islice(self._index.read(self._seen), limit):
            count += 1
            self._seen = seq
            block = seq // BLOCK
            if block >= len(latest):
                so_far = latest[-1] if latest else envelope.created_us
                latest.extend([so_far] * (block + 1 - len(latest)))
            if envelope.created_us > latest[block]:
                latest[block] = envelope.created_us
        return count < limit

    def bound_us(self, seq: int) -> int | None:
        """Return a time that no artifact at this position or before was created after; None: there is none."""
        if not self._latest:
            return None
        return self._latest[min(seq // BLOCK, len(self._latest) - 1)]
