"""One workflow of a session at a time, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

__all__ = ["Sessions"]


class Sessions:
    """Locks by key that exist only while somebody holds one or waits for it."""

    def __init__(self) -> None:
        """Start without sessions."""
        self._waiting: dict[Hashable, list[asyncio.Future[None]]] = {}
        """Per session the holder and, behind it, who waits."""

    def busy(self, key: Hashable) -> bool:
        """Say whether somebody has this session."""
        return key in self._waiting

    async def acquire(self, key: Hashable) -> None:
        """Wait for the session; whoever gives up leaves the queue."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(key, [])
        queue.append(turn)
        if queue[0] is turn:
            return
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.release(key)  # it got its turn in the same moment
            else:
                queue.remove(turn)
            raise

    def release(self, key: Hashable) -> None:
        """Give the session to whoever waits first."""
        queue = self._waiting[key]
        del queue[0]
        if not queue:
            del self._waiting[key]
        elif not queue[0].done():
            queue[0].set_result(None)
