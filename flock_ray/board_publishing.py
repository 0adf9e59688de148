"""Putting batches of postings on a board: split by shard, matched again when a table is old, given up in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from flock_ray.claiming import Claiming, Stowed
from flock_ray.core import wire
from flock_ray.core.messages import parts
from flock_ray.edge import Edge
from flock_ray.errors import (
    BackpressureError,
    BoardClosedError,
    PayloadLostError,
    StoreUnavailableError,
)

MAX_OUTSTANDING = 4
"""Batches on the way to one shard: one that is applied, the rest to hide the round trip."""

FULL_RETRY_S = 0.5
"""Pause before payloads are offered again when there was no room for them."""

ANSWER_GRACE_S = 10.0
"""How much longer than the publish timeout a call that the board has taken may be without an answer."""


class BoardPublishing:
    """The publishing half of `Board`."""

    edge: Edge
    claiming: Claiming | None
    _monotonic: Callable[[], float]
    _publish_timeout_s: float

    @property
    def num_shards(self) -> int:
        """Shards of the board."""
        raise NotImplementedError  # Board's

    def shard(self, index: int) -> Any:
        """Return a shard's link."""
        raise NotImplementedError  # Board's

    async def _call(self, call: Any) -> Any:
        raise NotImplementedError  # Board's

    async def _refresh(self, shard: int) -> None:
        raise NotImplementedError  # Board's

    async def publish(self, postings: Sequence[wire.Posting]) -> list[int]:
        """Put artifacts on the board; returns one outcome each, once all are in their journals.

        Raises:
            BackpressureError: The board stayed full for the publish timeout; some may be accepted, and
                publishing the same postings again is safe.
            StoreUnavailableError: A shard is gone; the same holds.
            BoardClosedError: The board was shut down.
        """
        version = self.edge.table.version
        by_shard: dict[int, list[int]] = {}
        num = self.num_shards
        for position, posting in enumerate(postings):
            by_shard.setdefault(posting.envelope.slot % num, []).append(position)
        outcomes = [wire.PUBLISHED] * len(postings)
        await asyncio.gather(
            *(self._publish_to(shard, part, postings, outcomes, version) for shard, part in by_shard.items())
        )
        return outcomes

    async def _publish_to(
        self,
        shard: int,
        positions: list[int],
        postings: Sequence[wire.Posting],
        outcomes: list[int],
        version: int,
    ) -> None:
        sizes = [len(postings[i].envelope.payload) for i in positions]
        if self.claiming is not None and max(sizes) > self.claiming.limit:
            sizes = [self.claiming.on_wire(size) for size in sizes]
        batches = parts(positions, sizes)
        if len(batches) == 1:
            await self._publish_batch(shard, positions, postings, outcomes, version)
            return
        limit = asyncio.Semaphore(MAX_OUTSTANDING)

        async def send(part: list[int]) -> None:
            try:
                await self._publish_batch(shard, part, postings, outcomes, version)
            finally:
                limit.release()

        async with asyncio.TaskGroup() as group:
            for part in batches:
                await limit.acquire()
                group.create_task(send(part))

    async def _publish_batch(
        self,
        shard: int,
        positions: list[int],
        postings: Sequence[wire.Posting],
        outcomes: list[int],
        matched_with: int,
    ) -> None:
        batch = [postings[i] for i in positions]
        deadline = self._monotonic() + self._publish_timeout_s
        stowed: Stowed | None = None
        if self.claiming is not None and any(len(p.envelope.payload) > self.claiming.limit for p in batch):
            stowed = await self._stowed(self.claiming, batch, shard, deadline)
        while True:
            call = self._send_batch(shard, matched_with, batch, stowed)
            try:
                reply = wire.decode_publish_reply(await self._within(deadline, call))
            except PayloadLostError:  # of what was offered; the payloads themselves are here
                if self.claiming is None or self._monotonic() >= deadline:
                    raise
                await asyncio.sleep(FULL_RETRY_S)
                stowed = await self._stowed(self.claiming, batch, shard, deadline)
                continue
            if reply.status == "ok":
                for position, outcome in zip(positions, reply.outcomes, strict=True):
                    outcomes[position] = outcome
                return
            if reply.status == "closed":
                raise BoardClosedError("The board was shut down. Create a new Flock to go on.")
            if reply.status == "stale_table" and self._monotonic() < deadline:
                await self._refresh(shard)
                matched_with = self.edge.table.version
                batch = await self.edge.matched_again(batch)
                continue
            if self._monotonic() >= deadline:
                self._give_up(reply)
            await asyncio.sleep(reply.retry_after_s or 0.05)

    async def _stowed(
        self, claiming: Claiming, batch: Sequence[wire.Posting], shard: int, deadline: float
    ) -> Stowed | None:
        """Offer the large payloads of a batch; waits for room as long as publishing may take."""
        while True:
            try:
                return await claiming.stow(batch, shard)
            except BackpressureError:
                if self._monotonic() >= deadline:
                    raise
            await asyncio.sleep(FULL_RETRY_S)

    async def _send_batch(
        self, shard: int, version: int, batch: Sequence[wire.Posting], stowed: Stowed | None
    ) -> bytes:
        link = self.shard(shard)
        if stowed is None:
            answer: bytes = await link.publish(wire.encode(wire.PublishBatch(version, list(batch))))
            return answer
        blob = wire.encode(wire.PublishBatch(version, [stowed.posting(posting) for posting in batch]))
        try:
            answer = await link.publish_large(blob, stowed.keys, stowed.offer)
        except BackpressureError:
            return wire.encode(wire.PublishReply("busy", retry_after_s=FULL_RETRY_S))
        return answer

    def _give_up(self, reply: wire.PublishReply) -> NoReturn:
        """Raise what a batch that was not taken in time stands for."""
        if reply.status in ("unavailable", "stale_table"):
            raise StoreUnavailableError(
                f"The board's store, or its router, did not answer for {self._publish_timeout_s:g} s. What was "
                "accepted is kept; publish this again when it is back, or raise publish_timeout."
            )
        raise BackpressureError(
            f"The board took no new artifacts for {self._publish_timeout_s:g} s: its agents are slower "
            "than its publishers. Publish again later, add replicas, or raise publish_timeout.",
            retry_after_s=reply.retry_after_s or 1.0,
        )

    async def _within(self, deadline: float, call: Any) -> Any:
        """Wait for the answer to a publish until the deadline, and a while longer: a shard at work is not away."""
        answer = asyncio.ensure_future(self._call(call))
        try:
            limit = max(0.0, deadline - self._monotonic()) + ANSWER_GRACE_S
            done, _ = await asyncio.wait([answer], timeout=limit)
        except asyncio.CancelledError:
            answer.cancel()
            raise
        if done:
            return answer.result()
        answer.cancel()
        raise StoreUnavailableError(
            f"The board did not answer for {self._publish_timeout_s + ANSWER_GRACE_S:g} s, so it is unknown "
            "whether it has the artifacts. Publishing the same again is safe with an idempotency_key."
        )
