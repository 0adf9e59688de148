"""The real clock."""

from __future__ import annotations

import time


class SystemClock:
    """Wall time that never goes back within one process."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        """Start at the present."""
        self._last = 0

    def now_us(self) -> int:
        """Return microseconds since the Unix epoch."""
        self._last = max(self._last, time.time_ns() // 1000)
        return self._last
