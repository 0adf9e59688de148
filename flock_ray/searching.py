"""Searching a whole board: what the shards answer, merged. No message holds more than a bounded page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

import msgspec

from flock_ray.board import Board
from flock_ray.core.rows import ActivationRow, ArtifactQuery, Summary
from flock_ray.core.summaries import add_summaries
from flock_ray.core.wire import Envelope

PAGE = 200
"""Artifacts asked for at once."""
IDS = 100
"""Artifacts whose consumers are asked for at once."""

_encode = msgspec.msgpack.Encoder().encode
_envelopes = msgspec.msgpack.Decoder(list[Envelope]).decode
_rows = msgspec.msgpack.Decoder(list[ActivationRow]).decode
_summary = msgspec.msgpack.Decoder(Summary).decode


class _ShardPages:
    """What one shard selects, by (creation time, id), fetched page by page.

    A page starts at a creation time and leaves out those of that time that came before: so a shard never
    has to count through everything that was handed over, and what is published meanwhile moves nothing.
    """

    def __init__(self, board: Board, shard: int, query: ArtifactQuery, page: int, *, bare: bool) -> None:
        self._board = board
        self._shard = shard
        self._query = query
        self._page = page
        self._bare = bare
        self._found: list[Envelope] = []
        self._place = 0
        self._more = True
        self._start_us = query.start_us
        self._passed = 0
        """Artifacts from `_start_us` on that were handed over, or left out."""
        self._last_us: int | None = None

    async def _search(self, limit: int, passed: int, *, bare: bool) -> tuple[list[Envelope], bool]:
        query = _encode(msgspec.structs.replace(self._query, start_us=self._start_us))
        blob, more = await _ask(self._board, self._shard, "search", query, limit, passed, bare)
        return _envelopes(blob), more

    async def head(self) -> Envelope | None:
        """Return the next artifact; None behind the last."""
        while self._place == len(self._found) and self._more:
            self._found, self._more = await self._search(self._page, self._passed, bare=self._bare)
            self._place = 0
        return self._found[self._place] if self._place < len(self._found) else None

    def step(self) -> None:
        """Go on behind the artifact at the head."""
        created_us = self._found[self._place].created_us
        self._place += 1
        self._passed += 1
        if self._last_us is not None and created_us != self._last_us:
            self._start_us, self._passed = created_us, 1  # none of this time was left out: count from here
        self._last_us = created_us

    async def ahead(self, count: int) -> Envelope | None:
        """Return the header of the artifact that is so many further, from 1; None when there are not so many."""
        found, _ = await self._search(1, self._passed + count - 1, bare=True)
        return found[0] if found else None

    def leave_out(self, count: int) -> None:
        """Begin so many further; before the first was handed over."""
        self._passed += count

    def end(self) -> None:
        """Hand over nothing."""
        self._more = False


async def _ask(board: Board, shard: int, method: str, *args: Any) -> Any:
    """Call one shard, with the errors that users know."""
    return await board._call(getattr(board.shard(shard), method)(*args))


async def select(
    board: Board, query: ArtifactQuery, *, limit: int, offset: int = 0, bare: bool = False
) -> list[Envelope]:
    """Return artifacts of the whole board by (creation time, id).

    What is left out costs its walk along the index of its shard, and on several shards a few dozen questions: to go
    on behind what one has, start at its creation time.

    Args:
        board: The board.
        query: Which artifacts.
        limit: How many; 0 or less is all.
        offset: How many to leave out first.
        bare: Leave the payloads out.
    """
    offset = max(offset, 0)
    if limit <= 0:
        # Read in feed order and sorted here: no page has to be searched for.
        return sorted(await feed(board, query), key=lambda e: (e.created_us, e.id))[offset:]
    shards = range(board.num_shards)
    pages = [_ShardPages(board, shard, query, min(limit, PAGE), bare=bare) for shard in shards]
    await _leave_out(pages, offset)
    return await board.whole(await _take(pages, limit))


async def _leave_out(pages: Sequence[_ShardPages], count: int) -> None:
    """Move all shards together so many artifacts further, in the order of all.

    Each is asked for the artifact that is its share further. The earliest of these is within the share of all, so its
    shard may go there; and so on with what is left. Of a million artifacts a few dozen headers travel.
    """
    if len(pages) == 1:
        pages[0].leave_out(count)
        return
    while count:
        share = max(1, count // len(pages))
        probes = await asyncio.gather(*(page.ahead(share) for page in pages))
        reached = [(e.created_us, e.id, shard) for shard, e in enumerate(probes) if e is not None]
        if not reached:  # nobody has its share any more: there are not so many
            for page in pages:
                page.end()
            return
        pages[min(reached)[2]].leave_out(share)
        count -= share


async def _take(pages: Sequence[_ShardPages], count: int) -> list[Envelope]:
    """Merge the shards' pages and take the first of all."""
    heads = await asyncio.gather(*(page.head() for page in pages))
    heap = [(e.created_us, e.id, shard) for shard, e in enumerate(heads) if e is not None]
    heapify(heap)
    taken: list[Envelope] = []
    while heap and len(taken) < count:
        shard = heappop(heap)[2]
        page = pages[shard]
        found = await page.head()
        if found is not None:
            taken.append(found)
            page.step()
        if len(taken) < count and (following := await page.head()) is not None:
            heappush(heap, (following.created_us, following.id, shard))
    return taken


