"""The memory journal: an accepted artifact lives as long as its shard's process, and no longer."""

from __future__ import annotations

from collections.abc import Sequence

from flock_ray.core.records import Record


class MemoryJournal:
    """Keeps nothing: the shard's state is all there is. The default; nothing to install."""

    mode = "memory"

    async def append(self, records: Sequence[Record]) -> None:
        """Accept records."""


class RecordingJournal:
    """Keeps every record in a list: for tests that replay it."""

    mode = "memory"

    def __init__(self) -> None:
        """Start empty."""
        self.records: list[Record] = []

    async def append(self, records: Sequence[Record]) -> None:
        """Keep records."""
        self.records.extend(records)
