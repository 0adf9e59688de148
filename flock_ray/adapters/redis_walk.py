"""Walks one or several sorted sets in the order of their members."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import merge
from itertools import islice

from flock_ray.adapters.redis_link import RedisLink

__all__ = ["Walk"]


class Walk:
    """A position in the union of sorted sets, which share no member.

    It goes on behind the last member taken, so what is added or removed meanwhile neither repeats nor hides others.
    """

    def __init__(
        self, line: RedisLink, indexes: Sequence[bytes], start: bytes, end: bytes, *, reverse: bool = False
    ) -> None:
        """Say where it begins (inclusive) and ends (exclusive); in reverse it comes from the end."""
        self._line = line
        first, last = (b"(" + end, b"[" + start) if reverse else (b"[" + start, b"(" + end)
        self._starts = dict.fromkeys(indexes, first)
        self._buffers: dict[bytes, list[bytes]] = {index: [] for index in indexes}
        self._end = last
        self._order = ("BYLEX", "REV") if reverse else ("BYLEX",)
        self._reverse = reverse
        self._skip = 0

    async def size(self) -> int:
        """Count the members that are left."""
        replies = await self._line.read(
            *(("ZLEXCOUNT", index, start, self._end) for index, start in self._starts.items())
        )
        return sum(replies)

    async def skip(self, count: int) -> None:
        """Leave out members at the beginning; of one set only the index is read."""
        if len(self._starts) == 1:
            self._skip = count
            return
        while count > 0 and (members := await self.take(min(count, 1000))):
            count -= len(members)

    async def take(self, count: int) -> list[bytes]:
        """Return the next members in order, at most so many; empty at the end."""
        taken: list[bytes] = []
        while len(taken) < count:
            await self._fill(count)
            if not self._buffers:
                break
            # Behind the last member of a buffer others of its set may come before those of the rest.
            ends = [buffer[-1] for index, buffer in self._buffers.items() if index in self._starts]
            known = (max if self._reverse else min)(ends, default=None)
            merged = merge(*self._buffers.values(), reverse=self._reverse)
            ready = (member for member in merged if known is None or not self._behind(member, known))
            some = list(islice(ready, count - len(taken)))
            taken += some
            self._forget(some[-1])
        return taken

    def _behind(self, member: bytes, other: bytes) -> bool:
        return member < other if self._reverse else member > other

    def _forget(self, last: bytes) -> None:
        for index, buffer in list(self._buffers.items()):
            left = [member for member in buffer if self._behind(member, last)]
            if left or index in self._starts:
                self._buffers[index] = left
            else:
                del self._buffers[index]

    async def _fill(self, count: int) -> None:
        """Read more of every set whose buffer is empty."""
        empty = [index for index, buffer in self._buffers.items() if not buffer]
        if not empty:
            return
        replies = await self._line.read(
            *(
                ("ZRANGE", index, self._starts[index], self._end, *self._order, "LIMIT", self._skip, count)
                for index in empty
            )
        )
        self._skip = 0
        for index, members in zip(empty, replies, strict=True):
            if len(members) < count:
                del self._starts[index]
            else:
                self._starts[index] = b"(" + members[-1]
            if members:
                self._buffers[index] = members
            else:
                del self._buffers[index]
