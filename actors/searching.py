"""Searching a shard: pages, counts, summaries, and which run consumed what. Answered from indexes.

A durable board answers from its store, so nothing is shown that a crash could take back. A memory board
answers from the smallest index that fits (workflow, type, everything), a few thousand artifacts at a time,
so that a large search does not stop the shard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from heapq import nlargest, nsmallest
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from flock_ray.core.claims import is_claim, payload_bytes
from flock_ray.core.lineage import Lineage, runs_of
from flock_ray.core.recency import Recency
from flock_ray.core.rows import ActivationRow, ArtifactQuery, Summary
from flock_ray.core.summaries import add_summaries, summarize
from flock_ray.core.wire import Envelope

if TYPE_CHECKING:
    from flock_ray.actors.keeping import Keeper
    from flock_ray.core.shard import ShardCore

MAX_PAGE = 200
"""Most artifacts of one reply."""
MAX_PAGE_BYTES = 8 * 1024 * 1024
"""Payload bytes after which a reply ends; one artifact always fits."""
MAX_RUNS = 1000
"""Most activations of one reply."""
CHUNK = 5000
"""Artifacts looked at before other calls get their turn: about 2 ms."""
FIRST_CHUNK = 64
"""The same at the beginning of a walk that mostly ends soon."""

_encode = msgspec.msgpack.Encoder().encode
_query = msgspec.msgpack.Decoder(ArtifactQuery).decode


class ShardSearch:
    """The searching part of `Shard`; changes nothing, and needs no place in the shard's order of commands."""

    core: ShardCore
    _keeper: Keeper | None

    def __init__(self) -> None:
        """Start without the indexes that only searches need."""
        super().__init__()
        self._lineage: Lineage | None = None
        self._recency: Recency | None = None

    async def ready(self) -> None:
        """Wait until the shard has recovered; raises when it can't."""
        raise NotImplementedError  # Shard's

    def _seqs_of(self, workflow: str) -> list[int]:
        raise NotImplementedError  # ShardReaders'

    async def search(self, query: bytes, limit: int, offset: int, bare: bool) -> tuple[bytes, bool]:
        """Return artifacts by (creation time, id).

        Args:
            query: msgpack of an ArtifactQuery.
            limit: How many; at most MAX_PAGE come, and fewer when they are large.
            offset: How many to leave out first.
            bare: Leave the payloads out.

        Returns:
            msgpack of a list of envelopes, and whether there are more behind them.
        """
        await self.ready()
        limit, wanted = min(limit, MAX_PAGE), _query(query)
        if self._keeper is not None:
            entries = await self._keeper.store.page(wanted, limit + 1, offset)
            found = [envelope for _, envelope in entries]
        else:
            found = (await self._first(wanted, offset + limit + 1))[offset:]
        if bare:
            found = [msgspec.structs.replace(envelope, payload=b"") for envelope in found]
        page = list(_fitting(found[:limit]))
        return _encode(page), len(page) < len(found)

    async def search_feed(self, query: bytes, after: int, limit: int) -> tuple[bytes, int]:
        """Return artifacts that the query selects behind a feed position, and the position to go on from.

        For those who want all of them: each reply costs as much as it holds. None are left after an empty one.
        """
        await self.ready()
        limit, wanted = min(limit, MAX_PAGE), _query(query)
        if self._keeper is not None:
            entries = await self._keeper.store.read(wanted, after, limit)
        else:
            entries = []
            async for chunk in self._chunks(wanted, after):
                entries += chunk
                if len(entries) >= limit:
                    break
        page = list(_fitting([envelope for _, envelope in entries[:limit]]))
        return _encode(page), entries[len(page) - 1][0] if page else after

    async def search_newest(
        self, query: bytes, limit: int, before: tuple[int, bytes] | None, max_bytes: int
    ) -> tuple[bytes, bool]:
        """Return artifacts by (creation time, id), the newest first.

        Args:
            query: msgpack of an ArtifactQuery.
            limit: How many; at most MAX_PAGE come.
            before: Only what is below this (creation time, id); None: all.
            max_bytes: Payload bytes after which the reply ends, at most MAX_PAGE_BYTES; one artifact always fits.

        Returns:
            msgpack of a list of envelopes, and whether there may be older ones.
        """
        await self.ready()
        limit, wanted = max(1, min(limit, MAX_PAGE)), _query(query)
        before = None if before is None else (before[0], before[1])
        if self._keeper is not None:
            found = [envelope for _, envelope in await self._keeper.store.newest(wanted, limit, before)]
        else:
            found = await self._newest(wanted, limit, before)
        page = list(_fitting(found, min(max_bytes, MAX_PAGE_BYTES)))
        return _encode(page), len(found) == limit or len(page) < len(found)

    async def search_count(self, query: bytes) -> int:
        """Return how many artifacts a query selects."""
        await self.ready()
        wanted = _query(query)
        if self._keeper is not None:
            return await self._keeper.store.count(wanted)
        if wanted == ArtifactQuery(wanted.types):
            index = self.core.index
            return sum(index.count_type(name) for name in wanted.types) if wanted.types else len(index)
        return sum([len(chunk) async for chunk in self._chunks(wanted)])

    async def search_summary(self, query: bytes) -> bytes:
        """Return msgpack of a Summary."""
        await self.ready()
        wanted = _query(query)
        if self._keeper is not None:
            return _encode(await self._keeper.store.summarize(wanted))
        total = Summary()
        async for chunk in self._chunks(wanted):
            total = add_summaries(total, summarize([envelope for _, envelope in chunk]))
        return _encode(total)

    async def consumptions(self, ids: list[bytes]) -> bytes:
        """Return msgpack of the runs (ActivationRows) that completed with one of these artifacts as input.

        Their `inputs` are only those that were asked about, and `outputs` are left out: a batch may have many.
        """
        await self.ready()
        if self._keeper is not None:
            rows = await self._keeper.store.consumptions(ids)
        else:
            rows = runs_of((await self._caught_up()).made_from(ids))
        asked = set(ids)
        return _encode(
            [
                msgspec.structs.replace(
                    row, inputs=tuple(key for key in row.inputs if key in asked), outputs=()
                )
                for row in rows
                if row.status == "completed"
            ]
        )

    async def activations(self, workflow: str, limit: int) -> bytes:
        """Return msgpack of activations (ActivationRows) of a workflow that ended here; at most MAX_RUNS."""
        await self.ready()
        limit = min(limit, MAX_RUNS)
        if self._keeper is not None:
            return _encode(await self._keeper.store.activations(workflow, limit))
        made = [envelope for _, envelope in self.core.index.read(0, seqs=self._seqs_of(workflow))]
        return _encode([_with_error(row, made) for row in runs_of(made)[:limit]])

    async def recorded_types(self) -> bytes:
        """Return msgpack of the types (TypeInfos) that were ever deployed with this board's agents."""
        await self.ready()
        return _encode(list(self.core.table.types))

    # -- a memory board ------------------------------------------------------------------------

    def _candidates(self, query: ArtifactQuery, after: int) -> Iterator[tuple[int, Envelope]]:
        """Read from the smallest index that has everything that the query selects."""
        index = self.core.index
        if query.correlation_id is not None:
            return index.read(after, seqs=self._seqs_of(query.correlation_id))
        return index.read(after, type_name=query.types[0] if len(query.types) == 1 else None)

    async def _chunks(
        self, query: ArtifactQuery, after: int = 0
    ) -> AsyncIterator[list[tuple[int, Envelope]]]:
        """Yield what a query selects in feed order; other calls run in between."""
        while chunk := list(islice(self._candidates(query, after), CHUNK)):
            after = chunk[-1][0]
            yield [entry for entry in chunk if query.selects(entry[1])]
            await asyncio.sleep(0)

    async def _first(self, query: ArtifactQuery, count: int) -> list[Envelope]:
        first: list[Envelope] = []
        async for chunk in self._chunks(query):
            first = nsmallest(count, [*first, *(e for _, e in chunk)], key=lambda e: (e.created_us, e.id))
        return first

    async def _newest(
        self, query: ArtifactQuery, limit: int, before: tuple[int, bytes] | None
    ) -> list[Envelope]:
        """Walk the smallest index from its end, until nothing further in front can be as new as what was found.

        One artifact that claims to be from the future makes walks go back to it: exact, but slower.
        """
        recency = await self._recency_now()
        newest: list[Envelope] = []
        position, size = self.core.index.head + 1, max(FIRST_CHUNK, 2 * limit)
        while chunk := list(islice(self._candidates_back(query, position), size)):
            position, size = chunk[-1][0], min(2 * size, CHUNK)
            selected = (e for _, e in chunk if query.selects(e))
            fitting = [e for e in selected if before is None or _age(e) < before]
            newest = nlargest(limit, [*newest, *fitting], key=_age)
            oldest_wanted = query.start_us
            if len(newest) == limit:
                oldest_wanted = newest[-1].created_us
            latest = recency.bound_us(position - 1)
            if oldest_wanted is not None and (latest is None or latest < oldest_wanted):
                break
            await asyncio.sleep(0)
        return newest

    def _candidates_back(self, query: ArtifactQuery, before: int) -> Iterator[tuple[int, Envelope]]:
        index = self.core.index
        if query.correlation_id is not None:
            return index.read_back(before, seqs=self._seqs_of(query.correlation_id))
        return index.read_back(before, type_name=query.types[0] if len(query.types) == 1 else None)

    async def _recency_now(self) -> Recency:
        if self._recency is None:
            self._recency = Recency(self.core.index)
        while True:
            if self._recency.catch_up(CHUNK):
                return self._recency
            await asyncio.sleep(0)

    async def _caught_up(self) -> Lineage:
        if self._lineage is None:
            self._lineage = Lineage(self.core.index)
        while True:
            if self._lineage.catch_up(CHUNK):
                return self._lineage
            await asyncio.sleep(0)


def _age(envelope: Envelope) -> tuple[int, bytes]:
    return envelope.created_us, envelope.id


def _fitting(envelopes: Sequence[Envelope], max_bytes: int | None = None) -> Iterator[Envelope]:
    """Yield what fits into one reply; the first always does."""
    left = MAX_PAGE_BYTES if max_bytes is None else max_bytes
    for envelope in envelopes:
        left -= payload_bytes(envelope.payload)
        if left < 0 and envelope is not envelopes[0]:
            return
        yield envelope


def _with_error(row: ActivationRow, made: Iterable[Envelope]) -> ActivationRow:
    """Add to a failed run what its WorkflowError says."""
    if row.status == "completed":
        return row
    body = next(e.payload for e in made if e.id == row.outputs[0])
    payload = {} if is_claim(body) else msgspec.json.decode(body) or {}
    return msgspec.structs.replace(
        row,
        error_type=str(payload.get("error_type", "")),
        error_message=str(payload.get("error_message", "")),
    )
