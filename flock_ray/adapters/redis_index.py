"""Answers questions about a shard from the indexes in Redis.

Each condition of a query that has an index names sorted sets whose members are (position, id) and
(creation time, id). The smallest is walked in its order; other conditions are checked on the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from flock_ray.adapters.redis_link import RedisLink
from flock_ray.adapters.redis_rows import (
    EVERYTHING,
    FEED,
    RUN,
    TIME,
    Keys,
    dimension,
    id_of,
    link,
    member,
    settled_member,
    unpack_activation,
    unpack_artifact,
    unpack_body,
    unpack_workflow,
)
from flock_ray.adapters.redis_walk import Walk
from flock_ray.core.rows import (
    ActivationRow,
    ArtifactQuery,
    SettledPlace,
    Summary,
    WorkflowRow,
    visibility_kind,
)
from flock_ray.core.wire import Envelope
from flock_ray.errors import StoreCorruptError

__all__ = ["RedisIndex", "parts"]

T = TypeVar("T")
_PAGE = 1000
"""Members of an index that are looked at together."""
_PART = 1000
"""Most rows of one reply."""
_FIRST_PART = 64
Entry = tuple[int, Envelope]


def parts(items: Collection[T], size: int = _PART) -> Iterator[list[T]]:
    """Cut a collection into lists of at most so many."""
    every = list(items)
    return (every[start : start + size] for start in range(0, len(every), size))


@dataclass(frozen=True)
class _Plan:
    """Which indexes to walk, and whether being in them is all that the query asks for."""

    dimensions: tuple[bytes, ...]
    exact: bool


class RedisIndex:
    """An `ArtifactIndex` on the keys of one shard."""

    def __init__(self, line: RedisLink, keys: Keys) -> None:
        """Say where the rows are."""
        self._line = line
        self._keys = keys

    async def bodies(self, ids: Collection[bytes], near: Collection[int] = ()) -> dict[bytes, bytes]:
        """Return payloads by artifact id; see `ArtifactIndex`."""
        found: dict[bytes, bytes] = {}
        for some in parts(set(ids)):
            (values,) = await self._line.read(("HMGET", self._keys.bodies, *some))
            for key, value in zip(some, values, strict=True):
                if value is not None:
                    found[key] = unpack_body(key, value, self._keys)
        return found

    async def get(self, ids: Collection[bytes]) -> list[Entry]:
        """Return artifacts by id; see `ArtifactIndex`."""
        return [entry for some in parts(set(ids)) for entry in await self._filled(await self._rows(some))]

    async def recent_ids(self, limit: int) -> list[bytes]:
        """Return the newest ids; see `ArtifactIndex`."""
        if limit <= 0:
            return []
        newest_first: list[bytes] = []
        high = b"(" + _above(FEED)
        while len(newest_first) < limit:
            count = min(limit - len(newest_first), _PART)
            command = (
                "ZRANGE",
                self._keys.index(EVERYTHING),
                high,
                b"[" + FEED,
                "BYLEX",
                "REV",
                "LIMIT",
                0,
                count,
            )
            (members,) = await self._line.read(command)
            newest_first += members
            if len(members) < count:
                break
            high = b"(" + members[-1]
        return [id_of(entry) for entry in reversed(newest_first)]

    async def read(self, query: ArtifactQuery, after: int, limit: int) -> list[Entry]:
        """Return artifacts by position; see `ArtifactIndex`."""
        if limit <= 0:
            return []
        plan = await self._plan(query)
        walk = Walk(self._line, self._indexes(plan), member(FEED, after + 1), _above(FEED))
        return await self._filled(await self._collect(walk, query, limit))

    async def page(self, query: ArtifactQuery, limit: int, offset: int) -> list[Entry]:
        """Return artifacts by creation time; see `ArtifactIndex`."""
        plan = await self._plan(query)
        walk = self._by_time(plan, query)
        if plan.exact:
            await walk.skip(offset)
            offset = 0
        wanted = offset + limit if limit else None
        return await self._filled((await self._collect(walk, query, wanted))[offset:])

    async def newest(
        self, query: ArtifactQuery, limit: int, before: tuple[int, bytes] | None = None
    ) -> list[Entry]:
        """Return the newest artifacts first; see `ArtifactIndex`."""
        walk = self._by_time(await self._plan(query), query, before=before, reverse=True)
        return await self._filled(await self._collect(walk, query, limit))

    async def count(self, query: ArtifactQuery) -> int:
        """Count artifacts; see `ArtifactIndex`."""
        plan = await self._plan(query)
        walk = self._by_time(plan, query)
        if plan.exact:
            return await walk.size()
        return sum([len(rows) async for rows in self._chunks(walk, query, _PART)])

    async def summarize(self, query: ArtifactQuery) -> Summary:
        """Count artifacts by several properties; see `ArtifactIndex`."""
        if query == ArtifactQuery():
            return await self._summarize_all()
        plan = await self._plan(query)
        total = Summary()
        types, producers, kinds, tags = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
        async for rows in self._chunks(self._by_time(plan, query), query, _PART):
            for _, envelope in rows:
                types[envelope.type] += 1
                producers[envelope.produced_by] += 1
                kinds[visibility_kind(envelope.visibility)] += 1
                tags.update(envelope.tags)
            if rows:
                total.earliest_us = total.earliest_us if total.total else rows[0][1].created_us
                total.latest_us = rows[-1][1].created_us
                total.total += len(rows)
        return Summary(
            total.total,
            dict(types),
            dict(producers),
            dict(kinds),
            dict(tags),
            total.earliest_us,
            total.latest_us,
        )

    async def workflows(self, ids: Collection[str]) -> list[WorkflowRow]:
        """Return workflows by id; see `ArtifactIndex`."""
        found: list[WorkflowRow] = []
        for some in parts(set(ids)):
            replies = await self._line.read(*(("HVALS", self._keys.workflow(name)) for name in some))
            for name, values in zip(some, replies, strict=True):
                found += (unpack_workflow(name, value, self._keys) for value in values)
        return found

    async def activations(self, workflow: str, limit: int) -> list[ActivationRow]:
        """Return ended activations; see `ArtifactIndex`."""
        if limit <= 0:
            return []
        members = await Walk(self._line, [self._flow(workflow)], RUN, _above(RUN)).take(limit)
        return [row for _, row in await self._runs([id_of(entry) for entry in members])]

    async def consumptions(self, ids: Collection[bytes]) -> list[ActivationRow]:
        """Return activations by input; see `ArtifactIndex`."""
        found: dict[bytes, tuple[int, ActivationRow]] = {}
        for some in parts(set(ids)):
            starts = [link(key) for key in some]
            replies = await self._line.read(
                *(
                    ("ZRANGE", self._keys.consumptions, b"[" + start, b"[" + start + b"\xff" * 64, "BYLEX")
                    for start in starts
                )
            )
            runs = {
                entry[len(start) :]
                for start, members in zip(starts, replies, strict=True)
                for entry in members
                if entry.startswith(start)
            }
            found.update((row.id, (order, row)) for order, row in await self._runs(runs - found.keys()))
        return [row for _, row in sorted(found.values(), key=lambda entry: entry[0])]

    async def settled_before(
        self, before_us: int, limit: int, after: SettledPlace | None = None
    ) -> list[WorkflowRow]:
        """Return settled workflows; see `ArtifactIndex`."""
        rows: list[WorkflowRow] = []
        lowest, passed = ("-inf", 0) if after is None else (str(after[0]), await self._passed(after))
        while len(rows) < limit:
            wanted = limit - len(rows)
            (members,) = await self._line.read(
                ("ZRANGE", self._keys.settled, lowest, f"({before_us}", "BYSCORE", "LIMIT", passed, wanted)
            )
            rows += await self._settled_rows(members, before_us)
            passed += wanted
            if len(members) < wanted:
                break
        return rows

    async def _passed(self, after: SettledPlace) -> int:
        """Return how many settled workflows of the same time stand before a place, itself included."""
        last, passed = settled_member(*after[1:]), 0
        while True:
            (members,) = await self._line.read(
                ("ZRANGE", self._keys.settled, after[0], after[0], "BYSCORE", "LIMIT", passed, _PAGE)
            )
            passed += sum(1 for entry in members if entry <= last)
            if len(members) < _PAGE or members[-1] > last:
                break
        return passed

    async def _settled_rows(self, members: Sequence[bytes], before_us: int) -> list[WorkflowRow]:
        rows: list[WorkflowRow] = []
        for some in parts(members):
            places = [(slot, name.decode()) for slot, _, name in (entry.partition(b":") for entry in some)]
            values = await self._line.read(
                *(("HGET", self._keys.workflow(name), slot) for slot, name in places)
            )
            for (_, name), value in zip(places, values, strict=True):
                if value is not None:
                    rows.append(unpack_workflow(name, value, self._keys))
        # One that was touched since the index was read no longer belongs here.
        return [row for row in rows if row.settled and row.updated_us < before_us]

    async def _summarize_all(self) -> Summary:
        everything, low, high = self._keys.index(EVERYTHING), b"[" + TIME, b"(" + _above(TIME)
        total, first, last, counts = await self._line.read(
            ("ZLEXCOUNT", everything, low, high),
            ("ZRANGE", everything, low, high, "BYLEX", "LIMIT", 0, 1),
            ("ZRANGE", everything, high, low, "BYLEX", "REV", "LIMIT", 0, 1),
            ("HGETALL", self._keys.counts),
        )
        by: dict[bytes, dict[str, int]] = {letter: {} for letter in (b"t", b"p", b"v", b"g")}
        for field, count in zip(counts[::2], counts[1::2], strict=True):
            if int(count):
                by[field[:1]][field[1:].decode()] = int(count)
        ends = {e.id: e.created_us for _, e in await self._rows([id_of(entry) for entry in (*first, *last)])}
        times = ends.values()
        return Summary(
            total, by[b"t"], by[b"p"], by[b"v"], by[b"g"], min(times, default=0), max(times, default=0)
        )

    async def _plan(self, query: ArtifactQuery) -> _Plan:
        """Choose the conditions with the fewest members to walk."""
        choices = [
            *(
                [dimension(kind, name) for name in set(names)]
                for kind, names in _alternatives(query)
                if names
            ),
            *([dimension("tag", tag)] for tag in set(query.tags)),
        ]
        other = bool(query.visibility) and "Public" in query.visibility
        if not choices:
            return _Plan((EVERYTHING,), not other)
        if len(choices) == 1:
            return _Plan(tuple(choices[0]), not other)
        names = [name for choice in choices for name in choice]
        replies = await self._line.read(
            *(("ZLEXCOUNT", self._keys.index(name), b"[" + FEED, b"(" + _above(FEED)) for name in names)
        )
        sizes = dict(zip(names, replies, strict=True))
        return _Plan(tuple(min(choices, key=lambda choice: sum(sizes[name] for name in choice))), False)

    def _by_time(
        self,
        plan: _Plan,
        query: ArtifactQuery,
        *,
        before: tuple[int, bytes] | None = None,
        reverse: bool = False,
    ) -> Walk:
        start = TIME if query.start_us is None else member(TIME, query.start_us)
        end = _above(TIME) if query.end_us is None else member(TIME, query.end_us + 1)
        if before is not None:
            end = min(end, member(TIME, *before))
        return Walk(self._line, self._indexes(plan), start, end, reverse=reverse)

    def _indexes(self, plan: _Plan) -> list[bytes]:
        return [self._keys.index(name) for name in plan.dimensions]

    async def _collect(self, walk: Walk, query: ArtifactQuery, wanted: int | None) -> list[Entry]:
        found: list[Entry] = []
        async for rows in self._chunks(
            walk, query, _PART if wanted is None else min(max(wanted, _FIRST_PART), _PART)
        ):
            found += rows
            if wanted is not None and len(found) >= wanted:
                break
        return found if wanted is None else found[:wanted]

    async def _chunks(self, walk: Walk, query: ArtifactQuery, size: int) -> AsyncIterator[list[Entry]]:
        """Iterate over lists of artifacts, without payloads, in the order of a walk."""
        while members := await walk.take(size):
            rows = await self._rows([id_of(entry) for entry in members])
            yield [entry for entry in rows if query.selects(entry[1])]
            size = min(2 * size, _PART)

    async def _rows(self, ids: Sequence[bytes]) -> list[Entry]:
        """Return artifacts without payloads, in the order of their ids; what was removed is left out."""
        if not ids:
            return []
        (values,) = await self._line.read(("HMGET", self._keys.artifacts, *ids))
        return [
            unpack_artifact(key, value, self._keys)
            for key, value in zip(ids, values, strict=True)
            if value is not None
        ]

    async def _filled(self, rows: Sequence[Entry]) -> list[Entry]:
        """Put the payloads in."""
        bodies = await self.bodies([envelope.id for _, envelope in rows])
        missing = [envelope.id for _, envelope in rows if envelope.id not in bodies]
        if missing and (kept := await self._rows(missing)):
            raise StoreCorruptError(
                f"The payload of artifact {kept[0][1].id.hex()} of {self._keys.place} is missing "
                f"({self._keys.bodies.decode()}). Restore it from a backup; nothing was changed."
            )
        replace = msgspec.structs.replace
        return [
            (seq, replace(envelope, payload=bodies[envelope.id]))
            for seq, envelope in rows
            if envelope.id in bodies
        ]

    def _flow(self, workflow: str) -> bytes:
        return self._keys.index(dimension("workflow", workflow))

    async def _runs(self, ids: Collection[bytes]) -> list[tuple[int, ActivationRow]]:
        rows: list[tuple[int, ActivationRow]] = []
        for some in parts(ids):
            (values,) = await self._line.read(("HMGET", self._keys.activations, *some))
            for key, value in zip(some, values, strict=True):
                if value is not None:
                    rows.append(unpack_activation(key, value, self._keys))
        return rows


def _above(order: bytes) -> bytes:
    """Return what is just above every member of an order."""
    return bytes([order[0] + 1])


def _alternatives(query: ArtifactQuery) -> list[tuple[str, tuple[str, ...]]]:
    """Return the conditions that any of several names fulfils; most artifacts are public, so that has no index."""
    return [
        ("type", query.types),
        ("producer", query.produced_by),
        ("workflow", () if query.correlation_id is None else (query.correlation_id,)),
        ("visibility", () if "Public" in query.visibility else query.visibility),
    ]
