"""Putting batches of postings on a board: split by shard, matched again when a table is old, given up in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from flock_ray.core import wire
from flock_ray.core.messages import parts
from flock_ray.edge import Edge
from flock_ray.errors import BackpressureError, BoardClosedError, StoreUnavailableError

MAX_OUTSTANDING = 4
"""Batches on the way to one shard: one that is applied, the rest to hide the round trip."""

ANSWER_GRACE_S = 10.0
"""How much longer than the publish timeout a call that the board has taken may be without an answer."""


class BoardPublishing:
    """The publishing half of `Board`."""

    edge: Edge
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
        batches = parts(positions, [len(postings[i].envelope.payload) for i in positions])
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
        while True:
            blob = wire.encode(wire.PublishBatch(matched_with, batch))
            reply = wire.decode_publish_reply(await self._within(deadline, self.shard(shard).publish(blob)))
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
