"""The shard's index of artifacts: every question about the board is answered from here, never by a scan.

Artifacts get a position in the feed of their shard, ascending and never reused; streams use it as cursor.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import msgspec

from flock_ray.core.wire import Envelope


class CountQuery(msgspec.Struct, array_like=True, frozen=True):
    """Which artifacts to count: those of a type that fulfil every condition given."""

    type: str
    correlation_id: str | None = None
    tags: tuple[str, ...] = ()
    """All must be present."""
    produced_by: str | None = None

    def selects(self, envelope: Envelope) -> bool:
        """Say whether an artifact of the right type is counted."""
        return (
            (self.correlation_id is None or envelope.correlation_id == self.correlation_id)
            and (self.produced_by is None or envelope.produced_by == self.produced_by)
            and (not self.tags or set(self.tags) <= set(envelope.tags))
        )


class BoardIndex:
    """Artifacts of one shard by id, by type and by position."""

    __slots__ = ("_counters", "_dead", "_evicted", "_type_live", "_types", "base", "feed", "ids")

    def __init__(self) -> None:
        """Start empty."""
        self.base = 1
        """Position of the first entry of `feed`; what came before was evicted."""
        self.feed: list[Envelope | None] = []
        self.ids: dict[bytes, int] = {}
        """Position of every artifact held."""
        self._types: dict[str, list[int]] = {}
        self._type_live: dict[str, int] = {}
        self._counters: dict[str, dict[CountQuery, int]] = {}
        self._dead = 0
        self._evicted: dict[str, int] = {}
        """Type: position of the newest artifact that was evicted."""

    def __len__(self) -> int:
        """Artifacts held."""
        return len(self.ids)

    def __contains__(self, artifact_id: bytes) -> bool:
        """Say whether an artifact is on this shard."""
        return artifact_id in self.ids

    @property
    def head(self) -> int:
        """Position of the newest artifact; 0 before the first."""
        return self.base + len(self.feed) - 1

    def add(self, envelope: Envelope) -> int:
        """Add an artifact and return its position."""
        seq = self.base + len(self.feed)
        self.feed.append(envelope)
        self.ids[envelope.id] = seq
        name = envelope.type
        seqs = self._types.get(name)
        if seqs is None:
            self._types[name] = [seq]
            self._type_live[name] = 1
        else:
            seqs.append(seq)
            self._type_live[name] += 1
        counters = self._counters.get(name)
        if counters:
            for query in counters:
                if query.selects(envelope):
                    counters[query] += 1
        return seq

    def get(self, artifact_id: bytes) -> Envelope | None:
        """Return an artifact; None when it is not here."""
        seq = self.ids.get(artifact_id)
        return None if seq is None else self.feed[seq - self.base]

    def position(self, artifact_id: bytes) -> int | None:
        """Return the feed position of an artifact; None when it is not here."""
        return self.ids.get(artifact_id)

    def at(self, seq: int) -> Envelope | None:
        """Return the artifact at a position; None when it was evicted."""
        offset = seq - self.base
        return self.feed[offset] if 0 <= offset < len(self.feed) else None

    def remove(self, seq: int) -> None:
        """Forget the artifact at a position (retention)."""
        envelope = self.at(seq)
        if envelope is None:
            return
        self.feed[seq - self.base] = None
        self._evicted[envelope.type] = max(seq, self._evicted.get(envelope.type, 0))
        del self.ids[envelope.id]
        self._type_live[envelope.type] -= 1
        for query in self._counters.get(envelope.type, ()):
            if query.selects(envelope):
                self._counters[envelope.type][query] -= 1
        self._dead += 1
        if self._dead * 2 > len(self.feed) and self._dead > 1024:
            self._compact()

    def evicted_after(self, after: int, type_name: str | None) -> bool:
        """Say whether an artifact (of a type) behind a position was evicted."""
        newest = (
            max(self._evicted.values(), default=0) if type_name is None else self._evicted.get(type_name, 0)
        )
        return newest > after

    def _compact(self) -> None:
        """Drop the evicted prefix; amortised O(1) per eviction because half of the feed must be dead."""
        keep = next((i for i, entry in enumerate(self.feed) if entry is not None), len(self.feed))
        del self.feed[:keep]
        self.base += keep
        self._dead = sum(1 for entry in self.feed if entry is None)
        for name, seqs in self._types.items():
            self._types[name] = [seq for seq in seqs if self.at(seq) is not None]

    def count_type(self, name: str) -> int:
        """Return how many artifacts of a type are held."""
        return self._type_live.get(name, 0)

    def types(self) -> dict[str, int]:
        """Return the number of artifacts by type."""
        return {name: count for name, count in self._type_live.items() if count}

    def count(self, query: CountQuery, among: list[int] | None = None) -> int:
        """Count by a query; the first time from the smallest index, afterwards kept up to date.

        Args:
            query: What to count.
            among: Positions of the workflow's artifacts when the query names a workflow; None: the type's index.
        """
        if query == CountQuery(query.type):
            return self.count_type(query.type)
        counters = self._counters.setdefault(query.type, {})
        if query not in counters:
            seqs = among if among is not None else self._types.get(query.type, [])
            counters[query] = sum(
                1
                for seq in seqs
                if (env := self.at(seq)) is not None and env.type == query.type and query.selects(env)
            )
        return counters[query]

    def forget(self, query: CountQuery) -> None:
        """Stop keeping a count up to date."""
        counters = self._counters.get(query.type)
        if counters:
            counters.pop(query, None)
            if not counters:
                del self._counters[query.type]

    def read(
        self, after: int, *, type_name: str | None = None, seqs: list[int] | None = None
    ) -> Iterator[tuple[int, Envelope]]:
        """Iterate over artifacts behind a position in feed order.

        Args:
            after: Position of the last one already seen; 0 for all.
            type_name: Only this type; None for every type.
            seqs: Only these positions (ascending), a workflow's; None for no such limit.
        """
        if seqs is None and type_name is not None:
            seqs = self._types.get(type_name, [])
        if seqs is None:
            for offset in range(max(0, after + 1 - self.base), len(self.feed)):
                envelope = self.feed[offset]
                if envelope is not None:
                    yield self.base + offset, envelope
            return
        for i in range(bisect_right(seqs, after), len(seqs)):
            envelope = self.at(seqs[i])
            if envelope is not None and (type_name is None or envelope.type == type_name):
                yield seqs[i], envelope