async def _walk_shard(board: Board, shard: int, query: ArtifactQuery) -> AsyncIterator[list[Envelope]]:
    blob, after = _encode(query), 0
    while True:
        page, after = await _ask(board, shard, "search_feed", blob, after, PAGE)
        part = _envelopes(page)
        if not part:
            return
        yield await board.whole(part)


async def walk(board: Board, query: ArtifactQuery) -> AsyncIterator[list[Envelope]]:
    """Yield everything that a query selects in pages, one shard after the other, each in feed order."""
    for shard in range(board.num_shards):
        async for page in _walk_shard(board, shard, query):
            yield page


async def feed(board: Board, query: ArtifactQuery) -> list[Envelope]:
    """Return everything that a query selects: in order per shard, and by creation time overall."""

    async def from_shard(shard: int) -> list[Envelope]:
        return [envelope async for page in _walk_shard(board, shard, query) for envelope in page]

    parts = await asyncio.gather(*(from_shard(shard) for shard in range(board.num_shards)))
    if len(parts) == 1:
        return parts[0]
    return sorted((e for part in parts for e in part), key=lambda e: e.created_us)


async def count(board: Board, query: ArtifactQuery) -> int:
    """Return how many artifacts of the whole board a query selects."""
    return sum(await board.each("search_count", _encode(query)))


async def summarize(board: Board, query: ArtifactQuery) -> Summary:
    """Count what a query selects on the whole board by several properties."""
    total = Summary()
    for blob in await board.each("search_summary", _encode(query)):
        total = add_summaries(total, _summary(blob))
    return total


async def consumptions(board: Board, ids: Iterable[bytes]) -> list[ActivationRow]:
    """Return the runs that completed with one of these artifacts as input, the oldest first.

    A gate may have been on any shard, so all are asked. `inputs` are only those asked about.
    """
    keys = list(ids)
    rows: dict[tuple[bytes, int], ActivationRow] = {}
    for start in range(0, len(keys), IDS):
        for blob in await board.each("consumptions", keys[start : start + IDS]):
            # A memory board finds a run at each shard that has an output of it.
            rows.update({(row.id, start): row for row in _rows(blob)})
    return sorted(rows.values(), key=lambda row: (row.ended_us, row.id))


async def activations(board: Board, workflow: str, limit: int) -> list[ActivationRow]:
    """Return activations of a workflow that ended, the oldest first."""
    rows: dict[bytes, ActivationRow] = {}
    for blob in await board.each("activations", workflow, limit):
        for row in _rows(blob):
            known = rows.get(row.id)
            rows[row.id] = row if known is None else _merged(known, row)
    return sorted(rows.values(), key=lambda row: (row.ended_us, row.id))[:limit]


def _merged(one: ActivationRow, other: ActivationRow) -> ActivationRow:
    """Return one run that a memory board found at two shards: each knows the outputs that it has."""
    outputs = (*one.outputs, *(key for key in other.outputs if key not in one.outputs))
    return msgspec.structs.replace(one, outputs=outputs, ended_us=min(one.ended_us, other.ended_us))
