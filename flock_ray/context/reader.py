"""Reads a board from a worker: the newest artifacts that a query selects, from the indexes of all shards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from flock_ray.claiming import Claiming
from flock_ray.core.claims import is_claim, payload_bytes
from flock_ray.core.rows import ArtifactQuery
from flock_ray.core.wire import Envelope
from flock_ray.errors import StoreUnavailableError
from flock_ray.ports import PeerGoneError

__all__ = ["MAX_READ_BYTES", "BoardReader"]

MAX_READ_BYTES = 16 * 1024 * 1024
"""Payload bytes after which a read ends; one artifact always fits."""
PAGE = 200
"""Most artifacts of one reply."""
MIN_REPLY_BYTES = 256 * 1024
PATIENCE_S = 15.0
"""How long a shard that restarts is waited for; one with a store is back within a few seconds."""
RETRY_S = 0.2

_encode = msgspec.msgpack.Encoder().encode
_envelopes = msgspec.msgpack.Decoder(list[Envelope]).decode

Age = tuple[int, bytes]


def age(envelope: Envelope) -> Age:
    """Return what artifacts are ordered by: creation time, then id."""
    return envelope.created_us, envelope.id


@dataclass(slots=True)
class _Pages:
    """What came of one shard so far, the newest first."""

    link: Any
    found: list[Envelope] = field(default_factory=list)
    more: bool = True

    def hides(self, envelope: Envelope | None) -> bool:
        """Say whether the shard may have something newer than this that has not come; None: than nothing."""
        return self.more and (envelope is None or not self.found or age(self.found[-1]) > age(envelope))


class BoardReader:
    """An `ArtifactReader` over links to the shards. May be used on any event loop of the worker.

    What a run sees is at least what its inputs came from: an activation is handed out after its inputs are
    durable, and a shard answers from what is durable, or from the memory in which it was accepted.
    """

    def __init__(
        self,
        shard: Callable[[int], Any],
        num_shards: int,
        *,
        max_bytes: int = MAX_READ_BYTES,
        claiming: Claiming | None = None,
    ) -> None:
        """Read a board.

        Args:
            shard: Finds the link of a shard.
            num_shards: How many the board has.
            max_bytes: Payload bytes of one read.
            claiming: Reads large payloads; None: there are none.
        """
        self._claiming = claiming
        self._shard = shard
        self._num_shards = num_shards
        self._max_bytes = max_bytes

    async def newest(self, query: ArtifactQuery, limit: int, *, before: Age | None = None) -> list[Envelope]:
        """Return the newest artifacts that a query selects, oldest first.

        Fewer than `limit`: there are no more, or they would be more than `max_bytes`.

        Args:
            query: Which ones.
            limit: At most so many, from 1.
            before: Only those with a (creation time in microseconds, id) below this; None: all.

        Raises:
            StoreUnavailableError: A shard or its store does not answer; retryable.
        """
        shards = [_Pages(self._shard(index)) for index in range(self._num_shards)]
        size = min(PAGE, max(8, -(-2 * limit // self._num_shards)), limit)
        blob = _encode(query)
        while True:
            merged = sorted((e for pages in shards for e in pages.found), key=age, reverse=True)
            last = merged[limit - 1] if len(merged) >= limit else None
            behind = [pages for pages in shards if pages.hides(last)]
            known = max((age(pages.found[-1]) for pages in behind if pages.found), default=None)
            sure = [e for e in merged if known is None or age(e) >= known]
            # What is not sure is at most one reply of each shard: it says nothing about what fits.
            if not behind or (
                all(pages.found for pages in behind)
                and sum(payload_bytes(e.payload) for e in sure) > self._max_bytes
            ):
                break
            await asyncio.gather(*(self._fetch(pages, blob, size, before) for pages in behind))
            size = PAGE
        return await self._whole(self._fitting(sure[:limit]))

    async def get(self, ids: Collection[bytes]) -> list[Envelope]:
        """Return the artifacts of these ids that there are, in any order.

        Raises:
            StoreUnavailableError: A shard or its store does not answer; retryable.
        """
        wanted = list(dict.fromkeys(ids))
        links = [self._shard(index) for index in range(self._num_shards)]
        blobs = await asyncio.gather(*(_patiently(partial(link.get, wanted)) for link in links))
        return await self._whole(list({e.id: e for blob in blobs for e in _envelopes(blob)}.values()))

    async def _whole(self, envelopes: list[Envelope]) -> list[Envelope]:
        if self._claiming is None or not any(is_claim(e.payload) for e in envelopes):
            return envelopes
        return await self._claiming.whole(envelopes)

    async def _fetch(self, pages: _Pages, query: bytes, size: int, before: Age | None) -> None:
        start = age(pages.found[-1]) if pages.found else before
        max_bytes = max(MIN_REPLY_BYTES, self._max_bytes // self._num_shards)
        blob, pages.more = await _patiently(lambda: pages.link.search_newest(query, size, start, max_bytes))
        found = _envelopes(blob)
        pages.found += found
        pages.more = pages.more and bool(found)

    def _fitting(self, newest_first: list[Envelope]) -> list[Envelope]:
        left, kept = self._max_bytes, list[Envelope]()
        for envelope in newest_first:
            left -= payload_bytes(envelope.payload)
            if left < 0 and kept:
                break
            kept.append(envelope)
        return kept[::-1]


async def _patiently(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call a shard, again while it restarts."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        try:
            return await call()
        except PeerGoneError as gone:
            if gone.final or loop.time() >= deadline:
                raise StoreUnavailableError(
                    f"A shard of the board does not answer ({gone}): the context can't be read. Try again."
                ) from gone
        await asyncio.sleep(RETRY_S)
