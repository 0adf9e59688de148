"""The shard's index of artifacts: every question about the board is answered from here, never by a scan.

Artifacts get a position in the feed of their shard, ascending and never reused; streams use it as cursor.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import msgspec

from flock_ray.core.claims import is_claim
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
    """Artifacts of one shard that are in memory, by id, by type and by position."""

    __slots__ = (
        "_counters",
        "_dead",
        "_entries",
        "_evicted",
        "_seqs",
        "_type_live",
        "_types",
        "floor",
        "head",
        "ids",
        "released",
    )

    def __init__(self) -> None:
        """Start empty."""
        self.head = 0
        """Position of the newest artifact; 0 before the first."""
        self.floor = 0
        """Every artifact behind this position is in memory; of those up to it some may have left."""
        self.ids: dict[bytes, int] = {}
        """Position of every artifact held."""
        self._seqs: list[int] = []
        """Positions, ascending; without gaps while nothing was removed."""
        self._entries: list[Envelope | None] = []
        """The artifact at each of `_seqs`; None where it was removed."""
        self._types: dict[str, list[int]] = {}
        self._type_live: dict[str, int] = {}
        self._counters: dict[str, dict[CountQuery, int]] = {}
        self._dead = 0
        self.released: list[bytes] = []
        """Artifacts with claimed payloads that were removed: the host lets their payloads go, and empties this."""
        self._evicted: dict[str, int] = {}
        """Type: position of the newest artifact that was evicted."""

    def __len__(self) -> int:
        """Artifacts held."""
        return len(self.ids)

    def __contains__(self, artifact_id: bytes) -> bool:
        """Say whether an artifact is on this shard."""
        return artifact_id in self.ids

    def __iter__(self) -> Iterator[Envelope]:
        """Iterate over the artifacts held, by position."""
        return (envelope for envelope in self._entries if envelope is not None)

    def add(self, envelope: Envelope) -> int:
        """Add an artifact and return its position."""
        seq = self.head = self.head + 1
        self._seqs.append(seq)
        self._entries.append(envelope)
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

    def _offset(self, seq: int) -> int:
        """Return where a position is in `_seqs`; -1 when it is not there."""
        seqs = self._seqs
        if not seqs:
            return -1
        offset = seq - seqs[0]
        if 0 <= offset < len(seqs) and seqs[offset] == seq:
            return offset
        offset = bisect_left(seqs, seq)
        return offset if offset < len(seqs) and seqs[offset] == seq else -1

    def get(self, artifact_id: bytes) -> Envelope | None:
        """Return an artifact; None when it is not here."""
        seq = self.ids.get(artifact_id)
        return None if seq is None else self.at(seq)

    def position(self, artifact_id: bytes) -> int | None:
        """Return the feed position of an artifact; None when it is not here."""
        return self.ids.get(artifact_id)

    def at(self, seq: int) -> Envelope | None:
        """Return the artifact at a position; None when it was evicted."""
        offset = self._offset(seq)
        return None if offset < 0 else self._entries[offset]

    def remove(self, seqs: Iterable[int], *, keep_counts: bool = False) -> None:
        """Forget the artifacts at these positions (retention).

        Args:
            seqs: Their positions; those that are not here are skipped.
            keep_counts: They are only dropped from memory and still count.
        """
        entries, ids, live, evicted = self._entries, self.ids, self._type_live, self._evicted
        for seq in seqs:
            offset = self._offset(seq)
            envelope = None if offset < 0 else entries[offset]
            if envelope is None:
                continue
            entries[offset] = None
            self._dead += 1
            if seq > self.floor:
                self.floor = seq
            name = envelope.type
            if seq > evicted.get(name, 0):
                evicted[name] = seq
            del ids[envelope.id]
            if is_claim(envelope.payload):
                self.released.append(envelope.id)
            live[name] -= 1
            if not keep_counts:
                for query in self._counters.get(name, ()):
                    if query.selects(envelope):
                        self._counters[name][query] -= 1
        if self._dead * 2 > len(entries) and self._dead > 1024:
            self._compact()

    def evicted_after(self, after: int, type_name: str | None) -> bool:
        """Say whether an artifact (of a type) behind a position was evicted."""
        newest = (
            max(self._evicted.values(), default=0) if type_name is None else self._evicted.get(type_name, 0)
        )
        return newest > after

    def _compact(self) -> None:
        """Drop what was evicted; amortised O(1) per eviction because half of the feed must be dead."""
        live = [(s, e) for s, e in zip(self._seqs, self._entries, strict=True) if e is not None]
        self._seqs = [seq for seq, _ in live]
        self._entries = [envelope for _, envelope in live]
        self._dead = 0
        self._types = {}
        for seq, envelope in live:
            self._types.setdefault(envelope.type, []).append(seq)

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
        if query not in self._counters.get(query.type, ()) and query == CountQuery(query.type):
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

    def counts(self, query: CountQuery) -> bool:
        """Say whether a query's count is kept up to date."""
        return query in self._counters.get(query.type, ())

    def start_count(self, query: CountQuery, value: int) -> None:
        """Keep a count up to date from a value that includes what is no longer in memory."""
        self._counters.setdefault(query.type, {})[query] = value

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
            for i in range(bisect_right(self._seqs, after), len(self._seqs)):
                envelope = self._entries[i]
                if envelope is not None:
                    yield self._seqs[i], envelope
            return
        for i in range(bisect_right(seqs, after), len(seqs)):
            envelope = self.at(seqs[i])
            if envelope is not None and (type_name is None or envelope.type == type_name):
                yield seqs[i], envelope

    def read_back(
        self, before: int, *, type_name: str | None = None, seqs: list[int] | None = None
    ) -> Iterator[tuple[int, Envelope]]:
        """Iterate over artifacts in front of a position against feed order; otherwise like `read`.

        Args:
            before: Position of the last one already seen; `head + 1` for all.
            type_name: Only this type; None for every type.
            seqs: Only these positions (ascending), a workflow's; None for no such limit.
        """
        if seqs is None and type_name is not None:
            seqs = self._types.get(type_name, [])
        if seqs is None:
            for i in range(bisect_left(self._seqs, before) - 1, -1, -1):
                envelope = self._entries[i]
                if envelope is not None:
                    yield self._seqs[i], envelope
            return
        for i in range(bisect_left(seqs, before) - 1, -1, -1):
            envelope = self.at(seqs[i])
            if envelope is not None and (type_name is None or envelope.type == type_name):
                yield seqs[i], envelope
