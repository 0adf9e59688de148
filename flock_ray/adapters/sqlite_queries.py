"""Questions to a SQLite shard: each is a few walks along indexes, merged in order.

A *kind* is a combination of type, producer and visibility. Whatever a query says about these three
selects some kinds; with few of them each kind is one ordered walk, and the walks are merged lazily, so a
first page costs as much in a large file as in a small one. Conditions on a workflow or a tag go first:
they select the least.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from typing import Any, Literal

from flock_ray.adapters.sqlite_append import Kinds, read_kinds, transaction
from flock_ray.adapters.sqlite_files import ShardFile
from flock_ray.adapters.sqlite_journal import FOUND, find, newest
from flock_ray.adapters.sqlite_rows import artifact_crc, decode_artifact, decode_row, id_hash, text_hash
from flock_ray.adapters.sqlite_schema import OF_WORKFLOW, RUN_OF_INPUT, RUN_OF_WORKFLOW, WORKFLOW
from flock_ray.core.rows import ActivationRow, ArtifactQuery, SettledPlace, Summary, WorkflowRow
from flock_ray.core.wire import Envelope

Order = Literal["seq", "time", "newest"]

MAX_WALKS = 64
"""More kinds than this are not merged: one walk over everything leaves out what does not fit."""

_AT_ONCE = 500
_BODIES = f"SELECT seq, id, crc, meta, payload FROM artifacts WHERE seq IN ({', '.join('?' * _AT_ONCE)})"
_BY_SEQ = "SELECT seq, meta, payload, crc FROM artifacts WHERE seq = ?"
_ORDER = {
    "seq": ("w.seq", "w.seq"),
    "time": ("w.created_us, w.id, w.seq", "w.created_us, w.id"),
    "newest": ("w.created_us, w.id, w.seq", "w.created_us DESC, w.id DESC"),
}


@dataclass
class Walk:
    """FROM and WHERE of one walk along an index; `w` is the row walked over."""

    source: str
    conditions: list[str]
    params: list[Any] = field(default_factory=list)

    def where(self, condition: str, *params: Any) -> None:
        """Add a condition."""
        self.conditions.append(condition)
        self.params += params

    def select(self, columns: str, tail: str = "") -> tuple[str, list[Any]]:
        """Return a statement and its parameters."""
        where = f" WHERE {' AND '.join(self.conditions)}" if self.conditions else ""
        return f"SELECT {columns} FROM {self.source}{where} {tail}", self.params


def _kind_filter(query: ArtifactQuery, kinds: Kinds) -> list[int] | None:
    """Return the kinds that a query selects; None when it does not ask."""
    if not (query.types or query.produced_by or query.visibility):
        return None
    types, producers, visibilities = set(query.types), set(query.produced_by), set(query.visibility)
    return [
        number
        for (type_, producer, visibility), number in kinds.items()
        if (not types or type_ in types)
        and (not producers or producer in producers)
        and (not visibilities or visibility in visibilities)
    ]


def walks(query: ArtifactQuery, kinds: Kinds, order: Order) -> list[Walk]:
    """Return disjoint walks that together visit what a query selects, each in the order asked for."""
    chosen = _kind_filter(query, kinds)
    tags = list(dict.fromkeys(query.tags))
    if chosen == []:
        return []
    if query.correlation_id is not None:
        name = query.correlation_id
        source = f"{FOUND} CROSS JOIN artifacts w ON w.seq = p.number AND w.correlation_id = ?"
        found = [Walk(source, [], [text_hash(name), OF_WORKFLOW, name])]
    elif tags:
        found = [Walk("tags w NOT INDEXED" if order == "seq" else "tags w INDEXED BY tags_time", [])]
        found[0].where("w.tag = ?", tags.pop(0))
    elif chosen is not None and len(chosen) <= MAX_WALKS:
        index = "artifacts_kind" if order == "seq" else "artifacts_kind_time"
        found = [Walk(f"artifacts w INDEXED BY {index}", ["w.kind = ?"], [kind]) for kind in chosen]
        chosen = None
    else:
        found = [
            Walk("artifacts w NOT INDEXED" if order == "seq" else "artifacts w INDEXED BY artifacts_time", [])
        ]
    for walk in found:
        if chosen is not None:
            walk.where("w.kind IN (SELECT value FROM json_each(?))", json.dumps(chosen))
        for tag in tags:
            walk.where("EXISTS (SELECT 1 FROM tags t NOT INDEXED WHERE t.tag = ? AND t.seq = w.seq)", tag)
        if query.start_us is not None:
            walk.where("w.created_us >= ?", query.start_us)
        if query.end_us is not None:
            walk.where("w.created_us <= ?", query.end_us)
    return found


class Questions:
    """Answers questions on one connection; remembers the kinds between them."""

    def __init__(self, file: ShardFile) -> None:
        """Say which file messages speak of."""
        self._file = file
        self._kinds: Kinds = {}

    def _walks(self, connection: sqlite3.Connection, query: ArtifactQuery, order: Order) -> list[Walk]:
        (newest,) = connection.execute("SELECT max(kind) FROM kinds").fetchone()
        if newest is not None and newest >= len(self._kinds):
            self._kinds = read_kinds(connection)
        return walks(query, self._kinds, order)

    def bodies(
        self, connection: sqlite3.Connection, ids: Collection[bytes], near: Collection[int] = ()
    ) -> dict[bytes, bytes]:
        """Return payloads by id; those at the positions `near` cost a tenth of the others."""
        left, found = set(ids), dict[bytes, bytes]()
        positions = sorted(set(near))
        with transaction(connection, write=False):
            for start in range(0, len(positions), _AT_ONCE):
                some = positions[start : start + _AT_ONCE]
                some += some[-1:] * (_AT_ONCE - len(some))
                for seq, key, crc, meta, payload in connection.execute(_BODIES, some):
                    if key in left:
                        if artifact_crc(meta, payload) != crc:
                            decode_artifact(self._file, seq, meta, payload, crc)  # says what is wrong
                        left.discard(key)
                        found[key] = payload
        found.update((envelope.id, envelope.payload) for _, envelope in self.get(connection, left))
        return found

    def get(self, connection: sqlite3.Connection, ids: Collection[bytes]) -> list[tuple[int, Envelope]]:
        """Return artifacts by id."""
        with transaction(connection, write=False):
            rows = [find(connection, key, "w.seq, w.meta, w.payload, w.crc") for key in dict.fromkeys(ids)]
        return [(row[0], decode_artifact(self._file, *row)) for row in rows if row]

    def recent_ids(self, connection: sqlite3.Connection, limit: int) -> list[bytes]:
        """Return the ids of the newest artifacts, the oldest of them first."""
        rows = connection.execute("SELECT id FROM artifacts ORDER BY seq DESC LIMIT ?", (limit,)).fetchall()
        return [key for (key,) in reversed(rows)]

    def read(
        self, connection: sqlite3.Connection, query: ArtifactQuery, after: int, limit: int
    ) -> list[tuple[int, Envelope]]:
        """Return artifacts by feed position."""
        with transaction(connection, write=False):
            found = self._walks(connection, query, "seq")
            for walk in found:
                walk.where("w.seq > ?", after)
            return self._ordered(connection, found, "seq", 0, limit)

    def page(
        self, connection: sqlite3.Connection, query: ArtifactQuery, limit: int, offset: int
    ) -> list[tuple[int, Envelope]]:
        """Return artifacts by creation."""
        with transaction(connection, write=False):
            found = self._walks(connection, query, "time")
            return self._ordered(connection, found, "time", offset, offset + limit if limit else -1)

    def newest(
        self,
        connection: sqlite3.Connection,
        query: ArtifactQuery,
        limit: int,
        before: tuple[int, bytes] | None,
    ) -> list[tuple[int, Envelope]]:
        """Return artifacts by creation, the newest first."""
        with transaction(connection, write=False):
            found = self._walks(connection, query, "newest")
            if before is not None:
                for walk in found:
                    walk.where("(w.created_us, w.id) < (?, ?)", *before)
            return self._ordered(connection, found, "newest", 0, limit)

    def _ordered(
        self, connection: sqlite3.Connection, found: list[Walk], order: Order, start: int, stop: int
    ) -> list[tuple[int, Envelope]]:
        """Merge walks, and fetch the rows from `start` on and before `stop`; -1 is all."""
        columns, by = _ORDER[order]
        with ExitStack() as stack:
            cursors: list[Iterator[tuple[Any, ...]]] = []
            for walk in found:
                statement, params = walk.select(columns, f"ORDER BY {by} LIMIT ?")
                cursors.append(stack.enter_context(closing(connection.execute(statement, [*params, stop]))))
            merged = merge(*cursors, reverse=order == "newest")
            seqs = [row[-1] for row in islice(merged, start, None if stop < 0 else stop)]
        rows = (connection.execute(_BY_SEQ, (seq,)).fetchone() for seq in seqs)
        return [(row[0], decode_artifact(self._file, *row)) for row in rows]

    def count(self, connection: sqlite3.Connection, query: ArtifactQuery) -> int:
        """Count artifacts."""
        with transaction(connection, write=False):
            statements = [walk.select("count(*)") for walk in self._walks(connection, query, "time")]
            return sum(connection.execute(*statement).fetchone()[0] for statement in statements)

    def summarize(self, connection: sqlite3.Connection, query: ArtifactQuery) -> Summary:
        """Count artifacts by several properties."""
        summary = Summary()
        times: list[int] = []
        with transaction(connection, write=False):
            found = self._walks(connection, query, "time")
            columns = "w.kind, count(*), min(w.created_us), max(w.created_us)"
            counted = [
                row for walk in found for row in connection.execute(*walk.select(columns, "GROUP BY w.kind"))
            ]
            summary.tag_counts = self._count_tags(connection, query, found)
        names = {number: kind for kind, number in self._kinds.items()}
        for kind, count, earliest, latest in counted:
            summary.total += count
            times += (earliest, latest)
            groups = (summary.by_type, summary.by_producer, summary.by_visibility)
            for counts, name in zip(groups, names[kind], strict=True):
                counts[name] = counts.get(name, 0) + count
        summary.earliest_us, summary.latest_us = min(times, default=0), max(times, default=0)
        return summary

    def _count_tags(
        self, connection: sqlite3.Connection, query: ArtifactQuery, found: list[Walk]
    ) -> dict[str, int]:
        if query.correlation_id is None and not query.tags:
            walk = Walk("tags w INDEXED BY tags_time", [])
            if (chosen := _kind_filter(query, self._kinds)) is not None:
                walk.where("w.kind IN (SELECT value FROM json_each(?))", json.dumps(chosen))
            if query.start_us is not None:
                walk.where("w.created_us >= ?", query.start_us)
            if query.end_us is not None:
                walk.where("w.created_us <= ?", query.end_us)
            return dict(connection.execute(*walk.select("w.tag, count(*)", "GROUP BY w.tag")).fetchall())
        entries = self._ordered(connection, found, "time", 0, -1)
        return dict(Counter(tag for _, envelope in entries for tag in dict.fromkeys(envelope.tags)))

    def workflows(self, connection: sqlite3.Connection, ids: Collection[str]) -> list[WorkflowRow]:
        """Return workflows by id."""
        statement = (
            f"SELECT w.slot, w.data, w.crc FROM {FOUND} CROSS JOIN workflows w ON w.number = p.number AND w.id = ?"
            " ORDER BY w.number"
        )
        with transaction(connection, write=False):
            found = {
                (slot, name): row
                for name in dict.fromkeys(ids)
                for slot, *row in connection.execute(statement, (text_hash(name), WORKFLOW, name))
            }
        return [decode_row(self._file, WorkflowRow, *row) for row in found.values()]

    def settled_before(
        self, connection: sqlite3.Connection, before_us: int, limit: int, after: SettledPlace | None
    ) -> list[WorkflowRow]:
        """Return settled workflows."""
        statement = (
            "SELECT number, slot, id, data, crc FROM workflows WHERE settled_us < ?"
            " AND (settled_us, slot, id) > (?, ?, ?) ORDER BY settled_us, slot, id"
        )
        with (
            transaction(connection, write=False),
            closing(connection.execute(statement, (before_us, *(after or (-(2**63), 0, ""))))) as rows,
        ):
            # A row that does not count any more is left out.
            current = (
                row
                for number, slot, name, *row in rows
                if (newest(connection, slot, name) or [0])[0] == number
            )
            found = list(islice(current, limit))
        return [decode_row(self._file, WorkflowRow, *row) for row in found]

    def activations(self, connection: sqlite3.Connection, workflow: str, limit: int) -> list[ActivationRow]:
        """Return ended activations of a workflow."""
        rows = connection.execute(
            f"SELECT w.data, w.crc FROM {FOUND}"
            " CROSS JOIN activations w ON w.number = p.number AND w.correlation_id = ? ORDER BY w.number LIMIT ?",
            (text_hash(workflow), RUN_OF_WORKFLOW, workflow, limit),
        ).fetchall()
        return [decode_row(self._file, ActivationRow, *row) for row in rows]

    def consumptions(self, connection: sqlite3.Connection, ids: Collection[bytes]) -> list[ActivationRow]:
        """Return activations by input."""
        by_input = (
            f"SELECT w.number, w.data, w.crc FROM {FOUND} CROSS JOIN activations w ON w.number = p.number"
        )
        found: dict[int, ActivationRow] = {}
        with transaction(connection, write=False):
            for key in dict.fromkeys(ids):
                for number, *row in connection.execute(by_input, (id_hash(key), RUN_OF_INPUT)):
                    activation = decode_row(self._file, ActivationRow, *row)
                    if key in activation.inputs:
                        found[number] = activation
        return [found[number] for number in sorted(found)]
