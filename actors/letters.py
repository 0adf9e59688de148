"""Dead letters of one shard: pages for readers, and what operators want done with them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.core import wire
from flock_ray.core.letter_index import (
    LetterIndex,
    LetterOrder,
    LetterQuery,
    decode_orders,
    decode_query,
    encode,
)
from flock_ray.erasing import scrub

if TYPE_CHECKING:
    from flock_ray.core.shard import ShardCore

MAX_LOOKUP = 1_000
"""Letters that one call may name."""


class ShardLetters:
    """The part of `Shard` that knows dead letters."""

    core: ShardCore
    _erased: dict[bytes, None]
    _letter_index: LetterIndex | None = None
    """None until somebody asks."""
    _letter_lock: asyncio.Lock | None = None

    async def _durable(self) -> None:
        raise NotImplementedError  # ShardReaders'

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    def _refusal(self) -> wire.PublishReply | None:
        raise NotImplementedError  # Shard's

    # -- reading -------------------------------------------------------------------------------

    async def _letters(self) -> LetterIndex:
        """Return the index, with everything in it that is durable by now."""
        await self._durable()
        if self._letter_index is None or self._letter_lock is None:
            self._letter_index, self._letter_lock = LetterIndex(self.core.slots), asyncio.Lock()
        index = self._letter_index
        async with self._letter_lock:
            for _ in index.catch_up():
                await asyncio.sleep(0)
        return index

    async def letters(self, query: bytes) -> bytes:
        """Return msgpack of `LetterRows`: open letters that a `LetterQuery` selects."""
        return encode((await self._letters()).rows(decode_query(query)))

    async def count_letters(self, query: bytes) -> int:
        """Count the open letters that a `LetterQuery` selects, whatever its limit."""
        index, asked = await self._letters(), decode_query(query)
        if asked == LetterQuery(limit=asked.limit):
            return len(index)
        count = 0
        while True:
            part = index.rows(msgspec.structs.replace(asked, limit=2**31))
            count += len(part.rows)
            if part.seen is None:
                return count
            asked = msgspec.structs.replace(asked, after=part.seen)
            await asyncio.sleep(0)

    async def newest_letters(self) -> tuple[int, list[bytes]]:
        """Return the time of the newest letter, open or not, and the letters of that very time: where a walk ends."""
        return (await self._letters()).end()

    async def find_letters(self, ids: list[bytes]) -> bytes:
        """Return msgpack of the `LetterRow`s of those that are open here."""
        await self._durable()
        return encode(LetterIndex(self.core.slots).find(ids[:MAX_LOOKUP]))

    # -- orders --------------------------------------------------------------------------------

    async def order_letters(self, blob: bytes) -> list[str]:
        """Do a list of `LetterOrder`s in one micro-batch; answers once the journal has what they did.

        Returns:
            For each `ok`, `gone`, `mismatch` or `cancelled`; or, when nothing was done, for all of them together
            one of `busy`, `unavailable` and `closed`.
        """
        refusal = self._refusal()
        if refusal is not None and (refusal.status != "busy" or _opens_runs(blob)):
            return [refusal.status]
        answers: list[str] = await self._enqueue("letters", blob, len(blob))
        return answers

    def _apply_letters(self, orders: list[LetterOrder], now_us: int) -> list[str]:
        if self._erased:
            for order in orders:
                for envelope in (*order.inputs, *(() if order.new is None else (order.new,))):
                    scrub(wire.Posting(envelope), self._erased)
        return [self._apply_order(order, now_us) for order in orders]

    def _apply_order(self, order: LetterOrder, now_us: int) -> str:
        core, new = self.core, order.new
        if order.kind == "redrive":
            return core.redrive(order.slot, order.letter, order.inputs, order.by, now_us)
        if order.kind == "discard":
            return core.discard(order.slot, order.letter, order.by, order.reason, now_us)
        if new is None:
            return "mismatch"
        if order.kind == "put":
            return self._put(new, now_us)
        slot = core.slots.get(order.slot)
        letter = None if slot is None else slot.letters.get(order.letter)
        if letter is None:
            return "gone"
        if order.old not in letter.inputs:
            return "mismatch"
        if new.slot in core.slots and (stored := self._put(new, now_us)) != "ok":
            return stored
        return core.edit_letter(order.slot, order.letter, order.old, new.id, order.by, now_us)

    def _put(self, new: wire.Envelope, now_us: int) -> str:
        """Store an edited input; nobody is matched with it."""
        outcome = self.core.publish(wire.Posting(new), now_us)
        return "ok" if outcome in (wire.PUBLISHED, wire.DUPLICATE) else "mismatch"


def postings_of(orders: list[LetterOrder]) -> list[wire.Posting]:
    """Return what orders publish."""
    return [wire.Posting(order.new) for order in orders if order.new is not None]


def workflows_of(core: ShardCore, orders: list[LetterOrder]) -> set[str]:
    """Return the workflows that orders are about, as far as they are here."""
    found: set[str] = set()
    for order in orders:
        slot = core.slots.get(order.slot)
        letter = None if slot is None else slot.letters.get(order.letter)
        if letter is not None:
            found.add(letter.envelope.correlation_id)
    return found


def _opens_runs(blob: bytes) -> bool:
    """Say whether an order makes work: the others are taken on a full board, too."""
    return any(order.kind == "redrive" for order in decode_orders(blob))
